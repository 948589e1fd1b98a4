"""Panels of curves, drawn as small SVGs that take their colours from the page, light or dark.

Matplotlib draws; the drawing is then stripped of what a page does not need: namespaces, ids, metadata,
fonts. Words stay outside, in a legend of HTML that wraps and can be read aloud.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

from align.report.html.limits import Limits

Steps = Mapping[int, Mapping[str, float]]
"""Finite metrics by learner step."""

PANELS = (
    ("Reward and its parts", "reward", r"reward/(?!failed_share|abstained_share)|gold/mean$"),
    ("Pairs put right", "share of pairs", r"pairs/accuracy$"),
    ("KL to each anchor", "nats per token", r"kl/"),
    ("Drift meters", "nats per token", r"drift/"),
    ("Entropy", "nats per token", r"entropy$"),
    ("Length of completions", "tokens", r"completions/tokens_mean$"),
)
"""Title, unit, and what the names of the metrics begin with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One metric over x, both of one length."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """Interval of one score, and the scores that the gate would still have allowed."""

    x: float
    low: float
    high: float
    allowed: tuple[float, float] | None
    """Range from the bound up to the comparator's score; None if a gain or nothing was demanded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One chart: curves that share a unit."""

    title: str
    unit: str
    over: str
    """Name of what x counts."""
    curves: tuple[Curve, ...]
    hollow: tuple[tuple[float, float], ...] = ()
    """Points beside the curves, such as rejected snapshots."""
    since: float | None = None
    """An x worth a line, such as the round that taught a suite."""
    left_out: int = 0
    """Curves there was no room for."""
    bars: tuple[Bar, ...] = ()
    """Intervals at some x."""
    names: tuple[str, ...] = ()
    """Names of x = 0, 1, 2, ..., which take the place of its numbers."""
    stretch: int = 1
    """Number of x that share one interval, and one point beside the curves, for want of room."""


def panels(steps: Steps, limits: Limits) -> tuple[Panel, ...]:
    """Return the charts of one round; metrics that stay 0 and panels without a curve are left out."""
    if not limits.curves:
        return ()
    names = sorted({name for metrics in steps.values() for name in metrics})
    drawn = []
    for title, unit, pattern in PANELS:
        curves = [curve(steps, name) for name in names if re.match(pattern, name)]
        moving = sorted((c for c in curves if any(c.y)), key=lambda c: -abs(c.y[-1]))
        if moving:
            drawn.append(
                Panel(
                    title=title,
                    unit=unit,
                    over="learner step",
                    curves=tuple(thinned(c, limits.points) for c in moving[: limits.curves]),
                    left_out=max(0, len(moving) - limits.curves),
                )
            )
    return tuple(drawn)


def curve(steps: Steps, name: str) -> Curve:
    """Return one metric over the steps that have it."""
    present = [(step + 1, metrics[name]) for step, metrics in steps.items() if name in metrics]
    return Curve(name=name, x=tuple(x for x, _ in present), y=tuple(y for _, y in present))


