"""Counts what the docstrings of the public names leave out: a command, and a Sphinx extension.

``python docs/extensions/complete.py`` prints every fault and a table, and exits with 1 if there is a fault.
As an extension it checks when a build begins: a line with the counts, and a warning for each fault; and when
the pages are read, a warning for each name that is on none of them.

Public are the names in the ``__all__`` of ``PACKAGES`` and the functions and classes that ``MODULES`` define.
One that several packages have counts where it comes first. The rules:

* Every name has a docstring; of a constant or a type alias it is the string below its assignment. So has
  every public method and property of a class, and ``__call__``.
* Every argument of a function, or of what makes an instance, is described: under ``Args``, of a class perhaps
  under ``Attributes``. A field that a dataclass inherits is described where it is declared, what a class
  takes from another package's class is described there, and an argument of a hook where the protocol or the
  base class has the hook. A method may name an argument in its text instead, in double backticks.
  ``**options`` of a ``TypedDict`` are described if their entry names a public class or function that
  describes all of its keys.
* Nothing is described under ``Args`` that is no argument.
* What is returned is said under ``Returns`` or ``Yields``, or named by the first line, as by most of ours:
  such a line begins with one of ``NAMES_IT``, where one that says what is done begins with a verb.
* Functions and classes have an example that runs. Without one are protocols, exceptions, typed dictionaries,
  and dataclasses that a public function returns, whose own example shows one.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import typing
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

PACKAGES = (
    "lowland",
    "lowland.sam",
    "lowland.sharpness",
    "lowland.diagonal",
    "lowland.relu",
    "lowland.deep",
    "lowland.deep.data",
    "lowland.deep.models",
    "lowland.runs",
    "lowland.sweeps",
    "lowland.report",
    "lowland.figures.paper",
    "lowland.sam.trainers",
)
MODULES = (
    "lowland.presets",
    "lowland.sam.trainers.lightning",
    "lowland.sam.trainers.huggingface",
    "lowland.sam.davda54",
    "lowland.errors",
)
KINDS = ("docstring", "argument", "stale argument", "returned value", "example")
NAMES_IT = {"A", "All", "An", "Every", "How", "The", "What", "Where", "Whether", "Which", "Why"}
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Note|Warns):$")
_ENTRY = re.compile(r"^    \\?\*{0,2}(\w+)(?: \([^)]*\))?:", re.MULTILINE)
_METHODS = (classmethod, staticmethod, property, cached_property)


class Public(NamedTuple):
    """A public name: the package that has it first, and what it is there."""

    package: str
    name: str
    value: Any


class Fault(NamedTuple):
    """What is missing, or too much: one of ``KINDS``, where, and a sentence."""

    kind: str
    where: str
    what: str
    package: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def public_names(packages: Sequence[str] = PACKAGES, modules: Sequence[str] = MODULES) -> list[Public]:
    """All of them, each once."""
    found: dict[object, Public] = {}
    for place in (*packages, *modules):
        module = importlib.import_module(place)
        for name in module.__all__ if place in packages else _defined_in(module):
            value = getattr(module, name)
            if not isinstance(value, ModuleType):
                key = value if inspect.isroutine(value) or inspect.isclass(value) else (place, name)
                found.setdefault(key, Public(place, name, value))
    return list(found.values())


def faults(names: Sequence[Public]) -> list[Fault]:
    """What the docstrings of these names leave out, or say of what there is not."""
    check = _Check(names)
    return [fault._replace(package=public.package) for public in names for fault in check.of(public)]


def counted(names: Sequence[Public], found: Sequence[Fault]) -> str:
    """The counts in one line."""
    counts = Counter(fault.kind for fault in found)
    numbers = ", ".join(f"{counts[kind]} {_WITHOUT[kind]}" for kind in KINDS)
    return f"{len(names)} public names: {numbers}."


_WITHOUT = {
    "docstring": "without a docstring",
    "argument": "arguments without a meaning",
    "stale argument": "meanings without an argument",
    "returned value": "returned values without a meaning",
    "example": "without an example",
}


def table(names: Sequence[Public], found: Sequence[Fault]) -> str:
    """A row per package: its names, and the faults of each kind."""
    lines = ["".join(f"{head:>16}" for head in ("names", *KINDS)) + "  package"]
    for place in dict.fromkeys(public.package for public in names):
        counts = Counter(fault.kind for fault in found if fault.package == place)
        numbers = (sum(public.package == place for public in names), *(counts[kind] for kind in KINDS))
        lines.append("".join(f"{number:>16}" for number in numbers) + f"  {place}")
    return "\n".join(lines)


def unshown(names: Sequence[Public], places: Iterable[str]) -> list[Public]:
    """The names that pages do not have, whatever module they are in there; ``places`` are what pages have.

    A method of the same name, or another package's class, is not the one that is meant.
    """
    found = [place.rpartition(".") for place in places]
    values = [getattr(sys.modules.get(module), name, None) for module, _, name in found]
    return [public for public in names if not any(value is public.value for value in values)]


class _Check:
    """Holds names to the rules, knowing all that are public."""

    def __init__(self, names: Sequence[Public]) -> None:
        self.names = {public.name: public.value for public in reversed(names)}  # the first of a name
        self.protocols = [value for value in self.names.values() if getattr(value, "_is_protocol", False)]
        self.returned = _returned(names)

    def of(self, public: Public) -> Iterator[Fault]:
        where, value = f"{public.package}.{public.name}", public.value
        if inspect.isclass(value):
            yield from self.of_class(where, value)
        elif inspect.isroutine(value):
            yield from self.of_function(where, value, _parameters(value), [])
            if ">>> " not in _text(value):
                yield _without_example(where)
        elif not _text_below(importlib.import_module(public.package), public.name):
            yield Fault("docstring", where, "there must be a string below its assignment.")

    def of_class(self, where: str, cls: type) -> Iterator[Fault]:
        text = _own_text(cls)
        if not text:
            yield Fault("docstring", where, "there must be a docstring.")
        if not _is_told(cls):
            attributes = [name for base in cls.__mro__ for name in _entries(_own_text(base), "Attributes")]
            yield from self.arguments(where, _constructor(cls), text, attributes)
            if cls not in self.returned and ">>> " not in text:
                yield _without_example(where)
        for name, member in _members(cls).items():
            there, method = f"{where}.{name}", getattr(cls, name)
            if not isinstance(member, (property, cached_property)):
                parameters = _parameters(method, unbound=inspect.isfunction(member))
                yield from self.of_function(there, method, parameters, self.named(cls, name, method))
            elif not _text(member):
                yield Fault("docstring", there, "there must be a docstring.")

    def of_function(
        self, where: str, function: Any, parameters: dict[str, inspect.Parameter], named: Collection[str]
    ) -> Iterator[Fault]:
        text, returned = _text(function), inspect.signature(function).return_annotation
        if not text:
            yield Fault("docstring", where, "there must be a docstring.")
            return
        yield from self.arguments(where, parameters, text, named)
        said = {"Returns", "Yields"} & _sections(text).keys() or re.findall(r"\w+", text)[0] in NAMES_IT
        if not said and returned not in (None, "None", "NoReturn", inspect.Signature.empty):
            yield Fault("returned value", where, "it must be in Returns, or named by the first line.")

    def arguments(
        self, where: str, wanted: dict[str, inspect.Parameter], text: str, named: Collection[str]
    ) -> Iterator[Fault]:
        """``named`` are described elsewhere than under ``Args``."""
        described = _entries(text, "Args")
        for name, parameter in wanted.items():
            missing = [] if name in described or name in named else [name]
            for key in missing or self.left_out(parameter, described.get(name, "")):
                yield Fault("argument", where, f"the meaning of {key} must be in Args.")
        for name in sorted(described.keys() - wanted.keys()):
            yield Fault("stale argument", where, f"{name} must not be in Args: there is no such argument.")

    def named(self, cls: type, name: str, method: Any) -> list[str]:
        """The arguments of a method that its text names, or that are described where a hook of its is."""
        satisfied = [p for p in self.protocols if all(hasattr(cls, own) for own in _members(p))]
        hooks = [base for base in (*cls.__mro__, *satisfied) if base is not cls and name in vars(base)]
        elsewhere = [word for hook in hooks for word in _entries(_text(getattr(hook, name)), "Args")]
        return elsewhere + re.findall(r"\w+", " ".join(re.findall("``(.+?)``", _text(method))))

    def left_out(self, parameter: inspect.Parameter, entry: str) -> list[str]:
        """The keys of ``**options: Unpack[...]`` that are not described where their entry says."""
        if typing.get_origin(parameter.annotation) is not typing.Unpack:
            return []
        places = [self.names[word] for word in re.findall(r"\w+", entry) if word in self.names]
        known = {name for place in places for name in _entries(_text(place), "Args", "Attributes")}
        return sorted(typing.get_args(parameter.annotation)[0].__annotations__.keys() - known)


def _without_example(where: str) -> Fault:
    return Fault("example", where, "there must be an example that runs (>>>).")


def _defined_in(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def _text(value: Any) -> str:
    """The docstring, of a method perhaps that of the one it overrides."""
    return inspect.getdoc(value) or ""


def _own_text(cls: type) -> str:
    """The docstring of a class itself, as somebody wrote it."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or "")
    return "" if text.startswith(f"{cls.__name__}(") else text  # what dataclass makes of the fields


