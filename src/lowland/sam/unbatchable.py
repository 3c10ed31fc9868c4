"""What the loss or the options have that cannot be run for many groups at once."""

IN_SEVERAL_PARTS = "a group in several MicroBatches"
IN_HALF = "weights of half precision, whose perturbation is rounded at random"


class Unbatchable(RuntimeError):
    """Something in the loss or in the options has no batched form.

    Attributes:
        what: The operation or option, in the user's words.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"engine='batched' must be able to run every part for all groups at once, got {what}."
        )
        self.what = what

    @property
    def done_instead(self) -> str:
        """What is said where another engine may be used."""
        return f"the groups were run one after the other because of {self.what}."
