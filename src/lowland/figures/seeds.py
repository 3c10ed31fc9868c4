"""Runs that differ in the seed only."""

from collections.abc import Iterable
from typing import Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Labelled(Protocol):
    """A run that says of what kind it is."""

    @property
    def label(self) -> str:
        """The same for all seeds."""


Outcome = TypeVar("Outcome", bound=Labelled)


def by_label(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """The seeds of each kind of run."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.label, []).append(outcome)
    return groups
