"""Norms and inner products of every group's tensors, whatever their size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lowland.sam.asked import holds, which_hold
from lowland.sam.norm import l2_norm
from lowland.sam.precision import wide, working
from lowland.sam.vectors.factors import gram
from lowland.sam.vectors.per_group import LowRank, PerGroup, apart, overlap

HEAVY = 1e-4
"""Share of the terms of a squared norm below which so many digits cancel that the matrix is formed."""


def squared_norms(tensors: Sequence[PerGroup], groups: int) -> Float[Tensor, " groups"]:
    """Squared l2 norm of each group's tensors, all parameters together, in double precision."""
    return _squares(tensors, groups)[0]


def cosines(a: Sequence[PerGroup], b: Sequence[PerGroup], groups: int) -> Float[Tensor, " groups"]:
    """Cosine of each group's two gradients; NaN if one is zero or not finite."""
    (of_a, sure_of_a), (of_b, sure_of_b) = _squares(a, groups), _squares(b, groups)
    lengths = of_a.sqrt() * of_b.sqrt()
    found = inner_products(a, b, groups)
    # By Cauchy and Schwarz the products lack no more than the squares do.
    if not holds((sure_of_a & sure_of_b).all()):
        again = (~(sure_of_a & sure_of_b)).nonzero()[:, 0]
        one, other = ([t.chosen(again, found.dtype) for t in tensors] for tensors in (a, b))
        found[again] = inner_products(one, other, len(again))
    return torch.where((lengths > 0) & lengths.isfinite(), found / lengths, torch.full_like(found, torch.nan))


def inner_products(a: Sequence[PerGroup], b: Sequence[PerGroup], groups: int) -> Float[Tensor, " groups"]:
    """Inner products of each group's tensors, all parameters together, at the tensors' precision."""
    return _total([inner(s, t, groups) for s, t in zip(a, b, strict=True)])


def inner(a: PerGroup, b: PerGroup, groups: int) -> Float[Tensor, " groups"]:
    """Inner product of each group's tensors, at their precision."""
    total = working(a.w.detach()).new_zeros(groups)
    if a.absent or b.absent:
        return total
    if a.along is not None and b.along is not None:
        total = total + a.along * b.along * _squared_norm_of_w(a)
    for one, other in ((a, b), (b, a)):
        if one.along is not None:
            total = total + one.along * _with_w(one, other, groups)
    a, b = (PerGroup(t.w, None, t.dense, t.parts) for t in (a, b))
    if a.absent or b.absent:
        return total
    if not (a.low_rank and b.low_rank) or overlap([*a.parts, *b.parts]):
        products: Tensor = torch.linalg.vecdot(a.flat(groups), b.flat(groups))
        return total + products
    for p in a.parts:
        for q in b.parts:
            total = total if apart(p.rows, q.rows) else total + gram(p.factor, q.factor).terms().sum((1, 2))
    return total


def _squared_norm_of_w(a: PerGroup) -> Tensor:
    return l2_norm([a.w.detach()]).to(wide(a.w.device)).square()


def _with_w(of: PerGroup, a: PerGroup, groups: int) -> Float[Tensor, " groups"]:
    """Inner products with the parameter of ``of``, of what in ``a`` is not a multiple of it."""
    w = working(of.w.detach())
    total = w.new_zeros(groups)
    if a.dense is not None:
        total = total + a.dense.reshape(groups, -1) @ w.reshape(-1)
    for part in a.parts:
        total = total + part.factor.product(w.reshape(len(w), -1)[part.start : part.stop])
    return total


def _total(values: Sequence[Tensor]) -> Float[Tensor, " groups"]:
    return _stacked(values).sum(0)


def _stacked(values: Sequence[Tensor]) -> Float[Tensor, "values groups"]:
    device = values[0].device
    return torch.stack([v if v.device == device else v.to(device) for v in values]).to(wide(device))


@dataclass(frozen=True)
class _Terms:
    """Terms of a squared norm, one number per group.

    Attributes:
        value: Their sum.
        absolute: The sum of their absolute values; ``None`` where nothing cancels.
        least: What ``value`` must exceed for its digits to be right, whatever underflowed.
        least_of_all: The same in every group, beside it.
    """

    value: Tensor
    absolute: Tensor | None = None
    least: Tensor | None = None
    least_of_all: float = 0.0


