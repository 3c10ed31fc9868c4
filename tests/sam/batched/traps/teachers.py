"""Teachers: the loss's second network, of other weights, of the same, or of a copy of them."""

import copy

import torch
from torch import nn

from ...naive import seeded
from ..models import parameter
from .making import plain, two_layers
from .registry import exact, refused


def teaching(teach, **members):
    def forward(s, x):
        return plain(s, x) + teach(s, x)

    return two_layers(forward, **members)


@exact
def teacher_of_other_weights():
    other = seeded(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), 5)

    def teach(_, x):
        with torch.no_grad():
            return other(x)

    return teaching(teach)


@exact
def teacher_of_the_same_weights_moves_with_them():
    def teach(s, x):
        with torch.no_grad():
            return plain(s, x)

    return teaching(teach)


@refused(r"sum \(Inference tensors .*\)")
def teacher_in_inference_mode():
    def teach(s, x):
        with torch.inference_mode():
            y = plain(s, x) + s.c.sum()
        return y.clone() + s.c

    return teaching(teach, c=parameter(3))


@refused(r"Tensor\.data")
def teacher_that_is_a_deep_copy():
    def teach(s, x):
        with torch.no_grad():
            return copy.deepcopy(s.a)(x)[:, :3]

    return teaching(teach)


@exact
def teacher_of_the_state_dict():
    def teach(s, x):
        return torch.func.functional_call(s.a, s.a.state_dict(), x)[:, :3]

    return teaching(teach)


@refused(r"what torch\.func\.vmap cannot run \(Error\(s\) in loading state_dict for Linear:\)")
def teacher_that_loads_the_weights():
    other = nn.Linear(4, 4, dtype=torch.float64)

    def teach(s, x):
        other.load_state_dict(s.a.state_dict())
        with torch.no_grad():
            return other(x)[:, :3]

    return teaching(teach)


@refused("a gradient inside the loss")
def weights_frozen_for_a_while():
    def teach(s, x):
        s.a.requires_grad_(False)
        y = s.a(x)
        s.a.requires_grad_(True)
        return y[:, :3]

    return teaching(teach)
