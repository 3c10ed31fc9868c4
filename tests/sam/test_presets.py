"""Every published variant by its name: at radius zero, in its formula, resumed, and put back."""

import functools
import inspect
import io
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lowland import SAM
from lowland.presets import PRESETS
from lowland.sam import BSAM

from .halves import fitting_loss
from .naive import (
    added,
    identity,
    norm,
    regression,
    relative_error,
    rows,
    seeded,
    squared,
    value_and_gradient,
)

STEPS = 20
OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": functools.partial(torch.optim.AdamW, lr=0.01),
}
CASES = [(name, optimizer) for name in PRESETS for optimizer in OPTIMIZERS if name != "bsam"]
CASES.remove(("preconditioned_sam", "sgd"))  # it wants a second moment
CASES.append(("bsam", "bsam"))  # it needs its own optimizer
LOADER = DataLoader(TensorDataset(*regression(50, examples=12)), batch_size=3)


def network(seed=0):
    """Dropout to be replayed, a normalization layer for SAM-ON, and six parameter tensors."""
    layers = [nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3)]
    return seeded(nn.Sequential(*layers), seed)


def optimizer_of(kind, module):
    if kind == "bsam":
        return BSAM(module.parameters(), lr=0.05, num_examples=50)
    return OPTIMIZERS[kind](module.parameters())


def fitting(name):
    """The kind of optimizer for tests in which any would do."""
    return {"bsam": "bsam", "preconditioned_sam": "adamw"}.get(name, "sgd")


def made(name, module, base, rho):
    """The variant, told what it needs to know beside the model."""
    options = {"rho": rho}
    if name == "gsam":
        lr = base.param_groups[0]["lr"]
        options = {"max_rho": rho, "min_rho": 0.5 * rho, "max_lr": lr, "min_lr": 0.1 * lr}
    if name in ("gsam", "wsam_decoupled", "momentum_sam", "preconditioned_sam", "bsam"):
        options["optimizer"] = base
    if name == "n_sam":
        options |= {"loader": LOADER, "num_batches": 2}
    if name == "m_sam":
        options["m"] = 3
    if name == "multi_step":
        options["steps"] = 3
    return PRESETS[name](module, **options)


def train(module, sam, base, steps):
    for step in steps:
        base.zero_grad()
        sam.backward(fitting_loss(sam, functools.partial(squared, module)), *regression(step))
        base.step()
        base.param_groups[0]["lr"] *= 0.9


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_presets_are_all_the_public_functions_of_their_module():
    source = inspect.getmodule(PRESETS["sam"])
    public = [
        name
        for name, value in vars(source).items()
        if inspect.isfunction(inspect.unwrap(value))
        and value.__module__ == source.__name__
        and not name.startswith("_")
    ]
    assert sorted(PRESETS) == sorted(public)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_its_paper_and_year(name):
    doc = inspect.getdoc(PRESETS[name])
    assert doc.splitlines()[0].endswith(".")
    if name == "step_size_only":  # an option of the original's code that no paper reports
        assert "original's code" in doc
    else:
        assert re.search(r"\([A-ZÀ-Þ][^()]*, 20\d\d[^()]*\)", doc)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_takes_the_options_of_sam(name):
    module = network()
    base = optimizer_of(fitting(name), module)
    sam = made(name, module, base, 0.1)
    assert isinstance(sam, SAM)
    options = {} if name == "gsam" else {"rho": 0.2}
    needed = {"optimizer": base, "max_rho": 0.1, "max_lr": 0.1, "loader": LOADER}
    options |= {k: v for k, v in needed.items() if k in inspect.signature(PRESETS[name]).parameters}
    if name not in ("sam_on", "m_sam"):
        options["m"] = 2
    sam = PRESETS[name](module, l2=0.1, bn_stats="both", diagnostics=True, **options)
    assert (sam.l2, sam.bn_stats, sam.diagnostics) == (0.1, "both", True)


@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_radius_zero_is_the_base_optimizer_exactly(name, optimizer):
    one, two = network(), network()
    bases = [optimizer_of(optimizer, net) for net in (one, two)]
    sam = made(name, one, bases[0], 0.0)
    if name == "m_sam":
        sam.m = None  # the mean over groups is the whole batch's up to rounding only
    torch.manual_seed(0)
    train(one, sam, bases[0], range(STEPS))
    torch.manual_seed(0)
    for step in range(STEPS):
        bases[1].zero_grad()
        squared(two, *regression(step)).backward()
        bases[1].step()
        bases[1].param_groups[0]["lr"] *= 0.9
    assert same(one, two)


def test_radius_zero_of_groups_is_the_base_optimizer_up_to_rounding():
    one, two = network().eval(), network().eval()
    bases = [optimizer_of("sgd", net) for net in (one, two)]
    train(one, made("m_sam", one, bases[0], 0.0), bases[0], range(STEPS))
    train(two, made("sam", two, bases[1], 0.0), bases[1], range(STEPS))
    assert relative_error(list(one.parameters()), list(two.parameters())) < 1e-12


@pytest.mark.parametrize("name", PRESETS)
def test_resumed_training_continues_bit_for_bit(name):
    one, two, optimizer = network(), network(1), "bsam" if name == "bsam" else "adamw"
    base = optimizer_of(optimizer, one)
    sam = made(name, one, base, 0.3)
    torch.manual_seed(0)
    train(one, sam, base, range(3))
    file = io.BytesIO()
    torch.save([one.state_dict(), base.state_dict(), sam.state_dict(), torch.get_rng_state()], file)
    train(one, sam, base, range(3, 6))
    *states, generator = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other = optimizer_of(optimizer, two)
    resumed = made(name, two, other, 0.3)
    torch.set_rng_state(generator)
    for part, state in zip((two, other, resumed), states, strict=True):
        part.load_state_dict(state)
    train(two, resumed, other, range(3, 6))
    assert same(one, two)
    assert resumed.steps_done == sam.steps_done == 6


