"""The directory the catalogue lies in: made, found writable, and kept from being full to the last byte.

Touches: that directory, and in it `smart_catalog.reserve`.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import ExitStack, suppress
from pathlib import Path

from smartscan import config
from smartscan.errors import CatalogueError, CatalogueFull, UsageError

# On a full disk a catalogue with a write-ahead log cannot even be opened to say so. What is set aside for
# that day takes the log of a transaction and its index.
RESERVE_BYTES = 16 * 2**20
NEEDED_BYTES = 2 * 2**20  # all tables, empty, and their journal
SPARE_BYTES = 2**16  # less than this is nothing: the index of the log grows by 32 KB

log = logging.getLogger(__name__)


def prepare(path: Path, *, create: bool) -> None:
    """See that a catalogue at this path can be written; with `create`, make the default data directory.

    CatalogueError: missing, or not writable.
    """
    folder = path.parent
    try:
        if not folder.is_dir():
            if not (create and folder == config.data_dir()):
                raise _missing(folder)
            folder.mkdir(parents=True)
        check_writable(folder)
        check_writable(path, os.W_OK)
        if os.geteuid() == 0 and path.is_symlink() and path.lstat().st_uid != 0:
            raise CatalogueError(
                f"{path} is a link that root has not made, and root would write where it leads; "
                "name the catalogue itself with --db"
            )
    except OSError as error:
        raise explained(error, folder) from error


def check_writable(place: Path, rights: int = os.W_OK | os.X_OK) -> None:
    """See that a file or folder, where it is there, may be written; else CatalogueError."""
    if not os.access(place, rights, effective_ids=True) and place.exists():
        read_only = os.statvfs(place).f_flag & os.ST_RDONLY
        why = "is on a read-only file system" if read_only else "may not be written by this user"
        raise CatalogueError(f"{place} {why}; choose another catalogue with --db")


def refuse_link(place: Path) -> None:
    """See that nobody has laid a link where folders are made and removed; else CatalogueError.

    Who may write in the data directory need not be root, and root would make and remove what it leads to.
    """
    if place.is_symlink():
        raise CatalogueError(f"{place} is a link and no directory; remove it, or choose another --db")


def remove(folder: Path, *, below: Path) -> None:
    """Remove a folder somewhere below a directory, as far as that is possible, and through no link."""
    import shutil  # with all its compressors: no scan waits for them at its start

    *way, name = folder.relative_to(below).parts
    with ExitStack() as opened, suppress(OSError):
        place = os.open(below, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, place)
        for step in way:
            place = os.open(step, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            opened.callback(os.close, place)
        shutil.rmtree(name, ignore_errors=True, dir_fd=place)


def make_room(path: Path) -> None:
    """See that there is space to open a catalogue, releasing the reserve if need be; else CatalogueFull."""
    if _free_bytes(path) >= NEEDED_BYTES:
        return
    if release_reserve(path):
        log.warning("the disk of the catalogue %s is full; the reserve beside it was released", path)
    free_bytes = _free_bytes(path)
    if free_bytes < NEEDED_BYTES:
        have, need = free_bytes // 2**10, NEEDED_BYTES // 2**10
        raise full(path.parent, f" ({have} KB are free, {need} KB are needed)")


def is_full(path: Path) -> bool:
    """Tell whether the disk of the catalogue has no space at all."""
    with suppress(OSError):
        return _free_bytes(path) < SPARE_BYTES
    return False


def keep_reserve(path: Path) -> bool:
    """Set space aside for the day the disk is full; False where there is none to spare or it is kept."""
    reserve = _reserve(path)
    if reserve.exists() or _free_bytes(path) < 4 * RESERVE_BYTES:
        return False
    try:
        # Random, because a file system that compresses would keep nothing of zeros.
        block = os.urandom(RESERVE_BYTES >> 4)
        with reserve.open("xb") as file:  # never through a link
            for _ in range(16):
                file.write(block)
    except OSError:
        release_reserve(path)
        return False
    return True


def beside(path: Path, name: str) -> Path:
    """Give a path beside the catalogue itself, as SQLite has its side files, where `path` is a link to it."""
    return Path(os.path.realpath(path)).with_name(name)


def give_to_owner(path: Path) -> None:
    """Let the catalogue belong to PUID:PGID, as NAS users know them, where they are set and this is root.

    SQLite gives its side files the owner of the catalogue. UsageError for values that are no numbers.
    """
    ids = []
    for name in ("PUID", "PGID"):
        value = os.environ.get(name, "")
        if value and not value.isdecimal():
            raise UsageError(f"{name} is '{value}', and must be a number, such as 99")
        ids.append(int(value) if value else -1)
    if os.geteuid() != 0 or ids == [-1, -1]:
        return
    locks = beside(path, "locks")
    for file in (path.parent, path, _reserve(path), locks, *(locks.glob("*.lock") if locks.is_dir() else ())):
        with suppress(OSError):  # a file system without owners
            if file.is_symlink():  # stays with who made it
                continue
            os.chown(file, *ids, follow_symlinks=False)


def release_reserve(path: Path) -> bool:
    """Give the space back; False where none was kept."""
    try:
        _reserve(path).unlink()
    except OSError:
        return False
    return True


def explained(error: OSError, folder: Path) -> CatalogueError:
    """Say in one sentence what the system's refusal means for the catalogue in that directory."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full(folder)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return _missing(folder)
    return CatalogueError(
        f"the directory {folder} cannot hold a catalogue: {error.strerror}; choose another with --db"
    )


def full(folder: Path, detail: str = "") -> CatalogueFull:
    """Give the error of a disk without space."""
    return CatalogueFull(
        f"there is no space left for the catalogue in {folder}{detail}; make room and try again"
    )


def _missing(folder: Path) -> CatalogueError:
    return CatalogueError(f"the directory {folder} does not exist; make it, or choose another with --db")


def _reserve(path: Path) -> Path:
    return path.with_suffix(".reserve")


def _free_bytes(path: Path) -> int:
    stat = os.statvfs(path.parent)
    return stat.f_frsize * (stat.f_bfree if os.geteuid() == 0 else stat.f_bavail)
