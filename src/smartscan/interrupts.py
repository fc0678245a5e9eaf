"""A Ctrl-C that Python loses is remembered.

Touches: the handler of SIGINT, and what Python says of errors that nobody can catch.

Python raises KeyboardInterrupt wherever it is just then. In a callback, such as the one that every import
ends with, nobody can catch it: "Exception ignored in", and the program goes on.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

asked = 0
"""How often Ctrl-C was pressed since `remember`."""
_say_of_others = sys.unraisablehook


def remember() -> None:
    """Count each Ctrl-C from now on, besides raising KeyboardInterrupt; one that is ignored stays ignored."""
    global asked
    asked = 0
    main = threading.current_thread() is threading.main_thread()  # no other may set a handler
    if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _count)
        sys.unraisablehook = _unraisable


def _count(number: int, frame: Any) -> None:
    global asked
    asked += 1
    signal.default_int_handler(number, frame)


def _unraisable(lost: Any) -> None:
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        _say_of_others(lost)
