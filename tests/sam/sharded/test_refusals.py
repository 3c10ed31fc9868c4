"""What is asked of sharded models in vain. One process is enough: it is refused before anything is sent."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from lowland import SAM, SAMOptimizer, sam_gradient, sharpness
from lowland.sam import Adaptive, Functional, MicroBatches, PreviousBatch, Random, Weighted

from ..naive import mlp, naive_sam, regression, relative_error, squared
from .models import sharded, shards, uneven, whole


class Own:
    """An ascent of the user's."""

    def __call__(self, step):
        return [step.rho * g for g in step.g]


ASKED = {
    "engine='loop' alone": ({"engine": "loop"}, "two ways.*process_group=.*got engine='loop'"),
    "Adaptive": ({"ascent": Adaptive()}, "reads_weights = False.*got Adaptive"),
    "Random": ({"ascent": Random()}, "reads_weights = False.*got Random"),
    "an ascent of the user's": ({"ascent": Own()}, "reads_weights = False.*got Own"),
    "combine": ({"combine": Weighted(0.5)}, "combine must be left out"),
    "source": ({"source": PreviousBatch()}, "source must be left out"),
    "capture": ({"capture": "replay"}, "capture must be left out"),
    "max_memory": ({"max_memory": 10**9}, "max_memory must be left out"),
}


@pytest.mark.parametrize("name", ASKED)
def test_option_without_a_form_is_refused_by_the_constructor_and_where_it_is_set_later(mesh, name):
    options, words = ASKED[name]
    model = sharded(uneven(), mesh)
    with pytest.raises(ValueError, match=words):
        SAM(model, rho=0.1, **options)
    later = SAM(model, rho=0.1)
    for option, value in options.items():
        setattr(later, option, value)
    before = shards(model)
    with pytest.raises(ValueError, match=words):
        later.backward(lambda x, y: squared(model, x, y), *regression(examples=6))
    assert later.steps_done == 0
    assert all(map(torch.equal, shards(model), before))
    assert all(p.grad is None for p in model.parameters())


def test_batched_engine_does_not_climb_together(mesh):
    with pytest.raises(ValueError, match=r"two ways.*got engine='batched'"):
        SAM(sharded(uneven(), mesh), rho=0.1, engine="batched", process_group=mesh.get_group())


def part_is_whole(mesh):
    model = uneven()
    fully_shard(model[0], mesh=mesh)
    return model


def by_tensors(mesh):
    plan = {"0": ColwiseParallel(), "2": ColwiseParallel()}
    return parallelize_module(mlp(), mesh, plan)


def by_both(_):
    both = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "tensor"))
    model = parallelize_module(mlp(), both["tensor"], {"0": ColwiseParallel(), "2": ColwiseParallel()})
    return fully_shard(model, mesh=both["data"])


def offloaded(mesh):
    return sharded(uneven(), mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))


def partly_reduced(mesh):
    model = sharded(uneven(), mesh)
    model.set_requires_all_reduce(False)
    return model


CUT = {
    "FSDP1": (lambda _: FullyShardedDataParallel(mlp(), device_id=torch.device("cpu")), "FSDP2.*got.*FSDP1"),
    "in part": (part_is_whole, "all its trained parameters sharded.*got 4 that are not"),
    "tensor parallel": (by_tensors, "got DTensors of tensor parallelism"),
    "tensor parallel besides": (by_both, "fully_shard alone, got one that is tensor parallel besides"),
    "on the CPU": (offloaded, "no CPUOffloadPolicy here, got one"),
    "reduced in part": (partly_reduced, "set_requires_all_reduce must be True"),
}


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
@pytest.mark.parametrize("name", CUT)
def test_model_that_is_cut_otherwise_is_refused(mesh, name):
    make, words = CUT[name]
    model = make(mesh)
    with pytest.raises(ValueError, match=words):
        SAM(model, rho=0.1).backward(lambda x, y: squared(model, x, y), *regression())


def test_parameters_by_themselves_are_refused(mesh):
    model = sharded(uneven(), mesh)
    batch = regression()
    with pytest.raises(ValueError, match=r"given as their module, SAM\(model\), where FSDP has sharded them"):
        SAM(model.parameters(), rho=0.1).backward(lambda x, y: squared(model, x, y), *batch)
    with pytest.raises(ValueError, match="given as their module"):
        sam_gradient(lambda x, y: squared(model, x, y), [*model.parameters()], batch, rho=0.1)
    with pytest.raises(ValueError, match=r"SAMOptimizer must have whole parameters.*FSDP.*lowland.SAM"):
        SAMOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1)


def test_measures_of_shards_are_refused(mesh):
    model, batch = sharded(uneven(), mesh), regression()
    for measure in (partial(sharpness.worst_case, rho=0.1), sharpness.hessian_trace):
        with pytest.raises(ValueError, match="whole where sharpness is measured, got some that FSDP has"):
            measure(lambda x, y: squared(model, x, y), [*model.parameters()], batch)


def test_losses_and_batches_without_a_form_are_refused(mesh):
    model = sharded(uneven(), mesh)
    sam = SAM(model, rho=0.1)
    halves = Functional(lambda x, _: model(x), lambda out, _, y: (out - y).square().mean())
    with pytest.raises(ValueError, match="one function where the model is sharded, got Functional"):
        sam.backward(halves, *regression())
    with pytest.raises(ValueError, match="got MicroBatches: call with scale=1/k"):
        sam.backward(lambda x, y: squared(model, x, y), MicroBatches([regression()]))


def test_ranks_of_the_mesh_may_be_given_as_another_group(mesh):
    model = sharded(uneven(), mesh)
    sam = SAM(model, rho=0.1, process_group=dist.group.WORLD)
    sam.backward(lambda x, y: squared(model, x, y), *regression())
    assert (
        relative_error(
            whole(model, gradients=True), naive_sam(uneven(), squared, regression(), rho=0.1).gradients
        )
        < 1e-12
    )


def test_loss_that_does_not_use_a_parameter_is_refused_with_l2(mesh):
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = uneven(), nn.Linear(2, 2).double()

        def forward(self, x):
            return self.used(x)

    model = fully_shard(Spare(), mesh=mesh)
    batch = regression()
    with pytest.raises(ValueError, match=r"loss must use all trained parameters.*l2 is positive"):
        SAM(model, rho=0.1, l2=0.1, m=2).backward(lambda x, y: squared(model, x, y), *batch)
    SAM(model, rho=0.1, m=2).backward(lambda x, y: squared(model, x, y), *batch)
    assert model.spare.weight.grad is None
    expected = naive_sam(uneven(), squared, batch, rho=0.1, m=2).gradients
    assert relative_error([p.grad.full_tensor() for p in model.used.parameters()], expected) < 1e-12


def test_group_climb_does_not_mix_with_gradients_that_wait(mesh):
    model, batch = sharded(uneven(), mesh), regression()
    model.set_requires_gradient_sync(False)
    squared(model, *batch).backward()
    model.set_requires_gradient_sync(True)
    sam = SAM(model, rho=0.1, process_group=mesh.get_group())
    with pytest.raises(ValueError, match="process_group must be None while FSDP keeps gradients"):
        sam.backward(lambda x, y: squared(model, x, y), *batch)
