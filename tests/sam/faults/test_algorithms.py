"""Variants that did not do what their papers say."""

import math

import pytest
import torch
from torch import nn

from lowland import SAM, SAMOptimizer, presets
from lowland.sam import BSAM, Look, Random, Weighted

from ..halves import fitting_loss
from ..naive import (
    added,
    bits,
    mlp,
    naive_sam,
    norm,
    regression,
    relative_error,
    seeded,
    squared,
    tensors,
    value_and_gradient,
)
from .ways import WAYS, Pair, closure_of, optimizer_of, preset_of, sgd

BATCH = regression()
NAMES = sorted(presets.PRESETS)


def normed_mlp():
    """With a layer for SAM-ON to perturb."""
    return nn.Sequential(mlp(), seeded(nn.LayerNorm(3)))


def loss_of(module):
    return lambda x, y: squared(module, x, y)


def run(module, base, sam, steps, batch=BATCH, loss=None):
    for _ in range(steps):
        base.zero_grad()
        sam.backward(fitting_loss(sam, loss or loss_of(module)), *batch)
        base.step()


def gradient_of(module, at):
    return value_and_gradient(module, squared, BATCH, at)[1]


def copies(module):
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_perturbation_of_no_variant_stays_behind(name):
    """BSAM of pytorch_optimizer 3.9.0 and 4.1.0: drift 1.20 in ten steps of next to no learning rate."""
    module = normed_mlp()
    before, base = copies(module), optimizer_of(name, module)
    run(module, base, preset_of(name, module, base), 5)
    drift = norm(added(copies(module), before, -1.0))
    assert drift < 1e-9 if name == "bsam" else drift == 0.0, "its learning rate must be positive"


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_learns_without_weight_decay(name):
    """The same BSAM: its momentum takes grad * weight_decay, so that without decay it moves 2e-8."""
    module = normed_mlp()
    base = optimizer_of(name, module, lr=0.05)
    first = squared(module, *BATCH).item()
    run(module, base, preset_of(name, module, base), 10)
    assert squared(module, *BATCH).item() < 0.8 * first


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_perturbs(name):
    """BayesianSAM of johnjaejunlee95: no weight ever moves."""
    module, distances = normed_mlp(), []
    base = optimizer_of(name, module, lr=0.05)
    start = copies(module)

    def loss(x, y):
        distances.append(norm(added(copies(module), start, -1.0)))
        return squared(module, x, y)

    base.zero_grad()
    sam = preset_of(name, module, base)
    sam.backward(fitting_loss(sam, loss), *BATCH)
    base.step()
    start = copies(module)
    sam.combine = None if name == "look_sam" else sam.combine
    distances.clear()
    sam.backward(fitting_loss(sam, loss), *BATCH)
    assert max(distances) > 0.01


def of_first_pass(module, sam):
    """What the first pass adds to the weights, as one long vector."""
    start, seen = copies(module), []

    def loss(x):
        seen.append(torch.cat([t.flatten() for t in added(copies(module), start, -1.0)]))
        return module(x).square().mean()

    torch.manual_seed(0)
    sam.backward(loss, torch.ones(2, 100))
    return seen[0]


@pytest.mark.parametrize("s", [1.0, 4.0])
def test_noise_of_bayesian_sam_has_the_deviation_of_its_posterior(s):
    """The same BSAM: its noise has the standard deviation 1/(N s) where that is the variance."""
    module = seeded(nn.Sequential(nn.Linear(100, 60), nn.Linear(60, 50)), 0, torch.float32)
    base = BSAM(module.parameters(), lr=0.1, num_examples=400, initial_scale=s)
    noise = of_first_pass(module, presets.bsam(module, optimizer=base))
    assert noise.std().item() == pytest.approx(1 / math.sqrt(400 * s), rel=5 / math.sqrt(2 * len(noise)))
    assert abs(noise.mean().item()) < 5 * noise.std().item() / math.sqrt(len(noise))


