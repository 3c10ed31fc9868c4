"""Values of the paper's figures, read off the published pictures.

From the figures of Andriushchenko & Flammarion (2022) and the author's slides of 28 October 2022; errors of
reading are about 0.02 to 0.05 percentage points, and 0.5 in Figure 12. Where the setting of a run is not
stated there, it is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lowland.figures.paper.figure import Rows

CIFAR10, CIFAR100 = "CIFAR-10, PreAct ResNet-18", "CIFAR-100, ResNet-34"
_RADII = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
FIGURE1: Mapping[str, Mapping[str, Mapping[float, float]]] = {
    CIFAR10: {
        "ERM": {0.0: 5.14},
        "128-SAM": dict(zip(_RADII, (4.71, 4.62, 4.40, 4.30, 4.63), strict=False)),
        "n-SAM": dict(zip(_RADII, (5.19, 5.32, 5.10, 5.12, 5.23, 5.13, 5.34), strict=False)),
        "random": {0.334: 5.10, 1.0: 5.29, 3.34: 5.31, 10.0: 5.10, 33.4: 5.20},
    },
    CIFAR100: {
        "ERM": {0.0: 22.80},
        "128-SAM": dict(zip(_RADII, (22.05, 21.51, 20.89, 20.38, 20.17), strict=False)),
        "n-SAM": dict(zip(_RADII, (22.79, 23.25, 23.17, 22.76, 23.0, 22.91, 23.48, 24.19), strict=False)),
        "random": {0.46: 22.97, 1.39: 22.74, 4.6: 22.57, 13.9: 22.21, 46.0: 22.31},
    },
}
STEPS: Mapping[str, Mapping[float, float]] = {
    "ERM": {0.0: 6.36},
    "256-SAM": {0.005: 6.09, 0.01: 5.83, 0.025: 6.20, 0.05: 5.95, 0.1: 5.29, 0.2: 6.25, 0.3: 6.35},
    "256-SAM, 10 steps": {0.005: 5.88, 0.01: 5.77, 0.025: 5.56, 0.05: 5.25, 0.1: 6.03, 0.2: 5.88},
    "4-SAM": {0.005: 6.00, 0.01: 5.49, 0.025: 4.94, 0.05: 4.78, 0.1: 6.36},
}
SUBOPTIMALITY: Mapping[str, Mapping[int, float]] = {
    "ERM": {4: 1.75, 16: 1.4, 64: 1.9, 256: 3.72, 1024: 10.34},
    "SAM": {4: 1.68, 16: 1.52, 64: 1.95, 256: 2.60, 1024: 3.03},
}
SWITCHING: Mapping[str, Mapping[str, Sequence[float]]] = {
    CIFAR10: {
        "SAM → ERM": (4.65, 4.72, 4.75, 4.82, 4.76, 4.59, 4.54, 4.38, 4.23, 4.12, 3.98),
        "ERM → SAM": (3.98, 4.10, 4.11, 4.09, 4.07, 4.16, 3.93, 3.99, 4.24, 4.30, 4.65),
    },
    CIFAR100: {
        "SAM → ERM": (20.72, 21.24, 20.81, 20.83, 20.73, 20.68, 20.69, 21.03, 19.92, 19.18, 18.87),
        "ERM → SAM": (18.87, 19.06, 18.89, 19.17, 18.89, 19.18, 19.24, 19.49, 19.66, 20.03, 20.72),
    },
}


def against_radius(network: str, curves: Mapping[str, Mapping[float, float]]) -> Rows:
    """Test error in per cent by method and radius, as rows."""
    return [
        {"network": network, "method": name, "rho": rho, "test_error": error, "published": True}
        for name, curve in curves.items()
        for rho, error in curve.items()
    ]
