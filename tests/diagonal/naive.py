"""The dynamics written from their formulas, one example at a time. Imports nothing of lowland.

Each loss is a function of (u, v), and each gradient is taken of that function by automatic differentiation,
so that no factor is shared with the kernels.
"""

import numpy as np
import torch


def group_loss(X, y, u, v):
    """Mean of half the squared residuals."""
    residual = X @ (u * v) - y
    return 0.5 * (residual * residual).mean()


def gradient(X, y, u, v):
    """Of the group's loss, for u and for v."""
    u, v = u.clone().requires_grad_(), v.clone().requires_grad_()
    return torch.autograd.grad(group_loss(X, y, u, v), (u, v))


def descend(problem, *, m, gamma, rho, steps, alpha, normalized=False, derivative_only=False):
    """Full-batch m-SAM; ``m = 0`` for gradient descent. Returns u, v and the climbs' sum of exponents."""
    X, y = torch.tensor(problem.X), torch.tensor(problem.y)
    n, d = X.shape
    u, v = torch.full((d,), alpha, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    exponent = torch.zeros(d, dtype=torch.float64)
    for _ in range(steps):
        total_u, total_v = torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
        for first in range(0, n, m or n):
            rows = slice(first, first + (m or n))
            share = len(y[rows]) / n
            gu, gv = gradient(X[rows], y[rows], u, v)
            length = torch.sqrt((gu * gu).sum() + (gv * gv).sum())
            scale = (rho / length if normalized else rho) if m else 0.0
            up, vp = u + scale * gu, v + scale * gv
            residual = X[rows] @ (up * vp) - y[rows]
            slope = X[rows].T @ residual / len(residual)
            plain = X[rows].T @ (X[rows] @ (u * v) - y[rows]) / len(residual)
            total_u += share * slope * (v if derivative_only else vp)
            total_v += share * slope * (u if derivative_only else up)
            exponent += share * gamma * (0.0 if derivative_only else scale) * plain * slope
        u, v = u - gamma * total_u, v - gamma * total_v
    return u.numpy(), v.numpy(), exponent.numpy()


def losses(problem, u, v):
    """Training and test loss."""
    values = []
    for X, y in ((problem.X, problem.y), (problem.X_test, problem.y_test)):
        residual = X @ (u * v) - y
        values.append(0.5 * np.mean(residual**2))
    return values
