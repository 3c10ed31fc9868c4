"""The recorded steps of one SAM."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Literal

from lowland.sam.ascent import RememberingAscent
from lowland.sam.kinds import is_a
from lowland.sam.vectors.many import serves_many

if TYPE_CHECKING:
    from lowland.sam.captured.kind import Kind

Mode = Literal["replay", "compile"]


def reason_against(
    ascent: object, *, engine: str, reduction: str = "mean", weight: object = None, in_half: bool = False
) -> str | None:
    """What steps have that cannot be recorded, in the user's words; ``None`` for nothing.

    Args:
        ascent: Where they climb.
        engine: How groups are run.
        reduction: What the loss does with those of its examples.
        weight: The user's own weight of a group.
        in_half: Whether weights of half precision are perturbed.
    """
    if engine == "loop":
        return "engine='loop', which runs one group after the other"
    if not serves_many(ascent) or is_a(ascent, RememberingAscent):
        return f"{type(ascent).__name__}, which is asked for each group, or depends on earlier steps"
    if in_half:
        return "weights of half precision, whose perturbation is rounded at random"
    return (
        "reduction='sum' and weight=, which is asked in each step" if reduction == "sum" and weight else None
    )


def refuse_recording(mode: Mode, why: str | None) -> None:
    """Refuses to record steps, if there is a reason.

    Raises:
        ValueError: If there is.
    """
    if why is not None:
        raise ValueError(f"capture must be 'off' with {why}, got {mode!r}.")


class Captures:
    """Steps at many groups at once, recorded when they come for the second time, and replayed from then on.

    :class:`~lowland.SAM` keeps its own (``capture="replay"``); who calls :func:`~lowland.sam.sam_gradient`
    keeps them from call to call. They hold on to the parameters, and to what the losses reach.

    Args:
        mode: ``"replay"``, or ``"compile"`` for what ``torch.compile`` makes of what was recorded.

    Attributes:
        mode: How they are run.
        kinds: What is known of each kind of step, the one that was used last at the end.
        replayed: How often groups were run by a recorded step.
        run: How often they were run as they are.
        recorded: How many steps were recorded.
        made: How many kinds of steps there were.

    Raises:
        ValueError: If there is no such mode.

    Example:
        >>> import torch
        >>> from lowland.sam import Captures, sam_gradient
        >>> w = [torch.tensor([x], requires_grad=True) for x in (3.0, 4.0)]
        >>> captures, x = Captures("replay"), torch.tensor([0.5, 1.0, 1.5])
        >>> def loss(x):
        ...     return x.mean() * sum(t.square().sum() for t in w) / 2
        >>> for _ in range(4):
        ...     found = sam_gradient(loss, w, (x,), rho=0.1, m=1, engine="batched", captures=captures)
        >>> captures
        Captures('replay', replayed=2, run=2, recorded=1)
    """

    def __init__(self, mode: Mode = "replay") -> None:
        if mode not in ("replay", "compile"):
            raise ValueError(f"mode must be 'replay' or 'compile', got {mode!r}.")
        self.mode = mode
        self.kinds: OrderedDict[Hashable, Kind] = OrderedDict()
        self.replayed = self.run = self.recorded = self.made = 0

    def __repr__(self) -> str:
        """The mode, and what was done."""
        counts = f"replayed={self.replayed}, run={self.run}, recorded={self.recorded}"
        return f"Captures({self.mode!r}, {counts})"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has recorded nothing yet."""
        return Captures, (self.mode,)
