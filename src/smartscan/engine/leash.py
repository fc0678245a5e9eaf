"""`python -m smartscan.engine.leash MODULE ARG...`: run a module that ends when its starter ends.

Touches: this process. A child ties itself, in its own interpreter, because the starter could only do it
between fork and exec, and to fork a controller takes 35 ms for each gigabyte it holds.
"""

import ctypes
import os
import runpy
import signal
import sys

STARTER = "SMART_SCAN_STARTER"  # pid of who started this process
PR_SET_PDEATHSIG = 1


def tie(starter: int) -> None:
    """Have the kernel kill this process when `starter`, its parent, ends.

    A child forked from here is not tied: it ties itself. Ends at once if the starter already has.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != starter:
        os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    tie(int(os.environ[STARTER]))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
