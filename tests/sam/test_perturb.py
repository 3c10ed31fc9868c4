"""Weights moved and put back bit for bit, whatever happens in between."""

import functools

import pytest
import torch

from lowland import SAM, perturbed, sam_gradient

from .naive import bits, buffers_of, identity, mlp, regression, seeded, squared, tensors


def awkward(dtype=torch.float32):
    """Weights that w + e - e does not return to: tiny beside huge, signed zeros, infinities, NaN."""
    values = torch.tensor([1e-8, 1.0, -0.0, 0.0, 1e30, float("inf"), float("nan"), 3.0], dtype=dtype)
    return [torch.nn.Parameter(values), torch.nn.Parameter(values.reshape(2, 4).t().clone())]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_parameters_come_back_bit_for_bit_in_their_storage(dtype):
    params = awkward(dtype)
    before = identity(params)
    perturbation = [torch.full_like(p, 0.3) for p in params]
    with perturbed(params, perturbation):
        assert [bits(p) for p in params] != [b for b, _ in before]
        assert [p.data_ptr() for p in params] == [address for _, address in before]
    assert identity(params) == before


def test_block_sees_the_sum():
    w, e = tensors(0, (3, 2), (3, 2))
    a, b = torch.nn.Parameter(w.clone()), torch.nn.Parameter(w[0].clone())
    with perturbed(iter([a, b]), (e, e[0])):
        assert torch.equal(a, w + e)
        assert torch.equal(b, w[0] + e[0])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_parameters_come_back_when_the_block_raises(error):
    params = awkward()
    before = identity(params)
    with pytest.raises(error), perturbed(params, [torch.ones_like(p) for p in params]):
        raise error
    assert identity(params) == before


def test_parameters_come_back_when_one_cannot_be_moved():
    params = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    before = identity(params)
    cannot = [torch.ones(2), torch.ones(2, dtype=torch.complex64)]
    with pytest.raises(RuntimeError), perturbed(params, cannot):
        pytest.fail("the block must not run")
    assert identity(params) == before


def test_parameters_come_back_although_the_block_writes_to_them():
    params = awkward()
    before = identity(params)
    with perturbed(params, [torch.ones_like(p) for p in params]), torch.no_grad():
        params[0].zero_()
    assert identity(params) == before


def test_nested_perturbations_add_and_unwind():
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    e = [torch.ones(2), torch.ones(1)]
    with perturbed([a, b], e):
        with perturbed([a, b], e):
            assert a.tolist() == [2.0, 2.0]
        assert a.tolist() == [1.0, 1.0]
    assert a.tolist() == [0.0, 0.0]


def test_perturbation_itself_is_not_written_to():
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    e = [torch.ones(2), torch.ones(1)]
    with perturbed([a, b], e):
        pass
    assert e[0].tolist() == [1.0, 1.0]


def test_parameters_still_need_gradients_and_keep_grad():
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    a.grad = torch.full((2,), 7.0)
    with perturbed([a, b], [torch.ones(2), torch.ones(1)]):
        assert a.requires_grad
        assert a.is_leaf
    assert a.grad.tolist() == [7.0, 7.0]


def test_perturbations_of_other_shapes_are_refused():
    params = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    message = (
        r"^perturbation must have the shapes of the params, \[\(2,\), \(3,\)\], got \[\(2,\), \(1,\)\]\.$"
    )
    with pytest.raises(ValueError, match=message), perturbed(params, [torch.ones(2), torch.ones(1)]):
        pytest.fail("the block must not run")
    with pytest.raises(ValueError, match=r"got \[\(2,\)\]\.$"), perturbed(params, [torch.ones(2)]):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("options", [{}, {"m": 3}, {"m": 1, "steps": 3}, {"l2": 0.1, "m": 3}])
def test_gradient_call_leaves_every_weight_bit_for_bit(options):
    module, batch = mlp(dtype=torch.float32), regression(dtype=torch.float32)
    before = identity(module)
    for _ in range(5):
        sam_gradient(lambda *b: squared(module, *b), list(module.parameters()), batch, rho=0.5, **options)
    assert identity(module) == before


def test_weights_that_became_double_come_back_bit_for_bit_from_the_same_sam():
    """Their digits do not fit the memory that their copies of float32 were in."""
    module = mlp(dtype=torch.float32)
    sam = SAM(module, rho=0.5)
    sam.backward(functools.partial(squared, module), *regression(dtype=torch.float32))
    module.zero_grad()
    seeded(module, seed=1, dtype=torch.float64)
    before = identity(module)
    sam.backward(functools.partial(squared, module), *regression())
    assert identity(module) == before


@pytest.mark.parametrize("failing_call", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failing_pass_leaves_everything_as_before_the_call(failing_call, error):
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5), mlp()).double()
    batch = regression(examples=8)
    sam = SAM(module, rho=0.5, m=4, steps=2)
    for p in module.parameters():
        p.grad = torch.full_like(p, 3.0)
    grads = [(p.grad, bits(p.grad)) for p in module.parameters()]
    weights, buffers, generator = identity(module), buffers_of(module), torch.get_rng_state()
    calls = []

    def loss(x, y):
        calls.append(None)
        value = squared(module, x, y)
        if len(calls) == failing_call:
            raise error("stop")
        return value

    with pytest.raises(error, match="stop"):
        sam.backward(loss, *batch)
    assert len(calls) == failing_call
    assert identity(module) == weights
    assert buffers_of(module) == buffers
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is g and bits(g) == b for p, (g, b) in zip(module.parameters(), grads, strict=True))


def test_failing_backward_pass_leaves_everything_as_before_the_call():
    module, batch, calls = mlp(), regression(), []
    weights = identity(module)

    def fail(gradient):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return gradient

    def loss(x, y):
        out = module(x)
        out.register_hook(fail)
        return (out - y).square().mean()

    with pytest.raises(KeyboardInterrupt):
        SAM(module, rho=0.5).backward(loss, *batch)
    assert identity(module) == weights
    assert all(p.grad is None for p in module.parameters())


def test_error_after_the_last_pass_leaves_buffers_and_generators_as_before_the_call():
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5), mlp()).double()

    def cannot_combine(gradient, perturbed):
        raise RuntimeError(f"no rule for {len(gradient)} and {len(perturbed)}")

    sam = SAM(module, rho=0.5, m=4, combine=cannot_combine)
    weights, buffers, generator = identity(module), buffers_of(module), torch.get_rng_state()

    def loss(x, y):
        return squared(module, x, y)

    with pytest.raises((TypeError, RuntimeError)):
        sam.backward(loss, *regression(examples=8))
    assert identity(module) == weights
    assert buffers_of(module) == buffers
    assert torch.equal(torch.get_rng_state(), generator)
