"""Take shards into the catalogue: rows, totals and what is done, one transaction per shard.

Touches: the catalogue, shards in attempt folders.

A shard is ingested whole or not at all; a second time it is skipped; the order does not matter, because
a directory whose ancestors are not there yet gets them as placeholders (state "found"). A directory with
the digest it had costs one small update. One that changed is replaced, and what is new, changed and gone
in it is counted. Rows go only when their directory was read to the end.
"""

from __future__ import annotations

import array
import os
import sqlite3
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartscan import shard as shards
from smartscan.catalogue.bulk import UNKNOWN_MODE, Bulk
from smartscan.catalogue.open import transaction
from smartscan.catalogue.problems import note_problem
from smartscan.codec import codec, kinds
from smartscan.errors import MountError
from smartscan.model import DirState, Op, Root, Scope, WalkError, show
from smartscan.shard import BIG, KIND_ERROR, LAST, UNCHANGED, Record, Window

STATES = (
    DirState.FOUND,
    DirState.LISTED,
    DirState.EXCLUDED,
    DirState.DENIED,
    DirState.TIMED_OUT,
    DirState.IO_ERROR,
    DirState.OTHER_MOUNT,
    DirState.VANISHED,
)
_FAILED = (DirState.DENIED, DirState.TIMED_OUT, DirState.IO_ERROR)
_LEFT_OUT = (DirState.EXCLUDED, DirState.OTHER_MOUNT)  # on purpose: what was inside goes from the catalogue
LARGEST = 200  # files kept per mount; a report shows some tens
LARGEST_SURE = 100  # with fewer left after deletions they are looked for anew
CACHE_DIRS = 200_000  # directories remembered between shards, some 50 MB; others are looked up again
_TYPES = {
    0o100000: "f",
    0o040000: "d",
    0o120000: "l",
    0o010000: "p",
    0o140000: "s",
    0o020000: "c",
    0o060000: "b",
}

# What a changed directory holds now, until it has replaced what it held.
_INCOMING = """
CREATE TEMP TABLE IF NOT EXISTS incoming (
    dir_id INTEGER NOT NULL, name TEXT NOT NULL, attr_id INTEGER NOT NULL, size INTEGER, blocks INTEGER,
    mtime_ns INTEGER, ctime_ns INTEGER, ino INTEGER, nlink INTEGER, counted INTEGER,
    PRIMARY KEY (dir_id, name)) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS incoming_link (
    dir_id INTEGER NOT NULL, name TEXT NOT NULL, target TEXT NOT NULL, PRIMARY KEY (dir_id, name)) WITHOUT
    ROWID;
"""
_ROW = "CAST(e.name AS BLOB), a.type, e.size, e.blocks, e.mtime_ns, a.uid, e.ino, e.counted"
# How many files a mount has that are not empty.
_NOT_EMPTY = (
    "(SELECT ifnull(sum(files), 0) FROM tally WHERE mount_id = ?1 AND dimension = 'size' AND key <> '0')"
)
# A directory that the listing of the one above it, read to the end, does not have.
_NOT_LISTED = (
    "NOT EXISTS (SELECT 1 FROM entry AS e JOIN attr AS a ON a.id = e.attr_id "
    "WHERE e.dir_id = c.parent_id AND e.name = c.name AND a.type = 'd')"
)


def signed(value: int) -> int:
    """An unsigned 64-bit number as SQLite can hold it."""
    return value - (1 << 64) if value >> 63 else value


def conn_path(conn: sqlite3.Connection, mount_id: int) -> str:
    """Give a mount's path for a message."""
    row = conn.execute("SELECT CAST(path AS BLOB) FROM mount WHERE id = ?", (mount_id,)).fetchone()
    return show(row[0]) if row else "the share"


@dataclass(slots=True)
class Counts:
    """What ingesting one shard brought."""

    entries: int = 0
    dirs: int = 0  # decided for the first time in this scan
    bytes: int = 0
    disk_bytes: int = 0
    new: int = 0
    changed: int = 0
    gone: int = 0


@dataclass(slots=True)
class Dir:
    """A directory as the ingest knows it. `row` is set while its row is not written yet."""

    id: int
    state: str
    scan_id: int | None = None
    digest: int | None = None
    dev: int | None = None
    own_blocks: int = 0
    listed: bool = False  # its entries were catalogued before
    fresh: bool = False  # made by this process: what the cache does not know below it does not exist


