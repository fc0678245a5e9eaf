"""A catalogue as plain Python, to be compared with find(1) and with another catalogue."""

import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from trees import Listed

Catalogue = dict[bytes, Any]


def paths(db: sqlite3.Connection) -> dict[int, bytes]:
    """Give the path of every directory by its id."""
    rows = {i: (p, n) for i, p, n in db.execute("SELECT id, parent_id, CAST(name AS BLOB) FROM dir")}
    made: dict[int, bytes] = {}
    for dir_id in rows:
        chain, at = [], dir_id
        while at not in made and rows[at][0] is not None:
            chain.append(at)
            at = rows[at][0]
        path = made.setdefault(at, b"")
        for at in reversed(chain):
            path = path + b"/" + rows[at][1] if path else rows[at][1]
            made[at] = path
    return made


def listing(file: Path) -> dict[bytes, Listed]:
    """Give every entry as find_listing does; the device is that of its directory."""
    with closing(sqlite3.connect(file)) as db:
        folder = paths(db)
        targets = {
            (dir_id, name): target
            for dir_id, name, target in db.execute(
                "SELECT dir_id, CAST(name AS BLOB), CAST(target AS BLOB) FROM symlink"
            )
        }
        found = {}
        for dir_id, name, kind, size, blocks, mtime, ctime, ino, nlink, mode, uid, gid in db.execute(
            "SELECT dir_id, CAST(name AS BLOB), type, size, blocks, mtime_ns, ctime_ns, ino, nlink, mode, "
            "uid, gid FROM entry JOIN attr ON attr.id = attr_id"
        ):
            path = folder[dir_id] + b"/" + name if folder[dir_id] else name
            target = targets.get((dir_id, name), b"")
            ino = ino if ino is None else ino % 2**64
            found[path] = Listed(kind, size, blocks, mtime, ctime, ino, nlink, mode, uid, gid, target, 0)
        return found


def totals(file: Path) -> dict[bytes, tuple[int, ...]]:
    """Give files, entries, bytes and disk bytes of every directory's subtree."""
    with closing(sqlite3.connect(file)) as db:
        folder = paths(db)
        return {
            folder[row[0]]: row[1:]
            for row in db.execute(
                "SELECT id, files, entries, bytes, disk_bytes FROM dir WHERE state = 'listed'"
            )
        }


def tallies(file: Path) -> dict[tuple[str, bytes], tuple[int, ...]]:
    """Give files, bytes and disk bytes of every key."""
    with closing(sqlite3.connect(file)) as db:
        rows = db.execute("SELECT dimension, CAST(key AS BLOB), files, bytes, disk_bytes FROM tally")
        return {(dimension, key): tuple(rest) for dimension, key, *rest in rows}


def counted_once(entries: dict[bytes, Listed]) -> dict[str, tuple[int, int]]:
    """Sum up what a catalogue must have in all, from a listing: hard links once, by device and inode."""
    seen: set[tuple[int, int]] = set()
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for entry in entries.values():
        if entry.type != "d" and entry.nlink > 1:
            if (entry.dev, entry.ino) in seen:
                continue
            seen.add((entry.dev, entry.ino))
        sums[entry.type][0] += 1
        sums[entry.type][1] += entry.size
    return {kind: (n, size) for kind, (n, size) in sums.items()}


def check(file: Path) -> None:
    """Assert what must hold of every catalogue at rest."""
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute(
            "SELECT count(*) FROM entry WHERE dir_id NOT IN (SELECT id FROM dir)"
        ).fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM reading").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM chunk WHERE state = 'running'").fetchone() == (0,)
        own = "(SELECT count(*) FROM entry WHERE dir_id = dir.id)"
        wrong = f"SELECT count(*) FROM dir WHERE state = 'listed' AND own_entries <> {own}"
        assert db.execute(wrong).fetchone() == (0,)
