"""What is beside a call: other models, other gradients, weights that were frozen or freed in the meantime.

One process is enough: FSDP does the same in it.
"""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from lowland import SAM, sam_gradient
from lowland.sam.vectors.per_group import PerGroup

from ..naive import naive_sam, regression, relative_error, seeded, squared, tensors
from .models import sharded, shards, uneven, whole

RHO, TOL = 0.3, 1e-12

pytestmark = pytest.mark.filterwarnings("ignore:the loss depends on tensors that require a gradient")


def taught_by(teacher, blind=False):
    """A loss in which a teacher runs, without gradients if it is blind."""

    def loss(model, x, y):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not blind):
            taught = teacher(x)
        return (model(x) - y).square().mean() + (model(x) - taught).square().mean()

    return loss


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", ["frozen", "trained by others", "blind"])
def test_another_sharded_model_may_run_in_the_loss_and_gets_no_gradient(mesh, kind, together):
    model, teacher = sharded(uneven(), mesh), sharded(uneven(1).requires_grad_(kind != "frozen"), mesh)
    before, batch = shards(teacher), regression()
    options = {"process_group": mesh.get_group()} if together else {"m": 2}
    SAM(model, rho=RHO, **options).backward(partial(taught_by(teacher, kind == "blind"), model), *batch)
    expected = naive_sam(uneven(), taught_by(uneven(1)), batch, rho=RHO, m=options.get("m")).gradients
    assert relative_error(whole(model, gradients=True), expected) < TOL
    teacher.reshard()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(map(torch.equal, shards(teacher), before))


def test_after_an_exception_another_sharded_model_of_the_loss_runs_as_before(mesh):
    model, teacher, calls = sharded(uneven(), mesh), sharded(uneven(1), mesh), []
    sam, batch = SAM(model, rho=RHO, m=2), regression()

    def fails(_):
        calls.append(None)
        if len(calls) == 2:
            raise ZeroDivisionError("as it happens")

    handle = teacher[2].register_forward_pre_hook(lambda _, args: fails(args))
    loss = partial(taught_by(teacher), model)
    with pytest.raises(ZeroDivisionError):
        sam.backward(loss, *batch)
    handle.remove()
    sam.backward(loss, *batch)
    expected = naive_sam(uneven(), taught_by(uneven(1)), batch, rho=RHO, m=2).gradients
    assert relative_error(whole(model, gradients=True), expected) < TOL
    squared(teacher, *batch).backward()
    plain = naive_sam(uneven(1), squared, batch, rho=0.0).gradients
    assert relative_error(whole(teacher, gradients=True), plain) < TOL


@pytest.mark.parametrize("root", [False, True])
def test_part_of_a_sharded_model_is_trained_alone(mesh, root):
    model = sharded(uneven(), mesh) if root else uneven()
    sam = SAM(model[2], rho=RHO, m=2)
    sam.backward(partial(squared, model), *regression())
    found = [p.grad for p in model.parameters()]
    twin = uneven()
    SAM(twin[2], rho=RHO, m=2).backward(partial(squared, twin), *regression())
    expected = [p.grad for p in twin.parameters()]
    assert (
        [g is None for g in found] == [g is None for g in expected] == [True] * 2 + [False] * 2 + [True] * 2
    )
    own = [g.full_tensor() if root else g for g in found[2:4]]
    assert relative_error(own, expected[2:4]) < TOL


@pytest.mark.parametrize("together", [False, True])
def test_other_tensors_that_require_a_gradient_get_none(mesh, together):
    model, (x, y), other = sharded(uneven(), mesh), regression(), nn.Parameter(torch.ones(3).double())
    x.requires_grad_()
    options = {"process_group": mesh.get_group()} if together else {"m": 2}
    SAM(model, rho=RHO, **options).backward(lambda x, y: squared(lambda x: other * model(x), x, y), x, y)
    assert x.grad is None
    assert other.grad is None
    assert all(p.grad is not None for p in model.parameters())


def test_gradient_that_waits_is_neither_part_of_what_is_returned_nor_lost(mesh):
    model, batch, later = sharded(uneven(), mesh), regression(), regression(2)
    plain = naive_sam(uneven(), squared, batch, rho=0.0).gradients
    climbed = naive_sam(uneven(), squared, later, rho=RHO, m=2).gradients
    model.set_requires_gradient_sync(False)
    squared(model, *batch).backward()
    model.set_requires_gradient_sync(True)
    found = sam_gradient(
        partial(squared, model), [*model.parameters()], later, rho=RHO, m=2, module=model
    ).gradients
    assert relative_error([g.full_tensor() for g in found], climbed) < TOL
    assert all(p.grad is None for p in model.parameters())
    value = SAM(model, rho=RHO, m=2).objective(partial(squared, model), *later)
    (0.5 * value).backward()
    assert relative_error(whole(model, gradients=True), [0.5 * g for g in climbed]) < TOL
    squared(model, *batch).backward()
    expected = [2.0 * p + 0.5 * g for p, g in zip(plain, climbed, strict=True)]
    assert relative_error(whole(model, gradients=True), expected) < TOL


