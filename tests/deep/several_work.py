"""What each process of ``test_several.py`` does: ``python -m tests.deep.several_work RANK SIZE FOLDER``."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tests.deep.room import CPU, make_data, small
from torch import nn
from torch.nn import functional as F

import lowland.deep.checkpoint
from lowland.deep import Control, Interrupted, TrainState, ranks, train
from lowland.errors import InputError
from lowland.runs import Run
from lowland.sam import SAM

NETWORK = "tests.deep.several_work"
COMMON = {"dtype": "float64", "epochs": 2, "sam_rho": 0.1, "batch_size": 12, "m": 2, "engine": "loop"}
LONG = COMMON | {"epochs": 15, "sgd_p_label_noise": 0.2, "dataset": "cifar10", "swa_tau": 0.9}
LONG |= {"model": f"{NETWORK}:conv", "model_width": None}
# Batch norms of two or three values multiply a rounding error tenfold at each step: groups are larger here.
BATCH_NORM = COMMON | {"model": "resnet_tiny", "model_width": 4, "lr_max": 0.005, "batch_size": 24, "m": 6}
BATCH_NORM |= {"droprate": 0.2, "engine": "batched"}
ALONE = COMMON | {"m": None, "n_layers": 2, "droprate": 0.3}

CONFIGS = {
    "batch norm": LONG | {"batch_size": 11, "m": 3},
    "group norm": LONG | {"model_arg": ("norm=group",), "engine": "auto", "loss": f"{NETWORK}:halves"},
    "recorded": BATCH_NORM,
    "both passes move statistics": BATCH_NORM | {"bn_stats": "both", "engine": "loop", "droprate": 0.0},
    "frozen statistics": LONG | {"epochs": 2, "freeze_bn_stats": True, "m": None},
    "the batch before": COMMON | {"sam_use_prev_batch": True, "droprate": 0.3, "optimizer": "adam", "m": 3},
    "length of SAM's gradient": COMMON | {"only_sam_step_size": True, "sam_epoch_frac_start": 0.6},
    "noise": COMMON
    | {
        "add_weight_perturb_scale": 0.1,
        "mul_weight_perturb_scale": 0.1,
        "grad_gauss_std": 0.01,
        "l2_reg": 0.01,
    },
    "plain": ALONE | {"sam_rho": 0.0, "engine": "auto", "batch_size": 11, "l1_reg": 1e-3, "l2_reg": 0.1},
    "one climb": ALONE | {"sam_iters": 2, "batch_size": 11, "sam_epoch_frac_end": 0.6},
    "one climb on the batch before": ALONE | {"sam_use_prev_batch": True},
    "smallest losses": COMMON
    | {"sam_rho": 0.0, "engine": "auto", "loss": "smallest_k_ce", "frac_rm_per_batch": 0.4, "m": 3},
    "fewer points": COMMON
    | {"n_rm_pts": 0.3, "epoch_rm_noise": 0.5, "rm_criterion": "entropy", "batch_size_eval": 7}
    | {"attack": "pgd", "eps": 8.0, "batch_size": 8},
}
BY_FOUR = ("batch norm", "group norm", "the batch before", "plain", "one climb")
"""What four processes do, too."""
STOPPED = LONG | {"epochs": 2, "sam_use_prev_batch": True}
STOP_AT = 4

REFUSED = {
    "too few groups": COMMON | {"m": 9},
    "batch norm": BATCH_NORM | {"m": None},
    "own batch norm": LONG | {"m": None, "sam_rho": 0.0, "engine": "auto"},
    "smallest losses": COMMON | {"loss": "smallest_k_ce", "frac_rm_per_batch": 0.4, "m": None},
    "gradient by inputs": COMMON | {"input_grad_reg_lambda": 0.1, "m": None},
    "own loss": COMMON | {"loss": f"{NETWORK}:halves", "m": None},
    "draws": COMMON | {"model": f"{NETWORK}:drawing", "model_width": None},
    "drawing loss": COMMON | {"loss": f"{NETWORK}:noisy"},
    "buffers": COMMON | {"model": f"{NETWORK}:counting", "model_width": None},
    "sequence first": COMMON | {"model": f"{NETWORK}:turned", "model_width": None},
    "cumulative": COMMON | {"model": f"{NETWORK}:cumulative", "model_width": None},
    "the batch before": COMMON | {"m": None, "sam_use_prev_batch": True, "batch_size": 11},
}


def conv(num_classes, norm="batch"):
    """A layer of dropout that is used twice; of the batch norms each group has enough values."""
    norms = [nn.BatchNorm2d(4), nn.BatchNorm2d(6, momentum=0.3)]
    first, second = norms if norm == "batch" else [nn.GroupNorm(2, 4), nn.GroupNorm(2, 6)]
    drop = nn.Dropout(0.2)
    layers = [nn.Conv2d(1, 4, 3, padding=1, bias=False), first, nn.ReLU(), drop]
    more = [nn.Conv2d(4, 6, 3, bias=False), second, nn.ReLU(), nn.Flatten(), drop]
    return nn.Sequential(*layers, *more, nn.Linear(24, num_classes))


def halves(outputs, labels):
    return F.cross_entropy(outputs, labels) / 2


def noisy(outputs, labels):
    return F.cross_entropy(outputs + torch.rand_like(outputs), labels)


class Drawing(nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x.flatten(1)), 0.1, self.training)


def drawing(num_classes):
    return Drawing(16, num_classes)


class Turned(nn.Module):
    """Its dropout sees the two rows of a group as features, and as many pixels as rows."""

    def __init__(self, num_classes):
        super().__init__()
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(32, num_classes)

    def forward(self, x):
        first = x.flatten(1)[:, :2].t()
        rest = x.flatten(1).repeat(1, 2)
        return self.last(rest * self.drop(first).t().sum(1, keepdim=True))


def turned(num_classes):
    return Turned(num_classes)


class Counting(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.largest.copy_(torch.maximum(self.largest, x.detach().max() + self.largest))
        return super().forward(x.flatten(1))


def counting(num_classes):
    return nn.Sequential(Counting(16, num_classes))


def cumulative(num_classes):
    norm = nn.BatchNorm1d(6, momentum=None)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), norm, nn.Linear(6, num_classes))


class Watched:
    """Notes what this process is given to train on, and the network."""

    def __init__(self):
        self.examples, self.module, self.backward = [], None, SAM.backward

    def __enter__(self):
        def backward(sam, loss, *batch, **options):
            self.examples.append(len(batch[0]))
            self.module = sam.module
            return self.backward(sam, loss, *batch, **options)

        SAM.backward = backward
        return self

    def __exit__(self, *_):
        SAM.backward = self.backward


def trained(config, folder, **control):
    """What a run leaves in this process: rows, weights, and how many examples each step had."""
    run = Run(folder)
    ranks().first_alone(lambda: Run.create(folder, config.to_dict(), {}) and None)
    with Watched() as watched:
        try:
            rows = train(config, make_data(84, flipped=0.2), CPU, run, Control(**control))
        except Interrupted:
            return "interrupted"
    own = {name: t.clone() for name, t in watched.module.state_dict().items()}
    return {"rows": rows, "own": own, "examples": watched.examples}


def said(work):
    try:
        work()
    except (InputError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def stopped(folder):
    """A run that the last process is asked to stop."""
    steps = iter(range(1, 1000))
    is_last = ranks().rank == ranks().size - 1
    return trained(small(**STOPPED), folder, should_stop=lambda: next(steps) == STOP_AT and is_last)


def full_disk(folder):
    """The first process cannot write its checkpoint."""
    write = lowland.deep.checkpoint.write_tensors

    def fails(path, *_):
        raise OSError(28, "No space left on device", str(path.name))

    if ranks().is_first:
        lowland.deep.checkpoint.write_tensors = fails
    try:
        return said(lambda: trained(small(**COMMON), folder))
    finally:
        lowland.deep.checkpoint.write_tensors = write


def waited_for(path):
    while not path.exists():
        time.sleep(0.1)


def found(rank, size, folder):
    """All that this process finds."""
    here = folder / str(size)
    yield "stopped", stopped(here / "stopped")
    if rank == 0:
        (here / "ready").touch()
    for name, options in CONFIGS.items() if size < 4 else ((name, CONFIGS[name]) for name in BY_FOUR):
        yield name, trained(small(**options), here / name.replace("'", ""))
    if size == 4:
        data = make_data(84)
        for name, options in REFUSED.items():
            yield f"refused: {name}", said(lambda o=options: TrainState(small(**o), data, CPU))
        yield "refused: many", said(lambda: TrainState(small(batch_size=size - 1), data, CPU))
        yield "full disk", full_disk(here / "full")
    other = folder / str({1: 2, 2: 4, 4: 1}[size])
    waited_for(other / "ready")
    yield "resumed", trained(small(**STOPPED), other / "stopped")


def work(rank, size, folder):
    torch.set_num_threads(1)
    os.environ.setdefault("LOWLAND_CACHE", str(folder / "cache"))
    if size > 1:
        init = f"file://{folder / f'init{size}'}"
        limit = timedelta(seconds=120)
        dist.init_process_group("gloo", init_method=init, rank=rank, world_size=size, timeout=limit)
    torch.save(dict(found(rank, size, folder)), folder / f"found-{size}-{rank}")
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
