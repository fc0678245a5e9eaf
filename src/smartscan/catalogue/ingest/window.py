"""One window of a shard on its way into the tables.

Touches: the catalogue, in the caller's transaction.
"""

from __future__ import annotations

import array
import os
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smartscan.catalogue import tree
from smartscan.catalogue.bulk import UNKNOWN_MODE
from smartscan.catalogue.ingest.largest import LARGEST
from smartscan.catalogue.ingest.state import LEFT_OUT, STATES, Counts, Dir, Large
from smartscan.catalogue.ingest.totals import Sum, Totals
from smartscan.catalogue.problems import note_problem
from smartscan.codec import codec
from smartscan.errors import MountError
from smartscan.model import UNREAD, DirState, Op, WalkError, join
from smartscan.numbers import signed
from smartscan.shard import BIG, KIND_ERROR, LAST, UNCHANGED, Record, Window

if TYPE_CHECKING:
    from smartscan.catalogue.ingest.writer import Ingest

_ROW = "CAST(e.name AS BLOB), a.type, e.size, e.blocks, e.mtime_ns, a.uid, e.ino, e.counted"
# Of a directory that is replaced: names that came no more, and those that came again and are not as before.
_GONE = (
    "INSERT INTO temp.goes SELECT e.name FROM entry AS e WHERE e.dir_id = ?1 AND NOT EXISTS "
    "(SELECT 1 FROM temp.incoming AS n WHERE n.dir_id = e.dir_id AND n.name = e.name)"
)
_CAME_AGAIN = (
    "INSERT INTO temp.goes SELECT n.name FROM temp.incoming AS n "
    "JOIN entry AS e ON e.dir_id = n.dir_id AND e.name = n.name WHERE n.dir_id = ?1"
)
# Without the inode number, which some file systems invent anew whenever the kernel has forgotten it.
_OF_NEW = "(n.attr_id, n.size, n.blocks, n.mtime_ns, n.ctime_ns, n.nlink)"
_OF_OLD = "(e.attr_id, e.size, e.blocks, e.mtime_ns, e.ctime_ns, e.nlink)"
# What stays as it is. Not names of files that have several, which of them counts is found anew, nor symbolic
# links, whose targets may not have been readable before.
_DROP_SAME = (
    "DELETE FROM temp.incoming AS n WHERE n.dir_id = ?1 AND n.counted IS NULL AND EXISTS "
    "(SELECT 1 FROM entry AS e JOIN attr AS a ON a.id = e.attr_id "
    "WHERE e.dir_id = n.dir_id AND e.name = n.name AND a.type <> 'l' AND e.counted IS NULL AND "
    f"{_OF_NEW} IS {_OF_OLD})"
)
_GOES = "e.dir_id = ?1 AND e.name IN (SELECT name FROM temp.goes)"
_DELETE_REPLACED = ("DELETE FROM entry AS e WHERE " + _GOES, "DELETE FROM symlink AS e WHERE " + _GOES)
_DELETE_LARGEST = "DELETE FROM largest AS e WHERE e.mount_id = ?2 AND " + _GOES
_ROWS = "SELECT " + _ROW + " FROM entry AS e JOIN attr AS a ON a.id = e.attr_id WHERE e.dir_id = ?1"
_ROWS_THAT_GO = "SELECT " + _ROW + " FROM entry AS e JOIN attr AS a ON a.id = e.attr_id WHERE " + _GOES
_INCOMING_ROWS = (
    "SELECT " + _ROW + " FROM temp.incoming AS e JOIN attr AS a ON a.id = e.attr_id WHERE e.dir_id = ?"
)
_OTHER_NAME = (
    "SELECT e.dir_id, " + _ROW + " FROM entry AS e "
    "JOIN dir ON dir.id = e.dir_id JOIN attr AS a ON a.id = e.attr_id "
    "WHERE e.counted = 0 AND e.ino = ? AND dir.mount_id = ? AND dir.dev IS ? LIMIT 1"
)
_LAST_UNCHANGED = LAST | UNCHANGED
# The digest covers the path: a number that is another directory's by now finds nothing.
_IS_AS_IT_WAS = (
    "UPDATE dir SET scan_id = ?1 WHERE id = ?2 AND mount_id = ?3 AND state = 'listed' "
    "AND digest = ?4 AND dev = ?5 AND own_blocks = ?6 AND scan_id IS NOT ?1"
)
_LISTED = STATES.index(DirState.LISTED)
_NOTHING = Sum()
_FOUND = (DirState.FOUND.value, None, None, None, None, 0, 0, 0)  # a row's state to own_blocks
# A directory that the listing of the one above it, read to the end, does not have.
NOT_LISTED = (
    "NOT EXISTS (SELECT 1 FROM entry AS e JOIN attr AS a ON a.id = e.attr_id "
    "WHERE e.dir_id = c.parent_id AND e.name = c.name AND a.type = 'd')"
)


