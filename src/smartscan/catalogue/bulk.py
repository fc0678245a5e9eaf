"""Many rows at once: from the columns of a shard into a table, without a Python object per row.

Touches: the catalogue. The C extension gives the very SQLite library and connection that Python's sqlite3
uses virtual tables of a shard's rows (SQLite hands it the connection when it opens it), so that rows and
everything else commit together. Where the extension is missing, or Python carries a SQLite whose functions
cannot be found, executemany does the same, several times slower.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from typing import NamedTuple

from smartscan.codec import NATIVE, codec
from smartscan.numbers import signed

UNKNOWN_MODE = 0x80000000


_DIRS = (
    "INSERT INTO dir (id, mount_id, parent_id, name, state, scan_id, dev, digest, own_entries, own_dirs, "
    "own_blocks, files, entries, bytes, disk_bytes) "
)
_DIRS_FROM_RECORDS = _DIRS + (
    "SELECT id, mount_id, parent_id, name, 'listed', scan_id, dev, digest, own_entries, own_dirs, "
    "own_blocks, files, entries, bytes, disk_bytes FROM smartscan_dirs"
)
_DIRS_ONE_BY_ONE = _DIRS + (
    "VALUES (?3, ?1, ?4, CAST(?5 AS TEXT), 'listed', ?2, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
)


class Bulk(NamedTuple):
    """A connection that can take whole shards; `handle` is 0 where rows go one by one."""

    conn: sqlite3.Connection
    handle: int

    def insert(
        self, table: str, links: str, buffer: bytes | memoryview, offsets: bytes, dir_ids: bytes, attrs: bytes
    ) -> None:
        """Insert the entries of the records at `offsets` (uint64) under `dir_ids` (int64).

        `attrs` is what `Ingest.attr_ids` gives; `table` and `links` are names of ours. Raises sqlite3 errors
        like any statement.
        """
        if not offsets:
            return
        if self.handle:
            code = codec.insert(
                self.handle,
                f"INSERT OR IGNORE INTO {table} SELECT * FROM smartscan_rows",
                f"INSERT OR IGNORE INTO {links} SELECT dir_id, name, attr_or_target FROM smartscan_rows",
                buffer,
                offsets,
                dir_ids,
                attrs,
            )
            _raise_for(code)
            return
        sql = f"INSERT OR IGNORE INTO {table} VALUES (?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?)"
        link_sql = f"INSERT OR IGNORE INTO {links} VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT))"
        self._one_by_one(sql, link_sql, buffer, offsets, dir_ids, attrs)

    def insert_dirs(
        self, buffer: bytes | memoryview, places: bytes, sums: bytes, mount_id: int, scan_id: int
    ) -> None:
        """Insert the records at `places` as directories that this scan listed; `sums` are those of their
        subtrees, both as in `codec.carry`. Raises sqlite3 errors like any statement.
        """
        if not places:
            return
        if self.handle:
            of = (mount_id, scan_id, buffer, places, sums)
            _raise_for(codec.insert_dirs(self.handle, _DIRS_FROM_RECORDS, *of))
            return
        from smartscan.codec import python

        rows = python.dir_rows(buffer, places, sums)
        self.conn.executemany(_DIRS_ONE_BY_ONE, [(mount_id, scan_id, *row) for row in rows])

    def _one_by_one(
        self,
        sql: str,
        link_sql: str,
        buffer: bytes | memoryview,
        offsets: bytes,
        dir_ids: bytes,
        attrs: bytes,
    ) -> None:
        import struct

        from smartscan.codec import python

        number = {key[:3]: key[4] for key in struct.iter_unpack("<IIIIq", attrs)}
        for (offset,), (dir_id,) in zip(
            struct.iter_unpack("<Q", offsets), struct.iter_unpack("<q", dir_ids), strict=True
        ):
            rows: list[tuple[object, ...]] = []
            links: list[tuple[object, ...]] = []
            for name, mode, uid, gid, size, blocks, mtime, ctime, ino, nlink, target in python.rows(
                buffer, offset
            ):
                attr = number[mode, uid, gid]
                if mode & UNKNOWN_MODE:
                    rows.append((dir_id, name, attr, None, None, None, None, None, None, None))
                    continue
                several = nlink > 1 and mode & 0o170000 != 0o040000
                rows.append(
                    (
                        dir_id,
                        name,
                        attr,
                        signed(size),
                        signed(blocks),
                        mtime,
                        ctime,
                        signed(ino),
                        nlink,
                        1 if several else None,
                    )
                )
                if target:
                    links.append((dir_id, name, target))
            self.conn.executemany(sql, rows)
            self.conn.executemany(link_sql, links)


def _raise_for(code: int) -> None:
    """Raise what Python's sqlite3 would for one of SQLite's codes."""
    if code:
        corrupt = code & 0xFF == sqlite3.SQLITE_CORRUPT
        error = (sqlite3.DatabaseError if corrupt else sqlite3.OperationalError)(
            f"SQLite error {code} while rows were inserted"
        )
        error.sqlite_errorcode = code
        raise error


def _module() -> str:
    import _sqlite3

    return getattr(_sqlite3, "__file__", "") or ""


def open_bulk(connect: Callable[[], sqlite3.Connection]) -> Bulk:
    """Open a connection that takes whole shards. `connect` may open others before the one that it returns."""
    if not NATIVE or not _module() or os.environ.get("SMART_SCAN_BULK") == "0":
        return Bulk(connect(), 0)
    try:
        conn, handle = codec.connect(_module(), connect)
    except LookupError:
        return Bulk(connect(), 0)
    return Bulk(conn, handle)
