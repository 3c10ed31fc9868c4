"""Attention masks of transformers that are built without a look at whether anything is padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

_functions: Any = {}
"""What builds the masks; nothing where the models of transformers do it themselves."""

with suppress(ImportError):
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as _functions  # noqa: N811

_NAME = "sdpa"


@contextmanager
def always_built() -> Iterator[None]:
    """A block in which rows without padding are masked as those with padding are, to the same result.

    Otherwise they take another path, without a mask, and groups that do not all take the same path cannot
    be run at once.
    """
    own = _functions.get(_NAME)
    if own is None:
        yield
        return
    before = getattr(_functions, "_local_mapping", {}).get(_NAME)
    _functions[_NAME] = _building(own)
    try:
        yield
    finally:
        if before is None:
            del _functions[_NAME]
        else:
            _functions[_NAME] = before


def _building(own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def building(*args: Any, **kwargs: Any) -> Any:
        skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return own(*args, **{**kwargs, **skips})

    return building
