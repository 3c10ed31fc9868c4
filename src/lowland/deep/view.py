"""Which part of a landscape to draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowland.errors import InputError, require_default, require_finite

View = Literal["auto", "line", "curve", "plane", "random-line", "sam"]


@dataclass(frozen=True)
class SceneryConfig:
    """Which part of a landscape to draw.

    Attributes:
        view: line: between two networks and beyond; curve: that and a trained Bezier curve between them;
            plane: through three networks, or around one in random filter-normalized directions; random-line:
            through one in such a direction; sam: through one along SAM's perturbation. By default line for
            two networks, else plane.
        points: Number of points along each direction.
        low: First coordinate of a line, in units of the distance between networks; of a random direction, in
            units of its filters' lengths; along SAM's perturbation, an l2 norm.
        high: Last coordinate.
        margin: How far a plane through three networks goes beyond them, as a share of its size.
        n_eval: Examples of each split that are evaluated (batch norm's statistics are of 5,000).
        n_direction: Training examples whose gradient SAM's perturbation follows.
        curve_steps: Steps of training the curve, of 128 examples each.
        curve_lr: Size of one step.
        seed: Of everything random.
    """

    view: View = "auto"
    points: int = 25
    low: float | None = None
    high: float | None = None
    margin: float = 0.25
    n_eval: int = 1024
    n_direction: int = 128
    curve_steps: int = 300
    curve_lr: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        require_finite(self)
        for name, least in (("points", 2), ("n_eval", 1), ("n_direction", 1), ("curve_steps", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise InputError(f"low must be below high, got {self.low} and {self.high}.")
        if not self.margin >= 0.0:
            raise InputError(f"margin must be non-negative, got {self.margin}.")
        if not self.curve_lr > 0.0:
            raise InputError(f"curve_lr must be positive, got {self.curve_lr}.")

    def resolved(self, networks: int) -> View:
        """The view of that many networks.

        Raises:
            InputError: If there is none, or an option is given that it does not read.
        """
        view = self.view if self.view != "auto" else ("line" if networks == 2 else "plane")
        wanted = {"line": (2,), "curve": (2,), "plane": (1, 3), "random-line": (1,), "sam": (1,)}[view]
        if networks not in wanted:
            numbers = " or ".join(str(n) for n in wanted)
            raise InputError(f"view {view} is of {numbers} networks, got {networks}.")
        unread = {
            "margin": not (view == "plane" and networks == 3),
            "low": view == "plane" and networks == 3,
            "high": view == "plane" and networks == 3,
            "n_direction": view != "sam",
            "curve_steps": view != "curve",
            "curve_lr": view != "curve",
            "seed": view in {"line", "sam"} or (view == "plane" and networks == 3),
        }
        names = [name for name, nobody in unread.items() if nobody]
        require_default(self, names, f"for view {view}, which does not read it")
        return view
