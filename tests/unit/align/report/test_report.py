"""The report: what it shows, that it stays one small safe file, and how it is served."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.errors import StoreError
from align.gate.evidence import Evidence
from align.gate.forgetting import MatrixRow, ScoreMatrix
from align.report.html.charts import Curve, Panel, draw, panels, thinned
from align.report.html.data import collect, lineage
from align.report.html.limits import Limits
from align.report.html.page import number, page_of, signed, span
from align.report.html.rounds import signals_of
from align.report.html.scores import heat_rows, retention_panels
from align.report.html.serve import LivePage, server
from align.store.ledger.ledger import RoundRecord
from align.store.run_folder import RoundFolder
from tests.patience import patient
from tests.unit.campaigns import ENFORCE, raw_campaign, rounds
from tests.unit.pages import Page
from tests.unit.stores import BETTER, GOOD, HARMFUL, add_answers, made, write_steps

NOW = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Three rounds: accepted, rejected for what it lost, accepted."""
    return made(tmp_path_factory.mktemp("report"), GOOD, HARMFUL, BETTER)


def test_the_page_tells_the_whole_campaign(store: Evidence) -> None:
    page = Page(page_of(collect(store, NOW)))
    assert page.open == []
    assert "2 accepted , 1 rejected of 3 rounds. Made 2030-01-02 03:04 UTC" in page.text
    for part in ("Lineage", "Scores", "Retention", "Rounds", "Drift and signals", "Cost"):
        assert part in page.text
    assert "−50.0 pt" in page.text  # general fell from 50 to 20 of 60
    assert "general: 50.0 points lost against parent (30 lost, 0 won of 60;" in page.text
    assert "Lost: 30, the 10 that changed most" in page.text
    assert store.config.hash() in page.text
    assert "production" in page.text


def test_rounds_of_a_store(store: Evidence) -> None:
    view = collect(store, NOW)
    assert [round.state for round in view.rounds] == ["accepted", "rejected", "accepted"]
    harmful = view.rounds[1]
    assert harmful.checks[0].check.suite == "general"
    assert harmful.checks[0].check.outcome == "regressed"
    budgets = {one.check.against: one for one in harmful.checks if one.check.suite == "general"}
    assert budgets["parent"].budget is None
    assert budgets["best"].check.also == ("start",)
    assert (budgets["best"].budget, budgets["best"].used) == (0.3, pytest.approx(0.5))
    changed = {one.suite: one for one in harmful.changes}
    assert (changed["general"].num_lost, changed["general"].num_won) == (30, 0)
    assert changed["general"].lost[0].before == 1.0
    assert (changed["round1"].num_lost, changed["round1"].num_won) == (0, 45)
    assert (harmful.cost.spent.tokens.new, harmful.cost.spent.tokens.retention) == (100, 10)
    assert harmful.manifest is not None and harmful.manifest.provenance.round == "round1"
    assert not view.running


def test_answers_stand_side_by_side_and_are_only_text(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script><img src=x onerror=alert(1)>{{ 7*7 }}</div>'
    store = made(tmp_path, GOOD, HARMFUL)
    for record in store.ledger.evaluations():
        if record.suite == "general":
            add_answers(store, record.path, f"{evil}?", "before\u202e")
    view = collect(store, NOW)
    changes = tuple(
        replace(one, lost=tuple(replace(i, answer_after=f"{evil}\udc80") for i in one.lost))
        for one in view.rounds[1].changes
    )
    text = page_of(replace(view, rounds=(view.rounds[0], replace(view.rounds[1], changes=changes))))
    page = Page(text.encode("utf-8", "replace").decode())
    assert page.open == []
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.elements)
    assert '<script>alert("x")</script>' in page.text
    assert "{{ 7*7 }}" in page.text
    assert page.text.count("before\u202e") == 10


def test_a_page_asks_for_nothing_from_elsewhere(store: Evidence) -> None:
    page = Page(page_of(collect(store, NOW)))
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:,"))
        assert "url(" not in attributes.get("style", "")
    policies = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")


def test_links_within_the_page_lead_somewhere(store: Evidence) -> None:
    page = Page(page_of(collect(store, NOW)))
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names))
    links = [a["href"][1:] for t, a in page.elements if t == "a"]
    assert links[0] == "main"
    assert set(links) <= set(names)


# curves


def test_attempts_share_one_line_of_steps(tmp_path: Path) -> None:
    for attempt, text in {
        1: '{"step": 0, "a": 1.0}\n{"step": 1, "a": 2.0, "b": NaN, "c": "x"}\n{"st',
        2: '{"step": 1, "a": 5.0}\n{"step": 2, "a": true}\n[]\n',
    }.items():
        (tmp_path / f"attempt-{attempt}").mkdir()
        (tmp_path / f"attempt-{attempt}/metrics.jsonl").write_text(text)
    (tmp_path / "attempt-10").mkdir()
    assert RoundFolder(tmp_path).steps() == {0: {"a": 1.0}, 1: {"a": 5.0}, 2: {"a": 1.0}}
    assert RoundFolder(tmp_path / "nowhere").steps() == {}


