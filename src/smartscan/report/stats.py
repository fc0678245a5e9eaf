"""What the catalogue holds: totals by kind, extension, owner, age and size, the largest, what is missing.

Touches: the catalogue, through the connection it is given; the locks beside it; the user database, for
names of owners.
"""

from __future__ import annotations

import os
import pwd
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from smartscan import config, units
from smartscan.catalogue import read, runs
from smartscan.catalogue.rows import Directory, LargeFile, Mount, Scan, Tally, Totals
from smartscan.model import DirState, ScanState, show
from smartscan.report import scan as scans
from smartscan.report import words
from smartscan.report.kinds import kind
from smartscan.report.page import TITLE, Line, Page, Table

HISTORY = 10  # scans shown per mount
MISSING_SHOWN = 20  # directories shown per mount; `problems` has them all

# The keys of the catalogue's size classes, smallest first, and what they mean.
SIZES = {
    "0": "empty",
    "1-4K": "up to 4 KiB",
    "4K-64K": "4 to 64 KiB",
    "64K-1M": "64 KiB to 1 MiB",
    "1M-16M": "1 to 16 MiB",
    "16M-256M": "16 to 256 MiB",
    "256M-4G": "256 MiB to 4 GiB",
    "4G+": "4 GiB and more",
}
# Ages by the last change of a file's content, in whole months: an age is in the first class it is below.
AGES = (
    (0, "in the future"),
    (3, "up to 3 months"),
    (12, "3 to 12 months"),
    (24, "1 to 2 years"),
    (60, "2 to 5 years"),
    (120, "5 to 10 years"),
)
OLDEST, NO_AGE = "more than 10 years", "unknown"


class Share(NamedTuple):
    """A mount, its totals, its last scans (newest first) and what is missing of it."""

    mount: Mount
    totals: Totals
    scans: list[Scan]
    missing: list[Directory]
    left_out: list[tuple[DirState, str | None, int]]  # on purpose: state, rule, directories

    @property
    def incomplete(self) -> bool:
        """Tell whether the totals are a lower bound, or partly from earlier scans."""
        return not self.scans or self.scans[0].state is not ScanState.COMPLETE


class Stats(NamedTuple):
    """What the catalogue holds of some mounts together; the tallies count regular files."""

    shares: list[Share]
    kinds: list[Tally]
    extensions: list[Tally]
    owners: list[Tally]
    ages: list[Tally]
    sizes: list[Tally]
    largest_files: list[LargeFile]
    largest_directories: list[Directory]


def stats(db: sqlite3.Connection, among: Sequence[Mount], *, limit: int, now: float) -> Stats:
    """Gather what is to be said of some mounts, with lists of at most `limit` rows."""
    extensions = read.tally(db, among, "extension")
    months = read.tally(db, among, "month")
    return Stats(
        [_share(db, mount) for mount in among],
        regroup(extensions, kind),
        extensions,
        read.tally(db, among, "owner"),
        regroup(months, lambda month: age_class(month, now), [name for _, name in AGES] + [OLDEST, NO_AGE]),
        regroup(read.tally(db, among, "size"), lambda key: key, list(SIZES)),
        read.largest_files(db, among, limit=limit),
        read.largest_directories(db, among, limit=limit),
    )


def page(found: Stats, *, limit: int, commands: words.Commands = words.INSTALLED) -> Page:
    """Say what the catalogue holds, for people; tallies show their first `limit` rows."""
    shares = found.shares
    blocks: list[Line | Table] = [_totals(shares)]
    dimensions: Sequence[tuple[str, str, list[Tally], Callable[[str], str]]] = (
        ("Kinds of files", "Kind", found.kinds, str),
        ("Extensions", "Extension", found.extensions, lambda key: f".{key}" if key else "(none)"),
        ("Owners", "Owner", found.owners, owner),
        ("Age, by last change", "Age", found.ages, str),
        ("Sizes of files", "Size of one", found.sizes, lambda key: SIZES.get(key, key)),
    )
    for title, heading, rows, label in dimensions:
        if rows:
            ordered = rows if title.startswith(("Age", "Sizes")) else rows[:limit]
            blocks += [Line(), _tally(title, heading, rows, ordered, label)]
    if found.largest_directories:
        blocks += [Line(), _largest_directories(found.largest_directories)]
    if found.largest_files:
        files = [[units.size(file.size), words.full(file.mount, file.path)] for file in found.largest_files]
        blocks += [Line(), Table("Largest files", (">Size", "Path"), files)]
    blocks += [Line(), _history(shares)]
    for share in shares:
        blocks += _account(share, commands)
    return blocks


