"""Where a fault can strike in a call, and what it then is."""

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

import lowland.sam

HOME = str(Path(lowland.sam.__file__).parent)
"""The code whose every line is a point."""


class Point(NamedTuple):
    """Where a fault strikes.

    Attributes:
        line: The line of ``lowland/sam`` that runs, or that calls what runs.
        call: Torch's function, at a call.
    """

    line: str
    call: str = ""


class Fault(Exception):
    """An exception that nobody has heard of."""


class Strike:
    """Counts points, and strikes at one of them.

    Args:
        at: Index of the point; ``None`` to count only.
        kind: A key of :data:`KINDS`.

    Attributes:
        points: Those that were seen, in order.
        error: What was raised; ``None`` for a signal, whose exception is Python's.
        struck: Whether the point came.
        caught: What came out of the call.
    """

    def __init__(self, at: int | None = None, kind: str = "error") -> None:
        self.at = at
        self.points: list[Point] = []
        self.struck = False
        self.error = KINDS[kind]()
        self.caught: BaseException | None = None

    def meet(self, point: Point) -> None:
        """Counts ``point``, or strikes."""
        self.points.append(point)
        if self.at is None or len(self.points) <= self.at or self.struck:
            return
        self.struck = True
        sys.settrace(None)
        sys.setprofile(None)
        if self.error is not None:
            raise self.error
        _Signal(signal.SIGINT).sent  # noqa: B018 - sends it


class _Signal(int):
    """A signal number whose attribute sends it, from C.

    ``os.kill`` lets Python's handler run before it returns. A signal from elsewhere is met at Python's next
    look, which is not before the code that was interrupted goes on. (So nothing between here and there may be
    a call of C: Python looks after each, hence :meth:`Strike.meet` and no ``__call__``.)
    """

    sent = property(ctypes.CDLL(None)["raise"])


KINDS: dict[str, Callable[[], BaseException | None]] = {
    "error": lambda: Fault("struck"),
    "mistake": lambda: TypeError("struck"),
    "memory": lambda: torch.OutOfMemoryError("struck"),
    "interrupt": lambda: KeyboardInterrupt("struck"),
    "sigint": lambda: None,
}
"""``sigint`` is a real one, which arrives where Python looks for signals next; the others strike at once."""


@contextmanager
def _lines(strike: Strike) -> Iterator[None]:
    """Every line of :data:`HOME`, before it runs."""
    ours: dict[Any, bool] = {}

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            strike.meet(Point(_place(frame)))
        return local

    def enter(frame: FrameType, *_: Any) -> Any:
        code = frame.f_code
        if code not in ours:
            ours[code] = code.co_filename.startswith(HOME)
        return local if ours[code] else None

    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)


@contextmanager
def _builtins(strike: Strike) -> Iterator[None]:
    """Every function of torch that is written in C and called from Python, whoever calls it."""

    def see(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and _is_torchs(called):
            strike.meet(Point(_nearest(frame), called.__name__))

    sys.setprofile(see)
    try:
        yield
    finally:
        sys.setprofile(None)


class _Functions(TorchFunctionMode):
    """Every function of torch that a user's mode sees, operators and attributes of tensors among them."""

    def __init__(self, strike: Strike) -> None:
        super().__init__()
        self._strike = strike

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = resolve_name(func) or getattr(func, "__name__", str(func))
        self._strike.meet(Point(_nearest(sys._getframe(1)), name))
        return func(*args, **(kwargs or {}))


PLACES: dict[str, Callable[[Strike], AbstractContextManager[Any]]] = {
    "lines": _lines,
    "functions": _Functions,
    "builtins": _builtins,
}
"""Context managers in which a strike is told of each point."""


def chosen(points: list[Point], stride: int, *, once: bool) -> list[int]:
    """Every ``stride``-th (0: none), and the first and (unless ``once``) the last of those that are equal."""
    first = {point: k for k, point in reversed(list(enumerate(points)))}
    last = {} if once else {point: k for k, point in enumerate(points)}
    return sorted({*first.values(), *last.values(), *(range(0, len(points), stride) if stride else ())})


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename[len(HOME) + 1 :]}:{frame.f_lineno}"


def _nearest(frame: FrameType | None) -> str:
    while frame is not None and not frame.f_code.co_filename.startswith(HOME):
        frame = frame.f_back
    return "the loss" if frame is None else _place(frame)


def _is_torchs(called: Any) -> bool:
    owner = getattr(called, "__self__", None)
    module = getattr(called, "__module__", None) or type(owner).__module__
    return isinstance(owner, Tensor) or str(module).startswith("torch")
