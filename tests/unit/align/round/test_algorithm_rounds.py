"""Every algorithm goes through a whole round: real model, learner, store and gate, in this process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align.algorithms import ALGORITHMS, algorithm_class
from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.config.retention.registry import RETENTION
from align.data.demo import BASE_MODEL
from align.data.demo.world import demo_prompts
from rollouts.errors import UserError
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import (
    ENFORCE,
    Starter,
    Watcher,
    campaign,
    no_engine,
    raw_campaign,
    rounds,
)

ROUNDING = 1e-8
"""Size of a divergence of equal distributions whose two passes add their terms in another order."""

FILES = {
    "pairs.jsonl": lambda p, right, wrong: [{"prompt": p, "chosen": right, "rejected": wrong}],
    "ratings.jsonl": lambda p, right, wrong: [
        {"prompt": p, "completion": right, "label": True},
        {"prompt": p, "completion": wrong, "label": False},
    ],
    "demonstrations.jsonl": lambda p, right, wrong: [{"prompt": p, "completion": right}],
    "texts.jsonl": lambda p, right, wrong: [{"text": f"{p} {right}"}],
}
"""Files of the tiny world by what an algorithm reads."""

SPECS: dict[str, dict[str, Any]] = {
    **{name: {"algorithm": name} for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo")},
    **{name: {"algorithm": name} for name in ("rloo", "reinforce_pp", "rft", "dpo")},
    "ppo": {"algorithm": {"name": "ppo", "critic": {"model": "shared"}}},
    "copr": {"algorithm": "copr"},
    "copr_file": {"algorithm": {"name": "copr", "pairs": "file"}, "data": "pairs.jsonl"},
    "cppo": {"algorithm": {"name": "cppo", "critic": {"model": "shared"}}},
    "fpo": {"algorithm": {"name": "fpo", "pairs": "file"}, "data": "pairs.jsonl"},
    "ppo_own": {"algorithm": "ppo", "optimizer": {"epochs": 2, "mini_batches": 2}},
    "dpo_file": {"algorithm": {"name": "dpo", "pairs": "file"}, "data": "pairs.jsonl"},
    "kto_online": {"algorithm": {"name": "kto", "ratings": "online"}},
    "kto": {"algorithm": {"name": "kto", "ratings": "file"}, "data": "ratings.jsonl"},
    "sft": {"algorithm": "sft", "data": "demonstrations.jsonl"},
    "pretrain": {"algorithm": "pretrain", "data": "texts.jsonl"},
    "distill": {"algorithm": {"name": "distill", "teacher": f"model:{BASE_MODEL}"}},
    "distill_file": {
        "algorithm": {"name": "distill", "teacher": "base", "on_policy": False},
        "data": "demonstrations.jsonl",
    },
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    prompts = demo_prompts("demo://rev?n=200")
    for name, make in FILES.items():
        made = []
        for prompt in prompts:
            right = str(prompt.columns["answer"])
            made += make(prompt.text, right, " ".join(reversed(right.split())))
        rows = [row for row in made if row.get("chosen", "a") != row.get("rejected", "b")]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def spec_of(name: str, files: Path) -> dict[str, Any]:
    spec = {"steps": 2, **SPECS[name]}
    if "data" in spec:
        source = {"source": str(files / spec["data"]), "heldout": 0.3}
        spec = {"prompts": None, "rewards": [], **spec, "data": source}
    return spec


def run(folder: Path, *specs: dict[str, Any]) -> Ran:
    starter, watcher = Starter(), Watcher()
    config = campaign(folder, rounds=rounds(*specs))
    evidence = run_campaign(config, start_engine=starter, observer=watcher)
    return Ran(config=config, evidence=evidence, starter=starter, watcher=watcher)


def test_every_algorithm_is_here() -> None:
    named = {s["algorithm"] if isinstance(s["algorithm"], str) else s["algorithm"]["name"]
             for s in SPECS.values()}  # fmt: skip
    assert named | {"reward_model", "external"} == set(ALGORITHMS)


@pytest.mark.parametrize("name", SPECS)
def test_a_round_moves_the_policy_and_is_judged(name: str, files: Path, tmp_path: Path) -> None:
    ran = run(tmp_path, spec_of(name, files))
    (record,) = ran.evidence.ledger.rounds()
    assert record.state == "accepted"
    steps = ran.metrics(0, "round0")
    assert len(steps) == 2
    assert all(math.isfinite(value) for step in steps for value in step.values())
    moved = [step["grad_norm"] for step in steps]
    if name == "distill":  # The teacher is what the policy starts as.
        assert moved[0] < 1e-4
    else:
        assert max(moved) > 1e-3
    assert record.candidate != ran.evidence.base or name == "distill"


@pytest.mark.parametrize("name", ["dpo", "dpo_file", "ppo", "sft"])
def test_a_later_round_holds_the_earlier_ones_prompts(
    name: str, files: Path, tmp_path: Path
) -> None:
    """Whatever the later round learns from, past and general prompts are sampled and held."""
    first = {"prompts": "demo://sort?n=60"}
    later = spec_of(name, files)
    later["replay"] = {"general_prompts": "demo://general?n=40", "past": 0.4, "general": 0.2}
    ran = run(tmp_path, first, later)
    for step in ran.metrics(1, "round1"):
        assert step["kl/past/owner"] >= -ROUNDING
        assert step["kl/general/base"] >= -ROUNDING
        assert step["batch/past_tokens"] > 0
    assert ran.metrics(1, "round1")[-1]["kl/past/owner"] > 0.0


def test_a_round_after_one_of_a_file_replays_its_prompts(files: Path, tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        spec_of("dpo_file", files),
        spec_of("pretrain", files),
        {"prompts": "demo://sort?n=60", "replay": {"past": 0.5, "general": 0.0}, "steps": 2},
    )
    assert [r.state for r in ran.evidence.ledger.rounds()] == ["accepted"] * 3
    assert all(step["batch/past_tokens"] > 0 for step in ran.metrics(2, "round2"))


def test_the_suite_of_a_file_is_what_was_held_out(files: Path, tmp_path: Path) -> None:
    ran = run(tmp_path, spec_of("dpo_file", files), spec_of("sft", files))
    means = {(e.snapshot, e.suite): e for e in ran.evidence.ledger.evaluations()}
    pairs = means[ran.evidence.base, "round0"]
    assert 30 <= pairs.n <= 90
    assert 0.0 <= pairs.mean <= 1.0
    assert means[ran.evidence.base, "round1"].mean < 0.0  # Nats per token.


def test_a_reward_model_rewards_the_next_round_and_is_no_policy(
    files: Path, tmp_path: Path
) -> None:
    """Three rounds: a reward model from pairs, a policy that learns from it, one that holds both."""
    pairs = {"source": str(files / "pairs.jsonl"), "heldout": 0.3}
    judge = {
        "algorithm": "reward_model", "data": pairs, "prompts": None, "rewards": [], "steps": 3,
    }  # fmt: skip
    learned = {"name": "reward_model", "options": {"model": "round:round0"}}
    ran = run(tmp_path, judge, {"rewards": [learned], "steps": 1}, {"prompts": "demo://sort?n=60"})
    states = {r.name: r for r in ran.evidence.ledger.rounds()}
    assert [r.state for r in states.values()] == ["accepted"] * 3
    assert ran.evidence.accepted("reward_model") == {"round0": states["round0"].candidate}
    assert list(ran.evidence.accepted("policy")) == ["round1", "round2"]
    moves = [move.target for move in ran.evidence.ledger.alias_moves()]
    assert states["round0"].candidate not in moves
    assert "reward/reward_model" in ran.metrics(1, "round1")[0]
    assert ran.evidence.matrix().suites == ("general", "round1", "round2")
    for name in states:
        again, recorded = ran.evidence.recompute(name)
        assert again == recorded
    # The base was measured by the model as soon as there was one.
    assert ("round1", ran.evidence.base) in {
        (e.suite, e.snapshot) for e in ran.evidence.ledger.evaluations()
    }


def test_a_round_that_needs_a_refused_reward_model_says_so(files: Path, tmp_path: Path) -> None:
    pairs = {"source": str(files / "pairs.jsonl"), "heldout": 0.3}
    judge = {
        "algorithm": "reward_model", "data": pairs, "prompts": None, "rewards": [], "steps": 1,
        "optimizer": {"lr": 1e-9},
    }  # fmt: skip
    learned = {"name": "reward_model", "options": {"model": "round:round0"}}
    config = campaign(
        tmp_path,
        rounds=rounds(judge, {"rewards": [learned]}),
        gate=ENFORCE,
    )
    with pytest.raises(UserError, match="rewards names round:round0, which was rejected"):
        run_campaign(config, start_engine=Starter(), observer=Watcher())


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ({"name": "distill", "teacher": "round:later"}, "'round:later' names a round that"),
        ({"name": "distill", "teacher": "model:/nowhere"}, "no model folder"),
        ({"name": "ppo", "critic": {"model": "/nowhere"}}, "/nowhere"),
        ({"name": "ppo", "lambda": 1}, "did you mean 'lam'"),
    ],
)
def test_what_an_algorithm_cannot_use_is_said_before_anything_starts(
    algorithm: dict[str, Any], words: str, tmp_path: Path
) -> None:
    from align.config.file import load_campaign
    from tests.unit.campaigns import raw_campaign

    raw = raw_campaign(tmp_path, rounds=rounds({"algorithm": algorithm}))
    (tmp_path / "campaign.yaml").write_text(json.dumps(raw))
    with pytest.raises(UserError) as refused:
        run_campaign(
            load_campaign(tmp_path / "campaign.yaml").config,
            start_engine=no_engine,
            observer=Watcher(),
        )
    assert words in str(refused.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("dpo_file", "dpo_file"),
        ("kto", "kto"),
        ("dpo_file", "kto"),
        pytest.param("sft", "sft", marks=pytest.mark.slow),
        ("pretrain", "sft"),
        pytest.param("sft", "pretrain", marks=pytest.mark.slow),
    ],
)
def test_a_round_learns_again_from_the_examples_of_an_earlier_one(
    first: str, second: str, files: Path, tmp_path: Path
) -> None:
    """Half of each step are the earlier round's own training rows, under its snapshot's KL term."""
    from align.data.replay.examples import OwnedExamples

    earlier, later = spec_of(first, files), spec_of(second, files)
    later["data"] = {**later["data"], "source": str(_other(files, second))}
    later["replay"] = {"past": 0.0, "general": 0.0, "examples": 0.5}
    ran = run(tmp_path, earlier, {"prompts": "demo://sort?n=60"}, later)
    assert [r.state for r in ran.evidence.ledger.rounds()] == ["accepted"] * 3
    steps = ran.metrics(2, "round2")
    assert all(step["batch/past_tokens"] > 0 for step in steps)
    assert all(step["kl/past/owner"] >= -ROUNDING for step in steps)
    (path,) = [
        p for p in ran.evidence.store.paths.stored_examples()
        if OwnedExamples.load(p).round == "round0"
    ]  # fmt: skip
    assert ran.evidence.store.files.hash_of(path) is not None
    kept = OwnedExamples.load(path)
    assert 0 < len(kept.units) <= 256


def _other(files: Path, name: str) -> Path:
    """Write a file with other prompts, since prompts of both rounds are left to the later one."""
    path = files / f"other-{SPECS[name]['data']}"
    made = []
    for prompt in demo_prompts("demo://sort?n=200"):
        right = str(prompt.columns["answer"])
        made += FILES[SPECS[name]["data"]](prompt.text, right, " ".join(reversed(right.split())))
    rows = [row for row in made if row.get("chosen", "a") != row.get("rejected", "b")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_replayed_examples_are_never_held_out_and_come_again_after_a_stop(
    files: Path, tmp_path: Path
) -> None:
    """A round that is stopped in its middle takes the steps that a straight run takes."""
    from align.data.replay.examples import names_of

    earlier, later = spec_of("dpo_file", files), spec_of("dpo_file", files)
    later["data"] = {**later["data"], "source": str(_other(files, "dpo_file"))}
    later |= {
        "replay": {"past": 0.0, "general": 0.0, "examples": 0.5},
        "steps": 4,
        "checkpoint_every": 1,
    }
    straight = run(tmp_path / "straight", earlier, later)
    config = campaign(tmp_path / "stopped", rounds=rounds(earlier, later))
    with pytest.raises(RuntimeError, match="stopped"):
        stopping = Watcher(stop_at=("round1", 1))
        run_campaign(config, start_engine=Starter(), observer=stopping)
    stopped = run(tmp_path / "stopped", earlier, later)
    ends = [ran.evidence.accepted("policy")["round1"] for ran in (straight, stopped)]
    assert ends[0] == ends[1]
    inputs = stopped.config
    from align.round.inputs import load_inputs

    loaded = load_inputs(inputs)
    for name, units in loaded.examples.items():
        assert not any(names_of(unit) & loaded.held_examples for unit in units), name


MATERIALS = ("ppo_own", "dpo_file", "kto", "sft", "pretrain", "distill")
"""An algorithm for each kind of data, one with a critic and one with a teacher."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MATERIALS)
@pytest.mark.parametrize("method", RETENTION)
def test_a_method_is_refused_when_the_file_is_read_or_goes_through_two_rounds(
    method: str, name: str, files: Path, tmp_path: Path
) -> None:
    """None fails late. A method of the defaults may do nothing in some rounds."""
    raw = raw_campaign(tmp_path, rounds=rounds(*[{**spec_of(name, files), "steps": 1}] * 2))
    entry = {"name": method, **({"lambda": 50.0} if method == "ewc" else {})}
    raw["defaults"]["retention"] = [entry] if method == "kl_anchors" else ["kl_anchors", entry]
    if RETENTION[method].needs_fresh_adapter:
        raw["policy"]["lora"] = {"rank": 2, "merge": True}
    if (
        method == "copr"
        and not algorithm_class(name.removesuffix("_file").removesuffix("_own")).ranks_answers
    ):
        with pytest.raises(ValidationError, match="copr holds ranked answers"):
            CampaignConfig.model_validate(raw)
        return
    config = CampaignConfig.model_validate(raw)
    evidence = run_campaign(config, start_engine=Starter(), observer=Watcher())
    assert [record.state for record in evidence.ledger.rounds()] == ["accepted", "accepted"]
