"""Gradients that are not finite, zero, tiny, absent or sparse, and a loss of exactly zero."""

import pytest
import torch
from torch import nn

from lowland import L2, SAM, Adaptive, ClippedUnnormalized, SAMOptimizer, Unnormalized
from lowland.sam import Friendly, RandomSubset, Unified, davda54

from ..naive import added, identity, naive_sam, relative_error, seeded, tensors, value_and_gradient
from .ways import WAYS, Pair, closure_of, sgd

ASCENTS = {
    "l2": L2,
    "unnormalized": Unnormalized,
    "clipped": ClippedUnnormalized,
    "adaptive": lambda: Adaptive(scaled="*"),
    "adaptive without eta": lambda: Adaptive(eta=0.0, scaled="*"),
    "unified": Unified,
    "friendly": Friendly,
    "subset": lambda: RandomSubset(0.5),
}


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def infinite_once(module, passes):
    """A loss whose gradient has one Inf in the first pass, and is 1 everywhere afterwards."""

    def loss():
        direction = torch.ones(3, 2, dtype=torch.float64)
        direction[0, 0] = float("inf") if not passes else 1.0
        passes.append(module.flat())
        return module.along(direction, torch.ones(3))

    return loss


def test_one_inf_in_the_first_pass_makes_no_weight_nan():
    """temperon [run], and every library with w + e - e: Inf * 0 is NaN, for good."""
    module, passes = Pair(), []
    before, loss = identity(module), infinite_once(module, passes)
    SAM(module, rho=0.5).backward(lambda _: loss(), torch.zeros(1))
    assert identity(module) == before
    assert all(torch.equal(p, module.flat()) for p in passes), "no pass ran at NaN weights"
    assert module.weight.grad[0, 0] == float("inf"), "the caller can see it"


def test_one_inf_in_the_first_of_two_steps_makes_no_weight_nan():
    """The same with first_step and second_step, at lr=0."""
    module, passes = Pair(), []
    before, loss = identity(module), infinite_once(module, passes)
    WAYS["two steps"](module, sgd(module), rho=0.5)(loss)
    assert identity(module) == before
    assert [torch.equal(p, passes[0]) for p in passes] == [True, True], "no pass ran at NaN weights"


def test_one_inf_in_the_first_pass_of_a_closure_leaves_the_weights_for_the_step_as_they_were():
    """The same with a closure: what the optimizer makes of an infinite gradient is its own affair."""
    module, passes, at_step = Pair(), [], []
    before, base = module.flat(), sgd(module)
    base.register_step_pre_hook(lambda *_: at_step.append(module.flat()))
    WAYS["closure"](module, base, rho=0.5)(infinite_once(module, passes))
    assert [w.tolist() for w in at_step] == [before.tolist()]
    assert len(passes) == 1, "there is nowhere to climb, and no pass at NaN weights"


