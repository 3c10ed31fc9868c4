"""Functional SAM against the explicit Jacobian, the Hessian's parts and closed forms."""

import functools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev

from lowland import SAM, presets, sam_gradient
from lowland.sam import (
    BSAM,
    L2,
    Adaptive,
    AlongMomentum,
    BayesianAscent,
    Friendly,
    FromLoader,
    Functional,
    MicroBatches,
    Preconditioned,
    PreviousBatch,
    Unnormalized,
    Weighted,
)
from lowland.sam.said import loss_key
from lowland.sharpness import gradient_norms, one_step_sharpness

from .naive import added, buffers_of, mlp, norm, relative_error, rows, seeded, tensors

ENGINES = ("loop", "batched")
RHO = 0.3


def classes(seed=1, examples=7):
    (x,) = tensors(seed, (examples, 4))
    return x, torch.randint(3, (examples,), generator=torch.Generator().manual_seed(seed))


def cross_entropy(logits, _, y):
    return F.cross_entropy(logits, y)


def in_halves(module, criterion=cross_entropy):
    return Functional(lambda x, _: module(x), criterion)


def at(module, weights):
    """The weights by their names."""
    return dict(zip(dict(module.named_parameters()), weights, strict=True))


def by_hand(module, group, weights):
    """The slope of cross entropy at the outputs: (softmax - onehot) / B."""
    x, y = group
    logits = functional_call(module, at(module, weights), (x,))
    return (logits.softmax(1) - F.one_hot(y, 3)).detach() / len(x)


def through(module, group, weights, slope):
    """J(weights)' slope, with the Jacobian formed."""
    jacobian = jacrev(lambda w: functional_call(module, w, (group[0],)))(at(module, weights))
    return [torch.einsum("bk,bk...->...", slope, j) for j in jacobian.values()]


def along(g, rho=RHO):
    return [rho * t / norm(g) for t in g]


def truth(module, batch, *, m=None, climb=along, source=None, steps=1):
    """Functional SAM with formed Jacobians, group by group; ``climb`` makes e of the gradient."""
    w = [p.detach().clone() for p in module.parameters()]
    size = len(batch[0]) if m is None else m
    total = [torch.zeros_like(p) for p in w]
    for start in range(0, len(batch[0]), size):
        group = rows(batch, start, start + size)
        seen = group if source is None else rows(source, start, start + size)
        e = [torch.zeros_like(p) for p in w]
        for _ in range(steps):
            here = added(w, e)
            e = climb(through(module, seen, here, by_hand(module, seen, here)), e)
        found = through(module, group, added(w, e), by_hand(module, group, w))
        total = added(total, found, len(group[0]) / len(batch[0]))
    return total


def plain(climb):
    return lambda g, _: climb(g)


def gradients_of(module):
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("m", [1, 2, 4, 7, None])
def test_gradient_is_the_explicit_jacobian_at_the_perturbed_weights_times_the_slope_at_the_weights(m, engine):
    module, batch = mlp(), classes()
    expected = truth(module, batch, m=m, climb=plain(along))
    value = presets.functional_sam(module, rho=RHO, m=m, engine=engine).backward(in_halves(module), *batch)
    assert relative_error(gradients_of(module), expected) <= 1e-12
    torch.testing.assert_close(value, in_halves(module)(*batch).detach(), rtol=1e-14, atol=0.0)
    sam = sam_gradient(
        lambda x, y: F.cross_entropy(module(x), y), [*module.parameters()], batch, rho=RHO, m=m
    )
    assert relative_error(sam.gradients, expected) > 0.01


