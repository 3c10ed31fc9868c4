"""Loops with an ``Accelerator`` and ``SAMTrainer`` under ``accelerate launch`` with two processes.

This file is also the script that is launched, once for each process, as ``mpirun`` does it on CPUs.
"""

import os
import socket
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from lowland import SAM, Unnormalized

from ..naive import bits, bn_conv, mlp, regression, seeded, squared, tensors
from .launch import WORLD, check, found_by_ranks, of_all, state_of, work
from .truth import accumulated, groups, trained, unnormalized

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
SAMTrainer = pytest.importorskip("lowland.sam.trainers.huggingface").SAMTrainer

pytestmark = [pytest.mark.slow, pytest.mark.stress]  # three processes that import it take long

from ..trainers import tiny  # noqa: E402

RHO = 0.4

CUT = {"whole": (None, "loop"), "singly": (1, "loop"), "singly at once": (1, "batched")}
"""m and the engine."""


# A user's own loop

EXAMPLES, BATCH, EPOCHS = 16, 2, 2


def examples(model):
    if model is mlp:
        return regression(3, examples=EXAMPLES)
    return tuple(tensors(4, (EXAMPLES, 2, 5, 5), (EXAMPLES, 2, 2, 2)))


def loop(cut, *, model=mlp, accumulate=1, known=True):
    """Weights and buffers; SAM is given what was prepared, or the bare model."""
    m, engine = CUT[cut]
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    bare = model()
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(TensorDataset(*examples(model)), batch_size=BATCH)
    ddp, optimizer, loader = accelerator.prepare(bare, optimizer, loader)
    assert isinstance(ddp, DistributedDataParallel)
    sam = SAM(ddp if known else bare, rho=RHO, m=m, engine=engine)
    for _ in range(EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(ddp):
                accelerator.backward(sam.objective(partial(squared, ddp), x, y))
                optimizer.step()
                optimizer.zero_grad()
    return *state_of(bare), sam.steps_done


def dealt(rows):
    """Batches in the order in which an Accelerator deals them out, by rank."""
    batches = [rows(i, i + BATCH) for i in range(0, EXAMPLES, BATCH)] * EPOCHS
    return [batches[i : i + WORLD] for i in range(0, len(batches), WORLD)]


LOOPS = {
    "plain": {},
    "bare": {"known": False},
    "accumulated": {"accumulate": 2},
    "batch norm": {"model": bn_conv},
    "batch norm, bare, accumulated": {"model": bn_conv, "known": False, "accumulate": 2},
}


def of_truth(cut, *, model=mlp, accumulate=1, known=True):  # noqa: ARG001
    m, _ = CUT[cut]
    columns = examples(model)
    batches = dealt(lambda start, stop: tuple(c[start:stop] for c in columns))
    steps = accumulated(squared, batches, m, accumulate)
    return trained(model(), steps, rho=RHO, make=partial(torch.optim.SGD, lr=0.1, momentum=0.9))


# SAMTrainer

ADAM = {"optim": "adamw_torch", "learning_rate": 0.01, "adam_epsilon": 1e-3, "max_grad_norm": 0.0}
SIZE = 2
"""Texts of a batch."""

UNCOUNTED = {4, 5}
"""Texts of which no token is predicted: a whole batch of one rank."""


def texts(*, uncounted=False):
    """Of different numbers of tokens, so that groups and ranks have different ones."""
    rows = tiny.texts() * 2
    if uncounted:
        rows = [
            {**row, "labels": [-100] * len(row["labels"])} if i in UNCOUNTED else row
            for i, row in enumerate(rows)
        ]
    return rows


def by_trainer(folder, cut, *, uncounted=False, sam=None, **options):
    m, engine = CUT[cut]
    options = {**ADAM, "per_device_train_batch_size": SIZE, **options}
    given = {"rho": RHO, "m": m, "engine": engine, **(sam or {})}
    trainer = tiny.trained(SAMTrainer, folder, data=texts(uncounted=uncounted), sam=given, **options)
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    return *state_of(trainer.model), trainer.sam.steps_done


TRAINERS = {
    "three steps": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "unused parameters are looked for": {"ddp_find_unused_parameters": True},
    "a rank without labels that count": {"uncounted": True},
    "unnormalized": {"sam": {"ascent": Unnormalized()}},
    "l2": {"sam": {"l2": 0.3}},
    "means over ranks": {"average_tokens_across_devices": False},
}


TRAINED = [
    (n, cut) for n in TRAINERS for cut in CUT if cut != "singly" or n in ("three steps", "accumulated")
]
RESUMED = ["whole", "singly at once"]


def of_trainer(
    cut,
    *,
    model=None,
    gradient_accumulation_steps=1,
    uncounted=False,
    average_tokens_across_devices=True,
    sam=None,
    **_,
):
    """Each label that counts is of equal weight in all micro-batches, of all ranks or of each."""
    m, _ = CUT[cut]
    size, per_step = m or SIZE, WORLD * SIZE * gradient_accumulation_steps
    rows, steps = texts(uncounted=uncounted), []
    for start in range(0, 3 * per_step, per_step):
        each = [[], []]
        for i in range(start, start + per_step, size):
            if _counts(rows[i : i + size]):
                each[i // SIZE % WORLD].append(tiny.of_texts(rows[i : i + size]))
        totals = [sum(count for _, count in own) for own in each]
        if average_tokens_across_devices:
            totals = [sum(totals) / WORLD] * WORLD
        steps.append(
            [[(n / total, loss) for loss, n in own] for own, total in zip(each, totals, strict=True)]
        )
    make = partial(torch.optim.AdamW, lr=0.01, eps=1e-3, weight_decay=0.0)
    options = {"l2": 0.3} if "l2" in (sam or {}) else {"climb": unnormalized} if sam else {}
    return trained(model or tiny.language_model(), steps, rho=RHO, make=make, **options)


def _counts(group):
    return any(label != -100 for row in group for label in row["labels"])


class Normed(nn.Module):
    """Batch norm, and dropout where it is wanted; the loss is of all labels of a step, as the trainer's."""

    def __init__(self, p=0.0):
        super().__init__()
        layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(p), nn.Linear(6, 3)
        self.net = seeded(nn.Sequential(*layers))

    def forward(self, x, labels, num_items_in_batch=None, **_):
        total = (self.net(x) - labels).square().sum()
        return {"loss": total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)}


def stacked(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def normed(folder, cls, sam, p=0.0, **options):
    x, y = regression(5, examples=24)
    data = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    options = {**ADAM, "per_device_train_batch_size": 4, "max_steps": 3, **options}
    trainer = tiny.trained(cls, folder, Normed(p), data=data, collator=stacked, sam=sam, **options)
    return state_of(trainer.model)


def of_normed(m):
    x, y = regression(5, examples=24)
    parts = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 24, 4)]
    steps = [[groups(_loss_of_normed, part, m) for part in parts[i : i + 2]] for i in (0, 2, 4)]
    make = partial(torch.optim.AdamW, lr=0.01, eps=1e-3, weight_decay=0.0)
    return trained(Normed(), steps, rho=RHO, make=make)


