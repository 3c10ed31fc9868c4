"""
Which of two networks is flatter?
=================================

Flat has many meanings: the highest loss within a ball around the weights, the mean loss there, the
curvature. The highest loss depends on the radius and on m, the number of examples that share a
perturbation; all of them are measured here for two networks that fit the same digits, one trained plainly
and one by SAM.
"""

# %%
# Two networks
# ------------
# Both begin at the same weights, see the same examples, and end with hardly any training error.

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lowland import SAM
from lowland.deep import TrainConfig, load_data
from lowland.sharpness import (
    average_case,
    hessian_eigenvalues,
    spectral_density,
    worst_case_grid,
)

plt.style.use("lowland.figures.lowland")

data = load_data(TrainConfig(dataset="digits", model="fc", frac_train=0.5))
x, y = data.train.inputs / 255, data.train.targets
x_test, y_test = data.test.inputs / 255, data.test.targets


def trained(rho):
    """A network after 20 epochs of SAM with that radius; 0 is plain training."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    sam = SAM(model, rho=rho, m=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            sam.backward(lambda x, y: F.cross_entropy(model(x), y), x[rows], y[rows])
            optimizer.step()
    return model.eval()


def error(model, x, y):
    """The share of examples that are classified wrongly, in per cent."""
    with torch.no_grad():
        return 100 * (model(x).argmax(1) != y).float().mean().item()


models = {"ERM": trained(0.0), "16-SAM": trained(0.1)}
for name, model in models.items():
    print(
        f"{name:7} training error {error(model, x, y):.2f} %, test error {error(model, x_test, y_test):.2f} %"
    )

# %%
# The highest loss nearby
# -----------------------
# ``worst_case_grid`` climbs within every radius at once, for each group of m examples by itself. What it
# finds is a lower bound: a longer search may find more, so only numbers of the same search are compared.
# The band is the standard error over groups.

RADII = [0.02, 0.05, 0.1, 0.2, 0.4]
batch = x[:256], y[:256]


def loss_of(model):
    """The mean loss of the examples it is given."""
    return lambda x, y: F.cross_entropy(model(x), y)


figure, axes = plt.subplots(1, 3, figsize=(7.4, 3), sharey=True)
for ax, m in zip(axes, (1, 16, 128), strict=True):
    for (name, model), marker in zip(models.items(), "os", strict=True):
        params = dict(model.named_parameters())
        found = worst_case_grid(loss_of(model), params, batch, rho=RADII, m=[m])
        value = np.array([one.value for one in found])
        spread = np.array([one.stderr for one in found])
        ax.plot(RADII, value, marker=marker, label=name)
        ax.fill_between(RADII, value - spread, value + spread, alpha=0.2)
    ax.set(title=f"m = {m}", xlabel="radius ρ", xscale="log", yscale="log")
    ax.set_xticks(RADII, [f"{rho:g}" for rho in RADII])
    ax.minorticks_off()
axes[0].set_ylabel("worst-case rise of the loss")
_ = axes[0].legend()

# %%
# The smaller m is, the higher the rise: each example is climbed in the direction that is worst for it
# alone. SAM's network is the flatter one here at every m and every radius. That need not be so: among the
# networks of the page on sharpness the order changes with the radius.
#
# Curvature
# ---------
# The eigenvalues of the Hessian look at no radius at all. The density counts them over the whole
# spectrum, from a few Hessian-vector products.

figure, ax = plt.subplots(figsize=(6, 3))
for (name, model), style in zip(models.items(), ("-", "--"), strict=True):
    params = dict(model.named_parameters())
    top = hessian_eigenvalues(loss_of(model), params, batch, k=1)
    average = average_case(loss_of(model), params, batch, rho=0.02)
    print(f"{name:7} largest eigenvalue {top.value:.3f}")
    print(
        f"{name:7} average case within 0.02: {average.value:.1e} ± {average.stderr:.0e}"
    )
    density = spectral_density(loss_of(model), params, batch)
    at = np.linspace(-0.2, 1.05 * top.value + 0.2, 400)
    ax.plot(at, density.on(at, width=0.02), style, label=name)
ax.set(
    xlabel="eigenvalue of the Hessian", ylabel="density", yscale="log", ylim=(1e-4, 1e2)
)
_ = ax.legend()

# %%
# One pair of networks of one seed shows how it is measured, not that SAM finds flatter weights.
