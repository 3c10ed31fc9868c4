"""Steps that are recorded and replayed: when, what is refused, and that a check finds what no guard sees."""

import copy
import pickle
import random
import warnings
from contextvars import ContextVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland import SAM, Adaptive, sam_gradient
from lowland.sam import Captures, ClippedUnnormalized, Friendly, Random, Unnormalized, Weighted
from lowland.sam.ascent import Unified
from lowland.sam.batched.memory import Needs
from lowland.sam.captured import kind
from lowland.sam.captured.unrecordable import Stale

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3


@pytest.fixture(autouse=True)
def _in_double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def network(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), *between, nn.Tanh(), nn.Linear(6, 3))


def loss_of(model):
    def loss(x, y):
        return F.cross_entropy(model(x), y)

    return loss


class Twins:
    """A SAM that records, and one that does not, on models that are trained alike.

    Args:
        make: Makes a model.
        of: Makes its loss.
    """

    def __init__(self, make=network, of=loss_of, **options):
        options = {"rho": 0.1, "m": 2, "engine": "batched"} | options
        self.models = make(), make()
        self.sams = [
            SAM(m, capture=c, **options) for m, c in zip(self.models, ("off", "replay"), strict=True)
        ]
        self.losses = [of(model) for model in self.models]

    @property
    def captures(self):
        return self.sams[1].captures

    def step(self, *batch, seed=3, **options):
        """One step of both, which must find and leave the same."""
        found = []
        for sam, model, loss in zip(self.sams, self.models, self.losses, strict=True):
            torch.manual_seed(seed)
            value = sam.backward(loss, *batch, **options)
            values = value if isinstance(value, tuple) else (value,)
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            found.append([*values, *grads, *model.buffers(), torch.get_rng_state()])
            with torch.no_grad():
                for p in model.parameters():
                    if p.grad is not None:
                        p -= 0.1 * p.grad
                        p.grad = None
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=0.0, atol=0.0)
        return found[0]


def test_second_step_is_recorded_and_the_third_replayed():
    twins = Twins()
    counts = []
    for _ in range(5):
        twins.step(X.double(), Y)
        counts.append((twins.captures.run, twins.captures.recorded, twins.captures.replayed))
    assert counts == [(1, 0, 0), (2, 1, 0), (2, 1, 1), (2, 1, 2), (2, 1, 3)]


def test_capture_is_off_by_default():
    assert SAM(network(), rho=0.1).captures is None


@pytest.mark.parametrize(
    "options",
    [
        {"m": None},
        {"m": 1},
        {"m": 12},
        {"steps": 3, "step_size": 0.5},
        {"l2": 0.1},
        {"l2": 0.1, "steps": 2},
        {"ascent": Unnormalized()},
        {"ascent": ClippedUnnormalized()},
        {"ascent": Unified(0.3)},
        {"ascent": Adaptive()},
        {"ascent": Adaptive(by="filter")},
        {"combine": Weighted(0.6)},
        {"reduction": "sum"},
        {"diagnostics": True},
        {"rho": 0.0},
        {"perturb": "0.*"},
        {"weight": lambda x, _: float(len(x)) + 1.0},
        {"max_memory": 1 << 30},
    ],
)
def test_every_option_that_is_taken_finds_what_it_finds_uncaptured(options):
    twins = Twins(**options)
    for _ in range(4):
        twins.step(X.double(), Y)
    assert twins.captures.replayed == 2
    if options.get("diagnostics"):
        off, on = (sam.last_diagnostics for sam in twins.sams)
        assert torch.equal(off.cosine, on.cosine)
        assert torch.equal(off.perturbed_loss, on.perturbed_loss)


def test_radius_by_a_schedule_and_scale_are_read_anew():
    twins = Twins(rho=lambda step: 0.01 * (1 + step))
    for step in range(6):
        twins.step(X.double(), Y, scale=1.0 / (step + 2))
    assert twins.captures.replayed == 4
    assert twins.captures.recorded == 1


def test_dropout_draws_the_same_masks_in_all_passes_and_leaves_the_generator_where_it_was_left():
    twins = Twins(lambda: network(nn.Dropout(0.4)), steps=2)
    losses = [twins.step(X.double(), Y, seed=seed)[0] for seed in (3, 3, 4, 4, 5)]
    assert twins.captures.replayed == 3
    assert losses[2] != losses[4]


