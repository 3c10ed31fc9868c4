"""What every measure asks of a loss: that it is the parameters', sees its examples, and is their mean."""

import copy
import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland import sharpness
from lowland.errors import InputError
from lowland.sam import MicroBatches
from lowland.sharpness import (
    AutoPGD,
    Bezier,
    GaussNewton,
    ProjectedAscent,
    along_curve,
    average_case,
    gradient_direction,
    gradient_norms,
    hessian_diagonal,
    hessian_eigenvalues,
    hessian_solve,
    hessian_trace,
    interpolation,
    keskar_sharpness,
    one_step_sharpness,
    plane,
    random_direction,
    relative_flatness,
    spectral_density,
    state_of,
    suboptimality,
    trained_bezier,
    worst_case,
    worst_case_grid,
)

DOUBLE = torch.float64


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def examples():
    torch.manual_seed(9)
    return torch.randn(8, 4, dtype=DOUBLE), torch.arange(8) % 3


def cross_entropy_of(model, reduction="mean"):
    return lambda x, y: F.cross_entropy(model(x), y, reduction=reduction)


def group_measures(**given):
    """Measures of groups: functions of a loss, parameters, a batch, m and an engine."""
    search = {"search": ProjectedAscent(steps=3, step_size=0.5)}

    def of(measure, **options):
        return lambda loss, params, batch, m, engine: (
            measure(loss, params, batch, m=m, engine=engine, **options, **given).value
        )

    def grid(loss, params, batch, m, engine):
        found = worst_case_grid(loss, params, batch, rho=[0.1, 0.3], m=[m], engine=engine, **search, **given)
        return [one.value for one in found]

    return {
        "worst case": of(worst_case, rho=0.3, **search),
        "worst case, linf": of(worst_case, rho=0.02, norm="linf", **search),
        "worst case, auto-PGD": of(worst_case, rho=0.3, search=AutoPGD(steps=4), restarts=2),
        "grid": grid,
        "suboptimality": of(suboptimality, rho=0.3, **search),
        "one step": of(one_step_sharpness, rho=0.3),
        "gradient norms": of(gradient_norms),
    }


def whole_measures(**given):
    """Measures of all examples: functions of a loss, parameters and a batch."""

    def of(measure, value, **options):
        return lambda loss, params, batch: value(measure(loss, params, batch, **options, **given))

    def direction(loss, params, batch):
        found = gradient_direction(loss, params, batch, **given)
        return torch.cat([t.flatten() for t in found.values()]).tolist()

    def diagonal(loss, params, batch):
        found = hessian_diagonal(loss, params, batch, products=6, **given)
        return torch.cat([t.flatten() for t in found.values.values()]).tolist()

    def solved(loss, params, batch):
        ones = {name: torch.ones_like(p) for name, p in params.items()}
        found = hessian_solve(loss, params, batch, ones, damping=3.0, **given)
        return torch.cat([t.flatten() for t in found.vector.values()]).tolist()

    def relative(loss, params, batch):
        return relative_flatness(loss, params["2.weight"], batch, products=4, **given).value

    return {
        "diagonal": diagonal,
        "solution": solved,
        "relative flatness": relative,
        "Keskar's": of(keskar_sharpness, lambda found: found.value, search=AutoPGD(3)),
        "average case": of(average_case, lambda found: found.value, rho=0.3, samples=3),
        "eigenvalues": of(hessian_eigenvalues, lambda found: found.values, k=2),
        "trace": of(hessian_trace, lambda found: found.value, products=9),
        "density": of(spectral_density, lambda found: found.moment(2), steps=5, runs=2),
        "direction": direction,
    }


def bezier(loss, module, batches, **given):
    other = state_of(network(1))
    curve = trained_bezier(module, state_of(module), other, loss, batches, steps=3, lr=0.5, **given)
    return torch.cat([t.flatten() for t in curve.control.values()]).tolist()


def without_gradient(model):
    def loss(x, y):
        with torch.no_grad():
            return F.cross_entropy(model(x), y)

    return loss


