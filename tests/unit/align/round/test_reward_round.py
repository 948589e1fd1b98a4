"""A reward-model round from end to end, and the gate it has to pass; store, ledger and learner are real."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms.preference.reward_model import RewardModel
from align.algorithms.rows import Row
from align.config.campaign import (
    GateConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
    SamplingConfig,
)
from align.data.demo.tokenizer import build_tokenizer
from align.data.examples.holdout import divide, name_of, parted
from align.data.examples.stream import ExampleStream, Unit
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults
from align.gate.reward_models import check_rule, decide_pairs, measure_pairs, pair_inputs
from align.gate.statistics.significance import normal_cdf
from align.gate.suites.kinds.answers import AnswerSuite
from align.gate.suites.kinds.pairs import PairSuite
from align.gate.verdict import Verdict
from align.round.reward_round import run_reward_round, start_of
from align.store.ledger.ledger import Ledger
from align.store.snapshots.snapshots import Provenance, SnapshotStore
from align.store.store import Store
from rewards.library.reward_model import load_scorer, reward_model
from rollouts.errors import UserError
from rollouts.types import Prompt
from tests.unit.tiny import save_model

TOKENIZER = build_tokenizer()
SETTINGS = RoundSettings(
    algorithm=RewardModel(),
    sampling=SamplingConfig(prompts_per_step=16, group_size=2),
    optimizer=OptimizerConfig(lr=3e-3),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("models") / "base", 0)
    TOKENIZER.save_pretrained(folder)
    return folder


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False).input_ids)


def unit(prompt: str, chosen: str, rejected: str) -> Unit:
    rows = tuple(
        Row(
            prompt_ids=ids(prompt), completion_ids=(*ids(answer), TOKENIZER.eos_token_id),
            advantage=advantage, source="new",
        )
        for answer, advantage in ((chosen, 1.0), (rejected, -1.0))
    )  # fmt: skip
    return Unit(
        id=f"{prompt}|{chosen}|{rejected}", prompt=Prompt(id=prompt, text=prompt), rows=rows
    )


def units(num_units: int, *, longer: bool = False) -> list[Unit]:
    """Pairs whose chosen answer has sevens where the other has ones; or where it is only longer."""
    rng = random.Random(0)

    def text(digits: str, length: int) -> str:
        return " ".join(rng.choices(digits, k=length))

    found = []
    for number in range(num_units):
        prompt = " ".join(str(number))
        short, long = rng.randint(2, 4), rng.randint(5, 8)
        if longer:
            sides = text("234", long), text("234", short)
        else:
            lengths = rng.sample([short, long], k=2)
            sides = text("777234", lengths[0]) + " 7", text("111234", lengths[1]) + " 1"
        found.append(unit(prompt, *sides))
    return found


def suite_of(held: Sequence[Unit], name: str = "taste") -> PairSuite:
    return PairSuite(
        name=name, role="gate", margin=0.05, budget=0.1, target_of=name,
        sequences=tuple((row.prompt_ids, row.completion_ids) for u in held for row in u.rows),
        sequence_ids=tuple(u.id for u in held),
    )  # fmt: skip


class Round:
    """A campaign of one round in a folder of its own."""

    def __init__(self, folder: Path, base: Path, given: Sequence[Unit], **gate: Any) -> None:
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
        self.ledger.open_campaign("tastes", {"name": "tastes", "rounds": [{"name": "taste"}]}, "h")
        self.store = SnapshotStore(folder)
        start = self.store.publish(
            lambda to: shutil.copytree(base, to, dirs_exist_ok=True) and None,
            Provenance(kind="model", base="tiny"),
        )
        self.ledger.record_snapshot(start)
        self.ledger.set_alias_initial("production", start.id)
        self.base = start.id
        config: Any = SimpleNamespace(policy=PolicyConfig(model="tiny"), gate=GateConfig(**gate))
        self.evidence = Evidence(store=Store(folder, self.ledger), config=config)
        self.steps: list[Mapping[str, float]] = []
        rows: Any = SimpleNamespace(names=[name_of(unit) for unit in given], clashes=lambda _: ())
        learn, held = parted(given, divide(rows, 0.3).held_out)
        self.session: Any = SimpleNamespace(
            store=SimpleNamespace(snapshots=self.store), ledger=self.ledger,
            evidence=self.evidence, base=start.id, config=config,
            inputs=SimpleNamespace(
                encoder=SimpleNamespace(tokenizer=TOKENIZER), suites=[suite_of(held)]
            ),
            log=lambda plan, step, metrics: self.steps.append(metrics),
            keep_times=lambda index, name, attempt: None,
            provenance=lambda plan: Provenance(
                kind="model", parent=plan.parent, round="taste", seeds={"round": plan.seed}
            ),
        )  # fmt: skip
        self.plan: Any = SimpleNamespace(
            index=0, attempt=self.ledger.begin_round(0, "taste", start.id), parent=start.id, seed=7,
            spec=SimpleNamespace(
                name="taste", steps=25, algorithm=SETTINGS.algorithm, sampling=SETTINGS.sampling,
                optimizer=SETTINGS.optimizer,
            ),
            mixture=SimpleNamespace(examples=ExampleStream(learn, 7)),
            documents=None, documents_change=None,
        )  # fmt: skip

    def run(self) -> Any:
        return run_reward_round(self.plan, self.session)


@pytest.fixture(scope="module")
def accepted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Round, Any]:
    round = Round(tmp_path_factory.mktemp("accepted"), base, units(200))
    return round, round.run()


# the round


def test_a_model_that_learnt_the_taste_is_accepted(accepted: tuple[Round, Any]) -> None:
    round, outcome = accepted
    (record,) = round.ledger.rounds()
    assert (record.state, record.candidate) == ("accepted", outcome.candidate)
    assert outcome.verdict.outcome == "accepted"
    assert outcome.verdict.reasons == ()
    assert [check.snapshot for check in outcome.verdict.checks] == ["length", "chance"]
    assert len(round.steps) == 25
    assert round.steps[-1]["pairs/accuracy"] > 0.9


def test_production_stays_what_it_was(accepted: tuple[Round, Any]) -> None:
    round, outcome = accepted
    assert round.ledger.alias("production") == round.base != outcome.candidate
    assert len(round.ledger.alias_moves()) == 1


def test_the_snapshot_is_a_reward_that_scores_text(accepted: tuple[Round, Any]) -> None:
    round, outcome = accepted
    snapshot = round.store.open(outcome.candidate)
    assert snapshot.kind == "reward"
    assert snapshot.manifest.provenance.parent == round.base
    good, bad = reward_model(["4 2"] * 2, ["7 7 3 7", "1 1 3 1"], model=str(snapshot.path))
    assert good > bad + 0.5
    config = load_scorer(snapshot.path).model.config
    (suite,) = round.session.inputs.suites
    held = load_scorer(snapshot.path).scores([(*p, *c) for p, c in suite.sequences], batch_size=8)
    expected = (fmean(held), pstdev(held))
    assert (config.reward_mean, config.reward_std) == pytest.approx(expected, rel=1e-4)


def test_the_verdict_follows_from_the_stored_items(accepted: tuple[Round, Any]) -> None:
    round, outcome = accepted
    (record,) = round.ledger.rounds()
    recorded = Verdict.from_dict(record.report or {})
    again = decide_pairs(recorded.inputs, round.evidence.locate)
    assert again == recorded == outcome.verdict
    kept = {e.suite: e for e in round.ledger.evaluations(outcome.candidate)}
    assert kept.keys() == {"taste", "taste.length"}
    assert kept["taste"].mean > 0.9
    assert 0.2 < kept["taste.length"].mean < 0.8


def test_an_undisturbed_round_ends_in_the_same_bytes(
    accepted: tuple[Round, Any], base: Path, tmp_path: Path
) -> None:
    assert Round(tmp_path, base, units(200)).run().candidate == accepted[1].candidate


def test_a_model_that_only_learnt_length_is_rejected(base: Path, tmp_path: Path) -> None:
    round = Round(tmp_path, base, units(120, longer=True))
    outcome = round.run()
    (record,) = round.ledger.rounds()
    assert record.state == "rejected"
    length, chance = outcome.verdict.checks
    assert (length.outcome, chance.outcome) == ("not_improved", "passed")
    (reason,) = outcome.verdict.reasons
    assert "choosing the longer answer is right about 100.0%" in reason
    assert reason.endswith("must be better: not improved")
    assert round.ledger.alias("production") == round.base


def test_an_observing_gate_accepts_and_says_so(base: Path, tmp_path: Path) -> None:
    round = Round(tmp_path, base, units(120, longer=True), mode="observe")
    verdict = round.run().verdict
    assert (verdict.accepted, verdict.outcome) == (True, "rejected")
    assert verdict.reasons[-1] == "accepted all the same: the gate only observes"
    assert round.ledger.rounds()[0].state == "accepted"
    assert round.ledger.alias("production") == round.base


def test_a_round_over_an_adapter_begins_from_the_base(base: Path, tmp_path: Path) -> None:
    round = Round(tmp_path, base, units(40))
    adapter = round.store.publish(
        lambda to: (to / "adapter_config.json").write_text("{}") and None,
        Provenance(kind="adapter"),
    )
    round.plan.parent, round.plan.spec.steps = adapter.id, 1
    assert start_of(round.plan, round.session) == round.store.open(round.base).path


def test_a_suite_of_prompts_does_not_measure_a_reward_model(base: Path, tmp_path: Path) -> None:
    round = Round(tmp_path, base, units(40))
    round.session.inputs.suites = [
        AnswerSuite(name="taste", role="gate", margin=0.05, budget=0.1, target_of="taste")
    ]
    with pytest.raises(UserError, match="measured on held-out pairs"):
        round.run()
    assert round.steps == []


# the gate


def results(values: Sequence[float], suite: str = "taste") -> ItemResults:
    n = len(values)
    return ItemResults(
        suite=suite, suite_hash="h", snapshot="s", item_ids=tuple(map(str, range(n))),
        values=tuple(values), statuses=("scored",) * n, finishes=("stop",) * n,
    )  # fmt: skip


def test_chance_is_the_test_that_right_and_wrong_are_equally_likely() -> None:
    own = results([1.0] * 60 + [0.0] * 40)
    check = check_rule(own, results([0.5] * 100), "chance", 0.05)
    assert (check.lost, check.won, check.n) == (40, 60, 100)
    assert check.difference == pytest.approx(0.1)
    assert check.p == pytest.approx(normal_cdf(-20 / math.sqrt(100)))
    low, high = check.interval
    assert 0.0 < low < 0.1 < high < 0.2
    assert check.outcome == "passed"
    assert "right about 60.0% of 100 held-out pairs, chance is 50.0%" in check.sentence


def test_length_is_compared_pair_by_pair() -> None:
    own = results([1.0] * 45 + [0.0] * 5 + [1.0] * 50)
    length = results([0.0] * 45 + [1.0] * 5 + [1.0] * 50)
    check = check_rule(own, length, "length", 0.05)
    assert (check.lost, check.won) == (5, 45)
    assert check.p == pytest.approx(normal_cdf(-40 / math.sqrt(50)))
    assert "the longer answer is right about 55.0%" in check.sentence


def test_equal_lengths_are_worth_one_half() -> None:
    held = [unit("1", "7 7", "1"), unit("2", "7", "1 1"), unit("3", "7", "1")]
    found = measure_pairs(suite_of(held), "s", [2.0, 1.0, 1.0, 2.0, 1.0, 1.0])
    assert found["taste"].values == (1.0, 0.0, 0.0)
    assert found["taste.length"].values == (1.0, 0.0, 0.5)
    assert found["taste"].suite_hash != found["taste.length"].suite_hash


def test_a_few_pairs_show_nothing_and_say_how_many_would() -> None:
    check = check_rule(results([1.0, 1.0, 1.0, 0.0]), results([0.5] * 4), "chance", 0.05)
    assert check.outcome == "too_few_items"
    assert check.needed is not None
    assert check.needed > 4
    assert f"about {check.needed} needed" in check.sentence


@given(st.integers(1, 200))
def test_a_coin_is_never_accepted_when_it_is_no_better_than_a_coin(half: int) -> None:
    own = results([1.0] * half + [0.0] * half)
    check = check_rule(own, results([0.5] * 2 * half), "chance", 0.05)
    assert check.outcome == "not_improved"
    assert check.p == pytest.approx(0.5)


def test_alpha_is_spread_over_the_looks(tmp_path: Path) -> None:
    held = [unit(str(i), "7", "1 1") for i in range(40)]
    suite = suite_of(held)
    inputs = pair_inputs(suite, "s", GateConfig(alpha=0.05, campaign_rounds=5), looks=1)
    found = measure_pairs(suite, "s", [1.0, 0.0] * 40)
    by_hash = {items.suite_hash: items for items in found.values()}

    def locate(snapshot: str, suite_hash: str) -> Path:
        path = tmp_path / f"{suite_hash}.parquet"
        by_hash[suite_hash].save(path)
        return path

    verdict = decide_pairs(inputs, locate)
    assert [check.alpha for check in verdict.checks] == [0.01, 0.01]
    assert verdict.accepted
    assert Verdict.from_json(verdict.to_json()) == verdict
    later = decide_pairs(pair_inputs(suite, "s", inputs.gate, looks=10), locate)
    assert [check.alpha for check in later.checks] == [0.005, 0.005]
