"""Other file systems than that of the temporary directory: the kernel's own, and some of FUSE.

What a catalogue holds is what find(1) and du(1) see, and a file system that was mounted anew is as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import catalogues
from command import run, scan, scan_words
from smartscan.faults.mount import unmount
from trees import ODD_NAMES, Fifo, File, Hard, Link, Listed, Tree, build, find_listing

pytestmark = [pytest.mark.root, pytest.mark.slow]

TREE: Tree = {
    "odd": {name: number for number, name in enumerate(ODD_NAMES)},
    "large": {f"{n:05d}": 0 for n in range(9000)},
    "deep": {"a": {"b": {"c": {"d": {"e": {"f": 100_000}}}}}},
    "names": {"one": 6000, "two": Hard("names/one"), "below": {"three": Hard("names/one")}},
    "sparse": File(2**29, sparse=True),
    "old": File(5, mtime_ns=10**18),
    "link": Link("old"),
    "pipe": Fifo(),
    "empty": {},
}
SFTP_SERVER = Path("/usr/lib/openssh/sftp-server")
IMAGE_BYTES = 2**29

Mount = Callable[[Path], None]


def need(*commands: str) -> None:
    for command in commands:
        if not (shutil.which(command) or Path(command).exists()):
            pytest.skip(f"needs {command}")


def call(*words: object) -> None:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


def image(folder: Path, *make: str) -> Path:
    need(make[0])
    file = folder / f"{make[0]}.img"
    with open(file, "wb") as new:
        new.truncate(IMAGE_BYTES)
    call(*make, file)
    return file


def loop(file: Path) -> Mount:
    return lambda at: call("mount", "-o", "loop", file, at)


@contextlib.contextmanager
def mounted(mount: Mount, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    mount(at)
    try:
        yield at
    finally:
        unmount(at)


def xfs(folder: Path) -> Mount:
    file = image(folder, "mkfs.xfs", "-q")
    with mounted(loop(file), folder / "mnt") as at:
        build(at, TREE)
    return loop(file)


def btrfs(folder: Path) -> Mount:
    """With a subvolume, whose files have a device of their own, and a snapshot, whose files are others'."""
    file = image(folder, "mkfs.btrfs", "-q")
    with mounted(loop(file), folder / "mnt") as at:
        build(at, TREE)
        call("btrfs", "subvolume", "create", at / "volume")
        build(at / "volume", TREE)
        call("btrfs", "subvolume", "snapshot", at / "volume", at / "snapshot")
    return loop(file)


def squashfs(folder: Path) -> Mount:
    need("mksquashfs")
    build(plain(folder, "from"), TREE)
    call("mksquashfs", folder / "from", folder / "squash.img", "-quiet", "-no-progress")
    return loop(folder / "squash.img")


def overlay(folder: Path) -> Mount:
    """With a directory that is replaced, a file that is removed and one that is changed."""
    build(plain(folder, "lower"), TREE)
    call("mount", "-t", "tmpfs", "none", plain(folder, "tmpfs"))
    upper, work = plain(folder, "tmpfs/upper"), plain(folder, "tmpfs/work")
    options = f"lowerdir={folder / 'lower'},upperdir={upper},workdir={work}"

    def mount(at: Path) -> None:
        call("mount", "-t", "overlay", "-o", options, "none", at)

    with mounted(mount, folder / "mnt") as at:
        shutil.rmtree(at / "deep")
        build(at, {"deep": {"other": 1}})
        (at / "large/00007").unlink()
        (at / "large/00008").write_text("changed")
    return mount


def mergerfs(folder: Path) -> Mount:
    need("mergerfs")
    build(plain(folder, "one"), TREE)
    build(plain(folder, "two"), {"names": {"four": 4, "one": 1}, "large": {f"x{n}": 0 for n in range(100)}})
    return lambda at: call("mergerfs", f"{folder / 'one'}:{folder / 'two'}", at)


def sshfs(folder: Path) -> Mount:
    """It invents inode numbers, in the order in which it is asked."""
    need("sshfs", os.fspath(SFTP_SERVER))
    build(plain(folder, "from"), TREE)
    server = folder / "ssh"
    server.write_text(f"#!/bin/sh\nexec {SFTP_SERVER}\n")
    server.chmod(0o755)
    return lambda at: call("sshfs", "-o", f"ssh_command={server}", f"nobody:{folder / 'from'}", at)


def plain(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def as_found(share: Path) -> dict[bytes, Listed]:
    return {path: one._replace(dev=0) for path, one in find_listing(share).items() if path}


@pytest.mark.parametrize("made", [xfs, btrfs, squashfs, overlay, mergerfs, sshfs])
def test_it_is_catalogued_as_find_and_du_see_it(tmp_path: Path, made: Callable[[Path], Mount]) -> None:
    folder, db = plain(tmp_path, "fs"), plain(tmp_path, "data") / "smart_catalog.db"
    try:
        mount = made(folder)
        with mounted(mount, folder / "mnt") as share:
            scan(share, db)
            assert catalogues.listing(db) == as_found(share)
            used = subprocess.run(["du", "-s", "-B1", share], capture_output=True, check=True).stdout
            assert catalogues.totals(db)[b""][3] == int(used.split()[0])
            assert differences(share, db) == [0, 0, 0]
        with mounted(mount, folder / "mnt") as share:
            for path in sorted(find_listing(share), reverse=True):
                os.lstat(os.path.join(os.fsencode(share), path))
            assert differences(share, db) == [0, 0, 0]
    finally:
        unmount(folder / "tmpfs")


def differences(share: Path, db: Path) -> list[int]:
    """Scan once more; give how many entries are new, changed and gone."""
    said = json.loads(run(*scan_words(share, db, "--json")).stdout)
    return [said[f"entries_{what}"] for what in ("new", "changed", "gone")]
