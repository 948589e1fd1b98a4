"""The picture of `benchmarks.methods`: what each row learns and keeps, and the front of the best rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from benchmarks.method_rows import DEFAULT_ROW

if TYPE_CHECKING:
    from benchmarks.method_page import Line

GROUPS: dict[str, tuple[str, str]] = {
    "defaults": ("#15803d", "#8ce99a"),
    "with the defaults": ("#0b7285", "#66d9e8"),
    "baseline": ("#59636e", "#9198a1"),
    "alone": ("#c2410c", "#ffa94d"),
}
"""Colour of each group of rows on a light and on a dark page."""
BASELINES = ("naive", "kl_parent", "replay", "naive+lora")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 430, 62, 26, 20, 64
APART = 13.0
"""Smallest distance between the base lines of two names, in pixels."""

Point = tuple[float, float]


def group_of(method: str) -> str:
    """Return the group of a method: the defaults, together with them, a baseline, or by itself."""
    if method == DEFAULT_ROW:
        return "defaults"
    if method.startswith(("ours+", "draw_")) or method in ("agem", f"{DEFAULT_ROW}+lora"):
        return "with the defaults"
    return "baseline" if method in BASELINES else "alone"


def style() -> str:
    """Return the style sheet of both schemes."""
    light, dark = (
        "".join(f".g{i}{{fill:{colours[scheme]}}}" for i, colours in enumerate(GROUPS.values()))
        for scheme in (0, 1)
    )
    return (
        "text{font:12px system-ui,sans-serif;fill:#1f2328}.grid{stroke:#d1d9e0}.faint{fill:#59636e}"
        f".front{{stroke:#59636e;fill:none;stroke-dasharray:5 4}}{light}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#3d444d}.faint{fill:#9198a1}"
        f".front{{stroke:#9198a1}}{dark}}}"
    )


def front_of(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in both numbers, from the left.

    >>> front_of([(0.9, -0.5), (0.8, -0.1), (0.7, -0.2)])
    [(0.8, -0.1), (0.9, -0.5)]
    """
    front: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def draw(lines: Sequence[Line]) -> str:
    """Draw a point for each sequential row: LA from left to right, BWT from bottom to top."""
    rows = [
        (line.row, (learnt, kept))
        for line in lines
        if line.row.kind == "sequence"
        and (learnt := line.mean("LA")) is not None
        and (kept := line.mean("BWT")) is not None
    ]
    points = [point for _, point in rows]
    xs, ys = ([point[axis] for point in points] for axis in (0, 1))
    low_x = min([0.9, *(math.floor(x * 10) / 10 for x in xs)])
    low_y = min([-0.1, *(math.floor(y * 10) / 10 for y in ys)])
    high_y = max([0.05, *(math.ceil(y * 20) / 20 for y in ys)])

    def place(point: Point) -> Point:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (point[0] - low_x) / (1.0 - low_x)
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high_y - point[1]) / (high_y - low_y)
        return x, y

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Learning accuracy and backward transfer of every method of retention">',
        f"<style>{style()}</style>",
    ]
    for tenth in range(round(low_x * 10), 11):
        x, y = place((tenth / 10, low_y))
        parts += [_rule(x, x, TOP, y), _text(x, y + 18, f"{tenth / 10:.1f}", "middle")]
    for tenth in range(round(low_y * 10), 1):
        x, y = place((low_x, tenth / 10))
        parts += [_rule(x, WIDTH - RIGHT, y, y), _text(x - 8, y + 4, f"{tenth / 10:.1f}", "end")]
    parts.append(_text(LEFT, 14, "BWT: above, less is forgotten"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 30, "LA: to the right, more is learnt", "end"))
    for number, name in enumerate(GROUPS):
        x = LEFT + 4 + 150 * number
        parts.append(f'<circle class="g{number}" cx="{x}" cy="{HEIGHT - 12}" r="4"/>')
        parts.append(_text(x + 9, HEIGHT - 8, name))
    front = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, front_of(points)))
    parts.append(f'<polyline class="front" points="{front}"/>')
    names: list[Point] = []
    for row, point in sorted(rows, key=lambda each: -each[1][1]):
        x, y = place(point)
        number = list(GROUPS).index(group_of(row.method))
        parts.append(
            f'<circle class="g{number}" cx="{x:.1f}" cy="{y:.1f}" r="{6 if number == 0 else 4}">'
            f"<title>{escape(row.name)}: LA {point[0]:.3f}, BWT {point[1]:+.3f}</title></circle>"
        )
        if row.wave == 0:
            label_y = _free(x, y + 4, names)
            names.append((x, label_y))
            end = x > WIDTH - 130
            parts.append(
                f'<text class="g{number}" x="{x - 9 if end else x + 9:.1f}" y="{label_y:.1f}" '
                f'text-anchor="{"end" if end else "start"}">{escape(row.method)}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _free(x: float, y: float, names: Sequence[Point]) -> float:
    """Return the first height below that no name near it has."""
    while any(abs(x - other_x) < 90 and abs(y - other_y) < APART for other_x, other_y in names):
        y += APART / 2
    return y


def _rule(left: float, right: float, top: float, bottom: float) -> str:
    return f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="faint" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