def test_gradient_that_is_not_finite_is_skipped_by_a_gradscaler_and_training_goes_on():
    """Libraries that copy the weights back recover, unless they then apply the NaN gradient."""
    module, passes = Pair(), []
    before, loss = identity(module), infinite_once(module, passes)
    base, sam = sgd(module, lr=0.1, momentum=0.9), SAM(module, rho=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for skipped in (True, False):
        base.zero_grad()
        sam.backward(lambda _: loss(), torch.zeros(1), scale=scaler)
        scaler.step(base)
        scaler.update()
        assert (identity(module) == before) is skipped
    assert module.flat().isfinite().all()
    assert scaler.get_scale() == 4.0


@pytest.mark.parametrize("ascent", ASCENTS)
def test_zero_gradient_climbs_nowhere_and_is_not_nan(way, ascent):
    """google/sam, optax, init2winit, mlcommons, bayesian-sam, sam.pytorch, big_vision: g / 0."""
    module = Pair()
    before = identity(module)
    step = way(module, sgd(module, lr=1.0), rho=0.5, ascent=ASCENTS[ascent]())
    for _ in range(2):
        value = step(lambda: module.along(torch.zeros(3, 2), torch.zeros(3)) + 7.0)
        assert value == 7.0
        assert identity(module) == before


@pytest.mark.parametrize("ascent", ASCENTS)
def test_zero_gradient_of_half_precision_weights_is_not_nan(way, ascent):
    """The davda54 family: in float16 the 1e-12 that is to prevent it is 0."""
    module = Pair(torch.float16)
    before = identity(module)
    zero = torch.zeros((), dtype=torch.float16)
    step = way(module, sgd(module, lr=1.0), rho=0.5, ascent=ASCENTS[ascent]())
    step(lambda: module.along(zero, zero))
    assert identity(module) == before


def test_tiny_half_precision_gradient_moves_the_weights_by_rho_and_not_to_infinity(way):
    """The davda54 family: rho / (1e-7 + 0) is Inf in float16, as is the square of the gradient zero."""
    module, passes = Pair(torch.float16), []
    tiny = torch.tensor(1e-7, dtype=torch.float16)

    def loss():
        passes.append(module.flat().double())
        return module.along(tiny, tiny)

    way(module, sgd(module), rho=0.5)(loss)
    assert (passes[1] - passes[0]).norm().item() == pytest.approx(0.5, rel=1e-2)


@pytest.mark.filterwarnings("ignore:the loss depends on tensors")
def test_step_in_which_no_parameter_has_a_gradient_is_refused_and_does_nothing(way):
    """The davda54 family: RuntimeError, stack expects a non-empty TensorList."""
    module, other = Pair(), nn.Parameter(torch.ones(2))
    before = identity(module)
    with pytest.raises(ValueError, match=r"^loss must depend on the params, got a gradient for none of them"):
        way(module, sgd(module, lr=1.0), rho=0.5)(lambda: other.sum())
    assert identity(module) == before
    assert all(p.grad is None for p in module.parameters())


def embedding(sparse):
    module = nn.Sequential(nn.Embedding(6, 3, sparse=sparse), nn.Linear(3, 2))
    return seeded(module, 7)


IDS = torch.tensor([[1, 1, 4], [1, 4, 0], [5, 5, 5]])


def of_ids(module, ids):
    return module(ids).square().mean()


def test_sparse_gradients_give_the_step_of_dense_ones(way):
    """davda54 (it ran, for one embedding; untested upstream)."""
    module = embedding(sparse=True)
    start = [p.detach().clone() for p in module.parameters()]
    expected = naive_sam(embedding(sparse=False), of_ids, (IDS,), rho=0.5).gradients
    way(module, sgd(module, lr=1.0), rho=0.5)(lambda: of_ids(module, IDS))
    moves = added(start, list(module.parameters()), -1.0)
    assert relative_error(moves, expected) < 1e-12
    assert torch.equal(module[0].weight[2:4], start[0][2:4]), "rows without a gradient stay"


def test_sparse_gradients_give_the_adaptive_step_of_dense_ones():
    """The same for adaptive=True, where an embedding's step depends on its weights."""
    module, dense = embedding(sparse=True), embedding(sparse=False)
    w = [p.detach().clone() for p in dense.parameters()]
    _, g = value_and_gradient(dense, of_ids, (IDS,), w)
    length = torch.cat([(a.abs() * b).flatten() for a, b in zip(w, g, strict=True)]).norm()
    e = [0.5 * a**2 * b / length for a, b in zip(w, g, strict=True)]
    _, expected = value_and_gradient(dense, of_ids, (IDS,), added(w, e))
    optimizer = davda54.SAM(module.parameters(), torch.optim.SGD, rho=0.5, adaptive=True, lr=1.0)
    optimizer.step(closure_of(optimizer, lambda: of_ids(module, IDS)))
    assert relative_error(added(w, list(module.parameters()), -1.0), expected) < 1e-12


def test_loss_of_exactly_zero_is_a_loss(way):
    """composer: ``if loss:`` skips the step, as for an overflow."""
    module = Pair()
    start, (c, d) = module.flat(), tensors(8, (3, 2), (3,))
    at_start = module.along(c, d).item()
    value = way(module, sgd(module, lr=1.0), rho=0.5)(lambda: module.along(c, d) - at_start)
    assert value == 0.0
    assert torch.allclose(start - module.flat(), torch.cat([c.flatten(), d]))


def test_closure_that_returns_nothing_still_steps():
    """composer takes a None for an overflow; a closure that forgets its return value is no reason to skip."""
    module = Pair()
    start = module.flat()
    optimizer = SAMOptimizer(sgd(module, lr=1.0), rho=0.5)

    def closure():
        optimizer.zero_grad()
        module.along(torch.ones(3, 2), torch.ones(3)).backward()

    assert optimizer.step(closure) is None
    assert torch.allclose(start - module.flat(), torch.ones(9, dtype=torch.float64))
