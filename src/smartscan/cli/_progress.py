"""How a run stands, on stderr: one line, rewritten on a terminal, or one now and then elsewhere.

Touches: stderr.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from smartscan import units
from smartscan.model import ChunkState, show

if TYPE_CHECKING:
    from smartscan.run.request import Glance, Request

LINE_S = 10.0  # between lines where there is no terminal: the log of a night stays readable
WAITING_S = 3.0  # a healthy directory answers long before
RATE_OVER = 10  # looks, a few seconds: it follows the storage and does not flicker
NARROW = 100  # columns; on fewer, the bar and the chunks are shorter
PATH_END = 60  # letters of a path outside a terminal: its end tells more than its beginning


class ProgressLine:
    """Says how a run stands while a `with` lasts, and leaves the terminal clean."""

    def __init__(self) -> None:
        self.began = self.said_at = time.monotonic()
        self.tty = sys.stderr.isatty()
        self.drawn = False
        self.looks: deque[tuple[float, int]] = deque(maxlen=RATE_OVER)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def watch(self, request: Request) -> Request:
        """Give a request that tells here how it stands."""
        return replace(request, say=self.say, glance=self.show)

    def say(self, text: str) -> None:
        """Print a sentence, above the line."""
        self._clear()
        print(text, file=sys.stderr, flush=True)

    def show(self, seen: Glance) -> None:
        """Show how it stands."""
        now = time.monotonic()
        self.looks.append((now, seen.entries))
        (then, before), (_, entries) = self.looks[0], self.looks[-1]
        rate = units.per_second(entries - before, now - then)
        if self.tty:
            import shutil

            columns = shutil.get_terminal_size().columns - 1  # one more, and some terminals scroll
            text = line(seen, now - self.began, rate, columns=columns)
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
            self.drawn = True
        elif now - self.said_at >= LINE_S:
            self.said_at = now
            print(line(seen, now - self.began, rate), file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self.drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self.drawn = False


def line(seen: Glance, for_s: float, entries_per_s: float | None, *, columns: int | None = None) -> str:
    """Say how a run stands in one line, of so many columns where it must fit.

    What makes it wait is always in it; for that, what does not fit is left out.
    """
    narrow = columns is not None and columns < NARROW
    time_words, alert = units.duration(for_s), _alert(seen, columns)
    words = {
        "bar": _bar(seen, 10 if narrow else 20),
        "entries": f"{units.count(seen.entries)} entries",
        "size": units.size(seen.bytes),
        "rate": "" if entries_per_s is None else units.rate(entries_per_s, "entries"),
        "chunks": _chunks(seen, short=narrow),
    }
    for dropped in ("size", "chunks", "rate", "entries", "bar", None):
        text = "  ".join(filter(None, (time_words, *words.values(), alert)))
        if columns is None or _cells(text) <= columns or dropped is None:
            break
        del words[dropped]
    while columns is not None and _cells(text) > columns:
        text = text[:-1]
    return text


def _cells(text: str) -> int:
    from smartscan.report.page import cells  # late: what begins does not wait for what a page needs

    return cells(text)


def _bar(seen: Glance, width: int) -> str:
    if not seen.expected_entries:
        return ""  # nobody knows how much lies ahead
    share = min(1.0, seen.entries / seen.expected_entries)
    return f"[{'#' * round(width * share):<{width}}] {share:.0%}"


def _chunks(seen: Glance, *, short: bool) -> str:
    done, every = seen.chunks.get(ChunkState.DONE, 0), sum(seen.chunks.values())
    if short:
        return f"{done} of {every} chunks"
    states = (ChunkState.RUNNING, ChunkState.PENDING, ChunkState.DONE, ChunkState.QUARANTINED)
    there = (f"{n} {state}" for state in states if (n := seen.chunks.get(state, 0)))
    return f"chunks: {', '.join(there)}"


def _alert(seen: Glance, columns: int | None) -> str:
    """Say what makes it wait: the run itself, or the path that has not answered for longest."""
    if seen.paused:
        return f"PAUSED: {show(os.fsencode(seen.paused))}"
    readings = (r for progress in seen.progress.values() for r in progress.readings)
    slow = max(readings, key=lambda reading: reading.for_s, default=None)
    if slow is None or slow.for_s < WAITING_S:
        return ""
    path = show(slow.path) or "."
    most = PATH_END if columns is None else min(PATH_END, columns // 2)
    if _cells(path) > most:
        while path and _cells(path) >= most:
            path = path[1:]
        path = f"…{path}"
    return f"waiting {units.duration(slow.for_s)} for {path}"
