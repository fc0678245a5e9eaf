"""Words, paths and catalogues that cannot be used: one sentence, the right exit status, nothing lost."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest

from command import check_nothing_is_left, command_of, run, scan, scan_words
from disks import fill, small_disk
from smartscan.catalogue.directory import remove
from trees import Tree, build, find_listing
from truth import check_consistent, check_same_tree, holdings
from users import NOBODY

TREE: Tree = {"films": {"a.mkv": 100, "b": {"c.mkv": 200}}, "file": 3}


def refused(*words: object, code: int, sentence: str, **more: object) -> str:
    """Run what cannot work: the last line of stderr says why, and stdout is empty."""
    done = run(*words, code=code, **more)  # type: ignore[arg-type]
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("smartscan: ")
    assert sentence in last
    return last


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "cannot be the name"), ("a/b", "cannot be the name"), ("/", "cannot be the name"),
        ("..", "cannot be the name"), (" a", "cannot be the name"), ("a\n", "cannot be the name"),
        (b"\xff", "cannot be the name"), ("é" * 51, "at most 100 bytes"),
    ],
)  # fmt: skip
def test_names_that_cannot_be(share, db, name, sentence):
    refused("scan", share, name, "--db", db, code=2, sentence=sentence)
    assert not db.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--chunk-size", "0"), ("--chunk-size", "-1"), ("--chunk-size", "lots"), ("--chunk-size", "nan"),
        ("--chunk-size", "1e999"), ("--chunk-size", "0.0000000001"), ("--chunk-size", ""),
        ("--chunk-entries", "0"), ("--chunk-entries", "-5"), ("--chunk-entries", "1.5"),
        ("--max-containers", "0"), ("--max-containers", "-1"), ("--cpus", "0"), ("--cpus", "-1"),
        ("--cpus", "nan"), ("--cpus", "inf"), ("--memory", "0"), ("--memory", "-1g"), ("--memory", "lots"),
        ("--memory", "1k"), ("--threads", "0"), ("--stall-after", "0"), ("--stall-after", "nan"),
        ("--engine", "magic"), ("--db", ""),
    ],
)  # fmt: skip
def test_sizes_and_choices_that_cannot_be(share, db, words):
    for command in (("scan", share, "Media"), ("plan", share)):
        done = run(*command, "--db", db, *words, code=2)
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert words[0] in done.stderr
    assert not db.exists()


@pytest.mark.parametrize("command", ["scan", "plan"])
def test_paths_that_cannot_be(share, db, command):
    name = ("Media",) if command == "scan" else ()
    rest = (*name, "--db", db, "--engine", "local")
    refused(command, "", *rest, code=2, sentence="is empty")
    refused(command, share / "none", *rest, code=10, sentence="No such file or directory; check the path")
    refused(command, share / "file", *rest, code=10, sentence="Not a directory")
    refused(command, share / "file" / "below", *rest, code=10, sentence="Not a directory")
    (share / "empty").mkdir()
    refused(command, share / "empty", *rest, code=10, sentence="is empty")
    refused(command, share / ("x" * 300), *rest, code=10, sentence="File name too long")
    check_nothing_is_left(db)


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111], ids=oct)
def test_a_share_that_an_ordinary_user_may_not_read(share, db, tmp_path, mode):
    ordinary = command_of(NOBODY)
    if not ordinary:
        pytest.skip("no Python that an ordinary user may run")
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    os.chown(db.parent, NOBODY, NOBODY)
    share.chmod(mode)
    if mode == 0o444:  # it may be opened, and nothing in it may be looked at
        done = run(*scan_words(share, db), code=3, **ordinary)
        assert "could not be read" in done.stdout
        found = holdings(db, "Media")
        check_consistent(found)
        assert found.states() == {b"": "denied"}
        return
    refused(*scan_words(share, db), code=10, sentence="Permission denied", **ordinary)
    share.chmod(0o755)
    run(*scan_words(share, db), **ordinary)
    check_same_tree(holdings(db, "Media"), find_listing(share))


TIGHTER = {
    "nice": "nice -n 10",
    "data": "prlimit --data=1000000000",
    "oom": "choom -n 900 --",
}


@pytest.mark.root
@pytest.mark.parametrize("tighter", TIGHTER.values(), ids=TIGHTER)
def test_an_ordinary_user_who_is_held_tighter_than_a_worker_would_be(share, db, tmp_path, tighter):
    ordinary = command_of(NOBODY)
    if not ordinary:
        pytest.skip("no Python that an ordinary user may run")
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    os.chown(db.parent, NOBODY, NOBODY)
    drop = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    command = ("timeout", "-s", "INT", "15", *tighter.split(), *drop, *ordinary["command"])
    run(*scan_words(share, db), command=command, env=ordinary["env"], cwd="/")
    check_same_tree(holdings(db, "Media"), find_listing(share))


# Names and paths belong together


def test_one_name_one_path_and_no_share_within_another(share, db, tmp_path):
    scan(share, db)
    before = db.read_bytes()
    other = tmp_path / "other"
    build(tmp_path, {"other": {"file": 1}})
    for path, name, sentence in (
        (other, "Media", f"the name 'Media' is already used for {share}"),
        (share, "Films", "is already catalogued as 'Media'; scan it by that name"),
        (f"{share}/", "Films", "is already catalogued as 'Media'"),
        (f"{share}/films/..", "Films", "is already catalogued as 'Media'"),
        (share / "films", "Films", f"lies in {share}, which is catalogued as 'Media'"),
        (tmp_path, "All", f"{share}, catalogued as 'Media', lies in this path"),
        ("/", "Everything", "lies in this path"),
    ):
        refused("scan", path, name, "--db", db, "--engine", "local", code=2, sentence=sentence)
    refused("retry", "Films", "--db", db, code=2, sentence="no mount is named 'Films'")
    refused("plan", other, "--from-catalogue", "--db", db, code=2, sentence="is not in the catalogue")
    assert db.read_bytes() == before
    (tmp_path / "share, too").mkdir()
    build(tmp_path / "share, too", {"file": 1})
    # One that begins alike lies beside it.
    run("scan", tmp_path / "share, too", "Beside", "--db", db, "--engine", "local")
    check_nothing_is_left(db)


# Catalogues


def test_catalogues_that_cannot_be(share, db, tmp_path):
    def no(path: object, sentence: str) -> None:
        for command in (("scan", share, "Media"), ("scan", share, "Media", "--analyze")):
            refused(*command, "--db", path, "--engine", "local", code=12, sentence=sentence)

    no(tmp_path / "none" / "x.db", "does not exist; make it")
    no(share / "file" / "x.db", "does not exist")
    (tmp_path / "text.db").write_text("These are my notes, and no catalogue at all.\n" * 100)
    no(tmp_path / "text.db", "is not a catalogue of Smart Scanner")
    assert (tmp_path / "text.db").read_text().startswith("These are my notes")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE mine (x)")
    kept = (tmp_path / "other.db").read_bytes()
    no(tmp_path / "other.db", "is not a catalogue of Smart Scanner")
    assert (tmp_path / "other.db").read_bytes() == kept
    scan(share, db)
    with closing(sqlite3.connect(db)) as newer:
        newer.execute("PRAGMA user_version = 99")
    kept = db.read_bytes()
    no(db, "has version 99")
    assert db.read_bytes() == kept
    assert not (tmp_path / "none").exists()
    words = ("plan", share, "--db", tmp_path / "none" / "x.db", "--engine", "local")
    refused(*words, code=12, sentence="does not exist")
    for command in (("plan", share, "--from-catalogue"), ("retry", "Media"), ("stats",), ("problems",)):
        refused(*command, "--db", tmp_path / "data" / "none.db", code=12, sentence="there is no catalogue")
    assert "is a directory" in run("scan", share, "Media", "--db", tmp_path, code=2).stderr


@pytest.mark.root
def test_a_catalogue_on_a_read_only_or_full_disk(share, tmp_path):
    import subprocess

    with small_disk(40) as disk:
        db = disk / "smart_catalog.db"
        scan(share, db)
        held = holdings(db, "Media")
        (share / "films" / "new").touch()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        refused(*scan_words(share, db), code=12, sentence="is on a read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        for reserve in disk.glob("*.reserve"):
            reserve.unlink()
        filler = fill(disk)
        refused(*scan_words(share, db), code=12, sentence="there is no space left for the catalogue")
        assert holdings(db, "Media").entries == held.entries
        filler.unlink()
        scan(share, db)
        held = holdings(db, "Media")
        check_consistent(held)
        check_same_tree(held, find_listing(share))


@pytest.mark.root
def test_a_catalogue_that_an_ordinary_user_may_not_write(share, db, tmp_path):
    ordinary = command_of(NOBODY)
    if not ordinary:
        pytest.skip("no Python that an ordinary user may run")
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    scan(share, db)
    refused(*scan_words(share, db), code=12, sentence="may not be written by this user", **ordinary)
    os.chown(db.parent, NOBODY, NOBODY)
    refused(*scan_words(share, db), code=12, sentence="may not be written by this user", **ordinary)
    for file in db.parent.rglob("*"):
        os.chown(file, NOBODY, NOBODY)
    (db.parent / "work").mkdir()  # root's, as an attempt of root's that was killed leaves it
    refused(*scan_words(share, db), code=12, sentence="work may not be written", **ordinary)
    (db.parent / "work").rmdir()
    run(*scan_words(share, db), **ordinary)
    check_same_tree(holdings(db, "Media"), find_listing(share))


@pytest.mark.parametrize("command", ["stats", "monitor"])
def test_a_catalogue_that_somebody_else_has_written_to_is_said_to_be_damaged(share, db, command):
    scan(share, db)
    with closing(sqlite3.connect(db)) as conn, conn:
        conn.execute("UPDATE scan SET certificate = '[[[', controller = '[[['")
    words = ("--once",) if command == "monitor" else ()
    refused(command, *words, "--db", db, code=12, sentence="cannot be read")


@pytest.mark.parametrize(
    "change",
    [
        "options = '[]'", "options = 'null'", "controller = '\"x\"'",
        "options = '{\"patterns_b64\": 5}'", "options = '{\"patterns_b64\": [\"!\"]}'",
    ],
)  # fmt: skip
def test_a_broken_off_scan_whose_row_is_damaged(share, db, change):
    scan(share, db)
    with closing(sqlite3.connect(db)) as conn:
        conn.execute(f"UPDATE scan SET state = 'running', ended_at = NULL, {change}")
        conn.commit()
    said = []
    for command in ("stats", "stats --json", "monitor --once", "problems", "story 1"):
        said.append(run(*command.split(), "--db", db, code=None))
    said.append(run(*scan_words(share, db), code=None))
    assert all(done.returncode in (0, 12) for done in said), said
    assert all("is damaged" in done.stderr for done in said if done.returncode), said
    assert any(done.returncode for done in said)


@pytest.mark.root
@pytest.mark.parametrize(
    "place", ["work", "work/Media", "locks", "smart_catalog.db", "smart_catalog.reserve"]
)
def test_root_follows_no_link_that_the_owner_of_the_data_directory_has_laid(share, db, tmp_path, place):
    victim = tmp_path / "victim"
    victim.mkdir()
    build(victim, {"Media": {"1-1": {"precious": 5}}, "1-1": {"precious": 7}})
    before = find_listing(victim)
    file = place.startswith("smart_catalog")
    link = db.parent / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim / "new" if file else victim)
    for path in (db.parent, link.parent, link):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    if place == "smart_catalog.reserve":  # one may be spared
        scan(share, db)
        assert not os.path.lexists(link)
    else:
        refused(*scan_words(share, db), code=12, sentence=f"{link} is a link")
        run("cleanup", "--db", db)
        assert link.is_symlink()
    assert find_listing(victim) == before


@pytest.mark.root
def test_cleanup_removes_nothing_through_a_link_and_waits_for_no_pipe(db, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    build(victim, {"1-1": {"precious": 7}, "faultfs-x": {}})
    before = find_listing(victim)
    for place in ("work", "survey-x", "drill-x", ".probe-x"):
        (db.parent / place).symlink_to(victim)
    (db.parent / "drill-pipe").mkdir()
    os.mkfifo(db.parent / "drill-pipe" / "lock")
    said = run("cleanup", "--db", db).stdout
    assert [line for line in said.splitlines() if line.startswith("kept: ")] == [
        f"kept: {db.parent}/{place} is a link, which this program never lays: not touched"
        for place in (".probe-x", "drill-x", "survey-x", "work")
    ]
    (db.parent / "work").unlink()
    (db.parent / "work").mkdir()
    (db.parent / "work" / "Media").symlink_to(victim)
    (db.parent / "work" / "file").touch()
    assert f"kept: {db.parent}/work/Media is a link" in run("cleanup", "--db", db).stdout
    assert find_listing(victim) == before
    folder = db.parent / "work" / "Media" / "1-1"
    remove(folder, below=db.parent)
    assert find_listing(victim) == before
    (db.parent / "work" / "Media").unlink()
    folder.mkdir(parents=True)
    build(folder, {"x": 1, "y": {"z": 2}})
    remove(folder, below=db.parent)
    assert not folder.exists()


@pytest.mark.parametrize("table", ["scan", "chunk", "dir"])
def test_a_state_that_is_none(share, db, table):
    scan(share, db)
    with closing(sqlite3.connect(db)) as conn, conn:
        conn.execute(f"UPDATE {table} SET state = 'odd'")
    commands = ("stats", "monitor --once", "problems", "story 1")
    said = [run(*command.split(), "--db", db, code=None) for command in commands]
    assert all(done.returncode in (0, 12) for done in said), said
    assert all("is damaged: 'odd' is no state of a " + table in d.stderr for d in said if d.returncode), said
    assert any(done.returncode for done in said)


def test_a_broken_off_scan_in_a_catalogue_whose_name_is_no_text(share, tmp_path):
    db = tmp_path / os.fsdecode(b"d\xff") / os.fsdecode(b"c\xff.db")
    db.parent.mkdir()
    scan(share, db)
    with closing(sqlite3.connect(db)) as conn:
        conn.execute("UPDATE scan SET state = 'running', ended_at = NULL")
        conn.execute("UPDATE mount SET name = '-x' || char(0)")
        conn.commit()
    assert "running" in run("stats", "--db", db).stdout  # of such a mount there is no lock
    with closing(sqlite3.connect(db)) as conn:
        conn.execute("UPDATE mount SET name = 'Media'")
        conn.commit()
    said = run("stats", "--db", db).stdout
    assert "Broken off" in said and r"/d\xff/c\xff.db'" in said