def test_what_never_moved_is_no_curve() -> None:
    steps = {i: {"reward/mean": 0.0, "entropy": 1.0, "reward/failed_share": 0.5} for i in range(3)}
    assert [panel.title for panel in panels(steps, Limits.of(1))] == ["Entropy"]
    many = {0: {f"drift/K_old/r{i}": float(i) for i in range(10)}}
    (panel,) = panels(many, Limits.of(1))
    assert [curve.name for curve in panel.curves] == [f"drift/K_old/r{i}" for i in range(9, 3, -1)]
    assert panel.left_out == 3  # r3, r2, r1; r0 never left 0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(2, 80))
def test_thinning_loses_no_peak(values: list[float], points: int) -> None:
    whole = Curve(name="a", x=tuple(map(float, range(len(values)))), y=tuple(values))
    thin = thinned(whole, points)
    assert len(thin.y) == len(thin.x) <= max(points, len(values) if len(values) <= points else 0)
    assert (min(thin.y), max(thin.y)) == (min(values), max(values))
    assert list(thin.x) == sorted(set(thin.x))
    assert all(values[int(x)] == y for x, y in zip(thin.x, thin.y, strict=True))


def test_a_chart_holds_numbers_and_the_pages_colours() -> None:
    evil = "$x^2$ <b>"
    panel = Panel(
        title=evil,
        unit=evil,
        over=evil,
        curves=(Curve(name=evil, x=(1.0, 2.0), y=(0.0, 1.0)), Curve(name="b", x=(1.0,), y=(0.5,))),
        hollow=((2.0, 0.2),),
        since=1.0,
    )
    chart = draw(panel)
    page = Page(chart.svg)
    assert {tag for tag, _ in page.elements} == {"svg", "path", "text"}
    assert "#" not in chart.svg and "<b>" not in chart.svg and "url" not in chart.svg
    assert {"var(--c1)", "var(--c2)", "var(--ink)", "var(--line)"} <= {
        part for _, a in page.elements for part in a.get("style", "").replace(":", ";").split(";")
    }
    assert page.words.count("×") == 1
    assert [(key.line, key.first, key.last) for key in chart.keys] == [(1, 0.0, 1.0), (2, 0.5, 0.5)]


# scores and lineage


def test_colours_of_the_matrix_by_hand() -> None:
    """Two margins of 0.1 are the scale of a; b has no margin and scales by its largest change."""
    matrix = ScoreMatrix(
        suites=("a", "b"),
        rows=(
            MatrixRow(name="base", accepted=True, scores=(0.5, 1.0)),
            MatrixRow(name="a", accepted=True, scores=(0.45, 3.0)),
            MatrixRow(name="bad", accepted=False, scores=(None, 0.0)),
        ),
    )
    base, first, second = heat_rows(matrix, {"a": 0.1})
    assert [cell.strength for cell in base.cells] == [0.0, 0.0]
    assert [cell.strength for cell in first.cells] == pytest.approx([-0.25, 1.0])
    assert first.cells[0].own and not first.cells[1].own
    assert second.cells[0].score is None and second.cells[0].change is None
    assert second.cells[1].strength == -0.5
    a, b = retention_panels(matrix)
    assert (a.curves[0].y, a.hollow, a.since) == ((0.5, 0.45), (), 1.0)
    assert (b.curves[0].y, b.hollow, b.since) == ((1.0, 3.0), ((2.0, 0.0),), None)


def record(index: int, name: str, state: Any, parent: str, candidate: str | None) -> RoundRecord:
    return RoundRecord(
        index=index,
        attempt=1,
        name=name,
        state=state,
        parent=parent,
        candidate=candidate,
        report=None,
        started=None,
        ended=None,
    )


def test_lineage_follows_what_was_accepted() -> None:
    """A reward model is accepted and nothing descends from it; a rollback starts a second line."""
    attempts = [
        record(0, "lost", "failed", "0", None),
        record(0, "one", "accepted", "0", "1"),
        record(1, "bad", "rejected", "1", "2"),
        record(2, "judge", "accepted", "1", "3"),
        record(3, "two", "accepted", "1", "4"),
        record(4, "again", "accepted", "1", "5"),
    ]
    kinds = {"3": "reward"}
    line = lineage("0", attempts, "5", lambda s: kinds.get(s, "model"))
    assert [node.name for node in line] == ["base", "one", "again"]
    assert [node.production for node in line] == [False, False, True]
    assert [side[0].name for side in line[0].sides] == ["lost"]
    assert [side[0].name for side in line[1].sides] == ["bad", "judge", "two"]


