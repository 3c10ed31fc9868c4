"""Parameters that are put into a sharded model after it was cut. One process is enough."""

import pytest
from torch import nn
from torch.distributed.fsdp import fully_shard

from lowland import SAM

from ..naive import mlp, naive_sam, regression, relative_error, seeded, squared, tensors
from .models import sharded, whole

RHO = 0.3


def tied():
    model = seeded(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4)))
    model[2].weight = model[0].weight
    return model


def batch_of_four():
    return tuple(tensors(2, (6, 4), (6, 4)))


def test_parameters_that_a_loader_put_in_the_places_of_others_are_those_of_the_model(mesh):
    model, batch = sharded(mlp(seed=1), mesh), regression(examples=6)
    for part, loaded in zip(model, sharded(mlp(), mesh), strict=True):
        for name, p in loaded.named_parameters():
            setattr(part, name, p)
    SAM(model, rho=RHO, m=2).backward(lambda x, y: squared(model, x, y), *batch)
    expected = naive_sam(mlp(), squared, batch, rho=RHO, m=2)
    assert relative_error(whole(model, gradients=True), expected.gradients) < 1e-12


def test_weight_that_was_tied_before_is_of_one_unit(mesh):
    model, batch = tied(), batch_of_four()
    fully_shard([model[0], model[2]], mesh=mesh)
    fully_shard(model, mesh=mesh)
    SAM(model, rho=RHO, m=2).backward(lambda x, y: squared(model, x, y), *batch)
    expected = naive_sam(tied(), squared, batch, rho=RHO, m=2)
    assert relative_error(whole(model, gradients=True), expected.gradients) < 1e-12


def test_weight_that_was_tied_afterwards_across_units_is_refused(mesh):
    model = sharded(seeded(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4))), mesh)
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match="each parameter in one unit of fully_shard, got one that several"):
        SAM(model, rho=RHO).backward(lambda x, y: squared(model, x, y), *batch_of_four())
