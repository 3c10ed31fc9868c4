"""Steps that are replayed beside the same steps run as they are: bit for bit the same, or it is said.

A replay runs nothing of the loss's Python. So here losses read everything that Python can read, users change
everything that they may change between calls, and each call is compared with that of a SAM without capture.
"""

import array
import builtins
import collections
import contextlib
import contextvars
import copy
import dataclasses
import enum
import functools
import itertools
import operator
import os
import pickle
import random
import sys
import time
import types
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lowland import SAM
from lowland.sam import Adaptive, MicroBatches, Unified, Weighted
from lowland.sam.captured.unrecordable import Stale

STEPS, FEW = 13, 10
EVERY = 4
GLOBAL_OF_NUMPY, SEED_OF_NUMPY = np.random.get_state, np.random.seed
KIND = "lowland.sam.captured.kind"
NOT_REPLAYED = "run as they are, and not replayed"
IN_TURN = "run one after the other"


pytestmark = pytest.mark.usefixtures("at_once")


@pytest.fixture(autouse=True)
def checked_often(monkeypatch):
    """A replay is compared with the step itself every few times."""
    monkeypatch.setattr(f"{KIND}.CHECK_EVERY", EVERY)
    monkeypatch.setenv("LOWLAND_COEFFICIENT", "1.0")
    monkeypatch.setattr(builtins, "coefficient_of_all", 1.0, raising=False)
    monkeypatch.setattr(F, "coefficient", lambda: 1.0, raising=False)
    yield
    torch.set_default_dtype(torch.float32)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def layered(layer):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(6, 3)).double()


def tied():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3)).double()
    model[2].weight = model[0].weight
    return model


def with_buffer(name, value):
    model = network()
    model.register_buffer(name, value)
    return model


def examples(step, count=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1000 + step)
    x, y = (torch.randn(count, width, dtype=torch.float64, generator=generator) for width in (4, 3))
    return x.to(dtype), y.to(dtype)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


class Run:
    """A training of a few steps, and what each of them gave.

    The loss reaches the model through ``net`` alone: what else is here changes in each step.
    """

    def __init__(self, capture, **options):
        self.capture, self.steps, self.sams, self.length = capture, [], [], STEPS
        self.net, self.options = types.SimpleNamespace(), {"rho": 0.3, "m": 2, "engine": "batched", **options}

    def reset(self):
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(0), random.seed(0), SEED_OF_NUMPY(0)
        self.begin(network())

    def begin(self, model, **options):
        self.net.model, self.sams = model, []
        self.sam = self.another(**options)

    def another(self, **options):
        self.sams.append(SAM(self.net.model, capture=self.capture, **{**self.options, **options}))
        return self.sams[-1]

    def __iter__(self):
        return iter(range(self.length))

    def squares(self):
        return functools.partial(squares, self.net)

    def step(self, loss, *batch, zero=True, sam=None, noted=(), **options):
        model, sam = self.net.model, sam or self.sam
        if zero:
            model.zero_grad()
        try:
            value = sam.backward(loss, *(batch or examples(len(self.steps))), **options)
        except Stale:
            raise
        except Exception as error:
            value = type(error), str(error)
        with torch.no_grad():
            for p in model.parameters():
                p -= 0 if p.grad is None else 0.05 * p.grad.nan_to_num(0.0, 0.0, 0.0)
        told = sam.last_diagnostics
        seen = [value, [p.grad for p in model.parameters()], [*model.parameters()]]
        seen += [
            [*model.buffers()],
            noted,
            torch.get_rng_state(),
            hash(random.getstate()),
            GLOBAL_OF_NUMPY()[1].tobytes(),
            told and vars(told),
        ]
        self.steps.append(copy.deepcopy([tensors_alone(part) for part in seen]))

    @property
    def replayed(self):
        return sum(sam.captures.replayed for sam in self.sams)


def tensors_alone(value):
    """Without the parameters' history, hooks and attributes."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return [tensors_alone(v) for v in value] if isinstance(value, list) else value


def squares(net, x, y):
    return F.mse_loss(net.model(x), y)


def same(a, b):
    """Bit for bit, NaN included."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(*map(_finite, (a, b)))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


def _finite(tensor):
    return tensor.nan_to_num() if tensor.is_floating_point() else tensor


def differing(plain, captured):
    """Numbers of the steps that differ."""
    pairs = zip(plain.steps, captured.steps, strict=False)
    return [k for k, (a, b) in enumerate(pairs) if not same(a, b)]


def beside(case, expected="replayed", *, steps=STEPS, **options):
    """Runs a case with and without capture, and asserts what comes of it.

    Args:
        case: A function of a run.
        expected: "replayed" if steps are, and agree; "run" if they agree; "refused" if it is also said that
            none is replayed; "looped" if neither engine can; "said" where this is said, and they may differ
            after that; "stale" where an error comes soon after the first that differs.
        steps: How many.
        options: Options of SAM.
    """
    plain, captured = Run("off", **options), Run("replay", **options)
    plain.length = captured.length = steps
    told = {"refused": NOT_REPLAYED, "said": NOT_REPLAYED, "looped": IN_TURN}.get(expected)
    with pytest.warns(UserWarning, match=IN_TURN) if expected == "looped" else contextlib.nullcontext():
        in_own_context(plain, case)
    with pytest.warns(UserWarning, match=told) if told else contextlib.nullcontext():
        if expected == "stale":
            with pytest.raises(Stale, match="depends on something that changes out of sight"):
                in_own_context(captured, case)
            assert 0 < len(differing(plain, captured)) < EVERY
            return
        in_own_context(captured, case)
    assert len(plain.steps) == len(captured.steps)
    if expected == "said":
        assert captured.replayed == 0
    else:
        assert differing(plain, captured) == []
    if expected == "replayed":
        assert captured.replayed >= 2
    if expected == "refused":
        assert captured.replayed == 0


