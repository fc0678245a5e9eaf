"""The one writer of a mount's entries.

Touches: the catalogue, shards in attempt folders.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from smartscan import shard as shards
from smartscan.catalogue import tree
from smartscan.catalogue.bulk import UNKNOWN_MODE, Bulk
from smartscan.catalogue.ingest.largest import Largest
from smartscan.catalogue.ingest.state import LEFT_OUT, STATES, Counts, Dir, Large
from smartscan.catalogue.ingest.window import NOT_LISTED, Intake
from smartscan.catalogue.open import transaction
from smartscan.codec import codec
from smartscan.model import DirState, Op, Root, Scope, join, show
from smartscan.numbers import signed
from smartscan.shard import Record, Window

CACHE_DIRS = 20_000  # directories remembered between shards, some 6 MB; others are looked up again
SIBLINGS = 1000  # so many directories in one are looked up at once; where there are more, one by one
KNOWN_ROWS = 4096  # read at a time
_TYPES = {
    0o100000: "f",
    0o040000: "d",
    0o120000: "l",
    0o010000: "p",
    0o140000: "s",
    0o020000: "c",
    0o060000: "b",
}

_DIRS = (
    "SELECT CAST(name AS BLOB), id, state, scan_id, digest, dev, own_blocks, own_entries FROM dir "
    "WHERE mount_id = ? AND "
)
_TOP = _DIRS + "parent_id IS NULL"
_BELOW = _DIRS + "parent_id = ? LIMIT ?"
_NAMED = _DIRS + "parent_id = ? AND name = CAST(? AS TEXT)"

# What a changed directory holds now, until it has replaced what it held.
_INCOMING = """
CREATE TEMP TABLE IF NOT EXISTS incoming (
    dir_id INTEGER NOT NULL, name TEXT NOT NULL, attr_id INTEGER NOT NULL, size INTEGER, blocks INTEGER,
    mtime_ns INTEGER, ctime_ns INTEGER, ino INTEGER, nlink INTEGER, counted INTEGER,
    PRIMARY KEY (dir_id, name)) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS incoming_link (
    dir_id INTEGER NOT NULL, name TEXT NOT NULL, target TEXT NOT NULL,
    PRIMARY KEY (dir_id, name)) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS goes (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""


def conn_path(conn: sqlite3.Connection, mount_id: int) -> str:
    """Give a mount's path for a message."""
    row = conn.execute("SELECT CAST(path AS BLOB) FROM mount WHERE id = ?", (mount_id,)).fetchone()
    return show(row[0]) if row else "the share"


class Ingest:
    """The one writer of a mount's entries during one scan.

    With `sizes_only` the totals of directories are kept and, of entries, what those need: files with several
    names, and directories that were not read to their end or in one piece.
    """

    def __init__(
        self, bulk: Bulk, mount_id: int, scan_id: int, *, rescan: bool, sizes_only: bool = False
    ) -> None:
        self.conn, self.bulk, self.sizes_only = bulk.conn, bulk, sizes_only
        self.mount_id, self.scan_id, self.rescan = mount_id, scan_id, rescan
        self.cache: dict[bytes, Dir] = {}
        # The ids of directories that were simply new, until somebody asks for more; never in `cache` as well.
        # Of what is below them, everything that has a row is in one of the two.
        self.placed: dict[bytes, int] = {}
        self.attrs: dict[tuple[int, int, int], int] = {}
        self.larges: dict[int, Large] = {}
        self.memory = shards.WindowMemory()
        self.largest = Largest(self.conn, mount_id)
        self.share = conn_path(self.conn, mount_id)
        self.conn.executescript(_INCOMING)

    def shard(self, chunk_id: int, attempt: int, path: Path, at: float) -> Counts | None:
        """Take one shard in; None where it was in already. ShardError: damaged, nothing was changed.

        `at` is the time to note, Unix seconds.
        """
        with ExitStack() as undone:
            undone.callback(self.forget)  # what is remembered may name rows that were taken back
            with transaction(self.conn):
                counts = self._take(chunk_id, attempt, path, at)
            undone.pop_all()
        if len(self.cache) + len(self.placed) > CACHE_DIRS:
            self._forget_oldest()
        return counts

    def _take(self, chunk_id: int, attempt: int, path: Path, at: float) -> Counts | None:
        if self.conn.execute(
            "SELECT 1 FROM shard WHERE chunk_id = ? AND attempt = ? AND name = ?",
            (chunk_id, attempt, path.name),
        ).fetchone():
            return None
        counts = Counts()
        for window in shards.windows(path, memory=self.memory):
            Intake(self, window, counts, at).take()
        self.conn.execute(
            "INSERT INTO shard VALUES (?, ?, ?, ?, ?, ?, ?)",
            (chunk_id, attempt, path.name, counts.entries, counts.dirs, signed(counts.bytes), at),
        )
        self._count(chunk_id, counts)
        return counts

    def _forget_oldest(self) -> None:
        """Keep the newer half of what is remembered, and of the cache what is above it."""
        old = list(islice(self.placed, len(self.placed) // 2))
        for path in old:
            del self.placed[path]
        # One above them that was placed too is older, and went as well.
        for path in {path.rpartition(b"/")[0] for path in old}:
            if above := self.cache.get(path):
                above.below_known = None
        every = list(self.cache.values())
        half = len(every) // 2
        self.cache = {d.path: d for d in every[half:]}
        for d in every[half:]:
            above = d.above
            while above is not None and above.path not in self.cache:
                self.cache[above.path] = above
                above = above.above
        for d in every[:half]:
            if d.above is not None and d.path not in self.cache:
                d.above.below_known = None

    def decide(
        self, path: bytes, state: DirState, reason: str, at: float, *, err: int = 0, op: Op = Op.OPEN
    ) -> None:
        """Note the state of a directory that no worker could or should visit; within a transaction."""
        data = shards.record(shards.KIND_DIR, path, state=STATES.index(state), err=err, op=op, reason=reason)
        records, attrs, _ = codec.index(data, False)
        counts = Counts()
        Intake(
            self, Window(data, [Record._make(r) for r in records], attrs), counts, at, problems=False
        ).take()

    def forget(self) -> None:
        """Drop what is remembered of rows; after a rollback."""
        self.cache.clear()
        self.placed.clear()
        self.attrs.clear()
        self.larges.clear()
        self.largest.forget()

    def mounted(self, st_dev: int) -> None:
        """Note by which st_dev the share is known now: after a reboot it may be another one, and names of one
        file are recognised by it. Within a transaction. Cost: one pass over the directories where it changed.
        """
        dev = signed(os.major(st_dev) << 32 | os.minor(st_dev))
        row = self.conn.execute(
            "SELECT dev FROM dir WHERE mount_id = ? AND parent_id IS NULL", (self.mount_id,)
        ).fetchone()
        if row is None or row[0] in (None, dev):
            return
        # Another file system may have had that number; its directories get a new one when they are visited.
        self.conn.execute(
            "UPDATE dir SET dev = ? WHERE mount_id = ? AND dev = ? AND scan_id IS NOT ?",
            (~dev, self.mount_id, dev, self.scan_id),
        )
        self.conn.execute(
            "UPDATE dir SET dev = ? WHERE mount_id = ? AND dev = ?", (dev, self.mount_id, row[0])
        )
        self.forget()

    def sweep(self) -> None:
        """Remove directories that are in no listing of this scan: they went between the visits to them and to
        the one above, or that one is left out now. Within a transaction. Cost: one look per directory.
        """
        if self.sizes_only:
            return
        rows = self.conn.execute(
            "SELECT c.id, c.parent_id, CAST(c.name AS BLOB) FROM dir AS c JOIN dir AS p "
            "ON p.id = c.parent_id "
            f"WHERE c.mount_id = ? AND p.scan_id = ? AND p.state IN (?, ?, ?) AND {NOT_LISTED}",
            (self.mount_id, self.scan_id, DirState.LISTED, *LEFT_OUT),
        ).fetchall()
        nothing = Intake(self, Window(b"", [], []), Counts(), 0.0)
        for dir_id, parent_id, name in rows:
            above = self.find(tree.path_of(self.conn, parent_id))
            if above is not None:  # it went with one above it
                nothing.remove_tree(above, dir_id, name)
        nothing.settle()
        self._count_difference(nothing.counts)

    def _count(self, chunk_id: int, c: Counts) -> None:
        totals = (c.entries, c.dirs, signed(c.bytes), signed(c.disk_bytes))
        self.conn.execute(
            "UPDATE chunk SET entries = entries + ?, dirs = dirs + ?, bytes = plus(bytes, ?), "
            "disk_bytes = plus(disk_bytes, ?) WHERE id = ?",
            (*totals, chunk_id),
        )
        self.conn.execute(
            "UPDATE scan SET entries = entries + ?, dirs = dirs + ?, bytes = plus(bytes, ?), "
            "disk_bytes = plus(disk_bytes, ?) WHERE id = ?",
            (*totals, self.scan_id),
        )
        self._count_difference(c)

    def _count_difference(self, c: Counts) -> None:
        if self.rescan:
            self.conn.execute(
                "UPDATE scan SET entries_new = ifnull(entries_new, 0) + ?, "
                "entries_changed = ifnull(entries_changed, 0) + ?, "
                "entries_gone = ifnull(entries_gone, 0) + ? WHERE id = ?",
                (c.new, c.changed, c.gone, self.scan_id),
            )

    def find(self, path: bytes) -> Dir | None:
        """Look a directory up; None where it has no row.

        Cost: one query per component not in the cache, which brings all beside it where they are few.
        """
        below: list[bytes] = []  # and no recursion: there may be thousands
        while path and path not in self.cache:
            below.append(path)
            path = path.rpartition(b"/")[0]
        found = self.cache.get(path) or self._find_top()
        while below and found is not None:
            path = below.pop()
            id_ = self.placed.pop(path, None)
            if id_ is None:
                found = self._find_below(found, path)
            else:
                found = self.cache[path] = Dir(
                    id_, path, found, DirState.LISTED, self.scan_id, listed=True, below_known=True
                )
        return found

    def _find_top(self) -> Dir | None:
        row = self.conn.execute(_TOP, (self.mount_id,)).fetchone()
        return self._remember(b"", None, row) if row else None

    def _find_below(self, above: Dir, path: bytes) -> Dir | None:
        if hit := self.cache.get(path):
            return hit
        if above.below_known:
            return None
        above_path, _, name = path.rpartition(b"/")
        if above.below_known is None:
            rows = self.conn.execute(_BELOW, (self.mount_id, above.id, SIBLINGS + 1)).fetchall()
            above.below_known = len(rows) <= SIBLINGS
            if above.below_known:
                for row in rows:
                    self._remember(join(above_path, row[0]), above, row)
                return self.cache.get(path)
        row = self.conn.execute(_NAMED, (self.mount_id, above.id, name)).fetchone()
        return self._remember(path, above, row) if row else None

    def _remember(self, path: bytes, above: Dir | None, row: tuple[Any, ...]) -> Dir:
        """Give what is known of a directory by that path, from its row if need be."""
        known = self.cache.get(path)
        if known is None:
            _, id_, state, scan_id, digest, dev, own_blocks, own_entries = row
            listed = digest is not None or own_entries > 0
            self.placed.pop(path, None)
            known = self.cache[path] = Dir(id_, path, above, state, scan_id, digest, dev, own_blocks, listed)
        return known

    def known(self, root: Root) -> bytes:
        """Give what a worker needs to recognise unchanged directories at and below a root (`codec.known`).

        Cost: one row per directory, and 24 bytes.
        """
        top = self.find(root.path)
        if top is None:
            return b""
        below = (
            ""
            if root.scope is Scope.FILES
            else (
                " UNION ALL SELECT dir.id, "
                "CASE tree.path WHEN '' THEN dir.name ELSE tree.path || '/' || dir.name END "
                "FROM tree JOIN dir ON dir.mount_id = ?3 AND dir.parent_id = tree.id"
            )
        )
        rows = self.conn.execute(
            f"WITH RECURSIVE tree(id, path) AS (SELECT ?1, CAST(?2 AS TEXT){below}) "
            "SELECT CAST(tree.path AS BLOB), digest, tree.id FROM tree JOIN dir ON dir.id = tree.id "
            "AND dir.mount_id = ?3 WHERE digest IS NOT NULL AND state = 'listed'",
            (top.id, root.path, self.mount_id),
        )
        told = []
        while some := rows.fetchmany(KNOWN_ROWS):
            told.append(codec.known(some))
        return b"".join(told)

    def attr_ids(self, attrs: Iterable[tuple[int, int, int]]) -> bytes:
        """Give the numbers of (mode, uid, gid) as the bulk insert wants them, making rows where needed."""
        packed = []
        for key in attrs:
            number = self.attrs.get(key)
            if number is None:
                number = self.attrs[key] = self._attr_id(*key)
            packed.append(struct.pack("<IIIIq", *key, 0, number))
        return b"".join(packed)

    def _attr_id(self, mode: int, uid: int, gid: int) -> int:
        kind = _TYPES.get(mode & 0o170000, "?")
        values = (kind, None, None, None) if mode & UNKNOWN_MODE else (kind, mode & 0o7777, uid, gid)
        row = self.conn.execute(
            "SELECT id FROM attr WHERE type IS ? AND mode IS ? AND uid IS ? AND gid IS ?", values
        ).fetchone()
        if row is None:
            row = self.conn.execute(
                "INSERT INTO attr (type, mode, uid, gid) VALUES (?, ?, ?, ?) RETURNING id", values
            ).fetchone()
        return int(row[0])
