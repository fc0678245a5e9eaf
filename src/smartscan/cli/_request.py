"""The options that scan, plan and retry share, the request they make, and how that is carried out.

Touches: what `run` touches; stdout, stderr.
"""

from __future__ import annotations

import importlib
import math
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smartscan import config, units
from smartscan.cli import _options as options
from smartscan.cli._progress import ProgressLine
from smartscan.errors import UsageError
from smartscan.model import Limits, Resources, Rules

if TYPE_CHECKING:
    from smartscan.run.course import Report
    from smartscan.run.request import Glance, Request

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


def worker_options(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Add the options of everything that starts workers."""
    return _with(
        function,
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
    )


def rule_options(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Add the options of what may say which directories belong to a share."""
    return _with(
        function,
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
        click.option("--one-file-system", is_flag=True, help="Do not enter other mounts below the share."),
    )


def _with(function: Callable[..., int | None], *made: Callable[..., Any]) -> Callable[..., int | None]:
    for option in reversed(made):  # so that help lists them in this order
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
    exclude: tuple[str, ...] = (),
    enter_system_dirs: bool = False,
    one_file_system: bool = False,
    moved: bool = False,
    analyze: bool = False,
) -> Request:
    """Make the request of a command's options. The path is not looked at: that is for workers."""
    from smartscan.run.request import Request

    if not path:
        raise UsageError("the path of the share is empty")
    return Request(
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
        analyze=analyze,
        moved=moved,
    )


def carry_out(run: Callable[[Request], Report], made: Request, *, as_json: bool) -> int:
    """Run a request, print how it ended, and give its exit status."""
    with ProgressLine() as line:
        watched = made if as_json else line.watch(made)
        ended = run(loading(watched, "catalogue.read", "report.page", "report.scan"))

    from smartscan.catalogue import read
    from smartscan.report import page
    from smartscan.report import scan as scan_report

    with read.open_for_reading(made.db) as catalogue:
        found = scan_report.summary(catalogue, ended.scan_id)
    if as_json:
        page.show_json(scan_report.as_json(found))
    else:
        page.show(scan_report.page(found, options.commands(made.db)))
    return int(ended.exit_status)


def loading(made: Request, *modules: str) -> Request:
    """Load what prints the end while workers read: nobody waits for it then."""

    def glance(seen: Glance) -> None:
        if seen.entries:
            for module in modules:
                importlib.import_module(f"smartscan.{module}")
        made.glance(seen)

    return replace(made, glance=glance)
