"""SAM written out, for a loss of each group. Imports nothing of lowland."""

import copy

import torch


def sam_by_hand(model, losses, masses, rho):
    """The mean over groups of their gradients, each at its own ``w + rho g / |g|``."""
    found = [torch.zeros_like(p) for p in model.parameters()]
    for loss, mass in zip(losses, masses, strict=True):
        twin = copy.deepcopy(model)
        g = torch.autograd.grad(loss(twin), list(twin.parameters()))
        length = torch.cat([t.flatten() for t in g]).norm()
        with torch.no_grad():
            for p, t in zip(twin.parameters(), g, strict=True):
                p += rho * t / length
        g = torch.autograd.grad(loss(twin), list(twin.parameters()))
        found = [f + mass / sum(masses) * t for f, t in zip(found, g, strict=True)]
    return found
