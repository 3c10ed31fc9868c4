"""Where SAM becomes unstable."""

from __future__ import annotations

import math

from lowland.errors import InputError


def sam_edge(gradient_norm: float, *, rho: float, eta: float) -> float:
    r"""The sharpness at which SAM becomes unstable (Long & Bartlett, 2024).

    .. math::
        \frac{\|g\|}{2\rho}\Bigl(\sqrt{1 + \frac{8\rho}{\eta\|g\|}} - 1\Bigr) \to \frac2\eta
        \quad\text{as } \rho \to 0.

    Args:
        gradient_norm: l2 norm of the gradient.
        rho: Radius of SAM; 0 gives the edge of gradient descent.
        eta: Step size.

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> from lowland.sharpness import sam_edge
        >>> sam_edge(1.0, rho=0.0, eta=0.1), round(sam_edge(1.0, rho=0.1, eta=0.1), 6)
        (20.0, 10.0)
    """
    if not (gradient_norm >= 0.0 and rho >= 0.0 and eta > 0.0):
        numbers = f"{gradient_norm}, {rho} and {eta}"
        raise InputError(f"gradient_norm and rho must be non-negative and eta positive, got {numbers}.")
    if rho == 0.0:
        return 2.0 / eta
    if gradient_norm == 0.0:
        return 0.0
    x = 8.0 * rho / (eta * gradient_norm)
    return float(4.0 / (eta * (math.sqrt(1.0 + x) + 1.0)))
