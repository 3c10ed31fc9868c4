"""The attack against linear models, whose worst case is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowland.deep.attack import attacked
from lowland.deep.losses import cross_entropy

from .room import small

F64 = torch.float64


def linear(outputs: int = 1, size: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, outputs)).to(F64)


def gray(n: int = 5) -> tuple[Tensor, Tensor]:
    """Images far from black and white, so that no pixel is clipped."""
    images = 0.4 + 0.2 * torch.rand(n, 3, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    return images, torch.arange(n) % 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lengths(images: Tensor, norm: str) -> Tensor:
    flat = images.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


@given(norm=st.sampled_from(["linf", "l2"]), eps=st.floats(0.01, 30), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_it_stays_in_the_ball_and_in_the_range_of_pixels(norm: str, eps: float, seed: int) -> None:
    config = small(attack="pgd", at_norm=norm, eps=eps, attack_iters=3)
    images = torch.rand(4, 3, 2, 2, dtype=F64, generator=generator(seed))
    moved = attacked(config, linear(3), images, torch.arange(4) % 3, generator(seed))
    radius = eps / 255 if norm == "linf" else eps
    assert lengths(moved - images, norm).max() <= radius * (1 + 1e-12)
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_linf_reaches_a_linear_models_worst_case_which_is_eps_over_255_times_the_l1_norm() -> None:
    model, (images, labels) = linear(), gray()
    weight = model[1].weight.detach()
    moved = attacked(small(attack="pgd", eps=8.0, attack_iters=10), model, images, labels, generator())
    sign = (2 * labels - 1).to(F64)
    change = (model(moved) - model(images)).detach()[:, 0]
    torch.testing.assert_close(change, -sign * (8 / 255) * weight.abs().sum())


def test_l2_reaches_a_linear_models_worst_case_which_is_eps_times_the_l2_norm() -> None:
    model, (images, labels) = linear(), gray()
    weight = model[1].weight.detach()
    config = small(attack="pgd", at_norm="l2", eps=0.1, attack_iters=200)
    moved = attacked(config, model, images, labels, generator())
    sign = (2 * labels - 1).to(F64)
    change = (model(moved) - model(images)).detach()[:, 0]
    torch.testing.assert_close(change, -sign * 0.1 * weight.norm(), rtol=1e-6, atol=0)


def test_a_step_is_a_quarter_of_the_radius() -> None:
    model, (images, labels) = linear(), gray()
    one = attacked(small(attack="pgd", eps=8.0, attack_iters=1), model, images, labels, generator())
    two = attacked(small(attack="pgd", eps=8.0, attack_iters=2), model, images, labels, generator())
    radius = 8 / 255
    steps = (two - one).abs()
    free = (two - images).abs() < radius * (1 - 1e-9)  # not stopped by the ball
    assert free.any()
    torch.testing.assert_close(steps[free], torch.full_like(steps[free], radius / 4))


def test_it_raises_every_examples_loss() -> None:
    model, (images, labels) = linear(3), gray()
    for norm, eps in (("linf", 16.0), ("l2", 0.3)):
        config = small(attack="pgd", at_norm=norm, eps=eps)
        moved = attacked(config, model, images, labels, generator())
        assert (cross_entropy(model(moved), labels) > cross_entropy(model(images), labels)).all()


def test_the_generator_alone_decides_the_start() -> None:
    model, (images, labels) = linear(3), gray()
    config = small(attack="pgd", at_norm="l2", eps=0.3, attack_iters=1)
    torch.manual_seed(0)
    first = attacked(config, model, images, labels, generator(5))
    torch.manual_seed(1)
    again = attacked(config, model, images, labels, generator(5))
    other = attacked(config, model, images, labels, generator(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_works_where_gradients_are_off_and_leaves_none_behind() -> None:
    model, (images, labels) = linear(3), gray()
    with torch.no_grad():
        moved = attacked(small(attack="pgd", eps=8.0), model, images, labels, generator())
    assert not moved.requires_grad
    assert not images.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_image_without_a_gradient_is_not_lost(norm: str) -> None:
    model = linear(3)
    with torch.no_grad():
        model[1].weight.zero_()
    images, labels = gray()
    moved = attacked(small(attack="pgd", at_norm=norm, eps=1.0), model, images, labels, generator())
    assert moved.isfinite().all()