def _sections(text: str) -> dict[str, str]:
    """The lines below each heading of a docstring."""
    found: dict[str, str] = {}
    current = ""
    for line in text.splitlines():
        heading = _SECTION.match(line)
        if heading or (line and not line.startswith(" ")):
            current = heading[1] if heading else ""
        found[current] = found.get(current, "") + ("" if heading else line + "\n")
    return found


def _entries(text: str, *names: str) -> dict[str, str]:
    """What is described in some sections of a docstring, and how."""
    found, sections = {}, _sections(text)
    for name in names:
        pieces = _ENTRY.split(sections.get(name, ""))
        found |= {key: said for key, said in zip(pieces[1::2], pieces[2::2], strict=True) if said.strip()}
    return found


def _parameters(function: Callable[..., Any], *, unbound: bool = False) -> dict[str, inspect.Parameter]:
    """All but the instance, and those whose names say that they are not looked at."""
    scope = {**vars(typing), **getattr(inspect.unwrap(function), "__globals__", {})}
    return {
        p.name: p.replace(annotation=eval(p.annotation, scope))
        if p.kind is p.VAR_KEYWORD and isinstance(p.annotation, str)
        else p
        for p in list(inspect.signature(function).parameters.values())[unbound:]
        if not p.name.startswith("_")
    }


