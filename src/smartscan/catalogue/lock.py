"""Who scans which mount: one controller per mount, and all controllers of a catalogue by the same path.

Touches: the folder `locks` beside the catalogue, /proc. A lock is flock(2) on locks/<mount>.lock, which the
kernel lets go when its process ends, however it ends; what the file says is only for people. It is never
deleted: two processes could else each lock a file of the same name.

SQLite and flock know two processes from one another only where both reach the same file system object. On
Unraid /mnt/user/appdata and /mnt/cache/appdata are the same file by two file systems, and two writers ruin
the catalogue. So every lock file also says by which st_dev its holder reaches it, and its mtime, which the
holder renews, that the holder lives, also to those who cannot see its process from their container.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from smartscan.catalogue import directory
from smartscan.errors import CatalogueBusy, CatalogueError

BEAT_S = 5.0  # how often a holder says that it lives
# A holder that nobody can see is taken for dead after so long: 12 beats, for a machine that is very busy.
SILENCE_S = 60.0
# A machine that was cut off and is back within SILENCE_S must not wait for itself. A holder of an earlier
# boot has not said anything since this one; one on another machine does so within two beats, unless it hangs.
SETTLED_S = 2 * BEAT_S
# Somebody who only looks whether a lock is held holds it for a moment, which must not pass for a scan.
PATIENCE_S = 0.5


class Holder(NamedTuple):
    """A controller, as its lock and the scan's row describe it."""

    pid: int
    started: int  # clock ticks after boot, from /proc/PID/stat: a pid alone is used again
    pid_ns: str  # the namespace in which that pid means something
    boot_id: str
    host: str
    since: float
    db: str
    dev: int  # st_dev of the folder of locks, as the holder reaches it

    @property
    def is_me(self) -> bool:
        """Whether this process is meant."""
        me = os.getpid()
        return (self.pid, self.pid_ns, self.started) == (me, _pid_ns(), _started(me))

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {since} (catalogue {self.db})"

    def to_json(self) -> str:
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str | bytes) -> Holder | None:
        """Read what `to_json` wrote; None for anything else, such as a file that is just being written."""
        try:
            holder = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = (int, int, str, str, str, int | float, str, int)
        sound = all(isinstance(value, kind) for value, kind in zip(holder, kinds, strict=True))
        return holder if sound and 0 <= holder.since < 1 << 40 else None


class MountLock:
    """The right to scan one mount into the catalogues of one data directory; a context manager.

    Entering makes the default data directory, and raises CatalogueBusy while another process has the right,
    and says which; CatalogueError as `directory.prepare` and `refuse_other_path` do. The holder calls `beat`
    every BEAT_S seconds.
    """

    def __init__(self, catalogue: Path, mount: str) -> None:
        self.catalogue = catalogue
        self.mount = mount
        self._fd = -1
        self._holder: Holder | None = None

    @property
    def holder(self) -> Holder:
        """This process, as the lock describes it; only while the lock is held."""
        assert self._holder is not None
        return self._holder

    def __enter__(self) -> Self:
        directory.prepare(self.catalogue, create=True)
        file = _folder(self.catalogue) / f"{self.mount}.lock"
        with contextlib.ExitStack() as undone:
            undone.callback(self._release)
            try:
                self._take(file)
            except OSError as error:
                raise directory.explained(error, self.catalogue.parent) from error
            undone.pop_all()
        return self

    def _take(self, file: Path) -> None:
        directory.refuse_link(file.parent)
        file.parent.mkdir(exist_ok=True)
        # Who may write there, and need not be root, could lay a link to any file that root may write.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = os.open(file, flags, 0o644)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise CatalogueError(f"{file} is no file; remove it, it is in the place of a lock")
        if not _lock(self._fd):
            holder = Holder.from_json(_content(self._fd)) or "another process"
            raise CatalogueBusy(f"mount '{self.mount}' is being scanned by {holder}; wait for it or stop it")
        refuse_other_path(self.catalogue)
        self._holder = _myself(self.catalogue)
        text = self._holder.to_json().encode()
        os.pwrite(self._fd, text, 0)  # over the old text, so that no new block is needed on a full disk
        os.ftruncate(self._fd, len(text))
        refuse_other_path(self.catalogue)  # again: two that start at once see each other now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def beat(self) -> None:
        """Say that this controller lives; cheap, and silent where it cannot be said."""
        with contextlib.suppress(OSError):
            os.utime(self._fd)

    def _release(self) -> None:
        if self._holder:
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, b"-", 0)  # no holder; the block stays, as above
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._holder = None


