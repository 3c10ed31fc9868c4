"""Batches of anything, and entries that the user names where it cannot be seen what they are."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland import SAM, MicroBatches, sam_gradient
from lowland.sam.batch import Entries
from lowland.sam.unbatchable import Unbatchable

from .naive import mlp, naive_sam, regression, relative_error, seeded, squared, tensors

pytestmark = [
    pytest.mark.usefixtures("at_once"),
    pytest.mark.filterwarnings("ignore:the groups were run one after the other"),
]

ENGINES = ["loop", "auto"]


def truth(m, batch=None):
    module = mlp()
    return naive_sam(module, squared, regression() if batch is None else batch, rho=0.4, m=m).gradients


def gradient(loss, batch, **options):
    module = mlp()
    params = list(module.parameters())
    return sam_gradient(lambda *b: loss(module, *b), params, batch, rho=0.4, **options).gradients


# Without m, anything


@dataclasses.dataclass(frozen=True)
class Example:
    x: torch.Tensor
    y: torch.Tensor
    name: str


class Graph:
    def __init__(self, x, y):
        self.x, self.y, self.edges = x, y, torch.tensor([[0, 1], [1, 2]])


def jagged(x):
    return torch.nested.nested_tensor([x[:3], x[3:]], layout=torch.jagged)


def compressed(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Sparse CSR tensor support is in beta state"
        return x.to_sparse_csr()


X, Y = regression()
ANYTHING = {
    "no batch": ((), lambda m: squared(m, X, Y)),
    "detection targets": (
        ([X[:2], X[2:]], [{"y": Y[:2], "n": 2}, {"y": Y[2:], "n": 5}]),
        lambda m, xs, ts: squared(m, torch.cat(xs), torch.cat([t["y"] for t in ts])),
    ),
    "a dataclass": ((Example(X, Y, "a"),), lambda m, e: squared(m, e.x, e.y)),
    "a graph": ((Graph(X, Y),), lambda m, g: squared(m, g.x, g.y)),
    "captions": ((X, Y, ["a", "b"]), lambda m, x, y, _: squared(m, x, y)),
    "numbers": ((X, Y, 2, 1.5, True, None), lambda m, x, y, *_: squared(m, x, y)),
    "a scalar": ((X, Y, torch.tensor(1.0, dtype=torch.float64)), lambda m, x, y, s: s * squared(m, x, y)),
    "a sparse tensor": ((X.to_sparse(), Y), lambda m, x, y: squared(m, x.to_dense(), y)),
    "a compressed tensor": ((compressed(X), Y), lambda m, x, y: squared(m, x.to_dense(), y)),
    "a jagged tensor": ((jagged(X), Y), lambda m, x, y: squared(m, torch.cat(list(x.unbind())), y)),
    "packed sequences": (
        (nn.utils.rnn.pack_sequence([X[:4], X[4:]]),),
        lambda m, p: squared(m, torch.cat(nn.utils.rnn.unpack_sequence(p)), Y),
    ),
    "an array": ((X.numpy(), Y), lambda m, x, y: squared(m, torch.from_numpy(x), y)),
    "lengths": (
        ({"x": X[None], "cu": torch.tensor([0, 3, 7]), "longest": 4}, Y),
        lambda m, b, y: squared(m, b["x"][0], y),
    ),
}


@pytest.mark.parametrize("engine", ["loop", "auto"])
@pytest.mark.parametrize("name", ANYTHING)
def test_without_m_a_batch_may_be_anything_that_the_loss_takes(name, engine):
    batch, loss = ANYTHING[name]
    assert relative_error(gradient(loss, batch, engine=engine), truth(None)) < 1e-12


def test_loss_of_every_example_needs_no_batch_that_can_be_counted():
    def each(module, batch):
        return (module(batch["x"]) - Y).square().mean(1)

    found = gradient(each, ({"x": X, "other": torch.zeros(3)},))
    assert relative_error(found, truth(None)) < 1e-12


# With m


@pytest.mark.parametrize("engine", [*ENGINES, "batched"])
@pytest.mark.parametrize("m", [1, 3])
def test_single_things_go_to_every_group_as_they_are(m, engine):
    batch = ({"x": X, "return_loss": True, "scale": 1.0, "kind": "mean", "ids": None}, Y, 2)

    def loss(module, b, y, two):
        assert (b["return_loss"], b["kind"], b["ids"], two) == (True, "mean", None, 2)
        return b["scale"] * squared(module, b["x"], y)

    assert relative_error(gradient(loss, batch, m=m, engine=engine), truth(m)) < 1e-12


@pytest.mark.parametrize("engine", [*ENGINES, "batched"])
@pytest.mark.parametrize("name", ["shift", "0.shift"])
def test_tensor_that_is_named_as_shared_is_given_whole_to_every_group(name, engine):
    (shift,) = tensors(5, (4,))

    def loss(module, b, y):
        assert b["shift"].shape == (4,)
        return squared(module, b["x"] + b["shift"], y)

    batch = ({"x": X, "shift": shift}, Y)
    found = gradient(loss, batch, m=2, shared=[name], engine=engine)
    assert relative_error(found, truth(2, (X + shift, Y))) < 1e-12


def test_argument_is_named_by_its_position():
    found = gradient(lambda m, x, y, s: squared(m, x * s, y), (X, Y, torch.tensor(2.0)), m=2, shared=["2"])
    assert relative_error(found, truth(2, (2 * X, Y))) < 1e-12


ROWS = {
    "captions": (list("abcdefg"), lambda c: [ord(one) - ord("a") for one in c]),
    "tuples": (tuple(range(7)), list),
    "an array": (np.arange(7), lambda a: a.tolist()),
    "targets": (
        [{"i": torch.tensor([k] * (1 + k % 2))} for k in range(7)],
        lambda ts: [int(t["i"][0]) for t in ts],
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("name", ROWS)
def test_sequence_that_is_named_as_rows_is_cut_with_the_tensors(name, m, engine):
    sequence, numbers = ROWS[name]

    def loss(module, x, y, rows):
        expected = [int(i) for i in range(7) for k in range(len(x)) if torch.equal(x[k], X[i])]
        assert numbers(rows) == expected
        return squared(module, x, y)

    options = {} if name == "an array" else {"rows": ["2"]}
    assert relative_error(gradient(loss, (X, Y, sequence), m=m, engine=engine, **options), truth(m)) < 1e-12


@pytest.mark.parametrize(
    "make",
    [torch.Tensor.to_sparse, lambda x: torch.nested.nested_tensor(list(x[:, None]), layout=torch.jagged)],
)
def test_rows_of_tensors_that_are_not_strided_are_cut(make):
    def loss(module, x, y):
        dense = torch.cat(list(x.unbind())) if x.is_nested else x.to_dense()
        return squared(module, dense, y)

    assert relative_error(gradient(loss, (make(X), Y), m=2), truth(2)) < 1e-12


def test_sequence_is_refused_by_name_where_all_groups_must_run_at_once():
    with pytest.raises(Unbatchable, match=r"a sequence of examples that is no tensor, '2'"):
        gradient(
            lambda m, x, y, _: squared(m, x, y), (X, Y, list("abcdefg")), m=2, rows=["2"], engine="batched"
        )


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("option", ["shared", "rows"])
@pytest.mark.parametrize("names", ["x", [1], [None]])
def test_names_that_are_none_are_refused(option, names):
    with pytest.raises(TypeError, match=rf"^{option} must be a list of names of entries, got "):
        gradient(squared, (X, Y), m=2, **{option: names})


def test_entry_that_cannot_be_cut_is_refused_as_rows():
    with pytest.raises(ValueError, match=r"^entries in rows= must have a length and be cut .*, got Graph"):
        gradient(lambda m, x, y, _: squared(m, x, y), (X, Y, Graph(X, Y)), m=2, rows=["2"])


def test_shell_hands_the_names_on():
    module = mlp()
    sam = SAM(module, rho=0.4, m=2, shared=["2"], rows=["3"])
    sam.backward(lambda x, y, s, _: s * squared(module, x, y), X, Y, torch.ones(()), list("abcdefg"))
    assert relative_error([p.grad for p in module.parameters()], truth(2)) < 1e-12


def test_kinds_of_containers_are_kept_in_groups():
    from collections import OrderedDict, UserDict

    class Encoding(UserDict):
        def __getattr__(self, name):
            if name not in self.__dict__.get("data", {}):
                raise AttributeError(name)
            return self.data[name]

    def loss(module, encoding, ordered, example):
        assert isinstance(encoding, Encoding)
        assert isinstance(ordered, OrderedDict)
        assert isinstance(example, Example)
        assert example.name == "a"
        return squared(module, encoding.x, ordered["y"]) + 0.0 * example.x.sum()

    batch = (Encoding(x=X), OrderedDict(y=Y), Example(X, Y, "a"))
    assert relative_error(gradient(loss, batch, m=2), truth(2)) < 1e-12


# What stands beside the loss


def test_outputs_of_micro_batches_of_different_lengths_come_back_as_a_list():
    model = seeded(nn.Linear(4, 3))
    parts = [(x,) for x in tensors(2, (2, 5, 4), (2, 3, 4))]

    def loss(x):
        logits = model(x)
        return logits.square().mean(), {"logits": logits, "length": x.shape[1], "share": 0.5, "kind": "a"}

    aux = sam_gradient(loss, list(model.parameters()), MicroBatches(parts), rho=0.1).aux
    assert [tuple(t.shape) for t in aux["logits"]] == [(2, 5, 3), (2, 3, 3)]
    assert (aux["length"], aux["share"], aux["kind"]) == ([5, 3], [0.5, 0.5], ["a", "a"])


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_numbers_and_strings_beside_the_loss_are_one_for_each_group(engine):
    module = mlp()
    aux = sam_gradient(
        lambda x, y: (squared(module, x, y), {"n": len(x), "kind": "a", "out": module(x)}),
        list(module.parameters()),
        (X[:6], Y[:6]),
        rho=0.1,
        m=2,
        engine=engine,
    ).aux
    assert aux["n"] == [2, 2, 2]
    assert aux["kind"] == ["a", "a", "a"]
    torch.testing.assert_close(aux["out"], module(X[:6]).detach())


# A loss of other examples than those it is given


@pytest.mark.parametrize("engine", ["loop", "batched", "auto"])
@pytest.mark.parametrize("m", [1, 3])
def test_loss_that_touches_none_of_its_arguments_is_refused_where_m_cuts(m, engine):
    with pytest.raises(ValueError, match=r"^loss must use its arguments where m cuts the batch, got"):
        gradient(lambda m, x, y: squared(m, X, Y), (X, Y), m=m, engine=engine)  # noqa: ARG005
    assert len(gradient(lambda m, x, y: squared(m, X, Y), (X, Y), m=None, engine=engine)) == 4  # noqa: ARG005


TOUCHING = {
    "one of two": lambda m, x, y: squared(m, x, Y[: len(y)]),
    "an index": lambda m, i, _: squared(m, X[i], Y[i]),
    "a list": lambda m, i, _: squared(m, X[i.tolist()], Y[i.tolist()]),
    "an array": lambda m, i, _: squared(m, X[torch.from_numpy(i.numpy())], Y[i]),
    "one by one": lambda m, i, _: sum(squared(m, X[int(k)], Y[int(k)]) for k in i) / len(i),
    "its length": lambda m, x, _: squared(m, X[: len(x)], Y[: x.shape[0]]),
    "its device": lambda m, x, _: squared(m, X.to(x.device), Y),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TOUCHING)
def test_loss_that_touches_an_argument_in_any_way_is_not_refused(name, engine):
    batch = (X, Y) if name in {"one of two", "its length", "its device"} else (torch.arange(7), Y)
    assert len(gradient(TOUCHING[name], batch, m=2, engine=engine)) == 4


def test_cross_entropy_of_a_dict_touches_its_arguments():
    model = seeded(nn.Linear(4, 3))
    batch = {"x": X, "labels": torch.arange(7) % 3}
    SAM(model, rho=0.1, m=2).backward(lambda b: F.cross_entropy(model(b["x"]), b["labels"]), batch)
    assert model.weight.grad is not None


def of_its_examples(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return ((x @ w - y) ** 2).mean()


def of_the_weights(w: torch.Tensor) -> torch.Tensor:
    return (w**2).mean()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("uses", [True, False])
def test_scripted_code_is_asked_by_its_operations_and_the_question_leaves_nothing(uses):
    w, norm = nn.Parameter(tensors(4, (4, 3))[0]), nn.BatchNorm1d(3).double()
    scripted = torch.jit.script(of_its_examples if uses else of_the_weights)

    def loss(x, y):
        norm(torch.ones(2, 3, dtype=torch.float64))
        return scripted(x, y, w) if uses else scripted(w)

    state = torch.get_rng_state()
    if uses:
        sam_gradient(loss, [w], (X, Y), rho=0.1, m=2, engine="loop")
        assert int(norm.num_batches_tracked) == 4
        assert torch.equal(torch.get_rng_state(), state)
        return
    with pytest.raises(ValueError, match=r"^loss must use its arguments"):
        sam_gradient(loss, [w], (X, Y), rho=0.1, m=2, engine="loop")


def test_compiled_loss_is_not_asked():
    w = nn.Parameter(tensors(4, (4, 3))[0])
    compiled = torch.compile(lambda x, y: ((x @ w - y) ** 2).mean(), backend="eager")
    found = sam_gradient(compiled, [w], (X, Y), rho=0.1, m=2, engine="loop").gradients
    expected = sam_gradient(lambda x, y: ((x @ w - y) ** 2).mean(), [w], (X, Y), rho=0.1, m=2).gradients
    assert relative_error(found, expected) < 1e-12


def test_name_of_an_entry_is_no_end_of_another_ones():
    entries = Entries(shared=("mask",), rows=("1.boxes",))
    paths = ("mask", "0.mask", "0.attention_mask", "1.boxes", "1.bigboxes", "11.boxes")
    assert [entries.kind(path) for path in paths] == ["shared", "shared", None, "rows", None, None]


@pytest.mark.parametrize("engine", ENGINES)
def test_number_that_every_group_puts_into_its_batch_is_the_last_groups(engine):
    """As plain passes over the groups of 3, 3 and 1 examples would leave it."""
    module, (x, y) = mlp(), regression()
    batch = {"x": x, "y": y}

    def loss(group):
        group["examples"] = len(group["x"])
        return squared(module, group["x"], group["y"])

    SAM(module, rho=0.4, m=3, engine=engine).backward(loss, batch)
    assert batch["examples"] == 1
