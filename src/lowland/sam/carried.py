"""What a loss did to the containers of each group, done to those of the user's batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lowland.sam.batch import detach, join
from lowland.sam.containers import is_container, items


def carry_over(own: Any, given: Sequence[Any], left: Sequence[Any]) -> None:
    """Takes out of ``own`` what every group's loss took out, and puts in what it put in, joined over groups.

    Args:
        own: A container of the user's batch.
        given: What each group was given in its place.
        left: The same as the group's loss left it.
    """
    before, after = [dict(items(one)) for one in given], [dict(items(one)) for one in left]
    everywhere = [key for key in after[0] if all(key in one for one in after)]
    for key in reversed([key for key in before[0] if key not in everywhere]):
        _take_out(own, key)
    for key in everywhere:
        now, then = [one[key] for one in after], [one.get(key) for one in before]
        if is_container(now[0]) and all(type(a) is type(b) for a, b in zip(now, then, strict=True)):
            carry_over(dict(items(own))[key], then, now)
        elif any(a is not b for a, b in zip(now, then, strict=True)):
            _put_in(own, key, detach(join(now)) if isinstance(now[0], Tensor) else now[-1])


def _take_out(own: Any, key: Any) -> None:
    if dataclasses.is_dataclass(own):
        delattr(own, key)
    else:
        del own[key]


def _put_in(own: Any, key: Any, value: Any) -> None:
    if dataclasses.is_dataclass(own):
        setattr(own, key, value)
    elif isinstance(own, list) and key == len(own):
        own.append(value)
    else:
        own[key] = value