@pytest.mark.parametrize("engine", ENGINES)
def test_what_it_adds_to_the_gradient_is_the_part_of_the_hessian_that_is_not_gauss_newtons(engine):
    module, batch, rho = mlp(), classes(), 1e-5
    params = [*module.parameters()]
    logits = module(batch[0])
    g = torch.autograd.grad(F.cross_entropy(logits, batch[1]), params, create_graph=True)
    u = along([t.detach() for t in g], 1.0)
    of_hessian = torch.autograd.grad(sum((a * b).sum() for a, b in zip(g, u, strict=True)), params)
    jacobian = jacrev(lambda w: functional_call(module, w, (batch[0],)))(at(module, params)).values()
    moved = sum(torch.einsum("bk...,...->bk", j, t) for j, t in zip(jacobian, u, strict=True)).detach()
    p = logits.softmax(1).detach()
    slope = (p * moved - p * (p * moved).sum(1, keepdim=True)) / len(p)  # (diag p - p p') J u / B
    gauss_newton = [t.detach() for t in through(module, batch, params, slope)]
    found = sam_gradient(in_halves(module), params, batch, rho=rho, engine=engine).gradients
    added_to_it = [(a - b).detach() / rho for a, b in zip(found, g, strict=True)]
    assert relative_error(added_to_it, added(of_hessian, gauss_newton, -1.0)) <= 1e-4
    assert relative_error(added_to_it, of_hessian) > 0.1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("m", [1, 3, None])
def test_a_network_that_is_linear_in_its_weights_has_its_plain_gradient(m, engine):
    module = seeded(nn.Linear(4, 3))
    x, y = tensors(3, (7, 4), (7, 3))
    loss = Functional(lambda x, _: module(x), lambda z, _, y: (z - y).square().mean())
    found = sam_gradient(loss, [*module.parameters()], (x, y), rho=0.5, m=m, engine=engine).gradients
    expected = torch.autograd.grad(loss(x, y), [*module.parameters()])
    assert relative_error(found, expected) <= 1e-14


def test_the_same_in_half_precision_where_the_perturbed_weights_are_rounded_at_random():
    module = seeded(nn.Linear(4, 3, bias=False), dtype=torch.bfloat16)
    x, y = tensors(3, (7, 4), (7, 3), dtype=torch.bfloat16)
    loss = Functional(lambda x, _: module(x), lambda z, _, y: (z - y).square().mean())
    found = sam_gradient(loss, [*module.parameters()], (x, y), rho=0.5)
    assert found.gradients[0].dtype == torch.bfloat16
    assert torch.equal(found.gradients[0], torch.autograd.grad(loss(x, y), module.weight)[0])


def adaptive(g, _, w):
    scales = [p.abs() for p in w]
    size = norm([s * t for s, t in zip(scales, g, strict=True)])
    return [RHO * s * s * t / size for s, t in zip(scales, g, strict=True)]


def preconditioned(g, _, second):
    return along([t / (v.sqrt() + 1e-8) for t, v in zip(g, second, strict=True)])


def projected(g, e):
    moved = added(e, along(g, 0.6 * RHO))
    return [t * min(1.0, RHO / norm(moved)) for t in moved]


