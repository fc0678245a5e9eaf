"""Control groups of version 1 and 2, for the limits of local workers.

Touches: /sys/fs/cgroup, /proc/self. Groups are made beside or below the controller's own, wherever this
user may; where none can be made there is no `Parent`, and the caller falls back to rlimits.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from smartscan.engine import processes
from smartscan.model import Resources

CONTROLLERS = ("cpu", "memory", "pids")
PERIOD_US = 100_000  # the kernel's own default period
# A quarter of the default: eight workers that never rest are not to starve the one controller that takes in
# what they hand over, nor the host's own work.
WEIGHT, SHARES = 25, 256  # version 2, version 1
PREFIX = "smart-scan-"


class Group(NamedTuple):
    """The control groups of one worker: one directory in version 2, one per controller in version 1."""

    folders: dict[str, Path]  # by controller

    @property
    def dirs(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(self.folders.values()))

    def add(self, pid: int) -> None:
        """Move a process in; what it starts from now on is in too. Cost: the kernel takes up to 20 ms."""
        for folder in self.dirs:
            (folder / "cgroup.procs").write_text(str(pid))

    def pids(self) -> set[int]:
        """List what is in the group; empty for a group that is gone."""
        try:
            return {int(line) for line in (self.dirs[0] / "cgroup.procs").read_text().split()}
        except OSError:
            return set()

    def out_of_memory(self) -> bool:
        """Tell whether the kernel killed something in the group for its memory limit."""
        memory = self.folders.get("memory")
        if memory is None:
            return False
        for name in ("memory.events", "memory.oom_control"):  # version 2, version 1
            with contextlib.suppress(OSError):
                words = (memory / name).read_text().split()
                return int(dict(zip(words[::2], words[1::2], strict=False)).get("oom_kill", 0)) > 0
        return False

    def remove(self) -> bool:
        """Remove the empty group; False while a process is in it."""
        for folder in self.dirs:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True


class Parent(NamedTuple):
    """Where groups may be made: one directory per controller, the same one for all in version 2."""

    version: int
    dirs: dict[str, Path]

    def make(self, name: str) -> Group:
        """Make a group, without limits; OSError where the kernel refuses."""
        folders = {controller: folder / f"{PREFIX}{name}" for controller, folder in self.dirs.items()}
        group = Group(folders)
        try:
            for folder in group.dirs:
                folder.mkdir(exist_ok=True)
        except OSError:
            group.remove()
            raise
        return group

    def limit(self, group: Group, want: Resources, pids: int) -> None:
        """Give a group its limits; OSError where the kernel refuses."""
        for controller, folder in group.folders.items():
            for file, value in self._limits(controller, want, pids):
                with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting, say
                    (folder / file).write_text(value)

    def _limits(self, controller: str, want: Resources, pids: int) -> list[tuple[str, str]]:
        if controller == "pids":
            return [("pids.max", str(pids))]
        if controller == "cpu":
            quota = max(1000, int(want.cpus * PERIOD_US))  # below 1 ms the kernel refuses
            if self.version == 2:
                return [("cpu.max", f"{quota} {PERIOD_US}"), ("cpu.weight", str(WEIGHT))]
            period = "cpu.cfs_period_us", str(PERIOD_US)
            return [period, ("cpu.cfs_quota_us", str(quota)), ("cpu.shares", str(SHARES))]
        if self.version == 2:
            return [("memory.max", str(want.memory_bytes)), ("memory.swap.max", "0")]
        limit = str(want.memory_bytes)
        return [("memory.limit_in_bytes", limit), ("memory.memsw.limit_in_bytes", limit)]

    def sweep(self) -> None:
        """Remove the empty groups of controllers that are gone (a group's name begins with their pid)."""
        for folder in set(self.dirs.values()):
            for group in folder.glob(f"{PREFIX}*.*"):
                pid = group.name.removeprefix(PREFIX).partition(".")[0]
                if pid.isdigit() and processes.read(int(pid)) is None:
                    with contextlib.suppress(OSError):
                        group.rmdir()


def parent() -> Parent | None:
    """Find where this process may make groups that limit memory; None where nowhere."""
    mounts = _mounts()
    own = _own()
    first = {name: folder for name in CONTROLLERS if (folder := _version1(name, mounts, own))}
    if "memory" in first:
        return Parent(1, first)
    if unified := mounts.get(""):
        return _version2(*unified, own.get("", "/"))
    return None


def _version1(controller: str, mounts: dict[str, tuple[Path, str]], own: dict[str, str]) -> Path | None:
    if controller not in mounts or controller not in own:
        return None
    folder = _inside(*mounts[controller], own[controller])
    return folder if os.access(folder, os.W_OK) else None


def _version2(mount: Path, root: str, own: str) -> Parent | None:
    """Choose the ancestor that hands down most controllers, the nearest of equals.

    A version 2 group with processes in it hands nothing down, so the controller's own never fits.
    """
    nearest = _inside(mount, root, own)
    best: dict[str, Path] = {}
    for folder in (nearest, *nearest.parents):
        if not folder.is_relative_to(mount):
            break
        if os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK):
            handed = _words(folder / "cgroup.subtree_control")
            found = {name: folder for name in CONTROLLERS if name in handed}
            if len(found) > len(best):
                best = found
    return Parent(2, best) if "memory" in best else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _inside(mount: Path, root: str, group: str) -> Path:
    """Give the directory of a group below a mount that shows the hierarchy from `root` down."""
    relative = os.path.relpath(group, root)
    folder = mount / relative
    return folder if not relative.startswith("..") and folder.is_dir() else mount


def _mounts() -> dict[str, tuple[Path, str]]:
    """Map each version 1 controller, and "" for version 2, to its mount point and the root shown there."""
    found: dict[str, tuple[Path, str]] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            root, point = before.split()[3:5]
            kind, _, options = after.split()[:3]
            if kind == "cgroup2":
                found.setdefault("", (Path(point), root))
            elif kind == "cgroup":
                for controller in set(options.split(",")).intersection(CONTROLLERS):
                    found.setdefault(controller, (Path(point), root))
    return found


def _own() -> dict[str, str]:
    """Map each controller, and "" for version 2, to the group this process is in."""
    found: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = group
    return found
