"""The worker's first process: starts the walker, watches it, and writes what became of the chunk.

Touches: the attempt's folder only. Never the share: it cannot be hung by it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from smartscan import mounts
from smartscan.errors import ShardError
from smartscan.model import SHARE_VARIABLE, Op, Outcome, Root, b64, join, show, unb64
from smartscan.shard import leftover_files, salvage, write_json
from smartscan.walk import SLOT_BYTES, Slot
from smartscan.worker.orders import Orders
from smartscan.worker.walker import DEAD, SPARE_SLOTS, Walker

EXIT_NO_SHARE = 10  # the mount's root is missing or cannot be opened
EXIT_NO_OUTPUT = 11  # the attempt's folder cannot be written: no fault of the chunk
TICK_S = 0.2  # orders are obeyed and progress is written at least this often
PROGRESS_S = 0.5
KILL_GRACE_S = 1.0  # faults.md: the only test of a hung process is whether SIGKILL reaps it


class Guard:
    """One attempt: the life of one walker child."""

    def __init__(self, folder: Path, orders: Orders) -> None:
        self.folder, self.orders = folder, orders
        self.slots = orders.limits.threads + SPARE_SLOTS
        self.shared = mmap.mmap(-1, self.slots * SLOT_BYTES)
        self.moved: list[tuple[int, float]] = [(-1, 0.0)] * self.slots
        self.beat_at = time.monotonic()
        self.beat = -1
        self.share_id: list[int] | None = None
        self.totals = dict.fromkeys(("entries", "dirs", "bytes", "disk_bytes"), 0)
        self.given = 0
        self.final: dict[str, Any] | None = None
        self.failure = ""
        self.unwritable = False
        self.mounts = mounts.read()
        self.storage = mounts.lookup(orders.share, self.mounts)
        self.pid = 0
        self.status: int | None = None
        self.cpu_s = 0.0

    def run(self) -> int:
        """Run the attempt to its end; returns the exit status."""
        fs_type = self.storage.fs_type if self.storage else ""
        if self.orders.fs_type not in (None, fs_type):
            _say(
                f"{show(self.orders.share)} is on {fs_type or 'nothing'} now, and the catalogue knows "
                f"it on {self.orders.fs_type}: "
                "is the share mounted? If it moved for good, use --moved"
            )
            return EXIT_NO_SHARE
        from_walker, out = os.pipe()
        orders_in, self.order_fd = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(from_walker)
            os.close(self.order_fd)
            _child(self.folder, self.orders, self.shared, out, orders_in)
        os.close(out)
        os.close(orders_in)
        why = self._attend(from_walker)
        reaped = self._end_walker(gently=self.final is not None and not self.final["hung"])
        return self._result(why, reaped)

    def _attend(self, from_walker: int) -> str:
        """Listen to the walker until it is done, dead or hung. Returns why it is over, "" for done."""
        told: set[str] = set()
        pending = b""
        next_progress = 0.0
        poll = select.poll()
        poll.register(from_walker, select.POLLIN)
        while True:
            if poll.poll(TICK_S * 1000):
                data = os.read(from_walker, 1 << 20)
                if not data:
                    return "" if self.final else "died"
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._hear(json.loads(line))
                if self.final or self.failure:
                    return "" if self.final else "failed"
            now = time.monotonic()
            for order in ("stop", "yield"):
                if order not in told and (self.folder / order).exists():
                    if order == "yield":
                        (self.folder / order).unlink()
                    else:
                        told.add(order)
                    with contextlib.suppress(BrokenPipeError):
                        os.write(self.order_fd, order[:1].encode())
            if now >= next_progress:
                next_progress = now + PROGRESS_S
                self._progress(now)
            if self._hung(now):
                return "hung"

    def _hear(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.share_id = message["ready"]
            self._progress(time.monotonic())  # the controller wants it before the first shard
        elif "given" in message:
            self.given += 1
            write_json(
                self.folder / f"leftover-{self.given:06d}.json", {"roots": message["given"]}, durable=True
            )
        elif "end" in message:
            self.final = message
        elif "failed" in message:
            self.failure, self.unwritable = message["failed"], message["unwritable"]

    def _hung(self, now: float) -> bool:
        """The walker as a whole moved nothing for longer than its own watch would allow."""
        stall_s = self.orders.limits.stall_s  # before the root is open nobody else judges
        return now - self.beat_at > (stall_s if self.share_id is None else stall_s * 1.5 + 2)

    def _progress(self, now: float) -> None:
        entries = dirs = size = blocks = beat = 0
        readings = []
        for i in range(self.slots):
            slot = Slot(self.shared, i)
            if slot.beat == 0:
                continue
            if self.moved[i][0] != slot.beat:
                self.moved[i] = (slot.beat, now)
            beat += slot.beat
            entries += slot.entries
            dirs += slot.dirs
            size += slot.bytes
            blocks += slot.blocks
            if slot.op != Op.IDLE:
                readings.append(
                    {"path_b64": b64(slot.full), "op": slot.op, "for_s": round(now - self.moved[i][1], 1)}
                )
        if beat != self.beat:
            self.beat, self.beat_at = beat, now
        write_json(
            self.folder / "progress.json",
            {
                "beat": int(now * 1000),
                "entries": entries,
                "dirs": dirs,
                "bytes": size,
                "disk_bytes": blocks * 512,
                "readings": readings,
                "share_id": self.share_id,
                "cpu_s": self._cpu_s(),
            },
        )
        self.totals = {"entries": entries, "dirs": dirs, "bytes": size, "disk_bytes": blocks * 512}

    def _cpu_s(self) -> float:
        """Tell what CPU time the walker has used, user and system; that of its last look once it is gone."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()
            self.cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # 14, 15 of proc(5)
        return self.cpu_s

    def _end_walker(self, *, gently: bool) -> bool:
        """See the walker off; True when it is gone, False when it hangs where no signal reaches it."""
        deadline = time.monotonic() + KILL_GRACE_S
        if not gently:
            os.kill(self.pid, signal.SIGKILL)
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
                return True
            if time.monotonic() > deadline:
                if gently:
                    return self._end_walker(gently=False)
                return False
            time.sleep(0.002)

    def kill(self) -> None:
        """Leave no walker behind."""
        if self.pid and self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _result(self, why: str, reaped: bool) -> int:
        self._progress(time.monotonic())
        walker = "ended" if reaped else "abandoned"
        if self.final:
            outcome = Outcome.CANCELLED if self.final["end"] == "stop" else Outcome.SEALED
            self._write(
                outcome,
                self.final["shards"],
                self.final["leftover"],
                self.final["stuck"],
                self.final["fs"],
                walker,
                DEAD if self.final["dead"] else "",
                dead=self.final["dead"],
            )
            return 0
        if self.share_id is None and self.failure:
            _say(self.failure)
            return EXIT_NO_SHARE
        # One that cannot be reaped hangs in something, whatever it died of: nobody else may touch that.
        stuck = self._stuck_now() if why == "hung" or not reaped else []
        given = [root for _, roots in leftover_files(self.folder) for root in roots]
        # What was not to be touched, or is another chunk's, is no leftover of this one.
        others = (*self.orders.stuck, *self.orders.held, *(unb64(s["path_b64"]) for s in stuck))
        left = salvage(self.folder, self.orders.roots, given, others)
        if why == "hung":
            outcome = Outcome.STALLED
            message = DEAD if self.share_id is None else "the walker stopped moving as a whole"
        else:
            outcome, message = Outcome.FAILED, self.failure or f"the walker died: {_death(self.status)}"
        _say(message)
        self._write(
            outcome, list(left.shards), [r.to_json() for r in left.leftover], stuck, None, walker, message,
            dead=why == "hung" and self.share_id is None,
        )  # fmt: skip
        return EXIT_NO_OUTPUT if self.unwritable else 0

    def _stuck_now(self) -> list[dict[str, Any]]:
        now, found = time.monotonic(), []
        for i in range(self.slots):
            slot = Slot(self.shared, i)
            if slot.op != Op.IDLE:
                found.append(
                    {
                        "path_b64": b64(slot.full),
                        "op": slot.op,
                        "errno": 110,
                        "waited_s": round(now - self.moved[i][1], 1),
                        "wchan": "",
                    }
                )
        if self.share_id is None:
            found.append(
                {
                    "path_b64": "",
                    "op": int(Op.OPEN),
                    "errno": 110,
                    "waited_s": round(now - self.beat_at, 1),
                    "wchan": self._wchan(),
                }
            )
        return found

    def _wchan(self) -> str:
        """Where in the kernel the walker's first thread waits, where the kernel tells."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/wchan").read_text().strip("0\n")
        return ""

    def _write(
        self,
        outcome: Outcome,
        shards: list[str],
        leftover: list[dict[str, str]],
        stuck: list[dict[str, Any]],
        fs: dict[str, int] | None,
        walker: str,
        message: str,
        *,
        dead: bool,
    ) -> None:
        write_json(
            self.folder / "result.json",
            {
                "outcome": outcome.value,
                "shards": shards,
                "leftover": leftover,
                "stuck": [{**s, **self._behind(unb64(s["path_b64"]))} for s in stuck],
                "fs": fs,
                "walker": walker,
                "message": message,
                "dead": dead,
                "share_id": self.share_id,
                "fs_type": self.storage.fs_type if self.storage else "",
                "source": self.storage.source if self.storage else "",
                **self.totals,
            },
            durable=True,
        )


    def _behind(self, path: bytes) -> dict[str, str]:
        """Tell of the mount that a path of the share lies on, which may be another one than the share's."""
        found = mounts.lookup(join(self.orders.share, path) if path else self.orders.share, self.mounts)
        if found is None:
            return {}
        return {"mount_b64": b64(found.mount_point), "fs_type": found.fs_type, "source": found.source}


