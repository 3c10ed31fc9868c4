"""Every code block of the README and of the site: Python is executed, commands are understood.

Hidden in a page, for Sybil: ``<!--- invisible-code-block: python`` is what a page needs besides what
:func:`given` gives it, and ``<!--- skip: next "reason" -->`` exempts a block.
"""

import importlib
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest
from unittest.mock import patch

import pytest
import torch
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lowland.cli import figure
from lowland.cli.arguments import part_of
from lowland.cli.figure import FigureCommand
from lowland.cli.train import TrainCommand
from lowland.deep import TrainConfig
from lowland.runs import Run
from lowland.sweeps import Study

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/api/*.md")),
    ROOT / "docs/results/README.md",
]
LANGUAGES = {"python", "sh", "bash", "text"}
DIRECTIVES = {"eval-rst", "image", "include", "toctree"}
"""Of MyST: what they hold is no code."""
FENCED = re.compile(r"^ *(```+|~~~+)(.*?)\n.*?^ *\1$", flags=re.MULTILINE | re.DOTALL)
MOST_EXEMPT = 5


def given() -> dict[str, Any]:
    """What the pages call yours: a network, batches, a loss, an optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    examples = TensorDataset(torch.randn(16, 4), torch.randint(3, (16,)))
    loader = DataLoader(examples, batch_size=8)
    x, y = examples[:8]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    yours = {"model": model, "loader": loader, "x": x, "y": y, "optimizer": optimizer, "device": x.device}
    return {"root": ROOT, "torch": torch, "F": F, "loss_function": nn.CrossEntropyLoss(), **yours}


def examples(page: Path, *parsers: Any) -> list[Example]:
    """What the parsers find in a page, in order."""
    return list(Sybil(parsers=parsers, pattern="*.md").parse(page).examples())


def is_shown(example: Example) -> bool:
    """Whether a reader sees it as code."""
    return not example.document.text[example.region.start :].lstrip().startswith("<!-")


def where(page: Path) -> str:
    """A page's name."""
    return str(page.relative_to(ROOT))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Blocks write into an empty folder, and what they set of the environment is theirs."""
    monkeypatch.chdir(tmp_path)
    with patch.dict(os.environ):  # launchers of processes say there which one this is
        yield tmp_path


BLOCKS = {page: examples(page, PythonCodeBlockParser(), SkipParser()) for page in PAGES}
SHOWN = sum(is_shown(example) for blocks in BLOCKS.values() for example in blocks)


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("elsewhere", "untyped")
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_shown, BLOCKS[page]))], ids=where)
def test_every_python_block_runs_after_those_above_it(page, subtests) -> None:
    page_blocks = examples(page, PythonCodeBlockParser(), SkipParser())
    page_blocks[0].document.namespace.update(given())
    for example in page_blocks:
        with subtests.test(line=example.line):
            try:
                example.evaluate()
            except SkipTest as reason:
                pytest.skip(f"{where(page)}:{example.line}: {reason}")


def test_at_most_five_blocks_are_exempt_each_with_its_reason() -> None:
    exempt = [
        example.parsed
        for blocks in BLOCKS.values()
        for example in blocks
        if not isinstance(example.parsed, str)
    ]
    print(f"{SHOWN} Python blocks, {len(exempt)} of them exempt; {len(LINES)} lines of commands")
    assert len(exempt) <= MOST_EXEMPT
    assert all(action == "next" and reason for action, reason in exempt)


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_no_block_is_in_a_language_that_nothing_checks(page) -> None:
    text = page.read_text(encoding="utf-8")
    found = {re.sub(r"^\{([a-z-]+)\}.*", r"\1", info) for _, info in FENCED.findall(text)}
    assert found <= LANGUAGES | DIRECTIVES
    outside = FENCED.sub("", text)
    assert not re.search(r"\n\n( {4,}|\t)\S", outside), "it has an indented block"
    assert not re.search(r"^ *(```|~~~|:::+ *\{code)", outside, flags=re.M), "it has another block"


def lines_of(page: Path) -> list[tuple[str, int, str]]:
    """Every command in a page's shell blocks, with the page and the line; comments are left out."""
    found = []
    for language in ("sh", "bash"):
        for example in examples(page, CodeBlockParser(language, lambda _: None)):
            for line in re.sub(r"\\\n\s*", "", str(example.parsed)).splitlines():
                if words := line.split(" #")[0].strip():
                    found.append((where(page), example.line, words))
    return [one for one in found if not one[2].startswith("#")]


LINES = [line for page in PAGES for line in lines_of(page)]


class Understood(Exception):
    """A command has read its words and would begin."""


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("words", [pytest.param(words, id=f"{page}:{line}") for page, line, words in LINES])
def test_every_command_is_one_that_there_is(words, monkeypatch) -> None:
    head, *rest = shlex.split(words.replace("$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT", "3/16"))
    if words.startswith(".venv/bin/python -m lowland"):
        head, *rest = rest[1:]
    if head == "torchrun":
        head, *rest = ["lowland", *rest[rest.index("--") + 1 :]]
    if head in {"lowland", "exec"}:
        understood(rest if head == "lowland" else rest[1:], monkeypatch)
    elif head == "make":
        assert f"\n{rest[0]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    elif "pip" in rest or head == "pip":
        extras = re.findall(r"\[(.*)\]", rest[-1])
        known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        assert set(extras) <= known.keys() or rest[-1].startswith("ray")
    elif rest and rest[0].endswith(".py"):
        script = (ROOT / rest[0]).read_text(encoding="utf-8")
        assert all(f'"{option}"' in script for option in rest[1:] if option.startswith("--"))
    else:
        assert words in {"python3 -m venv .venv", "python -m build"} or head in {
            "source",
            "export",
            "git",
            "pre-commit",
        }


def understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command reads its words, and is stopped before it looks for a run or begins its work."""
    command = importlib.import_module(f"lowland.cli.{words[0]}")

    def parsed(kind: type[Any], *args: Any, **options: Any) -> Any:
        found = parse(kind, *args, **options)
        if kind is TrainCommand:
            part_of(found, TrainConfig)
        if kind is not FigureCommand:  # it looks at the names of figures after its options
            raise Understood
        return found

    def begun(*_: Any) -> None:
        raise Understood

    parse = importlib.import_module("lowland.cli.arguments").parse
    for module in {command, importlib.import_module("lowland.cli.listing")}:
        monkeypatch.setattr(module, "parse", parsed, raising=False)
    monkeypatch.setattr(Run, "open", begun)  # lowland runs show takes no options
    for name in ("Store", "_listed"):
        monkeypatch.setattr(figure, name, begun)
    monkeypatch.setattr(Study, "of", begun)
    with pytest.raises(Understood):
        command.run(words[1:])
