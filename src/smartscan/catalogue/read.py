"""Questions about what lies in a mount, and the opening of the catalogue for them.

Touches: the catalogue file, for reading only. Safe at any time beside the controller that writes it.
No query counts entries: what a report shows is kept by the writer, so that an answer takes a moment
on millions of rows. Paths and names are cast to BLOB, because they need not be text.
"""

from __future__ import annotations

import heapq
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from smartscan.catalogue import directory
from smartscan.catalogue.migrations import VERSION
from smartscan.catalogue.open import APPLICATION_ID, sqlite_errors
from smartscan.catalogue.rows import Directory, LargeFile, Mount, Problem, Tally, Totals
from smartscan.catalogue.tree import path_of
from smartscan.errors import CatalogueError, UsageError
from smartscan.model import UNREAD, DirState, join
from smartscan.numbers import unsigned

WAIT_S = 5.0  # for a writer's lock where the journal is no WAL; a commit takes far less

# Directories in these states hide something; the others were listed or left out on purpose.
MISSING = (*UNREAD, DirState.FOUND)
# With `<> 'listed'`, as a partial index has it, though the rest implies it: SQLite cannot conclude that.
_MISSING_SQL = "state <> 'listed' AND state IN ({})".format(", ".join(f"'{state}'" for state in MISSING))


