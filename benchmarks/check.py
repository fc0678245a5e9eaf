"""Check a catalogue against its tree, entry by entry, with find(1) as the judge.

Touches: the catalogue (reading), the tree through find.

    python benchmarks/check.py PATH CATALOGUE

Prints the number of entries and exits 0 where both name the same entries with the same inode, size and time;
else says what differs and exits 1. Entries are compared by the sum of their hashes first, so that memory does
not grow with the tree, and one by one where that differs.
"""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

SHOWN = 10  # of the entries that differ


def found(path: bytes) -> Iterator[bytes]:
    """Give every entry below a path as find(1) sees it: inode, size, time, name, between spaces."""
    command = [b"find", path, b"-mindepth", b"1", b"-printf", b"%i %s %T@ %P\\0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        rest = b""
        while data := process.stdout.read(1 << 20):
            *lines, rest = (rest + data).split(b"\0")
            for line in lines:
                ino, size, at, name = line.split(b" ", 3)
                seconds, _, fraction = at.partition(b".")
                yield b" ".join((ino, size, seconds + fraction[:9], name))
    if process.returncode:
        raise SystemExit(f"find ended with status {process.returncode}")


def catalogued(file: Path) -> Iterator[bytes]:
    """Give every entry of the one mount of a catalogue, in the same words."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        path: dict[int, bytes] = {}
        rows = db.execute("SELECT id, parent_id, CAST(name AS BLOB) FROM dir ORDER BY id").fetchall()
        parents = {i: (parent, name) for i, parent, name in rows}

        def full(i: int) -> bytes:
            names, at = [], i
            while at not in path:
                parent, name = parents[at]
                if parent is None:
                    path[at] = b""
                    break
                names.append((at, name))
                at = parent
            for below, name in reversed(names):
                path[below] = path[at] + name + b"/"
                at = below
            return path[i]

        for dir_id, name, ino, size, mtime in db.execute(
            "SELECT dir_id, CAST(name AS BLOB), ino, size, mtime_ns FROM entry"
        ):
            yield b"%d %d %d %s%s" % (ino % 2**64, size, mtime, full(dir_id), name)


def sum_up(entries: Iterator[bytes]) -> tuple[int, int]:
    """Give the number of entries and the sum of their hashes."""
    count = total = 0
    for entry in entries:
        count += 1
        total += int.from_bytes(hashlib.blake2b(entry, digest_size=8).digest(), "little")
    return count, total % 2**64


def main(path: bytes, file: Path) -> int:
    """Compare; returns the exit status."""
    count, total = sum_up(catalogued(file))
    expected = sum_up(found(path))
    print(count)
    if (count, total) == expected:
        return 0
    print(f"the catalogue has {count} entries, the tree {expected[0]}", file=sys.stderr)
    differ = set(catalogued(file)) ^ set(found(path))
    for entry in islice(sorted(differ), SHOWN):
        print(entry, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].encode(), Path(sys.argv[2])))
