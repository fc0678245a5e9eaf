"""The drill: a small share that hangs, refuses and never ends, scanned for real on the engine in use.

Touches: /dev/fuse, a folder of its own in the data directory, processes; the engine through the commands
`scan`, `retry` and `cleanup`, which run as a user runs them. Needs root. Nothing is left: what a killed drill
leaves, `cleanup` removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from smartscan import interrupts, mounts, units
from smartscan.catalogue import read
from smartscan.doctor import Finding
from smartscan.engine import leash
from smartscan.errors import EXIT_INCOMPLETE, SmartScannerError
from smartscan.faults import FaultMount, fail, fault_mount, hang
from smartscan.model import show, unb64

STALL_S = 4.0  # as --stall-after: much longer than a healthy answer on a busy host, and short enough to watch
SCAN_S = 75.0  # so long a command may take: the hang, a container, and an engine that cannot kill it at once
FOLDERS, FILES = 24, 8
ENDLESS = 10_000  # as --dir-entries: more than one block of names
CAP_SYS_ADMIN = 21
PREFIX, LOCK, CATALOGUE, NAME = "drill-", "lock", "drill.db", "Drill"

HUNG_DIR, HUNG_FILE = b"does not answer", b"one file hangs/bad"
DENIED, UNENDING, ODD = b"may not be read", b"never ends", b"names"
EXPECTED = {HUNG_DIR: ("open", "ETIMEDOUT"), HUNG_FILE: ("stat", "ETIMEDOUT"), DENIED: ("open", "EACCES"),
            UNENDING: ("readdir", "EFBIG")}  # fmt: skip
NAMES = (
    b"\xff\xfe not utf-8", b"half of one \xe2\x82", b"new\nline", b"t\tab", b"esc \x1b[31mred", b"it's", b'"',
    b"$(touch x)", b"`touch x`", b"; rm -rf x", b"*", b"back\\slash", b"a:b,ro", b"-rf", b" ", b"trailing  ",
    b"n" * 255, "e\u0301".encode(), "\u202eright to left".encode(), "\U0001f600".encode(),
)  # fmt: skip
RULES = (
    hang(os.fsdecode(HUNG_DIR), "opendir"),
    hang(os.fsdecode(HUNG_FILE), "lookup"),
    fail(os.fsdecode(DENIED), "opendir", errno="EACCES"),
)
# Made up by the file system, because the disk below need not take every name.
VIRTUAL_NAMES = {"path": os.fsdecode(ODD), "kind": "names", "hex": [name.hex() for name in NAMES]}
VIRTUAL_ENDLESS = {"path": os.fsdecode(UNENDING), "kind": "endless"}


class _Ran(NamedTuple):
    """A command that was run; `status` is None where it did not end in time."""

    status: int | None
    took_s: float
    out: str
    said: str  # its last word on stderr

    @property
    def data(self) -> Any:
        try:
            return json.loads(self.out)
        except ValueError:
            return None


def drill(data: Path, *, engine: str, image: str) -> Generator[Finding, None, None]:
    """Scan a share that fails in every way, and tell what came of it; under a minute, at most three.

    `data` is the data directory, whose paths the engine's host knows; it is made, and removed again, where
    it does not exist. SmartScannerError where this user cannot mount such a share here.
    """
    check_may()
    with _folder(data) as folder:
        real = folder / "real"
        want = _build(real)
        with fault_mount(real, below=folder) as share:
            share.set(rules=RULES, virtual=[VIRTUAL_NAMES, VIRTUAL_ENDLESS])
            line = _Line(folder, engine, image)
            try:
                interrupts.check()  # much was imported by now
                yield from _scanned(line, share, want)
                share.set(virtual=[VIRTUAL_NAMES])
                interrupts.check()
                yield from _recovered(line, want)
            finally:
                share.end()  # whatever still waits is freed, and ends
                swept = line.sweep()
    yield _left(folder, swept)


def check_may() -> None:
    """Raise SmartScannerError, in one sentence, where this process cannot mount a share that fails."""
    status = Path("/proc/self/status").read_text()
    admin = int(status.partition("CapEff:")[2].split()[0], 16) >> CAP_SYS_ADMIN & 1
    what = "the drill mounts a share that hangs"
    if "SMART_SCAN_CONTAINER" in os.environ and not (admin and os.access("/dev/fuse", os.R_OK | os.W_OK)):
        raise SmartScannerError(
            f"{what}, which this container may not; "
            "use ./run_smart_scan.sh doctor --drill as root on its host"
        )
    if os.geteuid() != 0 or not admin:
        raise SmartScannerError(f"{what}, which only root may; run it as root (sudo)")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        raise SmartScannerError(f"{what}, and /dev/fuse cannot be used ({e.strerror}); modprobe fuse") from e


@contextlib.contextmanager
def _folder(data: Path) -> Iterator[Path]:
    """Make the folder of a drill, locked while it runs, and remove it, whatever ends the drill."""
    missing = [folder for folder in (data, *data.parents) if not folder.exists()]
    data.mkdir(parents=True, exist_ok=True)
    heard = {number: signal.signal(number, interrupts.heed) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=data, ignore_cleanup_errors=True) as made:
            folder = Path(made)
            with (folder / LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield folder
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
            for folder in missing:
                folder.rmdir()


def _build(real: Path) -> set[bytes]:
    """Make what lies under the share; gives the files of it that a scan must find in spite of all."""
    want = {ODD + b"/" + name for name in NAMES} | {b"one file hangs/good"}
    healthy = [b"healthy %d" % n for n in range(FOLDERS)]
    for folder in (*healthy, *(folder + b"/below" for folder in healthy[:3])):
        want |= {folder + b"/file %d" % n for n in range(FILES)}
    for path in (*want, HUNG_FILE, HUNG_DIR + b"/x", DENIED + b"/x"):
        if not path.startswith(ODD + b"/"):
            file = real / os.fsdecode(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"drill")
    for path in (UNENDING, ODD):
        (real / os.fsdecode(path)).mkdir()
    return want


class _Line:
    """The command line, with the drill's own settings and nothing of the user's but the engine."""

    def __init__(self, folder: Path, engine: str, image: str) -> None:
        self.folder, self.db = folder, folder / CATALOGUE
        self.more = ["--engine", engine, "--image", image]
        self.image = image
        settings = folder / "settings.toml"
        settings.touch()
        keep = ("SMART_SCAN_CONTAINER",)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SMART_SCAN_") or k in keep}
        self.env |= {"SMART_SCAN_CONFIG": str(settings), leash.STARTER: str(os.getpid())}

    def run(self, *words: object) -> _Ran:
        """Run a command, at most for SCAN_S; it ends with this process, whatever ends that."""
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", leash.__name__, "smartscan.cli", *map(str, words), "--db", str(self.db)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.env,
            errors="replace",
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=SCAN_S)
        except subprocess.TimeoutExpired:
            return _Ran(None, time.monotonic() - began, "", "")
        finally:
            process.kill()  # it never touches the share, so it can be waited for
            process.communicate()
        said = err.strip().rpartition("\n")[2]
        return _Ran(process.returncode, time.monotonic() - began, out, said)

    def sweep(self) -> str:
        """Remove what is left of the drill's workers, which end within seconds; gives what would not go."""
        end = time.monotonic() + 20
        while True:
            ran = self.run("cleanup", "--image", self.image)
            stays = [text for text in ran.out.splitlines() if text.startswith("not removed:")]
            if ran.status == 0 or time.monotonic() > end:
                return "; ".join(stays) or ("" if ran.status == 0 else ran.said or "cleanup did not end")
            time.sleep(1)


