"""Groups that take different branches of a loss: those of each branch are run at once."""

import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowland import sam_gradient
from lowland.sam import MicroBatches
from lowland.sam.unbatchable import Unbatchable

from ..naive import Count, mlp, regression, relative_error, seeded, tensors

B = 12


class Branching:
    """A loss that multiplies outputs where conditions hold of a group, and counts its calls."""

    def __init__(self, *conditions, module=None):
        self.module = mlp() if module is None else module
        self.conditions, self.count = conditions, Count()

    def loss(self, x, y):
        self.count.add()
        outputs = self.module(x)
        for i, holds in enumerate(self.conditions):
            if holds(x, outputs):
                outputs = torch.tanh(outputs) * (2.0 + i)
        return (outputs - y).square().mean(), {"first": x[:, 0], "sum": x.sum()}

    def gradient(self, batch, *, engine, m=1, **options):
        before = len(self.count)
        params = dict(self.module.named_parameters())
        limit = {} if engine == "loop" else {"max_memory": 2**40}
        found = sam_gradient(
            self.loss, params, batch, rho=0.3, m=m, engine=engine, module=self.module, **limit, **options
        )
        return found, len(self.count) - before


def positive(x, _):
    return x.sum() > 0


def with_a_large_entry(x, _):
    return (x.abs() > 1.0).any()


def of_activations(_, outputs):
    return outputs.sum() > 0


def assert_agree(loss, batch, **options):
    expected, _ = loss.gradient(batch, engine="loop", diagnostics=True, **options)
    found, calls = loss.gradient(batch, engine="batched", diagnostics=True, **options)
    assert relative_error(found.gradients, expected.gradients) <= 1e-10
    for name in ("first", "sum"):
        assert torch.equal(found.aux[name], expected.aux[name])  # in the order of the batch
    for name in ("loss", "perturbed_loss", "gradient_norm", "cosine"):
        own, other = getattr(found.diagnostics, name), getattr(expected.diagnostics, name)
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)
    return calls


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "conditions",
    [
        (positive,),
        (of_activations,),
        (positive, with_a_large_entry),
        (positive, with_a_large_entry, of_activations),
    ],
)
def test_groups_of_each_branch_have_the_gradient_of_the_loop_in_the_order_of_the_batch(conditions, m) -> None:
    assert_agree(Branching(*conditions), regression(examples=B), m=m)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=9), st.integers(1, 3), st.integers(1, 2))
def test_any_pattern_of_branches(pattern, m, steps) -> None:
    x, y = regression(examples=len(pattern) * m)
    x = x.abs() * torch.tensor(pattern).repeat_interleave(m)[:, None].mul(2).sub(1)
    assert_agree(Branching(positive), (x, y), m=m, steps=steps)


