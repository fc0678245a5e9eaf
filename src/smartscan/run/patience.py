"""Bad days of our own disk: a watch that says when it does not answer, and a look whether it takes files.

Touches: the folder of the attempts. Nothing can be done about a write that hangs, but that it is said: by a
thread that writes nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

LOOK_S = 0.2
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
