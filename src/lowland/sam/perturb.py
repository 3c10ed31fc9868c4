"""Weights moved for the length of a block, and put back bit for bit."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from lowland.sam.caches import forget_caches
from lowland.sam.noise import Noise
from lowland.sam.norm import l2_norm
from lowland.sam.precision import HALF, stochastically_rounded, working
from lowland.sam.vectors import One
from lowland.sam.workspace import Workspace


@dataclass(eq=False)
class _Block:
    """A block in which weights are perturbed."""

    params: Sequence[Tensor]


_Blocks = tuple["weakref.ref[_Block]", ...]


class _Thread(threading.local):
    """What is so in this thread. A step that was begun and given up is forgotten with its optimizer."""

    blocks: _Blocks = ()


_thread = _Thread()


def weights_are_perturbed(module: nn.Module | None = None) -> bool:
    """Whether a :func:`perturbed` block is open in this thread: a loss that logs may want to know.

    Args:
        module: Only blocks that perturb a parameter of this module count; by default all do.

    Example:
        >>> import torch
        >>> from lowland.sam import perturbed, weights_are_perturbed
        >>> model = torch.nn.Linear(1, 1)
        >>> with perturbed(model.parameters(), [torch.ones(1, 1), torch.ones(1)]):
        ...     print(weights_are_perturbed(model))
        True
        >>> weights_are_perturbed()
        False
    """
    blocks = [block for known in _thread.blocks if (block := known()) is not None]
    if module is None or not blocks:
        return bool(blocks)
    own = {id(p) for p in module.parameters()}
    return any(id(p) in own for block in blocks for p in block.params)


def blocks_open() -> _Blocks:
    """Such blocks that are open, the outermost first."""
    return _thread.blocks


def close_blocks(to: _Blocks) -> None:
    """Only the blocks of ``to`` count as open: those inside were left by an exception."""
    _thread.blocks = to


@contextmanager
def seen_as_perturbed(params: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block ``params`` count as perturbed, although none of them moves."""
    outside, block = blocks_open(), _Block(params)
    close_blocks((*outside, weakref.ref(block)))
    try:
        yield
    finally:
        close_blocks(outside)


def perturbed(
    params: Iterable[Tensor],
    perturbation: Sequence[Tensor],
    *,
    noise: Noise | None = None,
    workspace: Workspace | None = None,
) -> AbstractContextManager[Moved]:
    """The weights :math:`w + e` inside the block, :math:`w` again after it, also on an exception.

    The weights are copied before they move and copied back afterwards, since ``w + e - e`` is not ``w``
    in floating point. They keep their storage. Weights of fewer digits than float32 are moved in float32
    and rounded stochastically, so that a perturbation below half their spacing is right on average instead
    of lost. The caches of ``torch.autocast`` and ``parametrize.cached`` are cleared on entry and exit.

    Args:
        params: The weights :math:`w`.
        perturbation: The perturbation :math:`e`, one tensor of the same shape per weight; it may be sparse
            in the first dimension, and then only its rows are copied and moved.
        noise: Randomness of the rounding; drawn from the default generator if needed and not given.
        workspace: Memory for the copies, used by no other block at the same time; allocated if not given.

    Returns:
        A context manager, whose target is what is known of the move.

    Raises:
        ValueError: If ``perturbation`` does not match ``params`` in number and shapes.

    Example:
        >>> import torch
        >>> from lowland.sam import perturbed
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> with perturbed([w], [torch.tensor([0.5, 0.0])]):
        ...     print(w.data)
        tensor([1.5000, 2.0000])
        >>> w.data
        tensor([1., 2.])
    """
    params = list(params)
    _check_shapes(params, perturbation)
    return _Perturbed(params, perturbation, noise, workspace or Workspace())


