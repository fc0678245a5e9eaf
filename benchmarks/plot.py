"""Draw the curves: how cost grows with files, and falls with threads.

Touches: benchmarks/results/latest.json (reading), benchmarks/results/*.svg.

    python benchmarks/plot.py

Plain SVG, both axes logarithmic, medians.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 70, 150, 40, 50
COLOURS = ("#1b6ca8", "#c8553d", "#5a8f29", "#7d5ba6")

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture: lines over one axis."""

    name: str
    title: str
    across: str
    up: str
    lines: dict[str, Points]


def _ticks(least: float, most: float) -> list[float]:
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    if last - first > 2:
        return [10.0**i for i in range(first, last + 1)]
    steps = [m * 10.0**i for i in range(first, last + 1) for m in (1, 2, 5)]
    return [step for step in steps if least / 2 <= step <= most * 2]


def _short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def svg(chart: Chart) -> str:
    """Draw a chart."""
    points = [p for line in chart.lines.values() for p in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ticks_x = sorted(set(xs)) if len(set(xs)) < 9 else _ticks(min(xs), max(xs))
    ticks_y = _ticks(min(ys), max(ys))
    low_x, high_x = math.log10(min(xs)), math.log10(max(xs))
    low_y, high_y = math.log10(min(*ys, *ticks_y)), math.log10(max(*ys, *ticks_y))

    def at_x(x: float) -> float:
        return LEFT + (math.log10(x) - low_x) / (high_x - low_x or 1) * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(y) - low_y) / (high_y - low_y or 1) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(chart.title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 12}" text-anchor="middle">'
        f"{escape(chart.across)}</text>",
        f'<text transform="translate(16 {HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(chart.up)}</text>",
    ]
    for x in ticks_x:
        out.append(
            f'<path d="M{at_x(x):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e4e4e4"/>'
            f'<text x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_short(x)}</text>'
        )
    for y in ticks_y:
        out.append(
            f'<path d="M{LEFT} {at_y(y):.1f}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>'
            f'<text x="{LEFT - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{_short(y)}</text>'
        )
    label = 0.0
    lines = zip(chart.lines.items(), COLOURS, strict=False)
    for (name, line), colour in sorted(lines, key=lambda one: -one[0][1][-1][1]):  # as their ends lie
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="{colour}"/>' for x, y in line]
        label = max(label + 14, at_y(line[-1][1]) + 4)
        out.append(
            f'<text x="{WIDTH - RIGHT + 10}" y="{label:.1f}" fill="{colour}">{escape(name)}</text>'
        )
    return "\n".join([*out, "</svg>\n"])


def charts(data: dict[str, Any]) -> list[Chart]:
    """Gather the lines of all pictures from the results."""
    samples: dict[str, list[dict[str, float]]] = data["samples"]
    files = data["files"]
    sizes = [(10_000, "curve/10000"), (100_000, "curve/100000"), (files.get("tree", 0), "tree"),
             (files.get("big", 0), "big")]

    def over_files(run: str, value: str, divided_by: float = 1) -> Points:
        return [
            (n, statistics.median(s[value] for s in samples[f"{key}/{run}"]) / divided_by)
            for n, key in sizes
            if n and f"{key}/{run}" in samples
        ]

    def over_threads(run: str) -> Points:
        found = [(int(k.split("/")[1]), v) for k, v in samples.items() if k.startswith("threads/")
                 and k.endswith(f"/{run}")]
        return sorted((n, statistics.median(s["wall_s"] for s in v)) for n, v in found)

    scans = {"first scan": "first", "second scan": "second"}
    made = [
        Chart("wall", "Wall time", "files", "seconds",
              {n: over_files(r, "wall_s") for n, r in {**scans, "du -s": "du"}.items()}),
        Chart("cpu", "CPU of all processes", "files", "seconds",
              {n: over_files(r, "cpu_s") for n, r in {**scans, "du -s": "du"}.items()}),
        Chart("memory", "Peak memory of the largest process", "files", "MB",
              {n: over_files(r, "peak_bytes", 1e6) for n, r in scans.items()}),
        Chart("catalogue", "Size of the catalogue", "files", "MB",
              {"first scan": over_files("first", "catalogue_bytes", 1e6)}),
        Chart("threads", "20,000 files on storage that takes 1 ms", "threads", "seconds",
              {"first scan": over_threads("first"), "bare C walk": over_threads("bare")}),
    ]
    return [c for c in made if any(c.lines.values())]


def main() -> None:
    """Draw everything."""
    for chart in charts(json.loads((RESULTS / "latest.json").read_text())):
        (RESULTS / f"{chart.name}.svg").write_text(svg(chart))


if __name__ == "__main__":
    main()
