"""Small models that meet every operation and option that the batched engine knows, in float64.

Seven examples, so that groups of two and of three leave a ragged last one.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ..naive import seeded, tensors

Model = tuple[nn.Module, Callable[..., Any], tuple[Any, ...]]
"""A module, a loss of a group's arguments, and a batch."""

MODELS: dict[str, Callable[[], Model]] = {}
"""Functions that make a model, always the same one, by name."""

B = 7


def model(function: Callable[[], Model]) -> Callable[[], Model]:
    MODELS[function.__name__] = function
    return function


class Through(nn.Module):
    """A module whose forward is ``function(self, *arguments)``."""

    def __init__(self, function, **members):
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *arguments):
        return self.function(self, *arguments)


def through(function):
    """A layer without parameters."""
    return Through(lambda _, x: function(x))


def parameter(*shape):
    return nn.Parameter(torch.zeros(shape))


def sequential(*layers):
    return nn.Sequential(*layers)


def squared(module, *x, seed=9) -> Model:
    """The mean square of what the module makes of ``x`` to random targets of that shape."""
    module = seeded(module)
    with torch.no_grad():
        shape = module(*x).shape
    (y,) = tensors(seed, shape)

    def loss(*arguments):
        *x, y = arguments
        return (module(*x) - y).square().mean()

    return module, loss, (*x, y)


def classes(module, x) -> Model:
    """Cross-entropy of the module's five logits."""
    module = seeded(module)
    y = torch.arange(B) * 3 % 5
    return module, lambda x, y: F.cross_entropy(module(x), y), (x, y)


def vectors():
    return tensors(1, (B, 4))[0]


def sequences(length=5):
    return tensors(2, (B, length, 4))[0]


def signals():
    return tensors(3, (B, 2, 6))[0]


def images(size=5):
    return tensors(4, (B, 2, size, size))[0]


def volumes():
    return tensors(5, (B, 2, 3, 3, 4))[0]


def words(length=4):
    return torch.randint(0, 6, (B, length), generator=torch.Generator().manual_seed(6))


# Linear layers


@model
def mlp():
    return classes(sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5)), vectors())


@model
def linear_without_bias():
    return classes(sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 5, bias=False)), vectors())


@model
def linear_of_sequences():
    return squared(sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), sequences())


@model
def linear_of_long_sequences():
    return squared(sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), sequences(30))


@model
def linear_with_three_leading_dimensions():
    x = tensors(1, (B, 2, 3, 4))[0]
    return squared(sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), x)


@model
def linear_of_the_groups_mean():
    def forward(s, x):
        return s.b(s.a(x.mean(0)).tanh() + x[:, :3])

    return squared(Through(forward, a=nn.Linear(4, 3), b=nn.Linear(3, 2)), vectors())


@model
def linear_of_one_example():
    net = sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    return squared(Through(lambda s, x: s.net(x[0]) + s.net(x), net=net), vectors())


@model
def bilinear():
    layers = {"b": nn.Bilinear(4, 4, 3), "l": nn.Linear(3, 2)}
    return squared(Through(lambda s, x: s.l(s.b(x, x.tanh())), **layers), vectors())


@model
def prelu():
    return squared(sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 3), nn.PReLU()), vectors())


@model
def prelu_of_images():
    return squared(sequential(nn.Conv2d(2, 3, 2), nn.PReLU(3), nn.Conv2d(3, 2, 2)), images(4))


@model
def huggingface_conv1d():
    def layer(x, w, b):
        return torch.addmm(b, x.view(-1, x.size(-1)), w).view(*x.size()[:-1], w.size(1))

    def forward(s, x):
        return layer(layer(x, s.w, s.b).tanh(), s.v, s.c)

    return squared(
        Through(forward, w=parameter(4, 6), b=parameter(6), v=parameter(6, 2), c=parameter(2)), sequences()
    )


@model
def matrix_products():
    def forward(s, x):
        left = s.u @ x.transpose(1, 2)
        return torch.mm(left.flatten(0, 1), s.v).matmul(s.w) + torch.einsum("i,ij->j", s.a, s.w)

    members = {"u": parameter(3, 4), "v": parameter(5, 3), "w": parameter(3, 2), "a": parameter(3)}
    module = seeded(Through(forward, **members))
    return module, lambda x: module(x).square().mean(), (sequences(),)


