"""What a scan came to: the text at its end, and the certificate that says what is missing.

Touches: the catalogue, through the connection it is given; the locks beside it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from smartscan import units
from smartscan.catalogue import read, runs
from smartscan.catalogue.rows import ChunkCount, Directory, Scan, Totals
from smartscan.model import UNREAD, ChunkState, DirState, ScanState
from smartscan.report import words
from smartscan.report.page import BAD, GOOD, Facts, Line, Page, Table

MISSING_SHOWN = 10  # the rest is in `problems`

# The account of all directories found, in the order in which it is shown.
ACCOUNT = (
    DirState.LISTED,
    DirState.EXCLUDED,
    DirState.DENIED,
    DirState.TIMED_OUT,
    DirState.IO_ERROR,
    DirState.OTHER_MOUNT,
    DirState.VANISHED,
)


class Summary(NamedTuple):
    """A scan with all that its closing text needs."""

    scan: Scan
    totals: Totals  # of the mount, with what earlier scans saw where this one could not
    chunks: Mapping[ChunkState, ChunkCount]
    missing: list[Directory]  # the first few


def summary(db: sqlite3.Connection, scan_id: int) -> Summary:
    """Gather what is to be said of a scan, running or ended."""
    scan = runs.scan(db, scan_id)
    return Summary(
        scan,
        read.totals(db, scan.mount),
        runs.chunk_counts(db, scan_id),
        read.missing(db, scan.mount, limit=MISSING_SHOWN) if scan.state is not ScanState.COMPLETE else [],
    )


def page(found: Summary, commands: words.Commands = words.INSTALLED) -> Page:
    """Say what a scan came to, for people."""
    scan, certificate = found.scan, found.scan.certificate
    mount = scan.mount
    took_s = None if scan.ended_at is None else scan.ended_at - scan.started_at
    incomplete = scan.state is not ScanState.COMPLETE
    dirs = certificate["dirs"]["found"] if certificate else scan.dirs  # a retry visits some a second time
    title = f"{mount.name} ({words.full(mount, b'')}), scan {scan.id}: {scan.standing}"
    blocks: list[Line | Facts | Table] = [
        Line(title, _tone(scan)),
        Facts([
            ("Files", units.at_least(units.count(found.totals.files), incomplete)),
            ("Directories", units.at_least(units.count(dirs), incomplete)),
            ("Size", size_words(found.totals, incomplete)),
            ("Time", _time_words(scan, took_s)),
            ("Chunks", chunk_words(found.chunks)),
            ("Since the last scan", _difference_words(scan)),
        ]),
    ]
    if certificate is not None:
        blocks += [Line(), *(Line(text) for text in certificate_words(certificate, commands))]
    if found.missing:
        blocks += [Line(), unread_table(found.missing, certificate, commands)]
    return [*blocks, Line(), *(Line(text) for text in next_words(scan, commands))]


def as_json(found: Summary) -> dict[str, Any]:
    """Say what a scan came to, for programs."""
    return {
        **scan_json(found.scan),
        "files": found.totals.files,
        "catalogued": {
            "entries": found.totals.entries,
            "bytes": found.totals.bytes,
            "disk_bytes": found.totals.disk_bytes,
        },
        "chunks": {state.value: count.chunks for state, count in found.chunks.items()},
        "missing": [directory_json(directory) for directory in found.missing],
    }


def scan_json(scan: Scan) -> dict[str, Any]:
    """Give a scan as JSON."""
    return {
        "scan": scan.id,
        "mount": scan.mount.name,
        **words.full_json(scan.mount, b""),
        "state": scan.state.value,
        "broken_off": scan.broken_off,
        "engine": scan.engine,
        "started_at": scan.started_at,
        "ended_at": scan.ended_at,
        "mount_dead": scan.mount_dead,
        "paused": scan.paused,
        "entries": scan.entries,
        "dirs": scan.dirs,
        "bytes": scan.bytes,
        "disk_bytes": scan.disk_bytes,
        "entries_new": scan.entries_new,
        "entries_changed": scan.entries_changed,
        "entries_gone": scan.entries_gone,
        "certificate": _certificate_json(scan.certificate),
    }


def directory_json(directory: Directory) -> dict[str, Any]:
    """Give a directory and its totals as JSON; `incomplete` totals are a lower bound."""
    return {
        "mount": directory.mount.name,
        **words.full_json(directory.mount, directory.path),
        "state": directory.state.value,
        "reason": directory.reason,
        "files": directory.files,
        "entries": directory.entries,
        "bytes": directory.bytes,
        "disk_bytes": directory.disk_bytes,
        "incomplete": directory.incomplete,
    }


def certificate_words(
    certificate: Mapping[str, Any], commands: words.Commands = words.INSTALLED
) -> list[str]:
    """Give the closing account in sentences: every directory found, and the bytes nobody can see."""
    dirs = certificate["dirs"]
    parts = " + ".join(f"{state} {units.count(dirs.get(state, 0))}" for state in ACCOUNT)
    lines = [f"directories found {units.count(dirs['found'])} = {parts}"]
    open_ends = dirs["found"] - sum(dirs.get(state, 0) for state in ACCOUNT)
    if open_ends:
        lines.append(f"{words.plural(abs(open_ends), 'directory')} not visited: the scan did not end")
    if stale := certificate.get("stale_dirs"):
        lines.append(
            f"{words.plural(stale, 'directory')} could not be reached this time; "
            "what an earlier scan saw there is kept, and is stale"
        )
    if hung := certificate.get("abandoned"):
        them = "it ends" if len(hung) == 1 else "they end"
        lines.append(
            f"{words.plural(len(hung), 'worker')} cannot be killed: {them} when the storage answers again; "
            f"then: {commands('cleanup')}"
        )
    if (fs := certificate.get("fs")) and fs.get("used_bytes") is not None:
        lines += _fs_words(certificate, fs["used_bytes"])
    return lines


def unread_table(
    missing: Sequence[Directory],
    certificate: Mapping[str, Any] | None,
    commands: words.Commands = words.INSTALLED,
) -> Table:
    """List directories that could not be read, with what earlier scans saw there; at least one."""
    rows = []
    for directory in missing:
        path, state = words.full(directory.mount, directory.path), directory.state
        kept = f"{words.plural(directory.entries, 'entry')}, {units.size(directory.bytes)}"
        because = words.STATES[state] if directory.reason in (None, state) else f"{directory.reason}"
        rows.append([path, state, because, kept if directory.entries else "nothing"])
    rest = unread_dirs(certificate) - len(rows)
    more = f"and {units.count(rest)} more: {commands('problems', missing[0].mount.name)}" if rest > 0 else ""
    return Table("Not read", ("Path", "State", "Because", "Known from earlier"), rows, more)


def size_words(totals: Totals, incomplete: bool) -> str:
    """Say both sizes, the apparent one first."""
    apparent, disk = units.size(totals.bytes), units.size(totals.disk_bytes)
    return units.at_least(f"{apparent}, {disk} on disk", incomplete)


def chunk_words(chunks: Mapping[ChunkState, ChunkCount]) -> str:
    """Count the chunks in each state there is."""
    there = [count for count in chunks.values() if count.chunks]
    return ", ".join(f"{units.count(count.chunks)} {count.state}" for count in there) or "none yet"


def unread_dirs(certificate: Mapping[str, Any] | None) -> int:
    """Count the directories that could not be read."""
    return sum(certificate["dirs"].get(state, 0) for state in UNREAD) if certificate else 0


def _unread_words(certificate: Mapping[str, Any] | None) -> str:
    """Count all that could not be read; empty where it is nothing, or an older account does not tell."""
    dirs, paths = unread_dirs(certificate), certificate.get("unread_paths", 0) if certificate else 0
    counts = [
        words.plural(dirs, "directory") if dirs else "",
        words.plural(paths, "other path" if dirs else "path") if paths else "",
    ]
    return " and ".join(filter(None, counts))


def next_words(scan: Scan, commands: words.Commands = words.INSTALLED) -> list[str]:
    """Say what the result means and what to do now."""
    name = scan.mount.name
    ask = commands("stats", name)
    if scan.broken_off:
        return [
            "Broken off: its controller ended before the scan did; what was read is kept. "
            f"To go on: {commands.scan(scan)}"
        ]
    match scan.state:
        case ScanState.COMPLETE:
            return [f"Complete: every directory was read or left out by a rule. To look at it: {ask}"]
        case ScanState.CANCELLED:
            return [f"Stopped; what was read is kept. To go on: {commands.scan(scan)}"]
        case ScanState.RUNNING:
            return [f"Still running. To watch it: {commands('monitor')}. What is there so far: {ask}"]
    if scan.mount_dead:
        return [
            "Incomplete: the mount stopped answering, and what was left of it waits until it does again.",
            f"See to the storage, then go on: {commands.scan(scan)}",
        ]
    return [
        f"Incomplete: {_unread_words(scan.certificate) or 'some entries'} could not be read. "
        f"Why: {commands('problems', name)}",
        f"To try those again: {commands('retry', name)}. To look at the rest: {ask}",
    ]


def _tone(scan: Scan) -> str:
    tones = {ScanState.COMPLETE: GOOD, ScanState.RUNNING: BAD if scan.broken_off else ""}
    return tones.get(scan.state, BAD)


def _certificate_json(certificate: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Give the account for programs, with what the difference to the file system's own number can be."""
    if certificate is None:
        return None
    fs = certificate.get("fs")
    used = fs.get("used_bytes") if fs else None
    return {**certificate, "unexplained_can_be": None if used is None else _reasons(certificate, used)}


