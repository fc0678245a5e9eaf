"""Many rows at once: from the columns of a shard into a table, without a Python object per row.

Touches: the catalogue. The C extension gives the very SQLite library and connection that Python's sqlite3
uses a virtual table of a shard's rows (SQLite hands it the connection when it opens it), so that rows and
everything else commit together. Where the extension is missing, or Python carries a SQLite whose functions
cannot be found, executemany does the same, several times slower.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from smartscan.codec import NATIVE, codec

UNKNOWN_MODE = 0x80000000


@dataclass(frozen=True, slots=True)
class Bulk:
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
            if code:
                kind = (
                    sqlite3.DatabaseError
                    if code & 0xFF == sqlite3.SQLITE_CORRUPT
                    else sqlite3.OperationalError
                )
                error = kind(f"SQLite error {code} while rows were inserted")
                error.sqlite_errorcode = code
                raise error
            return
        sql = f"INSERT OR IGNORE INTO {table} VALUES (?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?)"
        link_sql = f"INSERT OR IGNORE INTO {links} VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT))"
        self._one_by_one(sql, link_sql, buffer, offsets, dir_ids, attrs)

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
                        _signed(size),
                        _signed(blocks),
                        mtime,
                        ctime,
                        _signed(ino),
                        nlink,
                        1 if several else None,
                    )
                )
                if target:
                    links.append((dir_id, name, target))
            self.conn.executemany(sql, rows)
            self.conn.executemany(link_sql, links)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


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
