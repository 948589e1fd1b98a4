"""Settings that would have no effect, or another one than they say, are refused in words."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from align.algorithms import ALGORITHMS
from align.algorithms.rows import Batch
from align.config.campaign import CampaignConfig
from align.config.data import PromptsConfig
from align.config.file import load_campaign
from align.data.replay.contributions import replay_lines
from launch.cli import app
from rollouts.errors import UserError
from tests.unit.align.learner.test_learner import make, settings
from tests.unit.campaigns import raw_campaign, rounds
from tests.unit.tiny import row, save_model

JUDGE = {"algorithm": "reward_model", "data": "pairs.jsonl", "prompts": None, "rewards": []}
EXTERNAL = {"name": "external", "command": ["true"]}
SFT = {"algorithm": "sft", "data": "rows.jsonl"}
PAIRS = {"name": "dpo", "pairs": "file"}
DROPOUT = {"model": "demo://digits", "lora": {"rank": 4, "dropout": 0.1, "serve": "merged"}}


def valid(folder: Path, *specs: dict[str, Any], **changes: Any) -> CampaignConfig:
    raw = raw_campaign(folder, rounds=rounds(*specs), **changes)
    config = CampaignConfig.model_validate(raw)
    # What the ledger writes down is read back.
    assert CampaignConfig.model_validate(config.model_dump(mode="json")) == config
    return config


def refusal(folder: Path, *specs: dict[str, Any], **changes: Any) -> str:
    """Through the command's reader, so that nothing ends in a traceback."""
    path = folder / "campaign.yaml"
    path.write_text(json.dumps(raw_campaign(folder, rounds=rounds(*specs), **changes)))
    with pytest.raises(UserError) as caught:
        load_campaign(path)
    return str(caught.value)


# Which algorithm


@pytest.mark.parametrize("named", ["dapo", {"name": "dapo", "clip_low": 0.1}])
def test_settings_of_a_round_belong_to_the_algorithm_of_defaults(
    tmp_path: Path, named: Any
) -> None:
    defaults = raw_campaign(tmp_path)["defaults"] | {"algorithm": named}
    config = valid(
        tmp_path, {"algorithm": {"clip_high": 0.3}}, {"algorithm": "grpo"}, defaults=defaults
    )
    first, second = (spec.algorithm for spec in config.rounds)
    low = 0.2 if named == "dapo" else 0.1
    assert first == ALGORITHMS["dapo"].model_validate({"clip_high": 0.3, "clip_low": low})
    assert second == ALGORITHMS["grpo"]()


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ({"clip_high": 0.3}, "settings of no algorithm; write which one as name"),
        ({"name": ["a"]}, "no algorithm ['a']; Known: cispo"),
        ({"name": None}, "no algorithm None"),
    ],
)
def test_an_algorithm_without_a_name(tmp_path: Path, algorithm: Any, words: str) -> None:
    assert words in refusal(tmp_path, {"algorithm": algorithm})


@pytest.mark.parametrize(
    ("algorithm", "nearest", "known"),
    [
        ({"name": "dpo", "clip_high": 1}, "choose", "dpo"),
        ({"name": "rloo", "scale": "none"}, "", "rloo"),
        ({"name": "ppo", "lambda": 1}, "did you mean 'lam'?", "ppo"),
        ({"name": "ppo", "critic": {"modle": "shared"}}, "did you mean 'model'?", None),
        ({"name": "grpo", "clip": 1}, "clip_", "grpo"),
    ],
)
@pytest.mark.parametrize("in_defaults", [False, True])
def test_an_option_that_the_algorithm_does_not_have(
    tmp_path: Path, algorithm: dict[str, Any], nearest: str, known: str | None, in_defaults: bool
) -> None:
    """Known are its own options: those of others are no help."""
    if in_defaults:
        defaults = {"algorithm": algorithm["name"]}
        message = refusal(
            tmp_path,
            {"algorithm": {k: v for k, v in algorithm.items() if k != "name"}},
            defaults=defaults,
        )
    else:
        message = refusal(tmp_path, {"algorithm": algorithm})
    (line,) = [line for line in message.splitlines() if "unknown key" in line]
    assert nearest in line
    fields = (
        ALGORITHMS[known].model_fields
        if known
        else ("model", "lr", "warmup_steps", "shared_gradient")
    )
    assert line.partition("Known: ")[2] == ", ".join(sorted(fields))


def test_an_override_below_an_algorithms_name_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(json.dumps(raw_campaign(tmp_path, rounds=rounds({"algorithm": "dapo"}))))
    config = load_campaign(path, ["rounds.0.algorithm.clip_high=0.4"]).config
    assert config.rounds[0].algorithm == ALGORITHMS["dapo"].model_validate({"clip_high": 0.4})