def _squares(
    tensors: Sequence[PerGroup], groups: int
) -> tuple[Float[Tensor, " groups"], Bool[Tensor, " groups"]]:
    """Squared norms, and for which groups the precision of the tensors did."""
    tensors = [t for t in tensors if not t.absent]
    if not tensors:
        zeros = torch.zeros(groups, dtype=torch.float64, device="cpu")
        return zeros, zeros == 0
    found = _each(tensors, groups)
    squares = _total([f.value for f in found])
    least = [f.least for f in found if f.least is not None]
    rest = sum(f.least_of_all for f in found)
    sure = (squares > (_total(least) + rest if least else rest)) & (squares < torch.inf)
    if not holds(sure.all()) and any(_type(t) != squares.dtype for t in tensors):
        again = (~sure).nonzero()[:, 0]
        chosen = [t.chosen(again, squares.dtype) for t in tensors]
        squares[again] = _total([f.value for f in _each(chosen, len(again))])
    return squares, sure


def _each(tensors: Sequence[PerGroup], groups: int) -> list[_Terms]:
    """Squared norms of each parameter's tensors, formed where too much of the rest cancels."""
    found = [_sum(list(_terms(t, groups))) for t in tensors]
    some = [i for i, f in enumerate(found) if f.absolute is not None]
    if some:
        value = _stacked([found[i].value for i in some])
        absolute = _stacked([f.absolute for f in found if f.absolute is not None])
        cancels = which_hold((value < HEAVY * absolute).any(1))
        for i in (i for i, formed in zip(some, cancels, strict=True) if formed):
            found[i] = _of_formed(tensors[i], groups)
    return found


def _sum(terms: Sequence[_Terms]) -> _Terms:
    if len(terms) == 1:
        return terms[0]
    value = torch.stack([t.value for t in terms]).sum(0)
    absolute = torch.stack([t.value if t.absolute is None else t.absolute for t in terms]).sum(0)
    # By Cauchy and Schwarz a product of two parts may lack as much as their squares together.
    least = torch.stack([t.least for t in terms if t.least is not None] or [torch.zeros_like(value)]).sum(0)
    return _Terms(value, absolute, len(terms) * least, len(terms) * sum(t.least_of_all for t in terms))


def _terms(a: PerGroup, groups: int) -> Iterator[_Terms]:
    rest = PerGroup(a.w, None, a.dense, a.parts)
    if rest.low_rank and not overlap(rest.parts):
        yield from _of_parts(rest.parts)
    elif not rest.absent:
        yield _of_formed(rest, groups)
    if a.along is not None:
        squares = a.along.square()
        yield _Terms(squares * _squared_norm_of_w(a), None, squares * (a.w.numel() * _least(_type(a))))
    if a.along is not None and not rest.absent:
        crossed = 2.0 * a.along * _with_w(a, rest, groups)
        yield _Terms(crossed, crossed.abs())


def _of_formed(a: PerGroup, groups: int) -> _Terms:
    # The one reduction that the CPU runs at the speed of its memory.
    norms: Tensor = torch.linalg.vector_norm(a.flat(groups), dim=1)
    squares = norms.to(wide(norms.device)).square()
    return _Terms(squares, least_of_all=a.w.numel() * _least(norms.dtype))


def _of_parts(parts: Sequence[LowRank]) -> Iterator[_Terms]:
    for i, p in enumerate(parts):
        for q in parts[i:]:
            if not apart(p.rows, q.rows):
                yield _of_pair(p, q)


def _of_pair(p: LowRank, q: LowRank) -> _Terms:
    r"""Twice the inner product of two parts; the square of one.

    Each of the products that an inner product of vectors adds up may lack :math:`\tau`, the smallest normal
    number; and those of R vectors, which it is multiplied with, add up to at most
    :math:`R \sum_r \|r\|_2^2`, by Cauchy and Schwarz.
    """
    found = gram(p.factor, q.factor)
    terms = found.terms()
    value = terms.sum((1, 2))
    if p is not q:
        return _Terms(2.0 * value, 2.0 * terms.abs().sum((1, 2)))
    rows, width, least = p.factor.num_rows, p.factor.right.shape[2], p.factor.num_rows * _least(terms.dtype)
    left, right = found.traces()
    lost = torch.add(left, right, alpha=(p.stop - p.start) / width).mul_(width * least)
    return _Terms(value, terms.abs().sum((1, 2)) if rows > 1 else None, lost, rows * least)


def _type(a: PerGroup) -> torch.dtype:
    return torch.promote_types(a.w.dtype, torch.float32)


def _least(dtype: torch.dtype) -> float:
    """The smallest number that a type holds at full precision even where it lacks the smallest normal one."""
    limits = torch.finfo(dtype)
    return limits.tiny / limits.eps