@model
def einsum():
    def forward(s, x):
        return torch.einsum("bti,ij,jk->btk", x, s.w, s.v)

    return squared(Through(forward, w=parameter(4, 3), v=parameter(3, 2)), sequences())


@model
def low_rank_adapter():
    def forward(s, x):
        return s.head(F.linear(x, s.w + s.a @ s.b).tanh())

    members = {"w": parameter(6, 4), "a": parameter(6, 2), "b": parameter(2, 4), "head": nn.Linear(6, 5)}
    return classes(Through(forward, **members), vectors())


@model
def weight_norm():
    first = parametrizations.weight_norm(nn.Linear(4, 6))
    return classes(sequential(first, nn.Tanh(), nn.Linear(6, 5)), vectors())


# Convolutions


@model
def conv1d():
    return squared(sequential(nn.Conv1d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv1d(3, 2, 2, 2)), signals())


@model
def conv2d_of_wide_maps():
    return squared(sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 2)), images(7))


@model
def conv2d_of_narrow_maps():
    return squared(sequential(nn.Conv2d(2, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 5, 2)), images(4))


@model
def conv2d_of_uneven_options():
    first = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    return squared(sequential(first, nn.Tanh(), nn.Conv2d(3, 2, (1, 2), bias=False)), images())


@model
def conv2d_same():
    first = nn.Conv2d(2, 3, (3, 2), padding="same", dilation=(2, 1))
    return squared(
        sequential(
            first, nn.Tanh(), nn.Conv2d(3, 2, (2, 3), padding="same"), nn.Conv2d(2, 1, 2, padding="valid")
        ),
        images(4),
    )


@model
def conv2d_circular_and_reflected():
    layers = [nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Tanh()]
    layers += [nn.Conv2d(3, 2, 3, padding=2, padding_mode="reflect", stride=2), nn.Tanh()]
    layers += [nn.Conv2d(2, 2, 2, padding="same", padding_mode="replicate")]
    return squared(sequential(*layers), images(4))


@model
def conv2d_in_groups():
    first = nn.Conv2d(2, 6, 2, groups=2)
    return squared(sequential(first, nn.Tanh(), nn.Conv2d(6, 4, 2, groups=2, bias=False)), images(4))


@model
def conv2d_depthwise():
    layers = [nn.Conv2d(2, 6, 1), nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Tanh()]
    return squared(sequential(*layers, nn.Conv2d(6, 2, 1)), images(4))


@model
def conv2d_pointwise_with_stride_and_padding():
    layers = [nn.Conv2d(2, 4, 1, stride=2), nn.Tanh(), nn.Conv2d(4, 3, 1, padding=1), nn.Tanh()]
    return squared(sequential(*layers, nn.Conv2d(3, 2, 1)), images())


@model
def conv2d_of_one_image():
    net = sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2))
    return squared(Through(lambda s, x: s.net(x[0]) + s.net(x), net=net), images(4))


@model
def conv2d_channels_last():
    module = sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 2)).to(
        memory_format=torch.channels_last
    )
    return squared(module, images(4).to(memory_format=torch.channels_last))


@model
def conv3d():
    layers = [nn.Conv3d(2, 3, 2, padding=(1, 0, 0)), nn.Tanh(), nn.Conv3d(3, 3, 1), nn.Tanh()]
    return squared(sequential(*layers, nn.Conv3d(3, 2, (1, 2, 2), stride=(1, 1, 2))), volumes())


@model
def transposed_convolutions_of_signals():
    first = nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1, output_padding=1)
    return squared(sequential(first, nn.Tanh(), nn.ConvTranspose1d(3, 2, 2, dilation=2)), signals())


@model
def transposed_convolutions_of_images():
    first = nn.ConvTranspose2d(2, 4, (3, 2), (2, 1), (1, 0), (1, 0), groups=2)
    return squared(sequential(first, nn.Tanh(), nn.ConvTranspose2d(4, 2, 2, dilation=(1, 2))), images(3))


@model
def transposed_convolutions_of_volumes():
    first = nn.ConvTranspose3d(2, 3, 2, bias=False)
    return squared(sequential(first, nn.Tanh(), nn.ConvTranspose3d(3, 2, (1, 2, 1), (1, 2, 1))), volumes())