@pytest.mark.parametrize("rho", [0.2, 0.4])
def test_random_perturbation_has_the_deviation_that_its_formula_says(rho):
    """The same in the other variant of ours that draws noise."""
    module = seeded(nn.Sequential(nn.Linear(100, 60), nn.Linear(60, 50)), 0, torch.float32)
    noise = of_first_pass(module, SAM(module, rho=rho, ascent=Random()))
    expected = rho / math.sqrt(len(noise))
    assert noise.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * len(noise)))


def test_scale_of_bayesian_sam_is_the_recursion_of_its_algorithm():
    """The same BSAM, two faults: the variance squared, and both passes' gradients in one, uncleared.

    The gradient is the same everywhere, so the recursion is known by hand.
    """
    module, (first, second), decay, damping = Pair(), (0.8, 0.9), 0.02, 0.1
    c, d = tensors(12, (3, 2), (3,))
    base = BSAM(
        module.parameters(),
        lr=0.3,
        num_examples=50,
        betas=(first, second),
        weight_decay=decay,
        damping=damping,
    )
    sam = presets.bsam(module, optimizer=base)
    g, w = torch.cat([c.flatten(), d]), module.flat()
    s, v = torch.ones_like(w), torch.zeros_like(w)
    for _ in range(3):
        base.zero_grad()
        sam.backward(lambda _: module.along(c, d), torch.zeros(1))
        base.step()
        v = first * v + (1 - first) * (g + decay * w)
        s = second * s + (1 - second) * (s.sqrt() * g.abs() + decay + damping)
        w = w - 0.3 * v / s
        assert torch.allclose(module.flat(), w, rtol=1e-12)


def test_gradient_of_the_first_pass_is_not_left_in_that_of_the_second():
    """The same BSAM clears nothing between its passes; here a closure of the user does not either."""
    modules = [mlp(), mlp()]
    expected = naive_sam(mlp(), squared, BATCH, rho=0.4).gradients
    optimizer = SAMOptimizer(sgd(modules[0]), rho=0.4)

    def closure():
        value = squared(modules[0], *BATCH)
        value.backward()
        return value

    optimizer.step(closure)
    run(modules[1], sgd(modules[1]), SAM(modules[1], rho=0.4), 1)
    for module in modules:
        assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12


def test_average_of_friendly_sam_is_of_the_raw_gradients():
    """FriendlySAM of pytorch_optimizer up to 3.9.0: fed the gradient with the average already taken off."""
    module, sigma, lam, seen = Pair(), 0.7, 0.6, []
    directions = [tensors(20 + t, (3, 2), (3,)) for t in range(4)]
    sam = presets.friendly_sam(module, rho=0.3, sigma=sigma, lam=lam)
    start, average = module.flat(), None
    for c, d in directions:

        def loss(_, c=c, d=d):
            seen.append(module.flat() - start)
            return module.along(c, d)

        module.zero_grad()
        sam.backward(loss, torch.zeros(1))
        g = torch.cat([c.flatten(), d])
        climbed = g if average is None else g - sigma * average
        assert torch.allclose(seen[-1], 0.3 * climbed / climbed.norm(), rtol=1e-10, atol=1e-14)
        average = g if average is None else lam * average + (1 - lam) * g


@pytest.mark.parametrize("way", [way for way in WAYS if way != "two steps"])
def test_look_sam_climbs_in_some_steps_only(way):
    """LookSAM of pytorch_optimizer, both versions: 12 passes in 6 steps at k=3, so nothing is saved."""
    module, passes = mlp(), []
    step = WAYS[way](module, sgd(module, lr=0.01), rho=0.4, combine=Look(k=3))

    def loss():
        passes.append(None)
        return squared(module, *BATCH)

    for _ in range(6):
        step(loss)
    assert len(passes) == 2 + 1 + 1 + 2 + 1 + 1


