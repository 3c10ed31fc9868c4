"""Keskar's sharpness against its definition."""

import pytest
import torch
from torch import nn

from lowland.errors import InputError
from lowland.sam import MicroBatches
from lowland.sharpness import AutoPGD, average_case, keskar_sharpness, worst_case

DOUBLE = torch.float64


def bilinear():
    """A linear loss of two tensors: its highest point in a box is the corner of the gradient's signs."""
    torch.manual_seed(0)
    u, v = (torch.randn(n, dtype=DOUBLE, requires_grad=True) for n in (3, 4))
    slope = torch.randn(7, dtype=DOUBLE)

    def loss(x):
        return 20.0 + x.mean() * (slope @ torch.cat([u, v]))

    return loss, {"u": u, "v": v}, slope, torch.cat([u, v]).detach()


@pytest.mark.parametrize("parts", [1, 2])
def test_it_is_the_rise_to_the_best_corner_of_the_box_over_one_and_the_loss(parts) -> None:
    loss, params, slope, w = bilinear()
    x = torch.tensor([1.0, 2.0, 6.0], dtype=DOUBLE)
    batch = (x,) if parts == 1 else MicroBatches([(x[:2],), (x[2:],)])
    found = keskar_sharpness(loss, params, batch, epsilon=0.01)
    rise = 3.0 * 0.01 * (slope.abs() * (w.abs() + 1.0)).sum().item()
    level = 20.0 + 3.0 * (slope @ w).item()
    assert found.value == pytest.approx(100.0 * rise / (1.0 + level), rel=1e-9)
    assert found.also == {"rise": pytest.approx(rise), "loss": pytest.approx(level)}
    assert found.row()["measure"] == "Keskar's sharpness"


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_shifted_weights_are_units_in_both_engines_and_norms(engine) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 1)).double()
    x = torch.randn(4, 40, dtype=DOUBLE)
    given = {"rho": 1e-6, "m": 1, "scaling": "shifted", "engine": engine, "search": AutoPGD(2)}
    params = list(module.parameters())
    found = worst_case(lambda x: module(x)[:, 0], params, (x,), **given)
    for i in range(4):
        g = torch.autograd.grad(module(x[i]).sum(), params)
        long = torch.stack([((p.abs() + 1.0) * t).norm() for p, t in zip(params, g, strict=True)]).norm()
        assert found.groups[i].item() == pytest.approx(1e-6 * long.item(), rel=1e-4)


def test_the_average_case_takes_these_units_as_well() -> None:
    w = [
        torch.full((2,), 3.0, dtype=DOUBLE, requires_grad=True),
        torch.zeros(1, dtype=DOUBLE, requires_grad=True),
    ]

    def loss(x):
        return x.mean() * (w[0].square().sum() + w[1].square().sum())

    found = average_case(loss, w, (torch.ones(2, dtype=DOUBLE),), rho=0.1, scaling="shifted", samples=400)
    assert abs(found.value - 0.01 * (16.0 + 16.0 + 1.0)) < 4 * found.stderr


def test_a_box_without_size_is_refused() -> None:
    loss, params, *_ = bilinear()
    with pytest.raises(InputError, match=r"rho must be positive and finite, got 0.0"):
        keskar_sharpness(loss, params, (torch.ones(2, dtype=DOUBLE),), epsilon=0.0)
