"""Checks the installation as it is: one line each, and what to do.

Touches: the engines, the data directory, a scratch catalogue; a share only through a child process.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

from smartscan import __version__, config, units
from smartscan import engine as engines
from smartscan.catalogue import lock
from smartscan.catalogue import open as opening
from smartscan.codec import NATIVE
from smartscan.errors import SmartScannerError
from smartscan.model import Resources, printable, show

SHARE_S = 10.0  # a healthy share answers at once, a sleeping disk's root is in memory

# Runs in a process of its own, which may hang: nothing of this one waits for the share.
_LOOK = "import os, sys; n = next(os.scandir(os.fsencode(sys.argv[1])), None); sys.exit(0 if n else 3)"


class Finding(NamedTuple):
    """One thing that was looked at; `bad` means that a scan would not work, or not well."""

    what: str
    says: str
    bad: bool = False


def examine(
    db: Path, *, namespace: str, engine: str, image: str, share: bytes | None
) -> Generator[Finding, None, None]:
    """Look at everything a scan needs, in a few seconds."""
    yield Finding(
        "program", f"Smart Scanner {__version__}, Python {platform.python_version()}, {platform.machine()}"
    )
    walker = (
        "compiled" if NATIVE else "pure Python, several times slower; install a compiler, then `make native`"
    )
    yield Finding("walker", walker, bad=not NATIVE)
    yield from _engine(namespace, engine, image)
    yield from _catalogue(db)
    if share is not None:
        yield _told(share) if "SMART_SCAN_CONTAINER" in os.environ else _share(share)


def _engine(namespace: str, name: str, image: str) -> Iterator[Finding]:
    try:
        chosen, why = engines.choose(name, namespace=namespace, image=image)
        chosen.check()
    except SmartScannerError as e:
        yield Finding("engine", str(e), bad=True)
        return
    yield Finding("engine", why)
    want = Resources(config.CPUS, units.parse_memory(config.MEMORY))
    for sentence in (*chosen.clamp(want, at_a_time=config.MAX_CONTAINERS)[1], *chosen.describe()):
        yield Finding("limits", sentence)
    try:
        workers = [w for w in chosen.find(namespace) if not w.owner_alive]
    except SmartScannerError as e:
        yield Finding("workers", str(e), bad=True)
    else:
        if workers:
            yield Finding(
                "workers", f"{len(workers)} left behind by an earlier run; cleanup removes them", bad=True
            )
    chosen.close()


def _catalogue(db: Path) -> Iterator[Finding]:
    folder = db.parent
    if not folder.is_dir():
        yield Finding("data", f"{folder} does not exist yet; the first scan makes it where it is the default")
        return
    free = os.statvfs(folder)
    yield Finding("data", f"{folder}, {units.size(free.f_bavail * free.f_frsize)} free")
    try:
        storage = opening.examine(db)
    except SmartScannerError as e:
        yield Finding("catalogue", str(e), bad=True)
        return
    yield Finding(
        "catalogue",
        f"{db}, {'not there yet' if not db.exists() else units.size(db.stat().st_size)}, "
        f"kept with journal mode {storage.journal}",
    )
    for warning in storage.warnings:
        yield Finding("catalogue", warning, bad=True)
    for mount, holder in lock.holders(db).items():
        yield Finding("scan", f"'{mount}' is being scanned by {holder}")


def _told(share: bytes) -> Finding:
    """Say what the script saw on the host: no share is mounted into a controller's container."""
    fault = os.environ.get("SMART_SCAN_SHARE_FAULT")
    if fault is None:
        return Finding("share", f"{show(share)} is not looked at: no share is mounted into this container")
    if fault:
        return Finding("share", printable(fault).rstrip("."), bad=True)
    return Finding("share", f"{show(share)} is a directory, and answers")


def _share(share: bytes) -> Finding:
    name = show(share)
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", _LOOK, os.fsdecode(share)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, errors = child.communicate(timeout=SHARE_S)
    except subprocess.TimeoutExpired:
        child.kill()  # and not waited for: it may hang where no signal reaches it
        return Finding("share", f"{name} did not answer for {SHARE_S:g} s; see to its storage", bad=True)
    if child.returncode == 0:
        return Finding("share", f"{name} can be read")
    if child.returncode == 3:
        return Finding("share", f"{name} is empty; is the share mounted?", bad=True)
    says = (
        errors.decode("utf-8", "replace").strip().rpartition("] ")[2].partition(": ")[0] or "cannot be read"
    )
    return Finding("share", f"{name}: {says}; check the path and who may read it", bad=True)
