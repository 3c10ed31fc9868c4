"""The sentence of a refusal names what the loss has, with its line, and not what happened to run last."""

import copy
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland import sam_gradient
from lowland.sam.unbatchable import Unbatchable

from ..naive import naive_sam, relative_error, seeded, tensors
from .models import trained

READ = "a value that is read from a tensor, by "
SHAPED = "a result whose shape depends on the data, by "


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned around."""

    @staticmethod
    def forward(ctx, x):  # noqa: ARG004 - the protocol's
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):  # noqa: ARG004 - the protocol's
        return -grad


class ReversedWithContext(Reversed):
    """The same, as ``torch.func`` wants it written."""

    @staticmethod
    def forward(x):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


class Doubled(torch.autograd.Function):
    """Twice the input, with the decorators of automatic mixed precision."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x):  # noqa: ARG004 - the protocol's
        return 2.0 * x

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad):  # noqa: ARG004 - the protocol's
        return 2.0 * grad


def experts_in_turn(net, x, y):
    """The top two of three experts, each run on the rows that were sent to it."""
    h = net[0](x).tanh()
    shares, chosen = net[1](h).softmax(-1).topk(2)
    total = torch.zeros_like(h)
    for expert in range(3):
        row, place = torch.where(chosen == expert)
        total.index_add_(0, row, (expert + 1) * h[row].tanh() * shares[row, place, None])
    return F.cross_entropy(net[1](total), y)


def experts_that_were_hit(net, x, y):
    """As the experts of ``transformers``: what comes last is the end of the block without a gradient."""
    h = net[0](x).tanh()
    shares, chosen = net[1](h).softmax(-1).topk(2)
    with torch.no_grad():
        mask = F.one_hot(chosen, 3).permute(2, 1, 0)
        hit = (mask.sum((1, 2)) > 0).nonzero()
    for expert in hit:
        h = h + expert * h.tanh() * shares.sum()
    return F.cross_entropy(net[1](h), y)


def adversarial_penalty(net, x, y):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(net(x), y), x, create_graph=True)
    return F.cross_entropy(net(x), y) + g.square().sum()


def jacobian_penalty(net, x, y):
    found = torch.autograd.functional.jacobian(net, x, create_graph=True)
    return F.cross_entropy(net(x), y) + found.square().sum()


def reversed_by_a_hook(net, x, y):
    h = net[0](x)
    h.register_hook(torch.neg)
    return F.cross_entropy(net[1](h), y)


def until_it_is_small(net, x, y):
    h = net(x)
    while h.detach().norm().item() > 1.0:
        h = h / 2.0
    return F.cross_entropy(h, y)


def between(function):
    """A loss with ``function`` between its layers."""
    return lambda net, x, y: F.cross_entropy(net[1](function(net[0](x).tanh())), y)


def beside(function):
    """A loss times what ``function`` makes of its outputs and classes."""
    return lambda net, x, y: F.cross_entropy(net(x), y) * (1.0 + 0.1 * function(net(x), y))


shared = torch.zeros(3, dtype=torch.float64)

