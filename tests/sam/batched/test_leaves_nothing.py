"""Nothing of a call is left behind, neither after success nor after an exception."""

import contextlib
import functools
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as modules
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from lowland import SAM, sam_gradient
from lowland.sam.batched.weights import Weight
from lowland.sam.unbatchable import Unbatchable

from ..naive import Count, bits, buffers_of, seeded, tensors

B = 6


def network(**options):
    layers = [nn.Linear(4, 5), nn.BatchNorm1d(5, **options), nn.ReLU(inplace=True), nn.Linear(5, 3)]
    return seeded(nn.Sequential(*layers))


def batch():
    return tensors(1, (B, 4), (B, 3))


class Mistake(Exception):
    """The user's own."""


class Failing:
    """A loss that raises in its n-th call, after the forward pass."""

    def __init__(self, module, call=None, error=Mistake):
        self.module, self.call, self.error, self.calls = module, call, error, Count()

    def __call__(self, x, y):
        self.calls.add()
        value = (self.module(F.dropout(x, 0.1)) - y).square().mean()
        if len(self.calls) == self.call:
            raise self.error("the user's own words")
        return value


def attributes(module):
    return {
        name: {
            key: sorted(map(str, value)) if isinstance(value, dict) else id(value)
            for key, value in vars(child).items()
            if key != "training"
        }
        for name, child in module.named_modules()
    }


def hooks():
    """Every global hook of modules, by kind."""
    found = {
        name: list(value)
        for name, value in vars(modules).items()
        if name.startswith("_global_") and isinstance(value, dict)
    }
    return found, torch._C._autograd._top_saved_tensors_default_hooks(True)


def holds_vmap(value, depth=3):
    if isinstance(value, torch.Tensor):
        return torch._C._functorch.is_batchedtensor(value)
    if depth and isinstance(value, dict):
        return any(holds_vmap(v, depth - 1) for v in value.values())
    if depth and isinstance(value, (list, tuple)):
        return any(holds_vmap(v, depth - 1) for v in value)
    return False


def state(module):
    return {
        "attributes": attributes(module),
        "weights": [bits(p) for p in module.parameters()],
        "storage": [p.data_ptr() for p in module.parameters()],
        "training": [m.training for m in module.modules()],
        "hooks": hooks(),
        "modes": list(_get_current_function_mode_stack()),
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "autocast": torch.is_autocast_enabled("cpu"),
        "grad mode": torch.is_grad_enabled(),
        "tensor hooks": [
            None if not p._backward_hooks else len(p._backward_hooks) for p in module.parameters()
        ],
    }


def gradient(loss, module, engine, *, named=True, m=2):
    params = dict(module.named_parameters())
    module = module if named else None
    return sam_gradient(
        loss, params, tuple(batch()), rho=0.2, m=m, module=module, engine=engine, max_memory=2**40
    )


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_success_leaves_weights_modes_hooks_and_attributes_as_they_were(engine, named):
    module = network()
    before = state(module)
    gradient(Failing(module), module, engine, named=named)
    assert state(module) == before
    assert not any(holds_vmap(vars(child)) for child in module.modules())
    assert all(p.grad is None for p in module.parameters())


# In its first call the batched engine tries one group; then come the first and the second pass.
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(("engine", "call"), [("loop", 1), ("loop", 4), *(("batched", k) for k in (1, 2, 3))])
def test_exception_leaves_everything_as_it_was_and_comes_through_as_itself(engine, call, named):
    module = network()
    before, buffers, draws = state(module), buffers_of(module), torch.get_rng_state()
    with pytest.raises(Mistake, match=r"^the user's own words$"):
        gradient(Failing(module, call), module, engine, named=named)
    assert state(module) == before
    assert buffers_of(module) == buffers
    assert torch.equal(torch.get_rng_state(), draws)
    assert not any(holds_vmap(vars(child)) for child in module.modules())