@model
def patches_to_tokens():
    def forward(s, x):
        return s.head(s.patches(x).flatten(2).transpose(1, 2) + s.place).tanh().mean(1)

    members = {"patches": nn.Conv2d(2, 4, 2, 2), "place": parameter(1, 4, 4), "head": nn.Linear(4, 3)}
    return squared(Through(forward, **members), images(4))


@model
def functional_convolution():
    def forward(s, x):
        return F.conv2d(F.conv2d(x, s.w, s.b, padding=1).tanh(), s.v, stride=2)

    return squared(
        Through(forward, w=parameter(3, 2, 3, 3), b=parameter(3), v=parameter(2, 3, 2, 2)), images(4)
    )


class Standardized(nn.Conv2d):
    """Weight standardization."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 0.1)
        return self._conv_forward(x, w, self.bias)


class Gained(nn.Linear):
    """A gain beside what a linear layer does."""

    def forward(self, x):
        return 1.5 * super().forward(x) + x.mean(-1, keepdim=True)


@model
def subclassed_layers():
    layers = [Standardized(2, 3, 2), nn.Tanh(), nn.Flatten(), Gained(27, 3), nn.Tanh(), Gained(3, 5)]
    return classes(sequential(*layers), images(4))


@model
def shared_convolution():
    conv = nn.Conv2d(2, 2, 2)
    return squared(sequential(conv, nn.Tanh(), conv, nn.Tanh(), conv), images())


# Normalization


@model
def layer_norm():
    layers = [nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 4), nn.LayerNorm((5, 4), bias=False)]
    return squared(
        sequential(*layers, nn.Linear(4, 2), nn.LayerNorm(2, elementwise_affine=False, eps=1.0)), sequences()
    )


@model
def rms_norm():
    return squared(sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Tanh(), nn.Linear(6, 2)), sequences())


@model
def group_norm():
    layers = [nn.Conv2d(2, 6, 2), nn.GroupNorm(3, 6), nn.Tanh(), nn.Conv2d(6, 2, 2)]
    return squared(sequential(*layers, nn.GroupNorm(1, 2, affine=False, eps=1.0)), images(4))


@model
def instance_norm():
    layers = [nn.Conv2d(2, 3, 2), nn.InstanceNorm2d(3, affine=True, track_running_stats=True), nn.Tanh()]
    return squared(sequential(*layers, nn.Conv2d(3, 2, 2), nn.InstanceNorm2d(2, eps=1.0)), images(4))


@model
def instance_norm_in_evaluation():
    norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    norm.running_mean.add_(0.3)
    return squared(sequential(nn.Conv1d(2, 3, 2), norm, nn.Tanh(), nn.Conv1d(3, 2, 2)).eval(), signals())


@model
def batch_norm():
    layers = [nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3, momentum=0.3), nn.Tanh()]
    return squared(
        sequential(*layers, nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2, affine=False, eps=1.0)), images(4)
    )


@model
def batch_norm_in_evaluation():
    norm = nn.BatchNorm2d(3)
    norm.running_mean.add_(0.3)
    norm.running_var.mul_(2.0)
    return squared(sequential(nn.Conv2d(2, 3, 2), norm, nn.Tanh(), nn.Conv2d(3, 2, 2)).eval(), images(4))


@model
def batch_norm_without_statistics():
    layers = [nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3, track_running_stats=False), nn.Tanh(), nn.Conv1d(3, 2, 2)]
    return squared(sequential(*layers), signals())


@model
def batch_norm_partly_in_evaluation():
    module = sequential(
        nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.Tanh(), nn.Conv3d(3, 2, 1), nn.BatchNorm3d(2), nn.Tanh()
    )
    module[1].eval()
    return squared(module, volumes())


@model
def batch_norm_called_twice():
    norm = nn.BatchNorm2d(2, momentum=0.3)
    layers = [nn.Conv2d(2, 2, 2), norm, nn.Tanh(), nn.Conv2d(2, 2, 2), norm]
    return squared(sequential(*layers), images(4))


@model
def pre_activation_block():
    layers = [nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 3, padding=1), nn.GroupNorm(1, 2)]
    layers += [nn.ReLU(inplace=True), nn.Conv2d(2, 2, 3, padding=1)]
    return squared(Through(lambda s, x: x + s.f(x.clone()), f=sequential(*layers)), images(4))


# Embeddings


@model
def embedding():
    net = sequential(nn.Embedding(6, 4), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    return squared(net, words())


@model
def embedding_with_padding():
    def forward(s, ids):
        return s.head((s.e(ids) + F.embedding(ids, s.w, padding_idx=-2)).tanh().mean(1))

    members = {"e": nn.Embedding(6, 3, padding_idx=2), "w": parameter(6, 3), "head": nn.Linear(3, 5)}
    return classes(Through(forward, **members), words())


@model
def embedding_of_long_sequences():
    return squared(sequential(nn.Embedding(6, 4, padding_idx=1), nn.Linear(4, 2)), words(20))


@model
def embedding_of_nested_ids():
    ids = torch.stack([words(), words().flip(1)], 1)
    return squared(sequential(nn.Embedding(6, 3), nn.Tanh(), nn.Linear(3, 2)), ids)


@model
def place_embedding():
    def forward(s, ids):
        places = torch.arange(ids.shape[1])[None]
        return s.head((s.e(ids) + s.p(places) + torch.embedding(s.q, places)).tanh()).mean(1)

    members = {
        "e": nn.Embedding(6, 3),
        "p": nn.Embedding(4, 3),
        "q": parameter(5, 3),
        "head": nn.Linear(3, 5),
    }
    return classes(Through(forward, **members), words())


def bag(mode, **options):
    return classes(
        sequential(nn.EmbeddingBag(6, 4, mode=mode, **options), nn.Tanh(), nn.Linear(4, 5)), words()
    )


@model
def embedding_bag_of_sums():
    return bag("sum")


@model
def embedding_bag_of_means_with_padding():
    return bag("mean", padding_idx=3)


@model
def embedding_bag_of_maxima_with_padding():
    return bag("max", padding_idx=-2)


@model
def embedding_bag_with_weights():
    def forward(s, ids, weights):
        return s.head(s.bag(ids, per_sample_weights=weights * s.w).tanh())

    members = {"bag": nn.EmbeddingBag(6, 4, mode="sum"), "w": parameter(4), "head": nn.Linear(4, 2)}
    return squared(Through(forward, **members), words(), tensors(7, (B, 4))[0])


@model
def embedding_bags_by_offsets():
    def forward(s, ids):
        starts = torch.arange(0, ids.numel(), 2)
        ends = torch.cat([starts, torch.tensor([ids.numel()] * 2)])
        found = s.open(ids.flatten(), starts).tanh().mean(0) + s.closed(ids.flatten(), ends).tanh().mean(0)
        return s.head(found + ids.sum(1, keepdim=True) / 10)

    open_, closed = nn.EmbeddingBag(6, 4), nn.EmbeddingBag(6, 4, include_last_offset=True)
    return squared(Through(forward, open=open_, closed=closed, head=nn.Linear(4, 2)), words())


@model
def rows_of_a_parameter_by_data():
    def forward(s, ids):
        return s.head((s.w[ids] + s.w.index_select(0, ids.flatten()).view(*ids.shape, 3)).tanh().mean(1))

    return classes(Through(forward, w=parameter(6, 3), head=nn.Linear(3, 5)), words())


# Parameters by themselves


@model
def class_token():
    def forward(s, x):
        x = torch.cat([s.token.expand(len(x), -1, -1), x], 1) + s.place
        return s.head(x.tanh()).mean(1) * s.scale / s.temperature.exp()

    members = {"token": parameter(1, 1, 4), "place": parameter(1, 6, 4), "scale": parameter(5)}
    return classes(Through(forward, **members, temperature=parameter(), head=nn.Linear(4, 5)), sequences())


@model
def place_embedding_cut_to_length():
    def forward(s, x):
        return s.head((x + s.place[:, : x.shape[1]]).tanh()) + s.rows[1:3].sum(0)

    members = {"place": parameter(1, 8, 4), "rows": parameter(4, 2), "head": nn.Linear(4, 2)}
    return squared(Through(forward, **members), sequences())


@model
def layer_scale():
    def forward(s, x):
        return x + s.gamma * s.f(x) + torch.add(s.beta, x, alpha=0.5)

    net = sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
    return squared(Through(forward, gamma=parameter(4), beta=parameter(4), f=net), sequences())


@model
def learned_queries():
    def forward(s, x):
        q, k = s.q(s.queries), s.k(s.norm(s.memory))
        return s.head((x @ q.t()).softmax(-1) @ k)

    members = {"queries": parameter(3, 4), "memory": parameter(3, 4), "norm": nn.LayerNorm(4)}
    layers = {"q": nn.Linear(4, 4), "k": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    return squared(Through(forward, **members, **layers), sequences())


@model
def relative_position_bias():
    index = (torch.arange(5)[:, None] - torch.arange(5)[None]) + 4

    def forward(s, x):
        q, k, v = s.qkv(x).view(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        bias = s.table[index].permute(2, 0, 1)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return s.out(found.transpose(1, 2).flatten(2))

    members = {"qkv": nn.Linear(4, 12), "table": parameter(9, 2), "out": nn.Linear(4, 2)}
    return squared(Through(forward, **members), sequences())


@model
def parts_of_a_matrix():
    def forward(s, x):
        first, second = s.w.chunk(2)
        y = torch.cat([F.linear(x, first), F.linear(x, second)], -1).tanh()
        y = F.linear(y, s.v[:2], s.b[:2]) + F.linear(y, s.v[2:4], s.b[2:])
        return y + F.linear(x, s.u[1:3]) + F.linear(x, s.u[:2]) + F.linear(x, s.u[1:][1:3])

    members = {"w": parameter(6, 4), "v": parameter(5, 6), "b": parameter(4), "u": parameter(4, 4)}
    return squared(Through(forward, **members), vectors())


@model
def products_with_transposes():
    def forward(s, x):
        y = (x @ s.w.t()).tanh() @ s.w
        y = y.tanh() @ s.w.T[:, 1:3]
        return y.tanh() @ s.w[1:3] + F.linear(x, s.v.transpose(0, 1)) + F.linear(x, s.v.mT.t().permute(1, 0))

    return squared(Through(forward, w=parameter(5, 4), v=parameter(4, 4)), vectors())


@model
def rows_that_do_not_overlap():
    def forward(s, x):
        q, k = torch.split(s.w, [2, 3])
        return (
            (F.linear(x, q).tanh() @ q) + (F.linear(x, k).tanh() @ k) + F.embedding(x[:, 0].gt(0).long(), k)
        )

    return squared(Through(forward, w=parameter(5, 4), b=parameter(4)), vectors())


# Attention


def attended(forward, **members):
    return squared(Through(forward, head=nn.Linear(4, 2), **members), sequences(3))


@model
def self_attention():
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    return attended(lambda s, x: s.head(s.a(x, x, x)[0]), a=attention)


@model
def self_attention_with_weights_of_heads():
    def forward(s, x):
        y, weights = s.a(x, x, x, average_attn_weights=False)
        return s.head(y) * weights.square().mean((1, 3))[..., None]

    return attended(forward, a=nn.MultiheadAttention(4, 2, batch_first=True, bias=False, add_zero_attn=True))


@model
def cross_attention():
    def forward(s, x):
        return s.head(s.a(x, s.m(x).tanh(), x.sin(), need_weights=False)[0])

    return attended(
        forward, m=nn.Linear(4, 4), a=nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)
    )


@model
def cross_attention_of_other_widths():
    def forward(s, x):
        return s.head(s.a(x, x[..., :3], x[..., :2])[0])

    return attended(forward, a=nn.MultiheadAttention(4, 2, batch_first=True, kdim=3, vdim=2))


@model
def sequence_first_attention():
    def forward(s, x):
        x = x.transpose(0, 1)
        return s.head(s.a(x, x, x.tanh())[0]).transpose(0, 1)

    return attended(forward, a=nn.MultiheadAttention(4, 2))


@model
def masked_attention():
    causal = torch.ones(3, 3, dtype=torch.bool).triu(1)
    slope = -0.3 * torch.arange(3.0, dtype=torch.float64).expand(3, 3)

    def forward(s, x):
        y = s.a(x, x, x, attn_mask=causal)[0].tanh()
        return s.head(s.a(y, y, y, attn_mask=slope, need_weights=False)[0])

    return attended(forward, a=nn.MultiheadAttention(4, 2, batch_first=True))


@model
def attention_with_padded_keys():
    padded = torch.tensor([[False, i % 3 == 0, i % 2 == 0] for i in range(B)])

    def forward(s, x, padded):
        y = s.a(x, x, x, key_padding_mask=padded)[0].tanh()
        return s.head(s.b(y, y, y, key_padding_mask=padded, need_weights=False)[0])

    a, b = (nn.MultiheadAttention(4, 2, batch_first=True) for _ in range(2))
    return squared(Through(forward, a=a, b=b, head=nn.Linear(4, 2)), sequences(3), padded)


@model
def attention_with_a_mask_per_head():
    def forward(s, x):
        mask = (x[:, :, None, :2] - x[:, None, :, 2:]).permute(0, 3, 1, 2).flatten(0, 1)
        return s.head(s.a(x, x, x, attn_mask=mask)[0])

    return attended(forward, a=nn.MultiheadAttention(4, 2, batch_first=True))


@model
def functional_attention():
    def forward(s, x):
        x = x.transpose(0, 1)
        return F.multi_head_attention_forward(
            x, x.tanh(), x, 4, 2, s.w, s.b, None, None, False, 0.0, s.out, s.c, need_weights=False
        )[0].transpose(0, 1)

    members = {"w": parameter(12, 4), "b": parameter(12), "out": parameter(4, 4), "c": parameter(4)}
    return squared(Through(forward, **members), sequences(3))


@model
def scaled_dot_product_attention():
    def forward(s, x, mask):
        q, k, v = s.qkv(x).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7)
        y = y + F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        heads = [t.unflatten(-1, (2, 2)).transpose(1, 2) for t in (q, k, v)]
        y = y + F.scaled_dot_product_attention(*heads, attn_mask=mask[:, None]).transpose(1, 2).flatten(2)
        y = y + F.scaled_dot_product_attention(*heads, attn_mask=mask[0]).transpose(1, 2).flatten(2)
        return s.out(y)

    mask = torch.ones(B, 3, 3, dtype=torch.bool)
    mask[::2, :, 1] = False
    mask[1::3, 0, 2] = False
    return squared(Through(forward, qkv=nn.Linear(4, 12), out=nn.Linear(4, 2)), sequences(3), mask)


@model
def attention_of_grouped_queries():
    def forward(s, x):
        q = s.q(x).unflatten(-1, (4, 2)).transpose(1, 2)
        k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in s.kv(x).chunk(2, -1))
        return s.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))

    return squared(Through(forward, q=nn.Linear(4, 8), kv=nn.Linear(4, 8), out=nn.Linear(8, 2)), sequences(3))


@model
def encoder_layer():
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, activation="gelu")
    return squared(sequential(layer, nn.Linear(4, 2)), sequences(3))


@model
def encoder_of_two_layers_with_norm_first():
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(s, x):
        return s.head(s.e(x.transpose(0, 1), is_causal=True, mask=s.causal)).transpose(0, 1)

    causal = nn.Transformer.generate_square_subsequent_mask(3, dtype=torch.float64)
    return attended(forward, e=encoder, causal=causal)


@model
def decoder_layer():
    layer = nn.TransformerDecoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    return attended(lambda s, x: s.head(s.d(x, s.m(x).tanh())), d=layer, m=nn.Linear(4, 4))


# Tied weights


@model
def layer_called_three_times():
    layer = nn.Linear(4, 4)
    return squared(sequential(layer, nn.Tanh(), layer, nn.Tanh(), layer), vectors())


@model
def embedding_tied_to_the_output():
    def forward(s, ids):
        return F.linear(s.h(s.e(ids)).tanh(), s.e.weight)

    module = seeded(Through(forward, e=nn.Embedding(6, 4, padding_idx=0), h=nn.Linear(4, 4)))
    return module, lambda x: F.cross_entropy(module(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()), (words(),)


@model
def embedding_tied_to_a_transpose():
    def forward(s, ids):
        return (s.h(s.e(ids)).tanh() @ s.e.weight.t()).tanh() @ s.e.weight

    return squared(Through(forward, e=nn.Embedding(6, 4), h=nn.Linear(4, 4)), words())


@model
def autoencoder_with_tied_weights():
    def forward(s, x):
        return F.linear(s.l(x).tanh(), s.l.weight.t(), s.b)

    return squared(Through(forward, l=nn.Linear(4, 6), b=parameter(4)), vectors())


@model
def weight_in_a_layer_and_by_itself():
    def forward(s, x):
        return s.l(x.tanh()) * s.l.weight[0, 1] + s.l.weight.square().sum() * s.l.bias

    return squared(Through(forward, l=nn.Linear(4, 3)), vectors())


@model
def two_views_of_the_data():
    module = seeded(sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))

    def loss(x):
        a, b = module(x), module(x.flip(-1) + 0.1)
        return F.cross_entropy(a @ b.t(), torch.arange(len(x))) + (a - b).square().mean()

    return module, loss, (vectors(),)


@model
def target_without_gradient():
    module = seeded(sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))

    def loss(x):
        with torch.no_grad():
            target = module(x.cos())
        other = F.linear(x, module[0].weight.detach(), module[0].bias)
        return (module(x) - target).square().mean() + other.square().mean()

    return module, loss, (vectors(),)


@model
def bias_by_itself_before_its_layer():
    """The gradient of what is added to a layer's output is that of the output: the two may share memory."""

    def forward(s, x):
        return s.head((s.l(x) + s.b).tanh())

    return squared(Through(forward, b=parameter(1, 3), l=nn.Linear(4, 3), head=nn.Linear(3, 2)), vectors())