@dataclass(slots=True)
class NewRow:
    """The row of a new directory, until the window is written."""

    parent_id: int | None
    name: bytes
    values: tuple[Any, ...] = (DirState.FOUND.value, None, None, None, None, 0, 0, 0)


@dataclass(slots=True)
class Large:
    """What the blocks of a large directory summed up to so far."""

    entries: int = 0
    dirs: int = 0


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


class Ingest:
    """The one writer of a mount's entries during one scan."""

    def __init__(self, bulk: Bulk, mount_id: int, scan_id: int, *, rescan: bool) -> None:
        self.conn, self.bulk = bulk.conn, bulk
        self.mount_id, self.scan_id, self.rescan = mount_id, scan_id, rescan
        self.cache: dict[bytes, Dir] = {}
        self.attrs: dict[tuple[int, int, int], int] = {}
        self.larges: dict[int, Large] = {}
        self.least: int | None = None  # every larger file is among the largest; None: not asked yet
        self.share = conn_path(self.conn, mount_id)
        self.conn.executescript(_INCOMING)

    def shard(self, chunk_id: int, attempt: int, path: Path, at: float) -> Counts | None:
        """Take one shard in; None where it was in already. ShardError: damaged, nothing was changed.

        `at` is the time to note, Unix seconds.
        """
        counts = Counts()
        try:
            with transaction(self.conn):
                if self.conn.execute(
                    "SELECT 1 FROM shard WHERE chunk_id = ? AND attempt = ? AND name = ?",
                    (chunk_id, attempt, path.name),
                ).fetchone():
                    return None
                for window in shards.windows(path):
                    _Window(self, window, counts, at).take()
                self.conn.execute(
                    "INSERT INTO shard VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (chunk_id, attempt, path.name, counts.entries, counts.dirs, counts.bytes, at),
                )
                self._count(chunk_id, counts)
        except BaseException:
            self.forget()  # it may name rows that were taken back
            raise
        if len(self.cache) > CACHE_DIRS:
            self.cache.clear()
        return counts

    def decide(
        self, path: bytes, state: DirState, reason: str, at: float, *, err: int = 0, op: Op = Op.OPEN
    ) -> None:
        """Note the state of a directory that no worker could or should visit; within a transaction."""
        data = shards.record(shards.KIND_DIR, path, state=STATES.index(state), err=err, op=op, reason=reason)
        records, attrs, _ = codec.index(data, False)
        counts = Counts()
        _Window(
            self, Window(data, [Record._make(r) for r in records], attrs), counts, at, problems=False
        ).take()

    def forget(self) -> None:
        """Drop what is remembered of rows; after a rollback."""
        self.cache.clear()
        self.attrs.clear()
        self.larges.clear()
        self.least = None

    def sweep(self) -> None:
        """Remove directories that are in no listing of this scan: they went between the visits to them and to
        the one above, or that one is left out now. Within a transaction. Cost: one look per directory.
        """
        rows = self.conn.execute(
            "SELECT c.id, c.parent_id, CAST(c.name AS BLOB) FROM dir AS c JOIN dir AS p "
            "ON p.id = c.parent_id "
            f"WHERE c.mount_id = ? AND p.scan_id = ? AND p.state IN (?, ?, ?) AND {_NOT_LISTED}",
            (self.mount_id, self.scan_id, DirState.LISTED, *_LEFT_OUT),
        ).fetchall()
        window = _Window(self, Window(b"", [], []), Counts(), 0.0)
        for dir_id, parent_id, name in rows:
            window.remove_tree(self.path_of(parent_id), dir_id, name)
        window.settle()
        self._count_difference(window.counts)

    def _count(self, chunk_id: int, c: Counts) -> None:
        totals = (c.entries, c.dirs, c.bytes, c.disk_bytes)
        self.conn.execute(
            "UPDATE chunk SET entries = entries + ?, dirs = dirs + ?, bytes = bytes + ?, "
            "disk_bytes = disk_bytes + ? WHERE id = ?",
            (*totals, chunk_id),
        )
        self.conn.execute(
            "UPDATE scan SET entries = entries + ?, dirs = dirs + ?, bytes = bytes + ?, "
            "disk_bytes = disk_bytes + ? WHERE id = ?",
            (*totals, self.scan_id),
        )
        self._count_difference(c)

    def _count_difference(self, c: Counts) -> None:
        if self.rescan:
            self.conn.execute(
                "UPDATE scan SET entries_new = ifnull(entries_new, 0) + ?, entries_changed = "
                "ifnull(entries_changed, 0) + ?, entries_gone = ifnull(entries_gone, 0) + ? WHERE id = ?",
                (c.new, c.changed, c.gone, self.scan_id),
            )

    def find(self, path: bytes) -> Dir | None:
        """Look a directory up; None where it has no row. Cost: one query per component not in the cache."""
        hit = self.cache.get(path)
        if hit:
            return hit
        sql = (
            "SELECT id, state, scan_id, digest, dev, own_blocks, own_entries FROM dir WHERE mount_id = ? AND "
        )
        if path:
            above, _, name = path.rpartition(b"/")
            parent = self.find(above)
            if parent is None or parent.fresh:
                return None
            row = self.conn.execute(
                sql + "parent_id = ? AND name = CAST(? AS TEXT)", (self.mount_id, parent.id, name)
            ).fetchone()
        else:
            row = self.conn.execute(sql + "parent_id IS NULL", (self.mount_id,)).fetchone()
        if row is None:
            return None
        dir_id, state, scan_id, digest, dev, own_blocks, own_entries = row
        listed = digest is not None or own_entries > 0
        found = self.cache[path] = Dir(dir_id, state, scan_id, digest, dev, own_blocks, listed)
        return found

    def known(self, root: Root) -> bytes:
        """Give what a worker needs to recognise unchanged directories at and below a root: pairs of uint64
        hash of the path and int64 digest. Remembers the rows, which the worker's records will ask for.

        Cost: one row per directory.
        """
        top = self.find(root.path)
        if top is None:
            return b""
        below = (
            ""
            if root.scope is Scope.FILES
            else (
                " UNION ALL SELECT dir.id, CASE tree.path WHEN '' THEN dir.name ELSE tree.path || '/' "
                "|| dir.name END "
                "FROM tree JOIN dir ON dir.mount_id = ?3 AND dir.parent_id = tree.id"
            )
        )
        rows = self.conn.execute(
            f"WITH RECURSIVE tree(id, path) AS (SELECT ?1, CAST(?2 AS TEXT){below}) "
            "SELECT CAST(tree.path AS BLOB), dir.id, state, scan_id, digest, dev, own_blocks, own_entries "
            "FROM tree JOIN dir ON dir.id = tree.id AND dir.mount_id = ?3",
            (top.id, root.path, self.mount_id),
        )
        pair, xxh64, cache = struct.Struct("<Qq").pack, codec.xxh64, self.cache
        pairs = []
        for path, dir_id, state, scan_id, digest, dev, own_blocks, own_entries in rows:
            if digest is not None:
                pairs.append(pair(xxh64(path), digest))
            if path not in cache and len(cache) < CACHE_DIRS:
                cache[path] = Dir(
                    dir_id, state, scan_id, digest, dev, own_blocks, digest is not None or own_entries > 0
                )
        return b"".join(pairs)

    def path_of(self, dir_id: int) -> bytes:
        """Give the path of a directory by climbing its parents."""
        names: list[bytes] = []
        while True:
            row = self.conn.execute(
                "SELECT parent_id, CAST(name AS BLOB) FROM dir WHERE id = ?", (dir_id,)
            ).fetchone()
            if row is None or row[0] is None:
                return b"/".join(reversed(names))
            names.append(row[1])
            dir_id = row[0]

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


