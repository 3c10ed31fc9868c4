"""What the first call decides is kept: how often the loss runs, in how many chunks, and by which engine."""

import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lowland import SAM, sam_gradient
from lowland.sam import MicroBatches, PreviousBatch
from lowland.sam.unbatchable import Unbatchable

from ..naive import Count, mlp, regression, relative_error, seeded, squared, tensors
from .agreement import in_chunks_of

B = 6
ALL_AT_ONCE = 2**40


@pytest.fixture
def never_too_small(monkeypatch):
    """The threshold below which ``auto`` does not ask is a matter of speed."""
    monkeypatch.setattr("lowland.sam.engine.Plan._too_small", lambda *_: False)


class Counted:
    """A network, and a loss of it that counts its calls and the shapes it sees."""

    def __init__(self, module=None):
        self.module = mlp() if module is None else module
        self._count = Count()

    @property
    def calls(self):
        return len(self._count)

    def loss(self, x, y):
        self._count.add()
        return squared(self.module, x, y)

    def gradient(self, batch=None, *, loss=None, **options):
        """The gradients, and how often the loss ran."""
        before = self.calls
        options = {"rho": 0.3, "m": 2, "engine": "batched", "max_memory": ALL_AT_ONCE} | options
        batch = regression(examples=B) if batch is None else batch
        params = list(self.module.parameters())
        found = sam_gradient(loss or self.loss, params, batch, module=self.module, **options)
        return found.gradients, self.calls - before


def by_the_loop(batch=None, module=None, **options):
    options = {key: value for key, value in options.items() if key != "max_memory"}
    return Counted(module).gradient(batch, engine="loop", max_memory=None, **options)


def assert_same(found, expected):
    assert relative_error(found, expected) <= 1e-10


# How often the loss runs


@pytest.mark.parametrize("m", [1, 2, 3])
def test_later_calls_run_the_loss_exactly_twice(m):
    counted = Counted()
    found = [counted.gradient(m=m) for _ in range(4)]
    assert [calls for _, calls in found] == [3, 2, 2, 2]
    expected, _ = by_the_loop(m=m)
    for gradients, _ in found:
        assert_same(gradients, expected)


@pytest.mark.parametrize("m", [None, B, B + 1])
def test_one_group_settles_as_several_do(m):
    counted = Counted()
    assert [counted.gradient(m=m)[1] for _ in range(3)] == [3, 2, 2]


@pytest.mark.parametrize("steps", [2, 3])
def test_every_further_step_is_one_more_pass(steps):
    counted = Counted()
    assert [counted.gradient(steps=steps)[1] for _ in range(3)] == [steps + 2, steps + 1, steps + 1]


def test_radius_of_zero_runs_the_loss_once():
    counted = Counted()
    assert [counted.gradient(rho=0.0)[1] for _ in range(3)] == [2, 1, 1]


def test_radius_that_changes_settles_nothing_anew():
    counted = Counted()
    assert [counted.gradient(rho=rho)[1] for rho in (0.1, 0.2, 0.3)] == [3, 2, 2]


def test_weights_and_data_that_change_settle_nothing_anew():
    counted = Counted()
    for step in range(3):
        batch = regression(20 + step, examples=B)
        found, calls = counted.gradient(batch)
        assert calls == (3 if step == 0 else 2)
        twin = mlp()
        twin.load_state_dict(counted.module.state_dict())
        assert_same(found, by_the_loop(batch, twin)[0])
        with torch.no_grad():
            for p, g in zip(counted.module.parameters(), found, strict=True):
                p.sub_(0.1 * g)


def test_shorter_last_group_is_a_chunk_of_its_own():
    counted = Counted()
    batch = regression(examples=B + 1)
    found = [counted.gradient(batch) for _ in range(3)]
    calls = [calls for _, calls in found]
    assert calls[0] > 4
    assert calls[1:] == [4, 4]
    assert_same(found[-1][0], by_the_loop(batch)[0])


@pytest.mark.parametrize("examples", [4, 8])
def test_another_number_of_examples_settles_anew_and_then_no_more(examples):
    counted = Counted()
    counted.gradient()
    other = regression(examples=examples)
    assert [counted.gradient(other)[1] for _ in range(2)] == [3, 2]
    assert counted.gradient()[1] == 2
    assert_same(counted.gradient(other)[0], by_the_loop(other)[0])


