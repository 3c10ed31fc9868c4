"""The public names are documented, and what leaves something out is found."""

import doctest
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypedDict, Unpack

import pytest

pytest.importorskip("lightning.pytorch")
pytest.importorskip("transformers")

_PATH = Path(__file__).parents[1] / "docs" / "extensions" / "complete.py"
_SPEC = importlib.util.spec_from_file_location("complete", _PATH)
complete = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(complete)


def test_nothing_public_is_left_undocumented():
    names = complete.public_names()
    assert len(names) > 200
    assert [str(fault) for fault in complete.faults(names)] == []


def test_the_counts_are_one_line():
    fault = complete.Fault("example", "a.f", "there must be an example that runs (>>>).", "a")
    line = complete.counted([complete.Public("a", "f", len)], [fault])
    assert line.startswith("1 public names: 0 without a docstring, 0 arguments without a meaning")
    assert line.endswith("1 without an example.")


def test_a_name_on_no_page_is_found_though_a_page_has_another_of_that_name():
    names = [public for public in complete.public_names() if public.name in {"SAM", "perturbed"}]
    assert {public.package for public in names} == {"lowland", "lowland.sam.davda54"}
    shown = ["lowland.sam.SAM", "lowland.sam.perturbed"]
    assert complete.unshown(names, [*shown, "lowland.sam.davda54.SAM"]) == []
    assert [one.package for one in complete.unshown(names, shown)] == ["lowland.sam.davda54"]
    assert len(complete.unshown(names, ["lowland.Here.SAM", "lowland.sam.shell.SAM.perturbed"])) == 3


_EXAMPLES = {
    f"{public.package}.{public.name}": public.value
    for public in complete.public_names()
    if ">>> " in (getattr(public.value, "__doc__", None) or "")
}


@pytest.mark.parametrize("name", _EXAMPLES)
def test_an_example_runs_by_itself(name, monkeypatch, tmp_path):
    """As somebody types it who reads it, without the names of the module that it stands in."""
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(_EXAMPLES[name]), {}, name, None, None)
    doctest.DebugRunner(verbose=False).run(example)
    assert list(tmp_path.iterdir()) == []


class Options(TypedDict, total=False):
    width: int
    depth: int


class Named(Protocol):
    """A hook.

    A sentence.
    """

    def hook(self, given: int) -> int:
        """The number.

        Args:
            given: A number.
        """


def whole(a: int, *rest: int) -> int:
    """The sum.

    Args:
        a: A number.
        rest: Others.

    Example:
        >>> whole(1)
        1
    """
    return a + sum(rest)


@dataclass
class Whole:
    """A class.

    Attributes:
        width: Its width.
        depth: Its depth.

    Example:
        >>> Whole(1, 2).area(3)
        6
    """

    width: int
    depth: int

    def area(self, times: int) -> int:
        """The area, as many ``times``."""
        return times * self.width * self.depth

    def hook(self, given: int) -> int:
        """The same number."""
        return given


def with_options(**options: Unpack[Options]) -> None:
    """Takes options.

    Args:
        options: Those of :class:`Whole`.

    Example:
        >>> with_options(width=1)
    """


def undocumented(a: int) -> int:
    return a


def lacks_an_argument(a: int, b: int) -> None:
    """Does it.

    Args:
        a: A number.
        b:

    Example:
        >>> lacks_an_argument(1, 2)
    """


def has_a_stale_argument(a: int) -> None:
    """Does it.

    Args:
        a: A number.
        old: What is gone.

    Example:
        >>> has_a_stale_argument(1)
    """


def hides_what_it_returns() -> int:
    """Computes it.

    Example:
        >>> hides_what_it_returns()
        1
    """
    return 1


def lacks_an_example() -> None:
    """Does it."""


class LacksAnExample:
    """A class.

    Args:
        a: A number.
    """

    def __init__(self, a: int) -> None:
        self.a = a

    def times(self, b: int) -> int:
        """The product."""
        return self.a * b

    @property
    def bare(self) -> int:
        return self.a


@dataclass
class Bare:
    a: int


def lacks_an_option(**options: Unpack[Options]) -> None:
    """Does it.

    Args:
        options: Those of :class:`LacksAnExample`.

    Example:
        >>> lacks_an_option()
    """


WHOLE = (Named, whole, Whole, with_options)
FAULTS = {
    undocumented: ["docstring", "example"],
    lacks_an_argument: ["argument: b"],
    has_a_stale_argument: ["stale argument: old"],
    hides_what_it_returns: ["returned value"],
    lacks_an_example: ["example"],
    LacksAnExample: ["example", "argument: b", "docstring"],
    Bare: ["docstring", "argument: a", "example"],
    lacks_an_option: ["argument: depth", "argument: width"],
}


@pytest.fixture
def planted(monkeypatch) -> ModuleType:
    """A package with these names."""
    module = ModuleType("planted")
    for value in (*WHOLE, *FAULTS):
        monkeypatch.setattr(value, "__module__", "planted")
        setattr(module, value.__name__, value)
    module.__all__ = [value.__name__ for value in (*WHOLE, *FAULTS)]
    monkeypatch.setitem(sys.modules, "planted", module)
    return module


def found_in(module: ModuleType, value: Any) -> list[str]:
    """The faults of one name: their kinds, and which argument it is."""
    names = complete.public_names([module.__name__], [])
    where = f"{module.__name__}.{value.__name__}"
    own = [fault for fault in complete.faults(names) if f"{fault.where}.".startswith(f"{where}.")]
    words = [fault.what.removeprefix("the meaning of ").split()[0] for fault in own]
    return [
        f"{fault.kind}: {word}" if "argument" in fault.kind else fault.kind
        for fault, word in zip(own, words, strict=True)
    ]


@pytest.mark.parametrize("value", WHOLE)
def test_nothing_is_found_where_all_is_said(planted, value):
    assert found_in(planted, value) == []


@pytest.mark.parametrize("value", FAULTS)
def test_what_is_left_out_is_found(planted, value):
    assert found_in(planted, value) == FAULTS[value]


def test_a_constant_needs_a_string_below_it(monkeypatch, tmp_path):
    (tmp_path / "constants.py").write_text('__all__ = ["SAID", "BARE"]\nSAID = 1\n"""One."""\nBARE = 2\n')
    monkeypatch.syspath_prepend(tmp_path)
    found = complete.faults(complete.public_names(["constants"], []))
    monkeypatch.delitem(sys.modules, "constants")
    assert [(fault.kind, fault.where) for fault in found] == [("docstring", "constants.BARE")]