@pytest.mark.parametrize("way", [way for way in WAYS if way != "two steps"])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam])
def test_look_sam_reuses_its_direction_beside_a_gradient_that_counts_once(way, base):
    """The same up to 3.9.0: doubled gradients between climbs, and KeyError: 'step' over torch.optim.SGD.

    Also with several groups of parameters (its issue 442) and a direction that is there (THUDM/INFTY 18).
    """
    module, alpha = mlp(), 0.7
    w = copies(module)
    g = gradient_of(module, w)
    g_s = naive_sam(module, squared, BATCH, rho=0.4).gradients
    along = sum((a * b).sum() for a, b in zip(g_s, g, strict=True)) / norm(g) ** 2
    g_v = added(g_s, g, -along.item())
    expected = added(g, g_v, alpha * norm(g) / norm(g_v))
    optimizer = base([{"params": module[0].parameters()}, {"params": module[2].parameters()}], lr=0.0)
    step = WAYS[way](module, optimizer, rho=0.4, combine=Look(2, alpha))
    for wanted in (g_s, expected):
        step(lambda: squared(module, *BATCH))
        assert relative_error([p.grad for p in module.parameters()], wanted) < 1e-12


def test_docstring_of_every_variant_is_its_own():
    """LookSAM of pytorch_optimizer is documented as An Expeditiously Adaptive Parameter-Free Learner."""
    known = {name: presets.PRESETS[name].__doc__ for name in NAMES}
    assert len(set(known.values())) == len(NAMES)
    said = {"friendly_sam": "Friendly SAM", "esam": "ESAM", "look_sam": "LookSAM", "random": "random"}
    said |= {"gsam": "GSAM", "asam": "ASAM", "momentum_sam": "MSAM", "unified_sam": "Unified SAM"}
    for name, word in said.items():
        assert word.lower() in known[name].lower()


def test_clipping_acts_on_the_gradient_of_decoupled_wsam_and_not_on_its_sharpness():
    """WSAM of pytorch_optimizer, both versions: max_norm does nothing in decoupled mode."""
    module, gamma, limit = mlp(), 0.8, 0.01
    w = copies(module)
    g, g_s = gradient_of(module, w), naive_sam(module, squared, BATCH, rho=0.4).gradients
    base = sgd(module, lr=0.5)
    sam = presets.wsam_decoupled(module, optimizer=base, rho=0.4, gamma=gamma)
    sam.backward(loss_of(module), *BATCH)
    nn.utils.clip_grad_norm_(module.parameters(), limit)
    clipped = [p.grad.clone() for p in module.parameters()]
    base.step()
    assert relative_error(clipped, [limit / norm(g) * t for t in g]) < 1e-3
    expected = added(clipped, added(g_s, g, -1.0), gamma / (1 - gamma))
    assert relative_error([a / -0.5 for a in added(copies(module), w, -1.0)], expected) < 1e-10


def test_gradient_of_coupled_wsam_counts_once():
    """atorch WSAM: the example of its documentation doubles the gradient."""
    gamma = 0.8
    for way in WAYS.values():
        module = mlp()
        g, g_s = gradient_of(module, copies(module)), naive_sam(module, squared, BATCH, rho=0.4).gradients
        way(module, sgd(module), rho=0.4, combine=Weighted(gamma))(lambda m=module: squared(m, *BATCH))
        expected = added(g, added(g_s, g, -1.0), gamma / (1 - gamma))
        assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12


@pytest.mark.parametrize("copies_of_it", [2, 3, 5])
def test_groups_are_averaged_and_not_summed(copies_of_it):
    """tf-keras: the gradient is the sum over its splits. Groups of the same data are SAM of one."""
    modules = [mlp(), mlp()]
    repeated = tuple(torch.cat([t] * copies_of_it) for t in BATCH)
    SAM(modules[0], rho=0.4).backward(loss_of(modules[0]), *BATCH)
    SAM(modules[1], rho=0.4, m=len(BATCH[0])).backward(loss_of(modules[1]), *repeated)
    one, many = ([p.grad for p in module.parameters()] for module in modules)
    assert relative_error(many, one) < 1e-14


def test_climb_is_that_of_the_training_mode():
    """tf-keras: pass 1 is in inference mode. With dropout that is the gradient of another function."""
    module, masks = nn.Sequential(mlp(), nn.Dropout(0.5)), []
    module[1].register_forward_hook(lambda _, inputs, output: masks.append((output / inputs[0]).detach()))
    SAM(module, rho=0.4).backward(loss_of(module), *BATCH)
    assert len(masks) == 2
    assert 0.0 < (masks[0] == 0).double().mean() < 1.0
    assert torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("way", WAYS)