def test_running_statistics_move_for_twenty_steps_as_they_do_uncaptured():
    twins = Twins(lambda: network(nn.BatchNorm1d(6)), m=4)
    for step in range(20):
        twins.step(X.double() + step, Y)
    assert twins.captures.replayed == 18
    assert int(twins.models[1][1].num_batches_tracked) == 20 * 3


def test_ragged_batches_and_alternating_shapes_have_recordings_of_their_own():
    twins = Twins(m=4)
    for _ in range(4):
        for size in (12, 10, 8):
            twins.step(X[:size].double(), Y[:size])
    assert twins.captures.recorded == 2  # of three groups and of two; a single one is left to the loop
    assert twins.captures.replayed == 8


def test_chunks_of_a_batch_share_a_recording(monkeypatch):
    monkeypatch.setattr(Needs, "groups_at_once", lambda *_: 4)
    twins = Twins(m=1)
    for _ in range(3):
        twins.step(X.double(), Y)
    assert (twins.captures.run, twins.captures.recorded, twins.captures.replayed) == (2, 1, 7)


def test_climb_on_another_batch_is_recorded_too():
    twins = Twins(m=4)
    for step in range(5):
        twins.step(X.double(), Y, ascent_batch=(X.double().flip(0) + step, Y))
    assert twins.captures.replayed == 3


def test_entry_that_every_group_is_given_whole_is_read_anew():
    def of(model):
        def loss(x, y, scale):
            return F.cross_entropy(model(x) * scale, y)

        return loss

    twins = Twins(of=of, shared=["2"])
    for step in range(5):
        twins.step(X.double(), Y, torch.full((3,), 1.0 + step))
    assert twins.captures.replayed == 3


def test_aux_of_a_replay_is_joined_over_the_groups():
    def of(model):
        def loss(x, y):
            logits = model(x)
            return F.cross_entropy(logits, y), {"logits": logits, "mean": logits.mean()}

        return loss

    twins = Twins(of=of)
    for _ in range(4):
        twins.sams[1].backward(twins.losses[1], X.double(), Y)
        _, aux = twins.sams[1].backward(twins.losses[1], X.double(), Y)
        torch.testing.assert_close(aux["logits"], twins.models[1](X.double()).detach())
        assert aux["mean"].shape == (6,)


def test_gradient_that_is_not_finite_is_returned_as_it_is():
    twins = Twins()
    bad = X.double().clone()
    bad[3] = torch.inf
    for batch in (X, X, X, bad, X):
        for sam, loss, model in zip(twins.sams, twins.losses, twins.models, strict=True):
            model.zero_grad()
            sam.backward(loss, batch.double(), Y)
        off, on = ([p.grad for p in model.parameters()] for model in twins.models)
        for a, b in zip(off, on, strict=True):
            torch.testing.assert_close(a, b, rtol=0.0, atol=0.0, equal_nan=True)
    assert twins.captures.replayed == 2


def test_branch_of_the_loss_on_tensors_is_asked_by_the_replay():
    def of(model):
        def loss(x, y):
            logits = model(x)
            return F.cross_entropy(logits, y) * (2.0 if x.sum() > 0 else 1.0)

        return loss

    twins = Twins(of=of)
    positive = X.double().abs()
    for batch in (positive, positive, positive, -positive, positive):
        twins.step(batch, Y)
    assert twins.captures.replayed == 2


CLOCK = ContextVar("clock", default=1.0)


def test_state_that_nobody_sees_is_an_error_within_so_many_replays(monkeypatch):
    monkeypatch.setattr(kind, "CHECK_EVERY", 5)

    def of(model):
        def loss(x, y):
            return F.cross_entropy(model(x), y) * CLOCK.get()

        return loss

    model = network()
    sam = SAM(model, rho=0.1, m=2, engine="batched", capture="replay")
    for _ in range(2):
        sam.backward(of(model), X.double(), Y)
    CLOCK.set(1.5)
    try:
        for _ in range(4):
            sam.backward(of(model), X.double(), Y)
        before = [p.grad.clone() for p in model.parameters()]
        with pytest.raises(Stale, match="another value of the gradient of weight of a Linear"):
            sam.backward(of(model), X.double(), Y)
    finally:
        CLOCK.set(1.0)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert sam.captures.replayed == 4


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"engine": "loop"}, "engine='loop'"),
        ({"ascent": Random()}, "Random"),
        ({"ascent": Friendly()}, "Friendly"),
        ({"reduction": "sum", "weight": lambda *_: 1.0}, "reduction='sum' and weight="),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name(options, named):
    with pytest.raises(ValueError, match=f"capture must be 'off' with {named}.*got 'replay'"):
        SAM(network(), rho=0.1, m=2, **({"engine": "batched"} | options), capture="replay")


