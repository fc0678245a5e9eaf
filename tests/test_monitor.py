"""monitor: what is seen of running scans, from the catalogue alone; known answers in tests/gold."""

import fcntl
import json
import os
import pty
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import catalogue_fixture as fixture
import gold
from catalogue_fixture import NOW
from smartscan import monitor
from smartscan.catalogue import read, runs
from smartscan.monitor import Meter, Rate
from smartscan.report import page


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def _look(path: Path, now: float = NOW, meter: Meter | None = None) -> tuple[str, dict[str, object]]:
    with read.open_for_reading(path) as db:
        found, last = monitor.views(db, meter or Meter(), now=now), runs.newest_scan(db)
    return page.plain(monitor.page(found, last, now=now)), monitor.as_json(found, last, now=now)


def test_a_running_scan(tmp_path: Path) -> None:
    fixture.running(tmp_path / "c.db").close()
    text, data = _look(tmp_path / "c.db")
    gold.check("monitor.txt", text)
    gold.check("monitor.json", json.dumps(data, indent=2) + "\n")


def test_no_scan_is_running(tmp_path: Path) -> None:
    fixture.videos(tmp_path / "c.db").close()
    text, data = _look(tmp_path / "c.db")
    gold.check("monitor-idle.txt", text)
    assert data["scans"] == []


def test_no_scan_has_run(tmp_path: Path) -> None:
    fixture.empty(tmp_path / "c.db").close()
    assert _look(tmp_path / "c.db")[0] == "No scan has run yet.\n"


def test_what_is_in_flight_counts_once(tmp_path: Path) -> None:
    fixture.running(tmp_path / "c.db").close()
    with read.open_for_reading(tmp_path / "c.db") as db:
        (view,) = monitor.views(db, Meter(), now=NOW)
    # 44,000 in the catalogue, 4,000 of them of the attempt that has seen 10,000; another has seen 100.
    assert view.entries == 44_000 + 6_000 + 100
    # 10,000 pending; of 50,000 in running chunks 4,000 are in the catalogue and 6,100 on their way.
    assert view.remaining == 10_000 + 50_000 - 4_000 - 6_100


def test_rates_are_of_the_last_half_minute(tmp_path: Path) -> None:
    db = fixture.running(tmp_path / "c.db")
    with read.open_for_reading(tmp_path / "c.db") as reader:
        scan = runs.scan(reader, 3)
    db.close()
    meter = Meter()
    first = meter.rate(scan, NOW, 50_000, 10**9)
    assert first is not None and (first.entries, first.over_s) == (500, 100)  # since its start
    for second in range(1, 101):
        rate = meter.rate(scan, NOW + second, 50_000 + 1000 * max(second - 60, 0), 10**9)
    assert rate is not None and rate.entries == 1000 and rate.bytes == 0 and 30 <= rate.over_s <= 31
    assert len(meter.seen[scan.id]) < 40
    assert meter.rate(scan, NOW + 50, 15_000, 0) == Rate(100, 0, 150)  # the clock went back: since its start
    assert Meter().rate(scan, scan.started_at, 0, 0) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE scan SET paused = 'no space left' || char(10)", "Paused: no space left\\n"),
        ("UPDATE scan SET mount_dead = 1", "The mount stopped answering"),
        ("UPDATE scan SET beat_at = beat_at - 300", "(process 4711 on tower) for 5 min 01 s"),
        ("UPDATE scan SET beat_at = NULL", "No sign of life"),
        ("UPDATE scan SET beat_at = beat_at + 1e6", "about "),  # the clock went back: no verdict
        ("UPDATE chunk SET est_entries = NULL WHERE state = 'pending'", "unknown: nobody has measured"),
        ("UPDATE chunk SET est_entries = NULL WHERE state = 'done'", "about "),
        ("DELETE FROM attempt", "Chunks"),
    ],
)
def test_a_scan_says_what_keeps_it(tmp_path: Path, change: str, words: str) -> None:
    db = fixture.running(tmp_path / "c.db")
    db.execute(change)
    db.close()
    assert words in _look(tmp_path / "c.db")[0]


def test_no_end_is_promised_while_nothing_moves(tmp_path: Path) -> None:
    fixture.running(tmp_path / "c.db").close()
    meter = Meter()
    _look(tmp_path / "c.db", NOW, meter)
    assert "unknown: nothing moves; " in _look(tmp_path / "c.db", NOW + 10, meter)[0]


class Terminal:
    """A command on a terminal of 100 columns, its output as it comes."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 100, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "smartscan.cli", *arguments],
            stdin=slave, stdout=slave, stderr=slave, close_fds=True, start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        os.close(slave)

    def read_until(self, words: bytes, *, within_s: float = 20) -> bytes:
        """Read until some words came; fails where they do not come in time."""
        seen, until = b"", time.monotonic() + within_s
        while words not in seen:
            left = until - time.monotonic()
            assert left > 0, f"no {words!r} in {seen!r}"
            if select.select([self.master], [], [], left)[0]:
                seen += os.read(self.master, 65536)
        return seen

    def interrupt(self) -> int:
        """Press Ctrl-C; gives the exit status."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            os.close(self.master)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path takes one line of a terminal, however many tests ran before."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_live_it_waits_for_a_catalogue_and_a_scan_and_shows_them(short_folder: Path) -> None:
    path = short_folder / "c.db"
    terminal = Terminal("monitor", "--interval", "0.1", "--db", str(path))
    try:
        terminal.read_until(b"there is no catalogue")
        made = fixture.running(short_folder / "made.db")
        made.execute("PRAGMA journal_mode = DELETE")
        made.close()
        os.rename(short_folder / "made.db", path)
        terminal.read_until(b"/mnt/user/Photos/2021/dead")
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("UPDATE scan SET state = 'complete', ended_at = started_at + 5 WHERE id = 3")
        db.close()
        terminal.read_until(b"No scan is running")
    finally:
        status = terminal.interrupt()
    assert status == 0


def test_without_a_terminal_it_prints_once(tmp_path: Path) -> None:
    fixture.videos(tmp_path / "c.db").close()
    command = [sys.executable, "-m", "smartscan.cli", "monitor", "--db", str(tmp_path / "c.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert "No scan is running." in done.stdout
