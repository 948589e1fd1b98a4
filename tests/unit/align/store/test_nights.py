"""Many nights in a store: what a round sees, compares with and is told, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from align.config.campaign import CampaignConfig, RoundConfig
from align.gate.evidence import Evidence, in_view, view_of_due
from align.gate.power.power import plan_gate
from align.gate.verdict import Verdict
from align.schedule.claims import stated
from align.store.ledger.tables.due import due_claims
from align.store.lookback import look_back, nights_of, upcoming
from tests.unit.campaigns import campaign, rounds
from tests.unit.nights import BASE, NIGHTLY, PLAIN, N, save, snapshot_of, suite_of, with_nights


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """300 nights, every fifth rejected, and one that is due. Tests only read it."""
    rejected = range(5, 301, 5)
    return with_nights(tmp_path_factory.mktemp("many"), 300, rejected=rejected, more=1)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Four nights of which only the newest is looked at, and a fifth that is due."""
    remember = {"newest": 1, "older": 0}
    return with_nights(tmp_path_factory.mktemp("few"), 4, more=1, remember=remember)


# what a round sees


def test_after_300_nights_a_round_sees_as_many_as_after_ten(many: Evidence) -> None:
    found = many.look_back("nightly-301", "gate")
    assert len(found.kept) == 1 + 7 + 3
    assert len(found.left_out) == 240 - 10
    assert found.kept[0] == "plain"
    newest = [n for n in range(1, 301) if n % 5][-7:]
    assert found.kept[-7:] == tuple(f"nightly-{number}" for number in newest)
    view = in_view(many, ["nightly-301"])
    assert {spec.name for spec in view.rounds} == {*found.kept, "nightly-301"}
    assert view_of_due(many.config, many.ledger) == view


def test_replay_is_drawn_apart_and_only_from_what_is_in_question(many: Evidence) -> None:
    gate, replay = (many.look_back("nightly-301", purpose) for purpose in ("gate", "replay"))  # type: ignore[arg-type]
    assert gate != replay
    assert gate.kept[-7:] == replay.kept[-7:]
    own = [f"nightly-{number}" for number in range(1, 5)]
    assert many.look_back("nightly-301", "replay", own).kept == tuple(own)


def test_the_draw_follows_from_seed_round_and_names(many: Evidence) -> None:
    nights = nights_of(many.ledger.database)
    accepted = list(many.accepted("policy"))
    assert many.look_back("nightly-301", "gate") == look_back(
        accepted, nights, "0/gate/nightly-301"
    )
    assert many.look_back("nightly-301", "gate") != look_back(
        accepted, nights, "1/gate/nightly-301"
    )
    assert many.look_back("nightly-301", "gate") != look_back(
        accepted, nights, "0/gate/nightly-302"
    )


# what it is compared with


def test_few_snapshots_have_to_be_measured_however_many_there_were(many: Evidence) -> None:
    plain, production = snapshot_of(0), snapshot_of(299)
    general, old, new = (
        suite_of("general"),
        suite_of("nightly-3", "nightly-3"),
        suite_of("nightly-301"),
    )
    needed = many.comparators([general, old, new])
    assert needed["general"] == needed["nightly-301"] == {BASE, plain, production}
    assert needed["nightly-3"] == {BASE, plain, production, snapshot_of(3)}


def test_the_last_best_competes_again(tmp_path: Path) -> None:
    report = {"inputs": {"best": {"general": snapshot_of(2), "gone": "not accepted"}}}
    evidence = with_nights(tmp_path, 5, report=report)
    needed = evidence.comparators([suite_of("general"), suite_of("other"), suite_of("gone")])
    assert needed["general"] - needed["other"] == {snapshot_of(2)}
    assert needed["gone"] == needed["other"]


def judged(evidence: Evidence, *, best: int) -> Verdict:
    """The fifth night loses a little of the first night's suite, after others did, and night 2 won some."""
    first, own = suite_of("nightly-1", "nightly-1"), suite_of("nightly-5", "nightly-5")
    for snapshot, right in (
        (BASE, 0),
        (snapshot_of(0), 0),
        (snapshot_of(1), 90),
        (snapshot_of(2), best),
    ):
        save(evidence, snapshot, (first, right), (own, 0))
    save(evidence, snapshot_of(4), (first, 78), (own, 0))
    save(evidence, snapshot_of(5), (first, 74), (own, N))
    return evidence.judge("nightly-5", snapshot_of(5), snapshot_of(4), [first, own])


def test_what_was_lost_while_nobody_looked_counts_in_full(few: Evidence) -> None:
    """Each night lost less than its margin, and the whole is more than the budget."""
    verdict = judged(few, best=95)
    held = {check.against: check for check in verdict.checks if check.role == "retention"}
    assert {name: round(check.difference, 2) for name, check in held.items()} == {
        "parent": -0.04,
        "start": -0.16,
        "best": -0.21,
    }
    assert held["start"].snapshot == snapshot_of(1)
    # Left out for long, and yet the best of all that were ever measured.
    assert held["best"].snapshot == snapshot_of(2)
    assert held["start"].outcome == "regressed"
    assert verdict.outcome == "rejected"


