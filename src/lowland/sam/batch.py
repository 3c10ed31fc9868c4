"""Batches: nested containers of tensors, sliced along their first dimension."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class MicroBatches:
    """One batch in several parts, which need not have the same shape or fit into memory together.

    The parts are evaluated one after the other, in each pass; groups of m examples run across them. As the
    examples that a climb sees they may be a whole data set: they are then loaded as they are needed.

    Args:
        parts: The parts, each the tuple or list of the loss's arguments; anything else is the only
            argument. A data loader, for instance.

    Example:
        >>> parts = MicroBatches([(torch.ones(2), torch.ones(2)), (torch.ones(3), torch.ones(3))])
        >>> [len(x) for x, y in parts]
        [2, 3]
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for part in self._parts:
            yield tuple(part) if isinstance(part, (tuple, list)) else (part,)


Group = Iterable[tuple[Any, ...]]
"""The parts of a group, each a tuple of the loss's arguments."""


def cut(parts: list[tuple[Any, ...]], sizes: list[int], rows: slice) -> list[tuple[Any, ...]]:
    """The examples ``rows``, counted across the parts."""
    found, begin = [], 0
    for part, size in zip(parts, sizes, strict=True):
        first, last = max(rows.start - begin, 0), min(rows.stop - begin, size)
        if first < last:
            found.append(take(part, slice(first, last)))
        begin += size
    return found


def batch_size(batch: Sequence[Any]) -> int:
    """Number of examples B in ``batch``.

    Args:
        batch: The loss's arguments: tensors whose first dimension is B, or nested dicts, lists and tuples
            of such tensors; ``None`` stands for an absent argument.

    Raises:
        TypeError: If an element is neither a tensor nor such a container.
        ValueError: If there is no example, or the first dimensions differ.
    """
    sizes = sorted({_first_dimension(t) for t in _tensors(batch)})
    if not sizes:
        raise ValueError("batch must hold at least one tensor, got none.")
    if len(sizes) > 1:
        raise ValueError(f"all tensors of a batch must have the same first dimension, got {sizes}.")
    if sizes[0] == 0:
        raise ValueError("batch must hold at least one example, got 0.")
    return sizes[0]


def group_slices(num_examples: int, m: int | None) -> list[slice]:
    """Consecutive groups of ``m`` examples; the last one may be smaller, ``None`` is one group.

    Example:
        >>> group_slices(5, 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = num_examples if m is None else min(m, num_examples)
    return [slice(i, min(i + step, num_examples)) for i in range(0, num_examples, step)]


def take(batch: Sequence[Any], rows: slice) -> tuple[Any, ...]:
    """The examples ``rows`` of every tensor of ``batch``."""
    return tuple(mapped_tensors(lambda t: t[rows], element) for element in batch)


def join(parts: Sequence[Any]) -> Any:
    """Joins what the groups returned: tensors along their first dimension, scalars into a vector.

    Args:
        parts: One nested container of tensors per group, all of the same structure.

    Raises:
        TypeError: If a leaf is not a tensor.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.stack(list(parts)) if first.dim() == 0 else torch.cat(list(parts))
    if isinstance(first, Mapping):
        return {key: join([part[key] for part in parts]) for key in first}
    if isinstance(first, (list, tuple)):
        return _like(first, [join(column) for column in zip(*parts, strict=True)])
    if first is None:
        return None
    raise TypeError(f"aux must be tensors or nested dicts, lists and tuples of tensors, got {_name(first)}.")


def detach(element: Any) -> Any:
    """``element`` with every tensor detached."""
    return mapped_tensors(lambda t: t.detach(), element)


def copied(element: Any) -> Any:
    """``element`` with every tensor copied."""
    return mapped_tensors(lambda t: t.detach().clone(), element)


def mapped_tensors(function: Callable[[Tensor], Tensor], element: Any) -> Any:
    """``element`` with ``function`` of every tensor of its nested dicts, lists and tuples."""
    if isinstance(element, Tensor):
        return function(element)
    if isinstance(element, Mapping):
        return {key: mapped_tensors(function, value) for key, value in element.items()}
    if isinstance(element, (list, tuple)):
        return _like(element, [mapped_tensors(function, value) for value in element])
    return element


def _like(container: Any, values: list[Any]) -> Any:
    if hasattr(container, "_fields"):  # a named tuple takes its fields one by one
        return type(container)(*values)
    return type(container)(values)


def _tensors(element: Any) -> Iterator[Tensor]:
    if isinstance(element, Tensor):
        yield element
    elif isinstance(element, Mapping):
        for value in element.values():
            yield from _tensors(value)
    elif isinstance(element, (list, tuple)):
        for value in element:
            yield from _tensors(value)
    elif element is not None:
        raise TypeError(
            "batch elements must be tensors or nested dicts, lists and tuples of tensors, "
            f"got {_name(element)}."
        )


def _first_dimension(tensor: Tensor) -> int:
    if tensor.dim() == 0:
        raise ValueError("every tensor of a batch must have a first dimension of examples, got a scalar.")
    return tensor.shape[0]


def _name(value: object) -> str:
    return type(value).__name__
