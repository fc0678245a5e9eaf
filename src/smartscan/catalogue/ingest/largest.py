"""The largest files of a mount, kept as shards come in and go.

Touches: the catalogue, in the caller's transaction.
"""

from __future__ import annotations

import sqlite3

LARGEST = 200  # files kept per mount; a report shows some tens
LARGEST_SURE = 100  # with fewer left after deletions they are looked for anew
# How many files a mount has that are not empty.
_NOT_EMPTY = (
    "(SELECT ifnull(sum(files), 0) FROM tally WHERE mount_id = ?1 AND dimension = 'size' AND key <> '0')"
)


class Largest:
    """The list of the largest regular files of one mount, for its one writer."""

    def __init__(self, conn: sqlite3.Connection, mount_id: int) -> None:
        self.conn, self.mount_id = conn, mount_id
        self.least: int | None = None  # every larger file is on the list; None: not asked yet

    def forget(self) -> None:
        """Look at the list again; after a rollback."""
        self.least = None

    def keep(self, files: list[tuple[int, int, bytes]], *, known_above: int = 0) -> None:
        """Keep what is among the largest files: size, directory, name.

        None is taken that is smaller than the smallest there was when the list was full, or as small as
        `known_above`, because others of that size were not offered: `refill_largest` finds all of them when
        the list has become too short.
        """
        conn, mount_id = self.conn, self.mount_id
        if self.least is None:
            have, least, files_there = conn.execute(
                f"SELECT count(*), min(size), {_NOT_EMPTY} FROM largest WHERE mount_id = ?1", (mount_id,)
            ).fetchone()
            self.least = 0 if have >= files_there else least or 1 << 63
        self.least = max(self.least, known_above)
        conn.executemany(
            "INSERT OR IGNORE INTO largest VALUES (?, ?, ?, CAST(? AS TEXT))",
            [(mount_id, *f) for f in files if f[0] > self.least],
        )
        row = conn.execute(
            "SELECT size FROM largest WHERE mount_id = ? ORDER BY size DESC LIMIT 1 OFFSET ?",
            (mount_id, LARGEST - 1),
        ).fetchone()
        if row:
            self.least = max(self.least, row[0])
        if row or known_above:  # smaller ones there before have larger ones missing above them
            conn.execute("DELETE FROM largest WHERE mount_id = ? AND size < ?", (mount_id, self.least))


def refill_largest(conn: sqlite3.Connection, mount_id: int) -> None:
    """Find the largest files anew where deletions left few of them.

    Cost: one pass over the entries, and only then.
    """
    have, files = conn.execute(
        f"SELECT count(*), {_NOT_EMPTY} FROM largest WHERE mount_id = ?1", (mount_id,)
    ).fetchone()
    if have >= min(LARGEST_SURE, files):
        return
    conn.execute("DELETE FROM largest WHERE mount_id = ?", (mount_id,))
    conn.execute(
        "INSERT INTO largest SELECT ?1, e.size, e.dir_id, e.name FROM entry AS e "
        "JOIN dir ON dir.id = e.dir_id JOIN attr AS a ON a.id = e.attr_id "
        "WHERE dir.mount_id = ?1 AND a.type = 'f' AND e.size > 0 AND e.counted IS NOT 0 "
        "ORDER BY e.size DESC LIMIT ?2",
        (mount_id, LARGEST),
    )
