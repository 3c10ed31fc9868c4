"""The two synthetic sets, with seeds of their own: a run's seed changes its split, not the points."""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lowland.deep.data.source import Part
from lowland.deep.seeding import derive_seed

_NUM_POINTS = 1000
_DIMENSION = 100


def _generator(*names: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(0, *names))


def gaussians_binary(part: Part) -> tuple[Float32[Tensor, "n 1 1 100"], Int64[Tensor, "n"]]:
    r"""Two Gaussian clouds, :math:`\pm v + 0.1\,\mathcal{N}(0, I)` in 100 dimensions.

    :math:`v` is a fixed random unit vector, the same for both parts; the label is 1 for :math:`+v` and
    0 for :math:`-v`.
    """
    v = torch.randn(_DIMENSION, generator=_generator("gaussians_binary", "direction"))
    v = v / v.norm()
    generator = _generator("gaussians_binary", part)
    labels = torch.randint(2, (_NUM_POINTS,), generator=generator)
    noise = torch.randn(_NUM_POINTS, _DIMENSION, generator=generator)
    points = (2 * labels - 1)[:, None] * v + 0.1 * noise
    return points[:, None, None, :], labels


def uniform_noise(part: Part) -> tuple[Float32[Tensor, "n 1 28 28"], Int64[Tensor, "n"]]:
    """Images of uniform noise in [0, 1), 1×28×28; the label is floor(10 × the first pixel)."""
    images = torch.rand(_NUM_POINTS, 1, 28, 28, generator=_generator("uniform_noise", part))
    # In float32, 10 times the largest pixel is within rounding of 10, which is no class.
    labels = (10 * images[:, 0, 0, 0].double()).floor().long()
    return images, labels