def in_own_context(run, case):
    run.reset()
    contextvars.copy_context().run(case, run)


# Losses that move something of Python's themselves

COUNT = 0
COEFFICIENT = 1.0
VARIABLE = contextvars.ContextVar("variable", default=1.0)


def in_a_closure(_):
    n = 0

    def tick():
        nonlocal n
        n += 1
        return n

    return tick


def in_a_global(_):
    global COUNT
    COUNT = 0

    def tick():
        global COUNT
        COUNT += 1
        return COUNT

    return tick


def in_an_attribute_of_the_model(run):
    net = run.net
    net.model.count = 0

    def tick():
        net.model.count += 1
        return net.model.count

    return tick


def in_a_class(_):
    class Config:
        n = 0

    def tick():
        Config.n += 1
        return Config.n

    return tick


def in_slots(_):
    counter = Slots()
    counter.c = 0

    def tick():
        counter.c += 1
        return counter.c

    return tick


def in_a_function(_):
    def tick():
        tick.n += 1
        return tick.n

    tick.n = 0
    return tick


def in_an_object(_):
    class Counter:
        n = 0

        def __call__(self):
            self.n += 1
            return self.n

    return Counter()


def in_the_environment(_):
    os.environ["LOWLAND_COEFFICIENT"] = "0"

    def tick():
        os.environ["LOWLAND_COEFFICIENT"] = str(1 + int(os.environ["LOWLAND_COEFFICIENT"]))
        return int(os.environ["LOWLAND_COEFFICIENT"])

    return tick


def in_a_tensor(read):
    n = number(0.0)
    return lambda: read(n.add_(1))


def in_a_context_variable(_):
    VARIABLE.set(0)

    def tick():
        VARIABLE.set(VARIABLE.get() + 1)
        return VARIABLE.get()

    return tick


def in_a_history(_):
    log = []

    def tick():
        log.append(1.0)
        return len(log)

    return tick


def in_a_short_deque(_):
    last = collections.deque([0], maxlen=2)

    def tick():
        last.append(last[-1] + 1)
        return last[-1]

    return tick


def adding(held, key=0):
    """A counter in something that has entries."""

    def tick(held=held):
        held[key] += 1
        return float(held[key])

    return tick


def of_a_generator():
    yield from range(1, 1000)


OWN = {
    "a closure": (in_a_closure, "refused"),
    "a global": (in_a_global, "refused"),
    "an attribute of the model": (in_an_attribute_of_the_model, "refused"),
    "an attribute of a class": (in_a_class, "refused"),
    "slots": (in_slots, "refused"),
    "an attribute of a function": (in_a_function, "refused"),
    "an object that is called": (in_an_object, "refused"),
    "a list that is a default": (lambda _: adding([0]), "refused"),
    "a dict": (lambda _: functools.partial(adding({"n": 0}, "n")), "refused"),
    "a partial": (lambda _: functools.partial(adding([0]), [5]), "refused"),
    "an array": (lambda _: adding(np.zeros(2)), "refused"),
    "the length of a history": (in_a_history, "refused"),
    "a short deque": (in_a_short_deque, "refused"),
    "a tensor": (lambda _: in_a_tensor(torch.clone), "replayed"),
    "a number of a tensor": (lambda _: in_a_tensor(torch.Tensor.item), "refused"),
    "a bytearray": (lambda _: adding(bytearray(1)), "said"),
    "a generator": (lambda _: functools.partial(next, of_a_generator()), "said"),
    "itertools.count": (lambda _: functools.partial(next, itertools.count()), "said"),
    "the environment": (in_the_environment, "said"),
    "a context variable": (in_a_context_variable, "said"),
    "the clock": (lambda _: time.perf_counter, "said"),
    "random.Random": (lambda _: random.Random(0).random, "said"),
    "numpy.random.Generator": (lambda _: np.random.default_rng(0).random, "said"),
}


def counted(make):
    def case(run):
        net, tick = run.net, make(run)
        for _ in run:
            run.step(lambda x, y: squares(net, x, y) * (1 + 0.01 * tick()))

    return case


@pytest.mark.parametrize("name", OWN)
def test_a_loss_that_counts_its_runs_is_not_replayed(name):
    make, expected = OWN[name]
    beside(counted(make), expected, steps=FEW)


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["random", "numpy"])
def test_global_generators_of_python_are_left_as_they_are(draw):
    beside(counted(lambda _: draw), "looped", steps=FEW, engine="auto")


@pytest.mark.parametrize("name", ["a closure", "an array", "slots", "a tensor", "a history"])
def test_what_a_loss_only_counts_is_counted_right(name):
    make = in_a_history if name == "a history" else OWN[name][0]

    def case(run):
        net, tick = run.net, make(run)

        def loss(x, y):
            tick()
            return squares(net, x, y)

        for _ in run:
            run.step(loss, noted=_read_by(tick))

    beside(case, "replayed" if name == "a tensor" else "refused")


