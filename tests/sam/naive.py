"""m-SAM written from its formula, and the small models that tests compare on. Imports nothing of lowland.

Every pass runs a deep copy of the module whose weights are new tensors ``w + e``, so there is nothing
to put back; the l2 term is differentiated as written.
"""

from array import array
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class Naive:
    """Gradients at ``w + e`` and at ``w``, and the per-group numbers."""

    gradients: list
    at_weights: list
    loss: float = 0.0
    sizes: list = field(default_factory=list)
    losses: list = field(default_factory=list)
    perturbed_losses: list = field(default_factory=list)
    gradient_norms: list = field(default_factory=list)
    perturbations: list = field(default_factory=list)


class Count:
    """How often something ran, also where state is put back: a trial of a loss leaves none of it."""

    def __init__(self):
        self._n = array("q", [0])

    def add(self):
        self._n[0] += 1

    def __len__(self):
        return self._n[0]

    def clear(self):
        self._n[0] = 0


def naive_sam(
    module, loss, batch, *, rho, m=None, ascent="l2", steps=1, step_size=1.0, l2=0.0, ascent_batch=None
):
    """m-SAM of ``loss(module, *group)``, by groups, with plain loops."""
    total = num_examples(batch)
    m = total if m is None else m
    w = [p.detach().clone() for p in module.parameters()]
    zeros = [torch.zeros_like(p) for p in w]
    found = Naive(zeros, zeros)
    for start in range(0, total, m):
        group = rows(batch, start, start + m)
        size = num_examples(group)
        source = group if ascent_batch is None else rows(ascent_batch, start, start + m)
        e = zeros
        for step in range(steps):
            _, g = value_and_gradient(module, loss, source, added(w, e), l2)
            if step == 0:
                found.gradient_norms.append(norm(g))
            e = climb(ascent, e, g, rho, rho * step_size)
        value, at_w = value_and_gradient(module, loss, group, w, l2)
        perturbed_value, g = value_and_gradient(module, loss, group, added(w, e), l2)
        share = size / total
        found.gradients = added(found.gradients, g, share)
        found.at_weights = added(found.at_weights, at_w, share)
        found.loss += share * value
        found.sizes.append(size)
        found.losses.append(value)
        found.perturbed_losses.append(perturbed_value)
        found.perturbations.append(e)
    return found


def climb(ascent, e, g, rho, size):
    """The perturbation after one more step: along g or g/|g|, then (not for USAM) back into the ball."""
    if ascent == "l2":
        length = norm(g)
        return projected(added(e, g, size / length), rho) if length > 0 else e
    moved = added(e, g, size)
    return projected(moved, rho) if ascent == "clipped" else moved


def projected(e, rho):
    length = norm(e)
    return e if length <= rho else [rho * t / length for t in e]


def value_and_gradient(module, loss, group, weights, l2=0.0):
    """Loss and gradient at ``weights``, in a twin of the module."""
    twin = deepcopy(module)
    for p, value in zip(twin.parameters(), weights, strict=True):
        p.data = value.clone()
    value = loss(twin, *group)
    value = value.mean() + 0.5 * l2 * sum((p**2).sum() for p in twin.parameters())
    found = torch.autograd.grad(value, list(twin.parameters()), allow_unused=True)
    return value.item(), [
        torch.zeros_like(p) if g is None else g for p, g in zip(twin.parameters(), found, strict=True)
    ]


def added(tensors, others, factor=1.0):
    return [t + factor * o for t, o in zip(tensors, others, strict=True)]


def norm(tensors):
    """The l2 norm of all the tensors as one long vector."""
    return torch.cat([t.reshape(-1) for t in tensors]).norm().item()


def relative_error(actual, expected):
    """Length of the difference over the length of ``expected``, all tensors together."""
    assert len(actual) == len(expected)
    difference = norm([a - b for a, b in zip(actual, expected, strict=True)])
    return difference / norm(expected)


def leaves(element):
    if isinstance(element, torch.Tensor):
        return [element]
    if isinstance(element, dict):
        return [leaf for value in element.values() for leaf in leaves(value)]
    if element is None:
        return []
    return [leaf for value in element for leaf in leaves(value)]


def num_examples(batch):
    return leaves(batch)[0].shape[0]


def rows(element, start, stop):
    if isinstance(element, torch.Tensor):
        return element[start:stop]
    if isinstance(element, dict):
        return {key: rows(value, start, stop) for key, value in element.items()}
    if element is None:
        return None
    if hasattr(element, "_fields"):
        return type(element)(*(rows(value, start, stop) for value in element))
    return type(element)(rows(value, start, stop) for value in element)


def tensors(seed, *shapes, dtype=torch.float64):
    """Gaussian tensors of the given shapes, from their own generator."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def seeded(module, seed=0, dtype=torch.float64):
    """The module with Gaussian parameters of its own seed, of a size that keeps activations near 1."""
    module = module.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=dtype))
    return module


def mlp(seed=0, dtype=torch.float64):
    """Smooth, so that finite perturbations cross no kink."""
    return seeded(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), seed, dtype)


class Skips(nn.Module):
    """A layer that only groups with a positive first input use."""

    def __init__(self):
        super().__init__()
        self.body, self.extra = mlp(), mlp(1)

    def forward(self, x):
        return self.body(x) + self.extra(x) if x[0, 0] > 0 else self.body(x)


def bn_conv(seed=0, dtype=torch.float64):
    """Batch norm over maps: even one example has a batch to normalize over."""
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2)]
    return seeded(nn.Sequential(*layers), seed, dtype)


def squared(module, x, y):
    """A scalar: the mean square over everything."""
    return (module(x) - y).square().mean()


def squared_per_example(module, x, y):
    return (module(x) - y).square().flatten(1).mean(1)


def regression(seed=1, examples=7, dtype=torch.float64):
    """A batch for :func:`mlp`."""
    return tuple(tensors(seed, (examples, 4), (examples, 3), dtype=dtype))


def bits(tensor):
    """The tensor's bytes, so that -0.0 and 0.0, and two NaNs, are told apart."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def identity(module_or_params):
    """Bytes and address of each parameter."""
    params = module_or_params.parameters() if isinstance(module_or_params, nn.Module) else module_or_params
    return [(bits(p), p.data_ptr()) for p in params]


def buffers_of(module):
    return {name: bits(b) for name, b in module.named_buffers()}
