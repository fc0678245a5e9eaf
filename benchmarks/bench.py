"""Measure a scan beside the tools that people use today, in one go, and check what it catalogued.

Touches: the directory given by --dir (trees, catalogues), a FUSE mount in it, benchmarks/results/.

    python benchmarks/bench.py                     everything; half an hour, 12 GB of memory as cache
    python benchmarks/bench.py --quick             trees of a hundredth; only tells that everything works
    python benchmarks/bench.py --only tree,latency some groups, merged into the results of the others
    python benchmarks/bench.py --report            write the tables of both README.md anew from the results

Runs of one group are interleaved (A B C A B C ...), and a value is the median of its runs. The cache is warm,
but in the group `cold`, for which the kernel's caches of the whole host are emptied before each run.
Every scan is checked against its tree: the number of entries and the disk bytes each time, every entry by
name, inode, size and time in the first round where the tree is not the largest. What fails has no result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "latest.json"
READMES = (HERE / "README.md", HERE.parent / "README.md")
TABLE = ("<!-- table: made by bench.py --report -->", "<!-- /table -->")
FIND_FORMAT = "%p %s %b %T@ %C@ %i %n %m %U %G\\n"
TIMEOUT_S = 3600
NAME = "bench"
LATENCY_US, FS_THREADS = 1000, 128
THREADS = (1, 2, 4, 8, 16, 32, 64)

Sample = dict[str, Any]


class Missing(Exception):
    """What a row needs is not on this machine; the message says what."""


class Wrong(Exception):
    """A run failed, or its catalogue is not what lies on the disk."""


@dataclass(slots=True)
class Tree:
    """A tree to scan: `entries` and `disk_bytes` are what the bare walk finds in it."""

    path: Path
    files: int
    entries: int
    disk_bytes: int
    by_entry: bool  # small enough to compare every entry


@dataclass(slots=True)
class Bench:
    """One run of the benchmark: where it works, and what it measured so far."""

    folder: Path
    rounds: int
    scale: int  # trees are this many times smaller
    use: dict[str, Path]  # trees that exist already
    options: list[str]  # more options for every scan
    python: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)

    # -- to run and measure -------------------------------------------------------------------------------

    def run(self, *command: str | os.PathLike[str], output: Path | None = None) -> Sample:
        """Run a command and give what it cost. Wrong where it fails."""
        words = [os.fspath(word) for word in command]
        os.sync()  # what others wrote is not paid for by this one
        out, into = os.pipe()
        wrapper = [sys.executable, "-I", "-S", str(HERE / "measure.py"), str(into), *words]
        with open(output or os.devnull, "wb") as stdout, tempfile.TemporaryFile() as stderr:
            try:
                subprocess.run(
                    wrapper, pass_fds=(into,), stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL,
                    timeout=TIMEOUT_S, check=True,
                )
                os.close(into)
                sample: Sample = json.loads(os.read(out, 65536))
            finally:
                os.close(out)
                with suppress(OSError):
                    os.close(into)
            if sample["status"]:
                stderr.seek(0)
                said = stderr.read()[-2000:].decode(errors="replace").strip()
                raise Wrong(f"{Path(words[0]).name} ended with status {sample['status']}: {said}")
        sample["cpu_s"] = sample["user_s"] + sample["system_s"]
        return sample

    def keep(self, key: str, sample: Sample) -> None:
        """Remember one run, and say it."""
        self.samples.setdefault(key, []).append(sample)
        print(
            f"  {key:<22} {sample['wall_s']:8.2f} s  cpu {sample['cpu_s']:7.2f} s  "
            f"peak {sample['peak_bytes'] / 1e6:6.1f} MB",
            flush=True,
        )

    def smartscan(self, *words: str | os.PathLike[str], output: Path | None = None) -> Sample:
        """Run a command of the program under test."""
        return self.run(Path(self.python).with_name("smartscan"), *words, output=output)

    def scan_words(self, tree: Tree, db: Path) -> tuple[str | os.PathLike[str], ...]:
        """Give the command that is measured."""
        return ("scan", tree.path, NAME, "--db", db, "--engine", "local", *self.options)

    def scan(self, key: str, tree: Tree, db: Path, *options: str, first: bool = True) -> None:
        """Scan a tree into a catalogue, check it, and remember what that cost."""
        if first:
            shutil.rmtree(db.parent, ignore_errors=True)
            db.parent.mkdir()
        sample = self.smartscan(*self.scan_words(tree, db), *options)
        sample["catalogue_bytes"] = sum(f.stat().st_size for f in db.parent.glob(db.name + "*"))
        self.check(tree, db, by_entry=tree.by_entry and key not in self.samples)
        self.keep(key, sample)

    def catalogue(self, name: str) -> Path:
        """Give the path of a catalogue in a directory of its own."""
        return self.folder / f"catalogue-{name}" / "smart.db"

    def check(self, tree: Tree, db: Path, *, by_entry: bool) -> None:
        """Compare a catalogue with its tree. Wrong where they differ."""
        with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as catalogue:
            (entries,) = catalogue.execute("SELECT count(*) FROM entry").fetchone()
            (disk_bytes,) = catalogue.execute("SELECT disk_bytes FROM dir WHERE parent_id IS NULL").fetchone()
            (state,) = catalogue.execute("SELECT state FROM scan ORDER BY id DESC LIMIT 1").fetchone()
        if (entries, disk_bytes, state) != (tree.entries, tree.disk_bytes, "complete"):
            raise Wrong(
                f"the catalogue says {entries} entries, {disk_bytes} bytes, {state}; "
                f"there are {tree.entries} entries, {tree.disk_bytes} bytes"
            )
        if by_entry:
            command = [sys.executable, str(HERE / "check.py"), str(tree.path), str(db)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise Wrong(f"the catalogue is not the tree: {done.stderr.strip()}")

    # -- what is needed -----------------------------------------------------------------------------------

    def peer(self, name: str) -> str:
        """Find a tool to compare with."""
        path = shutil.which(name)
        if not path:
            raise Missing(f"{name} is not installed")
        return path

    def tool(self, name: str, *flags: str) -> str:
        """Compile one of the C programs beside this file."""
        if name not in self.tools:
            made = self.folder / name
            compiler = shutil.which("cc") or shutil.which("gcc")
            if not compiler:
                raise Missing("there is no C compiler")
            subprocess.run([compiler, "-O2", "-pthread", HERE / f"{name}.c", *flags, "-o", made], check=True)
            self.tools[name] = str(made)
        return self.tools[name]

    def tree(self, key: str, dirs: int, files_per_dir: int) -> Tree:
        """Make a tree, or take one that is there, and read it so that it is in the cache."""
        path = self.use.get(key) or self.folder / f"tree-{key}-{dirs}-{files_per_dir}"
        if not path.exists():
            print(f"  making {dirs * files_per_dir} files in {dirs} directories", flush=True)
            part = path.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            subprocess.run([self.tool("mktree"), part, str(dirs), str(files_per_dir)], check=True)
            part.rename(path)
            os.sync()
        self.trees[key] = self.known(path, dirs * files_per_dir)
        return self.trees[key]

    def known(self, path: Path, files: int) -> Tree:
        """Read a tree to know what a catalogue of it must say."""
        walk = subprocess.run([self.tool("barewalk"), path], capture_output=True, text=True, check=True)
        entries, _, disk_bytes = map(int, walk.stdout.split())
        return Tree(path, files, entries, disk_bytes, by_entry=entries < 2_000_000)

    def forget(self, *, pages: bool = True) -> None:
        """Have the kernel forget all names and inodes that it holds of any disk, and the pages."""
        os.sync()
        try:
            Path("/proc/sys/vm/drop_caches").write_text("3" if pages else "2")
        except OSError as error:
            raise Missing("only root of the host can empty the kernel's caches") from error

    @contextmanager
    def latency(self, dirs: int, files_per_dir: int, cache_s: float) -> Iterator[Tree]:
        """Mount the slow file system; it is new to the kernel each time, so that nothing is cached."""
        if not os.path.exists("/dev/fuse") or os.geteuid() != 0:
            raise Missing("a FUSE mount needs root and /dev/fuse")
        config = shutil.which("pkg-config")
        asked = [config, "--cflags", "--libs", "fuse3"] if config else ["false"]
        flags = subprocess.run(asked, capture_output=True, text=True)
        if flags.returncode:
            raise Missing("libfuse 3 and pkg-config are not installed (Debian: libfuse3-dev pkg-config)")
        tool = self.tool("latencyfs", *flags.stdout.split())
        point = self.folder / "mount"
        point.mkdir(exist_ok=True)
        numbers = (dirs, files_per_dir, LATENCY_US, cache_s, FS_THREADS)
        served = subprocess.Popen([tool, point, *map(str, numbers)], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while not os.path.ismount(point):
                if served.poll() is not None or time.monotonic() > deadline:
                    raise Missing("the slow file system could not be mounted")
                time.sleep(0.01)
            files = dirs * files_per_dir
            sizes = (i * 977 % 1_000_000 for i in range(dirs + 1, dirs + files + 1))
            disk_bytes = sum(-(-size // 4096) * 4096 for size in sizes) + dirs * 4096
            yield Tree(point, files, files + dirs - 1, disk_bytes, by_entry=False)
        finally:
            subprocess.run(["umount", point], capture_output=True)
            with suppress(subprocess.TimeoutExpired):
                served.wait(10)
            if served.poll() is None:
                subprocess.run(["umount", "-l", point], capture_output=True)
                served.kill()
                served.wait()

    def optional(self, key: str, run: Callable[[], Sample]) -> None:
        """Run a peer; where it is missing, note that instead."""
        try:
            self.keep(key, run())
        except Missing as missing:
            self.notes[key] = str(missing)

    def du(self, key: str, tree: Tree) -> None:
        """Run the yardstick."""
        self.optional(key, lambda: self.run(self.peer("du"), "-s", tree.path))

    def find(self, key: str, tree: Tree) -> None:
        """List every entry with the same metadata as the catalogue has, into nothing."""
        self.optional(key, lambda: self.run(self.peer("find"), tree.path, "-printf", FIND_FORMAT))

    # -- the groups ---------------------------------------------------------------------------------------

    def million(self) -> Tree:
        """Give the tree that most rows are about."""
        return self.tree("1m", 25_000 // self.scale, 40)

    def five_million(self) -> Tree:
        """Give the largest tree."""
        return self.tree("5m", 125_000 // self.scale, 40)

    def group_tree(self) -> None:
        """First scan, second scan, survey and every peer on the tree of a million files."""
        tree, db, duc = self.million(), self.catalogue("tree"), self.folder / "duc.db"
        for _ in range(self.rounds):
            self.du("tree/du", tree)
            self.scan("tree/first", tree, db)
            self.optional("tree/gdu", lambda: self.run(self.peer("gdu"), "-npc", tree.path))
            self.scan("tree/second", tree, db, first=False)
            duc.unlink(missing_ok=True)
            self.optional("tree/duc", lambda: self.run(self.peer("duc"), "index", "-qd", duc, tree.path))
            self.find("tree/find", tree)
            scratch = self.catalogue("plan")
            scratch.parent.mkdir(exist_ok=True)
            plan = self.folder / "plan.json"
            words = ("plan", tree.path, "--db", scratch, "--engine", "local", "--json")
            sample = self.smartscan(*words, *self.options, output=plan)
            chunks = json.loads(plan.read_text())
            if sum(c["entries"] for c in chunks) != tree.entries:
                raise Wrong(f"the plan covers {sum(c['entries'] for c in chunks)} of {tree.entries} entries")
            self.keep("tree/plan", sample)
            self.keep("tree/bare", self.run(self.tool("barewalk"), tree.path))

    def group_flat(self) -> None:
        """One directory of a million files beside the tree."""
        tree, flat, db = self.million(), self.tree("flat", 1, 1_000_000 // self.scale), self.catalogue("flat")
        for _ in range(self.rounds):
            self.scan("flat/tree", tree, db)
            self.scan("flat/first", flat, db)
            self.du("flat/du", flat)

    def group_dirs(self) -> None:
        """Many directories with few files."""
        tree, db = self.tree("250k", 250_000 // self.scale, 4), self.catalogue("dirs")
        for _ in range(self.rounds):
            self.du("dirs/du", tree)
            self.scan("dirs/first", tree, db)
            self.scan("dirs/second", tree, db, first=False)
            self.keep("dirs/bare", self.run(self.tool("barewalk"), tree.path))

    def group_big(self) -> None:
        """Five million files: memory, and how fast the catalogue answers."""
        tree, db = self.five_million(), self.catalogue("big")
        for _ in range(min(self.rounds, 3)):
            self.du("big/du", tree)
            self.scan("big/first", tree, db)
        self.scan("big/second", tree, db, first=False)
        for _ in range(self.rounds):
            self.keep("big/stats", self.smartscan("stats", NAME, "--db", db))
            self.keep("big/monitor", self.smartscan("monitor", "--once", "--db", db))

    def group_latency(self) -> None:
        """Storage that takes its time: 32 threads beside find."""
        dirs, db = 1000 // min(self.scale, 20), self.catalogue("latency")
        for cache_s, key in ((1.0, "latency"), (0.0, "latency-uncached")):
            for _ in range(min(self.rounds, 3) if cache_s else 1):
                with self.latency(dirs, 40, cache_s) as tree:
                    self.find(f"{key}/find", tree)
                with self.latency(dirs, 40, cache_s) as tree:
                    self.scan(f"{key}/first", tree, db, "--threads", "32")
                with self.latency(dirs, 40, cache_s) as tree:
                    self.keep(f"{key}/bare", self.run(self.tool("barewalk"), tree.path, "32"))

    def group_cold(self) -> None:
        """A first scan of a share that nobody has read since the machine was started."""
        tree, db = self.million(), self.catalogue("cold")
        for _ in range(min(self.rounds, 3)):
            self.forget()
            self.du("cold/du", tree)
            self.forget()
            self.scan("cold/first", tree, db)
            self.forget()
            self.optional("cold/gdu", lambda: self.run(self.peer("gdu"), "-npc", tree.path))
            self.forget()
            self.keep("cold/bare", self.run(self.tool("barewalk"), tree.path))

    def group_visible(self) -> None:
        """How long until somebody who reads the catalogue sees rows."""
        tree, db = self.million(), self.catalogue("visible")
        for _ in range(self.rounds):
            seen: list[float] = []
            over = threading.Event()

            def look(seen: list[float] = seen, over: threading.Event = over) -> None:
                while not over.is_set() and not seen:
                    with suppress(sqlite3.Error):
                        with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as catalogue:
                            if catalogue.execute("SELECT 1 FROM scan WHERE entries > 0").fetchone():
                                seen.append(time.monotonic())
                    time.sleep(0.01)

            shutil.rmtree(db.parent, ignore_errors=True)
            db.parent.mkdir()
            reader = threading.Thread(target=look)
            reader.start()
            try:
                sample = self.smartscan(*self.scan_words(tree, db))
            finally:
                over.set()
                reader.join()
            self.check(tree, db, by_entry=False)
            if not seen:
                raise Wrong("a reader of the catalogue saw no row before the scan ended")
            sample["visible_s"] = seen[0] - sample["began"]
            self.keep("visible/first", sample)

    def group_curves(self) -> None:
        """How cost grows with files, and falls with threads."""
        db = self.catalogue("curve")
        for files in (10_000, 100_000):
            tree = self.tree(f"{files}", max(files // 40 // self.scale, 1), 40)
            for _ in range(min(self.rounds, 3)):
                self.du(f"curve/{files}/du", tree)
                self.scan(f"curve/{files}/first", tree, db)
                self.scan(f"curve/{files}/second", tree, db, first=False)
        for threads in THREADS:
            with self.latency(500 // min(self.scale, 10), 40, 1.0) as tree:
                self.scan(f"threads/{threads}/first", tree, db, "--threads", str(threads))
            with self.latency(500 // min(self.scale, 10), 40, 1.0) as tree:
                self.keep(f"threads/{threads}/bare", self.run(self.tool("barewalk"), tree.path, str(threads)))


GROUPS = ("tree", "cold", "flat", "dirs", "latency", "visible", "curves", "big")
TREES = {"tree": "1m", "big": "5m", "flat": "flat"}  # whose number of files the table needs


# ---- the table -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a number made of two series of runs, or of one."""

    what: str
    key: str
    value: Callable[[Sample], float]
    unit: str
    bar: float | None
    over: str = ""  # the series it is divided by
    below: Callable[[Sample], float] | None = None  # its number, where it is not the same