def _read_by(function):
    """What a function holds: its defaults, and what it closes over."""
    held = [*(function.__defaults__ or ()), *(cell.cell_contents for cell in function.__closure__ or ())]
    return [getattr(thing, "c", None) if isinstance(thing, Slots) else thing for thing in held]


# Coefficients that are assigned between calls


class Slots:
    __slots__ = ("c",)

    def __init__(self):
        self.c = 1.0


class Plain:
    c = 1.0

    @classmethod
    def of_class(cls):
        return cls.c

    @property
    def twice(self):
        return 2 * self.c


class Inherits(Plain):
    def above(self):
        return super().twice


@dataclasses.dataclass
class Config:
    c: float = 1.0
    inner: object = None


class Colour(enum.Enum):
    RED = 1.0


Pair = collections.namedtuple("Pair", ["c", "d"])


def local_variable(_):
    c = 1.0

    def put(value):
        nonlocal c
        c = value

    return lambda: c, put


def global_variable(_):
    put = functools.partial(operator.setitem, globals(), "COEFFICIENT")
    put(1.0)
    return lambda: COEFFICIENT, put


def global_dict_by_name(_):
    put = functools.partial(operator.setitem, globals(), "COEFFICIENT")
    put(1.0)
    return lambda: globals()["COEFFICIENT"], put


def on(thing, read=None, name="c"):
    """An attribute."""
    setattr(thing, name, 1.0)
    return read or (lambda: getattr(thing, name)), functools.partial(setattr, thing, name)


def within(held, key, read=None):
    """An entry."""
    return read or (lambda: held[key]), functools.partial(operator.setitem, held, key)


def made_by_hand(_):
    module = types.ModuleType("made_by_hand")
    return on(module, lambda: module.c)


def of_the_class(_):
    return on(Plain, lambda: Plain.c)


def of_a_base_class(_):
    made = Inherits()
    return on(Plain, lambda: made.c)


def by_a_property(_):
    made = Inherits()
    return on(Plain, lambda: made.above())


def by_a_class_method(_):
    return on(Plain, Plain.of_class)


def in_a_nested_object(_):
    config = Config(inner=Config(inner=Config()))
    return on(config.inner.inner, lambda: config.inner.inner.c)


def in_an_enum(_):
    return on(Colour.RED, lambda: Colour.RED.value, "_value_")


def replaced_dataclass(_):
    held = [Config()]
    return lambda: held[0].c, lambda value: operator.setitem(held, 0, dataclasses.replace(held[0], c=value))


def tuple_in_a_dict(_):
    held = {"a": (1, (1.0,))}
    return lambda: held["a"][1][0], lambda value: held.update(a=(1, (value,)))


def named_tuple(_):
    held = [Pair(1.0, 2.0)]
    return lambda: held[0].c, lambda value: operator.setitem(held, 0, Pair(value, 2.0))


def in_a_set(_):
    held = {1.0}

    def put(value):
        held.clear()
        held.add(value)

    return lambda: sum(held), put


def number_or_truth(_):
    held = [1]
    return lambda: 3.0 if held[0] is True else 2.0, lambda _: operator.setitem(held, 0, True)


def sign_of_zero(_):
    held = [0.0]
    return lambda: float(np.copysign(2.0, held[0])), lambda _: operator.setitem(held, 0, -0.0)


def replaced_function(_):
    held = [lambda: 1.0]
    return lambda: held[0](), lambda value: operator.setitem(held, 0, lambda: value)


def patched_forward(run):
    layer = run.net.model[1]
    return lambda: 1.0, lambda value: setattr(layer, "forward", lambda x: value * torch.tanh(x))


def replaced_default(_):
    def read(c=1.0):
        return c

    return read, lambda value: setattr(read, "__defaults__", (value,))


def replaced_code(_):
    def read():
        return 1.0

    return read, lambda value: setattr(read, "__code__", eval(f"lambda: {value!r}").__code__)


def patched_function(_):
    F.coefficient = lambda: 1.0
    return lambda: F.coefficient(), lambda value: setattr(F, "coefficient", lambda: value)


def in_an_environment_variable(_):
    name = "LOWLAND_COEFFICIENT"
    os.environ[name] = "1.0"
    return lambda: float(os.environ[name]), lambda value: operator.setitem(os.environ, name, str(value))


def held_weakly(_):
    weak = weakref.ref(KEPT)
    return on(KEPT, lambda: weak().c)


def held_by_a_generator(_):
    held = [1.0]

    def numbers():
        while True:
            yield held[0]

    return functools.partial(next, numbers()), functools.partial(operator.setitem, held, 0)


def past_the_thousandth(_):
    held = [[1.0] for _ in range(1500)]
    return within(held[-1], 0, lambda: held[-1][0])


def of_an_optimizer(run):
    group = torch.optim.SGD(run.net.model.parameters(), lr=1.0).param_groups[0]
    optimizer = torch.optim.SGD([group], lr=1.0)
    return within(optimizer.param_groups[0], "lr", lambda: optimizer.param_groups[0]["lr"])


def of_a_parameter(run):
    weight = run.net.model[0].weight
    return on(weight, lambda: weight.c)


def tensor(read, write=lambda tensor, value: tensor.fill_(value)):
    def make(_):
        held = torch.ones(2, dtype=torch.float64)
        return lambda: read(held), lambda value: write(held, value)

    return make


