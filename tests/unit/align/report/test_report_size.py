"""Bounds of the page: fifty rounds as full as rounds can be stay below 2 MB, 300 below 3.3 MB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from align.gate.checks import Check
from align.gate.evidence import Evidence
from align.gate.forgetting import MatrixRow, ScoreMatrix
from align.gate.verdict import Verdict
from align.report.html.charts import draw
from align.report.html.data import collect
from align.report.html.limits import Limits
from align.report.html.page import page_of
from align.report.html.rounds import RoundView, round_view
from align.report.html.scores import (
    MAX_MARKS,
    MAX_POINTS,
    MAX_RETENTION,
    FamilyView,
    cropped,
    family_views,
    judged_by,
    retention_panels,
)
from align.round.rollout_table import save_records
from align.store.repairs import with_repairs
from tests.unit.campaigns import rounds
from tests.unit.full_store import metrics, said, steps
from tests.unit.pages import Page, tree
from tests.unit.stores import add_answers, made, write_steps

NUM_ROUNDS = 50
MAX_BYTES = 2_000_000
MANY_ROUNDS, MANY_BYTES = 300, 3_300_000
NOW = datetime(2030, 1, 2, tzinfo=UTC)
LONG = "<é> " * 1000
"""Most of it takes more bytes on a page than in a file."""
FAMILIES = ("reward/part", "kl/past/owner", "drift/K_old/round")
SERIES = [f"{name}{i}" for name in FAMILIES for i in range(20)]


def crowded(folder: Path) -> Evidence:
    """Four rounds that lost and won items everywhere, were repaired, and measured 74 series."""
    scores = [{f"round{i}": 50, f"round{i - 1}": 45, "general": 50 - 9 * i} for i in range(4)]
    store = made(
        folder,
        *scores,
        report=lambda _, verdict: with_repairs(verdict, steps(LONG[:300])),
        rounds=rounds(*({"steps": 200} for _ in range(4))),
        gate={"mode": "observe"},
    )
    for record in store.ledger.evaluations():
        add_answers(store, record.path, LONG, LONG)
    for index in range(4):
        attempt = write_steps(store, index, 1, metrics("other", SERIES) * 10).parent
        for step in (0, 199):
            rows = [said(LONG, value) for value in range(3)]
            save_records(attempt / f"rollouts/step-{step:04d}.parquet", rows)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return crowded(tmp_path_factory.mktemp("crowded"))


@pytest.fixture(scope="module")
def full_round(store: Evidence) -> RoundView:
    """One of many rounds, with as much of everything as the page shows of it."""
    record, limits = store.ledger.rounds()[2], Limits.of(NUM_ROUNDS)
    return round_view(store, record, store.ledger.attempts(), {}, NOW, limits)


def matrix_of(num_rounds: int) -> ScoreMatrix:
    """Every fifth candidate rejected, and every snapshot measured on every suite."""
    suites = tuple(f"suite{i}" for i in range(num_rounds + 4))
    names = ("base", *(f"round{i}" for i in range(num_rounds)))
    return ScoreMatrix(
        suites=suites,
        rows=tuple(
            MatrixRow(name=name, accepted=i % 5 > 0 or not i, scores=tuple(
                0.1234 + ((i * 7 + j * 3) % 89) / 100 for j in range(len(suites))
            ))
            for i, name in enumerate(names)
        ),
    )  # fmt: skip


def page_of_many(
    store: Evidence, families: tuple[FamilyView, ...], rounds: Sequence[RoundView]
) -> str:
    view, many = collect(store, NOW), len(rounds)
    lineage = (view.lineage * many)[: many + 1]
    return page_of(replace(view, families=families, lineage=lineage, rounds=tuple(rounds)))


def test_fifty_full_rounds_stay_below_two_megabytes(store: Evidence, full_round: RoundView) -> None:
    one, limits = full_round, Limits.of(NUM_ROUNDS)
    assert len(one.checks) == limits.checks and one.checks_left_out
    assert len(one.ranges) == limits.metrics and one.ranges_left_out
    assert len(one.changes) == limits.suites and one.samples and one.said and one.repairs
    assert [len(panel.curves) for panel in one.panels] == [3, 3, 3, 1, 1]
    families = family_views(matrix_of(NUM_ROUNDS), store.config)
    rounds = [replace(one, index=i, name=f"round{i}") for i in range(NUM_ROUNDS)]
    page = page_of_many(store, families, rounds)
    assert Page(page).open == []
    assert page.count('<details class="round"') == NUM_ROUNDS
    assert 1_000_000 < len(page.encode()) <= MAX_BYTES


def test_three_hundred_rounds_stay_readable(store: Evidence, full_round: RoundView) -> None:
    """Fifty rounds are shown in full, the others in a line; long tables scroll in boxes of their own."""
    limits = Limits.of(MANY_ROUNDS)
    brief = round_view(
        store, store.ledger.rounds()[2], store.ledger.attempts(), {}, NOW, limits.brief()
    )
    rounds = [
        replace(full_round if i < limits.rounds else brief, index=i, name=f"round{i}")
        for i in range(MANY_ROUNDS)
    ]
    matrix = matrix_of(MANY_ROUNDS)
    families = family_views(
        matrix, store.config, verdicts_on(store, matrix), limits=Limits.of(MANY_ROUNDS)
    )
    page = page_of_many(store, families, rounds)
    tree_of_page = tree(page)
    (heat,) = tree_of_page.all("table", class_="heat")
    assert len(heat.all("tr")) == limits.rows + 1
    assert {len(row.all("td")) for row in heat.all("tr")[1:]} == {limits.columns}
    left_out = (MANY_ROUNDS + 1 - limits.rows, MANY_ROUNDS + 4 - limits.columns)
    assert "Left out for room: {} earlier rounds, {} suites".format(*left_out) in page
    tall = {box.attributes["aria-label"] for box in tree_of_page.all("div", class_="tall")}
    assert tall >= {"score matrix of the family general", "signals", "cost", "lineage"}
    assert "of every 13 rounds only the bar nearest to its bound" in page
    assert len(page.encode()) <= MANY_BYTES


def verdicts_on(store: Evidence, matrix: ScoreMatrix) -> dict[str, Verdict]:
    """A verdict for every round, which compared the means of all suites."""
    verdict = Verdict.from_dict(store.ledger.rounds()[2].report or {})
    check = next(c for c in verdict.checks if c.role == "retention" and c.what == "value")
    checks = tuple(replace(check, suite=suite) for suite in matrix.suites)
    return {row.name: replace(verdict, checks=checks) for row in matrix.rows[1:]}


def test_charts_of_many_rounds_have_as_many_marks_as_there_is_room_for(store: Evidence) -> None:
    matrix = matrix_of(MANY_ROUNDS)
    panels = retention_panels(matrix, judged=judged_by(verdicts_on(store, matrix)))
    assert len(panels) == MAX_RETENTION
    assert max(len(panel.bars) for panel in panels) == MAX_MARKS  # 301 rows in stretches of 13.
    for panel in panels:
        assert len(panel.curves[0].y) <= MAX_POINTS and len(panel.hollow) <= MAX_MARKS
        column = matrix.suites.index(panel.title)
        accepted = [row.scores[column] for row in matrix.rows if row.accepted]
        rejected = [row.scores[column] or 0.0 for row in matrix.rows if not row.accepted]
        assert (panel.curves[0].y[0], panel.curves[0].y[-1]) == (accepted[0], accepted[-1])
        assert min(y for _, y in panel.hollow) == min(rejected)
        assert len(draw(panel).svg) < 60_000


def test_the_interval_nearest_to_its_bound_is_drawn_whichever_round_it_is() -> None:
    rows = [MatrixRow(name=f"round{i}", accepted=True, scores=(0.5,)) for i in range(300)]
    matrix = ScoreMatrix(suites=("general",), rows=tuple(rows))
    for worst in (1, 150, 299):
        judged = {(row.name, "general"): check_at(row.name == f"round{worst}") for row in rows[1:]}
        (panel,) = retention_panels(matrix, judged=judged)
        assert len(panel.bars) == MAX_MARKS
        nearest = min(panel.bars, key=lambda bar: bar.low - (bar.allowed or (0.0,))[0])
        assert nearest.x == worst


def check_at(near: bool) -> Check:
    """A comparison that is near to its bound, or far inside it."""
    difference = -0.09 if near else 0.0
    return Check(
        suite="general", against="parent", snapshot="a" * 64, role="retention", what="value",
        outcome="passed", n=100, lost=9, won=0, difference=difference,
        interval=(difference - 0.005, difference + 0.005), margin=0.1, alpha=0.005, p=0.001,
        test="tango", sentence="",
    )  # fmt: skip


def test_what_every_cell_asks_of_a_matrix_is_computed_once() -> None:
    """Sums over 300 rounds would ask for it some hundred million times."""
    matrix = matrix_of(3)
    assert matrix.most_items is matrix.most_items
    assert matrix.path is matrix.path
    assert matrix.tasks is matrix.tasks


def test_of_many_rounds_a_suite_shows_those_that_measured_it() -> None:
    """Suites of templates are looked at for a while: no axis of 300 rounds for the scores of three."""
    measured = {0, 100, 101, 102}
    rows = [
        MatrixRow(name=f"round{i}", accepted=True, scores=(0.5, 0.25 * (i in measured) or None))
        for i in range(301)
    ]
    matrix = ScoreMatrix(suites=("general", "round100"), rows=tuple(rows))
    whole, window = retention_panels(matrix)
    assert len(whole.names) == 301 and whole.over == "rounds"
    assert window.names == ("round0", "round100", "round101", "round102")
    assert window.since == 1.0 and window.stretch == 1 and len(window.curves[0].y) == 4
    limits = replace(Limits.of(MANY_ROUNDS), columns=1)
    assert cropped(matrix, limits).suites == ("general",)
