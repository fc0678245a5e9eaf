"""What a controller writes down of its run: mounts, scans, chunks, attempts, events.

Touches: the catalogue, through the connection it is given. Every function is one or more statements of the
caller's transaction. Times are Unix seconds, given by the caller.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from typing import Any

from smartscan.catalogue.rows import members
from smartscan.errors import UsageError
from smartscan.model import (
    Chunk,
    ChunkState,
    Outcome,
    Progress,
    Root,
    ScanState,
    Scope,
    show,
)
from smartscan.numbers import signed


def mount(conn: sqlite3.Connection, name: str, path: bytes, at: float) -> int:
    """Find or make the mount of this name and path; UsageError where they do not belong together."""
    rows = conn.execute("SELECT id, name, CAST(path AS BLOB) FROM mount").fetchall()
    for mount_id, other, other_path in rows:
        if other == name and other_path == path:
            return int(mount_id)
    for _, other, other_path in rows:
        shown = show(other_path)
        if other == name:
            raise UsageError(
                f"the name '{name}' is already used for {shown}; choose another name for this path"
            )
        if other_path == path:
            raise UsageError(f"{shown} is already catalogued as '{other}'; scan it by that name")
        if _inside(path, other_path):
            raise UsageError(
                f"this path lies in {shown}, which is catalogued as '{other}'; scan only one of them, "
                "or use another catalogue with --db"
            )
        if _inside(other_path, path):
            raise UsageError(
                f"{shown}, catalogued as '{other}', lies in this path; scan only one of them, "
                "or use another catalogue with --db"
            )
    return int(
        conn.execute(
            "INSERT INTO mount (name, path, created_at) VALUES (?, CAST(? AS TEXT), ?) RETURNING id",
            (name, path, at),
        ).fetchone()[0]
    )


def _inside(path: bytes, other: bytes) -> bool:
    return path.startswith(other.rstrip(b"/") + b"/")


def set_storage(conn: sqlite3.Connection, mount_id: int, fs_type: str, source: str) -> None:
    """Note what lies behind a mount."""
    conn.execute("UPDATE mount SET fs_type = ?, source = ? WHERE id = ?", (fs_type, source, mount_id))


def unfinished(conn: sqlite3.Connection, mount_id: int) -> int | None:
    """Find the last scan of a mount where it was stopped or its controller died: it goes on."""
    row = conn.execute(
        "SELECT id, state FROM scan WHERE mount_id = ? ORDER BY id DESC LIMIT 1", (mount_id,)
    ).fetchone()
    return row[0] if row and row[1] in (ScanState.RUNNING, ScanState.CANCELLED) else None


def last(conn: sqlite3.Connection, mount_id: int) -> int | None:
    """Find the last scan of a mount."""
    row = conn.execute("SELECT max(id) FROM scan WHERE mount_id = ?", (mount_id,)).fetchone()
    return row[0] if row else None


def was_scanned(conn: sqlite3.Connection, mount_id: int, *, before: int) -> bool:
    """Whether an earlier scan than this one saw anything of a mount."""
    sql = "SELECT 1 FROM scan WHERE mount_id = ? AND id < ? AND dirs > 0 LIMIT 1"
    return conn.execute(sql, (mount_id, before)).fetchone() is not None


def begin(
    conn: sqlite3.Connection,
    mount_id: int,
    *,
    engine: str,
    controller: str,
    options: dict[str, Any],
    at: float,
) -> int:
    """Open a scan."""
    return int(
        conn.execute(
            "INSERT INTO scan (mount_id, state, started_at, beat_at, engine, controller, options) "
            "VALUES (?, 'running', ?, ?, ?, ?, ?) "
            "RETURNING id",
            (mount_id, at, at, engine, controller, json.dumps(options)),
        ).fetchone()[0]
    )


def resume(
    conn: sqlite3.Connection,
    scan_id: int,
    *,
    engine: str,
    controller: str,
    options: dict[str, Any],
    at: float,
) -> None:
    """Take up a scan that was stopped, or whose controller died."""
    conn.execute(
        "UPDATE scan SET state = 'running', ended_at = NULL, beat_at = ?, engine = ?, controller = ?, "
        "options = ?, "
        "mount_dead = 0, paused = NULL, certificate = NULL WHERE id = ?",
        (at, engine, controller, json.dumps(options), scan_id),
    )
    conn.execute("DELETE FROM reading WHERE chunk_id IN (SELECT id FROM chunk WHERE scan_id = ?)", (scan_id,))


def options(conn: sqlite3.Connection, scan_id: int) -> dict[str, Any]:
    """What was noted of a scan's limits and rules."""
    return members(conn.execute("SELECT options FROM scan WHERE id = ?", (scan_id,)).fetchone()[0])


