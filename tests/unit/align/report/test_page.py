"""The page's structure: the answer first, figures as the evidence has them, readable by everybody."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise, product
from pathlib import Path
from typing import get_args

import pytest

from align.gate.checks import Check
from align.gate.evidence import Evidence
from align.gate.verdict import Verdict
from align.report.explanation.answer import answer_of
from align.report.html.charts import Bar, Curve, Panel, draw
from align.report.html.data import CampaignView, collect
from align.report.html.forest import EDGE, Scale, forests_of, scale_of
from align.report.html.limits import Limits
from align.report.html.page import TEMPLATES, page_of
from align.report.html.scores import bar_of, judged_by
from align.round.times.clock import MEASURING
from align.round.times.record import AttemptTimes
from align.store.snapshots.manifest import SnapshotKind
from tests.unit.decided import decided
from tests.unit.full_store import full
from tests.unit.pages import Node, tree
from tests.unit.stores import BETTER, GOOD, HARMFUL, made

NOW = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)
SECONDS = {"sampling": 4.0, "learning": 2.0, f"{MEASURING}general": 3.0, "other": 1.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Three rounds: accepted, rejected for what it lost, accepted; each with its wall time."""
    store = made(tmp_path_factory.mktemp("page"), GOOD, HARMFUL, BETTER)
    for index in range(3):
        folder = store.folder / f"rounds/{index:02d}-round{index}/attempt-1"
        AttemptTimes(seconds=SECONDS, before={"start-up": 7.0}).save(folder)
    return store


@pytest.fixture(scope="module")
def view(store: Evidence) -> CampaignView:
    return collect(store, NOW)


