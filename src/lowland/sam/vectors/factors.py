"""Matrices of every group that are kept as sums of outer products."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lowland.sam.precision import wide, working
from lowland.sam.vectors.patches import Patches


@dataclass(frozen=True)
class OneHot:
    """Rows of zeros with a single one: of group g, row r, it is in column ``ids[g, r]``.

    Attributes:
        ids: Where the ones are.
        width: Number of columns q.
    """

    ids: Int[Tensor, "groups rows"]
    width: int

    def dense(self, like: Tensor) -> Tensor:
        """The rows written out, shape ``(groups, rows, width)``."""
        rows = like.new_zeros(*self.ids.shape, self.width)
        return rows.scatter_(-1, self.ids[..., None], 1.0)


Left = Tensor | OneHot
Right = Tensor | Patches


@dataclass(frozen=True)
class Factor:
    r"""Matrices :math:`E_S = \sum_r l_{S,r} r_{S,r}^\top`, one per group, that are not formed.

    Attributes:
        left: Vectors :math:`l`, shape ``(groups, rows, q)``, or where their single ones are.
        right: Vectors :math:`r`, shape ``(groups, rows, p)``, or the maps that they are patches of.
    """

    left: Left
    right: Right

    @property
    def num_rows(self) -> int:
        """Number of outer products in a group."""
        return int(self.right.shape[1])

    def tensors(self) -> tuple[Tensor, Tensor]:
        """What is held."""
        left = self.left.ids if isinstance(self.left, OneHot) else self.left
        return left, self.right.maps if isinstance(self.right, Patches) else self.right

    def detached(self) -> Factor:
        """The same without their history, which would live on in them with all that it holds."""
        left, right = self.tensors()
        return self._of(left.detach(), right.detach())

    def formed(self) -> Float[Tensor, "groups q p"]:
        """The matrices themselves."""
        right = _written(self.right)
        if isinstance(self.left, OneHot):
            whole = right.new_zeros(len(right), self.left.width, right.shape[2])
            return whole.scatter_add_(1, self.left.ids[..., None].expand_as(right), right)
        return torch.bmm(working(self.left).transpose(1, 2), right)

    def chosen(self, groups: Int[Tensor, " chosen"], dtype: torch.dtype) -> Factor:
        """The matrices of some groups, in another type."""
        left, right = self.tensors()
        left = left[groups]
        return self._of(left if isinstance(self.left, OneHot) else left.to(dtype), right[groups].to(dtype))

    def scaled(self, factors: Float[Tensor, " groups"]) -> Factor:
        """Each group's matrix times its factor."""
        left, right = self.tensors()
        if isinstance(self.left, Tensor) and left.numel() < right.numel():
            return self._of(times(left, factors), right)
        return self._of(left, times(right, factors))

    def balanced(self, factors: Float[Tensor, " groups"]) -> Factor:
        """Each group's matrix times its non-negative factor, its left and right vectors of the same size.

        So that no product with either leaves the range of its type, however large the factor is.
        """
        left, right = self.tensors()
        if isinstance(self.left, OneHot):
            return self._of(left, times(right, factors))
        limits = torch.finfo(working(right).dtype)
        of_left = factors.sqrt() * (_peaks(right) / _peaks(left)).sqrt()
        of_left = of_left.clamp(limits.tiny, limits.max)
        return self._of(times(left, of_left), times(right, factors / of_left))

    def _of(self, left: Tensor, right: Tensor) -> Factor:
        """The same places and windows of other tensors."""
        return Factor(
            OneHot(left, self.left.width) if isinstance(self.left, OneHot) else left,
            replace(self.right, maps=right) if isinstance(self.right, Patches) else right,
        )

    def only(self, chosen: Bool[Tensor, " groups"]) -> Factor:
        """The matrices of the ``chosen`` groups, 0 for the others."""
        left, right = self.tensors()
        return self._of(
            left if isinstance(self.left, OneHot) else masked(left, chosen), masked(right, chosen)
        )

    def scaled_rows(self, factors: Float[Tensor, " q"]) -> Factor:
        """Row i of every group's matrix times ``factors[i]``."""
        if isinstance(self.left, OneHot):
            return Factor(self.left, _written(self.right) * factors[self.left.ids][..., None])
        return Factor(working(self.left) * factors, self.right)

    def summed(self, share: Float[Tensor, " groups"]) -> Float[Tensor, "q p"]:
        """The sum over groups, each times its share."""
        right = times(_written(self.right), share).flatten(0, 1)
        if isinstance(self.left, OneHot):
            return right.new_zeros(self.left.width, right.shape[1]).index_add_(
                0, self.left.ids.flatten(), right
            )
        return working(self.left).flatten(0, 1).t() @ right

    def product(self, w: Float[Tensor, "q p"]) -> Float[Tensor, " groups"]:
        """Inner product of each group's matrix with one matrix of all groups."""
        right = _written(self.right)
        if isinstance(self.left, OneHot):
            return (w[self.left.ids] * right).sum((1, 2))
        return ((right @ working(w).t()) * working(self.left)).sum((1, 2))