def _fs_words(certificate: Mapping[str, Any], used: int) -> list[str]:
    known = certificate["disk_bytes"]
    difference = used - known
    line = f"the file system uses {units.size(used)}; the catalogue explains {units.size(known)} of it"
    if abs(difference) * 100 <= used:
        return [line]
    can_be = ", ".join(_reasons(certificate, used))
    if difference < 0:
        return [
            f"the file system uses {units.size(used)}; "
            f"the catalogue has {units.size(known)}, {units.size(-difference)} more.",
            f"That can be {can_be}.",
        ]
    return [f"{line}.", f"The other {units.size(difference)} can be {can_be}."]


def _reasons(certificate: Mapping[str, Any], used: int) -> list[str]:
    """Say what can be behind the difference between what a file system uses and what is catalogued."""
    if used < certificate["disk_bytes"]:
        return [
            "compression",
            "blocks that files share (reflinks, deduplication)",
            "sparse files that the share tells as full",
            "other file systems mounted in the share",
            "what changed while the scan ran",
        ]
    dirs = certificate["dirs"]
    left_out = dirs.get(DirState.EXCLUDED, 0) + dirs.get(DirState.OTHER_MOUNT, 0)
    unread = _unread_words(certificate)
    reasons = [
        f"what was left out ({words.plural(left_out, 'directory')})" if left_out else "",
        f"what could not be read ({unread})" if unread else "",
        "what lies on that file system outside the share",
        "snapshots",
        "files deleted but still open",
        "the file system's own metadata",
    ]
    return [*filter(None, reasons)]


def _time_words(scan: Scan, took_s: float | None) -> str:
    if took_s is None:
        return f"{'began' if scan.broken_off else 'running since'} {words.moment(scan.started_at)}"
    return f"{units.duration(took_s)}, {units.rate(units.per_second(scan.entries, took_s), 'entries')}"


def _difference_words(scan: Scan) -> str | None:
    if scan.entries_new is None:
        return None
    counts = (("new", scan.entries_new), ("changed", scan.entries_changed), ("gone", scan.entries_gone))
    return ", ".join(f"{units.count(n)} {what}" for what, n in counts)
