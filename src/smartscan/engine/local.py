"""Workers as local processes, with a container's limits where the system lets a process have them.

Touches: processes, control groups, each worker's log file. A worker is a session of its own, on a leash:
the kernel kills it when this process dies. Its leader stays a zombie until `remove`, so that neither its
pid nor its session can pass to another process while somebody may still send it a signal.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Literal, NamedTuple

import smartscan
from smartscan.engine import (
    LOG_TAIL_BYTES,
    OOM_SCORE_ADJ,
    PIDS_LIMIT,
    WORKER_MODULE,
    Found,
    Job,
    Status,
    cgroups,
    fit,
    leash,
    owner,
    processes,
)
from smartscan.errors import EngineError
from smartscan.model import Resources

LOG_NAME = "log.txt"
MARK = "SMART_SCAN_WORKER"  # <namespace>:<scan>:<chunk>:<attempt>; `find` looks for it in /proc/*/environ
MARK_OWNER = "SMART_SCAN_OWNER"
MARK_FOLDER = "SMART_SCAN_FOLDER"
NICE = 5  # politer than what the user does meanwhile, not so polite that it starves
START_S = 10.0  # fork and exec; longer means that the host can no longer start processes
REMOVE_S = 0.2  # what a group takes to notice that its last process was reaped
PACKAGES = str(Path(smartscan.__file__).parents[1])  # also right when run from a checkout
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")

_LEASH = (sys.executable, "-m", leash.__name__)
_numbers = itertools.count()


class _Waiting(NamedTuple):
    """A process that waits for its stdin before it is a worker."""

    process: subprocess.Popen[bytes]
    group: cgroups.Group | None

    def drop(self) -> None:
        self.process.kill()
        self.process.communicate()  # which reaps it, and closes its pipe
        _remove(self.group)


class _Worker(NamedTuple):
    job: Job
    process: subprocess.Popen[bytes]
    group: cgroups.Group | None


class Local:
    """The engine of local processes; `command` gets the attempt's folder as its last argument.

    A `command` of one's own is on no leash unless it runs through `leash`.
    Without `groups` it limits workers as it must where this user may not make control groups.
    """

    name = "local"

    def __init__(
        self, namespace: str, *, command: Sequence[str] | None = None, groups: bool = True
    ) -> None:
        self._namespace = namespace
        self._command = tuple(command or (*_LEASH, WORKER_MODULE))
        self._ready: _Waiting | None = None  # has loaded the worker's program, and waits
        self._readies = command is None
        self._owner = owner.mark()
        self._parent = cgroups.parent() if groups else None
        self._workers: dict[str, _Worker] = {}
        self._stuck: set[str] = set()  # killed, and still there
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # The kernel ties a leashed worker to the thread that started it, and pool threads come and go.
        self._thread = threading.Thread(target=self._serve, name="local-engine", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Nothing is needed but this Python."""

    def prepare(self) -> None:
        if self._readies:
            self._orders.put(self._get_ready)

    def cpus(self) -> float:
        return float(len(os.sched_getaffinity(0)))

    def clamp(self, want: Resources, *, at_a_time: int = 1) -> tuple[Resources, list[str]]:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return fit(want, self.cpus(), memory_bytes, at_a_time)

    def describe(self) -> list[str]:
        parent = self._parent  # the thread that starts workers may find that none can be made
        if parent is None:
            return [
                "A worker is limited by RLIMIT_DATA (each process), CPU affinity and nice; "
                "this user may not make control groups."
            ]
        held = ", ".join(parent.dirs)
        return [f"A worker is limited by control groups v{parent.version}: {held}."]

    def start(self, job: Job) -> str:
        done: Future[str] = Future()

        def spawn() -> None:
            try:
                done.set_result(self._spawn(job))
            except OSError as error:
                done.set_exception(EngineError(f"This host cannot start a worker: {error}."))

        self._orders.put(spawn)
        try:
            return done.result(START_S)
        except TimeoutError:
            with contextlib.suppress(OSError):
                (job.folder / "stop").touch()
            raise EngineError(f"This host did not start a process within {START_S:g} s.") from None

    def status(self, worker_id: str) -> Status:
        worker = self._workers.get(worker_id)
        if worker is None:
            return Status("running" if _living(worker_id) else "gone")
        code = _exit_code(worker.process.pid)
        if code is None:
            return Status("running")
        tail = _tail(worker.job.folder / LOG_NAME)
        if worker.group:
            oom = worker.group.out_of_memory()
        else:
            oom = code != 0 and tail.rstrip().rpartition("\n")[2].startswith("MemoryError")
        return Status("exited", code, oom, tail)

    def kill(self, worker_id: str, *, grace_s: float = 1.0) -> bool:
        until = time.monotonic() + grace_s
        members = self._members(worker_id)
        while left := members():
            for process in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, signal.SIGKILL)
            if time.monotonic() >= until:
                self._stuck.add(worker_id)
                return False
            time.sleep(0.005)
        self._stuck.discard(worker_id)
        return True

    def remove(self, worker_id: str) -> bool:
        worker = self._workers.get(worker_id)
        if worker is None:
            return not _living(worker_id)
        if _exit_code(worker.process.pid) is None or not self.kill(worker_id, grace_s=REMOVE_S):
            return False
        worker.process.wait()
        if not _remove(worker.group):
            return False
        self._workers.pop(worker_id, None)
        return True

    def find(self, namespace: str) -> list[Found]:
        found: dict[int, Found] = {}  # by session: a worker and its walker are one
        for process in processes.every():
            seen = _recognise(process, namespace)
            if seen and (process.session not in found or process.pid == process.session):
                found[process.session] = seen
        # One that has just begun has no environment to recognise yet, and a zombie has none any more.
        for worker_id, worker in list(self._workers.items()):
            job, pid = worker.job, worker.process.pid
            if namespace == self._namespace and pid not in found:
                state: Literal["running", "exited"] = "running" if _exit_code(pid) is None else "exited"
                found[pid] = Found(
                    worker_id, job.scan_id, job.chunk_id, job.attempt, job.folder, state, owner_alive=True
                )
        if parent := self._parent:
            parent.sweep()
        return list(found.values())

    def close(self) -> None:
        for worker_id in list(self._workers):
            self.kill(worker_id, grace_s=0.0 if worker_id in self._stuck else 1.0)
            self.remove(worker_id)
        self._orders.put(None)
        self._thread.join(REMOVE_S)

    def _serve(self) -> None:
        while order := self._orders.get():
            order()
        if self._ready:
            self._ready.drop()

    def _get_ready(self) -> None:
        with contextlib.suppress(OSError):  # then the first start says why
            self._ready = self._launch(
                (*_LEASH, leash.READY, WORKER_MODULE),
                leash.room(MARK, MARK_FOLDER),
                subprocess.DEVNULL,
            )

    def _hand_over(self, job: Job) -> _Waiting | None:
        """Let the process that waits be the worker; None where there is none, or it has ended."""
        ready, self._ready = self._ready, None
        if ready is None:
            return None
        try:
            log = os.fspath(job.folder / LOG_NAME)
            self._let_go(ready, job, leash.order([os.fspath(job.folder)], self._marks(job), log))
        except (OSError, ValueError):
            ready.drop()
            return None
        return ready

    def _begin(self, job: Job, log_fd: int) -> _Waiting:
        """Start a process of its own for the worker."""
        waiting = self._launch((*self._command, os.fspath(job.folder)), self._marks(job), log_fd)
        try:
            self._let_go(waiting, job, b"")
        except OSError:
            waiting.drop()  # nobody knows of it
            raise
        return waiting

    def _let_go(self, waiting: _Waiting, job: Job, order: bytes) -> None:
        """Limit a process that waits for its stdin, and only then let it go on: what it had started before
        would be without limits.
        """
        assert waiting.process.stdin
        grouped = False
        if waiting.group and self._parent:
            try:
                self._parent.limit(waiting.group, job.resources, PIDS_LIMIT)
                grouped = True
            except OSError:
                self._parent = None  # seen once, the kernel will refuse again; `describe` tells from now on
        _restrain(waiting.process.pid, job, grouped=grouped)
        with waiting.process.stdin as stdin:
            stdin.write(order)

    def _spawn(self, job: Job) -> str:
        log_fd = os.open(job.folder / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            process, group = self._hand_over(job) or self._begin(job, log_fd)
        finally:
            os.close(log_fd)
        seen = processes.read(process.pid)
        assert seen, "a child that nobody reaped is in /proc"
        self._workers[seen.id] = _Worker(job, process, group)
        return seen.id

    def _launch(self, command: Sequence[str], marks: dict[str, str], out: int) -> _Waiting:
        """Start a process that waits for its stdin, in a group of its own, which has no limits yet."""
        path = os.pathsep.join((PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])))
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        mine = {"PYTHONPATH": path, leash.STARTER: str(os.getpid()), MARK_OWNER: self._owner}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            cwd="/",
            env={**kept, **mine, **marks},
            start_new_session=True,
        )
        return _Waiting(process, self._group(process.pid))

    def _marks(self, job: Job) -> dict[str, str]:
        return {  # in the order in which one that was ready shows them: MARK says that all are there
            MARK_FOLDER: os.fspath(job.folder),
            MARK: f"{self._namespace}:{job.scan_id}:{job.chunk_id}:{job.attempt}",
        }

    def _group(self, pid: int) -> cgroups.Group | None:
        """Move a process into a control group of its own; None where the kernel refuses."""
        if self._parent is None:
            return None
        group = None
        try:
            group = self._parent.make(f"{os.getpid()}.{next(_numbers)}")
            with contextlib.suppress(ProcessLookupError):  # it has ended already: it needs no limit
                group.add(pid)
        except OSError:
            self._parent = None  # seen once, the kernel will refuse again; `describe` tells from now on
            _remove(group)
            return None
        return group

    def _members(self, worker_id: str) -> Callable[[], list[processes.Process]]:
        """Make the function that lists what lives of a worker: its session, and all in its group."""
        worker = self._workers.get(worker_id)
        leader = _living(worker_id)
        if worker is None and leader is None:
            return list
        session = worker.process.pid if worker else leader.session if leader else 0

        def members() -> list[processes.Process]:
            grouped = worker.group.pids() if worker and worker.group else set()
            return [
                process
                for process in processes.every()
                if (process.session == session or process.pid in grouped) and processes.lives(process)
            ]

        return members