def adam_of(module):
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    in_halves(module)(*classes(5)).backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("m", [2, None])
@pytest.mark.parametrize(
    "kind", ["unnormalized", "adaptive", "preconditioned", "steps", "momentum", "source"]
)
def test_other_climbs_lead_to_the_jacobian_where_their_formulas_say(kind, m, engine):
    module, batch = mlp(), classes()
    optimizer = adam_of(module)
    w = [p.detach().clone() for p in module.parameters()]
    state = [optimizer.state[p] for p in module.parameters()]
    options, expected = {
        "unnormalized": ({"ascent": Unnormalized()}, {"climb": plain(lambda g: [RHO * t for t in g])}),
        "adaptive": ({"ascent": Adaptive(eta=0.0, scaled="*")}, {"climb": functools.partial(adaptive, w=w)}),
        "preconditioned": (
            {"ascent": Preconditioned(optimizer)},
            {"climb": functools.partial(preconditioned, second=[s["exp_avg_sq"] for s in state])},
        ),
        "steps": ({"steps": 3, "step_size": 0.6}, {"climb": projected, "steps": 3}),
        "momentum": (
            {"ascent": AlongMomentum(optimizer)},
            {"climb": lambda *_: along([s["exp_avg"] for s in state], -RHO)},
        ),
        "source": ({"ascent_batch": classes(9)}, {"climb": plain(along), "source": classes(9)}),
    }[kind]
    named = dict(module.named_parameters())
    found = sam_gradient(in_halves(module), named, batch, rho=RHO, m=m, engine=engine, **options)
    assert relative_error(found.gradients, truth(module, batch, m=m, **expected)) <= 1e-12
    torch.testing.assert_close(found.loss, in_halves(module)(*batch).detach(), rtol=1e-13, atol=0.0)
    measured = sam_gradient(
        *(in_halves(module), named, batch),
        **{"rho": RHO, "m": m, "engine": engine, "diagnostics": True, **options},
    )
    assert relative_error(measured.gradients, found.gradients) <= 1e-12


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("blind", [False, True])
def test_rules_take_the_gradient_at_the_weights_and_the_functional_one(blind, engine):
    module, batch = mlp(), classes()
    optimizer = adam_of(module)
    w = [p.detach().clone() for p in module.parameters()]
    v = along([optimizer.state[p]["exp_avg"] for p in module.parameters()], -RHO)
    g = through(module, batch, w, by_hand(module, batch, w))
    perturbed = truth(module, batch, m=2, climb=(lambda *_: v) if blind else plain(along))
    options = {"rho": RHO, "m": 2, "engine": engine, "combine": Weighted(0.9), "scale": 4.0}
    ascent = AlongMomentum(optimizer) if blind else L2()
    found = sam_gradient(in_halves(module), [*module.parameters()], batch, ascent=ascent, **options)
    expected = added(g, added(perturbed, g, -1.0), 9.0)
    assert relative_error(found.gradients, [4.0 * t for t in expected]) <= 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_an_l2_term_is_in_the_climb_and_differentiated_at_the_perturbed_weights(engine):
    module, batch, l2 = mlp(), classes(), 0.7
    w = [p.detach().clone() for p in module.parameters()]
    expected = [torch.zeros_like(p) for p in w]
    for start in range(0, 7, 2):
        group = rows(batch, start, start + 2)
        slope = by_hand(module, group, w)
        e = along(added(through(module, group, w, slope), w, l2))
        found = added(through(module, group, added(w, e), slope), added(w, e), l2)
        expected = added(expected, found, len(group[0]) / 7)
    found = sam_gradient(in_halves(module), [*module.parameters()], batch, rho=RHO, m=2, l2=l2, engine=engine)
    assert relative_error(found.gradients, expected) <= 1e-12


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["scale", "sum", "weight", "parts", "per example"])
def test_scale_weights_sums_and_parts_are_those_of_the_loss(form, engine):
    module, (x, y) = mlp(), classes()
    options, batch, times, criterion = {}, (x, y), 1.0, cross_entropy
    if form == "scale":
        options, times = {"scale": 1024.0}, 1024.0
    elif form == "sum":
        options, times = {"reduction": "sum"}, 7.0
        criterion = lambda z, _, y: F.cross_entropy(z, y, reduction="sum")  # noqa: E731
    elif form == "weight":
        options = {"weight": lambda x, _: 3.0 * len(x)}
    elif form == "parts":
        batch = MicroBatches([(x[:3], y[:3]), (x[3:], y[3:])])
    else:
        criterion = lambda z, _, y: F.cross_entropy(z, y, reduction="none")  # noqa: E731
    m = None if form == "parts" else 2
    if form == "parts" and engine == "batched":
        m = 1
    found = sam_gradient(
        in_halves(module, criterion), [*module.parameters()], batch, rho=RHO, m=m, engine=engine, **options
    )
    expected = [times * t for t in truth(module, (x, y), m=m, climb=plain(along))]
    assert relative_error(found.gradients, expected) <= 1e-12


def test_groups_across_parts_have_a_slope_in_each():
    module, (x, y) = mlp(), classes()
    parts = MicroBatches([(x[:3], y[:3]), (x[3:], y[3:])])
    found = sam_gradient(in_halves(module), [*module.parameters()], parts, rho=RHO, m=2, engine="loop")
    assert relative_error(found.gradients, truth(module, (x, y), m=2, climb=plain(along))) <= 1e-12


