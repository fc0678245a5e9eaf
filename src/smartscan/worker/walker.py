"""The walker child: threads that read the share, and one that watches them.

Touches: the share through `walk`, the attempt's folder.

A thread that hangs in a system call cannot be ended. The watching thread notices that its slot does
not move, records the path, never touches that path again, gives the thread's other work to a new
thread, and at the end leaves the process behind with what still hangs in it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, NamedTuple

from smartscan import mounts
from smartscan.model import DirState, Op, Root, b64
from smartscan.shard import (
    KIND_DIR,
    KIND_ERROR,
    TIMED_OUT,
    Part,
    record,
)
from smartscan.walk import (
    AVOID,
    HOLD,
    HUSH,
    Slot,
    ask,
    identity,
    is_empty,
    job,
    job_path,
    job_root,
    list_only,
    open_share,
    open_walker,
    used_bytes,
)
from smartscan.worker.large import Large
from smartscan.worker.orders import KNOWN, Orders

BATCH_NS = 5_000_000  # one call into the walker: long against the 20 us it costs, short against a redo
SEAL_BYTES = 8 << 20  # about 100,000 entries: a tenth of a second to ingest
SEAL_ENTRIES = 250_000  # where few bytes stand for many: unchanged directories, and those of a survey
SEAL_S = 1.0  # rows become visible about this long after they were read
FEW_DIRS = 256  # with so few waiting a chunk may have `most_entries`: it is perhaps the end
SPARE_SLOTS = 32  # threads that may be lost to hung calls before the walker gives up
HUNG_NAMES = 3  # of one directory whose stat hangs; a fourth would, and each costs the stall limit
WATCH_S = 0.05
DEAD = "the share does not answer"  # why a walk ends where not even the root of the share does


class Task(NamedTuple):
    """What a thread does in one call: a batch of jobs, more names of a large directory, or a block of it."""

    jobs: tuple[bytes, ...] = ()
    large: Large | None = None
    names: bytes | None = None
    block: int = 0


class Thread:
    """A walker thread, as the watching thread sees it."""

    def __init__(self, slot: int, moved_at: float) -> None:
        self.slot, self.moved_at = slot, moved_at
        self.task: Task | None = None
        self.beat = -1
        self.lost = False


class Walker:
    """One chunk's walk. All shared state is guarded by `lock`; calls into the share are made without it."""

    def __init__(self, folder: Path, orders: Orders, shared: Any, out: int) -> None:
        self.folder, self.orders, self.shared, self.out = folder, orders, shared, out
        self.limits = orders.limits
        self.lock = threading.RLock()
        self.work = threading.Condition(self.lock)  # threads that read wait for it
        self.watch = threading.Condition(self.lock)  # the thread that watches waits for it
        self.queue: deque[bytes] = deque()
        self.singles: deque[bytes] = deque()  # of a thread that hangs: one each, others may hang too
        self.blocks: deque[Task] = deque()  # of large directories: they go first
        self.left: list[Root] = []
        self.stuck: list[dict[str, Any]] = []
        self.threads: list[Thread] = []
        self.parts: deque[Part] = deque()  # full, to be sealed by the watching thread
        self.part: Part | None = None
        self.part_since = 0.0
        self.part_from = 0  # entries seen when the part was begun
        self.started = 0.0
        self.part_number = 0
        self.ending = ""  # why no new directory is begun
        self.failure: OSError | None = None
        self.broken = False  # a thread died of something nobody foresaw; what it held is lost
        self.shards: list[str] = []
        self.larges: list[Large] = []
        self.hung_in: Counter[bytes] = Counter()  # names that hung, by directory
        self.fs: dict[str, int] | None = None
        self.learnt = not orders.known  # nothing is to come
        self.core: Any = None
        self.root_fd = -1
        self.opening = False  # the share is being opened: its errors are not data yet
        self.asked_at: float | None = None  # when the share was last asked for a sign of life
        self.answered = True

    # -- the threads that read -------------------------------------------------------------------

    def _take(self, me: Thread) -> Task | None:
        with self.lock:
            while True:
                if self.failure or self.broken:
                    return None
                self._limits(time.monotonic())
                if self.blocks:
                    me.task = self.blocks.popleft()
                elif self.singles and not self.ending:
                    me.task = Task((self.singles.popleft(),))
                elif self.queue and not self.ending:
                    live = sum(1 for t in self.threads if not t.lost)
                    # a share is left for who is idle elsewhere, also where one thread reads alone
                    count = min(256, len(self.queue) // (live + 1) + 1, len(self.queue))
                    me.task = Task(tuple(self.queue.pop() for _ in range(count)))
                elif not any(t.task for t in self.threads if not t.lost):
                    self._wake_all()
                    return None
                else:
                    self.work.wait()
                    continue
                me.moved_at = time.monotonic()
                return me.task

    def _run(self, me: Thread) -> None:
        whole = False
        try:
            self._work(me)
            whole = True
        finally:
            if not whole:
                with self.lock:
                    self.broken = True
                    self._wake_all()

    def _work(self, me: Thread) -> None:
        while task := self._take(me):
            try:
                if task.large is None:
                    result = self.core.walk(list(task.jobs), me.slot, self._budget_ns(task))
                    self._walked(me, task, *result)
                elif task.names is None:
                    result = self.core.read_names(task.large.fd, job_path(task.large.token), me.slot)
                    self._named(me, task.large, *result)
                else:
                    big = task.large
                    result = self.core.stat_names(
                        big.token, big.fd, task.names, big.dev, big.ino, big.own_blocks, task.block, me.slot
                    )
                    self._stated(me, task, big, *result)
            except OSError as e:  # the output disk: the share's errors are data
                with self.lock:
                    self.failure = self.failure or e
                    me.task = None
                    self._wake_all()
                return
            if me.lost:
                return

    def _budget_ns(self, task: Task) -> int:
        """One directory only while somebody idle could take the others: what hangs then hangs alone."""
        idle = not self.queue and any(t.task is None and not t.lost for t in self.threads)
        return 0 if idle or (len(task.jobs) == 1 and self.singles) else BATCH_NS

    def _walked(
        self, me: Thread, task: Task, records: bytes, rest: list[bytes], left: list[bytes], large: Any
    ) -> None:
        with self.lock:
            if me.lost:  # given up meanwhile: another thread has this work
                if large:
                    os.close(large[1])
                return
            self._emit(records)
            self.queue.extend(rest)
            self.left.extend(job_root(t) for t in left)
            me.task = None
            if large:
                token, fd, names, dev, ino, own_blocks = large
                big = Large(token, fd, dev, ino, own_blocks, self._new_part())
                self.larges.append(big)
                self._block(big, names)
                self.blocks.append(Task(large=big))
            self._wake()

    def _wake(self) -> None:
        """Wake those for whom there is work besides what the caller takes; all of them at the end."""
        work = len(self.blocks) + (0 if self.ending else len(self.queue) + len(self.singles))
        if work > 1:
            self.work.notify(work - 1)
        elif not work and not any(t.task for t in self.threads if not t.lost):
            self._wake_all()

    def _wake_all(self) -> None:
        self.work.notify_all()
        self.watch.notify()

    def _block(self, big: Large, names: bytes) -> None:
        self.blocks.append(Task(large=big, names=names, block=big.begin_block()))

    def _named(self, me: Thread, big: Large, names: bytes, count: int, end: int) -> None:
        with self.lock:
            me.task = None
            if me.lost or big.ended:
                return
            if names:
                self._block(big, names)
            big.named(count, end, most=self.limits.dir_entries)
            if big.ended:
                self._close_large(big)
            else:
                self.blocks.append(Task(large=big))  # behind its blocks: bounds the names in memory
            self._wake()

    def _stated(
        self, me: Thread, task: Task, big: Large, records: bytes, jobs: list[bytes], left: list[bytes]
    ) -> None:
        with self.lock:
            if me.lost:
                return
            me.task = None
            big.write_block(task.block, records)
            self.queue.extend(jobs)
            self.left.extend(job_root(t) for t in left)
            self._close_large(big)
            self._wake()

    def _close_large(self, big: Large) -> None:
        if not big.ended or big.waiting:
            return
        big.part.write(big.last_record())
        self.parts.append(big.part)
        self.watch.notify()
        self.larges.remove(big)
        os.close(big.fd)

    def _emit(self, records: bytes) -> None:
        if not records:
            return
        if self.part is None:
            self.part = self._new_part()
            self.part_since = time.monotonic()
            self.part_from = self.core.seen()[0]
        self.part.write(records)
        if self.part.bytes >= SEAL_BYTES or self.core.seen()[0] - self.part_from >= SEAL_ENTRIES:
            self.parts.append(self.part)
            self.part = None
            self.watch.notify()

    def _new_part(self) -> Part:
        self.part_number += 1
        return Part(self.folder, self.part_number)

    # -- the thread that watches -----------------------------------------------------------------

    def _start_thread(self) -> bool:
        number = len(self.threads)
        if number >= self.limits.threads + SPARE_SLOTS:
            return False
        me = Thread(number, time.monotonic())
        self.threads.append(me)
        threading.Thread(target=self._run, args=(me,), daemon=True, name=f"walk-{number}").start()
        return True

    def _watch(self, now: float) -> None:
        for t in list(self.threads):
            if t.lost or t.task is None:
                continue
            slot = Slot(self.shared, t.slot)
            if slot.beat != t.beat:
                t.beat, t.moved_at = slot.beat, now
            elif now - t.moved_at >= self.limits.stall_s and slot.op != Op.IDLE:
                self._give_up(t, slot, now - t.moved_at)
        self._replace(now)

    def _replace(self, now: float) -> None:
        """Start a thread for each that was lost, unless nothing moves because the share as a whole is dead.

        Then more threads would hang as well, each on a path that has done nothing. Where none has moved for
        half the stall limit, the share's root is asked, on a thread of its own, and has the limit to answer.
        """
        live = [t for t in self.threads if not t.lost]
        stall_s = self.limits.stall_s
        if any(t.task is None or now - t.moved_at < stall_s / 2 for t in live):
            if self.answered:
                self.asked_at = None
        elif self.asked_at is None:
            self.asked_at, self.answered = now, False
            threading.Thread(target=self._ask, daemon=True, name="ask").start()
            return
        elif not self.answered:
            if not live and now - self.asked_at >= stall_s:
                self.end(DEAD)
            return
        with self.lock:
            if self.queue or self.singles or self.blocks:
                while len(live) < self.limits.threads and self._start_thread():
                    live.append(self.threads[-1])
                if not live:
                    self.ending = self.ending or "no thread is left"

    def _ask(self) -> None:
        with contextlib.suppress(OSError):  # an error is an answer
            ask(self.root_fd)
        self.answered = True

    def _give_up(self, t: Thread, slot: Slot, waited_s: float) -> None:
        with self.lock:
            task = t.task
            if task is None or not Slot.give_up(self.shared, t.slot, t.beat):
                return
            t.lost, t.task = True, None
            path, op = slot.full, Op(slot.op)
            self.core.avoid(path, AVOID)
            self.stuck.append(
                {
                    "path_b64": b64(path),
                    "op": int(op),
                    "errno": errno.ETIMEDOUT,
                    "waited_s": round(waited_s, 1),
                    "wchan": _wchan(t),
                }
            )
            waited_ns = int(waited_s * 1e9)
            of_entry = bool(slot.name)
            if of_entry:
                self._emit(record(KIND_ERROR, path, err=errno.ETIMEDOUT, op=op, waited_ns=waited_ns))
                self._count_hung(slot.path)
            elif task.large is None:
                self._emit(
                    record(
                        KIND_DIR,
                        path,
                        state=TIMED_OUT,
                        err=errno.ETIMEDOUT,
                        op=op,
                        waited_ns=waited_ns,
                        reason=DirState.TIMED_OUT.value,
                    )
                )
            if task.large is None:
                self.singles.extend(j for j in task.jobs if job_path(j) != path or of_entry)
            elif task.names is not None:
                self.blocks.append(task)
            else:
                task.large.hung()
                self._close_large(task.large)
            self._wake_all()

    def _count_hung(self, folder: bytes) -> None:
        """After some names that hang, touch no more of that directory: they would hang one by one."""
        self.hung_in[folder] += 1
        if self.hung_in[folder] == HUNG_NAMES:
            self.core.avoid(folder, HUSH)
            for big in self.larges:
                big.hushed |= job_path(big.token) == folder

    def _limits(self, now: float) -> None:
        """End the chunk when it is full; with the lock. Beyond that goes only what is being read."""
        if self.ending:
            return
        entries, blocks = self.core.seen()
        why = ""
        few = len(self.queue) <= FEW_DIRS
        most = self.limits.most_entries if few else self.limits.chunk_entries
        if entries >= most:
            why = "entries"
        elif blocks * 512 >= self.limits.chunk_bytes:
            why = "bytes"
        elif now - self.started >= self.limits.chunk_s:
            why = "time"
        if why:
            self.end(why)

    def end(self, why: str) -> None:
        """Begin no more directories; what is queued becomes leftover."""
        with self.lock:
            self.ending = self.ending or why
            self.core.stop()
            if why == "stop":
                self.blocks.clear()
            self._wake_all()

    def give_back(self) -> list[Root]:
        """Hand about half of the queue to somebody idle: the oldest jobs, which lie highest in the tree."""
        with self.lock:
            return [job_root(self.queue.popleft()) for _ in range(len(self.queue) // 2)]

    def _seal(self, now: float, *, everything: bool = False) -> None:
        with self.lock:
            if self.part is not None and (everything or now - self.part_since >= SEAL_S):
                self.parts.append(self.part)
                self.part = None
            behind = [b.part for b in self.larges if b.part.bytes - b.part.synced >= SEAL_BYTES]
        for part in behind:  # nobody but this thread closes it
            part.sync()
        while self.parts:
            part = self.parts.popleft()
            self.shards.append(part.seal())

    def _busy(self) -> bool:
        with self.lock:
            if self.failure or self.broken:
                return False
            live = [t for t in self.threads if not t.lost]
            if any(t.task for t in live):
                return True
            if self.blocks:
                return bool(live) or not self.ending
            return bool(self.queue or self.singles) and not self.ending

    def say(self, **message: Any) -> None:
        """Tell the guard something; one line of JSON."""
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        view = memoryview(data)
        while view:
            view = view[os.write(self.out, view) :]

    def _learn(self) -> None:
        """Take the digests of the last scan once they are there; what was read before is handed in whole."""
        if not self.learnt:
            with contextlib.suppress(FileNotFoundError):
                self.core.know((self.folder / KNOWN).read_bytes())
                self.learnt = True

    def run(self, orders_fd: int) -> None:
        """Walk the chunk to its end or limit. Returns when all but hung threads are done."""
        self.started = time.monotonic()
        self.opening = True
        self.root_fd = root_fd = open_share(self.orders.share)
        share_id = identity(root_fd)
        if not _is_same(self.orders.share_id, share_id):
            raise OSError(
                errno.ESTALE,
                "this is not the share that the scan began on: it was unmounted or replaced",
                self.orders.share,
            )
        if is_empty(root_fd):  # before any chunk finds that what it begins with has vanished
            raise OSError(errno.ENOENT, "it is empty", self.orders.share)
        self.opening = False
        self.core = open_walker(
            root_fd,
            self.shared,
            patterns=self.orders.patterns,
            one_file_system=self.orders.one_file_system,
            depth=self.limits.depth,
            sizes_only=self.orders.sizes_only,
        )
        self.core.limit(self.limits.chunk_entries, -(-self.limits.chunk_bytes // 512))
        for path in self.orders.stuck:
            self.core.avoid(path, AVOID)
        for path in self.orders.held:
            self.core.avoid(path, HOLD)
        self.say(ready=share_id)
        self.queue.extend(job(r) for r in reversed(self.orders.roots))
        threading.Thread(target=self._ask_fs, args=(root_fd,), daemon=True).start()
        self._learn()
        with self.lock:
            for _ in range(self.limits.threads):
                self._start_thread()
        os.set_blocking(orders_fd, False)
        while self._busy():
            with self.lock:
                self.watch.wait(WATCH_S)
            self._learn()
            now = time.monotonic()
            self._watch(now)
            with self.lock:
                self._limits(now)
            self._seal(now)
            if not self._obey(orders_fd):
                os._exit(1)  # the guard is gone: nobody would ever read what we do
        if self.failure:
            raise self.failure
        if self.broken:
            raise RuntimeError(
                "a thread of the walker died"
            )  # never a result: salvage finds what is not done
        self._seal(time.monotonic(), everything=True)
        with self.lock:
            roots = {
                r.path for r in self.orders.roots
            }  # accounted for by themselves, though a FILES root names them
            left = [r for r in self.left if r.path not in roots]
            left += [job_root(t) for t in (*self.singles, *self.queue)]
            for big in self.larges:  # stopped in the middle of it
                left.append(job_root(list_only(big.token)))
                big.part.drop()
        self.say(
            end=self.ending or "done",
            shards=self.shards,
            leftover=[r.to_json() for r in left],
            stuck=self.stuck,
            fs=self.fs,
            hung=sum(t.lost for t in self.threads),
            dead=self.ending == DEAD,
        )

    def _obey(self, orders_fd: int) -> bool:
        try:
            order = os.read(orders_fd, 1)
        except BlockingIOError:
            return True
        if order == b"s":
            self.end("stop")
        elif order == b"y":
            given = self.give_back()
            if given:
                # first what names them: who salvages this attempt must not find them a second time
                self._seal(time.monotonic(), everything=True)
                self.say(given=[r.to_json() for r in given])
        return bool(order)

    def _ask_fs(self, root_fd: int) -> None:
        try:
            total, used = used_bytes(root_fd)
        except OSError:
            return
        self.fs = {"total_bytes": total, "used_bytes": used}


def _is_same(known: tuple[int, int] | None, found: tuple[int, int]) -> bool:
    """Whether it is the directory on which the scan began, by its identity, as far as that tells."""
    if known is None or known == found:
        return True
    return known[0] == found[0] and mounts.invents_inodes(found[0], mounts.read())


def _wchan(t: Thread) -> str:
    """Where in the kernel a thread of this process waits, where the kernel tells."""
    for thread in threading.enumerate():
        if thread.name == f"walk-{t.slot}" and thread.native_id:
            try:
                with open(f"/proc/self/task/{thread.native_id}/wchan") as f:
                    return f.read().strip().strip("0")
            except OSError:
                return ""
    return ""
