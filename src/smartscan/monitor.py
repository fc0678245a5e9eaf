"""Running scans, as the catalogue tells of them; nothing here talks to a controller or a worker.

Touches: the catalogue and the locks beside it, for reading; the terminal. May be started and stopped at any
time.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from smartscan import interrupts, units
from smartscan.catalogue import read, runs
from smartscan.catalogue.rows import Attempt, ChunkCount, Problem, Reading, Scan
from smartscan.errors import CatalogueError
from smartscan.model import ChunkState, show
from smartscan.report import page as pages
from smartscan.report import words
from smartscan.report.page import BAD, TITLE, Facts, Line, Page, Table
from smartscan.report.scan import chunk_words, scan_json
from smartscan.report.story import attempt_json

SILENT_S = 30.0  # a controller beats every few seconds; the commit of a large shard may take some
WINDOW_S = 30.0  # rates are of the last half minute: steady enough to read, recent enough to be true
SLOW_S = 2.0  # a healthy directory answers in milliseconds, one on a busy disk within a second
ROWS = 5  # of slow paths
PATH_LETTERS = 70


class Rate(NamedTuple):
    """What was read per second, over how many seconds."""

    entries: float
    bytes: float
    over_s: float


class View(NamedTuple):
    """A running scan at one moment."""

    scan: Scan
    at: float
    chunks: dict[ChunkState, ChunkCount]
    entries: int  # seen, in the catalogue or not yet
    dirs: int
    bytes: int
    rate: Rate | None
    attempts: list[Attempt]
    abandoned: list[Attempt]
    readings: list[Reading]
    unanswered: list[Problem]

    @property
    def quiet_s(self) -> float:
        """Tell how long ago the controller last gave a sign of life."""
        return self.at - (self.scan.beat_at or self.scan.started_at)

    @property
    def silent_s(self) -> float | None:
        """Tell for how long there was no sign of life of the controller, where that is too long."""
        return self.quiet_s if self.quiet_s > SILENT_S else None

    @property
    def remaining(self) -> int | None:
        """Count the entries still expected; None where no size is known for some chunk."""
        pending = self.chunks[ChunkState.PENDING].est_entries
        running = self.chunks[ChunkState.RUNNING]
        if pending is None or running.est_entries is None:
            return None
        in_flight = self.entries - self.scan.entries
        return pending + max(running.est_entries - running.entries - in_flight, 0)

    @property
    def left_s(self) -> float | None:
        """Estimate the seconds until the end; None where nothing sensible can be said."""
        if self.remaining is None or self.rate is None or self.rate.entries <= 0:
            return None
        return self.remaining / self.rate.entries


@dataclass(slots=True)
class Meter:
    """Makes rates of what was seen from one look to the next."""

    seen: dict[int, deque[tuple[float, int, int]]] = field(default_factory=dict)

    def rate(self, scan: Scan, now: float, entries: int, size: int) -> Rate | None:
        """Note what a scan has seen, and give its rate: of the last looks, at first since its start."""
        looks = self.seen.setdefault(scan.id, deque())
        if looks and now < looks[-1][0]:
            looks.clear()  # the clock went back
        looks.append((now, entries, size))
        while len(looks) > 2 and looks[1][0] <= now - WINDOW_S:
            looks.popleft()
        then, entries_then, size_then = looks[0] if len(looks) > 1 else (scan.started_at, 0, 0)
        over_s = now - then
        if over_s <= 0:
            return None
        return Rate(max(entries - entries_then, 0) / over_s, max(size - size_then, 0) / over_s, over_s)


def views(db: sqlite3.Connection, meter: Meter, *, now: float) -> list[View]:
    """Gather what is to be seen of the running scans."""
    return [_view(db, scan, meter, now) for scan in runs.running_scans(db)]


def _view(db: sqlite3.Connection, scan: Scan, meter: Meter, now: float) -> View:
    attempts = runs.open_attempts(db, scan.id)
    entries, dirs, size = scan.entries, scan.dirs, scan.bytes
    for attempt in attempts:
        ingested = runs.ingested(db, attempt)
        entries += max(attempt.entries - ingested[0], 0)
        dirs += max(attempt.dirs - ingested[1], 0)
        size += max(attempt.bytes - ingested[2], 0)
    return View(
        scan,
        now,
        runs.chunk_counts(db, scan.id),
        entries,
        dirs,
        size,
        None if scan.broken_off else meter.rate(scan, now, entries, size),
        attempts,
        runs.lost_attempts(db, scan.id),
        runs.readings(db, scan.id),
        read.unanswered(db, scan.mount, scan.id, limit=ROWS),
    )


def page(
    found: list[View], last: Scan | None, *, now: float, commands: words.Commands = words.INSTALLED
) -> Page:
    """Show running scans, or say that there is none and what the last one was."""
    if not found:
        return _idle(last, now, commands)
    blocks: list[Line | Facts | Table] = []
    for view in found:
        blocks += [*_scan(view, commands), Line()]
    return blocks[:-1]


def as_json(found: list[View], last: Scan | None, *, now: float) -> dict[str, Any]:
    """Give running scans to programs; `last` is the scan started last, running or not."""
    return {
        "at": now,
        "scans": [_view_json(view) for view in found],
        "last": None if last is None else scan_json(last),
    }


def look(path: Path, meter: Meter) -> tuple[list[View], Scan | None, float]:
    """Open the catalogue for one look."""
    with read.open_for_reading(path) as db:
        now = time.time()
        return views(db, meter, now=now), runs.newest_scan(db), now


def watch(path: Path, *, interval_s: float, commands: words.Commands) -> None:
    """Show running scans on the terminal, until Ctrl-C. Waits where there is no catalogue or no scan."""
    from rich.live import Live

    meter = Meter()
    try:
        with Live(auto_refresh=False) as live:
            while True:
                live.update(pages.rich(_frame(path, meter, commands)), refresh=True)
                interrupts.check()
                time.sleep(interval_s)
    except KeyboardInterrupt:
        return  # the usual way to leave it


def _frame(path: Path, meter: Meter, commands: words.Commands) -> Page:
    waiting = Line("Waiting for a scan; Ctrl-C ends this view.")
    try:
        found, last, now = look(path, meter)
    except CatalogueError as error:  # it may be made, or unlocked, in a moment
        return [Line(str(error)), waiting]
    shown = page(found, last, now=now, commands=commands)
    return shown if any(not view.scan.broken_off for view in found) else [*shown, Line(), waiting]


def _idle(last: Scan | None, now: float, commands: words.Commands) -> Page:
    if last is None:
        return [Line("No scan has run yet.")]
    ended = "" if last.ended_at is None else f", ended {units.age(now - last.ended_at)}"
    return [
        Line("No scan is running."),
        Line(f"The last one: {last.mount.name}, scan {last.id}, {last.standing}{ended}."),
        Line(f"To look at it: {commands('stats', last.mount.name)}"),
    ]


def _scan(view: View, commands: words.Commands) -> list[Line | Facts | Table]:
    scan = view.scan
    broken = ": broken off" if scan.broken_off else ""
    blocks: list[Line | Facts | Table] = [
        Line(f"{scan.mount.name} ({words.full(scan.mount, b'')}), scan {scan.id}{broken}", TITLE),
        *_warnings(view, commands),
        _facts(view),
    ]
    live = not scan.broken_off  # else nobody writes what the workers are in, if there are any
    if view.attempts and live:
        columns = (">Chunk", ">Try", ">For", ">Entries", "Now reading", "In", ">Since")
        blocks += [Line(), Table("Workers", columns, [_worker(view, attempt) for attempt in view.attempts])]
    slow = [reading for reading in view.readings if view.at - reading.since_at >= SLOW_S][:ROWS]
    if slow and live:
        rows = [
            [units.duration(view.at - r.since_at), r.op, f"{r.chunk_id}", _path(scan, r.path)] for r in slow
        ]
        blocks += [Line(), Table("Slowest now", (">Since", "In", ">Chunk", "Path"), rows)]
    if view.unanswered:
        rows = [[units.duration(p.waited_s), p.op, _path(scan, p.path)] for p in view.unanswered]
        note = f"Why: {commands('problems', scan.mount.name)}"
        blocks += [Line(), Table("Gave no answer, and were given up", (">Waited", "In", "Path"), rows, note)]
    return blocks


def _facts(view: View) -> Facts:
    entries, dirs = words.plural(view.entries, "entry"), words.plural(view.dirs, "directory")
    chunks = ("Chunks", chunk_words(view.chunks))
    seen = ("Seen", f"{entries} in {dirs}, {units.size(view.bytes)}")
    if view.scan.broken_off:
        return Facts([("Last sign of life", units.age(view.quiet_s)), chunks, seen])
    return Facts([
        ("Running for", units.duration(view.at - view.scan.started_at)),
        chunks,
        seen,
        ("Reading", _rate_words(view.rate)),
        ("Until the end", _left_words(view)),
    ])


def _warnings(view: View, commands: words.Commands) -> list[Line]:
    scan, lines = view.scan, []
    pid, host = scan.controller.get("pid", units.UNKNOWN), scan.controller.get("host", units.UNKNOWN)
    if scan.broken_off:
        lines += [
            Line(f"Its controller (process {pid} on {host}) has ended.", BAD),
            Line(f"This goes on where it stopped: {commands.scan(scan)}", BAD),
        ]
    elif view.silent_s is not None:
        silent = units.duration(view.silent_s)
        lines += [
            Line(f"No sign of life of its controller (process {pid} on {host}) for {silent}.", BAD),
            Line(f"If that is dead, this goes on where it stopped: {commands.scan(scan)}", BAD),
        ]
    if scan.paused and not scan.broken_off:
        lines.append(Line(f"Paused: {show(scan.paused.encode())}", BAD))
    if scan.mount_dead:
        lines.append(Line("The mount stopped answering; its chunks wait.", BAD))
    if view.abandoned:
        chunks = ", ".join(sorted({f"{attempt.chunk_id}" for attempt in view.abandoned}, key=int))
        workers = words.plural(len(view.abandoned), "worker")
        lines.append(Line(f"{workers} abandoned: killed, but hanging in the storage (chunk {chunks}).", BAD))
    return lines


def _worker(view: View, attempt: Attempt) -> list[str]:
    mine = [reading for reading in view.readings if reading.chunk_id == attempt.chunk_id]
    longest = min(mine, key=lambda reading: reading.since_at, default=None)
    return [
        f"{attempt.chunk_id}",
        f"{attempt.number}",
        units.duration(view.at - attempt.started_at),
        units.count(attempt.entries),
        _path(view.scan, longest.path) if longest else "",
        longest.op if longest else "",
        units.duration(view.at - longest.since_at) if longest else "",
    ]


def _rate_words(rate: Rate | None) -> str:
    if rate is None:
        return "starting"
    entries, size = units.rate(rate.entries, "entries"), units.byte_rate(rate.bytes)
    return f"{entries}, {size}, over {units.duration(rate.over_s)}"


def _left_words(view: View) -> str:
    if view.remaining is None:
        return "unknown: nobody has measured what lies ahead"
    expected = view.entries + view.remaining
    done = f"{100 * view.entries // expected} % of the entries expected" if expected else "nothing to read"
    if view.left_s is None:
        return f"unknown: nothing moves; {done}"
    return f"about {units.duration(view.left_s)}; {done}"


def _path(scan: Scan, path: bytes) -> str:
    """Show a path short enough for a row; its end tells more than its beginning."""
    text = words.full(scan.mount, path)
    return text if len(text) <= PATH_LETTERS else "…" + text[1 - PATH_LETTERS :]


def _view_json(view: View) -> dict[str, Any]:
    mount = view.scan.mount
    rate = view.rate
    return {
        **scan_json(view.scan),
        "seen": {"entries": view.entries, "dirs": view.dirs, "bytes": view.bytes},
        "rate": rate and {"entries_per_s": rate.entries, "bytes_per_s": rate.bytes, "over_s": rate.over_s},
        "chunks": {state.value: count.chunks for state, count in view.chunks.items()},
        "remaining_entries": view.remaining,
        "left_s": view.left_s,
        "controller": view.scan.controller,
        "beat_at": view.scan.beat_at,
        "silent_s": view.silent_s,
        "workers": [attempt_json(attempt) for attempt in view.attempts],
        "abandoned": [attempt_json(attempt) for attempt in view.abandoned],
        "readings": [
            {"chunk": r.chunk_id, **words.full_json(mount, r.path), "op": r.op, "since_at": r.since_at}
            for r in view.readings
        ],
        "unanswered": [
            {**words.full_json(mount, p.path), "op": p.op, "waited_s": p.waited_s} for p in view.unanswered
        ],
    }
