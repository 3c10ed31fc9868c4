"""A sweep's runs joined over seeds, the radius that validation chooses, and ERM beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowland.deep.records import chosen_by
from lowland.sweeps.grid import RADII


@dataclass(frozen=True)
class Point:
    """Runs that differ in nothing but the seed.

    Attributes:
        options: The swept options.
        values: The metric of each seed that is there.
        validation: What it is chosen by: its validation error, or loss.
        chosen_by: The name of that.
        is_chosen: Whether its radius is the best of its kind by validation.
        rivals: How many radii its kind has, beside this one.
        seeds: The seeds of the values.
        is_erm: Whether its radius is 0.
        erm: ERM with all else the same, if the sweep has it; ``None`` of ERM.
    """

    options: Mapping[str, Any]
    values: tuple[float, ...]
    validation: tuple[float, ...]
    chosen_by: str = "validation_error"
    is_chosen: bool = False
    rivals: int = 0
    seeds: tuple[int, ...] = ()
    is_erm: bool = False
    erm: Point | None = None


def points(rows: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> list[Point]:
    """The rows joined over seeds; of each kind of run the radius of the lowest validation error is chosen.

    ERM is of every kind whose other options it shares, but for those that only SAM reads.

    Args:
        rows: The rows, as :meth:`Study.rows` has them.
        swept: The swept options.

    Example:
        >>> from lowland.sweeps import points
        >>> rows = [
        ...     {"sam_rho": rho, "seed": seed, "value": 0.1 + rho, "validation_error": 0.2 - rho}
        ...     for rho in (0.0, 0.1)
        ...     for seed in (0, 1)
        ... ]
        >>> [(p.options["sam_rho"], len(p.values), p.is_chosen) for p in points(rows, ["sam_rho"])]
        [(0.0, 2, False), (0.1, 2, True)]
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_key(row, swept), []).append(row)
    found = {key: _point(own, swept) for key, own in groups.items()}
    groups_of_runs = {row["run"]: _key(row, swept) for row in rows if "run" in row}
    for key, own in groups.items():
        there = [groups_of_runs[row["erm"]] for row in own if row.get("erm") in groups_of_runs]
        if there and not found[key].is_erm:
            found[key] = replace(found[key], erm=found[there[0]])
    kinds = _kinds(list(found.values()))
    chosen = [id(best(kind)) for kind in kinds]
    rivals = {id(point): len(kind) - 1 for kind in kinds for point in kind}
    ranked = {id(p): replace(p, is_chosen=id(p) in chosen, rivals=rivals[id(p)]) for p in found.values()}
    return [p if p.erm is None else replace(p, erm=ranked[id(p.erm)]) for p in ranked.values()]


def _kinds(found: Sequence[Point]) -> list[list[Point]]:
    """The radii of each kind, ERM first."""
    kinds = kinds_of_sam(found)
    for kind in kinds:
        kind[:0] = [point.erm for point in kind if point.erm is not None][:1]
    compared = {id(kind[0]) for kind in kinds}
    return kinds + [[point] for point in found if point.is_erm and id(point) not in compared]


def kinds_of_sam(found: Sequence[Point]) -> list[list[Point]]:
    """Points of SAM that differ in nothing but the radius.

    Args:
        found: The points.
    """
    kinds: dict[str, list[Point]] = {}
    for point in found:
        if not point.is_erm:
            same = {name: value for name, value in point.options.items() if name not in RADII}
            kinds.setdefault(str(same), []).append(point)
    return list(kinds.values())


def best(kind: Sequence[Point]) -> Point:
    """The point of the lowest mean validation error; of equal ones the first.

    Args:
        kind: At least one point.
    """
    return min(kind, key=_mean_validation)


def _mean_validation(point: Point) -> float:
    """A validation error that is not a number is worse than any."""
    error = mean_and_deviation(point.validation)[0]
    return math.inf if math.isnan(error) else error


def _key(row: Mapping[str, Any], swept: Sequence[str]) -> str:
    return str([row[name] for name in swept])


def _point(rows: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> Point:
    def numbers(name: str) -> tuple[float, ...]:
        return tuple(float("nan") if row[name] is None else float(row[name]) for row in rows)

    first = rows[0]
    options, by = {name: first[name] for name in swept}, chosen_by(first)
    is_erm = "erm" in first and first["erm"] == first["run"]
    seeds = tuple(row["seed"] for row in rows)
    return Point(options, numbers("value"), numbers(by), by, seeds=seeds, is_erm=is_erm)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation of a sample where there are several; NaN if a run diverged.

    Args:
        values: The values, at least one.

    Example:
        >>> from lowland.sweeps import mean_and_deviation
        >>> mean_and_deviation([1.0, 2.0, 3.0]), mean_and_deviation([1.0])
        ((2.0, 1.0), (1.0, None))
    """
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
