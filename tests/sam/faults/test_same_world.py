"""Both passes see the same world, and leave it as one plain pass would: docs/faults.md, "The same world".

The truth is the same loss written so that it changes nothing, or a plain pass made by hand.
"""

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland import SAM, MicroBatches, sam_gradient
from lowland.sam import PreviousBatch
from lowland.sam.unbatchable import Unbatchable

from ..naive import bits, mlp, regression, relative_error, seeded, tensors

pytestmark = [
    pytest.mark.usefixtures("at_once"),
    pytest.mark.filterwarnings("ignore:the groups were run one after the other"),
]

ENGINES = ["loop", "auto"]
LARGE = 12_000
"""Features whose batch is above the size up to which copies are kept without asking."""


def gradient(module, loss, batch, **options):
    options = {"rho": 0.4, "m": 2} | options
    found = sam_gradient(loss, dict(module.named_parameters()), batch, module=module, **options)
    return found.gradients


# 1. The batch: each loss that changes what it is given, and one that does the same without


@dataclasses.dataclass
class Pair:
    x: torch.Tensor
    y: torch.Tensor


def shifted(module, x, y):
    return F.mse_loss(module((x - 1.0) / 2.0), y)


def sliced(module, x, y):
    x[:, :2] = 0.5
    return F.mse_loss(module(x), y)


def popped(module, batch):
    y = batch.pop("y")
    return F.mse_loss(module(batch["x"].sub_(1.0).div_(2.0)), y)


def of_lists(module, pair):
    return shifted(module, pair[0], pair.pop())


def of_fields(module, batch):
    batch.x -= 1.0
    batch.x /= 2.0
    return F.mse_loss(module(batch.x), batch.y)


def replaced(module, batch):
    batch["x"] = (batch["x"] - 1.0) / 2.0
    return F.mse_loss(module(batch["x"]), batch["y"])


def quietly(module, x, y):
    x.data.sub_(1.0).div_(2.0)  # the version of a tensor does not tell of this
    return F.mse_loss(module(x), y)


def of_array(module, x, y):
    x -= 1.0
    x /= 2.0
    return F.mse_loss(module(torch.from_numpy(x)), y)


def activated(module, x, y):
    return F.mse_loss(module(F.leaky_relu(x, 0.1, True)), y)


