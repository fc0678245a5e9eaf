"""The supervisor's words: what the user allows, what happened, what to do.

Pure.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, TypeAlias, TypeVar

from smartscan.config import GIVE_UP
from smartscan.model import Outcome, Root


class Settings(NamedTuple):
    """What the user allows."""

    max_containers: int
    stall_s: float
    max_attempt_s: float | None = None  # an attempt older than this is overdue, even if it moves
    give_up: int = GIVE_UP  # abandoned workers a mount may cost; with that many it is dead
    fails_to_bisect: int = 2  # attempts in a row without progress before a chunk is cut
    share_after_s: float = 10.0  # how long a chunk runs before idle slots ask it for work
    stop_grace_s: float = 10.0  # between a polite stop and a kill
    cpus: float = float("inf")  # processors that all workers share

    @property
    def silence_s(self) -> float:
        """Give how long a worker may show no beat; it judges its own threads first, at `stall_s`."""
        return self.stall_s * 1.5 + 5.0


class Origin(StrEnum):
    """Why a chunk is created."""

    LEFTOVER = "leftover"
    BISECT = "bisect"


class Ending(StrEnum):
    """Why there is nothing more to do."""

    DONE = "done"  # every chunk is done or quarantined
    CANCELLED = "cancelled"  # pending chunks stay pending
    MOUNT_DEAD = "mount dead"  # what was pending is quarantined


W = TypeVar("W")


def _word(kind: type[W]) -> type[W]:
    """Make a word equal to its like only: as tuples, a Done and a Created of one chunk would be as well."""
    for name, method in (("__eq__", _same), ("__ne__", _other), ("__hash__", tuple.__hash__)):
        setattr(kind, name, method)
    return kind


def _same(word: tuple[object, ...], other: object) -> bool:
    return type(word) is type(other) and tuple.__eq__(word, other)


def _other(word: tuple[object, ...], other: object) -> bool:
    return not _same(word, other)


# Many words name an attempt and no more, or say nothing but themselves.


@_word
class _OfAttempt(NamedTuple):
    chunk_id: int
    attempt: int


@_word
class _Alone(NamedTuple):
    pass


# Events: what happened.


@_word
class Added(NamedTuple):
    """A pending chunk exists, persisted. Starts nothing by itself: send a Tick after the last one."""

    chunk_id: int
    roots: tuple[Root, ...]
    est_bytes: int | None = None
    est_entries: int | None = None
    attempts: int = 0  # the highest attempt number used so far
    fails: int = 0  # of these, the last ones in a row that brought nothing


@_word
class Adopted(NamedTuple):
    """A worker of an earlier controller was found; its chunk is not Added as well.

    One that has ended meanwhile is adopted too, and Exited right after.
    """

    chunk_id: int
    attempt: int
    roots: tuple[Root, ...]
    est_bytes: int | None = None
    est_entries: int | None = None
    fails: int = 0


class Started(_OfAttempt):
    """The engine has started the worker."""

    __slots__ = ()


@_word
class StartFailed(NamedTuple):
    """The engine could not start it: infrastructure, no fault of the chunk."""

    chunk_id: int
    attempt: int
    message: str


@_word
class Progressed(NamedTuple):
    """The worker's progress file was read; only a changed `beat` is progress."""

    chunk_id: int
    attempt: int
    beat: int
    entries: int = 0
    cpu_s: float = 0.0  # that it has used so far


@_word
class Exited(NamedTuple):
    """The worker is gone, or its result file says that it is complete."""

    chunk_id: int
    attempt: int
    oom: bool = False


@_word
class KillReturned(NamedTuple):
    """A Kill was carried out; `gone` is whether the worker was reaped within the grace."""

    chunk_id: int
    attempt: int
    gone: bool


