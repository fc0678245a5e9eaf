"""A program killed, or refused a system call, at every single step it takes: strace(1) does it from outside.

Touches: processes. Only the first thread is followed: it is the one that writes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

# What changes something: a kill between two of these is no different from one at the second.
MUTATING = ("pwrite64", "write", "fsync", "fdatasync", "ftruncate", "unlink", "rename", "mkdir", "rmdir")
AT_A_TIME = 2
# A sample where the whole would take minutes; `make soak` and `make reliability` take every step.
SAMPLE = int(os.environ.get("SMART_SCAN_STEPS", "24"))
SEED = int(os.environ.get("SMART_SCAN_SEED", "1"))


@dataclass(frozen=True)
class Step:
    """The Nth call of a kind."""

    call: str
    number: int

    def kill(self) -> str:
        return f"inject={self.call}:signal=SIGKILL:when={self.number}"

    def fail(self, errno: str, *, for_ever: bool = False) -> str:
        return f"inject={self.call}:error={errno}:when={self.number}{'+' if for_ever else ''}"


def strace() -> str:
    """Find strace, or skip the test."""
    found = shutil.which("strace")
    if not found:
        pytest.skip("needs strace")
    probe = subprocess.run([found, "-o", os.devnull, "-e", "trace=write", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("this container does not allow strace")
    return found


def steps(command: Sequence[object], calls: Sequence[str], log: Path, **options: object) -> list[Step]:
    """Run a command undisturbed, and list the steps its first thread takes."""
    subprocess.run(
        [strace(), "-o", log, "-e", f"trace={','.join(calls)}", *map(str, command)],
        check=True, capture_output=True, timeout=60, **options,
    )  # fmt: skip
    counts = Counter(re.findall(r"^(\w+)\(", log.read_text(errors="replace"), re.MULTILINE))
    log.unlink()
    return [Step(call, n) for call in calls for n in range(1, counts[call] + 1)]


def sample(every: Sequence[Step], most: int = SAMPLE) -> list[Step]:
    """Take so many of the steps, evenly, the first and the last among them."""
    if len(every) <= most:
        return list(every)
    return [every[round(i * (len(every) - 1) / (most - 1))] for i in range(most)]


def disturbed(
    command: Sequence[object], injection: str, **options: object
) -> subprocess.CompletedProcess[bytes]:
    """Run a command with one fault injected into its first thread."""
    traced = injection.replace("inject=", "trace=").partition(":")[0]
    under = [strace(), "-o", os.devnull, "-e", traced, "-e", injection]
    return subprocess.run([*under, *map(str, command)], capture_output=True, timeout=60, **options)


def each(every: Sequence[Step], check: object, folders: Iterator[Path]) -> int:
    """Check every step, some at a time, each in a folder of its own; gives their number."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return sum(1 for _ in pool.map(check, every, folders))  # type: ignore[call-overload]