def give_up(conn: sqlite3.Connection, scan_id: int, at: float) -> None:
    """Close a scan that was stopped and will not go on."""
    conn.execute(
        "UPDATE attempt SET outcome = 'cancelled', ended_at = ? WHERE outcome IS NULL AND chunk_id IN "
        "(SELECT id FROM chunk WHERE scan_id = ?)",
        (at, scan_id),
    )
    conn.execute(
        "UPDATE chunk SET state = 'quarantined', ended_at = ? WHERE scan_id = ? AND state IN ('pending', "
        "'running')",
        (at, scan_id),
    )
    end(conn, scan_id, ScanState.INCOMPLETE, None, mount_dead=False, at=at)
    event(conn, scan_id, "ended", "given up: a scan under other rules begins", at)


def forget_scan(conn: sqlite3.Connection, scan_id: int, mount_id: int) -> None:
    """Remove a scan that never saw anything, and its mount where that was its first."""
    conn.execute("DELETE FROM event WHERE scan_id = ?", (scan_id,))
    for statement in (
        "DELETE FROM root WHERE chunk_id IN (SELECT id FROM chunk WHERE scan_id = ?)",
        "DELETE FROM attempt WHERE chunk_id IN (SELECT id FROM chunk WHERE scan_id = ?)",
        "DELETE FROM reading WHERE chunk_id IN (SELECT id FROM chunk WHERE scan_id = ?)",
        "DELETE FROM shard WHERE chunk_id IN (SELECT id FROM chunk WHERE scan_id = ?)",
    ):
        conn.execute(statement, (scan_id,))
    conn.execute("DELETE FROM chunk WHERE scan_id = ?", (scan_id,))
    conn.execute("DELETE FROM problem WHERE mount_id = ? AND scan_id = ?", (mount_id, scan_id))
    conn.execute("DELETE FROM scan WHERE id = ?", (scan_id,))
    conn.execute(
        "DELETE FROM dir WHERE mount_id = ?1 AND parent_id IS NULL AND state <> 'listed' AND entries = "
        "0 AND NOT EXISTS "
        "(SELECT 1 FROM scan WHERE mount_id = ?1)",
        (mount_id,),
    )
    conn.execute(
        "DELETE FROM mount WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM scan WHERE mount_id = ?1) AND "
        "NOT EXISTS "
        "(SELECT 1 FROM dir WHERE mount_id = ?1)",
        (mount_id,),
    )


def beat(conn: sqlite3.Connection, scan_id: int, at: float) -> None:
    """Say that the controller lives."""
    conn.execute("UPDATE scan SET beat_at = ? WHERE id = ?", (at, scan_id))


def pause(conn: sqlite3.Connection, scan_id: int, why: str | None) -> None:
    """Say why a scan waits; None: it does not."""
    conn.execute("UPDATE scan SET paused = ? WHERE id = ?", (why, scan_id))


