"""`python -m smartscan.worker FOLDER`: run the attempt described in FOLDER/chunk.json.

Touches: what `guard` touches.
"""

import contextlib
import os
import sys

from smartscan.worker.guard import main

if __name__ == "__main__":
    status = main(sys.argv)
    with contextlib.suppress(OSError):  # the log may lie on the disk that is full
        sys.stderr.flush()
    os._exit(status)  # the interpreter's own end would flush again, and fail with a status of its own
