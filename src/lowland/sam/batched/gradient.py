"""The m-SAM gradient of all groups of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowland.sam.average import Gradients
from lowland.sam.batched.climb import Gradient, GroupsClimber, Moves, with_penalty
from lowland.sam.batched.norms import cosines, squared_norms
from lowland.sam.batched.passes import GroupsPass, GroupsPasses
from lowland.sam.batched.per_group import PerGroup
from lowland.sam.batched.precision import autocast_off
from lowland.sam.batched.refused import require_gone, require_no_draws
from lowland.sam.batched.stacked import Stacked
from lowland.sam.climb import Climber
from lowland.sam.diagnostics import GroupDiagnostics
from lowland.sam.norm import l2_norm
from lowland.sam.passes import Passes
from lowland.sam.precision import working
from lowland.sam.randomness import RandomState
from lowland.sam.total import GroupsFound


class BatchedGradient:
    """The two passes of several groups.

    Args:
        passes: The loss and its policies.
        climber: The climb.
        gradient_at_weights: Whether the gradient at the weights is asked for, of all parameters.
        cuts: Whether to ask if the loss touches its arguments.
    """

    def __init__(self, passes: Passes, climber: Climber, *, gradient_at_weights: bool, cuts: bool) -> None:
        self.passes = passes
        self.climber = climber
        self.gradient_at_weights = gradient_at_weights
        self.cuts = cuts

    def of(self, batch: Stacked, masses: Sequence[float], source: Stacked | None) -> GroupsFound:
        """The contribution of the groups of ``batch``, which climb on those of ``source``.

        All passes start from the same random draws; afterwards the generators stand where the first pass
        over ``batch`` left them.
        """
        groups = _Groups(self, batch, masses, source)
        found = groups.found()
        require_gone(groups.run.results)
        return found


class _Groups:
    """One call of :meth:`BatchedGradient.of`."""

    def __init__(
        self, options: BatchedGradient, batch: Stacked, masses: Sequence[float], source: Stacked | None
    ) -> None:
        self.passes, self.at_weights = options.passes, options.gradient_at_weights
        self.batch, self.source, self.masses = batch, source, list(masses)
        self.climber = GroupsClimber(
            options.climber,
            self.passes.params,
            batch.groups,
            self.passes.noise,
            keeps_gradient=self.at_weights or options.climber.remembers,
        )
        self.run = GroupsPasses(self.passes, self.climber.forms, cuts=options.cuts)
        share = torch.tensor(self.masses, dtype=torch.float64, device="cpu")
        self.share = (share / share.sum()).to(self.passes.params[0].device)
        self.draws = RandomState.capture(self.passes.devices)
        self.all = list(range(len(self.passes.params)))
        self.wanted = options.climber.wanted or self.all
        self.measure = options.climber.measure
        self.remembered: Gradients = []

    @torch.no_grad()
    def found(self) -> GroupsFound:
        climber = self.climber.climber
        if climber.radii.rho == 0.0:
            return self._unperturbed()
        if climber.blind is not None:
            return self._blind()
        if self.source is None:
            start = self._first(self.all if self.at_weights else self.wanted)
            after = RandomState.capture(self.passes.devices)
            moves = self._climb(self.batch, start)
        else:
            moves = self._climb(self.source, self.run.recorded(self.source, self.wanted))
            self.draws.restore()
            start = self._first(self.all) if self.at_weights else self.run.values(self.batch)
            after = RandomState.capture(self.passes.devices)
        self.draws.restore()
        found = self._second(start, moves)
        after.restore()
        return found

    def _unperturbed(self) -> GroupsFound:
        """Without a radius: one pass."""
        if not self.measure:
            only = self.run.summed(self.batch, self.share, None, first=True)
            return self._together(only, only, None)
        start = self._first(self.all)
        gradient = with_penalty(start.gradient, self.all, None, self.passes.l2, self.batch.groups)
        norms = squared_norms(gradient, self.batch.groups).sqrt()
        zeros = torch.zeros(self.batch.groups, device="cpu")
        return self._together(start, start, Moves([None] * len(self.all), norms, zeros))

    def _blind(self) -> GroupsFound:
        """One pass, at the perturbed weights; two if the gradient at the weights is needed as well."""
        if not self.at_weights:
            moves = self.climber.blind()
            only = self.run.summed(self.batch, self.share, moves.e, first=True)
            return self._together(only, only, moves)
        moves = self.climber.blind()
        start = self._first(self.all)
        after = RandomState.capture(self.passes.devices)
        self.draws.restore()
        found = self._second(start, moves)
        after.restore()
        return found

    def _first(self, wanted: Sequence[int]) -> GroupsPass:
        found = self.run.recorded(self.batch, wanted, first=True)
        require_no_draws(self.draws, self.batch.groups)
        return found

    def _climb(self, batch: Stacked, start: GroupsPass) -> Moves:
        device = self.share.device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

        def gradient(found: GroupsPass, e: Sequence[PerGroup | None] | None) -> Gradient:
            return with_penalty(found.gradient, self.wanted, e, self.passes.l2, batch.groups)

        def again(e: list[PerGroup | None]) -> Gradient:
            self.draws.restore()
            with torch.autocast(device, dtype=dtype, enabled=enabled):
                found = self.run.recorded(batch, self.wanted, e)
            return gradient(found, e)

        with autocast_off(self.share):
            climbed = self.climber.climb(gradient(start, None), again)
        if self.climber.climber.remembers:
            moving = self.climber.climber.radii.indices
            found = gradient(start, None)
            self.remembered = [found[i].summed(self.share) for i in moving]
        return climbed

    def _second(self, start: GroupsPass, moves: Moves) -> GroupsFound:
        if self.measure:
            second = self.run.recorded(self.batch, self.all, moves.e)
        else:
            second = self.run.summed(self.batch, self.share, moves.e, spend=self.passes.l2 == 0.0)
        return self._together(start, second, moves)

    def _together(self, start: GroupsPass, second: GroupsPass, moves: Moves | None) -> GroupsFound:
        with autocast_off(self.share):
            return self._gathered(start, second, moves)

    def _gathered(self, start: GroupsPass, second: GroupsPass, moves: Moves | None) -> GroupsFound:
        e = None if moves is None else moves.e
        return GroupsFound(
            sum(self.masses),
            self._objective(start.losses, e if start is second else None),
            self.masses,
            start.aux,
            self._mean(second, e),
            self._mean(start, None) if self.at_weights else [],
            self.remembered,
            self._rows(start, second, moves) if self.measure and moves is not None else [],
            moves is not None and any(t is not None for t in moves.e),
            start.connected or second.connected,
        )

    def _objective(self, losses: Tensor, e: Sequence[PerGroup | None] | None) -> Tensor:
        """Losses with the l2 term."""
        if self.passes.l2 == 0.0:
            return losses
        losses = losses.to(torch.promote_types(losses.dtype, l2_norm(self.passes.params).dtype))
        if e is None:
            return losses + 0.5 * self.passes.l2 * l2_norm(self.passes.params).square()
        ones = torch.ones(self.batch.groups, dtype=torch.float64, device="cpu")
        weights = [PerGroup(w, along=ones) for w in self.passes.params]
        moved = [w if t is None else w.plus(t) for w, t in zip(weights, e, strict=True)]
        return losses + 0.5 * self.passes.l2 * squared_norms(moved, self.batch.groups).to(losses)

    def _mean(self, found: GroupsPass, e: Sequence[PerGroup | None] | None) -> Gradients:
        """The weighted mean of a pass's gradients, with the scale and the l2 term."""
        scale, l2 = self.passes.scale, self.passes.l2
        gradients = found.total or [_scaled(g.summed(self.share), scale) for g in found.gradient]
        for i, w in enumerate(self.passes.params if l2 > 0.0 else ()):
            move = None if e is None else e[i]
            w = working(w.detach())
            mean = None if move is None else move.summed(self.share)
            moved = w if mean is None else w + mean
            g = gradients[i]
            gradients[i] = l2 * scale * moved if g is None else g + l2 * scale * moved
        return gradients

    def _rows(self, start: GroupsPass, second: GroupsPass, moves: Moves) -> list[GroupDiagnostics]:
        groups, l2 = self.batch.groups, self.passes.l2
        before = with_penalty(start.gradient, self.all, None, l2, groups)
        behind = with_penalty(second.gradient, self.all, moves.e, l2, groups)
        realised, moved = self._realised(moves)
        losses = self._objective(start.losses, None)
        perturbed = self._objective(second.losses, moves.e)
        lengths = moves.lengths.tolist()
        norms = moves.gradient_norms.tolist()
        cosine = cosines(before, behind, groups).tolist()
        return [
            GroupDiagnostics(
                group_size=mass,
                loss=losses[k],
                perturbed_loss=perturbed[k] if lengths[k] > 0.0 else losses[k],
                gradient_norm=norms[k],
                perturbation_norm=lengths[k],
                realised_norm=realised[k].item(),
                moved=moved[k].item(),
                cosine=cosine[k],
                climbed=lengths[k] > 0.0,
            )
            for k, mass in enumerate(self.masses)
        ]

    def _realised(self, moves: Moves) -> tuple[Tensor, Tensor]:
        """Norm of each group's perturbation once the weights are rounded, and the share that moved."""
        squares = torch.zeros(self.batch.groups, dtype=torch.float64, device="cpu")
        moved = torch.zeros(self.batch.groups, dtype=torch.float64, device="cpu")
        total = 0
        for i in self.climber.climber.radii.indices:
            w, move = self.passes.params[i].detach(), moves.e[i]
            total += w.numel()
            if move is None:
                continue
            change = working((working(w) + move.whole(self.batch.groups)).to(w.dtype)) - working(w)
            squares += squared_norms([PerGroup(w, dense=change)], self.batch.groups).cpu()
            moved += change.reshape(self.batch.groups, -1).count_nonzero(1).cpu()
        return squares.sqrt(), moved / max(total, 1)


def _scaled(g: Tensor | None, scale: float) -> Tensor | None:
    return g if g is None or scale == 1.0 else g * scale
