"""Every path that could not be read, by what is likely behind it.

Touches: the catalogue, through the connection it is given.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Sequence
from typing import Any

from smartscan import units
from smartscan.catalogue import read, runs
from smartscan.catalogue.rows import Mount, Problem, Scan
from smartscan.model import ScanState
from smartscan.report import words
from smartscan.report.page import GOOD, TITLE, Line, Page, Paths


def problems(db: sqlite3.Connection, among: Sequence[Mount], *, cleared: bool) -> list[Problem]:
    """Gather the paths that could not be read; with `cleared` also those that a later scan read."""
    return list(read.problems(db, among, cleared=cleared))


def unsettled(db: sqlite3.Connection, among: Sequence[Mount]) -> list[Scan]:
    """Give the last scans of mounts that did not reach everything: of those, no problem is no good news."""
    last = (scan for mount in among for scan in runs.scans(db, mount, limit=1))
    return [scan for scan in last if scan.state is not ScanState.COMPLETE]


def page(
    found: Sequence[Problem],
    *,
    now: float,
    unsettled: Sequence[Scan] = (),
    commands: words.Commands = words.INSTALLED,
) -> Page:
    """List the problems for people: by mount and likely cause, the most paths first."""
    if not found:
        if not unsettled:
            return [Line("Every path could be read.", GOOD)]
        so_far = ", ".join(f"{scan.mount.name} scan {scan.id} is {scan.standing}" for scan in unsettled)
        return [Line(f"Every path that was visited could be read, and not all were: {so_far}.")]
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for problem in found:
        group = groups.setdefault((problem.mount.name, words.cause(problem)), {})
        group.setdefault(_circumstances(problem, now), []).append(words.full(problem.mount, problem.path))
    blocks: list[Line | Paths] = []
    for (name, cause), group in sorted(groups.items(), key=lambda item: -_count(item[1])):
        blocks.append(Line(f"{name}, {words.plural(_count(group), 'path')}: {cause}", TITLE))
        blocks += [Paths(said, paths) for said, paths in group.items()]
        blocks.append(Line())
    return [*blocks, *(Line(text) for text in _next(found, commands))]


def as_json(found: Sequence[Problem]) -> list[dict[str, Any]]:
    """List the problems for programs."""
    return [
        {
            "mount": problem.mount.name,
            **words.full_json(problem.mount, problem.path),
            "op": problem.op,
            "errno": problem.errno,
            "error": words.error_name(problem.errno),
            "cause": words.cause(problem),
            "scan": problem.scan_id,
            "first_at": problem.first_at,
            "last_at": problem.last_at,
            "attempts": problem.attempts,
            "waited_s": problem.waited_s,
            "wchan": problem.wchan,
            "fs_type": problem.mount.fs_type,
            "source": problem.mount.source,
            "retry_at": problem.retry_at,
            "cleared_at": problem.cleared_at,
        }
        for problem in found
    ]


def _count(group: dict[str, list[str]]) -> int:
    return sum(map(len, group.values()))


def _circumstances(problem: Problem, now: float) -> str:
    """Say what was tried, what came of it, when, and when it is tried again."""
    first, last = words.moment(problem.first_at), words.moment(problem.last_at)
    when = last if first == last else f"{first} to {last}"
    tries = f", {problem.attempts} tries" if problem.attempts > 1 else ""
    return f"{problem.op}: {_error(problem)}; {when}{tries}; {_next_try(problem, now)}"


def _error(problem: Problem) -> str:
    if problem.errno == errno.ETIMEDOUT:
        waited = f"no answer in {units.duration(problem.waited_s)}" if problem.waited_s else "no answer"
        return f"{waited}, in {problem.wchan}" if problem.wchan else waited
    return words.error_name(problem.errno)


def _next_try(problem: Problem, now: float) -> str:
    if problem.cleared_at is not None:
        return f"read again {words.moment(problem.cleared_at)}"
    if problem.retry_at is None or problem.retry_at <= now:
        return "tried again by the next scan"
    return f"tried again by scans after {words.moment(problem.retry_at)}"


def _next(found: Sequence[Problem], commands: words.Commands) -> list[str]:
    mounts = {problem.mount.name: problem.mount for problem in found if problem.cleared_at is None}
    return [f"To try them now: {commands('retry', name)}" for name in mounts]
