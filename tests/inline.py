"""An engine whose workers are threads of this process, which may be told to die: a scan takes a moment.

Touches: attempt folders, the share through the real walker. Nothing hangs and nothing is killed here: that is
for the tests with real processes.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from smartscan.catalogue import open as opening
from smartscan.catalogue.bulk import open_bulk
from smartscan.catalogue.lock import MountLock
from smartscan.engine import Found, Job, Status
from smartscan.model import Outcome, Resources, Root
from smartscan.run import Request
from smartscan.run.course import Report, _Scan
from smartscan.shard import leftover_files, salvage, write_json
from smartscan.walk import SLOT_BYTES
from smartscan.worker.orders import Orders
from smartscan.worker.walker import SPARE_SLOTS, Walker


class Died(Exception):
    """A worker was told to die here."""


@dataclass
class Fate:
    """What becomes of one attempt."""

    dies_after: int | None = None  # writes of records; None: it lives
    survived: bool = False  # by its first process, which then says what is left
    torn: int = 0  # bytes that are missing at the end of what it had not sealed
    yields: bool = False  # it is asked for half of its work at once


class _Mortal(Walker):
    """The real walker, which dies when its fate says so."""

    def __init__(self, *args: Any, fate: Fate) -> None:
        super().__init__(*args)
        self.fate = fate

    def _emit(self, records: bytes) -> None:
        if self.fate.dies_after is not None:
            if self.fate.dies_after == 0:
                raise Died
            self.fate.dies_after -= 1
        super()._emit(records)


@dataclass
class Inline:
    """The engine. `fates` gives what becomes of the next attempt; `before` is called when one begins."""

    fates: Callable[[Job], Fate] = lambda _job: Fate()
    before: Callable[[Job], None] = lambda _job: None
    name: str = "local"
    ended: dict[str, Status] = field(default_factory=dict)
    starts: list[Job] = field(default_factory=list)

    def check(self) -> None:
        pass

    def prepare(self) -> None:
        pass

    def cpus(self) -> float:
        return float(os.cpu_count() or 1)

    def clamp(self, want: Resources, *, at_a_time: int = 1) -> tuple[Resources, list[str]]:
        return want, []

    def describe(self) -> list[str]:
        return []

    def start(self, job: Job) -> str:
        self.starts.append(job)
        self.before(job)
        worker_id = f"{job.scan_id}:{job.chunk_id}:{job.attempt}"
        threading.Thread(target=self._work, args=(worker_id, job, self.fates(job))).start()
        return worker_id

    def _work(self, worker_id: str, job: Job, fate: Fate) -> None:
        code, tail = 1, ""
        try:
            code, tail = attempt(job.folder, fate)
        finally:
            self.ended[worker_id] = Status("exited", code, False, tail)

    def status(self, worker_id: str) -> Status:
        return self.ended.get(worker_id, Status("running"))

    def kill(self, worker_id: str, *, grace_s: float = 1.0) -> bool:
        return worker_id in self.ended

    def remove(self, worker_id: str) -> bool:
        return worker_id in self.ended

    def find(self, namespace: str) -> list[Found]:
        return []

    def close(self) -> None:
        pass


def attempt(folder: Path, fate: Fate) -> tuple[int, str]:
    """Do what a worker does with its folder, without its first process; gives exit code and log."""
    orders = Orders.read(folder)
    write_json(folder / "progress.json", {"share_id": _share_id(folder)})
    said = folder / "said"
    orders_in, orders_out = os.pipe()
    shared = mmap.mmap(-1, (orders.limits.threads + SPARE_SLOTS) * SLOT_BYTES)
    with open(said, "wb") as out:
        walker = _Mortal(folder, orders, shared, out.fileno(), fate=fate)
        if fate.yields:
            os.write(orders_out, b"y")
        try:
            walker.run(orders_in)
        except OSError as e:
            return 10, str(e)
        except RuntimeError:
            for part in folder.glob("*.part"):
                os.truncate(part, max(0, part.stat().st_size - fate.torn))
            _give(folder, said)
            if not fate.survived:
                return 137, "killed"
            given = [root for _, some in leftover_files(folder) for root in some]
            left = salvage(folder, orders.roots, given)
            roots = [r.to_json() for r in left.leftover]
            _write(folder, Outcome.FAILED, left.shards, roots, "the walker died")
            return 0, ""
        finally:
            os.close(orders_in)
            os.close(orders_out)
    final = _give(folder, said)
    outcome = Outcome.CANCELLED if final["end"] == "stop" else Outcome.SEALED
    _write(folder, outcome, final["shards"], final["leftover"], "", final["fs"])
    return 0, ""


def _write(folder: Path, outcome: Outcome, shards: Sequence[str], leftover: list[dict[str, str]],
           message: str, fs: dict[str, int] | None = None) -> None:
    """Write the result, as a worker's first process does."""
    sums = {"entries": 0, "dirs": 0, "bytes": 0, "disk_bytes": 0}
    write_json(
        folder / "result.json",
        {"outcome": outcome.value, "shards": list(shards), "leftover": leftover, "stuck": [], "fs": fs,
         "walker": "ended", "message": message, "dead": False, "share_id": _share_id(folder), "fs_type": "",
         "source": "", **sums},
    )  # fmt: skip


def _share_id(folder: Path) -> list[int]:
    seen = os.stat(Orders.read(folder).share)
    return [seen.st_dev, seen.st_ino]


def _give(folder: Path, said: Path) -> dict[str, Any]:
    """Write down what was given back, as a worker's first process does; gives the last words."""
    final: dict[str, Any] = {}
    for line in said.read_bytes().splitlines():
        message = json.loads(line)
        if "given" in message:
            number = len(leftover_files(folder)) + 1
            write_json(folder / f"leftover-{number:06d}.json", {"roots": message["given"]})
        elif "end" in message:
            final = message
    said.unlink()
    return final


def left_of(folder: Path) -> list[Root]:
    """List what an attempt that ended left over and gave back."""
    result = json.loads((folder / "result.json").read_bytes())
    given = [root for _, some in leftover_files(folder) for root in some]
    return [Root.from_json(r) for r in result["leftover"]] + given


def random_fates(chance: Random, *, death: float) -> Callable[[Job], Fate]:
    """Let an attempt die with that probability, somewhere, and perhaps leave a torn end."""

    def fate(_job: Job) -> Fate:
        dies = chance.random() < death
        return Fate(
            chance.randrange(8) if dies else None,
            chance.random() < 0.7,
            chance.choice((0, 0, 1, 7, 100)),
            chance.random() < 0.3,
        )

    return fate


def scan(request: Request, engine: Inline) -> Report:
    """Run a scan as the program does, on this engine."""
    with MountLock(request.db, request.name) as lock:
        bulk = open_bulk(functools.partial(opening.open_catalogue, request.db, create=True))
        try:
            return _Scan(request, engine, bulk, lock, only_failed=False).run()
        finally:
            bulk.conn.close()
