"""Lines, planes and curves of weights, against losses that are known in closed form."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland.errors import InputError
from lowland.sharpness import (
    Bezier,
    along_curve,
    at_state,
    barrier,
    distances,
    gradient_direction,
    interpolation,
    plane,
    plane_through,
    random_direction,
    state_of,
    trained_bezier,
)

DOUBLE = torch.float64


class Two(nn.Module):
    """Two parameters and a counter."""

    def __init__(self, u=(1.0, 2.0), v=(3.0,)):
        super().__init__()
        self.u = nn.Parameter(torch.tensor(u, dtype=DOUBLE))
        self.v = nn.Parameter(torch.tensor(v, dtype=DOUBLE))
        self.register_buffer("seen", torch.tensor(7))


def squares(module):
    return {"loss": (module.u.square().sum() + 2 * module.v.square().sum()).item()}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    ).double()


def test_a_module_has_the_state_inside_and_its_own_afterwards_bit_for_bit() -> None:
    module = network()
    params = list(module.parameters())
    before, random = state_of(module), torch.get_rng_state()
    other = {name: t + 1 for name, t in before.items()}

    def fails():
        with at_state(module, other):
            assert all(torch.equal(t, other[name]) for name, t in module.state_dict().items())
            module.eval()
            module[1].train()
            module(torch.randn(5, 2, 3, 3, dtype=DOUBLE))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fails()
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert all(p is q for p, q in zip(params, module.parameters(), strict=True))
    assert all(m.training for m in module.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.requires_grad for p in params)


def test_on_a_line_a_quadratic_is_a_parabola_and_counters_are_the_first_ones() -> None:
    module = Two()
    a, b = state_of(module), {**state_of(Two((0.0, -1.0), (5.0,))), "seen": torch.tensor(9)}
    counters = []

    def evaluate(m):
        counters.append(int(m.seen))
        return squares(m)

    at = [-0.5, 0.0, 0.25, 1.0, 1.5]
    rows = interpolation(module, a, b, at, evaluate)
    for t, row in zip(at, rows, strict=True):
        u, v = np.array([1 - t, 2 - 3 * t]), 3 + 2 * t
        assert row == {"t": t, "loss": pytest.approx((u**2).sum() + 2 * v**2, rel=1e-14)}
    assert counters == [7] * 5
    assert squares(module) == {"loss": 23.0}


def test_statistics_are_prepared_at_every_point_and_gone_afterwards() -> None:
    module = network().eval()
    with torch.no_grad():
        other = {n: t + 0.3 if t.is_floating_point() else t for n, t in state_of(module).items()}
    images = torch.randn(40, 2, 3, 3, dtype=DOUBLE)
    before = state_of(module)

    def prepare(m):
        m.train()
        m[1].momentum = 1.0
        m(images)
        m.eval()

    def evaluate(m):
        out = m[1](m[0](images))
        return {"mean": out.mean().item() - m[1].bias.mean().item()}

    rows = interpolation(module, before, other, [0.0, 0.5, 1.0], evaluate, prepare=prepare)
    assert [abs(row["mean"]) < 1e-12 for row in rows] == [True] * 3
    raw = interpolation(module, before, other, [0.0], evaluate)
    assert abs(raw[0]["mean"]) > 1e-6
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_networks_of_two_kinds_are_refused() -> None:
    with pytest.raises(InputError, match="same weights, but u has shapes"):
        interpolation(Two(), state_of(Two()), state_of(Two((1.0, 2.0, 3.0))), [0.5], squares)


def test_distances_and_norms_with_and_without_normalization() -> None:
    module = network()
    a = state_of(module)
    b = {n: 2 * t if t.is_floating_point() else t for n, t in a.items()}
    b["1.weight"] = b["1.weight"] + 5
    rows = {(r["a"], r["b"], r["parameters"]): r for r in distances(module, {"a": a, "b": b})}
    vectors = {
        which: [
            np.concatenate([s[n].numpy().ravel() for n, _ in module.named_parameters() if keep(n)])
            for s in (a, b)
        ]
        for which, keep in {
            "all": bool,
            "without normalization": lambda n: not n.startswith("1."),
        }.items()
    }
    for which, (u, v) in vectors.items():
        row = rows["a", "b", which]
        assert row["distance"] == pytest.approx(np.linalg.norm(u - v))
        assert row["cosine"] == pytest.approx(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
        assert row["relative"] == pytest.approx(
            np.linalg.norm(u - v) / math.sqrt(np.linalg.norm(u) * np.linalg.norm(v))
        )
        assert rows["b", None, which]["norm_a"] == pytest.approx(np.linalg.norm(v))
    assert rows["a", "b", "without normalization"]["cosine"] == pytest.approx(1.0)
    assert {r["parameters"] for r in distances(Two(), {"a": state_of(Two())})} == {"all"}


def test_random_directions_have_the_lengths_of_the_filters_and_leave_the_rest() -> None:
    module = network()
    first, again = random_direction(module, seed=1), random_direction(module, seed=1)
    other = random_direction(module, seed=2)
    for name, p in module.named_parameters():
        assert torch.equal(first[name], again[name])
        if p.dim() == 1:
            assert not first[name].any()
            continue
        torch.testing.assert_close(first[name].flatten(1).norm(dim=1), p.flatten(1).norm(dim=1))
        assert not torch.allclose(first[name], other[name])


def test_over_a_plane_the_loss_is_that_of_the_moved_weights() -> None:
    module = Two()
    d = {"u": torch.tensor([1.0, 0.0], dtype=DOUBLE), "v": torch.tensor([2.0], dtype=DOUBLE)}
    e = {"u": torch.tensor([0.0, -1.0], dtype=DOUBLE), "v": torch.zeros(1, dtype=DOUBLE)}
    rows = plane(module, [d, e], [[0.0, 0.5], [-1.0, 0.0, 2.0]], squares)
    assert [(r["x"], r["y"]) for r in rows] == [(x, y) for y in (-1.0, 0.0, 2.0) for x in (0.0, 0.5)]
    for r in rows:
        wanted = (1 + r["x"]) ** 2 + (2 - r["y"]) ** 2 + 2 * (3 + 2 * r["x"]) ** 2
        assert r["loss"] == pytest.approx(wanted, rel=1e-14)
    line = plane(module, [d], [[0.5]], squares)
    assert line == [{"x": 0.5, "loss": pytest.approx(1.5**2 + 4 + 2 * 16)}]
    with pytest.raises(InputError, match="one or two directions with coordinates for each are needed"):
        plane(module, [d, e], [[0.0]], squares)


def test_a_plane_through_three_networks_contains_them() -> None:
    a, b, c = (state_of(Two(u, v)) for u, v in (((1, 2), (3,)), ((4, 2), (7,)), ((0, 1), (0,))))
    (first, second), places = plane_through(["u", "v"], a, b, c)
    flat = [torch.cat([d["u"], d["v"]]) for d in (first, second)]
    gram = torch.stack(flat) @ torch.stack(flat).t()
    torch.testing.assert_close(gram, torch.eye(2, dtype=DOUBLE))
    for state, (x, y) in zip((a, b, c), places, strict=True):
        moved = torch.cat([a["u"], a["v"]]).double() + x * flat[0] + y * flat[1]
        torch.testing.assert_close(moved, torch.cat([state["u"], state["v"]]).double())
    middle = {n: 0.5 * (a[n] + b[n]) if n != "seen" else a[n] for n in a}
    with pytest.raises(InputError, match="not on a line, got three on one"):
        plane_through(["u", "v"], a, b, middle)
    with pytest.raises(InputError, match="got two that are the same"):
        plane_through(["u", "v"], a, a, c)


def test_sams_direction_is_the_gradient_over_its_norm() -> None:
    module = network()
    x, y = torch.randn(6, 2, 3, 3, dtype=DOUBLE), torch.arange(6) % 4
    module.eval()

    def loss(x, y):
        return F.cross_entropy(module(x), y, reduction="none")

    params = dict(module.named_parameters())
    found = gradient_direction(loss, params, (x, y))
    g = torch.autograd.grad(loss(x, y).mean(), list(params.values()))
    norm = math.sqrt(sum(float(t.square().sum()) for t in g))
    for t, d in zip(g, found.values(), strict=True):
        torch.testing.assert_close(d, t / norm)
    w = nn.Parameter(torch.zeros(2, dtype=DOUBLE))
    v = nn.Parameter(torch.zeros(1, dtype=DOUBLE))
    with pytest.raises(InputError, match=r"finite and not zero, got norm 0.0."):
        gradient_direction(
            lambda x: x * (w.square().sum() + v.sum() ** 2), {"w": w, "v": v}, (torch.ones(1),)
        )


def ring(module):
    """Lowest where |(u, v)| = 1."""
    return (module.u.square().sum() + module.v.square().sum() - 1.0) ** 2


def test_a_trained_curve_goes_round_what_the_line_crosses() -> None:
    module = Two((0.1,), (0.1,))
    a, b = state_of(Two((1.0,), (0.0,))), state_of(Two((-1.0,), (0.01,)))
    before = state_of(module)
    at = np.linspace(0, 1, 21).tolist()

    def evaluate(m):
        return {"loss": ring(m).item()}

    curve = trained_bezier(module, a, b, lambda _: ring(module), [(0,)], steps=800, lr=0.05)
    straight, bent = interpolation(module, a, b, at, evaluate), along_curve(module, curve, at, evaluate)
    assert barrier(straight, "loss") == pytest.approx(1.0, abs=1e-3)
    assert barrier(bent, "loss") < 0.2
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    for end, t in ((a, 0.0), (b, 1.0)):
        assert all(torch.allclose(end[n].double(), curve.at(t)[n].double()) for n in end)


def test_one_step_of_the_curve_follows_the_gradient_with_respect_to_its_control_point() -> None:
    module = Two((0.1,), (0.1,))
    a, b = state_of(Two((1.0,), (0.5,))), state_of(Two((-1.0,), (0.2,)))
    t = torch.rand((), generator=torch.Generator().manual_seed(3), dtype=DOUBLE).item()

    def value(u, v):
        with at_state(module, Bezier(a, {**a, "u": torch.tensor([u]), "v": torch.tensor([v])}, b).at(t)):
            return ring(module).item()

    h = 1e-5
    wanted = [
        (value(h, 0.35) - value(-h, 0.35)) / (2 * h),
        (value(0.0, 0.35 + h) - value(0.0, 0.35 - h)) / (2 * h),
    ]
    moved = trained_bezier(
        module, a, b, lambda _: ring(module), [(0,)], steps=1, lr=0.1, momentum=0.0, seed=3
    )
    assert moved.control["u"].item() == pytest.approx(-0.1 * wanted[0], rel=1e-4)
    assert moved.control["v"].item() == pytest.approx(0.35 - 0.1 * wanted[1], rel=1e-4)


def test_wrong_curves_and_paths_are_refused() -> None:
    a = state_of(Two())
    with pytest.raises(InputError, match="steps and lr must be positive"):
        trained_bezier(Two(), a, a, ring, [(0,)], steps=0)
    with pytest.raises(InputError, match="at least one batch, got none"):
        trained_bezier(Two(), a, a, ring, [], steps=1)
    with pytest.raises(InputError, match=r"must go from 0 to 1, got \[0.5\]"):
        barrier([{"t": 0.5, "loss": 1.0}], "loss")


def test_a_barrier_is_measured_from_the_line_between_the_ends() -> None:
    rows = [{"t": t, "loss": y} for t, y in ((-1.0, 99.0), (0.0, 1.0), (0.5, 4.0), (1.0, 3.0))]
    assert barrier(rows, "loss") == 2.0
