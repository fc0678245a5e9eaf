"""Paths that could not be read, remembered over scans.

Touches: the catalogue.
"""

from __future__ import annotations

import errno
import sqlite3

from smartscan.model import WalkError

RETRY_FIRST_S = 3600.0  # a path that did not answer is tried again after an hour, then two, four, ...
RETRY_MOST_S = 7 * 86400.0


def note_problem(
    conn: sqlite3.Connection,
    mount_id: int,
    scan_id: int,
    e: WalkError,
    at: float,
    *,
    cause: str | None = None,
) -> None:
    """Note that a path could not be read; one that does not answer is left alone for a while."""
    row = conn.execute(
        "SELECT attempts, scan_id, cleared_at FROM problem WHERE mount_id = ? AND path = CAST(? AS "
        "TEXT) AND op = ?",
        (mount_id, e.path, e.op.label),
    ).fetchone()
    attempts = 1 if row is None or row[2] is not None else row[0] + (row[1] != scan_id)
    wait = (
        min(RETRY_FIRST_S * 2 ** min(attempts - 1, 20), RETRY_MOST_S) if e.errno == errno.ETIMEDOUT else None
    )
    conn.execute(
        "INSERT INTO problem (mount_id, path, op, errno, scan_id, first_at, last_at, attempts, "
        "waited_s, wchan, cause, retry_at) "
        "VALUES (?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET errno = "
        "excluded.errno, "
        "scan_id = excluded.scan_id, first_at = CASE WHEN cleared_at IS NULL THEN first_at ELSE "
        "excluded.first_at END, "
        "last_at = excluded.last_at, attempts = excluded.attempts, waited_s = excluded.waited_s, "
        "wchan = ifnull(excluded.wchan, wchan), cause = ifnull(excluded.cause, cause), retry_at = "
        "excluded.retry_at, cleared_at = NULL",
        (
            mount_id,
            e.path,
            e.op.label,
            e.errno,
            scan_id,
            at,
            at,
            attempts,
            e.waited_s or None,
            e.wchan or None,
            cause,
            None if wait is None else at + wait,
        ),
    )
