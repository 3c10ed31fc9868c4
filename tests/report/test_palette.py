"""The colours of curves are told apart with any colour vision, on light paper and on dark."""

import importlib.resources
import itertools
import re

import numpy as np
import pytest

# Machado, Oliveira and Fernandes (2009), table 1 at severity 1, for linear RGB.
SEEN = {
    "by all cones": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = XYZ.sum(axis=1)
APART = 20.0
"""Of ΔE (CIE 1976); 2.3 is just to be seen, side by side."""


def palettes() -> dict[str, dict[str, str]]:
    """The colours of the page's style: light, dark and print."""
    css = importlib.resources.files("lowland.report").joinpath("page.css").read_text(encoding="utf-8")
    light, dark, *_ = re.findall(r":root \{(.*?)\}", css, re.S)
    return {
        kind: dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for kind, block in (("light", light), ("dark", dark))
    }


def linear(color: str) -> np.ndarray:
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    t = XYZ @ np.clip(rgb, 0.0, 1.0) / WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a: str, b: str) -> float:
    low, high = sorted(float(XYZ[1] @ linear(color)) for color in (a, b))
    return (high + 0.05) / (low + 0.05)


def test_the_measures_are_the_known_ones() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0, abs=1e-3)
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    assert all(matrix.sum(axis=1) == pytest.approx(1.0, abs=1e-5) for matrix in SEEN.values()), "grey is grey"


@pytest.mark.parametrize("kind", ["light", "dark"])
@pytest.mark.parametrize("sight", SEEN)
def test_any_two_colours_are_told_apart(kind, sight) -> None:
    colors = [palettes()[kind][f"c{i}"] for i in range(6)]
    for a, b in itertools.combinations(colors, 2):
        apart = np.linalg.norm(lab(SEEN[sight] @ linear(a)) - lab(SEEN[sight] @ linear(b)))
        assert apart >= APART, (a, b)


@pytest.mark.parametrize("kind", ["light", "dark"])
def test_lines_stand_out_from_the_paper_and_text_can_be_read(kind) -> None:
    palette = palettes()[kind]
    for i in range(6):
        assert contrast(palette[f"c{i}"], palette["paper"]) >= 3.0
    for name in ("text", "muted", "link", "agrees", "disagrees", "open"):
        assert contrast(palette[name], palette["paper"]) >= 4.5, name