def thinned(curve: Curve, points: int) -> Curve:
    """Shorten a curve to the lowest and the highest point of every stretch, so that no peak is lost.

    Its ends stay too, which the legend names, unless there is no room for four points.

    >>> thinned(Curve(name="a", x=(1, 2, 3, 4, 5, 6, 7), y=(3, 9, 1, 0, 2, 8, 4)), 6).y
    (3, 9, 1, 0, 8, 4)
    """
    if len(curve.y) <= points:
        return curve
    ends = {0, len(curve.y) - 1} if points >= 4 else set()
    stretches = max(1, (points - len(ends)) // 2)
    chosen: set[int] = ends
    for i in range(stretches):
        stretch = range(i * len(curve.y) // stretches, (i + 1) * len(curve.y) // stretches)
        chosen |= {min(stretch, key=curve.y.__getitem__), max(stretch, key=curve.y.__getitem__)}
    order = sorted(chosen)
    return Curve(
        name=curve.name,
        x=tuple(curve.x[i] for i in order),
        y=tuple(curve.y[i] for i in order),
    )


WIDTH, HEIGHT = 4.4, 1.9
"""Inches of 72 points; the page scales a drawing to its column."""
BOX = (0.11, 0.13, 0.87, 0.81)
"""Left, bottom, width and height of the axes as shares of the drawing: room for the numbers on them."""
INK, GRID = "#010101", "#020202"
LINES = ("#030301", "#030302", "#030303", "#030304", "#030305", "#030306")
"""Colours that stand for the page's own: each becomes a variable of its style sheet."""
BAND_COLOUR = "#020203"
"""Colour of what the gate allows, a variable of the page like the others."""
BAND, CAP = 0.7, 0.08
"""Widths of a band and of an interval's caps, in rounds."""
FAR = 2.0
"""Heights of all curves and bands from which on a point beside them is too far away to be drawn."""
CHARACTER, FEWEST, MOST = 4.1, 6, 12
"""Points that a character of a name takes, fewest characters of a name where all names have room, and most
where they have not and only some are written."""
MARKED, DOT = 24, 4
"""Points of a curve up to which each gets a dot, and how thick that is."""
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8,
    "path.simplify": False,
}
"""Text stays text, a dollar is no formula, and dots are not simplified away: curves are thin already."""
DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 2)))
"""Lines differ without colour too, and in print."""
VARIABLES = {INK: "var(--ink)", GRID: "var(--line)", BAND_COLOUR: "var(--band)"} | {
    colour: f"var(--c{i})" for i, colour in enumerate(LINES, start=1)
}
SHOWN = ("fill", "stroke", "stroke-width", "stroke-dasharray", "text-anchor", "font-size")
"""Parts of a style that a drawing keeps, in this order."""
USUAL = ("fill:none", f"fill:{INK}", "font-size:8px")
"""Styles that the page's own sheet gives every drawing."""
DROPPED = {"metadata", "defs", "style", "title", "desc"}
KEPT = {"d", "x", "y", "viewBox"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One line of the legend."""

    name: str
    line: int
    """Number of its colour and dashes, from 1."""
    first: float
    last: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A drawing and the words that belong to it."""

    panel: Panel
    svg: str
    """Markup that is safe as it is: it holds numbers, and names of rounds that are escaped."""
    keys: tuple[Key, ...]


@lru_cache(maxsize=2048)
def draw(panel: Panel) -> Chart:
    """Draw a panel; a page that is made again draws only what changed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes(BOX)
        for curve, colour, dashes in zip(panel.curves, LINES, DASHES, strict=False):
            axes.plot(curve.x, curve.y, color=colour, ls=dashes, lw=1.4, clip_on=False)
            for x, y in zip(curve.x, curve.y, strict=True) if len(curve.x) <= MARKED else ():
                # A line without length: round ends make a dot of it.
                axes.plot([x, x], [y, y], color=colour, lw=DOT, clip_on=False)
        low, high = _shown(panel)
        for bar in panel.bars:
            _draw_bar(axes, bar, low, high, panel.stretch)
        for x, y in panel.hollow:
            _draw_hollow(axes, x, y, low, high)
        if panel.since is not None:
            axes.axvline(panel.since, color=INK, lw=0.6, ls=":", clip_on=False)
        _plain(axes, panel.names)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    keys = tuple(
        Key(name=curve.name, line=i, first=curve.y[0], last=curve.y[-1])
        for i, curve in enumerate(panel.curves, start=1)
    )
    # A part of the page has no namespaces and no ids, and has the page's colours.
    root = _slim(ElementTree.fromstring(buffer.getvalue()))
    root.set("aria-hidden", "true")
    svg = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return Chart(panel=panel, svg=svg, keys=keys)


def _shown(panel: Panel) -> tuple[float, float]:
    """Return the values that fit on a chart: all near its curves, and not what lies far from them."""
    values = [y for curve in panel.curves for y in curve.y]
    xs = {x for curve in panel.curves for x in curve.x}
    for bar in panel.bars:
        values += [bar.low, bar.high] if bar.x in xs else []
        values += bar.allowed or ()
    low, high = min(values), max(values)
    room = FAR * (high - low) or math.inf
    return low - room, high + room


def _draw_hollow(axes: Any, x: float, y: float, low: float, high: float) -> None:
    """Draw a point beside the curves; one that is far away as its value and an arrow at the edge."""
    style = {"color": LINES[1], "ha": "center"}
    if low <= y <= high:
        axes.plot([x], [y], ls="")
        axes.text(x, y, "×", va="center_baseline", size=11, **style)
        return
    height, va, arrow = (0.03, "bottom", "↓") if y < low else (0.97, "top", "↑")
    where = axes.get_xaxis_transform()
    axes.plot([x], [height], ls="", transform=where)
    text = f"× {y:.3g} {arrow}".replace("-", "−")
    axes.text(x, height, text, va=va, transform=where, **style)


def _draw_bar(axes: Any, bar: Bar, lowest: float, highest: float, stretch: int) -> None:
    """Draw an interval with caps, and beside it the band that it has to stay above the foot of."""
    if bar.allowed is not None:
        left, right = bar.x - BAND * stretch / 2, bar.x + BAND * stretch / 2
        foot, top = bar.allowed
        axes.fill([left, right, right, left], [foot, foot, top, top], color=BAND_COLOUR, lw=0)
        axes.plot([left, right], [foot, foot], color=LINES[1], lw=1.2, ls=(0, (2, 1)))
    if bar.low < lowest or bar.high > highest:
        return
    axes.plot([bar.x, bar.x], [bar.low, bar.high], color=INK, lw=1, clip_on=False)
    for end in (bar.low, bar.high):
        cap = [bar.x - CAP * stretch, bar.x + CAP * stretch]
        axes.plot(cap, [end, end], color=INK, lw=1, clip_on=False)


def shortened(name: str, most: int) -> str:
    """Cut a name in its middle, so that a number at its end stays.

    >>> shortened("helpfulness-2031", 9), shortened("sort", 9)
    ('help…2031', 'sort')
    """
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"


def _plain(axes: Any, names: Sequence[str]) -> None:
    """Leave of the axes only what carries information: horizontal lines and one thin axis.

    Names of rounds stand below it, as many and as much of each as there is room for.
    """
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(length=0, labelcolor=INK, pad=3)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color=GRID, lw=0.6, clip_on=False)
    axes.set_axisbelow(True)
    if names:
        room = int(BOX[2] * WIDTH * 72 / CHARACTER)
        every, most = 1, max(FEWEST, room // len(names) - 1)
        if len(names) * (FEWEST + 1) > room:
            most = min(MOST, max(map(len, names)))
            every = math.ceil(len(names) * (most + 2) / room)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_xticks(range(0, len(names), every), [shortened(n, most) for n in names[::every]])


def _slim(element: ElementTree.Element) -> ElementTree.Element:
    """Copy an element without what does not show, with numbers to a tenth of a point."""
    plain = ElementTree.Element(element.tag.rpartition("}")[2])
    for name, value in element.attrib.items():
        if name in KEPT:
            plain.set(name, _short(value))
        elif name == "style":
            parts = dict(part.strip().split(":", 1) for part in value.split(";") if ":" in part)
            styles = [f"{key}:{_short(parts[key])}" for key in SHOWN if key in parts]
            if unusual := [style for style in styles if style not in USUAL]:
                plain.set("style", ";".join(unusual))
    plain.text = (element.text or "").strip()
    for child in element:
        if child.tag.rpartition("}")[2] in DROPPED:
            continue
        slim = _slim(child)
        if slim.tag == "g":
            plain.extend(slim)
        elif slim.text or re.search(r"(stroke|fill):#", slim.get("style", "")):
            plain.append(slim)
    return plain


def _short(value: str) -> str:
    rounded = re.sub(
        r"-?\d+\.\d+", lambda digits: f"{float(digits[0]):.1f}".removesuffix(".0"), value
    )
    return re.sub(r"\s*([A-Za-z])\s+(?=[-\d])", r"\1", re.sub(r"\s+", " ", rounded)).strip()
