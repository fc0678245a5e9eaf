"""A directory of more than one block of names, which many threads read at once.

Touches: its part, in the attempt's folder; never the share.
"""

from __future__ import annotations

import errno

from smartscan.model import DirState, Op
from smartscan.shard import (
    BIG,
    IO_ERROR,
    KIND_DIR,
    LAST,
    LISTED,
    TIMED_OUT,
    Part,
    block_digest,
    fold,
    record,
)
from smartscan.walk import job_path


class Large:
    """What is known of such a directory while it is read; the walker's lock guards it."""

    def __init__(self, token: bytes, fd: int, dev: int, ino: int, own_blocks: int, part: Part) -> None:
        self.token, self.fd, self.dev, self.ino, self.own_blocks = token, fd, dev, ino, own_blocks
        self.part = part
        self.blocks = 0
        self.waiting = 0  # blocks not written yet
        self.entries = 0
        self.ended = False  # no more names come
        self.hushed = False  # too many of its names hang: the others are not touched
        self.state, self.err, self.reason = LISTED, 0, ""
        self.digests: dict[int, int] = {}

    def named(self, count: int, end: int, *, most: int) -> None:
        """Note how a call for more names ended: `end` is 1 at the end, -errno on an error, else 0."""
        self.entries += count
        if end < 0:
            self.err, self.state = -end, IO_ERROR
        elif self.entries > most:
            self.err, self.state = errno.EFBIG, IO_ERROR
            self.reason = f"listing given up after {self.entries} names"
        self.ended = bool(end) or self.state != LISTED

    def hung(self) -> None:
        """Note that its listing hangs: what was read of it stays, nothing more comes."""
        self.ended, self.state, self.err = True, TIMED_OUT, errno.ETIMEDOUT
        self.reason = DirState.TIMED_OUT.value

    def begin_block(self) -> int:
        """Give the number of a block that somebody will write."""
        self.waiting += 1
        self.blocks += 1
        return self.blocks - 1

    def write_block(self, number: int, records: bytes) -> None:
        """Take a block in; raises OSError where the output disk is full."""
        self.part.write(records)
        self.digests[number] = block_digest(records)
        self.waiting -= 1

    def last_record(self) -> bytes:
        """Make the record that ends it, once no block is waiting."""
        if self.hushed and self.state == LISTED:
            self.state, self.err, self.reason = TIMED_OUT, errno.ETIMEDOUT, DirState.TIMED_OUT.value
        listed = self.state == LISTED
        return record(
            KIND_DIR,
            job_path(self.token),
            flags=LAST | BIG,
            state=self.state,
            err=self.err,
            op=Op.READDIR if self.err else 0,
            block=self.blocks,
            reason=self.reason,
            dev=self.dev,
            ino=self.ino,
            own_blocks=self.own_blocks,
            dir_digest=fold(self.digests[i] for i in sorted(self.digests)) if listed else 0,
        )
