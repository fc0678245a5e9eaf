"""A Ctrl-C that Python loses is remembered, and one that would do harm waits.

Touches: the handler of SIGINT, and what Python says of errors that nobody can catch.

Python raises KeyboardInterrupt wherever it is just then. In a callback nobody can catch it: "Exception
ignored in", and the program goes on. Every import ends with such a callback, which holds the lock that all
imports need: lost there, that is never let go, and a thread that imports later waits for ever. So none is
raised in an import; whoever has imported much calls `check`.
"""

from __future__ import annotations

import _imp
import signal
import sys
import threading
from typing import Any

asked = 0
"""How often Ctrl-C was pressed since `remember`, or another signal came that `heed` handles."""
_say_of_others = sys.unraisablehook


def remember() -> None:
    """Count each Ctrl-C from now on, besides raising KeyboardInterrupt; one that is ignored stays ignored.

    Not to be called in an import.
    """
    global asked
    asked = 0
    main = threading.current_thread() is threading.main_thread()  # no other may set a handler
    if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, heed)
        sys.unraisablehook = _unraisable
        while _imp.lock_held():  # by one that was lost while Python itself was loaded
            _imp.release_lock()


def check() -> None:
    """Raise KeyboardInterrupt where this process was asked to end since `remember`."""
    if asked:
        raise KeyboardInterrupt


def heed(number: int, frame: Any) -> None:
    """Count a signal that asks this process to end, and raise KeyboardInterrupt, but not in an import."""
    global asked
    asked += 1
    at = frame
    while at is not None:
        if at.f_code.co_filename.startswith("<frozen importlib"):
            return
        at = at.f_back
    signal.default_int_handler(number, frame)


def _unraisable(lost: Any) -> None:
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        _say_of_others(lost)