LOSSES = {
    "another model's": lambda module: cross_entropy_of(copy.deepcopy(module)),
    "a frozen model's": lambda module: cross_entropy_of(copy.deepcopy(module).requires_grad_(False)),
    "one without a gradient": without_gradient,
}
DEPENDS = (
    "loss must depend on the params, got (a gradient for none of them|a value that requires no gradient)"
)


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("engine", ["loop", "batched", "auto"])
@pytest.mark.parametrize("m", [1, None])
@pytest.mark.parametrize("name", ["worst case", "worst case, linf", "worst case, auto-PGD", "suboptimality"])
def test_no_group_measure_takes_a_loss_that_is_not_the_parameters(make, engine, m, name) -> None:
    module, measure = network(), group_measures()[name]
    with pytest.raises(ValueError, match=DEPENDS):
        measure(make(module), dict(module.named_parameters()), examples(), m, engine)


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    ("name", "engine"), [("one step", "loop"), ("gradient norms", "loop"), ("gradient norms", "batched")]
)
def test_no_measure_of_a_climb_takes_a_loss_that_is_not_the_parameters(make, name, engine) -> None:
    module, measure = network(), group_measures()[name]
    with pytest.raises(ValueError, match=DEPENDS):
        measure(make(module), list(module.parameters()), examples(), 2, engine)


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("which", ["measured", "climbed"])
def test_neither_the_measured_nor_the_climbed_loss_may_be_anothers(make, engine, which) -> None:
    module = network()
    losses = {"measured": cross_entropy_of(module), "climbed": cross_entropy_of(module)}
    losses[which] = make(module)
    given = {"rho": 0.1, "m": 2, "engine": engine, "climbed": losses["climbed"]}
    with pytest.raises(ValueError, match=DEPENDS):
        worst_case(losses["measured"], list(module.parameters()), examples(), **given)


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("name", whole_measures())
def test_no_measure_of_all_examples_takes_a_loss_that_is_not_the_parameters(make, name) -> None:
    module, measure = network(), whole_measures()[name]
    with pytest.raises(ValueError, match=DEPENDS):
        measure(make(module), dict(module.named_parameters()), examples())


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_no_curve_is_trained_by_another_models_loss(make) -> None:
    module = network()
    before = state_of(module)
    with pytest.raises(InputError, match=DEPENDS):
        bezier(make(module), module, [examples()])
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


@pytest.mark.parametrize("frozen", [True, False])
def test_the_outputs_of_a_gauss_newton_matrix_are_the_parameters_and_the_criterion_is_the_outputs(
    frozen,
) -> None:
    module, (x, y) = network(), examples()
    other, params = copy.deepcopy(module).requires_grad_(not frozen), list(module.parameters())
    matrix = GaussNewton(lambda x, _: other(x), lambda outputs, _, y: F.cross_entropy(outputs, y))
    with pytest.raises(InputError, match=DEPENDS):
        hessian_trace(matrix, params, (x, y))
    matrix = GaussNewton(lambda x, _: module(x), lambda _, x, y: F.cross_entropy(other(x), y))
    with pytest.raises(InputError, match="criterion must depend on the outputs, got a value in which they"):
        hessian_trace(matrix, params, (x, y))


def landscapes(module, evaluate):
    a, b = state_of(module), state_of(network(1))
    directions = [random_direction(module, seed=s) for s in (0, 1)]
    return [
        lambda: interpolation(module, a, b, [0.0, 1.0], evaluate),
        lambda: plane(module, directions, [[0.0, 1.0], [0.0, 1.0]], evaluate),
        lambda: along_curve(module, Bezier(a, a, b), [0.0, 1.0], evaluate),
    ]


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("frozen", [True, False])
def test_no_landscape_is_that_of_another_network(kind, frozen) -> None:
    module, (x, y) = network(), examples()
    other = copy.deepcopy(module).requires_grad_(not frozen)

    def evaluate(_):
        device, count = next(module.parameters()).device, sum(p.numel() for p in module.parameters())
        return {"loss": F.cross_entropy(other(x.to(device)), y), "weights": count}

    with pytest.raises(InputError, match="evaluate must look at the module's weights, got a function that"):
        landscapes(module, evaluate)[kind]()


WAYS = {
    "the module": lambda module, x: module(x),
    "a layer": lambda module, x: module[2](x @ x.new_ones(4, 5)),
    "a parameter": lambda module, x: x @ module[0].weight.t() @ torch.eye(5, 3).to(x),
    "a copy": lambda module, x: copy.deepcopy(module)(x),
    "functionally": lambda module, x: torch.func.functional_call(module, module.state_dict(), (x,)),
    "as numbers": lambda module, x: (
        x @ torch.tensor(module[0].weight.tolist()).to(x).t() @ torch.eye(5, 3).to(x)
    ),
}


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_landscape_may_look_at_the_module_in_any_way(kind, way) -> None:
    module, (x, y) = network(), examples()
    hooks = [dict(part._forward_pre_hooks) for part in module.modules()]
    rows = landscapes(module, lambda m: {"loss": F.cross_entropy(way(m, x), y)})[kind]()
    assert len({row["loss"] for row in rows}) == len(rows)
    assert [dict(part._forward_pre_hooks) for part in module.modules()] == hooks


