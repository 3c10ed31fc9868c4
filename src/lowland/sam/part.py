"""What every part of the user's may do beside its work, and all parts of a SAM together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from lowland.sam.average import Gradients, dense
from lowland.sam.batch import MicroBatches
from lowland.sam.kept import kept_attributes
from lowland.sam.precision import working

if TYPE_CHECKING:
    from lowland.sam.source import AscentSource

Way = Literal["backward", "objective", "step(closure)", "first_step"]
"""How a call is made: by ``SAM`` the first two, by ``SAMOptimizer`` the others."""


@dataclass
class Call:
    """One call, as the parts see it.

    Attributes:
        step: Number of steps before the one that the call belongs to.
        params: The parameters that are trained.
        way: How it is made.
        climbs: Whether it climbs: there is a radius, and no part does ``instead``.
        instead: What a part that skips this climb makes of the gradient at the weights, dense and in float32
            or better.
        batch: The loss's arguments, which the loss may change.
        begins: Whether the call begins a step; otherwise it accumulates to one.
        scale: What the gradients are scaled with, as the user gave it.
        gradients: At the end, what is to be trained with.
        climb_gradients: At the end, the gradients that the climbs started from; see
            :class:`~lowland.sam.SAMGradient`.

    Example:
        >>> import torch
        >>> from lowland.sam import SAM, Call
        >>> class EverySecond:
        ...     def __call__(self, gradient, perturbed):
        ...         return perturbed
        ...     def begin(self, call: Call):
        ...         if call.step % 2 == 1:
        ...             call.instead = lambda gradient: gradient  # no climb: the gradient at the weights
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> sam = SAM(w, rho=1.0, combine=EverySecond())
        >>> for _ in range(2):
        ...     for t in w:
        ...         t.grad = None
        ...     value = sam.backward(lambda: sum(t.square().sum() for t in w) / 2)  # the gradient is w
        ...     print([round(t.grad.item(), 4) for t in w])
        [3.6, 4.8]
        [3.0, 4.0]
    """

    step: int
    params: list[Tensor]
    way: Way
    climbs: bool = False
    instead: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None
    batch: tuple[Any, ...] = ()
    begins: bool = True
    scale: float | Tensor | torch.amp.GradScaler = 1.0
    gradients: Gradients = field(default_factory=list)
    climb_gradients: list[Tensor] | None = None

    @property
    def arguments(self) -> tuple[Any, ...] | MicroBatches:
        """The batch, or what it consists of."""
        batch = self.batch
        return batch[0] if len(batch) == 1 and isinstance(batch[0], MicroBatches) else batch

    @cached_property
    def factor(self) -> float:
        """The scale as a number; a GradScaler's by its own ``scale``, which prepares it for its step."""
        if not isinstance(self.scale, torch.amp.GradScaler):
            return float(self.scale)
        device = self.params[0].device if self.params else torch.device("cpu")
        return float(self.scale.scale(torch.ones((), device=device)))

    @property
    def unscale(self) -> float:
        """Factor that undoes a GradScaler's scale."""
        return 1.0 / self.factor if isinstance(self.scale, torch.amp.GradScaler) else 1.0

    def ascent_batch(self, source: AscentSource) -> tuple[Any, ...] | MicroBatches | None:
        """The examples that ``source`` has for its climb.

        Args:
            source: The source.

        Raises:
            ValueError: If the batch is of :class:`~lowland.sam.MicroBatches`.
        """
        if isinstance(self.arguments, MicroBatches):
            raise ValueError("source must be None with MicroBatches, got one.")
        return source.ascent_batch(self.arguments)


