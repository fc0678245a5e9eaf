"""Killed, refused and garbled: rows 12 to 14 and 20 to 22."""

from __future__ import annotations

import contextlib
import functools
import itertools
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
from line import COMMAND, Line, until
from steps import MUTATING, SAMPLE, SEED, Step, disturbed, each, sample, steps, strace

import catalogues
from smartscan import shard
from smartscan.catalogue import open as opening
from smartscan.catalogue.bulk import open_bulk
from smartscan.catalogue.ingest import Ingest
from smartscan.engine import cgroups
from smartscan.errors import ShardError
from smartscan.faults import fault_mount, latency
from smartscan.model import Limits, Root
from smartscan.worker.orders import Orders
from trees import Tree, find_listing

SMALL_TREE: Tree = {f"d{n}": {"a": 1, "b": 20, "below": {"c": n}} for n in range(4)}
NO_CACHE = {"entry_cache_s": 0, "attr_cache_s": 0}


def folders(top: Path):
    """Give fresh folders without end."""
    for n in itertools.count():
        folder = top / f"step-{n}"
        folder.mkdir()
        yield folder


def settled(db: Path) -> tuple[object, ...]:
    """What a catalogue says of a share, but for ids and times."""
    with closing(sqlite3.connect(db)) as conn:
        states = conn.execute("SELECT state, count(*) FROM dir GROUP BY state ORDER BY state").fetchall()
        seen = conn.execute(
            "SELECT sum(entries), sum(dirs), sum(bytes) FROM chunk WHERE scan_id = (SELECT max(id) FROM scan)"
        ).fetchall()
    return catalogues.listing(db), catalogues.totals(db), catalogues.tallies(db), states, seen


def orphans_of(folder: Path) -> bool:
    mark = os.fsencode(f"SMART_SCAN_FOLDER={folder}/")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes():
                return True
    return False


@pytest.mark.row(12)
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_controller_killed_at_every_step_goes_on_exactly(line, figure):
    line.build(SMALL_TREE)
    line.scan(line.real, "--chunk-entries", 8, "--max-containers", 2, code=0)
    want = settled(line.db)

    def words(folder: Path) -> list[object]:
        options = ("--engine", "local", "--chunk-entries", 8, "--max-containers", 2, "--json")
        return [*COMMAND, "scan", line.real, "m", "--db", folder / "x.db", *options]

    first = line.folder / "first"
    first.mkdir()
    every = steps(words(first), MUTATING, line.folder / "log")

    def check(step: Step, folder: Path) -> None:
        killed = disturbed(words(folder), step.kill())
        until(lambda: orphans_of(folder), lambda left: not left, 10)
        done = subprocess.run([*map(str, words(folder))], capture_output=True, timeout=60)
        assert done.returncode == 0, (step, killed.returncode, done.stderr)
        catalogues.check(folder / "x.db")
        got = settled(folder / "x.db")
        assert got == want, step
        subprocess.run([*COMMAND, "cleanup", "--db", folder / "x.db"], capture_output=True, check=True)
        left = {p.name for p in folder.iterdir()} - {"x.db-wal", "x.db-shm"}
        assert left == {"x.db", "x.reserve", "locks"}, (step, left)
        shutil.rmtree(folder)

    taken = sample(every)
    exact = each(taken, check, folders(line.folder))
    figure("controller killed at a step, then the same command: exact", f"{exact} of {len(taken)}")
    figure("steps there are", len(every))


