"""Everything that happened to one chunk, in order.

Touches: the catalogue, through the connection it is given; the locks beside it.
"""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

from smartscan import units
from smartscan.catalogue import runs
from smartscan.catalogue.rows import Attempt, ChunkRow, Event, Scan
from smartscan.model import Root, Scope, path_json, show
from smartscan.report import words
from smartscan.report.page import TITLE, Facts, Line, Page, Table

ROOTS_SHOWN = 20


class Story(NamedTuple):
    """A chunk, where it came from, and what became of it."""

    scan: Scan
    chunk: ChunkRow
    roots: list[Root]
    attempts: list[Attempt]
    events: list[Event]
    children: list[int]


def story(db: sqlite3.Connection, chunk_id: int) -> Story:
    """Gather everything that is known of a chunk."""
    chunk = runs.chunk(db, chunk_id)
    return Story(
        runs.scan(db, chunk.scan_id),
        chunk,
        runs.roots(db, chunk_id),
        runs.attempts(db, chunk_id),
        runs.events(db, chunk_id),
        runs.children(db, chunk_id),
    )


def page(found: Story) -> Page:
    """Tell the story, for people."""
    chunk, mount = found.chunk, found.scan.mount
    broken = ", and its scan is broken off" if found.scan.broken_off else ""
    blocks: list[Line | Facts | Table] = [
        Line(f"Chunk {chunk.id} of {mount.name}, scan {chunk.scan_id}: {chunk.state}{broken}", TITLE),
        Facts([
            ("Comes from", _origin(chunk)),
            ("Expected", _expected(chunk)),
            ("Catalogued", _catalogued(chunk)),
            ("Gave back", ", ".join(f"chunk {child}" for child in found.children) or None),
            ("Failed in a row", f"{chunk.fails}" if chunk.fails else None),
        ]),
    ]
    roots = [[words.full(mount, root.path), _scope(root)] for root in found.roots[:ROOTS_SHOWN]]
    rest = len(found.roots) - len(roots)
    blocks += [Line(), Table("Begins at", ("Path", "Covers"), roots, f"and {rest} more" if rest else "")]
    if found.attempts:
        columns = (">No.", "Started", ">Ran", ">Entries", "Outcome", ">Exit", "Worker")
        blocks += [Line(), Table("Attempts", columns, [_attempt(attempt) for attempt in found.attempts])]
    for attempt in found.attempts:
        if attempt.log_tail:
            blocks += [Line(), Line(f"Last words of attempt {attempt.number}", TITLE)]
            blocks += [Line(f"  {show(line.encode())}") for line in attempt.log_tail.splitlines()]
    if found.events:
        blocks += [Line(), Table("Events", ("At", ">Attempt", "What", ""), [_event(e) for e in found.events])]
    return blocks


def as_json(found: Story) -> dict[str, Any]:
    """Tell the story, for programs; paths of roots are relative to the mount."""
    chunk = found.chunk
    return {
        "chunk": chunk.id,
        "scan": chunk.scan_id,
        "mount": found.scan.mount.name,
        **words.full_json(found.scan.mount, b""),
        "state": chunk.state.value,
        "origin": chunk.origin,
        "parent": chunk.parent_id,
        "children": found.children,
        "roots": [{**path_json(root.path), "scope": root.scope.value} for root in found.roots],
        "est_bytes": chunk.est_bytes,
        "est_entries": chunk.est_entries,
        "fails": chunk.fails,
        "entries": chunk.entries,
        "dirs": chunk.dirs,
        "bytes": chunk.bytes,
        "disk_bytes": chunk.disk_bytes,
        "created_at": chunk.created_at,
        "ended_at": chunk.ended_at,
        "attempts": [attempt_json(attempt) for attempt in found.attempts],
        "events": [
            {"at": event.at, "attempt": event.attempt, "kind": event.kind, "detail": event.detail}
            for event in found.events
        ],
    }


def attempt_json(attempt: Attempt) -> dict[str, Any]:
    """Give an attempt as JSON."""
    return {
        "chunk": attempt.chunk_id,
        "attempt": attempt.number,
        "worker_id": attempt.worker_id,
        "started_at": attempt.started_at,
        "progressed_at": attempt.progressed_at,
        "ended_at": attempt.ended_at,
        "entries": attempt.entries,
        "dirs": attempt.dirs,
        "bytes": attempt.bytes,
        "disk_bytes": attempt.disk_bytes,
        "outcome": attempt.outcome,
        "exit_code": attempt.exit_code,
        "log_tail": attempt.log_tail,
    }


def _origin(chunk: ChunkRow) -> str:
    if chunk.parent_id is None:
        return chunk.origin
    return f"{chunk.origin} of chunk {chunk.parent_id}"


def _expected(chunk: ChunkRow) -> str:
    if chunk.est_bytes is None and chunk.est_entries is None:
        return "unknown; no size was known when it was made"
    return f"{words.plural(chunk.est_entries, 'entry')}, {units.size(chunk.est_bytes)} on disk"


def _catalogued(chunk: ChunkRow) -> str:
    where = f"{words.plural(chunk.entries, 'entry')} in {words.plural(chunk.dirs, 'directory')}"
    return f"{where}, {units.size(chunk.bytes)}, {units.size(chunk.disk_bytes)} on disk"


def _scope(root: Root) -> str:
    return "all below" if root.scope is Scope.SUBTREE else "its own files"


def _attempt(attempt: Attempt) -> list[str]:
    ran_s = None if attempt.ended_at is None else attempt.ended_at - attempt.started_at
    return [
        f"{attempt.number}",
        words.clock(attempt.started_at),
        "" if ran_s is None else units.duration(ran_s),
        units.count(attempt.entries),
        attempt.outcome or "running",
        "" if attempt.exit_code is None else f"{attempt.exit_code}",
        attempt.worker_id or "",
    ]


def _event(event: Event) -> list[str]:
    attempt = "" if event.attempt is None else f"{event.attempt}"
    return [words.clock(event.at), attempt, event.kind, show(event.detail.encode())]