@pytest.mark.parametrize("name", PRESETS)
def test_weights_move_in_some_pass_and_come_back_bit_for_bit_in_their_storage(name):
    module, moved = network(), []
    base = optimizer_of(fitting(name), module)
    sam = made(name, module, base, 0.3)
    for step in range(3):
        before = identity(module)

        def loss(x, y, before=before):
            moved.append(identity(module) != before)
            assert [address for _, address in identity(module)] == [address for _, address in before]
            return squared(module, x, y)

        base.zero_grad()
        sam.backward(fitting_loss(sam, loss), *regression(step))
        assert identity(module) == before
        base.step()
    assert any(moved)


@pytest.mark.parametrize("name", PRESETS)
def test_weights_come_back_bit_for_bit_when_a_pass_fails(name):
    module, calls = network(), []
    base = optimizer_of(fitting(name), module)
    sam = made(name, module, base, 0.3)
    train(module, sam, base, range(1))
    before = identity(module)

    def fails(x, y):
        calls.append(identity(module) != before)
        if calls[-1]:
            raise RuntimeError("stop")
        return squared(module, x, y)

    if name == "look_sam":
        sam.steps_done = 5
    base.zero_grad()
    with pytest.raises(RuntimeError, match="stop"):
        sam.backward(fitting_loss(sam, fails), *regression(1))
    assert identity(module) == before
    assert all(p.grad is None for p in module.parameters())


def along(g, *_):
    return [0.3 * t / norm(g) for t in g]


def asam(g, w, names):
    scales = [p.abs() + 0.01 if "weight" in n else torch.ones_like(p) for p, n in zip(w, names, strict=True)]
    size = norm([s * t for s, t in zip(scales, g, strict=True)])
    return [0.3 * s * s * t / size for s, t in zip(scales, g, strict=True)]


def sam_on(g, _, names):
    kept = [t if n.startswith("1.") else 0 * t for t, n in zip(g, names, strict=True)]
    return along(kept)


PERTURBATIONS = {
    "sam": along,
    "m_sam": along,
    "usam": lambda g, *_: [0.3 * t for t in g],
    "asam": asam,
    "sam_on": sam_on,
    "unified_sam": lambda g, *_: [0.3 * (0.5 + 0.5 / norm(g)) * t for t in g],
    "friendly_sam": along,
    "gsam": along,
    "wsam": along,
    "look_sam": along,
    "stable_sam": along,
    "step_size_only": along,
}


def across(vector, to):
    product = sum((a * b).sum() for a, b in zip(vector, to, strict=True))
    return added(vector, to, -product / norm(to) ** 2)


COMBINED = {
    "gsam": lambda g, p: added(p, across(g, p), -0.4),
    "wsam": lambda g, p: added(g, added(p, g, -1.0), 9.0),
    "stable_sam": lambda g, p: [t * (norm(g) / norm(p)) for t in p],
    "step_size_only": lambda g, p: [t * (norm(p) / norm(g)) for t in g],
}


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_first_gradient_of_a_preset_is_that_of_its_formula(name):
    """Without dropout, with each preset's own defaults but the radius."""
    module, batch = network().eval(), regression()
    w = [p.detach().clone() for p in module.parameters()]
    names = [n for n, _ in module.named_parameters()]
    expected = [torch.zeros_like(p) for p in w]
    m = 3 if name == "m_sam" else 7
    for start in range(0, 7, m):
        group = rows(batch, start, start + m)
        _, g = value_and_gradient(module, squared, group, w)
        _, p = value_and_gradient(module, squared, group, added(w, PERTURBATIONS[name](g, w, names)))
        found = COMBINED[name](g, p) if name in COMBINED else p
        expected = added(expected, found, len(group[0]) / 7)
    base = optimizer_of("sgd", module)
    made(name, module, base, 0.3).backward(functools.partial(squared, module), *batch)
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-11


def test_multi_step_is_ten_projected_quarter_steps_by_default():
    module, batch = network().eval(), regression()
    w = [p.detach().clone() for p in module.parameters()]
    e = [torch.zeros_like(p) for p in w]
    for _ in range(10):
        _, g = value_and_gradient(module, squared, batch, added(w, e))
        e = added(e, g, 0.25 * 0.3 / norm(g))
        e = [t * min(1.0, 0.3 / norm(e)) for t in e]
    _, expected = value_and_gradient(module, squared, batch, added(w, e))
    PRESETS["multi_step"](module, rho=0.3).backward(functools.partial(squared, module), *batch)
    assert relative_error([p.grad for p in module.parameters()], expected) < 1e-10


def test_radius_of_gsam_follows_the_learning_rate():
    module = network()
    base = torch.optim.SGD(module.parameters(), lr=0.1)
    sam = PRESETS["gsam"](module, optimizer=base, max_rho=0.4, max_lr=0.1, min_rho=0.1, min_lr=0.01)
    lengths = []
    for lr in (0.1, 0.055, 0.01):
        base.param_groups[0]["lr"] = lr
        sam.diagnostics = True
        sam.backward(functools.partial(squared, module), *regression())
        lengths.append(sam.last_diagnostics.perturbation_norm.item())
        module.zero_grad()
    assert lengths == pytest.approx([0.4, 0.25, 0.1], rel=1e-9)
