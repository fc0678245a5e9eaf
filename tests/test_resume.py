"""A scan that is stopped or killed at any instant goes on with the same command, and nothing tells of it.

SMART_SCAN_KILLS in the environment asks for more kills, SMART_SCAN_SEED for others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from command import ended_at_last, run, scan, scan_words, start, until, workers_of
from smartscan.faults import fault_mount, latency
from trees import Hard, Tree, build, find_listing
from truth import Holdings, check_consistent, check_same_tree, differences, holdings

KILLS = int(os.environ.get("SMART_SCAN_KILLS", "12"))
SEED = int(os.environ.get("SMART_SCAN_SEED", str(time.time_ns() % 10**6)))
SMALL = ("--chunk-entries", 30, "--max-containers", 3)

# Some 40 chunks of a tenth of a second each.
TREE: Tree = {
    **{f"in {y}": {f"film {n}": {"1.mkv": 20_000 + n, "2.nfo": 7, "3": {"deep": 1}} for n in range(12)}
       for y in range(8)},
    "wide": {f"{n:04}.jpg": n for n in range(300)},
    "links": {f"{n}": Hard(f"in {n % 8}/film {n % 12}/1.mkv") for n in range(40)},
    "empty": {},
    "top": 7,
}  # fmt: skip


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("share") / "share"
    path.mkdir()
    build(path, TREE)
    return path


def check_as_if_undisturbed(share: Path, db: Path, listing: Path | None = None) -> Holdings:
    """Compare with find(1), and with a scan that nobody disturbed."""
    held = holdings(db, "Media")
    assert held.scans[-1]["state"] == "complete"
    check_consistent(held)
    check_same_tree(held, find_listing(listing or share))
    fresh = db.parent.parent / "fresh" / "smart_catalog.db"
    fresh.parent.mkdir()
    scan(share, fresh)
    assert differences(held, holdings(fresh, "Media")) == []
    assert len(held.scans) == 1, "it went on, and did not begin anew"
    assert held.scans[0]["entries"] == len(held.entries), "what was seen counts once"
    return held


def look(db: Path, sql: str) -> Any:
    """Ask a catalogue for one value while somebody writes it; None where there is none yet."""
    uri = db.as_uri() + "?mode=ro"
    with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(uri, uri=True)) as conn:
        row = conn.execute(sql).fetchone()
        return row and row[0]
    return None


def shards_in(db: Path) -> int:
    """Count the shards that are in the catalogue already."""
    return look(db, "SELECT count(*) FROM shard") or 0


def is_complete(db: Path, scans: int = 1) -> bool:
    """Whether so many scans came to their end; perhaps just before somebody killed the last."""
    return bool(look(db, f"SELECT count(*) >= {scans} FROM scan WHERE state = 'complete'"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_scan_says_how_to_go_on_and_does(share, db, number):
    with ended_at_last(start(*scan_words(share, db, *SMALL))) as scanning:
        until(lambda: shards_in(db) > 3 or scanning.poll() is not None)
        scanning.send_signal(number)
        out, err = scanning.communicate(timeout=30)
    assert scanning.returncode == 130, err
    assert "Traceback" not in err
    assert "Stopped; what was read is kept. To go on: smartscan scan" in out
    assert workers_of(db) == []
    assert not (db.parent / "work").exists()
    stopped = holdings(db, "Media")
    check_consistent(stopped, stale=True)
    assert 0 < len(stopped.entries) < len(find_listing(share)) - 1
    assert "Stopped; what was read is kept. To go on: smartscan scan" in run("stats", "--db", db).stdout
    assert "Going on with scan 1, which did not end." in scan(share, db, *SMALL).stderr
    check_as_if_undisturbed(share, db)


@pytest.mark.fuse
@pytest.mark.parametrize("signals", [1, 2])
def test_a_slow_share_does_not_delay_the_end(share, db, signals):
    with fault_mount(share, rules=[latency(30)]) as slow:
        words = scan_words(slow.path, db, "--chunk-entries", 200, "--threads", 2)
        with ended_at_last(start(*words)) as scanning:
            until(lambda: shards_in(db) or scanning.poll() is not None)
            began = time.monotonic()
            for _ in range(signals):
                scanning.send_signal(signal.SIGINT)
                time.sleep(0.1)
            out, err = scanning.communicate(timeout=30)
        assert scanning.returncode == 130, out + err
        assert time.monotonic() - began < 8
        assert workers_of(db) == []
        slow.set(rules=[])
        run(*words)
        check_consistent(holdings(db, "Media"))
        found, below = holdings(db, "Media").listed(), find_listing(share)
        assert {path: row[1] for path, row in found.items() if row[0] != "d"} == {
            path: seen.size for path, seen in below.items() if seen.type != "d"
        }


def test_a_stop_before_anything_began_and_one_after_all_is_done(share, db):
    for wait_s in (0.0, 0.05, 0.1, 0.2, 0.3):
        with ended_at_last(start(*scan_words(share, db))) as scanning:
            time.sleep(wait_s)
            scanning.send_signal(signal.SIGINT)
            _, err = scanning.communicate(timeout=30)
        if scanning.returncode == 1 and "smartscan" not in err:
            continue  # Python itself was beginning
        assert scanning.returncode in (0, 130, -signal.SIGINT), err
        if scanning.returncode != -signal.SIGINT and not err.startswith("Exception ignored in"):
            assert "Traceback" not in err  # else Python itself was beginning
    scan(share, db)
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))


# Presses Ctrl-C when the program does something: an audit event, and how its first argument ends.
PRESSES_CTRL_C = """
import os, signal, sys, weakref
from smartscan.cli import main