def wall(sample: Sample) -> float:
    """Seconds from start to exit."""
    return float(sample["wall_s"])


def _of(name: str, divided_by: float) -> Callable[[Sample], float]:
    return lambda sample: float(sample[name]) / divided_by


def _of_cores(name: str) -> Callable[[Sample], float]:
    cores = os.cpu_count() or 1
    return lambda sample: 100 * float(sample[name]) / cores / float(sample["wall_s"])


def rows(files: dict[str, int]) -> list[Row]:
    """The bars, in the order people read them. `files` are of the trees, by group."""
    million = files.get("tree", 1_000_000)
    flat = files.get("flat", 1_000_000) / million
    return [
        Row("first scan / `du -s`", "tree/first", wall, "x", 0.8, "tree/du"),
        Row("first scan / `gdu -npc`", "tree/first", wall, "x", 0.5, "tree/gdu"),
        Row("first scan / `duc index`", "tree/first", wall, "x", 0.4, "tree/duc"),
        Row("first scan / `find -printf`", "tree/first", wall, "x", 0.6, "tree/find"),
        Row("first scan / bare C walk, one thread per core", "tree/first", wall, "x", None, "tree/bare"),
        Row("second scan, nothing changed / `du -s`", "tree/second", wall, "x", 0.7, "tree/du"),
        Row("first scan, nothing in the kernel's caches / `du -s`", "cold/first", wall, "x", None, "cold/du"),
        Row("the same / `gdu -npc`", "cold/first", wall, "x", None, "cold/gdu"),
        Row("the same / bare C walk, one thread per core", "cold/first", wall, "x", None, "cold/bare"),
        Row("CPU per million files, all processes", "tree/first", _of("cpu_s", million / 1e6), "s", 4.5),
        Row("first scan, time of all cores without work", "tree/first", _of_cores("idle_s"), "%", None),
        Row("the same, time that the host gave to others", "tree/first", _of_cores("stolen_s"), "%", None),
        Row("catalogue per file", "tree/first", _of("catalogue_bytes", million), "bytes", 110),
        Row("peak memory of any process, 1,000,000 files", "tree/first", _of("peak_bytes", 1e6), "MB", 250),
        Row("peak memory of any process, 5,000,000 files", "big/first", _of("peak_bytes", 1e6), "MB", 250),
        Row("peak memory, 5,000,000 / 1,000,000 files", "big/first", _of("peak_bytes", 1), "x", 1.1,
            "tree/first", _of("peak_bytes", 1)),
        Row("one directory of 1,000,000 files / the tree, per file", "flat/first",
            lambda s: wall(s) / flat, "x", 1.0, "flat/tree"),
        Row("250,000 directories of 4 files / `du -s`", "dirs/first", wall, "x", 1.2, "dirs/du"),
        Row("the same, second scan / `du -s`", "dirs/second", wall, "x", None, "dirs/du"),
        Row("storage that takes 1 ms, 32 threads / `find -printf`", "latency/first", wall, "x", 0.06,
            "latency/find"),
        Row("the same / bare C walk of 32 threads", "latency/first", wall, "x", None, "latency/bare"),
        Row("the same, kernel caching nothing / `find -printf`", "latency-uncached/first", wall, "x", None,
            "latency-uncached/find"),
        Row("first rows visible to a reader", "visible/first", _of("visible_s", 1), "s", 1.5),
        Row("`stats`, 5,000,000 files", "big/stats", wall, "s", 0.5),
        Row("`monitor --once`, 5,000,000 files", "big/monitor", wall, "s", 0.5),
        Row("first scan of 5,000,000 files / `du -s`", "big/first", wall, "x", None, "big/du"),
        Row("survey for `plan` / `du -s`", "tree/plan", wall, "x", 0.7, "tree/du"),
    ]


