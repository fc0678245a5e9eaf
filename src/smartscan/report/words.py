"""Phrases that several reports share: moments, paths, causes, states, plurals.

Pure, but for the time zone of this process.
"""

from __future__ import annotations

import errno
import os
import shlex
import time
from collections.abc import Sequence
from typing import NamedTuple

from smartscan import units
from smartscan.catalogue.rows import Mount, Problem, Scan
from smartscan.model import DirState, Rules, path_json, show

# What a directory in this state means for whoever looks for it.
STATES = {
    DirState.FOUND: "not visited yet",
    DirState.LISTED: "read to the end",
    DirState.EXCLUDED: "left out by a rule",
    DirState.DENIED: "this user may not read it",
    DirState.TIMED_OUT: "the storage did not answer",
    DirState.IO_ERROR: "the storage reported an error",
    DirState.OTHER_MOUNT: "on another mount, not entered",
    DirState.VANISHED: "deleted or moved while the scan ran",
}

_FAILING_DISK = "the storage failed to read; look at the system log and at the disk's SMART values"
_REFUSED = (
    "this user may not read it; run the scan as root, or allow it (a file server may refuse root, too)"
)
_CAUSES = {
    errno.EACCES: _REFUSED,
    errno.EPERM: _REFUSED,
    errno.EIO: _FAILING_DISK,
    errno.EREMOTEIO: _FAILING_DISK,
    errno.ENODATA: _FAILING_DISK,
    errno.EBADMSG: "the file system found a wrong checksum; check the file system",
    errno.EUCLEAN: "the file system is damaged; check it (fsck, xfs_repair, btrfs check)",
    errno.ENXIO: "the device behind it is gone; look for a pulled or dead disk",
    errno.ENODEV: "the device behind it is gone; look for a pulled or dead disk",
    errno.ENOMEDIUM: "the device behind it has no medium",
    errno.ESTALE: "the file server no longer knows it (stale handle); mount the share again",
    errno.ENOTCONN: "the program behind this FUSE mount ended; mount it again",
    errno.ECONNABORTED: "the program behind this FUSE mount was cut off; mount it again",
    errno.ECONNRESET: "the connection to the file server broke; look at the network and the server",
    errno.EHOSTDOWN: "the file server does not answer; look at the network and the server",
    errno.EHOSTUNREACH: "the file server cannot be reached; look at the network and the server",
    errno.ELOOP: "the directory contains itself (bind mount, broken file system), so it was not entered",
    errno.ENAMETOOLONG: "its path is longer than this file system accepts",
    errno.ENOENT: "it was deleted or moved while the scan ran",
    errno.ENOTDIR: "it was replaced by something else while the scan ran",
    errno.EOVERFLOW: "the file system reports a number this program cannot hold",
    errno.EFBIG: "its listing did not end; a file system that repeats itself, or far too many entries",
    errno.ENOKEY: "it is encrypted and its key is not loaded",
    errno.ENOMEM: "the kernel had no memory left to read it; try again with fewer containers",
    errno.ENFILE: "too many files are open on this machine; try again with fewer containers",
    errno.EMFILE: "too many files are open in one worker; try again with fewer threads",
}
# What a reader waited in, by the name of the kernel's function, and so whom it waited for.
_WAITS = (
    (("fuse", "request_wait_answer"), "the program behind the FUSE mount"),
    (("nfs", "rpc"), "the NFS server"),
    (("cifs", "smb"), "the SMB server"),
    (("ceph",), "the Ceph cluster"),
    (("io_schedule", "blk", "bit_wait", "folio", "wait_on_page", "xfs_buf", "submit_bio"), "the disk"),
)


def moment(at: float | None) -> str:
    """Show a moment in local time, to the minute; the ends of time stay where they are."""
    if at is None:
        return units.UNKNOWN
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
    except (OverflowError, OSError, ValueError):
        return units.UNKNOWN


def clock(at: float) -> str:
    """Show a moment in local time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def plural(n: int | None, noun: str) -> str:
    """Count a regular noun: 1 chunk, 2 chunks, 3 directories, ? entries."""
    if n == 1:
        return f"1 {noun}"
    return f"{units.count(n)} {noun[:-1] + 'ies' if noun.endswith('y') else noun + 's'}"


def full(mount: Mount, path: bytes) -> str:
    """Show a path of a mount as the user would type it, on one line."""
    return show(mount.absolute(path))


def full_json(mount: Mount, path: bytes) -> dict[str, str]:
    """Give the JSON members of a whole path."""
    return path_json(mount.absolute(path))


def shell_word(text: str) -> str:
    """Quote a word for bash, on one line of letters that every terminal shows as they are."""
    if text.isprintable():
        return shlex.quote(text)
    plain = (chr(c) if 32 <= c < 127 and c not in b"\\'" else f"\\x{c:02x}" for c in os.fsencode(text))
    return f"$'{''.join(plain)}'"


class Commands(NamedTuple):
    """Commands that a report tells to run, as this user has to type them."""

    program: str = "smartscan"  # how the user called it
    db: str | None = None  # where the catalogue is not the default one

    def __call__(self, command: str, *words: str, flags: Sequence[str] = ()) -> str:
        """Give a command line that a shell reads as these words, none of which is a flag."""
        every = [*flags, *(() if self.db is None else ("--db", self.db))]
        plain = not any(word.startswith("-") for word in words)
        ordered = (command, *words, *every) if plain else (command, *every, "--", *words)
        return " ".join((self.program, *map(shell_word, ordered)))

    def scan(self, scan: Scan) -> str:
        """Give the command that goes on with a scan; by other rules than its own it would begin anew."""
        rules = Rules.noted(scan.options)
        flags = [f"--exclude={os.fsdecode(pattern)}" for pattern in rules.patterns]
        if not rules.system_dirs:
            flags.append("--enter-system-dirs")
        if rules.one_file_system:
            flags.append("--one-file-system")
        return self("scan", os.fsdecode(scan.mount.path), scan.mount.name, flags=flags)


INSTALLED = Commands()  # for whoever asks without a command line


def error_name(number: int) -> str:
    """Name an errno as manuals do: EACCES."""
    return errno.errorcode.get(number, f"errno {number}")


def cause(problem: Problem) -> str:
    """Say what is likely behind a problem, and what helps."""
    if problem.cause:
        return problem.cause
    if problem.errno == errno.ETIMEDOUT:
        return f"{_waited_for(problem)} did not answer"
    return _CAUSES.get(problem.errno, f"the system said: {os.strerror(problem.errno)}")


def _waited_for(problem: Problem) -> str:
    wchan = problem.wchan or ""
    for hints, what in _WAITS:
        if any(hint in wchan for hint in hints):
            return what
    fs_type = problem.mount.fs_type or ""
    if fs_type == "fuse.shfs":
        return "a disk behind Unraid's user share"
    if fs_type.startswith("nfs"):
        return "the NFS server"
    if fs_type in ("cifs", "smb3"):
        return "the SMB server"
    if fs_type.startswith("fuse"):
        return "the program behind the FUSE mount"
    return "the storage"