@dataclass(slots=True)
class _Window:
    """One window of a shard on its way into the tables."""

    ingest: Ingest
    window: Window
    counts: Counts
    at: float
    problems: bool = True
    rows: dict[int, NewRow] = field(default_factory=dict)
    updates: list[tuple[Any, ...]] = field(default_factory=list)
    sums: dict[bytes, Sum] = field(default_factory=dict)
    tally: dict[tuple[int, bytes], list[int]] = field(default_factory=dict)
    plain: list[tuple[Record, Dir]] = field(default_factory=list)  # entries that are simply added
    incoming: list[tuple[Record, Dir]] = field(default_factory=list)  # entries that replace others
    replace: list[tuple[bytes, Dir, bool]] = field(default_factory=list)  # bool: it was read to the end
    freed: set[tuple[int | None, int]] = field(default_factory=set)  # files whose counted name went
    next_id: int = 0

    def take(self) -> None:
        """Write the window; within a transaction."""
        i = self.ingest
        (self.next_id,) = i.conn.execute("SELECT ifnull(max(id), 0) + 1 FROM dir").fetchone()
        failed: list[WalkError] = []
        for r in self.window.records:
            if r.kind == KIND_ERROR:
                failed.append(WalkError(r.path, Op(r.op), r.err, r.waited_ns / 1e9))
                continue
            d = i.cache.get(r.path) or i.find(r.path) or self._make(r.path)
            if d.scan_id == i.scan_id and d.state != DirState.FOUND:
                continue  # decided in this scan already: what comes twice changes nothing
            self._entries(r, d)
            if r.flags & LAST:
                state = STATES[r.state]
                if not r.path and state == DirState.LISTED and not r.n and not r.flags & BIG:
                    raise MountError(
                        f"{i.share} is empty; is the share mounted? Nothing was changed in the catalogue"
                    )
                if state in _FAILED:
                    failed.append(WalkError(r.path, Op(r.op), r.err, r.waited_ns / 1e9))
                self._decide(r, d, state)
        self._insert()
        if self.replace:
            self._write_rows({})  # what is replaced looks for other names of its files in all directories
        for path, d, whole in self.replace:
            self._replace(path, d, whole)
        self.settle()
        gone = False
        for path, d, whole in self.replace:  # only now that all sums of this window are written
            if whole:
                gone |= self._remove_gone(path, d)
        if gone:
            self.settle()
        if self.problems:
            for error in failed:
                note_problem(i.conn, i.mount_id, i.scan_id, error, self.at)

    def settle(self) -> None:
        """Write what was summed up so far."""
        self._promote()
        self._write_dirs()
        self._write_tally()
        self.freed.clear()
        self.sums.clear()
        self.tally.clear()

    # -- records --------------------------------------------------------------------------------------

    def _make(self, path: bytes) -> Dir:
        """Give a new directory its row, and its ancestors where they are missing."""
        parent_id, name = None, b""
        if path:
            above, _, name = path.rpartition(b"/")
            parent_id = (self.ingest.cache.get(above) or self.ingest.find(above) or self._make(above)).id
        made = self.ingest.cache[path] = Dir(self.next_id, DirState.FOUND, fresh=True)
        self.rows[made.id] = NewRow(parent_id, name)
        self.next_id += 1
        return made

    def _entries(self, r: Record, d: Dir) -> None:
        """Sort out what becomes of the entries of a record."""
        c, whole = self.counts, STATES[r.state] == DirState.LISTED
        c.entries += r.n
        c.bytes += r.bytes
        c.disk_bytes += r.blocks * 512
        if r.flags & BIG and not r.flags & LAST:
            large = self.ingest.larges.setdefault(d.id, Large())
            large.entries += r.n
            large.dirs += r.subdirs
            if d.dev is None:
                self._set_dev(d, signed(r.dev))  # its next blocks look for names of their files in this one
        if r.flags & UNCHANGED:
            return
        same = whole and d.listed and d.digest == signed(r.dir_digest)
        if not d.listed:
            if r.n:
                self.plain.append((r, d))
                self._sum(r.path).add(r.files, r.n, r.bytes, r.blocks * 512)
                if self.ingest.rescan:
                    c.new += r.n
        elif r.flags & BIG and not r.flags & LAST:
            self.incoming.append((r, d))
        elif same:
            self._drop_incoming(d)
        elif whole or r.n or r.flags & BIG or STATES[r.state] in _LEFT_OUT:
            if r.n:
                self.incoming.append((r, d))
            self.replace.append((r.path, d, whole or STATES[r.state] in _LEFT_OUT))

    def _set_dev(self, d: Dir, dev: int) -> None:
        d.dev = dev
        row = self.rows.get(d.id)
        if row is not None:
            row.values = (*row.values[:3], dev, *row.values[4:])
        else:
            self.ingest.conn.execute("UPDATE dir SET dev = ? WHERE id = ?", (dev, d.id))

    def _decide(self, r: Record, d: Dir, state: DirState) -> None:
        """Note in which state a directory ended."""
        large = self.ingest.larges.pop(d.id, None) if r.flags & BIG else None
        reason = r.text.decode("utf-8", "replace") or (os.strerror(r.err) if r.err else None)
        scan_id = self.ingest.scan_id
        listed = state == DirState.LISTED
        digest = signed(r.dir_digest) if listed else None
        n, dirs = (large.entries, large.dirs) if large else (r.n, r.subdirs)
        own_blocks = r.own_blocks if r.own_blocks or listed else d.own_blocks
        row = self.rows.get(d.id)
        if row is not None:
            row.values = (state.value, reason, scan_id, signed(r.dev), digest, n, dirs, own_blocks)
        elif listed or r.n or state in _LEFT_OUT:
            self.updates.append(
                (state.value, reason, scan_id, signed(r.dev), digest, n, dirs, own_blocks, d.id)
            )
        else:  # not read this time: what is known of its inside stays
            self.updates.append(
                (
                    state.value,
                    reason,
                    scan_id,
                    d.dev if d.dev is not None else signed(r.dev),
                    d.digest,
                    None,
                    0,
                    own_blocks,
                    d.id,
                )
            )
            digest = d.digest
        if own_blocks != d.own_blocks:
            self._sum(r.path).add(0, 0, 0, (own_blocks - d.own_blocks) * 512)
        d.state, d.scan_id, d.digest, d.dev, d.own_blocks = state, scan_id, digest, signed(r.dev), own_blocks
        d.listed = state not in _LEFT_OUT and (d.listed or listed or n > 0)
        self.counts.dirs += 1
        self.counts.disk_bytes += own_blocks * 512

    def _sum(self, path: bytes) -> Sum:
        found = self.sums.get(path)
        if found is None:
            found = self.sums[path] = Sum()
        return found

    # -- entries ---------------------------------------------------------------------------------------

    def _insert(self) -> None:
        i = self.ingest
        if not self.plain and not self.incoming:
            return
        attrs = i.attr_ids(self.window.attrs)
        if self.incoming:
            offsets = array.array("Q", (r.offset for r, _ in self.incoming)).tobytes()
            ids = array.array("q", (d.id for _, d in self.incoming)).tobytes()
            i.bulk.insert("temp.incoming", "temp.incoming_link", self.window.buffer, offsets, ids, attrs)
        if not self.plain:
            return
        offsets = array.array("Q", (r.offset for r, _ in self.plain)).tobytes()
        ids = array.array("q", (d.id for _, d in self.plain)).tobytes()
        tally, largest, links = codec.measure(self.window.buffer, offsets, LARGEST)
        for dimension, key, files, size, blocks in tally:
            self._tally(dimension, key, files, size, blocks)
        doubles: list[tuple[int, bytes]] = []
        seen: set[tuple[int, int]] = set()
        for k, name, ino, size, blocks, mtime_ns, mode, uid in links:
            r, d = self.plain[k]
            key = (signed(r.dev), ino)
            if key in seen or self._is_counted(key):
                doubles.append((d.id, name))
                self._uncount(r.path, name, mode & 0o170000 == 0o100000, size, blocks, mtime_ns, uid)
            seen.add(key)
        i.bulk.insert("entry", "symlink", self.window.buffer, offsets, ids, attrs)
        if doubles:
            i.conn.executemany(
                "UPDATE entry SET counted = 0 WHERE dir_id = ? AND name = CAST(? AS TEXT)", doubles
            )
        if largest:
            id_at = {r.offset: d.id for r, d in self.plain}
            files = [(size, id_at[offset], name) for size, offset, name in largest]
            self._keep_largest([f for f in files if f[1:] not in set(doubles)] if doubles else files)

    def _uncount(
        self, path: bytes, name: bytes, is_file: bool, size: int, blocks: int, mtime_ns: int, uid: int
    ) -> None:
        """Take one of several names of a file out of the totals; it stays an entry."""
        self._sum(path).add(-is_file, 0, -size, -blocks * 512)
        if is_file:
            self._tally_file(-1, name, size, blocks, mtime_ns, uid)

    def _is_counted(self, key: tuple[int | None, int]) -> bool:
        return (
            self.ingest.conn.execute(
                "SELECT 1 FROM entry JOIN dir ON dir.id = entry.dir_id WHERE entry.counted = 1 AND "
                "entry.ino = ? AND "
                "dir.mount_id = ? AND dir.dev = ? LIMIT 1",
                (key[1], self.ingest.mount_id, key[0]),
            ).fetchone()
            is not None
        )

    def _drop_incoming(self, d: Dir) -> None:
        self.ingest.conn.execute("DELETE FROM temp.incoming WHERE dir_id = ?", (d.id,))
        self.ingest.conn.execute("DELETE FROM temp.incoming_link WHERE dir_id = ?", (d.id,))

    def _replace(self, path: bytes, d: Dir, whole: bool) -> None:
        """Let what came in for a directory take the place of what was there."""
        conn, one = self.ingest.conn, (d.id,)
        both = (
            "FROM temp.incoming AS n {} JOIN entry AS e ON e.dir_id = n.dir_id AND e.name = n.name "
            "WHERE n.dir_id = ?"
        )
        (changed,) = conn.execute(
            "SELECT count(*) "
            + both.format("")
            + " AND (n.attr_id, n.size, n.blocks, n.mtime_ns, n.ctime_ns, n.ino, n.nlink) "
            "IS NOT (e.attr_id, e.size, e.blocks, e.mtime_ns, e.ctime_ns, e.ino, e.nlink)",
            one,
        ).fetchone()
        (new,) = conn.execute(
            "SELECT count(*) " + both.format("LEFT") + " AND e.name IS NULL", one
        ).fetchone()
        self.counts.changed += changed
        self.counts.new += new
        gone = "e.name NOT IN (SELECT name FROM temp.incoming WHERE dir_id = e.dir_id)"
        if whole:
            (count,) = conn.execute(
                f"SELECT count(*) FROM entry AS e WHERE e.dir_id = ? AND {gone}", one
            ).fetchone()
            self.counts.gone += count
        which = "" if whole else " AND e.name IN (SELECT name FROM temp.incoming WHERE dir_id = e.dir_id)"
        self._subtract(path, d.id, d.dev, which)
        conn.execute(f"DELETE FROM entry AS e WHERE e.dir_id = ?{which}", one)
        conn.execute(f"DELETE FROM symlink AS e WHERE e.dir_id = ?{which}", one)
        conn.execute("DELETE FROM largest WHERE mount_id = ? AND dir_id = ?", (self.ingest.mount_id, d.id))
        largest: list[tuple[int, int, bytes]] = []
        doubles: list[tuple[int, bytes]] = []
        seen: set[int] = set()
        for name, kind, size, blocks, mtime_ns, uid, ino, counted in conn.execute(
            f"SELECT {_ROW} FROM temp.incoming AS e JOIN attr AS a ON a.id = e.attr_id WHERE e.dir_id = ?",
            one,
        ):
            is_file = kind == "f"
            self._sum(path).entries += 1
            if size is None or kind == "d":
                continue
            if counted is not None:
                if ino in seen or self._is_counted((d.dev, ino)):
                    doubles.append((d.id, name))
                    continue
                seen.add(ino)
            self._sum(path).add(is_file, 0, size, blocks * 512)
            if is_file:
                self._tally_file(1, name, size, blocks, mtime_ns, uid)
                largest.append((size, d.id, name))
                if len(largest) > 4 * LARGEST:
                    largest = sorted(largest, reverse=True)[:LARGEST]
        conn.execute("INSERT INTO entry SELECT * FROM temp.incoming WHERE dir_id = ?", one)
        conn.execute("INSERT INTO symlink SELECT * FROM temp.incoming_link WHERE dir_id = ?", one)
        conn.executemany("UPDATE entry SET counted = 0 WHERE dir_id = ? AND name = CAST(? AS TEXT)", doubles)
        self._keep_largest(largest)
        self._drop_incoming(d)

    def _remove_gone(self, path: bytes, d: Dir) -> bool:
        """Remove the directories that a new listing has no more; False where there were none."""
        rows = self.ingest.conn.execute(
            "SELECT c.id, CAST(c.name AS BLOB) FROM dir AS c WHERE c.mount_id = ? AND c.parent_id = ? AND "
            + _NOT_LISTED,
            (self.ingest.mount_id, d.id),
        ).fetchall()
        for child_id, name in rows:
            self.remove_tree(path, child_id, name)
        return bool(rows)

    def _subtract(self, path: bytes, dir_id: int, dev: int | None, which: str = "") -> None:
        """Take the entries of a directory out of all totals."""
        total = self._sum(path)
        for name, kind, size, blocks, mtime_ns, uid, ino, counted in self.ingest.conn.execute(
            f"SELECT {_ROW} FROM entry AS e JOIN attr AS a ON a.id = e.attr_id WHERE e.dir_id = ?{which}",
            (dir_id,),
        ):
            total.entries -= 1
            if size is None or kind == "d" or counted == 0:
                continue
            if counted:
                self.freed.add((dev, ino))
            total.add(-(kind == "f"), 0, -size, -blocks * 512)
            if kind == "f":
                self._tally_file(-1, name, size, blocks, mtime_ns, uid)

    def remove_tree(self, parent: bytes, dir_id: int, name: bytes) -> None:
        """Remove a directory that its parent does not hold any more, with everything below it.

        Its own entry goes with its parent's. What is summed up of it must be written before. Nothing happens
        where it went with another. Cost: the rows of the subtree.
        """
        i, conn = self.ingest, self.ingest.conn
        top = parent + b"/" + name if parent else name
        stack = [(dir_id, top)]
        while stack:
            this, path = stack.pop()
            row = conn.execute("SELECT dev, own_blocks FROM dir WHERE id = ?", (this,)).fetchone()
            if row is None:
                return
            dev, own_blocks = row
            stack += [
                (child, path + b"/" + n)
                for child, n in conn.execute(
                    "SELECT id, CAST(name AS BLOB) FROM dir WHERE mount_id = ? AND parent_id = ?",
                    (i.mount_id, this),
                )
            ]
            before = self._sum(parent).entries
            self._subtract(parent, this, dev)  # the totals of what goes need no care, those above do
            self.counts.gone += before - self._sum(parent).entries
            self._sum(parent).disk_bytes -= own_blocks * 512
            for table in ("entry", "symlink", "largest"):
                conn.execute(f"DELETE FROM {table} WHERE dir_id = ?", (this,))
            conn.execute("DELETE FROM dir WHERE id = ?", (this,))
            i.cache.pop(path, None)

    def _promote(self) -> None:
        """Where the counted name of a file went, let another of its names count."""
        i = self.ingest
        for dev, ino in self.freed:
            if self._is_counted((dev, ino)):
                continue
            row = i.conn.execute(
                f"SELECT e.dir_id, {_ROW} FROM entry AS e JOIN dir ON dir.id = e.dir_id JOIN attr AS a "
                "ON a.id = e.attr_id "
                "WHERE e.counted = 0 AND e.ino = ? AND dir.mount_id = ? AND dir.dev IS ? LIMIT 1",
                (ino, i.mount_id, dev),
            ).fetchone()
            if row is None:
                continue
            dir_id, name, kind, size, blocks, mtime_ns, uid, _, _ = row
            i.conn.execute(
                "UPDATE entry SET counted = 1 WHERE dir_id = ? AND name = CAST(? AS TEXT)", (dir_id, name)
            )
            self._sum(i.path_of(dir_id)).add(kind == "f", 0, size, blocks * 512)
            if kind == "f":
                self._tally_file(1, name, size, blocks, mtime_ns, uid)
                self._keep_largest([(size, dir_id, name)])

    # -- totals -----------------------------------------------------------------------------------------

    def _write_dirs(self) -> None:
        """Carry every sum up to the mount, and write new and changed rows of directories."""
        conn, cache = self.ingest.conn, self.ingest.cache
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
        totals = {}
        for path, s in sums.items():
            d = cache.get(path) or self.ingest.find(path)
            assert d is not None, path
            totals[d.id] = (s.files, s.entries, s.bytes, s.disk_bytes)
        self._write_rows(totals)
        conn.executemany(
            "UPDATE dir SET files = files + ?, entries = entries + ?, bytes = bytes + ?, "
            "disk_bytes = disk_bytes + ? WHERE id = ?",
            [(*s, id_) for id_, s in totals.items() if any(s)],
        )

    def _write_rows(self, totals: dict[int, tuple[int, int, int, int]]) -> None:
        """Write the rows of new and changed directories; takes what it uses of the totals out of them."""
        conn, none = self.ingest.conn, (0, 0, 0, 0)
        conn.executemany(
            "INSERT INTO dir (id, mount_id, parent_id, name, state, reason, scan_id, dev, digest, "
            "own_entries, own_dirs, "
            "own_blocks, files, entries, bytes, disk_bytes) VALUES (?, ?, ?, CAST(? AS TEXT), ?, ?, ?, "
            "?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (id_, self.ingest.mount_id, row.parent_id, row.name, *row.values, *totals.pop(id_, none))
                for id_, row in self.rows.items()
            ],
        )
        conn.executemany(
            "UPDATE dir SET state = ?, reason = ?, scan_id = ?, dev = ?, digest = ?, own_entries = "
            "ifnull(?, own_entries), "
            "own_dirs = ifnull(?, own_dirs), own_blocks = ? WHERE id = ?",
            self.updates,
        )
        self.rows, self.updates = {}, []

    def _tally(self, dimension: int, key: bytes, files: int, size: int, blocks: int) -> None:
        cell = self.tally.setdefault((dimension, key), [0, 0, 0])
        cell[0] += files
        cell[1] += size
        cell[2] += blocks * 512

    def _tally_file(self, sign: int, name: bytes, size: int, blocks: int, mtime_ns: int, uid: int) -> None:
        for dimension, key in enumerate(kinds.keys(name, size, mtime_ns, uid)):
            self._tally(dimension, key, sign, sign * size, sign * blocks)

    def _write_tally(self) -> None:
        conn, mount_id = self.ingest.conn, self.ingest.mount_id
        conn.executemany(
            "INSERT INTO tally VALUES (?, ?, CAST(? AS TEXT), ?, ?, ?) ON CONFLICT DO UPDATE SET files "
            "= files + excluded.files, "
            "bytes = bytes + excluded.bytes, disk_bytes = disk_bytes + excluded.disk_bytes",
            [
                (mount_id, kinds.DIMENSIONS[dimension], key, *cell)
                for (dimension, key), cell in self.tally.items()
                if any(cell)
            ],
        )
        if any(cell[0] < 0 for cell in self.tally.values()):
            conn.execute("DELETE FROM tally WHERE mount_id = ? AND files = 0", (mount_id,))

    def _keep_largest(self, files: list[tuple[int, int, bytes]]) -> None:
        """Keep what is among the largest files: size, directory, name.

        None is taken that is smaller than the smallest there was when the list was full: others between the
        two may not be known, and `refill_largest` finds them when too many of the list are gone.
        """
        i, conn, mount_id = self.ingest, self.ingest.conn, self.ingest.mount_id
        if i.least is None:
            have, least, files_there = conn.execute(
                f"SELECT count(*), min(size), {_NOT_EMPTY} FROM largest WHERE mount_id = ?1", (mount_id,)
            ).fetchone()
            i.least = 0 if have >= files_there else least or 1 << 63
        better = [(mount_id, *f) for f in files if f[0] > i.least]
        if not better:
            return
        conn.executemany("INSERT OR IGNORE INTO largest VALUES (?, ?, ?, CAST(? AS TEXT))", better)
        row = conn.execute(
            "SELECT size FROM largest WHERE mount_id = ? ORDER BY size DESC LIMIT 1 OFFSET ?",
            (mount_id, LARGEST - 1),
        ).fetchone()
        if row:
            i.least = max(i.least, row[0])
            conn.execute("DELETE FROM largest WHERE mount_id = ? AND size < ?", (mount_id, i.least))


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
        "INSERT INTO largest SELECT ?1, e.size, e.dir_id, e.name FROM entry AS e JOIN dir ON dir.id = "
        "e.dir_id "
        "JOIN attr AS a ON a.id = e.attr_id WHERE dir.mount_id = ?1 AND a.type = 'f' AND e.size > 0 "
        "AND e.counted IS NOT 0 ORDER BY e.size DESC LIMIT ?2",
        (mount_id, LARGEST),
    )
