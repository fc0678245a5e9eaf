"""Catalogues for the tests of what reads them, made with plain SQL in the real schema.

A nested dict is a tree, as in `trees`: bytes to `File`, to a dict (a directory that was listed) or to
`Unread` (one that was not). All totals and tallies are counted here, apart from the program's own ingest.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from smartscan.catalogue.migrations import VERSION
from smartscan.catalogue.open import APPLICATION_ID

NOW = 1_764_000_000.0  # 2025-11-24 16:00:00 UTC
DAY = 86_400.0


@dataclass(frozen=True)
class File:
    """A regular file."""

    size: int
    age_days: float = 10
    uid: int = 0
    disk_bytes: int | None = None  # None: the size, in whole blocks of 4096


@dataclass(frozen=True)
class Unread:
    """A directory that was not listed; `inside` is what an earlier scan saw."""

    state: str
    reason: str | None = None
    inside: "Tree" = field(default_factory=dict)


Tree = Mapping[bytes, "File | Unread | Tree"]
_SIZES = ((1, "0"), (4096, "1-4K"), (1 << 16, "4K-64K"), (1 << 20, "64K-1M"), (1 << 24, "1M-16M"))
_SIZES += ((1 << 28, "16M-256M"), (1 << 32, "256M-4G"))


def empty(path: Path) -> sqlite3.Connection:
    """Make a catalogue that has all tables and no rows."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(resources.files("smartscan.catalogue").joinpath("schema.sql").read_text("utf-8"))
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute("PRAGMA journal_mode = WAL")
    return db


def insert(db: sqlite3.Connection, table: str, **values: Any) -> int:
    """Insert a row; bytes become TEXT that holds them, as the catalogue keeps paths. Gives the row's id."""
    marks = ", ".join("CAST(? AS TEXT)" if isinstance(value, bytes) else "?" for value in values.values())
    into = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})"
    return db.execute(into, tuple(values.values())).lastrowid or 0


def add_mount(db: sqlite3.Connection, name: str, path: bytes, **more: Any) -> int:
    values = {"fs_type": "ext4", "source": "/dev/sdb1", "created_at": NOW - 30 * DAY, **more}
    return insert(db, "mount", name=name, path=path, **values)


def add_scan(db: sqlite3.Connection, mount_id: int, state: str, started_at: float, **more: Any) -> int:
    controller = json.dumps({"pid": 4711, "host": "tower", "boot_id": "b", "db": "/data/smart_catalog.db"})
    values = {"engine": "local", "controller": controller, "options": "{}", **more}
    return insert(db, "scan", mount_id=mount_id, state=state, started_at=started_at, **values)


def add_chunk(db: sqlite3.Connection, scan_id: int, state: str, *roots: bytes, **more: Any) -> int:
    values = {"origin": "plan", "created_at": NOW - 3600, **more}
    chunk_id = insert(db, "chunk", scan_id=scan_id, state=state, **values)
    for root in roots:
        insert(db, "root", chunk_id=chunk_id, path=root, scope="subtree")
    return chunk_id


def add_attempt(db: sqlite3.Connection, chunk_id: int, number: int, started_at: float, **more: Any) -> None:
    values = {"worker_id": f"{5000 + chunk_id}", "progressed_at": started_at, **more}
    insert(db, "attempt", chunk_id=chunk_id, number=number, started_at=started_at, **values)


def add_event(db: sqlite3.Connection, scan_id: int, at: float, kind: str, detail: str, **more: Any) -> None:
    insert(db, "event", scan_id=scan_id, at=at, kind=kind, detail=detail, **more)


def add_problem(
    db: sqlite3.Connection, mount_id: int, scan_id: int, path: bytes, op: str, errno: int, **more: Any
) -> None:
    values = {"first_at": NOW - 3600, "last_at": NOW - 3000, **more}
    insert(db, "problem", mount_id=mount_id, scan_id=scan_id, path=path, op=op, errno=errno, **values)


def add_tree(db: sqlite3.Connection, mount_id: int, scan_id: int, tree: Tree) -> None:
    """Catalogue a tree as one scan saw it, with all totals."""
    tallies: dict[tuple[str, str], list[int]] = {}
    _add_dir(db, mount_id, scan_id, None, b"", tree, tallies)
    for (dimension, key), (files, size, disk) in tallies.items():
        sums = {"files": files, "bytes": size, "disk_bytes": disk}
        insert(db, "tally", mount_id=mount_id, dimension=dimension, key=key, **sums)


