"""``SAMTraining`` in Lightning's ``Trainer`` on two devices, which starts the second process by itself.

This file is also the script that it starts.
"""

import os
import sys
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lowland import SAM

from ..naive import Skips, bn_conv, mlp, regression, squared, tensors
from .launch import WORLD, check, found_by_ranks, of_all, state_of, work
from .truth import accumulated, trained

pl = pytest.importorskip("lightning.pytorch")
strategies = pytest.importorskip("lightning.pytorch.strategies")
SAMTraining = pytest.importorskip("lowland.sam.trainers.lightning").SAMTraining

pytestmark = [pytest.mark.slow, pytest.mark.stress]  # three processes that import it take long

RHO, EXAMPLES, BATCH, EPOCHS = 0.4, 16, 4, 2

CUT = {"whole": (None, "loop"), "pairs": (2, "loop"), "pairs at once": (2, "batched")}
"""m and the engine."""


class Regressor(pl.LightningModule):
    """As its user wrote it, without SAM."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):  # noqa: ARG002
        return squared(self.net, *batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Sharp(SAMTraining, Regressor):
    def __init__(self, net, **options):
        super().__init__(net)
        self.options = options

    def configure_sam(self):
        return SAM(self, rho=RHO, **self.options)


def data(model):
    if model is bn_conv:
        return tuple(tensors(6, (EXAMPLES, 2, 5, 5), (EXAMPLES, 2, 2, 2)))
    return regression(6, examples=EXAMPLES)


def fitted(cut, *, model=mlp, strategy="ddp", accumulate=1):
    m, engine = CUT[cut]
    module = Sharp(model(), m=m, engine=engine)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy=strategy if isinstance(strategy, str) else strategy(),
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(*data(model)), batch_size=BATCH))
    return *state_of(module.net), module.sam.steps_done


def static_graph():
    return strategies.DDPStrategy(static_graph=True)


FITS = {
    "ddp": {},
    "batch norm": {"model": bn_conv},
    "accumulated": {"accumulate": 2},
    "unused": {"model": Skips, "strategy": "ddp_find_unused_parameters_true"},
    "static graph": {"strategy": static_graph},
    "batch norm, static graph": {"model": bn_conv, "strategy": static_graph},
}


def scenarios():
    """What each process runs, by name."""
    return {f"{n}, {cut}": partial(fitted, cut, **FITS[n]) for n in FITS for cut in _cuts(n)}


def _cuts(name):
    """Which groups use a layer depends on their data: they are not run at once."""
    return [cut for cut in CUT if name != "unused" or CUT[cut][1] == "loop"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found."""
    folder = tmp_path_factory.mktemp("lightning")
    command = ["-m", "tests.sam.data_parallel.test_lightning_ddp", str(folder)]
    return found_by_ranks([(command, {})], folder)


def dealt(columns):
    """Batches as Lightning deals them out, by rank: it shuffles, and then interleaves."""
    for epoch in range(EPOCHS):
        draws = torch.Generator().manual_seed(epoch)
        order = torch.randperm(EXAMPLES, generator=draws)
        for start in range(0, EXAMPLES // WORLD, BATCH):
            numbers = [order[rank::WORLD][start : start + BATCH] for rank in range(WORLD)]
            yield [tuple(t[own] for t in columns) for own in numbers]


def of_truth(cut, *, model=mlp, strategy="ddp", accumulate=1):  # noqa: ARG001
    m, _ = CUT[cut]
    batches = [*dealt(data(model))]
    steps = accumulated(squared, batches, m, accumulate)
    return trained(model(), steps, rho=RHO, make=partial(torch.optim.SGD, lr=0.1, momentum=0.9))


@pytest.mark.parametrize(("name", "cut"), [(name, cut) for name in FITS for cut in _cuts(name)])
def test_training_on_two_devices_is_that_of_one_process(ranks, name, cut):
    check(ranks, f"{name}, {cut}", of_truth(cut, **FITS[name]))
    accumulate = FITS[name].get("accumulate", 1)
    steps = EPOCHS * EXAMPLES // WORLD // BATCH // accumulate
    assert {done for *_, done in of_all(ranks, f"{name}, {cut}")} == {steps}


if __name__ == "__main__":
    work(scenarios(), os.environ.get("LOCAL_RANK", "0"), sys.argv[1])
