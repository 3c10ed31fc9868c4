"""
The landscape between networks
==============================

Two networks of one architecture are two points, and the loss can be drawn along the line through them. Here
the one was trained plainly and the other with SAM, from the same first weights, on digits of which a fifth
have wrong labels. A third network, of 1-SAM, makes a plane.
"""

# %%
# Three networks
# --------------

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import LogNorm
from torch import nn

from lowland import SAM
from lowland.deep import TrainConfig, load_data
from lowland.sharpness import barrier, interpolation, plane, plane_through, state_of

plt.style.use("lowland.figures.lowland")
torch.set_num_threads(1)  # for networks this small more are slower

data = load_data(
    TrainConfig(dataset="digits", model="fc", frac_train=0.44, p_label_noise=0.2)
)
x, y = data.train.inputs / 255, data.train.targets
x_test, y_test = data.test.inputs / 255, data.test.targets
model = nn.Sequential(
    nn.Flatten(),
    nn.Linear(64, 128),
    nn.ReLU(),
    nn.Linear(128, 128),
    nn.ReLU(),
    nn.Linear(128, 10),
)


def trained(rho, m, start):
    """The weights after training from ``start``."""
    model.load_state_dict(start)
    sam = SAM(model, rho=rho, m=m)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(0)
    for _ in range(60):
        for some in torch.randperm(len(x)).split(128)[:4]:
            optimizer.zero_grad()
            sam.backward(lambda x, y: F.cross_entropy(model(x), y), x[some], y[some])
            optimizer.step()
    return state_of(model)


torch.manual_seed(0)
model.apply(
    lambda layer: layer.reset_parameters() if isinstance(layer, nn.Linear) else None
)
start = state_of(model)
networks = {
    "ERM": trained(0.0, None, start),
    "128-SAM": trained(0.3, None, start),
    "1-SAM": trained(0.08, 1, start),
}

# %%
# Along a line
# ------------
# :func:`~lowland.sharpness.interpolation` puts the weights :math:`(1 - t)\,a + t\,b` into the network and
# asks a function of ours what it finds. ``t`` goes on beyond both ends, to see what lies around each of them.


def evaluate(model):
    """What is drawn."""
    outputs = model(x_test)
    return {
        "training loss": F.cross_entropy(model(x), y),
        "test loss": F.cross_entropy(outputs, y_test),
        "test error (%)": 100 * (outputs.argmax(1) != y_test).float().mean(),
    }


at = np.linspace(-1, 2, 61)
figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.9))
for name in ("128-SAM", "1-SAM"):
    rows = interpolation(model, networks["ERM"], networks[name], at, evaluate)
    rise = barrier(rows, "training loss")
    print(
        f"ERM to {name}: the training loss rises by {rise:.3f} above the straight line"
    )
    for ax, value in zip(axes, list(rows[0])[1:], strict=True):
        ax.plot(at, [row[value] for row in rows], label=f"b = {name}")
        ax.set(xlabel="t (a = ERM: 0, b: 1)", title=value)
for ax in axes:
    for end in (0, 1):
        ax.axvline(end, color="0.6", linewidth=0.8, zorder=0)
axes[0].set_yscale("log")
_ = axes[0].legend()

# %%
# ERM sits in a hole of the training loss, as it has learnt some of the wrong labels, with a rise of about
# 0.15 between it and each of the others. Behind ERM, away from SAM's networks, the training loss climbs above
# 4; behind SAM's networks, at the same distance, it stays below 1. The test error is lowest at SAM's end.
#
# The plane through three
# -----------------------
# Three networks span a plane, in which the units are those of the weights: distances in the picture are
# distances.

names = [name for name, _ in model.named_parameters()]
directions, places = plane_through(names, *networks.values())
(left, bottom), (right, top) = np.min(places, 0), np.max(places, 0)
margin = 0.5 * (right - left)
xs, ys = (
    np.linspace(left - margin, right + margin, 25),
    np.linspace(bottom - margin, top + margin, 25),
)
rows = plane(model, directions, (xs, ys), evaluate, origin=networks["ERM"])

figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.4), sharey=True)
for ax, value in zip(axes, ("training loss", "test error (%)"), strict=True):
    ax.grid(visible=False)
    heights = np.array([row[value] for row in rows]).reshape(len(ys), len(xs))
    levels = np.geomspace(heights.min(), heights.max(), 15)
    filled = ax.contourf(xs, ys, heights, levels=levels, norm=LogNorm(), cmap="cividis")
    figure.colorbar(filled, ax=ax, format="%.2g", location="bottom", label=value)
    for name, (px, py) in zip(networks, places, strict=True):
        ax.plot(px, py, "o", color="white", markeredgecolor="black")
        ax.annotate(name, (px, py), (6, 5), textcoords="offset points", color="white")
    ax.set(xlabel="from ERM to 128-SAM", aspect="equal")
_ = axes[0].set_ylabel("across")

# %%
# The lowest training loss is at ERM, which has learnt some of the wrong labels, and the lowest test error is
# not. This is one seed and two of thousands of directions: other directions may look otherwise. ``lowland
# sharpness`` measures flatness in all of them, and ``lowland landscape`` draws these pictures for runs on
# disk.
