"""The promise of the name, against real hangs and errors of a mounted file system (the matrix of faults)."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import catalogues
from smartscan.faults import fail, fault_mount, hang, latency
from trees import build

pytestmark = pytest.mark.fuse

STALL_S = 2
TREE = {
    **{f"d{n:02d}": {f"f{m}": m for m in range(6)} for n in range(12)},
    "deep": {"er": {"est": {"file": 5}}},
}
DIRS = 12 + 3 + 1


@pytest.fixture
def real(tmp_path: Path) -> Path:
    (tmp_path / "real").mkdir()
    (tmp_path / "data").mkdir()
    build(tmp_path / "real", TREE)
    return tmp_path / "real"


def command(words: list[object]) -> tuple[int, dict, float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "smartscan.cli", *map(str, words)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    data = json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else {}
    return done.returncode, data, time.monotonic() - began


def scan(share: Path, db: Path, *words: str) -> tuple[int, dict, float]:
    status, data, took_s = command(
        ["scan", share, "m", "--db", db, "--engine", "local", "--stall-after", STALL_S, "--json", *words]
    )
    if status in (0, 3, 4):
        catalogues.check(db)
        dirs = data["certificate"]["dirs"]
        assert dirs["found"] == sum(n for state, n in dirs.items() if state != "found")
    return status, data, took_s


def problems(db: Path) -> dict[str, tuple[str, int]]:
    with closing(sqlite3.connect(db)) as conn:
        rows = conn.execute("SELECT path, op, errno FROM problem WHERE cleared_at IS NULL")
        return {path: (op, errno) for path, op, errno in rows}


@pytest.mark.parametrize("op", ["opendir", "readdir"])
def test_a_hanging_directory_costs_itself_and_nothing_else(real, op):
    db = real.parent / "data" / "x.db"
    with fault_mount(real, rules=[hang("d05", op)]) as share:
        status, data, took_s = scan(share.path, db)
        assert status == 3
        assert data["certificate"]["dirs"]["timed out"] == 1
        assert data["certificate"]["dirs"]["listed"] == DIRS - 1
        assert data["certificate"]["missing"][0]["path"] == "d05"
        assert took_s < STALL_S + 20
        assert share.asked(op, b"d05") == 1  # never touched again while its first reader lives
        print(f"whole scan with one hanging directory: {took_s:.1f} s at a stall limit of {STALL_S} s")
        share.set()
        assert command(["retry", "m", "--db", db, "--engine", "local"])[0] == 0
    assert problems(db) == {}
    assert len(catalogues.listing(db)) == 12 * 7 + 4


def test_several_hanging_directories_are_isolated_at_once(real):
    db = real.parent / "data" / "x.db"
    with fault_mount(real, rules=[hang(d, "opendir") for d in ("d01", "d02", "d07")]) as share:
        status, data, took_s = scan(share.path, db)
        assert status == 3
        assert data["certificate"]["dirs"]["timed out"] == 3
        assert data["certificate"]["dirs"]["listed"] == DIRS - 3
        assert took_s < STALL_S + 20


def test_a_hanging_stat_costs_one_name(real):
    db = real.parent / "data" / "x.db"
    with fault_mount(real, rules=[hang("d03/f4", "lookup")]) as share:
        status, data, _ = scan(share.path, db)
        assert status == 3
        assert data["certificate"]["dirs"]["listed"] == DIRS
        assert problems(db) == {"d03/f4": ("stat", 110)}
        entries = catalogues.listing(db)
        assert entries[b"d03/f4"].size is None
        assert [entries[b"d03/f%d" % n].size for n in (0, 1, 2, 3, 5)] == [0, 1, 2, 3, 5]
        assert share.asked("lookup", b"d03/f4") == 1


def test_a_share_whose_root_hangs_is_dead(real):
    db = real.parent / "data" / "x.db"
    with fault_mount(real, rules=[hang("", "getattr", "opendir", "lookup", "readdir")]) as share:
        began = time.monotonic()
        status, _, took_s = scan(share.path, db)
        assert status == 4
        assert time.monotonic() - began < 4 * STALL_S + 30
        print(f"verdict on a dead share: {took_s:.1f} s")


def test_a_slow_share_is_not_stuck(real):
    db = real.parent / "data" / "x.db"
    with fault_mount(real, rules=[latency(100)], entry_cache_s=0, attr_cache_s=0) as share:
        status, data, _ = scan(share.path, db, "--threads", "16")
        assert (status, problems(db)) == (0, {})
        assert data["certificate"]["dirs"]["listed"] == DIRS


@pytest.mark.parametrize("errno", ["EIO", "EACCES", "ESTALE"])
def test_an_error_is_one_problem_and_nothing_is_called_deleted(real, errno):
    db = real.parent / "data" / "x.db"
    with fault_mount(real) as share:
        assert scan(share.path, db)[0] == 0
        before = catalogues.listing(db)
        bad = [fail("d04", "opendir", errno=errno), fail("d06/f2", "lookup", "getattr", errno=errno)]
        share.set(rules=bad)
        time.sleep(1.2)  # what the kernel has in its caches is gone
        status, data, _ = scan(share.path, db)
        assert status == 3
        assert set(problems(db)) == {"d04", "d06/f2"}
        assert data["entries_gone"] == 0
        after = catalogues.listing(db)
        assert after.keys() == before.keys()
        assert {p for p in after if p.startswith(b"d04/")} == {b"d04/f%d" % n for n in range(6)}
        share.set()
        time.sleep(1.2)
        assert scan(share.path, db)[0] == 0
        assert problems(db) == {}


def test_an_endless_depth_is_cut_and_marked(real):
    db = real.parent / "data" / "x.db"
    loop = [{"path": "deep", "kind": "loop", "name": "loop"}]
    with fault_mount(real, virtual=loop) as share:
        status, data, took_s = scan(share.path, db)
        assert status in (0, 3)
        assert data["certificate"]["dirs"]["other mount"] + data["certificate"]["dirs"]["I/O error"] >= 1
        assert took_s < 30


def test_a_mount_that_freezes_and_recovers_loses_nothing(real):
    db = real.parent / "data" / "x.db"
    with fault_mount(real, rules=[latency(30)], entry_cache_s=0, attr_cache_s=0) as share:
        scanning = subprocess.Popen(
            [sys.executable, "-m", "smartscan.cli", "scan", share.path, "m", "--db", db, "--engine", "local"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(0.8)
        share.daemon.send_signal(signal.SIGSTOP)
        time.sleep(3)
        share.daemon.send_signal(signal.SIGCONT)
        assert scanning.wait(60) == 0
    catalogues.check(db)
    assert len(catalogues.listing(db)) == 12 * 7 + 4


def test_a_stuck_path_is_left_alone_by_the_next_scan_until_it_is_due(real):
    db = real.parent / "data" / "x.db"
    with fault_mount(real, rules=[hang("d05", "opendir")]) as share:
        assert scan(share.path, db)[0] == 3
        asked = share.asked("opendir", b"d05")
        status, data, took_s = scan(share.path, db)
        assert status == 3
        assert share.asked("opendir", b"d05") == asked
        assert took_s < STALL_S + 2  # nobody waited for it
        assert data["certificate"]["dirs"]["timed out"] == 1
    assert os.path.exists(db)
