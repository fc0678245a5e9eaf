"""The state machine: events in, commands out.

Pure. `now` is monotonic seconds and never goes back. Nothing here waits or reads: the caller carries out
the commands, reports what came of them as events, and sends a Tick no later than `wake_at` says.

Every attempt goes one way, Start -> (Stop ->) (Kill ->) Collect, and only Collected says what it brought.
What it left undone becomes new chunks (Create); nothing else queues work.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from smartscan.model import Outcome, Root, Scope
from smartscan.supervisor.words import (
    Abandon,
    Added,
    Adopted,
    Collect,
    Collected,
    Command,
    Create,
    Created,
    Delayed,
    Done,
    End,
    Ending,
    Event,
    Exited,
    Kill,
    KillReturned,
    MountDead,
    MountUnreachable,
    OfAttempt,
    Origin,
    Pause,
    Paused,
    Progressed,
    Quarantine,
    Resume,
    Retry,
    Settings,
    Start,
    Started,
    StartFailed,
    Stop,
    StopRequested,
    Tick,
    Unpaused,
    Yield,
)

START_ANSWER_S = 180.0  # an engine answers within its own deadline; this is the net below it
KILL_ANSWER_S = 45.0  # Docker's kill of a stuck container was seen to take 25 s
KILLS = 2  # a kill without an answer is repeated once, then the worker is given up
BACKOFF_S = (1.0, 60.0)  # first and longest wait after a start that failed; doubles in between
CPU_OVER_S = 1.0  # what workers use of the processors is measured over this at least
# With so much of the processors in use by workers the scan is as fast as this host: more workers would only
# cost their starts. The rest goes to the controller, and to what else the host does.
SATURATED = 0.6
STORY = 50  # items kept of each chunk's story
MOUNT_DEAD = "mount dead"


class _Phase(Enum):
    STARTING = auto()
    RUNNING = auto()
    STOPPING = auto()
    KILLING = auto()
    COLLECTING = auto()  # its worker is gone or given up: it holds no slot


@dataclass(slots=True)
class _Run:
    """The current attempt of a chunk."""

    number: int
    phase: _Phase
    since: float  # when the phase began
    seen_at: float  # when the beat last changed
    beat: int | None = None
    entries: int = 0
    shared_at: float | None = None  # when it was last asked to yield
    why: Outcome | None = None  # what it is stopped or killed for
    kills: int = 0
    cpu_s: float = 0.0  # used until `cpu_at`
    cpu_at: float | None = None
    cpus: float = 0.0  # processors in use, lately

    def measure(self, cpu_s: float, now: float) -> None:
        """Note the CPU time it has used so far."""
        over_s = 0.0 if self.cpu_at is None else now - self.cpu_at
        if over_s >= CPU_OVER_S:
            self.cpus = max(0.0, cpu_s - self.cpu_s) / over_s
        elif self.cpu_at is not None:
            return
        self.cpu_s, self.cpu_at = cpu_s, now

    def enter(self, phase: _Phase, now: float) -> None:
        self.phase, self.since = phase, now


@dataclass(slots=True)
class _Chunk:
    """A chunk that is pending (no run) or under way."""

    id: int
    roots: tuple[Root, ...]
    est_bytes: int | None
    est_entries: int | None
    attempts: int
    fails: int
    setbacks: int = 0  # failed attempts and failed starts: it waits behind those that had fewer
    run: _Run | None = None
    story: deque[tuple[float, Event | Command]] = field(default_factory=lambda: deque(maxlen=STORY))

    def rank(self) -> tuple[int, bool, int, int]:
        """Order of starting: largest first, an unknown size may be anything and goes before all."""
        return self.setbacks, self.est_bytes is not None, -(self.est_bytes or 0), self.id

    def remaining(self) -> float:
        """Estimate the entries still to come; unknown counts as endless."""
        if self.est_entries is None or self.run is None:
            return float("inf")
        return max(0, self.est_entries - self.run.entries)


class Supervisor:
    """The state of one scan's chunks and attempts.

    `abandoned` are workers of this mount that an earlier controller gave up and that still live.
    Cost of an event: the attempts under way, not the chunks. Chunks that are done are forgotten.
    """

    def __init__(self, settings: Settings, *, abandoned: int = 0) -> None:
        self.settings = settings
        self._abandoned = abandoned
        self._lost: set[tuple[int, int]] = set()
        self._chunks: dict[int, _Chunk] = {}
        self._runs: dict[int, _Run] = {}  # by chunk
        self._queue: list[tuple[int, bool, int, int]] = []  # heap of the ranks of pending chunks
        self._creating: list[int] = []  # parents of the Creates that are not answered yet
        self._quarantined: dict[int, _Chunk] = {}
        self._outside: str | None = None  # Paused, from the caller
        self._outside_at = 0.0
        self._start_error: str | None = None  # the last start failed
        self._backoff_s = 0.0
        self._retry_at = 0.0
        self._said: str | None = None  # the reason of the last Pause
        self._stopping = False
        self._dead = False
        self._ending: Ending | None = None
        self._out: list[Command] = []

    # What the caller may ask.

    @property
    def running(self) -> int:
        """Count the attempts that hold a slot."""
        return sum(run.phase is not _Phase.COLLECTING for run in self._runs.values())

    @property
    def pending(self) -> int:
        """Count the chunks that wait for a slot."""
        return len(self._queue)

    @property
    def abandoned(self) -> int:
        """Count the workers given up on this mount."""
        return self._abandoned + len(self._lost)

    @property
    def ending(self) -> Ending | None:
        """Give the reason of the End that was commanded, if it was."""
        return self._ending

    def story(self, chunk_id: int) -> list[tuple[float, Event | Command]]:
        """List the last events and commands of a chunk, oldest first; empty for one that is done."""
        chunk = self._chunks.get(chunk_id) or self._quarantined.get(chunk_id)
        return list(chunk.story) if chunk else []

    def wake_at(self, now: float) -> float | None:
        """Say when the next Tick is due; None: nothing changes without another event."""
        if self._ending:
            return None
        times = [] if self._outside else [self._due(run) for run in self._runs.values()]
        if self._may_start():
            times.append(self._retry_at if self._start_error else now)
        if self._may_share():
            times += [self._share_at(run) for run in self._runs.values()]
        if not self._runs and not self._creating and (self._stopping or self._dead or not self._queue):
            times.append(now)
        earliest = min(times, default=float("inf"))
        return None if earliest == float("inf") else max(now, earliest)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event, return what to do, in order. After End every event is ignored."""
        if self._ending:
            return []
        self._out = []
        match event:
            case Added():
                self._add(event, now)
            case Adopted():
                self._adopt(event, now)
            case Created(parent_id):
                if parent_id in self._creating:
                    self._creating.remove(parent_id)
            case Paused(reason):
                self._pause(reason, now)
            case Unpaused():
                self._unpause(now)
            case Delayed(seconds):
                for run in self._runs.values():
                    run.since, run.seen_at = min(now, run.since + seconds), min(now, run.seen_at + seconds)
            case StopRequested():
                self._stop_all(now)
            case Tick():
                pass
            case _:
                self._of_attempt(event, now)
        if not isinstance(event, Added | Adopted):  # more of them may follow, and larger ones
            self._expire(now)
            self._start_or_share(now)
            self._settle(now)
        return self._out

    def validate(self) -> None:
        """Check what must hold between any two events; raises AssertionError."""
        waiting = [rank[-1] for rank in self._queue]
        assert len(set(waiting)) == len(waiting), "a chunk waits twice"
        assert set(waiting) | set(self._runs) == set(self._chunks), "a chunk is neither pending nor under way"
        assert len(waiting) + len(self._runs) == len(self._chunks), "a chunk is pending and under way"
        for chunk_id, run in self._runs.items():
            chunk = self._chunks[chunk_id]
            assert chunk.run is run, self.story(chunk_id)
            assert chunk.attempts == run.number > 0, self.story(chunk_id)
            assert (run.kills > 0) >= (run.phase is _Phase.KILLING), self.story(chunk_id)
            assert run.kills <= KILLS, self.story(chunk_id)
            assert run.why or run.phase not in (_Phase.STOPPING, _Phase.KILLING), self.story(chunk_id)
        assert not set(self._quarantined) & set(self._chunks), "a quarantined chunk goes on"
        assert not (self._ending and (self._runs or self._creating)), "ended with something under way"
        assert not (self._ending and waiting and not self._stopping), "ended with chunks pending"

    # Events.

    def _add(self, event: Added, now: float) -> None:
        if event.chunk_id in self._chunks:
            return
        chunk = self._take(event, event.attempts, now)
        heapq.heappush(self._queue, chunk.rank())

    def _adopt(self, event: Adopted, now: float) -> None:
        if event.chunk_id in self._chunks:
            return
        chunk = self._take(event, event.attempt, now)
        chunk.run = self._runs[chunk.id] = _Run(event.attempt, _Phase.RUNNING, now, now)

    def _take(self, event: Added | Adopted, attempts: int, now: float) -> _Chunk:
        chunk = _Chunk(event.chunk_id, event.roots, event.est_bytes, event.est_entries, attempts, event.fails)
        chunk.setbacks = event.fails
        chunk.story.append((now, event))
        self._chunks[chunk.id] = chunk
        return chunk

    def _of_attempt(self, event: OfAttempt, now: float) -> None:
        chunk = self._chunks.get(event.chunk_id)
        run = chunk.run if chunk else None
        if chunk is None or run is None or run.number != event.attempt:
            if isinstance(event, Started):  # an engine's start that was given up took place after all
                self._say(Kill(event.chunk_id, event.attempt, Outcome.LOST), now)
            return
        if run.phase is _Phase.COLLECTING and not isinstance(event, Collected):
            return
        if not isinstance(event, Progressed):
            chunk.story.append((now, event))
        if isinstance(event, Started | Exited):  # the engine does start workers
            self._start_error, self._backoff_s = None, 0.0
        match event:
            case Started():
                if run.phase is _Phase.STARTING:
                    run.enter(_Phase.RUNNING, now)
                    run.seen_at = now
                elif run.phase is _Phase.KILLING:  # only now is there something to kill
                    self._say(Kill(chunk.id, run.number, run.why or Outcome.LOST), now)
            case StartFailed(message=message):
                self._start_failed(chunk, message, now)
            case Progressed(beat=beat, entries=entries, cpu_s=cpu_s):
                if beat != run.beat:
                    run.beat, run.entries, run.seen_at = beat, entries, now
                    run.measure(cpu_s, now)
            case Exited(oom=oom):
                self._collect(chunk, run, Outcome.OOM if oom and run.why is None else run.why, now)
            case KillReturned(gone=gone):
                if run.phase is _Phase.KILLING and gone:
                    self._collect(chunk, run, run.why, now)
                elif run.phase is _Phase.KILLING and not self._outside:  # of a missing engine it says nothing
                    self._abandon(chunk, run, now)
            case MountUnreachable():
                self._die(now)
                self._collect(chunk, run, Outcome.FAILED, now)
            case Collected():
                if run.phase is _Phase.COLLECTING:
                    self._collected(chunk, run, event, now)

    def _start_failed(self, chunk: _Chunk, message: str, now: float) -> None:
        if not self._stopping and not self._dead:
            if self._start_error is None or now >= self._retry_at:
                self._backoff_s = min(max(BACKOFF_S[0], 2 * self._backoff_s), BACKOFF_S[1])
                self._retry_at = now + self._backoff_s
            self._start_error = message
        chunk.setbacks += 1
        self._requeue(chunk, now)

    def _collected(self, chunk: _Chunk, run: _Run, event: Collected, now: float) -> None:
        # It may also obey the stop of an earlier controller, that this one does not know of.
        obeyed = event.outcome is Outcome.CANCELLED and run.why in (None, Outcome.CANCELLED)
        if event.abandoned:
            self._lose(chunk.id, event.attempt, now)
        if event.dirs or event.stuck or set(event.leftover) != set(chunk.roots):
            if event.leftover:
                self._create(chunk, event.leftover, Origin.LEFTOVER, now)
            self._done(chunk, now)
        elif obeyed or self._stopping or self._dead or self._outside:  # no fault of the chunk
            self._requeue(chunk, now)
        else:
            chunk.fails += 1
            chunk.setbacks += 1
            if chunk.fails < self.settings.fails_to_bisect:
                self._requeue(chunk, now)
            else:
                self._bisect(chunk, event.outcome, now)

    def _pause(self, reason: str, now: float) -> None:
        if self._stopping:
            return
        if self._outside is None:
            self._outside_at = now
        self._outside = reason

    def _unpause(self, now: float) -> None:
        """Go on, and let every clock show what it showed when the pause began."""
        if self._outside is None:
            return
        for run in self._runs.values():
            run.since = now - max(0.0, self._outside_at - run.since)
            run.seen_at = now - max(0.0, self._outside_at - run.seen_at)
        self._outside = None

    def _stop_all(self, now: float) -> None:
        self._unpause(now)
        self._start_error = None
        again, self._stopping = self._stopping, True
        for chunk_id, run in list(self._runs.items()):
            if run.phase in (_Phase.STARTING, _Phase.RUNNING):
                self._stop(self._chunks[chunk_id], run, Outcome.CANCELLED, now)
            elif again and run.phase is _Phase.STOPPING:
                self._kill(self._chunks[chunk_id], run, Outcome.CANCELLED, now)

    # Time.

    def _due(self, run: _Run) -> float:
        """Give the moment at which patience with a phase ends."""
        match run.phase:
            case _Phase.STARTING:
                return run.since + START_ANSWER_S
            case _Phase.RUNNING:
                overdue_s = self.settings.max_attempt_s
                silent_at = run.seen_at + self.settings.silence_s
                return silent_at if overdue_s is None else min(silent_at, run.since + overdue_s)
            case _Phase.STOPPING:
                return run.since + self.settings.stop_grace_s
            case _Phase.KILLING:
                return run.since + KILL_ANSWER_S
            case _Phase.COLLECTING:
                return float("inf")

    def _expire(self, now: float) -> None:
        if self._outside:
            return
        due = [(chunk_id, run) for chunk_id, run in self._runs.items() if now >= self._due(run)]
        for chunk_id, run in due:
            chunk = self._chunks[chunk_id]
            if run.phase is _Phase.STARTING:
                self._start_failed(chunk, f"the engine did not answer for {START_ANSWER_S:.0f} s", now)
            elif run.phase is _Phase.RUNNING and now < run.seen_at + self.settings.silence_s:
                self._stop(chunk, run, Outcome.OVERDUE, now)
            elif run.phase is _Phase.RUNNING:
                self._kill(chunk, run, Outcome.STALLED, now)
            elif run.kills < KILLS:
                self._kill(chunk, run, run.why or Outcome.LOST, now)
            else:
                self._abandon(chunk, run, now)

    # Starting and sharing.

    def _blocked(self) -> bool:
        return self._stopping or self._dead or self._outside is not None

    def _idle(self) -> int:
        """Count the free slots. After a loss no more run than the budget could bear to lose."""
        slots = self.settings.max_containers
        if self.abandoned:
            slots = min(slots, max(1, self.settings.give_up - self.abandoned))
        # A catalogue slower than the workers must not fill the disk with folders to collect.
        return min(slots - self.running, 2 * self.settings.max_containers - len(self._runs))

    def _may_start(self) -> bool:
        if not self._queue or self._blocked() or self._idle() < 1:
            return False
        probing = any(run.phase is _Phase.STARTING for run in self._runs.values())
        return self._start_error is None or not probing

    def _may_share(self) -> bool:
        coming = self._queue or self._creating or self._start_error
        return not coming and not self._blocked() and self._idle() > 0 and not self._saturated()

    def _saturated(self) -> bool:
        """Tell whether the workers use what processors there are."""
        used = sum(run.cpus for run in self._runs.values() if run.phase is _Phase.RUNNING)
        return used >= SATURATED * self.settings.cpus

    def _share_at(self, run: _Run) -> float:
        """Give the moment from which a run may be asked for work."""
        if run.phase is not _Phase.RUNNING:
            return float("inf")
        return (run.since if run.shared_at is None else run.shared_at) + self.settings.share_after_s

    def _start_or_share(self, now: float) -> None:
        while self._may_start() and (self._start_error is None or now >= self._retry_at):
            chunk = self._chunks[heapq.heappop(self._queue)[-1]]
            chunk.attempts += 1
            chunk.run = self._runs[chunk.id] = _Run(chunk.attempts, _Phase.STARTING, now, now)
            self._say(Start(chunk.id, chunk.attempts), now)
        if not self._may_share():
            return
        able = [self._chunks[chunk_id] for chunk_id, run in self._runs.items() if now >= self._share_at(run)]
        able.sort(key=lambda chunk: (-chunk.remaining(), chunk.id))
        for chunk in able[: self._idle()]:
            self._runs[chunk.id].shared_at = now
            self._say(Yield(chunk.id, chunk.attempts), now)

    # The steps of an attempt and the fates of a chunk.

    def _stop(self, chunk: _Chunk, run: _Run, why: Outcome, now: float) -> None:
        run.why = why
        run.enter(_Phase.STOPPING, now)
        self._say(Stop(chunk.id, run.number), now)

    def _kill(self, chunk: _Chunk, run: _Run, why: Outcome, now: float) -> None:
        run.why = why
        run.kills += 1
        run.enter(_Phase.KILLING, now)
        self._say(Kill(chunk.id, run.number, why), now)

    def _abandon(self, chunk: _Chunk, run: _Run, now: float) -> None:
        self._say(Abandon(chunk.id, run.number), now)
        self._lose(chunk.id, run.number, now)
        self._collect(chunk, run, Outcome.LOST, now)

    def _collect(self, chunk: _Chunk, run: _Run, hint: Outcome | None, now: float) -> None:
        run.enter(_Phase.COLLECTING, now)
        self._say(Collect(chunk.id, run.number, hint), now)

    def _lose(self, chunk_id: int, attempt: int, now: float) -> None:
        self._lost.add((chunk_id, attempt))
        if self.abandoned >= self.settings.give_up:
            self._die(now)

    def _die(self, now: float) -> None:
        if not self._dead:
            self._dead, self._start_error = True, None
            self._say(MountDead(), now)

    def _requeue(self, chunk: _Chunk, now: float) -> None:
        chunk.run = None
        del self._runs[chunk.id]
        heapq.heappush(self._queue, chunk.rank())
        self._say(Retry(chunk.id, chunk.fails), now)

    def _create(self, chunk: _Chunk, roots: Sequence[Root], origin: Origin, now: float) -> None:
        self._creating.append(chunk.id)
        self._say(Create(chunk.id, tuple(roots), origin), now)

    def _bisect(self, chunk: _Chunk, outcome: Outcome, now: float) -> None:
        """Cut a chunk that brings nothing until what is bad stands alone."""
        half = len(chunk.roots) // 2
        if half:
            self._create(chunk, chunk.roots[:half], Origin.BISECT, now)
            self._create(chunk, chunk.roots[half:], Origin.BISECT, now)
            self._done(chunk, now)
        elif chunk.roots[0].scope is Scope.SUBTREE:
            self._create(chunk, [Root(chunk.roots[0].path, Scope.FILES)], Origin.BISECT, now)
            self._done(chunk, now)
        else:
            self._quarantine(chunk, f"{chunk.fails} attempts brought nothing, the last one: {outcome}", now)

    def _done(self, chunk: _Chunk, now: float) -> None:
        self._say(Done(chunk.id), now)
        self._runs.pop(chunk.id)
        del self._chunks[chunk.id]

    def _quarantine(self, chunk: _Chunk, reason: str, now: float) -> None:
        self._say(Quarantine(chunk.id, reason), now)
        self._runs.pop(chunk.id, None)
        self._quarantined[chunk.id] = self._chunks.pop(chunk.id)

    def _settle(self, now: float) -> None:
        """Say whether the scan waits, and end it when nothing is left to wait for."""
        reason = self._outside or self._start_error
        if reason != self._said:
            self._said = reason
            self._say(Pause(reason) if reason else Resume(), now)
        if self._runs or self._creating:
            return
        if self._stopping:
            self._end(Ending.CANCELLED, now)
        elif self._dead:
            for rank in sorted(self._queue):
                self._quarantine(self._chunks[rank[-1]], MOUNT_DEAD, now)
            self._queue.clear()
            self._end(Ending.MOUNT_DEAD, now)
        elif not self._queue:
            self._end(Ending.DONE, now)

    def _end(self, ending: Ending, now: float) -> None:
        self._ending = ending
        self._say(End(ending), now)

    def _say(self, command: Command, now: float) -> None:
        self._out.append(command)
        chunk_id = command.parent_id if isinstance(command, Create) else getattr(command, "chunk_id", None)
        chunk = self._chunks.get(chunk_id) if chunk_id is not None else None
        if chunk is not None:
            chunk.story.append((now, command))
