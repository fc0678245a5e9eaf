"""The catalogue is opened for its writer on real files, real full disks and real file systems that fail."""

import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from disks import fill, small_disk
from smartscan.catalogue import directory
from smartscan.catalogue.migrations import VERSION, migrate, run_script
from smartscan.catalogue.open import (
    APPLICATION_ID,
    PAGE_BYTES,
    examine,
    open_catalogue,
    transaction,
)
from smartscan.errors import CatalogueBusy, CatalogueError, CatalogueFull
from smartscan.faults import fault_mount
from users import ordinary_user

OPEN = "import sys; from pathlib import Path; from smartscan.catalogue.open import open_catalogue; "
CREATE = OPEN + "open_catalogue(Path(sys.argv[1]), create=True).close()"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "smart_catalog.db"


@pytest.fixture
def conn(path):
    with closing(open_catalogue(path, create=True)) as conn:
        yield conn


def pragma(conn: sqlite3.Connection, name: str) -> object:
    return conn.execute(f"PRAGMA {name}").fetchone()[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def add_mount(conn: sqlite3.Connection, name: str) -> None:
    conn.execute("INSERT INTO mount (name, path, created_at) VALUES (?, ?, 0)", (name, f"/{name}"))


def mount_names(conn: sqlite3.Connection) -> list[str]:
    return [name for (name,) in conn.execute("SELECT name FROM mount ORDER BY id")]


# Made and opened


def test_a_new_catalogue_is_ours_whole_and_safe_in_a_power_cut(path, conn):
    assert pragma(conn, "application_id") == APPLICATION_ID
    assert pragma(conn, "user_version") == VERSION
    assert pragma(conn, "page_size") == PAGE_BYTES
    assert pragma(conn, "journal_mode") == "wal"
    assert pragma(conn, "synchronous") == 2  # FULL
    assert pragma(conn, "integrity_check") == "ok"
    for table in ("mount", "scan", "chunk", "attempt", "entry", "dir", "files"):
        assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_an_existing_catalogue_is_opened_as_it_is(path, conn):
    with transaction(conn):
        add_mount(conn, "usr")
    with closing(open_catalogue(path, create=True)) as again:
        assert mount_names(again) == ["usr"]
    with closing(open_catalogue(path, create=False)) as again:
        assert mount_names(again) == ["usr"]


def test_an_empty_file_becomes_a_catalogue(path):
    path.touch()
    with pytest.raises(CatalogueError, match="there is no catalogue"):
        open_catalogue(path, create=False)
    open_catalogue(path, create=True).close()


ODD_NAMES = ["with space.db", "q'uo\"te.db", "what?.db", "100%41.db", "line\nbreak.db", b"\xff.db"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_path_will_do(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    open_catalogue(path, create=True).close()
    open_catalogue(path, create=False).close()
    assert path.stat().st_size > PAGE_BYTES
    assert sorted(os.listdir(os.fsencode(tmp_path))) == sorted(
        [os.fsencode(path.name), os.fsencode(path.with_suffix(".reserve").name)]
    )


def test_names_that_are_not_utf_8_come_back(conn):
    insert = "INSERT INTO mount (name, path, created_at) VALUES ('x', CAST(? AS TEXT), 0)"
    with transaction(conn):
        conn.execute(insert, (b"/a\xff\nb",))
    (text,) = conn.execute("SELECT path FROM mount").fetchone()
    assert os.fsencode(text) == b"/a\xff\nb"


def test_many_who_make_it_at_once_get_one_catalogue(path):
    command = [sys.executable, "-c", CREATE, path]
    makers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(6)]
    for maker in makers:
        assert maker.wait(60) == 0, maker.stderr.read()
    with closing(open_catalogue(path, create=False)) as conn:
        assert pragma(conn, "integrity_check") == "ok"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_killed_at_any_write_of_its_making_it_is_made_the_next_time(tmp_path):
    calls = "pwrite64,write,fsync,fdatasync,ftruncate,unlink"
    for call in range(1, 100):
        folder = tmp_path / str(call)
        folder.mkdir()
        path = folder / "smart_catalog.db"
        inject = f"inject={calls}:signal=SIGKILL:when={call}"
        done = subprocess.run(["strace", "-f", "-o", os.devnull, "-e", f"trace={calls}", "-e", inject,
                               sys.executable, "-c", CREATE, path], stderr=subprocess.PIPE)
        open_catalogue(path, create=True).close()
        with closing(open_catalogue(path, create=False)) as conn:
            assert pragma(conn, "integrity_check") == "ok"
        if done.returncode == 0:
            return
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
    pytest.fail("it never came to an end")


# Not a catalogue, or not for us: one sentence, and nothing is changed


def make_text(path: Path) -> None:
    path.write_text("my diary, which is longer than the header of SQLite\n" * 10)


def make_other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.executescript("PRAGMA journal_mode = WAL; CREATE TABLE photos (name); PRAGMA user_version = 1;")


def make_newer(path: Path) -> None:
    with closing(open_catalogue(path, create=True)) as conn:
        conn.execute(f"PRAGMA user_version = {VERSION + 1}")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (make_text, r"smart_catalog\.db is not a catalogue of Smart Scanner"),
        (make_other_database, r"smart_catalog\.db is not a catalogue of Smart Scanner"),
        (make_newer, rf"has version {VERSION + 1}, and this program knows {VERSION}; use a newer"),
    ],
)
def test_a_file_that_is_not_ours_to_write_is_left_alone(path, make, sentence):
    make(path)
    before = contents(path.parent)
    for create in (True, False):
        with pytest.raises(CatalogueError, match=sentence) as caught:
            open_catalogue(path, create=create)
        assert caught.value.exit_status == 12
        assert contents(path.parent) == before


