"""What the catalogue knows of a mount's directories: their paths, sizes and states.

Touches: the catalogue, through the connection it is given.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import NamedTuple

from smartscan.model import UNREAD, DirState, Root, Scope, Usage, join

_USAGE = (
    "SELECT d.id, CAST(d.name AS BLOB), d.bytes, d.disk_bytes, d.entries, d.own_entries, d.disk_bytes "
    "- (SELECT CAST(total(c.disk_bytes) AS INTEGER) FROM dir AS c "
    "WHERE c.mount_id = d.mount_id AND c.parent_id = d.id) FROM "
    "dir AS d WHERE d.mount_id = ? "
)


def mount_usage(conn: sqlite3.Connection, mount_id: int) -> Usage | None:
    """What the catalogue knows of a mount's size; None where it was never listed."""
    row = conn.execute(_USAGE + "AND d.parent_id IS NULL", (mount_id,)).fetchone()
    return Usage(b"", row[2], row[3], row[4], row[6], row[5]) if row and row[4] else None


def child_usages(conn: sqlite3.Connection, mount_id: int) -> Callable[[bytes], list[Usage]]:
    """Give a function that says what the catalogue knows of the sizes of a directory's subdirectories.

    It is asked of the mount first, and of each directory once, after the one it lies in: it remembers their
    rows, for looking paths up from the top costs the square of the depth.
    """
    rows = {b"": dir_id_of(conn, mount_id, b"")}

    def children(path: bytes) -> list[Usage]:
        found = []
        for dir_id, name, size, disk, entries, own, own_disk in conn.execute(
            _USAGE + "AND d.parent_id = ?", (mount_id, rows.pop(path))
        ):
            child = join(path, name)
            rows[child] = dir_id
            found.append(Usage(child, size, disk, entries, own_disk, own))
        return found

    return children


def usage_of(conn: sqlite3.Connection, mount_id: int, root: Root) -> tuple[int, int] | None:
    """Disk bytes and entries expected below a root; None where nothing is known."""
    dir_id = dir_id_of(conn, mount_id, root.path)
    if dir_id is None:
        return None
    row = conn.execute(_USAGE + "AND d.id = ?", (mount_id, dir_id)).fetchone()
    if row is None or not row[4]:
        return None
    return (row[6], row[5]) if root.scope is Scope.FILES else (row[3], row[4])


def dir_id_of(conn: sqlite3.Connection, mount_id: int, path: bytes) -> int | None:
    """Find a directory's row by its path. Cost: one lookup per component."""
    row = conn.execute("SELECT id FROM dir WHERE mount_id = ? AND parent_id IS NULL", (mount_id,)).fetchone()
    for name in path.split(b"/") if path else ():
        if row is None:
            return None
        row = conn.execute(
            "SELECT id FROM dir WHERE mount_id = ? AND parent_id = ? AND name = CAST(? AS TEXT)",
            (mount_id, row[0], name),
        ).fetchone()
    return None if row is None else int(row[0])


def path_of(conn: sqlite3.Connection, dir_id: int) -> bytes:
    """Rebuild the path of a directory by climbing to its mount; b"" where it has no row."""
    names = conn.execute(
        """WITH RECURSIVE up(parent_id, name, height) AS (
               SELECT parent_id, name, 0 FROM dir WHERE id = ?
               UNION ALL
               SELECT dir.parent_id, dir.name, up.height + 1 FROM up JOIN dir ON dir.id = up.parent_id
           ) SELECT CAST(name AS BLOB) FROM up WHERE parent_id IS NOT NULL ORDER BY height DESC""",
        (dir_id,),
    )
    return b"/".join(name for (name,) in names)


def is_decided(conn: sqlite3.Connection, mount_id: int, scan_id: int, path: bytes) -> bool:
    """Whether this scan knows already what became of a directory."""
    dir_id = dir_id_of(conn, mount_id, path)
    if dir_id is None:
        return False
    row = conn.execute("SELECT scan_id, state FROM dir WHERE id = ?", (dir_id,)).fetchone()
    return bool(row[0] == scan_id and row[1] != DirState.FOUND)


def has_stat(conn: sqlite3.Connection, mount_id: int, path: bytes) -> bool:
    """Whether the entry of a path says more than its name."""
    above, _, name = path.rpartition(b"/")
    row = conn.execute(
        "SELECT size FROM entry WHERE dir_id = ? AND name = CAST(? AS TEXT)",
        (dir_id_of(conn, mount_id, above), name),
    ).fetchone()
    return row is None or row[0] is not None


class Account(NamedTuple):
    """The directories of a mount, counted after a scan."""

    states: dict[str, int]  # those that it decided
    found: int  # those in the listings that it read, and the mount itself
    stale: int  # those of which something is known from an earlier scan only


def account(conn: sqlite3.Connection, mount_id: int, scan_id: int) -> Account:
    """Count the directories of a mount. Cost: one pass over them."""
    (rows,) = conn.execute("SELECT count(*) FROM dir WHERE mount_id = ?", (mount_id,)).fetchone()
    seen, below = conn.execute(
        "SELECT count(*), ifnull(sum(own_dirs), 0) FROM dir WHERE mount_id = ? AND scan_id = ?",
        (mount_id, scan_id),
    ).fetchone()
    states, stale = {DirState.LISTED.value: seen}, rows - seen
    # The few that were not listed have an index of their own, which wants to be asked in its own words.
    for state, count, known in conn.execute(
        "SELECT state, count(*), sum(own_entries > 0) FROM dir "
        "WHERE mount_id = ? AND scan_id = ? AND state <> 'listed' GROUP BY state",
        (mount_id, scan_id),
    ):
        states[state] = count
        states[DirState.LISTED] -= count
        if state in UNREAD:
            stale += known
    return Account({state: count for state, count in states.items() if count}, 1 + below, stale)


def undecided(conn: sqlite3.Connection, mount_id: int, scan_id: int) -> int:
    """Count the directories in the listings of a scan of which it does not know what became.

    Cost: one look per directory.
    """
    return int(
        conn.execute(
            "SELECT ifnull(sum(max(0, p.own_dirs - (SELECT count(*) FROM dir AS c WHERE c.mount_id = ?1 AND "
            "c.parent_id = p.id AND c.scan_id = ?2 AND c.state <> 'found'))), 0) "
            "FROM dir AS p WHERE p.mount_id = ?1 AND p.scan_id = ?2 AND p.own_dirs > 0",
            (mount_id, scan_id),
        ).fetchone()[0]
    )


def reopen_failed(conn: sqlite3.Connection, mount_id: int, scan_id: int) -> list[bytes]:
    """Make the directories that a scan could not read undecided again, and give their paths."""
    rows = conn.execute(
        "SELECT id FROM dir WHERE mount_id = ? AND scan_id = ? AND state <> 'listed' AND state IN (?, ?, ?)",
        (mount_id, scan_id, *UNREAD),
    ).fetchall()
    conn.executemany("UPDATE dir SET state = 'found', reason = NULL, scan_id = NULL WHERE id = ?", rows)
    return sorted(path_of(conn, dir_id) for (dir_id,) in rows)