def test_a_verdict_names_what_it_says_nothing_about(few: Evidence) -> None:
    verdict = judged(few, best=95)
    assert verdict.inputs.left_out == ("nightly-1", "nightly-2", "nightly-3")
    assert verdict.inputs.accepted_rounds == (
        "nightly-1", "nightly-2", "nightly-3", "nightly-4", "plain",
    )  # fmt: skip
    said = "3 earlier rounds were not looked at this time: nightly-1, nightly-2, nightly-3"
    assert said in verdict.reasons
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert verdict.inputs.gate.spending == "window"


def test_a_missing_measurement_is_not_passed_over(few: Evidence) -> None:
    unknown = suite_of("unknown")
    save(few, BASE, (unknown, 1))
    with pytest.raises(Exception, match="was never measured on the suite"):
        list(few._best([unknown]))


# campaigns without templates


def test_a_campaign_of_plain_rounds_is_as_it_was(tmp_path: Path) -> None:
    evidence = with_nights(tmp_path, 3)
    with evidence.ledger.database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER IF EXISTS due_claims_no_delete")
        connection.execute(due_claims.delete())
    assert evidence.gate == evidence.config.gate
    assert evidence.look_back("x", "gate").left_out == ()
    every = {BASE, *(snapshot_of(number) for number in range(4))}
    assert evidence.comparators([suite_of("general")]) == {"general": every}
    assert in_view(evidence, []) == evidence.config


def test_what_is_remembered_is_no_part_of_what_a_campaign_is(tmp_path: Path) -> None:
    def hashed(**remember: Any) -> str:
        return campaign(tmp_path, rounds=rounds(PLAIN, {**NIGHTLY, **remember})).hash()

    assert len({hashed(), hashed(remember="all"), hashed(remember={"newest": 2})}) == 1
    plain = campaign(tmp_path).content()
    assert "spending" not in plain["gate"]
    assert "remember" not in plain["rounds"][0]
    stated_how = campaign(tmp_path, gate={"mode": "observe", "spending": "window"})
    assert stated_how.hash() != campaign(tmp_path).hash()


def test_a_plain_round_has_nothing_to_remember(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rounds.0.remember: it limits the rounds of a template"):
        campaign(tmp_path, rounds=rounds({**PLAIN, "remember": "all"}))
    with pytest.raises(ValueError, match="newest"):
        campaign(tmp_path, rounds=rounds({**NIGHTLY, "remember": {"newest": 0}}))


# what the ledger knows of templates


def test_a_round_that_fell_due_keeps_what_its_template_remembers(tmp_path: Path) -> None:
    spec = campaign(tmp_path, rounds=rounds({**NIGHTLY, "remember": {"older": 1}})).rounds[0]
    again = RoundConfig.model_validate(stated(spec, "nightly-7"))
    assert again.remember == spec.remember
    evidence = with_nights(tmp_path, 2, remember={"older": 1})
    assert {
        t.remember.older for t in nights_of(evidence.ledger.database).values() if t.remember
    } == {1}


def test_a_schedule_that_does_not_repeat_makes_a_plain_round(tmp_path: Path) -> None:
    evidence = with_nights(tmp_path, 1)
    with evidence.ledger.database.write() as connection:
        connection.execute(update(due_claims).values(schedule="nightly-1"))
    assert nights_of(evidence.ledger.database) == {}


def test_the_next_round_is_known_before_it_falls_due(many: Evidence) -> None:
    nights = nights_of(many.ledger.database)
    assert upcoming(nights, [f"nightly-{number}" for number in range(1, 301)]) == ["nightly-301"]
    assert upcoming(nights, nights) == ["nightly-302"]


# what people are told beforehand


def file_of(evidence: Evidence, folder: Path, **template: Any) -> CampaignConfig:
    return campaign(folder, rounds=rounds(PLAIN, {**NIGHTLY, **template}))


def test_the_plan_says_what_is_looked_at_and_how_alpha_is_shared(
    many: Evidence, tmp_path: Path
) -> None:
    plan = plan_gate(file_of(many, tmp_path), many)
    assert plan.alpha_per_look == 0.005
    assert plan.spending == "alpha 0.05 over any 10 decisions in a row: 0.005 each, without end"
    assert plan.recalls == {"nightly-301": many.look_back("nightly-301", "gate")}
    assert [one.name for one in plan.templates] == ["nightly"]


def test_the_chance_to_pass_does_not_fall_with_the_nights(tmp_path: Path) -> None:
    suite = {"items": 400, "margin": 0.1}
    plan = plan_gate(campaign(tmp_path, rounds=rounds(PLAIN, {**NIGHTLY, "suite": suite})), None)
    general, plain, nightly = plan.suites
    assert (plain.rounds, nightly.rounds) == (0, 10)
    assert plan.all_pass == pytest.approx(general.power * plain.power * nightly.power**10)
