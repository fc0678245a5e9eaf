"""A pass-through FUSE file system that fails where it is told to, in the standard library alone.

Touches: /dev/fuse (needs root), REAL_ROOT. It speaks the kernel's protocol itself; no libfuse.

    filesystem.py MOUNTPOINT REAL_ROOT RULES.json [--log FILE] [--ready FILE] [--direct-io]
                  [--entry-cache S] [--attr-cache S]

RULES.json is read again whenever it changes, and what hung on a rule is then answered by the new ones:

    {"rules": [{"path": "a/b*",            a pattern on the path below the mount; "" is the root, "*" is all
                "op": ["readdir", ...],    as in OPERATIONS; "*" is all, and the default
                "do": "hang" | "slow" | "errno",
                "ms": 200,                 for slow: answered that much later; others are not held up
                "errno": "EIO",
                "skip": 0, "count": null   leave the first ones alone; then only so many
               }, ...],                    the first rule that matches counts
     "virtual": [{"path": "dir", "kind": "endless" | "many" | "names" | "dup" | "loop", ...}],
     "interrupt": "ignore" | "eintr" | "enosys",  what a hung request does when its reader gets a signal
     "ino_offset": 0   added to each inode number, as of a file system that invents them anew
    }

Virtual kinds: endless adds e-000000000000, ... without end to the directory, many only `n` of them;
names adds those given as `hex`, with d_type `dtype`; dup adds the name dup `n` times; loop adds a
directory (`name`) that is the directory itself.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import errno
import fnmatch
import heapq
import json
import os
import re
import select
import signal
import stat
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

OPERATIONS = {
    1: "lookup", 2: "forget", 3: "getattr", 4: "setattr", 5: "readlink", 6: "symlink", 8: "mknod",
    9: "mkdir", 10: "unlink", 11: "rmdir", 12: "rename", 13: "link", 14: "open", 15: "read", 16: "write",
    17: "statfs", 18: "release", 20: "fsync", 21: "setxattr", 22: "getxattr", 23: "listxattr",
    24: "removexattr", 25: "flush", 26: "init", 27: "opendir", 28: "readdir", 29: "releasedir",
    30: "fsyncdir", 31: "getlk", 32: "setlk", 33: "setlkw", 34: "access", 35: "create", 36: "interrupt",
    38: "destroy", 39: "ioctl", 42: "batch_forget", 43: "fallocate", 44: "readdirplus", 45: "rename2",
    46: "lseek", 47: "copy_file_range", 50: "syncfs", 51: "tmpfile", 52: "statx",
}  # fmt: skip
# Where the body of a request has the name of the entry it is about.
NAME_AT = {"lookup": 0, "unlink": 0, "rmdir": 0, "mkdir": 8, "mknod": 16, "create": 16}

REQUEST = struct.Struct("<IIQQIIIHH")
REPLY = struct.Struct("<IiQ")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
MASK = 2**64 - 1
REQUEST_BYTES = 2**20 + 2**16  # the largest write, and its header
PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


class Request(NamedTuple):
    op: str
    unique: int
    node: int
    pid: int
    body: bytes


@dataclass(slots=True)
class Rule:
    """One line of RULES.json."""

    matches: Callable[[bytes], object] | None  # None: every path
    ops: frozenset[str] | None  # None: every operation
    do: str
    ms: float
    errno: int
    skip: int
    count: int | None
    seen: int = 0

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Rule:
        pattern, ops, count = os.fsencode(data["path"]), data.get("op", "*"), data.get("count")
        regex = fnmatch.translate(pattern.decode("latin-1")).encode("latin-1")
        return cls(
            matches=None if pattern == b"*" else re.compile(regex, re.DOTALL).match,
            ops=None if ops == "*" else frozenset([ops] if isinstance(ops, str) else ops),
            do=data["do"],
            ms=data.get("ms", 200),
            errno=getattr(errno, data.get("errno", "EIO")),
            skip=data.get("skip", 0),
            count=count,
        )

    def applies(self, path: bytes) -> bool:
        """Tell whether this request is to fail; counts it."""
        if self.matches and not self.matches(path):
            return False
        self.seen += 1
        return self.seen > self.skip and (self.count is None or self.seen <= self.skip + self.count)


@dataclass(slots=True)
class Orders:
    """RULES.json, as it is now."""

    file: str
    stamp: tuple[int, int] | None = None
    rules: list[Rule] = field(default_factory=list)
    by_op: dict[str, list[Rule]] = field(default_factory=dict)
    virtual: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    interrupt: str = "ignore"
    ino_offset: int = 0

    def reload(self) -> bool:
        """Read the file if it changed; tell whether it did."""
        try:
            found = os.stat(self.file)
            stamp = found.st_ino, found.st_mtime_ns  # replaced twice within a tick, its time is the same
            if stamp == self.stamp:
                return False
            with open(self.file) as stream:
                data = json.load(stream)
        except (OSError, ValueError):  # being replaced
            return False
        self.stamp = stamp
        self.rules = [Rule.from_json(rule) for rule in data.get("rules", [])]
        self.by_op = {
            op: [rule for rule in self.rules if rule.ops is None or op in rule.ops]
            for op in OPERATIONS.values()
        }
        self.virtual = {os.fsencode(kind["path"]): kind for kind in data.get("virtual", [])}
        self.interrupt = data.get("interrupt", "ignore")
        self.ino_offset = data.get("ino_offset", 0)
        return True

    def find(self, op: str, path: bytes) -> Rule | None:
        for rule in self.by_op.get(op, ()):
            if rule.applies(path):
                return rule
        return None


class FaultFS:
    """The file system: one thread, which waits only for the next request or the next due answer."""

    def __init__(self, mount_point: str, root: str, orders: Orders, *, log: str | None = None,
                 direct_io: bool = False, entry_cache_s: float = 1.0, attr_cache_s: float = 1.0) -> None:
        self.mount_point = os.fsencode(mount_point)
        self.root = os.fsencode(root)
        self.orders = orders
        self.log = open(log, "a", buffering=1) if log else None  # noqa: SIM115  # as long as the process
        self.direct_io = direct_io
        self.entry_cache = _seconds(entry_cache_s)
        self.attr_cache = _seconds(attr_cache_s)
        self.fd = -1
        # Nodes are paths: what is renamed keeps its node.
        self.paths: dict[int, bytes] = {1: b""}
        self.nodes: dict[bytes, int] = {b"": 1}
        self.lookups: collections.Counter[int] = collections.Counter()
        self.next_node = 2
        self.handles: dict[int, Any] = {}
        self.next_handle = 1
        self.hung: dict[int, Request] = {}
        self.due: list[tuple[float, int, bytes]] = []  # answers of slow rules
        orders.reload()

    # The loop

    def mount(self) -> None:
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions" % self.fd
        if libc.mount(b"faultfs", self.mount_point, b"fuse.faultfs", 6, options):  # 6: nosuid, nodev
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def serve(self) -> None:
        """Answer until somebody unmounts, or aborts the connection."""
        while True:
            wait_s = 0.1 if self.hung else 1.0  # how soon a changed rule releases what hangs
            if self.due:
                wait_s = max(0.0, min(wait_s, self.due[0][0] - time.monotonic()))
            # select, because poll and epoll round a wait up to whole milliseconds.
            select.select([self.fd], [], [], wait_s)
            self.obey()
            while True:
                while self.due and self.due[0][0] <= time.monotonic():
                    self.send(heapq.heappop(self.due)[2])
                try:
                    data = os.read(self.fd, REQUEST_BYTES)
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        return
                    if error.errno not in (errno.EAGAIN, errno.EINTR, errno.ENOENT):
                        raise
                    break
                length, opcode, unique, node, _, _, pid, _, _ = REQUEST.unpack_from(data)
                op = OPERATIONS.get(opcode, f"op{opcode}")
                self.obey()  # whoever asks may have changed the rules just before
                self.handle(Request(op, unique, node, pid, data[REQUEST.size : length]))

    def obey(self) -> None:
        """Take new rules, if there are any, and judge anew what hangs."""
        if self.orders.reload():
            for unique, request in list(self.hung.items()):
                del self.hung[unique]
                self.handle(request)

    def handle(self, request: Request) -> None:
        """Answer a request, now or later or never, as the rules say."""
        op = request.op
        if op in ("forget", "batch_forget", "interrupt", "destroy"):  # have no answer
            getattr(self, op)(request)
            return
        path = self.paths.get(request.node, b"")
        name = b""
        if op in NAME_AT:
            name = request.body[NAME_AT[op] :].split(b"\0", 1)[0]
        about = _join(path, name) if name else path
        rule = self.orders.find(op, about) if op != "init" else None
        if self.log:
            verdict = f" -> {rule.do}" if rule else ""
            self.log.write(f"{time.time():.3f} {op} {about!r} pid={request.pid}{verdict}\n")
        if rule and rule.do == "hang":
            self.hung[request.unique] = request
            return
        if rule and rule.do == "errno":
            self.send(_reply(request.unique, code=rule.errno))
            return
        due_at = time.monotonic() + rule.ms / 1000 if rule else 0.0
        try:
            operation = getattr(self, op, None)
            if operation is None:
                raise OSError(errno.ENOSYS, "")
            answer = _reply(request.unique, operation(request, path, name) or b"")
        except OSError as error:
            answer = _reply(request.unique, code=error.errno or errno.EIO)
        if rule:
            heapq.heappush(self.due, (due_at, request.unique, answer))
        else:
            self.send(answer)

    def send(self, answer: bytes) -> None:
        try:
            os.write(self.fd, answer)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):  # the reader is gone
                raise

    # Requests without an answer

    def forget(self, request: Request) -> None:
        self._forget(request.node, struct.unpack_from("<Q", request.body)[0])

    def batch_forget(self, request: Request) -> None:
        for number in range(struct.unpack_from("<I", request.body)[0]):
            self._forget(*struct.unpack_from("<QQ", request.body, 8 + 16 * number))

    def _forget(self, node: int, times: int) -> None:
        self.lookups[node] -= times
        if self.lookups[node] <= 0 and node != 1:
            del self.lookups[node]
            path = self.paths.pop(node, None)
            if path is not None and self.nodes.get(path) == node:
                del self.nodes[path]

    def interrupt(self, request: Request) -> None:
        (target,) = struct.unpack_from("<Q", request.body)
        policy = self.orders.interrupt
        if self.log:
            hung = target in self.hung
            self.log.write(f"{time.time():.3f} interrupt pid={request.pid} hung={hung} {policy}\n")
        if policy == "enosys":
            self.send(_reply(request.unique, code=errno.ENOSYS))
        elif policy == "eintr" and target in self.hung:
            del self.hung[target]
            self.send(_reply(target, code=errno.EINTR))

    def destroy(self, request: Request) -> None:
        pass

    # Where things are

    def real(self, path: bytes) -> bytes:
        for top, kind in self.orders.virtual.items():
            if kind["kind"] == "loop" and path.startswith(top + b"/" if top else b""):
                turn = os.fsencode(kind.get("name", "loop"))
                below = path[len(top) + 1 if top else 0 :].split(b"/")
                path = b"/".join([*filter(None, [top]), *(part for part in below if part != turn)])
        return self.root + b"/" + path if path else self.root

    def stat(self, path: bytes) -> Any:
        return self.virtual_stat(path) or os.lstat(self.real(path))

    def virtual_stat(self, path: bytes) -> SimpleNamespace | None:
        """Make up a stat for a file that exists only in the rules."""
        parent, _, name = path.rpartition(b"/")
        kind = self.orders.virtual.get(parent)
        if not kind or not (
            (kind["kind"] in ("endless", "many") and name.startswith(b"e-"))
            or (kind["kind"] == "names" and name.hex() in kind["hex"])
            or (kind["kind"] == "dup" and name == b"dup")
        ):
            return None
        size = kind.get("size", 4096)
        return SimpleNamespace(
            st_mode=stat.S_IFREG | 0o644, st_ino=1 << 47 | zlib.crc32(path), st_nlink=1, st_uid=0, st_gid=0,
            st_size=size, st_blocks=(size + 511) // 512, st_rdev=0,
            st_atime_ns=0, st_mtime_ns=1_700_000_000 * 10**9, st_ctime_ns=0,
        )  # fmt: skip

    def children(self, path: bytes) -> list[tuple[bytes, int, int]]:
        """List a directory: name, d_type, inode."""
        found = [(b".", 4, 1), (b"..", 4, 1)]
        with os.scandir(self.real(path)) as entries:
            for entry in entries:
                kind = 8 if entry.is_file(follow_symlinks=False) else 10 if entry.is_symlink() else 0
                kind = 4 if entry.is_dir(follow_symlinks=False) else kind
                found.append((entry.name, kind, entry.inode()))
        virtual = self.orders.virtual.get(path, {})
        if virtual.get("kind") == "names":
            found += [(bytes.fromhex(name), virtual.get("dtype", 8), 99) for name in virtual["hex"]]
        if virtual.get("kind") == "dup":
            found += [(b"dup", 8, 98)] * virtual.get("n", 3)
        for top, other in self.orders.virtual.items():
            if other["kind"] == "loop" and self.real(path) == self.real(top):
                found.append((os.fsencode(other.get("name", "loop")), 4, 97))
        return found

    # Answers in the kernel's form

    def attr(self, path: bytes) -> bytes:
        found = self.stat(path)
        times = [getattr(found, f"st_{which}time_ns") for which in "amc"]
        return ATTR.pack(
            found.st_ino + self.orders.ino_offset & MASK, found.st_size, found.st_blocks,
            *(ns // 10**9 & MASK for ns in times), *(ns % 10**9 for ns in times),
            found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_rdev, 4096, 0,
        )  # fmt: skip

    def entry(self, path: bytes) -> bytes:
        attr = self.attr(path)
        node = self.nodes.get(path)
        if node is None:
            node = self.nodes[path] = self.next_node
            self.paths[node] = path
            self.next_node += 1
        self.lookups[node] += 1
        (entry_s, entry_ns), (attr_s, attr_ns) = self.entry_cache, self.attr_cache
        return struct.pack("<QQQQII", node, 0, entry_s, attr_s, entry_ns, attr_ns) + attr

    def opened(self, what: object, flags: int = 0) -> bytes:
        handle = self.next_handle
        self.next_handle += 1
        self.handles[handle] = what
        return struct.pack("<QIi", handle, flags, 0)

    # Operations: each gets the request, the path of its node, and the name of the entry it is about

    def init(self, request: Request, path: bytes, name: bytes) -> bytes:
        _, minor, readahead, offered = struct.unpack_from("<IIII", request.body)
        wanted = 1 | 1 << 3 | 1 << 5 | 1 << 18  # ASYNC_READ ATOMIC_O_TRUNC BIG_WRITES PARALLEL_DIROPS
        flags = offered & wanted
        return struct.pack("<IIIIHHIIHHI28x", 7, min(minor, 31), readahead, flags, 64, 48, 2**17, 1, 0, 0, 0)

    def lookup(self, request: Request, path: bytes, name: bytes) -> bytes:
        return self.entry(_join(path, name))

    def getattr(self, request: Request, path: bytes, name: bytes) -> bytes:
        return struct.pack("<QII", *self.attr_cache, 0) + self.attr(path)

    def setattr(self, request: Request, path: bytes, name: bytes) -> bytes:
        wanted = struct.unpack_from("<IIQQQqqqIIIIIIII", request.body)
        valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = wanted
        real = self.real(path)
        if valid & 8:
            os.truncate(self.handles[handle] if valid & 64 else real, size)
        if valid & 1:
            os.chmod(real, stat.S_IMODE(mode))
        if valid & 6:
            os.chown(real, uid if valid & 2 else -1, gid if valid & 4 else -1, follow_symlinks=False)
        if valid & 0x30:
            before, now = os.lstat(real), time.time_ns()
            atime_ns = now if valid & 128 else atime * 10**9 + atime_ns
            mtime_ns = now if valid & 256 else mtime * 10**9 + mtime_ns
            accessed = atime_ns if valid & 16 else before.st_atime_ns
            modified = mtime_ns if valid & 32 else before.st_mtime_ns
            os.utime(real, ns=(accessed, modified), follow_symlinks=False)
        return self.getattr(request, path, name)

    def readlink(self, request: Request, path: bytes, name: bytes) -> bytes:
        return os.readlink(self.real(path))

    def symlink(self, request: Request, path: bytes, name: bytes) -> bytes:
        new, target = request.body.split(b"\0")[:2]
        os.symlink(target, self.real(_join(path, new)))
        return self.entry(_join(path, new))

    def mknod(self, request: Request, path: bytes, name: bytes) -> bytes:
        mode, device = struct.unpack_from("<II", request.body)
        os.mknod(self.real(_join(path, name)), mode, device)
        return self.entry(_join(path, name))

    def mkdir(self, request: Request, path: bytes, name: bytes) -> bytes:
        os.mkdir(self.real(_join(path, name)), stat.S_IMODE(struct.unpack_from("<I", request.body)[0]))
        return self.entry(_join(path, name))

    def unlink(self, request: Request, path: bytes, name: bytes) -> None:
        os.unlink(self.real(_join(path, name)))

    def rmdir(self, request: Request, path: bytes, name: bytes) -> None:
        os.rmdir(self.real(_join(path, name)))

    def rename(self, request: Request, path: bytes, name: bytes) -> None:
        self._rename(request, path, 8)

    def rename2(self, request: Request, path: bytes, name: bytes) -> None:
        self._rename(request, path, 16)

    def _rename(self, request: Request, path: bytes, names_at: int) -> None:
        (folder,) = struct.unpack_from("<Q", request.body)
        before, after = request.body[names_at:].split(b"\0")[:2]
        old, new = _join(path, before), _join(self.paths[folder], after)
        os.rename(self.real(old), self.real(new))
        self.nodes.pop(new, None)
        for moved in [known for known in self.nodes if known == old or known.startswith(old + b"/")]:
            node = self.nodes.pop(moved)
            self.paths[node] = new + moved[len(old) :]
            self.nodes[self.paths[node]] = node

    def link(self, request: Request, path: bytes, name: bytes) -> bytes:
        (target,) = struct.unpack_from("<Q", request.body)
        new = _join(path, request.body[8:].split(b"\0", 1)[0])
        os.link(self.real(self.paths[target]), self.real(new), follow_symlinks=False)
        return self.entry(new)

    def open(self, request: Request, path: bytes, name: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", request.body)
        flags &= ~(os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_DIRECT)
        virtual = self.virtual_stat(path) is not None
        fd = None if virtual else os.open(self.real(path), flags | os.O_CLOEXEC | os.O_NOFOLLOW)
        return self.opened(fd, 1 if self.direct_io else 0)

    def create(self, request: Request, path: bytes, name: bytes) -> bytes:
        flags, mode = struct.unpack_from("<II", request.body)
        flags = flags & ~(os.O_APPEND | os.O_DIRECT) | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self.real(_join(path, name)), flags, stat.S_IMODE(mode))
        return self.entry(_join(path, name)) + self.opened(fd, 1 if self.direct_io else 0)

    def read(self, request: Request, path: bytes, name: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", request.body)
        fd = self.handles[handle]
        return bytes(min(size, max(0, 4096 - offset))) if fd is None else os.pread(fd, size, offset)

    def write(self, request: Request, path: bytes, name: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", request.body)
        written = os.pwrite(self.handles[handle], request.body[40 : 40 + size], offset)
        return struct.pack("<II", written, 0)

    def release(self, request: Request, path: bytes, name: bytes) -> None:
        what = self.handles.pop(struct.unpack_from("<Q", request.body)[0], None)
        if isinstance(what, int):
            os.close(what)

    releasedir = release

    def flush(self, request: Request, path: bytes, name: bytes) -> None:
        pass

    def fsync(self, request: Request, path: bytes, name: bytes) -> None:
        os.fsync(self.handles[struct.unpack_from("<Q", request.body)[0]])

    def fsyncdir(self, request: Request, path: bytes, name: bytes) -> None:
        pass

    def opendir(self, request: Request, path: bytes, name: bytes) -> bytes:
        return self.opened(self.children(path))

    def readdir(self, request: Request, path: bytes, name: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", request.body)
        entries = self.handles[handle]
        virtual = self.orders.virtual.get(path, {})
        more = {"endless": 1 << 62, "many": virtual.get("n", 0)}.get(virtual.get("kind", ""), 0)
        records: list[bytes] = []
        used = 0
        while offset < len(entries) + more:
            if offset < len(entries):
                found, kind, ino = entries[offset]
            else:
                found, kind, ino = b"e-%012d" % (offset - len(entries)), 8, 1000 + offset
            length = 24 + len(found) + 7 & ~7
            if used + length > size:
                break
            offset += 1
            used += length
            ino = (ino or 1) + self.orders.ino_offset & MASK
            record = struct.pack("<QQII", ino, offset, len(found), kind)
            records.append(record + found.ljust(length - 24, b"\0"))
        return b"".join(records)

    def statfs(self, request: Request, path: bytes, name: bytes) -> bytes:
        found = os.statvfs(self.root)
        return struct.pack("<QQQQQIIII24x", found.f_blocks, found.f_bfree, found.f_bavail, found.f_files,
                           found.f_ffree, found.f_bsize, 255, found.f_frsize, 0)


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _reply(unique: int, data: bytes = b"", code: int = 0) -> bytes:
    return REPLY.pack(REPLY.size + len(data), -code, unique) + data


def _seconds(span_s: float) -> tuple[int, int]:
    return int(span_s), int(span_s % 1 * 10**9)


def main() -> None:
    parser = argparse.ArgumentParser(description="A file system that fails where RULES.json says.")
    parser.add_argument("mount_point")
    parser.add_argument("root")
    parser.add_argument("rules")
    parser.add_argument("--log")
    parser.add_argument("--ready", help="a file to make once it is mounted")
    parser.add_argument("--direct-io", action="store_true", help="no page cache: no shared mmap, no WAL")
    parser.add_argument("--entry-cache", type=float, default=1.0, help="seconds a name stays known")
    parser.add_argument("--attr-cache", type=float, default=1.0, help="seconds a stat stays known")
    args = parser.parse_args()
    # Its end aborts the connection, which frees every reader: never outlive who started it.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    served = FaultFS(args.mount_point, args.root, Orders(args.rules), log=args.log, direct_io=args.direct_io,
                     entry_cache_s=args.entry_cache, attr_cache_s=args.attr_cache)
    served.mount()
    if args.ready:
        open(args.ready, "w").close()
    served.serve()


if __name__ == "__main__":
    main()
