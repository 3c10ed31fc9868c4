"""Learning rate and per-batch label noise over time.

Every schedule is a function of the share of training done, in [0, 1], to a factor. Names and shapes are
those of the original code of Andriushchenko & Flammarion (2022).
"""

import math
from bisect import bisect_right
from collections.abc import Callable

Schedule = Callable[[float], float]


def learning_rate_factor(name: str, epochs: int) -> Schedule:
    """Factor on the peak learning rate at a share of the training.

    ``cyclic`` depends on the number of ``epochs``, since its peak is at a whole epoch.

    Example:
        >>> [learning_rate_factor("piecewise", 200)(t) for t in (0.0, 0.5, 0.75)]
        [1.0, 0.1, 0.01]
    """
    return _cyclic(epochs) if name == "cyclic" else _LEARNING_RATE[name]


def label_noise_factor(name: str) -> Schedule:
    """Factor on the probability that a label is drawn anew, at a share of the training."""
    return _LABEL_NOISE[name]


def _steps(boundaries: tuple[float, ...], values: tuple[float, ...]) -> Schedule:
    """``values[i]`` from ``boundaries[i - 1]`` on."""
    return lambda t: values[bisect_right(boundaries, t)]


def _cyclic(epochs: int) -> Schedule:
    peak = (2 * epochs // 5) / epochs

    def factor(t: float) -> float:
        rising = t / peak if peak > 0 else 1.0
        return max(0.0, min(rising, (1 - t) / (1 - peak)))

    return factor


def _early_noise(a: int) -> Schedule:
    # The original's a = 8 divides by 10 in the last two parts; a slip, so all parts divide by a here.
    return _steps((0.15, 0.5, 0.75), (1.0, 1 / a, 1 / (3 * a), 1 / (9 * a)))


_LEARNING_RATE: dict[str, Schedule] = {
    "piecewise": _steps((0.5, 0.75), (1.0, 0.1, 0.01)),
    "piecewise_02epochs": _steps((0.2, 0.75), (1.0, 0.1, 0.01)),
    "piecewise_03epochs": _steps((0.3, 0.75), (1.0, 0.1, 0.01)),
    "piecewise_04epochs": _steps((0.4, 0.75), (1.0, 0.1, 0.01)),
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "constant": lambda _: 1.0,
}
_LABEL_NOISE: dict[str, Schedule] = {
    "constant": lambda _: 1.0,
    "inverted_cosine": lambda t: 0.5 * (1 - math.cos(math.pi * t)),
    "piecewise_10_100": _steps((0.5, 0.75), (1.0, 0.1, 0.01)),
    "piecewise_3_9": _steps((0.5, 0.75), (1.0, 1 / 3, 1 / 9)),
    "piecewise_3_inf": _steps((0.5,), (1.0, 0.0)),
    "piecewise_2_3_3": _early_noise(2),
    "piecewise_5_3_3": _early_noise(5),
    "piecewise_8_3_3": _early_noise(8),
}
