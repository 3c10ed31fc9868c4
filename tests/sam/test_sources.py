"""Where the examples come from that the climb sees: the previous batch, other batches, all of them."""

import functools
import io

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lowland import SAM, MicroBatches
from lowland.sam import AscentSource, Call, FromLoader, PreviousBatch

from .naive import (
    added,
    identity,
    mlp,
    naive_sam,
    norm,
    num_examples,
    regression,
    relative_error,
    rows,
    seeded,
    squared,
    tensors,
    value_and_gradient,
)


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)


def train(module, sam, base, batches):
    for batch in batches:
        base.zero_grad()
        sam.backward(functools.partial(squared, module), *batch)
        base.step()


def gradient_climbing_on(module, batch, others, *, rho):
    """Every group of the batch climbs along the gradient over all the examples of ``others``."""
    w = [p.detach().clone() for p in module.parameters()]
    total = sum(num_examples(other) for other in others)
    g = [torch.zeros_like(p) for p in w]
    for other in others:
        g = added(g, value_and_gradient(module, squared, other, w)[1], num_examples(other) / total)
    e = [rho * t / norm(g) for t in g]
    return value_and_gradient(module, squared, batch, added(w, e))[1]


def deposited(module, sam, batch, **options):
    module.zero_grad()
    sam.backward(functools.partial(squared, module), *batch, **options)
    return [p.grad for p in module.parameters()]


def counted(module, calls):
    """The loss, which notes how many examples each pass sees."""

    def loss(x, y):
        calls.append(len(x))
        return squared(module, x, y)

    return loss


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("m", [None, 3])
def test_previous_batch_is_climbed_on_from_the_second_call_on(m):
    one, two = mlp(), mlp()
    batches = [regression(i) for i in range(5)]
    train(one, SAM(one, rho=0.3, m=m, source=PreviousBatch()), sgd(one), batches)
    base = sgd(two)
    for previous, batch in zip([batches[0], *batches], batches, strict=False):
        found = naive_sam(two, squared, batch, rho=0.3, m=m, ascent_batch=previous)
        for p, g in zip(two.parameters(), found.gradients, strict=True):
            p.grad = g
        base.step()
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-12


def test_first_call_costs_two_passes_and_the_others_a_value_more():
    module, calls = mlp(), []
    sam = SAM(module, rho=0.3, source=PreviousBatch())
    sam.backward(counted(module, calls), *regression(0))
    assert calls == [7, 7]
    calls.clear()
    sam.backward(counted(module, calls), *regression(1, examples=5))
    assert sorted(calls) == [5, 5, 7]


def test_value_is_that_of_the_calls_own_batch_at_the_unperturbed_weights():
    module, batch = mlp(), regression(1)
    sam = SAM(module, rho=0.3, m=3, source=PreviousBatch())
    sam.backward(functools.partial(squared, module), *regression(0))
    value = sam.backward(functools.partial(squared, module), *batch)
    assert value.item() == pytest.approx(squared(module, *batch).item(), rel=1e-13)


@pytest.mark.filterwarnings("ignore:the loss depends on tensors")
def test_previous_batch_holds_no_graph_and_nested_batches_are_kept():
    module, (x, y) = mlp(), regression(0)
    x.requires_grad_()
    source = PreviousBatch()
    sam = SAM(module, rho=0.3, source=source)
    for _ in range(2):
        sam.backward(lambda d: squared(module, *d["pair"]), {"pair": (2 * x, y)})
    ((kept, _),) = source.state_dict()["previous"][0].values()
    assert not kept.requires_grad
    assert torch.equal(kept, 2 * x.detach())


def test_climb_on_a_previous_batch_of_another_size_pairs_groups_cyclically():
    """Five groups of the batch on two of the other's: 0-0, 1-1, 2-0, 3-1, 4-0."""
    module, batch, other = mlp(), regression(0, examples=9), regression(1, examples=4)
    calls = []
    expected = [torch.zeros_like(p) for p in module.parameters()]
    for i in range(5):
        group, source = rows(batch, 2 * i, 2 * i + 2), rows(other, 2 * (i % 2), 2 * (i % 2) + 2)
        g = gradient_climbing_on(module, group, [source], rho=0.3)
        expected = added(expected, g, num_examples(group) / 9)
    sam = SAM(module, rho=0.3, m=2, engine="loop")
    sam.backward(counted(module, calls), *batch, ascent_batch=other)
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12
    assert sum(calls) == 4 + 2 * 9, "each group of the other batch is climbed on once"


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_climbing_batch_with_a_smaller_last_group_is_climbed_on_by_the_last_group_alone(engine):
    module, batch, other = mlp(), regression(0, examples=8), regression(1, examples=7)
    expected = naive_sam(module, squared, batch, rho=0.3, m=2, ascent_batch=other)
    sam = SAM(module, rho=0.3, m=2, engine=engine)
    sam.backward(functools.partial(squared, module), *batch, ascent_batch=other)
    assert relative_error([p.grad for p in module.parameters()], expected.gradients) < 1e-12