def test_a_scripted_network_has_a_landscape() -> None:
    x, y = examples()
    with pytest.warns(DeprecationWarning, match="jit"):
        module = torch.jit.script(network())
    rows = interpolation(
        module,
        state_of(module),
        state_of(network(1)),
        [0.0, 1.0],
        lambda m: {"loss": F.cross_entropy(m(x), y)},
    )
    assert rows[0]["loss"] == F.cross_entropy(network()(x), y).item()
    assert rows[1]["loss"] == F.cross_entropy(network(1)(x), y).item()


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("name", group_measures())
def test_parameters_that_the_loss_does_not_use_change_no_group_measure(engine, name) -> None:
    module, measure, (x, y) = network(), group_measures()[name], examples()
    loss = lambda x, y: F.cross_entropy(module[2](torch.cat([x, x[:, :1]], dim=1)), y)  # noqa: E731
    some = measure(loss, list(module[2].parameters()), (x, y), 2, engine)
    np.testing.assert_allclose(measure(loss, list(module.parameters()), (x, y), 2, engine), some, rtol=1e-9)
    assert np.all(np.asarray(some) > 0)


@pytest.mark.parametrize("engine", ["loop", "batched", "auto"])
@pytest.mark.parametrize("name", ["worst case", "worst case, linf", "grid", "suboptimality"])
def test_where_m_cuts_the_batch_a_loss_that_ignores_its_arguments_is_refused(engine, name) -> None:
    module, measure, (x, y) = network(), group_measures()[name], examples()
    loss, params = lambda *_: F.cross_entropy(module(x), y), list(module.parameters())
    with pytest.raises(ValueError, match="got one that touched none of them"):
        measure(loss, params, (x, y), 3, engine)
    whole = measure(cross_entropy_of(module), params, (x, y), None, engine)
    assert measure(loss, params, (x, y), None, engine) == pytest.approx(whole, rel=1e-9)
    assert measure(loss, params, (x, y), 8, engine) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_the_climbed_loss_may_not_ignore_its_arguments_either(engine) -> None:
    module, (x, y) = network(), examples()
    given = {"rho": 0.1, "m": 2, "engine": engine, "climbed": lambda *_: F.cross_entropy(module(x), y)}
    with pytest.raises(ValueError, match="got one that touched none of them"):
        worst_case(cross_entropy_of(module), list(module.parameters()), (x, y), **given)


INDEXED = {
    "lists": lambda x, y, i: (x[i.tolist()], y[i.tolist()]),
    "iteration": lambda x, y, i: (torch.stack([x[int(j)] for j in i]), torch.stack([y[int(j)] for j in i])),
    "length": lambda x, y, i: (x[: len(i)], y[: len(i)]),
}


@pytest.mark.parametrize("rows", INDEXED.values(), ids=INDEXED)
def test_a_loss_may_look_at_its_arguments_in_any_way(rows) -> None:
    module, (x, y) = network(), examples()
    loss = lambda i: F.cross_entropy(module(rows(x, y, i)[0]), rows(x, y, i)[1])  # noqa: E731
    found = worst_case(loss, list(module.parameters()), (torch.arange(8),), rho=0.1, m=4, engine="loop")
    assert found.value > 0


@pytest.mark.parametrize("m", [1, 3, 8, None])
@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("name", group_measures())
def test_a_group_measure_of_a_sum_is_that_of_the_mean(m, engine, name) -> None:
    module, batch = network(), examples()
    params = dict(module.named_parameters())
    wanted = group_measures()[name](cross_entropy_of(module), params, batch, m, engine)
    measure = group_measures(reduction="sum")[name]
    found = measure(cross_entropy_of(module, "sum"), params, batch, m, engine)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    with_aux = lambda x, y: (cross_entropy_of(module, "sum")(x, y), {"rows": x})  # noqa: E731
    np.testing.assert_allclose(measure(with_aux, params, batch, m, engine), wanted, rtol=1e-9)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("name", whole_measures())