def test_weights_of_half_precision_are_refused_before_anything_is_touched():
    model = network().to(torch.bfloat16)
    sam = SAM(model, rho=0.1, m=2, engine="batched", capture="replay")
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="capture must be 'off' with weights of half precision"):
        sam.backward(loss_of(model), X.to(torch.bfloat16), Y)
    assert torch.equal(torch.get_rng_state(), state)
    assert sam.steps_done == 0


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"capture must be one of .*, got 'yes'"):
        SAM(network(), rho=0.1, capture="yes")
    with pytest.raises(ValueError, match="mode must be 'replay' or 'compile', got 'off'"):
        Captures("off")


def test_loss_that_counts_its_calls_runs_as_it_is_which_is_said_once():
    calls = [0]

    def of(model):
        def loss(x, y):
            calls[0] += 1
            return F.cross_entropy(model(x), y)

        return loss

    model = network()
    sam = SAM(model, rho=0.1, m=2, engine="batched", capture="replay")
    sam.backward(of(model), X.double(), Y)
    with pytest.warns(UserWarning, match="run as they are, and not replayed, because of a change of"):
        sam.backward(of(model), X.double(), Y)
    for _ in range(4):
        sam.backward(of(model), X.double(), Y)  # a second warning would be an error
    assert sam.captures.replayed == 0
    assert calls[0] >= 12


