"""Many rows at once: from the columns of a shard into a table, without a Python object per row.

Touches: the catalogue. The C extension binds to the very SQLite library and connection that Python's
sqlite3 uses (it is handed the connection when SQLite opens it), so that rows and everything else commit
together. Where the extension is missing, or Python carries a SQLite whose functions cannot be found,
executemany does the same, several times slower.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from smartscan.codec import NATIVE, codec

ENTRY_COLUMNS = 10
UNKNOWN_MODE = 0x80000000
_SQLITE_ERRORS = {5: sqlite3.OperationalError, 6: sqlite3.OperationalError, 8: sqlite3.OperationalError,
                  10: sqlite3.OperationalError, 13: sqlite3.OperationalError, 11: sqlite3.DatabaseError}


@dataclass(frozen=True, slots=True)
class Bulk:
    """A connection that can take whole shards; `handle` is 0 where rows go one by one."""

    conn: sqlite3.Connection
    handle: int

    def insert(self, table: str, links: str, buffer: bytes, offsets: bytes, dir_ids: bytes, attrs: bytes) -> None:
        """Insert the entries of the records at `offsets` (uint64) under `dir_ids` (int64); `attrs` as `Ingest.attr_ids`.

        `table` and `links` are names of ours. Raises sqlite3 errors like any statement.
        """
        if not offsets:
            return
        sql = f"INSERT OR REPLACE INTO {table} VALUES (?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?)"
        link_sql = f"INSERT OR REPLACE INTO {links} VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT))"
        if self.handle:
            sql, link_sql = sql.replace("CAST(? AS TEXT)", "?"), link_sql.replace("CAST(? AS TEXT)", "?")
            code, _ = codec.insert(_module(), self.handle, sql, link_sql, buffer, offsets, dir_ids, attrs)
            if code:
                error = _SQLITE_ERRORS.get(code & 0xFF, sqlite3.DatabaseError)(f"SQLite error {code} in a bulk insert")
                error.sqlite_errorcode = code
                raise error
            return
        self._one_by_one(sql, link_sql, buffer, offsets, dir_ids, attrs)

    def _one_by_one(self, sql: str, link_sql: str, buffer: bytes, offsets: bytes, dir_ids: bytes, attrs: bytes) -> None:
        import struct

        from smartscan.codec import python

        number = {key[:3]: key[4] for key in struct.iter_unpack("<IIIIq", attrs)}
        for (offset,), (dir_id,) in zip(struct.iter_unpack("<Q", offsets), struct.iter_unpack("<q", dir_ids), strict=True):
            rows, links = [], []
            for name, mode, uid, gid, size, blocks, mtime, ctime, ino, nlink, target in python.rows(buffer, offset):
                attr = number[mode, uid, gid]
                if mode & UNKNOWN_MODE:
                    rows.append((dir_id, name, attr, None, None, None, None, None, None, None))
                    continue
                several = nlink > 1 and mode & 0o170000 != 0o040000
                rows.append((dir_id, name, attr, _signed(size), _signed(blocks), mtime, ctime, _signed(ino), nlink,
                             1 if several else None))
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
    """Open a connection ready for bulk inserts. `connect` may open others before the one that it returns."""
    if not NATIVE or not _module():
        return Bulk(connect(), 0)
    opened: list[sqlite3.Connection] = []

    def keep() -> Any:
        opened.append(connect())
        return opened[0]

    try:
        conn, handle = codec.capture(_module(), keep)
    except OSError:  # this Python's SQLite hides its functions
        return Bulk(opened[0] if opened else connect(), 0)
    return Bulk(conn, handle if _is_ours(conn, handle) else 0)


def _is_ours(conn: sqlite3.Connection, handle: int) -> bool:
    """Whether the handle is this connection's: a row inserted through the one is seen by the other."""
    if not handle or os.environ.get("SMART_SCAN_BULK") == "0":
        return False
    return bool(codec.writes_to(_module(), handle, conn))