class Outputs(NamedTuple):
    hidden: torch.Tensor
    rest: dict


class TwoHeads(nn.Module):
    """One output is made of another: the gradient by the first is not that through the second."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        number = torch.full((len(x),), 2)
        constant = torch.ones(len(x), 3, dtype=x.dtype)
        return Outputs(hidden, {"logits": self.head(hidden), "number": number, "constant": constant})


def both_outputs(outputs, _, y):
    logits = outputs.rest["logits"] * outputs.rest["number"][:, None] + outputs.rest["constant"]
    return F.cross_entropy(logits, y) + outputs.hidden.pow(4).mean()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("m", [1, 3, None])
def test_outputs_that_depend_on_each_other_are_each_differentiated_once(m, engine):
    module, batch = seeded(TwoHeads()), classes()
    params = [*module.parameters()]
    w = [p.detach().clone() for p in params]
    size, expected = m or 7, [torch.zeros_like(p) for p in w]
    for start in range(0, 7, size):
        x, y = rows(batch, start, start + size)
        hidden, logits = module(x).hidden.detach(), module(x).rest["logits"].detach()
        by_logits = 2 * ((2 * logits + 1).softmax(1) - F.one_hot(y, 3)) / len(x)
        by_hidden = 4 * hidden**3 / hidden.numel()

        def pulled(weights, x=x, slopes=(by_hidden, by_logits)):
            def flat(v):
                found = functional_call(module, v, (x,))
                return torch.cat([found.hidden, found.rest["logits"]], 1)

            jacobian = jacrev(flat)(at(module, weights))
            return [torch.einsum("bk,bk...->...", torch.cat(slopes, 1), j) for j in jacobian.values()]

        found = pulled(added(w, along(pulled(w))))
        expected = added(expected, found, len(x) / 7)
    found = sam_gradient(in_halves(module, both_outputs), params, batch, rho=RHO, m=m, engine=engine)
    assert relative_error(found.gradients, expected) <= 1e-12


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("m", [1, 3, None])
def test_a_parameter_may_be_an_output_itself(m, engine):
    """A learned temperature: its own gradient is the slope at w, and it moves the network's none."""
    module, batch = mlp(), classes()
    temperature = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    loss = Functional(
        lambda x, _: {"logits": module(x), "temperature": temperature},
        lambda out, _, y: F.cross_entropy(out["logits"] * out["temperature"].exp(), y),
    )
    params = [*module.parameters(), temperature]
    found = sam_gradient(loss, params, batch, rho=RHO, m=m, engine=engine).gradients
    size, expected = m or 7, [torch.zeros_like(p) for p in params]
    w, t = [p.detach() for p in module.parameters()], temperature.detach().exp()
    for start in range(0, 7, size):
        group = rows(batch, start, start + size)
        logits = module(group[0]).detach()
        inner = ((t * logits).softmax(1) - F.one_hot(group[1], 3)) / len(logits)
        by_temperature = (inner * logits).sum() * t
        g = [*through(module, group, w, t * inner), by_temperature]
        e = along(g)
        moved = [*through(module, group, added(w, e[:-1]), t * inner), by_temperature]
        expected = added(expected, moved, len(logits) / 7)
    assert relative_error(found, expected) <= 1e-12


def noisy():
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 3)]
    return seeded(nn.Sequential(*layers))


