"""Scans of random trees with random faults, one after the other in one process, which must not grow.

    python soak.py FOLDER SEED SCANS

Touches: the fault file system, FOLDER. Prints a line of JSON for each scan: what it came to, and the file
descriptors, threads and memory of this process after it. Ends with a traceback where anything that must hold
does not.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from line import Line, until  # noqa: E402

import catalogues  # noqa: E402
from smartscan.errors import MountError  # noqa: E402
from smartscan.faults import FaultMount, Rule, fail, fault_mount, hang, latency, slow  # noqa: E402
from smartscan.model import Limits, Resources  # noqa: E402
from smartscan.run import Request, retry, scan  # noqa: E402
from trees import Link, Tree, find_listing  # noqa: E402

STALL_S = 1.0


def tree(chance: random.Random) -> Tree:
    """Make a tree of some 100 to 400 entries."""

    def folder(depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {f"f{n}": chance.randrange(9000) for n in range(chance.randrange(8))}
        if chance.random() < 0.3:
            made["link"] = Link("nowhere")
        if depth:
            made |= {f"d{n}": folder(depth - 1) for n in range(chance.randrange(1, 4))}
        return made

    return {f"top{n}": folder(3) for n in range(chance.randrange(3, 7))} | {"file": 1}


def faults(chance: random.Random, dirs: list[str], files: list[str]) -> list[Rule]:
    """Draw up to four faults."""
    made: list[Rule] = []
    for _ in range(chance.randrange(5)):
        folder, file = chance.choice(dirs), chance.choice(files)
        errno = chance.choice(("EIO", "EACCES", "ESTALE", "ENOENT"))
        made.append(
            chance.choice(
                (
                    hang(folder, chance.choice(("opendir", "readdir", "lookup"))),
                    hang(file, "lookup"),
                    fail(folder, chance.choice(("opendir", "readdir")), errno=errno),
                    fail(file, "lookup", errno=errno),
                    fail("*", "opendir", errno="EIO", skip=chance.randrange(2, 30), count=1),
                    slow(f"{folder}*", ms=chance.randrange(10, 100)),
                )
            )
        )
    if chance.random() < 0.1:
        made = [hang("", chance.choice(("opendir", "getattr")))]
    if chance.random() < 0.3:
        made.append(latency(chance.randrange(1, 12)))
    return made


def disturb(chance: random.Random, line: Line, share: FaultMount, over: threading.Event) -> None:
    """Kill workers and freeze the mount, now and then."""
    while not over.wait(chance.uniform(0.2, 1.0)):
        if chance.random() < 0.5 and (workers := line.workers()):
            try:
                os.kill(chance.choice(workers), 9)
            except ProcessLookupError:
                pass
        elif chance.random() < 0.3:
            share.daemon.send_signal(19)
            time.sleep(chance.uniform(0.1, 0.8))
            share.daemon.send_signal(18)


def one(folder: Path, seed: int) -> dict[str, Any]:
    """Scan once with faults, then without; give what came of it."""
    chance = random.Random(seed)
    line = Line(folder)
    line.build(tree(chance))
    listing = find_listing(line.real)
    below = [path for path in listing if path]
    dirs = [os.fsdecode(path) for path in below if listing[path].type == "d"]
    files = [os.fsdecode(path) for path in below if listing[path].type == "f"]
    began, said = time.monotonic(), []
    with fault_mount(line.real, rules=(rules := faults(chance, dirs, files)), attr_cache_s=0) as share:
        limits = Limits(chunk_entries=chance.choice((20, 60, 1000)), stall_s=STALL_S,
                        threads=chance.choice((1, 2, 8)))  # fmt: skip
        request = Request(line.db, os.fsencode(share.path), "m", limits, resources=Resources(1.0, 2**28),
                          max_containers=chance.randrange(1, 5), engine="local", say=said.append)  # fmt: skip
        over = threading.Event()
        others = threading.Thread(target=disturb, args=(chance, line, share, over))
        if chance.random() < 0.3:
            others.start()
        try:
            status = scan(request).exit_status
        except MountError as error:
            status = error.exit_status
        over.set()
        if others.ident:
            others.join()
        assert status in (0, 3, 4, 10), (status, said)
        if status in (0, 3, 4):
            catalogues.check(line.db)
        if status == 0:
            assert line.listing().keys() == set(below)
        share.set()
        until(line.workers, lambda left: not left, 15)
        time.sleep(1.1)  # what the kernel still knows of names that were not there
        again = retry(request).exit_status if status == 3 else scan(request).exit_status
        if again == 3:  # what was given up because its workers were killed
            again = scan(request).exit_status
        assert again == 0, (status, again, said, line.problems())
        assert line.listing().keys() == set(below), (set(below) ^ line.listing().keys(), rules)
        catalogues.check(line.db)
        line.at_rest()
    shutil.rmtree(folder)
    return {"seed": seed, "status": status, "took_s": round(time.monotonic() - began, 1), "rules": len(rules)}


def resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def main(folder: Path, seed: int, scans: int) -> None:
    for n in range(scans):
        told = one(folder / f"{seed + n}", seed + n)
        told |= {
            "fds": len(list(Path("/proc/self/fd").iterdir())),
            "threads": threading.active_count(),
            "rss_kib": resident_kib(),
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