def test_regularization_in_the_loss_is_climbed_and_trained(way):
    """tf-keras: regularization losses are dropped."""

    def regularized(module, x, y):
        return squared(module, x, y) + 0.3 * sum(p.abs().sum() for p in module.parameters())

    module = mlp()
    expected = naive_sam(module, regularized, BATCH, rho=0.4).gradients
    WAYS[way](module, sgd(module), rho=0.4)(lambda: regularized(module, *BATCH))
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12


def test_l2_of_sam_is_climbed_and_trained():
    """The same for the weight decay that is an option of ours."""
    module = mlp()
    expected = naive_sam(module, squared, BATCH, rho=0.4, m=3, l2=0.3).gradients
    SAM(module, rho=0.4, m=3, l2=0.3).backward(loss_of(module), *BATCH)
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12


def test_esam_as_its_preset_gives_it_is_switched_on():
    """ESAM: the command in its README disables the method."""
    module = seeded(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20)))
    torch.manual_seed(0)
    sam = presets.esam(module, diagnostics=True)
    sam.backward(lambda x: module(x).square().mean(), *tensors(11, (5, 40)))
    assert sam.last_diagnostics.moved.item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_stay_frozen(name):
    """ESAM: switches requires_grad on for all."""
    module = normed_mlp()
    frozen = module[0][2].weight.requires_grad_(False)
    before, base = bits(frozen), optimizer_of(name, module, lr=0.05)
    run(module, base, preset_of(name, module, base), 3)
    assert not frozen.requires_grad
    assert frozen.grad is None
    assert bits(frozen) == before


@pytest.mark.parametrize("name", NAMES)
def test_no_variant_keeps_something_for_every_example(name):
    """SAF: a store of logits per process, as large as the data. The last batch is the most we keep."""
    module = normed_mlp()
    base, sizes = optimizer_of(name, module, lr=0.01), []
    sam = preset_of(name, module, base)
    for step in range(3):
        run(module, base, sam, 1, regression(30 + step))
        sizes.append(sum(t.numel() for t in found_tensors(sam.state_dict())))
    assert sizes[1:] == sizes[:1] * 2


def found_tensors(state):
    if isinstance(state, torch.Tensor):
        return [state]
    children = (
        state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    )
    return [t for child in children for t in found_tensors(child)]


@pytest.mark.parametrize("way", WAYS)
def test_adaptive_is_the_official_asam(way):
    """davda54's adaptive=True (its issue 37): no eta, and biases are scaled, so rho means another thing."""
    module, rho, eta = mlp(), 0.4, 0.01
    names = [name for name, _ in module.named_parameters()]
    w = copies(module)
    g = gradient_of(module, w)
    scale = [t.abs() + eta if "weight" in n else torch.ones_like(t) for n, t in zip(names, w, strict=True)]
    length = norm([t * b for t, b in zip(scale, g, strict=True)])
    e = [rho * t**2 * b / length for t, b in zip(scale, g, strict=True)]
    expected = gradient_of(module, added(w, e))
    ascent = presets.asam(module).ascent
    WAYS[way](module, sgd(module), rho=rho, ascent=ascent)(lambda: squared(module, *BATCH))
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-12
    assert ascent.eta == eta


def test_loss_that_is_returned_is_one_clean_loss():
    """composer's PR 1518: it logged the loss twice over; here neither doubled, nor perturbed, nor scaled."""
    module = mlp()
    clean = squared(module, *BATCH).item()
    sam = SAM(module, rho=0.4, m=3)
    assert sam.backward(loss_of(module), *BATCH, scale=64.0).item() == pytest.approx(clean, rel=1e-13)
    optimizer = SAMOptimizer(sgd(module), rho=0.4)
    assert optimizer.step(closure_of(optimizer, lambda: squared(module, *BATCH))).item() == clean