def test_kinds_that_change_too_often_are_given_up_and_named():
    model = network()
    settings = {"alpha": 0.0}

    def loss(x, y):
        return F.cross_entropy(model(x), y) + settings["alpha"] * model(x).square().mean()

    sam = SAM(model, rho=0.1, m=2, engine="batched", capture="replay")

    def train():
        for step in range(90):
            settings["alpha"] = 0.01 * (step // 3)
            sam.backward(loss, X.double(), Y)

    with pytest.warns(UserWarning, match="because of alpha, which the loss reaches, changes from call"):
        train()
    assert sam.captures.recorded <= kind.FAILURES + 1


def test_number_of_a_batch_that_is_another_in_each_call_is_said_once():
    model = network()

    def loss(x, y, k):
        return F.cross_entropy(model(x), y) * (1 + 0 * k)

    def train():
        for step in range(50):
            sam.backward(loss, X.double(), Y, step)

    sam = SAM(model, rho=0.1, m=2, engine="batched", capture="replay")
    with pytest.warns(
        UserWarning, match="more than 8 kinds of batches in turn: other shapes, numbers or"
    ) as said:
        train()
    assert len(said) == 1
    assert sam.captures.recorded == 0


def beside(loss_of_step, steps=8, m=2):
    """The losses that a SAM found that records and one that does not, with one loss for each step."""
    found = []
    for capture in ("off", "replay"):
        model = network()
        sam = SAM(model, rho=0.1, m=m, engine="batched", capture=capture)
        random.seed(5)
        found.append([float(sam.backward(*loss_of_step(model, step))) for step in range(steps)])
    return found, sam.captures


@pytest.mark.parametrize("numbers", [(1, True), (2.0, 2), (0.0, -0.0), (1 + 0j, 2 + 0j), ("a", b"a")])
def test_arguments_that_are_equal_and_not_the_same_are_other_kinds(numbers):
    kinds = {type(numbers[0]): 1.0, type(numbers[1]): 2.0}

    def loss_of_step(model, step):
        def loss(x, y, k):
            told = kinds[type(k)] if type(numbers[0]) is not type(numbers[1]) else 2 + len(repr(k)) + abs(k)
            return F.cross_entropy(model(x), y) * told

        return loss, X.double(), Y, numbers[step // 4]

    (plain, recorded), captures = beside(loss_of_step)
    assert recorded == plain
    assert captures.replayed == 4


class Coefficient:
    """Of a user's."""

    def __init__(self, value):
        self.value = value


@pytest.mark.filterwarnings("ignore:steps are run as they are.*an argument that is a Coefficient")
def test_object_among_the_arguments_is_no_part_of_a_recording():
    def loss_of_step(model, step):
        def loss(x, y, c):
            return F.cross_entropy(model(x), y) * c.value

        return loss, X.double(), Y, Coefficient(1.0 + step)

    found = []
    for capture in ("off", "replay"):
        model = network()
        sam = SAM(model, rho=0.1, m=2, engine="batched", capture=capture, shared=("2",))
        found.append([float(sam.backward(*loss_of_step(model, step))) for step in range(6)])
    assert found[0] == found[1]
    assert sam.captures.replayed == 0


@pytest.mark.filterwarnings("ignore:steps are run as they are.*Python's random generator")
def test_draw_of_python_is_no_part_of_a_recording_of_one_group():
    def loss_of_step(model, step):  # noqa: ARG001
        def loss(x, y):
            return F.cross_entropy(model(x), y) * (2.0 if random.random() < 0.3 else 1.0)

        return loss, X.double(), Y

    (plain, recorded), captures = beside(loss_of_step, steps=20, m=None)
    assert recorded == plain
    assert captures.replayed == 0


class Outer:
    """Holds a class of numbers."""

    class Inner:
        alpha = 1.0


def test_class_that_an_attribute_holds_is_looked_into():
    def loss_of_step(model, step):
        model.of = Outer
        Outer.Inner.alpha = 1.0 + step // 4

        def loss(x, y):
            return F.cross_entropy(model(x), y) * model.of.Inner.alpha

        return loss, X.double(), Y

    (plain, recorded), captures = beside(loss_of_step)
    assert recorded == plain
    assert captures.replayed > 0


def test_number_of_chosen_elements_is_asked_by_the_replay():
    numbers = torch.arange(1.0, 7.0)

    def loss_of_step(model, step):
        model.mask = torch.tensor([1, 1, 1, 0, 0, 0]) > 0 if step == 0 else model.mask
        if step == 5:
            model.mask[3] = True

        def loss(x, y):
            chosen = numbers[model.mask]
            return F.cross_entropy(model(x), y) * (chosen.sum() / len(chosen))

        return loss, X.double(), Y

    (plain, recorded), captures = beside(loss_of_step)
    assert recorded == plain
    assert captures.replayed > 0


def test_function_that_closes_over_itself_is_compared():
    def loss_of_step(model, step):  # noqa: ARG001
        def power(x, k):
            return x if k == 1 else x * power(x, k - 1)

        def loss(x, y):
            return F.cross_entropy(model(x), y) + power(model(x), 3).mean()

        return loss, X.double(), Y

    (plain, recorded), captures = beside(loss_of_step)
    assert recorded == plain
    assert captures.replayed == 6


def test_numbers_that_are_none_and_infinite_are_the_same_as_themselves(monkeypatch):
    monkeypatch.setattr(kind, "CHECK_EVERY", 2)
    odd = torch.tensor([torch.inf, torch.nan, -torch.inf])

    def loss_of_step(model, step):  # noqa: ARG001
        def loss(x, y):
            return F.cross_entropy(model(x), y), odd * x.mean().exp()

        return loss, X.double(), Y

    model = network()
    sam = SAM(model, rho=0.1, m=2, engine="batched", capture="replay")
    for step in range(8):
        sam.backward(*loss_of_step(model, step))
    assert sam.captures.replayed >= 2


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_gradient_that_is_zero_but_for_rounding_does_not_keep_a_step_from_being_compiled():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))  # of the first bias
    sam = SAM(model, rho=0.1, m=4, engine="batched", capture="compile")
    for _ in range(3):
        sam.backward(loss_of(model), X.double(), Y)
    assert sam.captures.replayed == 1


