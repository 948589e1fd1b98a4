"""Whole rounds that override earlier ones by content: exactly what they contradict is retired."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.data.demo.world import demo_prompts
from align.data.examples.holdout import place
from align.gate.verdict import Verdict
from align.report.explanation.explain import explain
from align.report.forecast.check import check_campaign
from align.round.plan import RoundPlan
from rollouts.prompts import content_id
from tests.unit.align.round.test_retention_rounds import weights
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import Starter, Watcher, campaign, rounds

HELD_OUT = 0.4
FLIPPED = 30
"""Prompts of the first round that the second one answers the other way."""


class Plans(Watcher):
    """Watcher that keeps the plan of every round."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.plans: dict[str, RoundPlan] = {}

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        self.plans[plan.spec.name] = plan
        super().on_step(plan, step, metrics)


def pairs(operation: str, count: int) -> list[tuple[str, str, str]]:
    """Prompts with their right answer and its mirror image, where the two differ."""
    prompts = demo_prompts(f"demo://{operation}?n={count}")
    rows = [(p.text or "", str(p.columns["answer"])) for p in prompts]
    rows = [(text, right, " ".join(reversed(right.split()))) for text, right in rows]
    return [row for row in rows if row[1] != row[2]]


FIRST = pairs("rev", 90)
SECOND = [(text, wrong, right) for text, right, wrong in FIRST[:FLIPPED]] + pairs("inc", 60)


def write(path: Path, rows: list[tuple[str, str, str]]) -> dict[str, Any]:
    lines = [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "prompts": None,
        "rewards": [],
        "algorithm": {"name": "dpo", "pairs": "file"},
        "data": {"source": str(path), "heldout": HELD_OUT},
    }


def three_rounds(folder: Path, count: int = 3, **changes: Any) -> CampaignConfig:
    """Pairs; pairs of which some contradict them; and a round that replays both; the first ``count``."""
    folder.mkdir(parents=True, exist_ok=True)
    first, second = write(folder / "a.jsonl", FIRST), write(folder / "b.jsonl", SECOND)
    replay = {"past": 0.5, "general": 0.0, "buffer": 200}
    specs = rounds(
        {**first, "replay": replay},
        {
            "mode": "override",
            "steps": 2,
            "checkpoint_every": 1,
            **second,
            "replay": replay,
            **changes,
        },
        {"prompts": "demo://sort?n=40", "replay": replay},
    )
    return campaign(folder, rounds=specs[:count])


def run(config: CampaignConfig, watcher: Plans | None = None) -> Ran:
    starter, watcher = Starter(), watcher or Plans()
    evidence = run_campaign(config, start_engine=starter, observer=watcher)
    return Ran(config=config, evidence=evidence, starter=starter, watcher=watcher)


def held(rows: list[tuple[str, str, str]]) -> set[str]:
    """Names of the prompts that a file holds out."""
    return {name for name in (content_id(text) for text, _, _ in rows) if place(name) < HELD_OUT}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(three_rounds(tmp_path_factory.mktemp("override")))


CONTRADICTED = {content_id(text) for text, _, _ in FIRST[:FLIPPED]}


def verdict_of(ran: Ran, name: str) -> Verdict:
    (record,) = [r for r in ran.evidence.ledger.rounds() if r.name == name]
    return Verdict.from_dict(record.report or {})


def test_the_gate_leaves_out_exactly_the_contradicted_items(ran: Ran) -> None:
    whole = next(s for s in ran_suites(ran) if s.name == "round0")
    clusters = dict(zip(whole.item_ids, whole.item_clusters, strict=True))
    expected = {item for item, prompt in clusters.items() if prompt in CONTRADICTED}
    assert 0 < len(expected) < len(clusters)
    assert expected == {i for i, prompt in clusters.items() if prompt in CONTRADICTED & held(FIRST)}
    for name in ("round1", "round2"):
        verdict = verdict_of(ran, name)
        (entry,) = verdict.inputs.retired_items
        assert (entry.suite, entry.by, entry.of) == ("round0", "round1", len(clusters))
        assert set(entry.items) == expected
        checks = [c for c in verdict.checks if c.suite == "round0"]
        assert checks and {c.n for c in checks} == {len(clusters) - len(expected)}
        assert {c.role for c in checks} == {"retention"}
        assert any(entry.sentence in reason for reason in verdict.reasons)
    assert verdict_of(ran, "round0").inputs.retired_items == ()