def end(
    conn: sqlite3.Connection,
    scan_id: int,
    state: ScanState,
    certificate: dict[str, Any] | None,
    *,
    mount_dead: bool,
    at: float,
) -> None:
    """Close a scan."""
    fs = (certificate or {}).get("fs") or {}
    conn.execute(
        "UPDATE scan SET state = ?, ended_at = ?, beat_at = ?, paused = NULL, mount_dead = ?, "
        "certificate = ?, "
        "fs_total_bytes = ?, fs_used_bytes = ? WHERE id = ?",
        (
            state.value,
            at,
            at,
            mount_dead,
            None if certificate is None else json.dumps(certificate),
            fs.get("total_bytes"),
            fs.get("used_bytes"),
            scan_id,
        ),
    )
    conn.execute("DELETE FROM reading WHERE chunk_id IN (SELECT id FROM chunk WHERE scan_id = ?)", (scan_id,))


# -- chunks --------------------------------------------------------------------------------------------


def add_chunk(
    conn: sqlite3.Connection,
    scan_id: int,
    roots: Iterable[Root],
    origin: str,
    at: float,
    *,
    parent_id: int | None = None,
    est_bytes: int | None = None,
    est_entries: int | None = None,
) -> Chunk:
    """Persist a pending chunk."""
    kept = tuple(roots)
    (chunk_id,) = conn.execute(
        "INSERT INTO chunk (scan_id, state, origin, parent_id, est_bytes, est_entries, created_at) "
        "VALUES (?, 'pending', ?, ?, ?, ?, ?) "
        "RETURNING id",
        (scan_id, origin, parent_id, est_bytes, est_entries, at),
    ).fetchone()
    conn.executemany(
        "INSERT OR REPLACE INTO root VALUES (?, CAST(? AS TEXT), ?)",
        [(chunk_id, r.path, r.scope.value) for r in kept],
    )
    return Chunk(chunk_id, kept, est_bytes, est_entries)


def has_chunks(conn: sqlite3.Connection, scan_id: int) -> bool:
    """Whether a scan was planned."""
    return conn.execute("SELECT 1 FROM chunk WHERE scan_id = ? LIMIT 1", (scan_id,)).fetchone() is not None


def open_chunks(conn: sqlite3.Connection, scan_id: int) -> list[tuple[Chunk, int, int]]:
    """List the chunks of a scan that are not done, with their last attempt's number and fails in a row."""
    found = []
    for chunk_id, est_bytes, est_entries, fails, state, number in conn.execute(
        "SELECT id, est_bytes, est_entries, fails, state, (SELECT ifnull(max(number), 0) FROM attempt "
        "WHERE chunk_id = chunk.id) "
        "FROM chunk WHERE scan_id = ? AND state IN ('pending', 'running') ORDER BY id",
        (scan_id,),
    ).fetchall():
        found.append(
            (
                Chunk(chunk_id, chunk_roots(conn, chunk_id), est_bytes, est_entries, ChunkState(state)),
                number,
                fails,
            )
        )
    return found


def chunk_roots(conn: sqlite3.Connection, chunk_id: int) -> tuple[Root, ...]:
    """Where a chunk begins."""
    return tuple(
        Root(path, Scope(scope))
        for path, scope in conn.execute(
            "SELECT CAST(path AS BLOB), scope FROM root WHERE chunk_id = ? ORDER BY path", (chunk_id,)
        )
    )


def is_root_elsewhere(conn: sqlite3.Connection, scan_id: int, path: bytes, chunk_id: int) -> bool:
    """Whether another chunk of the scan that is not done begins here."""
    return (
        conn.execute(
            "SELECT 1 FROM chunk JOIN root ON root.chunk_id = chunk.id WHERE chunk.scan_id = ? AND "
            "chunk.id <> ? AND "
            "chunk.state IN ('pending', 'running') AND root.path = CAST(? AS TEXT) LIMIT 1",
            (scan_id, chunk_id, path),
        ).fetchone()
        is not None
    )


def last_roots(conn: sqlite3.Connection, scan_id: int) -> list[bytes]:
    """List what the plan of a scan keeps for its last chunk: what did not answer before."""
    return [
        path
        for (path,) in conn.execute(
            "SELECT CAST(root.path AS BLOB) FROM root JOIN chunk ON chunk.id = root.chunk_id "
            "WHERE scan_id = ? AND origin = 'retry' AND state IN ('pending', 'running') "
            "AND scope = 'subtree'",
            (scan_id,),
        )
    ]


