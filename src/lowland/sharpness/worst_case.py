"""The highest loss nearby."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypedDict, Unpack, get_args

from torch import Tensor, nn

from lowland.errors import InputError, one_of
from lowland.sam.arguments import Engine, check_engine, check_numbers, check_params
from lowland.sam.batch import MicroBatches
from lowland.sam.buffers import Buffers
from lowland.sam.grouped import Grouped
from lowland.sam.objective import Objective
from lowland.sam.pieces import require_whole
from lowland.sam.reductions import Unreduced
from lowland.sharpness.averaged import Reduction, averaged, check_reduction
from lowland.sharpness.ball import Norm
from lowland.sharpness.measurement import Measurement
from lowland.sharpness.objective import Batch, Loss, Params, held, listed_params, objective
from lowland.sharpness.outcome import Outcome, sizes_of
from lowland.sharpness.scales import Scaling, check_scaling
from lowland.sharpness.search import AutoPGD, Search
from lowland.sharpness.trials import Found, Terrain, Trial


class Options(TypedDict, total=False):
    """Those of :class:`WorstCase`, beside the ones that are arguments of every function here."""

    norm: Norm
    scaling: Scaling
    search: Search
    restarts: int
    seed: int
    beside: Params
    climbed: Loss | None
    transfer: bool
    longer: Search | None
    points: bool
    engine: Engine
    max_memory: int
    module: nn.Module | None


def worst_case(
    loss: Loss,
    params: Params,
    batch: Batch,
    *,
    rho: float,
    m: int | None = None,
    reduction: Reduction = "mean",
    **options: Unpack[Options],
) -> Measurement:
    r"""m-sharpness, :math:`\sum_S \frac{|S|}{n} \max_{\|\delta / c\| \le \rho} L_S(w + \delta) - L_S(w)`.

    Each group S of m examples has a perturbation of its own (Foret et al., 2021, section 4.1; adaptive:
    Andriushchenko et al., 2023, section 2). The maximum is over the points that the climb visits, the
    weights themselves among them, so that it is a lower bound of the true one and never negative. Points
    are chosen by the loss.

    Args:
        loss: The mean loss of the examples it is given, as for :func:`lowland.sam_gradient`, and so are
            ``params``, ``batch``, and ``engine`` and ``module`` among the options. Tensors that it returns
            beside its value, an error for instance, are measured at the same points.
        params: The parameters that move, all or some of the model's; unchanged, and so are their ``.grad``,
            buffers and random generators.
        batch: The examples.
        rho: Radius, in units of c.
        m: Examples in a group; ``None`` for one group of all.
        reduction: ``"sum"`` for a loss that adds up its examples instead: it is divided by their number.
        options: Those of :class:`WorstCase`.

    Returns:
        The value, with its standard error over groups.

    Raises:
        InputError: If a number is out of its range, or the loss does not depend on the parameters or, where
            there are several groups, on its arguments.

    Example:
        >>> import torch
        >>> from lowland.sharpness import worst_case
        >>> w = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss(x):
        ...     return x * sum(t.square().sum() for t in w)  # from 5 ** 2 to 6 ** 2 one unit away
        >>> batch = (torch.ones(4, dtype=torch.float64),)
        >>> found = worst_case(loss, w, batch, rho=1.0)
        >>> round(found.value, 6)
        11.0
    """
    return worst_case_grid(loss, params, batch, rho=[rho], m=[m], reduction=reduction, **options)[0]


def worst_case_grid(
    loss: Loss,
    params: Params,
    batch: Batch,
    *,
    rho: Sequence[float],
    m: Sequence[int | None] = (None,),
    reduction: Reduction = "mean",
    on_progress: Callable[[float], object] = lambda _: None,
    **options: Unpack[Options],
) -> list[Measurement]:
    """:func:`worst_case` for every radius and every m: radii are climbed together.

    A point that was found for a smaller radius counts for the larger ones too, so that sharpness never
    falls with the radius.

    Args:
        loss: As for :func:`worst_case`, and so are the arguments that are not named here.
        params: The parameters that move.
        batch: The examples.
        rho: The radii.
        m: Numbers of examples in a group.
        reduction: Whether the loss is a mean or a sum.
        on_progress: Called with the share of the work that is done.
        options: Those of :class:`WorstCase`.

    Returns:
        A result for each m and, within it, each radius, in the order given.

    Raises:
        InputError: As for :func:`worst_case`.

    Example:
        >>> import torch
        >>> from lowland.sharpness import worst_case_grid
        >>> w = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss(x):
        ...     return x * sum(t.square().sum() for t in w)  # from 5 ** 2 to 6 ** 2 one unit away
        >>> batch = (torch.ones(4, dtype=torch.float64),)
        >>> found = worst_case_grid(loss, w, batch, rho=[0.5, 1.0], m=[None, 1])
        >>> [(f.settings["m"], f.settings["rho"], round(f.value, 4)) for f in found]
        [(None, 0.5, 5.25), (None, 1.0, 11.0), (1, 0.5, 5.25), (1, 1.0, 11.0)]
    """
    asked, batch = WorstCase(reduction=reduction, **options), held(batch)
    found: list[Measurement] = []
    for k, size in enumerate(m):
        report = partial(_report, on_progress, k, 1, len(m))
        found += asked.over_radii(loss, params, batch, rho, size, report)
    return found


@dataclass(frozen=True)
class WorstCase:
    """How the worst case is looked for.

    Attributes:
        norm: Of the ball.
        scaling: What c is: 1, the weight's size, the norm of its filter, or the weight's size and 1.
        search: How to climb.
        restarts: Number of climbs: one from the weights, the others from random points of the ball, the same
            for all groups.
        seed: Of these.
        beside: Parameters that stay, whose gradients count in the norm that a :class:`ProjectedAscent` along
            ``"whole"`` divides by.
        climbed: A loss to climb in place of the one that is measured, by which points are still chosen.
        transfer: Whether each group's perturbation is measured on the next group (the first, after the
            last) in place of its own; that may be negative.
        longer: A second search, which takes more steps. The value of the two together is ``also["longer"]``
            and tells how far the lower bound still moves.
        points: Whether ``points`` of the result are to have the perturbations that were found: the memory of
            the weights for every group, radius and start.
        engine: Whether groups, restarts and radii are climbed one after the other or all at once.
        max_memory: Bytes that the climbs at once may take.
        reduction: ``"sum"`` for a loss that adds up its examples instead of taking their mean, and a climbed
            one that does: they are divided by the number of examples.
        module: The module that the loss runs.

    Raises:
        InputError: If an option is out of its range or goes with none of the others.

    Example:
        >>> import torch
        >>> from lowland.sharpness import WorstCase
        >>> w = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (3.0, 4.0)]
        >>> def loss(x):
        ...     return x * sum(t.square().sum() for t in w)  # from 5 ** 2 to 6 ** 2 one unit away
        >>> batch = (torch.ones(4, dtype=torch.float64),)
        >>> by_size = WorstCase(norm="linf", scaling="element")
        >>> found = by_size.over_radii(loss, w, batch, [0.1], None, lambda share: None)
        >>> round(found[0].value, 4)  # every weight grows by a tenth: (1.1 ** 2 - 1) * 25
        5.25
    """

    norm: Norm = "l2"
    scaling: Scaling = "plain"
    search: Search = AutoPGD()  # noqa: RUF009 - immutable
    restarts: int = 1
    seed: int = 0
    beside: Params = ()
    climbed: Loss | None = None
    transfer: bool = False
    longer: Search | None = None
    points: bool = False
    engine: Engine = "auto"
    max_memory: int = 2**30
    reduction: Reduction = "mean"
    module: nn.Module | None = None

    def __post_init__(self) -> None:
        one_of("norm", self.norm, get_args(Norm))
        check_scaling(self.scaling)
        check_engine(self.engine, self.max_memory)
        check_reduction(self.reduction)
        if isinstance(self.restarts, bool) or not isinstance(self.restarts, int) or self.restarts < 1:
            raise InputError(f"restarts must be a positive whole number, got {self.restarts!r}.")
        self._check_whole()

    def _check_whole(self) -> None:
        for search in (self.search, self.longer):
            if search is not None:
                self._check_direction(search.settings().get("direction"))

    def _check_direction(self, direction: str | None) -> None:
        if len(self.beside) > 0 and direction != "whole":
            raise InputError(
                f"beside needs a projected ascent along 'whole', which reads it, got {direction!r}."
            )
        if direction == "whole" and self.norm != "l2":
            raise InputError(f"direction 'whole' is of an l2 norm, got norm {self.norm!r}.")

    def settings(self) -> dict[str, Any]:
        """What decided the values, as plain ones."""
        longer = {} if self.longer is None else self.longer.settings()
        return {
            "norm": self.norm,
            "scaling": self.scaling,
            **self.search.settings(),
            **{f"longer_{name}": value for name, value in longer.items()},
            "restarts": self.restarts,
            "seed": self.seed,
            "transfer": self.transfer,
            "climbed": "the loss" if self.climbed is None else "another",
        }

    def over_radii(
        self,
        loss: Loss,
        params: Params,
        batch: Batch,
        rho: Sequence[float],
        m: int | None,
        on_progress: Callable[[float], object],
    ) -> list[Measurement]:
        """A result for each radius, of groups of ``m``.

        Args:
            loss: The mean loss of the examples it is given.
            params: The parameters that move.
            batch: The examples.
            rho: The radii.
            m: Examples in a group; ``None`` for one group of all.
            on_progress: Called with the share of the work that is done.

        Raises:
            InputError: As for :func:`worst_case`.
        """
        _check_radii(rho)
        check_numbers(m=m, steps=1, step_size=1.0, l2=0.0, scale=1.0)
        beside = listed_params(self.beside)
        check_params(listed_params(params))
        require_whole(listed_params(params))
        with objective(loss, [*listed_params(params), *beside], batch, self.module) as target:
            groups = Grouped(MicroBatches(target.parts), m)
            self._check_transfer(groups)
            terrain = self._terrain(loss, target.params, len(target.params) - len(beside), groups)
            starts, indices = range(self.restarts), range(len(groups))
            trials = [Trial(i, float(r), s) for s in starts for r in rho for i in indices]
            outcome = Outcome(params, groups, *self._found(terrain, trials, on_progress))
            return [outcome.of(r, {"rho": r, "m": m, **self.settings()}) for r in rho]

    def _found(
        self, terrain: Terrain, trials: list[Trial], on_progress: Callable[[float], object]
    ) -> tuple[dict[Trial, Found], dict[Trial, Found]]:
        """What the trials found by the search, and by the longer one."""
        own, more = self.search.steps, 0 if self.longer is None else self.longer.steps
        report = partial(_report, on_progress, 0, own, own + more)
        found = dict(zip(trials, terrain.climbed_by(trials, report), strict=True))
        if self.longer is None:
            return found, {}
        report = partial(_report, on_progress, own, more, own + more)
        further = replace(terrain, search=self.longer, points=False).climbed_by(trials, report)
        return found, dict(zip(trials, further, strict=True))

    def _terrain(self, loss: Loss, params: list[Tensor], moving: int, groups: Grouped) -> Terrain:
        def passes(of: Loss) -> Objective:
            buffers = Buffers(self.module, trained=params, reductions=Unreduced())
            of = averaged(of, self.reduction, watched=len(groups) > 1)
            return Objective(of, params, buffers)

        measured = passes(loss)
        return Terrain(
            measured,
            measured if self.climbed is None else passes(self.climbed),
            moving,
            groups,
            self.norm,
            self.scaling,
            self.search,
            self.seed,
            self.transfer,
            self.points,
            self.engine,
            self.max_memory,
        )

    def _check_transfer(self, groups: Grouped) -> None:
        sizes = sorted(set(sizes_of(groups)))
        if self.transfer and (len(groups) < 2 or len(sizes) > 1):
            raise InputError(
                f"transfer needs two or more groups of the same size, got {len(groups)} of {sizes} examples."
            )


def _check_radii(rho: Sequence[float]) -> None:
    if not rho:
        raise InputError("rho must be one radius or several, got none.")
    for radius in rho:
        if not 0.0 < radius < math.inf:
            raise InputError(f"rho must be positive and finite, got {radius}.")


def _report(on_progress: Callable[[float], object], done: int, own: int, all_: int, share: float) -> None:
    on_progress((done + own * share) / all_)
