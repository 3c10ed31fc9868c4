"""What commands print: text as it is, in letters that the terminal has, and tables that fit it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowland.cli.legible import legible

_GAP = 2
_NUMBER = re.compile(r"[-+]?\d\S*( ± | \+/- |  |$)")


class Output(Console):
    """A console that takes nothing of what it is given for its own: brackets in a path are brackets."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)

    def say(self, text: str, *, style: str | None = None) -> None:
        """Prints a line, however long it is."""
        self.print(legible(text, self.encoding), style=style, soft_wrap=True)

    def paragraph(self, text: str) -> None:
        """Prints a line, wrapped where the terminal ends; what follows is indented further."""
        further = " " * (len(text) - len(text.lstrip()) + 2)
        shown = legible(text, self.encoding)
        lines = textwrap.wrap(
            shown, self.width, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
        )
        for line in lines:
            self.say(line)

    def table(
        self, heads: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", named: bool = False
    ) -> None:
        """Prints a table in which nothing is cut: heads and words are wrapped, and numbers never.

        Where the columns do not fit beside one another, each row is a paragraph.

        Args:
            heads: The first line.
            rows: The others.
            title: What stands above.
            named: Whether the first column, if the others fit without it, may be a line above each row.
        """
        heads = [legible(head, self.encoding) for head in heads]
        rows = [[legible(cell, self.encoding) for cell in row] for row in rows]
        if title:
            for line in _wrapped(legible(title, self.encoding), self.width):
                self.say(line, style="italic")
        widths = _widths([heads, *rows], self.width)
        below = _widths([row[1:] for row in (heads, *rows)], self.width) if named else None
        if widths is not None:
            for number, row in enumerate([heads, *rows]):
                self._row(row, widths, "bold" if number == 0 else None)
        elif below is not None:
            self._row(heads[1:], below, "bold")
            for name, *cells in rows:
                self.say(name, style="bold")
                self._row(cells, below)
        else:
            self._paragraphs(heads, rows)

    def fits(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
        """Whether the columns of a table fit beside one another."""
        cells = [[legible(cell, self.encoding) for cell in row] for row in (heads, *rows)]
        return _widths(cells, self.width) is not None

    def on_broken_pipe(self) -> None:
        """Leaves it to the command, which ends."""
        raise BrokenPipeError

    def _row(self, cells: Sequence[str], widths: Sequence[int], style: str | None = None) -> None:
        for line in _beside([_wrapped(c, w) for c, w in zip(cells, widths, strict=True)], widths):
            self.say(line, style=style)

    def _paragraphs(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        for row in rows:
            first, *others = ((head, cell) for head, cell in zip(heads, row, strict=True) if cell)
            self.say(first[1], style="bold")
            for head, cell in others:
                text = f"{head}: {cell}" if head else cell
                for line in textwrap.wrap(
                    text, self.width - 2, break_long_words=False, subsequent_indent="  "
                ):
                    self.say(f"  {line}")


@contextmanager
def counted(what: str, total: int, console: Output) -> Iterator[Callable[[], object]]:
    """To be called whenever one of ``total`` is done; a bar on a terminal, silent elsewhere."""
    if not console.is_terminal:
        yield lambda: None
        return
    columns = (words("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield partial(progress.advance, progress.add_task(what, total=total))


def words(text: str) -> TextColumn:
    """A column of a progress bar; brackets in it are brackets."""
    return TextColumn(text, markup=False)


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """A width per column, the widest narrowed first; ``None`` if there is no room for what is not wrapped."""
    columns = list(zip(*rows, strict=True))
    least = [max((cell_len(atom) for cell in c for atom in _atoms(cell)[0]), default=0) for c in columns]
    widths = [max(map(cell_len, column)) for column in columns]
    room -= _GAP * (len(columns) - 1)
    if sum(least) > room:
        return None
    while sum(widths) > room:
        spare = [w - n for w, n in zip(widths, least, strict=True)]
        widest = max((i for i, s in enumerate(spare) if s > 0), key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def _atoms(cell: str) -> tuple[list[str], str]:
    """What of a cell is not wrapped, and what is between: words, but a number with its unit and its error."""
    gap = "  " if _NUMBER.match(cell) else " "
    return [atom for atom in cell.split(gap) if atom], gap


def _wrapped(cell: str, width: int) -> list[str]:
    atoms, gap = _atoms(cell)
    lines: list[str] = []
    for atom in atoms:
        if lines and cell_len(lines[-1] + gap + atom) <= width:
            lines[-1] += gap + atom
        else:
            lines.append(atom)
    return lines


def _beside(cells: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """Lines of cells that stand beside one another."""
    lines = []
    for i in range(max(map(len, cells), default=0)):
        parts = [cell[i] if i < len(cell) else "" for cell in cells]
        padded = [part + " " * (width - cell_len(part)) for part, width in zip(parts, widths, strict=True)]
        lines.append((" " * _GAP).join(padded).rstrip())
    return lines
