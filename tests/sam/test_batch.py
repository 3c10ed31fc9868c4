"""Batches: what is an example, how groups are cut, and how their outputs are joined again."""

import warnings
from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland import sam_gradient
from lowland.sam.batch import batch_size, group_slices, join, take

from .naive import mlp, naive_sam, regression, relative_error, tensors

Pair = namedtuple("Pair", ["x", "y"])


def compressed(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Sparse CSR tensor support is in beta state"
        return x.to_sparse_csr()


modest = settings(max_examples=50, deadline=None)


@modest
@given(st.integers(1, 40), st.integers(1, 60))
def test_groups_partition_the_batch_in_order(num_examples, m):
    groups = group_slices(num_examples, m)
    assert [i for s in groups for i in range(num_examples)[s]] == list(range(num_examples))
    sizes = [s.stop - s.start for s in groups]
    assert all(size == min(m, num_examples) for size in sizes[:-1])
    assert 1 <= sizes[-1] <= m


@modest
@given(st.integers(1, 40))
def test_no_m_is_one_group(num_examples):
    assert group_slices(num_examples, None) == [slice(0, num_examples)]


@pytest.mark.parametrize("m", [1, 3, None])
def test_nested_batches_are_cut_alike(m):
    module, (x, y) = mlp(), regression()
    (weight,) = tensors(9, (7,))
    batch = ({"in": x, "more": [y, (weight, None)]}, Pair(x, y), None)

    def loss(module, inputs, pair, nothing):
        assert nothing is None
        assert isinstance(pair, Pair)
        assert isinstance(inputs["more"], list)
        target, (weight, absent) = inputs["more"]
        assert absent is None
        errors = (module(inputs["in"]) - target).square().mean(1) + (module(pair.x) - pair.y).tanh().mean(1)
        return (weight.square() * errors).mean()

    expected = naive_sam(module, loss, batch, rho=0.4, m=m)
    found = sam_gradient(lambda *b: loss(module, *b), list(module.parameters()), batch, rho=0.4, m=m)
    assert relative_error(found.gradients, expected.gradients) < 1e-12


def test_groups_are_views_of_the_batch():
    x, y = torch.arange(6.0).reshape(3, 2), torch.arange(3)
    (group,) = take(({"x": x, "y": [y]},), slice(1, 3))
    assert group["x"].tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert group["y"][0].tolist() == [1, 2]
    assert group["x"].data_ptr() == x[1:].data_ptr()


def test_integer_and_boolean_tensors_are_cut_too():
    a, b = (torch.nn.Parameter(t) for t in tensors(0, (5,), (5,)))
    index, mask = torch.tensor([0, 3, 4]), torch.tensor([True, False, True])
    found = sam_gradient(
        lambda i, k: ((a[i] + b[i]).square() * k).sum() + 0 * a.sum(), [a, b], (index, mask), rho=0.0, m=2
    ).gradients
    expected = torch.zeros(5, dtype=torch.float64)
    expected[0] = 2 / 3 * 2 * (a[0] + b[0]).item()
    expected[4] = 1 / 3 * 2 * (a[4] + b[4]).item()
    assert relative_error([found[1]], [expected]) < 1e-14


@modest
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_join_undoes_the_cut(sizes):
    parts = [{"a": torch.randn(n, 2), "b": (torch.tensor(float(n)), [torch.arange(n)])} for n in sizes]
    joined = join(parts)
    assert torch.equal(joined["a"], torch.cat([p["a"] for p in parts]))
    assert joined["b"][0].tolist() == sizes
    assert torch.equal(joined["b"][1][0], torch.cat([torch.arange(n) for n in sizes]))


def test_join_keeps_the_kinds_of_containers():
    joined = join([Pair(torch.zeros(1), None), Pair(torch.ones(2), None)])
    assert isinstance(joined, Pair)
    assert joined.x.tolist() == [0.0, 1.0, 1.0]
    assert joined.y is None


def test_mappings_of_other_kinds_are_batches_too():
    assert batch_size((OrderedDict(x=torch.zeros(3, 1)), None)) == 3


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((), r"^batch must hold at least one tensor whose rows are examples, got none\.$"),
        (({"x": None}, []), r"^batch must hold at least one tensor whose rows are examples, got none\.$"),
        ((3, "text", True), r"^batch must hold at least one tensor whose rows are examples, got none\.$"),
        (
            (torch.zeros(3), {"y": torch.zeros(4)}),
            r"^all tensors of a batch that is cut into groups must have the same first dimension, or be "
            r"named in shared=, got 3 in '0', 4 in '1\.y'\.$",
        ),
        ((torch.zeros(0, 2),), r"^batch must hold at least one example, got 0\.$"),
        (
            (torch.zeros(3), torch.tensor(1.0)),
            r"^every tensor of a batch that is cut into groups must have a first dimension of examples, or "
            r"be named in shared=, got a scalar for '1'\.$",
        ),
        (
            (torch.zeros(3), {"captions": ["a", "b", "c"]}),
            r"^a batch that is cut into groups must have its sequences and other objects named in rows= or "
            r"shared=, got list for '1\.captions'\.$",
        ),
        (
            (torch.zeros(3), compressed(torch.eye(3))),
            r"^tensors that are cut into groups must be strided, jagged or COO, got torch\.sparse_csr\.$",
        ),
    ],
)
def test_batches_that_cannot_be_cut_are_refused(batch, message):
    params = [torch.nn.Parameter(t) for t in tensors(0, (2,), (2,))]
    with pytest.raises(ValueError, match=message):
        sam_gradient(lambda *_: params[0].sum() + params[1].sum(), params, batch, rho=0.1, m=1)
