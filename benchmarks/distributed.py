"""What data-parallel steps send, counted, and what they take beside plain ones: two gloo processes.

    python benchmarks/distributed.py --rounds 41
    python benchmarks/distributed.py --large

Each network is wrapped in ``DistributedDataParallel`` as it comes, and trained plainly, with SAM, with m-SAM
group by group and all groups at once, and with climbs that the processes make together. Collectives and bytes
are those of the backend, as the profiler sees them, of one process in a step after two to warm up: what DDP's
own reducer sends is among them. Then each kind makes one step in each round, in turns, with a barrier at its
end; ratios are to the plain step of the same round. What torch itself writes goes to the other stream.

A GPT is cut into three units by ``fully_shard``, whose collectives are those that FSDP asks for: as many as
are computed, or the script fails. ``--large`` only computes what a model sends that is too large for here.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sharded_traffic
from interleaved import Step, measured, ratios
from lowland.sam import SAM
from sharded_gpt import GPT
from sharded_traffic import BYTES, PLAIN

Make = Callable[[], tuple[nn.Module, tuple[int, ...]]]
"""Makes a network, and tells the shape of an example."""

Sent = tuple[Counter[str], int]
"""Collectives by kind, and bytes."""

Table = tuple[dict[str, Step], dict[str, Sent], int]
"""Steps, what each sends, and the number of parameters."""


def main() -> None:
    """Starts the processes, of which the first prints a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--examples", type=int, default=16, help="of each process")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--networks", nargs="+", choices=TABLES, default=[*TABLES])
    parser.add_argument("--large", action="store_true", help="only compute what a large model sends")
    arguments = parser.parse_args()
    if arguments.large:
        sharded_traffic.print_large()
        return
    with tempfile.TemporaryDirectory() as folder:
        given = arguments, str(Path(folder) / "init")
        torch.multiprocessing.spawn(_process, given, nprocs=arguments.processes)


def _process(rank: int, arguments: argparse.Namespace, init: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "m = 1 normalizes each example by itself")
    world = arguments.processes
    dist.init_process_group("gloo", init_method=f"file://{init}", rank=rank, world_size=world)
    if rank == 0:
        print(
            f"torch {torch.__version__}, {world} processes of one thread, "
            f"{arguments.examples} examples each, {arguments.rounds} rounds"
        )
    for network in arguments.networks:
        _table(network, rank, arguments)
    dist.destroy_process_group()


def _table(network: str, rank: int, arguments: argparse.Namespace) -> None:
    steps, sent, parameters = TABLES[network](arguments.examples)
    times = measured({name: partial(_with_barrier, step) for name, step in steps.items()}, arguments.rounds)
    if rank > 0:
        return
    kinds = sorted({kind for counts, _ in sent.values() for kind in counts})
    print(f"\n{network}, {parameters:,} parameters\n")
    print(f"| | {' | '.join(kinds)} | bytes | median ms | / plain (quartiles) |")
    print("|---" * (len(kinds) + 4) + "|")
    for name, (counts, size) in sent.items():
        low, middle, high = ratios(times, name, PLAIN)
        cells = [f"{counts[kind]}" for kind in kinds]
        cells += [
            f"{size:,}",
            f"{1e3 * statistics.median(times[name]):.2f}",
            f"{middle:.2f} ({low:.2f}–{high:.2f})",
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _replicated(make: Make, examples: int) -> Table:
    steps = {name: _step(make, examples, **kind) for name, kind in _kinds(dist.group.WORLD).items()}
    return steps, {name: _sent(_events(step)) for name, step in steps.items()}, _size(make()[0])


def _sharded(reshards: bool, examples: int) -> Table:
    found = sharded_traffic.steps(examples, reshards=reshards)
    sent = {name: sharded_traffic.sent(_events(step)) for name, (step, _) in found.items()}
    for name, (_, passes) in found.items():
        sharded_traffic.require_computed(sent[name][0], passes, reshards=reshards)
    return {name: step for name, (step, _) in found.items()}, sent, _size(GPT(sharded_traffic.SIZES))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _events(step: Step) -> list[Any]:
    """What the profiler sees of a step after two to warm up."""
    for _ in range(2):
        step()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as profile:
        step()
    results: Any = profile.profiler
    return [*results.kineto_results.events()]


def _sent(events: list[Any]) -> Sent:
    """Collectives by kind, and the bytes of what this process has in them."""
    counts, size = Counter[str](), 0
    for event in events:
        if event.name().startswith("gloo:"):
            counts[event.name().removeprefix("gloo:")] += 1
            size += sum(
                math.prod(shape) * BYTES[dtype]
                for shape, dtype in zip(event.shapes(), event.dtypes(), strict=True)
            )
    return counts, size


def _with_barrier(step: Step) -> None:
    step()
    dist.barrier()


def _kinds(group: dist.ProcessGroup) -> dict[str, dict[str, Any]]:
    """Options of SAM, by name; none for plain training."""
    world = dist.get_world_size(group)
    return {
        PLAIN: {},
        "SAM, each its batch": {"m": None},
        "4-SAM, loop": {"m": 4, "engine": "loop"},
        "4-SAM, at once": {"m": 4, "engine": "batched"},
        "1-SAM, loop": {"m": 1, "engine": "loop"},
        "1-SAM, at once": {"m": 1, "engine": "batched"},
        "SAM, together": {"m": None, "process_group": group},
        f"{4 * world}-SAM, together": {"m": 4 * world, "process_group": group},
    }


def _step(make: Make, examples: int, **options: Any) -> Step:
    torch.manual_seed(0)
    module, shape = make()
    torch.manual_seed(1 + dist.get_rank())
    x, y = torch.randn(examples, *shape), torch.randint(10, (examples,))
    ddp = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-3, momentum=0.9)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(ddp(x), y)

    sam = SAM(ddp, rho=0.05, **options) if options else None

    def step() -> None:
        optimizer.zero_grad()
        if sam is None:
            loss(x, y).backward()
        else:
            sam.backward(loss, x, y)
        optimizer.step()

    return step


def _conv() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    layers += [nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)), (3, 16, 16)


def _mlp() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(*layers), (784,)


TABLES: dict[str, Callable[[int], Table]] = {
    "conv net with batch norm": partial(_replicated, _conv),
    "MLP 784-256-256-10": partial(_replicated, _mlp),
    "sharded GPT": partial(_sharded, True),
    "sharded GPT, kept gathered": partial(_sharded, False),
}

if __name__ == "__main__":
    main()
