"""Peak memory of a rank in a step of a GPT that ``fully_shard`` has cut, where weights dominate.

    python benchmarks/sharded_memory.py
    python benchmarks/sharded_memory.py --ranks 64 --examples 16 --tokens 128

Each row is a process of its own that makes two steps. The peak is the most bytes that tensors hold in them
above the rank's shards and Adam's state, gradients among them as soon as they are there; the optimizer's step
is not counted. Recorded is what is there between the passes of groups that climb by themselves: gradients, as
factors or formed. Bound is the peak of plain training and that. Kept is what is left but for gradients.

The process group is torch's fake one, whose collectives copy the rank's own shards within one process: as
many bytes as with others. (Gloo frees tensors in threads of its own, where the profiler does not see it.)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from interleaved import timeline
from lowland.sam import L2, SAM, AscentStep
from sharded_gpt import GPT, Sizes, batch_of, loss_of, sharded

MIB = 2**20
BETWEEN = "between the passes"
PLAIN = "plain"
ROWS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "SAM, each its batch": {"m": None},
    "1-SAM": {"m": 1},
    "2-SAM": {"m": 2},
    "3-SAM, ragged": {"m": 3},
    "SAM, together": {"m": None, "together": True},
}


class Marked(L2):
    """The ascent of SAM, which the profiler sees."""

    of_many = True

    def __call__(self, step: AscentStep) -> Any:
        with torch.profiler.record_function(BETWEEN):
            return super().__call__(step)


def main() -> None:
    """Prints the tables, or measures one row."""
    arguments = _arguments()
    sizes = Sizes(arguments.blocks, arguments.width, arguments.tokens)
    if arguments.row:
        (ranks,) = arguments.ranks
        print(json.dumps(measured(sizes, ranks, arguments.examples, **ROWS[arguments.row])))
        return
    units = _units(sizes)
    print(
        f"torch {torch.__version__}, {arguments.examples} examples of {sizes.tokens} tokens on each rank; "
        f"MiB; the model {sum(units) / MIB:.1f}, its largest unit {max(units) / MIB:.1f}"
    )
    for ranks in arguments.ranks:
        print(f"\n{ranks} ranks, shards of {sum(units) / ranks / MIB:.1f}\n")
        print("| | peak | above plain | recorded | peak / bound | kept |\n" + "|---" * 6 + "|")
        plain = in_a_process(ranks, PLAIN)["peak"]
        for name in ROWS:
            found = in_a_process(ranks, name)
            peak, recorded, kept = found["peak"], found["recorded"], found["kept"]
            print(
                f"| {name} | {peak / MIB:.1f} | {(peak - plain) / MIB:+.1f} | {recorded / MIB:.1f} "
                f"| {peak / (plain + recorded):.2f} | {kept / MIB:.1f} |",
                flush=True,
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 64])
    parser.add_argument("--examples", type=int, default=4, help="of each rank")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_a_process(ranks: int, row: str) -> dict[str, int]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, *sys.argv[1:], "--ranks", str(ranks), "--row", row]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(
    sizes: Sizes, ranks: int, examples: int, *, together: bool = False, **options: Any
) -> dict[str, int]:
    """Bytes of a rank: the ``peak``, what is ``recorded``, and what is ``kept``."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    model = sharded(sizes, mesh)
    loss, batch = loss_of(model), batch_of(sizes, examples, 0)
    if together:
        options["process_group"] = mesh.get_group()
    sam = SAM(model, rho=0.05, ascent=Marked(), **options) if options else None

    def two_steps() -> None:
        for _ in range(2):
            model.zero_grad()
            if sam is None:
                loss(*batch).backward()
            else:
                sam.backward(loss, *batch)

    seen = timeline(two_steps)
    gradients: int = sum(p.grad.to_local().nbytes for p in model.parameters())
    between = [held for name, held in seen if name == BETWEEN and not together]
    return {
        "peak": max(held for _, held in seen),
        "recorded": between[0] if between else 0,  # later ones have gradients of passes before them
        "kept": seen[-1][1] - gradients,
    }


def _units(sizes: Sizes) -> list[int]:
    """Bytes of each block, and of all the rest."""
    model = GPT(sizes)
    blocks = [sum(p.nbytes for p in block.parameters()) for block in model.blocks]
    return [*blocks, sum(p.nbytes for p in model.parameters()) - sum(blocks)]


if __name__ == "__main__":
    main()
