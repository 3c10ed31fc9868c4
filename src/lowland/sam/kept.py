"""State as it was: attributes, containers and tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

CONTAINERS = (dict, list, set, deque)


def kept_attributes(parts: Iterable[Any]) -> Callable[[], None]:
    """Takes the attributes of ``parts``, and of what of ours they hold, with the containers among them.

    Tensors are not copied: a part gives itself another one and writes to none.

    Returns:
        What puts them back.
    """
    held = [vars(thing) for thing in _things(parts)]
    inside = [value for attributes in held for value in attributes.values() if isinstance(value, CONTAINERS)]
    return kept_containers([*inside, *held])


def kept_containers(containers: Iterable[Any]) -> Callable[[], None]:
    """Takes what containers hold.

    Returns:
        What puts it back.
    """
    kept = [(container, container.copy()) for container in containers]

    def put_back() -> None:
        for container, copy in kept:
            _refill(container, copy)

    return put_back


def _things(parts: Iterable[Any]) -> Iterator[Any]:
    for part in parts:
        if hasattr(part, "__dict__") and not isinstance(part, type):
            yield part
            yield from _things(v for v in vars(part).values() if type(v).__module__.startswith("lowland."))


def _refill(container: Any, copy: Any) -> None:
    """Gives a container what it held; what is as it was is not touched."""
    if isinstance(container, (list, deque)):
        if len(container) != len(copy) or any(a is not b for a, b in zip(container, copy, strict=True)):
            container.clear()
            container.extend(copy)
        return
    if isinstance(container, set):
        container.intersection_update(copy)
        container.update(copy)
        return
    for key in [key for key in container if key not in copy]:
        del container[key]
    for key, value in copy.items():
        if key not in container or container[key] is not value:
            container[key] = value


def kept_tensors(tensors: Sequence[Tensor]) -> Callable[[], None]:
    """Takes what tensors hold.

    Returns:
        What puts it back.
    """
    with torch.no_grad():
        kept = [(t, t.detach().clone()) for t in tensors]

    def put_back() -> None:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)

    return put_back