CAUSES = {
    "reversal before a layer": (between(Reversed.apply), "a custom autograd.Function, Reversed"),
    "reversal of the loss": (
        lambda net, x, y: Reversed.apply(F.cross_entropy(net(x), y)),
        "a custom autograd.Function, Reversed",
    ),
    "reversal of the input": (
        lambda net, x, y: F.cross_entropy(net(Reversed.apply(x)), y),
        "a custom autograd.Function, Reversed",
    ),
    "reversal with a context": (
        between(ReversedWithContext.apply),
        "a custom autograd.Function, ReversedWithContext",
    ),
    "function of mixed precision": (between(Doubled.apply), "a custom autograd.Function, Doubled"),
    "reversal by a hook": (reversed_by_a_hook, "Tensor.register_hook inside the loss"),
    "item": (beside(lambda h, _: h.abs().mean().item()), READ + ".item()"),
    "float": (beside(lambda h, _: float(h.abs().mean())), READ + "float()"),
    "int": (beside(lambda _, y: int(y[0])), READ + "int()"),
    "list": (beside(lambda _, y: y.tolist()[0]), READ + ".tolist()"),
    "text": (beside(lambda h, _: len(f"{h.mean():.3f}")), READ + "an f-string"),
    "membership": (beside(lambda _, y: 2.0 if 2 in y else 1.0), READ + "in"),
    "index of a list": (beside(lambda _, y: sum([1.0, 2.0, 3.0][k] for k in y)), READ + "an index"),
    "end of a slice": (beside(lambda h, y: h[:, : y.max() + 1].sum()), READ + "indexing"),
    "length of a range": (beside(lambda _, y: torch.arange(y.max() + 1).sum()), READ + "arange"),
    "numpy": (beside(lambda h, _: np.abs(h.detach().numpy()).mean()), READ + ".numpy()"),
    "numpy through the cpu": (beside(lambda h, _: h.detach().cpu().numpy().mean()), READ + ".numpy()"),
    "asarray": (beside(lambda h, _: np.asarray(h.detach()).mean()), READ + "NumPy"),
    "while": (until_it_is_small, READ + ".item()"),
    "nonzero": (beside(lambda _, y: len((y > 0).nonzero())), SHAPED + "nonzero"),
    "mask": (beside(lambda h, y: h[y > 0].sum()), SHAPED + "indexing"),
    "masked_select": (beside(lambda h, _: h.masked_select(h > 0).sum()), SHAPED + "masked_select"),
    "where": (beside(lambda _, y: len(torch.where(y > 0)[0])), SHAPED + "where"),
    "unique": (beside(lambda _, y: len(y.unique())), SHAPED + "unique"),
    "experts in turn": (experts_in_turn, SHAPED + "where"),
    "experts that were hit": (experts_that_were_hit, SHAPED + "nonzero"),
    "gradient penalty": (adversarial_penalty, "torch.autograd.grad inside the loss"),
    "jacobian": (jacobian_penalty, "torch.autograd.grad inside the loss"),
    "torch.func": (
        lambda net, x, y: F.cross_entropy(net(x), y) + torch.func.grad(lambda t: net(t).sum())(x).sum(),
        "a transform of torch.func inside the loss",
    ),
    "tensor that all share": (
        beside(lambda h, _: shared.copy_(h.detach().mean(0)).sum()),
        "copy_, which writes to a tensor that all groups share",
    ),
    "comparison of tensors": (
        beside(lambda h, _: 2.0 if torch.allclose(h, h) else 1.0),
        "allclose, which torch.func.vmap cannot run",
    ),
    "copy": (
        beside(lambda h, _: copy.deepcopy(h.detach()).sum()),
        "the memory of a tensor, by copy.deepcopy",
    ),
    "nested tensors": (
        lambda net, x, y: F.cross_entropy(torch.nested.as_nested_tensor([*net(x)]).to_padded_tensor(0.0), y),
        "_nested_tensor_from_tensor_list, which torch.func.vmap cannot run",
    ),
}


def made():
    net = seeded(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)))
    return net, (tensors(2, (4, 4))[0], torch.tensor([0, 2, 1, 2]))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", CAUSES)
def test_a_refusal_names_the_cause(name):
    loss, said = CAUSES[name]
    net, batch = made()
    with pytest.raises(Unbatchable) as raised:
        sam_gradient(lambda *xy: loss(net, *xy), trained(net), batch, rho=0.1, m=1, engine="batched")
    assert raised.value.what == said
    assert re.fullmatch(r": .+ \(\w+\.py, line \d+\)", raised.value.where)
    assert str(raised.value).endswith(f"got {said}{raised.value.where}.")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", ["experts in turn", "reversal before a layer", "while"])
def test_auto_says_so_and_runs_one_group_after_the_other(name):
    loss, said = CAUSES[name]
    net, batch = made()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = sam_gradient(lambda *xy: loss(net, *xy), trained(net), batch, rho=0.1, m=1)
    expected = naive_sam(net, loss, batch, rho=0.1, m=1)
    assert relative_error(found.gradients, expected.gradients) <= 1e-10
    (warning,) = [str(w.message) for w in heard if "one after the other" in str(w.message)]
    assert warning.startswith(f"the groups were run one after the other because of {said}: ")


LOSSES = """
import torch
import torch.nn.functional as F
from lowland.sam import SAM
from lowland.sam.unbatchable import Unbatchable

class Reversed(torch.autograd.Function):
    forward = staticmethod(lambda ctx, x: x.view_as(x))
    backward = staticmethod(lambda ctx, grad: -grad)

class Routed(torch.nn.Linear):
    def forward(self, x):
        x = F.gelu(super().forward(x))
        return x[x[:, 0] > 0]  # a mask

net = torch.nn.Sequential(torch.nn.Linear(4, 3), Routed(3, 2))
losses = [
    lambda x: net[1](Reversed.apply(net[0](x))).sum(),
    lambda x: net(x).sum(),
    lambda x: net[0](x).sum() * net[0](x).mean().item(),
]
for loss in losses:
    try:
        SAM(net, rho=0.1, m=1, engine="batched").backward(loss, torch.randn(4, 4))
    except Unbatchable as error:
        print(str(error).partition("got ")[2])
"""


def test_the_line_is_the_innermost_that_is_not_torchs(tmp_path):
    """In a process of its own, where nothing that checks types stands between the loss and the library."""
    path = tmp_path / "mine.py"
    path.write_text(LOSSES)
    said = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        "a custom autograd.Function, Reversed: "
        "lambda x: net[1](Reversed.apply(net[0](x))).sum(), (mine.py, line 18).",
        "a result whose shape depends on the data, by indexing: "
        "return x[x[:, 0] > 0]  # a mask (mine.py, line 14).",
        "a value that is read from a tensor, by .item(): "
        "lambda x: net[0](x).sum() * net[0](x).mean().item(), (mine.py, line 20).",
    ]
