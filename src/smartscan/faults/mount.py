"""Mount the fault file system for the length of a `with`, and always take it away again.

Touches: /dev/fuse, a temporary directory, a daemon of its own. Needs root.

    with fault_mount(tree, rules=[hang("stuck", "opendir")]) as share:
        ... read share.path ...
        share.set(rules=[])          # what hung goes on
        assert share.asked("opendir", b"stuck") == 1
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartscan.errors import SmartScannerError

MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8  # umount2(2)
Rule = dict[str, Any]
PREFIX, MOUNT_POINT = "faultfs-", "mnt"
READY_S = 10.0  # a daemon is ready in 0.1 s; a busy machine has more patience


def hang(path: str, *ops: str, **more: Any) -> Rule:
    """Never answer; without operations, none of them."""
    return {"path": path, "op": list(ops) or "*", "do": "hang", **more}


def slow(path: str, *ops: str, ms: float, **more: Any) -> Rule:
    """Answer that much later, each request for itself."""
    return {"path": path, "op": list(ops) or "*", "do": "slow", "ms": ms, **more}


def fail(path: str, *ops: str, errno: str, **more: Any) -> Rule:
    """Answer with that error, named as in errno(3)."""
    return {"path": path, "op": list(ops) or "*", "do": "errno", "errno": errno, **more}


def latency(ms: float) -> Rule:
    """Make everything as far away as a server over a network."""
    return slow("*", ms=ms)


libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class FaultMount:
    """A mounted fault file system."""

    path: Path  # the mount point
    real: Path  # what lies under it
    daemon: subprocess.Popen[bytes]
    _rules: Path
    _log: Path

    def set(self, *, rules: Sequence[Rule] = (), virtual: Sequence[Rule] = (),
            interrupt: str = "ignore", ino_offset: int = 0) -> None:
        """Replace all rules; holds for the next request, and within 0.1 s for what hangs."""
        text = json.dumps({"rules": list(rules), "virtual": list(virtual), "interrupt": interrupt,
                           "ino_offset": ino_offset})  # fmt: skip
        new = self._rules.with_suffix(".new")
        new.write_text(text)
        new.replace(self._rules)

    def asked(self, op: str, path: bytes | None = None) -> int:
        """Count the requests of an operation so far, for one path below the mount or for all."""
        wanted = f" {op} " if path is None else f" {op} {path!r} "
        return sum(wanted in line for line in self._log.read_text().splitlines())

    def end(self) -> None:
        """Kill the daemon: every reader, also an unkillable one, gets ENOTCONN or ECONNABORTED."""
        self.daemon.kill()
        self.daemon.wait()


@contextlib.contextmanager
def fault_mount(real: Path, *, rules: Sequence[Rule] = (), virtual: Sequence[Rule] = (),
                interrupt: str = "ignore", direct_io: bool = False, entry_cache_s: float = 1.0,
                attr_cache_s: float = 1.0, below: Path | None = None) -> Iterator[FaultMount]:
    """Mount `real` somewhere else, failing as the rules say (filesystem.py); unmounted on every way out.

    The mount lies in a folder of its own below `below`, else in the temporary directory. SmartScannerError
    where it cannot be mounted: the daemon has said why on stderr.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=below) as scratch:
        folder = Path(scratch)
        mount_point, ready = folder / MOUNT_POINT, folder / "ready"
        mount_point.mkdir()
        folder.chmod(0o755)  # ordinary users may be sent in
        log = folder / "log"
        log.touch()
        command = [
            sys.executable, "-S", str(Path(__file__).with_name("filesystem.py")),
            str(mount_point), str(real), str(folder / "rules.json"),
            "--ready", str(ready), "--log", str(log),
            "--entry-cache", str(entry_cache_s), "--attr-cache", str(attr_cache_s),
            *(["--direct-io"] if direct_io else []),
        ]  # fmt: skip
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        share = FaultMount(mount_point, real, daemon, folder / "rules.json", log)
        try:
            _wait_for(ready, daemon)
            share.set(rules=rules, virtual=virtual, interrupt=interrupt)
            yield share
        finally:
            share.end()
            unmount(mount_point)


def _wait_for(ready: Path, daemon: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + READY_S
    while not ready.exists():
        if daemon.poll() is not None or time.monotonic() > give_up_at:
            raise SmartScannerError(
                f"the file system that fails on purpose did not mount (exit status {daemon.returncode})"
            )
        time.sleep(0.01)


def unmount(mount_point: Path) -> None:
    """Take away whatever is mounted at a path, if anything is; needs root.

    Lazily: a reader that was just freed may still have it open. Again and again, as mounts may lie on one
    another.
    """
    while libc.umount2(os.fsencode(mount_point), MNT_DETACH | UMOUNT_NOFOLLOW) == 0:
        pass


def unmount_in(folder: Path) -> None:
    """Take away the mounts that a killed process left in `folder`, which it had given as `below`."""
    for scratch in folder.glob(f"{PREFIX}*"):
        if not scratch.is_symlink():
            unmount(scratch / MOUNT_POINT)