# Without effect


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"algorithm": {"name": "distill", "teacher": "base", "beta": 0.1}}, "set divergence to jsd"),
        ({"algorithm": {"name": "dpo", "smoothing": "robust"}}, "label_smoothing is 0"),
        ({"algorithm": {**PAIRS, "choose": "all"}}, "choose says how samples are paired"),
        ({"algorithm": {**PAIRS, "max_pairs": 2}}, "max_pairs says how samples are paired"),
        ({"algorithm": {**PAIRS, "margin": 0.5}}, "margin says how samples are paired"),
        ({"algorithm": {"name": "dpo", "max_pairs": 2}}, "set choose to all"),
        ({"algorithm": "dpo", "importance": {"cap": 3.0}}, "rounds.0.importance: dpo does not use it"),
        ({"algorithm": "kto", "importance": {"level": "none"}}, "kto does not use it"),
        ({"algorithm": "rft", "importance": {"limit": "mask"}}, "rft does not use it"),
        ({**JUDGE, "replay": {"past": 0.5}}, "rounds.0.replay: reward_model does not use it"),
        ({**JUDGE, "anchors": {"new": {"to": "base", "beta": 1}}}, "the policy does not move"),
        ({**JUDGE, "sampling": {"max_staleness": 1}}, "rounds.0.sampling.max_staleness"),
        ({**JUDGE, "checkpoint_every": 2}, "after a stop it starts over"),
    ],
)  # fmt: skip
def test_what_an_algorithm_does_not_read(tmp_path: Path, spec: Any, words: str) -> None:
    assert words in refusal(tmp_path, spec)


def test_what_is_set_for_all_rounds_may_concern_the_others_only(tmp_path: Path) -> None:
    defaults = {"checkpoint_every": 2, "importance": {"cap": 3.0}, "replay": {"past": 0.5}}
    config = valid(tmp_path, JUDGE, {"algorithm": "dpo"}, {}, defaults=defaults)
    assert [spec.checkpoint_every for spec in config.rounds] == [2, 2, 2]


@pytest.mark.parametrize("algorithm", ["dpo", "kto", "rft", {"name": "distill", "teacher": "base"}])
def test_losses_without_weights_learn_from_older_samples_as_they_are(
    tmp_path: Path, algorithm: Any
) -> None:
    stale = {"sampling": {"max_staleness": 1}}
    valid(tmp_path, {"algorithm": algorithm, **stale})
    none = {"importance": {"level": "none"}}
    valid(tmp_path, {"algorithm": algorithm, **stale}, defaults=none)
    assert "count as the learner's own" in refusal(tmp_path, stale, defaults=none)


@pytest.mark.parametrize(("algorithm", "weighs"), [("grpo", True), ("rft", False)])
def test_weights_are_reported_where_they_are_used(
    tmp_path: Path, algorithm: str, weighs: bool
) -> None:
    models = {"base": save_model(tmp_path / "base")}
    training = make(models, tmp_path, settings(algorithm=ALGORITHMS[algorithm]()))
    older = [replace(row((1, 2), (3, 4), 1.0), policy="older"), replace(row(), policy="older")]
    metrics = training.update(Batch(rows=tuple(older)))
    assert ("importance/mean_abs_shift" in metrics) is weighs


# Anchors and numbers


def held(source: str, **fields: Any) -> dict[str, Any]:
    return {"anchors": {source: {"to": "base", "beta": 1.0, **fields}}}


