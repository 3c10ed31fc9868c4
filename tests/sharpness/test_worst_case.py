"""Worst-case sharpness against optima found otherwise, and all engines against each other."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import nn

from lowland.sam import MicroBatches
from lowland.sharpness import (
    AutoPGD,
    ProjectedAscent,
    hessian_eigenvalues,
    one_step_sharpness,
    suboptimality,
    worst_case,
    worst_case_grid,
)

DOUBLE = torch.float64
LONG = ProjectedAscent(steps=100, step_size=0.5, schedule="quarters")
SEARCHES = [LONG, AutoPGD(steps=60), ProjectedAscent(steps=200, step_size=3.0, direction="raw")]


def bowl(seed=0, *, saddle=False):
    """½ wᵀHw + bᵀw over two tensors; its Hessian, its slope, its weights and a loss of a batch of ones."""
    torch.manual_seed(seed)
    A = torch.randn(7, 7, dtype=DOUBLE)
    H, b = A @ A.T / 7 - saddle * 1.5 * torch.eye(7, dtype=DOUBLE), torch.randn(7, dtype=DOUBLE)
    u, v = (torch.randn(n, dtype=DOUBLE, requires_grad=True) for n in (3, 4))

    def loss(x):
        w = torch.cat([u, v])
        return (0.5 * w @ H @ w + b @ w) * x

    return H, b, [u, v], loss


def trust_region_maximum(H, g, rho):
    """The largest gᵀz + ½ zᵀHz with |z| <= rho, from its optimality conditions (Moré & Sorensen, 1983)."""
    values, vectors = np.linalg.eigh(H)
    along = vectors.T @ g

    def length(multiplier):
        return np.sqrt(((along / (multiplier - values)) ** 2).sum())

    top = max(values[-1], 0.0)
    if values[-1] < 0 and length(0.0) <= rho:
        z = along / -values
    else:
        multiplier = brentq(lambda k: length(k) - rho, top + 1e-12, top + 1e6, xtol=1e-14)
        z = along / (multiplier - values)
    return along @ z + 0.5 * (values * z**2).sum()


@pytest.mark.parametrize("search", SEARCHES, ids=["projected", "auto", "raw"])
@pytest.mark.parametrize("scaling", ["plain", "element"])
@pytest.mark.parametrize(("rho", "saddle"), [(0.1, False), (0.8, True)])
def test_of_a_quadratic_it_is_the_trust_region_optimum(search, scaling, rho, saddle) -> None:
    H, b, params, loss = bowl(saddle=saddle)
    w = torch.cat(params).detach()
    c = torch.ones(7, dtype=DOUBLE) if scaling == "plain" else w.abs()
    wanted = trust_region_maximum((c[:, None] * H * c).numpy(), (c * (H @ w + b)).numpy(), rho)
    found = worst_case(loss, params, (torch.ones(2, dtype=DOUBLE),), rho=rho, scaling=scaling, search=search)
    assert found.value == pytest.approx(wanted, rel=1e-4)
    assert found.value <= wanted * (1 + 1e-12)


@pytest.mark.parametrize("scaling", ["plain", "element"])
@pytest.mark.parametrize("search", [ProjectedAscent(), AutoPGD()], ids=["projected", "auto"])
def test_of_a_convex_quadratic_in_the_cube_it_is_at_the_best_corner(search, scaling) -> None:
    H, b, params, loss = bowl(seed=3)
    w = torch.cat(params).detach()
    c = torch.ones(7, dtype=DOUBLE) if scaling == "plain" else w.abs()
    corners = 0.3 * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=DOUBLE)] * 7) * c
    rises = 0.5 * ((corners @ H) * corners).sum(1) + corners @ (H @ w + b)
    found = worst_case(
        loss,
        params,
        (torch.ones(2, dtype=DOUBLE),),
        rho=0.3,
        norm="linf",
        scaling=scaling,
        search=search,
        restarts=4,
    )
    assert found.value == pytest.approx(rises.max().item(), rel=1e-9)


def test_without_a_slope_random_starts_find_the_largest_curvature() -> None:
    H, b, params, loss = bowl()
    with torch.no_grad():
        bottom = torch.linalg.solve(H, -b)
        params[0].copy_(bottom[:3])
        params[1].copy_(bottom[3:])
    batch = (torch.ones(2, dtype=DOUBLE),)
    top = torch.linalg.eigvalsh(H)[-1].item()
    found = worst_case(loss, params, batch, rho=0.2, restarts=2, search=AutoPGD(steps=100))
    assert found.value == pytest.approx(0.5 * 0.04 * top, rel=1e-4)


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_of_a_diagonal_network_at_a_minimum_it_is_a_norm_of_its_predictor(kind) -> None:
    r"""Andriushchenko et al., 2023, section 5: with c the square roots of the other layer's share, the
    curvature of the loss of :math:`\langle x, u \odot v \rangle`, XᵀX = n·1, has all its eigenvalues in
    pairs 2|β_i| and 0."""
    torch.manual_seed(0)
    d = 6
    u, v = (torch.randn(d, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    X = math.sqrt(d) * torch.linalg.qr(torch.randn(d, d, dtype=DOUBLE))[0]
    beta = (u * v).detach()
    y = X @ beta
    with torch.no_grad():
        c = [(v / u).abs().sqrt(), (u / v).abs().sqrt()]
    a, z = (torch.zeros(d, dtype=DOUBLE, requires_grad=True) for _ in range(2))

    def loss(x, y):
        inner = (u.detach() + c[1] * a) * (v.detach() + c[0] * z)
        return 0.5 * (x @ inner - y) ** 2

    rho = 1e-3
    if kind == "max":
        value = worst_case(loss, [a, z], (X, y), rho=rho, restarts=3, search=AutoPGD(steps=200)).value
        assert value == pytest.approx(rho**2 * beta.abs().max().item(), rel=1e-3)
    else:
        from lowland.sharpness import average_case

        found = average_case(loss, [a, z], (X, y), rho=rho, samples=600)
        assert abs(found.value - rho**2 * beta.abs().sum().item()) < 4 * found.stderr
        assert found.stderr < 0.1 * found.value


def network(seed=0, *, bias=True):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias)).double()
    x, y = torch.randn(9, 4, dtype=DOUBLE), torch.arange(9) % 3

    def loss(x, y):
        outputs = module(x)
        return F.cross_entropy(outputs, y, reduction="none"), {"error": outputs.argmax(1) != y}

    return module, (x, y), loss


def test_at_small_radii_it_is_slope_and_curvature() -> None:
    module, batch, loss = network()
    params = list(module.parameters())
    g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(loss(*batch)[0].mean(), params)])
    top = hessian_eigenvalues(lambda *b: loss(*b)[0], params, batch)
    for rho in (1e-3, 1e-2):
        value = worst_case(loss, params, batch, rho=rho, search=LONG).value
        along = top.vectors[0]
        low = (rho * g.norm()).item()
        assert low < value < low + 0.5 * rho**2 * top.value * 1.01
    with torch.no_grad():
        for p, d in zip(params, torch.split(along, [p.numel() for p in params]), strict=True):
            assert p.numel() == d.numel()


def written_out(module, group, rho, *, steps, step_size, c):
    """Projected ascent from its definition; the largest loss above the first, and the error there."""
    x, y = group
    names = [name for name, _ in module.named_parameters()]
    w = [p.detach() for p in module.parameters()]
    z = [torch.zeros_like(p) for p in w]
    seen = []
    for k in range(steps + 1):
        at = [(a + s * b).requires_grad_() for a, s, b in zip(w, c, z, strict=True)]
        out = torch.func.functional_call(module, dict(zip(names, at, strict=True)), (x,))
        value = F.cross_entropy(out, y)
        seen.append((value.item(), (out.argmax(1) != y).double().mean().item()))
        g = [s * t for s, t in zip(c, torch.autograd.grad(value, at), strict=True)]
        norm = math.sqrt(sum((t * t).sum().item() for t in g))
        z = [a + step_size * rho * t / norm for a, t in zip(z, g, strict=True)]
        length = math.sqrt(sum((t * t).sum().item() for t in z))
        z = [t * min(1.0, rho / length) for t in z]
        del k
    best = max(seen)
    return best[0] - seen[0][0], best[1] - seen[0][1]


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("scaling", ["plain", "element", "filter"])
@pytest.mark.parametrize("m", [1, 4, None])
def test_every_group_climbs_by_itself_and_counts_by_its_examples(engine, scaling, m) -> None:
    module, (x, y), loss = network()
    params = list(module.parameters())
    if scaling == "filter":
        c = [p.detach().abs() if p.dim() == 1 else p.detach().norm(dim=1, keepdim=True) for p in params]
    else:
        c = [p.detach().abs() if scaling == "element" else torch.ones_like(p) for p in params]
    rows = [slice(i, i + (m or 9)) for i in range(0, 9, m or 9)]
    pairs = [written_out(module, (x[r], y[r]), 0.4, steps=7, step_size=0.3, c=c) for r in rows]
    sizes = [len(y[r]) for r in rows]
    found = worst_case(
        loss,
        params,
        (x, y),
        rho=0.4,
        m=m,
        scaling=scaling,
        search=ProjectedAscent(steps=7, step_size=0.3),
        engine=engine if m != 4 or engine == "loop" else "auto",
    )
    np.testing.assert_allclose(found.groups, [rise for rise, _ in pairs], rtol=1e-10)
    assert found.value == pytest.approx(np.average([rise for rise, _ in pairs], weights=sizes), rel=1e-10)
    assert found.extras["error"] == pytest.approx(np.average([e for _, e in pairs], weights=sizes), abs=1e-12)
    assert found.examples == 9


OPTIONS = {
    "auto-PGD": {"search": AutoPGD(steps=12)},
    "auto-PGD, filter": {"search": AutoPGD(steps=12), "scaling": "filter"},
    "linf": {"norm": "linf", "rho": 0.02},
    "linf, adaptive, auto-PGD": {
        "norm": "linf",
        "scaling": "element",
        "search": AutoPGD(steps=8),
        "restarts": 2,
    },
    "restarts": {"restarts": 2, "search": ProjectedAscent(steps=6)},
    "raw": {"search": ProjectedAscent(steps=9, direction="raw", schedule="quarters", step_size=1.0)},
    "transfer": {"transfer": True, "m": 3},
    "transfer of single examples": {"transfer": True, "m": 1, "search": AutoPGD(steps=5)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_engines_and_chunks_agree(options) -> None:
    module, batch, loss = network(seed=2)
    params = list(module.parameters())
    given = {"rho": 0.3, "m": 1, **options}
    loop = worst_case(loss, params, batch, engine="loop", **given)
    at_once = worst_case(loss, params, batch, engine="batched", **given)
    chunks = worst_case(loss, params, batch, engine="batched", max_memory=20_000, **given)
    for other in (at_once, chunks):
        np.testing.assert_allclose(other.groups, loop.groups, rtol=1e-10, atol=1e-13)
        assert other.extras == pytest.approx(loop.extras, abs=1e-12)
    assert loop.groups.abs().max() > 0.01


@pytest.mark.parametrize("search", [ProjectedAscent(steps=4), AutoPGD(steps=6)], ids=["projected", "auto"])
@pytest.mark.parametrize("points", [False, True])
def test_climbs_take_the_memory_that_they_were_given(search, points) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 100), nn.Tanh(), nn.Linear(100, 60), nn.Tanh(), nn.Linear(60, 4))
    params = list(module.parameters())
    x, y = torch.randn(12, 40), torch.arange(12) % 4
    weights = 4 * sum(p.numel() for p in params)
    most = 3 * (search.vectors + 2) * weights

    def climb() -> None:
        worst_case(
            lambda x, y: F.cross_entropy(module(x), y, reduction="none"),
            params,
            (x, y),
            rho=0.1,
            m=1,
            scaling="element",
            engine="batched",
            search=search,
            points=points,
            max_memory=most,
        )

    climb()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        climb()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    held = np.cumsum([e.nbytes() for e in events if e.name() == "[memory]"])
    kept = points * 12 * weights  # what is returned is not the climbs'
    assert 0.5 * most < held.max() < most + kept


SUMS_OF_GRADIENTS = {
    "projected": {"search": ProjectedAscent(steps=8, step_size=0.4)},
    "auto-PGD": {"search": AutoPGD(steps=12)},
    "auto-PGD, filter, transfer": {"search": AutoPGD(steps=12), "scaling": "filter", "transfer": True},
}


@pytest.mark.parametrize("options", SUMS_OF_GRADIENTS.values(), ids=SUMS_OF_GRADIENTS)
def test_climbs_that_are_kept_as_sums_of_gradients_are_the_same(options, monkeypatch) -> None:
    """In wide layers a climb of some steps is smaller than one vector over all weights."""
    from lowland.sharpness import unformed

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(60, 90), nn.Tanh(), nn.Linear(90, 4)).double()
    x, y = torch.randn(6, 60, dtype=DOUBLE), torch.arange(6) % 4
    used = []
    original = unformed.Unformed.moves
    monkeypatch.setattr(unformed.Unformed, "moves", lambda self, v: used.append(v) or original(self, v))

    def loss(x, y):
        return F.cross_entropy(module(x), y, reduction="none")

    params = list(module.parameters())
    loop = worst_case_grid(loss, params, (x, y), rho=[0.3, 3.0], m=[1], engine="loop", **options)
    assert not used
    at_once = worst_case_grid(loss, params, (x, y), rho=[0.3, 3.0], m=[1], engine="batched", **options)
    assert used
    for a, b in zip(at_once, loop, strict=True):
        np.testing.assert_allclose(a.groups, b.groups, rtol=1e-9, atol=1e-13)


def test_restarts_begin_at_different_random_points_of_the_ball() -> None:
    u, v = (torch.ones(n, dtype=DOUBLE, requires_grad=True) for n in (3, 4))
    seen = []

    def loss(x):
        w = torch.cat([u, v])
        seen.append(w.detach() - 1.0)
        return (w * x[:, None]).sum(1)

    def starts(norm, seed):
        seen.clear()
        options = {"rho": 0.5, "norm": norm, "restarts": 4, "seed": seed, "engine": "loop"}
        batch = (torch.ones(2, dtype=DOUBLE),)
        found = worst_case(loss, [u, v], batch, search=ProjectedAscent(1, 0.001), **options)
        assert found.value == pytest.approx(max(e.sum().item() for e in seen))
        return torch.stack(seen[4::3])  # a climb evaluates the weights, its start and its end

    for norm, order in (("l2", 2), ("linf", math.inf)):
        found = starts(norm, 0)
        assert len(found) == 3
        lengths = torch.linalg.vector_norm(found, ord=order, dim=1)
        assert ((lengths > 0.1) & (lengths <= 0.5)).all()
        assert torch.pdist(found).min() > 0.1
        assert torch.equal(found, starts(norm, 0))
        assert not torch.isclose(found, starts(norm, 1)).any()


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_many_examples_at_once_equal_one_by_one(name) -> None:
    from lowland.deep.models import build_model

    torch.manual_seed(0)
    if name == "mlp":
        module, x = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 10)), torch.randn(512, 20)
    else:
        module = build_model("resnet_tiny_gn", num_classes=10, model_width=4)
        x = torch.rand(12, 3, 32, 32)
    module, x = module.double(), x.double()
    batch = (x, torch.arange(len(x)) % 10)

    def loss(x, y):
        return F.cross_entropy(module(x), y, reduction="none")

    params = list(module.parameters())
    search = ProjectedAscent(steps=4, step_size=0.4)
    few = MicroBatches([tuple(t[:40] for t in batch)])
    loop = worst_case(loss, params, few, rho=0.2, m=1, engine="loop", search=search)
    at_once = worst_case(loss, params, batch, rho=0.2, m=1, engine="batched", search=search)
    np.testing.assert_allclose(at_once.groups[: len(loop.groups)], loop.groups, rtol=1e-10)


@pytest.mark.parametrize("scaling", ["element", "filter"])
def test_adaptive_forms_do_not_feel_the_rescaling_that_they_promise(scaling) -> None:
    module, batch, loss = network(bias=False)
    module[1] = nn.ReLU()
    params = list(module.parameters())

    def measured(scaling):
        return worst_case(loss, params, batch, rho=0.2, scaling=scaling).value

    plain, adaptive = measured("plain"), measured(scaling)
    with torch.no_grad():
        params[0].mul_(8)
        params[1].div_(8)
    assert measured(scaling) == pytest.approx(adaptive, rel=1e-9)
    assert measured("plain") != pytest.approx(plain, rel=0.5)


def test_it_is_never_negative_not_even_where_every_step_leads_down() -> None:
    w, v = (torch.tensor([0.0], dtype=DOUBLE, requires_grad=True) for _ in range(2))

    def loss(x):  # a peak at a kink: each step along the gradient leads far below it
        return x * -(w.abs() + v.abs() + 0.001 * (w + v)).sum()

    batch = (torch.ones(3, dtype=DOUBLE),)
    for search in (ProjectedAscent(), AutoPGD()):
        assert worst_case(loss, [w, v], batch, rho=0.5, restarts=3, search=search).value == 0.0


def test_on_separated_data_the_error_rises_and_is_not_what_points_are_chosen_by() -> None:
    """The original keeps the point of the largest error, and reports a negative sharpness if none errs."""
    w, b = torch.tensor([3.0], dtype=DOUBLE, requires_grad=True), torch.zeros(1, dtype=DOUBLE)
    b.requires_grad_()
    x, y = torch.tensor([-2.0, -1.5, 1.5, 2.0], dtype=DOUBLE), torch.tensor([-1.0, -1.0, 1.0, 1.0])

    def loss(x, y):
        margin = y * (w * x + b)
        return F.softplus(-margin), {"error": margin <= 0}

    small = worst_case(loss, [w, b], (x, y.double()), rho=0.05, restarts=4)
    assert small.value > 0
    assert small.extras == {"error": 0.0}
    large = worst_case(loss, [w, b], (x, y.double()), rho=8.0)
    assert large.extras["error"] == 1.0


def test_a_larger_radius_is_never_less_sharp_and_m_equal_to_the_batch_is_the_whole() -> None:
    module, batch, loss = network()
    params = list(module.parameters())
    radii = [0.8, 0.05, 0.2, 0.1]
    rows = worst_case_grid(
        loss, params, batch, rho=radii, m=[1, 3, None], search=ProjectedAscent(steps=2, step_size=1.0)
    )
    assert [(r.settings["m"], r.settings["rho"]) for r in rows] == [
        (m, rho) for m in (1, 3, None) for rho in radii
    ]
    for k in range(0, 12, 4):
        by_rho = sorted(rows[k : k + 4], key=lambda r: r.settings["rho"])
        assert [r.value for r in by_rho] == sorted(r.value for r in by_rho)
    alone = worst_case(loss, params, batch, rho=0.05, m=3, search=ProjectedAscent(steps=2, step_size=1.0))
    assert rows[5].value == pytest.approx(alone.value, rel=1e-12)
    assert math.isnan(rows[-1].stderr)
    assert rows[0].stderr > 0


def test_a_perturbation_found_on_one_group_is_measured_on_the_next() -> None:
    u, v = (torch.zeros(3, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    directions = torch.eye(6, dtype=DOUBLE)[:3] + 0.25 * torch.eye(6, dtype=DOUBLE)[1:4]

    def loss(x):
        return x @ torch.cat([u, v])

    found = worst_case(loss, [u, v], (directions,), rho=1.0, m=1, transfer=True)
    units = directions / directions.norm(dim=1, keepdim=True)
    wanted = [(units[i] @ directions[(i + 1) % 3]).item() for i in range(3)]
    np.testing.assert_allclose(found.groups, wanted, atol=1e-9)


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("scaling", ["plain", "element"])
def test_the_loss_at_the_points_that_were_found_is_what_was_found(engine, scaling) -> None:
    module, (x, y), loss = network()
    params = dict(module.named_parameters())
    given = {"rho": 0.3, "m": 3, "engine": engine, "scaling": scaling, "restarts": 2}
    found = worst_case(loss, params, (x, y), points=True, **given)
    plain = worst_case(loss, params, (x, y), **given)
    assert plain.points is None
    np.testing.assert_array_equal(found.groups, plain.groups)
    for k in range(3):
        group = (x[3 * k : 3 * k + 3], y[3 * k : 3 * k + 3])
        e = {name: rows[k] for name, rows in found.points.items()}
        units = [p.detach().abs() if scaling == "element" else 1.0 for p in params.values()]
        lengths = [(t / c).norm() for t, c in zip(e.values(), units, strict=True)]
        assert torch.stack(lengths).norm().item() == pytest.approx(0.3)
        there = torch.func.functional_call(module, {n: p + e[n] for n, p in params.items()}, group[0])
        rise = F.cross_entropy(there, group[1]) - F.cross_entropy(module(group[0]), group[1])
        assert rise.item() == pytest.approx(found.groups[k].item(), rel=1e-9)


def test_the_point_of_a_hilltop_is_where_the_weights_are() -> None:
    u, v = (torch.zeros(n, dtype=DOUBLE, requires_grad=True) for n in (2, 3))
    batch = (torch.ones(4, dtype=DOUBLE),)
    found = worst_case(
        lambda x: -x.mean() * (u.square().sum() + v.square().sum()), [u, v], batch, rho=1.0, points=True
    )
    assert [t.tolist() for t in found.points] == [[[0.0] * 2], [[0.0] * 3]]


def test_every_start_says_what_it_found_by_itself() -> None:
    module, batch, loss = network()
    params, given = list(module.parameters()), {"rho": 0.3, "search": AutoPGD(5)}
    found = worst_case(loss, params, batch, restarts=3, **given)
    assert len(set(found.also["starts"])) == 3
    assert max(found.also["starts"]) == found.value
    assert found.also["starts"][0] == pytest.approx(worst_case(loss, params, batch, **given).value)
    assert found.row()["starts"] == found.also["starts"]


def test_a_longer_search_says_how_far_the_value_still_moves() -> None:
    """At a saddle's side: one step along the gradient is not along the ridge yet, many are."""
    H, b, params, loss = bowl(saddle=True)
    slope = (H @ torch.cat(params) + b).detach()
    best = trust_region_maximum(H.numpy(), slope.numpy(), 2.0)
    batch = (torch.ones(2, dtype=DOUBLE),)
    given = {"rho": 2.0, "search": AutoPGD(2), "longer": AutoPGD(100)}
    short, long = (
        worst_case(loss, params, batch, rho=2.0, search=s).value for s in (AutoPGD(2), AutoPGD(100))
    )
    found = worst_case(loss, params, batch, **given)
    assert short < 0.99 * best < long
    assert (found.value, found.also["longer"]) == (short, pytest.approx(long))
    assert found.settings["longer_steps"] == 100
    # what a shorter search found counts
    given = {"rho": 2.0, "search": AutoPGD(100), "longer": AutoPGD(2)}
    assert worst_case(loss, params, batch, **given).also["longer"] == pytest.approx(long)


