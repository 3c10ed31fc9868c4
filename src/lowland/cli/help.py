"""``lowland COMMAND --help``: a command's options in groups, with what their dataclasses' docstrings say."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from lowland.cli.hints import choices_of, is_several, kind_of_each
from lowland.cli.output import Output

_WIDEST = 100
_COLUMN = 27
_NARROW = 60
"""Below so many columns the meaning of an option stands under it, not beside it."""
_KINDS = {int: "N", float: "X", Path: "PATH"}
_LEGEND = "N is a whole number, X a number, ... means several; the default is in [ ]."


def print_help(command: type[Any], usage: str) -> None:
    """Prints what a command does, an example, and its options, no wider than the terminal.

    Args:
        command: The dataclass of its options, in groups: its bases, the command's own last. The first
            sentence of a base's docstring is a title, and ``Attributes`` says what the options mean.
        usage: How the command is called, before its options.
    """
    console = Output()
    width = min(console.width, _WIDEST)
    for line in _head(command, usage, width):
        console.say(line)
    hints = get_type_hints(command)
    defaults = {field.name: field.default for field in fields(command)}
    itself, *bases = dict.fromkeys(_bases(command))
    for group in (*bases, itself):
        options = list(_options(group, command))
        title = _title(group) if group is not itself else "The command itself" if bases else "Options"
        for line in _wrapped(title, width) if options else []:
            console.say(f"\n{line}", style="bold")
        for name, text in options:
            left, right = _described(name, hints[name], text, defaults[name])
            console.say("\n".join(_entry(left, right, width)))


def _head(command: type[Any], usage: str, width: int) -> Iterator[str]:
    """How the command is called, what it does, and an example."""
    about = _sections(command)
    yield from [f"usage: {usage} [--OPTION VALUE ...]", ""]
    for paragraph in about[""].split("\n\n"):
        yield from [*_wrapped(paragraph, width), ""]
    if "Example" in about:
        yield from [textwrap.indent(textwrap.dedent(about["Example"]).strip("\n"), "  "), ""]
    yield from _wrapped(_LEGEND, width)


def _bases(of: type[Any]) -> list[type[Any]]:
    """The class and its bases, in the order in which their options are listed."""
    return [of, *(group for base in reversed(of.__bases__) if base is not object for group in _bases(base))]


def _options(group: type[Any], command: type[Any]) -> Iterator[tuple[str, str]]:
    """Names and meanings of the options of a group that no later one declares anew."""
    written = _sections(group).get("Attributes", "")
    _, *parts = re.split(r"^ {4}(\w+): ", written, flags=re.MULTILINE)
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    for name in inspect.get_annotations(group):
        if next(of for of in command.__mro__ if name in inspect.get_annotations(of)) is group:
            yield name, texts.get(name, "")


def _sections(of: type[Any]) -> dict[str, str]:
    """The parts of a docstring by their titles; its beginning has none."""
    parts = re.split(r"^(Attributes|Example):\n", inspect.cleandoc(of.__doc__ or ""), flags=re.MULTILINE)
    return {"": parts[0].strip(), **dict(zip(parts[1::2], parts[2::2], strict=True))}


def _title(group: type[Any]) -> str:
    return _sections(group)[""].partition("\n\n")[0].rstrip(".")


def _described(name: str, hint: Any, text: str, default: Any) -> tuple[str, str]:
    """An option with what it takes; and its meaning, with choices that it does not name, and the default."""
    choices = [str(choice) for choice in choices_of(hint)]
    takes = _KINDS.get(kind_of_each(hint), "NAME") + (" ..." if is_several(hint) else "")
    left = f"--{name.rstrip('_')} {'' if hint is bool else takes}".rstrip()
    unnamed = set(choices) - set(re.findall(r"[\w-]+", text))
    among = [f"One of {', '.join(choices)}."] if unnamed else []
    shown = _shown(default)
    return left, " ".join([*text.split(), *among, *([f"[{shown}]"] if shown else [])])


def _shown(default: Any) -> str:
    """A default; nothing for what is left out, and for flags, which are switched on."""
    if isinstance(default, tuple):
        return " ".join(map(_shown, default))
    if isinstance(default, float):
        return f"{default:g}"
    return "" if default is None or default is False else str(default)


def _entry(left: str, right: str, width: int) -> list[str]:
    """An option, and its meaning beside it, or below where there is no room."""
    indent = _COLUMN if width >= _NARROW else 6
    lines = [" " * indent + line for line in _wrapped(right, width - indent)] or [""]
    if len(left) + 2 + 2 > indent:
        return [f"  {left}", *lines]
    return [f"  {left}".ljust(indent) + lines[0][indent:], *lines[1:]]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
