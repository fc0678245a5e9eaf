"""Questions about scans and their chunks: what runs, what was done, what happened.

Touches: the catalogue, through a connection of `read.open_for_reading`; the locks beside it.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from smartscan.catalogue import lock
from smartscan.catalogue.read import MOUNT_COLUMNS, open_for_reading
from smartscan.catalogue.rows import Attempt, ChunkCount, ChunkRow, Event, Mount, Reading, Scan, members
from smartscan.errors import UsageError
from smartscan.model import ChunkState, Root, ScanState, Scope

_SCAN = """scan.id, scan.state, scan.started_at, scan.ended_at, scan.beat_at, scan.engine, scan.controller,
    scan.options, scan.mount_dead, scan.certificate, scan.paused, scan.entries, scan.dirs, scan.bytes,
    scan.disk_bytes, scan.entries_new, scan.entries_changed, scan.entries_gone"""
_CHUNK = """id, scan_id, state, origin, parent_id, est_bytes, est_entries, fails,
    entries, dirs, bytes, disk_bytes, created_at, ended_at"""
_ATTEMPT = """chunk_id, number, worker_id, started_at, progressed_at, attempt.ended_at, attempt.entries,
    attempt.dirs, attempt.bytes, attempt.disk_bytes, outcome, exit_code, log_tail"""


def scans(db: sqlite3.Connection, mount: Mount, *, limit: int = 20) -> list[Scan]:
    """List the last scans of a mount, newest first."""
    return _scans(db, "mount_id = ? ORDER BY scan.id DESC LIMIT ?", mount.id, limit)


def running_scans(db: sqlite3.Connection) -> list[Scan]:
    """List the scans that run, or would if their controller were alive."""
    return _scans(db, "scan.state = 'running' ORDER BY scan.id")


def newest_scan(db: sqlite3.Connection) -> Scan | None:
    """Find the scan of any mount that was started last."""
    return next(iter(_scans(db, "1 ORDER BY scan.id DESC LIMIT 1")), None)


def scan(db: sqlite3.Connection, scan_id: int) -> Scan:
    """Find a scan; UsageError where it is not there."""
    found = _scans(db, "scan.id = ?", scan_id)
    if not found:
        raise UsageError(f"there is no scan {scan_id}")
    return found[0]


def _scans(db: sqlite3.Connection, where: str, *values: object) -> list[Scan]:
    source = "scan JOIN mount ON mount.id = scan.mount_id"
    rows = db.execute(f"SELECT {MOUNT_COLUMNS}, {_SCAN} FROM {source} WHERE {where}", values)
    found = [_scan(row) for row in rows]
    return [scan._replace(broken_off=_is_broken_off(db, scan)) for scan in found]


def _is_broken_off(db: sqlite3.Connection, scan: Scan) -> bool:
    """Tell whether nobody is at work on a scan that was not closed: it was killed, or the power failed."""
    if scan.state is not ScanState.RUNNING:
        return False
    sql = "SELECT CAST(file AS BLOB) FROM pragma_database_list WHERE name = 'main'"
    path = Path(os.fsdecode(db.execute(sql).fetchone()[0]))
    if lock.is_held(path, scan.mount.name) is not False:
        return False
    with open_for_reading(path) as later:  # who closes a scan lets go of the lock only then
        row = later.execute("SELECT state FROM scan WHERE id = ?", (scan.id,)).fetchone()
    # Asked again, because the next controller may have come meanwhile, and the scan goes on.
    return row == (ScanState.RUNNING,) and lock.is_held(path, scan.mount.name) is False


def _scan(row: tuple[Any, ...]) -> Scan:
    scan_id, state, started, ended, beat, engine, controller, options, dead, certificate, *rest = row[5:]
    return Scan(
        scan_id, Mount(*row[:5]), ScanState(state), started, ended, beat, engine,
        members(controller), members(options), bool(dead), certificate and members(certificate), *rest,
    )


def chunk_counts(db: sqlite3.Connection, scan_id: int) -> dict[ChunkState, ChunkCount]:
    """Count the chunks of a scan in each state."""
    counts = {state: ChunkCount(state, 0, 0, 0, 0) for state in ChunkState}
    rows = db.execute(
        """SELECT state, count(*), sum(entries),
                  CASE WHEN count(est_entries) = count(*) THEN sum(est_entries) END,
                  CASE WHEN count(est_bytes) = count(*) THEN sum(est_bytes) END
           FROM chunk WHERE scan_id = ? GROUP BY state""",
        (scan_id,),
    )
    for state, *rest in rows:
        counts[ChunkState(state)] = ChunkCount(ChunkState(state), *rest)
    return counts


def chunks(db: sqlite3.Connection, scan_id: int, state: ChunkState) -> list[ChunkRow]:
    """List the chunks of a scan in one state, oldest first."""
    return _chunks(db, "scan_id = ? AND state = ? ORDER BY id", scan_id, state)


def chunk(db: sqlite3.Connection, chunk_id: int) -> ChunkRow:
    """Find a chunk; UsageError where it is not there."""
    found = _chunks(db, "id = ?", chunk_id)
    if not found:
        first, last = db.execute("SELECT min(id), max(id) FROM chunk").fetchone()
        have = "no chunk yet" if first is None else f"chunks {first} to {last}"
        raise UsageError(f"there is no chunk {chunk_id}; the catalogue has {have}")
    return found[0]


def children(db: sqlite3.Connection, chunk_id: int) -> list[int]:
    """List the chunks made of what a chunk gave back."""
    rows = db.execute(
        "SELECT id FROM chunk WHERE parent_id = ?1 AND scan_id = (SELECT scan_id FROM chunk WHERE id = ?1)"
        " ORDER BY id",
        (chunk_id,),
    )
    return [child for (child,) in rows]


def roots(db: sqlite3.Connection, chunk_id: int, *, limit: int = 1000) -> list[Root]:
    """List where a chunk begins, in path order."""
    query = "SELECT CAST(path AS BLOB), scope FROM root WHERE chunk_id = ? ORDER BY path LIMIT ?"
    rows = db.execute(query, (chunk_id, limit))
    return [Root(path, Scope(scope)) for path, scope in rows]


def attempts(db: sqlite3.Connection, chunk_id: int) -> list[Attempt]:
    """List the runs of a chunk, in order."""
    rows = db.execute(f"SELECT {_ATTEMPT} FROM attempt WHERE chunk_id = ? ORDER BY number", (chunk_id,))
    return [Attempt(*row) for row in rows]


def open_attempts(db: sqlite3.Connection, scan_id: int) -> list[Attempt]:
    """List the attempts that run now, in chunk order."""
    return _attempts(db, scan_id, "chunk.state = 'running' AND attempt.ended_at IS NULL")


def lost_attempts(db: sqlite3.Connection, scan_id: int) -> list[Attempt]:
    """List the workers that were killed and would not die."""
    return _attempts(db, scan_id, "outcome = 'lost'")


def ingested(db: sqlite3.Connection, attempt: Attempt) -> tuple[int, int, int]:
    """Tell how many entries, directories and bytes of an attempt are in the catalogue already."""
    row: tuple[int, int, int] = db.execute(
        "SELECT ifnull(sum(entries), 0), ifnull(sum(dirs), 0), ifnull(sum(bytes), 0) FROM shard"
        " WHERE chunk_id = ? AND attempt = ?",
        (attempt.chunk_id, attempt.number),
    ).fetchone()
    return row


def readings(db: sqlite3.Connection, scan_id: int) -> list[Reading]:
    """List what the walker threads of a scan are in, the longest first."""
    rows = db.execute(
        "SELECT chunk_id, CAST(path AS BLOB), op, since_at FROM chunk JOIN reading ON chunk_id = chunk.id"
        " WHERE scan_id = ? AND state = 'running' ORDER BY since_at, chunk_id, thread",
        (scan_id,),
    )
    return [Reading(*row) for row in rows]


def events(db: sqlite3.Connection, chunk_id: int) -> list[Event]:
    """List what happened to a chunk, in order."""
    columns = "at, chunk_id, attempt, kind, detail"
    rows = db.execute(f"SELECT {columns} FROM event WHERE chunk_id = ? ORDER BY id", (chunk_id,))
    return [Event(*row) for row in rows]


def _chunks(db: sqlite3.Connection, where: str, *values: object) -> list[ChunkRow]:
    rows = db.execute(f"SELECT {_CHUNK} FROM chunk WHERE {where}", values)
    return [ChunkRow(row[0], row[1], ChunkState(row[2]), *row[3:]) for row in rows]


def _attempts(db: sqlite3.Connection, scan_id: int, where: str) -> list[Attempt]:
    rows = db.execute(
        f"SELECT {_ATTEMPT} FROM chunk JOIN attempt ON chunk_id = chunk.id WHERE scan_id = ? AND {where}"
        " ORDER BY chunk_id, number",
        (scan_id,),
    )
    return [Attempt(*row) for row in rows]
