"""A parameter during one pass: what it is for each group, and what is recorded of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowland.sam.batched.cost import Costs, Product
from lowland.sam.batched.precision import correction_dtype
from lowland.sam.noise import Noise
from lowland.sam.precision import stochastically_rounded, working
from lowland.sam.unbatchable import Unbatchable
from lowland.sam.vectors.factors import Factor, Left, OneHot, Right
from lowland.sam.vectors.per_group import LowRank, PerGroup, Rows, apart


@dataclass
class Weight:
    """A parameter in one pass over all groups.

    Attributes:
        param: The parameter.
        groups: Number of groups.
        move: Its perturbation; ``None`` where the pass does not perturb it.
        gradient: Where its gradient is recorded, group by group; ``None`` where the parameter takes
            part with its own ``requires_grad``, and its gradient is summed over the groups.
        form: Whether everything recorded is to be formed.
        planned_groups: Number of groups that forms are chosen for.
        frugal: Whether gradients are formed only where they take less memory so, and not where it is faster.
        spend: Whether this pass is the last that needs ``move``, whose memory they then take.
        noise: Of a weight of half precision, the randomness of rounding: the same each time that it is used.
        rows: Rows of all uses so far, which decide the form.
        uses: Uses whose backward pass is still to come.
        products: The uses whose gradients were recorded.
    """

    param: Tensor
    groups: int
    move: PerGroup | None = None
    gradient: PerGroup | None = None
    form: bool = False
    planned_groups: int = 0
    frugal: bool = False
    spend: bool = False
    noise: Noise | None = None
    rows: int = 0
    uses: int = 0
    products: list[Product] = field(default_factory=list)
    _copy: Tensor | None = None
    _moved: Tensor | None = None
    _version: int = 0

    @property
    def value(self) -> Tensor:
        """The parameter, detached where its gradient is recorded."""
        return self.param if self.gradient is None else self.param.detach()

    @property
    def takes_part(self) -> bool:
        """Whether it is not just a constant that all groups share."""
        return self.gradient is not None or self.move is not None

    def wide(self, dtype: torch.dtype) -> torch.dtype:
        """The type in which a perturbation is added to products of type ``dtype``."""
        return torch.float32 if self.noise is not None else correction_dtype(dtype)

    def rounded(self, tensor: Tensor, dtype: torch.dtype, *, backward: bool = False) -> Tensor:
        """A sum with what the perturbation adds, in the type of what it was added to.

        Weights of half precision stand on the grid of their type, and products with them do: rounded to the
        nearest, most of what is added would be lost.
        """
        if self.noise is None or tensor.dtype == dtype:
            return tensor.to(dtype)
        return stochastically_rounded(tensor, dtype, self.noise.of(int(backward)))

    def moved(self) -> Float[Tensor, "groups ..."]:
        """The weights of every group, formed, in float32 or better; not to be written to."""
        if self._moved is None:
            self._moved = self._form()
        return self._moved

    @property
    def is_formed(self) -> bool:
        """Whether the weights of every group are formed, or part of what makes them is."""
        return self._moved is not None or (self.move is not None and self.move.dense is not None)

    def copy(self) -> Float[Tensor, "groups ..."]:
        """The weights of every group as a tensor, whose gradient is recorded or reaches the parameter."""
        if self._copy is None:
            if self.gradient is not None:
                self._copy = self._as_it_is_used().detach().requires_grad_()
            else:
                self._copy = _Moved.apply(self.param, self._as_it_is_used())  # type: ignore[no-untyped-call]
            self._version = self._copy._version
        return self._copy

    def require_unchanged(self) -> None:
        """Refuses a change in place of what the loss was given for the parameter."""
        if self._copy is not None and self._copy._version != self._version:
            raise Unbatchable("an operation that changes a parameter in place")

    def leaf(self) -> Tensor | None:
        """The copy whose gradient is to be recorded, if there is one."""
        return self._copy if self.gradient is not None else None

    def record(self, part: LowRank, *, form: bool, product: Product | None) -> None:
        """Takes a product into the gradient."""
        assert self.gradient is not None
        self.gradient.add_part(part.of(part.factor.detached()))
        if product is not None:
            self.products.append(product)
        if form or self.form:
            self.gradient.form()

    def forms(self, cost: Costs, *, apart: int, formed: int) -> bool:
        """Whether the gradient of a use is formed.

        Args:
            cost: Operations of either form.
            apart: Numbers that a group's factors hold.
            formed: Numbers that its matrix does.
        """
        return cost.forms and (formed <= apart or not self.frugal)

    def used(self) -> None:
        """The backward pass of a use is over: what the last one needed goes, long before the pass ends."""
        self.uses -= 1
        if self.spend and self.uses == 0 and self.move is not None:
            self._moved = None
            self.move.give_up()

    @torch.no_grad()
    def _as_it_is_used(self) -> Tensor:
        """The weights of every group in the parameter's type."""
        moves = self._moved is not None or not (self.move is None or self.move.absent)
        if moves:
            return self.rounded(self.moved(), self.param.dtype)
        w = self.param.detach()
        return w.clone()[None] if self.groups == 1 else w.expand(self.groups, *w.shape)

    def _form(self) -> Tensor:
        w, move = working(self.param.detach()), self.move
        if move is None or move.absent:
            return w.expand(self.groups, *w.shape)
        e = move.whole(self.groups)
        own = move.own and move.along is None and e.dtype == w.dtype
        if not (self.spend and own) or self.noise is not None:  # whose perturbation is used by itself too
            return w + e
        move.dense = None
        return e.add_(w)


