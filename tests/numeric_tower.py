"""The run-time type checker of the tests: an ``int`` is a ``float`` to it, as to mypy (PEP 484)."""

import functools
import random
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typechecked(check: Callable[..., Any]) -> Callable[..., Any]:
    """Checks types by drawing elements of lists; what is tested draws from the same generator, and sees none.

    jaxtyping asks this of the signature alone, not of the function.
    """
    checked = _checked(check)

    @functools.wraps(checked)
    def without_a_draw(*args: Any, **kwargs: Any) -> Any:
        state = random.getstate()
        try:
            return checked(*args, **kwargs)
        finally:
            random.setstate(state)

    return without_a_draw
