"""Both ways to walk and to make records, side by side, and what a walk of a tree gives.

Touches: the directories it is given, read-only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from smartscan import codec, walk
from smartscan.codec import python as python_codec
from smartscan.model import Root, join
from smartscan.shard import BIG, KIND_DIR, LAST, Record
from smartscan.walk import python as python_walk

native: Any
try:
    from smartscan import _native as native
except ImportError:
    native = None

needs_native = pytest.mark.skipif(native is None, reason="the C extension is not built")
CODECS = [pytest.param(python_codec, id="python"), pytest.param(native, id="native", marks=needs_native)]
WALKERS = [pytest.param(python_walk, id="python"), pytest.param(native, id="native", marks=needs_native)]
assert codec.codec in (python_codec, native)

BUDGET_NS = 10**10


@contextmanager
def opened(path: Path, door: Any, *, patterns: tuple[bytes, ...] = (), known: bytes = b"",
           one_file_system: bool = False, depth: int = 20_000, sizes_only: bool = False,
           shared: Any = None) -> Iterator[Any]:
    """Open a walker of one thread, with its slot in `shared`."""
    fd = walk.open_share(os.fsencode(path))
    try:
        slots = shared or bytearray(walk.SLOT_BYTES)
        walker = door.Walker(fd, slots, patterns, one_file_system, depth, sizes_only)
        walker.know(known)
        yield walker
    finally:
        os.close(fd)


def names_in(blob: bytes) -> int:
    """Count the names that a walker gives of a large directory."""
    at = count = 0
    while at < len(blob):
        at = blob.index(0, at + 9) + 1
        count += 1
    return count


def drive(walker: Any, roots: list[Root] | None = None, *,
          budget_ns: int = BUDGET_NS) -> tuple[list[bytes], list[Root]]:
    """Walk to the end with one thread: the records of every call, and the subdirectories of FILES roots."""
    queue = [walk.job(r) for r in reversed(roots if roots is not None else [Root(b"")])]
    calls: list[bytes] = []
    left: list[Root] = []
    while queue:
        records, rest, more, large = walker.walk([queue.pop()], 0, budget_ns)
        calls.append(records)
        queue += rest
        left += map(walk.job_root, more)
        if not large:
            continue
        token, fd, names, *identity = large
        end = block = 0
        while True:
            if names:
                records, rest, more = walker.stat_names(token, fd, names, *identity, block, 0)
                calls.append(records)
                queue += rest
                left += map(walk.job_root, more)
                block += 1
            if end:
                break
            names, _, end = walker.read_names(fd, walk.job_path(token), 0)
        os.close(fd)
    return calls, left


@dataclass
class Seen:
    """A walk, taken apart."""

    records: list[Record]
    entries: dict[bytes, tuple[Any, ...]] = field(default_factory=dict)  # path: a row without its name
    states: dict[bytes, int] = field(default_factory=dict)


def take_apart(data: bytes) -> Seen:
    """Read records with the twin in Python; every path may come once."""
    found, _, good = python_codec.index(data, True)
    assert good == len(data)
    seen = Seen([Record._make(r) for r in found])
    for r in seen.records:
        if r.kind != KIND_DIR:
            continue
        if r.flags & LAST or r.flags & BIG:
            assert r.path not in seen.states or r.flags & BIG
            seen.states[r.path] = r.state
        for name, *row in python_codec.rows(data, r.offset):
            path = join(r.path, name)
            assert path not in seen.entries
            seen.entries[path] = tuple(row)
    return seen


def walk_all(path: Path, door: Any, **options: Any) -> Seen:
    """Walk a whole tree and take it apart."""
    with opened(path, door, **options) as walker:
        return take_apart(b"".join(drive(walker)[0]))
