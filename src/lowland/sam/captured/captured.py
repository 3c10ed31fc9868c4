"""A recorded step, ready to be replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.parallel import DistributedDataParallel

from lowland.sam.batched.precision import autocast_off
from lowland.sam.batched.step import Otherwise, Step
from lowland.sam.captured import passes
from lowland.sam.captured.alike import PLAIN, alike
from lowland.sam.captured.compiling import compiled
from lowland.sam.captured.guard import Guard
from lowland.sam.captured.memory import memory_of, written_by
from lowland.sam.captured.program import program
from lowland.sam.captured.recording import RecordedWorld, Recorder, Recording, record
from lowland.sam.captured.same import difference
from lowland.sam.captured.unrecordable import Unrecordable
from lowland.sam.captures import Mode
from lowland.sam.containers import is_container, items, mapped, rebuilt, tensors_of
from lowland.sam.kept import kept_tensors
from lowland.sam.looks.world import Draws
from lowland.sam.randomness import RandomState
from lowland.sam.total import Found

Replay = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Captured:
    """A step as a program.

    Attributes:
        replay: Runs its operations.
        exact: The same as they were recorded, where others were compiled of them.
        form: The parts of what it found when it was recorded, with nothing in the tensors, and whether
            there are some.
        guard: What it depends on beside its inputs.
        draws: Whether it draws from generators.
        writes: Whether it writes to tensors from outside.
        written: Those of the user's among them that are no buffers of a module.
        reduced: Data-parallel modules that ran.
    """

    replay: Replay
    exact: Replay
    form: list[tuple[Any, bool]]
    guard: Guard
    draws: bool
    writes: bool
    written: list[Tensor]
    reduced: list[DistributedDataParallel]

    def begin(self, step: Step) -> None:
        """Makes the forward passes of data-parallel modules, as running the loss would."""
        for module in self.reduced:
            step.plan.objective.buffers.begin(module)

    def run(self, step: Step, *, exact: bool = False) -> Found:
        """What the step finds.

        Args:
            step: The step.
            exact: Whether the operations themselves are run, and nothing that was compiled of them.

        Raises:
            Otherwise: If it is to be run as it is.
        """
        inputs, put_back = inputs_of(step), kept_tensors(self.written)
        try:
            *tensors, otherwise = self._replayed(step, inputs, self.exact if exact else self.replay)
            if bool(otherwise):
                raise Otherwise
        except (Otherwise, KeyboardInterrupt):
            put_back()
            raise
        except Exception as error:  # the step as it is says what is wrong in the user's words
            put_back()
            raise Otherwise(str(error)) from error
        rest = iter(tensors)
        return Found(*(rebuilt(part, rest) if holds else part for part, holds in self.form))

    def _replayed(self, step: Step, inputs: Inputs, replay: Replay) -> list[Tensor]:
        """What the operations return, which autocast has given their types when they were recorded."""
        objective = step.plan.objective
        with torch.no_grad(), autocast_off(objective.params[0]):
            if not self.draws:
                return replay(None, *inputs.flat)
            with Draws(objective.devices) as draws:
                return replay(draws, *inputs.flat)


@dataclass(frozen=True)
class Inputs:
    """What a step is a function of: its tensors and the parameters, and numbers as tensors.

    Attributes:
        radius: The radius, in double precision.
        scale: The scale, in double precision; ``None`` where it is a constant: for 1, and beside an l2 term.
        flat: All tensors.
    """

    radius: Tensor
    scale: Tensor | None
    flat: list[Tensor]


def inputs_of(step: Step) -> Inputs:
    """The inputs of a step."""
    objective = step.plan.objective
    radius = torch.tensor(step.plan.how.radii.rho, dtype=torch.float64, device="cpu")
    scale = None
    if objective.is_scaled and step.plan.l2 == 0.0:
        scale = torch.tensor(objective.scale, dtype=torch.float64, device="cpu")
    numbers = [radius] if scale is None else [radius, scale]
    return Inputs(radius, scale, [*step.tensors, step.masses, *numbers, *objective.params])


def capture(step: Step, mode: Mode) -> tuple[Captured, Recording, RandomState]:
    """Records a step, twice: what it does must not change from one run to the next.

    Whoever calls puts back what passes touch.

    Returns:
        The step, its recording, and where that left the generators.

    Raises:
        Unrecordable: If that changes, if the loss changes things of Python's as it runs, or if it cannot be
            recorded.
    """
    objective = step.plan.objective
    parts = [step.plan.how.ascent]
    for part in (step.batch.part, () if step.sources is None else step.sources.part):
        _refuse_objects(part)
    guard = Guard(objective, parts)
    if not guard.is_whole:
        raise Unrecordable("a loss from which more can be reached than is looked at")
    (recording, empty, left), (again, empty_again, _) = _recorded(step), _recorded(step)
    again.returned.clear()
    differs = difference(recording, again)
    if differs is None and not alike_forms(empty, empty_again):
        differs = "what the loss returns beside its value"
    if differs is not None:
        raise Unrecordable(f"{differs}, which differs from one run to the next")
    changed = guard.broken(objective, parts)
    if changed is not None:
        raise Unrecordable(f"a change of {changed}, as it runs")
    guard.know(recording.constants.values())
    form = [(part, bool(tensors_of(part))) for part in empty]
    writes = any(map(_writes_outside, recording.operations))
    buffers = {id(b) for module in objective.buffers.modules() for b in module._buffers.values()}
    written = [t for t in recording.written if id(t) not in buffers]
    exact = _made(recording)
    replay = program(compiled(recording.graph), recording.constants) if mode == "compile" else exact
    reductions = objective.buffers.reductions
    reduced = [] if reductions is None else reductions.begun
    made = Captured(replay, exact, form, guard, recording.draws, writes, written, reduced)
    return made, recording, left


def _refuse_objects(element: Any) -> None:
    """Refuses arguments of the loss that nobody looks into.

    Raises:
        Unrecordable: If there is one.
    """
    if is_container(element):
        for _, value in items(element):
            _refuse_objects(value)
    elif not isinstance(element, (Tensor, *PLAIN)):
        raise Unrecordable(f"an argument that is a {type(element).__name__}")


def _recorded(step: Step) -> tuple[Recording, list[Any], RandomState]:
    """A recording, what was found with nothing in the tensors, and where the generators were left."""
    inputs, empty = inputs_of(step), list[Any]()

    def run(recorder: Recorder) -> list[Tensor]:
        world = RecordedWorld(step.plan.objective, recorder)
        found = step.run(world, radius=inputs.radius, scale=inputs.scale)
        empty.extend(mapped(_emptied, getattr(found, field.name)) for field in fields(found))
        return tensors_of(found)

    before = RandomState.capture(step.plan.objective.devices)
    with torch.no_grad():
        recording = record(run, inputs.flat)
    whose = before.drawn_from()
    if whose is not None:
        raise Unrecordable(f"a draw from {whose} random generator")
    left = RandomState.capture(step.plan.objective.devices)
    before.restore()
    return recording, empty, left


def _emptied(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, device="meta")


def _made(recording: Recording) -> Replay:
    """The program of a recording, without what can be left out."""
    graph = recording.graph
    if not recording.draws:
        passes.without_marks(graph)
    passes.without_detaching(graph)
    passes.without_views_of_views(graph)
    passes.without_repeating(graph)
    passes.without_what_nobody_uses(graph)
    passes.without_allocating(graph)
    return program(graph, recording.constants)


def _writes_outside(node: fx.Node) -> bool:
    """Whether an operation writes to a constant or to an input."""
    return any(memory_of(value).op in ("placeholder", "get_attr") for value in written_by(node))


def alike_forms(a: object, b: object) -> bool:
    """Whether two results hold the same beside their tensors."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
    if is_container(a) and type(a) is type(b):
        pairs = zip(items(a), items(b), strict=False)
        return len(items(a)) == len(items(b)) and all(
            k == j and alike_forms(x, y) for (k, x), (j, y) in pairs
        )
    return alike(a, b)
