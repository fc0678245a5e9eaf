"""Opens a scan or takes one up again, plans it, drives it, and closes the account.

Touches: the catalogue, attempt folders, the engine.
"""

from __future__ import annotations

import errno
import functools
import gc
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import smartscan.run
from smartscan import engine as engines
from smartscan import interrupts
from smartscan import supervisor as sup
from smartscan.catalogue import directory, ledger, problems, tree
from smartscan.catalogue import open as opening
from smartscan.catalogue.bulk import Bulk, open_bulk
from smartscan.catalogue.ingest import Ingest, refill_largest
from smartscan.catalogue.lock import MountLock
from smartscan.errors import (
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    EXIT_MOUNT_DEAD,
    EXIT_OK,
    Interrupted,
    MountError,
    UsageError,
)
from smartscan.model import UNREAD, Chunk, ChunkState, DirState, Op, Root, Rules, ScanState, Scope
from smartscan.numbers import unsigned
from smartscan.plan import PlannedChunk, pack, plan
from smartscan.run.attempts import remove_folder
from smartscan.run.controller import Controller
from smartscan.run.request import Glance, Request, namespace

MISSING_NAMED = 1000  # directories that a certificate names; a report finds the others in the catalogue


class Report(NamedTuple):
    """How a run ended."""

    scan_id: int
    state: ScanState
    exit_status: int


def planned(conn: sqlite3.Connection, mount_id: int, request: Request) -> list[PlannedChunk]:
    """Cut a mount into chunks by what the catalogue knows of it; empty where it knows nothing."""
    usage = tree.mount_usage(conn, mount_id)
    if usage is None:
        return []
    return plan(
        usage,
        tree.child_usages(conn, mount_id),
        limit_bytes=request.limits.chunk_bytes,
        limit_entries=request.limits.chunk_entries,
        most_entries=request.limits.most_entries,
    )


def run(
    request: Request, engine: engines.Engine, why: str, *, only_failed: bool = False, told: bool = False
) -> Report:
    """Run a request to its account. `told`: the user knows already who the workers are."""
    # Rows come as a hundred thousand small tuples at a time, none of them in a cycle: looking through them
    # again and again costs 3 % of a scan.
    if gc.get_freeze_count():  # by an earlier scan of this process, whose leavings are let go
        gc.unfreeze()
        gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    resources, cuts = engine.clamp(request.resources, at_a_time=request.max_containers)
    request = replace(request, resources=resources)
    for sentence in () if told else (why, *cuts, *engine.describe()):
        request.say(sentence)
    with MountLock(request.db, request.name) as lock:
        storage = opening.examine(request.db)
        for warning in storage.warnings:
            request.say(f"Warning: {warning}.")
        bulk = open_bulk(
            functools.partial(opening.open_catalogue, request.db, create=not only_failed, storage=storage)
        )
        if request.sizes_only:
            bulk.conn.execute("PRAGMA synchronous = OFF")
        directory.give_to_owner(request.db)
        for folder in (request.work.parent, request.work):
            directory.refuse_link(folder)
            directory.check_writable(folder)  # else every start would fail, and be tried again for ever
        with closing(bulk.conn):
            return _Scan(request, engine, bulk, lock, only_failed=only_failed).run()


def measured(
    scratch: Request, engine: engines.Engine, why: str, *, told: bool
) -> tuple[list[PlannedChunk], bool]:
    """Scan into a catalogue that is thrown away; gives what `smartscan.run.survey` does."""
    report = run(scratch, engine, why, told=told)
    if report.state is ScanState.CANCELLED:
        raise Interrupted("stopped while sizes were measured; the same command measures them anew")
    conn = opening.open_catalogue(scratch.db, create=False)
    try:
        return planned(conn, 1, scratch), report.state is ScanState.COMPLETE
    finally:
        conn.close()


