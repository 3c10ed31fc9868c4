"""Functions of the user's own, by their names: what builds a network, returns data, or is a loss."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from lowland.errors import InputError

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_function(name: str) -> bool:
    """Whether ``name`` is of the form ``package.module:function``.

    Example:
        >>> is_function("mine:net"), is_function("timm.models:create_model"), is_function("resnet18")
        (True, True, False)
    """
    return _NAME.fullmatch(name) is not None


def function_named(name: str, option: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names; the working directory is searched first.

    Args:
        name: The name.
        option: What it is the value of, for errors.

    Raises:
        InputError: If there is no such function, or its module cannot be imported.
    """
    module_name, _, path = name.partition(":")
    found: Any = _module_named(module_name, name, option)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        there = f"but {module_name} has no function {path!r}"
        raise InputError(f"{option} must name a function, {there}, got {name}.")
    function: Callable[..., Any] = found
    return function


def called(name: str, option: str, arguments: Mapping[str, Any] = {}, offered: Mapping[str, Any] = {}) -> Any:
    """What the function of that name returns.

    Args:
        name: ``package.module:function``.
        option: What it is the value of, for errors.
        arguments: What the user gives it.
        offered: What it is given beside that if it takes an argument of that name. One that takes any name
            is given ``num_classes`` only.

    Raises:
        InputError: If there is no such function, it does not take the arguments, or it fails.
    """
    function = function_named(name, option)
    given = {**_taken(function, offered), **arguments}
    _require_bound(function, given, name, option)
    with errors_told(f"{option} {name} must return what it makes"):
        return function(**given)


def failure(error: BaseException) -> str:
    """What an error of the user's code says, and where: ``raised ValueError at mine.py:3: no such width``."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if not is_installed(Path(f.filename))]
    where = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    lines = str(error).strip().splitlines()
    text = f": {lines[0].rstrip('.')}" if lines else ""
    return f"raised {type(error).__name__}{where}{text}"


@contextmanager
def errors_told(what: str, *, only: bool = True) -> Iterator[None]:
    """What the user's code raises inside the block becomes one sentence, which begins with ``what``.

    Args:
        what: What it must do.
        only: Whether the code is the user's; errors of others are left as they are.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        if not only:
            raise
        raise InputError(f"{what}, but it {failure(error)}.") from error


def arguments_of(option: str, words: Sequence[str]) -> dict[str, Any]:
    """Arguments from ``name=value`` each: a literal of Python where it is one, else the text itself.

    Raises:
        InputError: If one is not of that form, or a name is there twice.

    Example:
        >>> arguments_of("model_arg", ["width=8", "model_name=resnet18", "bias=False"])
        {'width': 8, 'model_name': 'resnet18', 'bias': False}
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (equals and name.isidentifier()):
            raise InputError(f"{option} must be name=value, got {word!r}.")
        if name in found:
            raise InputError(f"{option} must give {name} once, got it twice.")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = text
    return found


def sources_of(name: str, option: str) -> dict[str, str]:
    """The text of the modules that a function is named in and that it is written in, by their names.

    Those that are installed, or not written in Python, are left out.
    """
    function = function_named(name, option)
    modules = (name.partition(":")[0], getattr(function, "__module__", None) or "")
    files = {module: getattr(sys.modules.get(module), "__file__", None) or "" for module in modules}
    return {
        module: Path(file).read_text(encoding="utf-8", errors="replace")
        for module, file in files.items()
        if file.endswith(".py") and not is_installed(Path(file))
    }


@contextmanager
def searched_first(directory: Path) -> Iterator[None]:
    """Inside the block Python looks for modules in a directory first, and after it last.

    So what the user's module imports later is found, and nothing there stands in place of what is installed.
    """
    here = str(directory)
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        on_path(directory)


def on_path(directory: Path) -> None:
    """Lets Python look for modules in a directory too."""
    if str(directory) not in sys.path:
        sys.path.append(str(directory))


def _module_named(module_name: str, name: str, option: str) -> ModuleType:
    here = Path.cwd()
    with errors_told(f"{option} {name} must be importable"), searched_first(here):
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (module_name + ".").startswith(error.name + "."):
                raise
            raise InputError(
                f"{option} must name a module that can be imported from {here}, got {name}: {error}."
            ) from None


def _taken(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``offered`` the function takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # some functions of C say nothing of theirs
        return {}
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    names |= {"num_classes"} if any(p.kind is p.VAR_KEYWORD for p in parameters) else set()
    return {key: value for key, value in offered.items() if key in names}


def _require_bound(function: Callable[..., Any], given: Mapping[str, Any], name: str, option: str) -> None:
    try:
        inspect.signature(function).bind(**given)
    except ValueError:
        return
    except TypeError as error:
        got = ", ".join(given) or "none"
        raise InputError(f"{option} {name} must take its arguments, {got}: {error}.") from None


def is_installed(path: Path) -> bool:
    """Whether a file is Python's, a library's or ours, and not the user's."""
    libraries = {"site-packages", "dist-packages"} & set(path.parts)
    ours, python = Path(__file__).parents[1], Path(importlib.__file__).parents[1]
    return bool(libraries) or ours in path.parents or python in path.parents or str(path).startswith("<")
