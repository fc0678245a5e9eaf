"""The loop: looks at attempt folders and the engine, tells the supervisor, does what it says.

Touches: the catalogue, attempt folders; the engine through `workers`, which waits for it elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from errno import EIO, ETIMEDOUT
from pathlib import Path
from typing import Any

from smartscan import supervisor as sup
from smartscan.catalogue import directory, ledger, tree
from smartscan.catalogue.ingest import Ingest
from smartscan.catalogue.lock import MountLock
from smartscan.catalogue.open import transaction
from smartscan.engine import Engine, Job, Status
from smartscan.errors import EngineError, EngineLost, MountError, MountSilent, ShardError
from smartscan.model import Chunk, ChunkState, DirState, Op, Outcome, Root, WalkError, show
from smartscan.run import collect
from smartscan.run.attempts import Attempt, Digests, furnish, give_order, remove_folder
from smartscan.run.chunks import ChunkMaker
from smartscan.run.collect import Result, Stuck
from smartscan.run.patience import Homeless, PatientWriter, Watch
from smartscan.run.request import Glance, Request, namespace
from smartscan.run.story import words_of
from smartscan.run.workers import REMOVE_S, Workers
from smartscan.shard import is_shard, leftover_files
from smartscan.worker.orders import Orders

log = logging.getLogger("smartscan.run")

LOOK_S = 0.02  # between looks at the folders: local disk, some microseconds each
STATUS_S = 0.5  # between questions to the engine whether a worker lives
NOTE_S = 1.0  # between writes of progress to the catalogue
ABANDONED_S = 1.0  # one that hangs in the kernel is not waited for; `cleanup` collects it
EXIT_NO_SHARE, EXIT_NO_OUTPUT = 10, 11  # of workers
LATE_S = 2.0  # a loop that was away for longer has seen nobody's progress


class Controller:
    """One scan from its chunks to the supervisor's End."""

    def __init__(
        self,
        request: Request,
        engine: Engine,
        ingest: Ingest,
        lock: MountLock,
        *,
        fs_type: str | None,
        avoid: Iterable[bytes] = (),
        settings: sup.Settings,
        abandoned: list[dict[str, Any]] | None = None,
    ) -> None:
        self.request, self.engine, self.ingest, self.lock = request, engine, ingest, lock
        self.conn, self.scan_id, self.mount_id = ingest.conn, ingest.scan_id, ingest.mount_id
        self.fs_type, self.source = fs_type, ""
        self.avoid = set(avoid)  # did not answer in an earlier scan and are not due: left alone
        self.held: set[bytes] = set()  # are due: tried in a chunk of their own, last of all
        self.abandoned = abandoned or []  # workers that do not go, also of earlier scans
        self.supervisor = sup.Supervisor(settings, abandoned=len(self.abandoned))
        self.settings = settings
        self.attempts: dict[int, Attempt] = {}
        self.digests = Digests(ingest)
        self.chunks: dict[int, Chunk] = {}
        self.workers = Workers(engine, namespace(request.db), at_a_time=request.max_containers)
        self.watch = Watch(request.say, request.db.parent, request.limits.stall_s)
        self.homeless = Homeless(request.db, request.work)
        self.writer = PatientWriter(
            request.db, request.say, waits=self._waits, meanwhile=self._meanwhile, again=self._goes_on_writing
        )
        self.maker = ChunkMaker(
            ingest, at_a_time=request.max_containers, cpus=settings.cpus, event=self.event
        )
        self.stuck: set[bytes] = set()  # b"" among them: the mount itself does not answer
        self.fs: dict[str, int] | None = None
        self.share_id: tuple[int, int] | None = None
        self.ending: sup.Ending | None = None
        self.unreachable = ""
        self.seen = False  # whether this run took in any directory
        self.error: MountError | None = None
        self.lost: EngineLost | None = None
        self.stops = 0  # Ctrl-C so far
        self.stops_seen = 0
        self.noted_at = 0.0
        self.paused: str | None = None
        self.expected: int | None = None
        self.finished = {"done": 0, "quarantined": 0}

    # -- the loop ----------------------------------------------------------------------------------------

    def add(self, chunk: Chunk, *, attempts: int = 0, fails: int = 0) -> None:
        """Let the supervisor know a pending chunk."""
        self.chunks[chunk.id] = chunk
        self.tell(sup.Added(chunk.id, chunk.roots, chunk.est_bytes, chunk.est_entries, attempts, fails))

    def adopt(self, chunk: Chunk, number: int, fails: int, worker_id: str, *, ended: bool) -> None:
        """Take over an attempt of an earlier controller; where its worker has ended, `run` collects it."""
        self.chunks[chunk.id] = chunk
        folder, now = self.folder(chunk.id, number), time.time()
        self.attempts[chunk.id] = Attempt(
            chunk, number, folder, worker_id, moved_at=now, exited=ended, adopted=True
        )
        self.tell(sup.Adopted(chunk.id, number, chunk.roots, chunk.est_bytes, chunk.est_entries, fails))

    def run(self) -> sup.Ending:
        """Go on until the supervisor ends."""
        for attempt in [a for a in self.attempts.values() if a.exited]:
            self.tell(sup.Exited(attempt.chunk.id, attempt.number))
        self.tell(sup.Tick())
        while self.ending is None:
            self._come_round()
            if self.stops > self.stops_seen:
                self.stops_seen += 1
                self.tell(sup.StopRequested())
            busy = self.workers.hear() | self.digests.give(self.attempts)
            for attempt in list(self.attempts.values()):
                self._come_round()
                busy |= self._look(attempt)
            if back := self.homeless.ready():
                self._go_on(back)
            self._note()
            wake = self.supervisor.wake_at(time.monotonic())
            if wake is not None and wake <= time.monotonic():
                self.tell(sup.Tick())
            if not busy and self.ending is None:
                self.workers.hear(LOOK_S)
        return self.ending

    def _come_round(self) -> None:
        """Say that the loop lives; where it was away for long, nobody is judged by what it did not see."""
        away_s = self.watch.alive()
        if away_s > LATE_S:
            self.tell(sup.Delayed(away_s))

    def close(self) -> None:
        """Let removals come to their end, but not for ever; what still runs is killed.

        Where this is not the end of the scan, what its attempts have sealed stays for the one that goes on;
        what a refused share had to say does not, because it may be another one by then.
        """
        for attempt in self.attempts.values():
            self._remove(attempt, keep_folder=self._goes_on, wait_s=REMOVE_S, kill=True)
        self.workers.close()
        if self.ending is not None:
            self.workers.hear()
            self._persist(lambda: ledger.note_exits(self.conn, self.workers.exits))
        self.watch.close()

    @property
    def _goes_on(self) -> bool:
        return self.ending is None and self.error is None

    def tell(self, event: sup.Event) -> None:
        """Tell the supervisor what happened, and do what it says; what belongs together commits together."""
        commands = self.supervisor.handle(event, time.monotonic())
        if not commands:
            return
        events: list[sup.Event] = []
        after: list[Callable[[], None]] = []

        def write() -> None:
            events.clear()
            after.clear()
            for command in commands:
                self._do(command, events, after)

        self._persist(write)
        for action in after:
            action()
        for answer in events:
            self.tell(answer)

    def _persist(self, write: Callable[[], None]) -> None:
        """Commit what `write` writes; it may be called again, so it begins by forgetting what it did."""

        def commit() -> None:
            with transaction(self.conn):
                write()

        self.writer.patiently(commit)

    def _waits(self, why: str) -> None:
        self.paused = why
        self.supervisor.handle(sup.Paused(why), time.monotonic())

    def _goes_on_writing(self) -> None:
        self.paused = None
        if not self.homeless.attempts:
            self.tell(sup.Unpaused())

    def _meanwhile(self) -> bool:
        """Say that this controller lives while it waits; False where it is to stop."""
        self.ingest.forget()
        self.lock.beat()
        self.watch.alive()
        return not self.stops

    def event(self, kind: str, detail: str, chunk_id: int | None = None, attempt: int | None = None) -> None:
        """Note what happened, in the transaction that is open."""
        log.info("%s%s", f"chunk {chunk_id}: " if chunk_id else "", detail)
        ledger.event(self.conn, self.scan_id, kind, detail, time.time(), chunk_id=chunk_id, attempt=attempt)

    # -- what the supervisor says -----------------------------------------------------------------------

    def _do(self, command: sup.Command, events: list[sup.Event], after: list[Callable[[], None]]) -> None:
        now = time.time()
        if event := words_of(command, self.engine.name):
            self.event(*event, getattr(command, "chunk_id", None), getattr(command, "attempt", None))
        match command:
            case sup.Start(chunk_id, number):
                ledger.start_attempt(self.conn, chunk_id, number, now)
                after.append(lambda: self._start(chunk_id, number))
            case sup.Yield(chunk_id, number):
                after.append(lambda: self._touch(chunk_id, "yield"))
            case sup.Stop(chunk_id, number):
                after.append(lambda: self._touch(chunk_id, "stop"))
            case sup.Kill(chunk_id, number):
                after.append(lambda: self._kill(chunk_id, number))
            case sup.Collect(chunk_id, number, hint):
                after.append(lambda: self._collect(chunk_id, number, hint))
            case sup.Create(parent_id, roots, origin):
                self._create(parent_id, roots, origin, events)
                events.append(sup.Created(parent_id))
                events.append(sup.Tick())
            case sup.Retry(chunk_id, fails):
                ledger.set_chunk(self.conn, chunk_id, ChunkState.PENDING, now, fails=fails)
            case sup.Done(chunk_id):
                ledger.set_chunk(self.conn, chunk_id, ChunkState.DONE, now)
                self.finished["done"] += 1
                self.chunks.pop(chunk_id, None)
            case sup.Quarantine(chunk_id, reason):
                self._quarantine(chunk_id, reason)
            case sup.Pause(reason):
                ledger.pause(self.conn, self.scan_id, reason)
                self.paused = reason
                after.append(lambda: self.request.say(f"Waiting: {reason}"))
            case sup.Resume():
                ledger.pause(self.conn, self.scan_id, None)
                self.paused = None
                after.append(lambda: self.request.say("Going on."))
            case sup.MountDead():
                said = f"The mount {show(self.request.path)} does not answer; its other chunks are deferred."
                if not self.unreachable:
                    after.append(lambda: self.request.say(said))
            case sup.End(ending):
                self.ending = ending

    def _touch(self, chunk_id: int, order: str) -> None:
        attempt = self.attempts.get(chunk_id)
        if attempt:
            try:
                give_order(attempt.folder, order)
            except OSError as e:
                log.warning("%s: %s", attempt.folder, e)

    def _quarantine(self, chunk_id: int, reason: str) -> None:
        """Give a chunk up for this scan; what it was to list is missing, and said so.

        But nothing of that where the share could not even be opened: the scan is forgotten, or goes on later.
        """
        if self.unreachable and not self.seen:
            return
        ledger.set_chunk(self.conn, chunk_id, ChunkState.QUARANTINED, time.time())
        self.event("quarantined", f"given up for this scan: {reason}", chunk_id)
        self.finished["quarantined"] += 1
        chunk = self.chunks.pop(chunk_id, None)
        for root in chunk.roots if chunk else ():
            if not tree.is_decided(self.conn, self.mount_id, self.scan_id, root.path):
                dead = reason == sup.MOUNT_DEAD
                state, err = (DirState.TIMED_OUT, ETIMEDOUT) if dead else (DirState.IO_ERROR, EIO)
                self.ingest.decide(root.path, state, reason, time.time(), err=err)

    def _create(
        self, parent_id: int, roots: tuple[Root, ...], origin: sup.Origin, events: list[sup.Event]
    ) -> None:
        parent = self.chunks.get(parent_id)
        if origin is sup.Origin.BISECT:
            made = [self.maker.make(roots, origin.value, parent_id)]
        else:
            own = {r.path for r in parent.roots} if parent else set()
            made = self.maker.of_leftover(
                [r for r in roots if not self._left_alone(r.path, own)], parent_id, parent
            )
        for chunk in made:
            self.chunks[chunk.id] = chunk
            events.append(sup.Added(chunk.id, chunk.roots, chunk.est_bytes, chunk.est_entries))

    def _left_alone(self, path: bytes, own: set[bytes]) -> bool:
        """Whether a path that a salvaged attempt named and did not list was not to be listed there."""
        return path in self.stuck or (path not in own and (path in self.avoid or path in self.held))

    # -- workers ------------------------------------------------------------------------------------------

    def folder(self, chunk_id: int, number: int) -> Path:
        """Where an attempt works."""
        return self.request.work / f"{chunk_id}-{number}"

    def _start(self, chunk_id: int, number: int) -> None:
        chunk = self.chunks[chunk_id]
        folder = self.folder(chunk_id, number)
        attempt = self.attempts[chunk_id] = Attempt(
            chunk, number, folder, moved_at=time.time(), asked_at=time.monotonic()
        )
        try:
            own = {r.path for r in chunk.roots}
            orders = Orders(
                share=self.request.path,
                scan_id=self.scan_id,
                chunk_id=chunk_id,
                attempt=number,
                roots=chunk.roots,
                limits=self.request.limits.fitting(chunk.est_entries),
                patterns=self.request.patterns,
                one_file_system=self.request.rules.one_file_system,
                stuck=tuple(sorted((self.avoid | self.stuck) - own)),
                held=tuple(sorted(self.held - own)),
                known=self.ingest.rescan,
                sizes_only=self.request.sizes_only,
                fs_type=self.fs_type,
                share_id=self.share_id,
            )
            furnish(folder, orders)
        except OSError as e:
            self._not_started(attempt, str(directory.explained(e, folder.parent)))
            return
        asked = self.request
        self.workers.start(
            Job(self.scan_id, asked.name, chunk_id, number, asked.path, folder, asked.resources),
            started=lambda worker_id: self._started(attempt, worker_id),
            refused=lambda error: self._refused(attempt, error),
        )
        self.digests.promise(attempt)

    def _refused(self, attempt: Attempt, error: EngineError | MountError) -> None:
        if isinstance(error, MountSilent):
            self._silent(attempt)
        elif isinstance(error, MountError):
            self._no_share(attempt, str(error))
        else:
            self._not_started(attempt, str(error))
        if isinstance(error, EngineLost) and self.lost is None:
            self.lost = error
            self.tell(sup.StopRequested())  # which workers hear by their folders

    def _silent(self, attempt: Attempt) -> None:
        """The engine could not even mount the share for a worker: its root hangs."""
        attempt.exited = True
        stuck = Stuck(WalkError(b"", Op.OPEN, ETIMEDOUT, self.request.limits.stall_s), noted=False)
        self._stuck(Result(Outcome.STALLED, (), (), (stuck,)))
        self.tell(sup.MountUnreachable(attempt.chunk.id, attempt.number))

    def _not_started(self, attempt: Attempt, message: str) -> None:
        chunk_id, number = attempt.chunk.id, attempt.number

        def write() -> None:
            now = time.time()
            ledger.end_attempt(self.conn, chunk_id, number, Outcome.FAILED, now, log_tail=message)

        self._persist(write)
        if self.attempts.get(chunk_id) is attempt:
            del self.attempts[chunk_id]
        remove_folder(attempt.folder)
        self.tell(sup.StartFailed(chunk_id, number, message))

    def _started(self, attempt: Attempt, worker_id: str) -> None:
        attempt.worker_id, attempt.asked_at = worker_id, time.monotonic()
        if self.attempts.get(attempt.chunk.id) is not attempt:  # so late that another attempt was made
            self._remove(attempt, keep_folder=self._goes_on, wait_s=REMOVE_S, kill=True)
            return
        self._persist(lambda: ledger.set_worker(self.conn, attempt.chunk.id, attempt.number, worker_id))
        self.tell(sup.Started(attempt.chunk.id, attempt.number))

    def _kill(self, chunk_id: int, number: int) -> None:
        attempt = self.attempts.get(chunk_id)
        if attempt is None or attempt.number != number or not attempt.worker_id:
            return
        self.workers.kill(attempt.worker_id, lambda gone: self.tell(sup.KillReturned(chunk_id, number, gone)))

    def _remove(self, attempt: Attempt, *, keep_folder: bool, wait_s: float, kill: bool = False) -> None:
        stays = self._left_behind
        self.workers.see_off(attempt, keep_folder=keep_folder, wait_s=wait_s, stays=stays, kill=kill)

    def _left_behind(self, attempt: Attempt) -> None:
        """Note a worker that does not go: it waits in the kernel for storage that does not answer."""
        chunk_id, number = attempt.chunk.id, attempt.number
        self.abandoned.append({"worker_id": attempt.worker_id, "chunk": chunk_id, "attempt": number})
        said = (
            f"its worker {attempt.worker_id} cannot be killed: it waits for storage that does not answer, "
            "and ends when that does"
        )
        self._persist(lambda: self.event("abandoned", said, chunk_id, number))

    # -- attempts -----------------------------------------------------------------------------------------

    def _look(self, attempt: Attempt) -> bool:
        """See what an attempt has put into its folder; True where there was something."""
        if attempt.exited:
            return False
        try:
            names = {p.name for p in attempt.folder.iterdir()}
        except OSError:
            names = set()
        acted = False
        # A small chunk may be done before the engine tells which worker does it; nobody would remove it.
        if "result.json" in names and attempt.worker_id and attempt.status is None and not attempt.asking:
            result = collect.read_result(attempt.folder)
            if result is not None and result.outcome in (Outcome.SEALED, Outcome.CANCELLED):
                self._over(attempt, result)
                return True
        shards = sorted(n for n in names if is_shard(n) and n not in attempt.ingested)
        if shards:
            self._recognise(attempt)
        for name in shards:
            acted |= self._ingest(attempt, name)
        if any(n.startswith("leftover-") and n.endswith(".json") for n in names):
            acted |= self._given(attempt)
        if "progress.json" in names and not acted:
            self._progressed(attempt)
        now = time.monotonic()
        due_s = 0.05 if "result.json" in names else STATUS_S
        if attempt.worker_id and not attempt.asking and now - attempt.asked_at >= due_s:
            attempt.asking, attempt.asked_at = True, now
            self.workers.look_at(attempt.worker_id, lambda status: self._answered(attempt, status))
        return acted

    def _answered(self, attempt: Attempt, status: Status) -> None:
        attempt.asking = False
        current = self.attempts.get(attempt.chunk.id) is attempt
        if status.state not in ("exited", "gone") or attempt.exited or not current:
            return
        attempt.status = status
        result = collect.read_result(attempt.folder)
        if status.exit_code == EXIT_NO_OUTPUT and self.homeless.may(attempt):
            attempt.exited = True
            why = self.homeless.add(attempt, status.log_tail.strip().rpartition("\n")[2])
            self.tell(sup.Paused(why))
        elif status.exit_code == EXIT_NO_SHARE and result is None:
            self._no_share(attempt, status.log_tail.strip() or f"{show(self.request.path)} cannot be opened")
        else:
            self._over(attempt, result, oom=status.oom)

    def _over(self, attempt: Attempt, result: Result | None, *, oom: bool = False) -> None:
        attempt.exited = True
        if result and result.dead:
            self.tell(sup.MountUnreachable(attempt.chunk.id, attempt.number))
        else:
            self.tell(sup.Exited(attempt.chunk.id, attempt.number, oom))

    def _go_on(self, attempts: Iterable[Attempt]) -> None:
        """Collect attempts that could not write, while the scan is paused: it is no fault of theirs."""
        for attempt in attempts:
            self.tell(sup.Exited(attempt.chunk.id, attempt.number))
        self.tell(sup.Unpaused())

    def _no_share(self, attempt: Attempt, message: str) -> None:
        attempt.exited = True
        self.unreachable = message.splitlines()[-1]
        self.tell(sup.MountUnreachable(attempt.chunk.id, attempt.number))

    def _progressed(self, attempt: Attempt) -> None:
        p = collect.read_progress(attempt.folder)
        if p.beat != attempt.progress.beat:
            if (p.entries, p.dirs) != (attempt.progress.entries, attempt.progress.dirs):
                attempt.moved_at = time.time()
            attempt.progress = p
            self.tell(sup.Progressed(attempt.chunk.id, attempt.number, p.beat, p.entries, p.cpu_s))

    def _recognise(self, attempt: Attempt) -> None:
        """Learn which directory the share is, before rows of it come in."""
        if self.share_id is None and (found := collect.read_share_id(attempt.folder)):
            self._persist(lambda: self.ingest.mounted(found[0]))
            self.share_id = found

    def _ingest(self, attempt: Attempt, name: str) -> bool:
        """Take a shard in; False where it is damaged. The file stays until the attempt is collected."""
        path = attempt.folder / name
        number, now = attempt.number, time.time()
        try:
            counts = self.writer.patiently(lambda: self.ingest.shard(attempt.chunk.id, number, path, now))
            self.seen |= counts is not None and counts.dirs > 0
        except ShardError as e:
            log.warning("chunk %d: shard refused: %s", attempt.chunk.id, e)
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".refused"))
            return False
        except MountError as e:
            self.error, self.ending = e, sup.Ending.MOUNT_DEAD
            return False
        attempt.ingested.add(name)
        return True

    def _given(self, attempt: Attempt) -> bool:
        """Make chunks of what a running worker gave back."""
        acted = False
        for name, roots in leftover_files(attempt.folder):
            made: list[Chunk] = []

            def write(name: str = name, roots: tuple[Root, ...] = roots, made: list[Chunk] = made) -> None:
                made.clear()
                if ledger.taken(self.conn, attempt.chunk.id, attempt.number, name, time.time()):
                    idle = self.request.max_containers - len(self.attempts)
                    made += self.maker.of_given(roots, attempt.chunk.id, idle=idle)

            if name in attempt.ingested:
                continue
            attempt.ingested.add(name)
            self._persist(write)
            for chunk in made:
                self.add(chunk)
            acted |= bool(made)
        if acted:
            self.tell(sup.Tick())
        return acted

    def _collect(self, chunk_id: int, number: int, hint: Outcome | None) -> None:
        """Take in all that an attempt brought, and say what is left."""
        attempt = self.attempts.get(chunk_id)
        if attempt is None or attempt.number != number:
            chunk = self.chunks[chunk_id]
            attempt = Attempt(chunk, number, self.folder(chunk_id, number), exited=True)
        attempt.exited = True
        stall_s = self.request.limits.stall_s
        status = attempt.status or Status("unknown")
        self._recognise(attempt)
        self._given(attempt)
        result = collect.brought(attempt, status, hint, stall_s=stall_s)
        new = [name for name in result.shards if name not in attempt.ingested]
        taken = [self._ingest(attempt, name) for name in new]  # all of them, also behind a damaged one
        if not all(taken) and self.error is None:
            result = collect.less_damaged(attempt, result, stall_s=stall_s)
        if result.fs_type:
            self.fs_type, self.source = result.fs_type, result.source
        new_stuck = self._stuck(result)
        self.fs = result.fs or self.fs
        (dirs,) = self.conn.execute(
            "SELECT ifnull(sum(dirs), 0) FROM shard WHERE chunk_id = ? AND attempt = ?", (chunk_id, number)
        ).fetchone()

        def write() -> None:
            self.event("ended", collect.summed_up(result), chunk_id, number)
            collect.note_end(self.conn, self.mount_id, chunk_id, number, result, status)

        self._persist(write)
        self.attempts.pop(chunk_id, None)
        self._remove(
            attempt,
            keep_folder=result.outcome is Outcome.LOST,
            wait_s=ABANDONED_S if result.abandoned else REMOVE_S,
        )
        entries = attempt.progress.entries
        left, abandoned = result.leftover, result.abandoned
        self.tell(sup.Collected(chunk_id, number, result.outcome, entries, dirs, left, new_stuck, abandoned))

    def _stuck(self, result: Result) -> int:
        """Note the paths that did not answer; gives how many are new."""
        fresh = [s for s in result.stuck if s.error.path not in self.stuck]
        if fresh:
            self._persist(lambda: collect.note_stuck(self.ingest, fresh, self.fs_type or "", self.source))
            self.stuck.update(s.error.path for s in fresh)
        return len(fresh)

    # -- saying how it stands -----------------------------------------------------------------------------

    def _note(self) -> None:
        now = time.monotonic()
        if now - self.noted_at < NOTE_S:
            return
        self.noted_at = now
        self.lock.beat()
        at = time.time()

        def write() -> None:
            ledger.beat(self.conn, self.scan_id, at)
            for a in self.attempts.values():
                if not a.exited:
                    ledger.progress(self.conn, a.chunk.id, a.number, a.progress, a.moved_at, at)
            ledger.note_exits(self.conn, self.workers.exits)

        self._persist(write)
        self.workers.exits.clear()
        self.request.glance(self._glance())

    def _glance(self) -> Glance:
        entries, size, dirs = self.conn.execute(
            "SELECT entries, bytes, dirs FROM scan WHERE id = ?", (self.scan_id,)
        ).fetchone()
        live = {a.chunk.id: a.progress for a in self.attempts.values() if not a.exited}
        chunks = {"running": len(live), "pending": self.supervisor.pending, **self.finished}
        return Glance(entries, size, dirs, chunks, self.expected, self.paused, live)
