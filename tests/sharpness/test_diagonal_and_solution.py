"""The diagonal of the Hessian, and products with its inverse, against the dense matrix."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland.errors import InputError
from lowland.sam import MicroBatches
from lowland.sharpness import GaussNewton, hessian_diagonal, hessian_solve

DOUBLE = torch.float64


def network(dtype=DOUBLE):
    """A small network, its batch, its loss, and the dense Hessian."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(7, 3, dtype=DOUBLE), torch.arange(7) % 3
    shapes = {name: p.shape for name, p in module.named_parameters()}

    def of_flat(vector):
        pieces = torch.split(vector, [s.numel() for s in shapes.values()])
        named = {name: t.view(s) for (name, s), t in zip(shapes.items(), pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(module, named, (x,)), y)

    flat = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    H = torch.autograd.functional.hessian(of_flat, flat)
    module = module.to(dtype)
    return module, (x.to(dtype), y), lambda x, y: F.cross_entropy(module(x), y), H


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors.values()])


def test_the_diagonal_is_the_dense_hessians_within_its_errors() -> None:
    module, (x, y), loss, H = network()
    params, batch = dict(module.named_parameters()), MicroBatches([(x[:5], y[:5]), (x[5:], y[5:])])
    found = hessian_diagonal(loss, params, batch, products=24)
    assert list(found.values) == list(params)
    assert all(found.values[name].shape == p.shape for name, p in params.items())
    off = (flat(found.values) - H.diagonal()) / flat(found.stderrs)
    assert off.square().mean().sqrt() < 1.5
    assert found.products == 24
    # the length of the rest of the row, over the root of the number of products
    for products, seeds in ((24, 30), (2, 300)):
        rest = (H - torch.diag(H.diagonal())).norm(dim=1) / products**0.5
        errors = [
            hessian_diagonal(loss, params, batch, products=products, seed=s).stderrs for s in range(seeds)
        ]
        claimed = torch.stack([flat(e) for e in errors]).square().mean(0).sqrt()
        torch.testing.assert_close(claimed, rest, rtol=0.2, atol=0.0)
    exact = hessian_diagonal(loss, params, batch, products=len(H))
    torch.testing.assert_close(flat(exact.values), H.diagonal(), rtol=1e-9, atol=1e-12)
    assert not flat(exact.stderrs).any()
    row = exact.row()
    assert (row["value"], row["smallest"]) == (
        pytest.approx(H.diagonal().max()),
        pytest.approx(H.diagonal().min()),
    )


def test_vectors_have_the_type_that_is_asked_for() -> None:
    module, batch, loss, H = network(torch.float32)
    params = dict(module.named_parameters())
    narrow, wide = (hessian_diagonal(loss, params, batch, products=50, dtype=t) for t in (None, DOUBLE))
    assert {t.dtype for t in narrow.values.values()} == {torch.float32}
    assert {t.dtype for t in wide.values.values()} == {DOUBLE}
    torch.testing.assert_close(flat(wide.values), H.diagonal(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_conjugate_gradients_solve_the_dense_system(dtype) -> None:
    module, (x, y), loss, H = network(dtype)
    params, batch = dict(module.named_parameters()), MicroBatches([(x[:5], y[:5]), (x[5:], y[5:])])
    damping = 0.1 - float(torch.linalg.eigvalsh(H)[0])
    v = {name: torch.randn_like(p) for name, p in params.items()}
    tol = 1e-4 if dtype == torch.float32 else 1e-9
    backwards = dict(reversed(v.items()))  # tensors go by their names
    found = hessian_solve(loss, params, batch, backwards, damping=damping, tol=tol)
    wanted = torch.linalg.solve(H + damping * torch.eye(len(H), dtype=DOUBLE), flat(v).double())
    assert (flat(found.vector).double() - wanted).norm() < 30 * tol * wanted.norm()
    assert found.residual < 2 * tol
    assert found.products <= 60


def test_the_gauss_newton_matrix_needs_little_damping_and_zero_is_solved_by_zero() -> None:
    module, batch, _, _ = network()
    params = list(module.parameters())
    loss = GaussNewton(lambda x, _: module(x), lambda f, _, y: F.cross_entropy(f, y))
    v = [torch.randn_like(p) for p in params]
    assert hessian_solve(loss, params, batch, v, damping=1e-3, tol=1e-8).residual < 1e-7
    nothing = hessian_solve(loss, params, batch, [torch.zeros_like(p) for p in params], damping=1e-3)
    assert not any(t.any() for t in nothing.vector)
    assert nothing.row()["value"] == 0.0


def test_what_cannot_be_solved_is_refused() -> None:
    module, batch, loss, H = network()
    params = list(module.parameters())
    down = torch.linalg.eigh(H)[1][:, 0]  # of negative curvature
    v = [t.view_as(p) for t, p in zip(torch.split(down, [p.numel() for p in params]), params, strict=True)]
    with pytest.raises(InputError, match="damping must make the matrix positive definite, got 0, with which"):
        hessian_solve(loss, params, batch, v, damping=0.0)
    v = [torch.randn_like(p) for p in params]
    with pytest.raises(InputError, match="max_products must be enough to come to 1e-12 of the vector, got 2"):
        hessian_solve(loss, params, batch, v, damping=1.0, tol=1e-12, max_products=2)
    with pytest.raises(InputError, match="vector must have the shapes of the params"):
        hessian_solve(loss, params, batch, v[:1], damping=1.0)
    with pytest.raises(InputError, match=r"vector must be named as the params are, \['0.weight'"):
        hessian_solve(loss, dict(module.named_parameters()), batch, v, damping=1.0)
    with pytest.raises(InputError, match=r"damping must be non-negative and finite, got -1.0"):
        hessian_solve(loss, params, batch, v, damping=-1.0)
    with pytest.raises(InputError, match=r"tol must be positive, got 0.0"):
        hessian_solve(loss, params, batch, v, damping=1.0, tol=0.0)
    with pytest.raises(InputError, match="products must be at least 2, got 1"):
        hessian_diagonal(loss, params, batch, products=1)
