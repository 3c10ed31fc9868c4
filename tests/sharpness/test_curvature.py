"""Curvature against closed forms, dense matrices and known spectra."""

import json
from functools import partial

import hessian_eigenthings as eigenthings
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowland.errors import InputError
from lowland.sam import MicroBatches
from lowland.sharpness import (
    GaussNewton,
    hessian_eigenvalues,
    hessian_trace,
    sam_edge,
    spectral_density,
)


def symmetric(values, seed=0) -> torch.Tensor:
    """A matrix with these eigenvalues."""
    draw = np.random.default_rng(seed)
    basis = np.linalg.qr(draw.standard_normal((len(values), len(values))))[0]
    return torch.tensor((basis * np.asarray(values)) @ basis.T)


def quadratic(values, seed=0):
    """A loss of two tensors whose Hessian has these eigenvalues, its parameters and a batch of three."""
    H = symmetric(values, seed)
    half = len(values) // 2
    u = torch.randn(half, dtype=torch.float64, requires_grad=True)
    v = torch.randn(len(values) - half, dtype=torch.float64, requires_grad=True)

    def loss(x):
        w = torch.cat([u, v])
        return 0.5 * (w @ H @ w) * x  # the mean of x is 1

    return loss, [u, v], (torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64),)


SPECTRUM = np.concatenate([[9.0, 5.0, 4.0, 2.0, 1.5], np.linspace(-0.5, 0.5, 90), [-1.0, -3.0]])


@pytest.mark.parametrize("k", [1, 3, 6])
def test_eigenvalues_of_a_quadratic_are_those_it_was_made_of(k) -> None:
    loss, params, batch = quadratic(SPECTRUM)
    top = hessian_eigenvalues(loss, params, batch, k=k, tol=1e-10)
    np.testing.assert_allclose(top.values, np.sort(SPECTRUM)[::-1][:k], rtol=1e-9)
    bottom = hessian_eigenvalues(loss, params, batch, k=k, end="smallest", tol=1e-10)
    np.testing.assert_allclose(bottom.values, np.sort(SPECTRUM)[:k], rtol=1e-9)
    for found in (top, bottom):
        assert found.residuals.max() < 1e-7
        assert (found.value, found.examples) == (found.values[0], 3)
        H = symmetric(SPECTRUM).numpy()
        rows = found.vectors.numpy()
        np.testing.assert_allclose(rows @ H, found.values[:, None] * rows, atol=1e-6)
        assert 0 < found.products < 400
    assert (top.ratio == pytest.approx(6.0)) if k == 6 else np.isnan(top.ratio)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.integers(0, 9))
def test_small_matrices_are_exact(values, seed) -> None:
    loss, params, batch = quadratic(values, seed)
    found = hessian_eigenvalues(loss, params, batch, k=len(values))
    np.testing.assert_allclose(found.values, np.sort(values)[::-1], atol=1e-11)
    exact = hessian_trace(loss, params, batch, products=3 * len(values))
    assert exact.value == pytest.approx(sum(values), abs=1e-10)
    assert exact.stderr == 0.0
    density = spectral_density(loss, params, batch, steps=len(values), runs=2)
    np.testing.assert_allclose(density.weights.sum(axis=1), 1.0)
    seen = density.nodes[density.weights > 1e-6]
    assert np.abs(seen[:, None] - np.array(values)).min(axis=1).max() < 1e-5


@settings(max_examples=20, deadline=None)
@given(st.integers(50, 90), st.integers(1, 4), st.sampled_from(["largest", "smallest"]), st.integers(0, 99))
def test_restarted_with_few_vectors_it_finds_the_ends_of_any_spectrum(size, k, end, seed) -> None:
    values = np.random.default_rng(seed).standard_normal(size)
    loss, params, batch = quadratic(values, seed)
    found = hessian_eigenvalues(loss, params, batch, k=k, end=end, tol=1e-8, max_products=5000, seed=seed)
    wanted = np.sort(values)[::-1][:k] if end == "largest" else np.sort(values)[:k]
    np.testing.assert_allclose(found.values, wanted, atol=1e-7)
    assert found.residuals.max() <= 2e-8 * np.abs(values).max()


def test_smallest_eigenvalue_far_below_the_largest_is_found_at_the_spectrums_tolerance() -> None:
    values = np.concatenate([[1e4], np.linspace(0.5, 3.0, 80), [-1e-3]])
    loss, params, batch = quadratic(values)
    found = hessian_eigenvalues(loss, params, batch, end="smallest")
    assert abs(found.value + 1e-3) < 1e-4 * 1e4
    assert found.residuals[0] <= 1.01e-4 * 1e4