@pytest.mark.parametrize("bn_stats", ["first", "both", "frozen"])
def test_both_passes_draw_the_same_and_leave_what_one_plain_pass_leaves(bn_stats):
    module, other, batch = noisy(), noisy(), classes()
    torch.manual_seed(3)
    found = sam_gradient(
        in_halves(module), [*module.parameters()], batch, rho=RHO, bn_stats=bn_stats, engine="loop"
    ).gradients
    drawn = torch.rand(1)
    w, buffers = {n: p.detach() for n, p in other.named_parameters()}, dict(other.named_buffers())

    def outputs(w):
        torch.manual_seed(3)
        return functional_call(other, (w, {n: b.clone() for n, b in buffers.items()}), (batch[0],))

    logits = outputs(w)
    slope = (logits.softmax(1) - F.one_hot(batch[1], 3)).detach() / 7
    g = torch.func.vjp(outputs, w)[1](slope)[0]
    moved = dict(zip(w, added([*w.values()], along([*g.values()])), strict=True))
    expected = torch.func.vjp(outputs, moved)[1](slope)[0]
    assert relative_error(found, [*expected.values()]) <= 1e-12
    torch.manual_seed(3)
    other(batch[0])
    assert torch.equal(drawn, torch.rand(1))
    if bn_stats == "first":
        assert buffers_of(module) == buffers_of(other)
    elif bn_stats == "frozen":
        assert buffers_of(module) == buffers_of(noisy())
    else:
        assert module[1].num_batches_tracked == 2


def test_dropout_under_the_batched_engine_is_the_same_in_both_passes():
    module = seeded(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)))
    x, y = tensors(3, (7, 4), (7, 3))
    masks = []

    def outputs(x, _):
        return module(x)

    loss = Functional(outputs, lambda z, _, y: (z - y).square().mean())
    for rho in (0.0, 5.0):  # linear in its weights for any mask: the radius makes no difference, a mask would
        torch.manual_seed(1)
        found = sam_gradient(loss, [*module.parameters()], (x, y), rho=rho, m=1, engine="batched")
        masks.append(found.gradients)
    assert relative_error(masks[1], masks[0]) <= 1e-13


@pytest.mark.parametrize("m", [1, 2, None])
def test_engines_agree_under_autocast(m):
    found = []
    for engine in ENGINES:
        module, (x, y) = mlp(dtype=torch.float32), classes()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(
                sam_gradient(
                    *(in_halves(module), [*module.parameters()], (x.float(), y)),
                    **{"rho": RHO, "m": m, "engine": engine, "scale": 256.0},
                ).gradients
            )
    assert all(g.dtype == torch.float32 for g in found[0])
    assert relative_error(found[1], found[0]) <= 0.02


def test_a_small_slope_of_float16_outputs_is_kept_by_the_scale():
    w = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([0.5], requires_grad=True)]
    loss = Functional(
        lambda x: (x * w[0]).half() * w[1].half(), lambda z, x: 1e-6 * z.float().sum() * x.mean()
    )
    x = torch.tensor([1e-3])
    for scale, lost in ((1.0, True), (2.0**16, False)):
        (g, _) = sam_gradient(loss, w, (x,), rho=0.25, scale=scale).gradients
        assert (g == 0.0).all() == lost
    torch.testing.assert_close(
        g / scale, torch.full((2,), 1e-12) * (0.5 + 0.25 * 3.0 / 9.5**0.5), rtol=1e-2, atol=0.0
    )


def test_objective_and_backward_give_the_same():
    one, two, batch = mlp(), mlp(), classes()
    presets.functional_sam(one, rho=RHO, m=2).backward(in_halves(one), *batch, scale=0.5)
    (0.5 * presets.functional_sam(two, rho=RHO, m=2).objective(in_halves(two), *batch)).backward()
    assert relative_error(gradients_of(one), gradients_of(two)) <= 1e-14


@pytest.mark.parametrize("engine", ENGINES)
def test_criterion_runs_at_the_weights_only_and_its_aux_is_returned(engine):
    module, batch, calls = mlp(), classes(), []

    def criterion(logits, _, y):
        calls.append(1)
        return F.cross_entropy(logits, y), {"right": (logits.argmax(1) == y).double().mean()}

    loss = in_halves(module, criterion)
    found = sam_gradient(loss, [*module.parameters()], batch, rho=RHO, m=1, engine=engine)
    assert len(calls) == (7 if engine == "loop" else 1)
    assert torch.equal(found.aux["right"].mean(), loss(*batch)[1]["right"])


