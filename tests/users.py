"""Be an ordinary user for the length of a `with`: root may read and write everything, most users may not.

Touches: the effective user of this process. Needs root: mark the test `root`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

NOBODY = 65534


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Act with the rights of `nobody`; a process started inside is root's, unless given `user=NOBODY`."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
