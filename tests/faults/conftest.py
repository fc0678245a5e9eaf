"""The matrix of faults: which row a test belongs to, its figures, and where they are written down.

Touches: the file that SMART_SCAN_FIGURES names, where it is set (tools/reliability.py reads it): a line of
JSON per test with its rows, outcome, reason for skipping and figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from line import Line


class Figures:
    """What a test measured; each is printed, and checked against its limit where it has one."""

    def __init__(self, properties: list[tuple[str, Any]]) -> None:
        self._properties = properties

    def __call__(self, what: str, value: float | str, unit: str = "", *, at_most: float | None = None,
                 at_least: float | None = None) -> None:
        shown = f"{value:.1f}" if isinstance(value, float) else f"{value}"
        shown += f" {unit}" if unit else ""
        bound = f" (at most {at_most:g})" if at_most is not None else ""
        bound += f" (at least {at_least:g})" if at_least is not None else ""
        print(f"{what}: {shown}{bound}")
        self._properties.append(("figure", {"what": what, "value": shown, "bound": bound.strip(" ()")}))
        if at_most is not None:
            assert float(value) <= at_most, f"{what}: {shown}{bound}"
        if at_least is not None:
            assert float(value) >= at_least, f"{what}: {shown}{bound}"


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figures:
    return Figures(request.node.user_properties)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    """The command line with a data directory of its own; nothing of it is left when the test ends."""
    made = Line(tmp_path)
    yield made
    made.end()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("row"):
            item.user_properties += [("row", row) for row in marker.args]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    file = os.environ.get("SMART_SCAN_FIGURES")
    properties = report.user_properties
    rows = [value for key, value in properties if key == "row"]
    # Skipped before it begins, failed anywhere, or told by the call itself.
    if file and rows and (report.when == "call" or report.outcome != "passed"):
        reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
        told = {
            "rows": rows,
            "test": report.nodeid,
            "outcome": report.outcome,
            "reason": reason.removeprefix("Skipped: "),
            "took_s": round(report.duration, 1),
            "figures": [value for key, value in properties if key == "figure"],
        }
        with open(file, "a") as stream:
            stream.write(json.dumps(told) + "\n")
    return report  # type: ignore[return-value]
