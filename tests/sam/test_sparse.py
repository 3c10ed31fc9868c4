"""Sparse gradients of embeddings: the dense embedding's result, and sparse as far as they can be."""

import functools

import pytest
import torch
from torch import nn

from lowland import L2, SAM, ClippedUnnormalized, Unnormalized, sam_gradient
from lowland.sam import (
    Adaptive,
    AlongMomentum,
    Friendly,
    Look,
    MicroBatches,
    Random,
    RandomSubset,
    SurrogateGap,
    Unified,
    Weighted,
    magnitude_only,
    stable,
)

from .naive import identity, naive_sam, relative_error, seeded, tensors

# These tests watch the passes of each group by itself.
SAM = functools.partial(SAM, engine="loop")
sam_gradient = functools.partial(sam_gradient, engine="loop")

WORDS, EXAMPLES = 11, 7
NAIVE = {"l2": L2, "unnormalized": Unnormalized, "clipped": ClippedUnnormalized}
ASCENTS = {
    **NAIVE,
    "adaptive": Adaptive,
    "filter": functools.partial(Adaptive, by="filter"),
    "adaptive everywhere": functools.partial(Adaptive, scaled="*", eta=0.1),
    "unified": Unified,
    "friendly": Friendly,
    "subset": functools.partial(RandomSubset, 0.5),
    "random": Random,
    "multiplicative": functools.partial(Random, "uniform", "multiplicative"),
}
RULES = {
    "gap": lambda: SurrogateGap(0.4),
    "weighted": lambda: Weighted(0.7),
    "look": lambda: Look(2),
    "magnitude": lambda: magnitude_only,
    "stable": lambda: stable,
}


class Words(nn.Module):
    """Word vectors averaged, or added, and a linear layer; words 9 and 10 are the last rows."""

    def __init__(self, *, sparse, bag=False):
        super().__init__()
        self.bag = bag
        self.table = (nn.EmbeddingBag if bag else nn.Embedding)(WORDS, 3, sparse=sparse)
        self.head = nn.Linear(3, 2)

    def forward(self, words):
        vectors = self.table(words) if self.bag else self.table(words).tanh().mean(1)
        return self.head(vectors).tanh()


def models(**options):
    """The same weights with a sparse and with a dense embedding."""
    return seeded(Words(sparse=True, **options)), seeded(Words(sparse=False, **options))


def squared(module, words, y):
    return (module(words) - y).square().mean()


def batch(seed=0):
    """Words 0 to 4 and the last, many of them several times; 5 to 9 never."""
    words = torch.randint(0, 5, (EXAMPLES, 4), generator=torch.Generator().manual_seed(seed))
    words[::3, 1] = WORDS - 1
    return words, *tensors(seed, (EXAMPLES, 2))


def dense_grads(module):
    return [p.grad.to_dense() for p in module.parameters()]


def backward(module, *data, **options):
    """One call from a fixed seed."""
    torch.manual_seed(3)
    sam = SAM(module, **options)
    return sam.backward(functools.partial(squared, module), *data)


@pytest.mark.parametrize("bag", [False, True], ids=["embedding", "bag"])
@pytest.mark.parametrize("m", [1, 3, EXAMPLES])
@pytest.mark.parametrize("ascent", NAIVE)
def test_gradient_is_that_of_the_naive_loop_with_a_dense_embedding(bag, m, ascent):
    sparse, dense = models(bag=bag)
    before = identity(sparse)
    expected = naive_sam(dense, squared, batch(), rho=0.4, m=m, ascent=ascent)
    value = backward(sparse, *batch(), rho=0.4, m=m, ascent=NAIVE[ascent]())
    assert sparse.table.weight.grad.is_sparse
    assert relative_error(dense_grads(sparse), expected.gradients) < 1e-12
    assert relative_error(expected.gradients, expected.at_weights) > 1e-3
    assert value.item() == pytest.approx(expected.loss, rel=1e-13)
    assert identity(sparse) == before