def _loss_of_normed(run, x, y):
    return run(x, y)["loss"]


def resumed(folder, cut):
    """Four steps in one go, of which the second is kept; then two from there."""
    m, engine = CUT[cut]
    sam = {"rho": _grows, "m": m, "engine": engine}
    options = {**ADAM, "per_device_train_batch_size": SIZE, "max_steps": 4, "data": texts()}
    kept = {"save_strategy": "steps", "save_steps": 2}
    whole = tiny.trained(SAMTrainer, folder, sam=sam, **options, **kept)
    again = tiny.trained(SAMTrainer, folder, sam=sam, **options, resume=str(folder / "checkpoint-2"))
    assert again.state.global_step == 4
    return *state_of(again.model), again.sam.steps_done, state_of(whole.model)[0]


def _grows(step):
    return 0.1 * (step + 1)


def scenarios(folder):
    """What each process runs, by name."""
    found = {f"loop, {n}, {cut}": partial(loop, cut, **LOOPS[n]) for n in LOOPS for cut in CUT}
    found |= {
        f"{n}, {cut}": partial(by_trainer, folder / "out", cut, **TRAINERS[n])
        for n in TRAINERS
        for cut in CUT
    }
    found |= {f"resumed, {cut}": partial(resumed, folder / f"resumed {cut}", cut) for cut in RESUMED}
    for m in (None, 2):
        found[f"normed, m={m}"] = partial(normed, folder / "out", SAMTrainer, {"rho": RHO, "m": m})
    found["dropout, sam"] = partial(normed, folder / "out", SAMTrainer, {"rho": 0.0}, p=0.5)
    found["dropout, plain"] = partial(normed, folder / "out", transformers.Trainer, None, p=0.5)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found."""
    folder = tmp_path_factory.mktemp("accelerate")
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(WORLD)]
    rest = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    port = ["--main_process_port", str(_free_port())]
    script = ["-m", "tests.sam.data_parallel.test_accelerate", str(folder)]
    mpi = [
        {
            "OMPI_COMM_WORLD_RANK": str(rank),
            "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
            "OMPI_COMM_WORLD_SIZE": str(WORLD),
            "OMPI_COMM_WORLD_LOCAL_SIZE": str(WORLD),
        }
        for rank in range(WORLD)
    ]
    return found_by_ranks([([*launch, *rest, *port, *script], each) for each in mpi], folder)


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("cut", CUT)
@pytest.mark.parametrize("name", LOOPS)
def test_loop_with_an_accelerator_is_that_of_one_process(ranks, name, cut):
    check(ranks, f"loop, {name}, {cut}", of_truth(cut, **LOOPS[name]))
    steps = EPOCHS * EXAMPLES // BATCH // WORLD // LOOPS[name].get("accumulate", 1)
    assert {done for *_, done in of_all(ranks, f"loop, {name}, {cut}")} == {steps}


@pytest.mark.parametrize(("name", "cut"), TRAINED)
def test_trainers_steps_weight_labels_that_count_alike_in_all_ranks(ranks, name, cut):
    check(ranks, f"{name}, {cut}", of_trainer(cut, **TRAINERS[name]))


@pytest.mark.parametrize("m", [None, 2])
def test_trainer_of_a_model_with_batch_norm_begins_each_step_with_the_buffers_of_rank_0(ranks, m):
    check(ranks, f"normed, m={m}", of_normed(m))


def test_trainer_with_radius_0_draws_dropout_on_each_rank_as_the_plain_one(ranks):
    for sam, plain in zip(of_all(ranks, "dropout, sam"), of_all(ranks, "dropout, plain"), strict=True):
        assert [*map(bits, sam[0])] == [*map(bits, plain[0])]


@pytest.mark.parametrize("cut", RESUMED)
def test_trainer_resumes_identically_on_all_ranks(ranks, cut):
    found = of_all(ranks, f"resumed, {cut}")
    for weights, _, steps, whole in found:
        assert steps == 4
        assert [*map(bits, weights)] == [*map(bits, whole)] == [*map(bits, found[0][0])]


if __name__ == "__main__":
    work(scenarios(Path(sys.argv[1])), os.environ["OMPI_COMM_WORLD_RANK"], sys.argv[1])
    torch.distributed.destroy_process_group()
