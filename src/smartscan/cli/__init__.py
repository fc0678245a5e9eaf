"""The command line: one module for each command, and the frame that they share.

Touches: the handler of SIGINT; else what the commands say.
"""

from __future__ import annotations

from typing import NoReturn

from smartscan import interrupts


def main() -> NoReturn:
    """Run the command that this process was given, and end the process."""
    interrupts.remember()  # first of all: the rest takes a tenth of a second to load
    from smartscan.cli._frame import main as frame

    frame.main()
