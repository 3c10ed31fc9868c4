"""The one error that the command line turns into a sentence."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any


class InputError(ValueError):
    """Something that the user gave (an option, a file, a directory) is wrong.

    Its message is one sentence: what is required, then what was got. The command line prints it and
    exits with 2; in Python it is a ``ValueError``.
    """


def one_of(name: str, value: object, valid: Iterable[str], *, more: str = "") -> None:
    """Raises :class:`InputError`, naming the nearest valid values, unless ``value`` is one of ``valid``.

    Args:
        name: What it is called.
        value: What was given.
        valid: What may be given.
        more: What may be given beside these, and is not meant here.

    Raises:
        InputError: If it is none of them.

    Example:
        >>> from lowland.errors import one_of
        >>> one_of("model", "resnet81", ["resnet18", "fc"])
        Traceback (most recent call last):
        ...
        lowland.errors.InputError: model must be one of resnet18, fc, got 'resnet81'; nearest: resnet18.
    """
    choices = list(valid)
    if value in choices:
        return
    nearest = difflib.get_close_matches(str(value).lower(), choices, n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
    beside = f", or {more}" if more else ""
    raise InputError(f"{name} must be one of {', '.join(choices)}{beside}, got {value!r}{hint}.")


def require_default(config: Any, names: Iterable[str], because: str) -> None:
    """Raises :class:`InputError` if one of these fields of a dataclass has another value than its default.

    Args:
        config: The instance.
        names: Fields that nothing reads here.
        because: Why, as a whole phrase.

    Raises:
        InputError: If one has.

    Example:
        >>> from dataclasses import dataclass
        >>> from lowland.errors import require_default
        >>> @dataclass
        ... class Options:
        ...     width: int | None = None
        >>> require_default(Options(width=8), ["width"], "for a model without layers")
        Traceback (most recent call last):
        ...
        lowland.errors.InputError: width must be left out for a model without layers, got 8.
    """
    defaults = {field.name: field.default for field in fields(config)}
    for name in names:
        value = getattr(config, name)
        if value != defaults[name]:
            raise InputError(f"{name} must be left out {because}, got {value}.")


def require_at_most(config: Any, most: Mapping[str, int]) -> None:
    """Raises :class:`InputError` for a field beyond what any machine holds, or what a loop ever ends at.

    Args:
        config: The instance of a dataclass.
        most: The largest value of each field, by its name; of a tuple each number is held to it.

    Raises:
        InputError: If one is larger.

    Example:
        >>> from dataclasses import dataclass
        >>> from lowland.errors import require_at_most
        >>> @dataclass
        ... class Options:
        ...     width: int = 8
        >>> require_at_most(Options(width=70_000), {"width": 65_536})
        Traceback (most recent call last):
        ...
        lowland.errors.InputError: width must be at most 65536, got 70000.
    """
    for name, limit in most.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and number > limit:
                raise InputError(f"{name} must be at most {limit}, got {number}.")


def require_finite(config: Any) -> None:
    """Raises :class:`InputError` for a field with a number that is none, or is infinite.

    Args:
        config: The instance of a dataclass.

    Raises:
        InputError: If there is one.

    Example:
        >>> from dataclasses import dataclass
        >>> from lowland.errors import require_finite
        >>> @dataclass
        ... class Options:
        ...     lr: float = 0.1
        >>> require_finite(Options(lr=float("nan")))
        Traceback (most recent call last):
        ...
        lowland.errors.InputError: lr must be a finite number, got nan.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{field.name} must be a finite number, got {number}.")


def in_one_line(message: object) -> str:
    r"""A message as a terminal shows it: what would break the line, or is no character, is escaped.

    Args:
        message: The message, or an error whose text it is.

    Example:
        >>> from lowland.errors import in_one_line
        >>> in_one_line("got 'a\nb'.")
        "got 'a\\nb'."
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(message))
