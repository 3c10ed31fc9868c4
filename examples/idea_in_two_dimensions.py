r"""
The idea in two dimensions
==========================

Sharpness-aware minimization (SAM) looks for weights around which the loss is low, not just for weights at
which it is low. With two weights this can be drawn: one minimum is deep and narrow, another is shallower and
wide. From the same start plain training ends in the narrow one and SAM in the wide one.
"""

# %%
# A loss with two minima
# ----------------------
# The loss is a bowl with two dents. The narrow one is the deeper, so that the loss alone gives every reason
# to stay in it. Every example sees this landscape shifted by a little, ``x``, as examples do: no two have
# quite the same loss.

import matplotlib.pyplot as plt
import torch

from lowland import SAM

plt.style.use("lowland.figures.lowland")
torch.set_num_threads(1)  # for two weights more are slower

NARROW, WIDE = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0])


def loss_at(w):
    """The loss at weights of shape ``(..., 2)``."""
    narrow = 1.4 * torch.exp(-((w - NARROW) ** 2).sum(-1) / (2 * 0.25**2))
    wide = 0.9 * torch.exp(-((w - WIDE) ** 2).sum(-1) / 2)
    return 1.5 + 0.1 * (w**2).sum(-1) - narrow - wide


# %%
# Plain training and SAM
# ----------------------
# ``sam.backward(loss, x)`` takes the place of ``loss(x).backward()``, and the optimizer stays what it was. It
# climbs from the weights :math:`w` along the gradient :math:`g` to :math:`w + \rho\, g / \|g\|` and takes the
# gradient there. With ``rho=0`` there is no climb and the gradient is the plain one, so that one function
# does for both.

RHO, LR, MOMENTUM, SHIFT, STEPS = 0.3, 0.03, 0.9, 0.15, 300


def trained(rho, start):
    """The weights at the start and after every step."""
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.tensor(start))
    sam = SAM([w], rho=rho)
    optimizer = torch.optim.SGD([w], lr=LR, momentum=MOMENTUM)
    path = [w.detach().clone()]
    for _ in range(STEPS):
        x = SHIFT * torch.randn(4, 2)
        optimizer.zero_grad()
        sam.backward(lambda x: loss_at(w + x).mean(), x)
        optimizer.step()
        path.append(w.detach().clone())
    return torch.stack(path)


START = (-1.4, 1.0)
paths = {"plain training": trained(0.0, START), f"SAM, ρ = {RHO}": trained(RHO, START)}
for name, path in paths.items():
    x, y = path[-1].tolist()
    print(
        f"{name:14} ends at ({x:5.2f}, {y:5.2f}), where the loss is {loss_at(path[-1]):.2f}"
    )

# %%
# On the left are both paths. On the right is the loss along the line through both minima and, at each point,
# the highest loss within :math:`\rho` of it, which is what SAM makes small. The narrow minimum is the lower
# one of the loss; the wide one is the lower one of the highest loss nearby.

xs, ys = torch.linspace(-2.2, 2.2, 221), torch.linspace(-1.4, 1.4, 141)
grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)
angles = torch.linspace(0, 2 * torch.pi, 73)
circle = torch.stack([angles.cos(), angles.sin()], -1)
disc = torch.cat([RHO * share * circle for share in torch.linspace(0, 1, 11)])
line = torch.stack([xs, torch.zeros_like(xs)], -1)

figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.3), width_ratios=(3, 2))
left.contour(xs, ys, loss_at(grid), levels=22, cmap="Greys_r", linewidths=0.8)
for (name, path), style in zip(paths.items(), ("o-", "s-"), strict=True):
    left.plot(*path.T, style, markersize=2.5, linewidth=1, label=name)
left.plot(*START, "k*", markersize=9, label="start")
left.set(xlabel="first weight", ylabel="second weight", aspect="equal")
left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
right.plot(xs, loss_at(line), "k", label="loss")
right.plot(
    xs, loss_at(line[:, None] + disc).amax(1), "C1", label=f"highest within {RHO}"
)
right.set(xlabel="first weight (second: 0)", ylabel="loss", ylim=(0, 2.2))
_ = right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

# %%
# Other starts
# ------------
# One start proves nothing. Here are many, trained at once by the formulas above, without the library: where
# each start ends is its colour.


def slope(w, x):
    """The gradient of each start's own mini-batch."""
    w = w.clone().requires_grad_()
    return torch.autograd.grad(loss_at(w[..., None, :] + x).mean(-1).sum(), w)[0]


def ends(rho, w):
    """Where training ends that starts at ``w``."""
    torch.manual_seed(0)
    velocity = torch.zeros_like(w)
    for _ in range(STEPS):
        x = SHIFT * torch.randn(*w.shape[:-1], 4, 2)
        g = slope(w, x)
        velocity = MOMENTUM * velocity + slope(
            w + rho * g / g.norm(dim=-1, keepdim=True), x
        )
        w = w - LR * velocity
    return w


starts = grid[::6, ::6]
figure, axes = plt.subplots(1, 2, figsize=(7.4, 2.8), sharey=True)
for ax, rho, title in zip(axes, (0.0, RHO), paths, strict=True):
    end = ends(rho, starts)
    narrow, wide = ((end - minimum).norm(dim=-1) < 0.6 for minimum in (NARROW, WIDE))
    kinds = {"narrow": narrow, "wide": wide, "neither": ~(narrow | wide)}
    for (kind, which), color in zip(kinds.items(), ("C0", "C4", "C6"), strict=True):
        ax.plot(
            *starts[which].T,
            "s",
            color=color,
            markersize=4.4,
            label=f"{kind}: {which.float().mean():.1%}",
        )
    ax.set(title=title, xlabel="first weight of the start", aspect="equal")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, markerscale=1.4)
_ = axes[0].set_ylabel("second weight of the start")

# %%
# The picture was made so that SAM can be seen at work: the narrow dent is narrower than :math:`\rho`, the
# wide one is not, and which minima count as narrow is the choice of :math:`\rho`. Momentum and mini-batches
# matter as well: without them SAM often stops on the rim of the narrow dent, where its climb ends on the
# ridge and finds no slope. That wide minima generalize better is nothing that a drawing can show: it is a
# question for data.
