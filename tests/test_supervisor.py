"""The supervisor: each rule as a scenario, and all of them in thousands of random histories.

SMART_SCAN_HISTORIES sets how many histories, SMART_SCAN_SEED the first seed (to see one again).
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random

import pytest

from smartscan.model import Outcome, Root, Scope, join
from smartscan.plan import pack
from smartscan.supervisor import (
    MOUNT_DEAD,
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
    Supervisor,
    Tick,
    Unpaused,
    Yield,
)

A, B, C, D = (Root(name) for name in (b"a", b"b", b"c", b"d"))
A_FILES = Root(b"a", Scope.FILES)
SILENCE_S = 95.0  # for stall_s=60


class Desk:
    """A supervisor with a clock, for scenarios."""

    def __init__(self, max_containers: int = 1, *, abandoned: int = 0, share_after_s: float = 1e9,
                 max_attempt_s: float | None = None, give_up: int = 8, cpus: float = 2) -> None:  # fmt: skip
        settings = Settings(
            max_containers, 60, max_attempt_s=max_attempt_s, give_up=give_up, share_after_s=share_after_s,
            cpus=cpus,
        )  # fmt: skip
        self.supervisor = Supervisor(settings, abandoned=abandoned)
        self.now = 1000.0

    def __call__(self, *events: Event) -> list[Command]:
        commands = []
        for event in events:
            commands += self.supervisor.handle(event, self.now)
            self.supervisor.validate()
        return commands

    def later(self, seconds: float) -> list[Command]:
        self.now += seconds
        return self(Tick())

    def sleep(self) -> list[Command]:
        """Sleep until the supervisor wants to be woken."""
        wake_at = self.supervisor.wake_at(self.now)
        assert wake_at is not None
        self.now = wake_at
        return self(Tick())

    def start(self, chunk_id: int = 1, roots: tuple[Root, ...] = (A,)) -> None:
        """Bring a chunk to where its first worker runs."""
        assert self(Added(chunk_id, roots), Tick()) == [Start(chunk_id, 1)]
        assert self(Started(chunk_id, 1)) == []

    def fail(self, chunk_id: int, attempt: int, roots: tuple[Root, ...]) -> list[Command]:
        """Let a running attempt crash with nothing done."""
        assert self(Exited(chunk_id, attempt)) == [Collect(chunk_id, attempt, None)]
        return self(Collected(chunk_id, attempt, Outcome.FAILED, leftover=roots))


# Starting.


def test_largest_first_and_unknown_before_all() -> None:
    desk = Desk(5)
    sizes = {1: 10, 2: 30, 3: None, 4: 30, 5: 0}
    assert desk(*[Added(n, (Root(b"%d" % n),), size) for n, size in sizes.items()]) == []
    assert desk(Tick()) == [Start(n, 1) for n in (3, 2, 4, 1, 5)]


def test_never_more_than_max_containers() -> None:
    desk = Desk(2)
    desk(*[Added(n, (A,)) for n in range(1, 5)])
    assert desk(Tick()) == [Start(1, 1), Start(2, 1)]
    assert desk(Started(1, 1), Started(2, 1), Tick()) == []
    assert desk(Exited(1, 1)) == [Collect(1, 1, None), Start(3, 1)]  # its slot is free once it is gone


def test_workers_wait_for_the_catalogue() -> None:
    desk = Desk(1)
    desk(*[Added(n, (A,)) for n in range(1, 5)])
    desk(Tick(), Started(1, 1))
    assert desk(Exited(1, 1)) == [Collect(1, 1, None), Start(2, 1)]
    assert desk(Exited(2, 1)) == [Collect(2, 1, None)]
    assert desk(Collected(1, 1, Outcome.SEALED, dirs=1)) == [Done(1), Start(3, 1)]


def test_a_scan_without_chunks_ends() -> None:
    assert Desk()(Tick()) == [End(Ending.DONE)]


def test_attempt_numbers_go_on_after_a_restart() -> None:
    desk = Desk()
    assert desk(Added(1, (A,), attempts=3, fails=1), Tick()) == [Start(1, 4)]
    desk(Started(1, 4))
    assert desk.fail(1, 4, (A,))[0] == Create(1, (A_FILES,), Origin.BISECT)  # the second in a row


def test_a_found_worker_is_adopted_and_counts() -> None:
    desk = Desk()
    assert desk(Adopted(1, 2, (A,)), Added(2, (B,)), Tick()) == []
    assert desk(Exited(1, 2), Collected(1, 2, Outcome.SEALED, dirs=4))[:3] == [
        Collect(1, 2, None),
        Start(2, 1),
        Done(1),
    ]


# Failing to start.


def test_a_failed_start_burns_no_attempt_and_pauses_with_backoff() -> None:
    desk = Desk(2)
    desk(Added(1, (A,), 9), Added(2, (B,), 8), Tick())
    assert desk(StartFailed(1, 1, "no engine")) == [Retry(1, 0), Pause("no engine")]
    assert desk(StartFailed(2, 1, "no engine")) == [Retry(2, 0)]
    waits = []
    for attempt in range(8):
        before = desk.now
        assert desk.sleep() == [Start(1 + attempt % 2, 2 + attempt // 2)]  # one at a time, in turn
        waits.append(desk.now - before)
        assert desk(StartFailed(1 + attempt % 2, 2 + attempt // 2, "no engine")) == [
            Retry(1 + attempt % 2, 0)
        ]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert desk.sleep() == [Start(1, 6)]
    assert desk.later(50) == []
    assert desk(Started(1, 6)) == [Start(2, 6), Resume()]
    assert desk(StartFailed(2, 6, "no engine")) == [Retry(2, 0), Pause("no engine")]
    assert desk.supervisor.wake_at(desk.now) == desk.now + 1  # all is forgiven


def test_a_start_without_an_answer_is_a_failed_start_and_fenced() -> None:
    desk = Desk()
    desk(Added(1, (A,)), Tick())
    assert desk.sleep() == [Retry(1, 0), Pause("the engine did not answer for 180 s")]
    assert desk.sleep() == [Start(1, 2)]
    assert desk(Started(1, 1)) == [Kill(1, 1, Outcome.LOST)]  # it took place after all
    assert desk(KillReturned(1, 1, gone=True), Exited(1, 1), Progressed(1, 1, 5)) == []
    assert desk(Started(1, 2)) == [Resume()]


# What an attempt brought.


def test_leftover_becomes_chunks_and_the_end_waits_for_them() -> None:
    desk = Desk()
    desk.start()
    desk(Exited(1, 1))
    leftover = (Root(b"a/x"), Root(b"a/y"))
    assert desk(Collected(1, 1, Outcome.SEALED, entries=9, dirs=3, leftover=leftover)) == [
        Create(1, leftover, Origin.LEFTOVER),
        Done(1),
    ]
    assert desk(Added(2, leftover)) == []
    assert desk(Created(1)) == [Start(2, 1)]
    assert desk(Started(2, 1), Exited(2, 1)) == [Collect(2, 1, None)]
    assert desk(Collected(2, 1, Outcome.SEALED, leftover=(B,))) == [Create(2, (B,), Origin.LEFTOVER), Done(2)]
    assert desk(Tick()) == []
    assert desk(Created(2)) == [End(Ending.DONE)]  # other chunks held it
    assert desk(Tick(), Added(3, (C,)), StopRequested()) == []


@pytest.mark.parametrize(
    "brought", [{"dirs": 1}, {"stuck": 1}, {"leftover": (Root(b"a/x"),)}, {"leftover": ()}], ids=str
)
def test_anything_brought_is_progress(brought: dict[str, object]) -> None:
    desk = Desk()
    desk.start()
    desk(Exited(1, 1))
    collected = Collected(1, 1, Outcome.FAILED, **({"leftover": (A,)} | brought))  # type: ignore[arg-type]
    assert Done(1) in desk(collected)


def test_without_progress_it_is_tried_again_behind_the_others() -> None:
    desk = Desk()
    desk(Added(1, (A,), 90), Added(2, (B,), 80), Tick(), Started(1, 1))
    assert desk(Exited(1, 1)) == [Collect(1, 1, None), Start(2, 1)]
    assert desk(Collected(1, 1, Outcome.FAILED, leftover=(A,))) == [Retry(1, 1)]
    desk(Added(3, (C,), 1))
    assert desk(Exited(2, 1)) == [Collect(2, 1, None), Start(3, 1)]


def test_a_chunk_that_brings_nothing_is_bisected_to_the_bad_directory() -> None:
    desk = Desk()
    roots = (A, B, C)
    desk.start(1, roots)
    assert desk.fail(1, 1, roots) == [Retry(1, 1), Start(1, 2)]
    desk(Started(1, 2))
    assert desk.fail(1, 2, roots) == [
        Create(1, (A,), Origin.BISECT),
        Create(1, (B, C), Origin.BISECT),
        Done(1),
    ]
    desk(Added(2, (A,)), Created(1))
    assert desk(Added(3, (B, C)), Created(1), Started(2, 1)) == []
    desk(Exited(2, 1))  # 3 starts
    assert desk(Collected(2, 1, Outcome.FAILED, leftover=(A,))) == [Retry(2, 1)]
    desk(Started(3, 1), Exited(3, 1), Collected(3, 1, Outcome.SEALED, dirs=2), Started(2, 2))
    assert desk.fail(2, 2, (A,)) == [Create(2, (A_FILES,), Origin.BISECT), Done(2)]
    assert desk(Added(4, (A_FILES,)), Created(2)) == [Start(4, 1)]
    desk(Started(4, 1))
    assert desk.fail(4, 1, (A_FILES,)) == [Retry(4, 1), Start(4, 2)]
    desk(Started(4, 2), Exited(4, 2, oom=True))
    assert desk(Collected(4, 2, Outcome.OOM, leftover=(A_FILES,))) == [
        Quarantine(4, "2 attempts brought nothing, the last one: oom"),
        End(Ending.DONE),
    ]
    assert [item for _, item in desk.supervisor.story(4)][:3] == [
        Added(4, (A_FILES,)),
        Start(4, 1),
        Started(4, 1),
    ]


def test_out_of_memory_is_a_hint_and_not_for_a_killed_one() -> None:
    desk = Desk()
    desk.start()
    assert desk(Exited(1, 1, oom=True)) == [Collect(1, 1, Outcome.OOM)]
    desk = Desk()
    desk.start()
    desk.later(SILENCE_S)
    assert desk(Exited(1, 1, oom=True)) == [Collect(1, 1, Outcome.STALLED)]


def test_late_events_are_ignored() -> None:
    desk = Desk()
    desk.start()
    desk.fail(1, 1, (A,))
    late: list[Event] = [
        Exited(1, 1),
        Progressed(1, 1, 3),
        KillReturned(1, 1, False),
        Collected(1, 1, Outcome.SEALED, dirs=1),
    ]
    late += [StartFailed(1, 1, "late"), MountUnreachable(1, 1), Exited(7, 1), Exited(1, 3)]
    assert desk(*late) == []
    assert desk(Started(1, 2), Exited(1, 2)) == [Collect(1, 2, None)]
    assert desk(Exited(1, 2), Started(1, 2), Progressed(1, 2, 1), KillReturned(1, 2, True)) == []


# Silence.


def test_stalled_means_no_beat_however_long_it_takes() -> None:
    desk = Desk()
    desk.start()
    for beat in range(50):
        desk.now += SILENCE_S - 1
        assert desk(Progressed(1, 1, beat)) == []
    assert desk.supervisor.wake_at(desk.now) == desk.now + SILENCE_S
    desk.now += SILENCE_S - 1
    assert desk(Progressed(1, 1, 49, entries=50)) == []  # the same beat is no progress
    assert desk.later(1) == [Kill(1, 1, Outcome.STALLED)]
    assert desk(KillReturned(1, 1, gone=True)) == [Collect(1, 1, Outcome.STALLED)]


def test_overdue_is_stopped_politely_then_killed() -> None:
    desk = Desk(max_attempt_s=50)
    desk.start()
    assert desk.later(50) == [Stop(1, 1)]
    assert desk.sleep() == [Kill(1, 1, Outcome.OVERDUE)]
    assert desk.now == 1060
    assert desk(Exited(1, 1)) == [Collect(1, 1, Outcome.OVERDUE)]


def test_a_worker_that_will_not_die_is_abandoned_and_its_slot_is_free() -> None:
    desk = Desk()
    desk.start()
    desk(Added(2, (B,)))
    assert desk.later(SILENCE_S) == [Kill(1, 1, Outcome.STALLED)]
    assert desk(KillReturned(1, 1, gone=False)) == [
        Abandon(1, 1),
        Collect(1, 1, Outcome.LOST),
        Start(2, 1),
    ]
    assert desk(Exited(1, 1), Progressed(1, 1, 99)) == []
    assert desk(Collected(1, 1, Outcome.LOST, dirs=5, leftover=(C,), abandoned=True)) == [
        Create(1, (C,), Origin.LEFTOVER),
        Done(1),
    ]
    assert desk.supervisor.abandoned == 1  # the same worker, told twice


def test_a_kill_without_an_answer_is_repeated_once() -> None:
    desk = Desk()
    desk.start()
    assert desk.sleep() == [Kill(1, 1, Outcome.STALLED)]
    assert desk.sleep() == [Kill(1, 1, Outcome.STALLED)]
    assert desk.sleep() == [Abandon(1, 1), Collect(1, 1, Outcome.LOST)]
    assert desk.now == 1000 + SILENCE_S + 45 + 45


# The mount.


def test_the_budget_of_abandoned_workers() -> None:
    desk = Desk(3, give_up=3)
    desk(*[Added(n, (Root(b"%d" % n),)) for n in range(1, 7)])
    desk(Tick(), *[Started(n, 1) for n in (1, 2, 3)])
    desk(Exited(1, 1))
    desk(Collected(1, 1, Outcome.SEALED, dirs=1, stuck=1, abandoned=True))
    assert desk(Exited(2, 1)) == [Collect(2, 1, None)]  # 3 and 4 run: no more than may still be lost
    assert desk(Collected(2, 1, Outcome.SEALED, dirs=1, abandoned=True)) == [Done(2)]
    assert desk(Exited(3, 1)) == [Collect(3, 1, None)]
    desk(Started(4, 1), Collected(3, 1, Outcome.SEALED, dirs=1))
    assert desk.later(SILENCE_S) == [Kill(4, 1, Outcome.STALLED)]
    assert desk(KillReturned(4, 1, False)) == [Abandon(4, 1), MountDead(), Collect(4, 1, Outcome.LOST)]
    assert desk(Collected(4, 1, Outcome.LOST, leftover=(Root(b"4"),))) == [
        Retry(4, 0),
        *[Quarantine(n, MOUNT_DEAD) for n in (4, 5, 6)],
        End(Ending.MOUNT_DEAD),
    ]


def test_a_mount_that_cannot_be_opened_is_dead_and_the_others_end_in_peace() -> None:
    desk = Desk(2)
    desk(*[Added(n, (A,)) for n in (1, 2, 3)])
    desk(Tick(), Started(1, 1), Started(2, 1))
    assert desk(MountUnreachable(1, 1)) == [MountDead(), Collect(1, 1, Outcome.FAILED)]
    assert desk(Collected(1, 1, Outcome.FAILED, leftover=(A,))) == [Retry(1, 0)]
    assert desk(Exited(2, 1)) == [Collect(2, 1, None)]
    assert desk(Collected(2, 1, Outcome.SEALED, dirs=1, leftover=(B,))) == [
        Create(2, (B,), Origin.LEFTOVER),
        Done(2),
    ]
    assert desk(Added(4, (B,)), Created(2)) == [
        *[Quarantine(n, MOUNT_DEAD) for n in (1, 3, 4)],
        End(Ending.MOUNT_DEAD),
    ]


# The user, the disk, the engine.


def test_a_stop_is_polite_first() -> None:
    desk = Desk(2)
    desk(Added(1, (A,)), Added(2, (B,)), Added(3, (C,)), Tick(), Started(1, 1), Started(2, 1))
    assert desk(StopRequested()) == [Stop(1, 1), Stop(2, 1)]
    assert desk(Exited(1, 1)) == [Collect(1, 1, Outcome.CANCELLED)]
    assert desk(Collected(1, 1, Outcome.CANCELLED, leftover=(A,))) == [Retry(1, 0)]  # no fault of it
    assert desk.sleep() == [Kill(2, 1, Outcome.CANCELLED)]
    assert desk.now == 1010
    assert desk(KillReturned(2, 1, True)) == [Collect(2, 1, Outcome.CANCELLED)]
    assert desk(Collected(2, 1, Outcome.CANCELLED, dirs=1)) == [Done(2), End(Ending.CANCELLED)]
    assert desk.supervisor.pending == 2


def test_a_worker_that_obeyed_an_earlier_controllers_stop_has_not_failed() -> None:
    desk = Desk()
    desk(Adopted(1, 1, (A,), fails=1), Exited(1, 1))
    assert desk(Collected(1, 1, Outcome.CANCELLED, leftover=(A,))) == [Retry(1, 1), Start(1, 2)]
    desk = Desk(max_attempt_s=50)
    desk.start()
    desk.later(50)
    desk(Exited(1, 1))
    assert desk(Collected(1, 1, Outcome.CANCELLED, leftover=(A,))) == [Retry(1, 1), Start(1, 2)]


def test_a_second_stop_kills_at_once_also_what_is_starting() -> None:
    desk = Desk()
    desk(Added(1, (A,)), Tick())
    assert desk(StopRequested()) == [Stop(1, 1)]
    assert desk(StopRequested()) == [Kill(1, 1, Outcome.CANCELLED)]
    assert desk(Started(1, 1)) == [Kill(1, 1, Outcome.CANCELLED)]  # only now is there something to kill
    assert desk(KillReturned(1, 1, True)) == [Collect(1, 1, Outcome.CANCELLED)]


def test_a_start_that_fails_during_a_stop_pauses_nothing() -> None:
    desk = Desk()
    desk(Added(1, (A,)), Tick(), StopRequested())
    assert desk(StartFailed(1, 1, "no")) == [Retry(1, 0), End(Ending.CANCELLED)]


def test_a_pause_stops_the_clocks_and_burns_no_attempt() -> None:
    desk = Desk(3)
    desk(Added(1, (A,)), Added(2, (B,)), Tick(), Started(1, 1), Started(2, 1), Added(3, (C,)))
    desk.now += SILENCE_S - 5
    assert desk(Paused("engine gone")) == [Pause("engine gone")]
    assert desk.supervisor.wake_at(desk.now) is None
    assert desk.later(9999) == []
    assert desk(Exited(2, 1), Collected(2, 1, Outcome.FAILED, leftover=(B,))) == [
        Collect(2, 1, None),
        Retry(2, 0),
    ]
    assert desk(Paused("still gone")) == [Pause("still gone")]
    assert desk(Unpaused()) == [Start(2, 2), Start(3, 1), Resume()]
    assert desk.later(4) == []
    assert desk.later(1) == [Kill(1, 1, Outcome.STALLED)]


def test_what_a_late_caller_did_not_see_is_held_against_nobody() -> None:
    desk = Desk(2)
    desk(Added(1, (A,)), Added(2, (B,)), Tick(), Started(1, 1), Started(2, 1))
    desk.now += 2 * SILENCE_S  # a write to the catalogue took so long
    assert desk(Delayed(2 * SILENCE_S)) == []
    assert desk(Progressed(1, 1, 1, 10)) == []
    assert desk.later(SILENCE_S - 1) == []
    assert desk.later(1) == [Kill(1, 1, Outcome.STALLED), Kill(2, 1, Outcome.STALLED)]


def test_without_an_engine_a_kill_proves_nothing() -> None:
    desk = Desk()
    desk.start()
    desk.later(SILENCE_S)
    assert desk(Paused("engine gone"), KillReturned(1, 1, False)) == [Pause("engine gone")]
    desk.now += 1000
    assert desk(Unpaused()) == [Resume()]
    assert desk.sleep() == [Kill(1, 1, Outcome.STALLED)]


def test_a_stop_ends_a_pause() -> None:
    desk = Desk()
    desk.start()
    desk(Paused("disk full"))
    assert desk(StopRequested(), Paused("disk full")) == [Stop(1, 1), Resume()]


# Sharing.


def test_idle_slots_ask_the_one_with_most_to_do() -> None:
    desk = Desk(3, share_after_s=10)
    desk(Added(1, (A,), 5, 100), Added(2, (B,), 9, 90), Tick(), Started(1, 1), Started(2, 1))
    desk(Progressed(1, 1, 1, entries=80))
    assert desk.later(9) == []
    assert desk.sleep() == [Yield(2, 1)]
    assert desk.now == 1010
    assert desk(Tick()) == [Yield(1, 1)]  # one at a time for one idle slot, each no more often than this
    assert desk(Added(3, (C,)), Tick()) == [Start(3, 1)]
    assert desk.later(30) == []  # no slot is idle
    assert desk(Exited(1, 1)) == [Collect(1, 1, None), Yield(2, 1)]


def test_nothing_is_asked_while_workers_use_the_processors() -> None:
    desk = Desk(3, share_after_s=10, cpus=2)
    desk(Added(1, (A,)), Added(2, (B,)), Tick(), Started(1, 1), Started(2, 1))
    for second in range(1, 21):  # together 1.3 processors of 2
        desk.now += 1
        assert desk(Progressed(1, 1, second, cpu_s=0.9 * second)) == []
        assert desk(Progressed(2, 1, second, cpu_s=0.4 * second)) == []
    asked = []
    for second in range(21, 24):  # the first has its directories from a disk now
        desk.now += 1
        asked += desk(Progressed(1, 1, second, cpu_s=18), Progressed(2, 1, second, cpu_s=0.4 * second))
    assert asked == [Yield(1, 1), Yield(2, 1)]


def test_nothing_is_asked_while_chunks_wait() -> None:
    desk = Desk(1, share_after_s=10)
    desk.start()
    desk(Added(2, (B,)))
    assert desk.later(50) == []
    assert desk.supervisor.wake_at(desk.now) == 1000 + SILENCE_S


def test_nothing_is_asked_while_chunks_are_being_made() -> None:
    desk = Desk(2, share_after_s=10)
    desk(Added(1, (A,)), Added(2, (B,)), Tick(), Started(1, 1), Started(2, 1))
    desk.now += 20
    assert desk(Exited(1, 1)) == [Collect(1, 1, None), Yield(2, 1)]
    desk(Collected(1, 1, Outcome.SEALED, dirs=1, leftover=(C,)))
    assert desk.later(20) == []
    assert desk(Created(1)) == [Yield(2, 1)]


# Random histories.


class Bad(Enum):
    """What a directory does to who reads it."""

    STUCK = auto()  # the worker itself judges it stuck and goes on
    STUCK_HARD = auto()  # as well, but a process of the worker never ends
    HANG = auto()  # the worker falls silent
    WEDGE = auto()  # and cannot be killed either
    CRASH = auto()
    OOM = auto()


@dataclass
class Record:
    """A chunk as the catalogue has it."""

    roots: tuple[Root, ...]
    state: str = "pending"
    attempts: int = 0
    fails: int = 0
    size: int | None = None
    reason: str = ""


@dataclass
class Worker:
    """One worker and its folder."""

    chunk_id: int
    attempt: int
    todo: list[Root]
    beat: int = 0
    listed: list[bytes] = field(default_factory=list)
    sealed: int = 0  # how many of them a salvage finds
    given: set[Root] = field(default_factory=set)
    stuck: set[bytes] = field(default_factory=set)
    hung: Bad | None = None
    exited: bool = False
    oom: bool = False
    abandoned: bool = False
    stopped: bool = False
    obeyed: bool = False
    asked: bool = False


def parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


class World:
    """A share, an engine, a catalogue and a controller, all of them with bad luck."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, Random(seed)
        random = self.random
        self.now = 1000.0
        self.order = 0
        self.generation = 0  # of the controller
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.tree: dict[bytes, list[bytes]] = {b"": []}
        for n in range(random.randint(0, 20)):
            above = random.choice(list(self.tree))
            path = join(above, b"%d" % n)
            self.tree[above].append(path)
            self.tree[path] = []
        bad = random.sample(list(self.tree), min(len(self.tree) - 1, random.choice((0, 0, 1, 1, 2, 4))))
        self.bad = {path: random.choice(list(Bad)) for path in bad}
        self.luck = random.choice((0.0, 0.0, 0.05, 0.2))  # how often the engine fails
        self.kills = random.choice((0, 0, 1))  # workers killed by a stranger
        self.restarts = random.choice((0, 0, 0, 1, 3))
        self.cancels = random.choice((0, 0, 0, 1))
        self.pauses = random.choice((0, 0, 1, 2))
        self.mount_dies_at = random.choice((1e12,) * 9 + (random.uniform(1000, 1100),))
        self.limit = random.choice((3, 5, 100))  # directories of one attempt
        self.settings = Settings(
            random.randint(1, 4), 10, random.choice((None, 60)), random.choice((1, 3, 50)), share_after_s=4
        )
        self.chunks: dict[int, Record] = {}
        self.workers: dict[tuple[int, int], Worker] = {}
        self.catalogue: dict[bytes, tuple[int, int]] = {}
        self.stuck: set[bytes] = set()
        self.abandons: set[tuple[int, int]] = set()
        self.paused = False
        self.taking_over = False
        self.ending: Ending | None = None
        self.said_dead = False
        self.told: list[tuple[float, Event | Command]] = []
        self.supervisor = Supervisor(self.settings)
        top = self.tree[b""]
        if random.random() < 0.5 or not top:
            self.persist([(Root(b""),)])
        else:  # planned of what the last scan knew
            known = random.sample(top, random.randint(1, len(top)))
            parts = pack([Root(path) for path in known], parts=random.randint(1, 4))
            self.persist([(Root(b"", Scope.FILES),), *parts])
        for record in self.chunks.values():
            record.size = random.choice((None, 1, 50))

    # The share and the folders.

    def persist(self, parts: Iterable[tuple[Root, ...]]) -> list[int]:
        ids = []
        for roots in parts:
            ids.append(len(self.chunks) + 1)
            self.chunks[ids[-1]] = Record(roots)
        return ids

    def step(self, worker: Worker) -> None:
        """Let a worker list one directory."""
        if worker.exited or worker.hung:
            return
        worker.beat += 1
        if worker.asked and len(worker.todo) > 1:
            worker.asked = False
            self.hand_over(worker)
        if worker.stopped or not worker.todo or len(worker.listed) >= self.limit:
            worker.sealed, worker.obeyed = len(worker.listed), worker.stopped
            self.exit(worker)
            return
        root = worker.todo.pop(0)
        bad = self.bad.get(root.path)
        if root.path in self.stuck:  # told never to touch it
            worker.stuck.add(root.path)
        elif bad in (Bad.STUCK, Bad.STUCK_HARD):
            worker.stuck.add(root.path)
            worker.abandoned |= bad is Bad.STUCK_HARD
        elif bad in (Bad.HANG, Bad.WEDGE):
            worker.hung = bad
            worker.sealed = self.random.randint(worker.sealed, len(worker.listed))
            return
        elif bad or (self.kills and self.random.random() < 0.1):
            self.kills -= not bad
            worker.sealed = self.random.randint(worker.sealed, len(worker.listed))
            worker.oom = bad is Bad.OOM
            self.exit(worker)
            return
        else:
            worker.listed.append(root.path)
            if root.scope is Scope.SUBTREE:
                worker.todo[:0] = [Root(path) for path in self.tree[root.path]]
        if not self.paused:
            self.tell(0, Progressed(worker.chunk_id, worker.attempt, worker.beat, len(worker.listed)))
        self.after(self.random.choice((0.1, 1, 7)), lambda: self.step(worker))

    def hand_over(self, worker: Worker) -> None:
        """Give half back; the controller sees it later, or finds it when it collects."""
        half = worker.todo[(len(worker.todo) + 1) // 2 :]
        if (worker.chunk_id, worker.attempt) in self.abandons or not self.current(worker):
            return
        worker.sealed = len(worker.listed)
        del worker.todo[-len(half) :]
        worker.given.update(half)
        for chunk_id in self.persist([tuple(half)]):
            self.tell(0, Added(chunk_id, self.chunks[chunk_id].roots))
        self.tell(0, Tick())

    def current(self, worker: Worker) -> bool:
        record = self.chunks[worker.chunk_id]
        return record.state == "running" and record.attempts == worker.attempt

    def exit(self, worker: Worker) -> None:
        worker.exited = True
        self.tell(self.random.choice((0, 1)), Exited(worker.chunk_id, worker.attempt, worker.oom))

    def leftover(self, worker: Worker) -> list[Root]:
        """Work out what of a chunk is neither sealed, stuck nor given to others."""
        sealed = set(worker.listed[: worker.sealed])
        rest, walk = [], list(self.chunks[worker.chunk_id].roots)
        while walk:
            root = walk.pop()
            if root in worker.given or root.path in worker.stuck:
                continue
            if root.path not in sealed:
                rest.append(root)
            elif root.scope is Scope.SUBTREE:
                walk += [Root(path) for path in self.tree[root.path]]
            else:
                rest += [Root(path) for path in self.tree[root.path]]
        return rest

    # The controller.

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.queue, (self.now + seconds, self.order, action))

    def tell(self, seconds: float, event: Event) -> None:
        """Send an event to the controller of now; one started later does not get it."""
        generation = self.generation
        self.after(seconds, lambda: self.handle(event) if generation == self.generation else None)

    def handle(self, event: Event) -> None:
        self.told.append((self.now, event))
        for command in self.supervisor.handle(event, self.now):
            self.told.append((self.now, command))
            self.obey(command)
        self.supervisor.validate()
        running = [worker for worker in self.workers.values() if self.current(worker) and not worker.exited]
        running = [w for w in running if (w.chunk_id, w.attempt) not in self.abandons]
        assert len(running) <= self.settings.max_containers
        assert self.taking_over or self.supervisor.running <= self.settings.max_containers

    def obey(self, command: Command) -> None:
        random = self.random
        match command:
            case Start(chunk_id, attempt):
                record = self.chunks[chunk_id]
                assert record.state == "pending"
                assert attempt > record.attempts
                record.state, record.attempts = "running", attempt
                if random.random() < self.luck:
                    if random.random() < 0.5:
                        self.tell(random.choice((0, 1)), StartFailed(chunk_id, attempt, "no engine"))
                    else:  # it hangs and takes place in the end
                        self.after(random.choice((170, 200)), lambda: self.begin(chunk_id, attempt))
                elif self.now > self.mount_dies_at:
                    self.tell(0.5, Started(chunk_id, attempt))
                    self.tell(1, MountUnreachable(chunk_id, attempt))
                else:
                    self.after(random.choice((0, 1)), lambda: self.begin(chunk_id, attempt))
            case Yield(chunk_id, attempt):
                self.workers[chunk_id, attempt].asked = True
            case Stop(chunk_id, attempt):
                if (chunk_id, attempt) in self.workers:
                    self.workers[chunk_id, attempt].stopped = True
            case Kill(chunk_id, attempt, why):
                self.kill(chunk_id, attempt, why)
            case Collect(chunk_id, attempt, hint):
                assert self.chunks[chunk_id].attempts == attempt
                self.tell_later(random.choice((0, 3)), lambda: self.collect(chunk_id, attempt, hint))
            case Abandon(chunk_id, attempt):
                self.abandons.add((chunk_id, attempt))
                self.tell(random.choice((1, 50)), Exited(chunk_id, attempt))  # it wakes up, too late
                self.tell(random.choice((1, 50)), Progressed(chunk_id, attempt, 10**6))
            case Create(parent_id, roots, origin):
                held = self.held(parent_id)
                found = {r.path for r in self.chunks[parent_id].roots if r.scope is Scope.FILES}
                kept = [r for r in roots if r.path not in held or not r.path or parent(r.path) not in found]
                parts = random.randint(1, 3) if origin is Origin.LEFTOVER else 1
                ids = self.persist(pack(kept, parts=parts))
                self.chunks[parent_id].state = "done"
                delay = random.choice((0, 0.5))
                for chunk_id in ids:
                    self.tell(delay, Added(chunk_id, self.chunks[chunk_id].roots))
                self.tell(delay, Created(parent_id))
            case Retry(chunk_id, fails):
                self.chunks[chunk_id].state, self.chunks[chunk_id].fails = "pending", fails
            case Done(chunk_id):
                self.chunks[chunk_id].state = "done"
            case Quarantine(chunk_id, reason):
                self.chunks[chunk_id].state, self.chunks[chunk_id].reason = "quarantined", reason
            case MountDead():
                self.said_dead = True
            case End(ending):
                self.ending = ending
            case Pause() | Resume():
                pass

    def held(self, parent_id: int) -> set[bytes]:
        """List what a FILES root may find although others have it; only its finds are looked up here."""
        others = [r for n, r in self.chunks.items() if n != parent_id and r.state != "done"]
        return {root.path for record in others for root in record.roots} | set(self.catalogue) | self.stuck

    def tell_later(self, seconds: float, action: Callable[[], None]) -> None:
        generation = self.generation
        self.after(seconds, lambda: action() if generation == self.generation else None)

    def begin(self, chunk_id: int, attempt: int) -> None:
        """Let the engine start a worker."""
        record = self.chunks[chunk_id]
        worker = Worker(chunk_id, attempt, list(record.roots))
        self.tell(self.random.choice((0, 0, 1)), Started(chunk_id, attempt))
        if not self.current(worker):  # fenced
            return
        self.workers[chunk_id, attempt] = worker
        self.after(0.5, lambda: self.step(worker))

    def kill(self, chunk_id: int, attempt: int, why: Outcome) -> None:
        worker = self.workers.get((chunk_id, attempt))
        if worker is None:
            if self.random.random() < 0.5:
                self.tell(0.5, KillReturned(chunk_id, attempt, False))
            return
        assert why is not Outcome.STALLED or worker.hung or worker.exited, "a slow worker was killed"
        if self.random.random() < self.luck:
            return  # no answer
        gone = worker.hung is not Bad.WEDGE
        if gone and not worker.exited:
            worker.exited = True
            if not worker.hung:
                worker.sealed = self.random.randint(worker.sealed, len(worker.listed))
        if gone and self.random.random() < 0.3:
            self.tell(0.1, Exited(chunk_id, attempt))
        self.tell(self.random.choice((0.5, 12)), KillReturned(chunk_id, attempt, gone))

    def collect(self, chunk_id: int, attempt: int, hint: Outcome | None) -> None:
        """Ingest an attempt; done twice, the second time brings nothing new."""
        worker = self.workers.get((chunk_id, attempt)) or Worker(chunk_id, attempt, [])
        worker.exited = True
        new = [
            path for path in worker.listed[: worker.sealed] if self.catalogue.get(path) != (chunk_id, attempt)
        ]
        for path in new:
            assert path not in self.catalogue, f"{path!r} is collected twice"
            self.catalogue[path] = (chunk_id, attempt)
        if worker.hung and self.random.random() < 0.5:  # its last progress file said where it was
            worker.stuck |= {
                root.path for root in self.leftover(worker) if self.bad.get(root.path) is worker.hung
            }
        stuck = worker.stuck - self.stuck
        self.stuck |= stuck
        outcome = hint or (Outcome.CANCELLED if worker.obeyed else Outcome.SEALED)
        event = Collected(
            chunk_id,
            attempt,
            outcome,
            entries=len(new),
            dirs=len(new),
            leftover=tuple(self.leftover(worker)),
            stuck=len(stuck),
            abandoned=worker.abandoned,
        )
        if worker.abandoned:
            self.abandons.add((chunk_id, attempt))
        self.handle(event)

    # Fate.

    def controller(self) -> None:
        """Start a controller on what the catalogue and the engine know."""
        self.generation += 1
        self.ending, self.paused = None, False
        self.supervisor = Supervisor(self.settings)
        self.taking_over = True
        after: list[Event] = []
        for chunk_id, record in self.chunks.items():
            worker = self.workers.get((chunk_id, record.attempts))
            if record.state == "running" and worker:
                self.handle(Adopted(chunk_id, record.attempts, record.roots, None, None, record.fails))
                if worker.exited or (chunk_id, record.attempts) in self.abandons:
                    after.append(Exited(chunk_id, record.attempts))
            elif record.state in ("running", "pending"):
                record.state = "pending"
                args = (record.roots, record.size, None, record.attempts, record.fails)
                self.handle(Added(chunk_id, *args))
        for event in after:
            self.handle(event)
        self.taking_over = False
        self.handle(Tick())

    def interfere(self) -> None:
        chance = self.random.random()
        if chance < 0.02 and self.restarts:
            self.restarts -= 1
            self.controller()
        elif chance < 0.04 and self.cancels:
            self.cancels -= 1
            self.handle(StopRequested())
        elif chance < 0.06 and self.pauses:
            self.pauses -= 1
            self.paused = True
            self.handle(Paused("engine gone"))
            self.handle(Delayed(self.random.choice((0.0, 1.0, 50.0))))
            self.tell_later(self.random.choice((1, 100)), self.unpause)

    def unpause(self) -> None:
        self.paused = False
        self.handle(Unpaused())

    def run(self) -> None:
        self.controller()
        for _ in range(20_000):
            if self.ending is Ending.CANCELLED:
                assert not [r for r in self.chunks.values() if r.state == "running"]
                self.controller()  # the user goes on another day
                continue
            if self.ending:
                self.judge()
                return
            wake_at = self.supervisor.wake_at(self.now)
            assert wake_at is not None or self.queue, "it waits for nothing"
            if wake_at is not None and (not self.queue or wake_at <= self.queue[0][0]):
                self.now = max(self.now, wake_at)
                self.handle(Tick())
            else:
                self.now, _, action = heapq.heappop(self.queue)
                action()
            if not self.ending:
                self.interfere()
        raise AssertionError("it does not end")

    def judge(self) -> None:
        """Check the end of a scan."""
        assert {record.state for record in self.chunks.values()} <= {"done", "quarantined"}
        given_up: set[bytes] = set()
        for record in self.chunks.values():
            if record.state == "quarantined" and record.reason == MOUNT_DEAD:
                assert self.ending is Ending.MOUNT_DEAD
                given_up |= {root.path for root in record.roots}
            elif record.state == "quarantined":
                (root,) = record.roots
                assert root.scope is Scope.FILES
                assert root.path in self.bad, f"{root.path!r} is healthy"
                given_up.add(root.path)
        assert self.stuck <= set(self.bad)
        assert self.said_dead == (self.ending is Ending.MOUNT_DEAD) or self.generation > 1
        walk = [b""]
        while walk:
            path = walk.pop()
            if path in given_up | self.stuck and path not in self.catalogue:
                continue  # so everything below it is unknown
            assert (path in self.catalogue) == (path not in self.bad), path
            walk += self.tree[path]


@pytest.mark.timeout(3600)  # for 100,000 of them; each is bounded by its number of events
def test_random_histories() -> None:
    first = int(os.environ.get("SMART_SCAN_SEED", "1"))
    for seed in range(first, first + int(os.environ.get("SMART_SCAN_HISTORIES", "2000"))):
        world = World(seed)
        try:
            world.run()
        except AssertionError as error:
            story = "\n".join(f"{at:8.1f} {what}" for at, what in world.told[-60:])
            pytest.fail(f"{error} (SMART_SCAN_SEED={seed} SMART_SCAN_HISTORIES=1)\n{story}")