class OwnRuntimeError(RuntimeError):
    """The user's own RuntimeError."""


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize(
    "error", [ValueError, KeyError, RuntimeError, NotImplementedError, OwnRuntimeError, AssertionError]
)
def test_own_exceptions_come_through_with_their_type_and_words(error, engine, call):
    module = network()
    with pytest.raises(error, match="the user's own words") as raised:
        gradient(Failing(module, call, error), module, engine)
    assert type(raised.value) is error


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_mistakes_in_shapes_come_through_in_the_words_of_torch(engine):
    module = network()

    def loss(x, y):
        return (module(x) @ y).mean()

    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes|size mismatch|Expected size|shape"):
        gradient(loss, module, engine, m=2)


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_loss_that_does_not_depend_on_the_parameters_is_refused_in_the_same_words(engine):
    with pytest.raises(ValueError, match="loss must depend on the params"):
        gradient(lambda x, y: (x.mean() - y.mean()).square(), network(), engine)


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize(
    ("value", "message"),
    [(lambda v: float("nan"), "loss must return a tensor"), (lambda v: v.expand(5), "one value per example")],  # noqa: ARG005
)
def test_wrong_values_are_refused_in_the_same_words(engine, value, message):
    module = network()
    with pytest.raises((TypeError, ValueError), match=message):
        gradient(lambda x, y: value((module(x) - y).square().mean()), module, engine)


def test_refusal_leaves_buffers_generators_and_weights_as_they_were():
    module = network()
    before, buffers, draws = state(module), buffers_of(module), torch.get_rng_state()

    def loss(x, y):
        value = (module(F.dropout(x, 0.1)) - y).square().mean()
        return value * value.item()

    with pytest.raises(Unbatchable, match="item"):
        gradient(loss, module, "batched")
    assert state(module) == before
    assert buffers_of(module) == buffers
    assert torch.equal(torch.get_rng_state(), draws)


def test_users_own_function_mode_stays_and_sees_the_operations():
    class Counting(TorchFunctionMode):
        count = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    module = network()
    plain = gradient(Failing(module), module, "loop")
    torch.manual_seed(0)
    with Counting() as mode:
        gradient(Failing(module), module, "batched")
        assert _get_current_function_mode_stack() == [mode]
    assert mode.count > 0
    assert len(plain.gradients) == 6


def test_gradients_that_were_there_are_neither_read_nor_changed():
    module = network()
    for p in module.parameters():
        p.grad = torch.full_like(p, 0.5)
    kept = [p.grad for p in module.parameters()]
    gradient(Failing(module), module, "batched")
    assert all(p.grad is g and (g == 0.5).all() for p, g in zip(module.parameters(), kept, strict=True))


class Keeping(nn.Module):
    """Keeps an activation as an attribute, as layers do for losses that are added up later."""

    def __init__(self, keep):
        super().__init__()
        self.layer, self.keep, self.kept = nn.Linear(4, 3), keep, None

    def forward(self, x):
        y = self.layer(x)
        self.kept = self.keep(y)
        return y


@pytest.mark.parametrize(
    "keep",
    [lambda y: y, lambda y: y.detach(), lambda y: [y.square().mean()], lambda y: {"a": (y,)}],
    ids=["tensor", "detached", "list", "dict"],
)
def test_activation_that_a_module_keeps_is_usable_afterwards_or_refused(keep):
    module = seeded(Keeping(keep))
    with contextlib.suppress(Unbatchable):
        gradient(lambda x, y: (module(x) - y).square().mean(), module, "batched")
    assert not holds_vmap(vars(module))


def test_activations_kept_in_a_list_of_the_loss_are_usable_afterwards_or_refused():
    module, kept = network(), []

    def loss(x, y):
        kept.append(module(x).detach())
        return (kept[-1] - y).square().mean() + (module(x) - y).square().mean()

    try:
        gradient(loss, module, "batched")
    except Unbatchable:
        return
    assert not holds_vmap(kept)


