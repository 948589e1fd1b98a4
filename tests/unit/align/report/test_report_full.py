"""The report of a campaign that went through everything: families, repairs, seals, acts, hostile texts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from align.gate.evidence import Evidence
from align.report.export.export import export
from align.report.html.data import CampaignView, collect
from align.report.html.items import spread
from align.report.html.page import page_of
from align.report.printable import cut
from align.report.records.acts import acts_of
from align.report.records.seals import seals_of
from align.store.ledger.reservations import reservations_by_round
from align.store.repairs import accepted_repair, repaired_by
from tests.unit.full_store import full, overlap, steps
from tests.unit.pages import Page
from tests.unit.stores import GOOD, made

NOW = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)
EVIL = (
    '<script>hacked = 1</script><img src=x onerror=hacked=1>{{ 7*7 }}</td></div>" onload="hacked=1'
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return full(tmp_path_factory.mktemp("full"), "somebody wrote this")


@pytest.fixture(scope="module")
def view(store: Evidence) -> CampaignView:
    return collect(store, NOW)


@pytest.fixture(scope="module")
def page(view: CampaignView) -> Page:
    return Page(page_of(view))


def test_no_number_is_over_two_families(view: CampaignView, page: Page) -> None:
    """The rejected candidate halves the safety suite; what is said of general ones does not know it."""
    general, safety = view.families
    assert (general.family, safety.family) == ("general", "safety")
    assert [column.name for column in general.columns] == ["general", "round0", "round1", "round2"]
    assert [column.name for column in safety.columns] == ["polite"]
    found = {number.name: number.value for number in general.numbers}
    assert found["AP"] == pytest.approx((50 / 60 + 55 / 60) / 2)
    assert safety.numbers == ()  # no round teaches it
    assert [row.cells[0].score for row in safety.heat] == pytest.approx(
        [5 / 6, 5 / 6, 5 / 6, 1 / 3]
    )
    assert [panel.title for panel in safety.retention] == ["polite"]
    assert "Family safety" in page.text and "Families stand apart" in page.text


def test_a_repair_is_told_step_by_step(view: CampaignView, page: Page) -> None:
    assert [round.repaired is not None for round in view.rounds] == [False, True, False]
    assert "accepted , repaired" in page.text
    assert "repaired by distillation, 15 steps (92% of the target gain kept)" in page.text
    assert "too little kept it passed the gate, but kept less" in page.text
    assert "somebody wrote this; somebody wrote this; and 1 more" in page.text
    assert "Learning of the repair: distillation, 15 steps" in page.text
    assert view.rounds[1].cost.repair_seconds == 8.0
    assert [node.repaired != "" for node in view.lineage] == [False, False, True]


def test_items_that_must_not_fail_are_named(view: CampaignView, page: Page) -> None:
    strict = [one.check for one in view.rounds[2].checks if one.check.what == "zero_tolerance"]
    assert [len(check.items) for check in strict] == [30, 30]  # against the parent, and the start
    assert "items that must not fail" in page.text
    assert strict[0].items[0] in page.text
    assert "and 25 more" in page.text


def test_a_sealed_suite_that_lost_is_on_top(view: CampaignView, page: Page) -> None:
    (seal,) = view.seals
    assert [opening.outcome for opening in seal.openings] == ["held", "lost"]
    assert (seal.accepted_to_go, seal.state) == (1, "lost when opened after round round1")
    assert len(view.alarms) == 1
    alarms = [a for tag, a in page.elements if a.get("role") == "alert"]
    assert len(alarms) == 1
    assert "keel rollback CAMPAIGN --to round0" in page.text
    assert "roll back to round0" in page.text
    secret = [c.name for family in view.families for c in family.columns if c.name == "secret"]
    assert secret == []


def test_acts_of_people_are_in_order(store: Evidence, page: Page) -> None:
    acts = acts_of(store)
    assert [act.time for act in acts] == sorted(act.time for act in acts)
    assert [act.what for act in acts] == [
        "a person's data was removed: 0 rows of feedback, 0 replayed prompts",
        "production moved to the snapshot of round round0",
        "production moved to the snapshot of round round1",
        "total budgets count from the snapshot of round round1",
    ]
    assert all(act.what in page.text for act in acts)


def test_what_a_round_read_of_the_inbox(store: Evidence, page: Page) -> None:
    sentence = reservations_by_round(store.ledger.database)["round1"].sentence
    assert sentence == "118 rows of inbox://taste, of the numbers 41 to 160: used by it"
    assert sentence in page.text


def test_costs_are_split(view: CampaignView, page: Page) -> None:
    """20 steps of 64 + 16 completions, 100 + 25 tokens and half a second, in each of three rounds."""
    assert (view.total.rollouts.new, view.total.rollouts.retention) == (3 * 1280, 3 * 320)
    assert (view.total.seconds.new, view.total.seconds.retention) == pytest.approx((24.0, 6.0))
    assert "3,840 + 960 (20%)" in page.text
    assert "24 s + 6 s (20%)" in page.text


def test_samples_are_drawn_and_not_picked(view: CampaignView, page: Page) -> None:
    for round in view.rounds:
        assert len(round.samples) == 4
        assert {item.answer_before for item in round.samples} == {"somebody wrote this"}
        assert [(at.step, [one.value for one in at.said]) for at in round.said] == [
            (1, [4, 3, 1, 0]),
            (20, [4, 3, 1, 0]),
        ]
    unmoved = [item for item in view.rounds[0].samples if item.before == item.after]
    assert unmoved  # also items that did not change
    assert "Step 20, the last that is kept" in page.text


def test_signals_and_overlap_are_shown(view: CampaignView, page: Page) -> None:
    assert "step 12: somebody wrote this (length_drift)" in page.text
    assert "falls for the canary empty" in page.text
    assert "gold/mean" in [curve.name for curve in view.rounds[0].panels[0].curves]
    assert view.overlaps == (overlap("somebody wrote this"),)
    assert "13 words 31% 50%" in page.text


def test_nothing_that_was_written_is_markup(tmp_path: Path) -> None:
    """Prompts, answers, parts of rewards, details, reasons, signals, canaries: all the same text."""
    text = page_of(collect(full(tmp_path, EVIL), NOW))
    page = Page(text)
    assert page.open == []
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.elements)
    assert not [name for _, a in page.elements for name in a if name.startswith("on")]
    assert text.count(str(escape(EVIL))) > 100
    assert page.text.count("{{ 7*7 }}") == text.count("{{ 7*7 }}")


def test_the_card_says_the_same(store: Evidence, tmp_path: Path) -> None:
    export(store, "production", tmp_path / "out", merge=False, force=False)
    card = (tmp_path / "out/README.md").read_text()
    assert "accepted, repaired by distillation, 15 steps (92% of the target gain kept)" in card
    assert card.index("### Family general") < card.index("### Family safety")
    assert "| polite | retention, items that must not fail |" in card
    assert (
        "| secret | after every 1 accepted rounds | lost when opened after round round1 |" in card
    )
    assert "- round1 read 118 rows of inbox://taste" in card
    assert "production moved to the snapshot of round round0 | somebody wrote this" in card
    assert "a person's data was removed: 0 rows" in card
    assert "| round1 | step 12: somebody wrote this (length_drift) |" in card


def test_the_card_holds_no_markup_either(tmp_path: Path) -> None:
    export(full(tmp_path / "store", EVIL), "production", tmp_path / "out", merge=False, force=False)
    card = (tmp_path / "out/README.md").read_text()
    assert "<" not in card.split("---\n", 2)[2].replace("&lt;", "")


def test_a_campaign_without_any_of_it_stays_plain(tmp_path: Path) -> None:
    store = made(tmp_path, GOOD)
    view = collect(store, NOW)
    assert (view.seals, view.acts, view.overlaps, view.alarms) == ((), (), (), ())
    page = Page(page_of(view))
    for absent in ("Sealed", "Acts of people", "Held out", "Repair", "Family", "Feedback"):
        assert absent not in page.text
    assert seals_of(store) == ()


def test_four_accepted_rounds_have_a_page(tmp_path: Path) -> None:
    """Only the last one of many rounds, and those that went wrong, are open."""
    store = made(tmp_path, *({f"round{i}": 50} for i in range(4)))
    page = Page(page_of(collect(store, NOW)))
    rounds = [a for tag, a in page.elements if tag == "details" and a.get("class") == "round"]
    assert ["open" in a for a in rounds] == [False, False, False, True]


# small functions


def test_which_repair_was_accepted() -> None:
    tried = steps("")
    assert accepted_repair(tried) == tried[2]
    assert accepted_repair(tried[:2]) is None
    assert (repaired_by(tried[:2]), repaired_by(())) == ("", "")


@given(st.text(max_size=80), st.integers(0, 60))
def test_a_cut_text_fits_and_begins_alike(text: str, most: int) -> None:
    found = cut(text, most)
    assert found is not None
    kept = found.removesuffix(" […]")
    assert text.startswith(kept)
    if found != text:
        assert len(str(escape(kept)).encode()) <= most < len(str(escape(text)).encode())


@given(st.integers(1, 40), st.integers(1, 12))
def test_spread_takes_both_ends(size: int, count: int) -> None:
    found = [record["n"] for record in spread([{"n": n} for n in range(size)], count)]
    assert found == sorted(set(found)) and len(found) <= min(size, count)
    if count > 1:
        assert (found[0], found[-1]) == (0, size - 1)
