"""What each part of a recorded step is worth: how its graph is run, and what is left out of it.

``python benchmarks/captured_passes.py [--networks tiny_mlp mlp] [--m 1] [--rounds 200]`` records a step, and
runs its graph in several ways, in turns: as ``torch.fx`` runs graphs, and as our programs do, with one more
of the passes over the graph in each row. Times are those of the operations alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import fx

from interleaved import Step, measured
from lowland.sam.captured import captured, passes
from lowland.sam.captured.program import program
from lowland.sam.captured.recording import Recording
from networks import NETWORKS, CapturedStep, Problem

PASSES: dict[str, Callable[[fx.Graph], None]] = {
    "what nobody uses": passes.without_what_nobody_uses,
    "detaching": passes.without_detaching,
    "views of views": passes.without_views_of_views,
    "repetitions": passes.without_repeating,
    "allocations": passes.without_allocating,
}


def main() -> None:
    """Prints a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["tiny_mlp", "mlp"])
    parser.add_argument("--m", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.networks:
        problem = NETWORKS[name].problem(torch.device("cpu"))
        steps, operations = _steps(problem, options.m)
        times = measured(steps, options.rounds)
        print(f"\n{NETWORKS[name].title}, B = {len(problem.x)}, m = {options.m}\n")
        print("| | operations | ms | / the first |")
        print("|---|---|---|---|")
        first = times[next(iter(times))]
        for kind, taken in times.items():
            ratio = statistics.median(a / b for a, b in zip(taken, first, strict=True))
            print(f"| {kind} | {operations[kind]} | {1e3 * statistics.median(taken):.2f} | {ratio:.2f} |")


def _steps(problem: Problem, m: int) -> tuple[dict[str, Step], dict[str, int]]:
    """The ways in which the recorded step is run, and how many operations each has."""
    kept: list[Recording] = []
    given: list[tuple[object, ...]] = []
    make = captured._made

    def kept_first(recording: Recording) -> Callable[..., object]:
        kept.append(replace(recording, graph=_copied(recording.graph)))
        replay = make(recording)

        def noted(*inputs: object) -> object:
            given[:] = [inputs]
            return replay(*inputs)

        return noted

    captured._made = kept_first
    try:
        CapturedStep(problem, m)
    finally:
        captured._made = make
    (_, *inputs), recording = given[0], kept[0]
    graph = recording.graph
    passes.without_marks(graph)
    module = fx.GraphModule(dict(recording.constants), _copied(graph))
    steps: dict[str, Step] = {"as torch.fx runs it": _run(module, inputs)}
    operations = {"as torch.fx runs it": len(recording.operations)}
    for kind, direct in (("by torch's registry", False), ("by the names of users", True)):
        steps[kind] = _run(program(_copied(graph), recording.constants, direct=direct), [None, *inputs])
        operations[kind] = len(recording.operations)
    for kind, improve in PASSES.items():
        improve(graph)
        steps[f"without {kind}"] = _run(program(_copied(graph), recording.constants), [None, *inputs])
        operations[f"without {kind}"] = len(recording.operations)
    return steps, operations


def _copied(graph: fx.Graph) -> fx.Graph:
    """A copy whose nodes know of each other, and not of those that were copied."""
    found, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        copies[node] = found.node_copy(node, copies.__getitem__)
    for node in found.nodes:
        node.meta = {k: copies.get(v, v) if k == "of" else v for k, v in node.meta.items()}
    return found


def _run(function: Callable[..., object], inputs: list[object]) -> Step:
    @torch.no_grad()
    def run() -> object:
        return function(*inputs)

    return run


if __name__ == "__main__":
    main()