@pytest.mark.row(12)
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_controller_killed_at_random_goes_on_exactly(line, figure):
    """Many workers at once, at any instant, also while workers and pool threads are at work."""
    line.build({f"d{n:02d}": {f"f{m}": m for m in range(9)} | {"below": {"x": n}} for n in range(30)})
    words = ("--chunk-entries", 30, "--max-containers", 4)
    line.scan(line.real, *words, code=0)
    want = settled(line.db)[:3]
    number = min(100, max(6, SAMPLE // 4))
    chance, exact = random.Random(SEED), 0
    for n in range(number):
        again = Line(line.folder / f"random-{n}")
        for _ in range(2):
            scanning = again.start(line.real, *words)
            time.sleep(chance.uniform(0.1, 0.6))
            scanning.kill()
            scanning.communicate()
        again.scan(line.real, *words, code=0)
        assert settled(again.db)[:3] == want, f"seed {SEED}, scan {n}"
        exact += 1
        shutil.rmtree(again.folder)
    figure(f"controller killed at random instants (seed {SEED}), twice each: exact", f"{exact} of {number}")


@pytest.mark.row(13)
@pytest.mark.fuse
@pytest.mark.slow
def test_workers_killed_at_random_cost_nothing(line, figure):
    """Also while what was given up is tried again: whatever is killed, nothing is lost or listed twice."""
    line.build({f"d{n:02d}": {f"f{m}": m for m in range(9)} | {"below": {"x": n}} for n in range(60)})
    chance = random.Random(SEED)
    scans, each_scan = 4, 10 if SAMPLE > 100 else 2
    kills = exact = retried = 0
    words = ("--chunk-entries", 120, "--max-containers", 2, "--threads", 2)
    with fault_mount(line.real, rules=[latency(20 if SAMPLE > 100 else 6)], **NO_CACHE) as share:
        want = find_listing(line.real).keys() - {b""}
        for n in range(scans):
            again = Line(line.folder / f"scan-{n}")
            running, mine = again.start(share.path, *words), 0
            while mine < each_scan:
                if running.poll() is not None:
                    if again.finish(running).status == 0:
                        break
                    retried += 1
                    running = again.start_retry()
                if workers := again.workers():  # the first process or the one that reads, by chance
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(workers), signal.SIGKILL)
                        mine += 1
                time.sleep(chance.uniform(0.3, 1.2))
            if again.finish(running).status:
                retried += 1
                again.retry(code=0)
            assert again.listing().keys() == want, f"seed {SEED}, scan {n}"
            catalogues.check(again.db)
            kills, exact = kills + mine, exact + 1
    figure(f"scans exact after {kills} kills of workers (seed {SEED})", f"{exact} of {scans}")
    figure("kills", kills, at_least=scans * each_scan)
    figure("times that something was given up, and tried again by retry", retried)


def wide(share: Path, dirs: int) -> int:
    """Make directories whose names alone are more than a small worker can hold at once; gives the entries."""
    names = 8000
    for d in range(dirs):
        folder = share / f"wide-{d:02d}"
        folder.mkdir()
        (folder / "0").touch()
        fd = os.open(folder, os.O_RDONLY)
        for n in range(1, names):
            os.link("0", f"{n:05d}" + "x" * 245, src_dir_fd=fd, dst_dir_fd=fd)
        os.close(fd)
    return dirs * (names + 1)


@pytest.mark.row(14)
@pytest.mark.root
@pytest.mark.parametrize("victim", ["the one that reads", "the first process"])
def test_a_worker_out_of_memory_is_said_and_cut_smaller(line, figure, victim):
    if cgroups.parent() is None:
        pytest.skip("this user may not limit the memory of a process here")
    entries = wide(line.real, 12)
    scanning = line.start(line.real, "--memory", "32m", "--threads", 32)
    if victim == "the first process":  # the kernel takes the largest, unless it is told otherwise
        while scanning.poll() is None and not line.outcomes("oom"):
            for pid in line.workers():
                with contextlib.suppress(OSError):
                    first = pid == os.getsid(pid)
                    Path(f"/proc/{pid}/oom_score_adj").write_text("1000" if first else "-1000")
            time.sleep(0.002)
    done = line.finish(scanning)
    ends = line.outcomes()
    assert "oom" in ends
    assert done.status in (0, 3), done.err
    if done.status == 3:
        assert done.dirs["I/O error"], "what was given up is named"
        line.retry("--memory", "1g", code=0)
    assert len(line.listing()) == entries
    figure(f"{victim} out of memory: attempts that say so", f"{ends.count('oom')} of {len(ends)}")


# -- ingest ----------------------------------------------------------------------------------------------

INGEST = """
import functools, sys, time
from pathlib import Path
from smartscan.catalogue import ledger, open as opening
from smartscan.catalogue.bulk import open_bulk
from smartscan.catalogue.ingest import Ingest
db, shard = map(Path, sys.argv[1:])
bulk = open_bulk(functools.partial(opening.open_catalogue, db, create=False))
Ingest(bulk, 1, 1, rescan=False).shard(1, 1, shard, 1.0)
bulk.conn.close()
"""


@pytest.fixture
def shards(line) -> list[Path]:
    """Two shards of a worker, the first of which has been taken into `line.db`."""
    line.build(SMALL_TREE)
    folder = line.folder / "attempt"
    folder.mkdir()
    limits = Limits(threads=1)
    Orders(os.fsencode(line.real), 1, 1, 1, (Root(b""),), limits, (), False).write(folder)
    subprocess.run([sys.executable, "-m", "smartscan.worker", folder], check=True)
    made = sorted(folder.glob("*.shard"))
    assert made
    return made


def empty_catalogue(db: Path) -> None:
    """Make a catalogue with a mount, a scan and a chunk."""
    from smartscan.catalogue import ledger

    conn = opening.open_catalogue(db, create=True)
    with opening.transaction(conn):
        assert ledger.mount(conn, "m", b"/nowhere", 1.0) == 1
        ledger.begin(conn, 1, engine="local", controller="{}", options={}, at=1.0)
        ledger.add_chunk(conn, 1, [Root(b"")], "plan", 1.0)
    conn.close()


def rows(db: Path) -> tuple[int, int, int]:
    with closing(sqlite3.connect(db)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counts = (conn.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("entry", "dir", "shard"))
        return tuple(counts)  # type: ignore[return-value]


@pytest.mark.row(20, 21)
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", ["killed", "ENOSPC", "EIO"])
def test_ingest_disturbed_at_every_call_is_all_or_nothing(line, figure, shards, how):
    first = line.folder / "empty.db"
    empty_catalogue(first)
    nothing = rows(first)
    shutil.copy(first, line.folder / "whole.db")
    calls = (*MUTATING, *(("pread64", "read") if how == "EIO" else ()))
    every = steps(
        [sys.executable, "-c", INGEST, line.folder / "whole.db", shards[0]], calls, line.folder / "log"
    )
    whole = rows(line.folder / "whole.db")
    assert whole > nothing
    seen = {"all": 0, "nothing": 0}

    def check(step: Step, folder: Path) -> None:
        db = folder / "x.db"
        shutil.copy(first, db)
        injection = step.kill() if how == "killed" else step.fail(how)
        ran = disturbed([sys.executable, "-c", INGEST, db, shards[0]], injection)
        found = rows(db)
        assert found in (whole, nothing), (step, found)
        if how != "killed" and ran.returncode == 0:
            assert found == whole, step
        seen["all" if found == whole else "nothing"] += 1
        again = subprocess.run([sys.executable, "-c", INGEST, db, shards[0]], capture_output=True, timeout=60)
        assert again.returncode == 0, (step, again.stderr)
        assert rows(db) == whole, step
        shutil.rmtree(folder)

    taken = sample([s for s in every if s.call not in ("read",) or s.number > 60])
    number = each(taken, check, folders(line.folder))
    figure(f"ingest, {how} at a call: all or nothing, and whole the second time", f"{number} of {len(taken)}")
    figure("calls there are", len(every))
    figure("of these it was all, nothing", f"{seen['all']}, {seen['nothing']}")


@pytest.mark.row(21)
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", ["killed", "ENOSPC", "EIO"])
@pytest.mark.parametrize("who", ["guard", "walker"])
def test_a_worker_disturbed_at_every_call_gives_no_half_directory(line, figure, how, who):
    line.build(SMALL_TREE)
    want = find_listing(line.real)

    def furnish(folder: Path, roots: tuple[Root, ...] = (Root(b""),)) -> list[object]:
        folder.mkdir(exist_ok=True)
        limits = Limits(threads=1)
        Orders(os.fsencode(line.real), 1, 1, 1, roots, limits, (), False).write(folder)
        return [sys.executable, "-m", "smartscan.worker", folder]

    calls = [c for c in MUTATING if c not in ("mkdir", "rmdir")]
    # The walker is the guard's child: strace follows it, and counts for each of the two on its own.
    follow = ["-f"] if who == "walker" else []
    log = line.folder / "log"
    traced = [strace(), *follow, "-o", log, "-e", f"trace={','.join(calls)}"]
    first = list(map(str, furnish(line.folder / "first")))
    subprocess.run([*traced, *first], check=True, capture_output=True, timeout=60)
    counted: dict[str, int] = {}
    for text in log.read_text(errors="replace").splitlines():
        words = text.split(None, 1) if follow else ["", text]
        call = words[1].partition("(")[0]
        if call in calls:
            key = f"{words[0]} {call}"
            counted[key] = counted.get(key, 0) + 1
    most = {call: max([n for k, n in counted.items() if k.endswith(f" {call}")], default=0) for call in calls}
    every = [Step(call, n) for call in calls for n in range(1, most[call] + 1)]

    def check(step: Step, folder: Path) -> None:
        injection = step.kill() if how == "killed" else step.fail(how, for_ever=how == "ENOSPC")
        under = [strace(), *follow, "-o", os.devnull, "-e", f"trace={step.call}", "-e", injection]
        worker = list(map(str, furnish(folder / "1")))
        ran = subprocess.run([*under, *worker], capture_output=True, timeout=60)
        until(lambda: _busy(folder / "1"), lambda busy: not busy, 10)
        entries: dict[bytes, int] = {}
        todo: tuple[Root, ...] = (Root(b""),)
        attempt = folder / "1"
        for number in range(2, 5):
            todo = _take(attempt, todo, entries)
            if not todo:
                break
            attempt = folder / f"{number}"
            subprocess.run([*map(str, furnish(attempt, todo))], check=True, capture_output=True, timeout=60)
        assert not todo, (step, ran.returncode, todo)
        assert entries.keys() == want.keys() - {b""}, step
        shutil.rmtree(folder)

    taken = sample(every)
    number = each(taken, check, folders(line.folder))
    what = f"{who} of a worker, {how} at a call: every entry once, after another attempt"
    figure(what, f"{number} of {len(taken)}")
    figure("calls there are", len(every))


def _busy(folder: Path) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in (process / "cmdline").read_bytes():
                return True
    return False


def _take(folder: Path, roots: tuple[Root, ...], entries: dict[bytes, int]) -> tuple[Root, ...]:
    """Take what an attempt brought, as a controller does; gives what is left."""
    result = folder / "result.json"
    try:
        data = json.loads(result.read_bytes())
        names, left = data["shards"], tuple(Root.from_json(r) for r in data["leftover"])
    except (OSError, ValueError):
        saved = shard.salvage(folder, roots, [r for _, some in shard.leftover_files(folder) for r in some])
        names, left = saved.shards, saved.leftover
    for name in names:
        for window in shard.windows(folder / name):
            for r in window.records:
                for entry, mode, *_ in shard.rows(window, r.offset) if r.kind == shard.KIND_DIR else ():
                    path = r.path + b"/" + entry if r.path else entry
                    assert path not in entries, f"{path!r} twice"
                    entries[path] = mode
    return left


# -- shards ----------------------------------------------------------------------------------------------


@pytest.mark.row(22)
def test_no_damaged_shard_is_accepted(line, figure, shards):
    db = line.folder / "x.db"
    empty_catalogue(db)
    before = rows(db)
    bulk = open_bulk(functools.partial(opening.open_catalogue, db, create=False))
    ingest = Ingest(bulk, 1, 1, rescan=False)
    good = shards[0].read_bytes()
    torn = line.folder / "000001.shard"
    chance = random.Random(SEED)
    accepted = tried = 0

    def attempt(data: bytes) -> None:
        nonlocal accepted, tried
        torn.write_bytes(data)
        tried += 1
        try:
            ingest.shard(1, 1, torn, 1.0)
        except ShardError:
            return
        accepted += 1

    for size in range(len(good)):
        attempt(good[:size])
    for _ in range(1000):
        at, bit = chance.randrange(len(good)), 1 << chance.randrange(8)
        attempt(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
    for extra in (b"\\0", b"x" * 64, good):
        attempt(good + extra)
    figure("damaged shards accepted (cut at every byte, bits flipped, bytes added)", accepted, at_most=0)
    figure("damaged shards tried", tried)
    assert rows(db) == before
    torn.write_bytes(good)
    assert ingest.shard(1, 1, torn, 1.0) is not None
    bulk.conn.close()
    assert rows(db) > before


@pytest.mark.row(22)
@pytest.mark.fuse
def test_a_shard_damaged_on_its_way_is_listed_again(line, figure):
    line.build({f"d{n:02d}": {f"f{m}": m for m in range(9)} for n in range(30)})
    damaged = 0
    with fault_mount(line.real, rules=[latency(15)], **NO_CACHE) as share:
        scanning = line.start(share.path, "--threads", 2)
        end = time.monotonic() + 20
        while damaged < 2 and scanning.poll() is None and time.monotonic() < end:
            for part in line.data.glob("work/*/*/*.part"):
                # Spoilt while the worker still writes: the end that it will put there fits the length.
                with contextlib.suppress(OSError), part.open("r+b") as file:
                    if part.stat().st_size > 400:
                        file.seek(200)
                        file.write(b"\\xff\\xfe\\xfd")
                        damaged += 1
                        time.sleep(0.8)
        done = line.finish(scanning)
        assert done.status in (0, 3)
        if done.status == 3:
            line.retry(code=0)
    refused = [text for text in line.events("ended") if "damaged" in text]
    assert line.listing().keys() == find_listing(line.real).keys() - {b""}
    figure("shards damaged while they were written", damaged)
    figure("attempts that said so, and were listed again", len(refused), at_least=min(1, damaged))