def test_what_the_compiler_cannot_do_is_replayed_which_is_said(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", fails)
    model = network()
    sam = SAM(model, rho=0.1, m=4, engine="batched", capture="compile")
    sam.backward(loss_of(model), X.double(), Y)
    with pytest.warns(UserWarning, match=r"replayed, and not compiled, because of no compiler\.$"):
        sam.backward(loss_of(model), X.double(), Y)
    sam.backward(loss_of(model), X.double(), Y)
    assert sam.captures.replayed == 1


@pytest.mark.filterwarnings("ignore:steps are run as they are.*puts generators back")
def test_loss_that_puts_a_generator_back_runs_as_it_is():
    def loss_of_step(model, step):  # noqa: ARG001
        def loss(x, y):
            with torch.random.fork_rng(devices=[]):
                noise = torch.randn(4)
            return F.cross_entropy(model(x + noise), y)

        return loss, X.double(), Y

    (plain, recorded), captures = beside(loss_of_step)
    assert recorded == plain
    assert captures.replayed == 0


@pytest.mark.parametrize("seed", range(6))
def test_dropout_is_recorded_whatever_it_draws(seed):
    torch.manual_seed(seed)
    model = network(nn.BatchNorm1d(6), nn.Dropout(0.3))
    sam = SAM(model, rho=0.1, m=3, engine="batched", capture="replay", steps=2, diagnostics=True)
    for _ in range(4):
        sam.backward(loss_of(model), X[:6].double(), Y[:6])
    assert sam.captures.recorded == 1


def test_penalty_and_scale_go_together():
    twins = Twins(l2=0.1)
    for _ in range(4):
        twins.step(X.double(), Y, scale=0.3)
    assert twins.captures.replayed == 2


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_compiled_training_that_converges_is_no_other_loss(monkeypatch):
    monkeypatch.setattr(kind, "CHECK_EVERY", 20)
    torch.manual_seed(0)
    x = torch.randn(16, 4)
    y = x @ torch.randn(4, 2)
    model = nn.Linear(4, 2)

    def loss(x, y):
        return F.mse_loss(model(x), y)

    sam = SAM(model, rho=1e-3, m=16, engine="batched", capture="compile")
    for _ in range(400):
        model.zero_grad()
        sam.backward(loss, x, y)
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.3 * p.grad
    assert sam.captures.replayed > 300


def test_eight_kinds_are_kept():
    model = network()
    sam = SAM(model, rho=0.1, m=1, engine="batched", capture="replay")
    for _ in range(3):
        for size in range(2, 13):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sam.backward(loss_of(model), X[:size].double(), Y[:size])
    assert len(sam.captures.kinds) == kind.MOST


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sam: pickle.loads(pickle.dumps(sam))])
def test_copy_of_a_sam_records_anew(copied):
    model = network()
    sam = SAM(model, rho=0.1, m=2, engine="batched", capture="replay")
    for _ in range(3):
        sam.backward(loss_of(model), X.double(), Y)
    other = copied(sam)
    assert other.captures.replayed == 0
    assert sam.captures.replayed == 1
    for _ in range(3):
        other.backward(loss_of(other.module), X.double(), Y)
    assert other.captures.replayed == 1


def test_modes_are_kept_apart_and_off_forgets_nothing_of_the_users():
    model = network()
    sam = SAM(model, rho=0.1, m=2, engine="batched", capture="replay")
    for _ in range(3):
        sam.backward(loss_of(model), X.double(), Y)
    sam.capture = "off"
    assert sam.captures is None
    sam.backward(loss_of(model), X.double(), Y)


def test_interrupt_in_a_replay_leaves_everything_as_it_was():
    model = network(nn.BatchNorm1d(6), nn.Dropout(0.3))
    sam = SAM(model, rho=0.1, m=4, engine="batched", capture="replay")
    loss = loss_of(model)
    for _ in range(3):
        sam.backward(loss, X.double(), Y)
    (known,) = sam.captures.kinds.values()
    replay = known.captured.replay

    def interrupted(*inputs):
        replay(*inputs)
        raise KeyboardInterrupt

    object.__setattr__(known.captured, "replay", interrupted)
    held = [*model.state_dict().values(), *[p.grad for p in model.parameters()]]
    before = [t.clone() for t in held]
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        sam.backward(loss, X.double(), Y)
    assert all(map(torch.equal, held, before))
    assert torch.equal(torch.get_rng_state(), state)
    assert sam.steps_done == 1


def test_error_in_a_replay_is_what_the_step_itself_says():
    model = network()
    sam = SAM(model, rho=0.1, m=2, engine="batched", capture="replay")
    loss = loss_of(model)
    for _ in range(3):
        sam.backward(loss, X.double(), Y)
    with pytest.raises((IndexError, RuntimeError), match=r"out of bounds|Target"):
        sam.backward(loss, X.double(), Y + 5)
    sam.backward(loss, X.double(), Y)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_compiled_step_agrees_to_rounding():
    model = network()
    found = []
    for capture in ("off", "compile"):
        sam = SAM(model, rho=0.1, m=2, engine="batched", capture=capture)
        for _ in range(3):
            model.zero_grad()
            sam.backward(loss_of(model), X.double(), Y)
        found.append([p.grad.clone() for p in model.parameters()])
    assert sam.captures.replayed == 1
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_function_keeps_what_it_recorded_where_it_is_told():
    model, captures = network(), Captures()
    params = dict(model.named_parameters())
    options = {"rho": 0.1, "m": 3, "engine": "batched"}
    expected = sam_gradient(loss_of(model), params, (X.double(), Y), **options).gradients
    for _ in range(3):
        found = sam_gradient(loss_of(model), params, (X.double(), Y), **options, captures=captures).gradients
        assert all(map(torch.equal, found, expected))
    assert repr(captures) == "Captures('replay', replayed=1, run=2, recorded=1)"
