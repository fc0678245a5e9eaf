"""Run a module that ends when its starter ends.

    python -m smartscan.engine.leash MODULE ARG...     once stdin is closed: this process has its limits then
    python -m smartscan.engine.leash --ready MODULE    load it, then wait for the order to run it

Touches: this process. A child ties itself, in its own interpreter, because the starter could only do it
between fork and exec, and to fork a controller takes 35 ms for each gigabyte it holds.
"""

import importlib
import itertools
import json
import os
import runpy
import signal
import sys

from smartscan.model import b64, unb64

STARTER = "SMART_SCAN_STARTER"  # pid of who started this process
READY = "--ready"
ROOM = 4096  # bytes for a value that an order sets, in the environment of one that waits
PR_SET_PDEATHSIG = 1


def tie(starter: int) -> None:
    """Have the kernel kill this process when `starter`, its parent, ends.

    A child forked from here is not tied: it ties itself. Ends at once if the starter already has.
    """
    import ctypes  # here, because the starter asks this module for words only

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != starter:
        os._exit(128 + signal.SIGKILL)


def order(arguments: list[str], environment: dict[str, str], log: str) -> bytes:
    """Make the line that one that waits reads from its stdin; ValueError where a value is too long."""
    if any(len(os.fsencode(value)) > ROOM for value in environment.values()):
        raise ValueError(f"a value longer than {ROOM} bytes")
    texts = [log, *arguments, *itertools.chain.from_iterable(environment.items())]
    # Bytes: under another locale the same text would be another path.
    return json.dumps([len(arguments), *(b64(os.fsencode(text)) for text in texts)]).encode() + b"\n"


def room(*names: str) -> dict[str, str]:
    """Make the part of the environment that an order will fill."""
    return dict.fromkeys(names, " " * ROOM)


def _wait(module: str) -> list[str]:
    """Load a program, wait for its order and become what that says; gives its arguments."""
    program = importlib.import_module(f"{module}.__main__").__name__
    del sys.modules[program]  # else it would not be run but found
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):  # the starter needs nobody
        os._exit(0)
    count, log, *values = json.loads(line)
    texts = [unb64(value) for value in values]
    for name, value in zip(texts[count::2], texts[count + 1 :: 2], strict=True):
        _become(name, value)
        os.environb[name] = value
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log_fd = os.open(unb64(log), os.O_WRONLY | os.O_APPEND)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    return [os.fsdecode(argument) for argument in texts[:count]]


def _become(name: bytes, value: bytes) -> None:
    """Write into the environment that /proc shows of this process: it is the memory that exec gave it."""
    import ctypes

    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    ctypes.memmove(getenv(name), value + b"\0", len(value) + 1)


if __name__ == "__main__":
    tie(int(os.environ[STARTER]))
    del sys.argv[0]
    if sys.argv[0] == READY:
        sys.argv[:] = [sys.argv[1], *_wait(sys.argv[1])]
    else:
        os.read(0, 1)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
