"""What the ingest remembers and counts while it takes shards in.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smartscan.model import DirState

STATES = (
    DirState.FOUND,
    DirState.LISTED,
    DirState.EXCLUDED,
    DirState.DENIED,
    DirState.TIMED_OUT,
    DirState.IO_ERROR,
    DirState.OTHER_MOUNT,
    DirState.VANISHED,
)
FAILED = (DirState.DENIED, DirState.TIMED_OUT, DirState.IO_ERROR)
LEFT_OUT = (DirState.EXCLUDED, DirState.OTHER_MOUNT)  # on purpose: what was inside goes from the catalogue


@dataclass(slots=True)
class Counts:
    """What ingesting one shard brought."""

    entries: int = 0
    dirs: int = 0  # decided for the first time in this scan
    bytes: int = 0
    disk_bytes: int = 0
    new: int = 0
    changed: int = 0
    gone: int = 0


@dataclass(slots=True)
class Dir:
    """A directory as the ingest knows it. `row` is set while its row is not written yet."""

    id: int
    state: str
    scan_id: int | None = None
    digest: int | None = None
    dev: int | None = None
    own_blocks: int = 0
    listed: bool = False  # its entries were catalogued before
    fresh: bool = False  # made by this process: what the cache does not know below it does not exist


@dataclass(slots=True)
class NewRow:
    """The row of a new directory, until the window is written."""

    parent_id: int | None
    name: bytes
    values: tuple[Any, ...] = (DirState.FOUND.value, None, None, None, None, 0, 0, 0)


@dataclass(slots=True)
class Large:
    """What the blocks of a large directory summed up to so far."""

    entries: int = 0
    dirs: int = 0
