"""What a container costs: a chunk on Docker beside the same chunk as a local process.

Touches: a directory of its own, which is removed; the Docker engine, through the program.

    python benchmarks/chunks.py [--rounds N] [--dir DIR]    prints a table, and puts it into README.md here

Where no engine answers, the tests' own one serves (it builds the images that are missing):

    sh -c 'set -a; eval "$(tests/docker-up)"; .venv/bin/python benchmarks/chunks.py; tests/docker-down'

Trees of 1, 10 and 100 directories with 1,000 files each, scanned once before, so that each directory is a
chunk, but nothing is known to be unchanged; 8 at a time. The engines take turns, and medians are told. A
chunk lasts from the order to start its worker until its last shard is in the catalogue. Each catalogue is
compared with its tree.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "chunks.json"
README = HERE / "README.md"
MARKS = ("<!-- chunks: made by chunks.py -->\n\n", "\n\n<!-- /chunks -->")
FILES = 1000
AT_ONCE = 8


def make(tree: Path, dirs: int) -> None:
    """Make the tree of so many chunks."""
    for i in range(dirs):
        folder = tree / f"dir_{i:03}"
        folder.mkdir(parents=True)
        fd = os.open(folder, os.O_RDONLY)
        for j in range(FILES):
            os.close(os.open(f"file_{j:04}.txt", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        os.close(fd)


def scan(tree: Path, folder: Path, engine: str) -> tuple[float, list[float]]:
    """Scan once; gives the wall seconds of the second scan, cut by known sizes, and those of its chunks."""
    program = Path(sys.executable).with_name("smartscan")
    db = folder / "smart.db"
    command: list[str | os.PathLike[str]] = [program, "scan", tree, "chunks", "--db", db]
    command += ["--max-containers", str(AT_ONCE), "--chunk-entries", str(FILES + FILES // 2), "--engine"]
    folder.mkdir()
    subprocess.run([*command, "local"], check=True, capture_output=True)
    with closing(sqlite3.connect(db)) as catalogue:  # so that every directory is read in full again
        catalogue.execute("UPDATE dir SET digest = NULL")
        catalogue.commit()
    began = time.monotonic()
    subprocess.run([*command, engine], check=True, capture_output=True)
    wall_s = time.monotonic() - began
    subprocess.run([sys.executable, HERE / "check.py", tree, db], check=True, capture_output=True)
    with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as catalogue:
        lasted = [s for (s,) in catalogue.execute(
            "SELECT max(ingested_at) - started_at FROM attempt JOIN chunk ON chunk.id = attempt.chunk_id "
            "JOIN shard ON shard.chunk_id = attempt.chunk_id AND shard.attempt = attempt.number "
            "WHERE scan_id = 2 GROUP BY attempt.chunk_id, attempt.number")]
    shutil.rmtree(folder)
    return wall_s, lasted


def docker_version() -> str:
    """Give the version of the Docker engine that answers here; empty where none does."""
    if not shutil.which("docker"):
        return ""
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def table(data: list[dict[str, Any]]) -> str:
    """Write the results as Markdown."""
    lines = [
        "| directories | chunks | local scan | Docker scan | a chunk, local | a chunk, Docker "
        "| overhead per container, of the scan's wall time |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in data:
        lines.append(
            f"| {row['dirs']} | {row['chunks']} | {row['local_s']:.2f} s | {row['docker_s']:.2f} s "
            f"| {row['local_chunk_s']:.2f} s | {row['docker_chunk_s']:.2f} s | {row['overhead_s']:.3f} s |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where trees and catalogues are made; not a tmpfs")
    given = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program is compiled, so is this one
    docker = docker_version()
    if not docker:
        print("no Docker engine answers here; nothing was measured")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="chunks-", dir=given.dir)).resolve()
    data = []
    try:
        for dirs in (1, 10, 100):
            tree = folder / f"tree-{dirs}"
            make(tree, dirs)
            runs: dict[str, list[tuple[float, list[float]]]] = {"local": [], "docker": []}
            for _ in range(given.rounds):
                for engine, done in runs.items():
                    done.append(scan(tree, folder / "catalogue", engine))
            wall = {e: statistics.median(w for w, _ in done) for e, done in runs.items()}
            chunk = {e: statistics.median(s for _, all_ in done for s in all_) for e, done in runs.items()}
            chunks = len(runs["docker"][0][1])
            data.append({
                "dirs": dirs, "chunks": chunks, "local_s": wall["local"], "docker_s": wall["docker"],
                "local_chunk_s": chunk["local"], "docker_chunk_s": chunk["docker"],
                "overhead_s": (wall["docker"] - wall["local"]) / chunks,
            })
            print(data[-1], file=sys.stderr, flush=True)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        print(f"{Path(error.cmd[0]).name} ended with status {error.returncode}: {said}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(data, indent=1) + "\n")
    text = table(data)
    print(text)
    before, mark, rest = README.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    said = f"Medians of {given.rounds} rounds on {os.cpu_count()} CPUs, Docker {docker}."
    README.write_text(f"{before}{mark}{text}\n\n{said}{end}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
