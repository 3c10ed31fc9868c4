"""Zero-padding of small images, for models that need 32×32."""

import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from torch import Tensor

from lowland.deep.data.source import Images
from lowland.errors import InputError


def zero_pad(
    images: Images, size: int
) -> UInt8[Tensor, "n c {size} {size}"] | Float32[Tensor, "n c {size} {size}"]:
    """Images in the middle of ``size × size`` zeros; an odd margin is larger right and below.

    Raises:
        InputError: If the images are larger than that.

    Example:
        >>> import torch
        >>> zero_pad(torch.ones(1, 1, 2, 2), 4)[0, 0].int().tolist()
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    height, width = images.shape[2:]
    if max(height, width) > size:
        raise InputError(f"pad_to={size} needs images of at most {size}×{size}, got {height}×{width}.")
    rows, columns = size - height, size - width
    return F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