def test_gradient_that_waits_is_there_after_an_exception_between_reductions(mesh, monkeypatch):
    model, batch = sharded(uneven(), mesh), regression()
    model.set_requires_gradient_sync(False)
    squared(model, *batch).backward()
    model.set_requires_gradient_sync(True)
    real = FSDPParamGroup.post_backward

    def fails(group, *args):
        real(group, *args)
        if group.reduce_grads:
            raise ZeroDivisionError("as it happens")

    with monkeypatch.context() as patch:
        patch.setattr(FSDPParamGroup, "post_backward", fails)
        with pytest.raises(ZeroDivisionError):
            SAM(model, rho=RHO, m=2).backward(partial(squared, model), *batch)
    squared(model, *batch).backward()
    plain = naive_sam(uneven(), squared, batch, rho=0.0).gradients
    assert relative_error(whole(model, gradients=True), [2.0 * g for g in plain]) < TOL


@pytest.mark.parametrize("together", [False, True])
def test_weights_may_be_frozen_and_freed_between_steps(mesh, together):
    model, batch, options = sharded(uneven(), mesh), regression(), {} if together else {"m": 2}
    sam = SAM(model, rho=RHO, process_group=mesh.get_group() if together else None, **options)
    for trained in (False, True):
        model[2].requires_grad_(trained)
        model.zero_grad()
        sam.backward(partial(squared, model), *batch)
        twin = uneven()
        twin[2].requires_grad_(trained)
        SAM(twin, rho=RHO, **options).backward(partial(squared, twin), *batch)
        found, expected = whole(model, gradients=True), [p.grad for p in twin.parameters()]
        assert [g is None for g in found] == [g is None for g in expected]
        there = [(a, b) for a, b in zip(found, expected, strict=True) if b is not None]
        assert relative_error(*zip(*there, strict=True)) < TOL


def test_sam_may_be_looked_at_while_a_unit_is_gathered(mesh):
    model, batch = sharded(uneven(), mesh), regression()
    sam, seen = SAM(model, rho=RHO, m=2), []
    model[2].register_forward_pre_hook(lambda *_: seen.append((repr(sam), [*map(id, sam.params)])))
    sam.backward(partial(squared, model), *batch)
    assert (
        relative_error(
            whole(model, gradients=True), naive_sam(uneven(), squared, batch, rho=RHO, m=2).gradients
        )
        < TOL
    )
    assert {tuple(ids) for _, ids in seen} == {tuple(map(id, model.parameters()))}


def test_what_stays_gathered_after_a_climb_together_is_not_perturbed(mesh):
    model, batch = sharded(uneven(), mesh), regression()
    model.set_reshard_after_backward(False)
    before = squared(model, *batch).detach()
    SAM(model, rho=RHO, process_group=mesh.get_group()).backward(partial(squared, model), *batch)
    assert torch.equal(squared(model, *batch).detach(), before)


@pytest.mark.parametrize(("rows", "formed"), [(100, False), (300, True)])
def test_gradients_are_formed_only_where_that_takes_less_memory(mesh, monkeypatch, rows, formed):
    """Of 100 rows a formed one is faster, of 300 it is smaller, too: a rank has to hold it between passes."""
    layers = seeded(
        nn.Sequential(nn.Linear(256, 256, bias=False), nn.Tanh(), nn.Linear(256, 256, bias=False))
    )
    model, plain = sharded(deepcopy(layers), mesh), layers
    batch = tuple(tensors(1, (2, rows, 256), (2, rows, 256)))
    form, formed_in = PerGroup.form, []

    def counted(self):
        formed_in[-1] += any(part.rows == (0, 256) for part in self.parts)
        form(self)

    monkeypatch.setattr(PerGroup, "form", counted)
    for each in (plain, model):
        formed_in.append(0)
        SAM(each, rho=RHO, m=1, engine="batched").backward(partial(squared, each), *batch)
    assert formed_in[0] > 0
    assert (formed_in[1] > 0) == formed
    expected = [p.grad for p in plain.parameters()]
    assert relative_error(whole(model, gradients=True), expected) < TOL
