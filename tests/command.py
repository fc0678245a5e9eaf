"""The command line as a user runs it: a process, its words, what it leaves behind.

Touches: processes, the data directory of a test.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "smartscan.cli")
# What a data directory holds at rest; the reserve only where the disk has much more space.
AT_REST = {"smart_catalog" + end for end in (".db", ".db-shm", ".db-wal", ".reserve")} | {"locks"}


def command_of(user: int) -> dict[str, Any] | None:
    """Give what `run` and `start` need to run the command as another user; for root.

    None where there is no Python that it may run: that of a test may lie in root's home.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    environment = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for python in (sys.executable, f"/usr/bin/python{version}"):
        more = {"user": user, "group": user, "extra_groups": [], "cwd": "/", "env": environment}
        with contextlib.suppress(OSError):
            words = [python, "-c", "import smartscan, click, xxhash"]
            if subprocess.run(words, capture_output=True, check=False, **more).returncode == 0:
                return {"command": (python, *COMMAND[1:]), **more}
    return None


def run(*words: object, code: int | None = 0, command: Sequence[str] = COMMAND,
        **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its exit status is checked (None: any), a traceback is never an answer."""
    done = subprocess.run(
        [*command, *map(_word, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=150, **more,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "fault of the program" not in done.stderr, done.stderr
    said = f"exit status {done.returncode}: {done.stdout}{done.stderr}"
    assert code is None or done.returncode == code, said
    return done


def start(*words: object, **more: Any) -> subprocess.Popen[str]:
    """Start a command."""
    return subprocess.Popen(
        [*COMMAND, *map(_word, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def _word(word: object) -> str:
    return os.fsdecode(word) if isinstance(word, bytes | os.PathLike) else str(word)


def scan_words(share: Path, db: Path, *words: object) -> tuple[object, ...]:
    return ("scan", share, "Media", "--db", db, "--engine", "local", *words)


def scan(share: Path, db: Path, *words: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Scan on the local engine; where it has ended, nothing is left of it."""
    done = run(*scan_words(share, db, *words), code=code)
    check_nothing_is_left(db)
    return done


def check_nothing_is_left(db: Path) -> None:
    """No process of ours, and nothing in the data directory but what belongs there."""
    assert workers_of(db) == []
    if db.parent.is_dir():
        kept = {name.replace("smart_catalog", db.stem) for name in AT_REST}
        assert {path.name for path in db.parent.iterdir()} <= kept


def workers_of(db: Path) -> list[int]:
    """Find the processes that work in the data directory of a catalogue."""
    mark = os.fsencode(f"{db.parent}/work/")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes()
            if mark in line and b"smartscan.worker" in line:
                found.append(int(process.name))
    return found


@contextlib.contextmanager
def ended_at_last(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """See that a process ends with the block, whatever a test finds."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def until(look: Callable[[], Any], seconds: float = 30.0, *, step_s: float = 0.01) -> Any:
    """Look until there is something, and give it; fail the test when it takes too long."""
    end = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < end, f"still {seen!r} after {seconds} s"
        time.sleep(step_s)
    return seen