class Module: pass

def press(event, about):
    if event == wanted and os.fspath(about[0]).endswith(end):
        weakref.finalize(Module(), signal.raise_signal, signal.SIGINT)  # in a callback, as an import has

wanted, end = sys.argv.pop(1), sys.argv.pop(1)
sys.addaudithook(press)
main()
"""


def scan_with_a_ctrl_c(share, db, *when):
    words = [sys.executable, "-c", PRESSES_CTRL_C, *when, *scan_words(share, db)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("command", "module"), [("cleanup", "smartscan.cleanup"), ("doctor", "smartscan.doctor")]
)
def test_a_ctrl_c_while_a_command_is_loaded_ends_it(db, command, module):
    words = [sys.executable, "-c", PRESSES_CTRL_C, "import", module, command, "--db", db, "--engine", "local"]
    if command == "cleanup":
        words = words[:-2]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")


def test_a_ctrl_c_that_python_loses_stops_the_scan(share, db):
    done = scan_with_a_ctrl_c(share, db, "import", "smartscan.run.course")
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "Once more to stop at once" in done.stderr
    assert workers_of(db) == []


# Before 3.12, Python makes a RuntimeError of whatever is raised while a class is made.
PRESSES_CTRL_C_WHILE_A_CLASS_IS_MADE = """
import signal, sys
from smartscan.cli import main

def press(frame, event, about):
    if event == "call" and frame.f_code.co_name == "__set_name__":
        sys.setprofile(None)
        signal.raise_signal(signal.SIGINT)

