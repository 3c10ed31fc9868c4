"""Functions of tensors as graphs: what is noted down, what is refused, and what graphs are improved by."""

import contextlib
import operator
import weakref

import numpy as np
import pytest
import torch
from torch import fx

from lowland.sam.asked import holds, which_hold
from lowland.sam.captured import passes
from lowland.sam.captured.compiling import compiled
from lowland.sam.captured.memory import Memory, memory_of, written_by
from lowland.sam.captured.program import program
from lowland.sam.captured.recording import again, record, stays
from lowland.sam.captured.same import difference
from lowland.sam.captured.unrecordable import Unrecordable

aten = torch.ops.aten
NUMBERS = np.ones((2, 3), np.float32)
X, Y = torch.arange(6.0).view(2, 3) + 1, torch.tensor([[2.0, 0.5, 1.0], [1.0, 3.0, 4.0]])


def recorded(function, *inputs):
    """A recording of ``function(*inputs)``, which returns one tensor or several."""

    def run(_):
        found = function(*inputs)
        return [found] if isinstance(found, torch.Tensor) else list(found)

    return record(run, inputs)


def replayed(recording, *inputs):
    """What the program of a recording makes of other inputs, and its flag."""
    *found, flag = program(recording.graph, recording.constants)(None, *inputs)
    return found, bool(flag)


def targets(graph):
    return [node.target for node in graph.nodes if node.op == "call_function"]


class Marks:
    """Takes note of what a program asks of a world."""

    def __init__(self):
        self.seen = []

    def again(self):
        self.seen.append("again")

    def stays(self):
        self.seen.append("stays")


def test_program_makes_of_other_inputs_what_the_function_does():
    def function(x, y):
        parts = (x @ y.t()).softmax(1).split(1)
        return (
            torch.cat(parts).mul_(2.0),
            (x * y).sum(-1, keepdim=True),
            torch.where(x > 2, x, y).to(torch.float64),
        )

    recording = recorded(function, X, Y)
    a, b = X * 3 - 4, Y + 1
    found, flag = replayed(recording, a, b)
    assert not flag
    assert all(torch.equal(f, g) and f.dtype == g.dtype for f, g in zip(found, function(a, b), strict=True))


def test_operations_are_called_by_the_names_that_users_know_or_by_torchs_own():
    recording = recorded(lambda x: torch.nn.functional.gelu(x) @ x.t() + 1, X)
    for direct in (True, False):
        run = program(recording.graph, recording.constants, direct=direct)
        found, _ = run(None, Y)
        torch.testing.assert_close(found, torch.nn.functional.gelu(Y) @ Y.t() + 1)


def test_gradients_are_operations_like_others():
    w = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)

    def function(x):
        return torch.autograd.grad(torch.tanh(x @ w.t()).sum(), [w])

    recording = record(lambda _: list(function(X)), [X, w])
    with torch.no_grad():
        w += 0.25
        found, flag = program(recording.graph, recording.constants)(None, Y, w)
    torch.testing.assert_close(found, function(Y)[0])
    assert not flag


def test_constants_are_held_by_reference_and_literals_by_value():
    scale = torch.tensor([1.0, 2.0, 3.0])
    recording = recorded(lambda x: x * scale + torch.tensor([1.0, 0.0, 0.0]), X)
    assert [t for t in recording.constants.values() if t is scale]
    assert len(recording.literals) == 1
    scale.mul_(10.0)
    found, _ = replayed(recording, Y)
    torch.testing.assert_close(found[0], Y * scale + torch.tensor([1.0, 0.0, 0.0]))


def test_writing_to_a_literal_leaves_the_constant_alone():
    recording = recorded(lambda x: torch.tensor([1.0, 2.0, 3.0]).add_(x[0]), X)
    for _ in range(2):
        assert torch.equal(replayed(recording, X)[0][0], X[0] + torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("ask", "other"),
    [
        (lambda x: holds((x > 0).all()), -1.0),
        (lambda x: not holds((x > 100).any()), 1000.0),
        (lambda x: which_hold(x[0] > 1.5) == [False, True, True], 5.0),
        (lambda x: bool(x.sum() > 0), -100.0),
        (lambda x: not (x[0] > 50).any(), 100.0),
    ],
)
def test_flag_says_where_the_host_would_be_answered_otherwise(ask, other):
    def function(x):
        assert ask(x)
        return x + 1

    recording = recorded(function, X)
    assert not replayed(recording, X)[1]
    changed = X.clone()
    changed[0, 0] = other
    assert replayed(recording, changed)[1]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0, 0]),
        lambda x: int((x > 0).sum()),
        lambda x: torch.equal(x, x),
    ],
)
def test_number_that_the_host_reads_is_refused(read):
    with pytest.raises(Unrecordable, match="a number that is read from a tensor"):
        recorded(lambda x: x * float(read(x)), X)