def test_two_branches_are_two_chunks() -> None:
    loss, (x, y) = Branching(positive), regression(examples=B)
    x = x.abs() * torch.tensor([1.0, -1.0] * (B // 2))[:, None]
    loss.gradient((x, y), engine="batched")  # finds out what it is
    _, calls = loss.gradient((x, y), engine="batched")
    assert calls == 1 + 2 * 2  # the pass in which they part, and two passes of each


def test_a_group_that_is_alone_in_its_branch_is_run_by_itself() -> None:
    loss, (x, y) = Branching(positive), regression(examples=B)
    x = x.abs()
    x[3] *= -1
    assert_agree(loss, (x, y))


def test_a_branch_that_only_perturbed_weights_take() -> None:
    loss, batch = Branching(of_activations), regression(examples=B)
    with torch.no_grad():  # most outputs are close to the border
        loss.module[-1].bias -= loss.module(batch[0]).mean(0)
    assert_agree(loss, batch)


def test_nothing_is_said_and_the_loss_is_not_given_up(monkeypatch) -> None:
    monkeypatch.setattr("lowland.sam.engine.Plan._too_small", lambda *_: False)
    loss, batch = Branching(positive), regression(examples=B)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calls = [loss.gradient(batch, engine="auto")[1] for _ in range(4)]
    assert calls[1] == calls[2] == calls[3] == 1 + 2 * 2


def countdown(x):
    """Takes another way for each number: more than are run at once."""
    turns = 0
    while bool((x[:, 0] > turns).all()):
        turns += 1
    return turns


WHILE = """
import torch
from lowland import sam_gradient

module = torch.nn.Linear(4, 3)

def loss(x):
    turns = 0
    while bool((x[:, 0] > turns).all()):
        turns += 1
    return (module(x) * turns).square().mean()

x = torch.ones(12, 4)
x[:, 0] = torch.arange(12) + 0.5
try:
    sam_gradient(loss, list(module.parameters()), (x,), rho=0.3, m=1, engine="batched", max_memory=2**40)
except RuntimeError as error:
    print(error)
"""


def test_more_branches_than_are_run_at_once_are_refused_by_the_line_that_asks(tmp_path) -> None:
    """In a process of its own, where nothing that checks types stands between the loss and the library."""
    path = tmp_path / "mine.py"
    path.write_text(WHILE)
    said = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True).stdout
    assert said == (
        "engine='batched' must be able to run every part for all groups at once, got control flow that "
        "differs between groups: while bool((x[:, 0] > turns).all()): (mine.py, line 9).\n"
    )


def test_more_branches_than_are_run_at_once_are_right_in_auto() -> None:
    module = mlp()

    def loss(x, y):
        return (module(x) * (1 + countdown(x)) - y).square().mean()

    x, y = regression(examples=B)
    x[:, 0] = torch.arange(B) + 0.5
    with pytest.raises(Unbatchable, match="control flow that differs between groups"):
        sam_gradient(
            loss, list(module.parameters()), (x, y), rho=0.3, m=1, engine="batched", max_memory=2**40
        )
    given = loss, list(module.parameters()), (x, y)
    by_loop = sam_gradient(*given, rho=0.3, m=1, engine="loop")
    with pytest.warns(UserWarning, match="one after the other because of control flow that differs"):
        by_auto = sam_gradient(*given, rho=0.3, m=1, engine="auto")
    assert relative_error(by_auto.gradients, by_loop.gradients) <= 1e-10


class Normed(nn.Module):
    """A network whose running statistics move."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.norm(self.a(x))))


def state_after(engine, pattern):
    module = seeded(Normed())
    (x, y) = tensors(1, (2 * len(pattern), 4), (2 * len(pattern), 3))
    x = x.abs() * torch.tensor(pattern).repeat_interleave(2)[:, None].mul(2).sub(1)
    loss = Branching(positive, module=module)
    found, _ = loss.gradient((x, y), engine=engine, m=2)
    return found.gradients, dict(module.named_buffers())


@pytest.mark.parametrize(
    "pattern",
    [[True, True, False, False], [False, False, True, True, True]],
    ids=["parted once", "and again"],
)
def test_running_statistics_move_where_branches_keep_the_order_of_the_groups(pattern) -> None:
    (expected, wanted), (found, moved) = state_after("loop", pattern), state_after("batched", pattern)
    assert relative_error(found, expected) <= 1e-10
    for name, value in wanted.items():
        torch.testing.assert_close(moved[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pattern", [[True, False, True, False], [False, True, True, False, False]])
def test_running_statistics_that_would_move_out_of_order_are_refused_and_right_in_auto(
    pattern, monkeypatch
) -> None:
    monkeypatch.setattr("lowland.sam.engine.Plan._too_small", lambda *_: False)
    with pytest.raises(Unbatchable, match="whose running statistics move in their order"):
        state_after("batched", pattern)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, moved = state_after("auto", pattern)
    expected, wanted = state_after("loop", pattern)
    assert relative_error(found, expected) <= 1e-10
    for name, value in wanted.items():
        torch.testing.assert_close(moved[name], value, rtol=1e-12, atol=1e-12)


def test_running_statistics_move_in_order_also_after_a_group_of_another_shape() -> None:
    """Nothing branches here: the group between the others is run by itself."""
    (a, c, b) = (tensors(seed, shape)[0] for seed, shape in ((1, (4, 2, 5)), (2, (2, 2, 7)), (3, (4, 2, 5))))
    found = {}
    for engine in ("loop", "batched"):
        layers = [nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Tanh(), nn.Conv1d(3, 2, 2)]
        module = seeded(nn.Sequential(*layers))
        result = sam_gradient(
            lambda x, module=module: module(x).square().mean(),
            list(module.parameters()),
            MicroBatches([(a,), (c,), (b,)]),
            rho=0.1,
            m=2,
            module=module,
            engine=engine,
        )
        found[engine] = result.gradients, dict(module.named_buffers())
    assert relative_error(found["batched"][0], found["loop"][0]) <= 1e-10
    for name, value in found["loop"][1].items():
        torch.testing.assert_close(found["batched"][1][name], value, rtol=1e-12, atol=1e-12)


def test_a_group_without_a_finite_gradient_among_branches_is_not_climbed_and_shows() -> None:
    loss, (x, y) = Branching(positive), regression(examples=B)
    x = x.abs() * torch.tensor([1.0, -1.0] * (B // 2))[:, None]
    y[4] = torch.inf
    (expected, _), (found, _) = (loss.gradient((x, y), engine=e) for e in ("loop", "batched"))
    for a, b in zip(found.gradients, expected.gradients, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
