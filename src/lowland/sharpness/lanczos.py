"""Eigenvalues at one end of the spectrum, with few vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lowland.sam.norm import l2_norm
from lowland.sharpness.products import Matrix, Vector

End = Literal["largest", "smallest"]
Array = np.ndarray

_ROTATED = 2**13
"""Entries of every vector that are rotated at once."""


@dataclass
class Lanczos:
    r"""Thick-restarted Lanczos iteration (Wu & Simon, 2000), each vector orthogonalized against all others.

    Beside the products it holds ``basis`` vectors and one more. When these are full, the Ritz vectors
    nearest to the end that is wanted stay, and go on from there.

    Attributes:
        matrix: The matrix.
        end: Which end of its spectrum.
        basis: Vectors that are held, three at least.
        vectors: They, a row each.
        values: Ritz values of the vectors so far, the wanted ones first.
        estimates: Of each the length of its residual.
        scale: The largest size of a Ritz value so far.
    """

    matrix: Matrix
    end: End
    basis: int
    vectors: Float[Tensor, "basis weights"] = field(init=False)
    values: Float[Array, " k"] = field(init=False)
    estimates: Float[Array, " k"] = field(init=False)
    scale: float = 0.0

    def run(self, k: int, start: Vector, *, tol: float, max_products: int, generator: torch.Generator) -> int:
        """Runs until ``k`` residuals are at most ``tol`` times the largest eigenvalue in size.

        Args:
            k: Number of eigenvalues.
            start: The first vector, of any length.
            tol: That tolerance.
            max_products: Products after which it ends.
            generator: Of vectors to go on with where all that the first one leads to has been seen.

        Returns:
            How many have converged; the first ``k`` rows of ``vectors`` are then their eigenvectors.
        """
        matrix, size = self.matrix, self.basis
        self.vectors = torch.empty(size, matrix.size, dtype=matrix.dtype, device=matrix.device)
        projected = np.zeros((size, size))
        kept, w = 0, start / l2_norm([start])
        while True:
            for i in range(kept, size):
                self.vectors[i] = w
                matrix.product(self.vectors[i], w)
                projected[i, i] += self._orthogonalized(w, i)
                beside = float(l2_norm([w]))
                self.scale = max(self.scale, abs(projected[i, i]), 1e-300)
                if beside <= self._least:
                    beside, w = 0.0, self._another(generator, i)
                else:
                    w /= beside
                if i + 1 < size:
                    projected[i + 1, i] = projected[i, i + 1] = beside
            values, rotation = np.linalg.eigh(projected)
            order = np.argsort(-values if self.end == "largest" else values)
            values, rotation = values[order], rotation[:, order]
            self.scale = max(self.scale, float(np.abs(values).max()))
            self.values, self.estimates = values[:k], beside * np.abs(rotation[-1, :k])
            converged = int((self.estimates <= tol * self.scale).sum())
            ends = converged == k or matrix.count + 1 > max_products
            kept = k if ends else min(max(k + (size - k) // 2, k), size - 1)
            self._rotate(rotation[:, :kept])
            if ends:
                return converged
            projected = np.zeros((size, size))
            projected[range(kept), range(kept)] = values[:kept]
            projected[kept, :kept] = projected[:kept, kept] = beside * rotation[-1, :kept]

    @property
    def _least(self) -> float:
        return 10.0 * torch.finfo(self.matrix.dtype).eps * self.scale

    def _orthogonalized(self, w: Vector, i: int) -> float:
        """Makes ``w`` orthogonal to the first vectors, twice; its inner product with the last of these."""
        found = 0.0
        before = self.vectors[: i + 1]
        for _ in range(2):
            products = before @ w
            w.addmv_(before.T, products, alpha=-1.0)
            found += float(products[-1])
        return found

    def _another(self, generator: torch.Generator, i: int) -> Vector:
        """A vector that is orthogonal to those before."""
        w = self.matrix.drawn(generator)
        self._orthogonalized(w, i)
        found: Tensor = w.div_(l2_norm([w]))
        return found

    def _rotate(self, rotation: Float[Array, "basis kept"]) -> None:
        """Makes the first vectors of all, in place."""
        turn = torch.as_tensor(rotation.T.copy()).to(self.vectors)
        for start in range(0, self.vectors.shape[1], _ROTATED):
            columns = self.vectors[:, start : start + _ROTATED]
            columns[: len(turn)] = turn @ columns
