"""Batches: what is a row of them, how groups are cut, and how what groups return is joined again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowland.sam.containers import is_container, items, like, mapped, name_of


class MicroBatches:
    """One batch in several parts, which need not have the same shape or fit into memory together.

    The parts are evaluated one after the other, in each pass; groups of m examples run across them. As the
    examples that a climb sees they may be a whole data set: they are then loaded as they are needed.

    Args:
        parts: The parts, each the tuple or list of the loss's arguments; anything else is the only
            argument. A data loader, for instance.

    Example:
        >>> import torch
        >>> from lowland.sam import MicroBatches
        >>> parts = MicroBatches([(torch.ones(2), torch.ones(2)), (torch.ones(3), torch.ones(3))])
        >>> [len(x) for x, y in parts]
        [2, 3]
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        self._parts = parts

    def __repr__(self) -> str:
        of = f"{len(self._parts)} parts" if isinstance(self._parts, Sized) else type(self._parts).__name__
        return f"MicroBatches({of})"

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for part in self._parts:
            yield tuple(part) if isinstance(part, (tuple, list)) else (part,)


@dataclass(frozen=True)
class Entries:
    """Entries of a batch that the user has named, where what they are cannot be told from them.

    A name is an entry's path, such as ``"1.boxes"`` for the key ``boxes`` of the second argument, or the end
    of one (``"boxes"``); it stands for everything inside the entry as well.

    Attributes:
        shared: Entries that every group is given whole.
        rows: Entries whose elements are examples: cut along their first dimension, or as sequences.
    """

    shared: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    def kind(self, path: str) -> str | None:
        """``"shared"``, ``"rows"``, or ``None`` for an entry that is not named."""
        for kind, names in (("shared", self.shared), ("rows", self.rows)):
            if any(path == name or path.endswith(f".{name}") for name in names):
                return kind
        return None


UNNAMED = Entries()


def rows_of(element: Any, entries: Entries = UNNAMED, path: str = "") -> Iterator[tuple[str, Any]]:
    """The entries that are cut into groups, with their paths, in order.

    Tensors and arrays are; numbers, strings and other single things are not; sequences and things of
    other kinds are if they are named.

    Raises:
        ValueError: If an entry that is not named may be either.
    """
    kind = entries.kind(path) if entries is not UNNAMED else None
    if kind == "rows" or (kind is None and isinstance(element, (Tensor, np.ndarray))):
        yield path, element
    elif kind is None and is_container(element) and (path == "" or _holds_tensors(element)):
        for key, value in items(element):
            yield from rows_of(value, entries, f"{path}.{key}" if path else str(key))
    elif kind is None and not _is_single(element):
        raise ValueError(
            f"a batch that is cut into groups must have its sequences and other objects named in rows= or "
            f"shared=, got {name_of(element)} for {path!r}."
        )


def num_examples(batch: Sequence[Any], entries: Entries = UNNAMED) -> int:
    """Number of examples B in ``batch``, which can be cut.

    Args:
        batch: The loss's arguments: tensors whose first dimension is B, or nested dicts, lists and tuples
            of such tensors, beside single things such as numbers, strings and ``None``.
        entries: Entries that were named.

    Raises:
        ValueError: If there is no example, or the numbers of rows differ, or cannot be told.
    """
    sizes = {path: _length(path, value) for path, value in rows_of(batch, entries)}
    if not sizes:
        raise ValueError("batch must hold at least one tensor whose rows are examples, got none.")
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{size} in {path!r}" for path, size in sizes.items())
        raise ValueError(
            "all tensors of a batch that is cut into groups must have the same first dimension, or be named "
            f"in shared=, got {shown}."
        )
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError("batch must hold at least one example, got 0.")
    return size


def batch_size(batch: Sequence[Any], entries: Entries = UNNAMED) -> int | None:
    """Number of examples B in ``batch``; ``None`` where its entries do not tell it."""
    try:
        sizes = {_length(path, value) for path, value in rows_of(batch, entries)}
    except ValueError:
        return None
    if sizes == {0}:
        raise ValueError("batch must hold at least one example, got 0.")
    return sizes.pop() if len(sizes) == 1 else None


