"""The repair ladder: what is tried next, what is taken, and what a rung plans."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from align.config.campaign import GateConfig, RoundConfig
from align.config.repair import DistilConfig, InterpolateConfig, RepairConfig
from align.data.mixture import Mixture
from align.data.replay.buffer import ReplayBuffer
from align.data.retrieval.index import ChangeCounts
from align.data.scorer import Scorer
from align.gate.case import VerdictInputs
from align.gate.checks import Check, Role
from align.gate.suites.suites import SuiteRule
from align.gate.verdict import Verdict
from align.learner.references import References, Toward
from align.round.plan import RoundOutcome, RoundPlan
from align.round.repair.interpolate import Point, next_share
from align.round.repair.ladder import repair
from align.round.repair.rerun import careful
from align.store.repairs import repairs_of, with_repairs
from rollouts.prompts import PromptStream
from rollouts.types import Prompt
from tests.unit.campaigns import campaign, rounds

# the search for a share


def searched(limit: float, steps: int) -> list[float]:
    """Shares tried where the gate lets pass up to ``limit``."""
    points: list[Point] = []
    while (share := next_share(points, steps)) is not None:
        points.append(Point(share=share, lost=share > limit, gained=True))
    return [point.share for point in points]


def test_bisection_by_hand() -> None:
    assert searched(0.6, 3) == [0.5, 0.75, 0.625]
    assert searched(0.3, 3) == [0.5, 0.25, 0.375]
    assert searched(0.99, 4) == [0.5, 0.75, 0.875, 0.9375]


@given(st.floats(0.0, 0.999), st.integers(1, 8))
def test_the_largest_share_that_passes_is_found_as_closely_as_steps_allow(
    limit: float, steps: int
) -> None:
    tried = searched(limit, steps)
    assert len(tried) == steps
    best = max((share for share in tried if share <= limit), default=0.0)
    assert limit - 0.5**steps <= best <= limit


def test_too_small_a_gain_sends_the_search_toward_the_candidate() -> None:
    assert next_share([Point(share=0.5, lost=False, gained=False)], 3) == 0.75


def test_a_loss_without_a_gain_ends_the_search() -> None:
    assert next_share([Point(share=0.5, lost=True, gained=False)], 3) is None


# what a rung plans


def spec(**changes: Any) -> RoundConfig:
    raw = {"name": "new", "prompts": "demo://rev", "rewards": ["exact_match"], "steps": 30}
    return RoundConfig.model_validate({**raw, **changes})


def prompts(name: str, source: Any) -> list[Prompt]:
    return [
        Prompt(id=f"{name}{i}", text="x", messages=None, columns={}, source=source, owner="o", round=name)
        for i in range(4)
    ]  # fmt: skip


def plan(**changes: Any) -> RoundPlan:
    chosen = spec(**changes)
    return RoundPlan(
        index=2,
        attempt=1,
        spec=chosen,
        references=References(base="base", parent="parent", rounds={"one": "o1", "two": "o2"}),
        mixture=Mixture(
            new=PromptStream(prompts("new", "new"), 0),
            past=ReplayBuffer({"one": prompts("one", "past"), "two": prompts("two", "past")}),
            general=PromptStream(prompts("general", "general"), 0),
            stored=[],
            sampling=chosen.sampling,
            replay=chosen.replay,
            seed=0,
        ),
        scorer=Scorer(new=None, past={}),
        seed=7,
    )


def check(suite: str, role: Role, passed: bool, difference: float) -> Check:
    failure = "not_improved" if role == "target" else "regressed"
    return Check(
        suite=suite, role=role, against="parent", snapshot="parent", test="tango", n=100, lost=0, won=0,
        difference=difference, interval=(difference, difference), margin=0.1, p=0.5, alpha=0.05,
        outcome="passed" if passed else failure, sentence=f"{suite}: told",  # type: ignore[arg-type]
    )  # fmt: skip


def rule(name: str, target_of: str | None) -> SuiteRule:
    return SuiteRule(
        name=name, hash=name, kind="items", role="gate", margin=0.1, budget=0.2, target_of=target_of
    )


def outcome(candidate: str, *, lost: tuple[str, ...] = (), gain: float = 0.5) -> RoundOutcome:
    """What the gate says: which suites were lost, and the gain at the target."""
    checks = [check("new", "target", gain > 0, gain)]
    checks += [check(s, "retention", s not in lost, 0.0) for s in ("one", "two", "skills")]
    passed = not lost and gain > 0
    targets = {"new": "new", "one": "one", "two": "two", "skills": None}
    nothing: dict[str, str] = {}
    verdict = Verdict(
        accepted=passed,
        outcome="accepted" if passed else "rejected",
        checks=tuple(checks),
        reasons=tuple(c.sentence for c in checks if c.outcome != "passed"),
        inputs=VerdictInputs(
            target="new", gate=GateConfig(), looks=10, accepted_rounds=("one", "two"), retired=(),
            suites=tuple(rule(name, target) for name, target in targets.items()),
            candidate=nothing, parent=nothing, best=nothing, start=nothing,
        ),
    )  # fmt: skip
    return RoundOutcome(candidate=candidate, verdict=verdict, look=3)


@dataclass
class Gate:
    """Makes nothing: answers every plan from a script, and keeps it."""

    answers: dict[str, RoundOutcome] = field(default_factory=dict)
    """By label; anything else is refused with the loss of ``one``."""
    plans: list[RoundPlan] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __call__(self, plan: RoundPlan, *, before: int) -> RoundOutcome:
        assert plan.origin is not None
        self.plans.append(plan)
        answer = self.answers.get(plan.origin.label, outcome("", lost=("one",)))
        return replace(answer, candidate=f"made by {plan.origin.label}", look=3 + before)

    def climbed(self, plan: RoundPlan, failed: RoundOutcome) -> RoundOutcome:
        return repair(plan, failed, self, self.notes.append)

    @property
    def tried(self) -> list[str]:
        return [plan.origin.label for plan in self.plans if plan.origin]


ALL = {"interpolate": {"steps": 2}, "distil": True, "rerun": True}
FAILED = outcome("failed", lost=("one",))


def test_by_default_nothing_is_tried() -> None:
    gate = Gate()
    assert gate.climbed(plan(), FAILED) == FAILED
    assert gate.tried == []


def test_the_whole_ladder_in_order_and_then_rejection() -> None:
    gate = Gate()
    ended = gate.climbed(plan(repair=ALL), FAILED)
    assert gate.tried == ["interpolate-0.5", "interpolate-0.25", "distil", "rerun"]
    assert (ended.candidate, ended.look, ended.verdict) == ("failed", 3, FAILED.verdict)
    assert [(one.rung, one.look) for one in ended.repairs] == [
        ("round", 3), ("interpolate", 4), ("interpolate", 5), ("distil", 6), ("rerun", 7),
    ]  # fmt: skip
    assert gate.notes[0] == "new: interpolation at 0.5: rejected because one: told"


@pytest.mark.parametrize("rung", ["interpolate", "distil", "rerun"])
def test_every_rung_has_a_switch(rung: str) -> None:
    gate = Gate()
    gate.climbed(plan(repair={**ALL, rung: False}), FAILED)
    assert gate.tried
    assert not any(label.startswith(rung) for label in gate.tried)


def test_the_first_rung_that_passes_ends_the_ladder() -> None:
    gate = Gate({"distil": outcome("", gain=0.45)})
    ended = gate.climbed(plan(repair=ALL), FAILED)
    assert gate.tried[-1] == "distil"
    assert ended.candidate == "made by distil"
    assert ended.verdict.accepted
    assert (
        ended.repairs[-1].sentence == "distillation, 15 steps: accepted with 90% of the target gain"
    )


def test_the_largest_share_that_passed_is_taken_although_a_larger_one_came_later() -> None:
    gate = Gate({"interpolate-0.5": outcome("", gain=0.3)})
    ended = gate.climbed(plan(repair=ALL), FAILED)
    assert gate.tried == ["interpolate-0.5", "interpolate-0.75"]
    assert ended.candidate == "made by interpolate-0.5"


def test_a_repair_that_keeps_too_little_is_not_taken() -> None:
    gate = Gate({"distil": outcome("", gain=0.2)})
    ended = gate.climbed(plan(repair={"distil": True, "keep": 0.5}), FAILED)
    assert ended.candidate == "failed"
    assert ended.repairs[-1].outcome == "too_little_kept"
    told = "distillation, 15 steps: passed the gate with only 40% of the target gain"
    assert ended.repairs[-1].sentence == told
    assert gate.climbed(plan(repair={"distil": True, "keep": 0.4}), FAILED).verdict.accepted


@pytest.mark.parametrize(
    "failed",
    [outcome("good"), outcome("useless", gain=0.0), outcome("worse", lost=("one",), gain=-0.1)],
)
def test_only_a_loss_beside_a_gain_is_repaired(failed: RoundOutcome) -> None:
    gate = Gate()
    assert gate.climbed(plan(repair=ALL), failed) == failed
    assert gate.tried == []


def test_a_candidate_that_may_have_gamed_its_reward_is_not_repaired() -> None:
    gate, inputs = Gate(), replace(FAILED.verdict.inputs, objections=("the reward was gamed",))
    failed = replace(FAILED, verdict=replace(FAILED.verdict, inputs=inputs))
    assert gate.climbed(plan(repair=ALL), failed) == failed


def test_interpolation_is_a_round_of_no_steps_from_between_the_snapshots() -> None:
    gate = Gate()
    gate.climbed(plan(repair={"interpolate": {"steps": 1}}), FAILED)
    (made,) = gate.plans
    assert made.spec.steps == 0
    assert made.references.beginning == Toward(snapshot="failed", share=0.5)
    assert made.parent == "parent"


def test_distillation_asks_for_what_was_lost_and_keeps_what_was_gained() -> None:
    gate = Gate()
    gate.climbed(plan(repair={"distil": {"steps": 4, "share": 0.6}}), FAILED)
    (made,) = gate.plans
    # The failed candidate is where it begins, and what its own prompts are held to.
    assert made.references.beginning == Toward(snapshot="failed", share=1.0)
    assert made.spec.algorithm.teacher_snapshot == "round:new"
    assert made.references.rounds["new"] == "failed"
    assert list(made.mixture.past.entries) == ["one"]
    assert [term.to for term in made.spec.anchors.past] == ["owner"]
    assert made.spec.anchors.new == ()
    # Of 128 completions 60% for the round that was lost, 5% for the general pool, which was not.
    drawn = made.mixture.draw(0)
    assert made.spec.steps == 4
    assert set(drawn.group_sizes) == {1}
    assert len([p for p in drawn.prompts if p.source == "new"]) == int(128 * 0.35)
    assert made.spec.optimizer.lr == spec().optimizer.lr / 2


def test_distillation_can_ask_for_a_loss_that_was_looked_at_and_not_replayed() -> None:
    gate, began = Gate(), plan(repair={"distil": True})
    only_two = ReplayBuffer({"two": began.mixture.past.entries["two"]})
    began = replace(
        began, mixture=replace(began.mixture, past=only_two), repair_prompts=began.mixture.past
    )
    gate.climbed(began, FAILED)
    (made,) = gate.plans
    assert list(made.mixture.past.entries) == ["one"]


def test_a_lost_capability_is_asked_for_in_the_general_pool() -> None:
    gate = Gate()
    gate.climbed(plan(repair={"distil": {"share": 0.6}}), outcome("", lost=("two", "skills")))
    (made,) = gate.plans
    assert list(made.mixture.past.entries) == ["two"]
    assert (made.spec.replay.past, made.spec.replay.general) == (0.3, 0.3)


def test_without_prompts_of_what_was_lost_there_is_nothing_to_distil() -> None:
    gate = Gate()
    bare = plan(repair={"distil": True})
    bare = replace(bare, mixture=replace(bare.mixture, past=ReplayBuffer(), general=None))
    gate.climbed(bare, outcome("", lost=("one", "skills")))
    assert gate.tried == []


def test_a_rerun_doubles_the_replay_and_halves_the_learning_rate() -> None:
    gate = Gate()
    gate.climbed(plan(repair={"rerun": True}, replay={"past": 0.1, "general": 0.05}), FAILED)
    (made,) = gate.plans
    assert (made.mixture.replay.past, made.mixture.replay.general) == (0.2, 0.1)
    assert made.spec.optimizer.lr == 5e-5
    assert (made.spec.steps, made.references.beginning, made.seed) == (30, None, 7)


def test_the_index_alone_is_tried_before_weights_are_mended() -> None:
    touched = ChangeCounts(added=3, overwritten=0, unchanged=0, forgotten=0, unknown=0)
    both = replace(plan(repair={**ALL, "index": True}), documents_change=touched)
    gate = Gate({"index": outcome("", gain=0.4)})
    ended = gate.climbed(both, FAILED)
    (made,) = gate.plans
    assert (made.spec.steps, made.parent, made.references.beginning) == (0, "parent", None)
    assert ended.candidate == "made by index"
    told = "the index alone, on the parent's weights: accepted with 80% of the target gain"
    assert ended.repairs[-1].sentence == told
    refusing = Gate()
    refusing.climbed(both, FAILED)
    assert refusing.tried[:2] == ["index", "interpolate-0.5"]


@pytest.mark.parametrize(
    "change", [None, ChangeCounts(added=0, overwritten=0, unchanged=2, forgotten=0, unknown=1)]
)
def test_an_index_that_did_not_change_is_no_repair(change: ChangeCounts | None) -> None:
    gate = Gate()
    gate.climbed(replace(plan(repair={"index": True}), documents_change=change), FAILED)
    assert gate.tried == []


def test_a_round_of_no_steps_has_no_weights_to_mend() -> None:
    gate = Gate()
    still = plan(steps=0, index={"forget": "key"}, repair=ALL)
    assert gate.climbed(still, FAILED) == FAILED
    assert gate.tried == []


@given(st.floats(0.0, 0.49), st.floats(0.0, 0.49))
def test_a_rerun_leaves_room_for_new_prompts(past: float, general: float) -> None:
    replay = careful(spec(replay={"past": past, "general": general})).replay
    assert replay.past + replay.general <= max(0.9, past + general) + 1e-9
    assert (replay.past == 0) == (past == 0)
    assert (replay.general == 0) == (general == 0)


# the campaign file


def test_switches_in_a_campaign_file() -> None:
    on = RepairConfig.model_validate({"interpolate": True, "distil": {"steps": 3}})
    assert on.interpolate == InterpolateConfig()
    assert on.distil == DistilConfig(steps=3)
    assert not on.rerun
    assert RepairConfig.model_validate({"interpolate": False}) == RepairConfig()


@pytest.mark.parametrize(
    "wrong",
    [{"interpolate": {"steps": 0}}, {"distil": {"share": 1.0}}, {"keep": 1.5}, {"merge": 1}],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RepairConfig.model_validate(wrong)


def test_there_is_no_straight_line_to_a_dora_adapter(tmp_path: Path) -> None:
    lora = {"dora": True, "serve": "merged"}
    spec = rounds({"repair": {"interpolate": True}})
    with pytest.raises(ValidationError, match="no straight line from the base to a DoRA adapter"):
        campaign(tmp_path, policy={"model": "demo://digits", "lora": lora}, rounds=spec)
    campaign(
        tmp_path, policy={"model": "demo://digits", "lora": {**lora, "merge": True}}, rounds=spec
    )


def test_defaults_switch_a_rung_for_all_rounds_and_a_round_for_itself(tmp_path: Path) -> None:
    config = campaign(
        tmp_path,
        defaults={"repair": {"interpolate": True, "rerun": True}},
        rounds=rounds({}, {"repair": {"interpolate": False}}),
        suites=[],
    )
    first, second = (spec.repair for spec in config.rounds)
    assert first.interpolate and first.rerun
    assert second.interpolate is None and second.rerun


def test_records_of_older_stores_are_read() -> None:
    """They call the description of a candidate ``told``."""
    step = {
        "rung": "distil", "candidate": "a" * 64, "look": 2, "outcome": "accepted", "kept": 0.9,
        "reasons": [],
    }  # fmt: skip
    old = repairs_of({"repairs": [{**step, "told": "distillation, 9 steps"}]})
    assert old[0].description == "distillation, 9 steps"
    written = with_repairs({}, old)
    assert written["repairs"][0]["description"] == "distillation, 9 steps"
    assert "told" not in written["repairs"][0] and repairs_of(written) == old