def test_number_that_the_host_reads_is_refused_where_the_error_is_caught():
    def function(x):
        with contextlib.suppress(Unrecordable):
            x.sum().item()
        return x + 1

    with pytest.raises(Unrecordable, match="a number that is read"):
        recorded(function, X)


def test_data_of_a_tensor_is_read_anew():
    recording = recorded(lambda x: x.data * 2 + (x + 1).data, X)
    assert torch.equal(replayed(recording, Y)[0][0], Y * 2 + (Y + 1))


def test_memory_of_an_input_by_another_name_is_refused():
    alias = X.view(6)
    with pytest.raises(Unrecordable, match="by another name"):
        recorded(lambda x: x.view(6) + alias, X)


def test_two_recordings_of_the_same_are_the_same():
    def function(x, y):
        return (x * y + torch.tensor(float("nan"))).sum(0)

    assert difference(recorded(function, X, Y), recorded(function, X, Y)) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (lambda k: lambda x: x * k, "another number"),
        (lambda k: lambda x: x * torch.tensor(float(k)), "another tensor"),
        (lambda k: lambda x: x + torch.from_numpy(NUMBERS * k), "another tensor"),
        (lambda k: lambda x: x.sin() if k == 1 else x.cos(), "other operations"),
        (lambda k: lambda x: x if k == 1 else x + 1, "other operations"),
        (lambda k: lambda x: x.sum(k - 1), "another number"),
    ],
)
def test_what_differs_between_two_recordings_is_said(changes, said):
    assert said in difference(recorded(changes(1), X), recorded(changes(2), X))


def test_draws_are_seen():
    assert recorded(lambda x: torch.nn.functional.dropout(x, 0.5), X).draws
    assert not recorded(lambda x: x * 2, X).draws


# What graphs are improved by


def improved(improve, function, *inputs):
    """The operations of a graph before and after, which must compute the same."""
    recording = recorded(function, *inputs)
    before = targets(recording.graph)
    improve(recording.graph)
    recording.graph.lint()
    found, _ = replayed(recording, *inputs)
    expected = function(*inputs)
    expected = [expected] if isinstance(expected, torch.Tensor) else expected
    assert all(map(torch.equal, found, expected))
    return before, targets(recording.graph)


def without_views(graph):
    passes.without_views_of_views(graph)
    passes.without_what_nobody_uses(graph)


def test_detaching_goes():
    before, after = improved(passes.without_detaching, lambda x: (x.detach() + 1).detach(), X)
    assert before.count(aten.detach.default) == 2
    assert aten.detach.default not in after


def test_view_of_a_view_is_one_and_a_view_in_the_same_shape_is_none():
    before, after = improved(without_views, lambda x: (x + 1).view(6).view(3, 2).view(2, 3).view(2, 3) * 2, X)
    assert before.count(aten.view.default) == 4
    assert aten.view.default not in after


def test_view_of_other_strides_stays():
    _, after = improved(without_views, lambda x: x.t().view(3, 2, 1).sum(2), X)
    assert aten.view.default in after


def test_small_repetition_goes_and_a_large_one_that_would_have_to_be_held_stays():
    large = torch.ones(100, 100)

    def function(x):
        first = x.sin().sum()  # this sine is gone when the next is computed
        return first, x.cos().sum(), x.sin().sum() * 2

    assert targets(recorded(function, X).graph).count(aten.sin.default) == 2
    _, small = improved(passes.without_repeating, function, X)
    assert small.count(aten.sin.default) == 1
    _, of_large = improved(passes.without_repeating, function, large)
    assert of_large.count(aten.sin.default) == 2


def test_repetition_of_what_is_written_to_in_between_stays():
    def function(x):
        y = x * 1
        first = y.sin().sum()
        y.add_(1.0)
        return first + y.sin().sum()

    _, after = improved(passes.without_repeating, function, X)
    assert after.count(aten.sin.default) == 2


def test_result_that_is_written_to_is_nobody_elses():
    def function(x):
        a, b = x.sin(), x.sin()
        return a.add_(1.0), b

    _, after = improved(passes.without_repeating, function, X)
    assert after.count(aten.sin.default) == 2


