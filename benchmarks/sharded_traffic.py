"""What training a sharded model sends: counted for a small GPT, and computed for one of 7 billion weights.

A unit's weights are gathered for its forward pass, and again for its backward pass unless they are kept until
then, as those of the root always are. A pass whose gradients are reduced scatters those of each unit once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from interleaved import Step
from lowland.sam import SAM
from sharded_gpt import Sizes, batch_of, loss_of, sharded

SIZES = Sizes(blocks=2, width=192, tokens=16)
PLAIN = "plain"
ASKED = {
    "c10d::_allgather_base_": "all-gathers",
    "c10d::_reduce_scatter_base_": "reduce-scatters",
    "c10d::allreduce_": "all-reduces",
}
BYTES = {"float": 4, "double": 8, "int": 4, "long int": 8, "unsigned char": 1}
"""Bytes of the profiler's types."""


@dataclass(frozen=True)
class Passes:
    """Passes forward and backward of a step, and those of them whose gradients are reduced."""

    made: int
    reduced: int

    def gathered(self, block: int, root: int, blocks: int, *, reshards: bool = True) -> int:
        """What the all-gathers of a step add up to, where ``block`` and ``root`` are those of a unit."""
        return self.made * (blocks * block * (2 if reshards else 1) + root)

    def scattered(self, block: int, root: int, blocks: int) -> int:
        """The same of the reduce-scatters."""
        return self.reduced * (blocks * block + root)


@dataclass(frozen=True)
class Kind:
    """A way to train: options of SAM, none for plain training, and the passes that they take."""

    options: dict[str, Any]
    passes: Passes


def kinds(examples: int, group: dist.ProcessGroup) -> dict[str, Kind]:
    """Ways to train with that many examples on each rank, by name."""

    def of_m(m: int) -> Kind:
        return Kind({"m": m}, Passes(2, 1) if examples % m == 0 else Passes(4, 2))

    world, quarter = dist.get_world_size(group), math.ceil(examples / 4)
    passes = 2 * math.ceil(examples / quarter)
    return {
        PLAIN: Kind({}, Passes(1, 1)),
        "SAM, each its batch": Kind({"m": None}, Passes(2, 1)),
        **{f"{m}-SAM{', ragged' if examples % m else ''}": of_m(m) for m in (1, 2, 3, examples)},
        "SAM, together": Kind({"m": None, "process_group": group}, Passes(2, 2)),
        f"{quarter * world}-SAM, together": Kind(
            {"m": quarter * world, "process_group": group}, Passes(passes, passes)
        ),
    }


def steps(examples: int, *, reshards: bool) -> dict[str, tuple[Step, Passes]]:
    """A step of each kind of training, of a model of its own, and its passes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        name: (_step(examples, kind.options, mesh, reshards=reshards), kind.passes)
        for name, kind in kinds(examples, mesh.get_group()).items()
    }


def _step(examples: int, options: dict[str, Any], mesh: Any, *, reshards: bool) -> Step:
    model = sharded(SIZES, mesh, reshard_after_forward=None if reshards else False)
    loss, batch = loss_of(model), batch_of(SIZES, examples, dist.get_rank())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    sam = SAM(model, rho=0.05, **options) if options else None

    def step() -> None:
        optimizer.zero_grad()
        if sam is None:
            loss(*batch).backward()
        else:
            sam.backward(loss, *batch)
        optimizer.step()

    return step


def sent(events: Sequence[Any]) -> tuple[Counter[str], int]:
    """The collectives that are asked for, and bytes: those that a rank is sent of others' shards, those that
    it sends of others' gradients, and those that it has in all-reduces.

    Gloo makes an all-reduce of a reduce-scatter; what it sends beyond what is asked for is not counted.
    """
    counts, size = Counter[str](), 0
    for event in _outermost(events):
        if event.name() in ASKED:
            counts[ASKED[event.name()]] += 1
        if event.name() == "c10d::_allgather_base_":
            whole, own = _bytes(event)[:2]
            size += whole - own
        elif event.name() == "c10d::_reduce_scatter_base_":
            own, whole = _bytes(event)[:2]
            size -= own  # all of it is counted as gloo's
        elif event.name() == "gloo:all_reduce":
            size += sum(_bytes(event))
    return counts, size


def _outermost(events: Sequence[Any]) -> Iterator[Any]:
    """All but operations within another of their name: inside ``vmap`` one is dispatched again."""
    ends = Counter[str]()
    for event in sorted(events, key=lambda e: (e.start_ns(), -e.duration_ns())):
        if event.name() not in ASKED:
            yield event
        elif event.start_ns() >= ends[event.name()]:
            ends[event.name()] = event.start_ns() + event.duration_ns()
            yield event


def _bytes(event: Any) -> list[int]:
    pairs = zip(event.shapes(), event.dtypes(), strict=True)
    return [math.prod(shape) * BYTES[dtype] for shape, dtype in pairs if dtype in BYTES]


def require_computed(counts: Counter[str], passes: Passes, *, reshards: bool) -> None:
    """Refuses counts that are not those that the numbers of a large model are computed from."""
    found = counts["all-gathers"], counts["reduce-scatters"]
    computed = passes.gathered(1, 1, SIZES.blocks, reshards=reshards), passes.scattered(1, 1, SIZES.blocks)
    assert found == computed, f"all-gathers and reduce-scatters must be {computed} in number, got {found}"


def print_large(gpus: int = 64, groups: Sequence[int] = (1, 4, 16)) -> None:
    """Bytes of a step of Llama 2 7B, in bfloat16 with gradients reduced in float32.

    One unit for each of its 32 blocks of width 4,096, with 11,008 hidden, and the root with embeddings, head
    and the last norm.
    """
    width, hidden, vocabulary, blocks = 4096, 11008, 32000, 32
    block, root = 4 * width**2 + 3 * width * hidden + 2 * width, 2 * vocabulary * width + width
    rows = {PLAIN: Passes(1, 1)}
    for g in groups:
        rows[f"SAM, all ranks together, {g} group{'s' if g > 1 else ''} a step"] = Passes(2 * g, 2 * g)
    rows |= {"m-SAM, each group by itself, any m": Passes(2, 1), "the same, m ragged": Passes(4, 2)}
    print(f"Llama 2 7B, {blocks * block + root:,} parameters, {gpus} GPUs: GB of one GPU in a step\n")
    print(
        "| | passes | all-gathers | received | reduce-scatters | sent | both / plain |\n" + "|---" * 7 + "|"
    )
    of_others, plain = (gpus - 1) / gpus / 1e9, 0.0
    for name, passes in rows.items():
        received = 2 * passes.gathered(block, root, blocks) * of_others
        scattered = 4 * passes.scattered(block, root, blocks) * of_others
        plain = plain or received + scattered
        print(
            f"| {name} | {passes.made} | {passes.gathered(1, 1, blocks)} | {received:.1f} "
            f"| {passes.scattered(1, 1, blocks)} | {scattered:.1f} | {(received + scattered) / plain:.2f} |"
        )
