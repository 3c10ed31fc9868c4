"""The algebra of what is not formed, against the matrices written out."""

import pytest
import torch
from torch import nn

from lowland import sam_gradient
from lowland.sam.vectors.factors import Factor, OneHot, add_through, at_columns, gram, times
from lowland.sam.vectors.norms import cosines, inner, inner_products, squared_norms
from lowland.sam.vectors.per_group import LowRank, PerGroup, mapped

from ..naive import tensors

GROUPS, Q, P = 3, 5, 4


def one_hot(rows, seed=0, width=Q):
    """Ones in few columns, so that several rows share theirs."""
    ids = torch.randint(0, width - 2, (GROUPS, rows), generator=torch.Generator().manual_seed(seed))
    return OneHot(ids, width)


def factor(rows, seed=0, *, hot=False, q=Q):
    left, right = tensors(seed, (GROUPS, rows, q), (GROUPS, rows, P))
    return Factor(one_hot(rows, seed, q) if hot else left, right)


def written_out(f):
    """The sum of outer products, one after the other."""
    left = f.left.dense(f.right) if isinstance(f.left, OneHot) else f.left
    return torch.stack(
        [
            sum(torch.outer(a, b) for a, b in zip(*pair, strict=True))
            for pair in zip(left, f.right, strict=True)
        ]
    )


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


KINDS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize("hot", [False, True])
def test_formed_factor_is_the_sum_of_its_outer_products(hot):
    f = factor(6, hot=hot)
    close(f.formed(), written_out(f))


@pytest.mark.parametrize(("rows_a", "rows_b"), [(6, 2), (1, 1), (1, 3)])
@pytest.mark.parametrize(("hot_a", "hot_b"), KINDS)
def test_gram_is_the_inner_product_of_the_formed_matrices(hot_a, hot_b, rows_a, rows_b):
    a, b = factor(rows_a, 1, hot=hot_a), factor(rows_b, 2, hot=hot_b)
    close(gram(a, b).terms().sum((1, 2)), (written_out(a) * written_out(b)).sum((1, 2)))
    close(gram(a, a).terms().sum((1, 2)), written_out(a).square().sum((1, 2)))


@pytest.mark.parametrize("hot", [False, True])
def test_scaled_factor_is_the_scaled_matrix(hot):
    f, (by_group, by_row, w) = factor(6, hot=hot), tensors(5, (GROUPS,), (Q,), (Q, P))
    close(written_out(f.scaled(by_group)), by_group[:, None, None] * written_out(f))
    close(written_out(f.scaled_rows(by_row)), by_row[:, None] * written_out(f))
    close(f.summed(by_group), (by_group[:, None, None] * written_out(f)).sum(0))
    close(f.product(w), (written_out(f) * w).sum((1, 2)))


@pytest.mark.parametrize(("first_hot", "second_hot"), KINDS)
def test_product_through_factors_is_the_product_with_the_formed_matrix(first_hot, second_hot):
    x, y, a, b = tensors(3, (GROUPS, 2, Q), (GROUPS, 2, Q + 1), (GROUPS, 6, Q), (GROUPS, 6, Q + 1))
    first = one_hot(6, 1) if first_hot else a
    second = one_hot(6, 2, Q + 1) if second_hot else b
    matrices = (first.dense(x) if first_hot else first).transpose(1, 2) @ (
        second.dense(x) if second_hot else second
    )
    close(add_through(y.clone(), x, first, second), y + x @ matrices)


@pytest.mark.parametrize("hot", [False, True])
def test_columns_of_the_left_vectors_are_looked_up(hot):
    f, ids = factor(6, hot=hot), torch.tensor([[0, 4], [1, 1], [2, 0]])
    left = f.left.dense(f.right) if hot else f.left
    close(
        at_columns(f.left, ids, f.right),
        torch.stack([rows.t()[i] for rows, i in zip(left, ids, strict=True)]),
    )


