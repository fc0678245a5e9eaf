"""Make docs/images from real runs: a scan of /usr, and one of a share with a directory that never answers.

Touches: docs/images, /dev/fuse, a mount namespace of its own in which /mnt is a scratch file system, so that
the paths are those of a NAS. Needs root and util-linux.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parent.parent
FILE_SYSTEM = ROOT / "src" / "smartscan" / "faults" / "filesystem.py"
IMAGES = ROOT / "docs" / "images"
COLUMNS = 118
OWN_NAMESPACE = "SMART_SCAN_PICTURES"

SHARE = Path("/mnt/user/Media")
DEAD = "Backups/old-laptop"  # its listing never comes
DENIED = "Backups/vault"
ANSWER_MS = 15.0  # of every request: a disk that is busy
STALL_S = 12.0
SHOT_S = 4.0  # into the wait for the dead directory, which is not yet given up then

# The fonts that every system has, instead of one from the network.
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SVG = re.sub(r"\s*@font-face \{\{.*?\n    \}\}", "", CONSOLE_SVG_FORMAT, flags=re.S).replace(
    "Fira Code, monospace", FONTS
)

# Text that begins with spaces, which some programs leave out: it is moved instead.
INDENTED = re.compile(r'x="([\d.]+)" y="([\d.]+)" textLength="([\d.]+)"([^>]*)>((?:&#160;)+)')
LETTER = 12.2  # width, in Rich's pictures


def main() -> int:
    """Make all pictures."""
    if OWN_NAMESPACE not in os.environ:
        again = ["unshare", "--mount", sys.executable, *sys.argv]
        return subprocess.run(again, env={**os.environ, OWN_NAMESPACE: "1"}, check=False).returncode
    subprocess.run(["mount", "-t", "tmpfs", "scratch", "/mnt"], check=True)
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.update(SMART_SCAN_DIR=scratch, SMART_SCAN_ENGINE="local")
        subprocess.run(command("scan /usr usr --chunk-size 1 --json"), stdout=subprocess.DEVNULL, check=True)
        picture("stats", "stats usr --top 5")
        picture("plan", "plan /usr usr --from-catalogue --chunk-size 1")
    with tempfile.TemporaryDirectory() as scratch, broken_share(Path(scratch)):
        os.environ["SMART_SCAN_DIR"] = scratch
        limits = f"--chunk-entries 600 --max-containers 4 --threads 4 --stall-after {STALL_S:g}"
        words = command(f"scan {SHARE} Media {limits}")
        scanning = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while waited_s() < SHOT_S:
            if scanning.poll() is not None:
                raise SystemExit("the scan of the broken share ended before it met the dead directory")
            time.sleep(0.2)
        picture("monitor", "monitor --once")
        if scanning.wait() != 3:
            raise SystemExit("the scan of the broken share was to end with exit status 3")
    return 0


@contextlib.contextmanager
def broken_share(scratch: Path) -> Iterator[None]:
    """Mount a share with a few thousand files, sparse ones, where one directory hangs and one is refused."""
    real = Path("/mnt/real")
    for folder, files, name, size in (
        ("Movies/{:03}", 6, "part-{}.mkv", 4 * 10**9),
        ("Music/Artist {:03}/Album", 14, "{:02} - Track.flac", 31 * 10**6),
        ("Photos/2019-{:03}", 25, "IMG_{:04}.jpg", 5 * 10**6),
        ("Backups/nightly-{:03}", 4, "disk{}.qcow2", 20 * 10**9),
    ):
        for number in range(120):
            place = real / folder.format(number)
            place.mkdir(parents=True)
            for index in range(files):
                with open(place / name.format(index), "wb") as file:
                    file.truncate(size)
    for folder in (DEAD, DENIED):
        (real / folder).mkdir()
    SHARE.mkdir(parents=True)
    rules, ready = scratch / "rules.json", scratch / "ready"
    daemon = subprocess.Popen(
        [sys.executable, "-S", FILE_SYSTEM, SHARE, real, rules, "--ready", ready]
    )
    try:
        while not ready.exists():
            time.sleep(0.01)
        rules.write_text(
            json.dumps(
                {
                    "rules": [
                        {"path": DEAD, "op": ["opendir"], "do": "hang"},
                        {"path": DENIED, "op": ["opendir"], "do": "errno", "errno": "EACCES"},
                        {"path": "*", "op": "*", "do": "slow", "ms": ANSWER_MS},
                    ],
                    "virtual": [],
                    "interrupt": "ignore",
                }
            )
        )
        time.sleep(0.5)
        yield
    finally:
        daemon.kill()
        daemon.wait()
        subprocess.run(["umount", "--lazy", SHARE], check=True)
        shutil.rmtree(real)


def command(words: str) -> list[str]:
    """Give the command line of this checkout's program."""
    return [sys.executable, "-m", "smartscan.cli", *shlex.split(words)]


def waited_s() -> float:
    """Say for how long the running scan waits for the dead directory."""
    looked = subprocess.run(command("monitor --json"), capture_output=True, check=False)
    found = json.loads(looked.stdout) if looked.returncode == 0 else {"scans": []}
    since = [
        r["since_at"] for scan in found["scans"] for r in scan["readings"] if r["path"] == f"{SHARE}/{DEAD}"
    ]
    return found["at"] - min(since) if since else 0.0


def picture(name: str, words: str) -> None:
    """Run a command on a terminal and save what it shows."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for line in on_terminal(words).rstrip("\n").split("\n"):
        text = Text.from_ansi(line)
        text.rstrip()
        console.print(text, soft_wrap=True)
    svg = console.export_svg(title=f"$ smartscan {words}", theme=MONOKAI, code_format=SVG, unique_id=name)
    svg = INDENTED.sub(_indented, svg)
    (IMAGES / f"{name}.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", "utf-8")
    print(f"made {name}.svg")


def _indented(found: re.Match[str]) -> str:
    x, y, length, more, spaces = found.groups()
    by = LETTER * (len(spaces) // len("&#160;"))
    return f'x="{float(x) + by:g}" y="{y}" textLength="{float(length) - by:g}"{more}>'


def on_terminal(words: str) -> str:
    """Give what a command writes to a terminal; its messages to stderr are not part of the picture."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 200, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(command(words), stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # EIO is the end of a pseudo-terminal
        while data := os.read(ours, 65536):
            said += data
    os.close(ours)
    process.wait()
    return said.decode().replace("\r\n", "\n")


if __name__ == "__main__":
    sys.exit(main())