def _add_dir(
    db: sqlite3.Connection, mount_id: int, scan_id: int, parent_id: int | None, name: bytes,
    node: "Unread | Tree", tallies: dict[tuple[str, str], list[int]],
) -> tuple[int, int, int, int]:
    unread = node if isinstance(node, Unread) else None
    inside: Tree = unread.inside if unread else node  # type: ignore[assignment]
    dir_id = insert(
        db, "dir", mount_id=mount_id, parent_id=parent_id, name=name, scan_id=scan_id,
        state=unread.state if unread else "listed", reason=unread.reason if unread else None,
    )
    files, entries, size, disk = 0, len(inside), 0, 4096
    for child, what in sorted(inside.items()):
        if not isinstance(what, File):
            f, e, s, d = _add_dir(db, mount_id, scan_id, dir_id, child, what, tallies)
            files, entries, size, disk = files + f, entries + e, size + s, disk + d
            continue
        blocks = -(-(what.size if what.disk_bytes is None else what.disk_bytes) // 4096) * 8
        files, size, disk = files + 1, size + what.size, disk + blocks * 512
        _add_file(db, mount_id, dir_id, child, what, blocks, tallies)
    db.execute(
        "UPDATE dir SET own_entries = ?, files = ?, entries = ?, bytes = ?, disk_bytes = ? WHERE id = ?",
        (len(inside), files, entries, size, disk, dir_id),
    )
    return files, entries, size, disk


def _add_file(
    db: sqlite3.Connection, mount_id: int, dir_id: int, name: bytes, file: File, blocks: int,
    tallies: dict[tuple[str, str], list[int]],
) -> None:
    db.execute("INSERT OR IGNORE INTO attr (type, mode, uid, gid) VALUES ('f', 420, ?, 0)", (file.uid,))
    (attr_id,) = db.execute("SELECT id FROM attr WHERE type = 'f' AND uid = ?", (file.uid,)).fetchone()
    mtime = NOW - file.age_days * DAY
    insert(
        db, "entry", dir_id=dir_id, name=name, attr_id=attr_id, size=file.size, blocks=blocks,
        mtime_ns=int(mtime) * 10**9, ctime_ns=int(mtime) * 10**9, ino=1, nlink=1, counted=1,
    )
    insert(db, "largest", mount_id=mount_id, size=file.size, dir_id=dir_id, name=name)
    (month,) = db.execute("SELECT strftime('%Y-%m', ?, 'unixepoch')", (mtime,)).fetchone()
    stem, dot, extension = name.decode("utf-8", "replace").lower().rpartition(".")
    keys = {
        "extension": extension if dot and stem else "",
        "owner": f"{file.uid}",
        "month": month,
        "size": next((key for limit, key in _SIZES if file.size < limit), "4G+"),
    }
    for pair in keys.items():
        cell = tallies.setdefault(pair, [0, 0, 0])
        for place, value in enumerate((1, file.size, blocks * 512)):
            cell[place] += value


def certificate(**more: Any) -> str:
    """Make a scan's closing account as the controller writes it."""
    dirs = {"found": 0, "listed": 0, "excluded": 0, "denied": 0, "timed out": 0, "I/O error": 0}
    dirs |= {"other mount": 0, "vanished": 0, **more.pop("dirs", {})}
    account = {"dirs": dirs, "entries": 0, "bytes": 0, "disk_bytes": 0, "fs": None, "unexplained_bytes": None}
    return json.dumps({**account, "complete": True, "missing": [], "stale_dirs": 0, **more})


# What most tests look at: a share with some of everything, of which two scans ended and one runs.

VIDEOS: Tree = {
    b"Movies": {
        b"alien.mkv": File(40 * 10**9, age_days=400),
        b"brazil.mkv": File(25 * 10**9, age_days=3000),
        b"brazil.srt": File(90_000, age_days=3000, uid=4242),
        b"Caf\xe9 [red].avi": File(700 * 10**6, age_days=5000),
        b"Extras": {b"making of.mp4": File(3 * 10**9, age_days=100)},
    },
    b"Series": {b"one": {b"two": {b"deep.mkv": File(9 * 10**9, age_days=1)}}},
    b".snapshots": Unread("excluded", ".snapshots"),
    b"locked\nroom": Unread("denied", "Permission denied"),
    b"stuck": Unread("timed out", "timed out", {b"old.mkv": File(5 * 10**9, age_days=800, uid=4242)}),
    b"readme": File(0),
    b"disk.img": File(10**12, disk_bytes=10**9, age_days=-40),
}


def videos(path: Path) -> sqlite3.Connection:
    """Make a catalogue of one share whose second scan could not read everything."""
    db = empty(path)
    mount = add_mount(db, "Videos", b"/mnt/user/Videos", fs_type="fuse.shfs", source="shfs")
    add_scan(
        db, mount, "complete", NOW - 7 * DAY, ended_at=NOW - 7 * DAY + 3600, entries=15, dirs=8,
        bytes=1_080_000_000_000, disk_bytes=80_000_000_000,
        certificate=certificate(dirs={"found": 8, "listed": 8}),
    )
    account = certificate(
        dirs={"found": 9, "listed": 6, "excluded": 1, "denied": 1, "timed out": 1},
        complete=False, stale_dirs=1, bytes=1_082_700_090_000, disk_bytes=83_700_000_000,
        fs={"total_bytes": 200 * 10**9, "used_bytes": 100 * 10**9}, unexplained_bytes=16_300_000_000,
    )
    scan = add_scan(
        db, mount, "incomplete", NOW - 7200, ended_at=NOW - 3600, entries=14, dirs=6,
        bytes=1_077_700_090_000, disk_bytes=78_700_000_000, entries_new=3, entries_changed=1, entries_gone=0,
        certificate=account,
    )
    add_tree(db, mount, scan, VIDEOS)
    first = add_chunk(
        db, scan, "done", b"", entries=14, dirs=6, bytes=1_077_700_090_000, disk_bytes=78_700_000_000,
        created_at=NOW - 7200, ended_at=NOW - 3700,
    )
    second = add_chunk(
        db, scan, "quarantined", b"stuck", origin="leftover", parent_id=first, est_bytes=5 * 10**9,
        est_entries=1, fails=2, created_at=NOW - 6000, ended_at=NOW - 3600,
    )
    add_attempt(
        db, first, 1, NOW - 7199, ended_at=NOW - 3700, progressed_at=NOW - 3760, entries=14, dirs=6,
        outcome="stalled", exit_code=0,
    )
    words = "last words\x1b[31m\nof it"
    add_attempt(db, second, 1, NOW - 5400, ended_at=NOW - 5330, outcome="stalled")
    add_attempt(db, second, 2, NOW - 4800, ended_at=NOW - 4730, outcome="lost", log_tail=words)
    add_event(db, scan, NOW - 7200, "created", "covers the whole mount", chunk_id=first)
    add_event(db, scan, NOW - 6000, "created", "given back by chunk 1", chunk_id=second)
    add_event(db, scan, NOW - 5400, "started", "worker 5002", chunk_id=second, attempt=1)
    add_event(db, scan, NOW - 5330, "exited", "stalled: no progress for 60 s", chunk_id=second, attempt=1)
    add_event(db, scan, NOW - 3600, "quarantined", "2 attempts brought nothing", chunk_id=second)
    add_problem(
        db, mount, scan, b"stuck", "readdir", 110, waited_s=61.4, wchan="request_wait_answer", attempts=2,
        retry_at=NOW + 3600,
    )
    add_problem(db, mount, scan, b"locked\nroom", "open", 13)
    add_problem(
        db, mount, 1, b"Series/once", "stat", 5, first_at=NOW - 8 * DAY, last_at=NOW - 7 * DAY,
        cleared_at=NOW - 3700,
    )
    return db


def running(path: Path) -> sqlite3.Connection:
    """Make the same catalogue, and a scan of another share that is in the middle of it."""
    db = videos(path)
    mount = add_mount(db, "Photos", b"/mnt/user/Photos")
    scan = add_scan(
        db, mount, "running", NOW - 100, beat_at=NOW - 1, entries=40_000, dirs=900, bytes=8 * 10**9,
        disk_bytes=8 * 10**9,
    )
    add_chunk(db, scan, "done", b"2019", est_entries=40_000, est_bytes=8 * 10**9, entries=40_000, dirs=900)
    busy = add_chunk(db, scan, "running", b"2020", est_entries=30_000, est_bytes=10**10)
    hung = add_chunk(db, scan, "running", b"2021", b"2022", est_entries=20_000, est_bytes=10**9)
    lost = add_chunk(db, scan, "quarantined", b"2023", est_entries=1)
    add_chunk(db, scan, "pending", b"2024", est_entries=10_000, est_bytes=10**9)
    add_attempt(db, busy, 1, NOW - 50, progressed_at=NOW - 0.2, entries=10_000, dirs=200, bytes=2 * 10**9)
    add_attempt(db, hung, 2, NOW - 45, progressed_at=NOW - 40, entries=100, dirs=3, bytes=10**6)
    add_attempt(db, lost, 1, NOW - 99, ended_at=NOW - 30, outcome="lost")
    insert(
        db, "shard", chunk_id=busy, attempt=1, name="000001.shard", entries=4_000, dirs=80, bytes=10**9,
        ingested_at=NOW - 20,
    )
    db.execute("UPDATE chunk SET entries = 4000, dirs = 80, bytes = 1000000000 WHERE id = ?", (busy,))
    db.execute("UPDATE scan SET entries = 44000, dirs = 980, bytes = 9000000000 WHERE id = ?", (scan,))
    readings = (
        (busy, 0, b"2020/05", 0.1),
        (busy, 1, b"2020/" + b"very long " * 12 + b"name", 3.0),
        (hung, 0, b"2021/dead", 40.0),
    )
    for chunk, thread, where, since_s in readings:
        insert(db, "reading", chunk_id=chunk, thread=thread, path=where, op="readdir", since_at=NOW - since_s)
    add_problem(db, mount, scan, b"2023/gone", "open", 110, waited_s=60.0)
    return db