def holders(catalogue: Path) -> dict[str, Holder]:
    """Find the controllers that are at work beside this catalogue, this process included, by mount."""
    found = {}
    for mount, holder, beat_at, held in _locks(catalogue):
        if holder and (held or (_is_elsewhere(holder, catalogue) and _lives(holder, beat_at))):
            found[mount] = holder
    return found


def is_held(catalogue: Path, mount: str) -> bool | None:
    """Tell whether a controller is at work on a mount; None where that cannot be told.

    As where there is no lock, or where its holder reaches the catalogue by another path, is not seen from
    here and is silent: it may be busy.
    """
    if "/" in mount or "\0" in mount:  # of a catalogue that somebody else has made
        return None
    try:
        seen = _look(_folder(catalogue) / f"{mount}.lock")
        if seen is None:
            return None
        _, holder, beat_at, held = seen
        if held or holder is None or not _is_elsewhere(holder, catalogue):
            return held
        if _lives(holder, beat_at):
            return True
        return False if _is_seen(holder) or _is_of_before(holder, beat_at) else None
    except OSError:  # this file system knows no locks
        return None


def refuse_other_path(catalogue: Path) -> None:
    """Raise CatalogueError while a controller is at work that reaches the catalogue by another path.

    Takes up to SETTLED_S where this machine has just been booted, to see who of before still lives.
    """
    while others := [
        (mount, holder, beat_at)
        for mount, holder, beat_at, _ in _locks(catalogue)
        if holder and _is_elsewhere(holder, catalogue) and _lives(holder, beat_at)
    ]:
        for mount, holder, beat_at in others:
            if not _is_of_before(holder, beat_at):
                raise CatalogueError(
                    f"{holder} scans mount '{mount}' into the catalogue {catalogue} by another path, and two "
                    "paths would ruin it; use the same one, or wait for that scan"
                )
        time.sleep(0.2)


def _locks(catalogue: Path) -> list[tuple[str, Holder | None, float, bool]]:
    """List all locks: mount, holder as written, last beat, and whether somebody holds it by our path."""
    folder = _folder(catalogue)
    files = sorted(folder.glob("*.lock")) if folder.is_dir() else ()
    return [seen for seen in map(_look, files) if seen]


def _look(file: Path) -> tuple[str, Holder | None, float, bool] | None:
    """Look at one lock; None where it is gone, not ours to read, or no file at all."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        return file.stem, Holder.from_json(_content(fd)), status.st_mtime, _is_locked(fd)
    finally:
        os.close(fd)


def _folder(catalogue: Path) -> Path:
    return directory.beside(catalogue, "locks")


def _is_elsewhere(holder: Holder, catalogue: Path) -> bool:
    """Tell whether the holder reaches the data directory through another file system object than we do."""
    return (holder.dev, holder.boot_id) != (_folder(catalogue).stat().st_dev, _boot_id())


def _is_seen(holder: Holder) -> bool:
    """Tell whether its process would be in our /proc."""
    return (holder.boot_id, holder.pid_ns) == (_boot_id(), _pid_ns())


def _lives(holder: Holder, beat_at: float) -> bool:
    if _is_seen(holder):
        return _started(holder.pid) == holder.started
    if _is_of_before(holder, beat_at) and (holder.host == os.uname().nodename or _uptime_s() > SETTLED_S):
        return False  # its machine was cut off: this one, before it was booted
    return abs(time.time() - beat_at) < SILENCE_S


def _is_of_before(holder: Holder, beat_at: float) -> bool:
    """Tell whether nothing was heard of a holder since this machine was booted."""
    return holder.boot_id != _boot_id() and beat_at < time.time() - _uptime_s()


def _uptime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _lock(fd: int) -> bool:
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                return False
            time.sleep(0.02)


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _content(fd: int) -> bytes:
    return os.pread(fd, 4096, 0)


def _myself(catalogue: Path) -> Holder:
    pid = os.getpid()
    return Holder(
        pid=pid,
        started=_started(pid) or 0,
        pid_ns=_pid_ns(),
        boot_id=_boot_id(),
        host=os.uname().nodename,
        since=time.time(),
        db=str(catalogue),
        dev=_folder(catalogue).stat().st_dev,
    )


def _started(pid: int) -> int | None:
    """Read when a process started; None where it does not live."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if state in (b"Z", b"X") else int(fields[18])  # field 22 of proc(5)


def _pid_ns() -> str:
    return os.readlink("/proc/self/ns/pid")


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
