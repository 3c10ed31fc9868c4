"""One-hidden-layer ReLU networks trained by automatic differentiation. Imports nothing of lowland."""

import torch


def outputs(weights, x):
    """Of hidden weights, biases and output weights."""
    w, b, a = weights
    return torch.relu(x @ w + b) @ a


def gradient(weights, x, y):
    """Of half the sum of squared residuals, and its value."""
    weights = [t.clone().requires_grad_() for t in weights]
    loss = 0.5 * ((outputs(weights, x) - y) ** 2).sum()
    return torch.autograd.grad(loss, weights), loss.item()


def descend(weights, x, y, *, gamma, rho, m, normalized, batches, horizon):
    """Steps of m-SAM on each batch in turn; returns weights, and the clean and perturbed losses."""
    losses = []
    for step, rows in enumerate(batches):
        total, clean, perturbed = [torch.zeros_like(t) for t in weights], 0.0, 0.0
        for first in range(0, len(rows), m):
            group = rows[first : first + m]
            climb, value = gradient(weights, x[group], y[group])
            length = torch.sqrt(sum((g * g).sum() for g in climb))
            scale = rho / max(length, 1e-300) if normalized else rho
            moved = [t + scale * g for t, g in zip(weights, climb, strict=True)]
            slope, higher = gradient(moved, x[group], y[group])
            total = [t + g for t, g in zip(total, slope, strict=True)]
            clean, perturbed = clean + value, perturbed + higher
        losses.append((clean, perturbed))
        size = gamma * (1 - (step + 1) / horizon) if horizon else gamma
        weights = [t - size * g for t, g in zip(weights, total, strict=True)]
    return weights, losses
