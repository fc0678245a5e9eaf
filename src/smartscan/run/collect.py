"""Takes in what an attempt brought: its result, or what can be salvaged where there is none.

Touches: the attempt's folder, the catalogue.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from smartscan.catalogue import ledger, tree
from smartscan.catalogue.ingest import Ingest
from smartscan.catalogue.problems import note_problem
from smartscan.engine import Status
from smartscan.model import DirState, Op, Outcome, Progress, Reading, Root, WalkError, show, unb64
from smartscan.run.attempts import Attempt
from smartscan.shard import leftover_files, read_json, salvage

WORDS = 4096  # letters of what a worker says
# What reading a file of a worker raises where that worker was taken over, or its memory was bad.
NONSENSE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)


class Stuck(NamedTuple):
    """A path that did not answer, and what is known of the wait."""

    error: WalkError
    noted: bool  # the shards say it already
    behind: tuple[bytes, str, str] | None = None  # mount point, type and source, where the worker told


class Result(NamedTuple):
    """What became of an attempt, as its folder tells."""

    outcome: Outcome
    shards: tuple[str, ...]
    leftover: tuple[Root, ...]
    stuck: tuple[Stuck, ...] = ()
    fs: dict[str, int] | None = None
    share_id: tuple[int, int] | None = None
    abandoned: bool = False
    fs_type: str = ""
    source: str = ""
    message: str = ""
    dead: bool = False  # not even the root of the share answered
    totals: Progress | None = None  # all that the worker saw, where it said so


def read_result(folder: Path) -> Result | None:
    """Read result.json; None where the attempt did not come to its end, or wrote nonsense."""
    try:
        data = read_json(folder / "result.json")
        noted = data["outcome"] in (Outcome.SEALED, Outcome.CANCELLED)
        return Result(
            Outcome(data["outcome"]),
            tuple(_plain(name) for name in data["shards"]),
            tuple(Root.from_json(r) for r in data["leftover"]),
            tuple(Stuck(_error(s), noted, _behind(s)) for s in data["stuck"]),
            _fs(data["fs"]) if data["fs"] else None,
            _share_id(data["share_id"]) if data["share_id"] else None,
            data["walker"] == "abandoned",
            _text(data["fs_type"]),
            _text(data["source"]),
            _text(data["message"]),
            bool(data.get("dead")),
            _totals(0, data),
        )
    except NONSENSE:
        return None


def _plain(name: str) -> str:
    if not re.fullmatch(r"\d{6,}\.shard", name, re.ASCII):
        raise ValueError(name)
    return name


def _text(said: object) -> str:
    """Words of a worker: short, and such as a catalogue can hold."""
    return str(said)[:WORDS].encode("utf-8", "backslashreplace").decode().replace("\0", "")


def _number(value: object, below: int = 1 << 63) -> int:
    if not isinstance(value, int) or not 0 <= value < below:
        raise ValueError(value)
    return value


def _fs(data: dict[str, Any]) -> dict[str, int]:
    """How full a file system says it is; it may claim anything of itself."""
    sizes = {name: int(data[name]) for name in ("total_bytes", "used_bytes")}
    if any(abs(size) >= 1 << 100 for size in sizes.values()):
        raise ValueError(sizes)
    return sizes


def _seconds(value: float) -> float:
    if not abs(value) < 1 << 40:
        raise ValueError(value)
    return float(value)


def _share_id(value: Any) -> tuple[int, int]:
    dev, ino = value
    return _number(dev, 1 << 64), _number(ino, 1 << 64)


def _totals(beat: int, data: dict[str, Any], readings: tuple[Reading, ...] = ()) -> Progress:
    """What a worker counts; bytes may be more than 64 bits hold, for a file may claim that it is large."""
    return Progress(
        beat,
        _number(data["entries"]),
        _number(data["dirs"]),
        _number(data["bytes"], 1 << 100),
        _number(data["disk_bytes"], 1 << 100),
        readings,
    )


def _error(data: dict[str, Any]) -> WalkError:
    return WalkError(
        unb64(data["path_b64"]),
        Op(data["op"]),
        _number(data["errno"], 1 << 12),
        _seconds(data["waited_s"]),
        _text(data["wchan"]),
    )


def _behind(data: dict[str, Any]) -> tuple[bytes, str, str] | None:
    if "mount_b64" not in data:
        return None
    return unb64(data["mount_b64"]), _text(data["fs_type"]), _text(data["source"])


def brought(attempt: Attempt, status: Status, hint: Outcome | None, *, stall_s: float) -> Result:
    """Say what an attempt brought: what its result says, or what can be salvaged where there is none."""
    result = None if hint is Outcome.LOST else read_result(attempt.folder)
    if result is None:
        ended, message = Outcome.FAILED, status.log_tail.strip().rpartition("\n")[2]
        if status.oom:
            ended = Outcome.OOM
        elif attempt.adopted and status.exit_code is None:  # no fault of the chunk
            ended, message = Outcome.CANCELLED, "its controller had ended"
        return salvaged(
            attempt.folder, attempt.chunk.roots, hint or ended, stall_s=stall_s, message=message
        )
    if result.outcome is Outcome.FAILED and status.oom:
        return result._replace(outcome=Outcome.OOM)
    return result


def less_damaged(attempt: Attempt, result: Result, *, stall_s: float) -> Result:
    """Say what an attempt brought without the shards that were refused meanwhile."""
    again = salvaged(
        attempt.folder,
        attempt.chunk.roots,
        Outcome.FAILED,
        stall_s=stall_s,
        known_stuck=result.stuck,
        message="a shard was damaged; its part is listed again",
    )
    return again._replace(abandoned=result.abandoned)


def salvaged(
    folder: Path,
    roots: tuple[Root, ...],
    outcome: Outcome,
    *,
    stall_s: float,
    known_stuck: tuple[Stuck, ...] = (),
    message: str = "",
) -> Result:
    """Work out what an attempt without a result brought.

    Where it was killed because it did not move, what its threads were in counts as stuck: those paths are
    not tried again while their reader may live. That is sure of one that no signal reaches, and then whatever
    its threads were last seen in counts, for however short a time they were.
    """
    given = [root for _, some in leftover_files(folder) for root in some]
    stuck = list(known_stuck)
    if outcome in (Outcome.STALLED, Outcome.LOST):
        stuck += [
            Stuck(WalkError(r.path, r.op, 110, r.for_s), False)
            for r in read_progress(folder).readings
            if r.for_s >= stall_s or outcome is Outcome.LOST
        ]
    try:
        left = salvage(folder, roots, given, [s.error.path for s in stuck])
    except OSError as e:
        return Result(outcome, (), roots, message=f"its folder cannot be read: {e.strerror}")
    return Result(
        outcome, left.shards, left.leftover, tuple(stuck), abandoned=outcome is Outcome.LOST, message=message
    )


def read_progress(folder: Path) -> Progress:
    """Read progress.json; all zero where there is none yet."""
    try:
        data = read_json(folder / "progress.json")
        readings = tuple(
            Reading(unb64(r["path_b64"]), Op(r["op"]), _seconds(r["for_s"])) for r in data["readings"]
        )
        said = _totals(_number(data["beat"]), data, readings)
        return said._replace(cpu_s=max(0.0, _seconds(data.get("cpu_s", 0.0))))  # an adopted one may be older
    except NONSENSE:
        return Progress(0)


def read_share_id(folder: Path) -> tuple[int, int] | None:
    """Tell which directory the worker knows as the share: (st_dev, st_ino); None while it has not said."""
    for name in ("progress.json", "result.json"):
        try:
            return _share_id(read_json(folder / name)["share_id"])
        except NONSENSE:
            continue
    return None


def summed_up(result: Result) -> str:
    """Say in a sentence how an attempt ended."""
    words = f"ended: {result.outcome}"
    words += f"; {result.message}" if result.message else ""
    words += f"; {_count(len(result.leftover), 'root')} left over" if result.leftover else ""
    words += f"; {_count(len(result.stuck), 'path')} did not answer" if result.stuck else ""
    return words


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def note_end(
    conn: sqlite3.Connection, mount_id: int, chunk_id: int, number: int, result: Result, status: Status
) -> None:
    """Write down how an attempt ended; within a transaction."""
    now = time.time()
    tail = status.log_tail if result.outcome not in (Outcome.SEALED, Outcome.CANCELLED) else None
    if result.fs_type:
        ledger.set_storage(conn, mount_id, result.fs_type, result.source)
    if result.totals:
        ledger.progress(conn, chunk_id, number, result.totals, now, now)
    ledger.end_attempt(
        conn, chunk_id, number, result.outcome, now, exit_code=status.exit_code, log_tail=tail
    )


def note_stuck(ingest: Ingest, stuck: Iterable[Stuck], fs_type: str, source: str) -> None:
    """Write down paths that did not answer, and what is likely behind them; within a transaction."""
    now = time.time()
    for s in stuck:
        e = s.error
        whole = e.op in (Op.OPEN, Op.READDIR)
        if whole and not s.noted and e.path and tree.is_decided(
            ingest.conn, ingest.mount_id, ingest.scan_id, e.path
        ):
            continue  # its thread had gone on since it was last seen in it
        if whole and not s.noted:
            ingest.decide(
                e.path, DirState.TIMED_OUT, DirState.TIMED_OUT.value, now, err=e.errno, op=e.op
            )
        why = cause(e, *(s.behind or (b"", fs_type, source)))
        note_problem(ingest.conn, ingest.mount_id, ingest.scan_id, e, now, cause=why)


def cause(error: WalkError, mount_point: bytes, fs_type: str, source: str) -> str:
    """Say in words what most likely is behind a path that did not answer.

    `mount_point` is the mount that the path lies on, b"" where nobody knows it.
    """
    wait = f"did not answer for {error.waited_s:.0f} s"
    waits_in, at = error.wchan, show(mount_point)
    if fs_type.startswith("nfs") or waits_in.startswith(("nfs", "rpc")):
        return f"the NFS server{source and f' {source}'}{at and f' behind {at}'} {wait}"
    if fs_type in ("cifs", "smb3") or waits_in.startswith(("cifs", "smb")):
        return f"the SMB server{source and f' {source}'}{at and f' behind {at}'} {wait}"
    if fs_type.startswith("fuse") or waits_in.startswith(("fuse", "request_wait_answer")):
        return f"a disk or server behind {at or source or 'the FUSE mount'} ({fs_type}) {wait}"
    return f"the disk behind {at or source or 'it'}{at and source and f' ({source})'} {wait}"