class _Moved(torch.autograd.Function):
    """The weights of every group, whose gradients reach the parameter that they were made from."""

    @staticmethod
    def forward(ctx: Any, param: Tensor, moved: Tensor) -> Tensor:  # noqa: ARG004 - the protocol's
        return moved.view_as(moved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - the protocol's
        return grad.sum(0), None


@dataclass(frozen=True)
class Use:
    """A parameter, or some of its rows, used as a matrix.

    Attributes:
        weight: The parameter.
        start: First of its rows.
        stop: One after the last.
        transposed: Whether the matrix is that of the rows transposed.
    """

    weight: Weight
    start: int
    stop: int
    transposed: bool = False

    @property
    def rows(self) -> Rows:
        """The rows of the parameter."""
        return self.start, self.stop

    def matrix(self, dtype: torch.dtype) -> Float[Tensor, "q p"]:
        """The matrix before it is perturbed."""
        w = self.weight.value.flatten(1).to(dtype)
        if self.stop - self.start < len(w):
            w = w[self.start : self.stop]
        return w.t() if self.transposed else w

    def moved(self, dtype: torch.dtype) -> Float[Tensor, "groups q p"] | None:
        """The perturbed matrices of every group, if they are formed."""
        if not self.weight.is_formed and not self._overlaps():
            return None
        return self._of_all(self.weight.moved(), dtype)

    def added(self, dtype: torch.dtype) -> Float[Tensor, "groups q p"] | None:
        """Of a weight of half precision, what is formed of the perturbation: not its sum with the matrix."""
        move = self.weight.move
        if move is None or self.weight.noise is None:
            return None
        if self._overlaps():
            move.form()
        if move.dense is None:
            return None
        return self._of_all(move.dense, dtype)

    def along(self) -> Float[Tensor, " groups"] | None:
        """Multiple of the matrix itself that the perturbation adds."""
        move = self.weight.move
        return None if move is None else move.along

    def products(self, dtype: torch.dtype) -> list[tuple[Any, Any]]:
        """The rest of the perturbation, as ``left`` and ``right`` vectors whose outer products add up."""
        found: list[tuple[Left | Right, Left | Right]] = []
        for part in self._parts():
            if part.rows == self.rows:
                left, right = part.factor.left, part.factor.right.to(dtype)
                left = left.to(dtype) if isinstance(left, Tensor) else left
                found.append((right, left) if self.transposed else (left, right))
        return found

    def _of_all(self, whole: Float[Tensor, "groups ..."], dtype: torch.dtype) -> Float[Tensor, "groups q p"]:
        """The matrices of every group in tensors of the parameter's shape."""
        found = whole.flatten(2)[:, self.start : self.stop].to(dtype)
        return found.transpose(1, 2) if self.transposed else found

    def _parts(self) -> list[LowRank]:
        return [] if self.weight.move is None else self.weight.move.parts

    def _overlaps(self) -> bool:
        """Whether the perturbation is known for some of these rows only, or for more."""
        return any(not (p.rows == self.rows or apart(p.rows, self.rows)) for p in self._parts())

    def record(self, left: Left, right: Left, costs: Callable[[int, int, int], Costs]) -> None:
        """Takes the sum of outer products of ``left`` and ``right`` into the gradient."""
        if self.transposed:
            left, right = right, left
        assert isinstance(right, Tensor)
        rows, q, p = right.shape[1], self.stop - self.start, right.shape[2]
        cost = costs(max(self.weight.rows, rows), q, p)
        held = rows * (p + 1 if isinstance(left, OneHot) else p + q)
        forms = self.weight.forms(cost, apart=held, formed=p * q)
        extra = cost.formed if forms or self.weight.form else cost.apart
        product = Product(rows, q, p, extra) if isinstance(left, Tensor) else None
        self.weight.record(LowRank(Factor(left, right), self.start, self.stop), form=forms, product=product)


@dataclass
class View:
    """A view of a parameter that a loss holds in place of it.

    Attributes:
        tensor: The view, of the unperturbed weights.
        replay: The same view of another tensor of the parameter's shape.
        use: The same as a matrix, if it is one.
    """

    tensor: Tensor
    weight: Weight
    replay: Callable[[Tensor], Tensor]
    use: Use | None = field(default=None)
