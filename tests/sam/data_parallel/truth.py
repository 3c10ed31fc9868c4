"""Data-parallel training with m-SAM by ``functional_call``, in one process. Imports nothing of lowland.

A step of a rank is a list of pairs: the share of a group in the mean, and its loss, a function of what runs
the model. So there is nothing to put back, and nothing to communicate.
"""

from functools import partial
from itertools import chain

import torch
from torch.func import functional_call


def groups(loss, batch, m=None, share=1.0):
    """Groups of ``m`` examples, weighted by their size."""
    total = len(batch[0])
    m = total if m is None else m
    parts = [tuple(t[i : i + m] for t in batch) for i in range(0, total, m)]
    return [(share * len(part[0]) / total, partial(_of_part, loss, part)) for part in parts]


def accumulated(loss, batches, m, accumulate):
    """Steps of so many batches each, every one of which has a part for each rank."""
    each = [[groups(loss, part, m, 1 / accumulate) for part in batch] for batch in batches]
    starts = range(0, len(each), accumulate)
    return [[[*chain(*parts)] for parts in zip(*each[i : i + accumulate], strict=True)] for i in starts]


def _of_part(loss, part, run):
    return loss(run, *part)


def normalized(g, rho):
    length = sum(t.square().sum() for t in g.values()).sqrt()
    return {name: rho * t / length for name, t in g.items()}


def unnormalized(g, rho):
    return {name: rho * t for name, t in g.items()}


def trained(model, steps, *, rho, make, climb=normalized, l2=0.0):
    """Weights and each rank's buffers after ``steps``, each a list over ranks of its groups.

    Ranks begin a step with the buffers of rank 0, and make a mean of their gradients.
    """
    optimizer = make(model.parameters())
    for step in steps:
        optimizer.zero_grad()
        buffers = [{name: b.clone() for name, b in model.named_buffers()} for _ in step]
        each = [
            _sam(model, own, own_buffers, lambda g: climb(g, rho), l2)
            for own, own_buffers in zip(step, buffers, strict=True)
        ]
        for p, *grads in zip(model.parameters(), *each, strict=True):
            p.grad = torch.stack(grads).mean(0)
        optimizer.step()
        for name, b in model.named_buffers():
            b.copy_(buffers[0][name])
    return [p.detach().clone() for p in model.parameters()], [[*own.values()] for own in buffers]


def _sam(model, of_rank, buffers, climb, l2):
    """The mean over groups of the gradient at the weights each climbs to; those at w move ``buffers``."""
    w = {name: p.detach() for name, p in model.named_parameters()}
    total = {name: torch.zeros_like(t) for name, t in w.items()}
    for share, loss in of_rank:
        e = climb(_gradient(model, loss, w, buffers, l2))
        at = {name: t + e[name] for name, t in w.items()}
        g = _gradient(model, loss, at, {name: b.clone() for name, b in buffers.items()}, l2)
        total = {name: t + share * g[name] for name, t in total.items()}
    return total.values()


def _gradient(model, loss, at, buffers, l2):
    leaves = {name: t.clone().requires_grad_() for name, t in at.items()}

    def run(*args, **kwargs):
        return functional_call(model, {**leaves, **buffers}, args, kwargs, tie_weights=True)

    value = loss(run) + 0.5 * l2 * sum(t.square().sum() for t in leaves.values())
    found = torch.autograd.grad(value, [*leaves.values()], allow_unused=True)
    return {
        n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(leaves.items(), found, strict=True)
    }
