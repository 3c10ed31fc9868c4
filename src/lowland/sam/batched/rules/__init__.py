"""The rules, one operation a file; importing them registers them."""

from lowland.sam.batched.rules import attention, batch_norm, convolution, embedding, linear, losses, norm

__all__ = ["attention", "batch_norm", "convolution", "embedding", "linear", "losses", "norm"]