TWICE = {"anchors": {"new": [{"to": "base", "beta": 1}, {"to": "base", "beta": 2}]}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (held("new", beta=0), "anchors.new: their total weight is 0"),
        (held("past", beta=0.0), "write [] for none"),
        (TWICE, "two anchors to 'base'"),
        (held("new", target=0.1, bounds=[2, 1]), "got 2 and 1; swap them"),
        (held("new", target=0.1, bounds=[0, 1]), "bounds.0"),
        (held("new", rate=0.5), "set target, or remove rate"),
        (held("new", beta="inf"), "finite number"),
        (held("new", beta="nan"), "finite number"),
        (held("new", estimator="forward"), "those of new prompts; use full"),
        (held("past", estimator="forward"), "those of past prompts; use full"),
        (held("general", estimator="forward"), "general_answers to stored"),
        ({"algorithm": "dpo", **held("new", estimator="k3")}, "remove estimator"),
        ({"algorithm": "kto", **held("new", target=0.1)}, "remove target"),
        (
            {"optimizer": {"betas": [2, -1]}},
            "optimizer.betas.0: expected a number of at least 0",
        ),
        ({"optimizer": {"betas": [0.9, -1]}}, "optimizer.betas.1"),
        ({"algorithm": {"name": "dpo", "beta": "nan"}}, "finite number"),
    ],
)
def test_anchors_and_numbers_that_mean_nothing(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    assert words in refusal(tmp_path, settings)


def test_forward_is_for_answers_that_an_anchor_or_a_file_wrote(tmp_path: Path) -> None:
    forward = {"to": "base", "beta": 1.0, "estimator": "forward"}
    stored = {"general_prompts": "demo://general", "general_answers": "stored"}
    valid(tmp_path, {"anchors": {"general": forward}, "replay": stored})
    valid(tmp_path, {**SFT, "anchors": {"new": forward}})


def test_one_snapshot_may_hold_several_classes(tmp_path: Path) -> None:
    base = {"to": "base", "beta": 1.0}
    valid(tmp_path, {"anchors": {"new": base, "past": base, "general": base}})


# Dropout


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        (({},), "rounds.0: policy.lora.dropout is 0.1 and the round learns from its own samples"),
        (({"algorithm": "dpo"},), "set policy.lora.dropout to 0"),
        ((SFT, SFT), "rounds.1: policy.lora.dropout is 0.1 and the round samples answers"),
        (({**SFT, "replay": {"general_prompts": "demo://general"}},), "rounds.0: policy.lora"),
    ],
)
def test_dropout_where_engines_sample(
    tmp_path: Path, specs: tuple[dict[str, Any], ...], words: str
) -> None:
    assert words in refusal(tmp_path, *specs, policy=DROPOUT, defaults={})


def test_dropout_where_files_teach(tmp_path: Path) -> None:
    valid(tmp_path, SFT, {**SFT, "replay": {"past": 0.0}}, policy=DROPOUT, defaults={})
    with pytest.raises(ValidationError, match=r"policy\.lora\.dropout"):
        valid(tmp_path, SFT, {}, policy=DROPOUT, defaults={})


# What the plan says


def test_the_plan_notes_what_a_reward_model_does_not_share(tmp_path: Path) -> None:
    from align.report.forecast.check import notes_of

    lora = {"model": "demo://digits", "lora": {"rank": 4}, "threads": 2}
    (line,) = notes_of(valid(tmp_path, JUDGE, {}, policy=lora))
    assert line.startswith("reward models (round0) learn all their weights in one process")
    assert "policy.lora does not apply" in line
    assert not [*notes_of(valid(tmp_path, {}, policy=lora))]
    assert not [*notes_of(valid(tmp_path, JUDGE))]


def test_keel_plan_prints_the_notes(tmp_path: Path) -> None:
    digits = [{"prompt": f"rev _ {i} {j} =", "chosen": f"{j} {i}", "rejected": f"{i} {j}"}
              for i in range(6) for j in range(6) if i != j]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in digits))
    data = {"source": str(tmp_path / "pairs.jsonl"), "heldout": 0.3}
    policy = {"model": "demo://digits", "lora": {"rank": 4}}
    raw = raw_campaign(tmp_path, rounds=rounds({**JUDGE, "data": data}), policy=policy)
    (tmp_path / "campaign.json").write_text(json.dumps(raw))
    command = ["plan", str(tmp_path / "campaign.json")]
    run = CliRunner().invoke(app, command, catch_exceptions=False)
    assert run.output.count("policy.lora does not apply to them") == 1
    assert "round0: 30 rows gave 30 pairs" in run.output


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("source", ["new", "past", "general"])
def test_sampled_estimators_need_weights_for_older_samples(
    tmp_path: Path, estimator: str, source: str
) -> None:
    held = {"anchors": {source: {"to": "base", "beta": 1.0, "estimator": estimator}}}
    stale = {"sampling": {"max_staleness": 1}}
    told = refusal(tmp_path, {"algorithm": "rft", **held, **stale})
    assert f"anchors.{source}: estimator {estimator}" in told and "use full" in told
    valid(tmp_path, {"algorithm": "rft", **held})
    valid(tmp_path, {"algorithm": "grpo", **held, **stale})
    exact = {"anchors": {source: {"to": "base", "beta": 1.0, "estimator": "full"}}}
    valid(tmp_path, {"algorithm": "rft", **exact, **stale})


