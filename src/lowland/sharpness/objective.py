"""The mean loss of some examples as a function of the weights, and nothing left behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowland.errors import InputError
from lowland.sam.arguments import check_params, loss_arguments
from lowland.sam.batch import MicroBatches, num_examples
from lowland.sam.buffers import Buffers
from lowland.sam.containers import copied
from lowland.sam.pieces import require_whole
from lowland.sam.randomness import RandomState
from lowland.sam.reductions import Unreduced
from lowland.sharpness.averaged import Reduction, check_reduction, mean_of, value_and_aux
from lowland.sharpness.kept import generators_kept

Loss = Callable[..., Any]
Params = Sequence[Tensor] | Mapping[str, Tensor]
Batch = Sequence[Any] | MicroBatches


@dataclass(frozen=True)
class Objective:
    """A loss, the parameters that it is a function of, and the examples whose mean it is.

    Attributes:
        loss: ``loss(*part)``: the mean loss of these examples as a scalar, or one value per example, or
            either with an aux, as for :func:`lowland.sam_gradient`.
        params: The parameters.
        parts: The examples, in parts that are evaluated one after the other.
        shares: Each part's share of the examples.
        generators: The random state that every evaluation begins with.
        reduction: Whether scalars are means or sums over the examples.
    """

    loss: Loss
    params: list[Tensor]
    parts: list[tuple[Any, ...]]
    shares: list[float]
    examples: int
    generators: RandomState
    reduction: Reduction

    @property
    def num_weights(self) -> int:
        """Of all parameters together."""
        return sum(p.numel() for p in self.params)

    def value(self, part: tuple[Any, ...]) -> Tensor:
        """The mean loss of one part, with its graph if gradients are enabled."""
        self.generators.restore()
        return mean_of(value_and_aux(self.loss(*copied(part)))[0], part, self.reduction)

    @torch.no_grad()
    def mean_loss(self) -> float:
        """The mean loss of all examples."""
        parts = zip(self.parts, self.shares, strict=True)
        return math.fsum(share * self.value(part).double().item() for part, share in parts)

    def slopes(self, part: tuple[Any, ...], *, create_graph: bool = False) -> list[Tensor | None]:
        """The gradient of the mean loss of one part; ``None`` for parameters that it does not use."""
        return slopes(self.value(part), self.params, create_graph=create_graph)

    def unflattened(self, vector: Tensor) -> list[Tensor]:
        """A vector over all weights as tensors like the parameters."""
        pieces = torch.split(vector, [p.numel() for p in self.params])
        return [piece.to(p).view_as(p) for piece, p in zip(pieces, self.params, strict=True)]


@contextmanager
def objective(
    loss: Loss,
    params: Params,
    batch: Batch,
    module: nn.Module | None,
    reduction: Reduction = "mean",
) -> Iterator[Objective]:
    """The objective inside the block, after which buffers and generators are what they were.

    Nothing in the block needs more than the weights as they are; neither they nor their ``.grad`` change.
    Attention runs by its plain formula, since the fast kernels cannot be differentiated twice.

    Raises:
        TypeError: If ``params`` or ``batch`` are of the wrong kind.
        ValueError: If there is no parameter or no example.
    """
    check_reduction(reduction)
    listed = listed_params(params)
    check_params(listed)
    require_whole(listed)
    batch = loss_arguments("batch", batch)
    with (
        generators_kept(listed) as generators,
        Buffers(module, trained=listed, reductions=Unreduced()).kept(),
        sdpa_kernel(SDPBackend.MATH),
        torch.enable_grad(),
    ):
        parts = list(batch) if isinstance(batch, MicroBatches) else [tuple(batch)]
        sizes = [num_examples(part) for part in parts]
        if not sizes:
            raise InputError("batch must hold at least one example, got none.")
        shares = [size / sum(sizes) for size in sizes]
        yield Objective(loss, listed, parts, shares, sum(sizes), generators, reduction)


def listed_params(params: Params) -> list[Tensor]:
    """The parameters, in order."""
    return list(params.values() if isinstance(params, Mapping) else params)


def as_given(params: Params, tensors: Sequence[Tensor]) -> Params:
    """Tensors of the parameters, in what these were given in."""
    return dict(zip(params, tensors, strict=True)) if isinstance(params, Mapping) else list(tensors)


def held(batch: Batch) -> Batch:
    """The batch, which can be gone through again: a loader shuffles anew, a generator ends."""
    if not isinstance(batch, MicroBatches):
        return batch
    with generators_kept(()):
        return MicroBatches(list(batch))


def slopes(value: Tensor, params: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor | None]:
    """The gradient of a loss, of which some parameter must have one."""
    require_slope(value)
    found = torch.autograd.grad(value, params, create_graph=create_graph, allow_unused=True)
    require_some(found)
    return list(found)


def require_slope(value: Tensor) -> None:
    """Refuses what no gradient goes through.

    Raises:
        InputError: If ``value`` requires no gradient.
    """
    if not value.requires_grad:
        raise InputError("loss must depend on the params, got a value that requires no gradient.")


def require_some(gradients: Sequence[object]) -> None:
    """Refuses a loss that is none of the parameters', another model's perhaps.

    Raises:
        InputError: If every gradient is ``None``.
    """
    if all(g is None for g in gradients):
        raise InputError(
            "loss must depend on the params, got a gradient for none of them "
            "(it may be the loss of another model)."
        )
