"""Trees on disk for tests: from a nested dict, at random, with everything odd; and what find(1) says of one.

Touches: the directories it is given; mounts, as root.

    build(tmp_path, {"a": {"file": 5, "text": b"hello", "to": Link("file")}, "twin": Hard("a/file")})

In a tree a name is text or bytes; a dict is a directory, a number a file of that size, bytes a file with that
content.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from smartscan import config
from users import may_mount

Name = str | bytes
Tree = Mapping[Name, "Node"]


@dataclass(frozen=True)
class File:
    """A regular file; `sparse` has the size but no blocks."""

    size: int = 0
    sparse: bool = False
    mtime_ns: int | None = None
    mode: int = 0o644


@dataclass(frozen=True)
class Dir:
    """A directory with more than a dict can say."""

    children: Tree = field(default_factory=dict)
    mtime_ns: int | None = None
    mode: int = 0o755


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: Name


@dataclass(frozen=True)
class Hard:
    """Another name of a file; its path is relative to the tree, and it is made before all of these."""

    path: Name


@dataclass(frozen=True)
class Fifo:
    pass


@dataclass(frozen=True)
class Socket:
    pass


Node = int | bytes | Tree | File | Dir | Link | Hard | Fifo | Socket
Links = list[tuple[list[bytes], bytes]]  # hard links to be made at the end: where, to what


def build(path: Path, tree: Tree) -> None:
    """Make a tree in a directory that exists; names may be any bytes and paths of any length."""
    links: Links = []
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _fill(top, tree, [], links)
        for where, target in links:
            os.link(os.path.join(os.fsencode(path), target), b"/".join([os.fsencode(path), *where]))
    finally:
        os.close(top)


def _fill(folder: int, tree: Tree, where: list[bytes], links: Links) -> None:
    for key, node in tree.items():
        name = os.fsencode(key)
        match node:
            case Mapping():
                _make_dir(folder, name, Dir(node), where, links)
            case Dir():
                _make_dir(folder, name, node, where, links)
            case int():
                _make_file(folder, name, File(node))
            case File():
                _make_file(folder, name, node)
            case bytes():
                _write(folder, name, node)
            case Link():
                os.symlink(os.fsencode(node.target), name, dir_fd=folder)
            case Hard():
                links.append(([*where, name], os.fsencode(node.path)))
            case Fifo():
                os.mkfifo(name, dir_fd=folder)
            case Socket():
                os.mknod(name, stat.S_IFSOCK | 0o755, dir_fd=folder)


def _make_dir(folder: int, name: bytes, node: Dir, where: list[bytes], links: Links) -> None:
    os.mkdir(name, dir_fd=folder)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        _fill(fd, node.children, [*where, name], links)
        if node.mtime_ns is not None:
            os.utime(fd, ns=(node.mtime_ns, node.mtime_ns))
        os.chmod(fd, node.mode)
    finally:
        os.close(fd)


def _make_file(folder: int, name: bytes, node: File) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, node.mode, dir_fd=folder)
    try:
        if node.sparse:
            os.ftruncate(fd, node.size)
        else:
            left = node.size
            while left:
                left -= os.write(fd, bytes(min(left, 2**20)))
        if node.mtime_ns is not None:
            os.utime(fd, ns=(node.mtime_ns, node.mtime_ns))
    finally:
        os.close(fd)


def _write(folder: int, name: bytes, content: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
    with open(fd, "wb") as file:
        file.write(content)


# At random

names: st.SearchStrategy[bytes] = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"d", b"e"]),  # short ones, so that they shrink to something readable
    st.binary(min_size=1, max_size=12).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_")),
    st.integers(200, 255).map(lambda length: b"x" * length),
).filter(lambda name: name not in (b".", b".."))

leaves: st.SearchStrategy[Node] = st.one_of(
    st.integers(0, 20_000),
    st.builds(File, size=st.integers(0, 2**40), sparse=st.just(True)),
    st.builds(File, size=st.integers(0, 9), mtime_ns=st.integers(-(2**31) * 10**9, 2**33 * 10**9)),
    st.builds(Link, st.binary(min_size=1, max_size=30).map(lambda target: target.replace(b"\0", b"_"))),
    st.just(Fifo()),
)


def random_trees(*, max_leaves: int = 40) -> st.SearchStrategy[Tree]:
    """Draw trees with files, sparse files, links and fifos, whose names may be any bytes."""

    def branch(inside: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        return st.dictionaries(names, inside, max_size=8)

    return st.recursive(leaves, branch, max_leaves=max_leaves).map(
        lambda node: node if isinstance(node, dict) else {b"only": node}
    )


# What find(1) says


class Listed(NamedTuple):
    """One entry, as find -printf shows it."""

    type: str  # f d l p s c b
    size: int
    blocks: int
    mtime_ns: int
    ctime_ns: int
    ino: int
    nlink: int
    mode: int
    uid: int
    gid: int
    target: bytes  # of a symbolic link, else empty
    dev: int


FIELDS = ("%P", "%y", "%s", "%b", "%T@", "%C@", "%i", "%n", "%m", "%U", "%G", "%l", "%D")


def find_listing(path: Path, *, xdev: bool = False, user: int | None = None) -> dict[bytes, Listed]:
    """List everything below a directory, itself included as b"", by find(1), which shares no code with us.

    Left out is what find cannot read, and a bind mount of an ancestor, which it finds to be a loop.
    `user` is for root: the user find runs as.
    """
    options = ["-xdev"] if xdev else []
    command = ["find", os.fspath(path), *options, "-printf", "\\0".join(FIELDS) + "\\0"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, user=user,
                          env={"LC_ALL": "C", "PATH": os.defpath})
    values = done.stdout.split(b"\0")[:-1]
    assert len(values) % len(FIELDS) == 0
    found = {}
    for row in zip(*[iter(values)] * len(FIELDS), strict=True):
        name, kind, size, blocks, mtime, ctime, ino, nlink, mode, uid, gid, target, dev = row
        assert name not in found
        found[name] = Listed(
            kind.decode(), int(size), int(blocks), _ns(mtime), _ns(ctime), int(ino), int(nlink), int(mode, 8),
            int(uid), int(gid), target, int(dev),
        )  # fmt: skip
    return found


def _ns(text: bytes) -> int:
    """Read seconds with a fraction; find writes the fraction upwards from the second, also before 1970."""
    seconds, _, fraction = text.partition(b".")
    return int(seconds) * 10**9 + int(fraction[:9].ljust(9, b"0"))


# Everything odd

ODD_NAMES = (
    b"\xff\xfe not utf-8", b"latin-1 \xe9t\xe9", b"half of one \xe2\x82", b"\xc0\xaf overlong",
    b"\xed\xa0\x80 surrogate",
    b"new\nline", b"\n", b"car\rriage", b"t\tab", b"esc \x1b[31mred\x1b[0m", b"bell\x07", b"\x7f", b"\x01",
    b"it's", b'say "hi"', b"`touch x`", b"$(touch x)", b"${HOME}", b"; rm -rf x", b"a && b", b"|cat", b"> x",
    b"*", b"?", b"[a-z]", b"{a,b}", b"~", b"!!", b"#hash", b"%s %n", b"back\\slash", b"\\n",
    b"C:", b"a:b:ro", b"a,b", b"type=bind,source=x", b"key=value",
    b"-", b"--", b"-rf", b"--help", b" ", b"  leading", b"trailing  ", b"...", b". .", b".hidden",
    b"n" * 255, b"\xe2\x82\xac" * 85, "é NFC".encode(), "e\u0301 NFD".encode(), "emoji 😀".encode(),
    "\u202eright to left".encode(), b"CASE", b"case", b"NULL", b"null", b"0", b"1e5", b"0x10", b"x.TAR.GZ",
    b"no.", b".x.",
)  # fmt: skip

TIMES_NS = {
    "epoch": 0,
    "one-ns-after": 1,
    "one-ns-before": -1,
    "before-1970": -1_000_000_000 * 10**9 + 123_456_789,
    "in-1902": -2_145_916_800 * 10**9,
    "after-2038": 2**31 * 10**9 + 999_999_999,
    "in-2200": 7_258_118_400 * 10**9 + 1,
    "in-2400": 13_569_465_600 * 10**9 + 5,  # beyond what 64 bits of nanoseconds hold
}


DENIED = (b"denied/nothing", b"denied/no-search", b"denied/no-read")


@dataclass
class OddTree:
    """What was made; all paths are relative to `path`."""

    path: Path
    wide: int  # files in wide/
    deep: int  # directories below each other in deep/
    far: bytes  # a file whose path is longer than PATH_MAX
    denied: tuple[bytes, ...]  # directories an ordinary user cannot list, or cannot look into
    system_dirs: tuple[bytes, ...]
    hard: tuple[bytes, ...]  # names of one file, in different directories
    huge: dict[bytes, int]  # sizes the file system took
    times: dict[bytes, int]  # mtimes the file system took
    devices: tuple[bytes, ...] = ()  # as root
    bind: bytes | None = None  # as root: the tree itself, mounted inside it
    inside: bytes | None = None  # as root: another file system, with files


@contextlib.contextmanager
def odd_tree(path: Path, *, big: bool) -> Iterator[OddTree]:
    """Make everything odd in a directory that does not exist yet; unmounted and removed on every way out.

    `big` is the real thing (200,000 files in one directory, 5,000 nested ones), else a hundredth of it.
    """
    path.mkdir()
    mounted: list[Path] = []
    try:
        yield _make_odd(path, mounted, wide=200_000 if big else 2_000, deep=5_000 if big else 50)
    finally:
        for mount_point in reversed(mounted):
            subprocess.run(["umount", "--lazy", mount_point], check=True)
        for name in DENIED:
            with contextlib.suppress(OSError):
                os.chmod(os.path.join(os.fsencode(path), name), 0o755)
        # Not shutil.rmtree, which recurses and needs a file descriptor for every level.
        subprocess.run(["rm", "-rf", "--one-file-system", "--", path], check=True)


def _make_odd(path: Path, mounted: list[Path], *, wide: int, deep: int) -> OddTree:
    system_dirs = [name.replace(b"*", b"1000") for name in config.SYSTEM_DIRS]
    build(
        path,
        {
            "plain": {"file": 10_000, "empty": 0, "folder": {"file": 1}, "nothing": {}},
            "names": {name: len(name) for name in ODD_NAMES},
            "dirs": {name: {name: 1} for name in ODD_NAMES},
            "links": {
                "dangling": Link("nowhere"), "self": Link("self"), "out": Link("/"), "up": Link("../.."),
                "loop-a": Link("loop-b"), "loop-b": Link("loop-a"),
                "dir": Link("../plain"), "file": Link("../plain/file"),
                "long": Link("x" * 4095), "odd": Link(b"\xff\n'\"$(touch x)"),
            },
            "special": {"fifo": Fifo(), "socket": Socket()},
            "hard": {
                "a": {"one": 5_000}, "b": {"two": Hard("hard/a/one")},
                "c": {"d": {"three": Hard("hard/a/one")}},
            },
            "sparse": {"hole": File(2**30, sparse=True), "half": 0},
            "times": {},
            "system": {name: {"inside": 3, "folder": {"file": 4}} for name in system_dirs},
            "not-system": {
                ".hidden": {"file": 1}, ".config": {"file": 1}, ".snapshot": 7, "@eaDirs": {"file": 1},
            },
            "denied": {
                "nothing": Dir({"file": 1}, mode=0o000),
                "no-search": Dir({"file": 1, "folder": {"file": 1}}, mode=0o444),
                "no-read": Dir({"file": 1}, mode=0o111),
            },
            "wide": {b"%06d" % number: 0 for number in range(wide)},
            "mounts": {"bind": {}, "inside": {}},
        },
    )  # fmt: skip
    with open(path / "sparse" / "half", "wb") as file:
        file.seek(2**20)
        file.write(b"x" * 5000)
    made = OddTree(
        path=path,
        wide=wide,
        deep=deep,
        far=chain(path, b"far", [b"%03d" % number + b"p" * 252 for number in range(20)]),
        denied=DENIED,
        system_dirs=tuple(b"system/" + name for name in system_dirs),
        hard=(b"hard/a/one", b"hard/b/two", b"hard/c/d/three"),
        huge=_make_huge(path / "sparse"),
        times=_make_times(path / "times"),
    )
    chain(path, b"deep", [b"d"] * deep)
    if may_mount():
        _make_as_root(made, mounted)
    return made


def chain(path: Path, top: bytes, below: Sequence[bytes]) -> bytes:
    """Make directories within each other, relative to one another, and a file in the last; give its path."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for name in (top, *below):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    _write(fd, b"end", b"the end")
    os.close(fd)
    return b"/".join([top, *below, b"end"])


