"""The line that says how a run stands: what is in it, and what is left out where it must fit."""

from __future__ import annotations

import os
import pty
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command import COMMAND
from smartscan.cli._progress import line
from smartscan.model import Op, Progress, Reading
from smartscan.report.page import cells
from smartscan.run.request import Glance

CHUNKS = {"running": 4, "pending": 2, "done": 11}


def glance(*, waits_s: float = 0.0, path: bytes = b"Backups/old-laptop", **more: object) -> Glance:
    reading = Reading(path, Op.OPEN, waits_s)
    progress = {1: Progress(1, readings=(reading,))} if waits_s else {}
    values = {"entries": 6486, "bytes": 12_500_000_000_000, "chunks": CHUNKS, "progress": progress, **more}
    return Glance(**values)  # type: ignore[arg-type]


def test_a_line_of_a_log_says_everything() -> None:
    assert line(glance(), 20, 240.4) == (
        "20 s  6,486 entries  12.5 TB  240 entries/s  chunks: 4 running, 2 pending, 11 done"
    )
    assert line(glance(expected_entries=12_972, chunks={"running": 1}), 20, None) == (
        "20 s  [##########          ] 50%  6,486 entries  12.5 TB  chunks: 1 running"
    )
    assert line(glance(waits_s=12), 20, 240).endswith("  waiting 12 s for Backups/old-laptop")
    assert line(glance(paused="the disk is full"), 20, 0).endswith("  PAUSED: the disk is full")


def test_on_a_terminal_what_makes_it_wait_is_seen() -> None:
    assert line(glance(waits_s=12, expected_entries=12_972), 20, 240, columns=79) == (
        "20 s  [#####     ] 50%  6,486 entries  waiting 12 s for Backups/old-laptop"
    )
    paused = line(glance(paused="the disk of /mnt/user/appdata is full", waits_s=9), 20, 240, columns=79)
    assert "PAUSED: the disk of /mnt/user/appdata is full" in paused
    assert line(glance(expected_entries=12_972), 20, 240, columns=79) == (
        "20 s  [#####     ] 50%  6,486 entries  12.5 TB  240 entries/s  11 of 17 chunks"
    )


@given(
    st.integers(1, 200), st.integers(0, 10**12), st.none() | st.integers(0, 10**12), st.binary(max_size=300),
    st.sampled_from([0.0, 5.0, 1e6]), st.none() | st.text(max_size=100), st.none() | st.floats(0, 1e9),
)  # fmt: skip
def test_it_fits(
    columns: int, entries: int, expected: int | None, path: bytes, waits_s: float, paused: str | None,
    rate: float | None,
) -> None:  # fmt: skip
    seen = glance(waits_s=waits_s, path=path, entries=entries, expected_entries=expected, paused=paused)
    text = line(seen, 1e5, rate, columns=columns)
    assert cells(text) <= columns
    assert text.isprintable()


@pytest.mark.parametrize("words", [["scan", "SHARE", "Media"], ["plan", "SHARE"], ["scan", "NONE", "Media"]])
def test_it_is_gone_before_the_result_is_printed(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "share" / "films").mkdir(parents=True)
    places = {"SHARE": str(tmp_path / "share"), "NONE": str(tmp_path / "none")}
    words = [places.get(word, word) for word in words]
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [*COMMAND, *words, "--db", str(tmp_path / "c.db"), "--engine", "local"])
    seen = b""
    while True:
        try:
            seen += os.read(terminal, 2**16)
        except OSError:  # the child closed its side
            break
    os.waitpid(child, 0)
    os.close(terminal)
    drawn = re.findall(rb"\r([^\r\n\x1b]*)\x1b\[K([^\r\n]*)", seen)
    assert any(b"chunks" in text for text, _ in drawn), seen
    assert not [rest for text, rest in drawn if text and rest], seen  # printed behind it
