"""From an older catalogue to the newest: one step per version, all of them in one transaction.

Touches: the catalogue it is given. schema.sql is always the newest version; a step here makes of a catalogue
of version N what schema.sql was in version N + 1. A step is SQL, or a function where SQL cannot say it, and
never changes again once it was released. A view holds nothing: `open` makes one anew that differs, and that
is no version.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence

Step = str | Callable[[sqlite3.Connection], None]

# STEPS[0] goes from version 1 to 2.
STEPS: tuple[Step, ...] = ()

VERSION = 1 + len(STEPS)  # of schema.sql


def migrate(conn: sqlite3.Connection, steps: Sequence[Step] = STEPS) -> None:
    """Bring a catalogue to the newest version, within the caller's transaction: all steps or none."""
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    for number, step in enumerate(steps, start=1):
        if number < version:
            continue
        if isinstance(step, str):
            run_script(conn, step)
        else:
            step(conn)
        conn.execute(f"PRAGMA user_version = {number + 1}")


def run_script(conn: sqlite3.Connection, script: str) -> None:
    """Run statements within the caller's transaction, which Connection.executescript would commit."""
    for statement in _statements(script):
        conn.execute(statement)


def _statements(script: str) -> Iterator[str]:
    """Split SQL at the ends of lines that complete a statement; at most one begins on a line."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement
