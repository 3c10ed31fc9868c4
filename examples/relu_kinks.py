r"""
Kinks of ReLU networks
======================

A ReLU network of one input is a line with kinks. A hundred neurons can fit twelve points in many ways, and
the loss does not tell them apart. SAM's fits have fewer and softer kinks, which can be seen.
"""

# %%
# Twelve points
# -------------
# Plain gradient descent on all points stops when it has fitted them (ERM). SAM climbs by ``rho``, the length
# of its perturbation over all weights together, in each of its steps, and its step size falls to zero. Each
# line is another seed, that is other first weights.

import matplotlib.pyplot as plt
import numpy as np

from lowland.relu import Training, interpolant_variation, on_the_line, train

plt.style.use("lowland.figures.lowland")

problem = on_the_line()
low, high = problem.x.min(), problem.x.max()
RADII, SEEDS = (0.0, 0.1, 0.3), range(3)


def training(rho):
    """ERM ends at a loss of 1e-5, SAM after all of its steps."""
    return (
        Training(rho=rho, gamma=1e-4, steps=300_001) if rho else Training.original(0.0)
    )


results = {
    rho: [train(problem, training(rho), seed=seed) for seed in SEEDS] for rho in RADII
}

grid = np.linspace(low - 0.1, high + 0.1, 600)
figure, axes = plt.subplots(1, 3, figsize=(7.4, 3), sharey=True)
for ax, (rho, found) in zip(axes, results.items(), strict=True):
    for result in found:
        ax.plot(grid, result.network(grid[:, None]), linewidth=1)
    ax.plot(problem.x, problem.y, "o:k", markersize=4, linewidth=1)
    ax.set(title=f"SAM, ρ = {rho}" if rho else "ERM", xlabel="x", ylim=(-3.5, 4.5))
_ = axes[0].set_ylabel("f(x)")

# %%
# How many kinks
# --------------
# The slope's total variation adds up how much it changes from left to right. Nothing that passes through the
# points has less of it than the straight lines from point to point (dotted), so that there is a floor to
# compare with.

floor = interpolant_variation(problem)
print(f"variation of the slope, lines from point to point: {floor:.0f}")
print("          variation of the slope   active kinks       loss")
variation, kinks, loss = {}, {}, {}
for rho, found in results.items():
    variation[rho] = [result.network.slope_variation(low, high) for result in found]
    kinks[rho] = [result.network.active_kinks(low, high) for result in found]
    loss[rho] = [result.final_loss(problem) for result in found]
    print(
        f"ρ = {rho:3} {np.mean(variation[rho]):14.0f} ± {np.std(variation[rho], ddof=1):2.0f}"
        f"{np.mean(kinks[rho]):14.0f} ± {np.std(kinks[rho], ddof=1):1.0f} {np.mean(loss[rho]):14.1e}"
    )

figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.8))
titles = {"variation of the slope": variation, "active kinks": kinks, "loss": loss}
for ax, (title, values) in zip(axes, titles.items(), strict=True):
    for place, rho in enumerate(RADII):
        ax.plot([place] * len(SEEDS), values[rho], "o", color=f"C{place}", alpha=0.7)
    ax.set_xticks(range(len(RADII)), RADII)
    ax.set(xlabel="ρ", title=title, xlim=(-0.5, 2.5))
axes[0].axhline(floor, color="0.4", linestyle=":")
axes[0].set_ylim(0, None)
axes[1].set_ylim(0, None)
axes[2].set_yscale("log")

# %%
# The larger :math:`\rho`, the fewer kinks; at 0.3 the slope varies little more than that of the straight
# lines. SAM pays for it: its loss stays above ERM's, as its climb never ends, so that this is no comparison
# at the same loss. Nor do both run for the same number of steps: ERM is done after some ten thousand. And it
# is one set of twelve points.
