"""
m from 1 to the batch
=====================

m is the number of examples that share one perturbation: with m = B the whole batch of B examples climbs
together (ordinary SAM), with m = 1 each example by itself. Written as a loop, small m is B/m small passes,
and each costs almost as much as a large one. Lowland runs all groups in one pass over the batch. Here both
are compared: what they return, and how long they take.
"""

# %%
# A network, a batch, and the gradient
# ------------------------------------
# :func:`~lowland.sam_gradient` is the pure function below ``SAM.backward``: it returns gradients and changes
# nothing. ``engine="loop"`` runs one group after the other, which is the definition; ``engine="batched"``
# runs all at once.

import statistics
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from lowland import sam_gradient

plt.style.use("lowland.figures.lowland")
torch.set_num_threads(1)  # for networks this small more are slower
torch.manual_seed(0)

B = 128
SIZES = [1, 2, 4, 8, 16, 32, 64, 128]
model = nn.Sequential(
    nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
)
params = dict(model.named_parameters())
batch = torch.randn(B, 256), torch.randint(10, (B,))


def loss(x, y):
    """The mean over the examples it is given."""
    return F.cross_entropy(model(x), y)


def gradient(m, engine):
    """As one long vector."""
    found = sam_gradient(loss, params, batch, rho=0.1, m=m, engine=engine)
    return torch.cat([g.flatten() for g in found.gradients])


# %%
# The same gradient
# -----------------
# The two engines differ in the last digits of float32, at every m. How much m itself changes the gradient is
# five orders of magnitude more, so that this difference is rounding and the other is not.

ordinary = gradient(B, "loop")
rows = []
for m in SIZES:
    loop, batched = gradient(m, "loop"), gradient(m, "batched")
    rows.append(
        (
            (batched - loop).norm() / loop.norm(),
            (loop - ordinary).norm() / ordinary.norm(),
        )
    )

print("  m   batched against loop   against ordinary SAM")
for m, (engines, others) in zip(SIZES, rows, strict=True):
    print(f"{m:3}{engines:19.1e}{others:23.1e}")

figure, ax = plt.subplots(figsize=(6, 3))
ax.loglog(
    SIZES[:-1],
    [others for _, others in rows[:-1]],
    "s-",
    label="m-SAM against ordinary SAM",
)
ax.loglog(
    SIZES, [engines for engines, _ in rows], "o-", label="batched against loop, same m"
)
ax.axhline(
    torch.finfo(torch.float32).eps,
    color="0.5",
    linestyle=":",
    label="float32's precision",
)
ax.set_xticks(SIZES, SIZES)
ax.minorticks_off()
ax.set(
    xlabel="m, examples that share a perturbation",
    ylabel="relative difference of gradients",
)
_ = ax.legend()

# %%
# The time of a step
# ------------------
# A machine has moods, so that every round times every kind of step once, in turns, and a ratio is taken
# within its round before the median over rounds. The measure is ordinary SAM, two plain passes over the
# batch.

ROUNDS = 7
kinds = {(engine, m): None for engine in ("loop", "batched") for m in SIZES}


def seconds(m, engine):
    """Of one gradient."""
    start = time.perf_counter()
    gradient(m, engine)
    return time.perf_counter() - start


rounds = []
for _ in range(ROUNDS):
    times = {(engine, m): seconds(m, engine) for engine, m in kinds}
    rounds.append({kind: value / times["loop", B] for kind, value in times.items()})
quartiles = {
    kind: statistics.quantiles([found[kind] for found in rounds], n=4) for kind in kinds
}

print(f"time of a step over that of ordinary SAM, {torch.get_num_threads()} threads")
print("  m     loop  batched")
for m in SIZES:
    print(f"{m:3}{quartiles['loop', m][1]:9.2f}{quartiles['batched', m][1]:9.2f}")

figure, ax = plt.subplots(figsize=(6, 3.2))
for engine, label, color in (
    ("loop", "one group after the other", "C1"),
    ("batched", "all at once", "C0"),
):
    low, middle, high = zip(*(quartiles[engine, m] for m in SIZES), strict=True)
    ax.loglog(SIZES, middle, "o-", color=color, label=label)
    ax.fill_between(SIZES, low, high, color=color, alpha=0.2, linewidth=0)
ax.axhline(1, color="0.5", linestyle=":", label="ordinary SAM")
ax.set_xticks(SIZES, SIZES)
ax.minorticks_off()
ax.set(
    xlabel="m, examples that share a perturbation",
    ylabel="time over that of ordinary SAM",
)
_ = ax.legend()

# %%
# The loop's line falls by nearly half whenever m doubles; the other hardly knows m. All this is one network,
# on the machine that built this page; the bands are quartiles over the rounds and show how calm it was. The
# results have other networks: the gain is largest where a pass over one example takes nearly as long as one
# over the batch. At large m the loop is the faster one. ``engine="auto"``, the default, takes the engine that
# should be faster.