# Which parameters take part


@model
def frozen_parameters():
    module = sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 5))
    module[0].weight.requires_grad_(False)
    module[1].bias.requires_grad_(False)
    module[3].bias.requires_grad_(False)
    return classes(module, vectors())


@model
def unused_parameters():
    net = sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
    return classes(Through(lambda s, x: s.net(x), aside=nn.Linear(3, 2), net=net), vectors())


@model
def parameters_used_in_one_group():
    def forward(s, x):
        rare = (x[:, :1] == s.marked).any()
        return torch.where(rare, s.rare(x), s.net(x))

    net = sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
    return classes(Through(forward, net=net, rare=nn.Linear(4, 5), marked=vectors()[1, 0]), vectors())


# Batches and losses


@model
def nested_batch():
    module = seeded(sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)))

    def loss(batch, rest):
        (ids, none), scale = rest
        assert none is None
        logits = module(batch["inputs"]["x"]) * scale["by"][:, None]
        return (
            F.cross_entropy(logits, batch["labels"])
            + module(F.one_hot(ids, 6)[:, :4].double()).square().mean()
        )

    batch = {"inputs": {"x": vectors()}, "labels": torch.arange(B) % 5}
    return module, loss, (batch, [(words()[:, 0], None), {"by": tensors(8, (B,))[0]}])


