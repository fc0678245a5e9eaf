"""Small disks of their own, which may be filled to the last byte, for the length of a `with`.

Touches: mounts. Needs root: mark the test `root`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """Mount a file system in memory; unmounted on every way out."""
    with tempfile.TemporaryDirectory(prefix="disk-") as scratch:
        mount_point = Path(scratch, "mnt")
        mount_point.mkdir()
        Path(scratch).chmod(0o755)  # ordinary users may be sent in
        options = f"size={megabytes}m,mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "disk", mount_point], check=True)
        try:
            yield mount_point
        finally:
            subprocess.run(["umount", "--lazy", mount_point], check=True)


def fill(disk: Path, *, leave_bytes: int = 0) -> Path:
    """Fill a disk but for so many bytes; deleting the file that is returned makes room again."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        os.truncate(filler, max(0, file.tell() - leave_bytes))
    return filler