class CutToLength(nn.Module):
    """As many rows of a weight as an example is long."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(5, 6))
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.tanh(x @ self.weight[: x.shape[1]]))


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize(("own", "others"), [(3, 5), (5, 3), (2, 4)])
def test_climb_on_longer_or_shorter_examples_moves_the_rows_that_these_used(own, others, engine):
    module, y = seeded(CutToLength()), tensors(2, (6, 3))
    batch, other = ((*tensors(seed, (6, length)), *y) for seed, length in ((0, own), (1, others)))
    expected = naive_sam(module, squared, batch, rho=0.5, m=2, ascent_batch=other)
    sam = SAM(module, rho=0.5, m=2, engine=engine)
    sam.backward(functools.partial(squared, module), *batch, ascent_batch=other)
    assert relative_error([p.grad for p in module.parameters()], expected.gradients) < 1e-12


def test_larger_climbing_batch_is_used_as_far_as_there_are_groups():
    module, batch, other, calls = mlp(), regression(0, examples=4), regression(1, examples=9), []
    expected = [torch.zeros_like(p) for p in module.parameters()]
    for i in range(2):
        group, source = rows(batch, 2 * i, 2 * i + 2), rows(other, 2 * i, 2 * i + 2)
        expected = added(expected, gradient_climbing_on(module, group, [source], rho=0.3), 0.5)
    SAM(module, rho=0.3, m=2).backward(counted(module, calls), *batch, ascent_batch=other)
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12
    assert sum(calls) == 4 + 2 * 4


@pytest.mark.parametrize("m", [None, 3])
def test_all_batches_of_a_loader_are_one_climb_for_all_groups(m):
    module, batch = mlp(), regression(0)
    others = [regression(10 + i, examples=n) for i, n in enumerate((5, 3, 1))]
    sam, calls = SAM(module, rho=0.3, m=m, source=FromLoader(others)), []
    expected = gradient_climbing_on(module, batch, others, rho=0.3)
    assert relative_error(deposited(module, sam, batch), expected) < 1e-12
    sam.backward(counted(module, calls), *batch)
    assert sum(calls) == 5 + 3 + 1 + 2 * 7, "the loader is passed over once, however many groups"
    assert len(calls) == 3 + 2 * (1 if m is None else 3)


def test_several_steps_climb_on_the_loader_again_in_each():
    module, batch, calls = mlp(), regression(0), []
    others = [regression(10 + i, examples=n) for i, n in enumerate((5, 2))]
    whole = tuple(torch.cat(ts) for ts in zip(*others, strict=True))
    options = {"rho": 0.3, "steps": 3, "step_size": 0.5}
    expected = naive_sam(module, squared, batch, ascent_batch=whole, **options).gradients
    sam = SAM(module, source=FromLoader(others), **options)
    sam.backward(counted(module, calls), *batch)
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12
    assert sum(calls) == 3 * 7 + 2 * 7


def test_all_batches_are_seen_in_every_call():
    one, two = mlp(), mlp()
    others, batches = [regression(i) for i in (20, 21)], [regression(i) for i in range(4)]
    train(one, SAM(one, rho=0.3, m=3, source=FromLoader(others)), sgd(one), batches)
    base = sgd(two)
    for batch in batches:
        for p, g in zip(two.parameters(), gradient_climbing_on(two, batch, others, rho=0.3), strict=True):
            p.grad = g
        base.step()
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-12


@pytest.mark.parametrize("k", [1, 2, 4])
def test_some_batches_of_a_loader_follow_round_and_round(k):
    module, batch = mlp(), regression(0)
    others = [regression(10 + i, examples=n) for i, n in enumerate((5, 3, 4))]
    sam = SAM(module, rho=0.3, m=3, source=FromLoader(others, k))
    for call in range(5):
        chosen = [others[(call * k + j) % 3] for j in range(k)]
        expected = gradient_climbing_on(module, batch, chosen, rho=0.3)
        assert relative_error(deposited(module, sam, batch), expected) < 1e-12


def test_batch_of_the_call_itself_goes_before_the_source():
    module, batch, other = mlp(), regression(0), regression(1)
    sam = SAM(module, rho=0.3, source=FromLoader([regression(2)]))
    expected = gradient_climbing_on(module, batch, [other], rho=0.3)
    assert relative_error(deposited(module, sam, batch, ascent_batch=other), expected) < 1e-12


def test_loader_of_single_tensors_gives_the_losss_only_argument():
    module, batch = mlp(), regression(0)

    def loss(x):
        return module(x).square().mean()

    sam = SAM(module, rho=0.3, source=FromLoader([batch[0][:3], batch[0][3:]]))
    sam.backward(loss, batch[0])
    found = [p.grad.clone() for p in module.parameters()]
    zeros = torch.zeros_like(batch[1])
    expected = gradient_climbing_on(module, (batch[0], zeros), [(batch[0], zeros)], rho=0.3)
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("num_batches", [None, 1])
def test_radius_zero_loads_nothing(num_batches):
    """A data loader also draws from the default generator: dropout would not be that of the base training."""
    module, batch, calls, loaded = mlp(), regression(0), [], []

    class Loader:
        def __iter__(self):
            loaded.append(None)
            return iter([regression(1)])

    sam = SAM(module, rho=0.0, m=3, source=FromLoader(Loader(), num_batches))
    sam.backward(counted(module, calls), *batch)
    assert calls == [3, 3, 1]
    assert loaded == []
    sam.rho = 0.3
    sam.backward(counted(module, calls), *batch)
    assert loaded == [None]


def test_previous_batch_of_a_step_at_radius_zero_is_climbed_on():
    module, batches = mlp(), [regression(i) for i in range(2)]
    sam = SAM(module, rho=lambda step: 0.3 * step, source=PreviousBatch())
    deposited(module, sam, batches[0])
    expected = naive_sam(module, squared, batches[1], rho=0.3, ascent_batch=batches[0]).gradients
    assert relative_error(deposited(module, sam, batches[1]), expected) < 1e-12


@pytest.mark.parametrize("source", [PreviousBatch, lambda: FromLoader([regression(i) for i in range(3)], 2)])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_state_of_a_source_continues_identically(source, steps):
    one, two, batches = mlp(), mlp(), [regression(10 + i) for i in range(6)]
    sam, base = SAM(one, rho=0.3, source=source()), sgd(one)
    train(one, sam, base, batches[:steps])
    file = io.BytesIO()
    torch.save([one.state_dict(), base.state_dict(), sam.state_dict()], file)
    train(one, sam, base, batches[steps:])
    resumed, other = SAM(two, rho=0.3, source=source()), sgd(two)
    states = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    for part, state in zip((two, other, resumed), states, strict=True):
        part.load_state_dict(state)
    train(two, resumed, other, batches[steps:])
    assert same(one, two)


@pytest.mark.parametrize("num_batches", [None, 1])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_loading_the_state_of_a_source_draws_no_random_numbers(num_batches, steps):
    """A data loader draws when it is begun: a training that restores the generators first is not moved."""
    loader = DataLoader(TensorDataset(*regression(1, examples=6)), batch_size=2)
    sources = [FromLoader(loader, num_batches) for _ in range(2)]
    module = mlp()
    sam = SAM(module, rho=0.3, source=sources[0])
    for _ in range(steps):
        sam.backward(functools.partial(squared, module), *regression(0))
    before = torch.get_rng_state()
    sources[1].load_state_dict(sources[0].state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_shuffled_loader_is_in_another_order_in_every_round():
    x = torch.arange(8, dtype=torch.float64)
    source, seen = FromLoader(DataLoader(x, batch_size=1, shuffle=True), 8), []
    torch.manual_seed(0)
    for _ in range(3):
        parts = [part.item() for (part,) in source.ascent_batch(())]
        assert sorted(parts) == x.tolist()
        seen.append(tuple(parts))
        source.end(Call(0, [], "backward"))
    assert len(set(seen)) == 3


def test_augmentation_of_a_whole_loader_is_drawn_anew_in_every_call():
    """What the loader draws from the default generator is not wound back between two calls."""
    x, y = regression(1, examples=4)
    seen = []

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return x[i] + torch.randn(4, dtype=torch.float64), y[i]

    module = mlp()
    sam = SAM(module, rho=0.3, source=FromLoader(DataLoader(Noisy(), batch_size=4)))

    def loss(x, y):
        seen.append(x)
        return squared(module, x, y)

    batch = regression(0)
    for _ in range(2):
        sam.backward(loss, *batch)
    noisy = [t for t in seen if len(t) == 4]
    assert len(noisy) == 2
    assert not torch.equal(*noisy)


def test_users_own_source_is_asked_once_per_call():
    class Recorded:
        def __init__(self):
            self.batches = []

        def ascent_batch(self, batch):
            self.batches.append(batch)
            return None if len(self.batches) == 1 else regression(9)

    module, batch, source = mlp(), regression(0), Recorded()
    assert isinstance(source, AscentSource)
    sam = SAM(module, rho=0.3, m=3, source=source)
    expected = naive_sam(module, squared, batch, rho=0.3, m=3).gradients
    assert relative_error(deposited(module, sam, batch), expected) < 1e-12
    expected = naive_sam(module, squared, batch, rho=0.3, m=3, ascent_batch=regression(9)).gradients
    assert relative_error(deposited(module, sam, batch), expected) < 1e-12
    assert [len(batch) for batch in source.batches] == [2, 2]


@pytest.mark.usefixtures("untyped")
def test_loaders_that_cannot_be_climbed_on_are_refused():
    module, batch = mlp(), regression(0)
    before = identity(module)
    with pytest.raises(ValueError, match=r"^num_batches must be positive, got 0\.$"):
        FromLoader([batch], 0)
    for num_batches in (None, 2):
        sam = SAM(module, rho=0.3, source=FromLoader([], num_batches))
        with pytest.raises(ValueError, match=r"must hold at least one .*, got none\.$"):
            sam.backward(functools.partial(squared, module), *batch)
    with pytest.raises(ValueError, match=r"^source must be None with MicroBatches, got one\.$"):
        SAM(module, rho=0.3, source=PreviousBatch()).backward(
            functools.partial(squared, module), MicroBatches([batch])
        )
    assert identity(module) == before
