"""The two kinds of vectors have the same operations: each group's of many are those of one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.sam import L2, Adaptive, RandomSubset
from lowland.sam.vectors import One, at_most, over
from lowland.sam.vectors.factors import Factor
from lowland.sam.vectors.many import Many, forms, serves_many
from lowland.sam.vectors.per_group import LowRank, PerGroup

GROUPS = 3


def both(seed: int = 0, scale: float = 1.0) -> tuple[Many, list[One]]:
    """A vector of several groups, a matrix unformed and a bias formed, and the vectors of each."""
    draw = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(GROUPS, 2, n, generator=draw, dtype=torch.float64) for n in (4, 5))
    bias = scale * torch.randn(GROUPS, 4, generator=draw, dtype=torch.float64)
    w, b = torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    many = Many(
        [PerGroup(w, parts=[LowRank(Factor(scale * left, right), 0, 4)]), PerGroup(b, dense=bias)], GROUPS
    )
    rows = [One([scale * left[k].T @ right[k], bias[k]]) for k in range(GROUPS)]
    return many, rows


def assert_same(many: Many, rows: list[One]) -> None:
    """To rounding of the largest entry: an entry may be a sum that cancels."""
    for k, row in enumerate(rows):
        for formed, tensor in zip(many[:], row, strict=True):
            bound = 1e-13 * float(tensor.abs().max())
            torch.testing.assert_close(formed[k], tensor, rtol=1e-12, atol=bound)


@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 20))
def test_sums_multiples_and_norms_are_those_of_each_group(factor, seed):
    (a, of_a), (b, of_b) = both(seed), both(seed + 100)
    each = torch.tensor([factor, 1.0, 0.5 * factor], dtype=torch.float64)
    assert_same(
        a.scaled(each).plus(b), [x.scaled(float(f)).plus(y) for x, y, f in zip(of_a, of_b, each, strict=True)]
    )
    expected = torch.tensor([row.norm() for row in of_a], dtype=torch.float64)
    torch.testing.assert_close(a.norm(), expected, rtol=1e-12, atol=0.0)
    cosines = torch.tensor([x.cosine(y) for x, y in zip(of_a, of_b, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(a.cosine(b), cosines, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 5), (4, 1)], ids=["by element", "by row"])
def test_products_with_units_are_those_of_each_group(shape):
    many, rows = both()
    units = [torch.rand(shape, dtype=torch.float64) + 0.5, None]
    assert_same(many.times(units), [row.times(units) for row in rows])


@pytest.mark.parametrize("factor", [0.0, 2.5])
def test_norm_of_a_multiple_is_known_without_asking(factor, monkeypatch):
    many, rows = both()
    norms, known = many.norm(), [row.norm() for row in rows]
    for name in ("lowland.sam.vectors.many.squared_norms", "lowland.sam.vectors.one.l2_norm"):
        monkeypatch.setattr(name, lambda *_: pytest.fail("asked"))
    torch.testing.assert_close(many.scaled(factor).norm(), factor * norms)
    assert [row.scaled(factor).norm() for row in rows] == [factor * n for n in known]
    assert all(row.scaled(factor).is_known_zero is (factor == 0.0) for row in rows)


def test_sum_with_absent_and_sparse_tensors_keeps_what_is_there():
    dense = torch.ones(3, 2)
    sparse = torch.sparse_coo_tensor([[1]], [[2.0, 2.0]], (3, 2), check_invariants=True)
    total = One([None, sparse, dense]).plus(One([dense, dense, None], 2.0)).formed()
    assert torch.equal(total[0], 2 * dense)
    assert torch.equal(total[1], sparse.to_dense() + 2 * dense)
    assert torch.equal(total[2], dense)


def test_quotient_is_zero_where_it_would_overflow_in_both_kinds_of_numbers():
    norms = [2.0, 0.0, 1e-300]
    expected = [0.5, 0.0, 0.0]
    assert [over(1.0, n, 1e38) for n in norms] == expected
    assert over(1.0, torch.tensor(norms, dtype=torch.float64), 1e38).tolist() == expected
    assert at_most(1.0, 3.0) == 1.0
    assert at_most(1.0, torch.tensor([3.0, 0.5])).tolist() == [1.0, 0.5]


def test_spent_vector_gives_its_tensors_away_unless_it_is_kept():
    vector = One([torch.ones(2)], 3.0)
    kept = One([torch.ones(2)], 3.0)
    kept.kept = True
    assert torch.equal(vector.spent()[0], torch.full((2,), 3.0))
    assert len(vector) == 0
    assert kept.spent() is kept


def test_cosine_with_zero_is_not_a_number():
    zero = One([torch.zeros(2)])
    assert math.isnan(One([torch.ones(2)]).cosine(zero))


class _Louder(L2):
    def __call__(self, step):
        return [2.0 * t for t in super().__call__(step)]


def test_ascent_that_inherits_the_word_of_another_class_is_asked_group_by_group():
    assert serves_many(L2())
    assert not serves_many(_Louder())
    assert not serves_many(RandomSubset(0.5))
    assert forms(Adaptive())
    assert not forms(Adaptive(by="filter"))
