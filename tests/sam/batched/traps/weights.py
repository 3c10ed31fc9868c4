"""Weights that are made from parameters: norms, adapters, views, copies, aliases and scripted code."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from ..models import Through, parameter
from .making import images, plain, squared, two_layers, vectors
from .registry import exact, refused


@refused(
    r"torch\.nn\.utils' WeightNorm, which sets attributes \(its parametrization does not\)",
    without_module="a tensor of the pass that is kept after it, as an attribute or in a list",
)
def weight_norm_by_hooks():
    return squared(
        nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)), vectors()
    )


@exact
def weight_norm_by_parametrization():
    layers = [parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)]
    return squared(nn.Sequential(*layers), vectors())


def spectral(norm, *, training):
    module, loss, batch = squared(nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)), vectors())
    module.train(training)
    return module, loss, batch


@refused(
    r"torch\.nn\.utils' SpectralNorm, which sets attributes \(its parametrization does not\)",
    without_module="normalize, which changes a buffer",
)
def spectral_norm_by_hooks_in_training():
    return spectral(nn.utils.spectral_norm, training=True)


@refused(
    r"torch\.nn\.utils' SpectralNorm, which sets attributes \(its parametrization does not\)",
    without_module="a tensor of the pass that is kept after it, as an attribute or in a list",
)
def spectral_norm_by_hooks_in_evaluation():
    return spectral(nn.utils.spectral_norm, training=False)


@refused("normalize, which changes a buffer")
def spectral_norm_by_parametrization_in_training():
    return spectral(parametrizations.spectral_norm, training=True)


@exact
def spectral_norm_by_parametrization_in_evaluation():
    return spectral(parametrizations.spectral_norm, training=False)


@exact
def merged_low_rank_adapter():
    def forward(s, x):
        return s.b(F.linear(x, s.a.weight + 2.0 * s.up @ s.down, s.a.bias).tanh())

    return two_layers(forward, up=parameter(4, 1), down=parameter(1, 4))


@exact
def merged_low_rank_adapter_of_a_frozen_weight():
    def forward(s, x):
        return s.b(F.linear(x, s.a.weight + 2.0 * s.up @ s.down, s.a.bias).tanh())

    module, loss, batch = two_layers(forward, up=parameter(4, 1), down=parameter(1, 4))
    module.a.requires_grad_(False)
    return module, loss, batch


@exact
def detached_weight_used_again():
    return two_layers(lambda s, x: s.b((s.a(x) + F.linear(x, s.a.weight.detach())).tanh()))


@refused(r"Tensor\.data")
def data_of_a_weight_used_again():
    return two_layers(lambda s, x: s.b((s.a(x) + F.linear(x, s.a.weight.data)).tanh()))


@exact
def weight_cloned():
    return two_layers(lambda s, x: s.b((s.a(x) + F.linear(x, s.a.weight.clone())).tanh()))


@exact
def weight_transposed():
    return two_layers(lambda s, x: s.b((x @ s.a.weight.T + x.mm(s.a.weight.t().t())).tanh()))


@exact
def rows_of_a_weight():
    def forward(s, x):
        return torch.cat([F.linear(x, s.a.weight[:1]), F.linear(x, s.a.weight[1:], s.a.bias[1:])], 1) + s.a(x)

    return two_layers(forward)


@exact
def columns_of_a_weight():
    return two_layers(lambda s, x: s.b((F.linear(x[:, 1:], s.a.weight[:, 1:]) + s.a(x)).tanh()))


@exact
def every_other_row_of_a_weight():
    return two_layers(lambda s, x: F.linear(x, s.a.weight[::2]).sum(1, keepdim=True) + plain(s, x))


@exact
def reversed_and_repeated_rows_of_a_weight():
    return two_layers(lambda s, x: s.b(F.linear(x, s.a.weight[[3, 1, 1, 0]]).tanh()) + s.b(s.a(x)))


@exact
def weight_viewed_and_reshaped():
    return two_layers(lambda s, x: s.b((x @ s.a.weight.view(2, 8).reshape(4, 4) + s.a(x)).tanh()))


@exact
def weight_split_and_unbound():
    def forward(s, x):
        first, second = s.a.weight.chunk(2)
        rows = torch.stack(list(second.unbind()))
        return s.b(torch.cat([x @ first.t(), F.linear(x, rows)], 1).tanh())

    return two_layers(forward)


@exact
def rows_of_a_convolution():
    def forward(s, x):
        return F.conv2d(x, s.w[:2]) + F.conv2d(x, s.w[1:], s.c[1:]) + s.conv(x)[:, :2]

    module = Through(forward, w=parameter(3, 2, 2, 2), c=parameter(3), conv=nn.Conv2d(2, 3, 2))
    return squared(module, images())


@exact
def convolution_used_as_a_linear_layer():
    def forward(s, x):
        return s.conv(x).mean((2, 3)) + F.linear(x.flatten(1)[:, :8], s.conv.weight.flatten(1))

    return squared(Through(forward, conv=nn.Conv2d(2, 3, 2)), images())


@exact
def chosen_rows_of_a_weight():
    """Sampled softmax: a list of rows is no slice."""
    return two_layers(lambda s, x: F.linear(x, s.a.weight[[3, 1, 1]]) + plain(s, x))


@exact
def rows_of_a_weight_by_a_tensor():
    rows = torch.tensor([3, 0, 2])
    return two_layers(lambda s, x: x @ s.a.weight[rows].t() + plain(s, x))


@exact
def rows_of_a_weight_by_a_mask():
    rows = torch.tensor([False, True, True, True])
    return two_layers(lambda s, x: F.linear(x, s.a.weight[rows]) + plain(s, x))


@exact
def rows_of_a_weight_by_the_examples():
    def forward(s, x):
        return F.linear(x, s.a.weight[(x[:, 0] > 0).long()]).sum(1, keepdim=True) + plain(s, x)

    return two_layers(forward)


def view_without_gradient(view, use):
    def forward(s, x):
        with torch.no_grad():
            w = view(s.a.weight)
        return use(s, x, w)

    return two_layers(forward)


@exact
def view_taken_without_gradient_of_a_transpose():
    return view_without_gradient(lambda w: w.T, lambda s, x, w: s.b((x @ w + s.a(x)).tanh()))


@exact
def view_taken_without_gradient_of_a_transpose_beside_the_network():
    return view_without_gradient(lambda w: w.T, lambda s, x, w: (x @ w)[:, :3] + plain(s, x))


@exact
def view_taken_without_gradient_of_a_row():
    return view_without_gradient(lambda w: w[0], lambda s, x, w: s.b((x * w + s.a(x)).tanh()))


@exact
def view_taken_without_gradient_of_a_row_beside_the_network():
    return view_without_gradient(lambda w: w[0], lambda s, x, w: (x * w)[:, :3] + plain(s, x))


@exact
def view_taken_without_gradient_of_some_rows():
    return view_without_gradient(lambda w: w[:3], lambda s, x, w: F.linear(x, w) + plain(s, x))


@exact
def view_taken_without_gradient_of_a_chunk():
    def use(s, x, w):
        return F.linear(x, w).sum(1, keepdim=True) + plain(s, x)

    return view_without_gradient(lambda w: w.chunk(2)[0], use)


@exact
def view_taken_with_gradient_and_used_without():
    def forward(s, x):
        w = s.a.weight.T
        with torch.no_grad():
            y = x @ w
        return s.b((y + s.a(x) + x @ w).tanh())

    return two_layers(forward)


@exact
def repeated_layers():
    return two_layers(lambda s, x: s.b(s.a(s.a(s.a(x).tanh()).tanh()).tanh()))


@exact
def bias_that_two_layers_share():
    module, loss, batch = two_layers(lambda s, x: s.b(s.n(s.a(x)).tanh()), n=nn.LayerNorm(4))
    module.n.bias = module.a.bias
    return module, loss, batch


@refused("parameters that share their memory")
def two_parameters_that_share_their_storage():
    module, loss, batch = two_layers(lambda s, x: s.b(s.c(s.a(x).tanh()).tanh()), c=nn.Linear(4, 4))
    module.c.weight.data = module.a.weight.data
    return module, loss, batch


@refused(r"a parameter by another name, such as its \.detach\(\) from outside the loss")
def alias_of_a_weight_made_before():
    module, loss, batch = two_layers(lambda s, x: s.b((F.linear(x, s.alias[0]) + s.a(x)).tanh()))
    module.alias = [module.a.weight.detach()]
    return module, loss, batch


@refused(r"a parameter by another name, such as its \.detach\(\) from outside the loss")
def buffer_that_is_an_alias_of_a_weight():
    module, loss, batch = two_layers(lambda s, x: s.b((F.linear(x, s.alias) + s.a(x)).tanh()))
    module.register_buffer("alias", module.a.weight.detach())
    return module, loss, batch


@exact
def functional_call_with_the_parameters():
    def forward(s, x):
        return s.b(torch.func.functional_call(s.a, dict(s.a.named_parameters()), x).tanh())

    return two_layers(forward)


@exact
def functional_call_with_other_weights():
    def forward(s, x):
        other = {name: 2.0 * p.detach() for name, p in s.a.named_parameters()}
        return s.b((torch.func.functional_call(s.a, other, x) + s.a(x)).tanh())

    return two_layers(forward)


@refused("a parameter in scripted or traced code, out of sight")
def weight_of_a_scripted_function():
    product = torch.jit.script(_product)
    return two_layers(lambda s, x: s.b(product(x, s.a.weight).tanh()))


@refused("a parameter in scripted or traced code, out of sight")
def weight_of_a_scripted_function_without_gradient():
    product = torch.jit.script(_product)

    def forward(s, x):
        with torch.no_grad():
            y = product(x, s.a.weight)
        return s.b((y + s.a(x)).tanh())

    return two_layers(forward)


def _product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w.t()


@refused("a parameter in scripted or traced code, out of sight")
def traced_module_without_gradient():
    def forward(s, x):
        with torch.no_grad():
            y = s.traced[0](x)
        return s.b((y + s.a(x)).tanh())

    module, loss, batch = two_layers(forward)
    module.traced = [torch.jit.trace(module.a, vectors())]
    return module, loss, batch


@exact
def operations_called_past_the_public_names():
    def forward(s, x):
        y = torch.ops.aten.mm.default(x, s.a.weight)
        with torch.no_grad():
            y = y + torch._C._nn.linear(x, s.a.weight)
        return s.b((y + s.a(x)).tanh())

    return two_layers(forward)


@exact
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


@exact
def penalty_on_all_parameters_as_one_vector():
    def forward(s, x):
        whole = torch.cat([p.reshape(-1) for p in s.parameters()])
        return plain(s, x) + whole.abs().mean() + torch.stack([p.norm() for p in s.parameters()]).sum()

    return two_layers(forward)