def test_results_are_lines_of_json() -> None:
    loss, params, batch = quadratic(SPECTRUM)
    top = hessian_eigenvalues(loss, params, batch, k=2)
    trace, density = hessian_trace(loss, params, batch), spectral_density(loss, params, batch)
    rows = [json.loads(json.dumps(found.row())) for found in (top, trace, density)]
    assert rows[0]["eigenvalues"] == pytest.approx([9.0, 5.0], rel=1e-4)
    assert rows[0]["matrix_products"] == top.products
    assert (rows[1]["value"], rows[1]["stderr"]) == (trace.value, trace.stderr)
    assert rows[2]["value"] == density.moment(1)
    assert [row["examples"] for row in rows] == [3, 3, 3]


def test_it_goes_on_from_a_vector_nearby() -> None:
    loss, params, batch = quadratic(SPECTRUM)
    cold = hessian_eigenvalues(loss, params, batch, tol=1e-3)
    near = cold.vectors[0] + 0.01 * torch.randn(len(SPECTRUM), dtype=torch.float64)
    warm = hessian_eigenvalues(loss, params, batch, tol=1e-3, start=near)
    assert warm.value == pytest.approx(9.0, rel=1e-5)
    assert warm.products < cold.products


def in_float32(width=96):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 5)
    )
    x, y = torch.randn(16, 64), torch.arange(16) % 5
    return module, (x, y), lambda x, y: F.cross_entropy(module(x), y)


def test_float32_is_as_accurate_as_its_products() -> None:
    module, (x, y), loss = in_float32(8)
    H = dense_hessian(module.double(), x.double(), y)
    module.float()
    wanted = np.linalg.eigvalsh(H)[::-1]
    params = list(module.parameters())
    for dtype in (None, torch.float32, torch.float64):
        found = hessian_eigenvalues(loss, params, (x, y), k=3, dtype=dtype)
        np.testing.assert_allclose(found.values, wanted[:3], rtol=1e-5)
        assert found.vectors.dtype == (dtype or torch.float32)
        assert found.residuals.max() < 2e-4 * wanted[0]
    exact = hessian_trace(loss, params, (x, y), products=3 * len(H))
    assert exact.value == pytest.approx(np.trace(H), rel=1e-5)
    density = spectral_density(loss, params, (x, y), steps=60, runs=6)
    wide, grid = 0.05 * wanted[0], np.linspace(wanted[-1] - 0.5, wanted[0] + 0.5, 801)
    bumps = np.exp(-0.5 * ((grid[:, None] - wanted) / wide) ** 2) / (wide * np.sqrt(2 * np.pi))
    apart = np.trapezoid(np.abs(density.on(grid, width=wide) - bumps.mean(1)), grid)
    assert apart < 0.1


@pytest.mark.parametrize(
    ("most", "measure"),
    [
        (48, hessian_eigenvalues),
        (112, partial(hessian_eigenvalues, k=5)),
        (40, hessian_trace),
        (40, partial(spectral_density, steps=20, runs=2)),
    ],
    ids=["one eigenvalue", "five", "trace", "density"],
)
def test_few_vectors_are_held(most, measure) -> None:
    module, batch, loss = in_float32(400)
    params = list(module.parameters())
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        measure(loss, params, batch)
    held = peak = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    activations = 16 * 4 * (64 + 10 * 400)  # of a batch of 16, and what is kept of them
    assert (peak - activations) / sum(p.numel() for p in params) < most


@pytest.mark.parametrize(("products", "sketch"), [(9, 2), (12, 0), (30, 2)])
def test_the_trace_is_within_its_standard_error_two_times_out_of_three(products, sketch) -> None:
    loss, params, batch = quadratic(np.linspace(-1.0, 3.0, 60))
    found = [hessian_trace(loss, params, batch, products=products, sketch=sketch, seed=s) for s in range(300)]
    within = np.mean([abs(f.value - 60.0) <= f.stderr for f in found])
    assert 0.62 < within < 0.75
    assert all(f.products == products for f in found)


def network(*, dropout=0.0, norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), nn.BatchNorm1d(5) if norm else nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3)]
    return nn.Sequential(*layers).double()