def replaced_tensor(_):
    held = [number(1.0)]
    return lambda: held[0], lambda value: operator.setitem(held, 0, number(value))


def tensor_of_an_array(_):
    numbers = np.ones(2)
    held = torch.from_numpy(numbers)
    return within(numbers, 0, lambda: held[0])


def array_of_a_tensor(_):
    held = torch.ones(2, dtype=torch.float64)
    numbers = held.numpy()
    return lambda: float(numbers[0]), held.fill_


def in_a_buffer(run):
    run.begin(with_buffer("c", number(1.0)))
    net = run.net
    return lambda: net.model.c, lambda value: net.model.c.fill_(value)


def in_a_replaced_buffer(run):
    run.begin(with_buffer("c", number(1.0)))
    net = run.net
    return lambda: net.model.c, lambda value: setattr(net.model, "c", number(value))


def default_type(_):
    types_ = itertools.cycle((torch.float64, torch.float32))
    return lambda: torch.tensor(0.1).double(), lambda _: torch.set_default_dtype(next(types_))


KEPT = Config()

GUARDED = {
    "an optimizer": of_an_optimizer,
    "a local variable": local_variable,
    "a global": global_variable,
    "a class": of_the_class,
    "a base class": of_a_base_class,
    "a property": by_a_property,
    "a class method": by_a_class_method,
    "a nested object": in_a_nested_object,
    "a namespace": lambda _: on(types.SimpleNamespace()),
    "a dataclass": lambda _: on(Config()),
    "a dataclass that is replaced": replaced_dataclass,
    "slots": lambda _: on(Slots()),
    "an enum": in_an_enum,
    "a list": lambda _: within([1.0], 0),
    "a default dict": lambda _: within(collections.defaultdict(lambda: 1.0), "c"),
    "a tuple in a dict": tuple_in_a_dict,
    "a named tuple": named_tuple,
    "a set": in_a_set,
    "a number that becomes a truth": number_or_truth,
    "the sign of zero": sign_of_zero,
    "an array": lambda _: within(np.array([1.0, np.nan]), 0),
    "a function that is replaced": replaced_function,
    "an attribute of a function": lambda _: on(in_a_closure),
    "a forward method": patched_forward,
    "an attribute of a layer": lambda run: on(run.net.model[1]),
    "a tensor in place": tensor(lambda t: t[0]),
    "a tensor's data": tensor(lambda t: t[0], lambda t, v: setattr(t, "data", torch.full_like(t, v))),
    "a tensor that is replaced": replaced_tensor,
    "a tensor of an array's memory": tensor_of_an_array,
    "an array of a tensor's memory": array_of_a_tensor,
    "a buffer in place": in_a_buffer,
    "a buffer that is replaced": in_a_replaced_buffer,
    "the default type": default_type,
}

READ_FROM_TENSORS = {
    "item": tensor(lambda t: t[0].item()),
    "float": tensor(lambda t: float(t[0])),
    "tolist": tensor(lambda t: t.tolist()[0]),
    "numpy": tensor(lambda t: float(t.numpy()[0])),
    "asarray": tensor(lambda t: float(np.asarray(t)[0])),
    "an index": tensor(lambda t: (1.0, 2.0, 3.0)[int(t[0])]),
}

OUT_OF_SIGHT = {
    "a module made by hand": made_by_hand,
    "the environment": in_an_environment_variable,
    "a context variable": lambda _: (VARIABLE.get, VARIABLE.set),
    "globals by name": global_dict_by_name,
    "builtins": lambda _: on(builtins, lambda: coefficient_of_all, "coefficient_of_all"),
    "a function of torch": patched_function,
    "a weak reference": held_weakly,
    "a generator held open": held_by_a_generator,
    "a default that is replaced": replaced_default,
    "code that is replaced": replaced_code,
    "a user's dict": lambda _: within(collections.UserDict(c=1.0), "c"),
    "an array of Python": lambda _: within(array.array("d", [1.0]), 0),
    "an attribute of a parameter": of_a_parameter,
    "a long list's last entry": past_the_thousandth,
}


def annealed(make, every):
    """A coefficient of the loss that is assigned every few steps."""

    def case(run):
        read, put = make(run)
        net = run.net

        def loss(x, y):
            return squares(net, x, y) * read()

        for k in run:
            if k and k % every == 0:
                put(1.0 + 0.013 * k)
            run.step(loss)

    return case


@pytest.mark.parametrize("name", GUARDED)
def test_a_coefficient_that_changes_every_seven_steps_is_seen(name):
    beside(annealed(GUARDED[name], 7), steps=FEW)


@pytest.mark.parametrize("name", ["a local variable", "slots", "an array"])
def test_a_coefficient_that_changes_in_every_step_is_seen(name):
    beside(annealed(GUARDED[name], 1), "run")


def test_what_changes_in_every_step_is_given_up_and_said(monkeypatch):
    monkeypatch.setattr(f"{KIND}.FAILURES", 1)
    beside(annealed(local_variable, 1), "refused")


@pytest.mark.parametrize("name", READ_FROM_TENSORS)
def test_a_number_that_python_reads_from_a_tensor_is_refused(name):
    beside(annealed(READ_FROM_TENSORS[name], 7), "refused", steps=FEW)


def test_a_branch_that_python_takes_on_a_tensor_is_asked_by_the_replay():
    beside(annealed(tensor(lambda t: 1.0 if t[0] > 1.05 else 2.0), 7))


