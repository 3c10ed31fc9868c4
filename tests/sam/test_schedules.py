"""Radii that change in the course of training, and what counts as a step of it."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland import SAM
from lowland.sam import Cosine, ProportionalToLR, Window

from .naive import mlp, naive_sam, regression, relative_error, squared

modest = settings(max_examples=50, deadline=None)


def sgd(params, lr=0.1, **options):
    return torch.optim.SGD(params, lr=lr, **options)


def radii_of(module, sam, base, steps, schedule=None, calls=1):
    """How far the weights were moved in each step's second pass; 0 where there was none."""
    radii = []
    for step in range(steps):
        base.zero_grad()
        start, seen = [p.detach().clone() for p in module.parameters()], []

        def loss(x, y, start=start, seen=seen):
            e = [p.detach() - s for p, s in zip(module.parameters(), start, strict=True)]
            seen.append(torch.cat([t.flatten() for t in e]).norm().item())
            return squared(module, x, y)

        for call in range(calls):
            sam.backward(loss, *regression(calls * step + call), scale=1 / calls)
        radii.append(seen[1] if len(seen) == 2 * calls else 0.0)
        if len(seen) == 2 * calls:
            assert seen[1::2] == pytest.approx([radii[-1]] * calls, rel=1e-9), (
                "one radius in all calls of a step"
            )
        base.step()
        if schedule is not None:
            schedule.step()
    return radii


@modest
@given(st.integers(0, 20), st.integers(1, 20), st.integers(0, 60))
def test_window_is_its_radius_from_start_up_to_but_not_at_stop(start, length, step):
    expected = 0.3 if start <= step < start + length else 0.0
    assert Window(0.3, start, start + length)(step) == expected
    assert Window(0.3, start)(step) == (0.3 if step >= start else 0.0)


def test_window_takes_another_schedule_at_the_step_of_training():
    window = Window(lambda step: step / 10, start=2, stop=5)
    assert [window(step) for step in range(7)] == pytest.approx([0, 0, 0.2, 0.3, 0.4, 0, 0])
    nested = Window(Cosine(0.4, 0.0, 10), start=5)
    assert [nested(step) for step in (4, 5, 10)] == pytest.approx([0.0, 0.2, 0.0])


def test_cosine_is_half_a_wave_and_then_constant():
    schedule = Cosine(0.1, 0.5, 8)
    expected = [0.3 - 0.2 * math.cos(math.pi * step / 8) for step in range(9)]
    assert [schedule(step) for step in range(9)] == pytest.approx(expected, rel=1e-14)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(4) == pytest.approx(0.3)
    assert [schedule(step) for step in (8, 9, 1000)] == pytest.approx([0.5] * 3)
    assert Cosine(0.5, 0.1, 1)(1) == pytest.approx(0.1)


@modest
@given(st.floats(1e-4, 1.0), st.floats(0.01, 2.0), st.floats(0.0, 0.5))
def test_radius_proportional_to_the_learning_rate_is_the_line_through_both_ends(lr, max_rho, min_rho):
    base = sgd(mlp().parameters())
    schedule = ProportionalToLR(base, max_rho, max_lr=1.0, min_rho=min_rho, min_lr=1e-4)
    base.param_groups[0]["lr"] = lr
    share = (lr - 1e-4) / (1.0 - 1e-4)
    assert schedule(0) == pytest.approx((1 - share) * min_rho + share * max_rho, rel=1e-9, abs=1e-12)
    for end, rho in ((1e-4, min_rho), (1.0, max_rho)):
        base.param_groups[0]["lr"] = end
        assert schedule(7) == pytest.approx(rho, abs=1e-12)


def test_radius_below_zero_is_zero_and_a_tensor_learning_rate_is_read():
    base = torch.optim.SGD(mlp().parameters(), lr=torch.tensor(0.5, dtype=torch.float64))
    assert ProportionalToLR(base, 0.4, max_lr=1.0)(0) == pytest.approx(0.2)
    assert ProportionalToLR(base, 0.4, max_lr=1.0, min_lr=0.8)(0) == 0.0


def test_training_follows_a_window_at_the_cost_of_one_pass_outside():
    module = mlp()
    sam = SAM(module, rho=Window(0.3, start=2, stop=4))
    radii = radii_of(module, sam, sgd(module.parameters()), 6)
    assert radii == pytest.approx([0, 0, 0.3, 0.3, 0, 0], rel=1e-9)


def test_training_follows_any_function_of_the_number_of_steps_done():
    module, asked = mlp(), []

    def schedule(step):
        asked.append(step)
        return 0.1 * (step + 1)

    radii = radii_of(module, SAM(module, rho=schedule), sgd(module.parameters()), 4)
    assert radii == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=1e-9)
    assert sorted(set(asked)) == [0, 1, 2, 3]