def dense_hessian(module, x, y) -> np.ndarray:
    """By torch's own nested differentiation, of the whole batch at once."""
    params = dict(module.named_parameters())
    shapes = [p.shape for p in params.values()]

    def loss(vector):
        pieces = torch.split(vector, [s.numel() for s in shapes])
        named = {n: t.view(s) for n, t, s in zip(params, pieces, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(module, named, (x,)), y)

    flat = torch.cat([p.detach().reshape(-1) for p in params.values()])
    return torch.autograd.functional.hessian(loss, flat).numpy()


@pytest.mark.parametrize("parts", [1, 3])
def test_a_networks_hessian_is_the_dense_one_in_one_batch_and_in_ragged_parts(parts) -> None:
    module = network()
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    batch = (x, y) if parts == 1 else MicroBatches([(x[:4], y[:4]), (x[4:5], y[4:5]), (x[5:], y[5:])])

    def loss(x, y):
        return F.cross_entropy(module(x), y), {"aux": 1}

    H = dense_hessian(module, x, y)
    wanted = np.linalg.eigvalsh(H)
    params = dict(module.named_parameters())
    top = hessian_eigenvalues(loss, params, batch, k=3, tol=1e-10)
    np.testing.assert_allclose(top.values, wanted[::-1][:3], rtol=1e-8)
    assert top.examples == 7
    if parts > 1:  # the same matrix
        return
    bottom = hessian_eigenvalues(loss, params, batch, k=2, end="smallest", tol=1e-10)
    np.testing.assert_allclose(bottom.values, wanted[:2], rtol=1e-7)
    trace = hessian_trace(loss, params, batch, products=3 * len(H))
    assert trace.value == pytest.approx(np.trace(H), rel=1e-9)
    whole = spectral_density(loss, params, batch, steps=len(H), runs=3, seed=1)
    assert whole.moment(1) == pytest.approx(wanted.mean(), abs=4 * wanted.std() / np.sqrt(3))
    assert whole.nodes.max() == pytest.approx(wanted.max(), rel=1e-6)


def test_the_gauss_newton_matrix_is_the_dense_one_and_never_negative() -> None:
    module = network()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = GaussNewton(lambda x, _: module(x), lambda f, _, y: F.cross_entropy(f, y, reduction="none"))
    params = dict(module.named_parameters())

    def outputs(*values):
        return torch.func.functional_call(module, dict(zip(params, values, strict=True)), (x,))

    blocks = torch.autograd.functional.jacobian(outputs, tuple(p.detach() for p in params.values()))
    J = torch.cat([b.reshape(6, 3, -1) for b in blocks], dim=2)
    p = torch.softmax(module(x).detach(), dim=1)
    curved = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    wanted = torch.einsum("nci,ncd,ndj->ij", J, curved, J).numpy() / 6
    found = hessian_eigenvalues(loss, params, (x, y), k=5, tol=1e-10)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(wanted)[::-1][:5], rtol=1e-8)
    assert hessian_eigenvalues(loss, params, (x, y), end="smallest", tol=1e-8).value > -1e-8
    assert hessian_trace(loss, params, (x, y), products=300).value == pytest.approx(np.trace(wanted))
    assert loss(x, y).shape == (6,)


def test_the_trace_is_unbiased_and_knows_its_error() -> None:
    loss, params, batch = quadratic(SPECTRUM)
    found = [hessian_trace(loss, params, batch, products=30, seed=s) for s in range(40)]
    errors = np.array([f.value - SPECTRUM.sum() for f in found])
    claimed = np.sqrt(np.mean([f.stderr**2 for f in found]))
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(40)
    assert 0.6 < errors.std() / claimed < 1.6
    assert all(f.products == 30 for f in found)
    more = [hessian_trace(loss, params, batch, products=150, seed=s).stderr for s in range(5)]
    assert np.mean(more) < claimed / 2


@pytest.mark.parametrize("sketch", [0, 2, 5])
def test_the_traces_of_blocks_are_the_dense_hessians_and_know_their_errors(sketch) -> None:
    module = network()
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    params = dict(module.named_parameters())
    ends = np.cumsum([p.numel() for p in params.values()])[:-1]
    wanted = np.array([d.sum() for d in np.split(np.diag(dense_hessian(module, x, y)), ends)])

    def loss(x, y):
        return F.cross_entropy(module(x), y)

    found = [hessian_trace(loss, params, (x, y), products=20, sketch=sketch, seed=s) for s in range(60)]
    blocks = np.stack([f.blocks for f in found])
    np.testing.assert_allclose(blocks.sum(1), [f.value for f in found])
    spread = blocks.std(0, ddof=1)
    assert (np.abs(blocks.mean(0) - wanted) < 4 * spread / np.sqrt(60)).all()
    claimed = np.sqrt(np.mean([f.block_stderrs**2 for f in found], axis=0))
    assert ((spread > 0.6 * claimed) & (spread < 1.6 * claimed)).all()
    exact = hessian_trace(loss, params, (x, y), products=200)
    np.testing.assert_allclose(exact.blocks, wanted)
    assert exact.block_stderrs.tolist() == [0.0] * len(wanted)