def test_sum_takes_the_memory_of_an_operand_that_nobody_needs():
    before, after = improved(passes.without_allocating, lambda x, y: (x.sin() + y) * y.cos() + 1, X, Y)
    assert before.count(aten.add_.Tensor) == before.count(aten.mul_.Tensor) == 0
    assert aten.add_.Tensor in after
    assert aten.mul_.Tensor in after


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: (x + y) * (x * y),  # of an input
        lambda x, y: [(s := x.sin()) + y, s],  # of what is returned
        lambda x, y: ((s := x.sin()) + y) * s,  # of what is needed once more
        lambda x, y: (s := x.sin()).view(6)[:3] + s[0] + y.sum(),  # of what the other is a view of
        lambda x, y: [(p := x.sin().split(1))[0] + y[:1], p[1] * y[1:], p[0] + 1],  # of a part
        lambda x, y: torch.ops.aten._unsafe_view(s := x.sin(), [2, 3]) + y * s.sum(),  # of another name
        lambda x, y: x.sum(0).sin().expand(2, 3) + y,  # whose elements stand in one place
        lambda x, y: x[:1].sin() + y,  # of another shape
        lambda x, y: (x > 1) * y,  # of another type
    ],
)
def test_sum_leaves_alone_what_is_not_free(function):
    def listed(x, y):
        found = function(x, y)
        return list(found) if isinstance(found, list) else [found]

    improved(passes.without_allocating, listed, X, Y)
    kept = X.clone(), Y.clone()
    recording = recorded(listed, X, Y)
    passes.without_allocating(recording.graph)
    for _ in range(2):
        replayed(recording, X, Y)
    assert torch.equal(X, kept[0])
    assert torch.equal(Y, kept[1])


def test_draws_are_no_repetitions():
    recording = recorded(lambda x: (torch.bernoulli(x), torch.bernoulli(x)), X / 10)
    passes.without_repeating(recording.graph)
    assert targets(recording.graph).count(aten.bernoulli.default) == 2


def test_what_nobody_uses_goes_and_what_writes_stays():
    held = torch.zeros(2, 3)

    def function(x):
        x.sin()
        held.add_(x)
        torch.bernoulli(x / 10)
        return x + 1

    recording = recorded(function, X)
    passes.without_what_nobody_uses(recording.graph)
    left = targets(recording.graph)
    assert aten.sin.default not in left
    assert aten.add_.Tensor in left
    assert aten.bernoulli.default in left


def test_marks_are_asked_of_the_world_in_their_order():
    def run(recorder):
        recorder.mark(again)
        y = X + 1
        recorder.mark(stays)
        recorder.mark(again)
        return [y * 2]

    recording, world = record(run, [X]), Marks()
    program(recording.graph, recording.constants)(world, X)
    assert world.seen == ["again", "stays", "again"]
    passes.without_marks(recording.graph)
    program(recording.graph, recording.constants)(None, X)


def test_values_go_with_their_last_use():
    alive, seen = [], {}
    graph = fx.Graph()
    value = graph.placeholder("x")
    for name in ("sin", "cos", "tan", "exp"):

        def call(t, name=name):
            alive.append(sum(ref() is not None for ref in seen.values()))
            found = getattr(torch, name)(t)
            seen[name] = weakref.ref(found)
            return found

        call.__name__ = name
        value = graph.call_function(call, (value,))
    graph.output([value])
    program(graph, {})(None, X)
    assert alive == [0, 1, 1, 1]


# Memory


def test_views_share_the_memory_of_their_base_and_written_values_are_named():
    recording = recorded(lambda x: ((x + 1).view(6)[1:].add_(1.0), x.t() * 2), X)
    by_target = {node.target: node for node in recording.graph.nodes}
    add, written = by_target[aten.add.Tensor], by_target[aten.add_.Tensor]
    assert memory_of(written) is add
    assert [memory_of(node) for node in written_by(written)] == [add]
    memory = Memory(recording.graph)
    assert memory.is_written(by_target[aten.view.default])
    assert not memory.is_written(by_target[aten.mul.Tensor])
    assert memory_of(by_target[aten.t.default]).op == "placeholder"


# Compiling


@pytest.mark.filterwarnings("ignore")
def test_compiled_graph_has_one_operation_for_each_pass_and_computes_the_same():
    def run(recorder):
        recorder.mark(again)
        y = torch.nn.functional.dropout(X, 0.5)
        recorder.mark(stays)
        recorder.mark(again)
        return [y * 2, torch.nn.functional.dropout(X + y, 0.5)]

    torch.manual_seed(3)
    recording, world = record(run, [X]), Marks()
    graph = compiled(recording.graph)
    calls = [t for t in targets(graph) if t not in (again, stays, operator.getitem)]
    assert len(calls) == 2
    torch.manual_seed(3)
    *found, _ = program(graph, recording.constants)(world, X)
    for a, b in zip(found, recording.returned, strict=True):
        torch.testing.assert_close(a, b)
    assert world.seen == ["again", "stays", "again"]
