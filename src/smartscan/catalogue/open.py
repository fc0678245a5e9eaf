"""The catalogue, opened for the controller that writes it, and its transactions.

Touches: the catalogue, a scratch folder beside it, /proc. Nothing here repairs: SQLite reports a disk that
fails to read as "malformed", so that word alone is never a reason to delete or to make anew.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from smartscan import mounts, numbers
from smartscan.catalogue import directory, lock
from smartscan.catalogue.migrations import VERSION, migrate, run_script
from smartscan.errors import CatalogueBusy, CatalogueError, CatalogueFull

APPLICATION_ID = 0x534D5343  # "SMSC", in the file's header
PAGE_BYTES = 16384  # a directory of a hundred entries fits in one page, and a NAS reads 16 KB as fast as 4
BUSY_S = 30.0  # longer than the commit of another controller's largest shard to a busy disk
JOURNAL_BYTES = 64 * 2**20  # what the write-ahead log keeps on disk between checkpoints
# Pages in memory. Names of directories come in no order, so that their index is written all over: with the
# 2 MB that SQLite takes by itself, a share of many small directories costs the ingest 7 % more.
CACHE_BYTES = 16 * 2**20

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "fuse.sshfs", "fuse.glusterfs")


class Storage(NamedTuple):
    """What the file system below a catalogue can do."""

    journal: str  # wal, or delete where write-ahead logging does not work
    warnings: tuple[str, ...]  # sentences for the user


def open_catalogue(path: Path, *, create: bool, storage: Storage | None = None) -> sqlite3.Connection:
    """Open the catalogue for writing, in the newest version; with `create`, make it where there is none.

    In autocommit: write within `transaction`. Text that is not UTF-8 is read as os.fsdecode does.
    `storage` is what `examine` found, where the caller wants to tell its warnings; else it is found out here.
    CatalogueError: missing or read-only directory, not a catalogue, a newer version, used by another path
    (the file is unchanged then); CatalogueFull, CatalogueBusy.
    """
    directory.prepare(path, create=create)
    lock.refuse_other_path(path)
    found = _check_file(path)
    if not (found or create):
        raise CatalogueError(f"there is no catalogue {path} yet; the first scan makes it")
    directory.make_room(path)
    storage = storage or examine(path)
    with sqlite_errors(path), ExitStack() as undone:
        if storage.journal != "wal":
            _leave_wal(path)
        conn = _connect(path)
        undone.callback(conn.close)
        if not conn.execute("PRAGMA page_count").fetchone()[0]:
            _create(conn)
        _check_version(conn, path)
        wal = storage.journal == "wal"
        mode = "PRAGMA journal_mode = WAL" if wal else "PRAGMA journal_mode = DELETE"
        (journal,) = conn.execute(mode).fetchone()
        # In a power cut NORMAL loses the last transactions of a log, FULL the last one of a rollback journal.
        conn.execute("PRAGMA synchronous = FULL" if journal == "wal" else "PRAGMA synchronous = EXTRA")
        conn.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES}")
        conn.execute(f"PRAGMA cache_size = {-CACHE_BYTES // 1024}")
        _upgrade(conn, path)
        _renew_view(conn)
        undone.pop_all()
    directory.keep_reserve(path)
    return conn


@contextmanager
def transaction(conn: sqlite3.Connection) -> Iterator[None]:
    """Run a block as one transaction: kept whole, or after any exception not at all.

    An error of SQLite leaves as a CatalogueError. CatalogueFull and CatalogueBusy may be tried again; but an
    error can also come after the commit (the checkpoint failed), so that what is tried again must look what
    is done.
    """
    with sqlite_errors(_file(conn)):
        conn.execute("BEGIN IMMEDIATE")
        try:
            yield
            conn.execute("COMMIT")
        finally:
            if conn.in_transaction:
                with suppress(sqlite3.Error):  # the one that brought us here says more
                    conn.execute("ROLLBACK")


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Let errors of SQLite leave the block as CatalogueError, but those that are faults of this program; and
    what only a catalogue can hold that somebody else, or a disk, has written to.
    """
    try:
        yield
    except sqlite3.Error as error:
        explained = _explained(error, path)
        if explained is None:
            raise
        raise explained from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _damaged(error, path) from error