def _make_huge(folder: Path) -> dict[bytes, int]:
    """Make files as large as the file system takes them; ext4 ends at 2^44, xfs and tmpfs do not."""
    found = {}
    for power in (40, 43, 62):
        file = folder / f"2^{power}"
        file.touch()
        try:
            os.truncate(file, 2**power)
            found[b"sparse/" + os.fsencode(file.name)] = 2**power
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            file.unlink()
    return found


def _make_times(folder: Path) -> dict[bytes, int]:
    """Make files of all times; a file system that cannot hold one holds another instead, which is given."""
    found = {}
    for name, mtime_ns in TIMES_NS.items():
        file = folder / name
        file.touch()
        os.utime(file, ns=(0, mtime_ns))
        found[b"times/" + os.fsencode(name)] = os.stat(file).st_mtime_ns
    return found


def _make_as_root(made: OddTree, mounted: list[Path]) -> None:
    special = made.path / "special"
    os.mknod(special / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(special / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    made.devices = (b"special/null", b"special/disk")
    _mount(["-t", "tmpfs", "-o", "size=1m", "inside"], made.path / "mounts" / "inside", mounted)
    build(made.path / "mounts" / "inside", {"file": 5000, "folder": {"file": 1}})
    made.inside = b"mounts/inside"
    _mount(["--bind", os.fspath(made.path)], made.path / "mounts" / "bind", mounted)
    made.bind = b"mounts/bind"


def _mount(what: Sequence[str], mount_point: Path, mounted: list[Path]) -> None:
    subprocess.run(["mount", *what, mount_point], check=True)
    mounted.append(mount_point)


@contextlib.contextmanager
def churning(path: Path) -> Iterator[None]:
    """Make, fill, move and delete directories in `path` without a pause, until the block ends."""
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            folder = path / f"churn-{number}"
            build(path, {folder.name: {"file": 1, "below": {"file": 1}}})
            moved = folder.rename(path / f"moved-{number}")
            subprocess.run(["rm", "-rf", moved], check=True)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
