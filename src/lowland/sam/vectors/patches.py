"""What each output position of a convolution sees, without writing it out.

Two patches overlap in most of what they see, and so do inner products of patches: those of single positions
are computed once, and summed along diagonals.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Size and steps of a convolution, one number per dimension."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def is_point(self) -> bool:
        """Whether each output position sees the one input position in its place."""
        return set(self.size) == set(self.stride) == {1} and set(self.padding) == {0}

    def positions(self, extent: Sequence[int]) -> tuple[int, ...]:
        """Number of output positions per dimension, for an input of that many."""
        sizes = zip(extent, self.size, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)

    def shifts(self, dim: int, extent: int, outputs: int) -> Iterator[tuple[slice, slice] | None]:
        """For each place in the window, the outputs that see an input there, and which; ``None`` for none."""
        stride, padding = self.stride[dim], self.padding[dim]
        for k in range(self.size[dim]):
            offset = k * self.dilation[dim] - padding
            first = max(0, -(offset // stride))
            last = min(outputs - 1, (extent - 1 - offset) // stride)
            if first > last:
                yield None
                continue
            start = first * stride + offset
            yield slice(first, last + 1), slice(start, last * stride + offset + 1, stride)


@dataclass(frozen=True)
class Patches:
    """Rows of all that each output position sees, shape ``(groups, rows, p)``, in the order of the weights.

    Attributes:
        maps: The input, shape ``(groups, examples, channels, ...)``.
        window: What an output position sees.
    """

    maps: Float[Tensor, "groups examples channels *extent"]
    window: Window

    @property
    def extent(self) -> tuple[int, ...]:
        """Positions of the input, per dimension."""
        return tuple(self.maps.shape[3:])

    @property
    def outputs(self) -> tuple[int, ...]:
        """Positions of the output, per dimension."""
        return self.window.positions(self.extent)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of groups, of rows in a group, and of elements in a row."""
        groups, examples, channels = self.maps.shape[:3]
        rows = examples * torch.Size(self.outputs).numel()
        return groups, rows, channels * torch.Size(self.window.size).numel()

    def to(self, dtype: torch.dtype) -> Patches:
        """The same in another type."""
        return replace(self, maps=self.maps.to(dtype))

    def points(self) -> Float[Tensor, "groups points channels"]:
        """The input position by position."""
        return self.maps.movedim(2, -1).reshape(len(self.maps), -1, self.maps.shape[2])

    def dense(self) -> Float[Tensor, "groups rows p"]:
        """The rows written out."""
        window = self.window
        sides = [side for p in reversed(window.padding) for side in (p, p)]
        rows = torch.nn.functional.pad(self.maps, sides)
        for dim, (k, s, d) in enumerate(zip(window.size, window.stride, window.dilation, strict=True)):
            rows = rows.unfold(3 + dim, d * (k - 1) + 1, s)[..., ::d]
        outputs = len(window.size)
        return rows.movedim(2, 2 + outputs).reshape(self.shape)

    def folded(
        self, rows: Float[Tensor, "groups rows p"]
    ) -> Float[Tensor, "groups examples channels *extent"]:
        """The adjoint of :meth:`dense`: what all rows hold of an input position, added up."""
        dims = range(len(self.extent))
        places = rows.reshape(*self.maps.shape[:2], *self.outputs, self.maps.shape[2], *self.window.size)
        places = places.movedim(2 + len(dims), 2)
        found = rows.new_zeros(self.maps.shape)
        shifts = [list(self.window.shifts(d, self.extent[d], self.outputs[d])) for d in dims]
        for place in itertools.product(*(range(k) for k in self.window.size)):
            cuts = [shifts[d][k] for d, k in enumerate(place)]
            pairs = [cut for cut in cuts if cut is not None]
            if len(pairs) == len(cuts):
                outputs, inputs = zip(*pairs, strict=True)
                found[(..., *inputs)] += places[(..., *outputs, *place)]
        return found

    def pairs(self, other: Patches) -> Float[Tensor, "groups rows others"]:
        """Inner products of the rows of each group with those of ``other``."""
        if self.window != other.window:
            return torch.bmm(self.dense(), other.dense().transpose(1, 2))
        points = torch.bmm(self.points(), other.points().transpose(1, 2))
        if self.window.is_point:
            return points
        found = points.view(self._by_place(self.extent, other, other.extent))
        ends = self.outputs, other.outputs
        for dim, a, b in self._dimensions(other):
            shape = list(found.shape)
            shape[a], shape[b] = ends[0][dim], ends[1][dim]
            summed = found.new_zeros(shape)
            for (of_a, at_a), (of_b, at_b) in self._shifts(other, dim):
                _cut(summed, a, of_a, b, of_b).add_(_cut(found, a, at_a, b, at_b))
            found = summed
        return found.reshape(len(self.maps), self.shape[1], other.shape[1])

    def spread(
        self, products: Float[Tensor, "groups rows others"], other: Patches
    ) -> Float[Tensor, "groups points other_points"]:
        """The adjoint of what :meth:`pairs` does to inner products of points."""
        if self.window.is_point:
            return products
        found = products.reshape(self._by_place(self.outputs, other, other.outputs))
        ends = self.extent, other.extent
        for dim, a, b in self._dimensions(other):
            shape = list(found.shape)
            shape[a], shape[b] = ends[0][dim], ends[1][dim]
            summed = found.new_zeros(shape)
            for (of_a, at_a), (of_b, at_b) in self._shifts(other, dim):
                _cut(summed, a, at_a, b, at_b).add_(_cut(found, a, of_a, b, of_b))
            found = summed
        return found.flatten(1 + len(self.extent) + 1).flatten(1, 1 + len(self.extent))

    def _by_place(self, own: Sequence[int], other: Patches, others: Sequence[int]) -> tuple[int, ...]:
        return (len(self.maps), self.maps.shape[1], *own, other.maps.shape[1], *others)

    def _dimensions(self, other: Patches) -> Iterator[tuple[int, int, int]]:
        """Each dimension, and where those of the two stand in an array by place."""
        dims = len(self.extent)
        assert len(other.extent) == dims
        return ((dim, 2 + dim, 3 + dims + dim) for dim in range(dims))

    def _shifts(self, other: Patches, dim: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
        own = self.window.shifts(dim, self.extent[dim], self.outputs[dim])
        others = other.window.shifts(dim, other.extent[dim], other.outputs[dim])
        for a, b in zip(own, others, strict=True):
            if a is not None and b is not None:
                yield a, b


def _cut(tensor: Tensor, a: int, rows: slice, b: int, columns: slice) -> Tensor:
    """Some of the entries along two dimensions."""
    index = [slice(None)] * tensor.dim()
    index[a], index[b] = rows, columns
    return tensor[tuple(index)]