def test_another_loss_can_be_climbed_and_points_are_still_chosen_by_the_loss() -> None:
    module, batch, loss = network()
    params = list(module.parameters())

    def down(x, y):
        return -loss(x, y)[0]

    for engine in ("loop", "batched"):
        options = {"rho": 0.1, "m": 3, "engine": engine, "search": ProjectedAscent(steps=5)}
        found = worst_case(loss, params, batch, climbed=down, **options)
        assert found.value == 0.0
        assert found.settings["climbed"] == "another"
        again = worst_case(loss, params, batch, climbed=lambda x, y: 3 * loss(x, y)[0], **options)
        assert again.value == pytest.approx(worst_case(loss, params, batch, **options).value, rel=1e-9)


def test_quarters_are_the_originals_six_five_five_and_four_of_twenty_steps() -> None:
    w = torch.zeros(2, 3, dtype=DOUBLE, requires_grad=True)
    slope = torch.arange(1.0, 7.0, dtype=DOUBLE).view(2, 3)
    lengths = []

    def loss(x):
        lengths.append((w.detach() * slope).sum().item() / slope.norm().item())
        return (w * slope).sum() * x

    search = ProjectedAscent(schedule="quarters")
    found = worst_case(loss, [w], (torch.ones(1, dtype=DOUBLE),), rho=2.0, search=search, engine="loop")
    steps = np.diff([0.0, *lengths[-20:]]) / 0.2
    wanted = [1.0] * 6 + [0.5] * 5 + [0.25] * 5 + [0.125] * 4
    assert steps[:18] == pytest.approx(wanted[:18])
    assert sum(wanted) * 0.1 == pytest.approx(search.settings()["path"]) == pytest.approx(1.025)
    assert found.value == pytest.approx(2.0 * slope.norm().item(), rel=1e-12)  # at the edge of the ball


