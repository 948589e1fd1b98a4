"""The page itself: what was collected, poured into a template that escapes everything."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from align.evidence import Evidence
from align.gate.checks import IN_POINTS, Check
from align.report.families import GUARDED
from align.report.html.charts import Chart, draw
from align.report.html.curves import Panel
from align.report.html.data import CampaignView, collect

TEMPLATES = Path(__file__).parent / "templates"
ID_LENGTH = 64
"""Of a snapshot; what is shorter names a rule, such as the longer answer."""
MINUTE, HOUR = 60.0, 3600.0


def render(evidence: Evidence, *, refresh_s: int | None = None) -> str:
    """A campaign's store as one self-contained HTML page.

    Args:
        refresh_s: seconds after which a browser is to load the page again; None: never.
    """
    return page_of(collect(evidence, datetime.now(UTC)), refresh_s=refresh_s)


def page_of(view: CampaignView, *, refresh_s: int | None = None) -> str:
    """The page of what was collected: equal views give equal pages."""
    template = _environment().get_template("page.html")
    return template.render(view=view, refresh_s=refresh_s)


def _environment() -> Environment:
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
        "against": against,
        "guarded": guarded,
        "share": share,
        "day": lambda time: str(time)[:16].replace("T", " "),
        "amount": amount,
        "span": span,
        "words": lambda text: str(text).replace("_", " "),
    }
    environment.globals |= {"draw": drawn, "scaled": scaled, "style": _style()}
    return environment


def _style() -> Markup:
    """The style sheet, which is ours and holds nothing of a campaign."""
    return Markup((TEMPLATES / "page.css").read_text())


def drawn(panel: Panel) -> tuple[Chart, Markup]:
    """A panel's chart, and its drawing as markup."""
    chart = draw(panel)
    return chart, Markup(chart.svg)


def number(value: float | None) -> str:
    """Three significant digits, a true minus; empty where nothing was measured.

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
    """`number` with a plus where there is one."""
    return f"+{number(value)}" if value is not None and value > 0 else number(value)


def amount(value: float, check: Check) -> str:
    """A difference in the unit of its test: points of items for pass/fail, else the metric's own."""
    if check.test not in IN_POINTS:
        return signed(value)
    return (f"{value * 100:+.1f} pt" if value else "0 pt").replace("-", "−")


def against(check: Check) -> str:
    """Whom a candidate was compared with: snapshots by their part, or the name of a rule."""
    if len(check.snapshot) < ID_LENGTH:
        return f"the rule {check.snapshot!r}"
    return ", ".join((check.against, *check.also))


def guarded(check: Check) -> str:
    """What a check compares; empty for the mean."""
    return GUARDED[check.what]


def share(value: float | None) -> str:
    """
    >>> share(0.123), share(None)
    ('12%', '')
    """
    return "" if value is None else f"{100 * value:.0f}%"


def span(seconds: float) -> str:
    """A duration for people.

    >>> [span(s) for s in (0.0, 42.4, 130.0, 7260.0)]
    ['0 s', '42 s', '2 min 10 s', '2 h 1 min']
    """
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    if seconds < HOUR:
        return f"{int(seconds // MINUTE)} min {int(seconds % MINUTE)} s"
    return f"{int(seconds // HOUR)} h {int(seconds % HOUR // MINUTE)} min"


def scaled(value: float, check: Check) -> float:
    """Where a difference lies in a drawing 120 wide whose middle is 0: margin and interval fit in."""
    reach = max(abs(check.interval[0]), abs(check.interval[1]), check.margin, 1e-9)
    return round(60.0 + 55.0 * value / reach, 1)