def examine(path: Path, mountinfo: bytes | None = None) -> Storage:
    """Find out how a catalogue at this path must be kept, by trying it on a scratch file beside it.

    `mountinfo` is for tests. CatalogueFull, CatalogueError: nothing can be written there at all.
    """
    directory.make_room(path)
    folder = Path(os.path.realpath(path.parent))
    info = mounts.lookup(os.fsencode(folder), mounts.read() if mountinfo is None else mountinfo)
    fs_type = info.fs_type if info else ""
    if fs_type in NETWORK:
        warning = (
            f"{folder} is on a network file system ({fs_type}), where SQLite is slow and other machines must "
            "not open the catalogue; a local disk is better"
        )
        return Storage("delete", (warning,))
    warnings = []
    if fs_type == "fuse.shfs":
        warnings.append(
            f"{folder} is on Unraid's user shares, where SQLite is slow; a pool is better (for example "
            "SMART_SCAN_DIR=/mnt/cache/appdata/nas-scanner-smart), always by the same path"
        )
    elif fs_type.startswith("fuse"):
        warnings.append(f"{folder} is on {fs_type}, where SQLite is slow; a local disk is better")
    failure = _try_wal(path)
    if failure:
        warnings.append(
            f"write-ahead logging does not work in {folder} ({failure}), so the catalogue is kept with a "
            "rollback journal, which is slower, and reports wait for the scan's commits"
        )
    return Storage("delete" if failure else "wal", tuple(warnings))


def _check_file(path: Path) -> bool:
    """Tell whether there is a catalogue; raise for a file that is none, before anything can change it."""
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return False
    if not path.is_file():
        raise CatalogueError(f"{path} is not a file; choose another catalogue with --db")
    # Immutable: SQLite then looks at the header without locks, log or side files. Our own header is in the
    # file itself, not in the log, because a catalogue is made with a rollback journal.
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as conn:
            _check_version(conn, path)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise _not_ours(path) from error
        # Another controller is just writing the header. Opened properly, SQLite waits for it.
    return True


def _check_version(conn: sqlite3.Connection, path: Path) -> None:
    (application_id,) = conn.execute("PRAGMA application_id").fetchone()
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        raise _not_ours(path)
    if version > VERSION:
        raise CatalogueError(
            f"the catalogue {path} has version {version}, and this program knows {VERSION}; "
            "use a newer Smart Scanner"
        )


def _not_ours(path: Path) -> CatalogueError:
    return CatalogueError(f"{path} is not a catalogue of Smart Scanner; choose another with --db")


def _connect(path: Path) -> sqlite3.Connection:
    conn = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    conn.text_factory = os.fsdecode
    conn.create_function("plus", 2, numbers.plus, deterministic=True)
    return conn


def _create(conn: sqlite3.Connection) -> None:
    """Make all tables, unless somebody else just did."""
    conn.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    with transaction(conn):
        if conn.execute("PRAGMA user_version").fetchone()[0]:
            return
        run_script(conn, _schema())
        conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        conn.execute(f"PRAGMA user_version = {VERSION}")


def _schema() -> str:
    return Path(__file__).with_name("schema.sql").read_text("utf-8")


def _upgrade(conn: sqlite3.Connection, path: Path) -> None:
    if conn.execute("PRAGMA user_version").fetchone()[0] == VERSION:
        return
    for mount, holder in lock.holders(path).items():
        if not holder.is_me:
            raise CatalogueBusy(
                f"the catalogue {path} must be brought to version {VERSION}, but {holder} uses it "
                f"for mount '{mount}'; wait for that scan or stop it"
            )
    with transaction(conn):
        migrate(conn)