def test_signals_say_what_is_worth_a_look() -> None:
    start = {"completions/tokens_mean": 20.0, "entropy": 2.0, "reward/mean": 0.0, "reward/a": 1.0}
    end = {
        "completions/tokens_mean": 30.0,
        "entropy": 1.0,
        "reward/mean": 1.0,
        "reward/a": 0.8,
        "completions/length_cut_share": 0.25,
        "drift/K_old/x": 0.3,
        "drift/K_old/y": 0.1,
    }
    found = signals_of({0: start, 1: end})
    assert found.remarks == (
        "completions grew from 20 to 30 tokens",
        "entropy fell from 2.00 to 1.00 nats",
        "25% of completions were cut at the last step",
        "reward/a fell from 1 to 0.8 while the whole reward rose",
    )
    assert found.k_old == 0.3
    assert signals_of({0: start, 1: start}).remarks == ()
    assert signals_of({}).tokens is None


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [
        (None, "", ""),
        (0.0, "0", "0"),
        (-0.12345, "−0.123", "−0.123"),
        (1234.5, "1,234", "+1,234"),
        (12.0, "12.0", "+12.0"),
        (123.4, "123", "+123"),
        (0.00001, "1e−05", "+1e−05"),
        (999.6, "1e+03", "+1e+03"),
    ],
)
def test_numbers_for_people(value: float | None, plain: str, with_sign: str) -> None:
    assert (number(value), signed(value)) == (plain, with_sign)


def test_durations_for_people() -> None:
    assert [span(s) for s in (0, 42.4, 130, 7260)] == ["0 s", "42 s", "2 min 10 s", "2 h 1 min"]


# stores that are not whole


def test_a_damaged_store_still_has_a_report(tmp_path: Path) -> None:
    store = made(tmp_path, GOOD, HARMFUL)
    for path in (*store.folder.glob("evaluations/*/general*"), *store.folder.glob("rounds/*/*/*")):
        path.unlink()
    for path in store.folder.glob("snapshots/*/manifest.json"):
        path.chmod(0o644)
        path.write_text("{}")
    view = collect(store, NOW)
    assert "general" not in {one.suite for one in view.rounds[1].changes}
    assert view.rounds[0].manifest is None and view.rounds[0].steps_done == 0
    assert Page(page_of(view)).open == []


def test_a_round_that_runs_or_failed_is_shown(tmp_path: Path) -> None:
    store = made(tmp_path, GOOD, rounds=rounds({}))
    production = store.ledger.alias("production")
    assert production is not None
    config = store.config.model_copy(
        update={"rounds": (*store.config.rounds, *(r for r in _more(store)))}
    )
    store.ledger.open_campaign(config.name, config.content(), config.hash())
    store = replace(store, config=config)
    attempt = store.ledger.begin_round(1, "more", production)
    store.ledger.commit_round(1, attempt, "failed", None, {"error": "out of <memory>"})
    store.ledger.begin_round(1, "more", production)
    write_steps(store, 1, 2, [{"entropy": 1.0}])
    view = collect(store, NOW)
    assert (view.rounds[1].state, view.rounds[1].attempts, view.running) == ("running", 2, True)
    assert [side[0].state for side in view.lineage[1].sides] == ["failed", "running"]
    assert Page(page_of(view)).open == []


def _more(store: Evidence) -> list[Any]:
    return [store.config.rounds[0].model_copy(update={"name": "more"})]


# serving


@contextmanager
def served(page: Callable[[], str]) -> Iterator[Callable[..., tuple[int, str]]]:
    """A running server, as a function from a path to status and body."""
    with server(page, 0, 5) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()

        def get(path: str = "/", host: str | None = None) -> tuple[int, str]:
            connection = HTTPConnection("127.0.0.1", running.server_port, timeout=patient(10))
            name = host or f"127.0.0.1:{running.server_port}"
            connection.request("GET", path, headers={"Host": name})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        try:
            yield get
        finally:
            running.shutdown()
            thread.join()


def test_only_this_machine_is_served_and_only_the_page() -> None:
    with served(lambda: "<p>hello</p>") as get:
        assert get() == (200, "<p>hello</p>")
        assert get("/../etc/passwd")[0] == 404
        assert get(host="elsewhere.example:80")[0] == 404
        assert get(host="localhost:80")[0] == 200
    with server(lambda: "", 0, 5) as running:
        assert running.server_address[0] == "127.0.0.1"


def test_a_campaign_that_has_not_begun_is_waited_for() -> None:
    def page() -> str:
        raise StoreError("there is <no> campaign")

    with served(page) as get:
        status, body = get()
    assert status == 200
    assert "there is &lt;no&gt; campaign" in body
    assert 'http-equiv="refresh" content="5"' in body


def test_a_live_page_is_made_again_when_the_store_changes(tmp_path: Path) -> None:
    store = made(tmp_path, GOOD)
    page = LivePage(store.config, refresh_s=7)
    first = page()
    assert '<meta http-equiv="refresh" content="7">' in first
    assert page() is first
    write_steps(store, 0, 1, [{"entropy": 1.0}, {"entropy": 1.5}])
    assert page() is not first


# the command


def test_the_command_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch import cli

    changes: dict[str, Any] = {
        "rounds": rounds({}),
        "gate": ENFORCE,
    }
    made(tmp_path, GOOD, **changes)
    file, out = tmp_path / "campaign.yaml", tmp_path / "new/page.html"
    file.write_text(json.dumps(raw_campaign(tmp_path, **changes)))
    monkeypatch.setattr("sys.argv", ["keel", "report", str(file), "--out", str(out)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code, capsys.readouterr().err
    assert Page(out.read_text()).open == []