def test_the_density_has_the_moments_and_the_mass_of_the_spectrum() -> None:
    loss, params, batch = quadratic(SPECTRUM)
    found = spectral_density(loss, params, batch, steps=40, runs=60)
    for power in (1, 2, 3):
        spread = 4 * (SPECTRUM**power).std() / np.sqrt(60)
        assert found.moment(power) == pytest.approx((SPECTRUM**power).mean(), abs=spread)
    grid = np.linspace(-8, 14, 4001)
    density = found.on(grid, width=0.2)
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-6)
    bulk = np.trapezoid(density[np.abs(grid) < 1.2], grid[np.abs(grid) < 1.2])
    assert bulk == pytest.approx(91 / 97, abs=0.05)


def test_a_run_that_has_seen_every_eigenvalue_ends() -> None:
    loss, params, batch = quadratic([2.0] * 50 + [5.0] * 10)
    found = spectral_density(loss, params, batch, steps=30, runs=2)
    np.testing.assert_allclose(np.unique(np.round(found.nodes, 8)), [2.0, 5.0])
    assert found.products == 4
    np.testing.assert_allclose(found.weights.sum(axis=1), 1.0)


def test_nothing_is_left_behind() -> None:
    module = network(dropout=0.5, norm=True)
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    module.train()
    module[0].weight.grad = torch.ones_like(module[0].weight)
    before = {name: t.clone() for name, t in module.state_dict().items()}
    state = torch.get_rng_state()

    def loss(x, y):
        return F.cross_entropy(module(x), y)

    params = list(module.parameters())
    first = hessian_eigenvalues(loss, params, (x, y), tol=0.01)
    again = hessian_eigenvalues(loss, params, (x, y), tol=0.01)
    np.testing.assert_array_equal(first.values, again.values)  # the same masks each time
    hessian_trace(loss, params, (x, y), products=9)
    spectral_density(loss, params, MicroBatches([(x[:3], y[:3]), (x[3:], y[3:])]), steps=3)

    def broken(x, _):
        module(x)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hessian_eigenvalues(broken, params, (x, y))
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(module[0].weight.grad, torch.ones_like(module[0].weight))
    assert module.training
    assert all(p.grad is None for p in params[1:])


def test_attention_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    x = torch.randn(2, 3, 8)
    found = hessian_eigenvalues(lambda x: (layer(x) ** 2).mean(), list(layer.parameters()), (x,), tol=1e-3)
    assert np.isfinite(found.value)
    assert found.residuals[0] < 0.01 * abs(found.value)


def test_a_linear_loss_has_no_curvature_and_unused_parameters_have_none() -> None:
    w, unused = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    flat = hessian_eigenvalues(lambda x: (x @ w).mean(), [w, unused], (torch.ones(2, 3),), k=5)
    np.testing.assert_array_equal(flat.values, np.zeros(5))
    bowl = hessian_eigenvalues(lambda x: 1.5 * (w**2).sum() * x.mean(), [w, unused], (torch.ones(2),), k=5)
    np.testing.assert_allclose(bowl.values, [3, 3, 3, 0, 0])


@pytest.mark.parametrize(
    ("gradient_norm", "rho", "eta"), [(0.3, 0.05, 0.1), (4.0, 1.0, 0.01), (1e-3, 0.1, 0.5)]
)
def test_sams_edge_is_its_formula(gradient_norm, rho, eta) -> None:
    wanted = gradient_norm / (2 * rho) * (np.sqrt(1 + 8 * rho / (eta * gradient_norm)) - 1)
    assert sam_edge(gradient_norm, rho=rho, eta=eta) == pytest.approx(wanted)
    assert sam_edge(gradient_norm, rho=1e-12, eta=eta) == pytest.approx(2 / eta, rel=1e-6)
    edge = sam_edge(gradient_norm, rho=rho, eta=eta)
    assert eta * (edge + rho / gradient_norm * edge**2) == pytest.approx(2.0)  # where it comes from
    assert sam_edge(0.0, rho=rho, eta=eta) == 0.0