def test_a_directory_is_no_catalogue(path):
    path.mkdir()
    with pytest.raises(CatalogueError, match="is not a file"):
        open_catalogue(path, create=True)


def test_none_yet_is_said_and_none_is_made(path):
    with pytest.raises(CatalogueError, match=r"there is no catalogue .*\.db yet; the first scan makes it"):
        open_catalogue(path, create=False)
    assert contents(path.parent) == {}


def test_only_the_default_directory_is_made(tmp_path, monkeypatch):
    with pytest.raises(CatalogueError, match=r"the directory .*missing does not exist; make it, or"):
        open_catalogue(tmp_path / "missing" / "x.db", create=True)
    monkeypatch.setenv("SMART_SCAN_DIR", str(tmp_path / "appdata" / "smart"))
    open_catalogue(tmp_path / "appdata" / "smart" / "x.db", create=True).close()


@pytest.mark.root
def test_an_ordinary_user_is_told_what_may_not_be_written(tmp_path):
    with small_disk(100) as disk:
        path = disk / "smart_catalog.db"
        with ordinary_user(), pytest.raises(CatalogueError, match="mnt may not be written by this user"):
            open_catalogue(path, create=True)
        open_catalogue(path, create=True).close()
        disk.chmod(0o777)
        with ordinary_user(), pytest.raises(CatalogueError, match=r"\.db may not be written by this user"):
            open_catalogue(path, create=True)
        disk.parent.chmod(0o700)
        with ordinary_user(), pytest.raises(CatalogueError, match="cannot hold a catalogue: Permission"):
            open_catalogue(path, create=True)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(CatalogueError, match="mnt is on a read-only file system"):
            open_catalogue(path, create=True)


@pytest.mark.root
def test_an_ordinary_user_has_a_catalogue_in_a_directory_of_its_own():
    with small_disk(100) as disk:
        disk.chmod(0o777)
        with ordinary_user(), closing(open_catalogue(disk / "smart_catalog.db", create=True)) as conn:
            assert pragma(conn, "journal_mode") == "wal"


def test_a_damaged_catalogue_is_said_to_be_so_and_kept(path, conn):
    with transaction(conn):
        for number in range(2000):
            add_mount(conn, f"m{number}" * 20)
    conn.close()
    data = bytearray(path.read_bytes())
    randomly = random.Random(5)
    for at in range(20 * PAGE_BYTES, len(data), 7):
        data[at] = randomly.randrange(256)
    path.write_bytes(data)
    with closing(open_catalogue(path, create=True)) as damaged:
        with pytest.raises(CatalogueError, match=r"cannot be read .*it was left as it is"):
            with transaction(damaged):
                damaged.execute("SELECT sum(length(path)) FROM mount WHERE name LIKE '%x'").fetchall()
    assert path.stat().st_size == len(data)


# Full disks


