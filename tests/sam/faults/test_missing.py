"""What no other software was found to have, each in its shortest test; most have longer ones elsewhere."""

import itertools

import pytest
import torch
from torch import nn

from lowland import SAM, MicroBatches, SAMOptimizer, sam_gradient

from ..naive import (
    bits,
    bn_conv,
    buffers_of,
    identity,
    mlp,
    naive_sam,
    norm,
    regression,
    relative_error,
    rows,
    seeded,
    squared,
    tensors,
)
from .ways import WAYS, closure_of, sgd

BATCH = regression(examples=8)
TOL = 1e-12


def grads(module):
    return [p.grad for p in module.parameters()]


def loss_of(module):
    return lambda x, y: squared(module, x, y)


@pytest.mark.parametrize("m", [1, 2, 3, 5, None])
@pytest.mark.parametrize("cuts", [(0, 8), (0, 4, 8), (0, 1, 6, 8), (0, 3, 6, 8)])
def test_m_is_independent_of_micro_batches(m, cuts):
    """1: m that spans several micro-batches, or several groups in one."""
    module = mlp()
    parts = [rows(BATCH, a, b) for a, b in itertools.pairwise(cuts)]
    value = SAM(module, rho=0.4, m=m).backward(loss_of(module), MicroBatches(parts))
    expected = naive_sam(mlp(), squared, BATCH, rho=0.4, m=m)
    assert relative_error(grads(module), expected.gradients) < TOL
    assert value.item() == pytest.approx(expected.loss, rel=TOL)


@pytest.mark.parametrize("m", [8, 100])
def test_m_of_more_than_the_examples_there_are_is_all_of_them(m):
    """2: groups larger than a device's share need its other processes, see test_distributed.py."""
    module = mlp()
    SAM(module, rho=0.4, m=m).backward(loss_of(module), *BATCH)
    assert relative_error(grads(module), naive_sam(mlp(), squared, BATCH, rho=0.4).gradients) < TOL


def test_unequal_groups_are_weighted_by_their_examples():
    """3: a correct average over unequal sub-batches; init2winit and tf-keras weight them alike."""
    module = mlp()
    SAM(module, rho=0.4, m=3).backward(loss_of(module), *BATCH)
    groups = [rows(BATCH, a, b) for a, b in ((0, 3), (3, 6), (6, 8))]
    each = [naive_sam(mlp(), squared, group, rho=0.4).gradients for group in groups]
    expected = [(3 * a + 3 * b + 2 * c) / 8 for a, b, c in zip(*each, strict=True)]
    assert relative_error(grads(module), expected) < TOL


def test_groups_of_tokens_are_weighted_by_their_tokens():
    """3: token-weighted losses, where examples have different lengths."""
    module, (x, y) = mlp(), BATCH
    counts = torch.tensor([1.0, 4.0, 2.0, 0.0, 3.0, 3.0, 5.0, 1.0], dtype=torch.float64)

    def token_mean(module, x, y, n):
        return ((module(x) - y).square().mean(1) * n).sum() / n.sum()

    sam = SAM(module, rho=0.4, m=4, weight=lambda *group: group[2].sum())
    value = sam.backward(lambda *b: token_mean(module, *b), x, y, counts)
    assert value.item() == pytest.approx(token_mean(module, x, y, counts).item(), rel=TOL)
    halves = [rows((x, y, counts), a, a + 4) for a in (0, 4)]
    each = [naive_sam(mlp(), token_mean, half, rho=0.4).gradients for half in halves]
    expected = [(7 * a + 12 * b) / 19 for a, b in zip(*each, strict=True)]
    assert relative_error(grads(module), expected) < TOL