@_word
class Collected(NamedTuple):
    """What an attempt brought is in the catalogue.

    `dirs` are directories newly catalogued and `stuck` paths newly recorded as stuck: a stuck path is
    not in `leftover`, which holds everything else of the chunk's roots that is not catalogued and was
    not given to other chunks before.
    """

    chunk_id: int
    attempt: int
    outcome: Outcome
    entries: int = 0
    dirs: int = 0
    leftover: tuple[Root, ...] = ()
    stuck: int = 0
    abandoned: bool = False  # a process of it could not be killed and still waits for the storage


@_word
class Created(NamedTuple):
    """One Create is carried out and all its chunks, perhaps none, were Added."""

    parent_id: int


class MountUnreachable(_OfAttempt):
    """The worker ended because the share's root is missing, cannot be opened or does not answer."""

    __slots__ = ()


@_word
class Paused(NamedTuple):
    """Nothing can be started or judged for now: disk full, engine gone."""

    reason: str


class Unpaused(_Alone):
    """The reason for the last Paused is gone."""

    __slots__ = ()


@_word
class Delayed(NamedTuple):
    """The caller could not look for so long: what moved meanwhile was not seen, and nobody is to blame."""

    seconds: float


class StopRequested(_Alone):
    """The user wants it to end; a second time: at once."""

    __slots__ = ()


class Tick(_Alone):
    """Time has passed."""

    __slots__ = ()


# Commands: what to do. Those of one list that touch the catalogue belong into one transaction.


class Start(_OfAttempt):
    """Start a worker; answered by Started or StartFailed."""

    __slots__ = ()


class Yield(_OfAttempt):
    """Ask the worker for about half of what it has pending; what comes is Added while it runs on."""

    __slots__ = ()


class Stop(_OfAttempt):
    """Ask the worker to give everything back and end; answered by Exited."""

    __slots__ = ()


@_word
class Kill(NamedTuple):
    """Kill the worker; answered by KillReturned, or by Exited where that was seen first."""

    chunk_id: int
    attempt: int
    why: Outcome


@_word
class Collect(NamedTuple):
    """Ingest what is sealed, work out the rest; answered by Collected.

    `hint` is how the attempt ended as far as known here; None: as its result file says, or failed.
    """

    chunk_id: int
    attempt: int
    hint: Outcome | None


class Abandon(_OfAttempt):
    """The worker would not die: note it as lost. Its slot is free, nothing it does later counts."""

    __slots__ = ()


@_word
class Create(NamedTuple):
    """Persist new chunks of these roots; answered by Added for each, then Created.

    A leftover is packed as the caller likes. Of it, a directory directly in a FILES root of the parent is
    dropped where it is catalogued, stuck, or a root of another chunk that is not done. Nothing else is
    dropped: a chunk still has among its roots what it has yielded and another now gives back.
    A bisect is one chunk of exactly these roots. The parent is Done in the same list.
    """

    parent_id: int
    roots: tuple[Root, ...]
    origin: Origin


@_word
class Retry(NamedTuple):
    """The chunk is pending again, with so many attempts in a row that brought nothing."""

    chunk_id: int
    fails: int


@_word
class Done(NamedTuple):
    """The chunk is done: catalogued, or in the hands of the chunks created of it."""

    chunk_id: int


@_word
class Quarantine(NamedTuple):
    """The chunk is given up for this scan."""

    chunk_id: int
    reason: str


@_word
class Pause(NamedTuple):
    """Say that the scan waits, and why."""

    reason: str


class Resume(_Alone):
    """Say that the scan goes on."""

    __slots__ = ()


class MountDead(_Alone):
    """Say that the mount is dead: what runs may end, nothing is started any more."""

    __slots__ = ()


@_word
class End(NamedTuple):
    """The last command."""

    ending: Ending


OfAttempt: TypeAlias = (
    Started | StartFailed | Progressed | Exited | KillReturned | Collected | MountUnreachable
)  # fmt: skip
Event: TypeAlias = OfAttempt | Added | Adopted | Created | Paused | Unpaused | Delayed | StopRequested | Tick
Command: TypeAlias = (
    Start | Yield | Stop | Kill | Collect | Abandon
    | Create | Retry | Done | Quarantine | Pause | Resume | MountDead | End
)  # fmt: skip
