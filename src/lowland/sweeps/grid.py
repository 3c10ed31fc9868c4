"""A grid of training runs from options with several values."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lowland.deep import TrainConfig
from lowland.deep.needs import idle_groups, unmet
from lowland.errors import InputError, one_of
from lowland.runs import conform
from lowland.runs.schema import parse_json

Options = Mapping[str, Any]
_NAMES = [field.name for field in fields(TrainConfig)]
_SEVERAL = {field.name for field in fields(TrainConfig) if isinstance(field.default, tuple)}


@dataclass(frozen=True)
class Grid:
    """Training runs that differ in some options.

    Attributes:
        configs: The runs, each once.
        left_out: Options that some runs would not read, and what they need there; m where the radius is 0.
    """

    configs: tuple[TrainConfig, ...]
    left_out: Mapping[str, str]

    @property
    def swept(self) -> tuple[str, ...]:
        """The options that differ, without the seed."""
        return tuple(
            name
            for name in _NAMES
            if name != "seed" and len({str(getattr(config, name)) for config in self.configs}) > 1
        )


def grid(
    options: Mapping[str, Sequence[Any]],
    together: Sequence[Sequence[str]] = (),
    listed: Sequence[Options] = ({},),
) -> Grid:
    """Every combination of the values, with each of the listed configs.

    An option that a combination would not read (m where the radius is 0) is left out of it, if another one
    reads it; combinations that are then the same are one run.

    Args:
        options: The values of each option.
        together: Options that vary together: the first value of one with the first of the others.
        listed: Configs, or parts of such.

    Raises:
        InputError: If a value is wrong, an option is in ``listed`` too, options that vary together have not
            equally many values, or nothing reads an option anywhere.

    Example:
        >>> from lowland.sweeps import grid
        >>> found = grid({"sam_rho": [0.0, 0.1], "m": [1, 16], "model": ["fc"]})
        >>> [(config.sam_rho, config.m) for config in found.configs], found.swept
        ([(0.0, None), (0.1, 1), (0.1, 16)], ('sam_rho', 'm'))
    """
    for name in [*options, *itertools.chain(*together)]:
        one_of("option", name, _NAMES)
    configs: dict[TrainConfig, None] = {}
    left_out: dict[str, str] = {}
    read: set[str] = set()
    for given in listed:
        twice = sorted(given.keys() & options.keys())
        if twice:
            raise InputError(f"{twice[0]} must be given once, got it for all runs and in a listed one.")
        for chosen in _combinations(options, together):
            config, unread = _read({**given, **chosen})
            configs[config] = None
            left_out |= unread
            read |= (given.keys() | chosen.keys()) - unread.keys()
    for name, needed in left_out.items():
        if name not in read:
            raise InputError(f"{name} needs {needed}, without which it would do nothing.")
    return Grid(tuple(configs), left_out)


def _combinations(
    options: Mapping[str, Sequence[Any]], together: Sequence[Sequence[str]]
) -> Iterator[dict[str, Any]]:
    axes: list[list[dict[str, Any]]] = []
    joined = [name for names in together for name in names]
    for names in together:
        lengths = {name: len(options.get(name, ())) for name in names}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            counts = ", ".join(f"{count} of {name}" for name, count in lengths.items())
            raise InputError(f"options that vary together must have as many values each, got {counts}.")
        axes.append(
            [dict(zip(names, row, strict=True)) for row in zip(*(options[n] for n in names), strict=True)]
        )
    if len(set(joined)) < len(joined):
        raise InputError(f"an option may vary together with others once, got {', '.join(joined)}.")
    axes += [[{name: value} for value in values] for name, values in options.items() if name not in joined]
    for chosen in itertools.product(*axes):
        yield {name: value for part in chosen for name, value in part.items()}


def _read(options: Options) -> tuple[TrainConfig, dict[str, str]]:
    """The config of what of the options it reads, and what it does not, with what that needs."""
    unread: dict[str, str] = {}
    while True:
        kept = {name: value for name, value in options.items() if name not in unread}
        config = TrainConfig.from_dict(_plain(kept))
        found = {n: needed for n, needed in (*unmet(config), *idle_groups(config)) if n in kept}
        if not found:
            return TrainConfig(**kept), unread
        unread |= found


def erm_of(config: TrainConfig) -> TrainConfig:
    """The run of ERM with all else the same: at radius 0, without the options that it would not read.

    Args:
        config: A run.

    Example:
        >>> from lowland.deep import TrainConfig
        >>> from lowland.sweeps.grid import erm_of
        >>> erm = TrainConfig(model="fc", seed=1)
        >>> erm_of(TrainConfig(model="fc", seed=1, sam_rho=0.1, m=16)) == erm == erm_of(erm)
        True
    """
    given = {field.name: getattr(config, field.name) for field in fields(TrainConfig)}
    differing = {f.name: given[f.name] for f in fields(TrainConfig) if given[f.name] != f.default}
    return _read({name: value for name, value in differing.items() if name not in RADII})[0]


RADII = ("sam_rho", "sam_lr_mult")
"""Options that are a radius; without them it is 0."""


def _plain(options: Options) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def listed_in(path: Path) -> list[dict[str, Any]]:
    """Configs from a file: JSON, one object a line, or TOML, one table ``[[run]]`` each.

    Raises:
        InputError: If it cannot be read so, or an option is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be a file of configs that can be read: {error}.") from None
    found = _of_toml(path, text) if path.suffix == ".toml" else _of_lines(path, text)
    if not found:
        raise InputError(f"{path} must hold at least one config, got none.")
    for given in found:
        for name in given:
            one_of(f"option in {path}", name, _NAMES)
        for name in _SEVERAL & given.keys():
            given[name] = tuple(conform(given[name], list[str], name))
    return found


def _of_lines(path: Path, text: str) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                value = parse_json(line)
            except ValueError as error:
                raise InputError(f"line {number} of {path} must be a JSON object: {error}.") from None
            found.append(conform(value, dict[str, Any], f"line {number} of {path}"))
    return found


def _of_toml(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} must be a TOML file: {error}.") from None
    others = sorted(value.keys() - {"run"})
    if others:
        raise InputError(f"{path} must hold tables [[run]] only, got {others[0]}.")
    return [dict(given) for given in conform(value.get("run", []), list[dict[str, Any]], f"run in {path}")]
