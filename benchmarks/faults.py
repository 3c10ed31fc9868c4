"""Faults at every line and every call of torch during ``SAM.backward``, one at a time, and what they leave.

    python benchmarks/faults.py --presets sam --engines loop batched

After a fault everything must be, bit for bit, as before the call or as after it: weights, buffers, ``.grad``,
generators, modes, hooks, autocast, what the SAM remembers. The fault must come out as itself, the next call
must give what it would have given, and nothing may change when the exception is let go. Prints a table, and
what was wrong by line. Exits with 1 if anything was.

Lines are those of ``lowland/sam``, of each the first and the last time that it runs; calls are those that a
user's function mode sees (``functions``), and all that Python makes of torch's functions in C (``builtins``).
``--stride 1`` takes every single one. All presets, engines and variants take some hours of a core per kind.
"""

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context

import torch

from faulted.points import KINDS, PLACES
from faulted.scenes import VARIANTS, Scene, scenes
from faulted.sweep import Plan, Struck, Swept, swept
from lowland.presets import PRESETS

WIDTHS = (15, 12, 8, 5, 10, 10, 7, 7, 7, 5)
HEADER = ("preset", "variant", "engine", "m", "place", "kind", "points", "before", "after", "bad")


def main() -> int:
    """Sweeps the scenes and prints the tables."""
    arguments = _arguments()
    torch.set_num_threads(1)
    ms = [None if m == 0 else m for m in arguments.m]
    wanted = scenes(arguments.presets, arguments.engines, ms, arguments.variants)
    plan = Plan(arguments.places, arguments.kinds, arguments.stride, arguments.once, arguments.sample)
    started, tally = time.monotonic(), Tally()
    print(_row(HEADER), flush=True)
    for found in _all(wanted, plan, arguments.processes):
        _print_scene(found)
        tally.take(found)
    tally.show()
    print(f"{time.monotonic() - started:.0f} s")
    return int(tally.states["bad"] > 0)


class Tally:
    """What came of all faults."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self._bad: dict[str, Counter[str]] = defaultdict(Counter)
        self._example: dict[tuple[str, str], Scene] = {}
        self._after: dict[str, set[str]] = defaultdict(set)

    def take(self, found: Swept) -> None:
        """Takes the faults of a scene into account."""
        for place, kind, point, outcome in found.struck:
            self.states["bad" if outcome.wrong else outcome.state] += 1
            if outcome.wrong:
                at = f"{' '.join(point).strip()} ({found.scene.engine}, {place}, {kind})"
                self._bad[outcome.wrong][at] += 1
                self._example.setdefault((outcome.wrong, at), found.scene)
            elif place == "lines" and outcome.state == "after":
                self._after[found.scene.engine].add(point.line)

    def show(self) -> None:
        """Prints what was wrong, most often first, and where, with a scene where it was."""
        for wrong, where in sorted(self._bad.items(), key=lambda item: -item[1].total()):
            print(f"\n{where.total()} x {wrong}")
            for at, times in where.most_common():
                scene = self._example[wrong, at]
                print(f"    {times:5d}  {at}, as in {scene.preset}, {scene.variant}, m = {scene.m}")
        for engine, lines in self._after.items():
            print(f"\nas after the call ({engine}): {', '.join(sorted(lines))}")
        before, after, bad = (self.states[state] for state in ("before", "after", "bad"))
        print(f"\n{before + after + bad} faults: {before} as before, {after} as after, {bad} bad")


def _arguments() -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    for name, values in (
        ("presets", list(PRESETS)),
        ("engines", ["loop", "batched", "auto"]),
        ("variants", list(VARIANTS)),
        ("places", list(PLACES)),
    ):
        parser.add_argument(f"--{name}", nargs="+", choices=values, default=values, metavar="NAME")
    kinds = ["error", "sigint"]
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=kinds, metavar="NAME")
    parser.add_argument("--m", nargs="+", type=int, default=[0, 2], help="0 stands for the whole batch")
    parser.add_argument("--stride", type=int, default=0, help="every so many-th point too; 0 for none")
    parser.add_argument("--once", action="store_true", help="equal points the first time only")
    parser.add_argument("--sample", type=int, default=0, help="one in so many, a kind in turn; 0 for all")
    parser.add_argument("--processes", type=int, default=1)
    return parser.parse_args()


def _all(wanted: list[Scene], plan: Plan, processes: int) -> Iterator[Swept]:
    if processes == 1:
        yield from (swept(scene, plan) for scene in wanted)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        yield from pool.map(swept, wanted, repeat(plan))


def _print_scene(found: Swept) -> None:
    scene = found.scene
    name = (scene.preset, scene.variant, scene.engine, "B" if scene.m is None else str(scene.m))
    if found.refused:
        print(_row(name), f"refused: {found.refused}", flush=True)
    groups: dict[tuple[str, str], list[Struck]] = defaultdict(list)
    for s in found.struck:
        groups[s.place, s.kind].append(s)
    for key, struck in groups.items():
        states = Counter("bad" if s.outcome.wrong else s.outcome.state for s in struck)
        counts = (len(struck), states["before"], states["after"], states["bad"])
        print(_row((*name, *key, *map(str, counts))), flush=True)


def _row(cells: tuple[str, ...]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=False)).rstrip()


if __name__ == "__main__":
    sys.exit(main())
