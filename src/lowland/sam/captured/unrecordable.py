"""What a recorded step cannot stand for."""

from __future__ import annotations


class Unrecordable(Exception):
    """A step that is more than a sequence of tensor operations.

    Attributes:
        what: Why, in the user's words.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Stale(RuntimeError):
    """A recorded step does not stand for the step any more, which nothing showed that is looked at."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"a replayed step must find what the step itself does, got another value of {what}: the loss "
            "depends on something that changes out of sight (capture='off' runs every step as it is)."
        )