class _Scan:
    """One scan, from opening to account."""

    def __init__(
        self,
        request: Request,
        engine: engines.Engine,
        bulk: Bulk,
        lock: MountLock,
        *,
        only_failed: bool,
    ) -> None:
        self.request, self.engine, self.bulk, self.lock = request, engine, bulk, lock
        self.conn = bulk.conn
        self.surveyed: list[PlannedChunk] = []
        self.only_failed = only_failed
        self.began = time.time()
        self.now = self.began
        self.new = False
        self.avoid: list[tuple[bytes, str, float | None]] = []

    def run(self) -> Report:
        request = self.request
        with opening.transaction(self.conn):
            self.mount_id = ledger.mount(self.conn, request.name, request.path, self.now)
            self.scan_id = self._open()
            self.rescan = ledger.was_scanned(self.conn, self.mount_id, before=self.scan_id)
        request = self.request  # with the rules of the scan that goes on
        if self.new and request.analyze:
            self._survey()
        if not self.only_failed:
            self.avoid = problems.undue(self.conn, self.mount_id, self.now)
        ingest = Ingest(
            self.bulk, self.mount_id, self.scan_id, rescan=self.rescan, sizes_only=request.sizes_only
        )
        settings = sup.Settings(
            max_containers=request.max_containers,
            stall_s=request.limits.stall_s,
            give_up=request.give_up,
            cpus=self.engine.cpus(),
        )
        left_over = self._see_off()
        self.controller = Controller(
            request,
            self.engine,
            ingest,
            self.lock,
            fs_type=None if request.moved else self._fs_type(),
            avoid=(p for p, _, _ in self.avoid),
            settings=settings,
            abandoned=left_over,
        )
        c = self.controller
        with self._interrupts():  # to the end of the account, which is not left half done
            try:
                self._take_up() if not self.new else self._plan()
                c.expected = self._expected()
                ending = c.run()
            finally:
                c.close()
            return self._close(ending)

    def _survey(self) -> None:
        """Measure first. Only now that all else is found right: it takes as long as a scan."""

        def glance(seen: Glance) -> None:
            self.lock.beat()
            self.request.glance(seen)

        with ExitStack() as undone:
            undone.callback(self._forget)  # after an interrupt as well: nothing of this scan was begun
            self.surveyed, _ = smartscan.run.survey(replace(self.request, glance=glance), told=True)
            undone.pop_all()

    def _forget(self) -> None:
        with opening.transaction(self.conn):
            ledger.forget_scan(self.conn, self.scan_id, self.mount_id)

    def _see_off(self) -> list[dict[str, Any]]:
        """End the workers that earlier scans of this mount left behind; gives those that do not end."""
        mine = {
            (chunk.id, number)
            for chunk, number, _ in ledger.open_chunks(self.conn, self.scan_id)
            if chunk.state is ChunkState.RUNNING  # what the attempt of a pending one brought is taken in
        }
        old = [
            w
            for w in self.engine.find(namespace(self.request.db))
            if w.folder.parent.name == self.request.name and (w.chunk_id, w.attempt) not in mine
        ]
        if not old:
            return []

        def goes(worker: engines.Found) -> bool:
            return self.engine.kill(worker.worker_id) and self.engine.remove(worker.worker_id)

        with ThreadPoolExecutor(max_workers=len(old)) as pool:
            gone = list(pool.map(goes, old))
        return [
            {"worker_id": w.worker_id, "chunk": w.chunk_id, "attempt": w.attempt}
            for w, went in zip(old, gone, strict=True)
            if not went
        ]

    def _fs_type(self) -> str | None:
        return (
            self.conn.execute("SELECT fs_type FROM mount WHERE id = ?", (self.mount_id,)).fetchone()[0]
            or None
        )

    def _open(self) -> int:
        engine, holder, options = self.engine.name, self.lock.holder.to_json(), self.request.options()
        old = (
            ledger.last(self.conn, self.mount_id)
            if self.only_failed
            else ledger.unfinished(self.conn, self.mount_id)
        )
        if old is not None:
            rules = Rules.noted(ledger.options(self.conn, old))
            if self.only_failed:
                self.request = replace(self.request, rules=rules)
                options = self.request.options()
            elif rules != self.request.rules:
                self.request.say("The last scan was stopped under other rules; this one begins anew.")
                ledger.give_up(self.conn, old, self.now)
                old = None
        if old is not None:
            ledger.resume(self.conn, old, engine=engine, controller=holder, options=options, at=self.now)
            ledger.event(
                self.conn,
                old,
                "resumed",
                "the scan goes on" + (" with what could not be read" if self.only_failed else ""),
                self.now,
            )
            # One that died before it was planned has no chunk at all.
            self.new = not self.only_failed and not ledger.has_chunks(self.conn, old)
            if not self.new and not self.only_failed:
                self.request.say(f"Going on with scan {old}, which did not end.")
            return old
        if self.only_failed:
            raise UsageError(f"'{self.request.name}' was never scanned; use scan first")
        self.new = True
        made = ledger.begin(
            self.conn, self.mount_id, engine=engine, controller=holder, options=options, at=self.now
        )
        ledger.event(self.conn, made, "begun", "the scan begins", self.now)
        return made

    def _expected(self) -> int | None:
        """How many entries a progress line may expect; None where nobody can know."""
        usage = tree.mount_usage(self.conn, self.mount_id) if self.rescan and self.new else None
        return usage.entries if usage else sum(p.est_entries for p in self.surveyed) or None

    # -- chunks to begin with -----------------------------------------------------------------------------

    def _plan(self) -> None:
        """Make the chunks of a new scan: by known sizes where there are some, else the whole share as one."""
        chunks = self.surveyed or (planned(self.conn, self.mount_id, self.request) if self.rescan else [])
        avoided = {p for p, _, _ in self.avoid}
        due = [
            p
            for p, op, _ in problems.undue(self.conn, self.mount_id, self.now, everything=True)
            if op != "stat" and p and p not in avoided
        ]
        made: list[Chunk] = []
        with opening.transaction(self.conn):
            for some in chunks or [PlannedChunk((Root(b""),), 0, 0)]:
                sizes = (some.est_bytes, some.est_entries) if chunks else (None, None)
                roots = [r for r in some.roots if r.path not in due and r.path not in avoided]
                if roots:
                    made.append(
                        ledger.add_chunk(
                            self.conn,
                            self.scan_id,
                            roots,
                            "plan",
                            self.now,
                            est_bytes=sizes[0],
                            est_entries=sizes[1],
                        )
                    )
            said = ["made by the plan"] * len(made)
            if due:  # what did not answer the last time comes last
                made.append(
                    ledger.add_chunk(
                        self.conn,
                        self.scan_id,
                        [Root(p) for p in due],
                        "retry",
                        self.now,
                        est_bytes=0,
                        est_entries=0,
                    )
                )
                said.append("made to try again, last of all, what did not answer before")
            for chunk, words in zip(made, said, strict=True):
                ledger.event(self.conn, self.scan_id, "created", words, self.now, chunk_id=chunk.id)
        self.controller.held.update(due)  # not entered by others on the way: their own chunk tries them
        for chunk in made:
            self.controller.add(chunk)

    def _take_up(self) -> None:
        """Go on with the chunks of an unfinished scan: running workers are adopted, the rest is pending."""
        found = {
            (w.chunk_id, w.attempt): w
            for w in self.engine.find(namespace(self.request.db))
            if w.scan_id == self.scan_id
        }
        if self.only_failed:
            with opening.transaction(self.conn):
                paths = tree.reopen_failed(self.conn, self.mount_id, self.scan_id)
                stats = {
                    p.rpartition(b"/")[0]
                    for p, op, _ in problems.undue(self.conn, self.mount_id, self.now, everything=True)
                    if op == "stat"
                }
                stats |= {
                    p.rpartition(b"/")[0] for p in paths if not tree.has_stat(self.conn, self.mount_id, p)
                }
                for path in stats:
                    self.conn.execute(
                        "UPDATE dir SET state = 'found', scan_id = NULL, digest = NULL WHERE id = ?",
                        (tree.dir_id_of(self.conn, self.mount_id, path),),
                    )
                roots = [Root(p) for p in paths] + [Root(p, Scope.FILES) for p in sorted(stats - set(paths))]
                if roots:
                    for some in pack(roots, parts=min(self.request.max_containers, len(roots))):
                        self.controller.maker.make(tuple(some), "retry", None)
        else:
            self.controller.held.update(ledger.last_roots(self.conn, self.scan_id))
        for chunk, number, fails in ledger.open_chunks(self.conn, self.scan_id):
            worker = found.get((chunk.id, number))
            if chunk.state is ChunkState.RUNNING:
                ended = worker is None or worker.state == "exited"
                self.controller.adopt(chunk, number, fails, worker.worker_id if worker else "", ended=ended)
            else:
                self.controller.add(chunk, attempts=number, fails=fails)

    # -- the end
    # ----------------------------------------------------------------------------------------------

    def _close(self, ending: sup.Ending) -> Report:
        c, now = self.controller, time.time()
        error = c.error or (MountError(c.unreachable) if c.unreachable and not c.seen else None)
        if error:
            with opening.transaction(self.conn):
                if self.new and not c.seen:
                    ledger.forget_scan(self.conn, self.scan_id, self.mount_id)
                else:  # found emptied, it does not go on: it may have taken directories for vanished
                    state = ScanState.INCOMPLETE if c.error else ScanState.CANCELLED
                    ledger.end(self.conn, self.scan_id, state, None, mount_dead=True, at=now)
            self._tidy()
            raise error
        state, dead = c.writer.patiently(lambda: self._settle(ending, now))
        self._tidy()
        if c.lost and state is ScanState.CANCELLED:
            raise c.lost
        status = {ScanState.COMPLETE: EXIT_OK, ScanState.CANCELLED: EXIT_INTERRUPTED}.get(
            state, EXIT_INCOMPLETE
        )
        return Report(
            self.scan_id, state, EXIT_MOUNT_DEAD if dead and state is ScanState.INCOMPLETE else status
        )

    def _settle(self, ending: sup.Ending, now: float) -> tuple[ScanState, bool]:
        """Write the account of the scan; gives its state, and whether the mount is dead."""
        c, certificate, state = self.controller, None, ScanState.CANCELLED
        with opening.transaction(self.conn):
            if ending is not sup.Ending.CANCELLED:
                for path, _, retry_at in self.avoid:
                    self._not_tried(path, retry_at, now)
                for path in problems.silent_directories(self.conn, self.mount_id, self.scan_id):
                    self._silent(path, DirState.TIMED_OUT.value, now, Op.STAT)
                account = self._account()
                problems.clear(self.conn, self.mount_id, self.scan_id, now)
                certificate = self._certificate(account)
                refill_largest(self.conn, self.mount_id)
                state = ScanState.COMPLETE if certificate["complete"] else ScanState.INCOMPLETE
            dead = ending is sup.Ending.MOUNT_DEAD or b"" in c.stuck
            if dead:
                problems.due_at_once(self.conn, self.mount_id, self.scan_id, now)
            ledger.end(self.conn, self.scan_id, state, certificate, mount_dead=dead, at=now)
            ledger.event(self.conn, self.scan_id, "ended", f"the scan is {state}", now)
        return state, dead

    def _not_tried(self, path: bytes, retry_at: float | None, now: float) -> None:
        """A path that is left alone for now is missing from this scan, and it says why."""
        if tree.dir_id_of(self.conn, self.mount_id, path) is None or tree.is_decided(
            self.conn, self.mount_id, self.scan_id, path
        ):
            return
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(retry_at))
        self._silent(path, f"did not answer before; not tried again until {when}", now, Op.OPEN)

    def _silent(self, path: bytes, reason: str, now: float, op: Op) -> None:
        self.controller.ingest.decide(path, DirState.TIMED_OUT, reason, now, err=errno.ETIMEDOUT, op=op)

    def _account(self) -> tree.Account:
        """Count the directories by state and all that were found, once what went meanwhile is removed."""
        conn, mount_id, scan_id = self.conn, self.mount_id, self.scan_id
        account = tree.account(conn, mount_id, scan_id)
        if sum(account.states.values()) != account.found:
            self.controller.ingest.sweep()
            account = tree.account(conn, mount_id, scan_id)
            found = sum(account.states.values()) + tree.undecided(conn, mount_id, scan_id)
            found += not tree.is_decided(conn, mount_id, scan_id, b"")
            account = account._replace(found=found)
        return account

    def _certificate(self, account: tree.Account) -> dict[str, Any]:
        """The account: every directory found is in one state, and what that leaves unknown is named."""
        conn, mount_id, scan_id = self.conn, self.mount_id, self.scan_id
        states, found, stale = account
        row = conn.execute(
            "SELECT files, entries, bytes, disk_bytes FROM dir WHERE mount_id = ? AND parent_id IS NULL",
            (mount_id,),
        ).fetchone()
        files, entries, size, disk = row or (0, 0, 0, 0)
        size, disk = unsigned(size), unsigned(disk)
        (open_problems,) = conn.execute(
            "SELECT count(*) FROM problem WHERE mount_id = ? AND cleared_at IS NULL", (mount_id,)
        ).fetchone()
        missing = [
            {"dir": i, "state": s, "reason": r}
            for i, s, r in conn.execute(
                "SELECT id, state, reason FROM dir WHERE mount_id = ? AND scan_id = ? AND "
                "state <> 'listed' AND state IN (?, ?, ?) ORDER BY id LIMIT ?",
                (mount_id, scan_id, *UNREAD, MISSING_NAMED),
            )
        ]
        for item in missing:
            item["path"] = (
                os.fsdecode(tree.path_of(conn, item.pop("dir")))
                .encode("utf-8", "backslashreplace")
                .decode()
            )
        decided = sum(states.get(s, 0) for s in DirState if s is not DirState.FOUND)
        unread = sum(states.get(s, 0) for s in UNREAD)
        fs = self.controller.fs
        return {
            "dirs": {
                "found": found,
                **{s.value: states.get(s.value, 0) for s in DirState if s is not DirState.FOUND},
            },
            "files": files,
            "entries": entries,
            "bytes": size,
            "disk_bytes": disk,
            "fs": fs,
            "unexplained_bytes": fs["used_bytes"] - disk if fs else None,
            "complete": decided == found and not unread and not open_problems,
            "problems": open_problems,
            "unread_paths": problems.besides_directories(conn, mount_id),
            "missing": missing,
            "stale_dirs": stale,
            "abandoned": self.controller.abandoned,
        }

    def _tidy(self) -> None:
        """Close the catalogue, and leave no folder behind, except what an abandoned worker may still hold."""
        self.conn.close()  # its log goes into it while folders are removed
        self.controller.workers.sweep()
        if not self.controller.abandoned:
            with suppress(OSError):
                for folder in self.request.work.iterdir():
                    if not any(folder.glob("*.part")):
                        remove_folder(folder)
                self.request.work.rmdir()
                self.request.work.parent.rmdir()

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and a terminal that closes ask the scan to end; a second one does not wait."""

        def on_signal(*_: Any) -> None:
            self.controller.stops += 1
            if self.controller.stops == 1:
                self.request.say("Stopping: workers hand in what they have. Once more to stop at once.")

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # What is ignored stays so: under nohup a scan goes on, in the background Ctrl-C does not stop it.
        ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [number for number in ends if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, on_signal) for number in heard}
        if interrupts.asked:  # and Python lost it
            on_signal()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
