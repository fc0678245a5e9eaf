"""A report as data: titles, lines, facts and tables, printed with Rich on a terminal and plain elsewhere.

Touches: stdout, in `show` and `show_json`. Every text on a page is one line without control
characters; paths come through `model.show`, and where anything else has such characters (a name in a
catalogue of somebody else) they are escaped here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple
from unicodedata import combining, east_asian_width

from smartscan.model import printable

if TYPE_CHECKING:  # Rich is imported where a terminal needs it
    from rich.console import Group

GOOD, BAD, TITLE = "green", "yellow", "bold"


class Line(NamedTuple):
    """A sentence of its own; an empty one is a blank line."""

    text: str = ""
    tone: str = ""


class Facts(NamedTuple):
    """Labels, and what is to be said of each; a value that is None is left out."""

    pairs: Sequence[tuple[str, str | None]]


class Table(NamedTuple):
    """Rows under a title. A column whose heading begins with > is aligned to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""  # what is not in the rows


class Paths(NamedTuple):
    """Paths below what is to be said of them; each on a line of its own that is never broken."""

    said: str
    paths: Sequence[str]


Page = Sequence[Line | Facts | Table | Paths]


def show(page: Page) -> None:
    """Print a page to stdout."""
    if sys.stdout is None or not sys.stdout.isatty():
        print(plain(page), end="")
        return
    from rich.console import Console

    Console(highlight=False).print(rich(page), crop=False)


def show_json(data: object) -> None:
    """Print data to stdout as JSON."""
    print(json.dumps(data, indent=2))


def plain(page: Page) -> str:
    """Lay out a page as text; columns are as wide as their widest cell, nothing is cut."""
    lines: list[str] = []
    for block in map(_clean, page):
        match block:
            case Line(text):
                lines.append(text)
            case Facts():
                pairs = [(f"  {label}", value) for label, value in _known(block)]
                lines += _columns(pairs, (False, False))
            case Table():
                heads = [column.removeprefix(">") for column in block.columns]
                rights = [column.startswith(">") for column in block.columns]
                body = _columns([heads, *block.rows], rights)
                lines += [block.title, *(f"  {line}" for line in body)]
                lines += [f"  {block.note}"] if block.note else []
            case Paths(said, paths):
                lines += [f"  {said}", *(f"    {path}" for path in paths)]
    return "\n".join(lines) + "\n"


def rich(page: Page) -> Group:
    """Lay out a page for Rich."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    parts: list[Text | Padding] = []
    for block in map(_clean, page):
        match block:
            case Line(text, tone):
                parts.append(Text(text, style=tone))
            case Facts():
                grid = RichTable.grid(padding=(0, 2))
                grid.add_column(style="dim")
                grid.add_column(overflow="fold")
                for label, value in _known(block):
                    grid.add_row(Text(label), Text(value))
                parts.append(Padding(grid, (0, 0, 0, 2)))
            case Table():
                table = RichTable(box=None, padding=(0, 2, 0, 0), header_style="dim")
                for column in block.columns:
                    right = column.startswith(">")
                    heading = Text(column.removeprefix(">"))
                    table.add_column(
                        heading, justify="right" if right else "left", no_wrap=right, overflow="fold"
                    )
                for row in block.rows:
                    table.add_row(*map(Text, row))
                parts += [Text(block.title, style=TITLE), Padding(table, (0, 0, 0, 2))]
                parts += [Padding(Text(block.note, style="dim"), (0, 0, 0, 2))] if block.note else []
            case Paths(said, paths):
                parts.append(Padding(Text(said, style="dim"), (0, 0, 0, 2)))
                parts += [Text(f"    {path}", no_wrap=True, overflow="ignore") for path in paths]
    return Group(*parts)


def _clean(block: Line | Facts | Table | Paths) -> Line | Facts | Table | Paths:
    match block:
        case Line(text, tone):
            return Line(printable(text), tone)
        case Facts(pairs):
            return Facts([(printable(label), value and printable(value)) for label, value in pairs])
        case Table(title, columns, rows, note):
            shown = [[printable(cell) for cell in row] for row in rows]
            return Table(printable(title), [printable(column) for column in columns], shown, printable(note))
        case Paths(said, paths):
            return Paths(printable(said), [printable(path) for path in paths])


def _known(facts: Facts) -> Iterable[tuple[str, str]]:
    return ((label, value) for label, value in facts.pairs if value is not None)


def cells(text: str) -> int:
    """Count the columns that a text takes on a terminal: letters of East Asia and emoji take two."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _columns(rows: Sequence[Sequence[str]], rights: Sequence[bool]) -> list[str]:
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{' ' * (width - cells(cell))}{cell}" if right else f"{cell}{' ' * (width - cells(cell))}"
            for cell, width, right in zip(row, widths, rights, strict=True)
        ).rstrip()
        for row in rows
    ]
