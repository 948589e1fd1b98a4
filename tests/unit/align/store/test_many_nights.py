"""What a store of many nights costs to read, counted in statements: as many as of a store of few."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from align.gate.evidence import Evidence
from align.gate.forgetting import MatrixRow, PathScores, ScoreMatrix
from align.gate.verdict import NAMES_OF_ROUNDS
from align.report.records.history import entries
from align.report.records.window import window_of
from align.report.status import status_of
from align.store.changes.settle import settle
from align.store.ledger.digests import digest_earlier, digest_of, last_best
from align.store.lookback import folded, unfolded
from rollouts.errors import UserError
from tests.unit.campaigns import campaign, rounds
from tests.unit.nights import BASE, NIGHTLY, PLAIN, save, snapshot_of, suite_of, with_nights

FEW, MANY = 60, 120
REPORT = {"outcome": "accepted", "inputs": {"gate": {}, "looks": 1, "best": {"general": "b"}}}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Evidence]:
    """Stores of few and of many nights, digested as a run leaves them. Tests only read them."""
    made = []
    for count in (FEW, MANY):
        evidence = with_nights(tmp_path_factory.mktemp(f"of{count}"), count, report=REPORT)
        with evidence.ledger.database.write() as connection:
            digest_earlier(connection)
        made.append(evidence)
    return made


@contextmanager
def counted(evidence: Evidence) -> Iterator[list[str]]:
    """The statements that the ledger's database is given within the block."""
    statements: list[str] = []

    def note(_: object, __: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    engine = evidence.ledger.database.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


READS: dict[str, Callable[[Evidence], object]] = {
    "status": lambda e: status_of(e, window_of(e, "20")),
    "rounds": lambda e: entries(e, window_of(e, "20")),
    "settings": lambda e: settle(e.config, e.ledger),
    "decisions": lambda e: (e.looks(), e.amended_level(e.looks() + 1)),
    "comparators": lambda e: e.comparators([suite_of("general"), suite_of("nightly-3")]),
    "view": lambda e: e.look_back("nightly-999", "gate"),
}


@pytest.mark.parametrize("name", READS)
def test_more_nights_take_no_more_statements(stores: list[Evidence], name: str) -> None:
    numbers = []
    for evidence in stores:
        with counted(evidence) as statements:
            READS[name](evidence)
        numbers.append(len(statements))
    assert numbers[0] == numbers[1] > 0


def test_a_second_look_reads_nothing_and_a_write_is_seen(tmp_path: Path) -> None:
    evidence = with_nights(tmp_path, 3)
    assert len(evidence.ledger.rounds()) == 4
    with counted(evidence) as statements:
        assert len(evidence.ledger.rounds()) == 4
    assert not [statement for statement in statements if "FROM rounds" in statement]
    other = type(evidence.ledger)(str(evidence.ledger.database.engine.url))
    with other.database.write() as connection:
        connection.exec_driver_sql(
            "DELETE FROM rounds WHERE state = 'planned' AND name = 'nightly-3'"
        )
        connection.exec_driver_sql(
            "INSERT INTO rounds (\"index\", attempt, name, state) VALUES (9, 0, 'next', 'planned')"
        )
    assert [record.name for record in evidence.ledger.rounds()][-1] == "next"


def test_digests_of_an_older_store_follow_from_its_reports(tmp_path: Path) -> None:
    evidence = with_nights(tmp_path, 3, rejected=[2], report=REPORT)
    derived = (
        evidence.looks(),
        evidence.decisions(),
        last_best(evidence.ledger.database, ["general"]),
    )
    assert derived[0] == 4
    assert derived[2] == {"general": "b"}
    with evidence.ledger.database.write() as connection:
        digest_earlier(connection)
        digest_earlier(connection)  # Once is enough.
    written = (
        evidence.looks(),
        evidence.decisions(),
        last_best(evidence.ledger.database, ["general"]),
    )
    assert written == derived


def test_a_digest_counts_every_candidate() -> None:
    repairs = [{"look": 4, "candidate": "a"}, {"look": 5, "candidate": "b"}]
    digest, suites = digest_of(1, 1, {**REPORT, "repairs": repairs})
    assert (digest.num_looks, digest.tried) == (2, ((4, "a"), (5, "b")))
    assert [(suite.suite, suite.best) for suite in suites] == [("general", "b")]


def test_the_row_of_a_campaign_names_its_nights_alone(stores: list[Evidence]) -> None:
    for evidence in stores:
        settled = settle(evidence.config, evidence.ledger)
        settled.check()
        plain, *nights = settled.content["rounds"]
        assert plain["name"] == "plain"
        assert plain["steps"] == 1
        assert {tuple(night) for night in nights} == {("name",)}
        assert not settled.comparison.changes


# windows


@pytest.mark.parametrize(
    ("stated", "shown"),
    [
        (None, (11, 60)), ("20", (41, 60)), ("all", (0, 60)), ("nightly-3..7", (3, 7)),
        ("..plain", (0, 0)), ("58..", (58, 60)), ("58..900", (58, 60)),
    ],
)  # fmt: skip
def test_a_window_is_a_range_of_rounds(
    stores: list[Evidence], stated: str | None, shown: tuple[int, int]
) -> None:
    window = window_of(stores[0], stated)
    assert (window.first, window.last, window.total) == (*shown, 61)
    status = status_of(stores[0], window)
    assert [entry.entry.index for entry in status.rounds] == list(range(shown[0], shown[1] + 1))
    assert bool(window.sentence) == (shown != (0, 60))


@pytest.mark.parametrize("stated", ["900..901", "61.."])
def test_a_range_beyond_the_last_round_is_empty(stores: list[Evidence], stated: str) -> None:
    window = window_of(stores[0], stated)
    assert not entries(stores[0], window)
    assert not status_of(stores[0], window).rounds
    assert window.sentence.endswith("a higher one: the last is 60")


@pytest.mark.parametrize("stated", ["nightly-99..", "7..3", "first"])
def test_a_range_that_is_none_is_refused(stores: list[Evidence], stated: str) -> None:
    with pytest.raises(UserError) as error:
        window_of(stores[0], stated)
    assert error.value.where == "--rounds"
    assert error.value.remedy


# sums over the path, and folded names


CELLS = st.one_of(st.none(), st.floats(0, 1, width=16))


@given(st.data(), st.integers(1, 6))
def test_sums_over_measured_cells_are_those_of_the_whole_matrix(
    data: st.DataObject, n: int
) -> None:
    suites = ("general", *(f"r{i}" for i in range(n)))
    rows = tuple(
        MatrixRow(
            name="base" if i == 0 else f"r{i - 1}",
            accepted=True,
            scores=tuple(data.draw(CELLS) for _ in suites),
        )
        for i in range(n + 1)
    )
    matrix = ScoreMatrix(suites=suites, rows=rows)
    path = PathScores(
        names=tuple(row.name for row in rows), suites=frozenset(suites), scores=tuple(matrix.cells)
    )
    for sums in ("average_performance", "average_incremental_accuracy", "learning_accuracy",
                 "backward_transfer", "forgetting", "forward_transfer"):  # fmt: skip
        assert getattr(path, sums)() == getattr(matrix, sums)()
    assert path.tasks == matrix.tasks


@given(st.lists(st.sampled_from(["plain", *(f"n-{i}" for i in range(30)), "n-01", "other-3"])))
def test_folded_names_are_the_names(names: list[str]) -> None:
    assert unfolded(folded(names)) == names


def test_a_verdict_of_many_rounds_is_short_and_whole(tmp_path: Path) -> None:
    evidence = with_nights(tmp_path, 70, remember={"newest": 1, "older": 0})
    own = suite_of("nightly-70", "nightly-70")
    for right, snapshot in enumerate((BASE, *map(snapshot_of, (0, 69, 70)))):
        save(evidence, snapshot, (own, 10 * right))
    verdict = evidence.judge("nightly-70", snapshot_of(70), snapshot_of(69), [own])
    plain = verdict.to_dict()
    assert plain["inputs"]["left_out"] == ["nightly-[1..69]"]
    assert type(verdict).from_dict(plain) == verdict
    shown = type(verdict).to_show(plain)
    assert shown.checks == verdict.checks
    assert not any(getattr(shown.inputs, names) for names in NAMES_OF_ROUNDS)


def test_a_campaign_without_nights_is_recorded_as_before(tmp_path: Path) -> None:
    config = campaign(tmp_path, rounds=rounds(PLAIN, NIGHTLY))
    settled = settle(config)
    assert settled.content == settled.stated.content()
    assert settled.content_hash == settled.stated.hash()