class _Perturbed(AbstractContextManager[Any]):
    """The block. A generator would not do: an interrupt on the way into its end leaves it half-way."""

    def __init__(
        self, params: list[Tensor], e: Sequence[Tensor], noise: Noise | None, workspace: Workspace
    ) -> None:
        self._block, self._e, self._noise = _Block(params), e, noise
        self._moved = Moved(workspace)

    def __enter__(self) -> Moved:
        e = One.of(self._e)
        factor, directions = e.factor, list(e.tensors)
        del self._e, e  # the caller may have given it up: half the memory of a step
        self._outside = blocks_open()
        self._moved.workspace.open.append(self._moved)
        try:
            forget_caches()
            close_blocks((*self._outside, weakref.ref(self._block)))
            with torch.no_grad():
                self._moved.move(list(self._block.params), directions, factor, self._noise)
        except BaseException:
            self._leave()
            raise
        return self._moved

    def __exit__(self, *_: object) -> None:
        try:
            self._leave()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        self._moved.undo()
        close_blocks(self._outside)
        forget_caches()


@dataclass
class Moved:
    """Weights that were moved: what they were, and how far they are.

    Attributes:
        workspace: Where their copies are.
    """

    workspace: Workspace
    _dense: list[tuple[list[Tensor], list[Tensor]]] = field(default_factory=list)
    _rows: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def norm(self) -> float:
        """The l2 norm of the realised perturbation, after rounding."""
        differences = self._differences()
        return l2_norm(differences).item() if differences else 0.0

    def count(self) -> int:
        """The number of weights that differ from what they were."""
        return sum(int(d.count_nonzero().item()) for d in self._differences())

    def move(
        self, params: list[Tensor], directions: list[Tensor], factor: float, noise: Noise | None
    ) -> None:
        """Moves ``params`` by ``factor`` times the ``directions``, of which the list is emptied.

        What was moved is known even if this raises half-way.
        """
        if noise is None and any(p.dtype in HALF for p in params):
            noise = Noise.draw()
        is_plain = [p.dtype not in HALF and not d.is_sparse for p, d in zip(params, directions, strict=True)]
        if any(is_plain):
            self._move_plain([*compress(params, is_plain)], [*compress(directions, is_plain)], factor)
        for p, plain in zip(params, is_plain, strict=True):
            d = directions.pop(0)
            if d.is_sparse:
                self._move_rows(p, d, factor, noise)
            elif not plain:
                self._move_half(p, d, factor, noise)

    @torch.no_grad()
    def undo(self) -> None:
        """Puts the weights back; once more is as good."""
        for params, originals in self._dense:
            torch._foreach_copy_(params, originals)
        for p, rows, original in self._rows:
            p.index_copy_(0, rows, original)
        self._dense, self._rows = [], []
        self.workspace.open = [moved for moved in self.workspace.open if moved is not self]

    def _move_plain(self, params: list[Tensor], directions: list[Tensor], factor: float) -> None:
        self._dense.append((params, self.workspace.copies(params)))
        torch._foreach_add_(params, directions, alpha=factor)

    def _move_half(self, p: Tensor, direction: Tensor, factor: float, noise: Noise | None) -> None:
        assert noise is not None
        self._dense.append(([p], [p.clone()]))
        p.copy_(stochastically_rounded(p.float() + direction * factor, p.dtype, noise))

    def _move_rows(self, p: Tensor, direction: Tensor, factor: float, noise: Noise | None) -> None:
        direction = direction.coalesce()
        if direction.sparse_dim() != 1:
            raise ValueError(
                "a sparse perturbation must be sparse in its first dimension only, "
                f"got {direction.sparse_dim()} sparse dimensions."
            )
        rows = direction.indices()[0]
        original = p.index_select(0, rows)
        new = working(original) + direction.values() * factor
        if p.dtype in HALF:
            assert noise is not None
            new = stochastically_rounded(new, p.dtype, noise)
        self._rows.append((p, rows, original))
        p.index_copy_(0, rows, new)

    @torch.no_grad()
    def _differences(self) -> list[Tensor]:
        dense = [working(p) - working(o) for ps, os in self._dense for p, o in zip(ps, os, strict=True)]
        rows = [working(p.index_select(0, rows)) - working(o) for p, rows, o in self._rows]
        return dense + rows


def _check_shapes(params: Sequence[Tensor], perturbation: Sequence[Tensor]) -> None:
    wanted = [tuple(p.shape) for p in params]
    got = [tuple(e.shape) for e in One.of(perturbation).tensors]
    if wanted != got:
        raise ValueError(f"perturbation must have the shapes of the params, {wanted}, got {got}.")