W = torch.ones(50, requires_grad=True)


def bowl(x):
    return 0.5 * (torch.arange(1.0, 51.0) * W**2).sum() * x.mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: hessian_eigenvalues(bowl, [W], b, k=0), "k must be between 1 and the 50 weights, got 0."),
        (
            lambda b: hessian_eigenvalues(bowl, [W], b, k=51),
            "k must be between 1 and the 50 weights, got 51.",
        ),
        (
            lambda b: hessian_eigenvalues(bowl, [W], b, end="top"),
            "end must be one of largest, smallest, got 'top'",
        ),
        (lambda b: hessian_eigenvalues(bowl, [W], b, tol=-1.0), "tol must be non-negative, got -1.0."),
        (
            lambda b: hessian_eigenvalues(bowl, [W], b, k=9, tol=1e-14, max_products=22),
            "max_products must be enough for 9 eigenvalues to converge, got 22, with which",
        ),
        (
            lambda b: hessian_eigenvalues(bowl, [W], b, k=2, basis=3),
            "basis must be at least k . 2, 4, got 3.",
        ),
        (
            lambda b: hessian_eigenvalues(bowl, [W], b, start=torch.ones(3)),
            "start must have shape .50,., got .3,.",
        ),
        (
            lambda b: hessian_eigenvalues(bowl, [W], b, dtype=torch.bfloat16),
            "dtype must be torch.float32 or torch.float64, got torch.bfloat16.",
        ),
        (lambda b: hessian_trace(bowl, [W], b, products=2), "products must be at least 3, got 2."),
        (
            lambda b: hessian_trace(bowl, [W], b, products=9, sketch=4),
            "sketch must be between 0 and a third of products, 3, got 4.",
        ),
        (lambda b: spectral_density(bowl, [W], b, steps=0), "steps must be positive, got 0."),
        (
            lambda b: spectral_density(bowl, [W], b, steps=2).on([0.0], width=0.0),
            "width must be positive, got 0.0.",
        ),
        (
            lambda _: hessian_trace(bowl, [W], MicroBatches([])),
            "batch must hold at least one example, got none.",
        ),
        (lambda b: hessian_trace(lambda x: x.mean(), [W], b), "loss must depend on the params"),
        (
            lambda b: hessian_trace(lambda x: W[:2] * x.mean(), [W], b),
            "loss must return a scalar or one value",
        ),
        (
            lambda _: sam_edge(1.0, rho=-1.0, eta=0.1),
            "gradient_norm and rho must be non-negative and eta positive",
        ),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_wrong_input_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call((torch.ones(4),))


def test_results_are_errors_of_the_input_kind() -> None:
    with pytest.raises(InputError):
        hessian_trace(bowl, [W], (torch.ones(1),), products=0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in forward mode
@pytest.mark.parametrize("matrix", ["hessian", "gauss-newton"])
def test_a_second_library_finds_the_same_eigenvalues_and_trace(matrix) -> None:
    """hessian-eigenthings, whose batches of unequal size count alike: here they are equal."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    data = [(x[:6], y[:6]), (x[6:], y[6:])]
    params = dict(module.named_parameters())
    if matrix == "hessian":
        theirs = eigenthings.HessianOperator(module, data, eigenthings.supervised_loss(F.cross_entropy))

        def loss(x, y):
            return F.cross_entropy(module(x), y)
    else:
        theirs = eigenthings.GGNOperator(
            module,
            data,
            eigenthings.supervised_forward,
            eigenthings.supervised_loss_of_output(F.cross_entropy),
        )
        loss = GaussNewton(lambda x, _: module(x), lambda out, _, y: F.cross_entropy(out, y))
    wanted = eigenthings.lanczos(
        theirs, k=4, max_iter=60, tol=1e-10, which="LA", reorthogonalize=True
    ).eigenvalues
    batch = MicroBatches(data)
    found = hessian_eigenvalues(loss, params, batch, k=4, tol=1e-10)
    np.testing.assert_allclose(sorted(found.values), sorted(np.asarray(wanted, dtype=np.float64)), rtol=1e-6)
    v = torch.randn(found.vectors.shape[1], dtype=torch.float64)
    dense = torch.stack([theirs.matvec(e) for e in torch.eye(len(v), dtype=torch.float64)])
    trace = hessian_trace(loss, params, batch, products=3 * len(v))
    assert trace.value == pytest.approx(dense.trace().item(), rel=1e-9)
