"""One part of a data set, and how the training images are divided."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from lowland.deep.data.source import Images, Labels
from lowland.deep.seeding import derive_seed
from lowland.errors import InputError

_VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Split:
    """One part of a data set: for training, validation or testing.

    Attributes:
        images: ``uint8`` of shape ``(n, c, h, w)``, or ``float32`` in the synthetic sets.
        labels: What is trained on or measured against, shape ``(n,)``.
        clean_labels: The labels before label noise; the same tensor as ``labels`` when there is none.
        indices: Rows in the original set, shape ``(n,)``.
    """

    images: Images
    labels: Labels
    clean_labels: Labels
    indices: Int64[Tensor, "n"]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same examples on a device."""
        labels = self.labels.to(device)
        clean = labels if self.clean_labels is self.labels else self.clean_labels.to(device)
        return Split(self.images.to(device), labels, clean, self.indices.to(device))

    def head(self, n: int) -> "Split":
        """The first ``n`` examples, or all if there are fewer; a view.

        Raises:
            InputError: If ``n`` is negative.
        """
        if n < 0:
            raise InputError(f"The number of examples must be non-negative, got {n}.")
        labels = self.labels[:n]
        clean = labels if self.clean_labels is self.labels else self.clean_labels[:n]
        return Split(self.images[:n], labels, clean, self.indices[:n])

    def select(self, positions: Int64[Tensor, "k"]) -> "Split":
        """The examples at these positions, in this order; a copy."""
        # index_select copies whole images, eight times as fast as indexing on the CPU.
        labels = self.labels.index_select(0, positions)
        clean = labels if self.clean_labels is self.labels else self.clean_labels.index_select(0, positions)
        images = self.images.index_select(0, positions)
        return Split(images, labels, clean, self.indices.index_select(0, positions))


def divide(n: int, *, seed: int, frac_train: float) -> tuple[Int64[Tensor, "t"], Int64[Tensor, "v"]]:
    """Positions of the training and of the validation examples among ``n``.

    A tenth of a permutation, which depends on ``seed`` alone, is held out; of the rest the first
    ``frac_train`` are kept. So a smaller share is a subset of a larger one, with the same validation set.

    Raises:
        InputError: If ``frac_train`` is not in (0, 1], or so small that nothing is left.
    """
    if not 0 < frac_train <= 1:
        raise InputError(f"frac_train must lie in (0, 1], got {frac_train}.")
    permutation = torch.randperm(
        n, generator=torch.Generator().manual_seed(derive_seed(seed, "validation split"))
    )
    held_out = round(_VALIDATION_SHARE * n)
    kept = round(frac_train * (n - held_out))
    if not kept:
        raise InputError(
            f"frac_train must keep at least one of {n - held_out} training images, got {frac_train}."
        )
    return permutation[held_out : held_out + kept], permutation[:held_out]
