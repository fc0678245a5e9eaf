"""What changes in the totals of a mount, summed up until it is written.

Touches: the catalogue, in the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from smartscan.catalogue.numbers import signed
from smartscan.codec import kinds


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
        self.sums: dict[bytes, Sum] = {}
        self.cells: dict[tuple[int, bytes], list[int]] = {}

    def of(self, path: bytes) -> Sum:
        """Give the sum of a directory, to be added to."""
        found = self.sums.get(path)
        if found is None:
            found = self.sums[path] = Sum()
        return found

    def carried_up(self) -> dict[bytes, Sum]:
        """Carry every sum up to the mount, once; all of them are then those of whole subtrees."""
        sums = self.sums
        levels: list[list[bytes]] = [[]]
        for path in sums:
            depth = path.count(b"/") + 1 if path else 0
            while len(levels) <= depth:
                levels.append([])
            levels[depth].append(path)
        for depth in range(len(levels) - 1, 0, -1):
            for path in levels[depth]:
                s = sums[path]
                parent = path.rpartition(b"/")[0]
                above = sums.get(parent)
                if above is None:
                    above = sums[parent] = Sum()
                    levels[depth - 1].append(parent)
                above.add(s.files, s.entries, s.bytes, s.disk_bytes)
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
