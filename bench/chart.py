"""The chart of how cost grows, as SVG made by hand: three panels, one line for each kind of cost.

python -m bench.chart ROWS.json CHART.svg    draws the rows that `--json` wrote

Law: both axes are logarithmic, and all panels share one vertical axis. The chart paints its own background,
light or dark like the reader's system, so that it can be read on any page.
"""

from __future__ import annotations

import json
import math
import sys
from html import escape
from pathlib import Path
from typing import Any

PANEL_WIDTH, PANEL_HEIGHT, GAP = 250, 230, 26
LEFT, TOP, BOTTOM = 56, 74, 48

# These colours also differ in lightness, for readers who cannot tell red from green.
COLOURS = (("#5b6472", "#a9b1bd"), ("#d9822b", "#f0a04b"), ("#1f6feb", "#6cb0ff"), ("#1a7f37", "#57d17a"))
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 15px; font-weight: 600 } .small { fill: #57606a; font-size: 11px }
  .page { fill: #ffffff } .grid { stroke: #d8dee4 } .axis { stroke: #8c959f }
  path { fill: none; stroke-width: 2 }
"""
DARK = """
  text { fill: #e6edf3 } .small { fill: #9aa4af }
  .page { fill: #0d1117 } .grid { stroke: #2b323b } .axis { stroke: #6e7681 }
"""

Panels = dict[str, dict[str, list[tuple[float, float]]]]


def draw(rows: list[dict[str, Any]]) -> str:
    """The SVG of the rows (as `--json` writes them) that have a point. Raises ValueError if none has."""
    panels: Panels = {}
    for row in rows:
        if point := row.get("point"):
            lines = panels.setdefault(point["axis"], {})
            lines.setdefault(point["line"], []).append((point["x"], max(row["median"], 0.01)))
    if not panels:
        raise ValueError("there is nothing to draw; expected rows of `growth`")
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    values = [y for lines in panels.values() for points in lines.values() for _, y in points]
    low, high = _ends(min(values), max(values))
    width = LEFT + len(panels) * (PANEL_WIDTH + GAP)
    height = TOP + PANEL_HEIGHT + BOTTOM
    light = "".join(_colour(n, pair[0]) for n, pair in enumerate(COLOURS))
    dark = DARK + "".join(_colour(n, pair[1]) for n, pair in enumerate(COLOURS))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="Server CPU per delivery as load grows">',
        f"<style>{STYLE}{light}\n@media (prefers-color-scheme: dark) {{{dark}}}</style>",
        f'<rect class="page" width="{width}" height="{height}" rx="8"/>',
        f'<text class="title" x="{LEFT}" y="26">Server CPU per delivery, µs (both axes logarithmic)</text>',
    ]
    parts += _legend(names)
    for n, (axis, lines) in enumerate(panels.items()):
        left = LEFT + n * (PANEL_WIDTH + GAP)
        parts += _panel(left, axis, [(names.index(name), lines[name]) for name in lines], low, high, n == 0)
    return "\n".join([*parts, "</svg>", ""])


def _colour(n: int, colour: str) -> str:
    return f"\n  .line{n} {{ stroke: {colour} }} .dot{n} {{ fill: {colour} }}"


def _legend(names: list[str]) -> list[str]:
    parts, x = [], LEFT
    for n, name in enumerate(names):
        parts.append(
            f'<path class="line{n}" d="M{x} 46h22"/><circle class="dot{n}" cx="{x + 11}" cy="46" r="3.5"/>'
        )
        parts.append(f'<text x="{x + 28}" y="50">{escape(name)}</text>')
        x += 50 + round(len(name) * 6.4)
    return parts


def _panel(
    left: int,
    axis: str,
    lines: list[tuple[int, list[tuple[float, float]]]],
    low: float,
    high: float,
    labels: bool,
) -> list[str]:
    bottom = TOP + PANEL_HEIGHT
    xs = sorted({x for _, points in lines for x, _ in points})
    inset = 22  # keeps the outermost points off the frame

    def at_x(x: float) -> float:
        share = (math.log(x) - math.log(xs[0])) / ((math.log(xs[-1]) - math.log(xs[0])) or 1)
        return left + inset + share * (PANEL_WIDTH - 2 * inset)

    def at_y(y: float) -> float:
        return bottom - (math.log(y) - math.log(low)) / (math.log(high) - math.log(low)) * PANEL_HEIGHT

    parts = []
    for tick in _ticks(low, high):
        y = at_y(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + PANEL_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if labels:
            parts.append(
                f'<text class="small" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
            )
    parts.append(f'<line class="axis" x1="{left}" x2="{left + PANEL_WIDTH}" y1="{bottom}" y2="{bottom}"/>')
    for x in xs:
        parts.append(
            f'<text class="small" x="{at_x(x):.1f}" y="{bottom + 17}" text-anchor="middle">{x:,g}</text>'
        )
    middle = left + PANEL_WIDTH / 2
    parts.append(f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">{escape(axis)}</text>')
    for n, points in lines:
        path = "L".join(f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in points)
        parts.append(f'<path class="line{n}" d="M{path}"/>')
        for x, y in points:
            title = f"<title>{x:,g} {escape(axis)}: {y:.2f} µs</title>"
            parts.append(
                f'<circle class="dot{n}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3.5">{title}</circle>'
            )
    return parts


def _ends(low: float, high: float) -> tuple[float, float]:
    """The ticks just below and just above what is drawn."""
    steps = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)]
    return max(s for s in steps if s <= low), min(s for s in steps if s > high)


def _ticks(low: float, high: float) -> list[float]:
    steps = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)]
    return [s for s in steps if low <= s <= high]


if __name__ == "__main__":
    rows = json.loads(Path(sys.argv[1]).read_text())["rows"]
    Path(sys.argv[2]).write_text(draw(rows))