def _scanned(line: _Line, share: FaultMount, want: set[bytes]) -> Iterator[Finding]:
    """Scan while the share fails."""
    yield Finding(
        "share",
        f"{len(want)} files to be found; one directory and one file that hang where no signal reaches their "
        "reader, a directory that may not be read, and one that never ends",
    )
    scan = ("scan", share.path, NAME, *line.more, "--stall-after", STALL_S, "--dir-entries", ENDLESS,
            "--max-containers", 2, "--json")  # fmt: skip
    ran = line.run(*scan)
    if ran.status is None:
        yield Finding("scan", f"did not end within {SCAN_S:g} s", bad=True)
        return
    certificate = (ran.data or {}).get("certificate")
    if not certificate:
        yield Finding("scan", f"ended with exit status {ran.status}: {ran.said}", bad=True)
        return
    word = "complete" if certificate["complete"] else "incomplete"
    yield Finding(
        "scan",
        f"ended after {ran.took_s:.0f} s by itself, on the engine {_engine(line)}: {word}, exit status "
        f"{ran.status}",
        bad=ran.status != EXIT_INCOMPLETE,
    )
    yield from _named(line, share)
    for path, op in ((HUNG_DIR, "opendir"), (HUNG_FILE, "lookup")):
        asked = share.asked(op, path)
        yield Finding("asked", f"{show(path)}: {asked} time" + "s" * (asked != 1), bad=asked != 1)
    yield _files(line, share, want)
    dirs = certificate["dirs"]
    states = {state: n for state, n in dirs.items() if state != "found" and n}
    yield Finding(
        "account",
        f"{dirs['found']} directories found = "
        + " + ".join(f"{n} {state}" for state, n in states.items())
        + f"; {len(certificate['abandoned'])} worker left behind, waiting in the kernel",
        bad=dirs["found"] != sum(states.values()),
    )


