"""Many faults, each judged in a process that no earlier fault has harmed."""

import gc
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

from faulted.points import Point, chosen
from faulted.scenes import Scene
from faulted.trial import Clean, Outcome, clean, trial

SECONDS = 60
"""A call that takes longer than this after a fault hangs."""

Job = tuple[str, str, int]
"""Place, kind, and index of the point."""


class Struck(NamedTuple):
    """A fault, where it struck, and what came of it."""

    place: str
    kind: str
    point: Point
    outcome: Outcome


class Swept(NamedTuple):
    """All faults of a scene.

    Attributes:
        scene: The scene.
        refused: Why there are none; empty if there are.
        struck: The faults.
    """

    scene: Scene
    refused: str
    struck: list[Struck]


@dataclass(frozen=True)
class Plan:
    """Which faults.

    Attributes:
        places: Where they strike; keys of ``PLACES``.
        kinds: What they are; keys of ``KINDS``.
        stride: Every so many-th point of a place; 0 for those only that differ from each other.
        once: Of points that are equal the first only, and not the last.
        sample: One in so many of these, of the kinds in turn; 0 for all, of every kind.
    """

    places: list[str]
    kinds: list[str]
    stride: int
    once: bool
    sample: int

    def jobs(self, reference: Clean) -> list[Job]:
        """The faults of a scene."""
        points = [
            (place, at)
            for place in self.places
            for at in chosen(reference.points[place], self.stride, once=self.once)
        ]
        if self.sample:
            turns = cycle(self.kinds)
            return [
                (place, kind, at) for (place, at), kind in zip(points[:: self.sample], turns, strict=False)
            ]
        return [(place, kind, at) for place, at in points for kind in self.kinds]


def swept(scene: Scene, plan: Plan) -> Swept:
    """All faults of a scene that are planned."""
    warnings.simplefilter("ignore")  # that groups are run one after the other is said here
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    try:
        reference = clean(scene, plan.places)
    except (ValueError, TypeError, RuntimeError) as error:
        return Swept(scene, f"{type(error).__name__}: {error}", [])
    jobs = plan.jobs(reference)
    outcomes = _outcomes(reference, jobs)
    struck = [
        Struck(place, kind, reference.points[place][at], outcome)
        for (place, kind, at), outcome in zip(jobs, outcomes, strict=True)
    ]
    return Swept(scene, "", struck)


def _outcomes(reference: Clean, jobs: list[Job]) -> Iterator[Outcome]:
    """In children, each of which goes on until a fault has left something behind."""
    gc.collect()
    gc.freeze()
    done = 0
    while done < len(jobs):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _run(reference, jobs[done:], write)
        os.close(write)
        with os.fdopen(read, "rb") as stream:
            found = list(_read(stream))
        status = os.waitpid(child, 0)[1]
        yield from found
        done += len(found)
        if status != 0:
            yield Outcome("gone", f"the process ended with {os.waitstatus_to_exitcode(status)}")
            done += 1


def _run(reference: Clean, jobs: list[Job], write: int) -> None:
    sys.unraisablehook = lambda _: None  # that a fault was swallowed is seen in its outcome
    with os.fdopen(write, "wb") as stream:
        for place, kind, at in jobs:
            signal.alarm(SECONDS)
            try:
                outcome = trial(reference, place, kind, at)
            except Exception as error:  # what a fault has left behind breaks the plainest operations
                outcome = Outcome("gone", f"to look at what it left raises {type(error).__name__}")
            pickle.dump(outcome, stream)
            stream.flush()
            if outcome.wrong:
                break
    os._exit(0)


def _read(stream: Any) -> Iterator[Outcome]:
    while True:
        try:
            yield Outcome(*pickle.load(stream))
        except EOFError:
            return