@pytest.mark.parametrize("engine", ENGINES)
def test_diagnostics_tell_the_true_loss_at_the_perturbed_weights(engine):
    module, batch = mlp(), classes()
    results = [
        sam_gradient(
            loss, [*module.parameters()], batch, rho=RHO, m=2, engine=engine, diagnostics=True
        ).diagnostics
        for loss in (in_halves(module), lambda x, y: F.cross_entropy(module(x), y))
    ]
    for name in ("loss", "perturbed_loss", "gradient_norm", "perturbation_norm"):
        torch.testing.assert_close(*(getattr(d, name) for d in results), rtol=1e-12, atol=0.0)
    assert (results[0].cosine - results[1].cosine).abs().max() > 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_radius_zero_is_the_plain_gradient_and_evaluation_the_plain_loss(engine):
    module, batch = mlp(), classes()
    found = sam_gradient(in_halves(module), [*module.parameters()], batch, rho=0.0, engine=engine)
    value = F.cross_entropy(module(batch[0]), batch[1])
    expected = torch.autograd.grad(value, [*module.parameters()])
    assert relative_error(found.gradients, expected) <= 1e-14
    with torch.no_grad():
        assert torch.equal(in_halves(module)(*batch), value)


@pytest.mark.parametrize("measure", [functools.partial(one_step_sharpness, rho=RHO), gradient_norms])
def test_measures_take_it_as_the_loss_that_it_is(measure):
    module, batch = mlp(), classes()
    losses = (in_halves(module), lambda x, y: F.cross_entropy(module(x), y))
    found = [measure(loss, [*module.parameters()], batch, m=2).value for loss in losses]
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert found[0] > 0.0


def test_parts_of_sam_that_remember_work_with_it():
    module = mlp()
    (x, y), before = classes(), classes(9)
    loader = [before]
    for options, source in (
        ({"source": PreviousBatch()}, before),
        ({"source": FromLoader(loader)}, before),
        ({"ascent": Friendly(sigma=0.0)}, None),
    ):
        sam = presets.functional_sam(module, rho=RHO, **options)
        for batch in (before, (x, y)):
            module.zero_grad()
            sam.backward(in_halves(module), *batch)
        expected = truth(module, (x, y), climb=plain(along), source=source)
        assert relative_error(gradients_of(module), expected) <= 1e-12


def test_what_the_outputs_keep_of_a_batched_pass_is_refused_and_put_back():
    module, batch, kept = mlp(), classes(), []

    def outputs(x, _):
        logits = module(x)
        kept[:] = [logits.detach()]
        return logits

    loss = Functional(outputs, cross_entropy)
    sam = SAM(module, rho=RHO, m=2, engine="batched")
    with pytest.raises(RuntimeError, match="a tensor of the pass that is kept"):
        sam.backward(loss, *batch)
    assert kept == []


def test_losses_that_differ_in_a_half_are_different_losses():
    def outputs(x, _):
        return x

    def other(x, _):
        return x

    one = Functional(outputs, cross_entropy)
    assert loss_key(one) == loss_key(Functional(outputs, cross_entropy))
    assert loss_key(one) != loss_key(Functional(other, cross_entropy))
    assert loss_key(one) != loss_key(Functional(outputs, both_outputs))


def refused(criterion, said, engine, m=2, make=mlp, **options):
    module, batch = make(), classes()
    before = [p.detach().clone() for p in module.parameters()]
    loss, params = criterion(module), [*module.parameters()]
    with pytest.raises(ValueError, match=said):
        sam_gradient(loss, params, batch, rho=RHO, m=m, engine=engine, **options)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("blind", [False, True])
