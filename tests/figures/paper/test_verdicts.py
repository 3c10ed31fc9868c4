"""What can be said from a few seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from lowland.figures.paper.verdicts import Difference, chosen, compared, mean_and_spread


def rows(values, *, method="a", rho=0.1, validation=None):
    validation = values if validation is None else validation
    return [
        {"method": method, "rho": rho, "seed": i, "test_error": v, "validation_error": w, "published": False}
        for i, (v, w) in enumerate(zip(values, validation, strict=True))
    ]


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(5.0, 1.0, 6), rng.normal(5.5, 1.0, 6)
    found = Difference.of(rows(a), rows(b))
    wanted = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found.mean - found.half == pytest.approx(wanted.low, abs=1e-12)
    assert found.mean + found.half == pytest.approx(wanted.high, abs=1e-12)
    assert found.seeds == 6


def test_seeds_are_paired_by_their_numbers_not_their_order() -> None:
    a, b = rows([1.0, 2.0, 3.0]), rows([2.0, 3.0, 4.0])[::-1]
    found = Difference.of(a, b)
    assert (found.mean, found.half, found.seeds) == (-1.0, 0.0, 3)
    assert Difference.of(a, b[:2]).seeds == 2


@pytest.mark.parametrize(
    ("a", "b", "lower", "not_lower"),
    [
        ([4.0, 4.1, 4.2], [5.0, 5.1, 5.25], "agrees", "disagrees"),
        ([5.0, 5.1, 5.25], [4.0, 4.1, 4.2], "disagrees", "agrees"),
        ([4.0, 5.1, 4.9], [5.0, 5.0, 5.0], "cannot be told", "agrees"),
        ([4.0], [5.0], "cannot be told", "cannot be told"),
        ([], [5.0], "cannot be told", "cannot be told"),
        ([math.nan, 1.0], [5.0, 5.0], "cannot be told", "cannot be told"),
    ],
)
def test_verdicts_need_the_interval_to_be_on_one_side_of_zero(a, b, lower, not_lower) -> None:
    difference = Difference.of(rows(a), rows(b))
    assert difference.is_lower == lower
    assert difference.is_not_lower == not_lower


def test_a_claim_says_what_was_compared() -> None:
    claim = compared(
        "x is better", "1 against 2 %", ("x", rows([4.0, 4.2])), ("y", rows([5.0, 5.4])), lower=True
    )
    assert claim.ours.startswith("x 4.10 ± 0.14, y 5.20 ± 0.28: difference -1.10 ± ")
    assert (claim.seeds, claim.statement, claim.published) == (2, "x is better", "1 against 2 %")
    assert claim.difference == pytest.approx(-1.1)
    assert f"{claim.difference:+.2f} ± {claim.half:.2f}" in claim.ours


def test_a_difference_of_one_seed_has_no_numbers() -> None:
    claim = compared("x is better", "", ("x", rows([4.0])), ("y", rows([5.0])), lower=True)
    assert (claim.difference, claim.half) == (None, None)


def test_the_radius_is_chosen_on_validation_among_those_with_every_seed() -> None:
    tempting = rows([1.0, 1.0, 1.0], rho=0.1, validation=[9.0, 9.0, 9.0])
    good = rows([5.0, 5.0, 5.0], rho=0.2, validation=[4.0, 4.0, 4.0])
    partial = rows([2.0, 2.0], rho=0.3, validation=[1.0, 1.0])
    diverged = rows([2.0, 2.0, 2.0], rho=0.4, validation=[1.0, math.nan, 1.0])
    published = [{"method": "a", "rho": 0.5, "test_error": 0.0, "published": True}]
    name, found = chosen([*tempting, *good, *partial, *diverged, *published], "a")
    assert (name, found) == ("a (ρ = 0.2)", good)
    assert chosen(rows([3.0], rho=0.0), "a")[0] == "a"
    assert chosen([], "a") == ("a", [])


def test_spreads_are_those_of_a_sample() -> None:
    assert mean_and_spread(rows([1.0, 3.0]), "test_error") == "2.00 ± 1.41"
    assert mean_and_spread(rows([1.0]), "test_error") == "1.00"
    assert mean_and_spread([], "test_error") == "-"
