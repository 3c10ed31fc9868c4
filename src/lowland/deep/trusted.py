"""Which functions a run directory may name: opening one runs nothing of a stranger's choice."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lowland.deep.config import TrainConfig
from lowland.deep.functions import function_named, is_function, is_installed, on_path
from lowland.errors import InputError


def require_trusted(config: TrainConfig, trust: Sequence[str], run: Path) -> None:
    """Raises :class:`InputError` unless every function that a stored config names may be called.

    One that a module of the user's own defines may be, in the working directory or wherever else Python
    looks; one of Python's library or of an installed package only if the user says so, since with arguments
    of a stranger's it may do anything.

    Args:
        config: What the run's directory holds.
        trust: Packages that the user trusts.
        run: The directory.
    """
    for option, name, package in strange_functions(config):
        if package not in trust:
            raise InputError(
                f"{run} names {name}, a function of the installed package {package}, as its {option}, "
                f"which is called only with --trust {package}, got no such."
            )


def strange_functions(config: TrainConfig) -> Iterator[tuple[str, str, str]]:
    """The option, the name and the package of each function that is not of a module of the user's own."""
    for option in ("model", "loss", "data"):
        name = getattr(config, option)
        if name is not None and is_function(name) and not (option == "data" and Path(name).exists()):
            package = _strange_package(name, option)
            if package is not None:
                yield option, name, package


def _strange_package(name: str, option: str) -> str | None:
    """The package of a function, if that is not the user's own."""
    package = name.partition(":")[0].partition(".")[0]
    if not _is_own(package):
        return package
    function = function_named(name, option)  # which the user's module may have from elsewhere
    owner = getattr(function, "__module__", None) or type(function).__module__
    package = owner.partition(".")[0]
    return None if _is_own(package) else package


def _is_own(package: str) -> bool:
    """Whether a module is no part of Python or of what is installed; one that is nowhere is refused later."""
    on_path(Path.cwd())
    if package in sys.stdlib_module_names:
        return False
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return package == "__main__"
    return found is None or (found.origin is not None and not is_installed(Path(found.origin)))
