"""Losses that the batched engine once got silently wrong: it agrees with the loop, or refuses."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland import sam_gradient
from lowland.sam.unbatchable import Unbatchable

from ..naive import bits, norm, seeded, tensors
from .models import Through, parameter

pytestmark = pytest.mark.filterwarnings("ignore")

B = 8
TRAPS = {}


def trap(function):
    TRAPS[function.__name__] = function
    return function


def two_layers(forward, buffer=None, **members):
    module = seeded(Through(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 3), **members))
    if buffer is not None:
        module.register_buffer("n", buffer)
    return module, lambda x: module(x).square().mean(), tuple(tensors(1, (B, 4)))


def plain(s, x):
    return s.b(s.a(x).tanh())


@trap
def chosen_rows_of_a_weight():
    """Sampled softmax: a list of rows is no slice."""
    return two_layers(lambda s, x: F.linear(x, s.a.weight[[3, 1, 1]]) + plain(s, x))


@trap
def rows_of_a_weight_by_a_tensor():
    rows = torch.tensor([3, 0, 2])
    return two_layers(lambda s, x: x @ s.a.weight[rows].t() + plain(s, x))


@trap
def rows_of_a_weight_by_a_mask():
    rows = torch.tensor([False, True, True, True])
    return two_layers(lambda s, x: F.linear(x, s.a.weight[rows]) + plain(s, x))


@trap
def rows_of_a_weight_by_the_examples():
    def forward(s, x):
        return F.linear(x, s.a.weight[(x[:, 0] > 0).long()]).sum(1, keepdim=True) + plain(s, x)

    return two_layers(forward)


def without_gradient(view, use):
    def forward(s, x):
        with torch.no_grad():
            w = view(s.a.weight)
        return use(x, w) + plain(s, x)

    return lambda: two_layers(forward)


TRAPS["transpose_taken_without_gradient"] = without_gradient(lambda w: w.T, lambda x, w: (x @ w)[:, :3])
TRAPS["row_taken_without_gradient"] = without_gradient(lambda w: w[0], lambda x, w: (x * w)[:, :3])
TRAPS["rows_taken_without_gradient"] = without_gradient(lambda w: w[:3], F.linear)
TRAPS["chunk_taken_without_gradient"] = without_gradient(
    lambda w: w.chunk(2)[0], lambda x, w: F.linear(x, w).sum(1, keepdim=True)
)


@trap
def alias_made_before():
    module, loss, batch = two_layers(lambda s, x: F.linear(x, s.alias[0])[:, :3] + plain(s, x))
    module.alias = [module.a.weight.detach()]
    return module, loss, batch


@trap
def buffer_that_is_an_alias():
    module, loss, batch = two_layers(lambda s, x: F.linear(x, s.alias)[:, :3] + plain(s, x))
    module.register_buffer("alias", module.a.weight.detach())
    return module, loss, batch


@trap
def two_parameters_of_one_storage():
    module, loss, batch = two_layers(lambda s, x: s.b(s.c(s.a(x).tanh()).tanh()), c=nn.Linear(4, 4))
    module.c.weight.data = module.a.weight.data
    return module, loss, batch


def _product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w.t()


@trap
def scripted_function_without_gradient():
    product = torch.jit.script(_product)

    def forward(s, x):
        with torch.no_grad():
            y = product(x, s.a.weight)
        return s.b((s.a(x) + y).tanh())

    return two_layers(forward)


@trap
def traced_module_without_gradient():
    def forward(s, x):
        with torch.no_grad():
            y = s.traced[0](x)
        return s.b((s.a(x) + y).tanh())

    module, loss, batch = two_layers(forward)
    module.traced = [torch.jit.trace(module.a, tensors(1, (2, 4))[0])]
    return module, loss, batch


class ByOwnRule(torch.autograd.Function):
    """A product whose weight gets no gradient, with a rule of its own."""

    @staticmethod
    def forward(x, w):
        return F.linear(x, w)

    @staticmethod
    def setup_context(ctx, inputs, output):  # noqa: ARG004 - the protocol's
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[1], None

    @staticmethod
    def vmap(info, in_dims, x, w):  # noqa: ARG004 - the protocol's
        w = w.t() if in_dims[1] is None else w.movedim(in_dims[1], 0).transpose(1, 2)
        return ByOwnRule.product(x.movedim(in_dims[0], 0), w), 0

    @staticmethod
    def product(x, w):
        return x @ w


@trap
def custom_function_whose_parameter_gets_no_gradient():
    return two_layers(lambda s, x: s.b(ByOwnRule.apply(s.a(x).tanh(), s.a.weight)))


@trap
def custom_function_that_closes_over_a_parameter():
    module, loss, batch = two_layers(None)

    class Closed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return F.linear(x, module.a.weight)

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(_, grad):
            return grad @ module.a.weight

    module.function = lambda s, x: s.b(Closed.apply(s.a(x).tanh()))
    return module, loss, batch


def tripled(grads):
    return tuple(None if g is None else 3.0 * g for g in grads)


def hooked(register):
    def make():
        module, loss, batch = two_layers(plain)
        register(module.b)
        return module, loss, batch

    return make


TRAPS["full_backward_hook"] = hooked(lambda s: s.register_full_backward_hook(lambda *seen: tripled(seen[1])))
TRAPS["backward_pre_hook"] = hooked(
    lambda s: s.register_full_backward_pre_hook(lambda *seen: tripled(seen[1]))
)
TRAPS["old_backward_hook"] = hooked(lambda s: s.register_backward_hook(lambda *seen: tripled(seen[1])))


@trap
def hook_of_an_activation_if_it_requires_a_gradient():
    def forward(s, x):
        h = s.a(x).tanh()
        if h.requires_grad:
            h.register_hook(lambda g: 3.0 * g)
        return s.b(h)

    return two_layers(forward)


@trap
def branch_on_requires_grad():
    return two_layers(lambda s, x: plain(s, x) * (2.0 if s.a(x).requires_grad else 1.0))


@trap
def branch_on_the_graph():
    def forward(s, x):
        h = s.a(x)
        return plain(s, x) * (2.0 if h.is_leaf else 1.0) * (3.0 if h.grad_fn is None else 1.0)

    return two_layers(forward)


@trap
def input_changed_in_place():
    return two_layers(lambda s, x: plain(s, x.mul_(0.5)))


@trap
def keys_that_lack_dimensions():
    def forward(s, x):
        q, k = s.a(x).view(-1, 1, 1, 4), s.a(x.mean(0)).view(1, 1, 4) + s.k
        return s.b(F.scaled_dot_product_attention(q, k, k).sum((1, 2)))

    return two_layers(forward, k=parameter(1, 3, 4))


@trap
def weight_changed_through_a_detached_alias():
    """A copy of one group is the parameter itself."""

    def forward(s, x):
        s.a.weight.detach().mul_(0.9)
        return plain(s, x)

    return two_layers(forward)


# Buffers that are read, or written past the names


def normed(forward, norm=None):
    return two_layers(forward, norm=nn.BatchNorm1d(4) if norm is None else norm)


@trap
def running_statistics_read_after_the_layer():
    return normed(lambda s, x: s.b(s.norm(s.a(x)).tanh() * (1.0 + s.norm.running_mean)))


@trap
def running_statistics_read_before_the_layer():
    def forward(s, x):
        factor = 1.0 + s.norm.running_mean
        return s.b(s.norm(s.a(x)).tanh() * factor)

    return normed(forward)


@trap
def evaluation_then_training():
    def forward(s, x):
        s.norm.eval()
        with torch.no_grad():
            y = s.norm(s.a(x))
        s.norm.train()
        return s.b((y + s.norm(s.a(x))).tanh())

    return normed(forward)


@trap
def training_then_evaluation():
    def forward(s, x):
        y = s.norm(s.a(x))
        s.norm.eval()
        y = y + s.norm(s.a(x))
        s.norm.train()
        return s.b(y.tanh())

    return normed(forward)


@trap
def training_then_evaluation_of_instance_norm():
    def forward(s, x):
        x = x[:, :, None] * torch.arange(1.0, 4.0)
        y = s.norm(x)
        s.norm.eval()
        y = y + s.norm(x)
        s.norm.train()
        return s.b(s.a(y.sum(-1).tanh()))

    return normed(forward, nn.InstanceNorm1d(4, track_running_stats=True))


def counting(count, value, read=lambda _: 1.0, before=False):
    def forward(s, x):
        factor = read(s) if before else None
        count(s, x)
        return plain(s, x) * (factor if before else read(s))

    return lambda: two_layers(forward, torch.tensor(value))


def assign(s, value):
    s.n = value


def ones(s):
    return torch.sigmoid(s.n / 3.0)


TRAPS["counter_that_scales"] = counting(lambda s, _: s.n.add_(1), 0, ones)
TRAPS["counter_that_scales_before_it_counts"] = counting(lambda s, _: s.n.add_(1), 0, ones, before=True)
TRAPS["counter_that_decides"] = counting(lambda s, _: s.n.add_(1), 0, lambda s: 2.0 if s.n > 2 else 1.0)
TRAPS["counter_that_is_reassigned"] = counting(lambda s, _: assign(s, s.n + 1), 0)
TRAPS["counter_through_data"] = counting(lambda s, _: s.n.data.add_(1), 0)
TRAPS["counter_through_a_view"] = counting(lambda s, _: s.n.view(-1).add_(1), 0)
TRAPS["counter_that_is_shifted"] = counting(lambda s, _: s.n.__ilshift__(1), 1)
TRAPS["counter_that_is_flipped"] = counting(lambda s, _: s.n.__ixor__(1), 0)
TRAPS["counter_by_foreach"] = counting(lambda s, _: torch._foreach_add_([s.n], 1), 0)
TRAPS["counter_by_set"] = counting(lambda s, _: s.n.set_(s.n + 1), 0)
TRAPS["counter_through_numpy"] = counting(lambda s, _: s.n.numpy().__iadd__(1), 0)
TRAPS["counter_by_aten"] = counting(lambda s, _: torch.ops.aten.add_.Scalar(s.n, 1), 0)
TRAPS["average_that_is_reassigned"] = counting(lambda s, x: assign(s, 0.9 * s.n + x.mean()), 0.0)
TRAPS["average_that_is_reassigned_and_scales"] = counting(
    lambda s, x: assign(s, 0.9 * s.n + x.mean()), 0.0, ones
)


@trap
def average_in_an_attribute():
    def forward(s, x):
        s.average = 0.9 * s.average + x.detach().mean()
        return plain(s, x) * (1.0 + s.average)

    module, loss, batch = two_layers(forward)
    module.average = 0.0
    return module, loss, batch


def run(engine, make, **options):
    module, loss, batch = make()
    params = dict(module.named_parameters())
    before = state(module)
    try:
        found = sam_gradient(
            loss, params, batch, module=module, engine=engine, rho=0.3, max_memory=2**40, **options
        )
    except Unbatchable:
        assert state(module) == before
        return None, None
    return found, state(module)


def state(module):
    """Weights and buffers, of which none may be left over from ``vmap``."""
    buffers = dict(module.named_buffers())
    assert not any(torch._C._functorch.is_batchedtensor(b) for b in buffers.values())
    weights = [bits(p) for p in module.parameters()]
    return weights, {
        name: [round(v, 10) for v in b.double().flatten().tolist()] for name, b in buffers.items()
    }


@pytest.mark.parametrize("m", [2, None])
@pytest.mark.parametrize("name", TRAPS)
def test_batched_agrees_with_the_loop_or_refuses(name, m):
    found, after = run("batched", TRAPS[name], m=m)
    if found is None:
        return
    expected, expected_after = run("loop", TRAPS[name], m=m)
    difference = norm([g - h for g, h in zip(found.gradients, expected.gradients, strict=True)])
    assert difference <= 1e-10 * norm(expected.gradients)
    assert after == expected_after


@pytest.fixture
def tries(monkeypatch):
    """``auto`` tries the batched engine however small the model is."""
    monkeypatch.setattr("lowland.sam.engine.Plan._too_small", lambda *_: False)
    monkeypatch.setattr("lowland.sam.batched.probe.seconds", lambda *_, **__: (1.0, 0.0))


@pytest.mark.usefixtures("tries")
@pytest.mark.parametrize("call", range(1, 8))
def test_chunk_that_is_refused_after_others_ran_counts_none_of_them_twice(call):
    """A loss that logs from time to time calls ``item`` in some passes only."""

    def make():
        module, loss, batch = two_layers(plain)
        calls = []

        def logs(x):
            value = loss(x)
            calls.append(1)
            if len(calls) == call:
                value.item()
            return value

        return module, logs, batch

    module, loss, batch = make()
    params = list(module.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sam_gradient(loss, params, batch, rho=0.3, m=2, module=module, max_memory=1)
    expected = run("loop", lambda: two_layers(plain), m=2)[0]
    difference = norm([g - h for g, h in zip(found.gradients, expected.gradients, strict=True)])
    assert difference <= 1e-10 * norm(expected.gradients)


def test_every_call_is_refused_and_not_only_the_first():
    module, loss, batch = two_layers(lambda s, x: plain(s, x) * (2.0 if x.sum() > 0 else 1.0))
    for _ in range(3):
        with pytest.raises(Unbatchable):
            sam_gradient(loss, list(module.parameters()), batch, rho=0.1, m=2, engine="batched")


@pytest.mark.parametrize("drop", [F.alpha_dropout, F.feature_alpha_dropout, F.dropout1d, F.dropout])
def test_dropout_drops_something_else_in_every_group(drop):
    module, _, (x,) = two_layers(plain)

    def loss(x):
        mask = drop(torch.ones_like(x)[:, :, None], 0.5, training=True)[:, :, 0]
        return (module(x) * mask[:, :3]).square().mean(), mask

    torch.manual_seed(0)
    try:
        masks = sam_gradient(loss, list(module.parameters()), (x,), rho=0.1, m=2, engine="batched").aux
    except Unbatchable:
        return
    assert len({bits(group) for group in masks.view(4, 2, 4)}) > 1


def test_operations_in_place_beside_a_frozen_module_are_run_at_once():
    """What watches the frozen parameters asks what is written to, which has no memory of its own there."""
    module, _, (x,) = two_layers(plain)
    frozen = nn.Linear(4, 4).double().requires_grad_(False)

    def loss(x):
        h = frozen(x)
        h.div_(2.0)
        return module(h.add_(1.0)).square().mean()

    found = [
        sam_gradient(loss, list(module.parameters()), (x,), rho=0.1, m=2, engine=engine).gradients
        for engine in ("loop", "batched")
    ]
    assert norm([a - b for a, b in zip(*found, strict=True)]) < 1e-10 * norm(found[0])