def as_json(found: Stats) -> dict[str, Any]:
    """Say what the catalogue holds, for programs; nothing is cut but the lists of the largest."""
    return {
        "mounts": [_share_json(share) for share in found.shares],
        "kinds": [_tally_json("kind", tally) for tally in found.kinds],
        "extensions": [_tally_json("extension", tally) for tally in found.extensions],
        "owners": [{**_tally_json("uid", tally), "name": owner(tally.key)} for tally in found.owners],
        "ages": [_tally_json("age", tally) for tally in found.ages],
        "sizes": [_tally_json("size", tally) for tally in found.sizes],
        "largest_directories": [scans.directory_json(d) for d in found.largest_directories],
        "largest_files": [
            {"mount": file.mount.name, **words.full_json(file.mount, file.path), "bytes": file.size}
            for file in found.largest_files
        ],
    }


def regroup(
    tallies: Sequence[Tally], group: Callable[[str], str], order: Sequence[str] | None = None
) -> list[Tally]:
    """Add up tallies that belong together, in a given order, else the most disk bytes first."""
    sums: dict[str, tuple[int, int, int]] = {}
    for tally in tallies:
        files, size, disk = sums.get(name := group(tally.key), (0, 0, 0))
        sums[name] = (files + tally.files, size + tally.bytes, disk + tally.disk_bytes)
    grouped = [Tally(name, *values) for name, values in sums.items()]
    if order is None:
        return sorted(grouped, key=lambda tally: (-tally.disk_bytes, -tally.bytes, tally.key))
    place = {name: at for at, name in enumerate(order)}
    return sorted(grouped, key=lambda tally: (place.get(tally.key, len(place)), tally.key))


def age_class(month: str, now: float) -> str:
    """Tell the class of age of a month (YYYY-MM)."""
    year, _, number = month.rpartition("-")
    if not (year.isdecimal() and number.isdecimal()):
        return NO_AGE
    today = time.gmtime(now)
    age = (today.tm_year - int(year)) * 12 + today.tm_mon - int(number)
    return next((name for below, name in AGES if age < below), OLDEST)


def owner(uid: str) -> str:
    """Name the owner of a uid; the number itself where this machine knows no such user."""
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError, OverflowError):
        return uid or units.UNKNOWN


def _share(db: sqlite3.Connection, mount: Mount) -> Share:
    history = runs.scans(db, mount, limit=HISTORY)
    complete = bool(history) and history[0].state is ScanState.COMPLETE
    missing = [] if complete else read.missing(db, mount, limit=MISSING_SHOWN)
    left_out = [row for row in read.states(db, mount) if row[0] in (DirState.EXCLUDED, DirState.OTHER_MOUNT)]
    return Share(mount, read.totals(db, mount), history, missing, left_out)


def _totals(shares: Sequence[Share]) -> Table:
    rows = [
        [
            share.mount.name,
            words.full(share.mount, b""),
            units.at_least(units.count(share.totals.files), share.incomplete),
            units.at_least(units.size(share.totals.bytes), share.incomplete),
            units.at_least(units.size(share.totals.disk_bytes), share.incomplete),
            _last_scan(share),
        ]
        for share in shares
    ]
    if len(shares) > 1:
        every = [share.totals for share in shares]
        part = any(share.incomplete for share in shares)
        rows.append([
            "all", "",
            units.at_least(units.count(sum(t.files for t in every)), part),
            units.at_least(units.size(sum(t.bytes for t in every)), part),
            units.at_least(units.size(sum(t.disk_bytes for t in every)), part),
            "",
        ])
    return Table("Mounts", ("Name", "Path", ">Files", ">Size", ">On disk", "Last scan"), rows)


def _last_scan(share: Share) -> str:
    if not share.scans:
        return "none"
    last = share.scans[0]
    return f"{words.moment(last.started_at)}, {last.standing}"


