"""What a command is about: the words before its options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowland.errors import InputError
from lowland.runs import config_hash


def sources_and_options(
    argv: Sequence[str], usage: str, *, what: str = "networks", alone: str = "--help", required: bool = True
) -> tuple[list[str], list[str]]:
    """The words before the first option, and the rest.

    Args:
        argv: The command's words.
        usage: How the command is called, for the error.
        what: What the words are.
        alone: An option that needs none of them, as ``--help`` and ``-h`` do.
        required: Whether there must be one.

    Raises:
        InputError: If there is no word before the options, unless these need none.
    """
    words = list(argv)
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if required and first == 0 and not {"-h", "--help", alone} & set(words):
        raise InputError(f"{what} must come before the options, {usage}, got none.")
    return words[:first], words[first:]


def of_several(what: str, sources: Sequence[str | Path]) -> Path:
    """The directory of a picture of several runs, itself no run's: ``runs/`` and a name made from theirs."""
    return Path("runs") / f"{what}-{config_hash({'of': [str(Path(s).absolute()) for s in sources]})}"


def names_of(sources: Sequence[str]) -> list[str]:
    """The last part of each path, or all of it where several end alike.

    Raises:
        InputError: If one is there twice.
    """
    short = [Path(source).name for source in sources]
    names = short if len(set(short)) == len(short) else list(sources)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the networks must be different ones, got {twice} twice.")
    return names
