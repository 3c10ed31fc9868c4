"""Both engines on a model that is made anew for each, and all that they return compared."""

from unittest import mock

import torch

from lowland import L2, sam_gradient
from lowland.sam import Captures
from lowland.sam.batched.memory import Needs
from lowland.sam.captures import reason_against
from lowland.sam.containers import tensors_of

from ..naive import bits, norm, relative_error
from .models import trained


def ran(engine, make, *, times=1, **options):
    """The last of some results and the model afterwards; the weights must stand where they stood."""
    module, loss, batch = make()
    before = [bits(p) for p in module.parameters()]
    options = {"rho": 0.1} | options
    for _ in range(times):
        result = sam_gradient(loss, trained(module), batch, module=module, engine=engine, **options)
    assert [bits(p) for p in module.parameters()] == before
    return result, module


def in_chunks_of(size):
    """A block in which so many groups are run at once, whatever memory there is."""
    return mock.patch.object(Needs, "groups_at_once", lambda needs, *_, **__: min(size, needs.groups))


def assert_engines_agree(make, tolerance=1e-10, *, recorded=False, **options):
    """Both engines on ``make()``: a module, a loss and a batch, always the same."""
    expected, loop_module = ran("loop", make, **options)
    found, module = ran("batched", make, **options)
    assert [g is None for g in found.gradients] == [g is None for g in expected.gradients]
    pairs = [(g, h) for g, h in zip(found.gradients, expected.gradients, strict=True) if h is not None]
    assert norm([h for _, h in pairs]) > 0.0
    assert relative_error(*zip(*pairs, strict=True)) <= tolerance
    torch.testing.assert_close(found.loss, expected.loss, rtol=tolerance, atol=1e-12)
    buffers = dict(module.named_buffers())
    for name, buffer in loop_module.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-12, atol=1e-12)
    ascent, weight = options.get("ascent") or L2(), options.get("weight")
    why = reason_against(ascent, engine="batched", reduction=options.get("reduction", "mean"), weight=weight)
    if recorded and why is None:
        assert_replay_is_the_step(make, **options)
    return found


def assert_replay_is_the_step(make, **options):
    """A recorded step finds what the step finds, and leaves the buffers and generators that it leaves."""
    captures, found = Captures(), []
    for kept in ({}, {"captures": captures}):
        torch.manual_seed(7)
        result, module = ran("batched", make, times=3, **options, **kept)
        tensors = [*result.gradients, result.loss, *tensors_of(result.aux), *module.buffers()]
        found.append([t for t in (*tensors, torch.get_rng_state()) if t is not None])
    assert captures.replayed > 0 or captures.run == 0, captures  # single groups are left to the loop
    assert len(found[0]) == len(found[1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.0, equal_nan=True)