@model
def aux_outputs():
    module = seeded(sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)))

    def loss(x, y):
        logits = module(x)
        aux = {"logits": logits, "correct": (logits.argmax(1) == y).sum(), "others": (x.mean(), [y], None)}
        return F.cross_entropy(logits, y), aux

    return module, loss, (vectors(), torch.arange(B) % 5)


@model
def loss_per_example():
    module = seeded(sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)))

    def loss(x, y):
        found = F.cross_entropy(module(x), y, reduction="none", label_smoothing=0.1)
        return found, found.detach().exp()

    return module, loss, (vectors(), torch.arange(B) % 5)


@model
def class_weights_with_ignored_targets():
    module = seeded(sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)))
    weight = torch.arange(1.0, 6.0, dtype=torch.float64)

    def loss(x, y):
        logits = module(x).transpose(1, 2)
        return F.cross_entropy(logits, y, weight=weight, ignore_index=-1)

    y = torch.arange(B * 5).view(B, 5) % 6 - 1
    return module, loss, (sequences(), y)


@model
def penalty_of_the_weights():
    module = seeded(sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)))

    def loss(x, y):
        penalty = sum(p.square().sum() for p in module.parameters()) + module[0].weight.norm(dim=1).sum()
        return F.cross_entropy(module(x), y) + 0.1 * penalty

    return module, loss, (vectors(), torch.arange(B) % 5)


@model
def counted_calls():
    counter = nn.Module()
    counter.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(s, x):
        s.counter.count += 1
        return s.net(x)

    net = sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
    return classes(Through(forward, net=net, counter=counter), vectors())


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that take part."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
