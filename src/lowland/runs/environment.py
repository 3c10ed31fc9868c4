"""Where a run was made."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("lowland", "torch", "numpy", "pyarrow", "pillow", "safetensors")
_OTHERS = ("scipy", "numba", "matplotlib", "huggingface_hub", "rich")
_EXTRAS = ("lightning", "transformers", "accelerate", "plotly", "ray", "tensorboard")


def describe_environment() -> dict[str, Any]:
    """Versions, kind of machine and the git commit of the code, for ``env.json``.

    Returns:
        Plain JSON values, ``None`` for what cannot be known.

    Example:
        >>> from lowland.runs import describe_environment
        >>> sorted(describe_environment())
        ['git_commit', 'platform', 'processor', 'python', 'versions']
    """
    return {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": platform.processor() or platform.machine(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
    }


def installed_packages() -> dict[str, str | None]:
    """Versions of all that is used, ``None`` for what is missing; those of extras if they are there."""
    used = {name: _version(name) for name in (*_PACKAGES, *_OTHERS)}
    return used | {name: found for name in _EXTRAS if (found := _version(name)) is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the checkout that this code runs from; ``None`` for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