@pytest.mark.parametrize("options", [{"steps": 3, "step_size": 0.5}, {"l2": 0.3}, {"l2": 0.3, "steps": 2}])
@pytest.mark.parametrize("m", [3, EXAMPLES])
@pytest.mark.parametrize("ascent", NAIVE)
def test_several_steps_and_l2_are_those_of_the_naive_loop(options, m, ascent):
    sparse, dense = models()
    expected = naive_sam(dense, squared, batch(), rho=0.4, m=m, ascent=ascent, **options)
    backward(sparse, *batch(), rho=0.4, m=m, ascent=NAIVE[ascent](), **options)
    assert relative_error(dense_grads(sparse), expected.gradients) < 1e-12


@pytest.mark.parametrize("m", [1, 3, EXAMPLES])
@pytest.mark.parametrize("ascent", ASCENTS)
def test_every_ascent_is_that_of_the_dense_embedding(m, ascent):
    sparse, dense = models()
    for module in (sparse, dense):
        backward(module, *batch(), rho=0.4, m=m, ascent=ASCENTS[ascent]())
    assert sparse.table.weight.grad.is_sparse
    assert relative_error(dense_grads(sparse), dense_grads(dense)) < 1e-12


@pytest.mark.parametrize("ascent", ["l2", "adaptive", "friendly"])
def test_several_steps_of_training_are_those_of_the_dense_embedding(ascent):
    sparse, dense = models()
    for module in (sparse, dense):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        sam = SAM(module, rho=0.4, m=3, ascent=ASCENTS[ascent]())
        for step in range(4):
            optimizer.zero_grad()
            sam.backward(functools.partial(squared, module), *batch(step))
            optimizer.step()
    assert relative_error(list(sparse.parameters()), list(dense.parameters())) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_that_of_the_dense_embedding(rule):
    sparse, dense = models()
    for module in (sparse, dense):
        sam = SAM(module, rho=0.4, m=3, combine=RULES[rule]())
        for step in range(2):
            module.zero_grad()
            sam.backward(functools.partial(squared, module), *batch(step))
    assert relative_error(dense_grads(sparse), dense_grads(dense)) < 1e-12


def test_sparse_adam_trains_as_on_the_hand_made_gradient():
    """SparseAdam refuses dense gradients; the hand-made ones are the naive loop's, row by row."""
    sparse, twin = models()[0], models()[0]
    optimizers = [torch.optim.SparseAdam([module.table.weight], lr=0.1) for module in (sparse, twin)]
    sam = SAM(sparse, rho=0.4, m=3)
    for step in range(3):
        expected = naive_sam(
            twin, lambda module, *b: squared(as_dense(module), *b), batch(step), rho=0.4, m=3
        ).gradients[0]
        used = batch(step)[0].unique()
        twin.table.weight.grad = torch.sparse_coo_tensor(
            used[None], expected[used], expected.shape, check_invariants=True
        )
        sparse.zero_grad()
        sam.backward(functools.partial(squared, sparse), *batch(step))
        for optimizer in optimizers:
            optimizer.step()
    assert relative_error([sparse.table.weight], [twin.table.weight]) < 1e-10


def as_dense(module):
    module.table.sparse = False
    return module


@pytest.mark.parametrize("ascent", ["l2", "adaptive"])
def test_only_rows_that_are_used_move(ascent):
    module, seen = models()[0], []
    start = module.table.weight.detach().clone()
    words, y = batch()

    def loss(words, y):
        moved = (module.table.weight.detach() - start).ne(0).any(1)
        seen.append((moved.nonzero().flatten().tolist(), words.unique().tolist()))
        return squared(module, words, y)

    SAM(module, rho=0.4, m=2, ascent=ASCENTS[ascent]()).backward(loss, words, y)
    assert len(seen) == 8
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert first[0] == []
        assert second[0] == second[1]