@pytest.mark.parametrize("make", [lambda x: x.new_ones(4), lambda x: torch.ones_like(x[0])])
def test_constant_that_a_module_makes_once_is_usable_afterwards_or_refused(make):
    """A causal mask, say, that is made when it is first needed."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.mask = nn.Linear(4, 3), None

        def forward(self, x):
            if self.mask is None:
                self.mask = make(x).cumsum(0)
            return self.layer(x * self.mask)

    module = seeded(Masked())

    def loss(x, y):
        return (module(x) - y).square().mean()

    try:
        gradient(loss, module, "batched")
    except Unbatchable:
        assert not holds_vmap(vars(module))
        return
    x, y = batch()
    assert not holds_vmap(vars(module))
    assert loss(x, y).shape == ()
    for m in (1, 3):
        gradient(loss, module, "batched", m=m)


@pytest.mark.parametrize("fails", [None, 2, 3])
def test_no_activation_is_held(fails):
    module, seen = network(), []

    def loss(x, y):
        h = module(x)
        seen.append(weakref.ref(h))
        if len(seen) == fails:
            raise Mistake
        return (h - y).square().mean()

    with contextlib.suppress(Mistake):
        gradient(loss, module, "batched")
    gc.collect()
    assert [ref() for ref in seen] == [None] * len(seen)


def test_second_pass_finds_nothing_of_what_the_first_was_made_of():
    module, recording = seeded(nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 3))), []

    def loss(x, y):
        value = (module(x) - y).square().mean()
        weights = [o for o in gc.get_objects() if isinstance(o, Weight) and id(o.param) in own]
        recording.append(sum(w.gradient is not None for w in weights))
        return value

    own = {id(p) for p in module.parameters()}
    for _ in range(2):
        gradient(loss, module, "batched")
    assert recording[-2:] == [4, 0]


def test_no_memory_is_held_after_calls():
    module = network()
    x = tensors(1, (B, 4), (B, 3))

    def step():
        gradient(Failing(module), module, "batched")

    step()
    step()
    gc.collect()
    before = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
    for _ in range(5):
        step()
    gc.collect()
    assert sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()) <= before
    assert len(x) == 2


def test_verdict_is_settled_in_the_first_call_of_a_loss_and_its_shapes():
    module, calls = network(), Count()

    def loss(x, y):
        calls.add()
        return (module(x) - y).square().mean()

    counts = []
    for _ in range(3):
        calls.clear()
        gradient(loss, module, "batched")
        counts.append(len(calls))
    assert counts[0] <= 3
    assert counts[1:] == [2, 2]


@pytest.mark.parametrize("kind", ["function", "lambda", "partial", "object", "method"])
def test_loss_that_is_made_anew_in_every_step_is_not_tried_again(kind):
    module, calls = network(), Count()

    def value(module, x, y):
        calls.add()
        return (module(x) - y).square().mean()

    class Criterion:
        def __call__(self, x, y):
            return value(module, x, y)

        def method(self, x, y):
            return value(module, x, y)

    def anew():
        def loss(x, y):
            return value(module, x, y)

        return {
            "function": loss,
            "lambda": lambda x, y: value(module, x, y),
            "partial": functools.partial(value, module),
            "object": Criterion(),
            "method": Criterion().method,
        }[kind]

    counts, alive = [], []
    for _ in range(4):
        calls.clear()
        alive.append(anew())  # kept, so that its address is not used again
        gradient(alive[-1], module, "batched")
        counts.append(len(calls))
    assert counts[1:] == [2, 2, 2]


def test_sam_runs_the_loss_twice_in_later_steps_and_leaves_the_optimizer_alone():
    module, calls = network(), Count()

    def loss(x, y):
        calls.add()
        return (module(x) - y).square().mean()

    sam = SAM(module, rho=0.1, m=2, engine="batched", max_memory=2**40)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    counts = []
    for _ in range(3):
        optimizer.zero_grad()
        calls.clear()
        sam.backward(loss, *batch())
        counts.append(len(calls))
        optimizer.step()
    assert counts[1:] == [2, 2]
    assert not _get_current_function_mode_stack()


def test_hooks_of_modules_run_and_none_of_ours_stays():
    module, seen = network(), []
    handles = [
        module[0].register_forward_hook(lambda *_: seen.append("forward")),
        module[0].register_forward_pre_hook(lambda *_: seen.append("pre")),
        modules.register_module_forward_hook(lambda *_: seen.append("global forward")),
        modules.register_module_forward_pre_hook(lambda *_: seen.append("global pre")),
    ]
    before = hooks()
    try:
        gradient(Failing(module), module, "batched")
        assert hooks() == before
    finally:
        for handle in handles:
            handle.remove()
    assert set(seen) == {"forward", "pre", "global forward", "global pre"}
