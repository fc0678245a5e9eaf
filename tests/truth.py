"""What a catalogue holds of a mount, whether it agrees with itself, and with what find(1) says.

Touches: a catalogue, for reading, by plain SQL. Nothing here shares code with the program.

    held = holdings(db, "Media")
    check_consistent(held)
    assert held.listed() == expected(find_listing(share))
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trees import Listed

NS = 10**9
LARGEST_SURE = 100  # so many of the largest files are always right
SIZE_CLASSES = ((1, "0"), (4096, "1-4K"), (65536, "4K-64K"), (2**20, "64K-1M"), (2**24, "1M-16M"),
                (2**28, "16M-256M"), (2**32, "256M-4G"))  # fmt: skip
FAILED = ("denied", "timed out", "I/O error")


class Entry(NamedTuple):
    """One row of `entry`, with what it points to."""

    type: str
    size: int | None
    blocks: int | None
    mtime_ns: int | None
    ctime_ns: int | None
    ino: int | None
    nlink: int | None
    mode: int | None
    uid: int | None
    gid: int | None
    target: bytes
    dev: int  # of the directory it lies in
    counted: int | None

    def as_found(self) -> tuple[Any, ...]:
        """Without the device of its directory, and whether it is counted, which only the catalogue knows."""
        return self[:-2]


class Folder(NamedTuple):
    """One row of `dir`."""

    id: int
    state: str
    reason: str | None
    scan_id: int | None
    dev: int | None
    own_entries: int
    own_dirs: int
    own_blocks: int
    files: int
    entries: int
    bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Holdings:
    """All that a catalogue holds of one mount; paths are relative to it, b"" is the mount."""

    path: bytes
    entries: dict[bytes, Entry]
    dirs: dict[bytes, Folder]
    tally: dict[tuple[str, bytes], tuple[int, int, int]]
    largest: list[tuple[int, bytes]]
    files: list[tuple[Any, ...]]  # of the view
    scans: list[dict[str, Any]]
    problems: dict[tuple[bytes, str], tuple[int, float | None]]  # (path, op): errno, cleared_at
    chunk_states: Counter[str]
    faults: list[str]  # what must never be in any catalogue

    def listed(self) -> dict[bytes, tuple[Any, ...]]:
        return {path: entry.as_found() for path, entry in self.entries.items()}

    def states(self) -> dict[bytes, str]:
        return {path: folder.state for path, folder in self.dirs.items()}

    def sums(self) -> tuple[int, int, int, int]:
        """Files, entries, bytes and disk bytes of the whole mount."""
        top = self.dirs[b""]
        return top.files, top.entries, top.bytes, top.disk_bytes

    def new_changed_gone(self) -> tuple[int | None, int | None, int | None]:
        last = self.scans[-1]
        return last["entries_new"], last["entries_changed"], last["entries_gone"]


def holdings(db: Path, name: str) -> Holdings:
    """Read everything. Cost: some microseconds per row."""
    with closing(sqlite3.connect(db.as_uri() + "?mode=ro", uri=True)) as conn:
        conn.text_factory = bytes
        conn.execute("BEGIN")
        row = conn.execute("SELECT id, path FROM mount WHERE name = ?", (name,)).fetchone()
        assert row, f"no mount {name}"
        mount_id, path = row
        dirs, by_id, orphans = _dirs(conn, mount_id)
        entries = _entries(conn, mount_id, by_id)
        return Holdings(
            path=path,
            entries=entries,
            dirs=dirs,
            tally={
                (d.decode(), key): tuple(rest)
                for d, key, *rest in conn.execute(
                    "SELECT dimension, key, files, bytes, disk_bytes FROM tally WHERE mount_id = ?",
                    (mount_id,),
                )
            },
            largest=[
                (size, _join(by_id[dir_id], name))
                for size, dir_id, name in conn.execute(
                    "SELECT size, dir_id, name FROM largest WHERE mount_id = ? ORDER BY size DESC",
                    (mount_id,),
                )
            ],
            files=conn.execute(
                "SELECT path, size, mtime, extension, mount_point, file_type, checksum, name, scan_time "
                "FROM files WHERE mount_point = ?",
                (name,),
            ).fetchall(),
            scans=_scans(conn, mount_id),
            problems={
                (p, op.decode()): (err, cleared)
                for p, op, err, cleared in conn.execute(
                    "SELECT path, op, errno, cleared_at FROM problem WHERE mount_id = ?", (mount_id,)
                )
            },
            chunk_states=Counter(
                state.decode()
                for (state,) in conn.execute(
                    "SELECT chunk.state FROM chunk JOIN scan ON scan.id = scan_id WHERE mount_id = ?",
                    (mount_id,),
                )
            ),
            faults=orphans + _faults(conn, mount_id),
        )


def _dirs(
    conn: sqlite3.Connection, mount_id: int
) -> tuple[dict[bytes, Folder], dict[int, bytes], list[str]]:
    rows = conn.execute(
        "SELECT id, parent_id, name, state, reason, scan_id, dev, own_entries, own_dirs, own_blocks, files, "
        "entries, bytes, disk_bytes FROM dir WHERE mount_id = ?",
        (mount_id,),
    ).fetchall()
    below: dict[int | None, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows:
        below[row[1]].append(row)
    dirs, by_id = {}, {}
    stack = [(row, b"") for row in below[None]]
    while stack:
        (dir_id, _, _, state, reason, *rest), path = stack.pop()
        assert path not in dirs, f"{path!r} twice"
        dirs[path] = Folder(dir_id, state.decode(), reason and reason.decode(), *rest)
        by_id[dir_id] = path
        stack += [(row, _join(path, row[2])) for row in below[dir_id]]
    lost = [f"dir {row[0]} hangs in the air" for row in rows if row[0] not in by_id]
    return dirs, by_id, lost


def _entries(conn: sqlite3.Connection, mount_id: int, by_id: Mapping[int, bytes]) -> dict[bytes, Entry]:
    sql = (
        "SELECT e.dir_id, e.name, a.type, e.size, e.blocks, e.mtime_ns, e.ctime_ns, e.ino, e.nlink, a.mode, "
        "a.uid, a.gid, ifnull(s.target, ''), dir.dev, e.counted FROM entry AS e JOIN dir "
        "ON dir.id = e.dir_id JOIN attr AS a ON a.id = e.attr_id LEFT JOIN symlink AS s "
        "ON s.dir_id = e.dir_id AND s.name = e.name WHERE dir.mount_id = ?"
    )
    found = {}
    for dir_id, name, kind, *rest, target, dev, counted in conn.execute(sql, (mount_id,)):
        found[_join(by_id[dir_id], name)] = Entry(kind.decode(), *rest, target, dev, counted)
    return found


def _scans(conn: sqlite3.Connection, mount_id: int) -> list[dict[str, Any]]:
    cursor = conn.execute("SELECT * FROM scan WHERE mount_id = ? ORDER BY id", (mount_id,))
    names = [column[0] for column in cursor.description]
    return [
        {k: v.decode() if isinstance(v, bytes) else v for k, v in zip(names, row, strict=True)}
        for row in cursor
    ]


def _faults(conn: sqlite3.Connection, mount_id: int) -> list[str]:
    """Look for what no history may leave behind."""
    found = [f"integrity_check: {r!r}" for (r,) in conn.execute("PRAGMA integrity_check") if r != b"ok"]
    found += [f"foreign_key_check: {row}" for row in conn.execute("PRAGMA foreign_key_check")]
    for what, sql in {
        "an entry in no directory": "entry WHERE dir_id NOT IN (SELECT id FROM dir)",
        "a target of no entry": "symlink AS s WHERE NOT EXISTS (SELECT 1 FROM entry AS e JOIN attr AS a "
        "ON a.id = e.attr_id WHERE e.dir_id = s.dir_id AND e.name = s.name AND a.type = 'l')",
        "largest is no entry": "largest AS l WHERE NOT EXISTS (SELECT 1 FROM entry AS e "
        "WHERE e.dir_id = l.dir_id AND e.name = l.name AND e.size = l.size)",
        "a tally below nothing": "tally WHERE files <= 0",
        "a chunk without a root": "chunk WHERE id NOT IN (SELECT chunk_id FROM root)",
    }.items():
        found += [f"{what}: {row}" for row in conn.execute(f"SELECT * FROM {sql} LIMIT 3")]
    state = conn.execute("SELECT state FROM scan WHERE mount_id = ? ORDER BY id DESC", (mount_id,)).fetchone()
    if state[0] in (b"complete", b"incomplete"):
        scans = "(SELECT id FROM scan WHERE mount_id = ?)"
        chunks = f"(SELECT id FROM chunk WHERE scan_id IN {scans})"
        for what, sql in {
            "a chunk is under way": f"chunk WHERE state IN ('pending', 'running') AND scan_id IN {scans}",
            "an attempt has no end": f"attempt WHERE outcome IS NULL AND chunk_id IN {chunks}",
            "somebody reads": f"reading WHERE chunk_id IN {chunks}",
            "a directory was found only": "dir WHERE state = 'found' AND mount_id = ?",
        }.items():
            rows = conn.execute(f"SELECT * FROM {sql} LIMIT 3", (mount_id,))
            found += [f"{what}: {row}" for row in rows]
    return found


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


# Whether it agrees with itself


def check_consistent(held: Holdings, *, stale: bool = False) -> None:
    """Compute every total anew from the rows, hard links counted where the catalogue says, and compare.

    `stale` allows rows of directories that could not be read this time.
    """
    assert not held.faults, held.faults
    _check_links(held)
    _check_dirs(held, stale=stale)
    _check_tally(held)
    _check_largest(held)
    _check_files(held)
    last = held.scans[-1]
    if last["state"] in ("complete", "incomplete"):
        assert set(held.chunk_states) <= {"done", "quarantined"}


def _check_links(held: Holdings) -> None:
    names: dict[tuple[int, int | None], list[int | None]] = defaultdict(list)
    for path, entry in held.entries.items():
        if entry.nlink is not None and entry.nlink > 1 and entry.type != "d":
            assert entry.counted in (0, 1), path
            names[entry.dev, entry.ino].append(entry.counted)
        else:
            assert entry.counted is None, path
    wrong = {key: counted for key, counted in names.items() if sum(c or 0 for c in counted) != 1}
    assert not wrong, "files with several names that are not counted once"


def _check_dirs(held: Holdings, *, stale: bool) -> None:
    sums: dict[bytes, list[int]] = {path: [0, 0, 0, 0] for path in held.dirs}
    own: Counter[bytes] = Counter()
    own_dirs: Counter[bytes] = Counter()
    for path, entry in held.entries.items():
        above = _parent(path)
        own[above] += 1
        own_dirs[above] += entry.type == "d"
        total = sums[above]
        total[1] += 1
        if entry.type != "d" and entry.counted != 0:
            total[0] += entry.type == "f"
            total[2] += entry.size or 0
            total[3] += 512 * (entry.blocks or 0)
        if entry.type == "d" and held.scans[-1]["state"] == "complete":
            assert path in held.dirs, f"{path!r} is a directory without a row"
    for path, folder in held.dirs.items():
        sums[path][3] += 512 * folder.own_blocks
        if path and not stale:
            entry = held.entries.get(path)
            assert entry is not None and entry.type == "d", f"{path!r} ({folder.state}) lies in no directory"
    for path in sorted(sums, key=lambda p: -(p.count(b"/") + bool(p))):
        if path:
            above_sum = sums[_parent(path)]
            for i, value in enumerate(sums[path]):
                above_sum[i] += value
    wrong = {
        path: (held.dirs[path], tuple(total))
        for path, total in sums.items()
        if held.dirs[path][-4:] != tuple(map(as_sqlite, total))
    }
    assert not wrong, f"totals of {len(wrong)} directories, such as {dict(list(wrong.items())[:2])}"
    for path, folder in held.dirs.items():
        if folder.state == "listed":
            assert (folder.own_entries, folder.own_dirs) == (own[path], own_dirs[path]), path


def _check_tally(held: Holdings) -> None:
    cells: dict[tuple[str, bytes], list[int]] = defaultdict(lambda: [0, 0, 0])
    for path, entry in held.entries.items():
        if entry.type != "f" or entry.counted == 0 or entry.size is None:
            continue
        name = path.rpartition(b"/")[2]
        for key in (
            ("extension", extension(name)),
            ("owner", str(entry.uid).encode()),
            ("month", _month(entry.mtime_ns or 0)),
            ("size", _size_class(entry.size)),
        ):
            cell = cells[key]
            cell[0] += 1
            cell[1] += entry.size
            cell[2] += 512 * (entry.blocks or 0)
    assert held.tally == {key: tuple(map(as_sqlite, cell)) for key, cell in cells.items()}


def extension(name: bytes) -> bytes:
    """The short ending that a kind of file has, by the rules of docs/catalogue.md."""
    ending = _ending(name)
    plain = all(byte >= 128 or chr(byte).isalnum() or byte in b"_-" for byte in ending)
    return ending if len(ending) <= 16 and plain else b""


def _ending(name: bytes) -> bytes:
    stem, dot, ending = name.lstrip(b".").rpartition(b".")
    return ending.lower() if dot and stem else b""


def _month(mtime_ns: int) -> bytes:
    when = time.gmtime(mtime_ns // NS)
    return f"{when.tm_year:04}-{when.tm_mon:02}".encode()


def as_sqlite(n: int) -> int:
    """Give a sum as it is kept, modulo 2^64."""
    return (n + 2**63) % 2**64 - 2**63


def _size_class(size: int) -> bytes:
    return next((name for limit, name in SIZE_CLASSES if size < limit), "4G+").encode()


def _check_largest(held: Holdings) -> None:
    every = sorted(
        (e.size for e in held.entries.values() if e.type == "f" and e.counted != 0 and e.size), reverse=True
    )
    kept = [size for size, _ in held.largest]
    assert len(set(held.largest)) == len(kept)
    for _, path in held.largest:
        assert held.entries[path].counted != 0, f"{path!r} is counted by another name"
    if held.scans[-1]["state"] in ("complete", "incomplete"):
        assert kept[:LARGEST_SURE] == every[:LARGEST_SURE]
    assert kept == every[: len(kept)] or held.scans[-1]["state"] in ("running", "cancelled")


def _check_files(held: Holdings) -> None:
    top = b"" if held.path == b"/" else held.path
    expected_rows = sorted(
        (
            top + b"/" + path,
            entry.size,
            None if entry.mtime_ns is None else entry.mtime_ns // NS,
            _ending(path.rpartition(b"/")[2]),
        )
        for path, entry in held.entries.items()
        if entry.type == "f"
    )
    assert sorted(row[:4] for row in held.files) == expected_rows
    assert {row[5:7] for row in held.files} <= {(b"file", None)}
    assert all(row[0].endswith(b"/" + row[7]) for row in held.files)


# What find(1) says


def expected(
    listing: Mapping[bytes, Listed], *, without: Iterable[bytes] = ()
) -> dict[bytes, tuple[Any, ...]]:
    """Give what the catalogue must hold of what find(1) listed; `without` are directories not entered."""
    closed = tuple(path + b"/" for path in without)
    return {
        path: _held_at_the_ends(seen)[:-1]
        for path, seen in listing.items()
        if path and not path.startswith(closed or (b"/",))
    }


def _held_at_the_ends(seen: Listed) -> Listed:
    """Times outside 64 bits of nanoseconds, and inodes above 2^63, as the catalogue keeps them."""
    low, high = -(2**63), 2**63 - 1
    return seen._replace(
        mtime_ns=min(max(seen.mtime_ns, low), high),
        ctime_ns=min(max(seen.ctime_ns, low), high),
        ino=seen.ino - 2**64 if seen.ino >> 63 else seen.ino,
    )


def device(seen: Listed) -> int:
    """The device of a directory as the catalogue keeps it, from st_dev."""
    return os.major(seen.dev) << 32 | os.minor(seen.dev)


def check_same_tree(
    held: Holdings, listing: Mapping[bytes, Listed], *, without: Iterable[bytes] = ()
) -> None:
    """Compare entry by entry with find(1), and the blocks and devices of directories."""
    wanted, have = expected(listing, without=without), held.listed()
    missing, extra = wanted.keys() - have.keys(), have.keys() - wanted.keys()
    assert not missing, f"{len(missing)} entries are missing: {sorted(missing)[:5]}"
    assert not extra, f"{len(extra)} entries are not there: {sorted(extra)[:5]}"
    wrong = {path: (wanted[path], have[path]) for path in wanted if wanted[path] != have[path]}
    assert not wrong, f"{len(wrong)} entries differ: {dict(list(wrong.items())[:3])}"
    for path, folder in held.dirs.items():
        if folder.state == "listed":
            assert (folder.own_blocks, folder.dev) == (listing[path].blocks, device(listing[path])), path


def du(path: Path, *options: str) -> int:
    """Ask du(1) for the disk bytes of a tree."""
    import subprocess

    done = subprocess.run(
        ["du", "-s", "--block-size=1", *options, "--", path], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[0])


def differences(one: Holdings, other: Holdings) -> list[str]:
    """Say in what two catalogues of one tree differ, but for ids, times, and which name of a file counts."""
    found = []
    for path in one.entries.keys() | other.entries.keys():
        a, b = one.entries.get(path), other.entries.get(path)
        if a is None or b is None or a.as_found() != b.as_found():
            found.append(f"{path!r}: {a} is not {b}")
    for path in one.dirs.keys() | other.dirs.keys():
        c, d = one.dirs.get(path), other.dirs.get(path)
        if c is None or d is None or (c[1:3], c[4:8], c.entries) != (d[1:3], d[4:8], d.entries):
            found.append(f"directory {path!r}: {c} is not {d}")
    if one.sums() != other.sums():
        found.append(f"totals {one.sums()} are not {other.sums()}")
    for dimension in ("owner", "size", "month"):  # which name is counted changes extensions only
        a_cells, b_cells = (
            {k: v for k, v in side.tally.items() if k[0] == dimension} for side in (one, other)
        )
        if a_cells != b_cells:
            found.append(f"{dimension}: {a_cells} is not {b_cells}")
    return found


