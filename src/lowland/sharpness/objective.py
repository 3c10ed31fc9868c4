"""The mean loss of some examples as a function of the weights, and nothing left behind."""

from __future__ import annotations

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
from lowland.sam.randomness import RandomState

Loss = Callable[..., Any]
Params = Sequence[Tensor] | Mapping[str, Tensor]
Batch = Sequence[Any] | MicroBatches


@dataclass(frozen=True)
class Objective:
    """A loss, the parameters that it is a function of, and the examples whose mean it is.

    Attributes:
        loss: ``loss(*part)``: a scalar or one value per example, or either with an aux, as for
            :func:`lowland.sam_gradient`.
        params: The parameters.
        parts: The examples, in parts that are evaluated one after the other.
        shares: Each part's share of the examples.
        generators: The random state that every evaluation begins with.
    """

    loss: Loss
    params: list[Tensor]
    parts: list[tuple[Any, ...]]
    shares: list[float]
    examples: int
    generators: RandomState

    @property
    def num_weights(self) -> int:
        """Of all parameters together."""
        return sum(p.numel() for p in self.params)

    def value(self, part: tuple[Any, ...]) -> Tensor:
        """The mean loss of one part, with its graph if gradients are enabled."""
        self.generators.restore()
        returned = self.loss(*part)
        value = returned[0] if isinstance(returned, tuple) and len(returned) == 2 else returned
        if not isinstance(value, Tensor):
            raise TypeError(f"loss must return a tensor or (tensor, aux), got {type(value).__name__}.")
        if value.dim() > 0 and value.shape != (num_examples(part),):
            raise ValueError(
                f"loss must return a scalar or one value per example, shape ({num_examples(part)},), "
                f"got shape {tuple(value.shape)}."
            )
        if torch.is_grad_enabled() and not value.requires_grad:
            raise ValueError("loss must depend on the params, got a value that requires no gradient.")
        return value.mean()

    def unflattened(self, vector: Tensor) -> list[Tensor]:
        """A vector over all weights as tensors like the parameters."""
        pieces = torch.split(vector, [p.numel() for p in self.params])
        return [piece.to(p).view_as(p) for piece, p in zip(pieces, self.params, strict=True)]


@contextmanager
def objective(loss: Loss, params: Params, batch: Batch, module: nn.Module | None) -> Iterator[Objective]:
    """The objective inside the block, after which buffers and generators are what they were.

    Nothing in the block needs more than the weights as they are; neither they nor their ``.grad`` change.
    Attention runs by its plain formula, since the fast kernels cannot be differentiated twice.

    Raises:
        TypeError: If ``params`` or ``batch`` are of the wrong kind.
        ValueError: If there is no parameter or no example.
    """
    listed = list(params.values() if isinstance(params, Mapping) else params)
    check_params(listed)
    batch = loss_arguments("batch", batch)
    parts = list(batch) if isinstance(batch, MicroBatches) else [tuple(batch)]
    sizes = [num_examples(part) for part in parts]
    if not sizes:
        raise InputError("batch must hold at least one example, got none.")
    devices = sorted({p.device for p in listed}, key=str)
    generators = RandomState.capture(devices)
    try:
        with Buffers(module).kept(), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            shares = [size / sum(sizes) for size in sizes]
            yield Objective(loss, listed, parts, shares, sum(sizes), generators)
    finally:
        generators.restore()
