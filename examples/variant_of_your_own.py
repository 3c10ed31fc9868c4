r"""
A variant of your own
=====================

A variant of SAM is made of parts: an ascent says where to climb, a rule what to make of the two gradients, a
schedule how far. Each is a function, or an object that is one. Here a new ascent takes ten lines, is checked,
and is compared with SAM.
"""

# %%
# An ascent
# ---------
# SAM climbs along the gradient within a ball of radius :math:`\rho`. Within a cube the highest point of the
# linearized loss is a corner: every weight moves by the same amount, in the direction of its gradient's sign.
# The cube's size is such that its corners have the distance :math:`\rho`, so that radii mean the same for
# both.

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lowland import SAM
from lowland.deep import TrainConfig, load_data

plt.style.use("lowland.figures.lowland")
torch.set_num_threads(1)  # for networks this small more are slower


class ToTheCorner:
    """Moves each weight by the same amount."""

    one_step = True  # several steps would leave the cube: with this, steps=2 is refused

    def __call__(self, step):
        each = step.size / math.sqrt(sum(w.numel() for w in step.w))
        return [each * g.sign() for g in step.g]


# %%
# Is it what it should be?
# ------------------------
# It is enough to state the climb: m-SAM, accumulation, mixed precision, running statistics and putting
# weights back are SAM's own, and the new part combines with the others. ``diagnostics=True`` tells what each
# climb did. The lengths must be :math:`\rho` (less where gradients are zero, since those weights stay:
# here a fifth of them), and the loss must rise.


def network():
    """The same first weights each time."""
    torch.manual_seed(0)
    layers = (
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    return nn.Sequential(nn.Flatten(), *layers)


data = load_data(
    TrainConfig(dataset="digits", model="fc", frac_train=0.44, p_label_noise=0.2)
)
x, y = data.train.inputs / 255, data.train.targets
x_test, y_test = data.test.inputs / 255, data.test.targets

model = network()
sam = SAM(model, rho=0.5, m=64, ascent=ToTheCorner(), diagnostics=True)
sam.backward(lambda x, y: F.cross_entropy(model(x), y), x[:256], y[:256])
found = sam.last_diagnostics
print(sam)
print(
    "length of each climb:",
    [round(length, 3) for length in found.perturbation_norm.tolist()],
)
print(
    "rise of each loss:   ",
    [round(rise, 3) for rise in (found.perturbed_loss - found.loss).tolist()],
)

# %%
# Beside SAM
# ----------
# The comparison is a small one: a fifth of the training labels is wrong, 3 seeds, and several radii, as the
# best radius need not be the same.


def error(ascent, rho, seed):
    """Test error after training, in per cent."""
    model = network()
    torch.manual_seed(seed)
    sam = SAM(model, rho=rho, ascent=ascent)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        for some in torch.randperm(len(x)).split(128)[:4]:
            optimizer.zero_grad()
            sam.backward(lambda x, y: F.cross_entropy(model(x), y), x[some], y[some])
            optimizer.step()
    with torch.no_grad():
        return 100 * (model(x_test).argmax(1) != y_test).float().mean().item()


RADII, SEEDS = (0.0, 0.2, 0.4, 0.8), range(3)
figure, ax = plt.subplots(figsize=(6, 3.2))
for (name, ascent), marker in zip(
    {"SAM": None, "to the corner": ToTheCorner()}.items(), "os", strict=True
):
    errors = np.array([[error(ascent, rho, seed) for seed in SEEDS] for rho in RADII])
    ax.errorbar(
        RADII,
        errors.mean(1),
        errors.std(1, ddof=1),
        marker=marker,
        capsize=3,
        label=name,
    )
    print(
        f"{name:14}",
        "  ".join(
            f"ρ {rho}: {mean:4.1f} %"
            for rho, mean in zip(RADII, errors.mean(1), strict=True)
        ),
    )
ax.set(xlabel="ρ", ylabel="test error (%)", yscale="log")
ax.set_yticks((5, 10, 20, 50, 100), (5, 10, 20, 50, 100))
ax.minorticks_off()
_ = ax.legend()

# %%
# At a small radius the corner does less than SAM, as it is not the direction in which the loss rises most; at
# the largest radius SAM no longer trains at all, and the corner does. At the best of these radii both are the
# same, within what three seeds can tell: so far there is no reason to prefer the corner.
#
# A rule and a schedule
# ---------------------
# Both of these are plain functions. The rule takes the gradients at the weights and at the perturbed ones,
# averaged over groups, and returns what to train with; the schedule takes the number of steps done. Parts
# that remember something have hooks for the beginning and the end of a call, see :class:`lowland.sam.Part`.


def halfway(gradient, perturbed):
    """The mean of both."""
    return [(g + p) / 2 for g, p in zip(gradient, perturbed, strict=True)]


print(
    SAM(
        model,
        rho=lambda step: min(0.4, 0.01 * step),
        m=8,
        ascent=ToTheCorner(),
        combine=halfway,
    )
)