@pytest.mark.root
def test_a_full_disk_is_one_sentence_and_nothing_is_begun():
    with small_disk(4) as disk:
        path = disk / "smart_catalog.db"
        filler = fill(disk)
        with pytest.raises(CatalogueFull, match=r"no space left .*\(0 KB are free, 2048 KB are needed\)"):
            open_catalogue(path, create=True)
        assert not path.exists()
        filler.unlink()
        open_catalogue(path, create=True).close()
        fill(disk)
        before = contents(disk)
        with pytest.raises(CatalogueFull):
            open_catalogue(path, create=False)
        assert contents(disk) == before


@pytest.mark.root
def test_the_reserve_opens_the_catalogue_on_a_full_disk(caplog):
    with small_disk(100) as disk:
        path, reserve = disk / "smart_catalog.db", disk / "smart_catalog.reserve"
        open_catalogue(path, create=True).close()
        assert reserve.stat().st_size == directory.RESERVE_BYTES
        filler = fill(disk)
        with caplog.at_level(logging.WARNING), closing(open_catalogue(path, create=False)) as conn:
            assert "is full; the reserve beside it was released" in caplog.text
            with transaction(conn):
                add_mount(conn, "said")
        assert not reserve.exists()
        filler.unlink()
        open_catalogue(path, create=False).close()
        assert reserve.exists()


@pytest.mark.root
def test_a_transaction_that_finds_no_space_leaves_nothing_and_succeeds_later():
    with small_disk(8) as disk, closing(open_catalogue(disk / "smart_catalog.db", create=True)) as conn:
        with transaction(conn):
            add_mount(conn, "before")
        filler = fill(disk, leave_bytes=2**18)
        with pytest.raises(CatalogueFull, match="there is no space left"), transaction(conn):
            for number in range(20_000):
                add_mount(conn, f"m{number}" * 10)
        assert mount_names(conn) == ["before"]
        filler.unlink()
        with transaction(conn):
            add_mount(conn, "after")
        assert mount_names(conn) == ["before", "after"]
        assert pragma(conn, "integrity_check") == "ok"


# Transactions


def test_a_transaction_is_all_or_nothing(conn):
    with pytest.raises(KeyboardInterrupt), transaction(conn):
        add_mount(conn, "lost")
        raise KeyboardInterrupt
    with transaction(conn):
        add_mount(conn, "kept")
    assert mount_names(conn) == ["kept"]


def test_a_fault_of_the_program_is_not_dressed_up_as_one_of_the_disk(conn):
    with pytest.raises(sqlite3.IntegrityError), transaction(conn):
        add_mount(conn, "twice")
        add_mount(conn, "twice")
    with pytest.raises(sqlite3.OperationalError, match="no such table"), transaction(conn):
        conn.execute("SELECT * FROM no_such")
    assert not conn.in_transaction


def test_a_catalogue_held_by_another_is_busy_and_then_is_not(path, conn):
    with closing(open_catalogue(path, create=False)) as other:
        conn.execute("PRAGMA busy_timeout = 50")
        with transaction(other):
            with pytest.raises(CatalogueBusy, match="is locked by another program"), transaction(conn):
                pass
        with transaction(conn):
            add_mount(conn, "now")


# File systems


TABLE = b"1 0 0:9 / / rw - rootfs rootfs rw\n2 1 0:41 / %s rw - %s src rw\n"


@pytest.mark.parametrize(
    ("fs_type", "journal", "sentence"),
    [
        (b"fuse.shfs", "wal", "Unraid's user shares, where SQLite is slow; a pool is better"),
        (b"fuse.mergerfs", "wal", "is on fuse.mergerfs, where SQLite is slow; a local disk is better"),
        (b"nfs4", "delete", "network file system (nfs4), where SQLite is slow and other machines must not"),
        (b"cifs", "delete", "network file system (cifs)"),
        (b"xfs", "wal", None),
    ],
)
def test_unsafe_file_systems_are_known_from_the_mount_table(path, fs_type, journal, sentence):
    found = examine(path, TABLE % (os.fsencode(path.parent), fs_type))
    assert found.journal == journal
    assert len(found.warnings) == (1 if sentence else 0)
    assert sentence is None or sentence in found.warnings[0]
    assert contents(path.parent) == {}


