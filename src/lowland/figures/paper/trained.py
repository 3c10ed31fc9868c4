"""Rows of trained networks: their final errors, and their curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lowland.deep import TrainConfig
from lowland.deep.records import MetricsRow
from lowland.figures.paper.figure import Row, Rows
from lowland.figures.paper.networks import method, network_label
from lowland.sweeps import Store, Task, Training

ERRORS = ("test_error", "validation_error", "train_error", "train_error_noisy")


def finished(tasks: Sequence[Task], store: Store) -> list[Training]:
    """The training runs that are there."""
    return [task for task in tasks if isinstance(task, Training) and store.has(task)]


def identity(config: TrainConfig) -> Row:
    """What tells runs of one figure apart."""
    return {
        "network": network_label(config),
        "method": method(config),
        "rho": config.sam_rho,
        "m": config.group_size,
        "seed": config.seed,
        "published": False,
    }


def final_rows(
    tasks: Sequence[Task], store: Store, *, more: Callable[[Training], Row] = lambda _: {}
) -> Rows:
    """A row per training run: errors in per cent and losses after the last epoch.

    Args:
        tasks: The runs; those that are not finished have no row.
        store: Where they are.
        more: What else tells them apart.
    """
    rows = []
    for task in finished(tasks, store):
        last = store.run(task).last_row(MetricsRow)
        rows.append(identity(task.config) | more(task) | _numbers(last) | {"run": task.name})
    return rows


def curve_rows(
    tasks: Sequence[Task], store: Store, *, more: Callable[[Training], Row] = lambda _: {}
) -> Rows:
    """A row per training run and epoch that was evaluated on whole splits."""
    return [
        identity(task.config) | more(task) | {"epoch": row["epoch"]} | _numbers(row) | {"run": task.name}
        for task in finished(tasks, store)
        for row in store.run(task).rows(MetricsRow)
        if row["full"]
    ]


def _numbers(row: dict[str, Any]) -> Row:
    errors = {name: 100.0 * row[name] for name in ERRORS if row.get(name) is not None}
    losses = {name: math.nan if row.get(name) is None else row[name] for name in ("train_loss", "test_loss")}
    return errors | losses