def test_a_measure_of_all_examples_of_a_sum_is_that_of_the_mean(parts, name) -> None:
    module, (x, y) = network(), examples()
    params = dict(module.named_parameters())
    wanted = whole_measures()[name](cross_entropy_of(module), params, (x, y))
    batch = MicroBatches([(x[:5], y[:5]), (x[5:], y[5:])]) if parts else (x, y)
    found = whole_measures(reduction="sum")[name](cross_entropy_of(module, "sum"), params, batch)
    np.testing.assert_allclose(found, wanted, rtol=1e-8)


def test_a_gauss_newton_matrix_and_a_curve_of_a_sum_are_those_of_the_mean() -> None:
    module, batch = network(), examples()
    criteria = [
        lambda f, _, y, kind=kind: F.cross_entropy(f, y, reduction=kind) for kind in ("mean", "sum", "none")
    ]
    mean, total, each = (
        hessian_trace(
            GaussNewton(lambda x, _: module(x), criterion),
            list(module.parameters()),
            batch,
            products=9,
            reduction=kind,
        ).value
        for criterion, kind in zip(criteria, ("mean", "sum", "mean"), strict=True)
    )
    assert (total, each) == (pytest.approx(mean, rel=1e-9), pytest.approx(mean, rel=1e-9))
    wanted = bezier(cross_entropy_of(module), module, [batch])
    assert bezier(cross_entropy_of(module, "sum"), module, [batch], reduction="sum") == pytest.approx(wanted)
    assert bezier(cross_entropy_of(module, "none"), module, [batch]) == pytest.approx(wanted)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_what_a_sum_returns_beside_its_value_is_measured_as_ever(engine) -> None:
    module, batch, given = network(), examples(), {"rho": 2.0, "m": 4, "engine": engine}

    def loss(x, y, reduction="mean"):
        outputs = module(x)
        return F.cross_entropy(outputs, y, reduction=reduction), {"error": outputs.argmax(1) != y}

    params = list(module.parameters())
    wanted = worst_case(loss, params, batch, **given).extras
    found = worst_case(lambda x, y: loss(x, y, "sum"), params, batch, reduction="sum", **given).extras
    assert found == wanted
    assert found["error"] > 0


def test_a_climbed_loss_that_is_a_sum_is_climbed_as_its_mean() -> None:
    module, batch = network(), examples()
    given = {"rho": 0.3, "m": 3, "search": ProjectedAscent(steps=4, direction="raw", step_size=1.0)}
    params = list(module.parameters())
    wanted = worst_case(
        cross_entropy_of(module), params, batch, climbed=cross_entropy_of(module), **given
    ).value
    total = cross_entropy_of(module, "sum")
    found = worst_case(total, params, batch, climbed=total, reduction="sum", **given).value
    assert found == pytest.approx(wanted, rel=1e-9)


TAKE_A_LOSS = [
    worst_case,
    worst_case_grid,
    sharpness.WorstCase,
    suboptimality,
    average_case,
    one_step_sharpness,
    gradient_norms,
    hessian_diagonal,
    hessian_eigenvalues,
    hessian_solve,
    hessian_trace,
    keskar_sharpness,
    relative_flatness,
    spectral_density,
    gradient_direction,
    trained_bezier,
]


def test_every_measure_that_takes_a_loss_has_the_option_in_its_signature() -> None:
    public = [getattr(sharpness, name) for name in sharpness.__all__]
    with_loss = {f for f in public if inspect.isfunction(f) and "loss" in inspect.signature(f).parameters}
    assert with_loss - {sharpness.empirical_fisher} <= set(TAKE_A_LOSS)  # which makes a loss of a loss
    for function in TAKE_A_LOSS:
        option = inspect.signature(function).parameters["reduction"]
        assert option.default == "mean"
        assert option.annotation == "Reduction"


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", [*group_measures(), *whole_measures(), "curve"])
def test_other_reductions_and_sums_of_each_example_are_refused(name) -> None:
    module, batch = network(), examples()
    params = dict(module.named_parameters())

    def asked(loss, **given):
        if name in whole_measures():
            return whole_measures(**given)[name](loss, params, batch)
        if name == "curve":
            return bezier(loss, module, [batch], **given)
        return group_measures(**given)[name](loss, params, batch, 2, "loop")

    with pytest.raises(InputError, match=r"^reduction must be one of mean, sum, got 'none'.*\.$"):
        asked(cross_entropy_of(module), reduction="none")
    with pytest.raises(
        InputError, match=r"^loss must return a scalar with reduction='sum', got shape \(\d,\).$"
    ):
        asked(cross_entropy_of(module, "none"), reduction="sum")
