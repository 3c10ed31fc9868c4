"""Logits without their scale."""

import torch
from torch import Tensor


def normalized_logits(logits: Tensor) -> Tensor:
    r"""Logits with mean 0 and mean square 1 for each example (Andriushchenko et al., 2023, section 2).

    Sharpness of what is made of them does not change when a network's last layer is rescaled. Examples whose
    logits are all the same are left as they are.

    Args:
        logits: Shape ``(..., classes)``.

    Returns:
        The logits, normalized, of the same shape.

    Example:
        >>> import torch
        >>> from lowland.sharpness import normalized_logits
        >>> normalized_logits(torch.tensor([[2.0, 4.0], [30.0, 10.0]]))
        tensor([[-1.,  1.],
                [ 1., -1.]])
    """
    centred = logits - logits.mean(-1, keepdim=True)
    peak = centred.detach().abs().amax(-1, keepdim=True)  # a constant: nothing changes with the scale
    usable = peak > 0
    scaled = centred / torch.where(usable, peak, torch.ones_like(peak))
    size = scaled.square().mean(-1, keepdim=True)
    return torch.where(usable, scaled / torch.where(usable, size, torch.ones_like(size)).sqrt(), centred)
