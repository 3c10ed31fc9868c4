"""Groups that are run at once: whether they can be, how many, and what is done where they cannot."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from lowland.sam.batched.look import NotFinite
from lowland.sam.batched.memory import Needs
from lowland.sam.batched.precision import TypesClash
from lowland.sam.batched.probe import probe
from lowland.sam.batched.reachable import Reachable
from lowland.sam.batched.settled import Fingerprint, Verdict, verdicts_of
from lowland.sam.batched.step import Otherwise, Step, masses_of
from lowland.sam.before import undone_on_error
from lowland.sam.engine import Attempt, Plan
from lowland.sam.grouped import Grouped
from lowland.sam.looks.world import World
from lowland.sam.said import loss_key
from lowland.sam.unbatchable import IN_SEVERAL_PARTS, Branches, Unbatchable
from lowland.sam.vectors.many import forms

if TYPE_CHECKING:
    from lowland.sam.captured.captured import Captured
    from lowland.sam.captures import Captures
    from lowland.sam.total import Found

_MOST = 8
"""How often the groups of a chunk are parted by the branches that they take."""


@dataclass
class _Chunk:
    """Groups that are run at once.

    Attributes:
        indices: Their numbers.
        attempt: The attempt.
        failed: Why it failed: they cannot be run at once, or their gradients are not finite.
        check: Refuses what was found, if a replay has found something else.
    """

    indices: list[int]
    attempt: Attempt
    failed: Exception | None = None
    check: Callable[[Found], None] = lambda _: None


class AtOnce:
    """Runs many groups at once where that is possible and faster.

    Args:
        plan: The groups, and what to do with those that cannot be run so.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.objective, self.how, self.groups = plan.objective, plan.how, plan.groups
        self.sources = plan.sources if isinstance(plan.sources, Grouped) else None
        self._weighed: Sequence[int] = ()
        self._parted = 0

    def attempts(self, weighed: Sequence[int]) -> Iterator[Attempt]:
        """All groups: in order, unless they take different branches."""
        self._weighed = weighed
        reason = self._reason_against()
        if reason is not None:
            yield from self.plan.fall_back(weighed, Unbatchable(reason))
            return
        runs = [list(run) for _, run in groupby(weighed, key=self._alike)]
        for run in runs:
            if self._alike(run[0]) is None:
                yield from self.plan.fall_back(run, Unbatchable(IN_SEVERAL_PARTS))
            elif len(run) == 1 and len(runs) > 1:
                yield from self.plan.one_by_one(run)
            else:
                yield from self._of_run(run)

    def _reason_against(self) -> str | None:
        """An option that has no batched form."""
        if self.plan.process_group is not None:
            return "a process_group whose ranks climb together"
        if self.how.starting is not None:
            return type(self.how.ascent).__name__
        if self.objective.bn_stats == "both" and len(self.groups) > 1:
            return "bn_stats='both', which moves statistics from pass to pass of a group"
        if self.plan.shares_sources:
            return "an ascent_batch that several groups climb on"
        grouped = [self.groups, *([] if self.sources is None else [self.sources])]
        return next((reason for g in grouped if (reason := g.reason_against()) is not None), None)

    def _alike(self, i: int) -> Any:
        """What groups must have in common to be stacked, those that they climb on included."""
        found = self.groups.alike(i)
        if self.sources is None or found is None:
            return found
        source = self.sources.alike(i % len(self.sources))
        return None if source is None else (found, source)

    def _of_run(self, indices: list[int]) -> Iterator[Attempt]:
        """Groups of the same shapes: as many at once as fit, the rest of those that cannot be one by one."""
        verdicts, key, done = verdicts_of(self.objective.params), self._key(indices), 0
        verdict = verdicts.get(key)
        if verdict is not None and verdict.waits > 0 and self.plan.engine == "auto":
            verdict.waits -= 1
            yield from self.plan.one_by_one(indices)
            return
        try:
            if verdict is None or not verdict.tried:
                verdict = verdicts.settle(key, verdict or Verdict(0, self._fingerprint()))
                self._settle(verdict, indices)
            while verdict.chunk > 0 and done < len(indices):
                self._parted = 0
                yield from self._of_chunk(indices[done : done + verdict.chunk])
                done += verdict.chunk
            verdict.held()
        except TypesClash as clash:
            raise clash.error from None
        except Unbatchable as error:
            if verdict is not None:
                verdict.failed()
            yield from self.plan.fall_back(self._left(indices), error)
            return
        yield from self.plan.one_by_one(self._left(indices))

    def _left(self, indices: list[int]) -> list[int]:
        """Those that have not been run yet."""
        done = set(self.plan.total.places)
        return [i for i in indices if i not in done]

    def _of_chunk(self, indices: list[int], *, is_part: bool = False) -> Iterator[Attempt]:
        """Groups at once; those of each branch where they take different ones.

        Where a gradient is not finite they are run one by one. What is left over of branches, a single group
        or such a gradient, is not run here: in the loop groups come in order, on which statistics depend.

        Raises:
            Unbatchable: If they cannot be run so; everything is then as if they had not been.
        """
        step = self._step(indices)
        chunk = _Chunk(indices, Attempt())
        captures = self.plan.captures
        if captures is None:
            chunk.attempt.block = self._together(chunk, step)
            yield chunk.attempt
        else:
            yield from self._captured(captures, chunk, step)
        error = chunk.failed
        if isinstance(error, Branches) and self._parted < _MOST and len(error.taken) == len(indices):
            self._parted += 1
            for side in (error.taken[0], not error.taken[0]):
                part = [i for i, taken in zip(indices, error.taken, strict=True) if taken is side]
                if len(part) > 1:
                    yield from self._of_chunk(part, is_part=True)
        elif isinstance(error, Unbatchable):
            raise error
        elif error is not None and not is_part:
            yield from self.plan.one_by_one(indices)

    def _captured(self, captures: Captures, chunk: _Chunk, step: Step) -> Iterator[Attempt]:
        """The groups of a chunk by a recorded step, or as they are, which is then perhaps recorded."""
        from lowland.sam.captured.kind import kind_of

        kind = kind_of(captures, step)
        captured = kind.current(step)
        if captured is not None:
            replayed = kind.expected(step)
            if replayed is not None:
                chunk.check = partial(kind.check, step, replayed)
            else:
                chunk.attempt.run = partial(captured.run, step)
                chunk.attempt.block = self._replayed(chunk, captured)
                yield chunk.attempt
                captures.replayed += chunk.failed is None
                if chunk.failed is None:
                    return
                kind.missed(step, chunk.failed)
        chunk.failed, chunk.attempt = None, Attempt()
        chunk.attempt.block = self._together(chunk, step)
        yield chunk.attempt
        captures.run += 1
        if chunk.failed is None:
            kind.learn(step)

    @contextmanager
    def _replayed(self, chunk: _Chunk, captured: Captured) -> Iterator[None]:
        plan, objective = self.plan, self.objective
        leaves_traces = captured.draws or captured.writes
        try:
            with (
                undone_on_error(objective.params, objective.buffers, objective.workspace)
                if leaves_traces
                else nullcontext()
            ):
                yield
                plan.total.add(chunk.attempt.hand_over(), self._weight(chunk.indices), chunk.indices)
        except Otherwise as error:
            chunk.failed = error

    @contextmanager
    def _together(self, chunk: _Chunk, step: Step) -> Iterator[None]:
        plan, objective = self.plan, self.objective
        put_back = Reachable(objective.loss, objective.buffers.modules()).taken()
        try:
            with undone_on_error(objective.params, objective.buffers, objective.workspace):
                chunk.attempt.run = partial(step.run, World(objective))
                yield
                step.require_gone()
                chunk.check(chunk.attempt.found)
                plan.total.add(chunk.attempt.hand_over(), self._weight(chunk.indices), chunk.indices)
        except (NotFinite, Unbatchable) as error:
            put_back()
            chunk.failed = error
        except TypesClash as clash:
            put_back()
            raise clash.error from None
        except BaseException:
            put_back()
            raise

    def _weight(self, indices: list[int]) -> float:
        return sum(self.plan.masses[i] for i in indices)

    def _step(self, indices: list[int]) -> Step:
        """What is done with some groups."""
        sources = None if self.sources is None else self.sources.stacked(indices)
        masses = masses_of(self.plan, indices)
        batch, cuts = self.groups.stacked(indices), len(self.groups) > 1
        return Step(self.plan, batch, sources, masses, cuts, self._follow(indices))

    def _follow(self, indices: list[int]) -> bool:
        """Whether these come next in the order of the groups, with nothing left out before them."""
        done, weighed = self.plan.total.places, list(self._weighed)
        follow = weighed[len(done) : len(done) + len(indices)] == indices
        return follow and set(done) == set(weighed[: len(done)])

    def _settle(self, verdict: Verdict, indices: list[int]) -> None:
        """Runs one group by itself, to see whether that is possible and what it holds."""
        params = self.objective.params
        one = self.groups.stacked(indices[:1])
        seen = probe(self.objective, one, planned_groups=len(indices), forms=forms(self.how.ascent))
        gradient = sum(p.numel() * p.element_size() for p in params)
        mean = sum(p.numel() * max(p.element_size(), 4) for p in params)  # in float32 or better
        needs = Needs(len(indices), seen.saved, seen.recorded, gradient, mean)
        chunk = needs.groups_at_once(self.plan.max_memory)
        chunks = math.ceil(len(indices) / chunk)
        captured = self.plan.captures is not None
        slower = self.plan.engine == "auto" and seen.loop_is_faster(
            len(indices), chunks, params, captured=captured
        )
        verdict.chunk = 0 if slower else chunk
        verdict.tried = True
        verdict.fingerprint = self._fingerprint()

    def _fingerprint(self) -> Fingerprint:
        return Fingerprint(self.objective.buffers.modules())

    def _key(self, indices: list[int]) -> Hashable:
        device = self.objective.params[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        how, plan = self.how, self.plan
        return (
            *(loss_key(self.objective.loss), self.groups.shapes(indices[0]), len(indices), autocast),
            *(type(how.ascent), forms(how.ascent), how.steps, how.radii.move, self.objective.measure),
            *(plan.engine, plan.max_memory, plan.sources is None, self.objective.reduction),
            plan.captures is None,
        )
