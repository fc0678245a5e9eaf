"""List directories in Python: the twin of `Walker` in _native.c, for where that was not built.

Touches: the share, read-only, never through a symbolic link, never a file's content.

Writes the same records, byte for byte, and the same slots. Python has no getdents64(2), openat2(2),
fstatfs(2) and fnmatch(3) of its own; they are called in the C library. Threads take turns where they do not
wait for the share, which is where they wait most.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

from smartscan.codec.python import (
    BIG,
    DIRECTORY,
    KIND_DIR,
    KIND_ERROR,
    KNOWN,
    LAST,
    NONE,
    SYMLINK,
    TYPE,
    UNKNOWN,
    Entries,
    Header,
    full_record,
    record,
    unchanged_record,
    xxh64,
)
from smartscan.walk.tokens import (
    M32,
    M64,
    Job,
    Name,
    Node,
    Stat,
    job_token,
    pack_names,
    read_job,
    stat_of,
    unpack_names,
)

SLOT_BYTES = 16384
FOUND, LISTED, EXCLUDED, DENIED, TIMED_OUT, IO_ERROR, OTHER_MOUNT, VANISHED = range(8)
IDLE, OPEN, READDIR, STAT, READLINK = range(5)
FILES, CHAIN = 1, 2  # flags of a job: list only; its ancestors are known
BLOCK_NAMES = 8192  # names of one record; a directory with more is split into blocks
OUT_BYTES = 1 << 20  # a batch ends when it holds this much
DENTS_BYTES = 64 << 10
PATH_MAX = 4096
_SLOT = struct.Struct("<QQQQQIIII")
_DENT = struct.Struct("<QqHB")  # linux_dirent64: d_ino, d_off, d_reclen, d_type; then the name
_TEXT = SLOT_BYTES - _SLOT.size
# File systems of the kernel's own making: nothing on them is stored anywhere.
_PSEUDO = frozenset({
    0x9FA0, 0x62656572, 0x27E0EB, 0x63677270, 0x1CD1, 0x64626720,  # proc sysfs cgroup cgroup2 devpts debugfs
    0x74726163, 0xCAFE4A11, 0x19800202, 0x42494E4D, 0x73636673,  # tracefs bpf mqueue binfmt_misc securityfs
    0xF97CFF8C, 0x6E736673, 0x50495045,  # selinuxfs nsfs pipefs
})  # fmt: skip
_STATES = {
    errno.ENOENT: VANISHED, errno.ENOTDIR: VANISHED, errno.ELOOP: VANISHED,
    errno.EACCES: DENIED, errno.EPERM: DENIED, errno.ETIMEDOUT: TIMED_OUT,
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_OPENAT2 = 437  # on every architecture
_GETDENTS64 = {"x86_64": 217, "aarch64": 61, "riscv64": 61, "armv7l": 217, "i686": 220, "ppc64le": 202}


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_NO_SYMLINKS, _BENEATH = 0x04, 0x08


def _find_getdents(libc: Any) -> Callable[[int, Any, int], int]:
    """glibc has it under its name since 2.30, musl has it as getdents; else by its number."""
    for name in ("getdents64", "getdents"):
        with contextlib.suppress(AttributeError):
            call = getattr(libc, name)
            call.restype = ctypes.c_ssize_t
            call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
            return call  # type: ignore[no-any-return]
    number = _GETDENTS64[platform.machine()]
    return lambda fd, buffer, size: int(libc.syscall(number, fd, buffer, size))


_getdents = _find_getdents(_libc)


def _oserror() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def _join(above: bytes, name: bytes) -> bytes:
    return above + b"/" + name if above else name


def _short(kind: int, path: bytes, state: int, err: int, op: int, own: Stat | None, reason: bytes) -> bytes:
    dev, ino, blocks = (own.dev, own.ino, own.blocks) if own else (0, 0, 0)
    return record(kind, path, LAST, state, err, op, 0, reason, dev, ino, blocks, 0, 0)


class Slot:
    """What this thread does now; see walk.Slot, which reads it."""

    __slots__ = ("_at", "_path_len", "_view")

    def __init__(self, view: memoryview, number: int) -> None:
        if not 0 <= number < len(view) // SLOT_BYTES:
            raise IndexError("no such slot")
        self._view, self._at, self._path_len = view, number * SLOT_BYTES, 0

    def path(self, path: bytes) -> None:
        """Name the directory; one that is too long is cut at a component, so that an ancestor is named."""
        if len(path) > _TEXT:
            path = path[:path.rfind(b"/", 0, _TEXT + 1)]
        struct.pack_into("<III", self._view, self._at + 40, IDLE, len(path), 0)
        text = self._at + _SLOT.size
        self._view[text:text + len(path)] = path
        self._path_len = len(path)

    def op(self, op: int, name: bytes = b"") -> None:
        """Say what is being called on which name of the directory."""
        name = name[:_TEXT - self._path_len]
        text = self._at + _SLOT.size + self._path_len
        self._view[text:text + len(name)] = name
        struct.pack_into("<III", self._view, self._at + 40, op, self._path_len, len(name))
        self._add(0, 1)
        while any(self._view[self._at + 52:self._at + 56]):  # given up: see slot_op in _native.c
            time.sleep(0.1)

    def idle(self) -> None:
        """Nothing can hang now."""
        self._path_len = 0
        self.op(IDLE)

    def count(self, entries: int, dirs: int, size: int, blocks: int) -> None:
        """Add to what this thread has seen."""
        for i, n in enumerate((entries, dirs, size, blocks), 1):
            self._add(i, n)

    def _add(self, number: int, n: int) -> None:
        at = self._at + 8 * number
        (have,) = struct.unpack_from("<Q", self._view, at)
        struct.pack_into("<Q", self._view, at, have + n & M64)


Tokens = list[bytes]


class Walker:
    """Lists directories of an open share. May be used by many threads at once, each with its own slot."""

    def __init__(self, root_fd: int, shared: Any, patterns: tuple[bytes, ...],
                 one_file_system: bool, depth: int, sizes_only: bool) -> None:
        self.root_fd, self.one_file_system, self.depth = root_fd, one_file_system, depth
        self.sizes_only = sizes_only
        self.view = memoryview(shared).cast("B")
        self.patterns = patterns
        self.known: dict[int, tuple[int, int]] = {}
        self.root_dev = stat_of(os.fstat(root_fd)).dev
        self.noatime = os.O_NOATIME
        self.has_openat2 = self._try_openat2()
        self.avoided: set[bytes] = set()
        self.held: set[bytes] = set()
        self.hushed: set[bytes] = set()
        self.stopped = False
        self._limits, self._seen, self._seeing = (0, 0), (0, 0), threading.Lock()

    def avoid(self, path: bytes, why: int) -> None:
        """Leave a path alone, see walk.AVOID and the others."""
        {1: self.avoided, 2: self.held, 4: self.hushed}[why].add(path)

    def know(self, told: bytes) -> None:
        """Take what `codec.known` gives for the directories of the last scan; once, at any time."""
        known: dict[int, tuple[int, int]] = {}
        for key, digest, id_ in KNOWN.iter_unpack(told[:len(told) // KNOWN.size * KNOWN.size]):
            known.setdefault(key or 1, (digest, id_))
        self.known = self.known or known

    def limit(self, entries: int, blocks: int) -> None:
        """Have who reaches one of them stop all; 0: none."""
        self._limits = entries, blocks

    def seen(self) -> tuple[int, int]:
        """Entries and blocks, by all threads."""
        return self._seen

    def count(self, entries: int, blocks: int) -> None:
        """Note what was seen."""
        with self._seeing:
            self._seen = self._seen[0] + entries, self._seen[1] + blocks
            if any(limit and seen >= limit for limit, seen in zip(self._limits, self._seen, strict=True)):
                self.stopped = True

    def stop(self) -> None:
        """End batches at the next directory."""
        self.stopped = True

    def walk(self, jobs: Tokens, slot: int, budget_ns: int) -> tuple[bytes, Tokens, Tokens, Any]:
        """List directories depth first until the budget is spent; see _native.Walker.walk."""
        batch = Batch(self, Slot(self.view, slot))
        batch.stack = [read_job(token) for token in reversed(jobs)]
        large = None
        until = time.monotonic_ns() + budget_ns
        while batch.stack and large is None:
            job = batch.stack.pop()
            if job.path in self.avoided:
                continue
            large = batch.visit(job)
            if large is None and (self.stopped or batch.length >= OUT_BYTES or time.monotonic_ns() >= until):
                break
        batch.slot.idle()
        return *batch.result(), large

    def read_names(self, fd: int, path: bytes, slot: int) -> tuple[bytes, int, int]:
        """Read more names of a large directory: (names, how many, 1 at the end or -errno on an error)."""
        here = Slot(self.view, slot)
        here.path(path)
        names, end = _read_names(fd, here)
        here.idle()
        return pack_names(names), len(names), end

    def stat_names(self, token: bytes, fd: int, names: bytes, dev: int, ino: int, own_blocks: int, block: int,
                   slot: int) -> tuple[bytes, Tokens, Tokens]:
        """Make the record of a block of a large directory; see _native.Walker.stat_names."""
        batch = Batch(self, Slot(self.view, slot))
        job = read_job(token)
        node = Node(dev, ino, job.above.depth + 1 if job.above else 1, job.above)
        batch.slot.path(job.path)
        header = NONE._replace(dev=dev, ino=ino, own_blocks=own_blocks, block=block, flags=BIG, state=LISTED)
        batch.write(fd, job, node, unpack_names(names), header)
        if job.flags & FILES:
            batch.take_left(0)
        batch.slot.idle()
        return batch.result()

    # -- opening -----------------------------------------------------------------------------------------

    def _try_openat2(self) -> bool:
        try:
            os.close(self._openat2(self.root_fd, b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    def _openat2(self, fd: int, path: bytes, flags: int) -> int:
        how = _How(flags, 0, _NO_SYMLINKS | _BENEATH)
        got = _libc.syscall(_OPENAT2, ctypes.c_int(fd), ctypes.c_char_p(path), ctypes.byref(how),
                            ctypes.c_size_t(ctypes.sizeof(how)))
        if got < 0:
            raise _oserror()
        return int(got)

    def _hop(self, fd: int, path: bytes, *, last: bool) -> int:
        """One hop, never through a symbolic link; on the way a directory must be searchable only."""
        flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        flags |= os.O_RDONLY | os.O_NONBLOCK if last else os.O_PATH
        while True:
            noatime = self.noatime if last else 0
            try:
                if self.has_openat2:
                    return self._openat2(fd, path, flags | noatime)
                return os.open(path, flags | noatime, dir_fd=fd)
            except OSError as e:
                if e.errno != errno.EPERM or not noatime:
                    raise
                self.noatime = 0  # somebody else's directory: then most of them are

    def open(self, path: bytes, *, read: bool = True) -> int:
        """Open a directory relative to the share (`read`: to list it), however long its path is."""
        if not path:
            return self._hop(self.root_fd, b".", last=read)
        fd, at = self.root_fd, 0
        try:
            while True:
                end = len(path) if len(path) - at < PATH_MAX else path.rfind(b"/", at, at + PATH_MAX)
                if not self.has_openat2:
                    slash = path.find(b"/", at)
                    end = len(path) if slash < 0 else slash
                if end <= at:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
                next_fd = self._hop(fd, path[at:end], last=read and end == len(path))
                if fd != self.root_fd:
                    os.close(fd)
                fd, at = next_fd, end + 1
                if at > len(path):
                    return fd
        except OSError:
            if fd != self.root_fd:
                os.close(fd)
            raise

    def excluded(self, above: bytes, name: bytes) -> bytes | None:
        """Give the pattern by which a directory is not entered."""
        for pattern in self.patterns:
            text = _join(above, name) if b"/" in pattern else name
            if _libc.fnmatch(pattern.removeprefix(b"/"), text, 0) == 0:
                return pattern
        return None


def _read_names(fd: int, slot: Slot) -> tuple[list[Name], int]:
    """Read names until a block is full; and 1 at the end of them, 0 before, or -errno on an error."""
    names: list[Name] = []
    buffer = ctypes.create_string_buffer(DENTS_BYTES)
    while len(names) < BLOCK_NAMES:
        slot.op(READDIR)
        got = _getdents(fd, buffer, DENTS_BYTES)
        if got <= 0:
            return names, -ctypes.get_errno() if got else 1
        data, at = ctypes.string_at(buffer, got), 0
        while at < got:
            ino, _, length, kind = _DENT.unpack_from(data, at)
            start = at + 19
            name = data[start:data.index(b"\0", start)]
            at += length
            if name and name not in (b".", b"..") and b"/" not in name:
                names.append(Name(name, ino, kind))
    return names, 0


def _is_pseudo(fd: int) -> bool:
    buffer = ctypes.create_string_buffer(512)
    if _libc.fstatfs(fd, buffer):
        return False
    (kind,) = struct.unpack_from("@l", buffer)
    return kind & M32 in _PSEUDO


class Batch:
    """One call: what was found, and what is still to do."""

    def __init__(self, walker: Walker, slot: Slot) -> None:
        self.walker, self.slot = walker, slot
        self.out: list[bytes] = []
        self.length = 0
        self.stack: list[Job] = []
        self.left: list[Job] = []  # subdirectories of a FILES root: not ours to list

    def visit(self, job: Job) -> Any:
        """List one directory; gives what the caller needs where it has more than one block of names."""
        opened = self._open(job)
        if opened is not None:
            fd, job, own, node = opened
            names, end = _read_names(fd, self.slot)
            if end == 0:
                return job_token(job), fd, pack_names(names), own.dev, own.ino, own.blocks
            state = LISTED
            if end < 0:
                state = _STATES.get(-end, IO_ERROR)
                if state == VANISHED:
                    there = self._is_there(job.path)
                    removed = own.nlink and there and not there.nlink  # its name lasts longer than its links
                    if there and (there.ino, there.dev) == (own.ino, own.dev) and not removed:
                        state = IO_ERROR  # it was not removed while it was read, and lies
            header = NONE._replace(dev=own.dev, ino=own.ino, own_blocks=own.blocks, flags=LAST, state=state,
                                   err=max(-end, 0), op=READDIR if end < 0 else 0)
            before = len(self.stack)
            self.write(fd, job, node, names, header, own)
            if job.flags & FILES:
                self.take_left(before)
            os.close(fd)
        self.slot.count(0, 1, 0, 0)
        return None

    def result(self) -> tuple[bytes, Tokens, Tokens]:
        """Records, jobs not done, subdirectories of FILES roots."""
        return b"".join(self.out), [job_token(j) for j in self.stack], [job_token(j) for j in self.left]

    def take_left(self, keep: int) -> None:
        """Put the jobs above the first `keep` aside."""
        while len(self.stack) > keep:
            self.left.append(self.stack.pop())

    def write(self, fd: int, job: Job, node: Node, names: list[Name], header: Header,
              own: Stat | None = None) -> None:
        """Stat the names, write their record; subdirectories go on the stack, or are recorded as excluded."""
        hushed = job.path in self.walker.hushed
        if hushed and header.state == LISTED and not header.flags & BIG:
            header = header._replace(state=TIMED_OUT, err=errno.ETIMEDOUT, op=READDIR)
        found = self._stat_all(fd, job, names, own, hushed)
        found.sort(key=lambda one: one[0].name)
        once = [one for i, one in enumerate(found) if not i or one[0].name != found[i - 1][0].name]
        if len(once) < len(found):
            self._error(job.path, READDIR, errno.EEXIST)
        columns = list(zip(*(st[:9] for _, st, _ in once), strict=True)) or [()] * 9
        size, blocks, mtime, ctime, ino, nlink, mode, uid, gid = (
            array(code, column) for code, column in zip("QQqqQIIII", columns, strict=True))
        entries = Entries([n.name for n, _, _ in once], size, blocks, mtime, ctime, ino, nlink, mode, uid,
                          gid, [target for _, st, target in once if st.mode & TYPE == SYMLINK])
        data = full_record(header, job.path, entries)
        others = [st for _, st, _ in once if st.mode & TYPE != DIRECTORY]
        own_blocks = sum(st.blocks for st in others)
        self.slot.count(len(once), 0, sum(st.size for st in others), own_blocks)
        self.walker.count(len(once), own_blocks)
        if once and header.flags == LAST and header.state == LISTED:
            known_id = self._known_id(job.path, data)
            if known_id or (self.walker.sizes_only and self._sums_will_do(once)):
                data = unchanged_record(data, known_id)
        for name, st, _ in reversed(once):
            if st.mode & TYPE == DIRECTORY:
                self._subdirectory(job, node, name.name, st)
        self._emit(data)

    def _sums_will_do(self, found: list[tuple[Name, Stat, bytes]]) -> bool:
        """Whether nobody who wants only sizes needs the entries themselves."""
        return not any(st.mode & UNKNOWN or (st.nlink > 1 and st.mode & TYPE != DIRECTORY)
                       for _, st, _ in found)

    def _known_id(self, path: bytes, data: bytes) -> int:
        """Give the number of a directory that was there with this digest in the last scan, else 0."""
        known = self.walker.known
        digest, id_ = known.get(xxh64(path) or 1, (0, 0)) if known else (0, 0)
        return id_ if digest == int.from_bytes(data[24:32], "little") else 0

    def _stat_all(self, fd: int, job: Job, names: list[Name], own: Stat | None,
                  hushed: bool) -> list[tuple[Name, Stat, bytes]]:
        found = []
        gone: list[tuple[Name, Stat | None]] = []
        for name in sorted(names, key=lambda n: n.ino):  # on a disk that is the order of the inode tables
            failed, target = 0, b""
            alone = hushed or (bool(self.walker.avoided)
                               and _join(job.path, name.name) in self.walker.avoided)
            if alone:
                failed = errno.ETIMEDOUT
            else:
                self.slot.op(STAT, name.name)
                try:
                    st = stat_of(os.stat(name.name, dir_fd=fd, follow_symlinks=False))
                except OSError as e:
                    failed = e.errno or errno.EIO
            if failed == errno.ENOENT:
                gone.append((name, None))
                continue
            if failed:
                st = self._nameless(name)
                if not alone:
                    self._error(_join(job.path, name.name), STAT, failed)
            elif st.mode & TYPE == SYMLINK:
                self.slot.op(READLINK, name.name)
                try:
                    target = os.readlink(name.name, dir_fd=fd)
                except OSError as e:
                    if e.errno == errno.ENOENT:
                        gone.append((name, st))
                        continue
                    self._error(_join(job.path, name.name), READLINK, e.errno or errno.EIO)
                target = target[:st.size + 1 if 0 < st.size < PATH_MAX else PATH_MAX]
            found.append((name, st, target))
        if gone and own and self._unchanged(fd, own):  # nothing was removed: they are named, and lie
            for name, seen in gone:
                self._error(_join(job.path, name.name), READLINK if seen else STAT, errno.ENOENT)
                found.append((name, seen or self._nameless(name), b""))
        return found

    def _nameless(self, name: Name) -> Stat:
        return Stat(0, 0, 0, 0, 0, 0, UNKNOWN | name.type << 12, 0, 0, -1)

    def _unchanged(self, fd: int, own: Stat) -> bool:
        """Whether a directory is as it was when it was opened, by its own times."""
        self.slot.op(STAT)
        with contextlib.suppress(OSError):
            now = stat_of(os.fstat(fd))
            return (now.mtime_ns, now.ctime_ns) == (own.mtime_ns, own.ctime_ns)
        return False

    def _subdirectory(self, job: Job, node: Node, name: bytes, st: Stat) -> None:
        path = _join(job.path, name)
        if path in self.walker.avoided or path in self.walker.held:
            return  # reported by who found it stuck
        own = st if not st.mode & UNKNOWN else None
        rule = self.walker.excluded(job.path, name)
        if rule is not None:
            self._emit(_short(KIND_DIR, path, EXCLUDED, 0, 0, own, rule))
        elif own and self.walker.one_file_system and own.dev != self.walker.root_dev:
            self._emit(_short(KIND_DIR, path, OTHER_MOUNT, 0, 0, own, b"--one-file-system"))
        else:
            self.stack.append(Job(path, CHAIN, node))

    def _emit(self, data: bytes) -> None:
        self.out.append(data)
        self.length += len(data)

    def _error(self, path: bytes, op: int, err: int) -> None:
        self._emit(_short(KIND_ERROR, path, 0, err, op, None, b""))

    def _chain(self, path: bytes) -> Node | None:
        """Ancestors of a root are not known: ask for each, once per root, step by step."""
        if not path:
            return None
        top = fd = self.walker.root_fd
        node = None
        try:
            st = stat_of(os.fstat(fd))
            node = Node(st.dev, st.ino, 1, None)
            for name in path.split(b"/")[:-1]:
                above, fd = fd, os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                if above != top:
                    os.close(above)
                st = stat_of(os.fstat(fd))
                node = Node(st.dev, st.ino, node.depth + 1, node)
        except OSError:
            pass
        finally:
            if fd != top:
                os.close(fd)
        return node

    def _is_there(self, path: bytes) -> Stat | None:
        """Ask for a directory that could not be opened or read."""
        self.slot.op(STAT)
        try:
            fd = self.walker.open(path, read=False)
        except OSError:
            return None
        try:
            return stat_of(os.fstat(fd))
        except OSError:
            return None
        finally:
            os.close(fd)

    def _open(self, job: Job) -> tuple[int, Job, Stat, Node] | None:
        """Open a directory and judge it; None when its record is written."""
        walker, slot, path = self.walker, self.slot, job.path
        slot.path(path)
        if not job.flags & CHAIN:
            slot.op(OPEN)
            job = job._replace(above=self._chain(path), flags=job.flags | CHAIN)
        if job.above and job.above.depth > walker.depth:
            why = b"deeper than the depth limit"
            self._emit(_short(KIND_DIR, path, IO_ERROR, errno.ELOOP, OPEN, None, why))
            return None
        slot.op(OPEN)
        try:
            fd = walker.open(path)
        except OSError as e:
            err, own = e.errno or errno.EIO, None
            state = _STATES.get(err, IO_ERROR)
            if state in (DENIED, VANISHED):
                own = self._is_there(path)
            if own and state == VANISHED:
                state = IO_ERROR  # it is there, and lies
            self._emit(_short(KIND_DIR, path, state, err, OPEN, own, b""))
            return None
        slot.op(STAT)
        try:
            own = stat_of(os.fstat(fd))
        except OSError as e:
            os.close(fd)
            err = e.errno or errno.EIO
            self._emit(_short(KIND_DIR, path, _STATES.get(err, IO_ERROR), err, STAT, None, b""))
            return None
        why, node = b"", job.above
        while node and not why:
            if (node.ino, node.dev) == (own.ino, own.dev):
                why = b"loop: the same directory as one above it"
            node = node.above
        if not why and job.above and job.above.dev != own.dev and _is_pseudo(fd):
            why = b"pseudo file system"
        if why:
            os.close(fd)
            self._emit(_short(KIND_DIR, path, OTHER_MOUNT, 0, 0, own, why))
            return None
        return fd, job, own, Node(own.dev, own.ino, job.above.depth + 1 if job.above else 1, job.above)