def test_a_criterion_past_whose_outputs_parameters_reach_is_refused(engine, blind):
    options = {"ascent": presets.random(mlp()).ascent} if blind else {}
    refused(
        lambda module: in_halves(
            module, lambda z, _, y: F.cross_entropy(z, y) + module[0].weight.square().sum()
        ),
        "criterion must depend on the params through the outputs only",
        engine,
        **options,
    )
    refused(
        lambda module: in_halves(module, lambda z, x, y: F.cross_entropy(z, y) + module(x).square().sum()),
        "criterion must depend on the params through the outputs only",
        engine,
        **options,
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_criterion_that_writes_to_the_outputs_or_is_none_is_refused(engine):
    refused(
        lambda module: in_halves(module, lambda z, _, y: F.cross_entropy(z.mul_(2.0), y)),
        "criterion must leave the outputs as they are, got one that writes to them",
        engine,
    )
    refused(
        lambda module: Functional(lambda x, y: F.cross_entropy(module(x), y), lambda z, *_: z),
        "criterion must make the loss of the outputs, got one of them as it is",
        engine,
    )
    refused(
        lambda module: in_halves(module, lambda z, _, y: F.cross_entropy(z.detach(), y)),
        "loss must depend on the params",
        engine,
    )


def test_other_outputs_in_the_last_pass_are_refused():
    def alternating(module):
        calls = []

        def outputs(x, _):
            calls.append(1)
            return [module(x)] * len(calls)

        return Functional(outputs, lambda z, _, y: F.cross_entropy(z[0], y))

    def shrinking(module):
        calls = []

        def outputs(x, _):
            calls.append(1)
            return module(x).mean(0, keepdim=True) if len(calls) == 2 else module(x)

        return Functional(outputs, cross_entropy)

    refused(alternating, r"the same shapes in each pass, got others .*: \(7, 3\), \(7, 3\)\.", "loop", m=None)
    refused(shrinking, r"the same shapes in each pass, got others .*: \(1, 3\)\.", "loop", m=None)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_criterion_of_something_else_than_the_outputs_is_refused(engine):
    other = torch.ones(3, dtype=torch.float64, requires_grad=True)
    refused(
        lambda module: in_halves(module, lambda z, _, y: F.cross_entropy(z.detach() * other, y)),
        "criterion must depend on the outputs, got one that does not",
        engine,
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("measured", [False, True])
def test_logits_that_are_masked_by_minus_infinity_are_constants(measured, engine):
    module, (x, _) = mlp(), classes()
    y = torch.zeros(7, dtype=torch.long)

    def outputs(x, _):
        return module(x).masked_fill(torch.tensor([False, False, True]), -torch.inf)

    def truncated(x, _):
        return module(x)[:, :2]

    results = [
        sam_gradient(
            *(Functional(f, cross_entropy), [*module.parameters()], (x, y)),
            **{"rho": RHO, "m": 2, "engine": engine, "diagnostics": measured},
        )
        for f in (outputs, truncated)
    ]
    assert relative_error(*(found.gradients for found in results)) <= 1e-12
    if measured:
        torch.testing.assert_close(*(found.diagnostics.perturbed_loss for found in results))


@pytest.mark.usefixtures("untyped")
def test_wrong_halves_and_combinations_are_one_sentence():
    module = mlp()
    logits = module(classes()[0])
    with pytest.raises(TypeError, match="outputs must be a function, Functional"):
        Functional(logits, cross_entropy)
    with pytest.raises(TypeError, match=r"criterion must be a function, .*got NoneType"):
        Functional(module, None)
    optimizer = BSAM(module.parameters(), lr=0.1, num_examples=7)
    with pytest.raises(
        ValueError, match="loss must not be Functional with BayesianAscent, which starts elsewhere"
    ):
        SAM(module, rho=RHO, ascent=BayesianAscent(optimizer)).backward(in_halves(module), *classes())


def test_the_preset_refuses_losses_that_would_be_trained_with_sam_in_silence():
    module = mlp()
    sam = presets.functional_sam(module, rho=RHO)
    with pytest.raises(
        TypeError, match=r"loss must be lowland.sam.Functional\(outputs, criterion\) with func"
    ):
        sam.backward(lambda x, y: F.cross_entropy(module(x), y), *classes())
    assert sam.steps_done == 0
    assert all(p.grad is None for p in module.parameters())
    with pytest.raises(AttributeError, match="got roh; nearest: rho"):
        sam.roh = 0.1
    assert isinstance(sam.ascent or L2(), L2)
