"""``lowland env``."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lowland.cli.arguments import parse
from lowland.cli.output import Output

_PATHS = ("LOWLAND_DATA", "LOWLAND_CACHE", "HF_HOME")
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG")


@dataclass(frozen=True)
class EnvCommand:
    """Print versions, threads, devices and paths, for a bug report.

    Example:
        lowland env --json

    Attributes:
        json: Print one JSON object.
    """

    json: bool = False


def run(argv: Sequence[str]) -> int:
    """Runs the command; 0."""
    command = parse(EnvCommand, argv, prog="lowland env")
    found = found_here()
    if command.json:
        print(json.dumps(found, indent=1))
        return 0
    console = Output()
    for title, facts in found.items():
        console.say(title if facts else f"{title}: none")
        for name, fact in facts.items():
            console.say(f"  {name:<24}{_text(fact)}".rstrip())
    return 0


def found_here() -> dict[str, Mapping[str, Any]]:
    """What is known of where this process runs, as plain JSON values; what cannot be found out is said."""
    return {
        "versions": {"python": platform.python_version(), **_told("packages", _versions)},
        "machine": {
            "platform": platform.platform(),
            "processor": _attempted(_processor),
            "CPUs": os.cpu_count(),
            "CPUs of this process": _attempted(lambda: len(os.sched_getaffinity(0))),
        },
        "torch": _told("torch", _torch),
        "accelerators": _told("accelerators", _accelerators),
        "paths": {
            "executable": sys.executable,
            "lowland": str(Path(__file__).resolve().parents[1]),
            "git commit": _attempted(_commit),
            "cache": _attempted(_cache),
            **{name: os.environ[name] for name in _PATHS if name in os.environ},
        },
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _attempted(ask: Callable[[], Any]) -> Any:
    """The answer, or why there is none: a report from a broken installation is what this is for."""
    try:
        return ask()
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        return f"not found out: {type(error).__name__}: {reason}".rstrip(": ")


def _told(what: str, ask: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    answer = _attempted(ask)
    return answer if isinstance(answer, Mapping) else {what: answer}


def _versions() -> dict[str, str | None]:
    from lowland.runs.environment import installed_packages

    return installed_packages()


def _commit() -> str | None:
    from lowland.runs import describe_environment

    commit: str | None = describe_environment()["git_commit"]
    return commit


def _cache() -> str:
    from lowland.deep.data.cache import cache_folder

    return str(cache_folder())


def _processor() -> str:
    """Its name; Python knows only its kind on Linux."""
    if sys.platform == "linux":
        named = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
        if named is not None:
            return named[1]
    return platform.processor() or platform.machine()


def _torch() -> dict[str, Any]:
    import torch

    built = torch.__config__.show()
    return {
        "threads": torch.get_num_threads(),
        "threads between ops": torch.get_num_interop_threads(),
        "BLAS": _of(r"BLAS_INFO=(\w+)", built),
        "OpenMP": _of(r"OpenMP (\d+)", built),
        "MKL-DNN": _of(r"MKL-DNN (v[\d.]+)", built),
        "CPU capability": _attempted(torch.backends.cpu.get_cpu_capability),
        "CUDA": torch.version.cuda,
        "cuDNN": _attempted(torch.backends.cudnn.version),
        "ROCm": torch.version.hip,
    }


def _of(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return None if found is None else found[1]


def _accelerators() -> dict[str, Any]:
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return {"devices": None}
    count = torch.accelerator.device_count()
    found = {f"{kind.type}:{i}": _attempted(partial(_accelerator, kind.type, i)) for i in range(count)}
    return found | ({"driver": _attempted(_driver)} if kind.type == "cuda" else {})


def _accelerator(kind: str, index: int) -> dict[str, Any]:
    """Name, memory in GiB and capability, as far as this kind of device has them."""
    import torch

    ask = getattr(torch.get_device_module(kind), "get_device_properties", None)
    if ask is None:
        return {"name": kind}
    properties = ask(index)
    memory = getattr(properties, "total_memory", None)
    capability = [str(getattr(properties, name)) for name in ("major", "minor") if hasattr(properties, name)]
    return {
        "name": properties.name,
        "GiB": None if memory is None else round(memory / 2**30, 1),
        "capability": ".".join(capability) or None,
    }


def _driver() -> str | None:
    from torch.utils.collect_env import get_nvidia_driver_version, run

    # torch has no types there
    driver: str | None = get_nvidia_driver_version(run)  # type: ignore[no-untyped-call]
    return driver


def _text(fact: Any) -> str:
    if isinstance(fact, Mapping):
        return ", ".join(f"{name} {_text(value)}" for name, value in fact.items())
    return "none" if fact is None else str(fact)
