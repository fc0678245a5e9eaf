"""`scan` from outside: the command line, real trees, the catalogue compared with find(1)."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import catalogues
from catalogues import listing, tallies, totals
from trees import Fifo, File, Hard, Link, build, find_listing, odd_tree

SMARTSCAN = [sys.executable, "-m", "smartscan.cli"]
SMALL = ["--chunk-entries", "60", "--max-containers", "3"]


def run(*words: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run a command of the program on the local engine; its exit status is checked, None: any."""
    done = subprocess.run(
        [*SMARTSCAN, *map(os.fspath, map(str, words))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def scan(share: Path, db: Path, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = run("scan", share, "share", "--db", db, "--engine", "local", *words, code=code)
    if code in (0, 3):
        catalogues.check(db)
        assert not (db.parent / "work").exists()
    return done


def same_as_find(share: Path, db: Path, *, without: tuple[bytes, ...] = (), xdev: bool = False) -> None:
    """Compare entry by entry; `without` are directories that are recorded but not entered."""
    found = find_listing(share, xdev=xdev)
    root = found.pop(b"")
    want = {
        p: e._replace(dev=0) for p, e in found.items() if not any(p.startswith(w + b"/") for w in without)
    }
    have = listing(db)
    assert have.keys() == want.keys()
    for path, entry in want.items():
        assert have[path] == entry, path
    below = {p: e for p, e in found.items() if p in want}
    sums = catalogues.counted_once(below)
    files, entries, size, disk = totals(db)[b""]
    assert (files, entries) == (sums.get("f", (0, 0))[0], len(want))
    assert size == sum(s for kind, (_, s) in sums.items() if kind != "d")
    if not without:
        du = subprocess.run(["du", "-s", "-B1", share], capture_output=True, check=True).stdout
        assert disk == int(du.split()[0])
    assert root.type == "d"


def same_catalogue(one: Path, other: Path) -> None:
    """Compare all but ids, and which of several names of a file is the one that counts."""
    assert listing(one) == listing(other)
    for dimension in ("owner", "month", "size"):  # a file with two names has one extension or the other
        kept = [{k: v for k, v in tallies(file).items() if k[0] == dimension} for file in (one, other)]
        assert kept[0] == kept[1]
    first, second = totals(one), totals(other)
    assert first.keys() == second.keys()
    assert first[b""] == second[b""]


TREE = {
    "movies": {b"%03d.mkv" % n: 1000 + n for n in range(150)},
    "photos": {str(y): {str(m): {f"{n}.JPG": 7 * n for n in range(9)} for m in range(12)} for y in range(4)},
    ".hidden": {"x": 1},
    "links": {"a": Link("../movies"), "hard": Hard("movies/000.mkv"), "pipe": Fifo()},
    "empty": {},
    "file directly in the share": 3,
}


@pytest.fixture
def share(tmp_path: Path) -> Path:
    path = tmp_path / "share"
    path.mkdir()
    build(path, TREE)
    return path


@pytest.fixture
def db(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "smart_catalog.db"


@pytest.mark.root
@pytest.mark.parametrize("limits", [[], SMALL], ids=["one chunk", "many chunks"])
def test_the_odd_tree_is_catalogued_entry_by_entry(tmp_path, db, limits):
    with odd_tree(tmp_path / "odd", big=False) as odd:
        scan(odd.path, db, *limits)
        system = odd.system_dirs
        loop = odd.bind
        want = find_listing(odd.path)
        have = listing(db)
        if loop:  # find leaves a loop out, the catalogue has it and does not enter it
            assert have.pop(loop).type == "d"
        want = {
            p: e._replace(dev=0)
            for p, e in want.items()
            if p and not p.startswith(tuple(s + b"/" for s in system))
        }
        far = 2**63 - 1  # what a time beyond the year 2262 is held at
        assert have == {p: e._replace(mtime_ns=min(e.mtime_ns, far)) for p, e in want.items()}
        with closing(sqlite3.connect(db)) as conn:
            states = dict(conn.execute("SELECT state, count(*) FROM dir GROUP BY state"))
        assert states["excluded"] == len(system)
        run("stats", "share", "--db", db)
        run("problems", "--db", db)


def test_hidden_and_direct_files_are_found_and_links_are_not_followed(share, db):
    scan(share, db, *SMALL)
    same_as_find(share, db)


def test_directory_totals_and_tallies_are_those_of_an_independent_count(share, db):
    scan(share, db, *SMALL)
    entries = find_listing(share)
    for path, (files, count, size, disk) in totals(db).items():
        inside = {
            p: e for p, e in entries.items() if p.startswith(path + b"/" if path else b"") and p != path
        }
        assert count == len(inside)
        if b"links" in (path, path[:5]) or not path or path == b"movies":
            continue  # which of two names counts is not fixed
        assert files == sum(e.type == "f" for e in inside.values())
        assert size == sum(e.size for e in inside.values() if e.type != "d")
        assert disk == 512 * sum(e.blocks for e in [*inside.values(), entries[path]])
    kept = tallies(db)
    assert (
        kept["extension", b"mkv"][0] + kept["extension", b""][0] == 150 + 2
    )  # one file is mkv by one name only
    assert kept["extension", b"jpg"][:2] == (4 * 12 * 9, 48 * sum(7 * n for n in range(9)))


def test_the_files_view_serves_scripts(share, db):
    os.utime(share / "movies" / "001.mkv", ns=(0, -1_500_000_000))
    scan(share, db)
    with closing(sqlite3.connect(db)) as conn:
        rows = conn.execute(
            "SELECT path, size, mtime, checksum, mount_point, file_type, extension FROM files WHERE path = ?",
            (f"{share}/movies/001.mkv",),
        ).fetchall()
        (count,) = conn.execute("SELECT count(*) FROM files").fetchone()
    assert rows == [(f"{share}/movies/001.mkv", 1001, -2, None, "share", "file", "mkv")]
    assert count == sum(e.type == "f" for e in find_listing(share).values())


def test_a_second_scan_tells_new_changed_and_gone_and_equals_a_fresh_one(share, db, tmp_path):
    scan(share, db)
    again = json.loads(scan(share, db, "--json").stdout)
    assert (again["entries_new"], again["entries_changed"], again["entries_gone"]) == (0, 0, 0)
    (share / "movies" / "new.mkv").write_bytes(b"12")
    (share / "movies" / "007.mkv").unlink()
    (share / "movies" / "008.mkv").write_bytes(b"longer than before" * 100)
    shutil.rmtree(share / "photos" / "2")
    (share / "empty" / "deep" / "er").mkdir(parents=True)
    third = json.loads(scan(share, db, "--json").stdout)
    # the directories movies, photos and empty changed with what lies in them
    assert third["entries_new"] == 1 + 2
    assert third["entries_gone"] == 1 + 1 + 12 + 12 * 9
    assert third["entries_changed"] == 1 + 3
    same_as_find(share, db)
    fresh = tmp_path / "fresh" / "smart_catalog.db"
    fresh.parent.mkdir()
    scan(share, fresh)
    same_catalogue(db, fresh)


@pytest.mark.parametrize("seed", range(6))
def test_after_any_changes_a_rescan_equals_a_fresh_catalogue(share, db, tmp_path, seed):
    chance = random.Random(seed)
    scan(share, db, *(SMALL if seed % 2 else []))
    for _ in range(3):
        for _ in range(12):
            _change(share, chance)
        scan(share, db, *(SMALL if chance.random() < 0.5 else []))
    same_as_find(share, db)
    fresh = tmp_path / "fresh" / "smart_catalog.db"
    fresh.parent.mkdir()
    scan(share, fresh)
    same_catalogue(db, fresh)


def _change(share: Path, chance: random.Random) -> None:
    """Do one random thing to a tree."""
    dirs = [Path(d) for d, _, _ in os.walk(share)]
    files = [Path(d) / f for d, _, names in os.walk(share) for f in names]
    folder, name = chance.choice(dirs), f"n{chance.randrange(10**6)}.TXT"
    match chance.randrange(8):
        case 0:
            (folder / name).write_bytes(b"x" * chance.randrange(9000))
        case 1 if len(files) > 5:
            chance.choice(files).unlink()
        case 2:
            victim = chance.choice(dirs)
            if victim != share and len(dirs) > 8:
                shutil.rmtree(victim)
                if chance.random() < 0.5:
                    victim.write_bytes(b"a file where a directory was")
        case 3:
            (folder / name / "deeper").mkdir(parents=True)
            (folder / name / "deeper" / "file").write_bytes(b"y")
        case 4 | 5:
            regular = [f for f in files if f.is_file() and not f.is_symlink()]
            os.link(chance.choice(regular), folder / name)
        case 6:
            os.chmod(chance.choice(dirs), chance.choice((0o755, 0o700, 0o750)))
        case 7:
            victim = chance.choice(dirs)
            if victim != share and victim not in folder.parents and victim != folder:
                victim.rename(folder / name)


def test_an_empty_or_missing_share_is_an_error_and_nothing_is_deleted(share, db):
    scan(share, db)
    before = listing(db)
    for entry in share.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    assert "is empty" in scan(share, db, code=10).stderr
    share.rmdir()
    assert "No such file" in scan(share, db, code=10).stderr
    share.write_bytes(b"")
    assert "Not a directory" in scan(share, db, code=10).stderr
    assert listing(db) == before


def test_a_scan_of_nothing_leaves_no_trace(tmp_path, db):
    scan(tmp_path / "missing", db, code=10)
    with closing(sqlite3.connect(db)) as conn:
        for table in ("mount", "scan", "chunk", "dir", "event", "problem"):
            assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["scan", "{share}", ""], 2, "cannot be the name"),
        (["scan", "{share}", "a/b"], 2, "cannot be the name"),
        (["scan", "{share}", "x", "--chunk-size", "0"], 2, "chunk-size"),
        (["scan", "{share}", "x", "--chunk-size", "-1"], 2, "chunk-size"),
        (["scan", "{share}", "x", "--chunk-entries", "0"], 2, "chunk-entries"),
        (["scan", "{share}", "x", "--max-containers", "0"], 2, "max-containers"),
        (["scan", "{share}", "x", "--memory", "lots"], 2, "memory"),
        (["scan", "{share}", "x", "--db", "{share}/no/such/x.db"], 12, "does not exist"),
        (["scan", "{share}", "x", "--db", "{share}/movies/000.mkv"], 12, "not a catalogue"),
    ],
)
def test_bad_words_get_one_sentence(share, db, words, code, sentence):
    done = run(
        *[w.format(share=share) for w in words],
        "--engine",
        "local",
        *([] if "--db" in words else ["--db", db]),
        code=code,
    )
    assert sentence in done.stderr.splitlines()[-1]


def test_names_and_paths_belong_together(share, db):
    scan(share, db)
    other = run("scan", share / "movies", "inside", "--db", db, "--engine", "local", code=2)
    assert "lies in" in other.stderr
    assert (
        "lies in this path"
        in run("scan", share.parent, "above", "--db", db, "--engine", "local", code=2).stderr
    )
    assert "already used" in run("scan", "/etc", "share", "--db", db, "--engine", "local", code=2).stderr
    assert "by that name" in run("scan", share, "again", "--db", db, "--engine", "local", code=2).stderr


def _start(share: Path, db: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SMARTSCAN, "scan", share, "share", "--db", db, "--engine", "local", *SMALL, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _workers_of(db: Path) -> list[str]:
    """Find processes that work in the data directory of a catalogue."""
    mark = os.fsencode(db.parent)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                mark in (process / "cmdline").read_bytes()
                and b"smartscan.worker" in (process / "cmdline").read_bytes()
            ):
                found.append(process.name)
        except OSError:
            pass
    return found


def test_the_second_scan_of_a_mount_is_told_who_holds_it(share, db):
    first = _start(share, db)
    second = scan(share, db, code=None)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 0, out
    if second.returncode:  # it may have come too late
        assert second.returncode == 12
        assert f"process {first.pid}" in second.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_scan_goes_on_with_the_same_command(share, db, tmp_path, number):
    scanning = _start(share, db)
    until = time.monotonic() + 30
    while not (db.parent / "work").exists() and scanning.poll() is None and time.monotonic() < until:
        time.sleep(0.01)  # a busy machine takes its time before the program listens to signals
    scanning.send_signal(number)
    out, err = scanning.communicate(timeout=60)
    if scanning.returncode:  # else it was done before
        assert scanning.returncode == 130, err
        assert "To go on" in out
    assert _workers_of(db) == []
    scan(share, db, *SMALL)
    same_as_find(share, db)


@pytest.mark.parametrize("seed", range(int(os.environ.get("SMART_SCAN_KILLS", "8"))))
def test_a_killed_scan_goes_on_and_equals_an_undisturbed_one(share, db, seed):
    chance = random.Random(seed)
    for _ in range(3):
        scanning = _start(share, db)
        time.sleep(chance.uniform(0.15, 1.2))
        scanning.kill()
        scanning.communicate()
        until = time.monotonic() + 5
        while _workers_of(db) and time.monotonic() < until:
            time.sleep(0.02)
        assert _workers_of(db) == [], "a worker outlived its controller"
    scan(share, db, *SMALL)
    same_as_find(share, db)


def test_killed_workers_cost_nothing(share, db):
    scanning = _start(share, db)
    until = time.monotonic() + 4
    killed = 0
    while scanning.poll() is None and time.monotonic() < until:
        found = _workers_of(db)[:1]
        for pid in found:
            try:
                os.kill(int(pid), signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
        time.sleep(0.25 if found else 0.002)  # the first must not end before it is seen
    out, err = scanning.communicate(timeout=90)
    assert killed
    assert scanning.returncode in (0, 3), out + err
    if scanning.returncode == 3:  # given up where every attempt was killed; tried again it is whole
        run("retry", "share", "--db", db, "--engine", "local")
    same_as_find(share, db)


def test_plan_follows_the_rules_of_the_users_document(tmp_path, db):
    share = tmp_path / "share"
    share.mkdir()
    build(
        share,
        {
            "big": {"a": {"f": File(300_000)}, "b": {"f": File(300_000)}, "own": File(100_000)},
            "leaf": {"f": File(900_000)},
            "s1": {"f": 10},
            "s2": {"f": 10},
        },
    )
    chunks = json.loads(
        run("plan", share, "--engine", "local", "--chunk-size", "0.0005", "--json", "--db", db).stdout
    )
    roots = {(r["path"], r["scope"]): n for n, c in enumerate(chunks) for r in c["roots"]}
    assert chunks == sorted(chunks, key=lambda c: -c["disk_bytes"])
    assert ("leaf", "files") in roots  # larger than the limit, and nothing to cut
    assert roots["big/a", "subtree"] != roots["big/b", "subtree"]
    assert ("big", "files") in roots and ("", "files") in roots
    assert roots["s1", "subtree"] == roots["s2", "subtree"]  # small ones share a chunk
    assert not db.exists()
    scan(share, db)
    known = json.loads(
        run("plan", share, "--from-catalogue", "--chunk-size", "0.0005", "--json", "--db", db).stdout
    )
    assert known == chunks
    assert "largest first" in run("plan", share, "--from-catalogue", "--db", db).stdout


def test_an_analysed_scan_has_the_same_result(share, db):
    scan(share, db, "--analyze", *SMALL)
    same_as_find(share, db)
    assert not list(db.parent.glob("survey-*"))


@pytest.mark.root
def test_cleanup_takes_what_ended_and_keeps_what_can_go_on(share, db):
    scan(share, db)
    old = db.parent / "work" / "share" / "99-1"
    old.mkdir(parents=True)
    assert "would remove" in run("cleanup", "--db", db, "--dry-run").stdout
    assert old.exists()
    run("cleanup", "--db", db)
    assert not old.exists() and db.exists()
