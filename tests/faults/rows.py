"""The matrix of faults: what can happen to a share, an engine, a disk, a process, and what must then.

Pure. `tools/reliability.py` makes docs/reliability.md of it and of what the tests measured.
"""

ROWS: dict[int, tuple[str, str]] = {
    1: ("one directory hangs, and its reader cannot be killed", "it is named, all else is complete, exit 3"),
    2: ("the stat of one file hangs", "that row is unknown, its siblings are there"),
    3: ("the share's root hangs", "called dead within the stall limit, exit 4, the engine is fine"),
    4: ("the mount freezes in the middle, then recovers", "nothing twice, nothing lost"),
    5: ("more stuck places than the budget has workers", "the rest is finished, all are listed"),
    6: ("a stuck path", "it is read once"),
    7: ("200 ms per operation", "no false verdict"),
    8: ("EIO, EACCES, ESTALE, ENOENT, ELOOP at any request", "one problem each, nothing is called deleted"),
    9: ("endless directory, duplicates, endless depth, loops", "capped and marked"),
    10: ("names of any bytes, of 255, paths over 4,096", "they come back exactly"),
    11: ("a block device that does not answer", "as row 1"),
    12: ("the controller is killed, at every step and at random", "the same command goes on, exactly"),
    13: ("workers are killed at random", "what they finished is kept, the rest is tried again"),
    14: ("a worker is out of memory", "said as that, tried smaller, no silent success"),
    15: ("the engine cannot kill or remove a container", "nobody else waits"),
    16: ("the engine is stopped, killed, started again", "the scan goes on"),
    17: ("a container's start hangs and happens later", "it brings nothing"),
    18: ("more CPUs than there are, no image, name taken, no socket", "one sentence, no attempt burnt"),
    19: ("the share is missing, empty, unmounted in the middle", "refused, nothing is deleted"),
    20: ("the ingest is killed at any call", "all or nothing"),
    21: ("ENOSPC or EIO at any write, fsync, read", "said, no half directory, goes on when there is space"),
    22: ("a shard is cut, garbled, longer than it should be", "refused, and its part is listed again"),
    23: ("two controllers, a catalogue reached by two paths", "the second is refused"),
    24: ("the output disk hangs or turns read-only", "said within the stall limit"),
    25: ("the clock jumps a day either way", "no false verdict"),
    26: ("scans with random faults, one after the other", "all of the above, and no leak"),
    27: ("inode numbers that are invented anew", "nothing is called changed for it"),
}
