"""What a JSON file must hold, said as types: read whole, or refused in one sentence."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from lowland.errors import InputError

JSONObject = dict[str, Any]
"""An object of any keys and values."""


def conform(value: Any, kind: Any, name: str, *, of: str = "") -> Any:
    """``value``, which must be of ``kind``.

    Args:
        value: A value as JSON has it.
        kind: ``bool``, ``int``, ``float`` (finite; whole numbers are some), ``str``, ``None``, ``Any``, a
            ``Literal``, a union, ``list[...]``, ``tuple[..., ...]``, ``dict[str, ...]`` or a ``TypedDict``,
            whose keys are required as it says, and beside which there may be others.
        name: What the value is called, for the error.
        of: Follows the name there.

    Returns:
        The value itself.

    Raises:
        InputError: If it is not.

    Example:
        >>> from lowland.runs import conform
        >>> conform({"rho": [0.1, 1]}, dict[str, list[float]], "options")
        {'rho': [0.1, 1]}
        >>> conform({"rho": [0.1, "a"]}, dict[str, list[float]], "options")
        Traceback (most recent call last):
        ...
        lowland.errors.InputError: options.rho[1] must be a finite number, got 'a'.
    """
    kind = _alternative(value, kind)
    if not _is_of(value, kind):
        raise InputError(f"{name}{of} must be {_described(kind)}, got {_shown(value)}.")
    if is_typeddict(kind):
        missing = sorted(kind.__required_keys__ - value.keys())
        if missing:
            inner = get_type_hints(kind)[missing[0]]
            raise InputError(f"{_inner(name, missing[0])}{of} must be {_described(inner)}, got nothing.")
        for key, inner in get_type_hints(kind).items():
            if key in value:
                conform(value[key], inner, _inner(name, key), of=of)
    elif get_origin(kind) is dict:
        for key, entry in value.items():
            conform(entry, get_args(kind)[1], _inner(name, key), of=of)
    elif get_origin(kind) in (list, tuple):
        for i, entry in enumerate(value):
            conform(entry, get_args(kind)[0], f"{name}[{i}]", of=of)
    return value


def parse_json(text: str | bytes) -> Any:
    """A value that every reader of JSON would read alike: no NaN, no infinity, no half of a character.

    Raises:
        ValueError: If it is none.
    """
    try:
        value = json.loads(text, parse_constant=_refused, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value


def read_json(path: Path, kind: Any = JSONObject) -> Any:
    """What a JSON file holds, an object of ``kind``.

    Args:
        path: The file.
        kind: What it is to hold, as for :func:`~lowland.runs.conform`.

    Raises:
        InputError: If it holds something else.
        OSError: If it cannot be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lowland.runs import read_json
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "config.json"
        ...     _ = path.write_text('{"rho": 0.1}')
        ...     print(read_json(path, dict[str, float]))
        {'rho': 0.1}
    """
    try:
        value = parse_json(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} must be a JSON file: {error}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(value).__name__}.")
    return conform(value, kind, "", of=f" of {path}")


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _is_float(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


_PLAIN: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    Any: ("anything", lambda _: True),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", _is_int),
    float: ("a finite number", _is_float),
    str: ("text", lambda value: isinstance(value, str)),
    types.NoneType: ("null", lambda value: value is None),
    dict: ("an object", lambda value: isinstance(value, dict)),
    list: ("a list", lambda value: isinstance(value, list)),
    tuple: ("a list", lambda value: isinstance(value, (list, tuple))),
}


def _alternative(value: Any, kind: Any) -> Any:
    """Of a union the member that ``value`` is to be of, if one is; else the union."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    return next((inner for inner in get_args(kind) if _is_of(value, inner)), kind)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of ``kind``, whatever is inside it."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    outer = dict if is_typeddict(kind) else get_origin(kind) or kind
    return outer in _PLAIN and _PLAIN[outer][1](value)


def _described(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_described, get_args(kind)))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return _PLAIN[dict if is_typeddict(kind) else get_origin(kind) or kind][0]


def _inner(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
