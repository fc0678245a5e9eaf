"""Run one command and tell what it cost, all its processes together.

Touches: the command; one JSON line on file descriptor FD.

    python -I -S measure.py FD COMMAND [ARGUMENT ...]

Wall time is from the start of the command to its exit. CPU is of every process that descends from it, also
of those it left behind, which are waited for. Idle is what all cores together had no work for meanwhile, or
waited for a disk; stolen is what the host of a virtual machine gave to others. Memory is the peak resident
size of the largest single process; this small program, from which the command is forked, is the least that
can be measured.
"""

import contextlib
import ctypes
import json
import os
import resource
import sys
import time

PR_SET_CHILD_SUBREAPER = 36


def of_cores(*which: str) -> float:
    """Seconds that all cores together have spent so since the machine started."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    with open("/proc/stat") as file:
        spent = dict(zip(names, file.readline().split()[1:], strict=False))
    return sum(int(spent[name]) for name in which) / os.sysconf("SC_CLK_TCK")


def main(fd: int, command: list[str]) -> None:
    """Run the command and write what it cost."""
    # Orphans come to this process, so that they are waited for and counted.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    idle_s, stolen_s = of_cores("idle", "iowait"), of_cores("steal")
    began = time.monotonic()
    pid = os.posix_spawnp(command[0], command, os.environ)
    status = os.waitpid(pid, 0)[1]
    wall_s = time.monotonic() - began
    idle_s, stolen_s = of_cores("idle", "iowait") - idle_s, of_cores("steal") - stolen_s
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "began": began,
        "wall_s": wall_s,
        "user_s": used.ru_utime,
        "system_s": used.ru_stime,
        "idle_s": idle_s,
        "stolen_s": stolen_s,
        "peak_bytes": used.ru_maxrss * 1024,
        "status": os.waitstatus_to_exitcode(status),
    }
    os.write(fd, json.dumps(result).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
