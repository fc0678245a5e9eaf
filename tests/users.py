"""What this user may do, and how to be an ordinary one for the length of a `with`.

Touches: the effective user of this process. Needs root: mark the test `root`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534
CAP_SYS_ADMIN = 21


def may_mount() -> bool:
    """Tell whether this process may mount; root in a container often may not."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return os.geteuid() == 0 and bool(effective >> CAP_SYS_ADMIN & 1)


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
