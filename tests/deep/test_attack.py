"""The attack against linear models, whose worst case is known, and against a plain projected ascent."""

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowland.deep.attack import attacked
from lowland.deep.data import load_training_data, to_float
from lowland.deep.losses import cross_entropy

from .room import small

F64 = torch.float64
REAL_DATA = os.environ.get("LOWLAND_DATA")


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


def real_images(dataset: str, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images with many black pixels, to train on and to attack; of MNIST from LOWLAND_DATA."""
    if dataset == "mnist" and REAL_DATA is None:
        pytest.skip("needs LOWLAND_DATA with the images of MNIST")
    data = load_training_data(dataset, data_dir=REAL_DATA if dataset == "mnist" else None)
    train, test = data.train.head(count), data.test.head(200)
    return to_float(train.inputs).to(F64), train.targets, to_float(test.inputs).to(F64), test.targets


@pytest.fixture(scope="module", params=["digits", "mnist"])
def trained(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained MLP, test images and their labels."""
    x, y, images, labels = real_images(request.param, 1500)
    torch.manual_seed(0)
    hidden = nn.Linear(x[0].numel(), 32)
    model = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(32, 10)).to(F64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(15):
        for rows in torch.arange(len(x)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.requires_grad_(False), images, labels


def plain_ascent(model: nn.Module, images: Tensor, labels: Tensor, norm: str, radius: float) -> Tensor:
    """Ten steps of projected ascent on the pixels themselves, one image after the other."""
    noise = torch.rand(images.shape, dtype=F64, generator=generator())
    found = []
    for x, y, u in zip(images, labels, noise, strict=True):
        at = back(x + radius * (2 * u - 1), x, norm, radius)
        for _ in range(10):
            at.requires_grad_()
            (g,) = torch.autograd.grad(-model(at[None]).log_softmax(1)[0, y], at)
            step = g.sign() if norm == "linf" else g / g.norm()
            at = back(at.detach() + radius / 4 * step, x, norm, radius)
        found.append(at)
    return torch.stack(found)


def back(at: Tensor, x: Tensor, norm: str, radius: float) -> Tensor:
    """To the ball around x, then to the pictures."""
    if norm == "linf":
        at = at.maximum(x - radius).minimum(x + radius)
    elif (at - x).norm() > radius:
        at = x + radius * (at - x) / (at - x).norm()
    return at.maximum(torch.zeros_like(x)).minimum(torch.ones_like(x))


@pytest.mark.parametrize(
    ("norm", "eps"),
    [("linf", 8.0), ("linf", 16.0), ("linf", 32.0), ("l2", 0.5), ("l2", 1.0), ("l2", 2.0)],
)
def test_the_error_under_attack_is_at_least_that_of_a_plain_projected_ascent(trained, norm, eps) -> None:
    model, images, labels = trained

    def error(x: Tensor) -> float:
        return (model(x).argmax(1) != labels).double().mean().item()

    radius = eps / 255 if norm == "linf" else eps
    ours = attacked(small(attack="pgd", at_norm=norm, eps=eps), model, images, labels, generator())
    plain = plain_ascent(model, images, labels, norm, radius)
    assert error(ours) >= error(plain) > error(images)
    assert lengths(ours - images, norm).max() <= radius * (1 + 1e-12)
    assert (ours.min() >= 0, ours.max() <= 1) == (True, True)


def test_pixels_at_the_edge_of_the_range_move_where_the_loss_rises() -> None:
    model, labels = linear(), torch.arange(8) % 2
    images = (torch.rand(8, 3, 2, 2, dtype=F64, generator=generator(3)) > 0.5).to(F64)  # black and white
    moved = attacked(small(attack="pgd", eps=16.0), model, images, labels, generator())
    uphill = -(2 * labels - 1)[:, None, None, None] * model[1].weight.detach().view(1, 3, 2, 2).sign()
    torch.testing.assert_close(moved, (images + 16 / 255 * uphill).clamp(0, 1), rtol=0, atol=1e-12)