def w(seed=7):
    return nn.Parameter(tensors(seed, (Q, P))[0])


def whole_part(rows, seed, *, hot=False):
    return LowRank(factor(rows, seed, hot=hot), 0, Q)


def rows_part(start, stop, seed, *, hot=False):
    return LowRank(factor(2, seed, hot=hot, q=stop - start), start, stop)


def per_group(kind, seed):
    """What is held as a multiple, formed, factors of all rows, of some, or several of these."""
    along, dense = tensors(seed, (GROUPS,), (GROUPS, Q, P))
    parts = {
        "parts": [whole_part(3, seed), whole_part(2, seed + 1, hot=True)],
        "rows": [rows_part(0, 2, seed), rows_part(2, 5, seed + 1, hot=True)],
        "overlap": [rows_part(0, 3, seed), rows_part(1, 5, seed + 1, hot=True)],
        "everything": [whole_part(3, seed), rows_part(0, 4, seed + 1)],
    }.get(kind, [])
    return PerGroup(
        w(),
        along if kind in ("along", "everything") else None,
        dense if kind in ("dense", "everything") else None,
        parts,
    )


def tensor_of(a):
    """The tensors of all groups, written out."""
    found = torch.zeros(GROUPS, Q, P, dtype=torch.float64)
    if a.along is not None:
        found += a.along[:, None, None] * a.w.detach()
    if a.dense is not None:
        found += a.dense
    for part in a.parts:
        found[:, part.start : part.stop] += written_out(part.factor)
    return found


HELD = ["nothing", "along", "dense", "parts", "rows", "overlap", "everything"]


@pytest.mark.parametrize("b", HELD)
@pytest.mark.parametrize("a", HELD)
def test_inner_product_is_that_of_the_tensors_written_out(a, b):
    one, other = per_group(a, 1), per_group(b, 2)
    close(inner(one, other, GROUPS), (tensor_of(one) * tensor_of(other)).sum((1, 2)))
    close(squared_norms([one], GROUPS), tensor_of(one).square().sum((1, 2)))


@pytest.mark.parametrize("kind", HELD)
def test_every_operation_is_that_of_the_tensors_written_out(kind):
    factors, share, by_row, by_element = tensors(4, (GROUPS,), (GROUPS,), (Q, 1), (Q, P))
    expected = tensor_of(per_group(kind, 1))
    close(tensor_of(per_group(kind, 1).scaled(factors)), factors[:, None, None] * expected)
    close(tensor_of(per_group(kind, 1).scale_(factors)), factors[:, None, None] * expected)
    close(tensor_of(per_group(kind, 1).times(by_row)), by_row * expected)
    close(tensor_of(per_group(kind, 1).times(by_element)), by_element * expected)
    close(per_group(kind, 1).whole(GROUPS), expected)
    summed = per_group(kind, 1).summed(share)
    assert (summed is None) == (kind == "nothing")
    close(
        torch.zeros(Q, P, dtype=torch.float64) if summed is None else summed,
        torch.einsum("g,gqp->qp", share, expected),
    )
    for operation in (PerGroup.tidy, PerGroup.form):
        found = per_group(kind, 1)
        operation(found)
        close(tensor_of(found), expected)
    assert per_group(kind, 1).absent == (kind == "nothing")


@pytest.mark.parametrize("b", HELD)
@pytest.mark.parametrize("a", HELD)
def test_sum_is_that_of_the_tensors_written_out(a, b):
    one, other = per_group(a, 1), per_group(b, 2)
    close(tensor_of(one.plus(other)), tensor_of(per_group(a, 1)) + tensor_of(per_group(b, 2)))


@pytest.mark.parametrize("kind", HELD)
def test_forming_and_summing_leave_the_operands_alone(kind):
    a = per_group(kind, 1)
    before = tensor_of(a)
    kept = None if a.dense is None else a.dense.clone()
    shared = a.dense
    a.scaled(torch.full((GROUPS,), 2.0, dtype=torch.float64))
    a.plus(per_group("everything", 2)).form()
    inner(a, per_group("dense", 3), GROUPS)
    a.summed(torch.ones(GROUPS, dtype=torch.float64))
    close(tensor_of(a), before)
    if kept is not None:
        assert torch.equal(shared, kept)


