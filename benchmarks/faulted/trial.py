"""One fault in one call, and whether what it left is right as a whole."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from faulted.points import PLACES, Point, Strike
from faulted.scenes import Scene, Session
from faulted.world import Watched, World, differing, frozen


class Outcome(NamedTuple):
    """What came of a fault.

    Attributes:
        state: ``before``, ``after``, or what it was nearer to.
        wrong: What is wrong; empty if nothing is.
    """

    state: str
    wrong: str = ""


@dataclass(frozen=True)
class Clean:
    """A scene without a fault.

    Attributes:
        scene: The scene.
        worlds: Before the call, after it, and after the call that follows it.
        returned: What these two calls returned.
        points: Those of the first call, by place.
    """

    scene: Scene
    worlds: list[World]
    returned: list[Any]
    points: dict[str, list[Point]]


def clean(scene: Scene, places: list[str]) -> Clean:
    """The scene without a fault, once as it is and once for each place under its observation."""
    worlds, returned, _ = _clean_run(scene, None)
    points = {}
    for place in places:
        seen = _clean_run(scene, place)
        for plain, watched in zip(worlds, seen[0], strict=True):
            if changed := differing(watched, plain):
                raise RuntimeError(f"to look at {place} must change nothing, got {changed} in {scene}.")
        points[place] = seen[2]
    return Clean(scene, worlds, returned, points)


def trial(reference: Clean, place: str, kind: str, at: int) -> Outcome:
    """A fault at the point ``at``.

    The exception is kept, as a notebook keeps it, while the next call is made, and is let go after it: what
    was only put back because a frame was forgotten comes too late.
    """
    session = Session(reference.scene)
    watched, strike = Watched(session), Strike(at, kind)
    try:
        with PLACES[place](strike):
            session.call()
    except BaseException as error:
        strike.caught = error
    try:
        return _judged(reference, watched, strike)
    finally:
        session.close()


def _judged(reference: Clean, watched: Watched, strike: Strike) -> Outcome:
    found = watched.world()
    off = [differing(found, world) for world in reference.worlds[:2]]
    after = len(off[1]) < len(off[0])
    state = "after" if after else "before"
    if not strike.struck:
        return Outcome(state, "the point did not come")
    if wrong := _arrived(strike):
        return Outcome(state, wrong)
    if off[after]:
        return Outcome(state, f"as {state} but for {_sorts(off[after])}")
    try:
        returned = frozen(watched.session.call())
    except BaseException as error:
        return Outcome(state, f"the next call raises {type(error).__name__}: {error}"[:160])
    found = watched.world()
    if late := differing(found, reference.worlds[1 + after]):
        return Outcome(state, f"the next call differs in {_sorts(late)}")
    if returned != reference.returned[after]:
        return Outcome(state, "the next call returns another value")
    strike.error = strike.caught = None
    if late := differing(watched.world(), found):
        return Outcome(state, f"changes when the exception is let go: {_sorts(late)}")
    return Outcome(state)


def _clean_run(scene: Scene, place: str | None) -> tuple[list[World], list[Any], list[Point]]:
    session, strike = Session(scene), Strike()
    watched = Watched(session)
    worlds, returned = [watched.world()], []
    try:
        if place is None:
            returned.append(frozen(session.call()))
        else:
            with PLACES[place](strike):
                session.call()
        worlds.append(watched.world())
        returned.append(frozen(session.call()))
        worlds.append(watched.world())
    finally:
        session.close()
    return worlds, returned, strike.points


def _arrived(strike: Strike) -> str:
    """What is wrong with the exception that came out."""
    caught = strike.caught
    if caught is None:
        return "the fault was swallowed"
    if strike.error is None:
        return "" if type(caught) is KeyboardInterrupt else f"the signal became {type(caught).__name__}"
    return "" if caught is strike.error else f"the fault became {type(caught).__name__}"


def _sorts(names: list[str]) -> str:
    return ", ".join(sorted({name.split(" ")[0] for name in names}))
