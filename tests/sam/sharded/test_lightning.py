"""``SAMTraining`` with Lightning's ``ModelParallelStrategy``, which shards by ``fully_shard``.

This file is also the script that Lightning starts on each device.
"""

import os
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lowland import SAM

from ..data_parallel.launch import WORLD, found_by_ranks, of_all, work
from ..data_parallel.truth import accumulated, trained
from ..naive import bits, mlp, regression, relative_error, squared

pl = pytest.importorskip("lightning.pytorch")
strategies = pytest.importorskip("lightning.pytorch.strategies")
SAMTraining = pytest.importorskip("lowland.sam.trainers.lightning").SAMTraining

pytestmark = pytest.mark.slow  # three processes that import it take long

RHO, EXAMPLES, BATCH, EPOCHS = 0.4, 16, 4, 2
"""Examples are those of a rank."""

CLIP = 0.5


class Regressor(pl.LightningModule):
    """As its user wrote it to be sharded, without SAM."""

    def __init__(self):
        super().__init__()
        self.net, self.noted = mlp(), []

    def configure_model(self):
        if any(isinstance(p, DTensor) for p in self.parameters()):
            return
        mesh = self.device_mesh["data_parallel"]
        for layer in self.net:
            if [*layer.parameters()]:
                fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def training_step(self, batch, batch_idx):  # noqa: ARG002
        loss = squared(self.net, *batch)
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, *_):
        assert all(isinstance(p, DTensor) for p in self.parameters())
        self.noted.append(self.trainer.callback_metrics["loss"].item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Sharp(SAMTraining, Regressor):
    def __init__(self, **options):
        super().__init__()
        self.options = {"rho": RHO, **options}

    def configure_sam(self):
        return SAM(self, **self.options)


def share(rank):
    return regression(6 + rank, examples=EXAMPLES)


def trainer_of(epochs=EPOCHS, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy=strategies.ModelParallelStrategy(
            data_parallel_size=WORLD, tensor_parallel_size=1, save_distributed_checkpoint=False
        ),
        max_epochs=epochs,
        use_distributed_sampler=False,  # each rank has examples of its own
        enable_checkpointing=False,
        **quiet,
        **options,
    )


def fitted(m, options):
    """Weights, losses as they were logged, and steps."""
    module = Sharp(m=m)
    trainer_of(**options).fit(module, loader())
    return whole(module), module.noted, module.sam.steps_done


def loader():
    return DataLoader(TensorDataset(*share(rank())), batch_size=BATCH)


def rank():
    """Of this process, as the launcher says: Lightning starts that of rank 0 without saying it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def whole(module):
    assert all(isinstance(p, DTensor) for p in module.parameters())
    return [p.full_tensor().detach() for p in module.parameters()]


def _grows(step):
    return 0.1 * (step + 1)


def resumed(folder):
    """Weights after both epochs, of which the first ended in a checkpoint that is data and no code."""
    options = {"rho": _grows, "m": 2}
    trainer = trainer_of(epochs=1)
    trainer.fit(Sharp(**options), loader())
    trainer.save_checkpoint(folder / "kept.ckpt")
    again, in_one_go = Sharp(**options), Sharp(**options)
    trainer_of().fit(again, loader(), ckpt_path=folder / "kept.ckpt", weights_only=True)
    trainer_of().fit(in_one_go, loader())
    return whole(again), again.sam.steps_done, whole(in_one_go)


FITS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": CLIP},
}

CUTS = None, 3


def scenarios(folder):
    """What each process runs, by name."""
    found = {f"{name}, m={m}": partial(fitted, m, FITS[name]) for name, m in product(FITS, CUTS)}
    return {**found, "resumed": partial(resumed, folder)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found."""
    folder = tmp_path_factory.mktemp("lightning")
    command = ["-m", "tests.sam.sharded.test_lightning", str(folder)]
    return found_by_ranks([(command, {})], folder)


def of_truth(m, *, accumulate_grad_batches=1, gradient_clip_val=None):
    """Weights after the steps of one process, which makes those of all ranks."""
    parts = [[t.split(BATCH) for t in share(r)] for r in range(WORLD)]
    batches = [[tuple(column[i] for column in part) for part in parts] for i in range(EXAMPLES // BATCH)]
    steps = accumulated(squared, batches * EPOCHS, m, accumulate_grad_batches)
    make = partial(Clipped if gradient_clip_val else torch.optim.SGD, lr=0.1, momentum=0.9)
    weights, _ = trained(mlp(), steps, rho=RHO, make=make)
    return weights


class Clipped(torch.optim.SGD):
    """Its gradient is first clipped in norm."""

    def step(self):
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], CLIP)
        super().step()


@pytest.mark.parametrize("m", CUTS)
@pytest.mark.parametrize("name", FITS)
def test_training_of_a_sharded_model_is_that_of_one_process(ranks, name, m):
    steps = EPOCHS * EXAMPLES // BATCH // FITS[name].get("accumulate_grad_batches", 1)
    for weights, _, done in of_all(ranks, f"{name}, m={m}"):
        assert relative_error(weights, of_truth(m, **FITS[name])) < 1e-12
        assert done == steps


@pytest.mark.parametrize("m", CUTS)
def test_what_is_logged_is_the_loss_at_unperturbed_weights(ranks, m):
    for r, (_, noted, _) in enumerate(of_all(ranks, f"plain, m={m}")):
        first = tuple(t[:BATCH] for t in share(r))
        assert noted[0] == pytest.approx(squared(mlp(), *first).item(), rel=1e-12)


def test_training_is_continued_identically_from_a_checkpoint(ranks):
    for weights, steps, in_one_go in of_all(ranks, "resumed"):
        assert steps == EPOCHS * EXAMPLES // BATCH
        assert [*map(bits, weights)] == [*map(bits, in_one_go)]


if __name__ == "__main__":
    work(scenarios(Path(sys.argv[1])), os.environ.get("LOCAL_RANK", "0"), sys.argv[1])