sys.setprofile(press)
main()
"""


def test_a_ctrl_c_while_the_program_is_loaded_is_no_fault_of_it(share, db):
    words = [sys.executable, "-c", PRESSES_CTRL_C_WHILE_A_CLASS_IS_MADE, *scan_words(share, db)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    assert "fault" not in done.stderr
    assert workers_of(db) == []


def test_a_ctrl_c_lost_by_python_with_the_lock_of_imports_stops_no_thread(share, db):
    lost = "import _imp; _imp.acquire_lock(); from smartscan.cli import main; main()"
    words = [sys.executable, "-c", lost, *scan_words(share, db)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert is_complete(db) and not (db.parent / "work").exists()


def test_a_ctrl_c_when_all_is_done_changes_nothing(share, db):
    done = scan_with_a_ctrl_c(share, db, "os.rmdir", "/work")
    assert done.returncode == 0, done.stderr
    assert "Once more to stop at once" in done.stderr, "it was not pressed"
    assert "complete" in done.stdout
    assert is_complete(db) and not (db.parent / "work").exists()


@pytest.mark.parametrize("part", range(4))
def test_a_controller_killed_again_and_again(share, db, part):
    chance = Random(f"{SEED}-{part}")
    print(f"SMART_SCAN_SEED={SEED}")
    kills = 0
    while kills < -(-KILLS // 4) and not is_complete(db):
        with ended_at_last(start(*scan_words(share, db, *SMALL))) as scanning:
            with contextlib.suppress(subprocess.TimeoutExpired):
                scanning.wait(chance.choice((0.05, 0.15, 0.3, 0.6, 1.2)) * chance.uniform(0.5, 1.5))
            assert scanning.poll() in (None, 0)
            scanning.kill()
        until(lambda: not workers_of(db), 5)  # nothing outlives its controller
        kills += 1
    print(f"{kills} kills")
    if not is_complete(db):
        scan(share, db, *SMALL)
    check_as_if_undisturbed(share, db)


def test_a_rescan_killed_again_and_again(share, db, tmp_path):
    chance = Random(f"{SEED}-rescan")
    print(f"SMART_SCAN_SEED={SEED}")
    mine = tmp_path / "share"
    mine.mkdir()
    build(mine, TREE)
    scan(mine, db)
    for n in range(60):  # half of the directories change
        (mine / f"in {n % 8}" / f"film {n % 12}" / "2.nfo").unlink(missing_ok=True)
        (mine / f"in {n % 8}" / f"new {n}").mkdir()
    os.link(mine / "in 3" / "film 3" / "1.mkv", mine / "another name.avi")
    os.unlink(mine / "links" / "3")
    kills = 0
    while kills < KILLS // 3 and not is_complete(db, 2):
        with ended_at_last(start(*scan_words(mine, db, *SMALL))) as scanning:
            with contextlib.suppress(subprocess.TimeoutExpired):
                scanning.wait(chance.uniform(0.15, 0.5))
            assert scanning.poll() in (None, 0)
            kills += 1
    until(lambda: not workers_of(db), 5)
    if not is_complete(db, 2):
        scan(mine, db, *SMALL)
    print(f"{kills} kills")
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(mine))
    assert len(held.scans) == 2
    assert held.new_changed_gone()[0] == 61
    assert held.new_changed_gone()[2] == 24 + 1


def test_killed_workers_cost_nothing(share, db):
    chance = Random(f"{SEED}-workers")
    print(f"SMART_SCAN_SEED={SEED}")
    killed = 0
    with ended_at_last(start(*scan_words(share, db, *SMALL))) as scanning:
        while scanning.poll() is None and killed < KILLS // 2:
            for pid in chance.sample(found := workers_of(db), min(1, len(found))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            time.sleep(chance.uniform(0.05, 0.2) if killed else 0.002)
        out, err = scanning.communicate(timeout=90)
    assert killed
    assert scanning.returncode in (0, 3), out + err
    if scanning.returncode == 3:  # given up where two attempts in a row brought nothing; it is named
        held = holdings(db, "Media")
        check_consistent(held, stale=True)
        assert held.chunk_states["quarantined"]
        run("retry", "Media", "--db", db, "--engine", "local")
    held = holdings(db, "Media")
    check_consistent(held)
    check_same_tree(held, find_listing(share))
    assert workers_of(db) == []


def test_it_is_known_at_once_that_a_controller_was_killed(share, db):
    with ended_at_last(start(*scan_words(share, db, *SMALL))) as scanning:
        until(lambda: workers_of(db) or scanning.poll() is not None)
        scanning.send_signal(signal.SIGSTOP)  # a controller that hangs is at work
        assert "has ended" not in run("monitor", "--once", "--db", db).stdout
        assert "broken off" not in run("stats", "--db", db).stdout
        scanning.kill()
        scanning.wait()
    told = run("monitor", "--once", "--db", db).stdout
    assert f"controller (process {scanning.pid} on " in told and "has ended." in told
    assert "Broken off: its controller ended before the scan did" in run("stats", "--db", db).stdout
    copy = db.parent.parent / "copy.db"  # beside which are no locks: nobody can tell
    run("-c", f"import sqlite3; sqlite3.connect({str(db)!r}).backup(sqlite3.connect({str(copy)!r}))",
        command=(sys.executable,))
    assert "broken off" not in run("stats", "--db", copy).stdout
    scan(share, db, *SMALL)
    assert "No scan is running" in run("monitor", "--once", "--db", db).stdout


def test_no_worker_outlives_a_controller_that_was_killed(share, db):
    with ended_at_last(start(*scan_words(share, db, *SMALL))) as scanning:
        until(lambda: workers_of(db) or scanning.poll() is not None)
        scanning.kill()
        scanning.wait()
        until(lambda: not workers_of(db), 2)
    run("cleanup", "--db", db)
    scan(share, db, *SMALL)
    check_as_if_undisturbed(share, db)


def test_the_command_that_goes_on_has_the_rules_of_the_scan(share, db):
    odd = ("film 1*", "it's", "-x", "a\nb", "\x1b[31m", "\u00a0 \\ '", os.fsdecode(b"\xff"))
    rules = (*(f"--exclude={p}" for p in odd), "--enter-system-dirs", "--one-file-system")
    with ended_at_last(start(*scan_words(share, db, *rules, *SMALL))) as scanning:
        until(lambda: shards_in(db) > 3 or scanning.poll() is not None)
        scanning.send_signal(signal.SIGTERM)
        out, _ = scanning.communicate(timeout=30)
    (told,) = (line.partition("To go on: smartscan ")[2] for line in out.splitlines() if "To go on" in line)
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {told}"], capture_output=True, check=True).stdout
    done = run(*map(os.fsdecode, words.split(b"\0")[:-1]), "--engine", "local", code=None)
    assert "Going on with scan 1, which did not end." in done.stderr, told


def test_other_rules_begin_a_new_scan(share, db):
    with ended_at_last(start(*scan_words(share, db, *SMALL))) as scanning:
        until(lambda: shards_in(db) > 3 or scanning.poll() is not None)
        scanning.kill()
    until(lambda: not workers_of(db), 5)
    done = scan(share, db, "--exclude", "film 1*")
    assert "this one begins anew" in done.stderr
    held = holdings(db, "Media")
    check_consistent(held)
    closed = [f"in {y}/film {n}".encode() for y in range(8) for n in (1, 10, 11)]
    check_same_tree(held, find_listing(share), without=closed)
    assert [s["state"] for s in held.scans] == ["incomplete", "complete"]
    assert held.chunk_states.keys() == {"done", "quarantined"}


@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_stops_it_unless_that_is_ignored(share, db, nohup):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        process = start(*scan_words(share, db, *SMALL))
    finally:
        signal.signal(signal.SIGHUP, before)
    with ended_at_last(process) as scanning:
        until(lambda: shards_in(db) > 3 or process.poll() is not None)
        scanning.send_signal(signal.SIGHUP)
        _, err = scanning.communicate(timeout=60)
    assert scanning.returncode == (0 if nohup else 130), err
    if not nohup:
        scan(share, db, *SMALL)
    check_as_if_undisturbed(share, db)