def test_another_m_settles_anew_and_then_no_more():
    counted = Counted()
    assert [counted.gradient(m=m)[1] for m in (2, 3, 2, 3)] == [3, 3, 2, 2]


def test_other_lengths_of_examples_settle_anew_and_then_no_more():
    counted = Counted(seeded(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))))
    calls = []
    for length in (5, 3, 5, 3):
        batch = tuple(tensors(length, (B, length, 4), (B, length, 2)))
        found, count = counted.gradient(batch)
        calls.append(count)
        twin = seeded(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
        assert_same(found, by_the_loop(batch, twin)[0])
    assert calls == [3, 3, 2, 2]


def test_loss_that_is_defined_anew_in_each_call_does_not_settle_again():
    counted = Counted()
    calls = []
    for _ in range(3):

        def loss(x, y):
            return counted.loss(x, y)

        calls.append(counted.gradient(loss=loss)[1])
    assert calls == [3, 2, 2]


def test_lambda_that_is_written_anew_in_each_call_does_not_settle_again():
    counted = Counted()
    assert [counted.gradient(loss=lambda x, y: counted.loss(x, y))[1] for _ in range(3)] == [3, 2, 2]


def test_module_that_the_loss_makes_anew_in_each_pass_settles_nothing_anew():
    counted = Counted()
    expected, _ = by_the_loop()

    def loss(x, y):
        counted.loss(x, y)
        return nn.MSELoss()(nn.Identity()(counted.module(x)), y)

    for calls in (3, 2, 2):
        found, ran = counted.gradient(loss=loss)
        assert ran == calls
        assert_same(found, expected)


def test_module_with_parts_that_is_gone_settles_anew():
    counted, around = Counted(), [None]

    def loss(x, y):
        counted.loss(x, y)
        return nn.MSELoss()(around[0](x), y)

    def calls():
        around[0] = nn.Sequential(counted.module)
        return counted.gradient(loss=loss)[1]

    assert [calls() for _ in range(3)] == [3, 3, 3]


def test_another_loss_of_the_same_network_settles_anew():
    counted = Counted()
    counted.gradient(loss=lambda x, y: counted.loss(x, y))
    assert counted.gradient(loss=lambda x, y: 2.0 * counted.loss(x, y))[1] == 3


def test_another_network_settles_anew():
    def loss_of(counted):
        return lambda x, y: counted.loss(x, y)

    for _ in range(2):
        counted = Counted()
        assert [counted.gradient(loss=loss_of(counted))[1] for _ in range(2)] == [3, 2]


def test_verdict_dies_with_the_parameters():
    from lowland.sam.batched.settled import _verdicts

    counted = Counted()
    counted.gradient()
    first = next(counted.module.parameters())
    assert first in _verdicts
    assert counted.loss.__func__ is Counted.loss
    before = len(_verdicts)
    del counted, first
    assert len(_verdicts) < before


# Memory


def least_memory(gradient):
    """What an error says is needed."""
    said = r"^max_memory must be at least \d+ bytes for this batch, got 1 \(engine='loop' has no limit\)\.$"
    with pytest.raises(ValueError, match=said) as error:
        gradient(max_memory=1)
    return int(str(error.value).split()[5])


@pytest.mark.parametrize("engine", ["batched", "auto"])
@pytest.mark.usefixtures("never_too_small")
def test_memory_that_is_too_little_is_refused_and_what_is_said_to_be_enough_is(engine):
    counted, batch = Counted(), regression(examples=24)
    least = least_memory(partial(counted.gradient, batch, engine=engine))
    with pytest.raises(ValueError, match=f"at least {least} bytes"):
        counted.gradient(batch, engine=engine, max_memory=least - 1)
    assert_same(counted.gradient(batch, engine=engine, max_memory=least)[0], by_the_loop(batch)[0])


@pytest.mark.parametrize("bn", [False, True])
def test_less_memory_is_never_fewer_chunks(bn):
    def make():
        norm = nn.BatchNorm1d(6) if bn else nn.Identity()
        return seeded(nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), nn.Linear(6, 3)))

    batch = regression(examples=24)
    looped = make()
    expected, _ = by_the_loop(batch, looped)
    calls, least = [], least_memory(partial(Counted(make()).gradient, batch))
    for limit in (least, 2 * least, 4 * least, 2**20):
        counted = Counted(make())
        found, _ = counted.gradient(batch, max_memory=limit)
        assert_same(found, expected)
        for a, b in zip(counted.module.buffers(), looped.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        calls.append(counted.gradient(batch, max_memory=limit)[1])
    assert calls == sorted(calls, reverse=True)
    assert calls[-1] == 2
    assert len(set(calls)) > 2


# Auto


def test_auto_uses_the_loop_for_few_small_groups():
    counted = Counted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [counted.gradient(m=3, engine="auto")[1] for _ in range(2)] == [4, 4]


@pytest.mark.parametrize("m", [None, B])
def test_auto_uses_the_loop_for_one_small_group(m):
    counted = Counted()
    found, calls = counted.gradient(m=m, engine="auto")
    assert calls == 2
    expected, _ = by_the_loop(m=m)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_auto_is_what_is_used_by_default():
    found = sam_gradient_by_default()
    assert_same(found, by_the_loop()[0])


def sam_gradient_by_default():
    module = mlp()
    params = list(module.parameters())
    return sam_gradient(
        lambda *b: squared(module, *b), params, regression(examples=B), rho=0.3, m=2
    ).gradients


def test_auto_runs_many_groups_at_once():
    counted = Counted()
    batch = regression(examples=64)
    counted.gradient(batch, m=1, engine="auto")
    found, calls = counted.gradient(batch, m=1, engine="auto", max_memory=None)
    found, calls = counted.gradient(batch, m=1, engine="auto", max_memory=None)
    assert calls < 64
    assert_same(found, by_the_loop(batch, m=1)[0])


OPTIONS = {
    "statistics of both passes": ({"bn_stats": "both"}, "bn_stats"),
    "one group to climb on": (
        {"ascent_batch": MicroBatches([regression(5, examples=3), regression(6, examples=3)])},
        "ascent_batch",
    ),
    "fewer groups to climb on": ({"ascent_batch": regression(5, examples=2)}, "ascent_batch"),
}


@pytest.mark.usefixtures("never_too_small")
@pytest.mark.parametrize("name", OPTIONS)
def test_auto_uses_the_loop_for_options_without_a_batched_form_and_names_them_once(name):
    options, named = OPTIONS[name]
    counted = Counted()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = [counted.gradient(engine="auto", **options)[0] for _ in range(3)]
    assert [named in str(w.message) for w in heard] == [True]
    expected, _ = by_the_loop(**options)
    for gradients in found:
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


SCRIPT = """
import torch
from lowland import SAM, sam_gradient
w = torch.nn.Parameter(torch.ones(3))
def loss(x):
    return (w * x).square().mean()
def direct(x):
    sam_gradient(loss, [w], (x,), rho=0.1, m=1, bn_stats="both")  # here
def shell(x):
    SAM([w], rho=0.1, m=1, bn_stats="both").backward(loss, x)  # here
{call}(torch.ones(64, 3))
"""


@pytest.mark.parametrize("call", ["direct", "shell"])
def test_warning_points_at_the_line_that_calls(call, tmp_path):
    """In a process of its own: the tests' type checks put frames of theirs between."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(call=call))
    said = subprocess.run(
        [sys.executable, "-W", "always", str(script)], capture_output=True, text=True, check=True
    ).stderr
    line = 1 + next(
        k for k, text in enumerate(script.read_text().splitlines()) if "here" in text and _is(call, text)
    )
    assert f"script.py:{line}: UserWarning: the groups were run one after the other" in said


def _is(call, text):
    return ("sam_gradient" in text) == (call == "direct")


@pytest.mark.parametrize("name", OPTIONS)
def test_batched_refuses_options_without_a_batched_form_by_name(name):
    options, named = OPTIONS[name]
    with pytest.raises(Unbatchable, match=named):
        Counted().gradient(**options)


@pytest.mark.usefixtures("never_too_small")
@pytest.mark.parametrize("name", OPTIONS)
def test_auto_says_nothing_of_such_options_where_there_is_one_group(name):
    counted = Counted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = counted.gradient(m=B, engine="auto", **OPTIONS[name][0])
    assert_same(found, by_the_loop(m=B, **OPTIONS[name][0])[0])


# The same loss with an option that has no batched form, then without, and the other way round


@pytest.mark.usefixtures("never_too_small")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_option_without_a_batched_form_does_not_decide_for_calls_without_it(name, first):
    options, _ = OPTIONS[name]
    counted = Counted()
    for with_option in (first, not first, first):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, _ = counted.gradient(engine="auto", **(options if with_option else {}))
        assert_same(found, by_the_loop(**(options if with_option else {}))[0])
    assert counted.gradient()[1] <= 3


@pytest.mark.parametrize("name", OPTIONS)
def test_batched_refuses_such_options_after_calls_without_them_too(name):
    counted = Counted()
    counted.gradient()
    with pytest.raises(Unbatchable, match=OPTIONS[name][1]):
        counted.gradient(**OPTIONS[name][0])


# What is refused


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("engine", ["fast", "", "Batched", "loops"])
def test_engine_that_there_is_not_is_refused_in_one_sentence(engine):
    with pytest.raises(ValueError, match=r"^engine must be one of [^.]*, got '" + engine + r"'\.$"):
        Counted().gradient(engine=engine)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("engine", [None, ["loop"], 1])
def test_engine_that_is_no_word_is_refused_in_one_sentence(engine):
    with pytest.raises(ValueError, match=r"^engine must be one of .*\.$"):
        Counted().gradient(engine=engine)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("engine", ["loop", "batched", "auto"])
@pytest.mark.parametrize("max_memory", [0, -1, 1.5, True, "1GB", float("inf")])
def test_memory_that_is_no_positive_number_of_bytes_is_refused_in_one_sentence(max_memory, engine):
    with pytest.raises(ValueError, match=r"^max_memory must be .*, got .*\.$"):
        Counted().gradient(engine=engine, max_memory=max_memory)


# SAM


@pytest.mark.parametrize("options", [{}, {"engine": "loop"}, {"engine": "batched", "max_memory": 12345}])
def test_sam_passes_engine_and_memory_on(options, monkeypatch):
    seen = []

    def spied(*args, **given):
        seen.append({"engine": given["engine"], "max_memory": given["max_memory"]})
        return sam_gradient(*args, **given)

    monkeypatch.setattr("lowland.sam.shell.sam_gradient", spied)
    counted = Counted()
    sam = SAM(counted.module, rho=0.3, m=2, **options)
    sam.backward(counted.loss, *regression(examples=B))
    assert seen == [{"engine": "auto", "max_memory": None} | options]
    assert_same([p.grad for p in counted.module.parameters()], by_the_loop()[0])


@pytest.mark.parametrize(("size", "calls"), [(3, 2), (1, 6)])
def test_sam_runs_the_loss_twice_per_chunk_from_its_second_step_on(size, calls):
    counted = Counted()
    sam = SAM(counted.module, rho=0.3, m=2, engine="batched")
    for step in range(3):
        before = counted.calls
        for p in counted.module.parameters():
            p.grad = None
        with in_chunks_of(size):
            sam.backward(lambda *b: counted.loss(*b), *regression(examples=B))
        assert step == 0 or counted.calls - before == calls


def test_engine_of_sam_may_be_assigned_at_any_time():
    counted = Counted()
    sam = SAM(counted.module, rho=0.3, m=2, engine="loop")
    found = []
    for engine in ("loop", "batched", "auto"):
        sam.engine = engine
        for p in counted.module.parameters():
            p.grad = None
        sam.backward(counted.loss, *regression(examples=B))
        found.append([p.grad for p in counted.module.parameters()])
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.usefixtures("untyped")
def test_sam_refuses_an_engine_that_there_is_not():
    counted = Counted()
    with pytest.raises(ValueError, match=r"^engine must be one of .*\.$"):
        SAM(counted.module, rho=0.3, engine="fast").backward(counted.loss, *regression(examples=B))


def test_sam_climbs_on_the_previous_batch_at_once():
    results = []
    for engine in ("loop", "batched"):
        counted = Counted()
        sam = SAM(counted.module, rho=0.3, m=2, engine=engine, source=PreviousBatch())
        for step in range(3):
            for p in counted.module.parameters():
                p.grad = None
            sam.backward(counted.loss, *regression(step, examples=B))
        results.append([p.grad for p in counted.module.parameters()])
    assert_same(results[1], results[0])


# What may have changed is asked again


def auto(counted, loss=None, batch=None, **options):
    return counted.gradient(batch, loss=loss, engine="auto", **options)


CHANGED = {
    "hook": lambda module: module[0].register_forward_hook(lambda _, __, h: h * 1.0),
    "mode": lambda module: module.eval(),
    "layer": lambda module: module.__setitem__(1, nn.ReLU()),
    "frozen": lambda module: module[0].requires_grad_(False),
    "pruned": lambda module: prune.l1_unstructured(module[0], "weight", amount=0.4),
    "parametrized": lambda module: parametrizations.weight_norm(module[0]),
}


@pytest.mark.filterwarnings("ignore:the groups were run one after the other")
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", CHANGED)
def test_module_that_has_changed_is_tried_again_and_has_the_result_of_the_loop(name):
    counted, twin = Counted(), Counted()
    assert [auto(counted)[1] for _ in range(2)] == [3, 2]
    for module in (counted.module, twin.module):
        CHANGED[name](module)
    trainable = [p for p in counted.module.parameters() if p.requires_grad]
    expected = sam_gradient(
        twin.loss,
        [p for p in twin.module.parameters() if p.requires_grad],
        regression(examples=B),
        rho=0.3,
        m=2,
        engine="loop",
    ).gradients
    calls = []
    for _ in range(2):
        before = counted.calls
        found = sam_gradient(
            counted.loss,
            trainable,
            regression(examples=B),
            rho=0.3,
            m=2,
            module=counted.module,
            max_memory=ALL_AT_ONCE,
        )
        assert_same(found.gradients, expected)
        calls.append(counted.calls - before)
    assert calls[0] > 2


class Observed(nn.Module):
    """Statistics of activations that are switched on after a while, as in quantization-aware training."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.on = nn.Linear(4, 4), nn.Linear(4, 3), False
        self.register_buffer("ema", torch.zeros(4, dtype=torch.float64))

    def forward(self, x):
        h = self.a(x).tanh()
        if self.on:
            self.ema = 0.9 * self.ema + 0.1 * h.detach().mean(0)
        return self.b(h)


@pytest.mark.usefixtures("at_once")
def test_buffer_that_begins_to_move_is_moved_as_the_loop_moves_it():
    found = []
    for engine in ("loop", "auto"):
        counted = Counted(seeded(Observed()))
        gradients = []
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for step in range(4):
                counted.module.on = step > 0
                gradients.append(counted.gradient(engine=engine)[0])
        assert ["a change of the buffer ema" in str(w.message) for w in heard] == [True] * (engine == "auto")
        found.append((gradients, counted.module.ema))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        assert_same(b, a)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-13, atol=1e-13)