def _tally(
    title: str, heading: str, every: Sequence[Tally], shown: Sequence[Tally], label: Callable[[str], str]
) -> Table:
    # Where the file system reports no disk bytes at all (some FUSE and SMB do), shares are of the sizes.
    by_disk = any(tally.disk_bytes for tally in every)
    weights = {tally.key: tally.disk_bytes if by_disk else tally.bytes for tally in every}
    whole = sum(weights.values()) or 1
    rows = [
        [
            label(tally.key),
            units.count(tally.files),
            units.size(tally.bytes),
            units.size(tally.disk_bytes),
            f"{100 * weights[tally.key] / whole:.1f} %",
        ]
        for tally in shown
    ]
    rest = len(every) - len(shown)
    note = f"and {units.count(rest)} more" if rest else ""
    return Table(title, (heading, ">Files", ">Size", ">On disk", ">Share"), rows, note)


def _largest_directories(directories: Sequence[Directory]) -> Table:
    rows = [
        [
            units.at_least(units.size(d.disk_bytes), d.incomplete),
            units.at_least(units.size(d.bytes), d.incomplete),
            units.at_least(units.count(d.files), d.incomplete),
            words.full(d.mount, d.path),
        ]
        for d in directories
    ]
    return Table("Largest directories, with all below", (">On disk", ">Size", ">Files", "Path"), rows)


def _history(shares: Sequence[Share]) -> Table:
    rows = [
        [
            f"{scan.id}",
            scan.mount.name,
            words.moment(scan.started_at),
            "" if scan.ended_at is None else units.duration(scan.ended_at - scan.started_at),
            scan.standing,
            units.count(scan.entries),
            "" if scan.entries_new is None else units.count(scan.entries_new),
            "" if scan.entries_changed is None else units.count(scan.entries_changed),
            "" if scan.entries_gone is None else units.count(scan.entries_gone),
        ]
        for share in shares
        for scan in share.scans
    ]
    columns = (">Scan", "Mount", "Started", ">Took", "State", ">Entries", ">New", ">Changed", ">Gone")
    return Table("Scans", columns, rows)


def _account(share: Share, commands: words.Commands) -> list[Line | Table]:
    """Say what the last account came to, what is missing, and how a scan that has none goes on."""
    blocks: list[Line | Table] = []
    certified = next((scan for scan in share.scans if scan.certificate is not None), None)
    if certified is not None and certified.certificate is not None:
        blocks += _titled(certified, scans.certificate_words(certified.certificate, commands))
        if share.missing:
            blocks += [Line(), scans.unread_table(share.missing, certified.certificate, commands)]
        if share.left_out:
            rows = [[_rule(reason or state), units.count(n)] for state, reason, n in share.left_out]
            blocks += [Line(), Table("Left out", ("Rule", ">Directories"), rows)]
    last = share.scans[0] if share.scans else None
    if last is not None and (last.broken_off or last.state is ScanState.CANCELLED):
        blocks += _titled(last, scans.next_words(last, commands))
    return blocks


def _titled(scan: Scan, texts: list[str]) -> list[Line | Table]:
    return [Line(), Line(f"{scan.mount.name}, scan {scan.id}: {scan.standing}", TITLE), *map(Line, texts)]


def _rule(rule: str) -> str:
    """Say by which rule directories were left out, and whose directories of that name are."""
    name = os.fsencode(rule)
    return f"{show(name)}: {config.SYSTEM_DIRS[name]}" if name in config.SYSTEM_DIRS else show(name)


def _share_json(share: Share) -> dict[str, Any]:
    return {
        "mount": share.mount.name,
        **words.full_json(share.mount, b""),
        "fs_type": share.mount.fs_type,
        "source": share.mount.source,
        "files": share.totals.files,
        "entries": share.totals.entries,
        "bytes": share.totals.bytes,
        "disk_bytes": share.totals.disk_bytes,
        "incomplete": share.incomplete,
        "scans": [scans.scan_json(scan) for scan in share.scans],
        "missing": [scans.directory_json(directory) for directory in share.missing],
        "left_out": [
            {"state": state.value, "rule": rule, "dirs": n} for state, rule, n in share.left_out
        ],
    }


def _tally_json(name: str, tally: Tally) -> dict[str, Any]:
    return {name: tally.key, "files": tally.files, "bytes": tally.bytes, "disk_bytes": tally.disk_bytes}