def test_training_follows_the_learning_rate_of_now():
    module = mlp()
    base = sgd(module.parameters(), lr=0.4)
    schedule = torch.optim.lr_scheduler.StepLR(base, step_size=2, gamma=0.5)
    sam = SAM(module, rho=ProportionalToLR(base, 0.8, max_lr=0.4))
    radii = radii_of(module, sam, base, 6, schedule)
    assert radii == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2], rel=1e-9)


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_calls_that_accumulate_are_one_step(calls, set_to_none):
    module = mlp()
    sam, base = SAM(module, rho=lambda step: 0.1 * (step + 1)), sgd(module.parameters())
    zero_grad = base.zero_grad
    base.zero_grad = lambda: zero_grad(set_to_none=set_to_none)
    radii = radii_of(module, sam, base, 4, calls=calls)
    assert radii == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=1e-9)
    assert sam.steps_done == 4


def test_frozen_parameters_with_an_old_gradient_do_not_keep_a_step_open():
    module, batch = mlp(), regression()
    sam = SAM(module, rho=0.3)
    sam.backward(functools.partial(squared, module), *batch)
    module[0].requires_grad_(False)
    for p in module[2].parameters():
        p.grad = None
    sam.backward(functools.partial(squared, module), *batch)
    assert module[0].weight.grad.any()
    assert sam.steps_done == 2


def test_number_of_steps_is_state_and_the_schedule_goes_on():
    module = mlp()
    base = sgd(module.parameters())
    sam = SAM(module, rho=Window(0.3, start=3))
    radii_of(module, sam, base, 2)
    assert sam.state_dict() == {"step": 2}
    resumed = SAM(module, rho=Window(0.3, start=3))
    resumed.load_state_dict(sam.state_dict())
    assert radii_of(module, resumed, base, 3) == pytest.approx([0, 0.3, 0.3], rel=1e-9)


def test_state_of_a_users_own_schedule_is_kept():
    class Growing:
        """Doubles whenever it is told to."""

        def __init__(self):
            self.rho = 0.1

        def __call__(self, _):
            return self.rho

        def state_dict(self):
            return {"rho": self.rho}

        def load_state_dict(self, state):
            self.rho = state["rho"]

    module, schedule = mlp(), Growing()
    sam = SAM(module, rho=schedule)
    schedule.rho = 0.4
    resumed = SAM(module, rho=Growing())
    resumed.load_state_dict(sam.state_dict())
    assert radii_of(module, resumed, sgd(module.parameters()), 1) == pytest.approx([0.4], rel=1e-9)


def test_state_of_other_parts_is_refused():
    with pytest.raises(
        ValueError, match=r"^state must have the keys \['step'\], got \['ascent', 'step'\]\.$"
    ):
        SAM(mlp(), rho=0.1).load_state_dict({"step": 1, "ascent": {}})


def test_radius_of_a_parameter_group_is_its_own_until_a_schedule_ends_sam():
    """The groups' radii are 0.1 and the schedule's, unless that is 0: to each its share of one climb."""
    module, batch = mlp(), regression()
    groups = [{"params": list(module[0].parameters()), "rho": 0.1}, {"params": list(module[2].parameters())}]
    sam, seen = SAM(groups, rho=lambda step: (0.4, 0.2, 0.0)[step]), []
    start = [p.detach().clone() for p in module.parameters()]

    def loss(x, y):
        seen.append([p.detach() - s for p, s in zip(module.parameters(), start, strict=True)])
        return squared(module, x, y)

    sam.backward(loss, *batch)
    (e,) = naive_sam(module, squared, batch, rho=0.4).perturbations
    assert relative_error(seen[1], [0.25 * e[0], 0.25 * e[1], e[2], e[3]]) < 1e-12
    module.zero_grad()
    sam.backward(loss, *batch)
    assert relative_error(seen[3], [0.25 * e[0], 0.25 * e[1], 0.5 * e[2], 0.5 * e[3]]) < 1e-12
    module.zero_grad()
    sam.backward(loss, *batch)
    assert len(seen) == 5, "one pass, as without SAM"


@pytest.mark.usefixtures("untyped")
def test_arguments_out_of_range_are_refused():
    base = sgd(mlp().parameters())
    for start, stop in ((3, 3), (3, 1), (-1, None)):
        with pytest.raises(ValueError, match=rf"^stop must be above start, .*, got {start}, {stop}\.$"):
            Window(0.1, start, stop)
    with pytest.raises(ValueError, match=r"^steps must be positive, got 0\.$"):
        Cosine(0.1, 0.2, 0)
    with pytest.raises(ValueError, match=r"^max_lr must be above min_lr, got 0\.1 and 0\.1\.$"):
        ProportionalToLR(base, 0.1, max_lr=0.1, min_lr=0.1)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_schedule_that_gives_no_radius_is_refused_where_it_does(bad):
    module, batch = mlp(), regression()
    sam = SAM(module, rho=lambda step: (0.1, bad)[step])
    sam.backward(functools.partial(squared, module), *batch)
    module.zero_grad()
    with pytest.raises(ValueError, match=r"^rho must be non-negative and finite, got .*\.$"):
        sam.backward(functools.partial(squared, module), *batch)
    assert all(p.grad is None for p in module.parameters())