@pytest.mark.parametrize("name", OUT_OF_SIGHT)
def test_what_changes_out_of_sight_is_an_error_soon(name):
    beside(annealed(OUT_OF_SIGHT[name], 7), "stale", steps=FEW)


def test_a_module_of_the_users_that_a_loss_names_is_seen(tmp_path, monkeypatch):
    (tmp_path / "coefficients.py").write_text("c = 1.0\nd = 1.0\n\ndef read():\n    return c\n")
    monkeypatch.syspath_prepend(tmp_path)
    import coefficients

    def of_a_module(_):
        coefficients.c = 1.0
        return lambda: coefficients.c, functools.partial(setattr, coefficients, "c")

    def by_its_function(_):
        coefficients.c = 1.0
        return lambda: coefficients.read(), functools.partial(setattr, coefficients, "c")

    beside(annealed(of_a_module, 7))
    beside(annealed(by_its_function, 7))
    del sys.modules["coefficients"]


def test_after_the_error_all_is_as_it_was_and_steps_are_run_as_they_are():
    """The same call once more makes the step, as it is."""
    failed = []

    def case(run):
        read, put = made_by_hand(run)
        net = run.net

        def loss(x, y):
            return squares(net, x, y) * read()

        for k in run:
            put(1.0 + (k >= 9))  # the eighth replay, which is compared
            try:
                run.step(loss)
            except Stale:
                failed.append(k)
                run.step(loss)

    plain, captured = Run("off"), Run("replay")
    in_own_context(plain, case)
    in_own_context(captured, case)
    assert failed == [9]
    assert differing(plain, captured) == []
    assert captured.replayed == 2 * (EVERY - 1)


# What users change between calls


def swap(module, name, value):
    return setattr(module, name, value)


def frozen_in_turn(run, k):
    run.net.model[0].weight.requires_grad_(k % 12 < 6)


def hook_in_turn(run, k):
    if k == 7:
        run.handle = run.net.model[1].register_forward_hook(lambda *a: 2 * a[-1])
    if k == 12:
        run.handle.remove()


def hook_of_all_modules(run, k):
    if k == 7:
        run.handle = nn.modules.module.register_module_forward_hook(lambda *a: 2 * a[-1])
    if k == STEPS - 1:
        run.handle.remove()


def at(when, change):
    """A change of the model before one step."""
    return lambda run, k: change(run.net.model) if k == when else None


def scaled_in_place(model):
    with torch.no_grad():
        model[0].weight.mul_(1.1)


def replaced_data(model):
    model[0].weight.data = 1.1 * model[0].weight.detach().t().contiguous().t()


def loaded(model, **options):
    state = {name: value * 0.9 for name, value in model.state_dict().items()}
    model.load_state_dict(state, **options)


