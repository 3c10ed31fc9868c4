"""A page, read as HTML."""

import json
import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br"}


class Parsed(HTMLParser):
    """Elements with their attributes, rows of tables, and the text of some elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        assert self.open == [], "every element is closed"
        self.boards = json.loads(re.search(r'id="boards">(.*?)</script>', text).group(1))

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if set(self.open) & {"td", "th"}:
            self.rows[-1][-1] += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        """The attributes of every element of a name."""
        return [attributes for tag, attributes in self.elements if tag == name]

    def table(self, first: str) -> list[dict[str, str]]:
        """The rows of the table whose first column is called so; not of the tables of configs."""
        heads = [i for i, row in enumerate(self.rows) if row and row[0] == first and row[1] != "options"]
        start = heads[0]
        heads, found = self.rows[start], []
        for row in self.rows[start + 1 :]:
            if len(row) != len(heads):
                break
            found.append(dict(zip(heads, row, strict=True)))
        return found
