"""Attempts, and what is put into their folders: orders, what is known already, signs to stop or to yield.

Touches: attempt folders, where a worker may write as well; the catalogue, reading.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from smartscan.catalogue import directory
from smartscan.catalogue.ingest import Ingest
from smartscan.engine import Status
from smartscan.model import Chunk, Progress
from smartscan.worker.orders import KNOWN, Orders

log = logging.getLogger("smartscan.run")


@dataclass(slots=True)
class Attempt:
    """A running attempt, as the controller knows it."""

    chunk: Chunk
    number: int
    folder: Path
    worker_id: str = ""
    moved_at: float = 0.0
    asked_at: float = 0.0
    asking: bool = False
    progress: Progress = field(default_factory=lambda: Progress(0))
    status: Status | None = None
    exited: bool = False
    adopted: bool = False  # from an earlier controller
    ingested: set[str] = field(default_factory=set)  # files of its folder that were taken in


def furnish(folder: Path, orders: Orders) -> None:
    """Make the folder of an attempt anew, with its orders; raises OSError."""
    if folder.exists():
        remove_folder(folder)
    folder.mkdir(parents=True)
    orders.write(folder)


def remove_folder(folder: Path) -> None:
    """Remove the folder of an attempt, DATA/work/MOUNT/ATTEMPT, as far as that is possible."""
    directory.remove(folder, below=folder.parents[2])


def give_order(folder: Path, order: str) -> None:
    """Put an order into an attempt's folder; raises OSError, also where a worker has laid a link there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    os.close(os.open(folder / order, flags, 0o644))


def give_known(folder: Path, known: bytes) -> None:
    """Put what `Ingest.known` gives into the folder of a worker that may read by now; raises OSError."""
    made = folder / f"{KNOWN}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(made, flags, 0o644), "wb") as file:
        file.write(known)
    made.rename(folder / KNOWN)


class Digests:
    """Gives workers what is known of their directories: to look it up takes longer than to start one."""

    def __init__(self, ingest: Ingest) -> None:
        self.ingest = ingest
        self._waiting: deque[Attempt] = deque()

    def promise(self, attempt: Attempt) -> None:
        """Let `give` come to this one, where there was a scan before; it reads meanwhile."""
        if self.ingest.rescan:
            self._waiting.append(attempt)

    def give(self, running: dict[int, Attempt]) -> bool:
        """Give one that still runs its own; False where nobody waits. Cost: one row per directory."""
        if not self._waiting:
            return False
        attempt = self._waiting.popleft()
        if running.get(attempt.chunk.id) is attempt:
            known = b"".join(self.ingest.known(r) for r in attempt.chunk.roots)
            try:
                give_known(attempt.folder, known)
            except OSError as e:  # it goes on without
                log.warning("%s: %s", attempt.folder, e)
        return True
