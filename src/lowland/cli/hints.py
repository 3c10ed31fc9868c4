"""What the type of an option says."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def without_none(hint: Any) -> Any:
    """The kind of an option that may be left out."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return options[0] if len(options) == 1 else hint
    return hint


def is_several(hint: Any) -> bool:
    """Whether an option takes several values."""
    return get_origin(without_none(hint)) is tuple


def kind_of_each(hint: Any) -> Any:
    """The kind of an option's value, or of each of its values."""
    kind = without_none(hint)
    return without_none(get_args(kind)[0]) if is_several(kind) else kind


def choices_of(hint: Any) -> tuple[Any, ...]:
    """What may be chosen from, if the option says it."""
    kind = kind_of_each(hint)
    return get_args(kind) if get_origin(kind) is Literal else ()


def may_be_none(hint: Any) -> bool:
    """Whether a value of the option may be ``None``."""
    each = get_args(without_none(hint))[0] if is_several(hint) else hint
    return without_none(each) is not each