def _renew_view(conn: sqlite3.Connection) -> None:
    """Make the view anew where an earlier release had another: it holds nothing, so that is no version."""
    (wanted,) = re.findall(r"^CREATE VIEW files AS\n[^;]*", _schema(), re.MULTILINE)
    there = conn.execute("SELECT sql FROM sqlite_schema WHERE type = 'view' AND name = 'files'").fetchone()
    if there != (wanted,):
        with transaction(conn):
            conn.execute("DROP VIEW IF EXISTS files")
            conn.execute(wanted)


def _leave_wal(path: Path) -> None:
    """Give a catalogue a rollback journal; one that was used elsewhere may still ask for write-ahead logging.

    Where shared memory does not work, such a file can be opened only with an exclusive lock.
    """
    if not (path.exists() and path.stat().st_size):
        return
    with closing(_connect(path)) as conn:
        conn.execute("PRAGMA locking_mode = EXCLUSIVE")
        conn.execute("PRAGMA journal_mode = DELETE").fetchone()


def _try_wal(path: Path) -> str | None:
    """Use write-ahead logging as a scan and a report beside it do; say what failed."""
    mine = f".probe-{os.stat('/proc/self/ns/pid').st_ino}-"  # a pid means something in its namespace only
    for old in path.parent.glob(f"{mine}*"):
        pid = old.name.removeprefix(mine).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            _remove_probe(old)
    folder = path.parent / f"{mine}{os.getpid()}-{os.urandom(8).hex()}"
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise directory.explained(error, path.parent) from error
    scratch = folder / "probe.db"
    with ExitStack() as at_end, sqlite_errors(path):
        at_end.callback(_remove_probe, folder)
        writer = at_end.enter_context(closing(_connect(scratch)))
        writer.execute("PRAGMA synchronous = OFF")  # nobody needs it after a power cut
        writer.execute("CREATE TABLE t (n INTEGER)")  # what fails here has nothing to do with the log
        try:
            (mode,) = writer.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                return f"SQLite keeps to journal mode {mode}"
            with closing(_connect(scratch)) as reader:
                for n in (1, 2):
                    writer.execute("INSERT INTO t VALUES (?)", (n,))
                    if reader.execute("SELECT max(n) FROM t").fetchone() != (n,):
                        return "a second reader does not see what was written"
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:
            if isinstance(_explained(error, path), CatalogueFull):
                raise
            return str(error)
    return None


def _remove_probe(folder: Path) -> None:
    with suppress(OSError):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _file(conn: sqlite3.Connection) -> Path:
    return Path(conn.execute("PRAGMA database_list").fetchone()[2])


def _explained(error: sqlite3.Error, path: Path) -> CatalogueError | None:
    """Say what an error of SQLite means for the user; None for one that is a fault of this program."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    match None if code is None else code & 0xFF:  # the primary code; the rest is detail
        case sqlite3.SQLITE_FULL:
            return directory.full(path.parent)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
            return CatalogueBusy(f"the catalogue {path} is locked by another program; try again in a moment")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return CatalogueError(f"the catalogue {path} cannot be written ({error}); check its permissions")
        case sqlite3.SQLITE_IOERR:
            if directory.is_full(path):  # SQLite's word for it where the log's index finds no space
                return directory.full(path.parent)
            return CatalogueError(f"the disk of the catalogue {path} fails ({error}); check it and try again")
        case sqlite3.SQLITE_CORRUPT:
            return _damaged(error, path)
        case sqlite3.SQLITE_NOTADB:
            return _not_ours(path)
    return None


def _damaged(error: Exception, path: Path) -> CatalogueError:
    return CatalogueError(
        f"the catalogue {path} cannot be read ({error}), which a failing disk can cause as well; "
        f"it was left as it is: check the disk, then `sqlite3 '{path}' 'PRAGMA integrity_check'`"
    )
