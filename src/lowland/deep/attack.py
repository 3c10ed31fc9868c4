"""Adversarial examples for evaluation: projected gradient ascent in the pixels (Madry et al., 2018)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lowland.deep.config import TrainConfig
from lowland.deep.losses import cross_entropy
from lowland.deep.network import outputs_of

Images = Float[Tensor, "examples channels height width"]


def attacked(
    config: TrainConfig,
    model: nn.Module,
    images: Images,
    labels: Int[Tensor, " examples"],
    generator: torch.Generator,
) -> Images:
    """``images`` moved within the radius to a higher loss, still in [0, 1].

    Steps of a quarter of the radius from a random start, each followed by a projection onto the ball and a
    cut to what makes a picture. The cut is no part of what is differentiated, so that a pixel at the edge
    of the range can come back; the model is used as it stands.

    Args:
        config: ``at_norm``, ``eps`` (in units of 1/255 for linf) and ``attack_iters``.
        model: The network, in evaluation mode.
        images: Pixels in [0, 1].
        labels: The classes whose loss is raised.
        generator: Source of the random start, on the images' device.
    """
    radius = config.eps / 255 if config.at_norm == "linf" else config.eps
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    delta = _allowed(config.at_norm, radius * (2 * noise - 1), radius, images)
    for _ in range(config.attack_iters):
        delta.requires_grad_()
        with torch.enable_grad():
            loss = cross_entropy(outputs_of(model, images + delta), labels).sum()
            gradient = torch.autograd.grad(loss, delta)[0]
        step = 0.25 * radius * _direction(config.at_norm, gradient)
        delta = _allowed(config.at_norm, delta.detach() + step, radius, images)
    return (images + delta).clamp(0, 1)  # the sum may leave the range by a rounding


def skip_start(images: Images, generator: torch.Generator) -> None:
    """Draws the random start of ``images``, which are attacked elsewhere."""
    torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)


def _allowed(norm: str, delta: Tensor, radius: float, images: Images) -> Tensor:
    """``delta`` projected onto the ball, and cut so that ``images + delta`` are pictures."""
    return (images + _project(norm, delta, radius)).clamp(0, 1) - images


def _direction(norm: str, gradient: Tensor) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    return gradient / _lengths(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)


def _project(norm: str, delta: Tensor, radius: float) -> Tensor:
    if norm == "linf":
        return delta.clamp(-radius, radius)
    return delta * (radius / _lengths(delta).clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1)


def _lengths(images: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return torch.reshape(lengths, (-1, *[1] * (images.dim() - 1)))