# Which replay


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (
            [{}, {"replay": {"draw": "age", "past": 0}}],
            r"rounds.1.replay.draw is age.* replay.past is 0; raise replay.past, or remove draw",
        ),
        (
            [{**SFT, "prompts": None, "rewards": []}, {"replay": {"draw": "mastery"}}],
            r"rounds.1.replay.draw is mastery.* no round before 'round1' has rewards; use age",
        ),
        (
            [{}, {**JUDGE, "replay": {"draw": "reservoir"}}],
            "rounds.1.replay: reward_model does not use it",
        ),
        (
            [
                {},
                {"algorithm": EXTERNAL, "replay": {"draw": "age"}},
            ],
            "external trains in its own way and replays nothing",
        ),
        (
            [{}, {"algorithm": EXTERNAL, "replay": {"answers": {}}}],
            "rounds.1.replay.answers: external trains in its own way, and its loss",
        ),
        (
            [{"algorithm": EXTERNAL, "replay": {"pretraining": "texts.jsonl"}}],
            "rounds.0.replay.pretraining: external trains in its own way",
        ),
        (
            [{**SFT, "prompts": None, "rewards": []}, {"replay": {"answers": {"share": 0.2}}}],
            "rounds.1.replay.answers: by reward .* no round before 'round1' has any; set by: confidence",
        ),
        ([{}, {**JUDGE, "replay": {"answers": {}}}], "reward_model does not use it"),
        (
            [{"replay": {"pretraining": "inbox://x"}}],
            "inbox://x holds no texts; name a file of texts",
        ),
        ([{"replay": {"pretraining": "demo://rev"}}], "demo://rev holds no texts"),
        ([{"replay": {"answers": {"keep": 0}}}], "keep"),
    ],
)
def test_replay_that_would_do_nothing_is_refused(
    specs: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    assert re.search(message, refusal(tmp_path, *specs))


def test_a_draw_of_defaults_is_for_the_rounds_that_can_use_it(tmp_path: Path) -> None:
    defaults = raw_campaign(tmp_path)["defaults"]
    defaults["replay"]["draw"] = {"name": "mastery", "floor": 0.2}
    config = valid(
        tmp_path,
        {**SFT, "prompts": None, "rewards": []},
        {},
        {"replay": {"past": 0}},
        {"replay": {"draw": {"name": "mastery", "recent": 1}}},
        defaults=defaults,
    )
    assert config.rounds[3].replay.draw.model_dump() == {
        "name": "mastery", "floor": 0.2, "recent": 1.0,
    }  # fmt: skip
    lines = replay_lines(config.rounds, {})
    assert lines == [
        "round round0: replay.past 0.2 is drawn by mastery, once an earlier round is accepted",
        "round round1: replay.past 0.2 is drawn by mastery (floor 0.2, recent 0.5) over prompts of round0; "
        "without rewards, so of success 0.5: round0",
        "round round3: replay.past 0.2 is drawn by mastery (floor 0.2, recent 1.0) over prompts of round0, "
        "round1, round2; without rewards, so of success 0.5: round0",
    ]


def test_rounds_that_store_no_prompts_are_not_said_to_be_replayed(tmp_path: Path) -> None:
    defaults = raw_campaign(tmp_path)["defaults"]
    defaults["replay"] |= {"buffer": 0, "draw": "age", "answers": {"by": "confidence"}}
    nothing = "replay.buffer of earlier rounds is 0, so that they store none"
    assert replay_lines(valid(tmp_path, {}, {}, defaults=defaults).rounds, {}) == [
        "round round0: replay.past 0.2 is drawn by age, once an earlier round is accepted",
        f"round round1: replays no prompts: {nothing}",
        f"round round1: replay.answers does nothing: {nothing}",
    ]
    del defaults["replay"]["draw"], defaults["replay"]["answers"]
    defaults["replay"]["synthesis"] = {"count": 8}
    assert replay_lines(valid(tmp_path, {}, {}, defaults=defaults).rounds, {}) == [
        "round round1: replay.synthesis 8: its parent writes the prompts that stand for round0; none are "
        "stored",
    ]


@pytest.mark.parametrize("kwargs", [{}, {"thinking": True}, {"nested": {"a": [1]}, "flag": False}])
def test_rounds_are_grouped_by_their_prompts(kwargs: dict[str, Any]) -> None:
    """Whatever variables of a template they state, and in which order."""
    first = PromptsConfig(source="demo://rev", chat_template_kwargs=kwargs)
    second = PromptsConfig(
        source="demo://rev", chat_template_kwargs=dict(reversed(list(kwargs.items())))
    )
    assert {first: "first"}[second] == "first"
    assert PromptsConfig(source="demo://rev", chat_template_kwargs={"other": 1}) not in {first}
