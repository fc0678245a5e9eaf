"""`scan` from outside: the command line on real trees, entry by entry as find(1) has them, sums as du(1)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from changes import change
from command import COMMAND, command_of, ended_at_last, run, scan, scan_words, start, until
from trees import Fifo, File, Hard, Link, OddTree, Tree, build, chain, churning, find_listing, odd_tree
from truth import check_consistent, check_same_tree, device, differences, du, expected, holdings
from users import NOBODY, may_mount

# Many chunks, FILES chunks and leftovers of a small tree.
ENTRIES = ("--chunk-entries", 50, "--max-containers", 3)
BYTES = ("--chunk-size", "0.00001", "--max-containers", 3)
TREE: Tree = {
    "movies": {b"%03d.mkv" % n: 1000 + n for n in range(150)},
    "photos": {str(y): {str(m): {f"{n}.JPG": 7 * n for n in range(9)} for m in range(6)} for y in range(4)},
    ".hidden": {"x": 1},
    "links": {"a": Link("../movies"), "pipe": Fifo(),
              **{f"{n}.avi": Hard(f"movies/{n:03}.mkv") for n in range(0, 150, 10)}},
    "empty": {},
    "file directly in the share": 3,
    "again.mkv": Hard("photos/1/1/8.JPG"),
}  # fmt: skip


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    (tmp_path / "fresh").mkdir()
    return tmp_path / "fresh" / "smart_catalog.db"


# Real trees


@pytest.mark.parametrize("limits", [(), ENTRIES, BYTES], ids=["one chunk", "by entries", "by bytes"])
def test_a_tree_is_catalogued_entry_by_entry_and_its_sums_are_du_s(share, db, limits):
    done = scan(share, db, *limits)
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))
    assert held.sums()[3] == du(share)
    assert held.chunk_states.keys() == {"done"}
    assert (held.chunk_states.total() > 3) == bool(limits)
    assert held.new_changed_gone() == (None, None, None)
    assert held.scans[0]["entries"] == len(held.entries)
    assert "Complete: every directory was read" in done.stdout
    assert f"{held.sums()[0]:,}" in done.stdout


@pytest.mark.parametrize(
    "big",
    [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
    ids=["small", "big"],
)
def test_the_odd_tree_is_catalogued_entry_by_entry(tmp_path, db, big):
    """Whatever the user may: as root with devices and mounts, else with directories that are denied."""
    with odd_tree(tmp_path / "odd", big=big) as odd:
        limits = ENTRIES if not big else ("--chunk-entries", 20_000)
        for second in (False, True):
            done = scan(odd.path, db, *limits, code=0 if may_mount() else 3)
            _check_odd(odd, db, xdev=False)
            if second:
                assert holdings(db, "Media").new_changed_gone() == (0, 0, 0), done.stdout
        run("stats", "Media", "--db", db)
        run("problems", "--db", db)
        for number in range(0, odd.wide, 100):  # the wide directory comes in several pieces, changed or not
            (odd.path / "wide" / f"{number:06}").unlink()
            os.link(odd.path / "wide" / f"{number + 1:06}", odd.path / "wide" / f"{number:06} again")
        scan(odd.path, db, *limits, code=0 if may_mount() else 3)
        _check_odd(odd, db, xdev=False)
        some = odd.wide // 100
        assert holdings(db, "Media").new_changed_gone() == (some, some + 1, some)
        fresh = tmp_path / "fresh" / "smart_catalog.db"
        fresh.parent.mkdir()
        scan(odd.path, fresh, code=None)
        _check_odd(odd, fresh, xdev=False)


def _check_odd(odd: OddTree, db: Path, *, xdev: bool) -> None:
    held = holdings(db, "Media")
    check_consistent(held)
    listing = find_listing(odd.path, xdev=xdev)
    if odd.bind:  # find(1) leaves a loop out; the catalogue has it, and says so
        assert held.entries.pop(odd.bind).type == "d"
        assert held.dirs[odd.bind].state == "other mount"
        assert "loop" in (held.dirs[odd.bind].reason or "")
    check_same_tree(held, listing, without=odd.system_dirs)
    for path in odd.system_dirs:
        assert held.dirs[path].state == "excluded"
        assert held.dirs[path].reason
    assert held.entries[odd.far].size == len(b"the end")
    assert {path: held.entries[path].size for path in odd.huge} == odd.huge
    assert sum(held.entries[path].counted or 0 for path in odd.hard) == 1
    assert not (odd.path / "x").exists() and not Path("x").exists(), "a name was executed"


@pytest.mark.root
@pytest.mark.parametrize("option", ["--one-file-system", "--enter-system-dirs"])
def test_the_odd_tree_with_other_rules(tmp_path, db, option):
    with odd_tree(tmp_path / "odd", big=False) as odd:
        scan(odd.path, db)  # what it has entered before goes, what it has not comes
        scan(odd.path, db, option)
        held = holdings(db, "Media")
        check_consistent(held)
        listing = find_listing(odd.path)
        assert odd.inside and odd.bind
        assert held.entries.pop(odd.bind).type == "d"
        without = (odd.inside, *odd.system_dirs) if option == "--one-file-system" else ()
        check_same_tree(held, listing, without=without)
        inside = held.dirs[odd.inside]
        assert inside.state == ("other mount" if without else "listed")
        if not without:
            assert inside.dev == device(listing[odd.inside]) != held.dirs[b""].dev


@pytest.mark.root
def test_what_an_ordinary_user_may_not_read_is_named_and_read_by_root_later(tmp_path, db):
    ordinary = command_of(NOBODY)
    if not ordinary:
        pytest.skip("no Python that an ordinary user may run")
    for folder in (db.parent, tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    os.chown(db.parent, NOBODY, NOBODY)
    with odd_tree(tmp_path / "odd", big=False) as odd:
        done = run(*scan_words(odd.path, db), code=3, **ordinary)
        assert "Incomplete: 3 directories and 1 other path could not be read" in done.stdout
        held = holdings(db, "Media")
        check_consistent(held)
        nothing, no_search, no_read = odd.denied
        below = no_search + b"/folder"
        denied = {path for path, state in held.states().items() if state == "denied"}
        assert denied == {nothing, no_read, below}
        have = held.listed()
        assert odd.bind and have.pop(odd.bind)
        for path in (no_search + b"/file", below):  # their names may be read, and nothing else of them
            assert have.pop(path)[1:5] == (None,) * 4
        assert have == expected(find_listing(odd.path, user=NOBODY), without=(*odd.system_dirs, no_search))
        assert {path for path, _ in held.problems} == {nothing, no_read, no_search + b"/file", below}
        run("retry", "Media", "--db", db, "--engine", "local")
        held = holdings(db, "Media")
        check_consistent(held)
        assert held.entries.pop(odd.bind)
        check_same_tree(held, find_listing(odd.path), without=odd.system_dirs)
        assert held.scans[-1]["state"] == "complete"
        assert all(cleared for _, cleared in held.problems.values())
        assert held.scans[-1]["fs_used_bytes"]
        with closing(sqlite3.connect(db)) as conn:
            made = conn.execute(
                "SELECT origin, count(event.id) FROM chunk LEFT JOIN event ON chunk_id = chunk.id "
                "AND kind = 'created' GROUP BY chunk.id"
            ).fetchall()
        assert "retry" in dict(made)
        assert {events for _, events in made} == {1}  # no chunk whose story does not say where it is from


@pytest.mark.root
def test_what_cannot_be_read_this_time_keeps_its_last_known_rows(share, tmp_path, db, fresh):
    ordinary = command_of(NOBODY)
    if not ordinary:
        pytest.skip("no Python that an ordinary user may run")
    for folder in (db.parent, tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    os.chown(db.parent, NOBODY, NOBODY)
    run(*scan_words(share, db), **ordinary)
    before = holdings(db, "Media")
    (share / "photos").chmod(0)
    (share / "movies" / "001.mkv").unlink()
    (share / "photos" / "unseen").touch()
    for words in ((), ENTRIES):
        done = run(*scan_words(share, db, *words), code=3, **ordinary)
        assert "what an earlier scan saw there is kept, and is stale" in done.stdout
        held = holdings(db, "Media")
        check_consistent(held, stale=True)
        assert before.entries.keys() - held.entries.keys() == {b"movies/001.mkv"}
        assert held.dirs[b"photos"].state == "denied"
        assert held.dirs[b"photos"].entries == before.dirs[b"photos"].entries
        below = held.dirs[b"photos/1"]  # not reached, or denied as the beginning of a chunk of its own
        assert (below.state, below.scan_id) in (("listed", 1), ("denied", 3))
    (share / "photos").chmod(0o755)
    done = run(*scan_words(share, db), **ordinary)
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))
    assert all(cleared for _, cleared in held.problems.values())
    scan(share, fresh)
    assert differences(held, holdings(fresh, "Media")) == []


def test_usr_is_catalogued_entry_by_entry(db):
    part = Path("/usr/lib")
    scan(part, db, "--chunk-entries", 20_000)
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(part))
    assert held.sums()[3] == du(part)


def test_what_comes_and_goes_meanwhile_stops_nobody(share, db):
    with churning(share):
        for _ in range(3):
            done = scan(share, db, *ENTRIES, code=None)
            assert done.returncode == 0, done.stdout
            check_consistent(holdings(db, "Media"), stale=True)
    scan(share, db, *ENTRIES)
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))


def test_excluded_names_and_paths_are_recorded_and_not_entered(share, db):
    scan(share, db)
    scan(share, db, "--exclude", "1", "--exclude", "photos/2/*", "--exclude", ".hid*")
    held = holdings(db, "Media")
    check_consistent(held)
    closed = [b"photos/1", b".hidden"] + [b"photos/%d/1" % n for n in (0, 3)]
    closed += [b"photos/2/%d" % n for n in range(6)]
    assert {path for path, state in held.states().items() if state == "excluded"} == set(closed)
    check_same_tree(held, find_listing(share), without=closed)
    scan(share, db)
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))


def test_no_link_is_followed_and_no_name_is_executed(share, db, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").touch()
    (share / "out").symlink_to("../outside")
    (share / "$(touch executed)").mkdir()
    (share / "$(touch executed)" / "; touch executed").touch()
    scan(share, db, *ENTRIES)
    held = holdings(db, "Media")
    check_same_tree(held, find_listing(share))
    assert held.entries[b"out"].target == b"../outside"
    assert b"out/secret" not in held.entries
    assert not list(tmp_path.rglob("executed"))


# A second scan


def test_a_second_scan_tells_what_is_new_changed_and_gone(share, db, fresh):
    scan(share, db)
    again = json.loads(scan(share, db, "--json").stdout)
    assert (again["entries_new"], again["entries_changed"], again["entries_gone"]) == (0, 0, 0)
    (share / "movies" / "new.mkv").write_bytes(b"12")
    (share / "movies" / "007.mkv").unlink()
    (share / "movies" / "008.mkv").write_bytes(b"longer than before" * 100)
    shutil.rmtree(share / "photos" / "2")
    (share / "empty" / "deep" / "er").mkdir(parents=True)
    third = scan(share, db, *ENTRIES)
    held = holdings(db, "Media")
    # movies, photos and empty changed with what lies in them
    assert held.new_changed_gone() == (1 + 2, 1 + 3, 1 + 1 + 6 + 6 * 9)
    assert "3 new, 4 changed, 62 gone" in third.stdout
    scan(share, fresh)
    assert differences(held, holdings(fresh, "Media")) == []


def check_equals_a_fresh_one(share, db, fresh):
    """A catalogue is what find(1) and du(1) say, and what a first scan of the same share makes."""
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))
    assert held.sums()[3] == du(share)
    scan(share, fresh)
    assert differences(held, holdings(fresh, "Media")) == []


@pytest.mark.parametrize("seed", range(2))
def test_after_any_changes_it_equals_a_fresh_catalogue(share, db, fresh, seed):
    chance = Random(seed)
    for limits in ((), ENTRIES, BYTES):
        scan(share, db, *limits)
        change(share, chance, 15)
    scan(share, db, *chance.choice(((), ENTRIES)))
    check_equals_a_fresh_one(share, db, fresh)


@pytest.mark.parametrize("seed", range(2))
def test_a_large_directory_that_changes_equals_a_fresh_catalogue(tmp_path, db, fresh, seed):
    share, chance = tmp_path / "share", Random(seed)
    share.mkdir()
    big: Tree = {f"{n:05}.{n % 7}": n % 50 for n in range(9_000)}
    big |= {f"link {n}": Link(f"to {n}") for n in range(50)} | {f"sub{n}": {"f": n} for n in range(20)}
    other: Tree = {f"{n}": Hard(f"big/{n * 40:05}.{n * 40 % 7}") for n in range(100)}
    build(share, {"big": big, "other": other})
    scan(share, db)
    for _ in range(2):
        for path in chance.sample(sorted((share / "big").iterdir()), 40):
            if not path.is_dir():
                path.unlink()
                chance.choice((path.mkdir, path.touch, lambda p=path: p.symlink_to("elsewhere")))()
        change(share / "big", chance, 30)
        change(share / "other", chance, 10)
        scan(share, db)
    check_equals_a_fresh_one(share, db, fresh)


def test_the_largest_files_are_right_after_many_of_them_went(tmp_path, db):
    share = tmp_path / "share"
    share.mkdir()
    big = {f"{n:03}": 10_000 + n for n in range(300)}
    build(share, {"big": big, "small": {f"{n:03}": 1 + n for n in range(300)}})
    scan(share, db)
    check_consistent(holdings(db, "Media"))
    for n in range(150, 300):
        (share / "big" / f"{n:03}").unlink()
    (share / "small" / "tiny").write_bytes(b"x")
    scan(share, db)
    check_consistent(holdings(db, "Media"))
    shutil.rmtree(share / "big")
    scan(share, db)
    held = holdings(db, "Media")
    check_consistent(held)
    assert held.largest[0] == (300, b"small/299")


def test_the_largest_files_have_no_gap_where_many_names_of_one_file_are_offered(tmp_path, db):
    share = tmp_path / "share"
    share.mkdir()
    build(share, {"few": {"a": 1, "b": 2, "c": 3}})
    scan(share, db)
    build(share, {"many": {f"{n:03}": 100 + n for n in range(300)}})
    for n in range(10):
        os.link(share / "many" / "299", share / "many" / f"again-{n}")
    scan(share, db)
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))


def test_a_deep_tree_is_planned_and_cut(tmp_path, db):
    """Deeper than Python calls itself; looking each path up from the top would cost the square of that."""
    share = tmp_path / "share"
    share.mkdir()
    chain(share, b"deep", [b"d"] * 2000)
    try:
        scan(share, db)
        done = json.loads(scan(share, db, "--chunk-size", "0.0005", "--json").stdout)
        assert done["chunks"]["done"] > 5
        held = holdings(db, "Media")
        check_consistent(held)
        check_same_tree(held, find_listing(share))
        assert held.new_changed_gone() == (0, 0, 0)
    finally:
        subprocess.run(["rm", "-rf", share], check=True)  # pytest's own way of removing recurses


def test_a_known_size_is_planned_largest_first(share, db):
    scan(share, db)
    scan(share, db, "--chunk-entries", 40, "--max-containers", 1)
    with closing(sqlite3.connect(db)) as conn:
        rows = conn.execute(
            "SELECT est_bytes, (SELECT min(id) FROM event WHERE chunk_id = chunk.id AND kind = 'started') "
            "FROM chunk WHERE scan_id = 2 AND origin = 'plan' ORDER BY 2"
        ).fetchall()
    assert len(rows) > 5
    assert [size for size, _ in rows] == sorted((size for size, _ in rows), reverse=True)


def test_a_measured_share_is_planned_largest_first_too_and_nothing_of_it_is_left(share, db):
    scan(share, db, "--analyze", *ENTRIES)
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))
    assert [s["state"] for s in held.scans] == ["complete"]
    with closing(sqlite3.connect(db)) as conn:
        assert conn.execute("SELECT count(*) FROM chunk WHERE origin = 'plan'").fetchone()[0] > 3


# An empty or vanished share


@pytest.mark.parametrize("limits", [(), ("--chunk-entries", 1)], ids=["one chunk", "many chunks"])
def test_an_empty_or_vanished_share_is_never_taken_for_everything_was_deleted(share, db, limits):
    scan(share, db, *limits)
    before, hidden = holdings(db, "Media"), share.with_name("hidden")
    share.rename(hidden)
    for make, words in (
        (lambda: None, "No such file"),
        (share.mkdir, "is empty"),
        (lambda: (share.rmdir(), share.write_bytes(b"x")), "Not a directory"),
    ):
        make()
        refused = scan(share, db, *limits, code=10)
        assert words in refused.stderr.splitlines()[-1]
        assert refused.stdout == ""
        after = holdings(db, "Media")
        check_consistent(after)
        assert differences(before, after) == []
        assert len(after.scans) == 1
    share.unlink()
    hidden.rename(share)
    scan(share, db, *limits)
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))
    assert held.new_changed_gone() == (0, 0, 0)


def test_a_share_that_vanishes_under_a_stopped_scan_costs_nothing(share, db):
    with ended_at_last(start(*scan_words(share, db, *ENTRIES))) as scanning:
        until(lambda: _count(db, "shard") > 2 or scanning.poll() is not None)
        scanning.kill()
    hidden = share.with_name("hidden")
    share.rename(hidden)
    for make in (lambda: None, share.mkdir):
        make()
        scan(share, db, *ENTRIES, code=10)
    share.rmdir()
    hidden.rename(share)
    scan(share, db, *ENTRIES)
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))
    assert len(held.scans) == 1


def test_a_scan_of_nothing_leaves_no_trace(tmp_path, db):
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        scan(tmp_path / name, db, code=10)
        for table in ("mount", "scan", "chunk", "root", "attempt", "dir", "event", "problem"):
            assert _count(db, table) == 0, table


def _count(db: Path, table: str) -> int:
    try:
        with closing(sqlite3.connect(db.as_uri() + "?mode=ro", uri=True)) as conn:
            return int(conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    except sqlite3.Error:
        return 0


@pytest.mark.root
def test_sums_beyond_what_sqlite_can_count_are_exact(tmp_path, db):
    share = tmp_path / "share"
    share.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "share", share], check=True)  # it takes files of 2^63 - 1 bytes
    try:
        build(share, {"a": {f"{n}.img": File(2**62, sparse=True) for n in range(3)}, "b": {"c": {}}})
        os.link(share / "a" / "0.img", share / "b" / "c" / "0 again.img")
        build(share / "b", {"most": File(2**63 - 1, sparse=True), "little": File(5)})
        scan(share, db, "--chunk-entries", 1)
        check_consistent(holdings(db, "Media"))
        assert "EB" in run("stats", "--db", db).stdout
        for name in ("0.img", "1.img", "2.img"):
            (share / "a" / name).unlink()
        scan(share, db)
        held = holdings(db, "Media")
        check_consistent(held)
        check_same_tree(held, find_listing(share))
        (share / "b" / "most").unlink()
        done = json.loads(scan(share, db, "--json").stdout)
        assert done["catalogued"]["bytes"] == 2**62 + 5
        run("monitor", "--once", "--db", db)
    finally:
        subprocess.run(["umount", "--lazy", share], check=True)


@pytest.mark.root
def test_another_file_system_at_its_place_is_refused_until_it_moved_for_good(tmp_path, db):
    share = tmp_path / "share"
    share.mkdir()
    build(share, {"under": {"the": {"mount point": 1}}})
    subprocess.run(["mount", "-t", "tmpfs", "share", share], check=True)
    try:
        build(share, TREE)
        scan(share, db)
        before = holdings(db, "Media")
    finally:
        subprocess.run(["umount", "--lazy", share], check=True)
    refused = scan(share, db, code=10)
    assert "is the share mounted?" in refused.stderr
    assert differences(before, holdings(db, "Media")) == []
    scan(share, db, "--moved")
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_where_openat2_is_not_known_or_not_allowed_it_is_the_same(share, db, error):
    (share / "out").symlink_to("/usr")
    chain(share, b"top", [b"x" * 200] * 25)  # longer than one call takes
    refused = ("strace", "-f", "-o", os.devnull, "-e", "trace=openat2", "-e", f"inject=openat2:error={error}")
    run(*scan_words(share, db, *ENTRIES), command=(*refused, *COMMAND))
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))


# Two at once


def test_the_second_scan_of_a_mount_is_told_who_holds_it(share, db):
    with ended_at_last(start(*scan_words(share, db, *ENTRIES))) as first:
        until(lambda: _count(db, "attempt") or first.poll() is not None)
        first.send_signal(signal.SIGSTOP)
        second = run(*scan_words(share, db), code=12)
        assert f"process {first.pid} " in second.stderr
        assert second.stdout == ""
        other = run("retry", "Media", "--db", db, "--engine", "local", code=12)
        assert f"process {first.pid} " in other.stderr
        first.send_signal(signal.SIGCONT)
        out, err = first.communicate(timeout=60)
        assert first.returncode == 0, out + err
    check_same_tree(holdings(db, "Media"), find_listing(share))


def test_two_mounts_are_scanned_into_one_catalogue_at_once(share, db, tmp_path):
    two = tmp_path / "two"
    two.mkdir()
    build(two, TREE)
    with ended_at_last(start(*scan_words(share, db, *ENTRIES))) as first:
        words = ("scan", two, "Other", "--db", db, "--engine", "local", *ENTRIES)
        with ended_at_last(start(*words)) as second:
            for scanning in (first, second):
                out, err = scanning.communicate(timeout=60)
                assert scanning.returncode == 0, out + err
    for path, name in ((share, "Media"), (two, "Other")):
        held = holdings(db, name)
        check_consistent(held)
        check_same_tree(held, find_listing(path))


# The view for scripts


def test_the_files_view_serves_scripts(share, db):
    os.utime(share / "movies" / "001.mkv", ns=(0, -1_500_000_000))
    scan(share, db)
    with closing(sqlite3.connect(db)) as conn:
        rows = conn.execute(
            "SELECT path, size, mtime, checksum, mount_point, file_type, extension FROM files WHERE path = ?",
            (f"{share}/movies/001.mkv",),
        ).fetchall()
        (count,) = conn.execute("SELECT count(*) FROM files").fetchone()
        (times,) = conn.execute("SELECT count(*) FROM files WHERE scan_time > 1.7e9").fetchone()
    assert rows == [(f"{share}/movies/001.mkv", 1001, -2, None, "Media", "file", "mkv")]
    assert count == times == sum(e.type == "f" for e in find_listing(share).values())


@pytest.mark.root
def test_cleanup_takes_what_ended_and_keeps_what_can_go_on(share, db):
    scan(share, db)
    old = db.parent / "work" / "Media" / "99-1"
    old.mkdir(parents=True)
    assert "would remove" in run("cleanup", "--db", db, "--dry-run").stdout
    assert old.exists()
    run("cleanup", "--db", db)
    assert not old.exists() and db.exists()
