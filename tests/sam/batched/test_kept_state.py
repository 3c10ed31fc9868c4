"""State that a loss keeps: exact or by the loop, and nothing of the user's is left dead or half-changed."""

import collections
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from lowland import SAM, sam_gradient
from lowland.sam.unbatchable import Unbatchable

from ..naive import regression, relative_error, seeded

pytestmark = pytest.mark.usefixtures("at_once")

B = 6
NOTHING = torch.zeros(())
STORE = []
MEAN = torch.ones((), dtype=torch.float64)


def network():
    return seeded(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))


class Case:
    """A network, a loss that keeps state, and what it keeps."""

    def __init__(self, make):
        self.module = network()
        self.loss, self.state = make(self.module)

    def gradient(self, engine, m=2):
        params = [p for p in self.module.parameters() if p.requires_grad]
        found = sam_gradient(
            self.loss, params, regression(examples=B), rho=0.3, m=m, module=self.module, engine=engine
        )
        return found.gradients


def closure(module):
    mean = torch.ones((), dtype=torch.float64)

    def loss(x, y):
        nonlocal mean
        value = F.mse_loss(module(x), y)
        mean = 0.9 * mean + 0.1 * value.detach()
        return value / mean

    return loss, lambda: [mean]


def in_global(module):
    global MEAN
    MEAN = torch.ones((), dtype=torch.float64)

    def loss(x, y):
        global MEAN
        value = F.mse_loss(module(x), y)
        MEAN = 0.9 * MEAN + 0.1 * value.detach()
        return value / MEAN

    return loss, lambda: [MEAN]


def logged(module):
    log = []

    def loss(x, y):
        value = F.mse_loss(module(x), y)
        log.append(value.detach())
        return value

    return loss, lambda: log


def logged_in_a_global(module):
    STORE.clear()

    def note(value):
        STORE.append(value.detach())

    def loss(x, y):
        value = F.mse_loss(module(x), y)
        note(value)
        return value

    return loss, lambda: STORE


def in_nested_containers(module):
    state = {"by kind": collections.defaultdict(list), "last": collections.deque(maxlen=2), "set": set()}

    def loss(x, y):
        h = module(x)
        state["by kind"]["h"].append((h.detach(),))
        state["last"].append(h.detach())
        return F.mse_loss(h, y)

    return loss, lambda: [*(t for (t,) in state["by kind"]["h"]), *state["last"]]


class Criterion:
    """An object that is no module."""

    seen = 0

    def __init__(self, module):
        self.module, self.centre = module, torch.zeros(3, dtype=torch.float64)

    def __call__(self, x, y):
        h = self.module(x)
        value = F.mse_loss(h - self.centre, y)
        self.centre = 0.9 * self.centre + 0.1 * h.detach().mean(0)
        return value

    def method(self, x, y):
        return self(x, y)


def in_an_object(module):
    criterion = Criterion(module)
    return criterion, lambda: [criterion.centre]


def in_a_method(module):
    criterion = Criterion(module)
    return criterion.method, lambda: [criterion.centre]


def in_a_partial(module):
    log = []

    def loss(log, x, y):
        value = F.mse_loss(module(x), y)
        log.append(value.detach())
        return value

    return functools.partial(loss, log), lambda: log


def by_a_forward_hook(module):
    features = []
    module[0].register_forward_hook(lambda _, __, h: features.append(h.detach()))
    return (lambda x, y: F.mse_loss(module(x), y)), lambda: features


def as_an_attribute(module):
    def hook(layer, _, h):
        layer.features = h.detach()

    module[0].register_forward_hook(hook)
    return (lambda x, y: F.mse_loss(module(x), y)), lambda: [getattr(module[0], "features", NOTHING)]


def added_up(module):
    """An auxiliary loss that a layer leaves for later."""

    def hook(layer, _, h):
        layer.extra = h.square().mean()

    module[0].register_forward_hook(hook)
    return (lambda x, y: F.mse_loss(module(x), y) + 0.1 * module[0].extra), lambda: []


