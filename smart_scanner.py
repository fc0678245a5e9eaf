#!/usr/bin/env python3
"""Run Smart Scanner from a checkout, or the installed one: the same commands as `smartscan`.

Touches: nothing itself.
"""

import os
import sys


def main():
    """Find the package beside this file or among the installed ones, and run it."""
    here = os.path.dirname(os.path.realpath(__file__))
    source = os.path.join(here, "src")
    if os.path.isdir(os.path.join(source, "smartscan")):
        sys.path.insert(0, source)
        # Workers are new Python processes; they must find the same package.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    major, minor = sys.version_info[:2]
    if (major, minor) < (3, 11):
        return explain(f"it needs Python 3.11 or newer, and this is {major}.{minor}")
    os.environ.setdefault("SMART_SCAN_COMMAND", "python3 " + sys.argv[0])  # for what reports tell to type
    try:
        from smartscan.cli import main as run

        return run()
    except ModuleNotFoundError as error:
        return explain(f"the Python module {error.name!r} is missing")


def explain(reason):
    """Say in one sentence why it cannot run, and what does; give the exit status."""
    print(f"smart_scanner.py cannot run because {reason}; ./run_smart_scan.sh does all its own set-up.",
          file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
