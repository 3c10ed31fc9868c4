"""Weights and batches of different types: an error, or a result, as one plain pass makes of them."""

import contextlib
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland import sam_gradient

from ..naive import bits, buffers_of, norm, seeded, tensors
from .models import Through, parameter

B = 6


LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear of sequences": (lambda: nn.Linear(4, 3, bias=False), (2, 4)),
    "addmm": (
        lambda: Through(lambda s, x: torch.addmm(s.b, x, s.w), w=parameter(4, 3), b=parameter(3)),
        (4,),
    ),
    "matmul": (lambda: Through(lambda s, x: x @ s.w, w=parameter(4, 3)), (2, 4)),
    "bilinear": (lambda: Through(lambda s, x: s.b(x, x), b=nn.Bilinear(4, 4, 3)), (4,)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 2), (2, 4)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 2, bias=False), (2, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 3, 3)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(2, 3, 2), (2, 4, 4)),
    "layer_norm": (lambda: nn.LayerNorm(4), (4,)),
    "layer_norm without bias": (lambda: nn.LayerNorm(4, bias=False), (4,)),
    "rms_norm": (lambda: nn.RMSNorm(4), (4,)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (4, 3)),
    "instance_norm": (lambda: nn.InstanceNorm1d(4, affine=True), (4, 3)),
    "instance_norm in evaluation": (
        lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True).eval(),
        (4, 3),
    ),
    "batch_norm": (lambda: nn.BatchNorm1d(4), (4, 3)),
    "batch_norm in evaluation": (lambda: nn.BatchNorm1d(4).eval(), (4,)),
    "embedding": (lambda: nn.Embedding(6, 4), (4,)),
    "embedding_bag": (
        lambda: Through(
            lambda s, x: s.b(torch.arange(4).expand(len(x), 4), per_sample_weights=x),
            b=nn.EmbeddingBag(6, 4, mode="sum"),
        ),
        (4,),
    ),
    "prelu": (lambda: nn.PReLU(4), (4,)),
    "scale": (lambda: Through(lambda s, x: x * s.w, w=parameter(4)), (4,)),
    "scaled dot product attention": (
        lambda: Through(
            lambda s, x: F.scaled_dot_product_attention(s.w.expand(len(x), 3, 4), x, x), w=parameter(3, 4)
        ),
        (5, 4),
    ),
    "multi-head attention": (
        lambda: Through(lambda s, x: s.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2, batch_first=True)),
        (5, 4),
    ),
}
"""What meets the batch with a weight, and the shape of an example."""

OF_TYPES = re.compile("scalar type|same d?type|data ?type|Input type|not implemented for")
"""How torch says that types do not go together; which of these depends on the kernel."""

WITHOUT_RULE = ["bilinear", "prelu"]
"""What fails as any operation does that ``vmap`` cannot run: with torch's reason in the sentence."""

TYPES = [
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.float32, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float32),
    (torch.float32, torch.int64),
    (torch.float32, torch.int32),
]
"""Types of the weights and of the batch."""


def found(name, weights, numbers, autocast, run):
    """The error in words, or what ``run`` returns, and the bytes of all that stood in the module."""
    make, shape = LAYERS[name]
    module = seeded(make()).to(weights)
    (x,) = tensors(1, (B, *shape))
    x = x.to(numbers) if numbers.is_floating_point else torch.arange(x.numel()).view(x.shape).to(numbers) % 4
    before = [bits(p) for p in module.parameters()], buffers_of(module)
    block = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
    try:
        with block:
            return run(module, x), None
    except (RuntimeError, NotImplementedError) as error:
        untouched = before == ([bits(p) for p in module.parameters()], buffers_of(module))
        return f"{type(error).__name__}: {error}", untouched


def plain(module, x):
    """A pass over the first group."""
    value = module(x[:1]).square().mean()
    return torch.autograd.grad(value, list(module.parameters())), value.dtype


def by(engine):
    def run(module, x):
        params = list(module.parameters())
        result = sam_gradient(
            lambda x: module(x).square().mean(), params, (x,), rho=0.1, m=1, module=module, engine=engine
        )
        return result.gradients, result.loss.dtype

    return run


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_both_engines_do_what_a_plain_pass_does_with_types_that_differ(name, autocast):
    if name == "prelu" and autocast:
        pytest.skip("vmap's prelu knows no autocast: in float32, or refused as below")
    for weights, numbers in TYPES:
        truth, _ = found(name, weights, numbers, autocast, plain)
        loop, loop_untouched = found(name, weights, numbers, autocast, by("loop"))
        batched, untouched = found(name, weights, numbers, autocast, by("batched"))
        if isinstance(truth, str):
            assert loop == truth, (weights, numbers)
            assert loop_untouched
            assert untouched
            said = batched.split(":")[0] in ("RuntimeError", "NotImplementedError") and OF_TYPES.search(
                batched
            )
            assert said or (name in WITHOUT_RULE and truth.split(": ", 1)[1] in batched), (
                weights,
                numbers,
                batched,
            )
            continue
        (expected, dtype), (actual, own_dtype) = loop, batched
        assert own_dtype == dtype == truth[1], (weights, numbers)
        coarse = autocast or numbers in (torch.float16, torch.bfloat16)
        difference = norm([a.double() - b.double() for a, b in zip(actual, expected, strict=True)])
        size = norm([b.double() for b in expected])
        assert difference <= (3e-2 if coarse else 1e-5) * size, (weights, numbers)


SIGNS = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
LOSSES = {
    "cross_entropy": lambda z: F.cross_entropy(z, torch.zeros(len(z), dtype=torch.long)),
    "cross_entropy of shares": lambda z: F.cross_entropy(z, z.detach().flip(1).softmax(1)),
    "nll_loss": lambda z: F.nll_loss(z.log_softmax(1), torch.zeros(len(z), dtype=torch.long)),
    "binary_cross_entropy_with_logits": lambda z: F.binary_cross_entropy_with_logits(
        z, z.detach().flip(1).sigmoid()
    ),
    "l1_loss": lambda z: F.l1_loss(z, torch.zeros_like(z)),
    "cosine_embedding_loss": lambda z: F.cosine_embedding_loss(z, z.detach() + 1, SIGNS[: len(z)]),
    "hinge_embedding_loss": lambda z: F.hinge_embedding_loss(z[:, 0], SIGNS[: len(z)]),
    "poisson_nll_loss": lambda z: F.poisson_nll_loss(z, z.detach().abs()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_under_autocast_have_the_type_and_the_value_of_the_loop(name):
    module = seeded(nn.Linear(4, 3), dtype=torch.float32)
    (x,) = tensors(1, (B, 4))
    x, params = x.float(), list(module.parameters())

    def loss(x):
        return LOSSES[name](module(x))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = loss(x).dtype
        loop, batched = (
            sam_gradient(loss, params, (x,), rho=0.1, m=2, module=module, engine=engine)
            for engine in ("loop", "batched")
        )
    assert batched.loss.dtype == loop.loss.dtype == plain == torch.float32
    torch.testing.assert_close(batched.loss, loop.loss, rtol=3e-3, atol=0.0)
    difference = norm([a - b for a, b in zip(batched.gradients, loop.gradients, strict=True)])
    assert difference <= 3e-2 * norm(loop.gradients)


def test_loss_that_only_the_batched_engine_cannot_run_is_still_refused_by_name():
    module = seeded(nn.PReLU(4), dtype=torch.float32)
    (x,) = tensors(1, (B, 4))
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(RuntimeError, match="run every part for all groups at once, got prelu"),
    ):
        by("batched")(module, x.bfloat16())
