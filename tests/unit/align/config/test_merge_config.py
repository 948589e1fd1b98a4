"""The setting ``merge`` of a campaign file: spellings, inheritance, hashes, refusals, what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align.config.campaign import CampaignConfig
from align.config.mergers.settings import HMAMergeConfig, SlerpMergeConfig, TiesMergeConfig
from align.report.forecast.check import check_campaign
from align.report.forecast.forecast import forecast
from align.store.changes.earlier_versions import as_read
from rollouts.errors import UserError
from tests.unit.align.config.test_retention_config import made
from tests.unit.campaigns import campaign, raw_campaign, rounds


def test_a_name_is_short_for_its_defaults() -> None:
    config = made({}, {"merge": "slerp"}, {"merge": {"name": "slerp", "share": 0.5}})
    assert config.rounds[0].merge == config.rounds[1].merge == SlerpMergeConfig()


def test_a_round_changes_the_merger_of_the_defaults() -> None:
    config = made(
        {"merge": {"name": "ties", "scale": 2.0}}, {"merge": {"density": 0.1}}, {"merge": "hma"}
    )
    assert config.rounds[0].merge == TiesMergeConfig(scale=2.0, density=0.1)
    assert config.rounds[1].merge == HMAMergeConfig()


@pytest.mark.parametrize("off", [False, None])
def test_a_round_switches_the_merger_of_the_defaults_off(off: Any) -> None:
    config = made({"merge": "dare"}, {"merge": off}, {})
    assert config.rounds[0].merge is None and config.rounds[1].merge is not None
    assert as_read(config.content()) == config.content()


def test_a_campaign_without_the_setting_has_the_content_it_always_had() -> None:
    content = made({}).content()
    assert all("merge" not in part for part in (content["defaults"], *content["rounds"]))
    later = made({}, {}, {"merge": "slerp"})
    assert later.hash() != made({}).hash()
    # What was trained until a stop is gone on with under another merge.
    assert later.training_hash("second") == made({}).training_hash("second")


LORA: dict[str, Any] = {"model": "demo://digits", "lora": {"rank": 2, "alpha": 4.0}}
DORA = {**LORA, "lora": {**LORA["lora"], "dora": True}}
PREFERENCE = {"algorithm": "reward_model", "data": "demo://pairs", "prompts": None, "rewards": []}
COMMAND = {"algorithm": {"name": "external", "command": ["true"]}}


@pytest.mark.parametrize(
    ("merge", "words"),
    [
        ("linaer", "no merger 'linaer'; did you mean 'linear'?"),
        ({"share": 0.5}, "no merger is named; add name: linear, slerp, warp"),
        ({"name": "linear", "shares": []}, "shares"),
        ({"name": "linear", "shares": [1.0, 0.5, 0.5]}, "shares lists 0.5 twice"),
        ({"name": "linear", "shares": [0.0]}, "greater than 0"),
        ({"name": "linear", "shares": 1.5}, "less than or equal to 1"),
        ({"name": "linear", "to": "start"}, "expected parent, base or round:NAME, got 'start'"),
        (
            {"name": "linear", "to": "round:third"},
            "'round:third' names a round that does not exist",
        ),
        ({"name": "slerp", "shares": 0.5}, "shares"),
        ({"name": "warp", "runs": 1}, "greater than or equal to 2"),
        ({"name": "ties", "density": 1.0}, "less than 1"),
        (
            {"name": "ties", "rounds": ["second"]},
            "'round:second' names a round that does not exist",
        ),
        ({"name": "dare", "of": "owner"}, "of"),
        (
            {"name": "hma", "blocks": 3, "shares": [0.5, 0.5]},
            "shares has 2 entries and blocks is 3",
        ),
        ({"name": "hma", "blocks": 2, "shares": [0.5, 0.5], "share": 0.5}, "remove one"),
        ({"name": "lifealign", "energy": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_are_refused(merge: Any, words: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        made({}, {}, {"merge": merge, "name": "mine"})
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "policy", "words"),
    [
        ({"merge": "linear"}, DORA, "DoRA also rescales the rows"),
        ({"merge": "warp"}, DORA, "DoRA also rescales the rows"),
        ({"merge": "slerp", "repair": {"rerun": True}}, LORA, "judged without the merge"),
        ({"merge": "linear", "repair": {"interpolate": True}}, LORA, "keep one of them"),
        ({"merge": "ties", "retention": ["si"]}, LORA, "leaves the path that training took"),
    ],
)
def test_what_does_not_go_with_a_merge(
    changes: dict[str, Any], policy: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        made({}, changes, policy=policy)


@pytest.mark.parametrize(
    "merge", ["ties", "dare", "lifealign", {"name": "linear", "to": "round:first"}]
)
def test_factors_of_another_programs_adapter_are_not_merged(merge: Any) -> None:
    first = {**COMMAND, "rewards": ["exact_match"]}
    with pytest.raises(ValidationError, match="takes an adapter that another program trained"):
        made({}, {**first, "steps": 1}, {"merge": merge}, policy=LORA)
    made({}, {**first, "steps": 1}, {"merge": merge})
    made({}, {**first, "steps": 1}, {"merge": "warp"}, policy=LORA)


def test_whole_models_of_a_dora_adapter_are_merged() -> None:
    whole = {**DORA, "lora": {**DORA["lora"], "merge": True}}
    assert made({}, {"merge": "slerp"}, policy=whole).rounds[0].merge is not None


@pytest.mark.parametrize("spec", [COMMAND, PREFERENCE], ids=["command", "reward model"])
def test_rounds_that_train_no_policy_here_take_none(spec: dict[str, Any]) -> None:
    """In a round it is refused; from the defaults, which may be meant for others, it does nothing."""
    raw = {**raw_campaign(Path("nowhere"))["rounds"][0], "steps": 1, **spec}
    with pytest.raises(ValidationError, match="does not use it"):
        CampaignConfig.model_validate(
            raw_campaign(Path("nowhere"), rounds=[{**raw, "merge": "slerp"}])
        )
    campaign_file = raw_campaign(Path("nowhere"), rounds=[raw])
    campaign_file["defaults"]["merge"] = "slerp"
    CampaignConfig.model_validate(campaign_file)


def test_more_blocks_than_layers_are_refused_before_anything_starts(tmp_path: Path) -> None:
    config = campaign(tmp_path, rounds=rounds({"merge": {"name": "hma", "blocks": 16}}))
    for command in (check_campaign, forecast):
        with pytest.raises(UserError, match="into 16 blocks, and the model has") as refusal:
            command(config)
        assert refusal.value.where == "rounds.round0.merge.blocks"
    assert not config.folder.exists()


def test_a_plan_counts_runs_points_and_snapshots(tmp_path: Path) -> None:
    plain = forecast(campaign(tmp_path, rounds=rounds({}, {})))
    merge = {"name": "warp", "runs": 3, "share": [0.6, 0.3]}
    config = campaign(tmp_path, rounds=rounds({"merge": merge}, {"merge": "linear"}))
    counted = forecast(config)
    (before, _), (warp, linear) = plain.rounds, counted.rounds
    assert warp.completions == 3 * before.completions
    assert (warp.measured, linear.measured) == (2 * before.measured, 4 * before.measured)
    assert counted.disk.snapshots == plain.disk.snapshots // 2 * (3 + 2 + 1 + 4)
    assert counted.merges[0] == (
        "round0: warp merge trains 3 times, judges up to 2 points, each a measurement and a decision over "
        "which gate.alpha is spread; up to 5 snapshots"
    )
    assert set(counted.merges) <= set(check_campaign(config).lines)
    assert plain.merges == ()