def _remove(group: cgroups.Group | None) -> bool:
    """Remove a group when the kernel has noticed that its last process was reaped."""
    until = time.monotonic() + REMOVE_S
    while group and not group.remove():
        if time.monotonic() >= until:
            return False
        time.sleep(0.002)
    return True


def _restrain(pid: int, job: Job, *, grouped: bool) -> None:
    """Limit a process that has just begun; one that has already ended needs no limit.

    Where this user is held tighter already that stays: only root may ask for more.
    """
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        score = Path(f"/proc/{pid}/oom_score_adj")
        if int(score.read_text()) < OOM_SCORE_ADJ:
            score.write_text(str(OOM_SCORE_ADJ))
        if grouped:
            return
        _, most = resource.prlimit(pid, resource.RLIMIT_DATA)
        memory_bytes = job.resources.memory_bytes
        if most != resource.RLIM_INFINITY:
            memory_bytes = min(memory_bytes, most)
        resource.prlimit(pid, resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        if os.getpriority(os.PRIO_PROCESS, pid) < NICE:
            os.setpriority(os.PRIO_PROCESS, pid, NICE)
        host = sorted(os.sched_getaffinity(0))
        wanted = min(len(host), math.ceil(job.resources.cpus))
        first = job.chunk_id * wanted % len(host)  # neighbours get neighbouring CPUs, not all the first ones
        os.sched_setaffinity(pid, (host * 2)[first : first + wanted])


def _exit_code(pid: int) -> int | None:
    """Look at a child's exit without reaping it; None while it runs."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status


def _living(worker_id: str) -> processes.Process | None:
    """Find the process of an id; None when it has ended, also when its pid is another's by now."""
    try:
        pid, started = processes.parse_id(worker_id)
    except ValueError:
        return None
    seen = processes.read(pid)
    return seen if seen and seen.started == started and processes.lives(seen) else None


def _recognise(process: processes.Process, namespace: str) -> Found | None:
    """Read our marks off a process."""
    marks = processes.environment(process, MARK)
    spoken_for, *numbers = marks.get(MARK, "").rsplit(":", 3)
    if spoken_for != namespace or len(numbers) != 3 or MARK_FOLDER not in marks:
        return None
    scan_id, chunk_id, attempt = map(int, numbers)
    alive = owner.alive(marks.get(MARK_OWNER, "")) is not False
    return Found(process.id, scan_id, chunk_id, attempt, Path(marks[MARK_FOLDER]), "running", alive)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
