"""Every measure leaves all as it was: as a rule, and when it is interrupted in any call of torch."""

import random
import traceback

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from lowland.sam import MicroBatches
from lowland.sharpness import (
    AutoPGD,
    Bezier,
    GaussNewton,
    ProjectedAscent,
    along_curve,
    average_case,
    distances,
    empirical_fisher,
    features_at,
    fisher_rao_norm,
    gradient_direction,
    gradient_norms,
    hessian_diagonal,
    hessian_eigenvalues,
    hessian_solve,
    hessian_trace,
    interpolation,
    keskar_sharpness,
    monte_carlo_fisher,
    one_step_sharpness,
    plane,
    random_direction,
    relative_flatness,
    spectral_density,
    state_of,
    suboptimality,
    trained_bezier,
    worst_case,
)

DOUBLE = torch.float64


class Counting(nn.Module):
    """Counts its runs in a buffer that no state holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.tensor(0), persistent=False)

    def forward(self, x):
        if self.training:
            self.runs += 1
        return x


def network(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3), Counting(), nn.Linear(4, 2)]
    module = nn.Sequential(*layers).double()
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    return module


def measures(module):
    """Measures of a network in training mode, as functions without arguments."""
    x, y = torch.randn(6, 3, dtype=DOUBLE), torch.arange(6) % 2
    params, a, b = dict(module.named_parameters()), state_of(module), state_of(network(1))
    data = TensorDataset(x, y)

    def loss(x, y):
        return F.cross_entropy(module(x), y)

    def shuffled():
        return DataLoader(data, batch_size=3, shuffle=True)

    def prepare(m):  # puts another tensor in the place of a buffer
        m.eval()
        m[1].running_mean = torch.zeros(4, dtype=DOUBLE)
        m.train()(x)

    def evaluate(m):
        return {"loss": F.cross_entropy(m(x), y).item()}

    newton = GaussNewton(lambda x, _: module(x), lambda outputs, _, y: F.cross_entropy(outputs, y))

    def losses(x, y):
        return F.cross_entropy(module(x), y, reduction="none")

    drawn = monte_carlo_fisher(lambda x, _: module(x))
    few = {"rho": 0.1, "search": ProjectedAscent(steps=2, step_size=0.5)}
    found = {}
    for engine in ("loop", "batched"):
        given = {"m": 3, "engine": engine}
        found |= {
            f"worst case, {engine}": lambda g=given: worst_case(
                loss, params, (x, y), module=module, **few, **g
            ),
            f"auto-PGD, {engine}": lambda g=given: worst_case(
                loss, params, (x, y), rho=0.1, search=AutoPGD(steps=1), restarts=2, transfer=True, **g
            ),
            f"climbed, {engine}": lambda g=given: worst_case(
                loss, params, (x, y), norm="linf", climbed=lambda x, y: -loss(x, y), **few, **g
            ),
            f"suboptimality, {engine}": lambda g=given: suboptimality(loss, params, (x, y), **few, **g),
            f"one step, {engine}": lambda g=given: one_step_sharpness(loss, params, (x, y), rho=0.1, **g),
            f"gradient norms, {engine}": lambda g=given: gradient_norms(loss, params, (x, y), **g),
        }
    return found | {
        "worst case of a loader": lambda: worst_case(
            loss, params, MicroBatches(shuffled()), engine="loop", **few
        ),
        "average case": lambda: average_case(loss, params, MicroBatches(shuffled()), rho=0.1, samples=2),
        "eigenvalues": lambda: hessian_eigenvalues(loss, params, (x, y), module=module),
        "trace": lambda: hessian_trace(loss, params, (x, y), products=6),
        "Gauss-Newton": lambda: hessian_trace(newton, params, (x, y), products=6),
        "Fisher": lambda: hessian_trace(empirical_fisher(losses), params, (x, y), products=6),
        "Fisher-Rao": lambda: fisher_rao_norm(drawn, params, (x, y)),
        "diagonal": lambda: hessian_diagonal(loss, params, (x, y), products=3),
        "solution": lambda: hessian_solve(
            newton, params, (x, y), {n: torch.ones_like(p) for n, p in params.items()}, damping=10.0, tol=0.1
        ),
        "relative flatness": lambda: relative_flatness(loss, module[0].weight, (x, y), products=2),
        "Keskar's": lambda: keskar_sharpness(loss, params, (x, y), search=AutoPGD(2)),
        "density": lambda: spectral_density(loss, params, (x, y), steps=3, runs=1),
        "direction": lambda: gradient_direction(loss, params, (x, y)),
        "trained curve": lambda: trained_bezier(module, a, b, loss, shuffled(), steps=2),
        "interpolation": lambda: interpolation(module, a, b, [0.0, 0.5], evaluate, prepare=prepare),
        "plane": lambda: plane(module, [random_direction(module, seed=0)], [[0.0, 1.0]], evaluate),
        "along a curve": lambda: along_curve(module, Bezier(a, a, b), [0.0, 0.5], evaluate),
        "distances": lambda: distances(module, {"a": a, "b": b}),
        "features": lambda: features_at(module, "2", [x, x]),
    }


def everything(module):
    """All that a measure could leave changed."""
    tensors = [*module.parameters(), *module.buffers()]
    hooks = [(part.training, *map(len, (part._forward_hooks, part._forward_pre_hooks))) for part in module]
    return {
        "values": [t.tolist() for t in tensors],
        "tensors": [id(t) for t in tensors],
        "grad": [(id(p.grad), p.grad.tolist(), p.requires_grad) for p in module.parameters()],
        "hooks and modes": [*hooks, len(nn.modules.module._global_forward_pre_hooks)],
        "draws": (torch.get_rng_state().tolist(), random.getstate()),
        "gradients": torch.is_grad_enabled(),
    }


class Interrupted(TorchFunctionMode):
    """An interrupt in the k-th call of torch."""

    def __init__(self, k):
        super().__init__()
        self.k, self.calls, self.file = k, 0, None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        if self.calls == self.k:
            files = [frame.filename for frame in traceback.extract_stack() if "/lowland/" in frame.filename]
            self.file = files[-1]
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


FAULTS = 12
"""For each measure, spread over its calls; a short one has one in each."""


@pytest.mark.usefixtures("untyped")  # checking types draws random numbers
@pytest.mark.parametrize("name", measures(network()))
def test_an_interrupt_anywhere_arrives_and_leaves_everything_as_it_was(name) -> None:
    module = network()
    measure, before = measures(module)[name], everything(module)
    measure()  # what is found out about a loss in the first call is remembered
    with Interrupted(0) as counted:
        measure()
    assert everything(module) == before
    step = 1 if counted.calls < 100 else counted.calls // FAULTS
    for k in range(1 + len(name) % step, counted.calls + 1, step):
        with pytest.raises(KeyboardInterrupt), Interrupted(k) as planted:
            measure()
        assert everything(module) == before, (k, planted.file)
