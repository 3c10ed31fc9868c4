"""What the cells of the original's notebook on diagonal linear networks ran, and what they printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowland.diagonal.experiment import DiagonalConfig

_GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9)
_ORIGINAL: dict[str, Any] = {"rho_convention": "original"}
SWITCHED = DiagonalConfig(
    phases=(
        f"gd:{1 / 30}:20002",
        f"gd:{1 / 30}:10001+1-sam:{1 / 30}:10001:10",
        f"1-sam:{1 / 30}:10001:0.175+gd:{1 / 30}:10001",
    ),
    **_ORIGINAL,
)


@dataclass(frozen=True)
class Cell:
    """A cell: what it ran, and the final test losses that it printed.

    Attributes:
        number: Its number.
        title: What it shows.
        short: The same in a few words.
        configs: What it ran.
        printed: Final test losses by the label of the run.
        note: What is different here.
    """

    number: int
    title: str
    short: str
    configs: tuple[DiagonalConfig, ...]
    printed: Mapping[str, float]
    note: str


CELLS = (
    Cell(
        1,
        "n-SAM, α = 0.1",
        "n-SAM",
        (DiagonalConfig(methods=("gd", "n-sam"), rho=(0.01, 0.03, 0.1, 0.3, 1.0)),),
        {
            "GD": 0.015056044189449159,
            "n-SAM, ρ = 0.01": 0.015143589149560101,
            "n-SAM, ρ = 0.03": 0.01532189739609112,
            "n-SAM, ρ = 0.1": 0.01598195225147282,
            "n-SAM, ρ = 0.3": 0.018241642036376265,
            "n-SAM, ρ = 1": 0.03606494490010675,
        },
        "n-SAM is worse than gradient descent at every radius, in the notebook's output too.",
    ),
    Cell(
        2,
        "1-SAM, α = 0.02",
        "1-SAM",
        (DiagonalConfig(methods=("gd", "1-sam"), rho=(0.01, 0.03, 0.1, 0.3), alpha=0.02, **_ORIGINAL),),
        {
            "GD": 0.0006337885714222886,
            "1-SAM, ρ = 0.01 [2ρ]": 0.0004663830742908966,
            "1-SAM, ρ = 0.03 [2ρ]": 0.00023853572282255735,
            "1-SAM, ρ = 0.1 [2ρ]": 1.5396958089444108e-05,
            "1-SAM, ρ = 0.3 [2ρ]": 0.024183218285324055,
        },
        "The notebook's 1-SAM climbs twice as far as its ρ says, which [2ρ] marks.",
    ),
    Cell(
        3,
        "SGD and 1-SAM, α = 0.1, step size 10/d",
        "SGD and 1-SAM",
        (
            DiagonalConfig(
                methods=("gd", "1-sam"), rho=(0.03, 0.1, 0.15, 0.2, 0.3), gamma=10 / 30, **_ORIGINAL
            ),
            DiagonalConfig(phases=(f"sgd:{1 / 9}:10001", f"sgd:{1 / 3}:10001")),
        ),
        {},
        "The notebook's SGD depends on the state of its kernel and cannot be rerun; one seed of ours is "
        "drawn.",
    ),
    Cell(
        4,
        "n-SAM and 1-SAM over a grid of radii, α = 0.1",
        "grid of radii",
        (
            DiagonalConfig(rho=_GRID, gamma=15 / 30, **_ORIGINAL),
            DiagonalConfig(methods=("n-sam",), rho=_GRID, gamma=10 / 30),
        ),
        {},
        "The notebook states the step size 15/d but runs n-SAM with a stale 10/d, so that its curve "
        "begins below gradient descent's; both are drawn here.",
    ),
    Cell(
        5,
        "switching between gradient descent and 1-SAM",
        "switching",
        (SWITCHED,),
        {},
        "Where the notebook prints 'rho=0.9' it ran ρ = 10 and 0.175, a stale loop variable.",
    ),
)
