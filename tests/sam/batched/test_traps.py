"""What an engine that runs all groups at once gets silently wrong: each is exact here, or refused by name."""

import copy
import random
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from lowland import sam_gradient
from lowland.sam.unbatchable import Unbatchable

from ..naive import bits, norm, seeded, tensors
from .models import Through, parameter, trained

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated"),
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:Using `torch.compile"),
    pytest.mark.filterwarnings("ignore:Using a non-full backward hook"),
]

B = 6
TRAPS = {}


def trap(*, exact=False, refused=None, tolerance=1e-10):
    """Registers what makes a model, a loss and a batch; by default it may be exact or refused."""

    def register(function):
        TRAPS[function.__name__] = function, exact, refused, tolerance
        return function

    return register


def vectors(seed=1, width=4, examples=B):
    return tensors(seed, (examples, width))[0]


def images(size=4):
    return tensors(2, (B, 2, size, size))[0]


def sequences(length=3):
    return tensors(3, (B, length, 4))[0]


def words(length=3):
    return torch.randint(0, 6, (B, length), generator=torch.Generator().manual_seed(4))


def squared(module, *batch):
    """The mean square of the module's output."""
    module = seeded(module)
    return module, lambda *batch: module(*batch).square().mean(), batch


def two_layers(forward, **members):
    """A module of two linear layers, and what else ``forward`` needs."""
    buffers = {n: t for n, t in members.items() if type(t) is torch.Tensor}
    layers = {n: t for n, t in members.items() if n not in buffers}
    module = Through(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 3), **layers)
    module, loss, batch = squared(module, vectors())
    for name, buffer in buffers.items():
        module.register_buffer(name, buffer)
    return module, loss, batch


def plain(s, x):
    return s.b(s.a(x).tanh())


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


# In-place operations


def made(layer, x, width):
    return squared(nn.Sequential(layer, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(width, 2)), x)


@trap(exact=True)
def relu_in_place_after_linear():
    return made(nn.Linear(4, 5), vectors(), 5)


@trap(exact=True)
def relu_in_place_after_a_wide_linear():
    return made(nn.Linear(4, 3), sequences(30), 90)


@trap(exact=True)
def relu_in_place_after_convolution():
    return made(nn.Conv2d(2, 3, 2), images(), 27)


@trap(exact=True)
def relu_in_place_after_transposed_convolution():
    return made(nn.ConvTranspose2d(2, 3, 2), images(), 75)


@trap(exact=True)
def relu_in_place_after_batch_norm():
    return made(nn.BatchNorm2d(2), images(), 32)


@trap(exact=True)
def relu_in_place_after_batch_norm_in_evaluation():
    module, loss, batch = made(nn.BatchNorm2d(2), images(), 32)
    module.eval()
    return module, loss, batch


@trap(exact=True)
def relu_in_place_after_group_norm():
    return made(nn.GroupNorm(2, 2), images(), 32)


@trap(exact=True)
def relu_in_place_after_instance_norm():
    return made(nn.InstanceNorm2d(2, affine=True), images(), 32)


@trap(exact=True)
def relu_in_place_after_layer_norm():
    return made(nn.LayerNorm(4), vectors(), 4)


@trap(exact=True)
def relu_in_place_after_rms_norm():
    return made(nn.RMSNorm(4), vectors(), 4)


@trap(exact=True)
def relu_in_place_after_addition():
    return two_layers(lambda s, x: s.b((s.a(x) + x).relu_()))


@trap(exact=True)
def relu_in_place_after_embedding():
    return squared(nn.Sequential(nn.Embedding(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), words())


@trap(exact=True)
def addition_in_place_to_what_a_linear_layer_made():
    def forward(s, x):
        y = s.a(x)
        y += x
        y[:, 0] *= 2.0
        return s.b(y)

    return two_layers(forward)


@trap()
def input_changed_in_place_by_the_loss():
    return two_layers(lambda s, x: plain(s, x.mul_(0.5)))


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv1d(3, 3, 1)], ids=["linear", "convolution"])
def test_input_that_a_layer_has_consumed_must_not_be_changed_in_place(engine, layer):
    def forward(s, x):
        h = s.first(x).sigmoid()
        y = s.second(h)
        h.mul_(2.0)
        return y + h

    module = Through(forward, first=nn.Linear(4, 4), second=layer)
    module, loss, batch = squared(module, sequences())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sam_gradient(loss, trained(module), batch, rho=0.3, m=2, module=module, engine=engine)


# Layouts


@trap(exact=True)
def sequence_first_encoder_with_as_many_steps_as_examples():
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0)
    module = Through(lambda s, x: s.layer(x.transpose(0, 1)).mean(0), layer=layer)
    return squared(module, sequences(2))


@trap(exact=True)
def sequence_first_attention_with_as_many_steps_as_groups():
    layer = nn.MultiheadAttention(4, 2)

    def forward(s, x):
        x = x.transpose(0, 1)
        return s.layer(x, x, x)[0]

    return squared(Through(forward, layer=layer), sequences(B // 2))


@trap(exact=True)
def place_embedding_without_a_batch_dimension():
    def forward(s, x):
        return s.b((s.a(x) + s.place + s.table(torch.arange(3))).tanh())

    return squared(
        Through(
            forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2), place=parameter(3, 4), table=nn.Embedding(3, 4)
        ),
        sequences(),
    )


@trap(exact=True)
def place_ids_with_a_batch_dimension_of_one():
    def forward(s, ids):
        return s.b((s.words(ids) + s.places(s.ids[:, : ids.shape[1]])).tanh())

    module = Through(forward, words=nn.Embedding(6, 4), places=nn.Embedding(5, 4), b=nn.Linear(4, 2))
    module.register_buffer("ids", torch.arange(5)[None])
    return squared(module, words())


@trap()
def attention_with_keys_that_lack_dimensions():
    def forward(s, x):
        q = s.a(x).view(-1, 1, 1, 4)
        k = s.a(x.mean(0)).view(1, 1, 4) + s.k
        return s.b(F.scaled_dot_product_attention(q, k, k).sum((1, 2)))

    return two_layers(forward, k=parameter(1, 3, 4))


@trap(exact=True)
def bias_of_one_element():
    return two_layers(lambda s, x: s.b(F.linear(x, s.a.weight, s.c).tanh()), c=parameter(1))


@trap()
def bias_without_dimensions():
    return two_layers(lambda s, x: s.b(F.linear(x, s.a.weight, s.c).tanh()), c=nn.Parameter(torch.zeros(())))


# Weights that are made from parameters


@trap()
def weight_norm_by_hooks():
    return squared(
        nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)), vectors()
    )


@trap(exact=True)
def weight_norm_by_parametrization():
    layers = [parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)]
    return squared(nn.Sequential(*layers), vectors())


def spectral(norm, *, training):
    module, loss, batch = squared(nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)), vectors())
    module.train(training)
    return module, loss, batch


@trap()
def spectral_norm_by_hooks_in_training():
    return spectral(nn.utils.spectral_norm, training=True)


@trap()
def spectral_norm_by_hooks_in_evaluation():
    return spectral(nn.utils.spectral_norm, training=False)


@trap()
def spectral_norm_by_parametrization_in_training():
    return spectral(parametrizations.spectral_norm, training=True)


@trap(exact=True)
def spectral_norm_by_parametrization_in_evaluation():
    return spectral(parametrizations.spectral_norm, training=False)


@trap(exact=True)
def merged_low_rank_adapter():
    def forward(s, x):
        return s.b(F.linear(x, s.a.weight + 2.0 * s.up @ s.down, s.a.bias).tanh())

    return two_layers(forward, up=parameter(4, 1), down=parameter(1, 4))


@trap(exact=True)
def merged_low_rank_adapter_of_a_frozen_weight():
    def forward(s, x):
        return s.b(F.linear(x, s.a.weight + 2.0 * s.up @ s.down, s.a.bias).tanh())

    module, loss, batch = two_layers(forward, up=parameter(4, 1), down=parameter(1, 4))
    module.a.requires_grad_(False)
    return module, loss, batch


@trap(exact=True)
def detached_weight_used_again():
    return two_layers(lambda s, x: s.b((s.a(x) + F.linear(x, s.a.weight.detach())).tanh()))


@trap()
def data_of_a_weight_used_again():
    return two_layers(lambda s, x: s.b((s.a(x) + F.linear(x, s.a.weight.data)).tanh()))


@trap(exact=True)
def weight_cloned():
    return two_layers(lambda s, x: s.b((s.a(x) + F.linear(x, s.a.weight.clone())).tanh()))


@trap(exact=True)
def weight_transposed():
    return two_layers(lambda s, x: s.b((x @ s.a.weight.T + x.mm(s.a.weight.t().t())).tanh()))


@trap(exact=True)
def rows_of_a_weight():
    def forward(s, x):
        return torch.cat([F.linear(x, s.a.weight[:1]), F.linear(x, s.a.weight[1:], s.a.bias[1:])], 1) + s.a(x)

    return two_layers(forward)


@trap(exact=True)
def columns_of_a_weight():
    return two_layers(lambda s, x: s.b((F.linear(x[:, 1:], s.a.weight[:, 1:]) + s.a(x)).tanh()))


@trap(exact=True)
def every_other_row_of_a_weight():
    return two_layers(lambda s, x: F.linear(x, s.a.weight[::2]).sum(1, keepdim=True) + plain(s, x))


@trap(exact=True)
def reversed_and_repeated_rows_of_a_weight():
    return two_layers(lambda s, x: s.b(F.linear(x, s.a.weight[[3, 1, 1, 0]]).tanh()) + s.b(s.a(x)))


@trap(exact=True)
def weight_viewed_and_reshaped():
    return two_layers(lambda s, x: s.b((x @ s.a.weight.view(2, 8).reshape(4, 4) + s.a(x)).tanh()))


@trap(exact=True)
def weight_split_and_unbound():
    def forward(s, x):
        first, second = s.a.weight.chunk(2)
        rows = torch.stack(list(second.unbind()))
        return s.b(torch.cat([x @ first.t(), F.linear(x, rows)], 1).tanh())

    return two_layers(forward)


@trap(exact=True)
def rows_of_a_convolution():
    def forward(s, x):
        return F.conv2d(x, s.w[:2]) + F.conv2d(x, s.w[1:], s.c[1:]) + s.conv(x)[:, :2]

    module = Through(forward, w=parameter(3, 2, 2, 2), c=parameter(3), conv=nn.Conv2d(2, 3, 2))
    return squared(module, images())


@trap(exact=True)
def convolution_used_as_a_linear_layer():
    def forward(s, x):
        return s.conv(x).mean((2, 3)) + F.linear(x.flatten(1)[:, :8], s.conv.weight.flatten(1))

    return squared(Through(forward, conv=nn.Conv2d(2, 3, 2)), images())


@trap(exact=True)
def view_taken_without_gradient_of_a_transpose():
    def forward(s, x):
        with torch.no_grad():
            w = s.a.weight.T
        return s.b((x @ w + s.a(x)).tanh())

    return two_layers(forward)


@trap(exact=True)
def view_taken_without_gradient_of_a_row():
    def forward(s, x):
        with torch.no_grad():
            w = s.a.weight[0]
        return s.b((x * w + s.a(x)).tanh())

    return two_layers(forward)


@trap(exact=True)
def view_taken_without_gradient_of_some_rows():
    def forward(s, x):
        with torch.no_grad():
            w = s.a.weight[:3]
        return F.linear(x, w) + plain(s, x)

    return two_layers(forward)


@trap(exact=True)
def view_taken_with_gradient_and_used_without():
    def forward(s, x):
        w = s.a.weight.T
        with torch.no_grad():
            y = x @ w
        return s.b((y + s.a(x) + x @ w).tanh())

    return two_layers(forward)


@trap(exact=True)
def repeated_layers():
    return two_layers(lambda s, x: s.b(s.a(s.a(s.a(x).tanh()).tanh()).tanh()))


@trap(exact=True)
def bias_that_two_layers_share():
    module, loss, batch = two_layers(lambda s, x: s.b(s.n(s.a(x)).tanh()), n=nn.LayerNorm(4))
    module.n.bias = module.a.bias
    return module, loss, batch


@trap()
def two_parameters_that_share_their_storage():
    module, loss, batch = two_layers(lambda s, x: s.b(s.c(s.a(x).tanh()).tanh()), c=nn.Linear(4, 4))
    module.c.weight.data = module.a.weight.data
    return module, loss, batch


@trap()
def alias_of_a_weight_made_before():
    module, loss, batch = two_layers(lambda s, x: s.b((F.linear(x, s.alias[0]) + s.a(x)).tanh()))
    module.alias = [module.a.weight.detach()]
    return module, loss, batch


@trap()
def buffer_that_is_an_alias_of_a_weight():
    module, loss, batch = two_layers(lambda s, x: s.b((F.linear(x, s.alias) + s.a(x)).tanh()))
    module.register_buffer("alias", module.a.weight.detach())
    return module, loss, batch


@trap(exact=True)
def functional_call_with_the_parameters():
    def forward(s, x):
        return s.b(torch.func.functional_call(s.a, dict(s.a.named_parameters()), x).tanh())

    return two_layers(forward)


@trap(exact=True)
def functional_call_with_other_weights():
    def forward(s, x):
        other = {name: 2.0 * p.detach() for name, p in s.a.named_parameters()}
        return s.b((torch.func.functional_call(s.a, other, x) + s.a(x)).tanh())

    return two_layers(forward)


@trap()
def weight_of_a_scripted_function():
    product = torch.jit.script(_product)
    return two_layers(lambda s, x: s.b(product(x, s.a.weight).tanh()))


@trap()
def weight_of_a_scripted_function_without_gradient():
    product = torch.jit.script(_product)

    def forward(s, x):
        with torch.no_grad():
            y = product(x, s.a.weight)
        return s.b((y + s.a(x)).tanh())

    return two_layers(forward)


def _product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w.t()


@trap()
def traced_module_without_gradient():
    def forward(s, x):
        with torch.no_grad():
            y = s.traced[0](x)
        return s.b((y + s.a(x)).tanh())

    module, loss, batch = two_layers(forward)
    module.traced = [torch.jit.trace(module.a, vectors())]
    return module, loss, batch


@trap(exact=True)
def operations_called_past_the_public_names():
    def forward(s, x):
        y = torch.ops.aten.mm.default(x, s.a.weight)
        with torch.no_grad():
            y = y + torch._C._nn.linear(x, s.a.weight)
        return s.b((y + s.a(x)).tanh())

    return two_layers(forward)


@trap(exact=True)
def parameters_in_lists_and_dicts():
    def forward(s, x):
        return (
            x @ s.list[0] + torch.cat(list(s.list))[:4].mean(0) @ s.dict["w"] + sum(p.sum() for p in s.list)
        )

    members = {
        "list": nn.ParameterList([parameter(4, 3), parameter(2, 3)]),
        "dict": nn.ParameterDict({"w": parameter(3, 3)}),
    }
    return squared(Through(forward, **members), vectors())


@trap(exact=True)
def penalty_on_all_parameters_as_one_vector():
    def forward(s, x):
        whole = torch.cat([p.reshape(-1) for p in s.parameters()])
        return plain(s, x) + whole.abs().mean() + torch.stack([p.norm() for p in s.parameters()]).sum()

    return two_layers(forward)


# Losses


@trap(exact=True)
def mean_over_the_batch_in_the_model():
    return two_layers(lambda s, x: s.b((s.a(x) - s.a(x).mean(0)).tanh()))


@trap(exact=True)
def contrastive_loss_of_a_group():
    def forward(s, x):
        z = F.normalize(s.b(s.a(x).tanh()), dim=1)
        return F.cross_entropy(z @ z.roll(1, 0).t(), torch.arange(len(x)))[None]

    return two_layers(forward)


@trap()
def gradient_penalty():
    def forward(s, x):
        x = x.detach().requires_grad_()
        y = plain(s, x)
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y + g.square().sum()

    return two_layers(forward)


@trap()
def gradient_of_gradients_by_torch_func():
    def forward(s, x):
        return plain(s, x) + torch.func.grad(lambda t: plain(s, t).sum())(x).square().sum()

    return two_layers(forward)


@trap()
def gradient_of_an_elementwise_function_by_torch_func():
    def forward(s, x):
        return s.b(s.a(x) * torch.func.grad(lambda c: (x * c).tanh().sum())(s.c))

    return two_layers(forward, c=parameter(4))


@trap()
def vmap_inside_the_loss():
    return two_layers(lambda s, x: torch.func.vmap(lambda t: plain(s, t))(x))


def classes(**options):
    module = seeded(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)))
    y = torch.tensor([0, 3, -100, 1, 2, 2])
    return module, lambda x, y: F.cross_entropy(module(x), y, **options), (vectors(), y)


@trap(exact=True)
def class_weights_and_an_index_to_ignore():
    return classes(weight=torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64))


@trap()
def label_smoothing_with_class_weights():
    return classes(weight=torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64), label_smoothing=0.2)


@trap(exact=True)
def group_whose_labels_are_all_ignored():
    module, loss, (x, y) = classes(reduction="sum")
    y[2:4] = -100
    return module, loss, (x, y)


@trap(exact=True)
def group_with_a_zero_gradient_among_others():
    module, _, (x,) = two_layers(plain)
    keep = torch.tensor([1.0, 1, 0, 0, 1, 1], dtype=torch.float64)
    return module, lambda x, keep: (module(x).square().mean(1) * keep).sum(), (x, keep)


@trap(exact=True)
def routing_that_differs_between_groups():
    return two_layers(lambda s, x: torch.where(x[:, :1] > 0, s.b(s.a(x)), s.b(x)))


@trap()
def routing_by_boolean_indexing():
    def forward(s, x):
        y = torch.zeros(len(x), 3, dtype=x.dtype)
        up = x[:, 0] > 0
        y[up] = s.b(s.a(x[up]))
        y[~up] = s.b(x[~up])
        return y

    return two_layers(forward)


@trap()
def branch_on_the_data():
    return two_layers(lambda s, x: plain(s, x) * 2 if x.sum() > 0 else plain(s, x))


@trap()
def item_of_an_activation():
    return two_layers(lambda s, x: plain(s, x) * x.abs().sum().item())


@trap()
def conversion_to_numpy():
    return two_layers(lambda s, x: plain(s, x) * float(x.detach().numpy().sum()))


@trap()
def conversion_of_a_weight_to_numpy():
    return two_layers(lambda s, x: plain(s, x) * float(s.a.weight.detach().numpy().sum()))


@trap()
def number_of_a_weight():
    return two_layers(lambda s, x: plain(s, x) * (1.0 + float(s.a.weight.detach()[0, 0]) ** 2))


@trap()
def comparison_of_whole_tensors():
    return two_layers(lambda s, x: plain(s, x) * (2.0 if torch.equal(x, x.abs()) else 1.0))


@trap()
def printed_tensor():
    def forward(s, x):
        assert str(x)
        return plain(s, x)

    return two_layers(forward)


@trap()
def branch_on_requires_grad():
    def forward(s, x):
        h = s.a(x).tanh()
        return s.b(h) * (2.0 if h.requires_grad else 1.0)

    return two_layers(forward)


@trap()
def branch_on_being_a_leaf():
    def forward(s, x):
        h = s.a(x).tanh()
        return s.b(h) * (2.0 if h.is_leaf else 1.0) * (3.0 if h.grad_fn is None else 1.0)

    return two_layers(forward)


# Teachers


def teaching(teach, **members):
    def forward(s, x):
        return plain(s, x) + teach(s, x)

    return two_layers(forward, **members)


@trap(exact=True)
def teacher_of_other_weights():
    other = seeded(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), 5)

    def teach(_, x):
        with torch.no_grad():
            return other(x)

    return teaching(teach)


@trap(exact=True)
def teacher_of_the_same_weights_moves_with_them():
    def teach(s, x):
        with torch.no_grad():
            return plain(s, x)

    return teaching(teach)


@trap()
def teacher_in_inference_mode():
    def teach(s, x):
        with torch.inference_mode():
            y = plain(s, x) + s.c.sum()
        return y.clone() + s.c

    return teaching(teach, c=parameter(3))


@trap()
def teacher_that_is_a_deep_copy():
    def teach(s, x):
        with torch.no_grad():
            return copy.deepcopy(s.a)(x)[:, :3]

    return teaching(teach)


@trap(exact=True)
def teacher_of_the_state_dict():
    def teach(s, x):
        return torch.func.functional_call(s.a, s.a.state_dict(), x)[:, :3]

    return teaching(teach)


@trap()
def teacher_that_loads_the_weights():
    other = nn.Linear(4, 4, dtype=torch.float64)

    def teach(s, x):
        other.load_state_dict(s.a.state_dict())
        with torch.no_grad():
            return other(x)[:, :3]

    return teaching(teach)


@trap()
def weights_frozen_for_a_while():
    def teach(s, x):
        s.a.requires_grad_(False)
        y = s.a(x)
        s.a.requires_grad_(True)
        return y[:, :3]

    return teaching(teach)


# Batch norm and other buffers


def normed(forward=lambda s, x: s.b(s.n(s.a(x)).tanh()), **options):
    return two_layers(forward, n=nn.BatchNorm1d(4, **options))


@trap(exact=True)
def batch_norm_after_several_groups():
    return normed(momentum=0.3)


@trap()
def batch_norm_with_a_cumulative_average():
    return normed(momentum=None)


@trap()
def running_statistics_read_after_the_layer():
    return normed(lambda s, x: s.b(s.n(s.a(x)).tanh() * (1.0 + s.n.running_mean)))


@trap()
def running_statistics_read_before_the_layer():
    def forward(s, x):
        factor = 1.0 + s.n.running_mean
        return s.b(s.n(s.a(x)).tanh() * factor)

    return normed(forward)


@trap()
def batch_norm_in_evaluation_then_in_training():
    def forward(s, x):
        s.n.eval()
        with torch.no_grad():
            teacher = s.b(s.n(s.a(x)).tanh())
        s.n.train()
        return s.b(s.n(s.a(x)).tanh()) + teacher

    return normed(forward)


@trap()
def batch_norm_in_training_then_in_evaluation():
    def forward(s, x):
        y = s.n(s.a(x))
        s.n.eval()
        try:
            y = y + s.n(s.a(x))
        finally:
            s.n.train()
        return s.b(y.tanh())

    return normed(forward)


@trap()
def instance_norm_in_training_then_in_evaluation():
    def forward(s, x):
        x = x[:, :, None] * torch.arange(1.0, 4.0)
        y = s.n(x)
        s.n.eval()
        try:
            y = y + s.n(x)
        finally:
            s.n.train()
        return s.b(s.a(y.sum(-1).tanh()))

    return two_layers(forward, n=nn.InstanceNorm1d(4, track_running_stats=True))


@trap()
def synchronized_batch_norm():
    return two_layers(lambda s, x: s.b(s.n(s.a(x)).tanh()), n=nn.SyncBatchNorm(4))


@trap()
def synchronized_batch_norm_in_evaluation():
    module, loss, batch = two_layers(lambda s, x: s.b(s.n(s.a(x)).tanh()), n=nn.SyncBatchNorm(4))
    module.eval()
    return module, loss, batch


def writing(write, buffer, read=lambda _: 1.0):
    def forward(s, x):
        write(s, x)
        return plain(s, x) * read(s)

    return two_layers(forward, n=buffer)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


@trap(exact=True)
def counter():
    return writing(lambda s, _: s.n.add_(1), torch.tensor(0))


@trap()
def counter_that_scales_the_output():
    return writing(lambda s, _: s.n.add_(1), torch.tensor(0), lambda s: torch.sigmoid(s.n / 3.0))


@trap()
def counter_that_is_read_before_it_counts():
    def forward(s, x):
        factor = s.n / 3.0
        s.n.add_(1)
        return plain(s, x) * (1.0 + factor)

    return two_layers(forward, n=torch.tensor(0))


@trap()
def counter_that_decides_by_comparison():
    return writing(lambda s, _: s.n.add_(1), torch.tensor(0), lambda s: 2.0 if s.n > 2 else 1.0)


def assign(s, value):
    s.n = value


@trap()
def counter_that_is_another_tensor_every_time():
    return writing(lambda s, _: assign(s, s.n + 1), torch.tensor(0))


@trap()
def counter_through_its_data():
    return writing(lambda s, _: s.n.data.add_(1), torch.tensor(0))


@trap()
def counter_through_a_detached_alias():
    return writing(lambda s, _: s.n.detach().add_(1), torch.tensor(0))


@trap()
def counter_through_a_view():
    return writing(lambda s, _: s.n.view(-1)[0].add_(1), torch.tensor(0))


@trap()
def counter_by_shifts():
    return writing(lambda s, _: s.n.__ilshift__(1), torch.tensor(1))


@trap()
def flag_that_is_flipped():
    return writing(lambda s, _: s.n.__ixor__(True), torch.tensor(False))


@trap()
def counter_by_foreach():
    return writing(lambda s, _: torch._foreach_add_([s.n], 1), number(0.0))


@trap()
def counter_by_set():
    return writing(lambda s, _: s.n.set_(s.n + 1), number(0.0))


@trap()
def counter_through_numpy():
    return writing(lambda s, _: s.n.numpy().__iadd__(1), number(0.0))


@trap()
def counter_by_an_operator_of_aten():
    return writing(lambda s, _: torch.ops.aten.add_.Scalar(s.n, 1), torch.tensor(0))


@trap()
def counter_of_floats():
    return writing(lambda s, _: s.n.add_(1.0), number(0.0))


@trap()
def average_in_place():
    return writing(lambda s, x: s.n.mul_(0.9).add_(0.1 * x.mean()), number(1.0), lambda s: s.n)


@trap()
def average_by_lerp():
    return writing(lambda s, x: s.n.lerp_(x.detach().mean(), 0.1), number(1.0), lambda s: s.n)


@trap()
def average_copied():
    return writing(lambda s, x: s.n.copy_(0.9 * s.n + 0.1 * x.mean()), number(1.0))


@trap()
def average_that_is_another_tensor_every_time():
    return writing(lambda s, x: assign(s, 0.9 * s.n + 0.1 * x.mean()), number(1.0))


@trap()
def average_that_is_another_tensor_and_scales_the_output():
    return writing(lambda s, x: assign(s, 0.9 * s.n + 0.1 * x.mean()), number(1.0), lambda s: s.n)


@trap()
def average_that_is_an_attribute():
    def forward(s, x):
        s.average = 0.9 * s.average + 0.1 * x.detach().mean()
        return plain(s, x) * (1.0 + s.average)

    module, loss, batch = two_layers(forward)
    module.average = 0.0
    return module, loss, batch


# Hooks


def hooked(register):
    module, loss, batch = two_layers(plain)
    register(module)
    return module, loss, batch


@trap(exact=True)
def forward_hooks_that_change_the_output():
    return hooked(lambda s: s.a.register_forward_hook(lambda *seen: seen[2] * 2.0))


@trap(exact=True)
def forward_pre_hooks_that_change_the_input():
    return hooked(lambda s: s.a.register_forward_pre_hook(lambda _, args: (args[0] * 2.0,)))


def tripled(grads):
    return tuple(None if g is None else 3.0 * g for g in grads)


@trap()
def backward_hook_that_changes_the_gradient():
    return hooked(lambda s: s.b.register_full_backward_hook(lambda *seen: tripled(seen[1])))


@trap()
def backward_pre_hook_that_changes_the_gradient():
    return hooked(lambda s: s.b.register_full_backward_pre_hook(lambda *seen: tripled(seen[1])))


@trap()
def old_backward_hook_that_changes_the_gradient():
    return hooked(lambda s: s.b.register_backward_hook(lambda *seen: tripled(seen[1])))


@trap()
def hook_of_an_activation_that_changes_its_gradient():
    def forward(s, x):
        h = s.a(x).tanh()
        h.register_hook(lambda g: 3.0 * g)
        return s.b(h)

    return two_layers(forward)


@trap()
def hook_of_an_activation_if_it_requires_a_gradient():
    def forward(s, x):
        h = s.a(x).tanh()
        if h.requires_grad:
            h.register_hook(lambda g: 3.0 * g)
        return s.b(h)

    return two_layers(forward)


@trap(exact=True)
def hook_of_a_parameter():
    return hooked(lambda s: s.a.weight.register_hook(lambda g: 3.0 * g))


# Custom functions


class Product(torch.autograd.Function):
    """``x W^T`` without a rule for vmap."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return F.linear(x, w)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, grad.t() @ x


class ProductByRule(torch.autograd.Function):
    """The same with a generated rule."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return F.linear(x, w)

    @staticmethod
    def setup_context(ctx, inputs, output):  # noqa: ARG004 - the protocol's
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, grad.t() @ x


class ProductWithoutGradientByRule(ProductByRule):
    """A product whose weight gets no gradient, with a generated rule."""

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[1], None


class ProductWithoutGradientByOwnRule(torch.autograd.Function):
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
        return x.movedim(in_dims[0], 0) @ w, 0


def own_function(function):
    return two_layers(lambda s, x: s.b(function.apply(s.a(x).tanh(), s.a.weight)))


@trap()
def custom_function_that_takes_a_parameter():
    return own_function(Product)


@trap()
def custom_function_with_a_generated_rule_that_takes_a_parameter():
    return own_function(ProductByRule)


@trap()
def custom_function_with_a_generated_rule_that_gives_no_gradient():
    return own_function(ProductWithoutGradientByRule)


@trap()
def custom_function_with_its_own_rule_that_gives_no_gradient():
    return own_function(ProductWithoutGradientByOwnRule)


@trap()
def custom_function_with_its_own_rule_without_gradient():
    def forward(s, x):
        with torch.no_grad():
            y = ProductWithoutGradientByOwnRule.apply(x, s.a.weight)
        return s.b((s.a(x) + y).tanh())

    return two_layers(forward)


@trap()
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


@trap(refused="a custom autograd.Function")
def custom_function_of_an_activation_by_rule():
    class Reversed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.view_as(x)

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(_, grad):
            return -grad

    return two_layers(lambda s, x: s.b(Reversed.apply(s.a(x)).tanh()))


# What runs otherwise


@trap()
def checkpoint_without_reentrance():
    return two_layers(lambda s, x: s.b(checkpoint(lambda t: s.a(t).tanh(), s.a(x), use_reentrant=False)))


@trap()
def hooks_on_saved_tensors():
    def forward(s, x):
        with torch.autograd.graph.save_on_cpu():
            return plain(s, x)

    return two_layers(forward)


@trap()
def recurrent_layer():
    return squared(Through(lambda s, x: s.r(x)[0], r=nn.GRU(4, 3, batch_first=True)), sequences())


@trap()
def recurrent_layer_of_two_directions():
    layer = nn.LSTM(4, 2, 2, batch_first=True, bidirectional=True)
    return squared(Through(lambda s, x: s.r(x)[0], r=layer), sequences())


@trap(exact=True)
def recurrent_cell():
    def forward(s, x):
        h = torch.zeros(len(x), 3, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = s.r(x[:, t], h)
        return h

    return squared(Through(forward, r=nn.GRUCell(4, 3)), sequences())


@trap()
def embedding_with_a_maximal_norm():
    return squared(nn.Sequential(nn.Embedding(6, 4, max_norm=0.5), nn.Linear(4, 2)), words())


@trap()
def embedding_with_sparse_gradients():
    return squared(nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Linear(4, 2)), words())


@trap()
def embedding_with_gradients_by_frequency():
    return squared(nn.Sequential(nn.Embedding(6, 4, scale_grad_by_freq=True), nn.Linear(4, 2)), words())


@trap()
def parameter_changed_in_place():
    def forward(s, x):
        with torch.no_grad():
            s.a.weight.clamp_(-0.3, 0.3)
        return plain(s, x)

    return two_layers(forward)


@trap()
def parameter_changed_through_its_data():
    def forward(s, x):
        s.a.weight.data.clamp_(-0.3, 0.3)
        return plain(s, x)

    return two_layers(forward)


@trap()
def parameter_changed_through_a_detached_alias():
    def forward(s, x):
        s.a.weight.detach().mul_(0.9)
        return plain(s, x)

    return two_layers(forward)


@trap()
def parameter_changed_through_a_view():
    def forward(s, x):
        with torch.no_grad():
            s.a.weight.view(-1).mul_(0.9)
        return plain(s, x)

    return two_layers(forward)


@trap(exact=True)
def complex_numbers_between_real_parameters():
    def forward(s, x):
        return torch.fft.irfft(torch.fft.rfft(s.a(x)) * torch.view_as_complex(s.w), n=4)

    return two_layers(forward, w=parameter(3, 2))


@trap()
def padded_sequences_and_einsum():
    def forward(s, x):
        padded = pad_sequence([x[0], x[1, :2]], batch_first=True)
        return torch.einsum("btd,ed->be", padded, s.w) + s.a(x).mean()

    return squared(Through(forward, w=parameter(3, 4), a=nn.Linear(4, 2)), sequences())


@trap(tolerance=5e-2)
def autocast_inside_the_loss():
    def forward(s, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = s.b(s.a(x.float()).tanh())
        return y.float()

    module, loss, (x,) = two_layers(forward)
    return module.float(), loss, (x.float(),)


@pytest.mark.parametrize("module", [True, False], ids=["module", "parameters"])
@pytest.mark.parametrize("name", TRAPS)
def test_trap_is_exact_or_refused_and_leaves_nothing(name, module):
    make, must_be_exact, refused, tolerance = TRAPS[name]
    expected, loop_model = run("loop", make, module)
    found, model = run("batched", make, module)
    if isinstance(found, Unbatchable):
        assert not must_be_exact, str(found)
        assert refused is None or refused in found.what
    else:
        assert_as_in_the_loop(found, model, expected, loop_model, tolerance)


@pytest.mark.parametrize("name", TRAPS)
def test_one_group_of_everything_is_exact_or_refused(name):
    """There a copy per group may be the parameter itself."""
    make, _, _, tolerance = TRAPS[name]
    expected, loop_model = run("loop", make, m=None)
    found, model = run("batched", make, m=None)
    if not isinstance(found, Unbatchable):
        assert_as_in_the_loop(found, model, expected, loop_model, tolerance)


@pytest.mark.parametrize("name", TRAPS)
def test_auto_is_the_loop_with_one_warning_that_names_what_was_refused(name, monkeypatch):
    monkeypatch.setattr("lowland.sam.engine.Plan._too_small", lambda *_: False)
    monkeypatch.setattr("lowland.sam.batched.probe.seconds", lambda *_, **__: (1.0, 0.0))
    make, _, _, tolerance = TRAPS[name]
    refused, _ = run("batched", make)
    expected, loop_model = run("loop", make)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found, model = run("auto", make)
    assert_as_in_the_loop(found, model, expected, loop_model, tolerance)
    ours = [str(w.message) for w in heard if "one after the other" in str(w.message)]
    if isinstance(refused, Unbatchable):
        assert len(ours) == 1
        assert refused.what.split(" ")[0] in ours[0]
        assert re.search(r"\w", refused.what)
    else:
        assert not ours


@pytest.mark.parametrize("reentrant", [True])
def test_reentrant_checkpoint_is_not_run(reentrant):
    """The loop cannot either: torch forbids it inside ``autograd.grad``."""
    module, loss, batch = two_layers(
        lambda s, x: s.b(checkpoint(lambda t: s.a(t).tanh(), s.a(x), use_reentrant=reentrant))
    )
    for engine in ("loop", "batched"):
        with pytest.raises(RuntimeError):
            sam_gradient(loss, trained(module), batch, rho=0.1, m=2, module=module, engine=engine)


@pytest.mark.parametrize("what", ["module", "loss"])
def test_compiled_is_refused_by_name(what):
    module, loss, batch = two_layers(plain)
    compiled = torch.compile(module, backend="eager")
    if what == "module":

        def loss(x):
            return compiled(x).square().mean()

        module = compiled
    else:
        loss = torch.compile(loss, backend="eager")
    with pytest.raises(Unbatchable, match="compiled"):
        sam_gradient(loss, trained(module), batch, rho=0.1, m=2, module=module, engine="batched")


@pytest.mark.parametrize("part", ["module", "function"])
def test_compiled_parts_that_are_not_named_run_as_they_were_written(part):
    gradients = {}
    for engine in ("loop", "batched"):
        module, _, batch = two_layers(plain)
        called = torch.compile(module, backend="eager") if part == "module" else module
        tanh = torch.compile(lambda y: y.tanh() * 2, backend="eager")
        gradients[engine] = sam_gradient(
            lambda x, called=called, tanh=tanh: tanh(called(x)).square().mean(),
            trained(module),
            batch,
            rho=0.1,
            m=2,
            engine=engine,
        ).gradients
    assert norm([g - h for g, h in zip(*gradients.values(), strict=True)]) < 1e-10 * norm(gradients["loop"])


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_exactly_zero_gradients_under_bfloat16_are_zero_and_not_nan(where):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def loss(x, y):
        with torch.autocast(
            "cpu", torch.bfloat16, enabled=where == "inside" or torch.is_autocast_enabled("cpu")
        ):
            return (module(x).float() * y).square().mean()

    x, y = torch.randn(6, 4), torch.tensor([1.0, 1, 0, 0, 1, 1])[:, None].expand(6, 3)
    found = {}
    for engine in ("loop", "batched"):
        with torch.autocast("cpu", torch.bfloat16, enabled=where == "outside"):
            found[engine] = sam_gradient(
                loss, trained(module), (x, y.contiguous()), rho=0.05, m=2, module=module, engine=engine
            ).gradients
    assert all(g.isfinite().all() for g in found["batched"])
    size = norm(found["loop"])
    assert norm([g - h for g, h in zip(found["batched"], found["loop"], strict=True)]) < 0.05 * size
    zeros = sam_gradient(
        loss, trained(module), (x, torch.zeros(6, 3)), rho=0.05, m=2, module=module, engine="batched"
    )
    assert all((g == 0.0).all() for g in zeros.gradients)


def test_group_whose_gradient_is_not_finite_gives_what_the_loop_gives():
    found = []
    for engine in ("loop", "batched"):
        module, loss, (x,) = two_layers(plain)
        x[3] = torch.inf
        found.append(sam_gradient(loss, trained(module), (x,), rho=0.1, m=2, module=module, engine=engine))
    for a, b in zip(found[0].gradients, found[1].gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_chunk_that_is_refused_after_others_ran_counts_none_of_them_twice(monkeypatch):
    """A loss that logs from time to time calls ``item`` in some passes only."""
    monkeypatch.setattr("lowland.sam.engine.Plan._too_small", lambda *_: False)
    monkeypatch.setattr("lowland.sam.batched.probe.seconds", lambda *_, **__: (1.0, 0.0))

    def make(times):
        module, loss, batch = normed()
        calls = []

        def logs(x):
            value = loss(x)
            calls.append(1)
            if len(calls) == times:
                value.item()
            return value

        return module, logs, batch

    for times in range(1, 8):
        expected, loop_model = run("loop", lambda: make(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, model = run("auto", lambda t=times: make(t), max_memory=1)
        assert_as_in_the_loop(found, model, expected, loop_model)


@pytest.mark.parametrize("calls", [2, 3])
def test_every_call_is_refused_and_not_only_the_first(calls):
    module, loss, batch = TRAPS["branch_on_the_data"][0]()
    for _ in range(calls):
        with pytest.raises(Unbatchable):
            sam_gradient(loss, trained(module), batch, rho=0.1, m=2, module=module, engine="batched")


def test_auto_warns_once_for_a_loss_and_not_in_every_step(monkeypatch):
    monkeypatch.setattr("lowland.sam.engine.Plan._too_small", lambda *_: False)
    monkeypatch.setattr("lowland.sam.batched.probe.seconds", lambda *_, **__: (1.0, 0.0))
    module, loss, batch = TRAPS["branch_on_the_data"][0]()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(3):
            sam_gradient(loss, trained(module), batch, rho=0.1, m=2, module=module, engine="auto")
    assert len(heard) == 1


# Randomness


def drawing(draw):
    """A loss whose draws are seen in its aux."""
    module = seeded(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
    seen = []

    def loss(x):
        mask = draw(torch.ones_like(x))
        seen.append(1)
        return (module(x) * mask[:, :3]).square().mean() + 0.0, mask

    return module, loss


DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout1d": lambda x: F.dropout1d(x[:, :, None], 0.5)[:, :, 0],
    "dropout2d": lambda x: F.dropout2d(x[:, :, None, None], 0.5)[:, :, 0, 0],
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "rand_like": torch.rand_like,
    "rand": lambda x: torch.rand(x.shape, dtype=x.dtype),
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(0.5),
    "normal_": lambda x: torch.empty_like(x).normal_(),
    "normal_ of an empty tensor": lambda x: torch.empty(x.shape, dtype=x.dtype).normal_(),
    "bernoulli": lambda x: torch.bernoulli(0.5 * x),
    "stochastic depth": lambda x: x * torch.rand((), dtype=x.dtype).round(),
    "permutation": lambda x: x * torch.randperm(x.shape[1]),
}


@pytest.mark.parametrize("name", DRAWS)
def test_groups_draw_their_own_or_are_refused(name):
    torch.manual_seed(3)
    masks = []
    x = vectors(examples=40)
    for _ in range(2):
        module, loss = drawing(DRAWS[name])
        try:
            found = sam_gradient(
                loss, trained(module), (x,), rho=0.1, m=2, module=module, engine="batched", max_memory=2**40
            )
        except Unbatchable:
            return
        masks.append(found.aux)
    assert masks[0].shape == x.shape
    groups = masks[0].view(20, 2, 4)
    assert len({bits(g) for g in groups}) > 1, "all groups drew the same"
    assert not torch.equal(*masks), "the next call drew the same"


@pytest.mark.parametrize("name", ["dropout", "dropout1d", "dropout2d"])
def test_dropout_drops_half_of_everything_and_scales_the_rest(name):
    torch.manual_seed(3)
    module, loss = drawing(DRAWS[name])
    found = sam_gradient(
        loss, trained(module), (vectors(examples=400),), rho=0.1, m=2, module=module, engine="batched"
    )
    assert set(found.aux.unique().tolist()) == {0.0, 2.0}
    assert abs(found.aux.mean() - 1.0) < 0.1
    assert (found.aux.std(1) > 0).any()


def test_draws_of_a_given_generator_are_new_for_each_group_or_refused():
    generator = torch.Generator().manual_seed(0)
    module, loss = drawing(lambda x: torch.rand(x.shape, dtype=x.dtype, generator=generator))
    try:
        found = sam_gradient(
            loss, trained(module), (vectors(),), rho=0.1, m=2, module=module, engine="batched"
        )
    except Unbatchable:
        return
    assert len({bits(g) for g in found.aux.view(3, 2, 4)}) == 3


def test_complex_parameters_are_refused_by_both_engines_in_the_same_words():
    w = nn.Parameter(torch.ones(4, dtype=torch.complex128))
    for engine in ("loop", "batched"):
        with pytest.raises(TypeError, match="real"):
            sam_gradient(lambda x: (x * w).abs().sum(), [w], (vectors(),), rho=0.1, engine=engine)


def test_gradients_of_parameters_may_be_read_and_written_in_the_loss():
    found = []
    for engine in ("loop", "batched"):
        module, _, batch = two_layers(plain)
        for p in trained(module).values():
            p.grad = torch.full_like(p, 0.5)

        def loss(x, module=module):
            return module(x).square().mean() * module.a.weight.grad.sum()

        found.append(sam_gradient(loss, trained(module), batch, rho=0.1, m=2, engine=engine).gradients)
        assert all((p.grad == 0.5).all() for p in module.parameters())
    assert norm([g - h for g, h in zip(*found, strict=True)]) <= 1e-10 * norm(found[0])
