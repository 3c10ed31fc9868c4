"""Which functions a run directory may name: opening one runs nothing of a stranger's choice."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lowland.deep.config import TrainConfig
from lowland.deep.functions import function_named, is_function, is_installed, searched_first
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
    for option, name, package in strange_functions(config, run):
        if package not in trust:
            raise InputError(
                f"{run} names {name}, a function of {package}, which is installed or lies in the run, as its "
                f"{option}; it is called only with --trust {package}, got no such."
            )


def require_trust_read(config: TrainConfig, trust: Sequence[str], run: Path) -> None:
    """Raises :class:`InputError` for a trusted package of which the run names no function."""
    named = {package for *_, package in strange_functions(config, run)}
    unread = [package for package in trust if package not in named]
    if unread:
        packages = ", ".join(sorted(named)) or "none"
        raise InputError(
            f"trust must name packages that the run's functions are of, {packages}, got {unread[0]}."
        )


def strange_functions(config: TrainConfig, run: Path) -> Iterator[tuple[str, str, str]]:
    """The option, the name and the package of each function that is not of a module of the user's own."""
    for option in ("model", "loss", "data"):
        name = getattr(config, option)
        if name is not None and is_function(name) and not (option == "data" and Path(name).exists()):
            package = _strange_package(name, option, run.resolve())
            if package is not None:
                yield option, name, package


def _strange_package(name: str, option: str, run: Path) -> str | None:
    """The package of a function, if that is not the user's own."""
    module = name.partition(":")[0]
    if not _is_own(module, run):
        return module.partition(".")[0]
    function = function_named(name, option)  # which the user's module may have from elsewhere
    owner = getattr(function, "__module__", None) or type(function).__module__
    return None if _is_own(owner, run) else owner.partition(".")[0]


def _is_own(module: str, run: Path) -> bool:
    """Whether a module is no part of Python, of what is installed, or of the run's directory.

    One that is nowhere is refused later.
    """
    package, *below = module.split(".")
    if package in sys.stdlib_module_names:
        return False
    with searched_first(Path.cwd()):
        try:
            found = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            return package == "__main__"
    if found is None:
        return True
    bases = found.submodule_search_locations
    places = [Path(base).joinpath(*below) for base in bases] if bases else [Path(found.origin or "<none>")]
    return not any(is_installed(place) or run in (place.resolve() / "x").parents for place in places)