def _constructor(cls: type) -> dict[str, inspect.Parameter]:
    """The parameters that make an instance, without those of another package's class."""
    if dataclasses.is_dataclass(cls):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        fields = [f.name for f in dataclasses.fields(cls) if f.init and not f.name.startswith("_")]
        return {name: inspect.Parameter(name, kind) for name in fields}
    makers = [c for c in cls.__mro__[:-1] if "__init__" in vars(c)]
    if not makers or _package(makers[0]) != _package(cls):
        return {}
    init = makers[0].__init__  # type: ignore[misc]
    others = [c for c in makers if _package(c) != _package(cls)]
    theirs = inspect.signature(others[0].__init__).parameters if others else {}  # type: ignore[misc]
    code = inspect.unwrap(init).__code__
    own = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {n: p for n, p in _parameters(init, unbound=True).items() if n in own or n not in theirs}


def _members(cls: type) -> dict[str, Any]:
    """Its public methods and properties, with those inherited from classes of the same package."""
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    return {
        name: member
        for base in reversed(cls.__mro__)
        if _package(base) == _package(cls)
        for name, member in vars(base).items()
        if (inspect.isfunction(member) or isinstance(member, _METHODS))
        and (name == "__call__" or not name.startswith("_"))
        and name not in fields
    }


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _is_told(cls: type) -> bool:
    """Whether nobody makes one by calling it: a protocol, an exception, a typed dictionary."""
    protocol = bool(getattr(cls, "_is_protocol", False))
    return protocol or issubclass(cls, BaseException) or typing.is_typeddict(cls)


def _returned(names: Sequence[Public]) -> set[type]:
    """The dataclasses that a public function returns."""
    functions = [public.value for public in names if inspect.isfunction(public.value)]
    said = " ".join(str(inspect.signature(function).return_annotation) for function in functions)
    words = set(re.findall(r"\w+", said))
    classes = [public for public in names if inspect.isclass(public.value) and public.name in words]
    return {public.value for public in classes if dataclasses.is_dataclass(public.value)}


def _text_below(module: ModuleType, name: str) -> bool:
    """Whether a string stands below the assignment of a constant, in the module that assigns it."""
    body = ast.parse(inspect.getsource(module)).body
    for statement, below in zip(body, [*body[1:], None], strict=True):
        imported = statement.names if isinstance(statement, ast.ImportFrom) else []
        if any((alias.asname or alias.name) == name for alias in imported):
            return _text_below(importlib.import_module(statement.module), name)  # type: ignore[union-attr]
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return isinstance(below, ast.Expr) and isinstance(getattr(below.value, "value", None), str)
    return False


def setup(app: Any) -> dict[str, bool]:
    """The extension: at the beginning of a build, counts and warns."""
    from sphinx.util import logging

    logger = logging.getLogger(__name__)

    def check(_: Any) -> None:
        names = public_names()
        found = faults(names)
        print(counted(names, found))
        for fault in found:
            logger.warning(str(fault), type="complete", subtype=fault.kind.replace(" ", "_"))

    def check_pages(_: Any, env: Any) -> None:
        for public in unshown(public_names(), env.domains["py"].objects):
            logger.warning(f"{public.package}.{public.name} is on no page", type="complete")

    app.connect("builder-inited", check)
    app.connect("env-check-consistency", check_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def main() -> int:
    """The command: prints the faults, the table and the counts; 1 if there is a fault."""
    names = public_names()
    found = faults(names)
    print(*found, table(names, found), counted(names, found), sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
    sys.exit(main())
