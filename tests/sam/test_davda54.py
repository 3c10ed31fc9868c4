"""``lowland.sam.davda54``: scripts written for davda54/sam run after a change of the import."""

import copy
import inspect

import pytest
import torch
from torch import nn

import lowland
from lowland.sam.davda54 import SAM

from .naive import bits, buffers_of, identity, mlp, regression, relative_error, seeded, squared

STEPS = 4


def trajectory(module, update, *, rho=0.05, adaptive=False, groups=None):
    """That library's equations, with plain loops.

    e = rho * (w^2 if adaptive) * g / ||(|w| if adaptive) * g||, over all parameters; then the base step.
    """
    params = list(module.parameters())
    radii = [rho] * len(params) if groups is None else groups
    for step in range(STEPS):
        g = torch.autograd.grad(squared(module, *regression(step)), params)
        w = [p.detach().clone() for p in params]
        scales = [a.abs() if adaptive else torch.ones_like(a) for a in w]
        length = torch.cat([(s * t).flatten() for s, t in zip(scales, g, strict=True)]).norm()
        with torch.no_grad():
            for p, s, t, radius in zip(params, scales, g, radii, strict=True):
                p.add_(radius * s.square() * t / length)
        perturbed = torch.autograd.grad(squared(module, *regression(step)), params)
        with torch.no_grad():
            for p, a in zip(params, w, strict=True):
                p.copy_(a)
        update(perturbed)
    return params


def momentum(params, lr=0.1, mu=0.9):
    """SGD with momentum, from its formula."""
    velocity = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def update(gradients):
        for p, v, g in zip(params, velocity, gradients, strict=True):
            p.sub_(lr * v.mul_(mu).add_(g))

    return update


def two_steps(optimizer, module, batch):
    loss = squared(module, *batch)
    loss.backward()
    optimizer.first_step(zero_grad=True)
    squared(module, *batch).backward()
    optimizer.second_step(zero_grad=True)
    return loss


def closure_after_a_backward_of_its_own(optimizer, module, batch):
    """As its README has it: ``step`` there begins with the climb."""

    def closure():
        loss = squared(module, *batch)
        loss.backward()
        return loss

    loss = squared(module, *batch)
    loss.backward()
    optimizer.step(closure)
    optimizer.zero_grad()
    return loss


def closure_alone(optimizer, module, batch):
    def closure():
        optimizer.zero_grad()
        loss = squared(module, *batch)
        loss.backward()
        return loss

    return optimizer.step(closure)


SCRIPTS = {
    "two steps": two_steps,
    "closure after a backward": closure_after_a_backward_of_its_own,
    "closure": closure_alone,
}
scripts = pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)


def test_signature_is_that_librarys():
    names = inspect.signature(SAM).parameters
    assert list(names) == ["params", "base_optimizer", "rho", "adaptive", "kwargs"]
    assert names["rho"].default == 0.05
    assert names["adaptive"].default is False
    assert names["kwargs"].kind is inspect.Parameter.VAR_KEYWORD


@scripts
@pytest.mark.parametrize("adaptive", [False, True])
def test_script_makes_the_steps_of_the_equations(script, adaptive):
    module, twin = mlp(), mlp()
    params = list(twin.parameters())
    expected = trajectory(twin, momentum(params), rho=0.4, adaptive=adaptive)
    optimizer = SAM(module.parameters(), torch.optim.SGD, rho=0.4, adaptive=adaptive, lr=0.1, momentum=0.9)
    for step in range(STEPS):
        batch = regression(step)
        before = squared(module, *batch).item()
        assert script(optimizer, module, batch).item() == before
    assert relative_error(list(module.parameters()), expected) < 1e-13


@scripts
def test_group_has_its_own_rho_and_the_norm_is_over_all(script):
    module, twin = mlp(), mlp()
    expected = trajectory(twin, momentum(list(twin.parameters())), groups=[0.4, 0.4, 0.1, 0.1])
    groups = [{"params": module[0].parameters()}, {"params": module[2].parameters(), "rho": 0.1}]
    optimizer = SAM(groups, torch.optim.SGD, rho=0.4, lr=0.1, momentum=0.9)
    for step in range(STEPS):
        script(optimizer, module, regression(step))
    assert relative_error(list(module.parameters()), expected) < 1e-13


@pytest.mark.parametrize("rho", [0.05, 0.0])
def test_radius_in_the_groups_is_there_to_be_read_and_written(rho):
    """Scripts of its users schedule ``optimizer.param_groups[0]["rho"]``, also up from 0."""
    module, twin = mlp(), mlp()
    optimizer = SAM(module.parameters(), torch.optim.SGD, rho=rho, lr=0.1, momentum=0.9)
    assert [(g["rho"], g["adaptive"], g["lr"]) for g in optimizer.param_groups] == [(rho, False, 0.1)]
    optimizer.param_groups[0]["rho"] = 0.4
    for step in range(STEPS):
        two_steps(optimizer, module, regression(step))
    expected = trajectory(twin, momentum(list(twin.parameters())), rho=0.4)
    assert relative_error(list(module.parameters()), expected) < 1e-13


def test_group_with_another_adaptive_is_honoured_or_refused():
    """There every group has its own; a group whose choice is not read would train by another algorithm."""
    module = mlp()
    groups = [{"params": module[0].parameters(), "adaptive": True}, {"params": module[2].parameters()}]
    with pytest.raises(ValueError, match="adaptive"):
        SAM(groups, torch.optim.SGD, rho=0.4, lr=0.1)


def test_state_of_that_library_can_be_loaded():
    """It holds the groups, with ``rho`` and ``adaptive``, and no state: momentum starts anew."""
    module = mlp()
    optimizer = SAM(module.parameters(), torch.optim.SGD, rho=0.4, lr=0.1, momentum=0.9)
    theirs = optimizer.state_dict()
    del theirs["sam"]
    theirs["param_groups"][0].update(rho=0.2, lr=0.3)
    optimizer.load_state_dict(theirs)
    assert [(g["rho"], g["lr"]) for g in optimizer.param_groups] == [(0.2, 0.3)]


def test_state_resumes_with_the_momentum():
    one, two = mlp(), mlp(1)
    first, second = (SAM(m.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9) for m in (one, two))
    two_steps(first, one, regression())
    two.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for module, optimizer in ((one, first), (two, second)):
        two_steps(optimizer, module, regression(2))
    assert [bits(p) for p in one.parameters()] == [bits(p) for p in two.parameters()]


def test_batch_norm_needs_no_disabling():
    """Nor harms the recipe of its example, momentum 0 in the second pass."""
    module, twin = (seeded(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))) for _ in "ab")
    twin(regression()[0])
    two_steps(SAM(module.parameters(), torch.optim.SGD, lr=0.1), module, regression())
    assert buffers_of(module) == buffers_of(twin)


def test_negative_radius_is_refused():
    with pytest.raises(ValueError, match=r"^rho must be non-negative and finite, got -1\.0"):
        SAM(mlp().parameters(), torch.optim.SGD, rho=-1.0, lr=0.1)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("keyword", [False, True])
def test_sam_called_like_that_librarys_points_to_the_shim(keyword):
    module = mlp()
    before = identity(module)
    args = () if keyword else (torch.optim.SGD,)
    options = {"base_optimizer": torch.optim.SGD} if keyword else {}
    with pytest.raises(TypeError, match=r"SAM must be given the model.*lowland\.sam\.davda54\.SAM takes one"):
        lowland.SAM(module.parameters(), *args, rho=0.05, lr=0.1, **options)
    assert identity(module) == before
