"""Processes as /proc shows them: by session, by environment, and never a recycled pid for an old one.

Touches: /proc. Reads `stat` and `environ` only: neither waits for a process that is stuck in a file system.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """One process; `started` is in clock ticks since boot and makes the pid unique."""

    pid: int
    state: str
    session: int
    started: int

    @property
    def id(self) -> str:
        return f"{self.pid}:{self.started}"


def parse_id(text: str) -> tuple[int, int]:
    """Split `pid:started`; ValueError on anything else."""
    pid, _, started = text.partition(":")
    return int(pid), int(started)


def read(pid: int) -> Process | None:
    """Read one process; None when there is none."""
    try:
        text = _read(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(b")")[2].split()  # the name before it may hold anything
    return Process(pid, fields[0].decode(), int(fields[3]), int(fields[19]))


def every() -> Iterator[Process]:
    """Go through all processes that can be seen."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (process := read(int(folder.name))):
            yield process


def lives(process: Process) -> bool:
    """Tell a living process from a zombie, and a plain zombie from one whose other thread is stuck.

    A process whose leader has ended shows `Z` for as long as one thread sits in an unanswered read.
    """
    if process.state not in "ZX":
        return True
    try:
        threads = [folder.name for folder in Path(f"/proc/{process.pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return threads != [str(process.pid)] and threads != []


def environment(process: Process, having: str = "") -> dict[str, str]:
    """Read a process's first environment; empty for another user's, a kernel thread's, a zombie's, and for
    one without the variable `having`.

    A zombie with a thread that is stuck has one still, at that thread.
    """
    text = _environ(f"/proc/{process.pid}")
    if not text and process.state in "ZX":
        with contextlib.suppress(OSError):
            text = next(filter(None, map(_environ, sorted(Path(f"/proc/{process.pid}/task").iterdir()))), b"")
    if os.fsencode(having) not in text:
        return {}
    return dict(os.fsdecode(pair).partition("=")[::2] for pair in text.split(b"\0") if b"=" in pair)


def _environ(folder: str | Path) -> bytes:
    try:
        return _read(f"{folder}/environ")
    except OSError:
        return b""


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # a buffer costs as much as all the rest
        return file.readall()
