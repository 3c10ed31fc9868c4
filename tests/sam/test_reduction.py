"""A loss that adds up its examples: nothing depends on how the batch is cut."""

import pytest
import torch
import torch.nn.functional as F

from lowland import SAM, MicroBatches, sam_gradient
from lowland.sam import Unnormalized

from .naive import mlp, regression, relative_error


def mean(module, x, y):
    return F.mse_loss(module(x), y, reduction="sum") / len(x)


def total(module, x, y):
    return F.mse_loss(module(x), y, reduction="sum")


def gradient(loss, batch=None, **options):
    module = mlp()
    return sam_gradient(
        lambda *b: loss(module, *b),
        list(module.parameters()),
        regression() if batch is None else batch,
        **{"rho": 0.3} | options,
    )


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("m", [None, 1, 2, 7])
@pytest.mark.parametrize("options", [{}, {"ascent": Unnormalized()}, {"steps": 3}, {"rho": 0.0}], ids=str)
def test_gradient_and_loss_are_those_of_the_sum_and_the_climb_is_along_the_mean(options, m, engine):
    found = gradient(total, reduction="sum", m=m, engine=engine, **options)
    expected = gradient(mean, m=m, engine="loop", **options)
    assert relative_error(found.gradients, [7 * g for g in expected.gradients]) < 1e-12
    torch.testing.assert_close(found.loss, 7 * expected.loss, rtol=1e-13, atol=0.0)


def test_without_a_radius_it_is_what_backward_gives():
    module = mlp()
    (value := total(module, *regression())).backward()
    found = gradient(total, reduction="sum", rho=0.0, m=2)
    assert relative_error(found.gradients, [p.grad for p in module.parameters()]) < 1e-13
    torch.testing.assert_close(found.loss, value.detach(), rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("m", [None, 2])
def test_penalty_is_added_once_to_the_sum(m):
    module = mlp()
    w = list(module.parameters())
    value = total(module, *regression()) + 0.05 * sum(p.square().sum() for p in w)
    expected = torch.autograd.grad(value, w)
    found = gradient(total, reduction="sum", rho=0.0, m=m, l2=0.1)
    assert relative_error(found.gradients, expected) < 1e-12
    torch.testing.assert_close(found.loss, value.detach(), rtol=1e-13, atol=0.0)


def test_sum_over_tokens_is_divided_by_the_weight():
    options = {"weight": lambda x, _: 3.0 * len(x), "m": 2}
    found = gradient(total, reduction="sum", **options)
    expected = gradient(lambda module, x, y: total(module, x, y) / (3.0 * len(x)), **options)
    assert relative_error(found.gradients, [21 * g for g in expected.gradients]) < 1e-12


def test_parts_of_a_batch_add_up():
    x, y = regression()
    parts = MicroBatches([(x[:3], y[:3]), (x[3:], y[3:])])
    found = gradient(total, parts, reduction="sum").gradients
    assert relative_error(found, gradient(total, reduction="sum").gradients) < 1e-12


def test_loss_of_every_example_is_added_up():
    def each(module, x, y):
        return (module(x) - y).square().sum(1)

    found = gradient(each, reduction="sum", m=2)
    assert relative_error(found.gradients, gradient(total, reduction="sum", m=2).gradients) < 1e-12


def test_shell_hands_the_reduction_on():
    module = mlp()
    SAM(module, rho=0.3, m=2, reduction="sum").backward(lambda x, y: total(module, x, y), *regression())
    expected = gradient(total, reduction="sum", m=2).gradients
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-13


@pytest.mark.usefixtures("untyped")
def test_reductions_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match=r"^reduction must be one of \('mean', 'sum'\), got 'none'\.$"):
        gradient(total, reduction="none")


def test_sum_over_examples_that_nobody_can_count_is_refused():
    module = mlp()
    with pytest.raises(
        ValueError, match=r"^reduction='sum' must be given a batch whose tensors have one row"
    ):
        sam_gradient(
            lambda batch: total(module, *batch["pair"]),
            list(module.parameters()),
            ({"pair": regression(), "other": torch.zeros(3)},),
            rho=0.1,
            reduction="sum",
        )
