"""Command-line options from a dataclass, with errors of one sentence."""

from __future__ import annotations

import difflib
import itertools
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lowland.cli.help import print_help
from lowland.cli.hints import choices_of, is_several, kind_of_each, may_be_none, without_none
from lowland.errors import InputError, one_of

Command = TypeVar("Command")


def parse(command: type[Command], argv: Sequence[str], *, prog: str) -> Command:
    """An instance of the dataclass ``command`` from its options in ``argv``.

    Options are ``--name value`` or ``--name=value``, with underscores or dashes.

    Raises:
        InputError: If an option is unknown (the nearest ones are named) or a value is of the wrong kind.
        SystemExit: After ``--help``, with code 0.
    """
    if {"-h", "--help"} & set(argv):
        print_help(command, prog)
        raise SystemExit(0)
    return command(**options_of(argv, get_type_hints(command)))


def options_of(argv: Sequence[str], hints: Mapping[str, Any]) -> dict[str, Any]:
    """The options in ``argv``, by name; ``hints`` says of which kind each is.

    Raises:
        InputError: As for :func:`parse`.
    """
    options: dict[str, Any] = {}
    for name, values, switch in _given(argv, hints):
        _check(name, values, hints)
        if name in options:
            raise InputError(f"--{name} must be given once, got it again.")
        options[name] = switch if hints[name] is bool else _converted(values, hints[name])
    return options


def several(hint: Any) -> Any:
    """What an option's kind is where it may be given several values; a flag is then ``on`` or ``off``."""
    if is_several(hint):
        return hint
    each: Any = Literal["on", "off"] if hint is bool else hint
    return types.GenericAlias(tuple, (each, ...))


def _converted(values: list[str], hint: Any) -> Any:
    """What the words of an option mean, once they are known to be of its kind."""
    kind = without_none(hint)
    if get_origin(kind) is tuple:
        return tuple(_converted([value], get_args(kind)[0]) for value in values)
    (value,) = values
    if kind is not hint and value == "None":
        return None
    return value if get_origin(kind) is Literal else kind(value)


def part_of(command: Any, kind: type[Command]) -> Command:
    """The ``kind`` of which ``command`` has every field: what is to be done, without where and how."""
    return kind(**{name: getattr(command, name) for name in get_type_hints(kind)})


def given_options(command: type[Any], argv: Sequence[str]) -> set[str]:
    """Names of the options that ``argv`` gives."""
    return {name for name, _, _ in _given(argv, get_type_hints(command))}


def _given(argv: Sequence[str], hints: Mapping[str, Any]) -> list[tuple[str, list[str], bool]]:
    """Each option in ``argv``, its values, none for a flag, and whether a flag is switched on.

    Raises:
        InputError: For a word that is neither.
    """
    found: list[tuple[str, list[str], bool]] = []
    taken = 0  # words before this one are values of an option
    for position, word in enumerate(argv):
        if position < taken:
            continue
        if not word.startswith("--"):
            raise InputError(f"only options are expected here, got {word!r}.")
        written, equals, value = word[2:].partition("=")
        spelt = written.replace("-", "_")
        name = _known(spelt, hints)
        values = [] if equals or hints[name] is bool else _values(argv[position + 1 :], hints[name])
        taken = position + 1 + len(values)
        found.append((name, [value] if equals else values, name == spelt))
    return found


def _known(name: str, hints: Mapping[str, Any]) -> str:
    """The option that ``name`` means: itself, or the flag that it switches off."""
    if name in hints:
        return name
    if hints.get(name.removeprefix("no_")) is bool:
        return name.removeprefix("no_")
    nearest = difflib.get_close_matches(name, hints, n=3)
    hint = f"; nearest: {', '.join(f'--{known}' for known in nearest)}" if nearest else ""
    raise InputError(f"every option must be one that --help lists, got --{name}{hint}.")


def _values(words: Sequence[str], hint: Any) -> list[str]:
    """The words that follow an option as its values: one, or several for a tuple."""
    following = list(
        itertools.takewhile(lambda word: not (word.startswith("--") and word[2:3].isalpha()), words)
    )
    return following if is_several(hint) else following[:1]


def _check(name: str, values: list[str], hints: Mapping[str, Any]) -> None:
    hint = hints[name]
    if hint is bool:
        if values:
            raise InputError(f"--{name} must be given without a value, got {values[0]!r}.")
        return
    if not values:
        raise InputError(f"--{name} must be given a value, got none.")
    kind = kind_of_each(hint)
    for value in values:
        if value == "None" and may_be_none(hint):
            continue
        if choices_of(hint):
            one_of(f"--{name}", value, choices_of(hint))
        elif kind in _NUMBERS:
            _check_number(name, value, kind)


def _check_number(name: str, value: str, kind: type) -> None:
    try:
        number = kind(value)
    except ValueError:
        shown = value if len(value) <= _LONG else f"{value[:_LONG]}..."
        raise InputError(f"--{name} must be {_NUMBERS[kind]}, got {shown!r}.") from None
    if kind is int and not -(2**63) <= number < 2**63:
        raise InputError(f"--{name} must be a whole number of at most 63 bits, got {value}.")


_LONG = 100
"""Characters of what was given that are shown."""

_NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}


def directory(words: Sequence[str]) -> list[Path]:
    """The positional arguments of a command that takes directories only.

    Raises:
        InputError: If one is an option.
    """
    for word in words:
        if word.startswith("-"):
            raise InputError(f"only run directories are expected here, got {word!r}.")
    return [Path(word) for word in words]
