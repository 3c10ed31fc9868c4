"""The norm that a perturbation is measured with."""

import math

import pytest
import torch

from lowland import sam_gradient
from lowland.sam import l2_norm

from .naive import norm, tensors


def test_norm_is_of_all_tensors_together():
    assert l2_norm([torch.tensor([3.0]), torch.tensor([[4.0], [12.0]])]).item() == 13.0


def test_norm_is_that_of_one_long_vector():
    parts = tensors(0, (3, 4), (5,), ())
    assert l2_norm(parts).item() == pytest.approx(norm(parts), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(dtype):
    parts = [torch.full((300, 300), 2.0, dtype=dtype), torch.full((1,), 2.0, dtype=dtype)]
    total = l2_norm(parts)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(2.0 * math.sqrt(90001.0), rel=1e-6)


def test_float64_keeps_its_precision_beside_float32():
    parts = [torch.tensor([1.0], dtype=torch.float64), torch.tensor([1e-5], dtype=torch.float64)]
    assert l2_norm(parts).item() == pytest.approx(math.sqrt(1.0 + 1e-10), rel=1e-14)
    assert l2_norm([*parts, torch.tensor([0.0])]).item() == pytest.approx(math.sqrt(1.0 + 1e-10), rel=1e-14)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_finite_float32_gradients_climb_although_their_squares_leave_the_range(size):
    a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))
    result = sam_gradient(
        lambda x: size * (a.sum() + b.sum()) + 0.0 * x.sum(),
        [a, b],
        (torch.zeros(4),),
        rho=0.1,
        diagnostics=True,
    )
    assert result.diagnostics.climbed.tolist() == [True]
    assert result.diagnostics.perturbation_norm.item() == pytest.approx(0.1, rel=1e-5)