@pytest.mark.parametrize("scaling", ["plain", "element"])
@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_the_originals_steps_along_some_layers_are_divided_by_the_norm_of_all(engine, scaling) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(DOUBLE)
    x, y = torch.randn(6, 5, dtype=DOUBLE), torch.arange(6) % 3

    def loss(x, y):
        return F.cross_entropy(model(x), y, reduction="none")

    chosen, rest = list(model.parameters())[2:], list(model.parameters())[:2]
    search = ProjectedAscent(steps=8, step_size=0.2, direction="whole")
    found = worst_case(
        loss, chosen, (x, y), rho=0.3, m=2, search=search, beside=rest, engine=engine, scaling=scaling
    )
    rises = []
    for rows in torch.arange(6).split(2):
        before = [p.detach().clone() for p in chosen]
        c = [torch.ones_like(p) if scaling == "plain" else p.abs() for p in before]
        z, values = [torch.zeros_like(p) for p in before], []
        for step in range(9):
            with torch.no_grad():
                for p, old, unit, move in zip(chosen, before, c, z, strict=True):
                    p.copy_(old + unit * move)
            value = loss(x[rows], y[rows]).mean()
            values.append(value.item())
            if step == 8:
                break
            slopes = torch.autograd.grad(value, [*chosen, *rest])
            g = [unit * s for unit, s in zip(c, slopes, strict=False)]
            whole = torch.cat([t.flatten() for t in (*g, *slopes[2:])]).norm()
            z = [move + 0.2 * 0.3 * t / whole for move, t in zip(z, g, strict=True)]
            size = torch.cat([t.flatten() for t in z]).norm()
            z = [t * min(1.0, 0.3 / size.item()) for t in z]
        with torch.no_grad():
            for p, old in zip(chosen, before, strict=True):
                p.copy_(old)
        rises.append(max(values) - values[0])
    assert found.value == pytest.approx(sum(rises) / 3, rel=1e-9)