class Part:
    """A schedule, ascent, source or rule: what it may do around a call, by default nothing.

    A part of one's own need not be derived from this: it has those of these methods that it needs, and a
    plain function has none. What it keeps in attributes is put back if the call fails; if it is to be saved,
    the part has ``state_dict()`` and ``load_state_dict(state)`` besides.

    Example:
        >>> import torch
        >>> from lowland.sam import SAM, Part
        >>> class Halved(Part):
        ...     def __init__(self):
        ...         self.calls = 0
        ...     def __call__(self, gradient, perturbed):
        ...         return [g / 2 for g in perturbed]
        ...     def end(self, call):
        ...         self.calls += 1
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> sam = SAM(w, rho=1.0, combine=Halved())
        >>> value = sam.backward(lambda: sum(t.square().sum() for t in w) / 2)  # the gradient is w
        >>> [round(t.grad.item(), 4) for t in w], sam.combine.calls
        ([1.8, 2.4], 1)
    """

    ways: ClassVar[tuple[Way, ...]] = ("backward", "objective", "step(closure)", "first_step")
    """The ways of making a call in which the part is of use."""

    def begin(self, call: Call) -> None:
        """Before the first pass: it may skip the climb, by ``call.instead``.

        Args:
            call: The call that begins.
        """

    def end(self, call: Call) -> None:
        """After the last pass, if all went well: it may take note of what ``call`` found, or change it.

        Args:
            call: The call, with what it found.
        """

    def __repr__(self) -> str:
        shown = [name for name in inspect.signature(type(self)).parameters if name in vars(self)]
        return f"{type(self).__name__}({', '.join(f'{n}={brief(getattr(self, n))}' for n in shown)})"


class Parts:
    """The parts of a SAM, each called through its hooks.

    Args:
        parts: By name; ``None``, numbers and functions among them.
    """

    def __init__(self, **parts: Any) -> None:
        self._parts = parts

    def begin(self, call: Call) -> None:
        """Tells every part that ``call`` begins.

        Raises:
            ValueError: If one is of no use in this way.
        """
        for part in self._parts.values():
            require_way(part, call.way)
        for hook in self._hooks("begin"):
            hook(call)
        call.climbs = call.climbs and call.instead is None

    @torch.no_grad()
    def end(self, call: Call) -> None:
        """Tells every part that the passes of ``call`` went well, after what is done instead of a climb."""
        if call.instead is not None:
            found = call.instead(
                dense([None if g is None else working(g) for g in call.gradients], call.params)
            )
            pairs = zip(found, call.gradients, strict=True)
            call.gradients[:] = [None if g is None else new.to(g.dtype) for new, g in pairs]
        if call.climb_gradients is not None:
            self._parts["ascent"].remember(call.climb_gradients)
        for hook in self._hooks("end"):
            hook(call)

    def kept(self) -> Callable[[], None]:
        """Takes what the parts remember, and returns what puts it back."""
        return kept_attributes(self._parts.values())

    def state_dict(self) -> dict[str, Any]:
        """The state of each part that has one."""
        return {name: part.state_dict() for name, part in self._with_state()}

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Continues from a state of the same parts beside the number of steps, ``"step"``, which is returned.

        Raises:
            ValueError: If it is that of other parts; they are then what they were.
        """
        wanted = {"step", *dict(self._with_state())}
        if state.keys() != wanted:
            raise ValueError(f"state must have the keys {sorted(wanted)}, got {sorted(state)}.")
        undo = self.kept()
        for name, part in self._with_state():
            try:
                part.load_state_dict(state[name])
            except KeyError as error:
                undo()
                raise ValueError(
                    f"state of {name} must be that of {type(part).__name__}, "
                    f"got one with {sorted(state[name])} and without {error}."
                ) from error
        return int(state["step"])

    def _with_state(self) -> Iterator[tuple[str, Any]]:
        return ((name, part) for name, part in self._parts.items() if hasattr(part, "state_dict"))

    def _hooks(self, name: str) -> Iterator[Callable[[Any], object]]:
        return (getattr(part, name) for part in self._parts.values() if hasattr(part, name))


def require_way(part: Any, way: Way) -> None:
    """Refuses a part that is of no use in this way of making a call."""
    ways = getattr(part, "ways", Part.ways)
    if way not in ways:
        listed = " or ".join(filter(None, [", ".join(ways[:-1]), ways[-1]]))
        raise ValueError(f"{type(part).__name__} must be used with {listed}, got {way}.")


def brief(value: Any) -> str:
    """A value within a ``repr``: an optimizer, a module or a loader by the name of its class."""
    text = repr(value)
    return text if len(text) < 60 and "\n" not in text and " at 0x" not in text else named(value)


def named(value: Any) -> str:
    """What a thing calls itself, or the name of its class."""
    return str(getattr(value, "__name__", type(value).__name__))
