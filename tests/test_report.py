"""report: what people and programs read, known answers in tests/gold; and the reading below it."""

import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import catalogue_fixture as fixture
import gold
from catalogue_fixture import NOW, File, Tree, add_mount, add_problem, add_scan, add_tree, certificate, empty
from smartscan.catalogue import read, runs
from smartscan.cli._frame import say
from smartscan.errors import CatalogueBusy, CatalogueError, UsageError
from smartscan.model import DirState, ScanState
from smartscan.report import kinds, page, problems, scan, stats, story, words
from users import ordinary_user


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def videos(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    fixture.videos(tmp_path / "c.db").close()
    with read.open_for_reading(tmp_path / "c.db") as db:
        yield db


@pytest.fixture
def running(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    fixture.running(tmp_path / "c.db").close()
    with read.open_for_reading(tmp_path / "c.db") as db:
        yield db


def _json(data: object) -> str:
    return json.dumps(data, indent=2) + "\n"


# --- known answers ----------------------------------------------------------------------------------


def test_summary_of_an_incomplete_scan(videos: sqlite3.Connection) -> None:
    found = scan.summary(videos, 2)
    gold.check("summary.txt", page.plain(scan.page(found)))
    gold.check("summary.json", _json(scan.as_json(found)))


def test_summary_of_a_complete_scan(videos: sqlite3.Connection) -> None:
    gold.check("summary-complete.txt", page.plain(scan.page(scan.summary(videos, 1))))


def test_summary_of_a_scan_that_runs(running: sqlite3.Connection) -> None:
    gold.check("summary-running.txt", page.plain(scan.page(scan.summary(running, 3))))


def test_stats(videos: sqlite3.Connection) -> None:
    found = stats.stats(videos, read.mounts(videos), limit=10, now=NOW)
    gold.check("stats.txt", page.plain(stats.page(found, limit=10)))
    gold.check("stats.json", _json(stats.as_json(found)))


def test_stats_of_all_mounts_together(running: sqlite3.Connection) -> None:
    found = stats.stats(running, read.mounts(running), limit=3, now=NOW)
    gold.check("stats-all.txt", page.plain(stats.page(found, limit=3)))


def test_story(videos: sqlite3.Connection) -> None:
    found = story.story(videos, 2)
    gold.check("story.txt", page.plain(story.page(found)))
    gold.check("story.json", _json(story.as_json(found)))


def test_problems(videos: sqlite3.Connection) -> None:
    found = problems.problems(videos, read.mounts(videos), cleared=True)
    gold.check("problems.txt", page.plain(problems.page(found, now=NOW)))
    gold.check("problems.json", _json(problems.as_json(found)))


def test_no_problem_is_said_in_a_word(tmp_path: Path) -> None:
    empty(tmp_path / "c.db").close()
    with read.open_for_reading(tmp_path / "c.db") as db:
        assert problems.problems(db, read.mounts(db), cleared=False) == []
    assert page.plain(problems.page([], now=NOW)) == "Every path could be read.\n"


def test_stats_of_an_empty_catalogue(tmp_path: Path) -> None:
    empty(tmp_path / "c.db").close()
    with read.open_for_reading(tmp_path / "c.db") as db:
        found = stats.stats(db, read.mounts(db), limit=10, now=NOW)
    assert "Mounts" in page.plain(stats.page(found, limit=10))
    assert stats.as_json(found)["mounts"] == []


# --- pages ------------------------------------------------------------------------------------------


def test_a_page_for_a_terminal_says_what_the_plain_one_says(videos: sqlite3.Connection) -> None:
    from rich.console import Console

    found = stats.page(stats.stats(videos, read.mounts(videos), limit=10, now=NOW), limit=10)
    console = Console(width=200, highlight=False, no_color=True)
    with console.capture() as captured:
        console.print(page.rich(found))
    assert captured.get().split() == page.plain(found).split()


def test_a_narrow_terminal_cuts_nothing(videos: sqlite3.Connection) -> None:
    from rich.console import Console

    path = "/mnt/user/Videos/" + "long name " * 30
    console = Console(width=60, highlight=False, no_color=True)
    with console.capture() as captured:
        console.print(page.rich([page.Table("T", (">Size", "Path"), [["1.00 kB", path]])]))
    letters = "".join(captured.get().split())
    assert "".join(path.split()) in letters
    with console.capture() as captured:
        console.print(page.rich([page.Paths("what they share, in more words than fit", [path])]), crop=False)
    assert f"    {path}\n" in captured.get()  # to be copied as it is


def test_names_cannot_colour_or_move_the_terminal(videos: sqlite3.Connection) -> None:
    texts = [
        page.plain(stats.page(stats.stats(videos, read.mounts(videos), limit=10, now=NOW), limit=10)),
        page.plain(story.page(story.story(videos, 2))),
        page.plain(problems.page(problems.problems(videos, read.mounts(videos), cleared=True), now=NOW)),
    ]
    for text in texts:
        assert not any(ord(c) < 32 and c != "\n" for c in text)
    assert "Caf\\xe9 [red].avi" in texts[0]
    assert "locked\\nroom" in texts[2]


# --- the parts --------------------------------------------------------------------------------------


def test_every_extension_has_one_kind() -> None:
    every = [extension for extensions in kinds.KINDS.values() for extension in extensions.split()]
    assert sorted(every) == sorted(set(every))
    assert all(extension == extension.lower() and "." not in extension for extension in every)
    assert kinds.kind("mkv") == "videos"
    assert kinds.kind("") == kinds.NO_EXTENSION
    assert kinds.kind("no such thing") == kinds.OTHER


@pytest.mark.parametrize(
    ("month", "expected"),
    [
        ("2025-12", "in the future"), ("2025-11", "up to 3 months"), ("2025-09", "up to 3 months"),
        ("2025-08", "3 to 12 months"), ("2024-11", "1 to 2 years"), ("2020-11", "5 to 10 years"),
        ("1901-01", "more than 10 years"), ("0099-01", "more than 10 years"),
        ("", "unknown"), ("x-y", "unknown"),
    ],
)
def test_ages(month: str, expected: str) -> None:
    assert stats.age_class(month, NOW) == expected


def test_an_owner_is_named_where_there_is_such_a_user() -> None:
    assert stats.owner("0") == "root"
    assert stats.owner("4294967294") in ("4294967294", "nobody")
    assert stats.owner("99999999999999999999") == "99999999999999999999"


def test_the_account_adds_up_or_says_what_is_left() -> None:
    whole = json.loads(certificate(dirs={"found": 3, "listed": 2, "denied": 1}))
    assert scan.certificate_words(whole) == [
        "directories found 3 = listed 2 + excluded 0 + denied 1 + timed out 0 + I/O error 0"
        " + other mount 0 + vanished 0"
    ]
    part = json.loads(certificate(dirs={"found": 3, "listed": 1}))
    assert scan.certificate_words(part)[1] == "2 directories not visited: the scan did not end"


@pytest.mark.parametrize(
    ("used", "words_"),
    [(1000, "the catalogue explains 1.00 kB of it"), (5000, "other 4.00 kB"), (500, "500 B more")],
)
def test_used_bytes_are_compared_with_those_catalogued(used: int, words_: str) -> None:
    account = json.loads(certificate(disk_bytes=1000, fs={"total_bytes": 10**6, "used_bytes": used}))
    assert words_ in " ".join(scan.certificate_words(account))


@pytest.mark.parametrize(
    ("state", "more", "words_"),
    [
        ("complete", {}, "Complete:"),
        ("cancelled", {}, "smartscan scan /m x"),
        ("running", {}, "smartscan monitor"),
        ("incomplete", {}, "smartscan retry x"),
        ("incomplete", {"mount_dead": 1}, "stopped answering"),
    ],
)
def test_a_scan_says_what_to_do_next(tmp_path: Path, state: str, more: dict[str, int], words_: str) -> None:
    db = empty(tmp_path / "c.db")
    add_scan(db, add_mount(db, "x", b"/m"), state, NOW, **more)
    db.close()
    with read.open_for_reading(tmp_path / "c.db") as db:
        assert words_ in page.plain(scan.page(scan.summary(db, 1)))


def test_a_command_to_copy_is_quoted(tmp_path: Path) -> None:
    db = empty(tmp_path / "c.db")
    add_scan(db, add_mount(db, "it's", b"/m/$(touch x)"), "cancelled", NOW)
    db.close()
    with read.open_for_reading(tmp_path / "c.db") as db:
        text = page.plain(scan.page(scan.summary(db, 1)))
    assert """smartscan scan '/m/$(touch x)' 'it'"'"'s'""" in text


@pytest.mark.parametrize(
    ("errno_", "wchan", "fs_type", "words_"),
    [
        (110, "request_wait_answer", "ext4", "the program behind the FUSE mount did not answer"),
        (110, "rpc_wait_bit_killable", "nfs4", "the NFS server did not answer"),
        (110, "io_schedule", "fuse.shfs", "the disk did not answer"),
        (110, None, "fuse.shfs", "a disk behind Unraid's user share did not answer"),
        (110, "0", "cifs", "the SMB server did not answer"),
        (110, None, None, "the storage did not answer"),
        (13, None, None, "this user may not read it"),
        (5, None, None, "SMART"),
        (9999, None, None, "the system said: Unknown error 9999"),
    ],
)
def test_a_problem_names_its_likely_cause(
    tmp_path: Path, errno_: int, wchan: str | None, fs_type: str | None, words_: str
) -> None:
    db = empty(tmp_path / "c.db")
    mount = add_mount(db, "x", b"/m", fs_type=fs_type)
    add_problem(db, mount, add_scan(db, mount, "incomplete", NOW), b"p", "open", errno_, wchan=wchan)
    db.close()
    with read.open_for_reading(tmp_path / "c.db") as db:
        (problem,) = read.problems(db, read.mounts(db))
    assert words_ in words.cause(problem)


# --- reading ----------------------------------------------------------------------------------------

letters = st.integers(1, 255).filter(lambda letter: letter != ord("/"))
names = st.lists(letters, min_size=1, max_size=6).map(bytes).filter(lambda name: name not in (b".", b".."))
trees: st.SearchStrategy[Tree] = st.recursive(
    st.builds(File, st.integers(0, 10**6)),
    lambda below: st.dictionaries(names, below, max_size=4),
    max_leaves=40,
).filter(lambda tree: isinstance(tree, dict))


@settings(max_examples=60, deadline=None)
@given(tree=trees, limit=st.integers(1, 8))
def test_largest_directories_are_those_a_full_look_finds(
    tmp_path_factory: pytest.TempPathFactory, tree: Tree, limit: int
) -> None:
    path = tmp_path_factory.mktemp("c") / "c.db"
    made = empty(path)
    mount = add_mount(made, "x", b"/m")
    made.execute("BEGIN")
    add_tree(made, mount, add_scan(made, mount, "complete", NOW), tree)
    made.execute("COMMIT")
    rows = made.execute("SELECT id, parent_id, entries, bytes, disk_bytes FROM dir").fetchall()
    made.close()
    children: dict[int | None, list[tuple[int, int]]] = {}
    for _, parent, _, size, disk in rows:
        children.setdefault(parent, []).append((disk, size))
    expected = []
    for dir_id, parent, entries, size, disk in rows:
        top_disk, top_size = max(children.get(dir_id, [(-1, -1)]))
        if parent is not None and entries and not (top_disk >= 0.95 * disk and top_size >= 0.95 * size):
            expected.append((disk, size))
    with read.open_for_reading(path) as db:
        mounts = read.mounts(db)
        found = read.largest_directories(db, mounts, limit=limit)
        assert [(d.disk_bytes, d.bytes) for d in found] == sorted(expected, reverse=True)[:limit]
        for directory in found:
            node: object = tree
            for name in directory.path.split(b"/"):
                assert isinstance(node, dict)
                node = node[name]
            assert isinstance(node, dict)


def test_what_is_below_an_unread_directory_is_a_lower_bound(videos: sqlite3.Connection) -> None:
    (mount,) = read.mounts(videos)
    found = {d.path: d.incomplete for d in read.largest_directories(videos, [mount], limit=10)}
    assert found[b"stuck"] and not found[b"Movies"]
    assert {(d.path, d.state) for d in read.missing(videos, mount, limit=9)} == {
        (b"stuck", DirState.TIMED_OUT), (b"locked\nroom", DirState.DENIED),
    }


def test_totals_and_paths_come_back_exactly(videos: sqlite3.Connection) -> None:
    (mount,) = read.mounts(videos, "Videos")
    totals = read.totals(videos, mount)
    assert (totals.files, totals.entries) == (9, 17)
    assert totals.bytes == sum(tally.bytes for tally in read.tally(videos, [mount], "extension"))
    largest = read.largest_files(videos, [mount], limit=100)
    assert [file.size for file in largest] == sorted((file.size for file in largest), reverse=True)
    assert b"Movies/Caf\xe9 [red].avi" in [file.path for file in largest]
    assert b"Series/one/two/deep.mkv" in [file.path for file in largest]
    assert len(largest) == 9 and len(fixture.VIDEOS) == 7


def test_what_is_not_there_is_said_with_what_is(videos: sqlite3.Connection) -> None:
    with pytest.raises(UsageError, match="no mount is named 'Fotos'; the catalogue has Videos"):
        read.mounts(videos, "Fotos")
    with pytest.raises(UsageError, match="there is no chunk 99; the catalogue has chunks 1 to 2"):
        runs.chunk(videos, 99)
    with pytest.raises(UsageError, match="there is no scan 99"):
        runs.scan(videos, 99)


def _refused(path: Path) -> str:
    with pytest.raises(CatalogueError) as error, read.open_for_reading(path) as db:
        runs.newest_scan(db)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_that_is_no_catalogue_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    assert "there is no catalogue" in _refused(path) and not path.exists()
    path.touch()
    assert "there is no catalogue" in _refused(path)
    path.write_bytes(b"certainly no database" * 1000)
    assert "is not a catalogue" in _refused(path)
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t (n)")
    other.close()
    assert "is not a catalogue" in _refused(path)
    assert "is not a file" in _refused(tmp_path)


@pytest.mark.parametrize(
    ("version", "words_"), [(999, "use a newer Smart Scanner"), (0, "the next scan brings it")]
)
def test_another_version_is_refused_in_words(tmp_path: Path, version: int, words_: str) -> None:
    db = empty(tmp_path / "c.db")
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    assert words_ in _refused(tmp_path / "c.db")


def test_a_torn_catalogue_is_refused_in_words(tmp_path: Path) -> None:
    fixture.videos(tmp_path / "c.db").close()
    data = bytearray((tmp_path / "c.db").read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    (tmp_path / "c.db").write_bytes(data)
    assert "cannot be read" in _refused(tmp_path / "c.db")


def test_a_look_beside_a_writer_sees_one_moment(tmp_path: Path) -> None:
    writer = fixture.videos(tmp_path / "c.db")
    with read.open_for_reading(tmp_path / "c.db") as db:
        before = runs.scan(db, 2)
        writer.execute("UPDATE scan SET entries = 999 WHERE id = 2")
        assert runs.scan(db, 2) == before
    with read.open_for_reading(tmp_path / "c.db") as db:
        assert runs.scan(db, 2).entries == 999
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM scan")


def test_a_locked_catalogue_is_said_to_be_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "WAIT_S", 0.1)
    writer = fixture.videos(tmp_path / "c.db")
    writer.execute("PRAGMA journal_mode = DELETE")
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CatalogueBusy, match="locked"), read.open_for_reading(tmp_path / "c.db"):
        pass
    writer.close()


def test_a_catalogue_at_rest_is_read_where_nothing_may_be_written() -> None:
    # Not tmp_path: its parents are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fixture.videos(folder / "c.db").close()
        os.chmod(folder / "c.db", 0o444)
        os.chmod(folder, 0o555)
        with ordinary_user() if os.geteuid() == 0 else nullcontext():
            with read.open_for_reading(folder / "c.db") as db:
                assert runs.scan(db, 2).state is ScanState.INCOMPLETE


def test_a_terminal_obeys_nothing_that_is_on_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "S\x1b]0;x\x07\n\x9b31m\u202e"
    blocks = [
        page.Line(evil), page.Facts([(evil, evil), ("none", None)]), page.Paths(evil, [evil]),
        page.Table(evil, (">Name", evil), [[evil, evil]], evil),
    ]  # fmt: skip
    from rich.console import Console

    console = Console(width=200, color_system=None)
    with console.capture() as shown:
        console.print(page.rich(blocks))
    say(evil)
    for text in (page.plain(blocks), shown.get(), capsys.readouterr().err):
        assert all(c.isprintable() or c == "\n" for c in text)
        assert "\\x1b" in text
