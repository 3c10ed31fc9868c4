"""Weights moved for the length of a block, and put back bit for bit."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def perturbed(params: Iterable[Tensor], perturbation: Sequence[Tensor]) -> Iterator[None]:
    r"""The weights :math:`w + e` inside the block, :math:`w` again after it, also on an exception.

    The weights are copied before they move and copied back afterwards, since ``w + e - e`` is not ``w``
    in floating point. They keep their storage. The autocast weight cache is cleared on entry and exit:
    within one ``torch.autocast`` block the passes would otherwise share the cast of the weights that
    came first.

    Args:
        params: The weights :math:`w`.
        perturbation: The perturbation :math:`e`, one tensor of the same shape per weight.

    Raises:
        ValueError: If ``perturbation`` does not match ``params`` in number and shapes.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> with perturbed([w], [torch.tensor([0.5, 0.0])]):
        ...     print(w.data)
        tensor([1.5000, 2.0000])
        >>> w.data
        tensor([1., 2.])
    """
    params = list(params)
    _check_shapes(params, perturbation)
    with torch.no_grad():
        original = [p.clone() for p in params]
    torch.clear_autocast_cache()
    try:
        with torch.no_grad():
            torch._foreach_add_(params, list(perturbation))
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(params, original)
        torch.clear_autocast_cache()


def _check_shapes(params: Sequence[Tensor], perturbation: Sequence[Tensor]) -> None:
    wanted = [tuple(p.shape) for p in params]
    got = [tuple(e.shape) for e in perturbation]
    if wanted != got:
        raise ValueError(f"perturbation must have the shapes of the params, {wanted}, got {got}.")
