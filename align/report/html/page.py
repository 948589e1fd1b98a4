"""The page itself: what was collected, poured into a template that escapes everything."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from align.gate.checks import IN_POINTS, Check
from align.gate.evidence import Evidence
from align.report.families import GUARDED
from align.report.html.charts import Chart, Panel, draw
from align.report.html.data import CampaignView, collect
from align.report.html.forest import scale_of
from align.report.records.wall_time import MEANINGS
from align.report.records.window import Window
from align.report.summary_numbers import FORMS

TEMPLATES = Path(__file__).parent / "templates"
ID_LENGTH = 64
"""Digits of a snapshot's id; anything shorter names a rule, such as the longer answer."""
MINUTE, HOUR = 60.0, 3600.0


def render(
    evidence: Evidence, *, refresh_s: int | None = None, window: Window | None = None
) -> str:
    """Render a campaign's store as one self-contained HTML page.

    Args:
        refresh_s: seconds after which a browser is to load the page again; None: never.
        window: rounds to show; None: the newest.
    """
    return page_of(collect(evidence, datetime.now(UTC), window), refresh_s=refresh_s)


def page_of(view: CampaignView, *, refresh_s: int | None = None) -> str:
    """Render the page of what was collected; equal views give equal pages."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "score": score,
        "change": change,
        "minus": minus,
        "written": lambda value, form: FORMS[form].format(value),
        "against": against,
        "guarded": guarded,
        "share": share,
        "day": lambda time: str(time)[:16].replace("T", " "),
        "amount": amount,
        "span": span,
        "words": lambda text: str(text).replace("_", " "),
    }
    # The style sheet holds nothing of a campaign, so it needs no escape.
    style = Markup((TEMPLATES / "page.css").read_text())
    environment.globals |= {"draw": drawn, "scale_of": scale_of, "style": style}
    environment.globals |= {
        "meanings": MEANINGS,
        "seconds_of": lambda rounds, name: math.fsum(round.time.of(name) for round in rounds),
        "before_of": lambda rounds: math.fsum(p.seconds for r in rounds for p in r.time.before),
    }
    return environment.get_template("page.html").render(view=view, refresh_s=refresh_s)


def drawn(panel: Panel) -> tuple[Chart, Markup]:
    """Draw a panel; return the chart and its drawing as markup."""
    chart = draw(panel)
    return chart, Markup(chart.svg)


def number(value: float | None) -> str:
    """Write three significant digits with a true minus; nothing for None.

    >>> [number(v) for v in (None, 0.0, -0.12345, 1234.5, 12.0, 0.00001)]
    ['', '0', '−0.123', '1,234', '12.0', '1e−05']
    """
    if value is None:
        return ""
    if value == 0:
        return "0"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    if "e" in text or abs(value) < 0.001:
        text = f"{value:.2g}"
    return text.replace("-", "−")


def signed(value: float | None) -> str:
    """Write `number` with a plus if it is positive."""
    return f"+{number(value)}" if value is not None and value > 0 else number(value)


def amount(value: float, check: Check) -> str:
    """Write a difference in the unit of its test: points of items for pass/fail, else the metric's own."""
    if check.test not in IN_POINTS:
        return signed(value)
    return (f"{value * 100:+.1f} pt" if value else "0 pt").replace("-", "−")


def against(check: Check) -> str:
    """Name what a candidate was compared with: snapshots by their part, or a rule by its name."""
    if len(check.snapshot) < ID_LENGTH:
        return f"the rule {check.snapshot!r}"
    return ", ".join((check.against, *check.also))


def guarded(check: Check) -> str:
    """Name what a check compares; nothing for the mean."""
    return GUARDED[check.what]


def share(value: float | None) -> str:
    """Write a share in percent; nothing for None.

    >>> share(0.123), share(None)
    ('12%', '')
    """
    return "" if value is None else f"{100 * value:.0f}%"


def span(seconds: float) -> str:
    """Write a duration for people.

    >>> [span(s) for s in (0.0, 4.25, 42.4, 130.0, 7260.0)]
    ['0 s', '4.2 s', '42 s', '2 min 10 s', '2 h 1 min']
    """
    if seconds < 10:
        return f"{f'{seconds:.1f}'.removesuffix('.0')} s"
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    if seconds < HOUR:
        return f"{int(seconds // MINUTE)} min {int(seconds % MINUTE)} s"
    return f"{int(seconds // HOUR)} h {int(seconds % HOUR // MINUTE)} min"


def score(value: float | None) -> str:
    """Write a score with three decimals, so that a column of them can be compared; nothing for None.

    >>> score(0.0667), score(-2.5), score(1234.5), score(None)
    ('0.067', '−2.500', '1,234', '')
    """
    if value is None or abs(value) >= 100:
        return number(value)
    return f"{value:.3f}".replace("-", "−")


def change(value: float | None) -> str:
    """Write `score` with a plus if it is positive; what rounds to zero has no sign.

    >>> change(0.0667), change(-0.0004), change(0.0)
    ('+0.067', '0.000', '0.000')
    """
    text = score(value)
    if text.strip("−0.") == "":
        return text.removeprefix("−")
    return text if text.startswith("−") else f"+{text}"


def minus(text: str) -> str:
    """Replace the hyphens in a text of numbers by true minus signs."""
    return text.replace("-", "−")
