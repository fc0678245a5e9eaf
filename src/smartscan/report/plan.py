"""The chunks that a scan would make of a share.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smartscan import units
from smartscan.model import Root, Scope, path_json, show
from smartscan.plan import PlannedChunk
from smartscan.report import words
from smartscan.report.page import Line, Page, Table

ROOTS_SHOWN = 3


def page(chunks: Sequence[PlannedChunk]) -> Page:
    """Show chunks for people, in the order in which a scan would start them."""
    rows = [
        [f"{number}", units.size(chunk.est_bytes), units.count(chunk.est_entries), _roots(chunk)]
        for number, chunk in enumerate(chunks, 1)
    ]
    columns = (">Chunk", ">On disk", ">Entries", "Roots")
    disk, entries = sum(c.est_bytes for c in chunks), sum(c.est_entries for c in chunks)
    total = (
        f"{words.plural(len(chunks), 'chunk')}, {units.size(disk)} on disk, {words.plural(entries, 'entry')}"
    )
    return [
        Table("Chunks, largest first (/* = only the files directly in it)", columns, rows),
        Line(),
        Line(total),
    ]


def as_json(chunks: Sequence[PlannedChunk]) -> list[dict[str, Any]]:
    """Give chunks to programs; paths of roots are relative to the mount."""
    return [
        {
            "disk_bytes": chunk.est_bytes,
            "entries": chunk.est_entries,
            "roots": [{**path_json(root.path), "scope": root.scope.value} for root in chunk.roots],
        }
        for chunk in chunks
    ]


def _roots(chunk: PlannedChunk) -> str:
    shown = [_root(root) for root in chunk.roots[:ROOTS_SHOWN]]
    more = len(chunk.roots) - len(shown)
    return ", ".join(shown) + (f" and {units.count(more)} more" if more else "")


def _root(root: Root) -> str:
    path = show(root.path) or "."
    return f"{path}/*" if root.scope is Scope.FILES else path
