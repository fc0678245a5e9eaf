"""Bad days of our own disk: a watch that says that it does not answer, writes and attempts that wait for it.

Touches: the folder of the attempts, the reserve beside the catalogue. Nothing can be done about a write that
hangs, but that it is said: by a thread that writes nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from smartscan.catalogue import directory
from smartscan.errors import CatalogueBusy, CatalogueFull, Interrupted
from smartscan.run.attempts import Attempt

T = TypeVar("T")

LOOK_S = 0.2
ROOM_S = 2.0  # between tries while the disk is full
DRIVEN_OUT = 5  # attempts in which a chunk's folder could not be written and the chunk is not to blame
TRY_BYTES = 1 << 16


class Watch:
    """Says it when the loop that calls `alive` does not come round for `limit_s` seconds."""

    def __init__(self, say: Callable[[str], None], folder: Path, limit_s: float) -> None:
        self._say, self._folder, self._limit_s = say, folder, limit_s
        self._alive_at = time.monotonic()
        self._told = False
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def alive(self) -> float:
        """Note that the loop came round, and give how long it was away, in seconds."""
        now = time.monotonic()
        away_s, self._alive_at = now - self._alive_at, now
        if self._told:
            self._told = False
            self._say(f"Going on: {self._folder} answers again, after {away_s:.0f} s.")
        return away_s

    def close(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            away_s = time.monotonic() - self._alive_at
            if away_s >= self._limit_s and not self._told:
                self._told = True
                self._say(
                    f"Waiting: {self._folder} has not answered for {away_s:.0f} s; the scan goes on then."
                )


class PatientWriter:
    """Writes to the catalogue, however long that takes: a full disk pauses a scan and costs no attempt.

    `waits` is told why, once; `meanwhile` is called between tries and says whether to go on waiting; `again`
    is called when it was written after all.
    """

    def __init__(
        self,
        db: Path,
        say: Callable[[str], None],
        *,
        waits: Callable[[str], None],
        meanwhile: Callable[[], bool],
        again: Callable[[], None],
    ) -> None:
        self._db, self._say = db, say
        self._waits, self._meanwhile, self._again = waits, meanwhile, again

    def patiently(self, action: Callable[[], T]) -> T:
        """Do something with the catalogue, again and again while its disk is full or it is in use.

        Interrupted: somebody stopped the scan meanwhile, which cannot be written down either.
        """
        told = False
        while True:
            try:
                done = action()
                break
            except (CatalogueFull, CatalogueBusy) as e:
                why = str(e).partition(";")[0]
                if not told:
                    told = True
                    self._say(f"Waiting: {why}; the scan goes on when that ends.")
                    self._waits(str(e))
                if not self._meanwhile():
                    raise Interrupted(
                        f"stopped while it waited ({why}); "
                        "what workers handed in is kept, and the same command goes on"
                    ) from e
                time.sleep(ROOM_S)
                directory.release_reserve(self._db)
        if told:
            self._say("Going on: the catalogue can be written again.")
            directory.keep_reserve(self._db)
            self._again()
        return done


class Homeless:
    """Attempts that could not write: they wait until their folders take files, for no chunk is to blame."""

    def __init__(self, db: Path, work: Path) -> None:
        self.attempts: list[Attempt] = []
        self._db, self._work = db, work
        self._times: Counter[int] = Counter()  # by chunk
        self._tried_at = 0.0

    def may(self, attempt: Attempt) -> bool:
        """Whether an attempt may wait: a chunk that is driven out again and again is to blame after all."""
        return self._times[attempt.chunk.id] < DRIVEN_OUT

    def add(self, attempt: Attempt, message: str) -> str:
        """Let an attempt wait, and say why: what its folder refuses now, else what the attempt said."""
        self._times[attempt.chunk.id] += 1
        self.attempts.append(attempt)
        self._tried_at = time.monotonic()
        error = refuses(self._work)
        why = str(directory.explained(error, self._db.parent)) if error else message
        return why or f"{self._work} could not be written"

    def ready(self) -> list[Attempt]:
        """Give those that can go on, every ROOM_S seconds at most; the reserve is there again then."""
        if not self.attempts or time.monotonic() - self._tried_at < ROOM_S:
            return []
        self._tried_at = time.monotonic()
        directory.release_reserve(self._db)
        if refuses(self._work):
            return []
        directory.keep_reserve(self._db)
        ready, self.attempts = self.attempts, []
        return ready


def refuses(folder: Path) -> OSError | None:
    """Try to keep a small file in a folder, and give the error where that fails."""
    path = folder / ".room"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            data = memoryview(os.urandom(TRY_BYTES))
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return error
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    return None