def _say(text: object) -> None:
    """Leave a last word in the log, which may lie on the disk that is full."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _death(status: int | None) -> str:
    if status is None:
        return "and cannot be reaped"
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"exit status {os.WEXITSTATUS(status)}"


def _child(folder: Path, orders: Orders, shared: Any, out: int, orders_in: int) -> None:
    """The walker process; never returns."""
    status = 1
    walker = Walker(folder, orders, shared, out)
    try:
        walker.run(orders_in)
        status = 0
    except OSError as e:
        if not walker.opening:  # else the errors of the share are data
            walker.say(failed=f"{folder}: {e.strerror or e}", unwritable=True)
        else:
            where = e.filename if isinstance(e.filename, str | bytes) else orders.share  # or a descriptor
            walker.say(
                failed=f"{show(os.fsencode(where))}: {e.strerror or e}; "
                "check the path, and whether the share is mounted",
                unwritable=False,
            )
    except BaseException:  # noqa: BLE001 - the program loop of this process: whatever it is, the guard must hear of it
        import traceback

        walker.say(failed=traceback.format_exc(limit=-4), unwritable=False)
    finally:
        os._exit(status)


def main(argv: list[str]) -> int:
    """Run one attempt. Exit status 0 when result.json was written, 10 when the share could not be opened."""
    folder = Path(argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to answer
    try:
        orders = Orders.read(folder)
    except ShardError as e:
        _say(e)
        return 2
    if place := os.environb.get(SHARE_VARIABLE.encode()):
        orders = orders._replace(share=place)
    gc.set_threshold(200_000, 20, 20)  # jobs come and go by the thousand, none of them in a cycle
    guard = Guard(folder, orders)

    def on_term(_signal: int, _frame: Any) -> None:
        (folder / "stop").touch()

    signal.signal(signal.SIGTERM, on_term)
    try:
        return guard.run()
    except OSError as e:  # of the folder: the guard touches nothing else
        _say(f"{folder}: {e.strerror or e}")
        return EXIT_NO_OUTPUT
    finally:
        guard.kill()


__all__ = ["Guard", "Root", "main"]
