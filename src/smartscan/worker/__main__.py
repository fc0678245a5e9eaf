"""`python -m smartscan.worker FOLDER`: run the attempt described in FOLDER/chunk.json.

Touches: what `guard` touches.
"""

import sys

from smartscan.worker.guard import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
