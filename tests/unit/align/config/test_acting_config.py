"""Settings of tools, environments and episodes: read, left out where unset, refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align.config.campaign import CampaignConfig, RoundConfig
from align.config.gate import SuiteConfig
from align.settings import Places
from rollouts.episodes.environment import EpisodeRules

ROUND: dict[str, Any] = {"name": "act", "prompts": "p.jsonl", "steps": 2}
CAMPAIGN: dict[str, Any] = {"name": "c", "store": "s", "policy": {"model": "m"}}
SUITE: dict[str, Any] = {"name": "s", "prompts": "p.jsonl"}


def campaign(*rounds: dict[str, Any], **settings: Any) -> CampaignConfig:
    return CampaignConfig.model_validate({**CAMPAIGN, "rounds": list(rounds), **settings})


def test_unset_settings_leave_no_trace_in_what_is_written() -> None:
    config = campaign({**ROUND, "rewards": ["length"]}, suites=[{**SUITE, "metric": "length"}])
    content = config.content()
    for settings in (content["defaults"], *content["rounds"], *content["suites"]):
        assert not {"tools", "environment", "episode", "turn_rewards"} & set(settings)
    acting = campaign({**ROUND, "environment": "w.py:World", "episode": {"turns": 3}})
    written = acting.content()["rounds"][0]
    assert written["environment"] == "w.py:World" and written["episode"]["turns"] == 3
    assert "tools" not in written and "turn_rewards" not in written
    again = CampaignConfig.model_validate(acting.model_dump(mode="json"))
    assert again.hash() == acting.hash()


def test_a_round_takes_defaults_and_paths_of_the_file() -> None:
    places = Places(folder=Path("/campaigns"))
    data = {
        **CAMPAIGN,
        "defaults": {"environment": {"a": "w.py:A"}, "episode": {"call_s": 3}},
        "rounds": [
            {
                **ROUND,
                "environment": {"b": "pkg.mod:B"},
                "episode": {"turns": 2, "observation_chars": 50},
                "tools": ["t.py:f"],
            }
        ],
    }
    spec = CampaignConfig.model_validate(data, context=places).rounds[0]
    plan = spec.environments_plan("rounds.0")
    assert plan.tools == ("/campaigns/t.py:f",) and plan.chooses
    assert plan.environments == {"a": "/campaigns/w.py:A", "b": "pkg.mod:B"}
    assert plan.limits.call_s == 3.0
    rules = spec.episode.rules(512)
    expected = EpisodeRules(turns=2, context=512, observation_chars=50, parser="auto")
    assert rules == expected


@pytest.mark.parametrize(
    ("settings", "rewards"),
    [
        ({"environment": "w.py:World"}, ["environment"]),
        ({"environment": "w.py:World", "rewards": ["length"]}, ["length", "environment"]),
        (
            {
                "environment": "w.py:World",
                "rewards": [{"name": "environment", "weight": 0}, "length"],
            },
            ["environment", "length"],
        ),
        ({"tools": ["w.py:f"], "rewards": ["length"]}, ["length"]),
    ],
)
def test_the_environment_is_a_reward_source(settings: dict[str, Any], rewards: list[str]) -> None:
    spec = RoundConfig.model_validate({**ROUND, **settings})
    assert [reward.name for reward in spec.rewards] == rewards
    again = RoundConfig.model_validate(spec.model_dump(mode="json"))
    assert again == spec


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tools": ["w.py:f"]}, "rewards; set rewards"),
        ({"environment": {}}, "environment is an empty mapping"),
        ({"rewards": ["environment"]}, "the round has no environment"),
        ({"rewards": ["success"], "tools": ["w.py:f"]}, "the round has no environment"),
        ({"rewards": ["length"], "turn_rewards": True}, "no environment that could give them"),
        (
            {"rewards": ["length"], "tools": ["w.py:f"], "turn_rewards": True},
            "no environment that could give them",
        ),
        ({"environment": "w.py:W", "episode": {"call_s": 200}}, "longer than episode_s 120"),
        ({"environment": "w.py:W", "episode": {"turns": 0}}, "greater than or equal to 1"),
        ({"environment": "w.py:W", "episode": {"call_s": 0}}, "greater than 0"),
        ({"environment": "w.py:W", "episode": {"isolation": "inline"}}, "'process' or 'sandbox'"),
        ({"environment": "w.py:W", "episode": {"turn": 3}}, "turn"),
        ({"environment": 3}, "environment"),
        (
            {"environment": "openenv://h:1", "episode": {"isolation": "sandbox"}},
            "which has no network, and openenv://h:1 is a server",
        ),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RoundConfig.model_validate({**ROUND, **settings})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rewards": ["length"], "episode": {"turns": 3}}, "neither tools nor an environment"),
        (
            {"algorithm": "sft", "prompts": None, "data": "d.jsonl", "tools": ["w.py:f"]},
            r"rounds.0.tools: sft samples nothing",
        ),
    ],
)
def test_rounds_that_do_not_act(settings: dict[str, Any], says: str) -> None:
    values = {key: v for key, v in {**ROUND, **settings}.items() if v is not None}
    with pytest.raises(ValidationError, match=says):
        campaign(values)


def test_defaults_of_episodes_may_be_for_other_rounds() -> None:
    plain = {**ROUND, "name": "plain", "rewards": ["length"]}
    defaults = {"episode": {"turns": 3}}
    config = campaign(plain, {**ROUND, "environment": "w.py:W"}, defaults=defaults)
    assert [spec.acts for spec in config.rounds] == [False, True]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"environment": "w.py:W"}, None),
        ({"tools": ["w.py:f"], "metric": "length"}, None),
        ({"tools": ["w.py:f"]}, "needs a metric"),
        ({"metric": "environment"}, "the suite has no environment"),
        ({"metric": "success", "tools": ["w.py:f"]}, "the suite has no environment"),
        ({"environment": "w.py:W", "turn_rewards": True}, "for rounds"),
        ({"environment": "w.py:W", "against": "base"}, "compares answers in pairs"),
        ({"prompts": None, "text": "t.txt", "environment": "w.py:W"}, "no prompts to act on"),
    ],
)
def test_suites_take_the_same_keys(settings: dict[str, Any], says: str | None) -> None:
    values = {key: v for key, v in {**SUITE, **settings}.items() if v is not None}
    if says is not None:
        with pytest.raises(ValidationError, match=says):
            SuiteConfig.model_validate(values)
        return
    suite = SuiteConfig.model_validate(values)
    assert suite.metric is not None and suite.acts
    assert SuiteConfig.model_validate(suite.model_dump(mode="json")) == suite


@pytest.mark.parametrize("name", ["turns", "calls", "failed_calls"])
def test_calls_are_counted_where_there_are_any(name: str) -> None:
    counting = {**ROUND, "rewards": ["length", name]}
    suite = {"name": "s", "prompts": "h.jsonl", "metric": name}
    for rounds, suites, where in (
        ([counting], [], "rounds.0.rewards"),
        ([{**ROUND, "rewards": ["length"]}], [suite], "suites.0.metric"),
    ):
        with pytest.raises(ValidationError, match=f"{where}: '{name}' counts in episodes"):
            campaign(*rounds, suites=suites)
    tools = {"tools": ["w.py:f"]}
    campaign({**counting, **tools}, suites=[{**suite, **tools}])
    searching = {"model": "m", "retrieval": {"form": "tool"}}
    campaign(counting, suites=[suite], policy=searching)
