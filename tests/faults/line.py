"""The real command line on a share that fails, and what must hold afterwards whatever happened.

Touches: processes, the test's own folder. A scan runs as a user runs it; what it left is looked for in /proc,
in the data directory, in the control groups.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import catalogues
from trees import Listed, Tree, build

STALL_S = 2.0
COMMAND = (sys.executable, "-m", "smartscan.cli")
MEASURE = (sys.executable, "-I", "-S", str(Path(__file__).parents[2] / "benchmarks" / "measure.py"))
# What a data directory may hold when no scan runs.
AT_REST = {"", "-wal", "-shm", "-journal"}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    took_s: float
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        return dict(json.loads(self.out))

    @property
    def dirs(self) -> dict[str, int]:
        """The account of the certificate."""
        return dict(self.data["certificate"]["dirs"])


class Line:
    """A share, a data directory, and the commands on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.real, self.data = folder / "real", folder / "data"
        self.real.mkdir(parents=True)
        self.data.mkdir()
        self.db = self.data / "x.db"
        self.engine = "local"
        self.environment: dict[str, str] = {}
        self._started: list[subprocess.Popen[str]] = []

    def build(self, tree: Tree) -> None:
        build(self.real, tree)

    # -- commands ----------------------------------------------------------------------------------------

    def words(self, share: Path, *words: object, stall_s: float = STALL_S) -> list[str]:
        options = ("--db", self.db, "--engine", self.engine, "--stall-after", stall_s, "--json")
        return [str(word) for word in ("scan", share, "m", *options, *words)]

    def command(self, *words: object, code: int | None = None, timeout_s: float = 150) -> Done:
        """Run a command to its end; a traceback is never an answer."""
        began = time.monotonic()
        ran = self._popen(map(str, words))
        out, err = ran.communicate(timeout=timeout_s)
        done = Done(ran.returncode, time.monotonic() - began, out, err)
        assert "Traceback" not in done.err and "fault of the program" not in done.err, done.err
        assert code is None or done.status == code, f"exit status {done.status}: {done.out}{done.err}"
        return done

    def scan(self, share: Path, *words: object, code: int | None = None, stall_s: float = STALL_S,
             abandoned: int = 0, timeout_s: float = 150) -> Done:
        """Scan, and check all that every end owes."""
        done = self.command(*self.words(share, *words, stall_s=stall_s), code=code, timeout_s=timeout_s)
        self.check(done, abandoned)
        return done

    def measured_scan(self, share: Path, *words: object, code: int) -> tuple[Done, int]:
        """Scan, and tell the peak resident size of the largest process in bytes.

        A process begins with the peak of the one it was forked from, which may be a test that held more.
        """
        told, tell = os.pipe()
        with open(told) as answer:
            command = (*MEASURE, str(tell), *COMMAND)
            process = self._popen(self.words(share, *words), command, pass_fds=(tell,))
            os.close(tell)
            out, err = process.communicate(timeout=150)
            cost = json.loads(answer.read())
        done = Done(cost["status"], cost["wall_s"], out, err)
        assert done.status == code, f"exit status {done.status}: {out}{err}"
        self.check(done, 0)
        return done, int(cost["peak_bytes"])

    def retry(self, *words: object, code: int | None = None) -> Done:
        options = ("--db", self.db, "--engine", self.engine, "--stall-after", STALL_S, "--json")
        done = self.command("retry", "m", *options, *words, code=code)
        self.check(done, None)
        return done

    def start_retry(self) -> subprocess.Popen[str]:
        """Start, in the background, to try again what the last scan gave up."""
        return self._popen(("retry", "m", "--db", str(self.db), "--engine", self.engine, "--json"))

    def start(self, share: Path, *words: object, stall_s: float = STALL_S) -> subprocess.Popen[str]:
        """Start a scan in the background."""
        return self._popen(self.words(share, *words, stall_s=stall_s))

    def _popen(self, words: Iterable[str], command: tuple[str, ...] = COMMAND,
               pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            (*command, *words), text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=os.environ | self.environment, pass_fds=pass_fds,
        )  # fmt: skip
        self._started.append(process)
        return process

    def finish(self, scanning: subprocess.Popen[str], *, code: int | None = None, abandoned: int = 0,
               timeout_s: float = 120) -> Done:
        """Wait for a started scan, and check it like any other."""
        began = time.monotonic()
        out, err = scanning.communicate(timeout=timeout_s)
        done = Done(scanning.returncode, time.monotonic() - began, out, err)
        assert code is None or done.status == code, f"exit status {done.status}: {out}{err}"
        assert "Traceback" not in err and "fault of the program" not in err, err
        self.check(done, abandoned)
        return done

    def end(self) -> None:
        """End what a failed test left running."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # -- what must hold ----------------------------------------------------------------------------------

    def check(self, done: Done, abandoned: int | None) -> None:
        """Whole catalogue, sums that add up, nothing left but the workers that are listed as abandoned.

        `abandoned`: how many those may be at most; None: any number.
        """
        if not self.db.exists():
            assert done.status not in (0, 3, 4)
            return
        catalogues.check(self.db)
        listed = 0
        if done.status in (0, 3, 4):
            certificate = done.data["certificate"]
            dirs = certificate["dirs"]
            assert dirs["found"] == sum(n for state, n in dirs.items() if state != "found"), dirs
            failed = sum(dirs[state] for state in ("denied", "timed out", "I/O error"))
            assert certificate["complete"] == (not failed and not certificate["problems"])
            assert certificate["complete"] == (not failed and not certificate["unread_paths"])
            assert certificate["complete"] == (done.status == 0)
            listed = len(certificate["abandoned"])
        assert abandoned is None or listed <= abandoned
        until(lambda: len(self.sessions()), lambda n: n <= listed, 5)
        assert self.sessions() <= listed_sessions(done) if listed else not self.sessions()
        if not listed:
            left = list(self.control_groups())
            if abandoned is None and left:  # of a worker that was left before, and ended just now
                own = f"smart-scan-{self._started[-1].pid}."
                assert not [group for group in left if group.name.startswith(own)]
                self.command("cleanup", "--db", self.db, code=0)
            assert not list(self.control_groups())
        self.at_rest(folders=listed)

    def at_rest(self, *, folders: int = 0) -> None:
        """Nothing is in the data directory but the catalogue, its reserve and its locks."""
        left = {p.name for p in self.data.iterdir()}
        left -= {self.db.name + end for end in AT_REST} | {self.db.with_suffix(".reserve").name, "locks"}
        if folders:
            left.discard("work")
            attempts = list(self.data.glob("work/*/*"))
            assert len(attempts) <= folders, attempts
        assert not left, left

    def all_gone(self, *, seconds: float = 10) -> None:
        """When the storage answers again, all that was left ends, and `cleanup` takes its folders."""
        until(self.workers, lambda left: not left, seconds)
        self.command("cleanup", "--db", self.db, code=0)
        self.at_rest()
        assert not list(self.control_groups())

    def workers(self) -> list[int]:
        """Find the processes that work in this data directory, also those that cannot be killed."""
        return [pid for pid, _ in self._workers()]

    def sessions(self) -> set[int]:
        """Find the workers: a worker and its walker are one session."""
        return {session for _, session in self._workers()}

    def _workers(self) -> Iterator[tuple[int, int]]:
        mark = os.fsencode(f"SMART_SCAN_FOLDER={self.data}/")
        for process in Path("/proc").glob("[0-9]*"):
            tasks = [process]
            with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
                tasks += process.glob("task/*")
            # The thread that hangs has the environment; the leader of an ended process has it no more.
            for task in tasks:
                with contextlib.suppress(OSError):
                    if mark in (task / "environ").read_bytes():
                        yield int(process.name), session_of(int(process.name))
                        break

    def control_groups(self) -> Iterator[Path]:
        """Find the control groups that our commands made and left."""
        ended = tuple(f"smart-scan-{p.pid}." for p in self._started if p.returncode is not None)
        for folder, names, _ in os.walk("/sys/fs/cgroup"):  # other groups come and go meanwhile
            yield from (Path(folder, name) for name in names if name.startswith(ended))

    # -- the catalogue -----------------------------------------------------------------------------------

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.db, timeout=30)) as conn:
            conn.text_factory = bytes
            return conn.execute(sql, values).fetchall()

    def problems(self) -> dict[bytes, tuple[str, int]]:
        """Give operation and errno of every open problem by its path."""
        rows = self.query("SELECT path, op, errno FROM problem WHERE cleared_at IS NULL")
        return {path: (op.decode(), number) for path, op, number in rows}

    def listing(self) -> dict[bytes, Listed]:
        return catalogues.listing(self.db)

    def outcomes(self, outcome: str | None = None) -> list[str]:
        """Give how attempts ended so far, all or those that ended so; empty while there is no catalogue."""
        try:
            rows = self.query("SELECT outcome FROM attempt WHERE outcome IS NOT NULL")
        except sqlite3.Error:
            return []
        return [end.decode() for (end,) in rows if outcome in (None, end.decode())]

    def unhappy(self) -> str:
        """Tell of the attempts that did not end well, for whoever looks at a failed test."""
        rows = self.query(
            "SELECT chunk_id, number, outcome, exit_code, log_tail, (SELECT group_concat(detail, ' | ') "
            "FROM event WHERE event.chunk_id = attempt.chunk_id AND event.attempt = attempt.number) "
            "FROM attempt WHERE outcome IS NOT 'sealed'"
        )
        return "\n".join(map(str, rows))

    def events(self, kind: str) -> list[str]:
        rows = self.query("SELECT detail FROM event WHERE kind = ? ORDER BY id", kind)
        return [detail.decode() for (detail,) in rows]


def listed_sessions(done: Done) -> set[int]:
    """Give the sessions of the workers that a certificate lists as abandoned."""
    found = set()
    for worker in done.data["certificate"]["abandoned"]:
        pid = int(worker["worker_id"].partition(":")[0])
        try:
            found.add(session_of(pid))
        except OSError:  # the worker itself has ended, and what it started is in its session
            found.add(pid)
    return found


def session_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[3])


def until(look: Callable[[], Any], wanted: Callable[[Any], object], seconds: float = 20) -> Any:
    """Look again and again until it is as wanted; fail the test when it takes too long."""
    end = time.monotonic() + seconds
    while not wanted(seen := look()):
        assert time.monotonic() < end, f"still {seen!r} after {seconds} s"
        time.sleep(0.02)
    return seen
