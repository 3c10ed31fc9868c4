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