def test_row_that_is_repeated_moves_by_the_sum_of_its_gradients():
    table, head = nn.Embedding(4, 2, sparse=True).double(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    seen, start = [], table.weight.detach().clone()

    def loss(words):
        seen.append(table.weight.detach() - start)
        return (table(words) @ head).sum()

    sam_gradient(loss, [table.weight, head], (torch.tensor([3, 3, 3, 1]),), rho=0.5)
    g_head = start[[3, 3, 3, 1]].sum(0)
    length = (9 + 9 + 1 + 1 + g_head.square().sum()).sqrt()
    expected = torch.zeros(4, 2, dtype=torch.float64)
    expected[3], expected[1] = 0.5 * 3 / length, 0.5 * 1 / length
    torch.testing.assert_close(seen[1], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("m", [2, None])
def test_two_calls_accumulate_to_their_sum_and_stay_sparse(m):
    sparse, dense = models()
    total = [torch.zeros_like(p) for p in dense.parameters()]
    sam = SAM(sparse, rho=0.4, m=m)
    for seed in (0, 1):
        found = naive_sam(dense, squared, batch(seed), rho=0.4, m=m).gradients
        total = [t + 0.5 * g for t, g in zip(total, found, strict=True)]
        sam.backward(functools.partial(squared, sparse), *batch(seed), scale=0.5)
    assert sparse.table.weight.grad.is_sparse
    assert relative_error(dense_grads(sparse), total) < 1e-12
    assert sam.steps_done == 1


def test_zeroed_sparse_gradients_begin_a_step():
    module = models()[0]
    sam = SAM(module, rho=0.4)
    for _ in range(2):
        sam.backward(functools.partial(squared, module), *batch())
        module.zero_grad(set_to_none=False)
    assert sam.steps_done == 2


class Tied(nn.Module):
    """Word vectors that are the output layer as well: one gradient is sparse, the other dense."""

    def __init__(self, *, sparse):
        super().__init__()
        self.table = nn.Embedding(WORDS, 3, sparse=sparse)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, words):
        return ((self.table(words).mean(1) + self.bias).tanh() @ self.table.weight.T)[:, :2]


@pytest.mark.parametrize("m", [1, 3, None])
@pytest.mark.parametrize("steps", [1, 2])
def test_table_that_is_the_output_layer_too_is_that_of_the_naive_loop(m, steps):
    sparse, dense = seeded(Tied(sparse=True)), seeded(Tied(sparse=False))
    expected = naive_sam(dense, squared, batch(), rho=0.4, m=m, steps=steps)
    backward(sparse, *batch(), rho=0.4, m=m, steps=steps)
    assert relative_error(dense_grads(sparse), expected.gradients) < 1e-12


def looked_up_or_whole(table, bias, words):
    """Sparse for words below 5, dense for the others."""
    vectors = table(words) if int(words.max()) < 5 else table.weight[words]
    return (vectors.square().sum(1) * (1 + bias.sum())).mean()


@pytest.mark.parametrize("words", [[1, 9], [9, 1], [1, 9, 2, 8], [9, 8, 1, 2], [1, 2, 9]])
def test_groups_of_sparse_and_of_dense_gradients_are_averaged_in_any_order(words):
    table, bias = nn.Embedding(WORDS, 3, sparse=True).double(), nn.Parameter(torch.ones(2).double())
    found = sam_gradient(
        functools.partial(looked_up_or_whole, table, bias),
        [table.weight, bias],
        (torch.tensor(words),),
        rho=0.1,
        m=1,
    ).gradients
    expected = [torch.zeros(WORDS, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    w, b = table.weight.detach(), bias.detach()
    for word in words:
        g_w, g_b = 2 * w[word] * (1 + b.sum()), w[word].square().sum().repeat(2)
        length = torch.cat([g_w, g_b]).norm()
        moved, moved_b = w[word] + 0.1 * g_w / length, b + 0.1 * g_b / length
        expected[0][word] += 2 * moved * (1 + moved_b.sum()) / len(words)
        expected[1] += moved.square().sum() / len(words)
    assert relative_error([found[0].to_dense(), found[1]], expected) < 1e-12


def test_parts_of_a_group_accumulate_sparse_gradients():
    sparse, dense = models()
    words, y = batch()
    parts = MicroBatches([(words[:2], y[:2]), (words[2:3], y[2:3]), (words[3:], y[3:])])
    expected = naive_sam(dense, squared, (words, y), rho=0.4)
    SAM(sparse, rho=0.4).backward(functools.partial(squared, sparse), parts)
    assert sparse.table.weight.grad.is_sparse
    assert relative_error(dense_grads(sparse), expected.gradients) < 1e-12


@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_diagnostics_are_those_of_the_dense_embedding(rho, scale):
    found = []
    for module in models():
        sam = SAM(module, rho=rho, m=3, diagnostics=True)
        sam.backward(functools.partial(squared, module), *batch(), scale=scale)
        found.append(sam.last_diagnostics)
    for name in ("loss", "perturbed_loss", "gradient_norm", "perturbation_norm", "realised_norm", "cosine"):
        a, b = (getattr(d, name) for d in found)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(found[0].climbed, found[1].climbed)


def test_radii_of_their_own_scale_the_rows():
    sparse, dense = models()
    for module in (sparse, dense):
        groups = [{"params": module.table.parameters(), "rho": 0.1}, {"params": module.head.parameters()}]
        SAM(groups, rho=0.4, m=3).backward(functools.partial(squared, module), *batch())
    assert relative_error(dense_grads(sparse), dense_grads(dense)) < 1e-12


def test_table_that_is_not_perturbed_stays_and_has_a_sparse_gradient():
    module, seen = models()[0], []

    def loss(words, y):
        seen.append(identity([module.table.weight]))
        return squared(module, words, y)

    SAM(module, rho=0.4, perturb="head.*").backward(loss, *batch())
    assert seen[0] == seen[1]
    assert module.table.weight.grad.is_sparse


def test_climb_along_the_momentum_of_sparse_adam_is_along_its_rows():
    module, seen = models()[0], []
    optimizer = torch.optim.SparseAdam([module.table.weight], lr=0.1)
    sam = SAM(module, rho=0.4, ascent=AlongMomentum(optimizer))
    sam.backward(functools.partial(squared, module), *batch())
    optimizer.step()
    start, v = module.table.weight.detach().clone(), optimizer.state[module.table.weight]["exp_avg"]

    def loss(words, y):
        seen.append(module.table.weight.detach() - start)
        return squared(module, words, y)

    sam.backward(loss, *batch(1))
    assert relative_error(seen, [-0.4 * v / v.norm()]) < 1e-12


def test_climb_along_the_momentum_of_sgd_is_that_of_the_dense_embedding():
    """SGD's momentum of a sparse gradient is sparse itself."""
    sparse, dense = models()
    for module in (sparse, dense):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        sam = SAM(module, rho=0.4, ascent=AlongMomentum(optimizer))
        for step in range(3):
            optimizer.zero_grad()
            sam.backward(functools.partial(squared, module), *batch(step))
            optimizer.step()
    assert relative_error(list(sparse.parameters()), list(dense.parameters())) < 1e-12


def test_first_and_last_row_alone_and_padding_are_those_of_the_dense_embedding():
    data = torch.tensor([[0, 10], [10, 10], [0, 0]]), *tensors(2, (3, 2))
    grads = []
    for sparse in (True, False):
        module = Words(sparse=sparse)
        module.table = nn.Embedding(WORDS, 3, sparse=sparse, padding_idx=0)
        module = seeded(module)
        backward(module, *data, rho=0.4, m=1)
        grads.append(dense_grads(module))
    assert relative_error(*grads) < 1e-12
    assert not grads[0][0][0].any(), "the padding's gradient is zero"


def test_bfloat16_table_moves_its_rows_on_average_and_comes_back():
    table = nn.Embedding(6, 20_000, sparse=True, dtype=torch.bfloat16)
    bias, seen = nn.Parameter(torch.ones(2, dtype=torch.bfloat16)), []
    with torch.no_grad():
        table.weight.fill_(1.0)
    before = identity([table.weight, bias])

    def loss(words):
        seen.append(table.weight.detach().double().mean(1) - 1.0)
        return table(words).float().sum() + 0.0 * bias.sum()

    found = sam_gradient(loss, [table.weight, bias], (torch.tensor([5, 2]),), rho=0.1).gradients
    step = 0.1 / 40_000**0.5
    assert seen[1].tolist() == [0, 0, pytest.approx(step, rel=0.2), 0, 0, pytest.approx(step, rel=0.2)]
    assert found[0].is_sparse
    assert found[0].dtype == torch.bfloat16
    assert identity([table.weight, bias]) == before