@dataclass(frozen=True)
class Gram:
    """Inner products of the vectors of two factors, shape ``(groups, rows_a, rows_b)``.

    Attributes:
        left: Of their left vectors.
        right: Of their right vectors.
    """

    left: Float[Tensor, "groups rows_a rows_b"]
    right: Float[Tensor, "groups rows_a rows_b"]

    def terms(self) -> Float[Tensor, "groups rows_a rows_b"]:
        """What inner products of each group's matrices are the sums of."""
        return self.left * self.right

    def traces(self) -> tuple[Float[Tensor, " groups"], Float[Tensor, " groups"]]:
        """Squared norms of each group's left and right vectors, all rows together, if ``a is b``."""
        left, right = (t.diagonal(dim1=1, dim2=2).sum(1) for t in (self.left, self.right))
        return left, right


def gram(a: Factor, b: Factor) -> Gram:
    r"""What inner products :math:`\langle A_S, B_S\rangle = \sum (L_A L_B^\top) \circ (R_A R_B^\top)` are of.

    With ``a is b`` this is the squared norm of a group's gradient from its activations and output
    gradients alone, the *ghost norm* of differential privacy (Li et al., 2022, "Large language models can
    be strong differentially private learners", section 4).
    """
    pairs = row_products(a.right, b.right)
    return Gram(_left_gram(a.left, b.left, pairs), pairs)


def _left_gram(a: Left, b: Left, like: Tensor) -> Float[Tensor, "groups rows_a rows_b"]:
    if isinstance(a, OneHot) and isinstance(b, OneHot):
        return (a.ids[:, :, None] == b.ids[:, None, :]).to(like)
    if isinstance(a, OneHot):
        return _columns(working(b), a.ids).transpose(1, 2)  # type: ignore[arg-type]
    if isinstance(b, OneHot):
        return _columns(working(a), b.ids)
    return _pairs(working(a), working(b))


def row_products(a: Right, b: Right) -> Float[Tensor, "groups rows_a rows_b"]:
    """Inner products of the rows of a group, in float32 or better."""
    if isinstance(a, Patches) and isinstance(b, Patches):
        return a.to(working(a.maps).dtype).pairs(b.to(working(b.maps).dtype))
    return _pairs(_written(a), _written(b))


def _written(right: Right) -> Tensor:
    """The rows, in float32 or better."""
    return working(right.dense() if isinstance(right, Patches) else right)


def _pairs(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of a group."""
    if a.shape[1] == b.shape[1] == 1:
        return (a * b).sum(-1, keepdim=True)
    return torch.bmm(a, b.transpose(1, 2))


def _columns(rows: Tensor, ids: Tensor) -> Float[Tensor, "groups rows ids"]:
    """Entry ``ids`` of each of the ``rows`` of the same group."""
    return rows.gather(2, ids[:, None, :].expand(-1, rows.shape[1], -1))


def at_columns(left: Left, ids: Int[Tensor, "groups ids"], like: Tensor) -> Tensor:
    """Entries ``ids`` of the rows of ``left``, shape ``(groups, ids, rows)``."""
    return _left_gram(OneHot(ids, 0), left, like)


def add_through(y: Tensor, x: Tensor, first: Left, second: Left) -> Tensor:
    r"""Adds :math:`(x F^\top) S` of each group to ``y`` in place: a product with a matrix never formed.

    Args:
        y: Shape ``(groups, n, width of second)``.
        x: Shape ``(groups, n, width of first)``.
        first: The vectors that ``x`` is multiplied with.
        second: The vectors that are summed.
    """
    through = _left_gram(x, first, x) if isinstance(first, OneHot) else _pairs(x, first)
    if isinstance(second, OneHot):
        return y.scatter_add_(2, second.ids[:, None, :].expand_as(through), through)
    return y.baddbmm_(through, second)


def _peaks(tensor: Float[Tensor, "groups *rest"]) -> Float[Tensor, " groups"]:
    """The largest entry of each group; 1 where all are 0."""
    peaks = tensor.flatten(1).abs().amax(1).to(wide(tensor.device))
    return torch.where(peaks > 0, peaks, torch.ones_like(peaks))


def times(tensor: Float[Tensor, "groups *rest"], factors: Float[Tensor, " groups"]) -> Tensor:
    """Each group's part times its factor, in float32 or better."""
    tensor = working(tensor)
    return tensor * column(factors, tensor)


def masked(tensor: Float[Tensor, "groups *rest"], chosen: Bool[Tensor, " groups"]) -> Tensor:
    """``tensor`` with zeros for the groups that are not ``chosen``, whatever is there."""
    return tensor.masked_fill(~chosen.to(tensor.device).view(-1, *[1] * (tensor.dim() - 1)), 0.0)


def column(factors: Float[Tensor, " groups"], like: Tensor) -> Tensor:
    """``factors`` in the shape and type that multiply each group's part of ``like``."""
    return factors.to(like.device, like.dtype).view(-1, *[1] * (like.dim() - 1))
