"""What the catalogue's rows cost SQLite itself, and what they cost us: the floor below a first scan.

Touches: the tree through a worker; a directory of its own, which is removed.

    python benchmarks/insertfloor.py TREE [--rounds N] [--profile FILE]

The tree is walked once by a worker of this package; its shards are then
  copied    the finished table, page by page order, as SQLite copies a table into an equal one: no row is made
  inserted  the same rows, made and inserted in order of their key by one INSERT ... SELECT: the floor
  ingested  shards to a catalogue with directories, totals, tallies and transactions: what a scan pays
into a new catalogue each time. CPU and wall seconds per million entries, medians.
"""

from __future__ import annotations

import argparse
import cProfile
import functools
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from smartscan.catalogue import ledger
from smartscan.catalogue import open as opening
from smartscan.catalogue.bulk import open_bulk
from smartscan.catalogue.ingest import Ingest
from smartscan.model import Limits, Root
from smartscan.worker.orders import Orders


def walk(tree: Path, folder: Path) -> list[Path]:
    """Have a worker write the shards of a tree."""
    folder.mkdir()
    limits = Limits(chunk_entries=1 << 40, chunk_bytes=1 << 60)
    Orders(os.fsencode(tree), 1, 1, 1, (Root(b""),), limits, (), False).write(folder)
    subprocess.run([sys.executable, "-m", "smartscan.worker", folder], check=True)
    return sorted(folder.glob("*.shard"))


def ingest(db: Path, tree: Path, shards: list[Path]) -> int:
    """Take shards into a new catalogue; returns the number of entries."""
    bulk = open_bulk(functools.partial(opening.open_catalogue, db, create=True))
    with closing(bulk.conn) as conn:
        with opening.transaction(conn):
            mount = ledger.mount(conn, "floor", os.fsencode(tree), 0.0)
            scan = ledger.begin(conn, mount, engine="local", controller="{}", options={}, at=0.0)
            chunk = ledger.add_chunk(conn, scan, [Root(b"")], "plan", 0.0)
            ledger.start_attempt(conn, chunk.id, 1, 0.0)
        taker = Ingest(bulk, mount, scan, rescan=False)
        counts = [taker.shard(chunk.id, 1, shard, 0.0) for shard in shards]
    return sum(c.entries for c in counts if c)


def insert(db: Path, source: Path, *, rows: bool) -> None:
    """Put the entries of one catalogue into an empty one, within SQLite."""
    with closing(opening.open_catalogue(db, create=True)) as conn:
        conn.execute("ATTACH ? AS source", (str(source),))
        with opening.transaction(conn):
            # A condition that is always true keeps SQLite from copying the pages of an equal table.
            every = "WHERE dir_id > 0 ORDER BY dir_id, name" if rows else ""
            conn.execute(f"INSERT INTO main.entry SELECT * FROM source.entry {every}")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Give the wall and CPU seconds of this process for some work."""
    os.sync()
    wall, cpu = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - cpu


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tree", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where shards and catalogues are made")
    parser.add_argument("--profile", type=Path, help="write a profile of one more ingest for pstats")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="floor-", dir=given.dir))
    try:
        shards = walk(given.tree.resolve(), folder / "attempt")
        size = sum(s.stat().st_size for s in shards)
        source = folder / "source" / "smart.db"
        source.parent.mkdir()
        entries = ingest(source, given.tree, shards)
        print(f"{entries} entries in {len(shards)} shards, {size / entries:.1f} bytes each; "
              f"SQLite {sqlite3.sqlite_version}")
        new = folder / "new" / "smart.db"
        works: dict[str, Callable[[], object]] = {
            "copied": lambda: insert(new, source, rows=False),
            "inserted": lambda: insert(new, source, rows=True),
            "ingested": lambda: ingest(new, given.tree, shards),
        }
        costs: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        for _ in range(given.rounds):
            for name, work in works.items():
                shutil.rmtree(new.parent, ignore_errors=True)
                new.parent.mkdir()
                costs[name].append(timed(work))
        print("| seconds per million entries | wall | CPU |\n|---|---|---|")
        for name, cost in costs.items():
            wall, cpu = (statistics.median(c) * 1e6 / entries for c in zip(*cost, strict=True))
            print(f"| {name} | {wall:.2f} | {cpu:.2f} |")
        if given.profile:
            shutil.rmtree(new.parent)
            new.parent.mkdir()
            profile = cProfile.Profile()
            profile.runcall(ingest, new, given.tree, shards)
            profile.dump_stats(given.profile)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