def test_only_the_given_parameters_move() -> None:
    module, batch, loss = network()
    whole = worst_case(loss, list(module.parameters()), batch, rho=0.3, m=1)
    last = worst_case(loss, list(module[2].parameters()), batch, rho=0.3, m=1)
    loop = worst_case(loss, list(module[2].parameters()), batch, rho=0.3, m=1, engine="loop")
    assert 0 < last.value < whole.value
    assert last.value == pytest.approx(loop.value, rel=1e-10)


def test_the_suboptimality_factor_is_many_steps_over_one() -> None:
    module, batch, loss = network()
    params = list(module.parameters())
    found = suboptimality(loss, params, batch, rho=0.5, m=3, search=LONG)
    many = worst_case(loss, params, batch, rho=0.5, m=3, search=LONG)
    one = one_step_sharpness(loss, params, batch, rho=0.5, m=3)
    assert found.value == pytest.approx(many.value / one.value)
    assert found.value >= 1.0
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, 3, 3) for _ in range(4000)]
    ratios = [many.groups[d].mean() / one.groups[d].mean() for d in draws]
    assert found.stderr == pytest.approx(np.std(ratios) * math.sqrt(3 / 2), rel=0.3)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_nothing_is_left_behind(engine) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    x, y = torch.randn(8, 4, dtype=DOUBLE), torch.arange(8) % 3
    before = {name: t.clone() for name, t in module.state_dict().items()}
    state = torch.get_rng_state()
    calls = 0

    def loss(x, y):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise RuntimeError("stop")
        return F.cross_entropy(module(x), y, reduction="none")

    options = {"rho": 0.3, "m": 4, "restarts": 2, "engine": engine, "module": module}
    with pytest.raises(RuntimeError, match="stop"):
        worst_case(loss, list(module.parameters()), (x, y), **options)
    calls = 10
    worst_case(loss, list(module.parameters()), (x, y), **options)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in module.parameters())
    assert module.training


