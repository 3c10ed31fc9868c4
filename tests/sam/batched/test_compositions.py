"""Random compositions of operations: the batched engine against the loop."""

from contextlib import ExitStack
from unittest.mock import patch

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowland.sam import L2, Adaptive, Unnormalized
from lowland.sam.batched.cost import Costs

from ..naive import seeded, tensors
from .models import Through, parameter
from .test_exactness import assert_engines_agree

moderate = settings(max_examples=30, deadline=None, derandomize=True)
seldom = settings(max_examples=20, deadline=None, derandomize=True)


def residual(layer):
    return Through(lambda s, x: x + s.layer(x), layer=layer)


def tied(width, rows):
    """A matrix, some of its rows and its transpose, and by itself."""

    def forward(s, x):
        some = F.linear(x, s.w[:rows]) @ s.w[:rows]
        return (some + (x @ s.w.t()).tanh() @ s.w) * s.gain + s.w.sum(0) * s.both

    return Through(forward, w=parameter(rows + 1, width), gain=parameter(width), both=parameter(1))


@st.composite
def features(draw, width):
    """A layer on the last dimension, and its new width."""
    kind = draw(st.sampled_from(["linear", "norm", "tanh", "residual", "tied", "scale", "prelu"]))
    wide = draw(st.integers(1, 5))
    bias = draw(st.booleans())
    layers = {
        "linear": lambda: nn.Linear(width, wide, bias=bias),
        "norm": lambda: nn.LayerNorm(width, eps=0.5, bias=bias),
        "tanh": nn.Tanh,
        "residual": lambda: residual(
            nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))
        ),
        "tied": lambda: tied(width, wide),
        "scale": lambda: Through(lambda s, x: x * s.a + s.b, a=parameter(width), b=parameter(1, width)),
        "prelu": nn.PReLU,
    }
    return layers[kind](), wide if kind == "linear" else width


@st.composite
def maps(draw, channels, size, dims):
    """A layer on channels and positions, with its new channels and size."""
    kernel = draw(st.integers(1, 3))
    padding, stride = draw(st.integers(0, 1)), draw(st.integers(1, 2))
    dilation = draw(st.integers(1, 2))
    wide = 2 * draw(st.integers(1, 2))
    bias = draw(st.booleans())
    kinds = ["transposed", "group norm", "batch norm", "tanh", "place"]
    after = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if after >= 2:
        kinds += ["convolution", "convolution", "convolution in groups"]
    kind = draw(st.sampled_from(kinds))
    convolution = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
    transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}[dims]
    batch_norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dims]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "bias": bias}
    layers = {
        "convolution": lambda: convolution(channels, wide, kernel, **options),
        "convolution in groups": lambda: convolution(channels, wide, kernel, groups=2, **options),
        "transposed": lambda: transposed(channels, wide, 2, stride=stride, groups=1 + padding, bias=bias),
        "group norm": lambda: nn.GroupNorm(1 + padding, channels, eps=0.5),
        "batch norm": lambda: batch_norm(channels, eps=0.5, affine=bias),
        "tanh": nn.Tanh,
        "place": lambda: Through(lambda s, x: x.tanh() + s.p, p=parameter(1, channels, *[size] * dims)),
    }
    if kind == "transposed":
        return layers[kind](), wide, stride * (size - 1) + 2
    grows = kind.startswith("convolution")
    return layers[kind](), wide if grows else channels, after if grows else size


@st.composite
def of_features(draw):
    width = draw(st.integers(1, 5))
    leading = draw(st.lists(st.integers(1, 4), max_size=2))
    shape, layers = (*leading, width), []
    for _ in range(draw(st.integers(1, 4))):
        layer, width = draw(features(width))
        layers.append(layer)
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(width, 2)), shape


@st.composite
def of_maps(draw):
    dims, channels, size = draw(st.integers(1, 2)), 2, draw(st.integers(2, 5))
    shape, layers = (channels, *[size] * dims), []
    for _ in range(draw(st.integers(1, 4))):
        layer, channels, size = draw(maps(channels, size, dims))
        layers.append(layer)
    return nn.Sequential(*layers, nn.Flatten(), nn.Tanh(), nn.Linear(channels * size**dims, 2)), shape


@st.composite
def of_words(draw):
    width, length = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    padding = draw(st.sampled_from([None, 0, 4]))
    first = draw(st.sampled_from(["rows", "bag"]))
    mode = draw(st.sampled_from(["sum", "mean", "max"]))
    table = nn.Embedding(5, width, padding_idx=padding)
    bag = nn.EmbeddingBag(5, width, mode=mode, padding_idx=padding)
    layers = [table if first == "rows" else bag]
    layer, wide = draw(features(width))
    layers += [layer, nn.Linear(wide, width)]
    if draw(st.booleans()):
        layers.append(Through(lambda s, x: F.linear(x, s.e[0].weight), e=[layers[0]]))
    return nn.Sequential(*layers), (length,)


OPTIONS = st.fixed_dictionaries(
    {
        "m": st.integers(1, 4),
        "l2": st.sampled_from([0.0, 0.2]),
        "steps": st.integers(1, 2),
        "step_size": st.sampled_from([0.6, 1.0]),
        "scale": st.sampled_from([1.0, 8.0]),
        "ascent": st.sampled_from([L2(), Unnormalized(), Adaptive(), Adaptive(by="filter")]),
    }
)
FORMS = st.sampled_from([None, True, False])


def agree(module, x, options, formed):
    """Whether gradients are formed is left to their cost (``None``), or given."""
    module = seeded(module)
    twins = iter([module, seeded(module)])
    state = {name: value.clone() for name, value in module.state_dict().items()}

    def model():
        own = next(twins)
        own.load_state_dict(state)
        return own, lambda x: (own(x) + 0.3).square().mean(), (x,)

    with ExitStack() as stack:
        for rule in ("linear", "convolution", "embedding") if formed is not None else ():
            name = f"lowland.sam.batched.rules.{rule}.costs_of_{rule}"
            costs = Costs(apart=float(formed), formed=float(not formed))
            stack.enter_context(patch(name, lambda *_, costs=costs: costs))
        assert_engines_agree(model, **options)


@moderate
@given(of_features(), st.integers(2, 5), OPTIONS, FORMS)
def test_random_networks_of_features_agree(network, examples, options, formed):
    module, shape = network
    agree(module, tensors(1, (examples, *shape))[0], options, formed)


@moderate
@given(of_maps(), st.integers(2, 5), OPTIONS, FORMS)
def test_random_networks_of_maps_agree(network, examples, options, formed):
    module, shape = network
    agree(module, tensors(1, (examples, *shape))[0], options, formed)


@seldom
@given(of_words(), st.integers(2, 5), OPTIONS, FORMS)
def test_random_networks_of_words_agree(network, examples, options, formed):
    module, shape = network
    ids = torch.randint(0, 5, (examples, *shape), generator=torch.Generator().manual_seed(1))
    agree(module, ids, options, formed)