def test_norms_and_cosines_are_over_all_parameters_together():
    a = [per_group("parts", 1), per_group("dense", 2), per_group("nothing", 3)]
    b = [per_group("rows", 4), per_group("along", 5), per_group("dense", 6)]
    flat_a, flat_b = (torch.cat([tensor_of(t).flatten(1) for t in ts], 1) for ts in (a, b))
    close(squared_norms(a, GROUPS), flat_a.square().sum(1))
    close(inner_products(a, b, GROUPS), (flat_a * flat_b).sum(1))
    close(cosines(a, b, GROUPS), torch.nn.functional.cosine_similarity(flat_a, flat_b))
    doubled = mapped(a, lambda t: t.scaled(torch.full((GROUPS,), 2.0, dtype=torch.float64)))
    close(squared_norms(doubled, GROUPS), 4.0 * flat_a.square().sum(1))
    assert doubled[2].absent


def test_cosine_of_a_group_without_a_gradient_is_nan():
    a, b = per_group("dense", 1), per_group("dense", 2)
    a.dense[1] = 0.0
    assert cosines([a, a], [b, b], GROUPS).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("split", [False, True])
def test_norm_keeps_its_digits_where_the_outer_products_cancel(split):
    """Rows that are the same but for one part in 1e7: of their Gram no digit is left."""
    (left, right, change) = tensors(1, (GROUPS, 1, Q), (GROUPS, 1, P), (GROUPS, 1, P))
    other = Factor(-left, right + 1e-7 * change)
    parts = [LowRank(Factor(left, right), 0, Q), LowRank(other, 0, Q)]
    if not split:
        both = Factor(torch.cat([left, -left], 1), torch.cat([right, other.right], 1))
        parts = [LowRank(both, 0, Q)]
    expected = (written_out(Factor(left, right)) + written_out(other)).square().sum((1, 2))
    found = squared_norms([PerGroup(w(), parts=parts)], GROUPS)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0.0)


def test_one_group_that_cancels_does_not_spoil_the_others():
    (left, right) = tensors(1, (GROUPS, 1, Q), (GROUPS, 1, P))
    signs = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    a = PerGroup(
        w(), parts=[LowRank(Factor(left, right), 0, Q), LowRank(Factor(times(left, signs), right), 0, Q)]
    )
    once = (left.square().sum((1, 2)) * right.square().sum((1, 2))).tolist()
    assert squared_norms([a], GROUPS).tolist() == pytest.approx([4 * once[0], 0.0, 4 * once[2]], rel=1e-12)


def test_gradient_norm_of_a_linear_layer_is_the_closed_form():
    """Of one example, dW = d x^T and db = d, so that the norm is that of d times that of (x, 1)."""
    x, y, weight, bias = tensors(1, (5, 4), (5, 3), (3, 4), (3,))
    params = [nn.Parameter(weight), nn.Parameter(bias)]

    def loss(x, y):
        return 0.5 * (nn.functional.linear(x, *params) - y).square().sum(1)

    found = sam_gradient(loss, params, (x, y), rho=0.3, m=1, engine="batched", diagnostics=True)
    d = x @ weight.T + bias - y
    norms = d.norm(dim=1) * (x.square().sum(1) + 1.0).sqrt()
    close(found.diagnostics.gradient_norm, norms)
    c = (0.3 / norms)[:, None]
    moved = d + c * d * (x.square().sum(1, keepdim=True) + 1.0)
    close(found.diagnostics.perturbed_loss, 0.5 * moved.square().sum(1))
    close(found.gradients[0], moved.T @ x / 5)
    close(found.gradients[1], moved.mean(0))
