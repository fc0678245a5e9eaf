"""The rows of the catalogue as types: what `read` and `runs` answer with.

Pure. Words are str, paths and names bytes; paths are relative to their mount, and `Mount.absolute`
makes them whole.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from smartscan.errors import CatalogueError
from smartscan.model import ChunkState, DirState, ScanState


class Mount(NamedTuple):
    """A share that the user named."""

    id: int
    name: str
    path: bytes
    fs_type: str | None
    source: str | None

    def absolute(self, path: bytes) -> bytes:
        """Make a path of this mount whole."""
        return self.path.rstrip(b"/") + b"/" + path if path else self.path


class Scan(NamedTuple):
    """One run over one mount; the sizes are what it has seen so far."""

    id: int
    mount: Mount
    state: ScanState
    started_at: float
    ended_at: float | None
    beat_at: float | None
    engine: str
    controller: dict[str, Any]
    options: dict[str, Any]
    mount_dead: bool
    certificate: dict[str, Any] | None
    paused: str | None
    entries: int
    dirs: int
    bytes: int
    disk_bytes: int
    entries_new: int | None
    entries_changed: int | None
    entries_gone: int | None
    broken_off: bool = False  # it runs by its row, but its controller has ended

    @property
    def standing(self) -> str:
        """Tell how it stands, in words."""
        return "broken off" if self.broken_off else self.state


class Totals(NamedTuple):
    """All that the catalogue holds of a mount; hard links count once."""

    files: int
    entries: int
    bytes: int
    disk_bytes: int


class ChunkCount(NamedTuple):
    """The chunks of a scan that are in one state; an estimate is None where one chunk has none."""

    state: ChunkState
    chunks: int
    entries: int
    est_entries: int | None
    est_bytes: int | None


class ChunkRow(NamedTuple):
    """Work for one container, and what came of it."""

    id: int
    scan_id: int
    state: ChunkState
    origin: str
    parent_id: int | None
    est_bytes: int | None
    est_entries: int | None
    fails: int
    entries: int
    dirs: int
    bytes: int
    disk_bytes: int
    created_at: float
    ended_at: float | None


class Attempt(NamedTuple):
    """One run of a chunk; the sizes are what the worker has seen so far."""

    chunk_id: int
    number: int
    worker_id: str | None
    started_at: float
    progressed_at: float
    ended_at: float | None
    entries: int
    dirs: int
    bytes: int
    disk_bytes: int
    outcome: str | None
    exit_code: int | None
    log_tail: str | None


class Reading(NamedTuple):
    """What one walker thread is in."""

    chunk_id: int
    path: bytes
    op: str
    since_at: float


class Event(NamedTuple):
    """Something that happened."""

    at: float
    chunk_id: int | None
    attempt: int | None
    kind: str
    detail: str


class Problem(NamedTuple):
    """A path that could not be read, over all scans; `cleared_at` is when a later scan read it."""

    mount: Mount
    path: bytes
    op: str
    errno: int
    scan_id: int
    first_at: float
    last_at: float
    attempts: int
    waited_s: float | None
    wchan: str | None
    cause: str | None
    retry_at: float | None
    cleared_at: float | None


class Tally(NamedTuple):
    """Totals of the regular files that have one key in common."""

    key: str
    files: int
    bytes: int
    disk_bytes: int


class LargeFile(NamedTuple):
    """One of the largest regular files."""

    mount: Mount
    path: bytes
    size: int


class Directory(NamedTuple):
    """A directory and what its whole subtree holds; at least that where it is `incomplete`."""

    mount: Mount
    path: bytes
    incomplete: bool
    state: DirState
    reason: str | None
    scan_id: int | None
    files: int
    entries: int
    bytes: int
    disk_bytes: int


def members(text: str) -> dict[str, Any]:
    """Read a column that holds a JSON object; CatalogueError where it holds something else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CatalogueError("the catalogue is damaged: what it notes of a scan cannot be read")
    return found