def test_what_has_no_batched_form_is_climbed_by_the_loop_with_a_warning() -> None:
    torch.manual_seed(0)
    rnn = nn.GRU(3, 4, batch_first=True).double()
    x = torch.randn(4, 5, 3, dtype=DOUBLE)

    def loss(x):
        return rnn(x)[0].square().mean((1, 2))

    params = list(rnn.parameters())
    with pytest.warns(UserWarning, match="one after the other because of"):
        found = worst_case(loss, params, (x,), rho=0.1, m=1, max_memory=10**9)
    assert found.value == worst_case(loss, params, (x,), rho=0.1, m=1, engine="loop").value
    with pytest.raises(RuntimeError, match="engine='batched' must be able"):
        worst_case(loss, params, (x,), rho=0.1, m=1, engine="batched")


def test_a_row_says_all_that_was_decided_and_progress_reaches_its_end() -> None:
    module, batch, loss = network()
    shares = []
    rows = worst_case_grid(
        loss,
        list(module.parameters()),
        batch,
        rho=[0.1, 0.2],
        m=[1, 4],
        search=AutoPGD(steps=3),
        on_progress=shares.append,
    )
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    row = rows[1].row()
    assert json.loads(json.dumps(row)) == row
    wanted = {
        "measure": "worst case",
        "rho": 0.2,
        "m": 1,
        "norm": "l2",
        "scaling": "plain",
        "search": "auto-PGD",
        "steps": 3,
        "restarts": 1,
        "seed": 0,
        "dtype": "float64",
        "examples": 9,
        "transfer": False,
    }
    assert wanted.items() <= row.items()
    assert "error_rise" in row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, "rho must be positive and finite, got 0.0."),
        ({"rho": math.nan}, "rho must be positive and finite, got nan."),
        ({"m": 0}, "m must be a positive whole number, got 0."),
        ({"norm": "l1"}, "norm must be one of l2, linf, got 'l1'"),
        ({"scaling": "x"}, "scaling must be one of plain, element, filter, shifted, got 'x'"),
        ({"restarts": 0}, "restarts must be a positive whole number, got 0."),
        ({"engine": "fast"}, "engine must be one of"),
        ({"max_memory": 0}, "max_memory must be a positive number of bytes"),
        ({"beside": [torch.zeros(1, requires_grad=True)]}, "beside needs a projected ascent along 'whole'"),
        (
            {"norm": "linf", "search": ProjectedAscent(direction="whole")},
            "direction 'whole' is of an l2 norm, got norm 'linf'.",
        ),
        ({"m": 2, "transfer": True}, "transfer needs two or more groups of the same size, got 5 of"),
        ({"transfer": True}, "transfer needs two or more groups of the same size, got 1 of"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_wrong_options_are_refused(options, message) -> None:
    module, batch, loss = network()
    with pytest.raises(ValueError, match=message):
        worst_case(loss, list(module.parameters()), batch, **{"rho": 0.1, **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProjectedAscent(steps=0), "steps must be a positive whole number, got 0."),
        (lambda: ProjectedAscent(step_size=0.0), "step_size must be positive and finite, got 0.0."),
        (
            lambda: ProjectedAscent(direction="up"),
            "direction must be one of normalized, raw, whole, got 'up'",
        ),
        (lambda: ProjectedAscent(schedule="x"), "schedule must be one of constant, quarters, got 'x'"),
        (lambda: AutoPGD(steps=-1), "steps must be a positive whole number, got -1."),
        (lambda: AutoPGD(momentum=0.0), r"momentum must be in \(0, 1\], got 0.0."),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_wrong_searches_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def auto_pgd_written_out(value_and_slope, size, *, rho, steps, norm):
    """Croce & Hein (2020), algorithm 1, on one vector; momentum begins anew at a best point gone back to."""

    def inside(z):
        if norm == "linf":
            return np.clip(z, -rho, rho)
        return z * min(1.0, rho / max(np.linalg.norm(z), 1e-300))

    def ahead(z, g, eta):
        return inside(z + eta * (np.sign(g) if norm == "linf" else g / np.linalg.norm(g)))

    checkpoints, p, gap = set(), 0.0, 0.22
    while p < 1:
        p, gap = p + gap, max(gap - 0.03, 0.06)
        checkpoints.add(math.ceil(p * steps))
    eta, z = 2 * rho, np.zeros(size)
    f, g = value_and_slope(z)
    first = top = f
    top_z, top_g = z, g
    z, before, last = ahead(z, g, eta), z, f
    ups = count = halvings = 0
    eta_then, top_then = None, top
    for k in range(1, steps):
        f, g = value_and_slope(z)
        if f > top:
            top, top_z, top_g = f, z, g
        ups, count, last = ups + (f > last), count + 1, f
        if k in checkpoints:
            if ups < 0.75 * count or (eta_then == eta and top_then == top):
                eta, z, g, before, last = eta / 2, top_z, top_g, top_z, top
                halvings, eta_then = halvings + 1, None
            else:
                eta_then = eta
            ups, count, top_then = 0, 0, top
        step = ahead(z, g, eta)
        z, before = inside(z + 0.75 * (step - z) + 0.25 * (z - before)), z
    return max(top, value_and_slope(z)[0]) - first, halvings


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("rho", [1.0, 3.0])
def test_auto_pgd_is_its_algorithm(norm, rho) -> None:
    torch.manual_seed(4)
    u, v = (torch.randn(n, dtype=DOUBLE, requires_grad=True) for n in (3, 4))

    def hills(w):
        return (torch.sin(4.0 * w) + 0.3 * w + 0.1 * w[0] * w).sum()

    def value_and_slope(z):
        at = (torch.cat([u, v]).detach() + torch.from_numpy(z)).requires_grad_()
        value = hills(at)
        return value.item(), torch.autograd.grad(value, at)[0].numpy()

    wanted, halvings = auto_pgd_written_out(value_and_slope, 7, rho=rho, steps=40, norm=norm)
    assert halvings > 1
    batch = (torch.ones(2, dtype=DOUBLE),)
    search = AutoPGD(steps=40)
    found = worst_case(
        lambda x: hills(torch.cat([u, v])) * x, [u, v], batch, rho=rho, norm=norm, search=search
    )
    assert found.value == pytest.approx(wanted, rel=1e-9)


def test_a_point_found_for_a_smaller_radius_counts_for_a_larger_one() -> None:
    u, v = (torch.zeros(1, dtype=DOUBLE, requires_grad=True) for _ in range(2))

    def loss(x):  # a step as long as the large radius leads far beyond the top at u = 1/4
        return x * (u - 2.0 * u.square() + 0.0 * v).sum()

    batch, leap = (torch.ones(2, dtype=DOUBLE),), ProjectedAscent(steps=1, step_size=1.0)
    alone = worst_case(loss, [u, v], batch, rho=2.0, search=leap)
    small, large = worst_case_grid(loss, [u, v], batch, rho=[0.25, 2.0], search=leap)
    assert (alone.value, small.value, large.value) == (0.0, 0.125, 0.125)
