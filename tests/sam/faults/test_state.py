"""State that was not saved, and parameter groups that were not the optimizer's."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lowland import SAM, SAMOptimizer
from lowland.sam import Cosine, ProportionalToLR, Unified, davda54

from ..naive import bits, identity, mlp, regression, squared
from .ways import closure_of, optimizer_of, preset_of, sgd

BATCH = regression()


def saved(state):
    """``state`` through a file, as a checkpoint goes."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weights(module):
    return [bits(p) for p in module.parameters()]


def loss_of(module):
    return lambda: squared(module, *BATCH)


WRAPPERS = {
    "SAMOptimizer": lambda params, base, **options: SAMOptimizer(base(params, **options), rho=0.3),
    "davda54": lambda params, base, **options: davda54.SAM(params, base, rho=0.3, **options),
}
BASES = {
    "momentum_buffer": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "exp_avg": (torch.optim.AdamW, {"lr": 0.01}),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("key", BASES)
def test_state_of_the_base_optimizer_is_in_the_state_dict_and_training_goes_on_as_if_never_stopped(
    wrapper, key
):
    """davda54 (its issues 34, 73: the loss jumps on resume), composer, SSAM, mlcommons: momentum is lost."""
    base, options = BASES[key]
    whole, first, second = mlp(), mlp(), mlp(1)
    of_whole, of_first, of_second = (
        WRAPPERS[wrapper](m.parameters(), base, **options) for m in (whole, first, second)
    )
    for _ in range(6):
        of_whole.step(closure_of(of_whole, loss_of(whole)))
    for _ in range(3):
        of_first.step(closure_of(of_first, loss_of(first)))
    state = saved(of_first.state_dict())
    assert [key in s for s in state["state"].values()] == [True] * 4
    second.load_state_dict(first.state_dict())
    of_second.load_state_dict(state)
    for _ in range(3):
        of_second.step(closure_of(of_second, loss_of(second)))
    assert weights(second) == weights(whole)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_state_of_a_plain_optimizer_can_be_continued_with_sam(wrapper):
    """The remedy for a checkpoint that one of the above has written: it is the base optimizer's own."""
    module = mlp()
    base = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    loss_of(module)().backward()
    base.step()
    optimizer = WRAPPERS[wrapper](module.parameters(), torch.optim.SGD, lr=1.0, momentum=0.0)
    optimizer.load_state_dict(saved(base.state_dict()))
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert len(optimizer.state) == 4


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_parameter_groups_are_the_base_optimizers_also_after_loading(wrapper):
    """GSAM of pytorch_optimizer 3.9.0 (schedulers ignored), composer under FSDP (PR 3259: lr stuck at 0)."""
    optimizer = WRAPPERS[wrapper](mlp().parameters(), torch.optim.SGD, lr=0.1)
    assert optimizer.param_groups is optimizer.base_optimizer.param_groups
    optimizer.load_state_dict(saved(optimizer.state_dict()))
    assert optimizer.param_groups is optimizer.base_optimizer.param_groups
    assert optimizer.state is optimizer.base_optimizer.state
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.2})
    assert [group["lr"] for group in optimizer.base_optimizer.param_groups] == [0.1, 0.2]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_scheduler_of_the_wrapper_schedules_the_steps(wrapper):
    """The consequence of the fault above: the step that is made has the scheduled learning rate."""
    module = mlp()
    optimizer = WRAPPERS[wrapper](module.parameters(), torch.optim.SGD, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    optimizer.step(closure_of(optimizer, loss_of(module)))
    schedule.step()
    before = identity(module)
    optimizer.step(closure_of(optimizer, loss_of(module)))
    assert identity(module) == before, "the learning rate is 0 now"


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_scheduler_beside_two_steps_gives_no_warning(wrapper):
    """davda54 issue 28: torch warns that the scheduler stepped before the optimizer."""
    module = mlp()
    optimizer = WRAPPERS[wrapper](module.parameters(), torch.optim.SGD, lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    loss_of(module)().backward()
    optimizer.first_step(zero_grad=True)
    loss_of(module)().backward()
    optimizer.second_step()
    schedule.step()  # warnings are errors here
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("again", [copy.deepcopy, lambda sam: pickle.loads(pickle.dumps(sam))])
def test_copy_of_sam_keeps_m(again):
    """tf-keras: get_config drops num_batch_splits, so that a reloaded model trains by another algorithm."""
    sam = SAM(mlp(), rho=0.3, m=2, steps=3, l2=0.1)
    twin = again(sam)
    assert (twin.m, twin.steps, twin.l2, twin.rho) == (2, 3, 0.1, 0.3)
    assert twin.params[0] is not sam.params[0]


STATEFUL = ["bsam", "friendly_sam", "gsam", "look_sam", "max_sum", "momentum_sam", "n_sam", "wsam_decoupled"]


def trained(module, base, sam, steps):
    for _ in range(steps):
        base.zero_grad()
        sam.backward(lambda x, y: squared(module, x, y), *BATCH)
        base.step()


def test_schedule_of_rho_goes_on_where_it_stopped():
    """unifiedsam: the counter of its schedule is not saved and starts again."""
    sams = [SAM(mlp(), rho=Cosine(0.4, 0.0, 8), diagnostics=True) for _ in range(2)]
    trained(sams[0].module, sgd(sams[0].module), sams[0], 5)
    sams[1].load_state_dict(saved(sams[0].state_dict()))
    for sam in sams:
        trained(sam.module, sgd(sam.module), sam, 1)
    norms = [sam.last_diagnostics.perturbation_norm.item() for sam in sams]
    assert norms == pytest.approx([Cosine(0.4, 0.0, 8)(5)] * 2)


def test_schedule_of_rho_in_the_optimizer_goes_on_where_it_stopped():
    """The same in SAMOptimizer."""
    module, asked = mlp(), []

    def rho(step):
        asked.append(step)
        return 0.1

    one, two = (SAMOptimizer(sgd(module), rho=rho) for _ in range(2))
    for _ in range(3):
        one.step(closure_of(one, loss_of(module)))
    two.load_state_dict(saved(one.state_dict()))
    two.step(closure_of(two, loss_of(module)))
    assert asked == [0, 1, 2, 3]


def test_schedule_of_lambda_by_the_counter_of_sam_goes_on_where_it_stopped():
    """unifiedsam: lambda = 1 - 1/t of Unified SAM, whose t begins again."""
    modules = [mlp(), mlp()]
    sams = [SAM(m, rho=0.3, ascent=Unified(0.0)) for m in modules]

    def train(sam, steps):
        for _ in range(steps):
            sam.ascent.lam = 1.0 - 1.0 / (sam.steps_done + 1)
            trained(sam.module, sgd(sam.module, lr=0.05), sam, 1)

    train(sams[0], 3)
    modules[1].load_state_dict(modules[0].state_dict())
    sams[1].load_state_dict(saved(sams[0].state_dict()))
    for sam in sams:
        train(sam, 2)
    assert sams[1].ascent.lam == 1.0 - 1.0 / 5
    assert weights(modules[1]) == weights(modules[0])


def test_rho_of_gsam_follows_the_learning_rate_of_a_resumed_optimizer():
    """juntang's GSAM drops rho_t; big_vision's PR 8 left the learning rate out of it."""
    bases = [sgd(mlp(), lr=0.1) for _ in range(2)]
    schedules = [torch.optim.lr_scheduler.LinearLR(base, 1.0, 0.0, 4) for base in bases]
    rhos = [ProportionalToLR(base, max_rho=0.4, max_lr=0.1) for base in bases]
    for _ in range(3):
        bases[0].step()
        schedules[0].step()
    bases[1].load_state_dict(saved(bases[0].state_dict()))
    schedules[1].load_state_dict(saved(schedules[0].state_dict()))
    assert [rho(0) for rho in rhos] == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("name", STATEFUL)
def test_every_variant_with_a_state_goes_on_as_if_never_stopped(name):
    """All the wrappers above lose some part of it: momentum, averages, kept directions, counters."""
    modules = [mlp(), mlp()]
    bases = [optimizer_of(name, m, lr=0.05) for m in modules]
    sams = [preset_of(name, m, base) for m, base in zip(modules, bases, strict=True)]
    trained(modules[0], bases[0], sams[0], 2)
    modules[1].load_state_dict(modules[0].state_dict())
    bases[1].load_state_dict(saved(bases[0].state_dict()))
    sams[1].load_state_dict(saved(sams[0].state_dict()))
    draws = torch.get_rng_state()
    for module, base, sam in zip(modules, bases, sams, strict=True):
        torch.set_rng_state(draws)
        trained(module, base, sam, 2)
    assert weights(modules[1]) == weights(modules[0])
