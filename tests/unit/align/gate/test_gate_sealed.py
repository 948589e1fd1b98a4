"""A sealed suite says nothing until it is opened, decides nothing, and proposes where to go back to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig, GateConfig
from align.gate.case import VerdictInputs
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults
from align.gate.sealed import any_due, is_due, openings
from align.gate.suites.looks import Early
from align.gate.suites.suite import SuiteRule
from align.gate.verdict import Verdict
from align.report.records.history import diff
from align.report.tables import sealed_lines
from align.store.ledger.ledger import Ledger
from align.store.ledger.lineage import by_hand, lineage, move_production
from align.store.store import Store
from rollouts.errors import UserError
from tests.unit.campaigns import Starter, Watcher, campaign, raw_campaign, rounds
from tests.unit.decided import keel
from tests.unit.ledgers import snapshot

N = 400
SEALED: dict[str, Any] = {
    "name": "secret", "prompts": "demo://general?seed=7", "metric": "exact_match", "items": N,
    "margin": 0.05, "budget": 0.08, "role": "sealed", "every": 2,
}  # fmt: skip
IDS = [snapshot(letter).id for letter in "abcde"]
"""The start, and the candidates of four rounds."""


def raw(folder: Path, every: int = 2) -> dict[str, Any]:
    names = ("one", "two", "three", "four")
    sources = ("rev", "sort", "rotl", "inc")
    return raw_campaign(
        folder,
        suites=[{**SEALED, "every": every}],
        rounds=[
            {
                "name": name,
                "prompts": f"demo://{source}?n=60",
                "rewards": ["exact_match"],
                "steps": 1,
            }
            for name, source in zip(names, sources, strict=True)
        ],
    )


def accepted(
    folder: Path,
    right: Sequence[int | range],
    every: int = 2,
    report: Mapping[str, Any] | None = None,
) -> Evidence:
    """Rounds that were all accepted, and what of the sealed suite each snapshot has right: so many items
    from the first on, or these."""
    config = CampaignConfig.model_validate(raw(folder, every))
    ledger = Ledger(f"sqlite:///{config.folder / 'ledger.db'}")
    ledger.open_campaign(config.name, config.content(), config.hash())
    evidence = Evidence(store=Store(config.folder, ledger), config=config)
    for letter in "abcde":
        ledger.record_snapshot(snapshot(letter))
    ledger.set_alias_initial("production", IDS[0])
    for index, candidate in enumerate(IDS[1 : len(right)]):
        attempt = ledger.begin_round(index, config.rounds[index].name, IDS[index])
        ledger.enter_gating(index, attempt, candidate)
        ledger.commit_round(
            index, attempt, "accepted", candidate, report or {"outcome": "accepted"}
        )
    for candidate, items in zip(IDS, right, strict=False):
        known = items if isinstance(items, range) else range(items)
        values = tuple(float(item in known) for item in range(N))
        evidence.save(candidate, {"secret": results(candidate, values)})
    return evidence


def results(candidate: str, values: Sequence[float]) -> ItemResults:
    return ItemResults(
        suite="secret",
        suite_hash="s" * 64,
        snapshot=candidate,
        item_ids=tuple(map(str, range(len(values)))),
        values=tuple(values),
        statuses=("scored",) * len(values),
        finishes=("stop",) * len(values),
    )


def test_an_opening_every_second_accepted_round(tmp_path: Path) -> None:
    evidence = accepted(tmp_path, [400, 400, 400, 399, 398])
    assert [(o.round, o.outcome, len(o.checks)) for o in openings(evidence)] == [
        ("two", "held", 1),
        ("four", "held", 2),
    ]
    assert {c.against: c.margin for c in openings(evidence)[1].checks} == {
        "start": 0.08,
        "last opening": 0.05,
    }
    assert openings(evidence)[0].sentence.endswith("held")
    assert not any_due(evidence)


def test_nothing_is_opened_before_its_time(tmp_path: Path) -> None:
    assert openings(accepted(tmp_path, [400, 0], every=2)) == []


def test_a_loss_proposes_the_newest_snapshot_that_had_held(tmp_path: Path) -> None:
    evidence = accepted(tmp_path, [400, 400, 396, 300, 290], every=4)
    (opening,) = openings(evidence)
    assert (opening.outcome, opening.back_to) == ("lost", "two")
    assert "keel rollback CAMPAIGN --to two --reason" in opening.sentence
    assert "LOST" in next(iter(sealed_lines(evidence))).plain


def test_where_nothing_held_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    (opening,) = openings(accepted(tmp_path, [400, 300, 300]))
    assert (opening.outcome, opening.back_to) == ("lost", None)
    assert "none to go back to" in opening.sentence


def test_what_cannot_be_told_proposes_nothing(tmp_path: Path) -> None:
    # Two points lost, but with half of the items changed: that can be nothing, or far too much.
    (opening,) = openings(accepted(tmp_path, [200, 200, range(208, 400)]))
    assert (opening.outcome, opening.back_to) == ("too_few_items", None)
    assert "rollback" not in opening.sentence


def test_a_loss_that_may_be_chance_proposes_nothing(tmp_path: Path) -> None:
    """9 points lost where 8 are allowed, but 284 of 400 items changed: 2.15 standard errors, alpha .01."""
    (opening,) = openings(accepted(tmp_path, [200, 200, range(160, 324)]))
    (check,) = opening.checks
    assert (check.outcome, check.difference) == ("regressed", -0.09)
    assert check.interval[1] > 0.0
    assert (opening.outcome, opening.back_to) == ("too_few_items", None)


def test_old_openings_keep_their_alpha(tmp_path: Path) -> None:
    """Whatever comes after them: more rounds than were declared, and another alpha."""
    before = accepted(tmp_path / "a", [400, 400, 400], every=1)
    after = accepted(tmp_path / "b", [400, 400, 400, 400, 400], every=1)
    first = [opening.checks[0].alpha for opening in openings(before)]
    assert [opening.checks[0].alpha for opening in openings(after)][:2] == first
    rounds = after.config.gate.campaign_rounds
    assert first == [after.config.gate.alpha / rounds] * 2


def test_an_opening_counts_by_the_gate_of_its_round(tmp_path: Path) -> None:
    """The settings and the rule that its verdict names, whatever the file says by now."""
    inputs = VerdictInputs(
        target="two", gate=GateConfig(alpha=0.2, campaign_rounds=4), looks=2, suites=(),
        accepted_rounds=(), retired=(), candidate={}, parent={}, best={}, start={}, decided_by=1,
    )  # fmt: skip
    verdict = Verdict(accepted=True, outcome="accepted", checks=(), reasons=(), inputs=inputs)
    (opening,) = openings(accepted(tmp_path, [400, 400, 400], report=verdict.to_dict()))
    assert opening.checks[0].alpha == 0.2 / 2


def test_what_stopped_early_before_it_was_sealed_is_measured_whole_first(tmp_path: Path) -> None:
    rule = SuiteRule(
        name="secret", kind="items", role="gate", margin=0.05, budget=0.08, target_of=None,
        hash="s" * 64, value_range=(0.0, 1.0), early=Early(items=N, units=N),
    )  # fmt: skip
    inputs = VerdictInputs(
        target="two", gate=GateConfig(alpha=0.2, campaign_rounds=4), looks=2, suites=(rule,),
        accepted_rounds=(), retired=(), candidate={}, parent={}, best={}, start={},
    )  # fmt: skip
    verdict = Verdict(accepted=True, outcome="accepted", checks=(), reasons=(), inputs=inputs)
    evidence = accepted(tmp_path, [400, 400, 400], report=verdict.to_dict())
    (record,) = (e for e in evidence.ledger.evaluations() if e.snapshot == IDS[1])
    evidence.replace(record, results(IDS[1], [1.0] * 33), "was cut")
    assert openings(evidence) == []
    assert is_due(evidence, "secret")
    evidence.save(IDS[1], {"secret": results(IDS[1], [1.0] * N)})
    assert [opening.outcome for opening in openings(evidence)] == ["held"]


def test_it_is_neither_in_the_matrix_nor_in_a_comparison(tmp_path: Path) -> None:
    evidence = accepted(tmp_path, [400, 400, 300])
    assert "secret" not in evidence.matrix().suites
    assert [score.suite for score in diff(evidence, "one", "two").scores] == []


def test_a_campaign_opens_it_without_deciding_by_it(tmp_path: Path) -> None:
    spec = {**SEALED, "items": 30}
    config = campaign(tmp_path, suites=[spec], rounds=rounds({}, {"prompts": "demo://inc?n=60"}))
    watcher = Watcher()
    evidence = run_campaign(config, start_engine=Starter(), observer=watcher)
    assert len([note for note in watcher.notes if note.startswith("sealed suite 'secret'")]) == 1
    for outcome in watcher.verdicts.values():
        assert "secret" not in {check.suite for check in outcome.verdict.checks}
        assert "secret" not in {rule.name for rule in outcome.verdict.inputs.suites}
    measured = [e.snapshot for e in evidence.ledger.evaluations() if e.suite == "secret"]
    assert set(measured) == {evidence.base, *evidence.accepted("policy").values()}
    assert not is_due(evidence, "secret")


@pytest.mark.parametrize(
    "change", [{"every": None}, {"role": "watch"}, {"every": 0}, {"against": "base"}]
)
def test_a_sealed_suite_says_when_it_is_opened(tmp_path: Path, change: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"every|against"):
        campaign(tmp_path, suites=[{**SEALED, **change}])


# production moved by hand


def test_going_back_leaves_later_rounds_behind_and_is_on_record(tmp_path: Path) -> None:
    evidence = accepted(tmp_path, [400, 400, 396, 300, 290], every=4)
    move_production(evidence.ledger, "two", back=True, reason="the sealed suite lost")
    assert evidence.ledger.alias("production") == IDS[2]
    assert list(evidence.accepted("policy")) == ["one", "two"]
    assert openings(evidence) == []
    assert [row.accepted for row in evidence.matrix().rows] == [True, True, True, False, False]
    (move,) = by_hand(evidence.ledger)
    assert (move.previous, move.target, move.reason) == (IDS[4], IDS[2], "the sealed suite lost")
    lines = [line.plain for line in sealed_lines(evidence)]
    assert lines == ["production moved by hand to 'two': the sealed suite lost"]
    move_production(evidence.ledger, IDS[3][:12], back=False, reason="it was the metric")
    assert list(evidence.accepted("policy")) == ["one", "two", "three"]


def test_a_later_round_starts_where_production_was_moved_to(tmp_path: Path) -> None:
    evidence = accepted(tmp_path, [400, 400, 300, 290])
    move_production(evidence.ledger, "one", back=True, reason="lost")
    assert evidence.due_index() == 3
    assert evidence.ledger.begin_round(3, "four", IDS[1]) == 1


@pytest.mark.parametrize(
    ("to", "back", "message"),
    [
        ("nine", True, "names no snapshot that the gate accepted"),
        (IDS[0], True, "names no snapshot that the gate accepted"),
        ("four", True, "already"),
        ("one", False, "keel rollback"),
    ],
)
def test_moves_that_make_no_sense(tmp_path: Path, to: str, back: bool, message: str) -> None:
    evidence = accepted(tmp_path, [400, 400, 400, 400, 400])
    with pytest.raises(UserError, match=message):
        move_production(evidence.ledger, to, back=back, reason="because")
    with pytest.raises(UserError, match="needs a reason"):
        move_production(evidence.ledger, "two", back=True, reason=" ")
    assert by_hand(evidence.ledger) == []


def test_lineage_follows_parents(tmp_path: Path) -> None:
    records = accepted(tmp_path, [400, 400, 400]).ledger.rounds()
    done = [record for record in records if record.state == "accepted"]
    assert lineage(done, IDS[2]) == {IDS[1], IDS[2]}
    assert lineage(done, IDS[0]) == frozenset()
    assert lineage(done, None) == frozenset()


def test_the_commands(tmp_path: Path) -> None:
    accepted(tmp_path, [400, 400, 300])
    path = tmp_path / "campaign.yaml"
    path.write_text(json.dumps(raw(tmp_path)))
    code, out, _ = keel("rollback", str(path), "--to", "one", "--reason", "lost", "--json")
    assert code == 0
    assert json.loads(out)["target"] == IDS[1]
    code, out, _ = keel("promote", str(path), "--to", "two", "--reason", "a wrong metric")
    assert code == 0
    assert "accepted rounds that count: one, two" in out
    code, _, error = keel("rollback", str(path), "--to", "tow", "--reason", "x")
    assert (code, "did you mean 'two'" in error) == (2, True)
