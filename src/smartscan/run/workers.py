"""The engine that runs the workers: asked on pool threads, so that nobody waits for it.

Touches: the engine; removes attempt folders.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from smartscan.engine import Engine, Job, Status
from smartscan.errors import EngineError, MountError
from smartscan.run.attempts import Attempt, remove_folder

REMOVE_S = 10.0  # how long an ended worker may take to be gone
AWAY_S = 600.0  # and how much longer where its engine is away meanwhile


class Workers:
    """The engine, asked on pool threads. What it answers is acted on by whoever calls `hear`."""

    def __init__(self, engine: Engine, namespace: str, *, at_a_time: int) -> None:
        self.engine, self.namespace = engine, namespace
        self._pool = ThreadPoolExecutor(max_workers=4 * at_a_time + 4, thread_name_prefix="engine")
        # Folders go one after the other, and who closes the account does not wait for them.
        self._sweeper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sweeper")
        self.exits: list[tuple[int, int, int]] = []  # exit status, chunk, attempt; for whoever notes them
        # Not a SimpleQueue: a signal whose handler runs past the end of its `get` makes that wait for ever.
        self._answers: queue.Queue[Callable[[], None]] = queue.Queue()

    def hear(self, wait_s: float = 0.0) -> bool:
        """Act on the answers that have come, else wait for one; True where there were some."""
        heard = False
        while True:
            try:
                answer = self._answers.get(timeout=0.0 if heard else wait_s)
            except queue.Empty:
                return heard
            answer()
            heard = True

    def start(
        self, job: Job, *, started: Callable[[str], None], refused: Callable[[EngineError | MountError], None]
    ) -> None:
        """Start a worker in its folder; `started` is given its id."""

        def call() -> Callable[[], None]:
            try:
                worker_id = self.engine.start(job)
            except (EngineError, MountError) as error:
                said = error
                return lambda: refused(said)
            return lambda: started(worker_id)

        self._ask(call)

    def look_at(self, worker_id: str, told: Callable[[Status], None]) -> None:
        """Ask how a worker is."""

        def call() -> Callable[[], None]:
            status = self.engine.status(worker_id)
            return lambda: told(status)

        self._ask(call)

    def kill(self, worker_id: str, told: Callable[[bool], None]) -> None:
        """Kill a worker; `told` hears whether it is gone."""

        def call() -> Callable[[], None]:
            gone = self.engine.kill(worker_id)
            return lambda: told(gone)

        self._ask(call)

    def see_off(
        self,
        attempt: Attempt,
        *,
        keep_folder: bool,
        wait_s: float,
        stays: Callable[[Attempt], None],
        kill: bool = False,
    ) -> None:
        """See an ended worker and its folder off; with `kill` one that may run. `stays`: it would not go.

        How it ended is asked before it is removed, and put into `exits` where the attempt does not say it.
        """

        def call() -> Callable[[], None]:
            worker_id, until = attempt.worker_id, time.monotonic() + wait_s
            status = attempt.status or Status("gone" if not worker_id else "unknown")
            left = not worker_id
            if kill and not left:
                self.engine.kill(worker_id)
            last = until + AWAY_S
            while not left:
                if status.state != "exited":
                    status = self.engine.status(worker_id)
                left = status.state in ("exited", "gone") and self.engine.remove(worker_id)
                now = time.monotonic()
                if not left and now >= until:
                    if now >= last or not self._is_away():
                        break
                    until = now + wait_s
                if not left:
                    if now > until - wait_s + 2.0:
                        self.engine.kill(worker_id)
                    time.sleep(0.05)
            if left and not keep_folder:
                self._sweeper.submit(remove_folder, attempt.folder)
            if left and attempt.status is None and status.exit_code is not None:
                told = (status.exit_code, attempt.chunk.id, attempt.number)
                return lambda: self.exits.append(told)
            return lambda: None if left else stays(attempt)

        self._ask(call)

    def _is_away(self) -> bool:
        try:
            self.engine.find(self.namespace)
        except EngineError:
            return True
        return False

    def close(self) -> None:
        """Let calls come to their end, but not for ever."""
        _see_out(self._pool)

    def sweep(self) -> None:
        """Let the folders go that are to be removed; after `close`, and not for ever either."""
        _see_out(self._sweeper)

    def _ask(self, call: Callable[[], Callable[[], None]]) -> None:
        def asked() -> None:
            self._answers.put(call())

        self._pool.submit(asked)


def _see_out(pool: ThreadPoolExecutor) -> None:
    until = time.monotonic() + REMOVE_S
    pool.shutdown(wait=False)
    for thread in list(getattr(pool, "_threads", ())):
        thread.join(max(0.0, until - time.monotonic()))
