"""The options that scan, plan and retry share, and the request they make.

Touches: stderr.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smartscan import config, units
from smartscan.cli import _options as options
from smartscan.errors import UsageError
from smartscan.model import Limits, Resources, Rules

if TYPE_CHECKING:
    from smartscan.run.request import Glance, Request

LINE_S = 10.0  # between lines of progress where there is no terminal: a log of a night stays readable


LEAST_MEMORY = 32 << 20  # Python, and the walker's own buffers


class Patterns(click.types.StringParamType):
    """Patterns as flags give them one by one; the environment gives several in one text."""

    name = "pattern"

    def split_envvar_value(self, rv: str) -> list[str]:
        return shlex.split(rv)


class Amount(click.FloatRange):
    """A number, which infinity and `nan` are not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def _memory(text: str) -> float:
    size = units.parse_memory(text)
    if size < LEAST_MEMORY:
        raise ValueError(f"{text!r} is less than the {units.memory(LEAST_MEMORY)} that a worker needs")
    return size


def walk_options(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Add the options of everything that reads a share."""
    for option in reversed(
        (
            click.option(
                "--chunk-size",
                default=f"{config.CHUNK_GB:g}",
                show_default=True,
                metavar="GB",
                callback=options.parsed(units.parse_gigabytes),
                help="Disk bytes of a chunk, in gigabytes (10^9).",
            ),
            click.option(
                "--chunk-entries",
                type=click.IntRange(1),
                default=config.CHUNK_ENTRIES,
                show_default=True,
                metavar="N",
                help="Entries of a chunk.",
            ),
            click.option(
                "--max-containers",
                type=click.IntRange(1, 1000),
                default=config.MAX_CONTAINERS,
                show_default=True,
                metavar="N",
                help="Workers at a time.",
            ),
            click.option(
                "--cpus",
                type=Amount(0, min_open=True),
                default=config.CPUS,
                show_default=True,
                metavar="N",
                help="CPUs of one worker; cut to what the host has.",
            ),
            click.option(
                "--memory",
                default=config.MEMORY,
                show_default=True,
                metavar="SIZE",
                callback=options.parsed(_memory),
                help="Memory of one worker; cut to what the host has.",
            ),
            click.option(
                "--dir-entries",
                type=click.IntRange(1),
                default=config.LIMITS.dir_entries,
                show_default=True,
                metavar="N",
                help="Names of one directory; one with more counts as endless, and is cut there.",
            ),
            click.option(
                "--depth",
                type=click.IntRange(1, 1_000_000),
                default=config.LIMITS.depth,
                show_default=True,
                metavar="N",
                help="Directories within each other; what lies deeper is not entered.",
            ),
            click.option(
                "--threads",
                type=click.IntRange(1, 256),
                default=config.THREADS,
                show_default=True,
                metavar="N",
                help="Directories one worker reads at the same time.",
            ),
            click.option(
                "--stall-after",
                type=Amount(0.5),
                default=config.STALL_S,
                show_default=True,
                metavar="SECONDS",
                help="Without progress for so long, a path is stuck.",
            ),
            click.option(
                "--give-up",
                type=click.IntRange(1, 10_000),
                default=config.GIVE_UP,
                show_default=True,
                metavar="N",
                help="Workers that may hang for ever before the mount counts as dead.",
            ),
            click.option(
                "--engine",
                type=click.Choice(config.ENGINES),
                default="auto",
                show_default=True,
                help="Who runs the workers.",
            ),
            click.option(
                "--image", default=config.WORKER_IMAGE, show_default=True, help="Image of worker containers."
            ),
            click.option(
                "--exclude",
                type=Patterns(),
                multiple=True,
                envvar="SMART_SCAN_EXCLUDE",
                metavar="PATTERN",
                help="Record, but do not enter, directories of this name, or path. Repeatable.",
            ),
            click.option(
                "--enter-system-dirs",
                is_flag=True,
                help="Enter snapshot and system directories of NAS makers as well.",
            ),
            click.option(
                "--moved",
                is_flag=True,
                help="The share lies on another file system than before, and that is right.",
            ),
            click.option(
                "--one-file-system", is_flag=True, help="Do not enter other mounts below the share."
            ),
        )
    ):
        function = option(function)
    return function


def request(
    path: str,
    name: str,
    db: Path | None,
    *,
    chunk_size: int,
    chunk_entries: int,
    max_containers: int,
    cpus: float,
    memory: int,
    dir_entries: int,
    depth: int,
    threads: int,
    stall_after: float,
    give_up: int,
    engine: str,
    image: str,
    exclude: tuple[str, ...],
    enter_system_dirs: bool,
    one_file_system: bool,
    moved: bool,
    analyze: bool = False,
    quiet: bool = False,
) -> Request:
    """Make the request of a command's options. The path is not looked at: that is for workers."""
    from smartscan.run.request import Request

    if not path:
        raise UsageError("the path of the share is empty")
    made = Request(
        config.catalogue_path(db),
        os.path.abspath(os.fsencode(path)),
        name,
        Limits(
            chunk_bytes=chunk_size,
            chunk_entries=chunk_entries,
            dir_entries=dir_entries,
            depth=depth,
            stall_s=stall_after,
            threads=threads,
        ),
        Rules(tuple(os.fsencode(p) for p in exclude), not enter_system_dirs, one_file_system),
        Resources(cpus, memory),
        max_containers,
        give_up,
        engine,
        image,
        analyze,
        moved,
    )
    if quiet:
        return made
    line = ProgressLine()
    return replace(made, say=line.say, glance=line.show)


class ProgressLine:
    """Says on stderr how a scan stands: one line, rewritten on a terminal, or one now and then elsewhere."""

    def __init__(self) -> None:
        self.tty = sys.stderr.isatty()
        self.began = time.monotonic()
        self.said_at = self.began
        self.width = 0
        self.last: list[tuple[float, int]] = []

    def say(self, text: str) -> None:
        """Print a sentence, above the line."""
        self._clear()
        print(text, file=sys.stderr, flush=True)

    def show(self, g: Glance) -> None:
        """Show how it stands."""
        now = time.monotonic()
        live = sum(p.entries for p in g.progress.values())
        self.last = [*self.last[-10:], (now, max(g.entries, 0))]
        (t0, n0), (t1, n1) = self.last[0], self.last[-1]
        rate = units.rate(units.per_second(n1 - n0, t1 - t0) if t1 > t0 else None, "entries")
        parts = [
            units.duration(now - self.began),
            f"{units.count(g.entries)} entries",
            units.size(g.bytes),
            rate,
            f"chunks: {g.chunks.get('running', 0)} running, {g.chunks.get('pending', 0)} waiting, "
            f"{g.chunks.get('done', 0)} done",
        ]
        if g.expected_entries:
            share = min(1.0, g.entries / g.expected_entries)
            parts.insert(1, f"[{'#' * round(20 * share):<20}] {share:.0%}")
        slow = max((r for p in g.progress.values() for r in p.readings), key=lambda r: r.for_s, default=None)
        if slow and slow.for_s >= 3:
            from smartscan.model import show

            parts.append(f"waiting {slow.for_s:.0f} s for {show(slow.path)[-60:]}")
        if g.paused:
            parts.append(f"PAUSED: {g.paused}")
        if self.tty:
            import shutil

            text = "  ".join(parts)[: shutil.get_terminal_size().columns - 1]
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
            self.width = len(text)
        elif now - self.said_at >= LINE_S:
            self.said_at = now
            print("  ".join(parts), file=sys.stderr, flush=True)
        del live

    def _clear(self) -> None:
        if self.width:
            print("\r\x1b[K", end="", file=sys.stderr)
            self.width = 0

    def end(self) -> None:
        """Leave the terminal clean."""
        self._clear()


def finish(made: Request, report: Any, *, as_json: bool) -> int:
    """Print how a run ended and give its exit status."""
    from smartscan.catalogue import read
    from smartscan.report import page
    from smartscan.report import scan as scan_report

    line = getattr(made.say, "__self__", None)
    if isinstance(line, ProgressLine):
        line.end()
    with read.open_for_reading(made.db) as catalogue:
        found = scan_report.summary(catalogue, report.scan_id)
    if as_json:
        page.show_json(scan_report.as_json(found))
    else:
        page.show(scan_report.page(found))
        if made.db != config.catalogue_path(None):
            print(f"They need --db {shlex.quote(str(made.db))} as well: it is not the default catalogue.")
    return int(report.exit_status)
