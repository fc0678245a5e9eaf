"""Paths that could not be read, remembered over scans.

Touches: the catalogue.
"""

from __future__ import annotations

import sqlite3
from errno import EEXIST, ETIMEDOUT

from smartscan.catalogue.tree import dir_id_of, is_decided
from smartscan.model import UNREAD, DirState, WalkError

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
        min(RETRY_FIRST_S * 2 ** min(attempts - 1, 20), RETRY_MOST_S) if e.errno == ETIMEDOUT else None
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


def undue(
    conn: sqlite3.Connection, mount_id: int, now: float, *, everything: bool = False
) -> list[tuple[bytes, str, float | None]]:
    """List paths that did not answer and are not to be tried before a later time; with `everything`, all.

    The share itself is always tried.
    """
    when = "" if everything else "AND retry_at > ?"
    return conn.execute(
        "SELECT CAST(path AS BLOB), op, retry_at FROM problem WHERE mount_id = ? AND cleared_at IS NULL AND "
        f"retry_at IS NOT NULL AND path <> '' {when}",
        (mount_id,) if everything else (mount_id, now),
    ).fetchall()


def silent_directories(conn: sqlite3.Connection, mount_id: int, scan_id: int) -> list[bytes]:
    """List directories of which not even a stat was answered: only their name in a listing tells of them."""
    found = []
    for (path,) in conn.execute(
        "SELECT CAST(path AS BLOB) FROM problem WHERE mount_id = ? AND cleared_at IS NULL AND op = 'stat' "
        "AND errno = ?",
        (mount_id, ETIMEDOUT),
    ).fetchall():
        above, _, name = path.rpartition(b"/")
        named = conn.execute(
            "SELECT 1 FROM entry JOIN attr ON attr.id = entry.attr_id "
            "WHERE dir_id = ? AND name = CAST(? AS TEXT) AND size IS NULL AND attr.type = 'd'",
            (dir_id_of(conn, mount_id, above), name),
        ).fetchone()
        if named and not is_decided(conn, mount_id, scan_id, path):
            found.append(path)
    return found


def besides_directories(conn: sqlite3.Connection, mount_id: int) -> int:
    """Count the paths with an open problem that are no directory which could not be read: files, mostly.

    Cost: a look-up per open problem.
    """
    paths = conn.execute(
        "SELECT DISTINCT CAST(path AS BLOB) FROM problem WHERE mount_id = ? AND cleared_at IS NULL",
        (mount_id,),
    ).fetchall()
    count = 0
    for (path,) in paths:
        dir_id = dir_id_of(conn, mount_id, path)
        row = conn.execute("SELECT state FROM dir WHERE id = ?", (dir_id,)).fetchone()
        count += row is None or row[0] not in UNREAD
    return count


def due_at_once(conn: sqlite3.Connection, mount_id: int, scan_id: int, at: float) -> None:
    """Let the next scan try what did not answer in this one: where the mount is dead, no path is to blame."""
    conn.execute(
        "UPDATE problem SET retry_at = ? WHERE mount_id = ? AND scan_id = ? AND errno = ? "
        "AND cleared_at IS NULL",
        (at, mount_id, scan_id, ETIMEDOUT),
    )


def clear(conn: sqlite3.Connection, mount_id: int, scan_id: int, at: float) -> None:
    """Close the problems at places that this scan has read after all, or that are gone."""
    for path, op, errno, seen in conn.execute(
        "SELECT CAST(path AS BLOB), op, errno, scan_id FROM problem "
        "WHERE mount_id = ? AND cleared_at IS NULL",
        (mount_id,),
    ).fetchall():
        of_entry = op in ("stat", "readlink")
        place, _, name = path.rpartition(b"/") if of_entry else (path, b"", b"")
        dir_id = dir_id_of(conn, mount_id, place)
        row = conn.execute("SELECT state, scan_id FROM dir WHERE id = ?", (dir_id,)).fetchone()
        listed = row is not None and row == (DirState.LISTED, scan_id)
        if listed and op == "stat":  # its directory is listed also where it was left alone itself
            known = conn.execute(
                "SELECT size FROM entry WHERE dir_id = ? AND name = CAST(? AS TEXT)", (dir_id, name)
            ).fetchone()
            listed = known is None or known[0] is not None
        elif listed and seen == scan_id:  # read after it could not be: only what says so of itself
            # A listing that named something twice was read, and is still odd.
            listed = not of_entry and errno != EEXIST
        if row is None or listed:
            conn.execute(
                "UPDATE problem SET cleared_at = ? WHERE mount_id = ? AND path = CAST(? AS TEXT) AND op = ?",
                (at, mount_id, path, op),
            )