def set_chunk(
    conn: sqlite3.Connection, chunk_id: int, state: ChunkState, at: float, *, fails: int | None = None
) -> None:
    """Note what became of a chunk."""
    over = state in (ChunkState.DONE, ChunkState.QUARANTINED)
    conn.execute(
        "UPDATE chunk SET state = ?, fails = ifnull(?, fails), ended_at = ? WHERE id = ?",
        (state.value, fails, at if over else None, chunk_id),
    )


def start_attempt(conn: sqlite3.Connection, chunk_id: int, number: int, at: float) -> None:
    """Note that an attempt begins, before anything is started for it."""
    conn.execute(
        "INSERT OR IGNORE INTO attempt (chunk_id, number, started_at, progressed_at) VALUES (?, ?, ?, ?)",
        (chunk_id, number, at, at),
    )
    conn.execute("UPDATE chunk SET state = 'running' WHERE id = ?", (chunk_id,))


def set_worker(conn: sqlite3.Connection, chunk_id: int, number: int, worker_id: str) -> None:
    """Note which process or container runs an attempt."""
    conn.execute(
        "UPDATE attempt SET worker_id = ? WHERE chunk_id = ? AND number = ?", (worker_id, chunk_id, number)
    )


def progress(
    conn: sqlite3.Connection, chunk_id: int, number: int, p: Progress, moved_at: float, now: float
) -> None:
    """Note how far an attempt is and what its threads are in."""
    conn.execute(
        "UPDATE attempt SET progressed_at = ?, entries = ?, dirs = ?, bytes = ?, disk_bytes = ? WHERE "
        "chunk_id = ? AND number = ?",
        (moved_at, p.entries, p.dirs, signed(p.bytes), signed(p.disk_bytes), chunk_id, number),
    )
    conn.execute("DELETE FROM reading WHERE chunk_id = ?", (chunk_id,))
    conn.executemany(
        "INSERT INTO reading VALUES (?, ?, CAST(? AS TEXT), ?, ?)",
        [(chunk_id, i, r.path, r.op.label, now - r.for_s) for i, r in enumerate(p.readings)],
    )


def end_attempt(
    conn: sqlite3.Connection,
    chunk_id: int,
    number: int,
    outcome: Outcome,
    at: float,
    *,
    exit_code: int | None = None,
    log_tail: str | None = None,
) -> None:
    """Note how an attempt ended."""
    conn.execute(
        "UPDATE attempt SET outcome = ?, ended_at = ?, exit_code = ?, log_tail = ? WHERE chunk_id = ? "
        "AND number = ?",
        (outcome.value, at, exit_code, log_tail or None, chunk_id, number),
    )
    conn.execute("DELETE FROM reading WHERE chunk_id = ?", (chunk_id,))


def note_exits(conn: sqlite3.Connection, exits: Iterable[tuple[int, int, int]]) -> None:
    """Note (exit status, chunk, attempt) of workers that were collected before they had quite ended."""
    conn.executemany("UPDATE attempt SET exit_code = ? WHERE chunk_id = ? AND number = ?", exits)


def event(
    conn: sqlite3.Connection,
    scan_id: int,
    kind: str,
    detail: str,
    at: float,
    *,
    chunk_id: int | None = None,
    attempt: int | None = None,
) -> None:
    """Note what happened."""
    conn.execute(
        "INSERT INTO event (at, scan_id, chunk_id, attempt, kind, detail) VALUES (?, ?, ?, ?, ?, ?)",
        (at, scan_id, chunk_id, attempt, kind, detail),
    )


def taken(conn: sqlite3.Connection, chunk_id: int, attempt: int, name: str, at: float) -> bool:
    """Note that a file of an attempt other than a shard was acted on; False where that was noted before."""
    return (
        conn.execute(
            "INSERT OR IGNORE INTO shard VALUES (?, ?, ?, 0, 0, 0, ?)", (chunk_id, attempt, name, at)
        ).rowcount
        > 0
    )
