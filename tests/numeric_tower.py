"""The run-time type checker of the tests: an ``int`` is a ``float`` to it, as to mypy (PEP 484)."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

# The first element of a list is looked at, none is drawn: what is tested draws from the same generator.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True, is_random=False))

_CALLS = 10
# In a context variable: a counter that the loss of a test reaches would be state of that loss.
_checked: ContextVar[Counter[CodeType]] = ContextVar("checked", default=Counter())  # noqa: B039 - for all threads
_at_definition = jaxtyping.jaxtyped


def check_anew() -> None:
    """The next test has every function checked from its first call on."""
    _checked.get().clear()


def _at_its_calls(of: Callable[..., Any], typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """``of``, whose checks are made when they are first asked for, and asked at its first calls in a test.

    jaxtyping makes them at the definition, also with checks off: for a function inside another one at every
    call of the other. That, and the ten thousandth call of a loop, were most of the time of the tests.
    """
    code, checks = of.__code__, []

    @functools.wraps(of)
    def called(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable or _checked.get()[code] >= _CALLS:
            return of(*args, **kwargs)
        _checked.get()[code] += 1
        if not checks:
            checks.append(_at_definition(of, typechecker=typechecker))
        return checks[0](*args, **kwargs)

    return called


def _jaxtyped(of: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """What the import hook of jaxtyping puts on every function and class of the library."""
    if of is None:
        return functools.partial(_jaxtyped, typechecker=typechecker)
    if isinstance(of, FunctionType):
        return _at_its_calls(of, typechecker)
    if dataclasses.is_dataclass(of) and isinstance(vars(of).get("__init__"), FunctionType):
        of.__init__ = _at_its_calls(of.__init__, typechecker)
        return of
    return _at_definition(of, typechecker=typechecker)


jaxtyping.jaxtyped = _jaxtyped
