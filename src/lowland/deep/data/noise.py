"""Label noise: a share of the labels flipped once, before training."""

from collections.abc import Mapping

import torch
from jaxtyping import Int64
from torch import Tensor


def _chosen(n: int, share: float, generator: torch.Generator) -> Int64[Tensor, "k"]:
    return torch.randperm(n, generator=generator)[: round(share * n)]


def symmetric_noise(
    labels: Int64[Tensor, "n"], share: float, *, num_classes: int, generator: torch.Generator
) -> Int64[Tensor, "n"]:
    """Labels of which exactly ``round(share * n)``, chosen at random, are a uniformly random *other* class.

    From equal generators, a smaller share flips a subset of what a larger one flips, to the same classes.
    """
    chosen = _chosen(len(labels), share, generator)
    steps = torch.randint(1, num_classes, labels.shape, generator=generator)
    noisy = labels.clone()
    noisy[chosen] = (labels + steps)[chosen] % num_classes
    return noisy


def asymmetric_noise(
    labels: Int64[Tensor, "n"], share: float, *, confusions: Mapping[int, int], generator: torch.Generator
) -> Int64[Tensor, "n"]:
    """Labels of which ``round(share * n)``, chosen at random, become what their class is confused with.

    Chosen examples of a class that is not in ``confusions`` keep their label, so that the share of wrong
    labels is smaller then.
    """
    chosen = _chosen(len(labels), share, generator)
    noisy = labels.clone()
    noisy[chosen] = torch.tensor(
        [confusions.get(label, label) for label in labels[chosen].tolist()], dtype=torch.int64
    )
    return noisy