@pytest.fixture(scope="module")
def page(view: CampaignView) -> Node:
    return tree(page_of(view))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The page of a campaign that went through everything."""
    return tree(page_of(collect(full(tmp_path_factory.mktemp("full"), "somebody wrote"), NOW)))


WORDS_OF_KINDS = {
    "model": "whole model",
    "reward": "reward model",
    "adapter": "adapter",
    "bank": "adapter bank",
}


@pytest.mark.parametrize("kind", get_args(SnapshotKind))
def test_every_kind_of_snapshot_has_its_place_in_the_lineage(view: CampaignView, kind: str) -> None:
    lineage = tuple(replace(node, kind=kind) for node in view.lineage)
    assert f"{WORDS_OF_KINDS[kind]}</span>" in page_of(replace(view, lineage=lineage))


def verdicts(store: Evidence) -> dict[str, Verdict]:
    return {r.name: Verdict.from_dict(r.report or {}) for r in store.committed()}


# the answer first


def test_sections_are_in_the_order_of_questions(page: Node) -> None:
    names = [node.attributes.get("id") for node in page.one("main").all("section")]
    assert names == [
        "answer", "scores", "retention", "gate", "time", "rounds", "signals", "cost", "lineage",
        "environment",
    ]  # fmt: skip


def test_the_answer_is_what_the_evidence_says(store: Evidence, page: Node) -> None:
    answer = answer_of(store)
    section = page.one("section", id="answer")
    assert page.one("main").all()[0] is section
    heading = section.one("h2")
    assert heading.text.replace(" .", ".") == answer.sentence
    assert heading.one("code").attributes["title"] == answer.production
    (refused,) = section.all("li")
    (kept_out,) = answer.kept_out
    assert kept_out.round == "round1"
    assert refused.text == f"{kept_out.sentence} Evidence"
    target = refused.one("a").attributes["href"].removeprefix("#")
    assert page.one(id=target).all("summary")[0].text.startswith("2. round1")


def test_a_failed_round_says_why_and_a_running_one_how_far_it_is(tmp_path: Path) -> None:
    store = made(tmp_path, GOOD, HARMFUL)
    third = store.config.rounds[0].model_copy(update={"name": "third"})
    config = store.config.model_copy(update={"rounds": (*store.config.rounds, third)})
    store.ledger.open_campaign(config.name, config.content(), config.hash())
    attempt = store.ledger.begin_round(2, "third", store.ledger.alias("production") or "")
    store.ledger.commit_round(2, attempt, "failed", None, {"error": "no <memory>\nat all"})
    section = tree(page_of(collect(store, NOW))).one("section", id="answer")
    assert [item.attributes["class"] for item in section.all("li")] == ["refused", "failed"]
    assert section.all("li")[1].text == "third failed: no <memory>. Evidence"


def test_many_refusals_do_not_bury_production(store: Evidence) -> None:
    limits = Limits.of(300)
    entry = answer_of(store).kept_out[0]
    answer = replace(answer_of(store), kept_out=(entry,) * limits.kept_out)
    view = replace(collect(store, NOW), answer=answer, kept_out_left_out=88)
    items = tree(page_of(view)).one("section", id="answer").all("li")
    assert len(items) == limits.kept_out + 1
    assert items[0].text.startswith("88 earlier rounds were refused or failed as well")


# the gate


def places(row: Node) -> dict[str, float]:
    """Percent from the left of the parts of one drawing."""
    drawing = row.one("svg", class_="interval")
    line = {kind: drawing.all("line", class_=kind) for kind in ("zero", "bound", "reach")}
    dots = [float(node.attributes["cx"][:-1]) for node in drawing.all("circle")]
    dots += [float(node.attributes["x"][:-1]) for node in drawing.all("svg", class_="miss")]
    (dot,) = dots
    return {
        "zero": float(line["zero"][0].attributes["x1"][:-1]),
        "bound": float(line["bound"][0].attributes["x1"][:-1]),
        "low": float(line["reach"][0].attributes["x1"][:-1]),
        "high": float(line["reach"][0].attributes["x2"][:-1]),
        "dot": dot,
    }


def test_every_comparison_is_drawn_on_its_suites_scale(store: Evidence, page: Node) -> None:
    """Places on the drawing, turned back into differences, are the gate's figures."""
    checks: dict[str, list[tuple[str, Check]]] = {}
    for name, verdict in verdicts(store).items():
        for check in verdict.checks:
            if check.what == "value":
                checks.setdefault(check.suite, []).append((name, check))
    forests = page.one("section", id="gate").all("div", class_="forest")
    assert {forest.one("h3").text for forest in forests} == checks.keys()
    assert forests[0].one("h3").text == "general"  # It kept a candidate out.
    for forest in forests:
        own = checks[forest.one("h3").text]
        rows = forest.one("tbody").all("tr")
        assert len(rows) == len(own)
        first = places(rows[0])
        wide = max(own, key=lambda pair: abs(pair[1].interval[0] - pair[1].interval[1]))[1]
        at = places(rows[[check for _, check in own].index(wide)])
        unit = (at["high"] - at["low"]) / (wide.interval[1] - wide.interval[0])
        for (name, check), row in zip(own, rows, strict=True):
            drawn = places(row)
            assert drawn["zero"] == first["zero"]
            for part, value in {
                "dot": check.difference, "low": check.interval[0], "high": check.interval[1],
                "bound": -check.allowed,
            }.items():  # fmt: skip
                assert (drawn[part] - drawn["zero"]) / unit == pytest.approx(value, abs=2e-3)
            kept_out = check.role != "shown" and check.outcome != "passed"
            assert bool(row.all("svg", class_="miss")) == kept_out
            assert bool(row.all("span", class_="state")) == kept_out
            assert name in row.one("th").text


def test_a_scale_shows_zero_and_round_numbers() -> None:
    scale = Scale(low=-0.529, high=0.743, factor=100.0)
    assert [label for _, label in scale.ticks] == ["−50", "0", "+50"]
    places = [at for at, _ in scale.ticks]
    assert places == sorted(places) and all(EDGE <= at <= 100 - EDGE for at in places)
    assert scale.at(float("inf")) == 100 - EDGE and scale.at(float("-inf")) == EDGE
    assert Scale(low=0.0, high=0.0, factor=1.0).at(0.0) == EDGE


def test_a_scale_holds_zero_and_every_bound(store: Evidence) -> None:
    for verdict in verdicts(store).values():
        scale = scale_of(verdict.checks)
        assert scale.low <= 0.0 <= scale.high
        for check in verdict.checks:
            assert scale.low <= min(check.interval[0], -check.allowed)
            assert scale.high >= max(check.interval[1], -check.allowed)


def test_a_collapse_leaves_the_margins_visible(store: Evidence) -> None:
    """One candidate lost 120 margins: its mark lies at the axis' end, with an arrow."""
    check = next(c for c in verdicts(store)["round0"].checks if c.suite == "general")
    far = replace(check, difference=-24.0, interval=(-24.5, -23.5))
    scale = scale_of([check, far])
    assert (scale.low, scale.high) == (-12 * check.margin, pytest.approx(check.interval[1]))
    assert (scale.at(-24.0), scale.beyond(-24.0)) == (EDGE, -1)
    assert (scale.beyond(check.difference), scale.beyond(24.0)) == (0, 1)
    assert scale.at(0.0) - scale.at(-check.margin) > 5.0