CHANGES = {
    "nothing": (network, lambda *_: None),
    "dropout in train and eval mode": (
        lambda: layered(nn.Dropout(0.5)),
        lambda run, k: run.net.model.train(k % 12 < 6),
    ),
    "batch norm in train and eval mode": (
        lambda: layered(nn.BatchNorm1d(6)),
        lambda run, k: run.net.model.train(k % 12 < 6),
    ),
    "dropout's p": (
        lambda: layered(nn.Dropout(0.5)),
        lambda run, k: swap(run.net.model[1], "p", 0.1 * (k // 6)),
    ),
    "the seed": (lambda: layered(nn.Dropout(0.5)), lambda _, k: torch.manual_seed(k) if k % 4 == 3 else None),
    "the momentum of batch norm": (
        lambda: layered(nn.BatchNorm1d(6)),
        lambda run, k: swap(run.net.model[1], "momentum", 0.1 * (1 + k // 6)),
    ),
    "running statistics": (lambda: layered(nn.BatchNorm1d(6)), at(8, lambda m: m[1].reset_running_stats())),
    "a hook": (network, hook_in_turn),
    "a hook before": (network, at(7, lambda m: m[1].register_forward_pre_hook(lambda _, x: (2 * x[0],)))),
    "a hook of all modules": (network, hook_of_all_modules),
    "weights in place": (network, lambda run, _: scaled_in_place(run.net.model)),
    "a weight's data": (network, lambda run, k: replaced_data(run.net.model) if k % 2 else None),
    "a state that is loaded": (network, at(7, loaded)),
    "a state that is assigned": (network, at(7, lambda m: loaded(m, assign=True))),
    "a parameter": (network, at(7, lambda m: swap(m[0], "weight", nn.Parameter(1.1 * m[0].weight.detach())))),
    "a layer": (network, at(7, lambda m: operator.setitem(m, 1, nn.Sigmoid()))),
    "a layer with weights": (network, at(7, lambda m: operator.setitem(m, 0, nn.Linear(4, 6).double()))),
    "the class of a layer": (network, at(7, lambda m: swap(m[1], "__class__", nn.Sigmoid))),
    "what is frozen": (network, frozen_in_turn),
    "a layer that stays frozen": (network, at(0, lambda m: m[2].requires_grad_(False))),
    "tied weights": (tied, lambda *_: None),
    "tied weights that part": (tied, at(7, lambda m: swap(m[2], "weight", copy.deepcopy(m[0].weight)))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_calls_is_seen(name):
    make, change = CHANGES[name]

    def case(run):
        run.begin(make())
        for k in run:
            change(run, k)
            run.step(run.squares())

    beside(case)


def test_a_network_that_becomes_double_is_seen():
    def case(run):
        run.begin(network(torch.float32))
        for k in run:
            if k == 7:
                run.net.model.double()
            run.step(run.squares(), *examples(k, dtype=torch.float64 if k > 6 else torch.float32))

    beside(case)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: operator.setitem(t, 1, nn.ReLU()),
        lambda t: swap(t[0], "weight", nn.Parameter(2 * t[0].weight, requires_grad=False)),
        lambda t: t[1].register_forward_hook(lambda *a: 2 * a[-1]),
        lambda t: t[0].weight.mul_(0.5),
        lambda t: t.eval(),
    ],
    ids=["a layer", "a weight", "a hook", "weights in place", "its mode"],
)
def test_a_teacher_that_changes_is_seen(change):
    def case(run):
        torch.manual_seed(3)
        teacher = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2), nn.Linear(6, 3)).double()
        teacher.requires_grad_(False)
        net = run.net
        for k in run:
            if k == 7:
                change(teacher)
            run.step(lambda x, y: F.mse_loss(net.model(x), teacher(x)) + squares(net, x, y))

    beside(case)


# Options that are assigned


ASSIGNED = {
    "rho": lambda sam, k: swap(sam, "rho", 0.02 * (k % 5)),
    "a schedule": lambda sam, _: swap(sam, "rho", lambda step: 0.1 + 0.01 * step),
    "perturb": lambda sam, k: swap(sam, "perturb", [None, "0.weight", "*.bias"][k // 4 % 3]),
    "m": lambda sam, k: swap(sam, "m", (1, 2, 3)[k // 4 % 3]),
    "l2": lambda sam, k: swap(sam, "l2", (0.0, 0.1, 0.2)[k // 4 % 3]),
    "steps": lambda sam, k: swap(sam, "steps", (1, 2, 3)[k // 4 % 3]),
    "step_size": lambda sam, k: swap(sam, "step_size", (1.0, 0.5)[k // 4 % 2]),
    "combine": lambda sam, k: swap(sam, "combine", (None, Weighted(0.5), Weighted(0.25))[k // 4 % 3]),
    "ascent": lambda sam, k: swap(sam, "ascent", (None, Adaptive(eta=0.01), Unified(0.7))[k // 4 % 3]),
    "an ascent with another number": lambda sam, k: swap(sam, "ascent", Adaptive(eta=0.1 + k // 5)),
    "an ascent with another exponent": lambda sam, k: swap(sam, "ascent", Unified(0.1 + 0.3 * (k // 6))),
    "bn_stats": lambda sam, k: swap(sam, "bn_stats", ("first", "frozen")[k // 4 % 2]),
    "reduction": lambda sam, k: swap(sam, "reduction", ("sum", "mean")[k // 4 % 2]),
    "diagnostics": lambda sam, k: swap(sam, "diagnostics", k // 4 % 2 == 1),
    "max_memory": lambda sam, k: swap(sam, "max_memory", (None, 2000)[k // 6 % 2]),
    "weight": lambda sam, k: swap(sam, "weight", None if k < 8 else lambda x, _: float(x.sum().abs())),
}


@pytest.mark.parametrize("name", ASSIGNED)
def test_options_may_be_assigned_between_calls(name):
    def case(run):
        run.begin(layered(nn.BatchNorm1d(6)))
        if name == "an ascent with another exponent":
            run.sam.ascent = Unified(0.1)
        for k in run:
            ASSIGNED[name](run.sam, k)
            run.step(run.squares())

    beside(case)


@pytest.mark.parametrize("part", [Unified(0.3), Adaptive(eta=0.3)], ids=["Unified", "Adaptive"])
def test_an_ascent_whose_own_number_is_assigned_is_seen(part):
    name = "lam" if isinstance(part, Unified) else "eta"

    def case(run):
        run.sam.ascent = copy.deepcopy(part)
        for k in run:
            if k == 7:
                object.__setattr__(run.sam.ascent, name, 0.9)
            run.step(run.squares())

    beside(case)


def test_gradients_may_be_accumulated_over_calls_with_a_scale():
    def case(run):
        for k in run:
            run.step(run.squares(), scale=1 / (1 + k % 3), zero=k % 3 == 0)

    beside(case)


# Batches


def other_kinds(k):
    mask = torch.rand(6, 3, generator=torch.Generator().manual_seed(k)) > 0.5
    kinds = mask, mask.double(), mask.t().contiguous().t()
    return [*examples(k), kinds[k // 5 % 3]]


def other_strides(k):
    x, y = examples(k)
    wide = torch.cat([x, x], 1)
    return [(x, x.t().contiguous().t(), x[:1].expand(6, 4), wide[:, ::2])[k // 4 % 4], y]


def spoilt(k, by):
    x, y = examples(k)
    return [x * (by if k == 8 else 1.0), y]


BATCHES = {
    "ragged": (lambda k: examples(k, 5 if k % 4 == 3 else 6), None),
    "of alternating shapes": (lambda k: examples(k, (4, 6, 8)[k % 3]), None),
    "with other strides": (other_strides, None),
    "with masks of other kinds": (other_kinds, lambda net, x, y, m: ((net.model(x) - y).square() * m).mean()),
    "whose strides python asks for": (
        other_strides,
        lambda net, x, y: squares(net, x, y) * (1 + x.is_contiguous()),
    ),
    "whose sizes python multiplies with": (
        lambda k: examples(k, (4, 6)[k % 2]),
        lambda net, x, y: squares(net, x, y) * x.shape[0],
    ),
    "with numbers": (
        lambda k: [dict(zip("xyc", [*examples(k), 1.0 + k // 6], strict=True))],
        lambda net, b: squares(net, b["x"], b["y"]) * b["c"],
    ),
    "with other keys": (
        lambda k: [dict(zip("xyz" if k // 4 % 2 else "xy", [*examples(k), examples(k)[1]], strict=False))],
        lambda net, b: squares(net, b["x"], b["y"]) * (1 + ("z" in b)),
    ),
    "that decide on a branch": (
        lambda k: spoilt(k, -1.0) if k % 2 else [examples(k)[0].abs(), examples(k)[1]],
        lambda net, x, y: squares(net, x, y) if x.sum() > 0 else net.model(x).square().mean(),
    ),
    "with a zero gradient in the middle": (
        lambda k: spoilt(k, 0.0),
        lambda net, x, y: (net.model(x) * x[:, :3] + 0 * y).mean(),
    ),
    "with an infinity in the middle": (lambda k: spoilt(k, float("inf")), None),
    "with a NaN in the middle": (lambda k: spoilt(k, float("nan")), None),
    "with a wrong shape in the middle": (lambda k: [examples(k)[0][:, : 4 - (k == 8)], examples(k)[1]], None),
    "with a label out of range in the middle": (
        lambda k: [examples(k)[0], torch.full((6,), 3 if k == 8 else 1)],
        lambda net, x, y: F.cross_entropy(net.model(x), y),
    ),
    "that are one tensor twice": (
        lambda k: [examples(k)[0]] * 2,
        lambda net, x, y: squares(net, x, y[:, :3]),
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_may_be_of_any_kind(name):
    batch, loss = BATCHES[name]

    def case(run):
        for k in run:
            run.step(functools.partial(loss or squares, run.net), *batch(k))

    beside(case)


SHARED = {
    "other numbers": (lambda k: torch.full((3,), 1.0 + k, dtype=torch.float64), "replayed"),
    "other sizes": (lambda k: torch.full((1 + 2 * (k // 8),), 1.0 + k, dtype=torch.float64), "replayed"),
}


@pytest.mark.parametrize("name", SHARED)
def test_entries_that_all_groups_share_may_change(name):
    shared, expected = SHARED[name]

    def case(run):
        net = run.net
        for k in run:
            run.step(lambda x, y, w: ((net.model(x) - y).square() * w).mean(), *examples(k), shared(k))

    beside(case, expected, shared=["2"])


def test_a_shared_number_that_python_reads_is_refused():
    def case(run):
        net = run.net
        for k in run:
            run.step(lambda x, y, w: squares(net, x, y) * w.item(), *examples(k), number([1.0 + k]))

    beside(case, "refused", shared=["2"])


def test_the_climb_may_see_other_examples_in_turn():
    def case(run):
        for k in run:
            run.step(run.squares(), ascent_batch=examples(100 + k) if k // 4 % 2 else None)

    beside(case)


def test_micro_batches_may_come_in_turn():
    def case(run):
        for k in run:
            x, y = examples(k)
            parts = MicroBatches([(x[:4], y[:4]), (x[4:], y[4:])])
            run.step(run.squares(), *([parts] if k % 3 == 2 else [x, y]))

    beside(case, engine="auto")


# Losses


def boolean_mask(net, x, y):
    return (net.model(x) - y)[:, net.model.chosen].square().mean()


def own_autocast(net, x, y):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net.model(x)
    return F.mse_loss(outputs.float(), y)


def caught(net, x, y):
    with contextlib.suppress(RuntimeError):
        y.new_ones(2) @ y.new_ones(3).view(1, 1, 3)
    return squares(net, x, y)


LOSSES = {
    "with noise": (network, lambda net, x, y: squares(net, x + 0.1 * torch.randn_like(x), y)),
    "with dropout": (lambda: layered(nn.Dropout(0.5)), squares),
    "with batch norm": (lambda: layered(nn.BatchNorm1d(6)), squares),
    "of each example": (network, lambda net, x, y: (net.model(x) - y).square().mean(1)),
    "with a checkpoint": (
        network,
        lambda net, x, y: F.mse_loss(checkpoint(net.model, x, use_reentrant=False), y),
    ),
    "with tensors beside": (network, lambda net, x, y: (squares(net, x, y), {"out": net.model(x), "y": y})),
    "times a whole number": (network, lambda net, x, y: 2 * squares(net, x, y)),
    "that indexes by a list": (network, lambda net, x, y: (net.model(x) - y)[:, [0, 2]].square().mean()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_replayed_as_they_are(name):
    make, loss = LOSSES[name]

    def case(run):
        run.begin(make())
        for _ in run:
            run.step(functools.partial(loss, run.net))

    beside(case, diagnostics=name in ("with noise", "of each example", "with batch norm"))


@pytest.mark.parametrize(
    "indices", [torch.tensor([True, False, True]), torch.tensor([0, 2])], ids=["mask", "ids"]
)
def test_an_index_in_a_buffer_may_change(indices):
    def case(run):
        run.begin(with_buffer("chosen", indices.clone()))
        for k in run:
            if k == 7:
                run.net.model.chosen.copy_(
                    indices.flip(0) if indices.dtype == torch.int64 else indices.roll(1)
                )
            run.step(functools.partial(boolean_mask, run.net))

    beside(case)


def test_a_mask_may_choose_more_later():
    def case(run):
        run.begin(with_buffer("chosen", torch.tensor([True, False, True])))
        for k in run:
            run.net.model.chosen[1] = k >= 7
            run.step(functools.partial(boolean_mask, run.net))

    beside(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_a_call_may_come_and_go(dtype):
    def case(run):
        run.begin(network(torch.float32))
        for k in run:
            with torch.autocast("cpu", dtype, enabled=k >= 5):
                run.step(run.squares(), *examples(k, dtype=torch.float32))

    beside(case)


def test_autocast_inside_a_loss_is_replayed():
    def case(run):
        run.begin(network(torch.float32))
        for k in run:
            run.step(functools.partial(own_autocast, run.net), *examples(k, dtype=torch.float32))

    beside(case)


IN_TURN_ONLY = {
    "the data of activations": lambda net, x, y: (
        ((net.model(x) - y) * net.model(x).data.abs()).square().mean()
    ),
    "a number beside": lambda net, x, y: (squares(net, x, y), net.model(x).sum().item()),
    "a number of the weights": lambda net, x, y: squares(net, x, y) * net.model[0].weight.abs().sum().item(),
    "cumulative batch norm": squares,
    "an error that is caught": caught,
}


@pytest.mark.parametrize("name", IN_TURN_ONLY)
def test_what_cannot_be_run_at_once_is_not_replayed_either(name):
    def case(run):
        run.begin(layered(nn.BatchNorm1d(6, momentum=None)) if "batch norm" in name else network())
        for _ in run:
            run.step(functools.partial(IN_TURN_ONLY[name], run.net))

    beside(case, "looped", steps=FEW, engine="auto")


def test_a_log_of_losses_goes_on():
    def case(run):
        net, log = run.net, []

        def loss(x, y):
            value = squares(net, x, y)
            log.append(value.detach())
            return value

        for _ in run:
            run.step(loss, noted=torch.stack(log) if log else None)

    beside(case, "looped", steps=FEW, engine="auto")


def test_a_loss_that_seeds_is_refused():
    def case(run):
        net = run.net

        def loss(x, y):
            torch.manual_seed(5)
            return squares(net, x + 0.1 * torch.randn_like(x), y)

        for _ in run:
            run.step(loss)

    beside(case, "refused")


@pytest.mark.parametrize("when", [{8}, {0, 1, 2, 9}], ids=["once", "while it is recorded"])
def test_an_error_of_the_loss_is_the_users(when):
    def case(run):
        net, step = run.net, [0]

        def loss(x, y):
            if step[0]:
                raise ArithmeticError("a number that cannot be")
            return squares(net, x, y)

        for k in run:
            step[0] = k in when
            run.step(loss)
            if k in when:
                assert run.steps[-1][0] == (ArithmeticError, "a number that cannot be")

    beside(case, "run")


# Losses and SAMs made anew


def made_with(k, net):
    weights = torch.full((3,), 1.0 + k // 6, dtype=torch.float64)
    return lambda x, y: ((net.model(x) - y).square() * weights).mean()


ANEW = {
    "a lambda": (lambda _, net: lambda x, y: squares(net, x, y), "replayed"),
    "a lambda over another number": (
        lambda k, net: over_a_number(1 + k // 6, net),
        "replayed",
    ),
    "a lambda over another tensor": (made_with, "run"),
    "a partial": (lambda k, net: functools.partial(times, 1.0 + k // 6, net), "replayed"),
}


def over_a_number(c, net):
    return lambda x, y: c * squares(net, x, y)


def times(c, net, x, y):
    return c * squares(net, x, y)


@pytest.mark.parametrize("name", ANEW)
def test_a_loss_that_is_made_anew_is_compared(name):
    make, expected = ANEW[name]

    def case(run):
        for k in run:
            run.step(make(k, run.net))

    beside(case, expected)


def test_two_losses_have_their_own_steps():
    def case(run):
        net = run.net
        losses = [run.squares(), lambda x, y: net.model(x).abs().mean() + y.mean()]
        for k in run:
            run.step(losses[k % 2])

    beside(case)


def test_two_sams_of_one_model_have_their_own_steps():
    def case(run):
        sams = run.sam, run.another(rho=0.1, m=3)
        for k in run:
            run.step(run.squares(), sam=sams[k % 2])

    beside(case)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_a_sam_goes_on(copied):
    def case(run):
        for k in run:
            if k == 6:
                run.sam, run.net.model = copied((run.sam, run.net.model))
                run.sams.append(run.sam)
            run.step(run.squares())

    beside(case)


def test_a_sum_may_have_weights_of_its_own():
    def case(run):
        net = run.net
        for k in run:
            run.step(
                lambda x, y: F.mse_loss(net.model(x), y, reduction="sum"),
                *examples(k, 5 if k % 4 == 3 else 6),
            )

    beside(case, reduction="sum")


def test_a_weight_that_keeps_count_is_asked_in_each_step():
    def case(run):
        count = itertools.count(1)
        run.begin(network(), weight=lambda *_: float(next(count) % 7 + 1))
        for _ in run:
            run.step(run.squares())

    beside(case)
