"""What own runs have in common, and what differs between them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lowland.deep import TrainConfig
from lowland.report.gathered import OwnRun
from lowland.sweeps.study import text_of

_ALWAYS = ("dataset", "data", "model", "epochs")
_UNSAID = ("exp_name",)


def differing(runs: Sequence[OwnRun]) -> list[str]:
    """Options that are not the same in all runs, in the order of ``lowland train``."""
    options = [run.config.to_dict() for run in runs]
    names = dict.fromkeys(name for each in options for name in each if name not in _UNSAID)
    return [name for name in names if len({str(each.get(name)) for each in options}) > 1]


def in_common(runs: Sequence[OwnRun]) -> str:
    """Options that are the same in all: those that always matter, and those that are not the default."""
    defaults, first = TrainConfig().to_dict(), runs[0].config.to_dict()
    told = set(differing(runs)) | set(_UNSAID) | ({"dataset"} if first.get("data") else set())
    names = [name for name in _ALWAYS if name in first]
    names += [name for name in first if name not in _ALWAYS and first[name] != defaults.get(name)]
    return ", ".join(f"{name} {option(first[name])}" for name in names if name not in told)


def kinds(runs: Sequence[OwnRun]) -> dict[str, list[OwnRun]]:
    """The seeds of each kind of run, by what tells the kinds apart."""
    names = [name for name in differing(runs) if name != "seed"]
    groups: dict[str, list[OwnRun]] = {}
    for run in runs:
        options = run.config.to_dict()
        told = ", ".join(f"{name} {option(options.get(name))}" for name in names)
        groups.setdefault(told or "all runs", []).append(run)
    return groups


def have_seeds(runs: Sequence[OwnRun]) -> bool:
    """Whether some runs differ in the seed only."""
    return any(len({run.config.seed for run in own}) > 1 for own in kinds(runs).values())


def option(value: Any) -> str:
    """A value of an option, as it is given at the command line; a dash for none."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return json.dumps(value) if isinstance(value, bool) else text_of(value)