def test_a_far_point_of_a_chart_is_told_and_not_drawn() -> None:
    near = Panel(
        title="a", unit="score", over="rounds", names=("base", "one", "two"),
        curves=(Curve(name="accepted", x=(0.0, 1.0), y=(0.5, 0.6)),),
        hollow=((2.0, 0.45),),
    )  # fmt: skip
    far = replace(near, hollow=((2.0, -29.0),))
    words = {panel: [n.text for n in tree(draw(panel).svg).all("text")] for panel in (near, far)}
    assert "×" in words[near] and "× −29 ↓" in words[far]
    ticks = [float(word) for word in words[far] if re.fullmatch(r"[\d.]+", word)]
    assert len(ticks) > 1 and min(ticks) > 0.4


def test_hundreds_of_rounds_keep_what_failed_and_what_is_new(store: Evidence) -> None:
    """300 rounds, of which the oldest was refused."""
    own = verdicts(store)
    many = [(0, "refused", own["round1"])]
    many += [(i, f"r{i}", own["round0"]) for i in range(1, 300)]
    limits = Limits.of(300)
    forests, left_out = forests_of(many, limits)
    assert left_out == 0
    for forest in forests:
        assert len(forest.rows) <= limits.forest_rows
        assert forest.rows[-1].number == 300
    assert forests[0].suite == "general"
    assert forests[0].rows[0].number == 1


def test_rates_that_passed_are_one_row(tmp_path: Path) -> None:
    """Six comparisons of how many answers were cut or have a score."""
    node = tree(page_of(collect(decided(tmp_path), NOW)))
    table = node.one(id="round-1").one("table", class_="gate")
    heads = [row.text for row in table.all("tr", class_="group")]
    assert heads[0] == "Kept it out" and heads[-1] == "Rates of answers, folded"
    rates = [row for row in table.one("tbody").all("tr") if "answers not cut" in row.text]
    assert len(rates) == 1 and "all 6 comparisons passed" in rates[0].text


def test_a_round_opens_with_its_reason(store: Evidence, page: Node) -> None:
    round = page.one(id="round-1")
    reason = answer_of(store).kept_out[0].reason
    assert round.one("p", class_="reason").text == f"Refused: {reason}."
    assert not page.one(id="round-0").all("p", class_="reason")


# retention


def test_an_interval_is_drawn_at_the_score_and_its_band_below_the_comparator(
    store: Evidence,
) -> None:
    """general fell from 50 to 20 of 60 items; 0.2 may be lost."""
    judged = judged_by(verdicts(store))
    check = judged["round1", "general"]
    assert check.against == "best" or "best" in check.also
    bar = bar_of(2.0, 20 / 60, check)
    assert bar.allowed is not None
    assert bar.allowed == pytest.approx((50 / 60 - check.margin, 50 / 60))
    assert (bar.low, bar.high) == pytest.approx(
        (50 / 60 + check.interval[0], 50 / 60 + check.interval[1])
    )
    assert (bar.low > bar.allowed[0]) == (check.outcome == "passed")
    assert judged["round1", "round1"].role == "target"
    assert bar_of(2.0, 55 / 60, judged["round1", "round1"]).allowed is None


def test_charts_of_retention_name_their_rounds(view: CampaignView, page: Node) -> None:
    panels = [panel for family in view.families for panel in family.retention]
    figures = page.one("section", id="retention").all("figure")
    assert [figure.one("h3").text for figure in figures] == [panel.title for panel in panels]
    for panel, figure in zip(panels, figures, strict=True):
        words = {text.text for text in figure.all("text")}
        assert {"base", "round0", "round1", "round2"} <= words
        assert panel.bars and all(isinstance(bar, Bar) for bar in panel.bars)
    general = next(panel for panel in panels if panel.title == "general")
    assert [bar.x for bar in general.bars] == [1.0, 2.0, 3.0]


# wall time