def pruned(module):
    prune.l1_unstructured(module[0], "weight", amount=0.4)
    return (lambda x, y: F.mse_loss(module(x), y)), lambda: [module[0].weight]


def parametrized(module):
    parametrizations.weight_norm(module[0])
    return (lambda x, y: F.mse_loss(module(x), y)), lambda: [module[0].weight]


KEEPING = [
    *(closure, in_global, logged, logged_in_a_global, in_nested_containers, in_an_object, in_a_method),
    *(in_a_partial, by_a_forward_hook, as_an_attribute, added_up, pruned, parametrized),
]


def is_alive(tensor):
    return not torch._C._functorch.is_batchedtensor(tensor) and bool((tensor + 0).isfinite().all())


@pytest.mark.filterwarnings("ignore:the groups were run one after the other")
@pytest.mark.parametrize("make", KEEPING)
def test_loss_that_keeps_state_has_in_auto_the_result_and_the_state_of_the_loop(make):
    looped = Case(make)
    expected = [looped.gradient("loop") for _ in range(3)]
    state = [t.detach().clone() for t in looped.state()]
    auto = Case(make)
    for gradients in expected:
        assert relative_error(auto.gradient("auto"), gradients) < 1e-12
    left = auto.state()
    assert len(left) == len(state)
    assert all(is_alive(t) for t in left)
    for a, b in zip(left, state, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", KEEPING)
def test_refusal_leaves_what_a_loss_keeps_as_it_was(make):
    case = Case(make)
    before = [id(t) for t in case.state()] if make is not parametrized else []
    try:
        case.gradient("batched")
    except Unbatchable:
        assert make is parametrized or [id(t) for t in case.state()] == before
    assert all(is_alive(t) for t in case.state())
    assert len(case.gradient("loop")) == 4 + (make is parametrized)


@pytest.mark.filterwarnings("ignore:the groups were run one after the other")
@pytest.mark.parametrize("where", ["list", "closure", "attribute", "hook"])
def test_state_that_a_loss_keeps_from_its_third_call_on_is_never_left_dead(where):
    """What the first call settled does not hold any more, and only the pass itself tells."""
    module, kept, calls = network(), [], []
    mean = torch.ones((), dtype=torch.float64)

    def loss(x, y):
        nonlocal mean
        h = module(x)
        value = F.mse_loss(h, y)
        if len(calls) > 2:
            if where == "list":
                kept.append(h.detach())
            elif where == "closure":
                mean = 0.9 * mean + 0.1 * value.detach()
            elif where == "attribute":
                module.features = h.detach()
        return value / mean

    sam = SAM(module, rho=0.3, m=2, engine="auto", max_memory=2**40)
    x, y = regression(examples=B)
    for _ in range(6):
        calls.append(None)
        if where == "hook" and len(calls) == 3:
            module[0].register_forward_hook(lambda _, __, h: kept.append(h.detach()))
        module.zero_grad()
        sam.backward(loss, x, y)
    state = [*kept, mean, getattr(module, "features", mean)]
    assert all(is_alive(t) for t in state)
    assert where not in ("list", "hook") or len(kept) == 3 * 2 * 3 or len(kept) == 4 * 2 * 3


def test_exception_of_the_loss_leaves_nothing_dead():
    module, kept = network(), []

    def loss(x, y):
        h = module(x) - y
        kept.append(h)
        raise KeyError("the user's own")

    for engine in ("auto", "batched"):
        with pytest.raises(KeyError, match="the user's own"):
            sam_gradient(loss, list(module.parameters()), regression(examples=B), rho=0.3, m=2, engine=engine)
        assert all(is_alive(t) for t in kept)


def test_state_that_a_loss_counts_in_python_is_left_by_the_trial_as_it_was():
    module, calls = network(), []
    case = {"n": 0}

    def loss(x, y):
        case["n"] += 1
        calls.append(None)
        return F.mse_loss(module(x), y)

    sam_gradient(loss, list(module.parameters()), regression(examples=B), rho=0.3, m=2, engine="batched")
    assert case["n"] == len(calls) == 2
