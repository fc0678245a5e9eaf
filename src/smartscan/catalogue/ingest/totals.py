"""What changes in the totals of a mount, summed up until it is written.

Touches: the catalogue, in the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from smartscan.catalogue.ingest.state import Dir
from smartscan.codec import kinds
from smartscan.numbers import signed


@dataclass(slots=True)
class Sum:
    """A change of totals: of the subtree, where it is a directory's."""

    files: int = 0
    entries: int = 0
    bytes: int = 0
    disk_bytes: int = 0

    def add(self, files: int, entries: int, size: int, disk: int) -> None:
        self.files += files
        self.entries += entries
        self.bytes += size
        self.disk_bytes += disk


class Totals:
    """Sums by directory, and the tallies of a mount."""

    def __init__(self, conn: sqlite3.Connection, mount_id: int) -> None:
        self.conn, self.mount_id = conn, mount_id
        self.sums: dict[int, tuple[Dir, Sum]] = {}
        self.cells: dict[tuple[int, bytes], list[int]] = {}

    def of(self, d: Dir) -> Sum:
        """Give the sum of a directory, to be added to."""
        found = self.sums.get(d.id)
        if found is None:
            found = self.sums[d.id] = d, Sum()
        return found[1]

    def carried_up(self) -> dict[int, tuple[Dir, Sum]]:
        """Carry every sum up to the mount, once; all of them are then those of whole subtrees, by the
        directory's id.
        """
        sums = self.sums
        for d, _ in list(sums.values()):
            above = d.above
            while above is not None and above.id not in sums:
                sums[above.id] = above, Sum()
                above = above.above
        for number in sorted(sums, reverse=True):  # a directory's number is larger than that of the one above
            d, s = sums[number]
            if d.above is not None:
                above_s = sums[d.above.id][1]
                above_s.files += s.files
                above_s.entries += s.entries
                above_s.bytes += s.bytes
                above_s.disk_bytes += s.disk_bytes
        return sums

    def tally(self, dimension: int, key: bytes, files: int, size: int, blocks: int) -> None:
        """Count under one key of a dimension (`kinds.DIMENSIONS`, by its number)."""
        cell = self.cells.setdefault((dimension, key), [0, 0, 0])
        cell[0] += files
        cell[1] += size
        cell[2] += blocks * 512

    def tally_file(self, sign: int, name: bytes, size: int, blocks: int, mtime_ns: int, uid: int) -> None:
        """Count a file under all its keys; `sign` is 1, or -1 for one that goes."""
        for dimension, key in enumerate(kinds.keys(name, size, mtime_ns, uid)):
            self.tally(dimension, key, sign, sign * size, sign * blocks)

    def write_tally(self) -> None:
        """Add what was counted to the tallies of the mount."""
        conn, mount_id = self.conn, self.mount_id
        conn.executemany(
            "INSERT INTO tally VALUES (?, ?, CAST(? AS TEXT), ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "files = files + excluded.files, bytes = plus(bytes, excluded.bytes), "
            "disk_bytes = plus(disk_bytes, excluded.disk_bytes)",
            [
                (mount_id, kinds.DIMENSIONS[dimension], key, *map(signed, cell))
                for (dimension, key), cell in self.cells.items()
                if any(cell)
            ],
        )
        if any(cell[0] < 0 for cell in self.cells.values()):
            conn.execute("DELETE FROM tally WHERE mount_id = ? AND files = 0", (mount_id,))

    def clear(self) -> None:
        """Begin anew; after everything was written."""
        self.sums.clear()
        self.cells.clear()