def test_the_table_of_wall_time_is_the_record(view: CampaignView, page: Node) -> None:
    table = page.one("section", id="time").one("table", class_="times")
    head = [cell.text for cell in table.one("thead").all("th")]
    assert head[:2] == ["round", "whole"] and head[-1].startswith("before it")
    assert tuple(head[2:-1]) == view.phases
    for round, row in zip(view.rounds, table.one("tbody").all("tr"), strict=True):
        cells = [cell.text for cell in row.all("td")]
        assert cells[0] == "10 s" and cells[-1] == "7 s"
        assert dict(zip(view.phases, cells[1:-1], strict=True)) == {
            "sampling": "4 s", "learning": "2 s", "measuring": "3 s", "other": "1 s",
        }  # fmt: skip
        assert sum(part.seconds for part in round.time.parts) == round.time.seconds
        assert [
            part.attributes["style"] for part in row.all("td", class_="part")
        ] == ["--s:40%", "--s:20%", "--s:30%", "--s:10%"]  # fmt: skip
    total = [cell.text for cell in table.one("tfoot").all("td")]
    assert total == ["30 s", "12 s", "6 s", "9 s", "3 s", "21 s"]
    assert "10 s: 4 s sampling, 3 s measuring (general 3 s), 2 s learning, 1 s other." in (
        page.one(id="round-1").text
    )


# for everybody


@pytest.mark.parametrize("which", ["page", "everything"])
def test_headings_are_in_order(which: str, request: pytest.FixtureRequest) -> None:
    node: Node = request.getfixturevalue(which)
    levels = [int(n.tag[1]) for n in node.walk() if re.fullmatch(r"h[1-6]", n.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


@pytest.mark.parametrize("which", ["page", "everything"])
def test_every_header_says_what_it_heads(which: str, request: pytest.FixtureRequest) -> None:
    node: Node = request.getfixturevalue(which)
    scopes = [head.attributes.get("scope") for head in node.all("th")]
    assert scopes and set(scopes) <= {"col", "row", "rowgroup"}
    assert all(head.text for head in node.all("th"))
    for drawing in node.all("svg"):
        inner = drawing.attributes.get("class") == "miss"
        assert inner or drawing.attributes.get("aria-hidden") == "true"
    for region in node.all(role="region"):
        assert region.attributes["tabindex"] == "0" and region.attributes["aria-label"]


def test_a_wide_table_says_that_it_scrolls(page: Node) -> None:
    matrix = page.one("section", id="scores")
    hint = matrix.one("p", class_="sideways")
    columns = len(matrix.one("table", class_="heat").one("thead").all("th")) - 1
    assert columns > 3 and f"{columns} suites: scroll the table sideways" in hint.text
    narrow = re.search(r"@media \(max-width: 44rem\) \{\n(.*?)\n\}", CSS, re.S)
    assert narrow is not None
    assert ".sideways { display: block; }" in narrow[1]
    assert re.search(
        r"\.scroll \{ mask-image: linear-gradient\(to right, #000 .*transparent", narrow[1]
    )
    assert re.search(r"^\.scroll \{ overflow-x: auto;", CSS, re.M)
    assert 44 * 16 > 390


# contrast

CSS = (TEMPLATES / "page.css").read_text()
TEXT = [
    *product(("ink", "soft", "link", "good", "bad", "wait"), ("paper", "sheet")),
    ("ink", "bar"), ("c2", "paper"),
]  # fmt: skip
SIGNS = [
    *((f"c{i}", "paper") for i in range(1, 7)),
    ("c1", "band"), ("c2", "band"), ("ink", "band"), ("bad", "paper"), ("soft", "band"),
]  # fmt: skip


def scheme(number: int) -> dict[str, str]:
    """Variables of the light (0) or dark (1) scheme; what the dark one does not set is the light one's."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.S)
    variables: dict[str, str] = {}
    for block in blocks[: number + 1]:
        variables |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", block))
    return variables


def channels(colour: str) -> list[float]:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    return [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]


def contrast(one: list[float], other: list[float]) -> float:
    """WCAG 2.2's ratio of two colours."""

    def luminance(colour: list[float]) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand() -> None:
    assert contrast(channels("#000"), channels("#ffffff")) == pytest.approx(21.0)
    assert contrast(channels("#777"), channels("#fff")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("number", [0, 1], ids=["light", "dark"])
def test_colours_stand_out(number: int) -> None:
    """WCAG 2.2: text 4.5 to 1 (1.4.3), what carries information 3 to 1 (1.4.11)."""
    colours = {name: channels(value) for name, value in scheme(number).items()}
    for ink, ground in TEXT:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for ink, ground in SIGNS:
        assert contrast(colours[ink], colours[ground]) >= 3.0, (ink, ground)
    for cell in ("gain", "loss"):  # The matrix: at most 60% of its colour.
        mixed = [0.6 * a + 0.4 * b for a, b in zip(colours[cell], colours["sheet"], strict=True)]
        assert contrast(colours["ink"], mixed) >= 4.5, cell
