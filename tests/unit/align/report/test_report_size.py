"""A page of fifty rounds, each as full as a round can be, stays below two megabytes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from align.gate.evidence import Evidence
from align.gate.forgetting import MatrixRow, ScoreMatrix
from align.report.html.data import collect
from align.report.html.limits import Limits
from align.report.html.page import page_of
from align.report.html.rounds import round_view
from align.report.html.scores import family_views
from align.round.rollout_table import save_records
from align.store.repairs import with_repairs
from tests.unit.campaigns import rounds
from tests.unit.full_store import metrics, said, steps
from tests.unit.pages import Page
from tests.unit.stores import add_answers, made, write_steps

NUM_ROUNDS = 50
MAX_BYTES = 2_000_000
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


def test_fifty_full_rounds_stay_below_two_megabytes(tmp_path: Path) -> None:
    store, limits = crowded(tmp_path), Limits.of(NUM_ROUNDS)
    record = store.ledger.rounds()[2]
    one = round_view(store, record, store.ledger.attempts(), {}, NOW, limits)
    assert len(one.checks) == limits.checks and one.checks_left_out
    assert len(one.ranges) == limits.metrics and one.ranges_left_out
    assert len(one.changes) == limits.suites and one.samples and one.said and one.repairs
    assert [len(panel.curves) for panel in one.panels] == [3, 3, 3, 1, 1]
    suites = tuple(f"suite{i}" for i in range(NUM_ROUNDS + 4))
    names = ("base", *(f"round{i}" for i in range(NUM_ROUNDS)))
    matrix = ScoreMatrix(
        suites=suites,
        rows=tuple(
            MatrixRow(name=name, accepted=i % 5 > 0 or not i, scores=tuple(
                0.1234 + ((i * 7 + j * 3) % 89) / 100 for j in range(len(suites))
            ))
            for i, name in enumerate(names)
        ),
    )  # fmt: skip
    view = collect(store, NOW)
    page = page_of(
        replace(
            view,
            families=family_views(matrix, store.config),
            lineage=(view.lineage * NUM_ROUNDS)[: NUM_ROUNDS + 1],
            rounds=tuple(replace(one, index=i, name=f"round{i}") for i in range(NUM_ROUNDS)),
        )
    )
    assert Page(page).open == []
    assert page.count('<details class="round"') == NUM_ROUNDS
    assert 1_000_000 < len(page.encode()) <= MAX_BYTES
