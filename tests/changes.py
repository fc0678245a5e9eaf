"""Random changes of a tree, as people and programs make them between two scans, or during one.

Touches: the tree it is given.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from random import Random


def change(share: bytes | os.PathLike[str], chance: Random, times: int = 1) -> None:
    """Do so many random things to a tree; what somebody else removes meanwhile is left alone."""
    top = os.fsencode(share)
    for _ in range(times):
        with contextlib.suppress(FileNotFoundError, FileExistsError, NotADirectoryError):
            _change(top, chance)


def _change(top: bytes, chance: Random) -> None:
    folders, files = _tree(top)
    below = folders[1:]
    folder, name = chance.choice(folders), b"new%d.TXT" % chance.randrange(10**9)
    here = os.path.join(folder, name)
    one = len(os.listdir(top)) == 1  # a share that is empty, for a moment even, is taken for one that went
    match chance.randrange(12):
        case 0:
            _write(here, chance.randrange(9000))
        case 1:
            os.makedirs(os.path.join(here, b"deep", b"er"))
            _write(os.path.join(here, b"deep", b"file"), 5)
        case 2 if len(files) > 3 and not one:
            os.unlink(chance.choice(files))
        case 3 if len(below) > 3 and not one:
            shutil.rmtree(chance.choice(below))
        case 4 if len(below) > 3 and not one:  # a file takes the place of a directory
            gone = chance.choice(below)
            shutil.rmtree(gone)
            _write(gone, 7)
        case 5 if files and not one:  # and the other way round
            gone = chance.choice(files)
            os.unlink(gone)
            os.mkdir(gone)
            _write(os.path.join(gone, b"inside"), 9)
        case 6 | 7 if files:
            with contextlib.suppress(PermissionError):
                os.link(chance.choice(files), here, follow_symlinks=False)
        case 8 if below:
            moved = chance.choice(below)
            if not folder.startswith(moved):
                os.rename(moved, here)
        case 9 if files:
            os.rename(chance.choice(files), here)
        case 10 if _regular(files):
            with contextlib.suppress(OSError), open(chance.choice(_regular(files)), "r+b") as file:
                file.truncate(chance.randrange(20_000))
        case _:
            changed = chance.choice(_regular(files) or folders)
            if chance.random() < 0.5:
                os.chmod(changed, chance.choice((0o755, 0o700, 0o750)))
            else:
                os.utime(changed, ns=(0, chance.randrange(-(10**18), 4 * 10**18)))


def _tree(top: bytes) -> tuple[list[bytes], list[bytes]]:
    """List directories, the top first, and everything else."""
    folders, files = [], []
    for folder, below, names in os.walk(top):
        folders.append(folder)
        files += [os.path.join(folder, name) for name in names]
        links = [name for name in below if os.path.islink(os.path.join(folder, name))]
        files += [os.path.join(folder, name) for name in links]
    return folders, files


def _regular(files: Sequence[bytes]) -> list[bytes]:
    return [path for path in files if os.path.isfile(path) and not os.path.islink(path)]


def _write(path: bytes, size: int) -> None:
    with open(path, "xb") as file:
        file.write(bytes(size))
