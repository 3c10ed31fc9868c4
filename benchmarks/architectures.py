"""Architectures of ``transformers`` and ``diffusers``: which are run at once, and how exactly.

    python benchmarks/architectures.py [--only NAME ...]

Each is tiny, in float64 (one in float32), with random weights; where it takes an attention mask, half of its
rows are padded. The gradient of m-SAM with groups of one example (of a pair, where the loss contrasts pairs)
is compared with a plain loop of two passes over the groups, written here. What must be run at once must be so
without a warning and with few calls of the loss, and differ by no more than 1e-10 of the gradient's norm;
what is refused must be refused for the cause that is known, and be as exact in the loop. Exits with 1 where
something is otherwise.
"""

import argparse
import statistics
import sys
import time
import warnings
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from operator import truediv

import torch
from torch import Tensor, nn

from lowland.sam import SAM
from lowland.sam.unbatchable import Unbatchable
from tiny_models import ARCHITECTURES, Architecture, B, Batch

RHO = 0.05
Step = Callable[[], None]


@dataclass(frozen=True)
class Row:
    """What was seen of a model with one implementation of attention.

    Attributes:
        engine: Which one ran: all groups at once, or the loop.
        calls: Calls of the loss in a step.
        groups: Groups of the batch.
        error: Distance from the plain loop, in norms of the gradient.
        times: Seconds of steps, by the loop and, unless that is refused, at once.
        refused: Why it is.
        where: The line that has it.
        warned: Warnings, each once.
    """

    engine: str
    calls: int
    groups: int
    error: float
    times: list[list[float]]
    refused: str
    where: str
    warned: tuple[str, ...]

    def wrong(self, expected: Architecture) -> str:
        """What is not as it must be; empty if nothing is."""
        if not self.error <= expected.most_error:
            return f"error must be at most {expected.most_error:g}, got {self.error:.1e}"
        if self.refused != expected.refused:
            return f"cause must be {expected.refused or 'none'!r}, got {self.refused or 'none'!r}"
        unexpected = [
            said for said in self.warned if not (expected.advised and said.startswith(expected.advised))
        ]
        if unexpected:
            return f"there must be no warning, got {unexpected[0]!r}"
        most = 2 * self.groups if self.refused else min(2 * self.groups - 1, 5)
        return "" if self.calls <= most else f"calls must be at most {most}, got {self.calls}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=ARCHITECTURES, default=list(ARCHITECTURES)
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| architecture | attention | engine | calls | error | time / loop | why not at once |")
    print("|---|---|---|---|---|---|---|")
    failures = []
    for name in arguments.only:
        architecture = ARCHITECTURES[name]
        for attention in architecture.attentions:
            row = measured(architecture, attention)
            print(_line(name, attention, row), flush=True)
            wrong = row.wrong(architecture)
            if wrong:
                failures.append(f"{name}, {attention}: {wrong}.")
    print("\n".join(failures), file=sys.stderr)
    sys.exit(1 if failures else 0)


def measured(architecture: Architecture, attention: str, *, rounds: int = 5) -> Row:
    """The row of a model, timed if there are ``rounds``."""
    model, batch, m = architecture.make(attention), architecture.batch(), architecture.m
    calls = array("q", [0])

    def loss(batch: Batch) -> Tensor:
        calls[0] += 1
        return architecture.loss(model, batch)

    def step(engine: str) -> Step:
        sam = SAM(model, rho=RHO, m=m, engine=engine, max_memory=2**40)

        def once() -> None:
            model.zero_grad()
            calls[0] = 0
            sam.backward(loss, batch)

        return once

    expected = two_passes(model, lambda rows: architecture.loss(model, rows), batch, m)
    engine, refused, where, step_at_once = "at once", "", "", step("batched")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            step_at_once()  # tries one group by itself
            step_at_once()
        except Unbatchable as error:
            engine, refused, where = "loop", error.what, error.where
            step("loop")()
    found, num_calls = _gradients(model), calls[0]
    times = _times([step("loop"), *([] if refused else [step_at_once])], rounds)
    warned = tuple(dict.fromkeys(str(w.message) for w in heard))
    error = _norm([a - b for a, b in zip(found, expected, strict=True)]) / _norm(expected)
    return Row(engine, num_calls, B // m, error, times, refused, where, warned)


def two_passes(model: nn.Module, loss: Callable[[Batch], Tensor], batch: Batch, m: int) -> list[Tensor]:
    """m-SAM by plain loops: of each group a gradient, a step, a gradient, and a step back."""
    params = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in params]
    for start in range(0, B, m):
        rows = {name: t[start : start + m] for name, t in batch.items()}
        climb = _gradient(loss(rows), params)
        length = _norm(climb)
        before = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, g in zip(params, climb, strict=True):
                p.add_(g, alpha=RHO / length)
        for t, g in zip(total, _gradient(loss(rows), params), strict=True):
            t.add_(g, alpha=m / B)
        with torch.no_grad():
            for p, w in zip(params, before, strict=True):
                p.copy_(w)
    return total


def _gradient(value: Tensor, params: list[nn.Parameter]) -> list[Tensor]:
    found = torch.autograd.grad(value, params, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]


def _gradients(model: nn.Module) -> list[Tensor]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained]


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.cat([t.flatten() for t in tensors]).double().norm())


def _times(steps: list[Step], rounds: int) -> list[list[float]]:
    """How long each step took in each round, in turns, after a first one that does not count."""
    taken: list[list[float]] = [[] for _ in steps]
    for step in steps * min(rounds, 1):
        step()
    for _ in range(rounds):
        for step, times in zip(steps, taken, strict=True):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    return taken


def _line(name: str, attention: str, row: Row) -> str:
    loop, *at_once = row.times
    ratio = "".join(f"{statistics.median(map(truediv, times, loop)):.2f}" for times in at_once)
    place = row.where.rpartition(" (")[2].rstrip(")")
    why = f"{row.refused} ({place})" if row.refused else ""
    return f"| {name} | {attention} | {row.engine} | {row.calls} | {row.error:.0e} | {ratio} | {why} |"


if __name__ == "__main__":
    main()