CHANGES = {
    "in place": (lambda m, x, y: F.mse_loss(m(x.sub_(1.0).div_(2.0)), y), lambda x, y: (x, y), shifted),
    "of a view": (
        lambda m, x, y: F.mse_loss(m(x.view(x.shape).sub_(1.0).div_(2.0)), y),
        lambda x, y: (x, y),
        shifted,
    ),
    "through .data": (quietly, lambda x, y: (x, y), shifted),
    "a slice": (sliced, lambda x, y: (x, y), lambda m, x, y: sliced(m, x.clone(), y)),
    "an activation": (activated, lambda x, y: (x, y), lambda m, x, y: F.mse_loss(m(F.leaky_relu(x, 0.1)), y)),
    "keys": (popped, lambda x, y: ({"x": x, "y": y},), shifted),
    "entries": (of_lists, lambda x, y: ([x, y],), shifted),
    "fields": (of_fields, lambda x, y: (Pair(x, y),), shifted),
    "values": (replaced, lambda x, y: ({"x": x, "y": y},), shifted),
    "an array": (of_array, lambda x, y: (x.numpy(), y), shifted),
    "the same twice": (
        lambda m, x, y: F.mse_loss(m(x.sub_(1.0))[:, :3], y[:, :3]),
        lambda x, _: (x, x),
        lambda m, x, _: F.mse_loss(m(x - 1.0), (x - 1.0)[:, :3]),
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("m", [None, 1, 2])
@pytest.mark.parametrize("name", CHANGES)
def test_loss_that_changes_its_batch_has_the_gradient_of_one_that_does_not(name, m, engine):
    changing, made_of, plain = CHANGES[name]
    for steps in (1, 3):
        module, (x, y) = mlp(), regression()
        options = {"m": m, "steps": steps, "step_size": 0.5}
        batch = made_of(x.clone(), y.clone())
        found = gradient(module, lambda *b, f=changing, n=module: f(n, *b), batch, engine=engine, **options)
        expected = gradient(module, lambda *b, f=plain, n=module: f(n, *b), (x, y), engine="loop", **options)
        assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("features", [4, LARGE])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("m", [None, 1, 4])
@pytest.mark.parametrize("name", ["in place", "of a view", "a slice", "keys", "entries", "fields", "values"])
def test_batch_is_left_as_plain_passes_over_the_groups_leave_it(name, m, engine, features):
    changing, made_of, _ = CHANGES[name]
    module = seeded(nn.Sequential(nn.Linear(features, 3), nn.Tanh()))
    x, y = tensors(1, (4, features), (4, 3))
    (found,) = (made_of(x.clone(), y.clone())[:1],)
    batch, plain = made_of(x.clone(), y.clone()), made_of(x.clone(), y.clone())
    gradient(module, lambda *b: changing(module, *b), batch, m=m, engine=engine)
    changing(module, *plain)  # rows are changed alike, whole or cut
    left, expected = (_flat(element) for element in (batch, plain))
    assert left.keys() == expected.keys() != _flat(found).keys() or name not in ("keys", "entries")
    for key, value in expected.items():
        assert torch.equal(left[key], value), key


def _flat(element, path=""):
    if isinstance(element, torch.Tensor):
        return {path: element.detach()}
    pairs = vars(element).items() if isinstance(element, Pair) else None
    if pairs is None:
        pairs = element.items() if isinstance(element, dict) else enumerate(element)
    return {k: v for key, value in pairs for k, v in _flat(value, f"{path}.{key}").items()}


def test_large_tensor_that_no_pass_changes_is_given_to_every_pass_as_it_is():
    module = seeded(nn.Linear(LARGE, 3))
    x, y = tensors(1, (4, LARGE), (4, 3))
    seen = []

    def loss(x, y):
        seen.append(x.data_ptr())
        return F.mse_loss(module(x), y)

    gradient(module, loss, (x, y), m=None, steps=3, engine="loop")
    assert seen == [x.data_ptr()] * 4


@pytest.mark.parametrize("parts", [list, iter], ids=["list", "loader"])
@pytest.mark.parametrize("m", [None, 2])
def test_micro_batches_that_a_loss_changes_are_the_same_in_every_pass(parts, m):
    module, (x, y) = mlp(), regression()

    def cut():
        return [(x[:3].clone(), y[:3]), (x[3:].clone(), y[3:])]

    change, _, plain = CHANGES["in place"]
    found = gradient(module, lambda *b: change(module, *b), MicroBatches(parts(cut())), m=m, steps=2)
    expected = gradient(module, lambda *b: plain(module, *b), MicroBatches(cut()), m=m, steps=2)
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_examples_to_climb_on_are_not_changed_by_the_loss(engine):
    module, (x, y), (u, v) = mlp(), regression(), regression(5)
    change, _, plain = CHANGES["in place"]
    source = (u.clone(), v.clone())
    found = gradient(
        module, lambda *b: change(module, *b), (x.clone(), y), ascent_batch=source, steps=2, engine=engine
    )
    expected = gradient(module, lambda *b: plain(module, *b), (x, y), ascent_batch=(u, v), steps=2)
    assert relative_error(found, expected) < 1e-12
    assert torch.equal(source[0], u)


def test_previous_batch_is_what_its_own_call_was_given():
    def trained(loss):
        module, sam_batches = mlp(), [regression(k) for k in range(3)]
        sam = SAM(module, rho=0.4, source=PreviousBatch())
        for x, y in sam_batches:
            module.zero_grad()
            sam.backward(lambda *b: loss(module, *b), x.clone(), y)
        return [p.grad for p in module.parameters()]

    change, _, plain = CHANGES["in place"]
    assert relative_error(trained(change), trained(plain)) < 1e-12


def test_object_of_another_kind_is_copied_with_what_it_holds():
    module, (x, y) = mlp(), regression()

    def loss(graph):
        graph.x.sub_(1.0).div_(2.0)
        graph.seen = graph.seen + 1
        return F.mse_loss(module(graph.x), graph.y)

    graph = SimpleNamespace(x=x.clone(), y=y, seen=0)
    found = gradient(module, loss, (graph,), m=None)
    assert relative_error(found, gradient(module, lambda *b: shifted(module, *b), (x, y), m=None)) < 1e-12
    assert graph.seen == 1
    assert torch.equal(graph.x, (x - 1.0) / 2.0)


def test_module_or_parameter_among_the_arguments_is_itself_in_every_pass():
    module, (x, y) = mlp(), regression()
    expected = gradient(module, lambda *b: shifted(module, *b), (x, y), m=None)
    assert relative_error(gradient(module, shifted, (module, x, y), m=None), expected) < 1e-12
    w, b = (nn.Parameter(t) for t in tensors(3, (4, 3), (3,)))

    def linear(w, x, y):
        return F.mse_loss(x @ w + b, y)

    found = sam_gradient(linear, [w, b], (w, x, y), rho=0.3).gradients
    expected = sam_gradient(lambda x, y: linear(w, x, y), [w, b], (x, y), rho=0.3).gradients
    assert relative_error(found, expected) < 1e-12


# 5. Draws of Python and of NumPy, and frozen parameters that move


def drawing(draw):
    def loss(module, x, y):
        return F.mse_loss(module(x * draw()), y)

    return loss


GENERATORS = {
    "python": (random.random, lambda: random.seed(3), random.getstate),
    "python's gauss": (lambda: random.gauss(0.0, 1.0), lambda: random.seed(3), random.getstate),
    "numpy": (np.random.rand, lambda: np.random.seed(3), lambda: np.random.get_state()[2]),  # noqa: NPY002
    "numpy's gauss": (np.random.randn, lambda: np.random.seed(3), lambda: np.random.get_state()[2:]),  # noqa: NPY002
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("m", [None, 1])
@pytest.mark.parametrize("name", GENERATORS)
def test_draws_of_python_and_numpy_are_the_same_in_both_passes_and_one_pass_ahead_afterwards(name, m, engine):
    draw, seed, state = GENERATORS[name]
    module, (x, y) = mlp(), regression(examples=3)
    seed()
    numbers = [draw() for _ in range(1 if m is None else 3)]
    after = state()
    factors = torch.tensor(numbers, dtype=torch.float64).expand(3)[:, None]
    expected = gradient(module, lambda x, y: F.mse_loss(module(x), y), (x * factors, y), m=m)
    for _ in range(2):  # the second call knows what the first one settled
        seed()
        found = gradient(module, lambda *b: drawing(draw)(module, *b), (x, y), m=m, steps=1, engine=engine)
        assert relative_error(found, expected) < 1e-12
        assert state() == after


@pytest.mark.parametrize(("name", "whose"), [("python", "Python's"), ("numpy", "NumPy's")])
def test_draw_that_would_serve_all_groups_is_refused_by_name(name, whose):
    draw, _, _ = GENERATORS[name]
    module, (x, y) = mlp(), regression(examples=4)
    with pytest.raises(Unbatchable, match=f"a draw from {whose} random generator"):
        gradient(module, lambda *b: drawing(draw)(module, *b), (x, y), m=1, engine="batched")
    assert len(gradient(module, lambda *b: drawing(draw)(module, *b), (x, y), m=4, engine="batched")) == 4


def test_draw_that_a_later_call_makes_is_refused_by_name_and_nothing_is_drawn():
    module, (x, y), draws = mlp(), regression(examples=4), []

    def loss(x, y):
        return F.mse_loss(module(x * (random.random() if draws else 1.0)), y)

    gradient(module, loss, (x, y), m=1, engine="batched")
    draws.append(True)
    state = random.getstate()
    with pytest.raises(Unbatchable, match="a draw from Python's random generator"):
        gradient(module, loss, (x, y), m=1, engine="batched")
    assert random.getstate() == state


class Contrast(nn.Module):
    """A network and its momentum encoder, which each forward pass in training moves first."""

    def __init__(self, move):
        super().__init__()
        self.query, self.key, self.move = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False), move

    def forward(self, x):
        for k, q in zip(self.key.parameters(), self.query.parameters(), strict=True):
            self.move(k, q)
        return F.mse_loss(self.query(x), self.key(x).detach())


@torch.no_grad()
def lerped(k, q):
    k.lerp_(q, 0.1)


def through_data(k, q):
    k.data.mul_(0.9).add_(q.data, alpha=0.1)


def other_data(k, q):
    k.data = 0.9 * k.data + 0.1 * q.data


@torch.no_grad()
def for_each(k, q):
    torch._foreach_mul_([k], 0.9)
    torch._foreach_add_([k], [q], alpha=0.1)


@torch.no_grad()
def by_hand(k, q):
    k *= 0.9
    k += 0.1 * q


MOVES = [lerped, through_data, other_data, for_each, by_hand]


@pytest.mark.parametrize("given", ["module", "parameters"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("m", [None, 2])
@pytest.mark.parametrize("move", MOVES)
def test_momentum_encoder_is_moved_once_a_group_from_unperturbed_weights(move, m, engine, given):
    x = tensors(1, (6, 4))[0]
    twin = seeded(Contrast(lerped))
    for group in x.split(6 if m is None else m):
        twin(group)
    model = seeded(Contrast(move))
    trained = list(model.query.parameters())
    sam = SAM(model if given == "module" else trained, rho=0.5, m=m, engine=engine)
    sam.backward(lambda x: model(x), x)
    for k, expected in zip(model.key.parameters(), twin.key.parameters(), strict=True):
        torch.testing.assert_close(k, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("move", MOVES)
def test_both_passes_see_the_momentum_encoder_as_it_was(move):
    (x,) = tensors(1, (6, 4))
    model = seeded(Contrast(move))
    q, k = (nn.Linear(4, 3, dtype=torch.float64) for _ in range(2))
    q.load_state_dict(model.query.state_dict()), k.load_state_dict(model.key.state_dict())

    def functional(x):  # the same in terms of the weights alone
        keys = [
            0.9 * b.detach() + 0.1 * a.detach() for a, b in zip(q.parameters(), k.parameters(), strict=True)
        ]
        return F.mse_loss(q(x), F.linear(x, *keys))

    found = sam_gradient(lambda x: model(x), list(model.query.parameters()), (x,), rho=0.5)
    expected = sam_gradient(functional, list(q.parameters()), (x,), rho=0.5)
    assert relative_error(found.gradients, expected.gradients) < 1e-12


def test_buffers_that_are_read_before_they_move_are_the_same_in_both_passes():
    class Normalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("seen", torch.ones((), dtype=torch.float64))

        def forward(self, x):
            out = self.layer(x) / self.seen
            self.seen = self.seen + 1.0
            return out

    module, (x, y) = seeded(Normalized()), regression(examples=4)
    found = gradient(module, lambda x, y: F.mse_loss(module(x), y), (x, y), m=2, engine="loop")
    assert module.seen == 3.0
    twin = seeded(nn.Linear(4, 3))
    parts = [
        sam_gradient(lambda x, y, s=s: F.mse_loss(twin(x) / s, y), list(twin.parameters()), part, rho=0.4)
        for s, part in ((1.0, (x[:2], y[:2])), (2.0, (x[2:], y[2:])))
    ]
    expected = [(a + b) / 2 for a, b in zip(*(p.gradients for p in parts), strict=True)]
    assert relative_error(found, expected) < 1e-12


def test_frozen_parameters_that_nothing_moves_keep_their_memory_and_are_not_copied(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model[0].requires_grad_(False)
    copies = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda t, *a, **k: copies.append(t.shape) or clone(t, *a, **k))
    before = [(p.data_ptr(), bits(p)) for p in model[0].parameters()]
    SAM(model, rho=0.3).backward(lambda x, y: F.mse_loss(model(x), y), *regression())
    assert [(p.data_ptr(), bits(p)) for p in model[0].parameters()] == before
    assert torch.Size([5, 4]) not in copies
