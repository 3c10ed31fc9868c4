"""When a step is recorded, replayed, checked and given up."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from lowland.sam.batched.look import NotFinite
from lowland.sam.batched.reachable import Reachable
from lowland.sam.batched.step import Otherwise, Step
from lowland.sam.before import undone_on_error
from lowland.sam.captured.captured import Captured, capture
from lowland.sam.captured.guard import modes_of_torch
from lowland.sam.captured.same import difference_of
from lowland.sam.captured.unrecordable import Stale, Unrecordable
from lowland.sam.captures import Captures, Mode
from lowland.sam.containers import tensors_of
from lowland.sam.kept import kept_tensors
from lowland.sam.objective import Objective
from lowland.sam.randomness import RandomState
from lowland.sam.said import loss_key, warn_once
from lowland.sam.total import Found

MOST = 8
"""Recorded steps of one SAM; the one that was not used for longest goes first."""

CHECK_EVERY = 200
"""Replays of a step of which the last is compared with the step as it is."""

FAILURES = 4
"""How often a step is recorded anew because something has changed, before that is given up."""

MISSES, MISSES_SHARE = 4, 0.1
"""How many replays may stop because the host would decide otherwise, and which share of them."""

IN_TURN = f"more than {MOST} kinds of batches in turn: other shapes, numbers or words"
"""Why steps are not recorded that do not come again before others have."""

WORTH = 10
"""How often a step is to be replayed on average, where there are many kinds."""

DIGITS = 256.0
"""By how many units of the last digit, of its norm, a tensor that is replayed may differ."""

DIGITS_COMPILED = 2.0**15
"""The same of a compiled step, whose sums are taken in another order."""


@dataclass
class Kind:
    """Steps for which one recording serves.

    Attributes:
        captures: The recorded steps of the same SAM.
        mode: Whether this one is compiled.
        captured: The recorded step, if there is one.
        runs: How often it was run as it is since there is none.
        replays: How often it was replayed since it was recorded.
        misses: How often the host would have decided otherwise.
        failures: How often it had to be recorded anew, one time soon after the other.
        refused: Whether it is not to be recorded any more.
    """

    captures: Captures
    mode: Mode
    captured: Captured | None = None
    runs: int = 0
    replays: int = 0
    misses: int = 0
    failures: int = 0
    refused: bool = False

    def current(self, step: Step) -> Captured | None:
        """The recorded step, if there is one and nothing that it depends on has changed."""
        if self.captured is None:
            return None
        self.captured.begin(step)
        changed = self.captured.guard.broken(step.plan.objective, [step.plan.how.ascent])
        if changed is None:
            return self.captured
        self._fail(step, f"{changed}, changes from call to call")
        return None

    def expected(self, step: Step) -> Found | None:
        """What a replay finds, where it is to be compared: everything is then as if it had not been."""
        self.replays += 1
        if self.captured is None or self.replays % CHECK_EVERY > 0:
            return None
        try:
            with _undone(step.plan.objective, self.captured.written):
                return self.captured.run(step, exact=True)
        except Otherwise:
            return None

    def missed(self, step: Step, why: Exception | None) -> None:
        """Takes note that a replay stopped, which costs as much as one that does not."""
        self.misses += 1
        if self.misses > MISSES + self.replays * MISSES_SHARE:
            self._fail(
                step, str(why or "") or "decisions that depend on values, and differ from step to step"
            )

    def learn(self, step: Step) -> None:
        """Takes note that a step was run as it is, and records it if it comes again and again."""
        self.runs += 1
        captures = self.captures
        if self.captured is not None or self.refused or self.runs < 2 ** (self.failures + 1):
            return
        if captures.made >= 4 * MOST and captures.replayed < captures.made * WORTH:
            self._say(step, _AS_THEY_ARE, IN_TURN)
            return
        try:
            self.captured = self._captured(step)
            self.replays = self.misses = 0
            captures.recorded += 1
        except NotFinite:
            pass
        except Unrecordable as error:
            self._refuse(step, error.what)
        except Exception as error:  # whatever it is: the step as it is has just been run
            self._refuse(step, f"an error while it was recorded, {type(error).__name__}: {_line(error)}")

    def _captured(self, step: Step) -> Captured:
        """The step, recorded; replayed where it was to be compiled and cannot be."""
        try:
            return self._recorded(step)
        except (NotFinite, Unrecordable):
            raise
        except Exception as error:
            if self.mode == "replay":
                raise
            self._say(step, "replayed, and not compiled", _line(error))
            self.mode = "replay"
            return self._recorded(step)

    def _recorded(self, step: Step) -> Captured:
        """Records a step, and compares what a replay finds."""
        objective = step.plan.objective
        with _undone(objective):
            captured, recording, left = capture(step, self.mode)
        expected = recording.returned
        for exact in (True, False) if self.mode == "compile" else (True,):
            with _undone(objective, captured.written):
                replayed, stands = captured.run(step, exact=exact), left.is_now()
            if not stands:
                raise Unrecordable("a loss that puts generators back, as checkpoints with dropout do")
            digits = DIGITS if exact else DIGITS_COMPILED
            different = difference_of(objective, replayed, expected, digits=digits)
            if different is not None:
                raise ArithmeticError(f"another value of {different}")
        return captured

    def check(self, step: Step, replayed: Found, found: Found) -> None:
        """Refuses a replay that found something else than the step as it is.

        Raises:
            Stale: If it did.
        """
        objective = step.plan.objective
        different = difference_of(objective, replayed, tensors_of(found), digits=DIGITS)
        if different is not None:
            self.captured, self.refused = None, True
            raise Stale(different)

    def _fail(self, step: Step, what: str) -> None:
        """Forgets the recorded step; not every time is it recorded anew."""
        self.failures = self.failures + 1 if self.replays < CHECK_EVERY else 1
        self.captured, self.runs = None, 0
        if self.failures > FAILURES:
            self._refuse(step, what)

    def _refuse(self, step: Step, what: str) -> None:
        """Records the step no more."""
        self.refused = True
        self._say(step, _AS_THEY_ARE, what)

    def _say(self, step: Step, done: str, what: str) -> None:
        objective = step.plan.objective
        key = "captured", done, loss_key(objective.loss), what
        warn_once(objective.params[0], key, f"steps are {done}, because of {what}.")


_AS_THEY_ARE = "run as they are, and not replayed"


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).partition("\n")[0] or type(error).__name__


def kind_of(captures: Captures, step: Step) -> Kind:
    """The kind of a step, which is then the last one that is forgotten."""
    key = key_of(step)
    if key not in captures.kinds:
        captures.kinds[key] = Kind(captures, captures.mode)
        captures.made += 1
    kind = captures.kinds[key]
    captures.kinds.move_to_end(key)
    if captures.made == 4 * MOST and captures.recorded == 0:
        kind._say(step, _AS_THEY_ARE, IN_TURN)
    if len(captures.kinds) > MOST:
        captures.kinds.popitem(last=False)
    return kind


def key_of(step: Step) -> Hashable:
    """What two steps have in common for which one recording serves."""
    plan, how, radii = step.plan, step.plan.how, step.plan.how.radii
    return (
        loss_key(plan.objective.loss),
        tuple((t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in step.tensors),
        *(step.structure(), step.batch.groups, step.batch.examples, step.cuts, step.follow),
        *(type(how.ascent), how.steps, how.step_size, how.both, radii.partial, *radii.indices),
        *(*radii.ratios, plan.l2 / plan.times, plan.combines),
        *(plan.objective.bn_stats, plan.objective.reduction, plan.objective.measure),
        *(plan.objective.is_scaled, plan.l2 and plan.objective.scale),
        modes_of_torch(plan.objective.devices),
    )


@contextmanager
def _undone(objective: Objective, written: Sequence[Tensor] = ()) -> Iterator[None]:
    """A block after which all is as it was before, tensors that it is known to write to included."""
    reached = Reachable(objective.loss, objective.buffers.modules())
    put_back = [reached.taken(), reached.arrays_taken(), kept_tensors(written)]
    draws = RandomState.capture(objective.devices)
    try:
        with (
            undone_on_error(objective.params, objective.buffers, objective.workspace),
            objective.buffers.kept(),
        ):
            yield
    finally:
        draws.restore()
        for each in put_back:
            each()
