"""The m-SAM gradient against closed forms, a naive m-SAM and its own algebra."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland import L2, ClippedUnnormalized, Unnormalized, sam_gradient
from lowland.sam import Diagnostics, l2_norm

from .naive import (
    bn_conv,
    identity,
    mlp,
    naive_sam,
    norm,
    regression,
    relative_error,
    rows,
    squared,
    squared_per_example,
    tensors,
)

ASCENTS = {"l2": L2(), "unnormalized": Unnormalized(), "clipped": ClippedUnnormalized()}
modest = settings(max_examples=12, deadline=None)


def sam_of(module, loss, batch, /, **options):
    """sam_gradient for a loss that takes the module."""
    return sam_gradient(functools.partial(loss, module), list(module.parameters()), batch, **options)


def least_squares(seed=0, examples=6):
    """Design matrix, targets and the two weights of 1/2 mean (x_1 u + x_2 v - y)^2."""
    x, y, u, v = tensors(seed, (examples, 5), (examples,), (2,), (3,))
    return x, y, torch.nn.Parameter(u), torch.nn.Parameter(v)


def half_mean_square(u, v, x, y):
    return 0.5 * (x @ torch.cat([u, v]) - y).square().mean()


def test_gradient_of_least_squares_is_the_closed_form():
    x, y, u, v = least_squares()
    found = sam_gradient(functools.partial(half_mean_square, u, v), [u, v], (x, y), rho=0.3).gradients
    A, b, w = x.T @ x / 6, x.T @ y / 6, torch.cat([u, v]).detach()
    g = A @ w - b
    expected = A @ (w + 0.3 * g / g.norm()) - b
    assert relative_error([torch.cat(found)], [expected]) < 1e-14
    assert relative_error([expected], [g]) > 0.01


def test_gradient_of_groups_of_least_squares_is_the_weighted_closed_form():
    x, y, u, v = least_squares(examples=7)
    found = sam_gradient(functools.partial(half_mean_square, u, v), [u, v], (x, y), rho=0.3, m=3).gradients
    w, expected = torch.cat([u, v]).detach(), torch.zeros(5, dtype=torch.float64)
    for s in (slice(0, 3), slice(3, 6), slice(6, 7)):
        n = len(y[s])
        A, b = x[s].T @ x[s] / n, x[s].T @ y[s] / n
        g = A @ w - b
        expected += n / 7 * (A @ (w + 0.3 * g / g.norm()) - b)
    assert relative_error([torch.cat(found)], [expected]) < 1e-14


def test_l2_of_least_squares_is_inside_the_climb():
    x, y, u, v = least_squares()
    found = sam_gradient(functools.partial(half_mean_square, u, v), [u, v], (x, y), rho=0.3, l2=0.7)
    A, b, w = x.T @ x / 6 + 0.7 * torch.eye(5, dtype=torch.float64), x.T @ y / 6, torch.cat([u, v]).detach()
    g = A @ w - b
    assert relative_error([torch.cat(found.gradients)], [A @ (w + 0.3 * g / g.norm()) - b]) < 1e-14


def test_three_projected_steps_on_a_quadratic_are_the_recursion_by_hand():
    x, y, u, v = least_squares()
    found = sam_gradient(
        functools.partial(half_mean_square, u, v), [u, v], (x, y), rho=0.5, steps=3, step_size=0.5
    )
    A, b, w = x.T @ x / 6, x.T @ y / 6, torch.cat([u, v]).detach()
    e = torch.zeros_like(w)
    for _ in range(3):
        g = A @ (w + e) - b
        e = e + 0.25 * g / g.norm()
        e = e * min(1.0, 0.5 / e.norm().item())
    assert relative_error([torch.cat(found.gradients)], [A @ (w + e) - b]) < 1e-14


@pytest.mark.parametrize("m", [1, 3, 7, None])
@pytest.mark.parametrize(("steps", "step_size"), [(1, 1.0), (1, 0.5), (3, 1.0), (3, 0.5)])
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("ascent", ASCENTS)
def test_gradient_is_that_of_the_naive_loop(m, steps, step_size, l2, ascent):
    module, batch = mlp(), regression()
    options = {"rho": 0.4, "m": m, "steps": steps, "step_size": step_size, "l2": l2}
    expected = naive_sam(module, squared, batch, ascent=ascent, **options)
    result = sam_of(module, squared, batch, ascent=ASCENTS[ascent], **options)
    assert relative_error(result.gradients, expected.gradients) < 1e-12
    assert result.loss.item() == pytest.approx(expected.loss, rel=1e-13)
    assert relative_error(expected.gradients, expected.at_weights) > 1e-3


@pytest.mark.parametrize("m", [1, 3, 8])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("ascent", ASCENTS)
def test_gradient_through_batch_norm_is_that_of_the_naive_loop(m, steps, ascent):
    module, batch = bn_conv(), tuple(tensors(2, (8, 2, 5, 5), (8, 2, 2, 2)))
    options = {"rho": 0.2, "m": m, "steps": steps, "l2": 0.1}
    expected = naive_sam(module, squared, batch, ascent=ascent, **options)
    result = sam_of(module, squared, batch, ascent=ASCENTS[ascent], module=module, **options)
    assert relative_error(result.gradients, expected.gradients) < 1e-12


@pytest.mark.parametrize("m", [1, 3, None])
def test_losses_per_example_are_averaged_over_their_group(m):
    module, batch = mlp(), regression()
    expected = naive_sam(module, squared_per_example, batch, rho=0.4, m=m)
    result = sam_of(module, squared_per_example, batch, rho=0.4, m=m)
    assert relative_error(result.gradients, expected.gradients) < 1e-12
    assert result.loss.shape == ()
    assert result.loss.item() == pytest.approx(expected.loss, rel=1e-13)


@pytest.mark.parametrize("m", [1, 3, None])
@pytest.mark.parametrize(("steps", "step_size"), [(1, 1.0), (3, 0.5)])
def test_climb_on_another_batch_is_that_of_the_naive_loop(m, steps, step_size):
    module, batch, previous = mlp(), regression(1), regression(2)
    options = {"rho": 0.4, "m": m, "steps": steps, "step_size": step_size, "l2": 0.1}
    expected = naive_sam(module, squared, batch, ascent_batch=previous, **options)
    result = sam_of(module, squared, batch, ascent_batch=previous, **options)
    assert relative_error(result.gradients, expected.gradients) < 1e-12
    assert result.loss.item() == pytest.approx(expected.loss, rel=1e-13)
    same_batch = sam_of(module, squared, batch, **options)
    assert relative_error(result.gradients, same_batch.gradients) > 1e-3


def test_climb_on_the_same_batch_given_as_another_is_plain_sam():
    module, batch = mlp(), regression()
    result = sam_of(module, squared, batch, rho=0.4, m=3, ascent_batch=batch)
    assert relative_error(result.gradients, sam_of(module, squared, batch, rho=0.4, m=3).gradients) < 1e-14


@modest
@given(st.integers(1, 9), st.integers(0, 99), st.sampled_from(sorted(ASCENTS)), st.sampled_from([0.0, 0.5]))
def test_radius_zero_is_exactly_the_gradient(m, seed, ascent, l2):
    module, batch = mlp(seed), regression(seed + 1)
    result = sam_of(module, squared, batch, rho=0.0, m=m, steps=2, ascent=ASCENTS[ascent], l2=l2)
    params = list(module.parameters())
    expected = [torch.zeros_like(p) for p in params]
    for start in range(0, 7, m):
        group = rows(batch, start, start + m)
        found = torch.autograd.grad(squared(module, *group), params)
        expected = [
            a + len(group[0]) / 7 * (g + l2 * p.detach())
            for a, g, p in zip(expected, found, params, strict=True)
        ]
    if m >= 7 and l2 == 0:
        assert all(torch.equal(a, b) for a, b in zip(result.gradients, expected, strict=True))
    assert relative_error(result.gradients, expected) < 1e-14


@modest
@given(st.integers(7, 10**9), st.integers(0, 99))
def test_m_of_the_batch_and_above_is_sam_exactly(m, seed):
    module, batch = mlp(seed), regression(seed + 1)
    sam = sam_of(module, squared, batch, rho=0.3)
    capped = sam_of(module, squared, batch, rho=0.3, m=m)
    assert all(torch.equal(a, b) for a, b in zip(sam.gradients, capped.gradients, strict=True))


@modest
@given(st.integers(0, 99), st.floats(1e-3, 3.0))
def test_one_example_groups_are_the_mean_of_sam_gradients_of_examples(seed, rho):
    module, batch = mlp(seed), regression(seed + 1)
    alone = [sam_of(module, squared, rows(batch, i, i + 1), rho=rho).gradients for i in range(7)]
    mean = [torch.stack(column).mean(0) for column in zip(*alone, strict=True)]
    assert relative_error(sam_of(module, squared, batch, rho=rho, m=1).gradients, mean) < 1e-13


@modest
@given(st.floats(1e-6, 1e6), st.integers(1, 7), st.integers(0, 99))
def test_factor_on_the_loss_leaves_a_normalized_climb_alone(c, m, seed):
    module, batch = mlp(seed), regression(seed + 1)
    once = sam_of(module, squared, batch, rho=0.3, m=m)
    times_c = sam_of(module, lambda *args: c * squared(*args), batch, rho=0.3, m=m)
    assert relative_error([g / c for g in times_c.gradients], once.gradients) < 1e-12


@modest
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_identical_groups_are_plain_sam_of_one(m, copies, seed):
    module, group = mlp(seed), regression(seed + 1, examples=m)
    repeated = tuple(t.repeat(copies, 1) for t in group)
    expected = sam_of(module, squared, group, rho=0.3).gradients
    assert relative_error(sam_of(module, squared, repeated, rho=0.3, m=m).gradients, expected) < 1e-13


@modest
@given(st.integers(1, 3), st.integers(0, 2), st.integers(0, 99))
def test_other_groups_do_not_feel_a_change_of_one(m, changed, seed):
    module, batch = mlp(seed), regression(seed + 1, examples=3 * m)
    other = tuple(t.clone() for t in batch)
    other[0][changed * m : (changed + 1) * m] += 1.0
    before = sam_of(module, squared, batch, rho=0.3, m=m, diagnostics=True)
    after = sam_of(module, squared, other, rho=0.3, m=m, diagnostics=True)
    rest = [i for i in range(3) if i != changed]
    for name in ("loss", "perturbed_loss", "gradient_norm", "perturbation_norm"):
        a, b = getattr(before.diagnostics, name), getattr(after.diagnostics, name)
        assert torch.equal(a[rest], b[rest]), name
    assert before.diagnostics.loss[changed] != after.diagnostics.loss[changed]
    share = [
        [
            a - b / 3
            for a, b in zip(
                r.gradients,
                sam_of(module, squared, rows(data, changed * m, changed * m + m), rho=0.3).gradients,
                strict=True,
            )
        ]
        for r, data in ((before, batch), (after, other))
    ]
    assert norm([a - b for a, b in zip(*share, strict=True)]) < 1e-13 * norm(before.gradients)


@modest
@given(st.floats(1e-4, 10.0), st.integers(1, 7), st.integers(1, 3), st.integers(0, 99))
def test_realised_perturbation_has_length_rho_over_all_tensors_together(rho, m, steps, seed):
    module, batch = mlp(seed), regression(seed + 1)
    start = [p.detach().clone() for p in module.parameters()]
    lengths = []

    def spy(x, y):
        lengths.append(norm([p.detach() - s for p, s in zip(module.parameters(), start, strict=True)]))
        return squared(module, x, y)

    result = sam_gradient(
        spy,
        list(module.parameters()),
        batch,
        rho=rho,
        m=m,
        steps=steps,
        step_size=1.0,
        engine="loop",
        diagnostics=True,
    )
    passes = steps + 1
    assert lengths[::passes] == [0.0] * len(lengths[::passes])
    assert lengths[1::passes] == pytest.approx([rho] * len(lengths[1::passes]), rel=1e-11)
    assert max(lengths) <= rho * (1 + 1e-11)
    norms = result.diagnostics.perturbation_norm
    assert norms.tolist() == pytest.approx(lengths[passes - 1 :: passes], rel=1e-10)


def test_last_smaller_group_is_weighted_by_its_size():
    w, c = (
        torch.nn.Parameter(torch.ones(2, dtype=torch.float64)),
        torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)),
    )
    x = torch.tensor([[1.0], [1.0], [1.0], [1.0], [6.0]], dtype=torch.float64)
    result = sam_gradient(lambda x: ((w.sum() + c) * x).mean(), [w, c], (x,), rho=0.1, m=2)
    assert torch.cat(result.gradients).tolist() == pytest.approx([2.0, 2.0, 2.0], rel=1e-14)


def test_diagnostics_are_those_of_the_naive_loop():
    module, batch = mlp(), regression()
    expected = naive_sam(module, squared, batch, rho=0.4, m=3, l2=0.2)
    found = sam_of(module, squared, batch, rho=0.4, m=3, l2=0.2, scale=8.0, diagnostics=True).diagnostics
    assert found.group_size.tolist() == [3, 3, 1]
    assert found.loss.tolist() == pytest.approx(expected.losses, rel=1e-13)
    assert found.perturbed_loss.tolist() == pytest.approx(expected.perturbed_losses, rel=1e-13)
    assert found.gradient_norm.tolist() == pytest.approx(expected.gradient_norms, rel=1e-13)
    assert found.perturbation_norm.tolist() == pytest.approx([0.4, 0.4, 0.4], rel=1e-13)
    assert found.climbed.tolist() == [True, True, True]
    rises = [b - a for a, b in zip(expected.losses, expected.perturbed_losses, strict=True)]
    assert found.sharpness.item() == pytest.approx((3 * rises[0] + 3 * rises[1] + rises[2]) / 7, rel=1e-12)


@pytest.mark.parametrize("ascent", ["unnormalized", "clipped"])
def test_perturbation_norms_of_other_ascents_are_those_of_the_naive_loop(ascent):
    module, batch = mlp(), regression()
    options = {"rho": 0.4, "m": 3, "steps": 2}
    expected = naive_sam(module, squared, batch, ascent=ascent, **options)
    found = sam_of(module, squared, batch, ascent=ASCENTS[ascent], diagnostics=True, **options).diagnostics
    assert found.perturbation_norm.tolist() == pytest.approx(
        [norm(e) for e in expected.perturbations], rel=1e-12
    )


def test_diagnostics_of_a_climb_on_another_batch_are_of_both():
    module, batch, previous = mlp(), regression(1), regression(2)
    expected = naive_sam(module, squared, batch, rho=0.4, m=3, ascent_batch=previous)
    found = sam_of(module, squared, batch, rho=0.4, m=3, ascent_batch=previous, diagnostics=True).diagnostics
    assert found.loss.tolist() == pytest.approx(expected.losses, rel=1e-13)
    assert found.perturbed_loss.tolist() == pytest.approx(expected.perturbed_losses, rel=1e-13)
    assert found.gradient_norm.tolist() == pytest.approx(expected.gradient_norms, rel=1e-13)


def test_diagnostics_are_absent_unless_asked_for():
    module, batch = mlp(), regression()
    assert sam_of(module, squared, batch, rho=0.1).diagnostics is None
    assert isinstance(sam_of(module, squared, batch, rho=0.1, diagnostics=True).diagnostics, Diagnostics)


def test_number_of_passes_is_two_per_group_and_one_per_further_step():
    module, batch, calls = mlp(), regression(), []

    def counted(x, y):
        calls.append(len(x))
        return squared(module, x, y)

    params = list(module.parameters())
    sam_gradient(counted, params, batch, rho=0.1, m=3)
    assert calls == [3, 3, 3, 3, 1, 1]
    calls.clear()
    sam_gradient(counted, params, batch, rho=0.1, steps=3)
    assert calls == [7] * 4
    calls.clear()
    sam_gradient(counted, params, batch, rho=0.0, m=4)
    assert calls == [4, 3]


def test_scale_multiplies_the_gradient_and_neither_climb_nor_loss():
    module, batch = mlp(), regression()
    for name, ascent in ASCENTS.items():
        options = {"rho": 0.4, "m": 3, "l2": 0.2, "steps": 2, "ascent": ascent, "diagnostics": True}
        once = sam_of(module, squared, batch, **options)
        scaled = sam_of(module, squared, batch, scale=1000.0, **options)
        assert relative_error([g / 1000.0 for g in scaled.gradients], once.gradients) < 1e-13, name
        assert scaled.loss == once.loss
        assert torch.allclose(scaled.diagnostics.perturbation_norm, once.diagnostics.perturbation_norm)


def test_parameters_used_by_no_group_have_no_gradient():
    module, idle, batch = mlp(), torch.nn.Parameter(torch.ones(3, dtype=torch.float64)), regression()
    result = sam_gradient(
        functools.partial(squared, module), [idle, *module.parameters()], batch, rho=0.4, m=3
    )
    assert result.gradients[0] is None
    expected = naive_sam(module, squared, batch, rho=0.4, m=3).gradients
    assert relative_error(result.gradients[1:], expected) < 1e-12


def test_unused_parameters_do_have_a_gradient_of_l2():
    module, idle, batch = mlp(), torch.nn.Parameter(torch.ones(3, dtype=torch.float64)), regression()
    params = [idle, *module.parameters()]
    result = sam_gradient(functools.partial(squared, module), params, batch, rho=0.4, l2=0.5)
    g = [torch.zeros(3, dtype=torch.float64), *torch.autograd.grad(squared(module, *batch), params[1:])]
    g = [a + 0.5 * p.detach() for a, p in zip(g, params, strict=True)]
    assert torch.allclose(result.gradients[0], 0.5 * (1.0 + 0.4 * g[0] / norm(g)), rtol=1e-14)


@pytest.mark.parametrize(("using", "share"), [(0, 2 / 3), (2, 1 / 3)])
def test_parameter_used_by_one_group_only_has_that_groups_share(using, share):
    a, b = (torch.nn.Parameter(t) for t in tensors(3, (2,), (2,)))
    x = torch.zeros(3, dtype=torch.float64)
    x[using] = 1.0

    def loss(x):
        value = (a**2).sum()
        return value + (b**2).sum() if x.sum() > 0 else value

    found = sam_gradient(loss, [a, b], (x,), rho=0.1, m=2).gradients
    g = 2 * torch.cat([a, b]).detach()
    assert relative_error([found[1]], [share * 2 * (b.detach() + 0.1 * g[2:] / g.norm())]) < 1e-14


def test_parameters_of_the_first_pass_only_are_put_back_and_get_no_second_gradient():
    a, b = (torch.nn.Parameter(t) for t in tensors(3, (2,), (2,)))
    before, calls = identity([a, b]), []

    def layer_drop(x):
        calls.append(None)
        used = a if len(calls) == 2 else torch.cat([a, b])
        return (used**2).sum() + 0.0 * x.sum()

    found = sam_gradient(layer_drop, [a, b], (torch.zeros(2),), rho=0.5).gradients
    assert identity([a, b]) == before
    assert found[1] is None or not found[1].any()
    g = 2 * torch.cat([a, b]).detach()
    assert relative_error([found[0]], [2 * (a.detach() + 0.5 * g[:2] / g.norm())]) < 1e-14


def test_parameters_of_the_second_pass_only_get_its_gradient():
    a, b = (torch.nn.Parameter(t) for t in tensors(3, (2,), (2,)))
    before, calls = identity([a, b]), []

    def layer_drop(x):
        calls.append(None)
        used = a if len(calls) == 1 else torch.cat([a, b])
        return (used**2).sum() + 0.0 * x.sum()

    found = sam_gradient(layer_drop, [a, b], (torch.zeros(2),), rho=0.5).gradients
    assert identity([a, b]) == before
    assert relative_error([found[1]], [2 * b.detach()]) < 1e-14


def test_aux_is_of_the_unperturbed_pass_and_joined_over_groups_in_order():
    module, (x, y) = mlp(), regression()

    def loss(x, y):
        out = module(x)
        return (out - y).square().mean(), {"out": out, "pair": (out.mean(), [x]), "none": None}

    aux = sam_gradient(loss, list(module.parameters()), (x, y), rho=0.4, m=3).aux
    with torch.no_grad():
        out = module(x)
    assert torch.allclose(aux["out"], out, rtol=1e-14, atol=1e-14)
    assert not aux["out"].requires_grad
    means = torch.stack([out[:3].mean(), out[3:6].mean(), out[6:].mean()])
    assert torch.allclose(aux["pair"][0], means, rtol=1e-13)
    assert torch.equal(aux["pair"][1][0], x)
    assert aux["none"] is None


def test_aux_of_a_climb_on_another_batch_is_of_the_batch():
    module, (x, y), previous = mlp(), regression(1), regression(2)

    def loss(x, y):
        return (module(x) - y).square().mean(), x

    aux = sam_gradient(loss, list(module.parameters()), (x, y), rho=0.4, m=3, ascent_batch=previous).aux
    assert torch.equal(aux, x)


def test_runs_inside_no_grad():
    module, batch = mlp(), regression()
    with torch.no_grad():
        result = sam_of(module, squared, batch, rho=0.4, m=3)
    assert relative_error(result.gradients, naive_sam(module, squared, batch, rho=0.4, m=3).gradients) < 1e-12


def test_results_need_no_gradient():
    module, batch = mlp(), regression()
    result = sam_of(module, squared, batch, rho=0.4, m=3, l2=0.1)
    assert not result.loss.requires_grad
    assert not any(g.requires_grad for g in result.gradients)


def test_group_that_shares_one_gradient_tensor_between_parameters_is_right():
    a, b = (torch.nn.Parameter(t) for t in tensors(3, (3,), (3,)))
    found = sam_gradient(lambda x: (a + b).sum() * x.mean(), [a, b], (torch.ones(2),), rho=0.1, l2=0.5)
    w = torch.cat([a, b]).detach()
    g = 1 + 0.5 * w
    assert relative_error([torch.cat(found.gradients)], [1 + 0.5 * (w + 0.1 * g / g.norm())]) < 1e-14


def test_float32_parameters_of_two_dtypes_move_by_one_norm():
    a = torch.nn.Parameter(torch.tensor([3.0]))
    b = torch.nn.Parameter(torch.tensor([4.0], dtype=torch.bfloat16))
    found = sam_gradient(
        lambda x: 0.5 * (a.square().sum() + b.float().square().sum()) + 0 * x.sum(),
        [a, b],
        (torch.zeros(2),),
        rho=5.0,
    ).gradients
    assert found[0].item() == pytest.approx(6.0, rel=1e-6)
    assert found[1].dtype == torch.bfloat16
    assert found[1].item() == 8.0


def weights():
    return [torch.nn.Parameter(t) for t in tensors(0, (2,), (3,))]


def quadratic(params):
    return lambda x: sum((p**2).sum() for p in params) + 0.0 * x.sum()


X = torch.zeros(4, 2)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -1.0}, r"^rho must be non-negative and finite, got -1\.0\.$"),
        ({"rho": float("nan")}, r"^rho must be non-negative and finite, got nan\.$"),
        ({"rho": float("inf")}, r"^rho must be non-negative and finite, got inf\.$"),
        ({"l2": -0.1}, r"^l2 must be non-negative and finite, got -0\.1\.$"),
        ({"step_size": 0.0}, r"^step_size must be positive and finite, got 0\.0\.$"),
        ({"step_size": float("inf")}, r"^step_size must be positive and finite, got inf\.$"),
        ({"scale": 0.0}, r"^scale must be positive and finite, got 0\.0\.$"),
        ({"scale": float("nan")}, r"^scale must be positive and finite, got nan\.$"),
        ({"m": 0}, r"^m must be a positive whole number, got 0\.$"),
        ({"m": 2.0}, r"^m must be a positive whole number, got 2\.0\.$"),
        ({"m": True}, r"^m must be a positive whole number, got True\.$"),
        ({"steps": 0}, r"^steps must be a positive whole number, got 0\.$"),
        ({"bn_stats": "second"}, r"^bn_stats must be one of \('first', 'both', 'frozen'\), got 'second'\.$"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    params = weights()
    with pytest.raises(ValueError, match=message):
        sam_gradient(quadratic(params), params, (X,), **{"rho": 0.1, **options})


@pytest.mark.usefixtures("untyped")
def test_parameters_that_cannot_be_climbed_are_refused():
    params = weights()
    loss = quadratic(params)
    with pytest.raises(ValueError, match=r"^params must hold at least one tensor .*, got none\.$"):
        sam_gradient(loss, [], (X,), rho=0.1)
    with pytest.raises(TypeError, match=r"^params must be tensors, got str\.$"):
        sam_gradient(loss, [params[0], "weight"], (X,), rho=0.1)
    with pytest.raises(TypeError, match=r"^params must be real floating-point tensors, got torch\.int64\.$"):
        sam_gradient(loss, [torch.zeros(2, dtype=torch.int64)], (X,), rho=0.1)
    with pytest.raises(
        TypeError, match=r"^params must be real floating-point tensors, got torch\.complex64\.$"
    ):
        sam_gradient(loss, [torch.zeros(2, dtype=torch.complex64, requires_grad=True)], (X,), rho=0.1)
    with pytest.raises(ValueError, match=r"got is_leaf=True and requires_grad=False\.$"):
        sam_gradient(loss, [torch.zeros(2)], (X,), rho=0.1)
    with pytest.raises(ValueError, match=r"got is_leaf=False and requires_grad=True\.$"):
        sam_gradient(loss, [params[0] * 2], (X,), rho=0.1)
    with pytest.raises(ValueError, match=r"^params must be different tensors, got one twice\.$"):
        sam_gradient(loss, [*params, params[0]], (X,), rho=0.1)


@pytest.mark.usefixtures("untyped")
def test_batches_of_the_wrong_kind_are_refused():
    params = weights()
    loss = quadratic(params)
    with pytest.raises(
        TypeError, match=r"^batch must be the tuple of the loss's arguments or MicroBatches, got Tensor\.$"
    ):
        sam_gradient(loss, params, X, rho=0.1)
    with pytest.raises(
        TypeError,
        match=r"^ascent_batch must be the tuple of the loss's arguments or MicroBatches, got dict\.$",
    ):
        sam_gradient(loss, params, (X,), rho=0.1, ascent_batch={"x": X})
    with pytest.raises(
        TypeError,
        match=r"^ascent_batch must be the tuple of the loss's arguments or MicroBatches, got Tensor\.$",
    ):
        sam_gradient(loss, params, (X,), rho=0.1, ascent_batch=X)


@pytest.mark.usefixtures("untyped")
def test_losses_of_the_wrong_kind_are_refused():
    params = weights()
    with pytest.raises(TypeError, match=r"^loss must return a tensor or \(tensor, aux\), got float\.$"):
        sam_gradient(lambda _: 1.0, params, (X,), rho=0.1)
    with pytest.raises(TypeError, match=r"^loss must return a tensor or \(tensor, aux\), got tuple\.$"):
        sam_gradient(lambda _: (params[0].sum(), 1, 2), params, (X,), rho=0.1)
    with pytest.raises(
        ValueError,
        match=r"^loss must return a scalar or one value per example, shape \(4,\), got shape \(2,\)\.$",
    ):
        sam_gradient(lambda _: params[0], params, (X,), rho=0.1)
    with pytest.raises(ValueError, match=r"^loss must depend on the params, got a value .* no gradient\.$"):
        sam_gradient(lambda x: x.sum(), params, (X,), rho=0.1)


def test_anything_may_stand_beside_the_loss():
    params = weights()
    aux = sam_gradient(lambda x: (params[0].sum(), {"text": "a", "n": 3, "x": x}), params, (X,), rho=0.1).aux
    assert aux["text"] == ["a"]
    assert aux["n"] == [3]
    assert torch.equal(aux["x"], X)


def test_refusals_leave_the_weights_alone():
    params = weights()
    before = identity(params)
    for loss in (lambda _: params[0], lambda _: 1.0, lambda _: (params[0].sum(), "text", 1)):
        with pytest.raises((TypeError, ValueError)):
            sam_gradient(loss, params, (X,), rho=0.1)
    assert identity(params) == before


def test_gradient_norm_of_unscaled_gradients_is_reported():
    params = weights()
    found = sam_gradient(quadratic(params), params, (X,), rho=0.1, scale=64.0, diagnostics=True).diagnostics
    expected = 2 * l2_norm([p.detach() for p in params])
    assert found.gradient_norm.item() == pytest.approx(expected.item(), rel=1e-14)