def _engine(line: _Line) -> str:
    with read.open_for_reading(line.db) as conn:
        return str(conn.execute("SELECT engine FROM scan ORDER BY id DESC").fetchone()[0])


def _named(line: _Line, share: FaultMount) -> Iterator[Finding]:
    """Each place that fails is named, with what is behind it, and no other."""
    prefix = os.fsencode(share.path) + b"/"
    found = {}
    for problem in line.run("problems", "--json").data or ():
        path = unb64(problem["path_b64"]) if "path_b64" in problem else problem["path"].encode()
        found[path.removeprefix(prefix)] = problem
    for path, (op, error) in EXPECTED.items():
        problem = found.pop(path, None)
        if problem is None:
            yield Finding("named", f"{show(path)} is missing from the problems", bad=True)
            continue
        yield Finding(
            "named",
            f"{show(path)}: {problem['op']}: {problem['cause'].replace(str(share.path), 'the share')}",
            bad=(problem["op"], problem["error"]) != (op, error),
        )
    for path, problem in found.items():
        yield Finding("named", f"{show(path)}, which is healthy: {problem['cause']}", bad=True)


def _files(line: _Line, share: FaultMount, want: set[bytes]) -> Finding:
    """All that is healthy is in the catalogue, each name byte for byte."""
    prefix = os.fsencode(share.path) + b"/"
    with read.open_for_reading(line.db) as conn:
        rows = conn.execute("SELECT CAST(path AS BLOB) FROM files").fetchall()
    have = {path.removeprefix(prefix) for (path,) in rows}
    odd = sum(path.startswith(ODD + b"/") for path in want & have)
    cut = sum(path.startswith(UNENDING + b"/") for path in have)
    return Finding(
        "files",
        f"{len(want & have)} of {len(want)} are in the catalogue, among them {odd} of {len(NAMES)} with odd "
        f"names byte for byte; of the endless directory the first {units.count(cut)}",
        bad=not want <= have,
    )


def _recovered(line: _Line, want: set[bytes]) -> Iterator[Finding]:
    """The storage answers again, and one command makes the catalogue whole."""
    if not line.db.exists():
        return
    ran = line.run("retry", NAME, *line.more, "--stall-after", STALL_S, "--json")
    with read.open_for_reading(line.db) as conn:
        files = conn.execute("SELECT count(*) FROM files").fetchone()[0]
    more = len(want) + 3  # what hung, and what could not be read
    yield Finding(
        "retry",
        f"when the storage answered again, `retry` made it complete in {ran.took_s:.0f} s: {files} files"
        if ran.status == 0
        else f"did not make it complete: exit status {ran.status}: {ran.said}",
        bad=ran.status != 0 or files != more,
    )


def _left(folder: Path, swept: str) -> Finding:
    """Nothing of the drill is left on this machine."""
    left = [swept] if swept else []
    if os.fsencode(folder) in mounts.read():
        left.append("a mount")
    if folder.exists():
        left.append(str(folder))
    return Finding(
        "left", ", ".join(left) or "no mount, no process, no container, no folder", bad=bool(left)
    )