@dataclass(slots=True)
class Intake:
    """One window of a shard on its way into the tables."""

    ingest: Ingest
    window: Window
    counts: Counts
    at: float
    problems: bool = True
    rows: dict[int, tuple[Any, ...]] = field(default_factory=dict)  # of new directories, by id
    # Directories that are simply new, nearly all in a first scan, and their places as `codec.carry` has them.
    new: list[Record] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    updates: list[tuple[Any, ...]] = field(default_factory=list)
    unchanged: list[tuple[int, int]] = field(default_factory=list)
    plain: list[tuple[Record, int]] = field(default_factory=list)  # entries that are simply added to that id
    incoming: list[tuple[Record, Dir]] = field(default_factory=list)  # entries that replace others
    replace: list[tuple[Dir, bool]] = field(default_factory=list)  # bool: it was read to the end
    freed: set[tuple[int | None, int]] = field(default_factory=set)  # files whose counted name went
    next_id: int = 0
    totals: Totals = field(init=False)

    def __post_init__(self) -> None:
        self.totals = Totals(self.ingest.conn, self.ingest.mount_id)

    def take(self) -> None:
        """Write the window; within a transaction."""
        i = self.ingest
        cache = i.cache
        (self.next_id,) = i.conn.execute("SELECT ifnull(max(id), 0) + 1 FROM dir").fetchone()
        failed: list[WalkError] = []
        records, at = self._without_known(), 0
        simply_new = self.new, self.places, self.plain
        while at < len(records):
            r = records[at]
            if r.kind != KIND_ERROR and r.path not in cache:  # nearly all in a first scan
                at, self.next_id = codec.place(
                    records, at, self.next_id, i.sizes_only, cache, i.placed, *simply_new
                )
                if at == len(records):
                    break
                r = records[at]
            at += 1
            if r.kind == KIND_ERROR:
                failed.append(WalkError(r.path, Op(r.op), r.err, r.waited_ns / 1e9))
                continue
            d = cache.get(r.path) or i.find(r.path) or self._make(r.path)
            if d.scan_id == i.scan_id and d.state != DirState.FOUND:
                continue  # decided in this scan already: what comes twice changes nothing
            if self._is_unchanged(r, d):
                continue
            self._entries(r, d)
            if r.flags & LAST:
                state = STATES[r.state]
                if not r.path and state == DirState.LISTED and not r.n and not r.flags & BIG:
                    raise MountError(
                        f"{i.share} is empty; is the share mounted? Nothing was changed in the catalogue"
                    )
                if state in UNREAD:
                    failed.append(WalkError(r.path, Op(r.op), r.err, r.waited_ns / 1e9))
                self._decide(r, d, state)
        self._insert()
        if self.replace:
            self._write_rows()  # what is replaced looks for other names of its files in all directories
        for d, whole in self.replace:
            self._replace(d, whole)
        self.settle()
        gone = False
        for d, whole in self.replace:  # only now that all sums of this window are written
            if whole:
                gone |= self._remove_gone(d)
        if gone:
            self.settle()
        if self.problems:
            for error in failed:
                note_problem(i.conn, i.mount_id, i.scan_id, error, self.at)

    def settle(self) -> None:
        """Write what was summed up so far."""
        self._promote()
        self._write_rows()
        self.totals.write_tally()
        self.freed.clear()
        self.totals.clear()

    def _dir(self, path: bytes) -> Dir:
        """Give a directory that is known to be there."""
        d = self.ingest.find(path)
        assert d is not None
        return d

    # -- records --------------------------------------------------------------------------------------

    def _without_known(self) -> list[Record]:
        """Note which directories a worker has recognised as unchanged, nearly all of a later scan; gives the
        records that are still to be taken in.

        Nothing of them is looked up or remembered. One that is not as the worker was told, or was decided
        before in this scan, goes the way of the others.
        """
        i, c, cache = self.ingest, self.counts, self.ingest.cache
        if not i.rescan:
            return self.window.records
        others: list[Record] = []
        update, scan_id, mount_id = i.conn.cursor().execute, i.scan_id, i.mount_id
        for r in self.window.records:
            (_, _, path, flags, state, err, _, n, _, digest, dev, own_blocks,
             _, size, blocks, _, _, _, _, text, _, known_id) = r  # fmt: skip
            if (
                known_id
                and flags == _LAST_UNCHANGED
                and state == _LISTED
                and not (err or text)
                and path not in cache
                and update(_IS_AS_IT_WAS, (scan_id, known_id, mount_id, digest, dev, own_blocks)).rowcount
            ):
                c.entries += n
                c.bytes += size
                c.disk_bytes += (blocks + own_blocks) * 512
                c.dirs += 1
            else:
                others.append(r)
        return others

    def _is_unchanged(self, r: Record, d: Dir) -> bool:
        """Take a directory that is as it was, of which the worker was not told in time. False where it is not
        such: `_entries` and `_decide` take all others.
        """
        (_, _, _, flags, state, err, _, n, _, digest, dev, own_blocks,
         _, size, blocks, _, _, _, _, text, _, _) = r  # fmt: skip
        if flags & ~UNCHANGED != LAST or state != _LISTED or d.state != "listed" or err or text:
            return False
        if not d.listed or (d.digest, d.dev, d.own_blocks) != (digest, dev, own_blocks):
            return False
        d.scan_id, d.listed, c = self.ingest.scan_id, True, self.counts
        self.unchanged.append((d.scan_id, d.id))
        c.entries += n
        c.bytes += size
        c.disk_bytes += (blocks + own_blocks) * 512
        c.dirs += 1
        return True

    def _make(self, path: bytes) -> Dir:
        """Give a new directory its row, and its ancestors where they are missing."""
        i, above = self.ingest, None
        unknown = [path]
        while unknown[-1] and (up := unknown[-1].rpartition(b"/")[0]) not in i.cache:
            unknown.append(up)
        if unknown[-1]:
            above = i.cache[unknown[-1].rpartition(b"/")[0]]
        for path in reversed(unknown):
            d = i.find(path)
            if d is None:
                id_, name = self.next_id, path.rpartition(b"/")[2]
                self.rows[id_] = (id_, i.mount_id, above and above.id, name, *_FOUND)
                d = i.cache[path] = Dir(id_, path, above, DirState.FOUND, below_known=True)
                self.next_id += 1
            above = d
        assert above is not None
        return above

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
                self._set_dev(d, r.dev)  # its next blocks look for names of their files in this one
        sums_only = r.flags & UNCHANGED and self.ingest.sizes_only and not d.listed
        if r.flags & UNCHANGED and not sums_only:
            return
        same = whole and d.listed and d.digest == r.dir_digest
        if not d.listed:
            if r.n:
                if not sums_only:
                    self.plain.append((r, d.id))
                self.totals.of(d).add(r.files, r.n, r.bytes, r.blocks * 512)
                if self.ingest.rescan:
                    c.new += r.n
        elif r.flags & BIG and not r.flags & LAST:
            self.incoming.append((r, d))
        elif same:
            self._drop_incoming(d)
        elif whole or r.n or r.flags & BIG or STATES[r.state] in LEFT_OUT:
            if r.n:
                self.incoming.append((r, d))
            self.replace.append((d, whole or STATES[r.state] in LEFT_OUT))

    def _set_dev(self, d: Dir, dev: int) -> None:
        d.dev = dev
        row = self.rows.get(d.id)
        if row is not None:
            self.rows[d.id] = (*row[:7], dev, *row[8:])
        else:
            self.ingest.conn.execute("UPDATE dir SET dev = ? WHERE id = ?", (dev, d.id))

    def _decide(self, r: Record, d: Dir, state: DirState) -> None:
        """Note in which state a directory ended."""
        large = self.ingest.larges.pop(d.id, None) if r.flags & BIG else None
        reason = r.text.decode("utf-8", "replace") or (os.strerror(r.err) if r.err else None)
        scan_id = self.ingest.scan_id
        listed = state == DirState.LISTED
        digest = r.dir_digest if listed else None
        n, dirs = (large.entries, large.dirs) if large else (r.n, r.subdirs)
        own_blocks = r.own_blocks if r.own_blocks or listed else d.own_blocks
        row = self.rows.get(d.id)
        if listed and (d.state, d.digest, d.dev, d.own_blocks) == (state, digest, r.dev, own_blocks):
            self.unchanged.append((scan_id, d.id))
        elif row is not None:
            row = (*row[:4], state.value, reason, scan_id, r.dev, digest, n, dirs, own_blocks)
            self.rows[d.id] = row
        elif listed or r.n or state in LEFT_OUT:
            self.updates.append((state.value, reason, scan_id, r.dev, digest, n, dirs, own_blocks, d.id))
        else:  # not read this time: what is known of its inside stays
            self.updates.append(
                (
                    state.value,
                    reason,
                    scan_id,
                    d.dev if d.dev is not None else r.dev,
                    d.digest,
                    None,
                    0,
                    own_blocks,
                    d.id,
                )
            )
            digest = d.digest
        if own_blocks != d.own_blocks:
            self.totals.of(d).add(0, 0, 0, (own_blocks - d.own_blocks) * 512)
        d.state, d.scan_id, d.digest, d.dev, d.own_blocks = state, scan_id, digest, r.dev, own_blocks
        d.listed = state not in LEFT_OUT and (d.listed or listed or n > 0)
        self.counts.dirs += 1
        self.counts.disk_bytes += own_blocks * 512

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
        at = [r.offset for r, _ in self.plain]
        offsets = array.array("Q", at).tobytes()
        ids = array.array("q", [id_ for _, id_ in self.plain]).tobytes()
        # Which of a file's names counts is found before they have rows; where none has several, both at once.
        at_once = not i.sizes_only and not any(r.links for r, _ in self.plain)
        with ThreadPoolExecutor(1) as beside:
            measured = beside.submit(codec.measure, self.window.buffer, offsets, LARGEST)
            if at_once:
                i.bulk.insert("entry", "symlink", self.window.buffer, offsets, ids, attrs)
        tally, largest, links = measured.result()
        for dimension, key, files, size, blocks in tally:
            self.totals.tally(dimension, key, files, size, blocks)
        doubles: list[tuple[int, bytes]] = []
        seen: set[tuple[int, int]] = set()
        for k, name, ino, size, blocks, mtime_ns, mode, uid in links:
            r, id_ = self.plain[k]
            key = (r.dev, ino)
            if key in seen or self._is_counted(key):
                doubles.append((id_, name))
                self._uncount(r.path, name, mode & 0o170000 == 0o100000, size, blocks, mtime_ns, uid)
            seen.add(key)
        if i.sizes_only:
            self._insert_few(links, attrs)
        elif not at_once:
            i.bulk.insert("entry", "symlink", self.window.buffer, offsets, ids, attrs)
        if doubles:
            i.conn.executemany(
                "UPDATE entry SET counted = 0 WHERE dir_id = ? AND name = CAST(? AS TEXT)", doubles
            )
        if largest:
            files = [
                (signed(size), self.plain[bisect_left(at, offset)][1], name)
                for size, offset, name in largest
            ]
            others = set(doubles)
            once = [f for f in files if f[1:] not in others]
            cut = len(files) == LARGEST and len(once) < LARGEST  # others took the place of smaller ones
            self.ingest.largest.keep(once, known_above=min(f[0] for f in files) if cut else 0)

    def _insert_few(self, links: list[tuple[Any, ...]], attrs: bytes) -> None:
        """Insert the names of files that have several, and all entries of directories that may be listed once
        more, or of which the stat of a name did not answer.
        """
        whole = self.plain
        if not any(mode & UNKNOWN_MODE for mode, _, _ in self.window.attrs):
            whole = [(r, id_) for r, id_ in whole if r.flags != LAST or r.state != _LISTED]
        offsets = array.array("Q", [r.offset for r, _ in whole]).tobytes()
        ids = array.array("q", [id_ for _, id_ in whole]).tobytes()
        self.ingest.bulk.insert("entry", "symlink", self.window.buffer, offsets, ids, attrs)
        self.ingest.conn.executemany(
            "INSERT OR IGNORE INTO entry (dir_id, name, attr_id, ino, counted) "
            "VALUES (?, CAST(? AS TEXT), 0, ?, 1)",
            [(self.plain[k][1], name, ino) for k, name, ino, *_ in links],
        )

    def _uncount(
        self, path: bytes, name: bytes, is_file: bool, size: int, blocks: int, mtime_ns: int, uid: int
    ) -> None:
        """Take one of several names of a file out of the totals; it stays an entry of directory `path`."""
        self.totals.of(self._dir(path)).add(-is_file, 0, -size, -blocks * 512)
        if is_file:
            self.totals.tally_file(-1, name, size, blocks, mtime_ns, uid)

    def _is_counted(self, key: tuple[int | None, int]) -> bool:
        return (
            self.ingest.conn.execute(
                "SELECT 1 FROM entry JOIN dir ON dir.id = entry.dir_id "
                "WHERE entry.counted = 1 AND entry.ino = ? AND dir.mount_id = ? AND dir.dev = ? LIMIT 1",
                (key[1], self.ingest.mount_id, key[0]),
            ).fetchone()
            is not None
        )

    def _drop_incoming(self, d: Dir) -> None:
        self.ingest.conn.execute("DELETE FROM temp.incoming WHERE dir_id = ?", (d.id,))
        self.ingest.conn.execute("DELETE FROM temp.incoming_link WHERE dir_id = ?", (d.id,))

    def _replace(self, d: Dir, whole: bool) -> None:
        """Let what came in for a directory take the place of what was there.

        Cost: a look at each of its entries within SQLite, and here at those that are new, changed or gone.
        """
        conn, one = self.ingest.conn, (d.id,)
        conn.execute("DELETE FROM temp.goes")
        if whole:
            self.counts.gone += conn.execute(_GONE, one).rowcount
        conn.execute(_DROP_SAME, one)
        both = (
            "FROM temp.incoming AS n {} JOIN entry AS e ON e.dir_id = n.dir_id AND e.name = n.name "
            "WHERE n.dir_id = ?"
        )
        (changed,) = conn.execute(
            "SELECT count(*) "
            + both.format("")
            + f" AND {_OF_NEW} IS NOT {_OF_OLD}",
            one,
        ).fetchone()
        (new,) = conn.execute(
            "SELECT count(*) " + both.format("LEFT") + " AND e.name IS NULL", one
        ).fetchone()
        self.counts.changed += changed
        self.counts.new += new
        conn.execute(_CAME_AGAIN, one)
        self._subtract(d, d.id, d.dev, _ROWS_THAT_GO)
        for statement in _DELETE_REPLACED:
            conn.execute(statement, one)
        conn.execute(_DELETE_LARGEST, (d.id, self.ingest.mount_id))
        largest: list[tuple[int, int, bytes]] = []
        doubles: list[tuple[int, bytes]] = []
        seen: set[int] = set()
        total = self.totals.of(d)
        for name, kind, size, blocks, mtime_ns, uid, ino, counted in conn.execute(_INCOMING_ROWS, one):
            is_file = kind == "f"
            total.entries += 1
            if size is None or kind == "d":
                total.files += is_file  # one whose stat did not answer
                continue
            if counted is not None:
                if ino in seen or self._is_counted((d.dev, ino)):
                    doubles.append((d.id, name))
                    continue
                seen.add(ino)
            total.add(is_file, 0, size, blocks * 512)
            if is_file:
                self.totals.tally_file(1, name, size, blocks, mtime_ns, uid)
                largest.append((size, d.id, name))
                if len(largest) > 4 * LARGEST:
                    largest = sorted(largest, reverse=True)[:LARGEST]
        conn.execute("INSERT INTO entry SELECT * FROM temp.incoming WHERE dir_id = ?", one)
        conn.execute("INSERT INTO symlink SELECT * FROM temp.incoming_link WHERE dir_id = ?", one)
        conn.executemany("UPDATE entry SET counted = 0 WHERE dir_id = ? AND name = CAST(? AS TEXT)", doubles)
        self.ingest.largest.keep(largest)
        self._drop_incoming(d)

    def _remove_gone(self, d: Dir) -> bool:
        """Remove the directories that a new listing has no more; False where there were none."""
        rows = self.ingest.conn.execute(
            "SELECT c.id, CAST(c.name AS BLOB) FROM dir AS c WHERE c.mount_id = ? AND c.parent_id = ? AND "
            + NOT_LISTED,
            (self.ingest.mount_id, d.id),
        ).fetchall()
        for child_id, name in rows:
            self.remove_tree(d, child_id, name)
        return bool(rows)

    def _subtract(self, at: Dir, dir_id: int, dev: int | None, rows: str = _ROWS) -> None:
        """Take entries of a directory out of all totals, from that of `at` upwards."""
        total = self.totals.of(at)
        for name, kind, size, blocks, mtime_ns, uid, ino, counted in self.ingest.conn.execute(
            rows, (dir_id,)
        ):
            total.entries -= 1
            if size is None or kind == "d" or counted == 0:
                total.files -= size is None and kind == "f"
                continue
            if counted:
                self.freed.add((dev, ino))
            total.add(-(kind == "f"), 0, -size, -blocks * 512)
            if kind == "f":
                self.totals.tally_file(-1, name, size, blocks, mtime_ns, uid)

    def remove_tree(self, above: Dir, dir_id: int, name: bytes) -> None:
        """Remove a directory that its parent does not hold any more, with everything below it.

        Its own entry goes with its parent's. What is summed up of it must be written before. Nothing happens
        where it went with another. Cost: the rows of the subtree.
        """
        i, conn = self.ingest, self.ingest.conn
        total, top = self.totals.of(above), join(above.path, name)
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
            before = total.entries
            self._subtract(above, this, dev)  # the totals of what goes need no care, those above do
            self.counts.gone += before - total.entries
            total.disk_bytes -= own_blocks * 512
            conn.execute("DELETE FROM entry WHERE dir_id = ?", (this,))
            conn.execute("DELETE FROM symlink WHERE dir_id = ?", (this,))
            conn.execute("DELETE FROM largest WHERE dir_id = ?", (this,))
            conn.execute("DELETE FROM dir WHERE id = ?", (this,))
            i.cache.pop(path, None)
            i.placed.pop(path, None)

    def _promote(self) -> None:
        """Where the counted name of a file went, let another of its names count."""
        i = self.ingest
        for dev, ino in self.freed:
            if self._is_counted((dev, ino)):
                continue
            row = i.conn.execute(
                _OTHER_NAME,
                (ino, i.mount_id, dev),
            ).fetchone()
            if row is None:
                continue
            dir_id, name, kind, size, blocks, mtime_ns, uid, _, _ = row
            i.conn.execute(
                "UPDATE entry SET counted = 1 WHERE dir_id = ? AND name = CAST(? AS TEXT)", (dir_id, name)
            )
            self.totals.of(self._dir(tree.path_of(i.conn, dir_id))).add(kind == "f", 0, size, blocks * 512)
            if kind == "f":
                self.totals.tally_file(1, name, size, blocks, mtime_ns, uid)
                self.ingest.largest.keep([(size, dir_id, name)])

    # -- totals -----------------------------------------------------------------------------------------

    def _write_rows(self) -> None:
        """Carry every sum up to the mount, and write new and changed rows of directories."""
        i, conn = self.ingest, self.ingest.conn
        places, subtrees = self._sum_up_new()
        sums = self.totals.carried_up()
        rows = []
        for id_, row in self.rows.items():
            s = sums.pop(id_)[1] if id_ in sums else _NOTHING
            rows.append((*row, s.files, s.entries, signed(s.bytes), signed(s.disk_bytes)))
        conn.executemany(
            "INSERT INTO dir (id, mount_id, parent_id, name, state, reason, scan_id, dev, digest, "
            "own_entries, own_dirs, own_blocks, files, entries, bytes, disk_bytes) "
            "VALUES (?, ?, ?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        i.bulk.insert_dirs(self.window.buffer, places, subtrees, i.mount_id, i.scan_id)
        conn.executemany(
            "UPDATE dir SET state = ?, reason = ?, scan_id = ?, dev = ?, digest = ?, "
            "own_entries = ifnull(?, own_entries), own_dirs = ifnull(?, own_dirs), own_blocks = ? "
            "WHERE id = ?",
            self.updates,
        )
        conn.executemany("UPDATE dir SET scan_id = ? WHERE id = ?", self.unchanged)
        conn.executemany(
            "UPDATE dir SET files = files + ?, entries = entries + ?, bytes = plus(bytes, ?), "
            "disk_bytes = plus(disk_bytes, ?) WHERE id = ?",
            [
                (s.files, s.entries, signed(s.bytes), signed(s.disk_bytes), id_)
                for id_, (_, s) in sums.items()
                if s != _NOTHING
            ],
        )
        sums.clear()
        self.rows, self.updates, self.unchanged = {}, [], []
        self.new, self.places = [], []

    def _sum_up_new(self) -> tuple[bytes, bytes]:
        """Count the directories that are simply new; gives their places and the sums of their subtrees."""
        places, c = array.array("q", self.places).tobytes(), self.counts
        subtrees, outside, (entries, size, disk) = codec.carry(self.window.buffer, places)
        for k, *change in outside:
            self.totals.of(self._dir(self.new[k].path.rpartition(b"/")[0])).add(*change)
        c.entries += entries
        c.bytes += size
        c.disk_bytes += disk
        c.dirs += len(self.new)
        if self.ingest.rescan:
            c.new += entries
        return places, subtrees
