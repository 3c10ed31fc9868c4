"""What the loss or the options have that cannot be run for many groups at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

IN_SEVERAL_PARTS = "a group in several MicroBatches"
IN_HALF = "weights of half precision, whose perturbation is rounded at random"


class Unbatchable(RuntimeError):
    """Something in the loss or in the options has no batched form.

    Attributes:
        what: The operation or option, in the user's words.
        where: The line of the loss that has it; empty where none has.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.where = ""

    def __str__(self) -> str:
        wanted = "engine='batched' must be able to run every part for all groups at once"
        return f"{wanted}, got {self.what}{self.where}."

    @property
    def done_instead(self) -> str:
        """What is said where another engine may be used."""
        return f"the groups were run one after the other because of {self.what}{self.where}."


class Branches(Unbatchable):
    """Groups that do not all take the same branch of the loss.

    Attributes:
        taken: Of each group, whether the condition holds.
    """

    def __init__(self, condition: str, taken: Sequence[bool]) -> None:
        super().__init__("control flow that differs between groups")
        self.where = condition
        self.taken = tuple(taken)


@contextmanager
def unless_torch_lacks_it() -> Iterator[None]:
    """A block that imports what runs many groups at once: it needs private names of torch."""
    try:
        yield
    except ImportError as error:
        raise Unbatchable(f"a torch without what that needs, {error}") from error
