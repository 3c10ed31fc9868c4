"""A trap run by an engine, and what came of it compared with the loop."""

import random

import torch
from torch.overrides import _get_current_function_mode_stack

from lowland import sam_gradient
from lowland.sam.unbatchable import Unbatchable

from ...naive import bits, norm
from ..models import trained


def run(engine, make, module=True, **options):
    """The result or what was raised, and the model afterwards."""
    torch.manual_seed(0)
    random.seed(0)
    model, loss, batch = make()
    options = {"rho": 0.3, "m": 2, "max_memory": None if engine == "loop" else 2**40} | options
    params = trained(model)
    before = copy_of(model), [bits(p) for p in params.values()], [m.training for m in model.modules()]
    torch.manual_seed(1)
    draws = torch.get_rng_state()
    try:
        found = sam_gradient(loss, params, batch, module=model if module else None, engine=engine, **options)
    except Unbatchable as error:
        found = error
        assert same_buffers(copy_of(model), before[0])
        assert [bits(p) for p in params.values()] == before[1]
        assert [m.training for m in model.modules()] == before[2]
        assert torch.equal(draws, torch.get_rng_state())
    assert not _get_current_function_mode_stack()
    return found, model


def copy_of(model):
    found = {}
    for name, buffer in model.named_buffers():
        assert not torch._C._functorch.is_batchedtensor(buffer), f"{name} is a tensor of vmap"
        found[name] = buffer.detach().clone()
    return found


def same_buffers(found, expected):
    return found.keys() == expected.keys() and all(
        t.shape == expected[n].shape
        and t.dtype == expected[n].dtype
        and torch.allclose(t.double(), expected[n].double(), rtol=1e-10, atol=1e-12, equal_nan=True)
        for n, t in found.items()
    )


def assert_as_in_the_loop(found, model, expected, loop_model, tolerance=1e-10):
    assert [g is None for g in found.gradients] == [g is None for g in expected.gradients]
    pairs = [(g, h) for g, h in zip(found.gradients, expected.gradients, strict=True) if h is not None]
    pairs = [(g.to_dense(), h.to_dense()) for g, h in pairs]
    error, size = norm([g - h for g, h in pairs]), norm([h for _, h in pairs])
    assert error <= tolerance * size, f"off by {error / size:.1e} of the gradient"
    torch.testing.assert_close(found.loss, expected.loss, rtol=tolerance, atol=1e-12)
    assert [bits(p) for p in trained(model).values()] == [bits(p) for p in trained(loop_model).values()]
    assert same_buffers(copy_of(model), copy_of(loop_model))


def assert_refused(found, refused):
    assert isinstance(found, Unbatchable), f"must be refused for {refused.reason!r}, but was run"
    assert refused.tells(found.what), f"must be refused for {refused.reason!r}, got {found.what!r}"
