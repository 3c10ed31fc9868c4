"""Schedules against the values that the original's options stand for."""

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowland.deep.config import LabelNoiseSchedule, LearningRateSchedule
from lowland.deep.schedules import label_noise_factor, learning_rate_factor

JUST_BELOW = {t: math.nextafter(t, 0) for t in (0.15, 0.2, 0.3, 0.4, 0.5, 0.75)}


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("piecewise", 0.5),
        ("piecewise_02epochs", 0.2),
        ("piecewise_03epochs", 0.3),
        ("piecewise_04epochs", 0.4),
    ],
)
def test_a_piecewise_rate_drops_tenfold_at_its_first_boundary_and_at_three_quarters(
    name: str, first: float
) -> None:
    factor = learning_rate_factor(name, 100)
    points = [0.0, JUST_BELOW[first], first, JUST_BELOW[0.75], 0.75, 1.0]
    assert [factor(t) for t in points] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]


@given(t=st.floats(0, 1))
def test_a_cosine_rate_is_half_a_cosine_and_a_constant_one_is_one(t: float) -> None:
    assert learning_rate_factor("cosine", 7)(t) == pytest.approx(math.cos(math.pi * t / 2) ** 2, abs=1e-12)
    assert learning_rate_factor("constant", 7)(t) == 1.0


@given(epochs=st.integers(3, 300), t=st.floats(0, 1))
def test_a_cyclic_rate_is_a_triangle_with_its_peak_at_a_whole_epoch(epochs: int, t: float) -> None:
    triangle = np.interp(t * epochs, [0, 2 * epochs // 5, epochs], [0, 1, 0])
    assert learning_rate_factor("cyclic", epochs)(t) == pytest.approx(triangle, abs=1e-9)


def test_the_cyclic_peak_is_rounded_down_to_an_epoch() -> None:
    factor = learning_rate_factor("cyclic", 7)
    assert factor(2 / 7) == pytest.approx(1.0)
    assert factor(2.8 / 7) == pytest.approx(1 - 0.8 / 5)
    assert [factor(0.0), factor(1.0)] == [0.0, 0.0]


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_cyclic_rate_of_a_run_too_short_to_rise_only_falls(epochs: int) -> None:
    factor = learning_rate_factor("cyclic", epochs)
    assert [factor(t) for t in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", (1, 1, 1, 1, 1)),
        ("inverted_cosine", (0, (1 - math.cos(0.15 * math.pi)) / 2, 0.5, 0.5 + math.sqrt(2) / 4, 1)),
        ("piecewise_10_100", (1, 1, 1 / 10, 1 / 100, 1 / 100)),
        ("piecewise_3_9", (1, 1, 1 / 3, 1 / 9, 1 / 9)),
        ("piecewise_3_inf", (1, 1, 0, 0, 0)),
        ("piecewise_2_3_3", (1, 1 / 2, 1 / 6, 1 / 18, 1 / 18)),
        ("piecewise_5_3_3", (1, 1 / 5, 1 / 15, 1 / 45, 1 / 45)),
        ("piecewise_8_3_3", (1, 1 / 8, 1 / 24, 1 / 72, 1 / 72)),
    ],
)
def test_label_noise_has_its_value_at_and_after_each_boundary(name: str, values: tuple[float, ...]) -> None:
    factor = label_noise_factor(name)
    assert [factor(t) for t in (0.0, 0.15, 0.5, 0.75, 1.0)] == pytest.approx(values)
    if name.startswith("piecewise"):
        before = [factor(JUST_BELOW[t]) for t in (0.15, 0.5, 0.75)]
        assert before == pytest.approx((values[0], values[1], values[2]))


@pytest.mark.parametrize("name", get_args(LearningRateSchedule))
def test_every_named_rate_stays_between_zero_and_one(name: str) -> None:
    factor = learning_rate_factor(name, 10)
    assert all(0 <= factor(i / 200) <= 1 for i in range(201))


@pytest.mark.parametrize("name", get_args(LabelNoiseSchedule))
def test_every_named_noise_stays_between_zero_and_one(name: str) -> None:
    factor = label_noise_factor(name)
    assert all(0 <= factor(i / 200) <= 1 for i in range(201))
