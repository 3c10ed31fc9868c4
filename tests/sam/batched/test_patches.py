"""Patches of a convolution that are not written out, against torch's own, and products of written ones."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from lowland.sam.vectors.patches import Patches, Window

EXTENT = (5, 6, 4)
STEPS = [
    (dims, *steps)
    for dims in (1, 2, 3)
    for steps in itertools.product((1, 2, 3), (1, 2, 3), (0, 1, 2), (1, 2))
    if all(n + 2 * steps[2] >= steps[3] * (steps[0] - 1) + 1 for n in EXTENT[:dims])
]


def patches(seed, examples, extent, window):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn((2, examples, 2, *extent), generator=generator, dtype=torch.float64)
    return Patches(maps, window)


def window_of(dims, k, stride, padding, dilation):
    return Window((k,) * dims, (stride,) * dims, (padding,) * dims, (dilation,) * dims)


@pytest.mark.parametrize("steps", [s[1:] for s in STEPS if s[0] == 2])
def test_rows_written_out_are_those_that_torch_unfolds(steps):
    seen = patches(1, 3, EXTENT[:2], window_of(2, *steps))
    k, stride, padding, dilation = steps
    expected = F.unfold(seen.maps.flatten(0, 1), (k, k), dilation, padding, stride)
    assert torch.equal(seen.dense(), expected.transpose(1, 2).reshape(seen.shape))


@pytest.mark.parametrize("steps", STEPS)
def test_inner_products_are_those_of_written_rows_also_of_maps_of_two_sizes(steps):
    window, extent = window_of(*steps), EXTENT[: steps[0]]
    a, b = patches(1, 3, extent, window), patches(2, 1, [n + 1 for n in extent], window)
    torch.testing.assert_close(a.pairs(b), a.dense() @ b.dense().mT, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", STEPS)
def test_spread_products_give_the_gradient_of_the_maps(steps):
    window, extent = window_of(*steps), EXTENT[: steps[0]]
    a, b = patches(1, 3, extent, window), patches(2, 2, [n + 1 for n in extent], window)
    generator = torch.Generator().manual_seed(3)
    products = torch.randn((2, a.shape[1], b.shape[1]), generator=generator, dtype=torch.float64)
    maps = a.maps.clone().requires_grad_()
    rows = Patches(maps, window).dense()
    (expected,) = torch.autograd.grad((rows * (products @ b.dense())).sum(), maps)
    found = a.spread(products, b) @ b.points()
    torch.testing.assert_close(found, Patches(expected, window).points(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", STEPS)
def test_folded_rows_give_the_gradient_of_the_maps(steps):
    seen = patches(1, 3, EXTENT[: steps[0]], window_of(*steps))
    rows = torch.randn(seen.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    maps = seen.maps.clone().requires_grad_()
    (expected,) = torch.autograd.grad((Patches(maps, seen.window).dense() * rows).sum(), maps)
    torch.testing.assert_close(seen.folded(rows), expected, rtol=1e-12, atol=1e-12)


def test_windows_of_two_kinds_are_written_out():
    a = patches(1, 3, (5, 6), Window((2, 2), (1, 1), (0, 0), (1, 1)))
    b = patches(2, 2, (5, 6), Window((2, 2), (2, 1), (1, 0), (1, 2)))
    torch.testing.assert_close(a.pairs(b), a.dense() @ b.dense().mT, rtol=1e-12, atol=1e-12)