def test_every_group_tells_what_its_climb_did():
    """4: realised length, share of weights moved, sharpness, cosine, number of groups that did not climb."""
    module, (x, y) = mlp(), BATCH
    y = torch.cat([module(x[:2]).detach(), y[2:]])  # the first group has a zero gradient
    sam = SAM(module, rho=0.4, m=2, diagnostics=True)
    sam.backward(loss_of(module), x, y)
    found, expected = sam.last_diagnostics, naive_sam(mlp(), squared, (x[2:], y[2:]), rho=0.4, m=2)
    assert found.skipped == 1
    assert found.climbed.tolist() == [False, True, True, True]
    assert found.realised_norm.tolist() == pytest.approx([0.0, 0.4, 0.4, 0.4])
    assert found.moved.tolist() == pytest.approx([0.0, 1.0, 1.0, 1.0], abs=0.1)
    rises = [b - a for a, b in zip(expected.losses, expected.perturbed_losses, strict=True)]
    assert (found.perturbed_loss - found.loss)[1:].tolist() == pytest.approx(rises)
    assert found.cosine[0].isnan()
    assert (found.cosine[1:] > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_perturbation_below_the_spacing_of_half_precision_is_right_on_average(dtype):
    """5: an eighth of the distance between neighbours; rounded to the nearest it would be none at all."""
    module = nn.ParameterList([nn.Parameter(torch.ones(n, dtype=dtype)) for n in (6000, 4000)])
    each = torch.finfo(dtype).eps / 8
    before, passes = identity(module), []

    def loss(x):
        passes.append(torch.cat([p.detach().double() for p in module]))
        return sum(p.sum(dtype=torch.float32) for p in module) * x.mean()

    torch.manual_seed(0)
    SAM(module, rho=each * 100).backward(loss, torch.ones(2))
    e = passes[1] - 1.0
    assert e.mean().item() == pytest.approx(each, rel=0.15)
    assert 0.1 < (e != 0).double().mean() < 0.15
    assert identity(module) == before


def test_gradient_that_is_not_finite_is_seen_before_the_climb_and_before_the_step():
    """5: in float32 or bfloat16, where there is no GradScaler to look at it."""
    module, calls = mlp(), []

    def loss(x, y):
        calls.append(None)
        return squared(module, x, y)

    sam = SAM(module, rho=0.4, m=4, diagnostics=True)
    sam.backward(loss, BATCH[0], BATCH[1] * torch.tensor([[1.0]] * 7 + [[float("inf")]]))
    assert len(calls) == 3, "two passes of the first group, one of the second"
    assert sam.last_diagnostics.climbed.tolist() == [True, False]
    with pytest.raises(RuntimeError, match="non-finite"):
        nn.utils.clip_grad_norm_(module.parameters(), 1.0, error_if_nonfinite=True)


@pytest.mark.parametrize("api", ["backward", "objective", "two steps"])
def test_gradscaler_and_clipping_are_unscaled_once(api):
    """6: GradScaler outside composer; davda54 issue 97: with clipping "you can't unscale twice"."""
    module, limit = mlp(), 0.01
    w = [p.detach().clone() for p in module.parameters()]
    g = naive_sam(module, squared, BATCH, rho=0.4).gradients
    scaler, base = torch.amp.GradScaler("cpu", init_scale=2.0**10), sgd(module, lr=1.0)
    if api == "two steps":
        optimizer = SAMOptimizer(base, rho=0.4)
        scaler.scale(squared(module, *BATCH)).backward()
        optimizer.first_step(zero_grad=True, scale=scaler)
        scaler.scale(squared(module, *BATCH)).backward()
        optimizer.restore()
    elif api == "backward":
        SAM(module, rho=0.4).backward(loss_of(module), *BATCH, scale=scaler)
    else:
        scaler.scale(SAM(module, rho=0.4).objective(loss_of(module), *BATCH, scale=scaler)).backward()
    scaler.unscale_(base)
    nn.utils.clip_grad_norm_(module.parameters(), limit)
    scaler.step(base)
    scaler.update()
    moves = [a - p.detach() for a, p in zip(w, module.parameters(), strict=True)]
    assert relative_error(moves, [limit / norm(g) * t for t in g]) < 1e-3


def test_closure_and_two_steps_of_one_class_do_the_same_and_return_the_clean_loss():
    """6: both on one class; the closure as torch.optim asks for it."""
    one, two = mlp(), mlp()
    clean = squared(one, *BATCH).item()
    optimizer = SAMOptimizer(sgd(one, lr=0.1, momentum=0.9), rho=0.4)
    assert optimizer.step(closure_of(optimizer, lambda: squared(one, *BATCH))).item() == clean
    assert (
        WAYS["two steps"](two, sgd(two, lr=0.1, momentum=0.9), rho=0.4)(lambda: squared(two, *BATCH)) == clean
    )
    assert [bits(p) for p in one.parameters()] == [bits(p) for p in two.parameters()]


@pytest.mark.parametrize("climb", ["of each micro-batch", "of the accumulated gradient"])
def test_gradients_accumulate_with_a_climb_of_each_part_or_of_all(climb):
    """7: both, outside a trainer."""
    module, halves = mlp(), [rows(BATCH, 0, 4), rows(BATCH, 4, 8)]
    sam = SAM(module, rho=0.4)
    if climb == "of each micro-batch":
        for half in halves:
            sam.backward(loss_of(module), *half, scale=0.5)
    else:
        sam.backward(loss_of(module), MicroBatches(halves))
    m = 4 if climb == "of each micro-batch" else None
    assert relative_error(grads(module), naive_sam(mlp(), squared, BATCH, rho=0.4, m=m).gradients) < TOL
    assert sam.steps_done == 1


@pytest.mark.parametrize("way", WAYS)
def test_second_pass_sees_the_dropout_of_the_first_and_another_step_sees_another(way):
    """9: in JAX trainers by key, in PyTorch nowhere. In two steps the passes are the user's."""
    module, masks = nn.Sequential(mlp(), nn.Dropout(0.5)), []
    module[1].register_forward_hook(lambda *call: masks.append(call[2].detach() == 0))
    step = WAYS[way](module, sgd(module), rho=0.4)
    for _ in range(2):
        step(lambda: squared(module, *BATCH))
    assert torch.equal(masks[0], masks[1]) is (way != "two steps")
    assert not torch.equal(masks[0], masks[2])


def test_groups_see_masks_of_their_own():
    """9: one mask for all groups would make them less independent than examples are."""
    module, masks = nn.Sequential(mlp(), nn.Dropout(0.5)), []
    module[1].register_forward_hook(lambda *call: masks.append(call[2].detach() == 0))
    SAM(module, rho=0.4, m=4).backward(loss_of(module), *BATCH)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_failing_second_pass_leaves_weights_statistics_gradients_and_generator_as_they_were():
    """10: exception safety of everything that a step touches."""
    module, calls = nn.Sequential(bn_conv(), nn.Dropout(0.5)), []
    batch = tuple(tensors(2, (8, 2, 5, 5), (8, 2, 2, 2)))

    def loss(x, y):
        calls.append(None)
        value = squared(module, x, y)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("stop")
        return value

    before = identity(module), buffers_of(module), torch.get_rng_state().tolist()
    with pytest.raises(torch.OutOfMemoryError):
        SAM(module, rho=0.4, m=4).backward(loss, *batch)
    assert (identity(module), buffers_of(module), torch.get_rng_state().tolist()) == before
    assert grads(module) == [None] * len(grads(module))


def lora():
    """A linear layer, and a low-rank one beside it."""
    module = nn.ModuleDict({"base": nn.Linear(4, 3), "lora_a": nn.Linear(4, 2), "lora_b": nn.Linear(2, 3)})
    return seeded(module)


def lora_loss(module, x, y):
    return (module["base"](x) + module["lora_b"](module["lora_a"](x)) - y).square().mean()


CHOICES = {
    "names": lambda module: SAM(module, rho=0.4, perturb="lora_*", diagnostics=True),
    "groups": lambda module: SAM(
        [
            {"params": module["base"].parameters(), "rho": 0.0},
            {"params": [*module["lora_a"].parameters(), *module["lora_b"].parameters()]},
        ],
        rho=0.4,
        diagnostics=True,
    ),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_only_chosen_parameters_are_perturbed_by_a_norm_of_their_own_and_all_are_trained(choice):
    """11: norm layers, low-rank adapters or groups with rho=0, and the norm over what is left."""
    module, seen = lora(), []
    start = {name: p.detach().clone() for name, p in module.named_parameters()}

    def loss(x, y):
        seen.append({n: (p.detach() - start[n]).norm().item() for n, p in module.named_parameters()})
        return lora_loss(module, x, y)

    CHOICES[choice](module).backward(loss, *BATCH)
    moved = seen[1]
    assert moved["base.weight"] == moved["base.bias"] == 0.0
    assert sum(d**2 for d in moved.values()) ** 0.5 == pytest.approx(0.4)
    assert all(p.grad is not None for p in module.parameters())


def test_gradient_on_a_quadratic_is_the_closed_form():
    """12: optax's test only looks for convergence, which rho=0 passes as well."""
    matrix = torch.diag(torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64))
    a, b = (nn.Parameter(t) for t in tensors(0, (2,), (1,)))
    w = torch.cat([a, b]).detach()

    def loss(x):
        joined = torch.cat([a, b])
        return 0.5 * joined @ matrix @ joined * x.mean()

    found = torch.cat(sam_gradient(loss, [a, b], (torch.ones(4),), rho=0.3).gradients)
    g = matrix @ w
    assert torch.allclose(found, matrix @ (w + 0.3 * g / g.norm()), rtol=1e-14)


def test_gradient_of_one_example_groups_is_the_brute_force_loop():
    """12: m=1 against a loop over examples that shares no code with ours."""
    module = mlp()
    SAM(module, rho=0.4, m=1).backward(loss_of(module), *BATCH)
    assert relative_error(grads(module), naive_sam(mlp(), squared, BATCH, rho=0.4, m=1).gradients) < TOL
