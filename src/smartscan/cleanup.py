"""Removes what this program left behind, and nothing else. The only room that deletes.

Touches: workers that carry our mark and whose controller is gone; below the data directory the folders of
ended attempts, of surveys, of probes and of drills, and the mounts of these. Never the catalogue, never
volumes, never what a living controller uses.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from smartscan import engine as engines
from smartscan.catalogue import directory, lock, read
from smartscan.config import CATALOGUE, WORKER_IMAGE
from smartscan.errors import CatalogueBusy, CatalogueError, EngineError
from smartscan.faults import unmount_in

_SURVEYS, _PROBES, _DRILLS = "survey-*", ".probe-*", "drill-*"


class Leftover(NamedTuple):
    """Something that can go, while nobody scans the mount that it is of; `remove` says whether it went."""

    what: str
    remove: Callable[[], bool]
    mount: str | None = None


def leftovers(db: Path, namespace: str, *, image: str = WORKER_IMAGE) -> tuple[list[Leftover], list[str]]:
    """Find what is left behind in the data directory of a catalogue, and say what stays and why.

    Each may be removed at once; workers come before the folders they write to.
    """
    alive = lock.holders(db)
    kept = [f"the scan of '{mount}' is running: {holder}" for mount, holder in alive.items()]
    found: list[Leftover] = []
    busy: set[Path] = set()
    for name in ("docker", "local"):
        try:
            engine, _ = engines.choose(name, namespace=namespace, image=image)
            workers = engine.find(namespace)
        except EngineError as e:
            if name == "docker" and _used_docker(db):
                kept.append(f"containers, if there are any: {e}")
            continue
        for w in workers:
            if w.owner_alive or w.folder.parent.name in alive:
                busy.add(w.folder)
                continue
            what = "container" if name == "docker" else "process"
            found.append(
                Leftover(
                    f"{what} {w.worker_id} (chunk {w.chunk_id}, attempt {w.attempt})",
                    partial(_remove_worker, engine, w.worker_id),
                    w.folder.parent.name,
                )
            )
    for mount, folder in _folders(db, alive, busy, kept):
        found.append(Leftover(str(folder), partial(_remove_folder, db.parent, folder), mount))
    kept += [f"{link} is a link, which this program never lays: not touched" for link in _links(db.parent)]
    for folder in _drills(db.parent):
        found.append(Leftover(str(folder), partial(_remove_drill, db.parent, folder)))
    return found, kept


def drilled(db: Path) -> list[Path]:
    """List the catalogues of drills that were killed beside this one: they may have workers, too."""
    return [folder / "drill.db" for folder in _drills(db.parent)]


def clean(found: list[Leftover], db: Path) -> tuple[list[str], list[str]]:
    """Remove what was found, holding the locks of the mounts; gives what went and what would not go."""
    gone: list[str] = []
    stays: list[str] = []
    with ExitStack() as held:
        mounts = _mounts(db.parent)
        for mount in mounts:
            try:
                held.enter_context(lock.MountLock(db, mount.name))
            except (CatalogueBusy, CatalogueError) as e:  # a scan began meanwhile
                stays.append(str(e))
                found = [item for item in found if item.mount != mount.name]
        for item in found:
            (gone if item.remove() else stays).append(item.what)
        with suppress(OSError):  # something else is in there
            for folder in mounts:
                with suppress(OSError):
                    folder.rmdir()
            (db.parent / "work").rmdir()
    return gone, stays


def _links(data: Path) -> list[Path]:
    """List links in the place of folders that could go."""
    work = data / "work"
    places = [work, *([] if work.is_symlink() else work.glob("*"))]
    places += [place for names in (_SURVEYS, _PROBES, _DRILLS) for place in data.glob(names)]
    return sorted(place for place in places if place.is_symlink())


def _mounts(data: Path) -> list[Path]:
    """List the folders that have attempts of a mount; a link is none."""
    work = data / "work"
    return [] if work.is_symlink() else [folder for folder in _own(work, "*") if folder.is_dir()]


def _own(folder: Path, names: str) -> list[Path]:
    """List what has such names and is no link."""
    return sorted(place for place in folder.glob(names) if not place.is_symlink())


def _folders(
    db: Path, alive: dict[str, lock.Holder], busy: set[Path], kept: list[str]
) -> Iterator[tuple[str | None, Path]]:
    """Folders that nobody needs, of ended attempts by their mount, and of surveys and probes whose process is
    gone.
    """
    data = db.parent
    needed = _needed(db)
    for mount in _mounts(data):
        if mount.name in alive:
            continue
        for folder in sorted(mount.iterdir()):
            if folder in busy:
                continue
            if (mount.name, folder.name) in needed:
                kept.append(f"{folder} holds work of a scan that can go on")
            else:
                yield mount.name, folder
    for folder in _own(data, _SURVEYS):
        if not lock.holders(folder / CATALOGUE) and not lock.holders(folder / db.name):
            yield None, folder
    if not alive:
        yield from ((None, folder) for folder in _own(data, _PROBES))


def _drills(data: Path) -> Iterator[Path]:
    """Folders of drills whose process is gone; one that runs holds a lock."""
    for folder in _own(data, _DRILLS):
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would never open
            with open(os.open(folder / "lock", flags)) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass
        except OSError:
            continue
        yield folder


def _needed(db: Path) -> set[tuple[str, str]]:
    """Folders of attempts that have not ended, of scans that can go on: (mount, folder).

    CatalogueError where the catalogue is there and does not tell.
    """
    if not db.exists():
        return set()
    try:
        with read.open_for_reading(db) as conn:
            return {
                (name, f"{chunk}-{number}")
                for name, chunk, number in conn.execute(
                    "SELECT mount.name, attempt.chunk_id, attempt.number FROM attempt JOIN chunk ON "
                    "chunk.id = attempt.chunk_id "
                    "JOIN scan ON scan.id = chunk.scan_id JOIN mount ON mount.id = scan.mount_id "
                    "WHERE attempt.ended_at IS NULL AND scan.state IN ('running', 'cancelled')"
                )
            }
    except sqlite3.Error as e:
        raise CatalogueError(f"the catalogue {db} cannot be read ({e}), so nothing is removed") from e


def _used_docker(db: Path) -> bool:
    try:
        with read.open_for_reading(db) as conn:
            return conn.execute("SELECT 1 FROM scan WHERE engine = 'docker' LIMIT 1").fetchone() is not None
    except (CatalogueError, sqlite3.Error):
        return False


def _remove_worker(engine: engines.Engine, worker_id: str) -> bool:
    return engine.kill(worker_id) and engine.remove(worker_id)


def _remove_folder(data: Path, folder: Path) -> bool:
    directory.remove(folder, below=data)
    return not folder.exists()


def _remove_drill(data: Path, folder: Path) -> bool:
    unmount_in(folder)  # its file system went with its process; what is left of it answers nobody
    return _remove_folder(data, folder)