def group_slices(num_examples: int, m: int | None) -> list[slice]:
    """Consecutive groups of ``m`` examples; the last one may be smaller, ``None`` is one group.

    Example:
        >>> group_slices(5, 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = num_examples if m is None else min(m, num_examples)
    return [slice(i, min(i + step, num_examples)) for i in range(0, num_examples, step)]


def take(batch: Sequence[Any], rows: slice, entries: Entries = UNNAMED) -> tuple[Any, ...]:
    """The examples ``rows`` of every entry of ``batch`` that is cut; the others as they are."""
    found: tuple[Any, ...] = with_rows(tuple(batch), lambda value: _cut(value, rows), entries)
    return found


def with_rows(element: Any, function: Callable[[Any], Any], entries: Entries, path: str = "") -> Any:
    """``element`` with ``function`` of every entry that is cut, in containers of its own."""
    kind = entries.kind(path) if entries is not UNNAMED else None
    if kind == "rows" or (kind is None and isinstance(element, (Tensor, np.ndarray))):
        return function(element)
    if kind == "shared" or not is_container(element):
        return element
    pairs = items(element)
    return like(
        element, [with_rows(v, function, entries, f"{path}.{k}" if path else str(k)) for k, v in pairs]
    )


def join(parts: Sequence[Any]) -> Any:
    """Joins what the groups returned beside their losses.

    Tensors are joined along their first dimension, or stay a list where their shapes do not allow it;
    scalars become a vector; anything else a list with one entry per part.

    Args:
        parts: What each group returned, in order.
    """
    first = parts[0]
    if all(isinstance(part, Tensor) for part in parts):
        return _joined(list(parts))
    if all(part is None for part in parts):
        return None
    alike = all(type(part) is type(first) for part in parts)
    if alike and isinstance(first, Mapping) and all(part.keys() == first.keys() for part in parts):
        return {key: join([part[key] for part in parts]) for key in first}
    if alike and isinstance(first, (list, tuple)) and len({len(part) for part in parts}) == 1:
        return like(first, [join(column) for column in zip(*parts, strict=True)])
    return list(parts)


def detach(element: Any) -> Any:
    """``element`` with every tensor detached."""
    return mapped(lambda t: t.detach(), element)


def _joined(tensors: list[Tensor]) -> Tensor | list[Tensor]:
    if all(t.dim() == 0 for t in tensors):
        return torch.stack(tensors)
    shapes = {t.shape[1:] if t.dim() else None for t in tensors}
    return torch.cat(tensors) if len(shapes) == 1 else tensors


def _holds_tensors(element: Any) -> bool:
    """Whether a container has tensors in it, at any depth; a mapping is one in any case."""
    if isinstance(element, (Tensor, np.ndarray, Mapping)):
        return True
    return is_container(element) and any(_holds_tensors(value) for _, value in items(element))


def _is_single(element: Any) -> bool:
    """Whether every group can only be given the whole."""
    if element is None or isinstance(element, (str, bytes, int, float, complex, torch.dtype, torch.device)):
        return True
    return callable(element) or (is_container(element) and not items(element))


def _length(path: str, value: Any) -> int:
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        raise ValueError(
            "every tensor of a batch that is cut into groups must have a first dimension of examples, or be "
            f"named in shared=, got a scalar for {path!r}."
        )
    if not hasattr(value, "__len__"):
        raise ValueError(
            f"entries in rows= must have a length and be cut by slices, got {name_of(value)} for {path!r}."
        )
    return len(value) if not isinstance(value, Tensor) else int(value.shape[0])


def _cut(value: Any, rows: slice) -> Any:
    """Consecutive rows; of strided tensors a view."""
    if not isinstance(value, Tensor) or value.layout == torch.strided:
        return value[rows]
    if value.layout == torch.jagged:
        return torch.nested.as_nested_tensor(list(value.unbind())[rows], layout=torch.jagged)
    if value.layout == torch.sparse_coo:
        return value.index_select(0, torch.arange(rows.start, rows.stop, device=value.device))
    raise ValueError(f"tensors that are cut into groups must be strided, jagged or COO, got {value.layout}.")