@pytest.mark.usefixtures("at_once")
def test_one_odd_batch_does_not_turn_the_batched_engine_off():
    counted = Counted()

    def loss(x, y):
        return counted.loss(x, y) if (x.abs() < 100.0).all() else 2.0 * counted.loss(x, y)

    x, y = regression(examples=B)
    odd = x.clone()
    odd[0] = 1000.0  # its group takes the other branch
    assert [auto(counted, loss)[1] for _ in range(2)] == [3, 2]
    found, calls = auto(counted, loss, (odd, y))
    assert calls == 2 + 2  # of the others and of the odd group; they part before the loss is called
    assert_same(found, _looped(counted, loss, (odd, y)))
    assert [auto(counted, loss)[1] for _ in range(2)] == [2, 2]


def _looped(counted, loss, batch):
    return counted.gradient(batch, loss=loss, engine="loop", max_memory=None)[0]


@pytest.mark.usefixtures("at_once")
def test_loss_that_never_runs_at_once_is_tried_ever_less_often_and_named_once():
    counted = Counted()

    def loss(x, y):
        value = counted.loss(x, y)
        return value * (1.0 + 0.0 * value.item())

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        calls = [auto(counted, loss)[1] for _ in range(40)]
    assert len(heard) == 1
    assert set(calls) == {6, 7}
    assert calls.count(7) < 10
    assert 7 in calls[10:]


def test_verdicts_of_one_model_are_bounded_in_number():
    from lowland.sam.batched.settled import MOST, verdicts_of

    counted = Counted(seeded(nn.Linear(4, 3)))
    for length in range(MOST + 10):
        counted.gradient(tuple(tensors(1, (2, 1 + length, 4), (2, 1 + length, 3))), m=1)
    assert len(verdicts_of(list(counted.module.parameters()))._found) == MOST