def ran_suites(ran: Ran) -> Any:
    from align.round.inputs import load_inputs

    return load_inputs(ran.config).suites


def test_what_is_left_is_taken_from_what_was_measured(ran: Ran) -> None:
    """The base and the first snapshot were measured on the whole suite, and on nothing again."""
    from align.gate.measurement.results import ItemResults

    rules = {rule.name: rule for rule in verdict_of(ran, "round1").inputs.suites}
    before = {rule.name: rule for rule in verdict_of(ran, "round0").inputs.suites}
    for snapshot in (ran.evidence.base, ran.candidates["round0"]):
        part = ItemResults.load(ran.evidence.locate(snapshot, rules["round0"].hash))
        whole = ItemResults.load(ran.evidence.locate(snapshot, before["round0"].hash))
        values = dict(zip(whole.item_ids, whole.values, strict=True))
        assert [values[item] for item in part.item_ids] == list(part.values)
        assert len(part.item_ids) < len(whole.item_ids)
    assert not any("measuring round0 on round0" in note for note in ran.watcher.notes)


def test_verdicts_recompute_and_are_explained(ran: Ran) -> None:
    for name in ("round0", "round1", "round2"):
        again, recorded = ran.evidence.recompute(name)
        assert again.decides_as(recorded)
        assert again.inputs == recorded.inputs
    text = "\n".join(explain(ran.evidence, "round1").lines())
    assert "items of suite 'round0' are left out: round 'round1' overrides them" in text


def test_exactly_the_contradicted_prompts_are_replayed_no_more(ran: Ran) -> None:
    assert isinstance(ran.watcher, Plans)
    taught = {content_id(text) for text, _, _ in FIRST} - held(FIRST)
    for name in ("round1", "round2"):
        plan = ran.watcher.plans[name]
        entries = {n: {p.id for p in ps} for n, ps in plan.mixture.past.entries.items()}
        assert entries["round0"] == taught - CONTRADICTED
        assert plan.repair_prompts is not None
        assert {p.id for p in plan.repair_prompts.entries["round0"]} == taught - CONTRADICTED
    second = {content_id(text) for text, _, _ in SECOND} - held(SECOND)
    owned = ran.watcher.plans["round2"].mixture.past.entries["round1"]
    assert {p.id for p in owned} == second and CONTRADICTED & second
    assert {p.owner for p in owned} == {ran.candidates["round1"]}


def test_it_is_shown_with_examples_before_anything_is_measured(ran: Ran) -> None:
    notes = ran.watcher.notes
    (line,) = [n for n in notes if n.startswith("round1: overrides")]
    assert f"round1: overrides {FLIPPED} prompts of round0 (pairs in the opposite order)" in line
    assert "items of its suite" in line and "(b.jsonl:2 against a.jsonl:2)" in line
    assert ran.evidence.files.hash_of(ran.config.folder / "rounds/01-round1/retired.json")


def test_a_round_that_was_killed_keeps_its_choice(ran: Ran, tmp_path: Path) -> None:
    config = three_rounds(tmp_path, 2)
    with pytest.raises(RuntimeError, match="stopped"):
        run(config, Plans(("round1", 0)))
    path = tmp_path / "store/rounds/01-round1/retired.json"
    before = path.read_bytes()
    again = run(config)
    assert path.read_bytes() == before
    assert any("goes on from step 1" in note for note in again.watcher.notes)
    for name, candidate in again.candidates.items():
        ours, theirs = weights(again, candidate), weights(ran, ran.candidates[name])
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        first, second = verdict_of(again, name), verdict_of(ran, name)
        assert first.inputs.retired_items == second.inputs.retired_items
        sentences = [c.sentence for c in second.checks if c.suite != "round2"]
        assert [c.sentence for c in first.checks] == sentences