def machine(folder: Path) -> dict[str, Any]:
    """Describe the machine in plain terms: nothing that names it."""
    model, memory = "", 0
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        memory = int(Path("/proc/meminfo").read_text().split()[1]) // 2**20
    mount = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", folder], capture_output=True, text=True)
    release = ".".join(platform.release().split("-")[0].split(".")[:2])
    return {
        "cores": os.cpu_count(),
        "cpu": model,
        "memory_gib": memory,
        "file_system": mount.stdout.strip(),
        "kernel": f"Linux {release}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def evaluate(row: Row, samples: dict[str, list[Sample]], notes: dict[str, str]) -> dict[str, Any]:
    """Make a line of numbers: median, least and most; of a ratio, the medians' and those of the rounds."""
    above, below = samples.get(row.key, []), samples.get(row.over, [])
    why = notes.get(row.key) or notes.get(row.over) or notes.get(row.key.split("/")[0])
    out: dict[str, Any] = {"what": row.what, "unit": row.unit, "bar": row.bar, "runs": len(above)}
    if why or not above or (row.over and not below):
        return {**out, "skipped": why or "not measured"}
    values = [row.value(s) for s in above]
    if row.over:
        yard = [(row.below or wall)(s) for s in below]
        value = statistics.median(values) / statistics.median(yard)
        rounds = [a / b for a, b in zip(values, yard, strict=False)]
        if row.below is None:
            out |= {"above_s": statistics.median(values), "below_s": statistics.median(yard)}
    else:
        value, rounds = statistics.median(values), values
    met = None if row.bar is None else value <= row.bar
    return {**out, "value": value, "least": min(rounds), "most": max(rounds), "met": met}


def number(value: float, unit: str) -> str:
    """Show a value with its unit."""
    if unit == "x":
        return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
    return f"{value:.2f} s" if unit == "s" else f"{value:.0f} {unit}"


def table(data: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    m = data["machine"]
    lines = [
        f"{m['cores']} cores ({m['cpu']}), {m['memory_gib']} GiB of memory, {m['file_system']}, "
        f"{m['kernel']}, Python {m['python']}, SQLite {m['sqlite']}; interleaved runs, with a warm cache "
        "except where a row says otherwise.",
        "",
        "| what | bar | median | least .. most | runs | seconds | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in data["rows"]:
        bar = "" if row["bar"] is None else f"<= {number(row['bar'], row['unit'])}"
        if "skipped" in row:
            lines.append(f"| {row['what']} | {bar} | | | | | skipped: {row['skipped']} |")
            continue
        seconds = f"{row['above_s']:.2f} / {row['below_s']:.2f}" if "above_s" in row else ""
        met = {None: "", True: "met", False: "**missed**"}[row["met"]]
        span = f"{number(row['least'], row['unit'])} .. {number(row['most'], row['unit'])}"
        value = number(row["value"], row["unit"])
        lines.append(f"| {row['what']} | {bar} | {value} | {span} | {row['runs']} | {seconds} | {met} |")
    return "\n".join(lines)


def report(data: dict[str, Any]) -> None:
    """Put the table into both README.md, between its marks."""
    for page in READMES:
        text = page.read_text()
        before, _, rest = text.partition(TABLE[0])
        after = rest.partition(TABLE[1])[2]
        page.write_text(f"{before}{TABLE[0]}\n\n{table(data)}\n\n{TABLE[1]}{after}")


# ---- the program -----------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="trees of a hundredth, results not kept")
    parser.add_argument("--only", metavar="GROUP,...", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where trees and catalogues are made; not a tmpfs")
    parser.add_argument("--keep", action="store_true", help="leave the trees in --dir for the next time")
    parser.add_argument("--use", action="append", default=[], metavar="KEY=PATH",
                        help="a tree that is there already: 1m, 5m, 250k, flat")
    parser.add_argument("--option", action="append", default=[], help="one more word for every scan")
    parser.add_argument("--python", default=sys.executable, help="whose smartscan is measured")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only write the table anew")
    return parser.parse_args()


def main() -> int:
    """Measure, or report. Exit status 1 where a group failed."""
    given = parse()
    if given.report:
        report(json.loads(RESULTS.read_text()))
        return 0
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program is compiled, so is this one
    groups = given.only.split(",") if given.only else list(GROUPS)
    if unknown := set(groups) - set(GROUPS):
        raise SystemExit(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if given.dir:
        given.dir.mkdir(parents=True, exist_ok=True)
    folder = given.dir if given.keep and given.dir else Path(tempfile.mkdtemp(prefix="bench-", dir=given.dir))
    use = {key: Path(path) for key, _, path in (word.partition("=") for word in given.use)}
    rounds, scale = (2, 100) if given.quick else (given.rounds, 1)
    bench = Bench(folder.resolve(), rounds, scale, use, given.option, given.python)
    data: dict[str, Any] = {"samples": {}, "notes": {}, "files": {}}
    if given.only and given.out.exists():
        data = json.loads(given.out.read_text())
    try:
        for group in groups:
            print(group, flush=True)
            with suppress(Missing):  # the names of other trees are no part of this one
                bench.forget(pages=False)
            try:
                getattr(bench, f"group_{group}")()
            except Missing as missing:
                bench.notes[group] = str(missing)
            except (Wrong, subprocess.SubprocessError) as wrong:
                bench.notes[group] = f"FAILED: {wrong}"
            if group in bench.notes:
                print(f"  {bench.notes[group]}", flush=True)
            mine = {"latency": ("latency/", "latency-uncached/"), "curves": ("curve/", "threads/")}.get(
                group, (f"{group}/",)
            )
            for part, new in (("samples", bench.samples), ("notes", bench.notes)):
                kept = {k: v for k, v in data[part].items() if not k.startswith(mine) and k != group}
                data[part] = kept | {k: v for k, v in new.items() if k.startswith(mine) or k == group}
            data["files"] |= {g: bench.trees[t].files for g, t in TREES.items() if t in bench.trees}
            data["machine"] = machine(bench.folder)
            data["rows"] = [evaluate(row, data["samples"], data["notes"]) for row in rows(data["files"])]
            if not given.quick or given.out != RESULTS:  # after each group: the next may take long
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    finally:
        if not given.keep:
            shutil.rmtree(bench.folder, ignore_errors=True)
    print(table(data))
    return 1 if any(note.startswith("FAILED") for note in bench.notes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