@contextmanager
def open_for_reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a catalogue for one consistent look at it; nothing is ever written.

    All queries inside see the same moment. CatalogueError: none yet, not one, of another version,
    damaged; CatalogueBusy: locked. Where the journal is no WAL, a commit waits for the look to end.
    """
    with sqlite_errors(path), closing(_connect(path)) as db:
        yield db


def _connect(path: Path) -> sqlite3.Connection:
    try:
        made = path.is_file() and path.stat().st_size > 0
    except PermissionError as error:
        raise CatalogueError(f"the folder of the catalogue {path} may not be entered by this user") from error
    if path.exists() and not path.is_file():
        raise CatalogueError(f"{path} is not a file; choose another catalogue with --db")
    if not made:
        raise CatalogueError(f"there is no catalogue {path} yet; the first scan makes it")
    if not os.access(path, os.R_OK):
        raise CatalogueError(f"the catalogue {path} may not be read by this user")
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        return _look(path, uri)
    except sqlite3.OperationalError as error:
        # A catalogue at rest in a folder where we may not create the shared memory of its log. Nobody
        # writes it, else there were files beside it, so it may be read as the plain file it is.
        refused = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
        if refused and not _in_use(path):
            return _look(path, f"{uri}&immutable=1")
        if not directory.is_full(path):
            raise
    # The index of the log finds no space. Without a log there is nothing to index; else there is a reserve.
    if not _log_bytes(path):
        return _look(path, f"{uri}&immutable=1")
    directory.release_reserve(path)
    return _look(path, uri)


def _look(path: Path, uri: str) -> sqlite3.Connection:
    with ExitStack() as undone:
        db = sqlite3.connect(uri, uri=True, timeout=WAIT_S, isolation_level=None)
        undone.callback(db.close)
        db.text_factory = _text
        db.execute("BEGIN")
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application_id == APPLICATION_ID and version == VERSION:
            undone.pop_all()
            return db
    if application_id != APPLICATION_ID:
        raise CatalogueError(f"{path} is not a catalogue of Smart Scanner; choose another with --db")
    remedy = "use a newer Smart Scanner" if version > VERSION else "the next scan brings it up to date"
    raise CatalogueError(
        f"the catalogue {path} has version {version}, and this program reads {VERSION}; {remedy}"
    )


def _log_bytes(path: Path) -> int:
    logs = (path.with_name(path.name + end) for end in ("-wal", "-journal"))
    return sum(log.stat().st_size for log in logs if log.exists())


def _in_use(path: Path) -> bool:
    return any(path.with_name(path.name + end).exists() for end in ("-wal", "-shm", "-journal"))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


_PROBLEM = """CAST(path AS BLOB), op, errno, scan_id, first_at, last_at, attempts, waited_s, wchan,
    cause, retry_at, cleared_at"""
MOUNT_COLUMNS = "mount.id, mount.name, CAST(mount.path AS BLOB), mount.fs_type, mount.source"


def mounts(db: sqlite3.Connection, name: str | None = None) -> list[Mount]:
    """List the mounts by name, or the one of that name; UsageError where it is not there."""
    every = [Mount(*row) for row in db.execute(f"SELECT {MOUNT_COLUMNS} FROM mount ORDER BY name")]
    if name is None:
        return every
    found = [mount for mount in every if mount.name == name]
    if not found:
        names = ", ".join(mount.name for mount in every) or "no mount yet"
        raise UsageError(f"no mount is named {name!r}; the catalogue has {names}")
    return found


def totals(db: sqlite3.Connection, mount: Mount) -> Totals:
    """Tell what the catalogue holds of a mount, whichever scans saw it."""
    files = size = disk = 0
    for row in db.execute(
        "SELECT files, bytes, disk_bytes FROM tally WHERE mount_id = ? AND dimension = 'size'", (mount.id,)
    ):
        files, size, disk = files + row[0], size + unsigned(row[1]), disk + unsigned(row[2])
    root = db.execute(
        "SELECT entries, bytes, disk_bytes FROM dir WHERE mount_id = ? AND parent_id IS NULL", (mount.id,)
    ).fetchone()
    entries, all_bytes, all_disk = root or (0, 0, 0)
    # The tally is kept from shard to shard; it is ahead of the tree's totals while a scan runs.
    return Totals(files, max(entries, files), max(unsigned(all_bytes), size), max(unsigned(all_disk), disk))


def tally(db: sqlite3.Connection, among: Iterable[Mount], dimension: str) -> list[Tally]:
    """Give the totals along a dimension (extension, owner, month, size), most disk bytes first."""
    ids = [mount.id for mount in among]
    sums: dict[str, list[int]] = {}  # not by SQLite's sum(), which fails where 63 bits do not do
    for key, files, size, disk in db.execute(
        "SELECT key, files, bytes, disk_bytes FROM tally"
        f" WHERE dimension = ? AND mount_id IN ({_marks(ids)})",
        (dimension, *ids),
    ):
        cell = sums.setdefault(key, [0, 0, 0])
        cell[0] += files
        cell[1] += unsigned(size)
        cell[2] += unsigned(disk)
    rows = [Tally(key, *cell) for key, cell in sums.items() if cell[0] > 0]
    return sorted(rows, key=lambda row: (-row.disk_bytes, -row.bytes, row.key))


def largest_files(db: sqlite3.Connection, among: Iterable[Mount], *, limit: int) -> list[LargeFile]:
    """List the largest regular files by apparent size, largest first."""
    by_id = {mount.id: mount for mount in among}
    ids = list(by_id)
    rows = db.execute(
        "SELECT mount_id, size, dir_id, CAST(name AS BLOB) FROM largest"
        f" WHERE mount_id IN ({_marks(ids)}) ORDER BY size DESC, dir_id, name LIMIT ?",
        (*ids, limit),
    ).fetchall()
    return [LargeFile(by_id[m], join(path_of(db, folder), name), size) for m, size, folder, name in rows]


def largest_directories(db: sqlite3.Connection, among: Iterable[Mount], *, limit: int) -> list[Directory]:
    """List the directories below the mounts whose subtrees take most disk, largest first.

    One that is little more than its largest subdirectory (95 % or more of it) is left out for that
    subdirectory, so that a deep path does not fill the list. Cost: the children of what is listed;
    no subtree is larger than its parent, so the rest need not be looked at.
    """
    by_id = {mount.id: mount for mount in among}
    kept: list[Directory] = []
    hidden = {mount.id: incomplete_directories(db, mount) for mount in by_id.values()}
    tops = [(m, row[1]) for m in by_id for row in _children(db, m, None, 1)]
    heap = [(*_rank(row), row) for m, top in tops for row in _children(db, m, top, limit)]
    heapq.heapify(heap)
    while heap and len(kept) < limit:
        *_, row = heapq.heappop(heap)
        mount_id, dir_id, state, reason, scan_id, files, entries, size, disk = row
        below = _children(db, mount_id, dir_id, limit)
        for child in below:
            heapq.heappush(heap, (*_rank(child), child))
        if below and below[0][-1] >= 0.95 * disk and below[0][-2] >= 0.95 * size:
            continue
        if entries > 0:
            mount = by_id[mount_id]
            path, lower = path_of(db, dir_id), dir_id in hidden[mount_id]
            kept.append(
                Directory(mount, path, lower, DirState(state), reason, scan_id, files, entries, size, disk)
            )
    return kept


def _rank(row: tuple[Any, ...]) -> tuple[int, int, int]:
    *_, size, disk = row
    return -disk, -size, row[1]


def _children(db: sqlite3.Connection, mount_id: int, dir_id: int | None, limit: int) -> list[tuple[Any, ...]]:
    rows = db.execute(
        "SELECT mount_id, id, state, reason, scan_id, files, entries, bytes, disk_bytes FROM dir"
        " WHERE mount_id = ? AND parent_id IS ? ORDER BY disk_bytes DESC, bytes DESC, id LIMIT ?",
        (mount_id, dir_id, limit),
    )
    return [(*row[:-2], unsigned(row[-2]), unsigned(row[-1])) for row in rows]


def incomplete_directories(db: sqlite3.Connection, mount: Mount) -> set[int]:
    """Find every directory (dir.id) whose totals are a lower bound: it or something below was not read."""
    rows = db.execute(
        f"""WITH RECURSIVE up(id) AS (
                SELECT id FROM dir WHERE mount_id = ? AND {_MISSING_SQL}
                UNION
                SELECT dir.parent_id FROM dir JOIN up ON dir.id = up.id WHERE dir.parent_id IS NOT NULL
            ) SELECT id FROM up""",
        (mount.id,),
    )
    return {dir_id for (dir_id,) in rows}


def states(db: sqlite3.Connection, mount: Mount) -> list[tuple[DirState, str | None, int]]:
    """Count the directories that were not listed, by state and reason, most first."""
    rows = db.execute(
        "SELECT state, reason, count(*) FROM dir WHERE mount_id = ? AND state <> 'listed'"
        " GROUP BY state, reason ORDER BY count(*) DESC, state, reason",
        (mount.id,),
    )
    return [(DirState(state), reason, n) for state, reason, n in rows]


def missing(db: sqlite3.Connection, mount: Mount, *, limit: int) -> list[Directory]:
    """List the directories that could not be read, with what is still known of them from earlier scans."""
    rows = db.execute(
        "SELECT id, state, reason, scan_id, files, entries, bytes, disk_bytes FROM dir"
        f" WHERE mount_id = ? AND {_MISSING_SQL} AND state <> 'found' ORDER BY id LIMIT ?",
        (mount.id, limit),
    ).fetchall()
    return [
        Directory(mount, path_of(db, row[0]), True, DirState(row[1]), *row[2:-2], *map(unsigned, row[-2:]))
        for row in rows
    ]


def unanswered(db: sqlite3.Connection, mount: Mount, scan_id: int, *, limit: int) -> list[Problem]:
    """List the paths a scan gave up waiting for, the longest wait first."""
    rows = db.execute(
        f"SELECT {_PROBLEM} FROM problem WHERE mount_id = ? AND scan_id = ? AND waited_s IS NOT NULL"
        " AND cleared_at IS NULL ORDER BY waited_s DESC, path LIMIT ?",
        (mount.id, scan_id, limit),
    )
    return [Problem(mount, *row) for row in rows]


def problems(db: sqlite3.Connection, among: Iterable[Mount], *, cleared: bool = False) -> Iterator[Problem]:
    """Give the paths that could not be read, by mount and path; with `cleared` also those read since."""
    for mount in among:
        rows = db.execute(
            f"SELECT {_PROBLEM} FROM problem"
            " WHERE mount_id = ? AND (cleared_at IS NULL OR ?) ORDER BY path, op",
            (mount.id, cleared),
        )
        for row in rows:
            yield Problem(mount, *row)


def _marks(values: list[int]) -> str:
    return ", ".join("?" * len(values))