def test_under_add_nothing_is_retired_and_a_warning_says_so(tmp_path: Path) -> None:
    lines = check_campaign(three_rounds(tmp_path, mode="add")).lines
    (line,) = [line for line in lines if "contradict" in line]
    assert line.startswith(f"warning: round round1: {FLIPPED} of its pairs contradict round round0")
    assert "set mode: override" in line and "still asks for them" in line


def wrong(completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    """Reward of every answer but the right one."""
    return [float(c.strip() != a) for c, a in zip(completions, answer, strict=True)]


WRONG = {"name": f"{__name__}:wrong", "part": "wrong", "isolation": "inline"}


def prompts_file(path: Path, rows: list[tuple[str, str, str]]) -> dict[str, Any]:
    lines = [{"prompt": p, "answer": right} for p, right, _ in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"prompts": {"source": str(path), "heldout": HELD_OUT}}


def test_rewards_judge_what_files_do_not_show(tmp_path: Path) -> None:
    """Pairs against an earlier reward, then a reward against that one on other prompts."""
    replay = {"past": 0.4, "general": 0.0, "buffer": 200}
    gate = {"mode": "observe", "stopping": "sequential"}
    flipped = [(text, bad, good) for text, good, bad in FIRST[:20]]
    agreeing = FIRST[20:40]
    config = campaign(
        tmp_path,
        gate=gate,
        rounds=rounds(
            {**prompts_file(tmp_path / "a.jsonl", FIRST), "name": "right", "replay": replay},
            {
                **write(tmp_path / "b.jsonl", flipped + agreeing),
                "name": "pairs",
                "overrides": "right",
                "replay": replay,
            },
            {
                **prompts_file(tmp_path / "c.jsonl", FIRST[30:70]),
                "name": "wrong",
                "rewards": [WRONG],
                "overrides": ["right"],
                "suite": {"items": 10},
                "replay": replay,
            },
        ),
    )
    ran = run(config)
    by = {r.round: r for r in ran.evidence.retirements(("pairs", "wrong"))}
    (part,) = by["pairs"].parts
    opposed = {content_id(text) for text, _, _ in flipped}
    assert (part.round, part.why) == ("right", "a reward prefers the other answer")
    assert set(part.prompts) == opposed
    assert set(part.items) == opposed & held(FIRST) & set(item_ids(ran, "right"))
    assert part.items
    (part,) = by["wrong"].parts
    assert part.why == "its reward orders the answers the other way"
    assert part.prompts and set(part.prompts) <= {content_id(text) for text, _, _ in FIRST[30:70]}
    assert verdict_of(ran, "wrong").inputs.retired_items[0].by == "pairs"
    assert verdict_of(ran, "wrong").inputs.accepted_rounds == ("pairs", "right")
    again, recorded = ran.evidence.recompute("wrong")
    assert again.decides_as(recorded)


def item_ids(ran: Ran, name: str) -> tuple[str, ...]:
    return next(s.item_ids for s in ran_suites(ran) if s.name == name)


def test_an_earlier_snapshot_judges_where_there_is_no_reward(tmp_path: Path) -> None:
    """Its margin, by a model that is loaded here, is below 0 and below its parent's."""
    demos = tmp_path / "demos.jsonl"
    lines = [{"prompt": p, "completion": right} for p, right, _ in FIRST]
    demos.write_text("".join(json.dumps(line) + "\n" for line in lines))
    others = [(text, " ".join(["7", *bad.split()[1:]]), " ".join(["3", *right.split()[1:]]))
              for text, right, bad in FIRST[:40]]  # fmt: skip
    others = [row for (_, right, _), row in zip(FIRST, others, strict=False) if right not in row]
    config = campaign(
        tmp_path,
        rounds=rounds(
            {
                "name": "demos", "prompts": None, "rewards": [], "algorithm": "sft", "steps": 2,
                "data": {"source": str(demos), "heldout": HELD_OUT},
            },
            {**write(tmp_path / "pairs.jsonl", others), "name": "pairs", "mode": "override"},
        ),
    )  # fmt: skip
    ran = run(config)
    (retirement,) = ran.evidence.retirements(("pairs",))
    before, after = (margins(ran, s, others) for s in (ran.evidence.base, ran.candidates["demos"]))
    expected = {
        content_id(text)
        for (text, _, _), b, a in zip(others, before, after, strict=True)
        if a < 0.0 and a < b
    }
    assert 0 < len(expected) < len(others)
    (part,) = retirement.parts
    assert part.why == "its snapshot prefers the other answer"
    assert set(part.prompts) == expected


def margins(ran: Ran, snapshot: str, rows: list[tuple[str, str, str]]) -> list[float]:
    """Log-likelihood of every better answer above that of the worse one."""
    from transformers import AutoModelForCausalLM

    from align.round.inputs import load_inputs
    from align.store.snapshots.snapshots import SnapshotStore

    inputs = load_inputs(ran.config)
    units = [*inputs.examples["pairs"], *inputs.held_out["pairs"]]
    by_text = {unit.prompt.text: unit for unit in units if unit.prompt is not None}
    folder = SnapshotStore(ran.config.folder).open(snapshot).path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def likelihood(prompt_ids: tuple[int, ...], answer_ids: tuple[int, ...]) -> float:
        ids = torch.tensor([[*prompt_ids, *answer_ids]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        start = len(prompt_ids) - 1
        return sum(float(logprobs[start + i, token]) for i, token in enumerate(answer_ids))

    result = []
    for text, _, _ in rows:
        better, worse = by_text[text].rows
        scores = [likelihood(row.prompt_ids, row.completion_ids) for row in (better, worse)]
        result.append(scores[0] - scores[1])
    return result


def test_moved_back_behind_the_override_everything_counts_again(ran: Ran, tmp_path: Path) -> None:
    from shutil import copytree

    from align.gate.evidence import stored_evidence
    from align.store.ledger.lineage import move_production

    copytree(ran.config.folder, tmp_path / "store")
    evidence = stored_evidence(ran.config.model_copy(update={"store": str(tmp_path / "store")}))
    assert [e.by for e in evidence.retired_items(evidence.accepted("policy"))] == ["round1"]
    columns = evidence.matrix().suites
    before = [row.items[columns.index("round0")] for row in evidence.matrix().rows]
    assert len({before[0], before[1], before[2], before[3]}) == 1, "rows compare the same items"
    move_production(evidence.ledger, ran.candidates["round0"], back=True, reason="by the test")
    assert evidence.retired_items(evidence.accepted("policy")) == ()
    after = [row.items[columns.index("round0")] for row in evidence.matrix().rows if row.accepted]
    assert after == [len(item_ids(ran, "round0"))] * 2


def test_a_plan_counts_the_items_that_are_left(ran: Ran) -> None:
    from align.gate.power.underpowered import foresee
    from align.round.inputs import load_inputs
    from align.round.records.retirement import remaining_suites

    inputs = load_inputs(ran.config)
    suites = remaining_suites(ran.config.rounds, inputs, None)
    whole = {s.name: len(s.item_ids) for s in inputs.suites}
    left = {s.name: len(s.item_ids) for s in suites}
    (entry,) = verdict_of(ran, "round1").inputs.retired_items
    assert left == {**whole, "round0": whole["round0"] - len(entry.items)}
    planned = {s.suite: s.n for s in foresee(ran.config, suites, ran.evidence.ledger).suites}
    assert planned["round0"] == left["round0"]
    rejected = [spec for spec in ran.config.rounds if spec.name != "round1"]
    assert [len(s.item_ids) for s in remaining_suites(rejected, inputs, None)] == list(
        whole.values()
    )
