"""What runs otherwise, and is more than exact or refused: compiled code, and numbers at their limits."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lowland import sam_gradient

from ...naive import norm
from ..models import trained
from .making import plain, two_layers, vectors
from .outcomes import Unbatchable

ENGINES = ("loop", "batched")


def assert_equal(loop, batched):
    assert norm([g - h for g, h in zip(loop, batched, strict=True)]) <= 1e-10 * norm(loop)


@pytest.mark.parametrize(
    ("engine", "error", "said"),
    [
        ("loop", ValueError, "^loss must checkpoint its activations with use_reentrant=False, got "),
        ("batched", Unbatchable, "activation checkpointing with use_reentrant=True"),
    ],
)
def test_reentrant_checkpoint_is_not_run(engine, error, said):
    """The loop cannot either: torch forbids it inside ``autograd.grad``."""
    module, loss, batch = two_layers(
        lambda s, x: s.b(checkpoint(lambda t: s.a(t).tanh(), s.a(x), use_reentrant=True))
    )
    with pytest.raises(error, match=said):
        sam_gradient(loss, trained(module), batch, rho=0.1, m=2, module=module, engine=engine)


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.parametrize("what", ["module", "loss"])
def test_compiled_runs_as_it_was_written_which_is_said_once(what):
    module, loss, batch = two_layers(plain)
    expected = sam_gradient(loss, trained(module), batch, rho=0.1, m=2, engine="batched").gradients
    compiled = torch.compile(module, backend="eager")
    if what == "module":

        def loss(x):
            return compiled(x).square().mean()

        module = compiled
    else:
        loss = torch.compile(loss, backend="eager")
    with pytest.warns(UserWarning, match=f"a compiled {what}.* was run as it was written") as said:
        found = [
            sam_gradient(
                loss, trained(module), batch, rho=0.1, m=2, module=module, engine="batched"
            ).gradients
            for _ in range(2)
        ]
    assert sum("as it was written" in str(warning.message) for warning in said) == 1
    assert all(torch.equal(a, b) for gradients in found for a, b in zip(gradients, expected, strict=True))


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("part", ["module", "function"])
def test_compiled_parts_that_are_not_named_run_as_they_were_written(part):
    found = []
    for engine in ENGINES:
        module, _, batch = two_layers(plain)
        called = torch.compile(module, backend="eager") if part == "module" else module
        tanh = torch.compile(lambda y: y.tanh() * 2, backend="eager")

        def loss(x, called=called, tanh=tanh):
            return tanh(called(x)).square().mean()

        found.append(sam_gradient(loss, trained(module), batch, rho=0.1, m=2, engine=engine).gradients)
    assert_equal(*found)


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_exactly_zero_gradients_under_bfloat16_are_zero_and_not_nan(where):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def loss(x, y):
        with torch.autocast(
            "cpu", torch.bfloat16, enabled=where == "inside" or torch.is_autocast_enabled("cpu")
        ):
            return (module(x).float() * y).square().mean()

    x, y = torch.randn(6, 4), torch.tensor([1.0, 1, 0, 0, 1, 1])[:, None].expand(6, 3)
    found = {}
    for engine in ENGINES:
        with torch.autocast("cpu", torch.bfloat16, enabled=where == "outside"):
            found[engine] = sam_gradient(
                loss, trained(module), (x, y.contiguous()), rho=0.05, m=2, module=module, engine=engine
            ).gradients
    assert all(g.isfinite().all() for g in found["batched"])
    size = norm(found["loop"])
    assert norm([g - h for g, h in zip(found["batched"], found["loop"], strict=True)]) < 0.05 * size
    zeros = sam_gradient(
        loss, trained(module), (x, torch.zeros(6, 3)), rho=0.05, m=2, module=module, engine="batched"
    )
    assert all((g == 0.0).all() for g in zeros.gradients)


def test_group_whose_gradient_is_not_finite_gives_what_the_loop_gives():
    found = []
    for engine in ENGINES:
        module, loss, (x,) = two_layers(plain)
        x[3] = torch.inf
        found.append(sam_gradient(loss, trained(module), (x,), rho=0.1, m=2, module=module, engine=engine))
    for a, b in zip(found[0].gradients, found[1].gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_operations_in_place_beside_a_frozen_module_are_run_at_once():
    """What watches the frozen parameters asks what is written to, which has no memory of its own there."""
    module, _, batch = two_layers(plain, examples=8)
    frozen = nn.Linear(4, 4).double().requires_grad_(False)

    def loss(x):
        h = frozen(x)
        h.div_(2.0)
        return module(h.add_(1.0)).square().mean()

    def gradients(engine):
        return sam_gradient(loss, trained(module), batch, rho=0.1, m=2, engine=engine).gradients

    assert_equal(*map(gradients, ENGINES))


def test_complex_parameters_are_refused_by_both_engines_in_the_same_words():
    w = nn.Parameter(torch.ones(4, dtype=torch.complex128))
    for engine in ENGINES:
        with pytest.raises(TypeError, match="real"):
            sam_gradient(lambda x: (x * w).abs().sum(), [w], (vectors(),), rho=0.1, engine=engine)


def test_gradients_of_parameters_may_be_read_and_written_in_the_loss():
    found = []
    for engine in ENGINES:
        module, _, batch = two_layers(plain)
        for p in trained(module).values():
            p.grad = torch.full_like(p, 0.5)

        def loss(x, module=module):
            return module(x).square().mean() * module.a.weight.grad.sum()

        found.append(sam_gradient(loss, trained(module), batch, rho=0.1, m=2, engine=engine).gradients)
        assert all((p.grad == 0.5).all() for p in module.parameters())
    assert_equal(*found)
