"""What the tests of known faults share: one step of SAM, asked for in each of the ways there are."""

import torch
from torch import nn

from lowland import SAM, SAMOptimizer, presets
from lowland.sam import BSAM

from ..naive import seeded, tensors


def by_backward(module, base, **options):
    """A step with ``SAM.backward``; ``loss()`` is evaluated twice."""
    sam = SAM(module, **options)

    def step(loss):
        base.zero_grad()
        value = sam.backward(lambda _: loss(), torch.zeros(1))
        base.step()
        return value

    return step


def by_closure(module, base, **options):
    """The same with ``SAMOptimizer.step(closure)``."""
    optimizer = SAMOptimizer(base, module=module, **options)
    return lambda loss: optimizer.step(closure_of(optimizer, loss)).detach()


def by_two_steps(module, base, **options):
    """The same with ``first_step`` and ``second_step``, and ``restore`` after an error."""
    optimizer = SAMOptimizer(base, module=module, **options)

    def step(loss):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.first_step(zero_grad=True)
        try:
            loss().backward()
        except BaseException:
            optimizer.restore()
            raise
        optimizer.second_step()
        return value.detach()

    return step


WAYS = {"backward": by_backward, "closure": by_closure, "two steps": by_two_steps}


def closure_of(optimizer, loss):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def sgd(module, lr=0.0, **options):
    return torch.optim.SGD(module.parameters(), lr=lr, **options)


class Twice(nn.Module):
    """A body, and a layer beside it that only the passes in ``uses`` run: a layer drop, an expert."""

    def __init__(self, uses):
        super().__init__()
        self.body = seeded(nn.Linear(4, 3), 1)
        self.extra = seeded(nn.Linear(4, 3), 2)
        self.uses = uses
        self.passes = 0

    def forward(self, x):
        use, self.passes = self.passes in self.uses, self.passes + 1
        return self.body(x) + self.extra(x) if use else self.body(x)

    def loss(self):
        (x,) = tensors(3, (5, 4))
        return self(x).square().mean()


class Pair(nn.Module):
    """Two parameters and no more."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(t) for t in tensors(4, (3, 2), (3,), dtype=dtype))

    def flat(self):
        return torch.cat([p.detach().flatten() for p in self.parameters()])

    def along(self, *directions):
        """A loss whose gradient is ``directions`` wherever the weights are."""
        return sum((p * d).sum() for p, d in zip(self.parameters(), directions, strict=True))


def optimizer_of(name, module, lr=0.0, **options):
    """An optimizer for a preset: SGD with momentum, but Bayesian SAM has its own, and one wants Adam's."""
    if name == "preconditioned_sam":
        return torch.optim.Adam(module.parameters(), lr=lr, **options)
    if name == "bsam":
        return BSAM(module.parameters(), lr=lr or 1e-12, num_examples=1000, weight_decay=0.0, damping=0.1)
    return sgd(module, lr=lr, momentum=0.9, **options)


def preset_of(name, module, base, **options):
    """A preset by name, with the arguments that it must have."""
    needs = {
        "bsam": {"optimizer": base},
        "m_sam": {"m": 4},
        "multi_step": {"steps": 3},
        "n_sam": {"loader": [tensors(50, (6, 4), (6, 3))]},
        "momentum_sam": {"optimizer": base},
        "preconditioned_sam": {"optimizer": base},
        "gsam": {"optimizer": base, "max_rho": 0.3, "max_lr": 0.1},
        "wsam_decoupled": {"optimizer": base},
    }
    return presets.PRESETS[name](module, **{**needs.get(name, {}), **options})