def test_what_a_probe_left_behind_stands_in_no_way(tmp_path):
    """In a container every controller is process 1, and may have the memory layout of the one before."""
    space, me = os.stat("/proc/self/ns/pid").st_ino, f"{os.getpid()}-{threading.get_ident()}"
    mine = tmp_path / f".probe-{space}-{me}"
    gone = tmp_path / f".probe-{space}-{2**22 + 1}-x"
    for left in mine, gone:
        left.mkdir()
        (left / "probe.db").write_text("torn")
    assert examine(tmp_path / "smart_catalog.db").journal == "wal"
    assert list(tmp_path.iterdir()) == [mine]  # its process lives: `cleanup` removes it later


@pytest.mark.fuse
def test_where_write_ahead_logging_only_claims_to_work_a_rollback_journal_is_used(tmp_path):
    with fault_mount(tmp_path, direct_io=True) as share:
        path = share.path / "smart_catalog.db"
        storage = examine(path)
        assert storage.journal == "delete"
        assert "write-ahead logging does not work in" in storage.warnings[-1]
        with closing(open_catalogue(path, create=True, storage=storage)) as conn:
            assert pragma(conn, "journal_mode") == "delete"
            assert pragma(conn, "synchronous") == 3  # EXTRA
            with transaction(conn):
                add_mount(conn, "x")
        assert not list(share.path.glob(".probe*"))


@pytest.mark.fuse
def test_a_catalogue_that_comes_from_a_better_disk_is_opened_there_as_well(tmp_path):
    with closing(open_catalogue(tmp_path / "smart_catalog.db", create=True)) as conn, transaction(conn):
        add_mount(conn, "from elsewhere")
    with fault_mount(tmp_path, direct_io=True) as share:
        with closing(open_catalogue(share.path / "smart_catalog.db", create=False)) as conn:
            assert mount_names(conn) == ["from elsewhere"]
            assert pragma(conn, "journal_mode") == "delete"
            with transaction(conn):
                add_mount(conn, "here")
    with closing(open_catalogue(tmp_path / "smart_catalog.db", create=False)) as conn:
        assert pragma(conn, "journal_mode") == "wal"
        assert mount_names(conn) == ["from elsewhere", "here"]


# Versions


STEPS = (
    "ALTER TABLE mount ADD COLUMN colour TEXT; -- why; not\nUPDATE mount SET colour = 'red; green';\n",
    lambda conn: conn.execute("UPDATE mount SET name = name || '!'"),
)


def test_migrations_run_from_the_version_there_is_and_count_it_up(conn):
    add_mount(conn, "x")
    with transaction(conn):
        migrate(conn, STEPS)
    assert pragma(conn, "user_version") == 3
    assert conn.execute("SELECT name, colour FROM mount").fetchall() == [("x!", "red; green")]
    with transaction(conn):
        migrate(conn, STEPS)
    assert mount_names(conn) == ["x!"]


def test_a_migration_that_fails_leaves_the_version_there_was(conn):
    with pytest.raises(sqlite3.OperationalError), transaction(conn):
        migrate(conn, (*STEPS, "SELECT nothing FROM nowhere;\n"))
    assert pragma(conn, "user_version") == 1
    assert "colour" not in [row[1] for row in conn.execute("PRAGMA table_info(mount)")]


def test_a_view_of_an_earlier_release_is_made_anew_when_a_scan_opens_it(tmp_path):
    path = tmp_path / "smart_catalog.db"

    def view(conn):
        return conn.execute("SELECT sql FROM sqlite_schema WHERE name = 'files'").fetchone()[0]

    with closing(open_catalogue(path, create=True)) as conn:
        now = view(conn)
        conn.execute("DROP VIEW files")
        conn.execute("CREATE VIEW files AS SELECT name AS path FROM entry")
        conn.execute("CREATE VIEW mine AS SELECT 1")  # stays
    with closing(open_catalogue(path, create=True)) as conn:
        assert view(conn) == now
        assert conn.execute("SELECT * FROM mine").fetchall() == [(1,)]
        changes = pragma(conn, "schema_version")
    with closing(open_catalogue(path, create=True)) as conn:
        assert pragma(conn, "schema_version") == changes, "it is made anew each time"


def test_a_script_runs_whole(conn):
    with transaction(conn):
        run_script(conn, "CREATE TABLE a (\n  x -- ;\n);\n-- ;\nINSERT INTO a VALUES (';\n');\n\n")
        run_script(conn, "INSERT INTO a VALUES (2)")
    assert conn.execute("SELECT * FROM a").fetchall() == [(";\n",), (2,)]
