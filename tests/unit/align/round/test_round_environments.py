"""Environments of a round's own prompts and of replayed ones, and what is refused before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.config.gate import SuiteConfig
from align.config.retrieval.settings import RetrievalConfig
from align.data.retrieval.documents import IndexChange
from align.data.retrieval.encoder import RetrievingEncoder
from align.data.retrieval.index import DocumentIndex
from align.data.retrieval.tool import SearchingEncoder
from align.gate.suites.kinds.acting import acting_of, placed_rewards
from align.round.episodes.environments import (
    check_environments,
    cramped_lines,
    open_environments,
    try_environment,
)
from rewards.environments.environments import WorkerEnvironments
from rollouts.episodes.environment import EpisodeRules, ToolCall
from rollouts.episodes.ticket import encoded
from rollouts.errors import UserError
from rollouts.types import Prompt
from tests.unit.acting import encoder
from tests.unit.described import WORLDS, describe_here

ROUND: dict[str, Any] = {"prompts": "p.jsonl", "steps": 1}
SUCCESS: dict[str, Any] = {"name": "success"}


def campaign(**settings: dict[str, Any]) -> CampaignConfig:
    rounds = [{**ROUND, "name": name, **keys} for name, keys in settings.items()]
    return CampaignConfig.model_validate(
        {"name": "c", "store": "s", "policy": {"model": "m"}, "rounds": rounds}
    )


def asks(round: str | None, **columns: object) -> Prompt:
    return Prompt(id="p", text="Go.", round=round, columns=columns, location="p.jsonl:1")


def described(monkeypatch: pytest.MonkeyPatch, config: CampaignConfig) -> None:
    for index, spec in enumerate(config.rounds):
        if spec.acts:
            describe_here(monkeypatch, spec.environments_plan(f"rounds.{index}"))


@pytest.mark.parametrize(
    ("settings", "row", "says"),
    [
        ({"environment": "Counter"}, {"start": 1}, None),
        ({"environment": "Counter", "turn_rewards": True}, {}, None),
        ({"environment": "Dice", "rewards": ["length"]}, {"sides": 6}, None),
        ({"environment": "Dice", "rewards": ["length"]}, {}, "needs the column 'sides'"),
        ({"environment": "Dice"}, {"sides": 6}, "Dice has no method get_reward"),
        (
            {"environment": "Counter", "episode": {"turns": 1}},
            {},
            "turns is 1 and the policy has tools",
        ),
        ({"environment": "Toolless", "episode": {"turns": 1}}, {}, None),
        ({"environment": "Dice", "rewards": ["success"]}, {"sides": 6}, "has no method get_reward"),
        (
            {"environment": "Counter", "rewards": [SUCCESS | {"options": {"attribute": "done"}}]},
            {},
            None,
        ),
        (
            {"environment": "Counter", "rewards": [SUCCESS | {"options": {"attribute": "doen"}}]},
            {},
            r"'Counter' have no public attribute 'doen'(.|\n)*did you mean 'done'",
        ),
        (
            {"environment": "Dice", "rewards": ["length"], "turn_rewards": True},
            {"sides": 6},
            "Dice has no method get_turn_reward",
        ),
    ],
)
def test_rounds_are_checked_with_their_rows(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    row: dict[str, object],
    says: str | None,
) -> None:
    settings = {**settings, "environment": f"{WORLDS}:{settings['environment']}"}
    config = campaign(act=settings)
    described(monkeypatch, config)
    spec, prompts = config.rounds[0], [asks("act", **row)]
    if says is None:
        return check_environments(config, spec, prompts, encoder())
    with pytest.raises(UserError, match=says):
        check_environments(config, spec, prompts, encoder())


def test_a_tool_of_a_round_is_not_named_like_the_search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = 'def search(query: str) -> str:\n    """Search.\n\n    Args:\n        query: words.\n    """\n'
    (tmp_path / "tools.py").write_text(tool)
    config = campaign(act={"tools": [f"{tmp_path}/tools.py:search"], "rewards": ["length"]})
    described(monkeypatch, config)
    index = DocumentIndex(settings=RetrievalConfig(form="tool"))
    check_environments(config, config.rounds[0], [asks("act")], encoder())
    chat = Prompt(id="p", messages=({"role": "user", "content": "Go."},), round="act")
    searching = SearchingEncoder(encoder(), index, EpisodeRules())
    with pytest.raises(UserError, match="two tools are called 'search'"):
        check_environments(config, config.rounds[0], [chat], searching)


def test_every_prompt_acts_in_the_environment_of_its_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = campaign(
        count={"environment": f"{WORLDS}:Counter", "episode": {"turns": 3}},
        plain={"rewards": ["length"]},
        add={"tools": [f"{WORLDS}:add"], "rewards": ["length"]},
    )
    described(monkeypatch, config)
    assert open_environments(config, {"plain"}, 64) is None
    environments = open_environments(config, {"count", "plain", "add"}, 64)
    assert environments is not None
    with environments:
        rules = [environments.rules(asks(name)) for name in ("count", "plain", None)]
        assert [each and (each.turns, each.context) for each in rules] == [(3, 64), None, None]
        line = environments.isolation_lines()[0]
        assert line.endswith("Counter: process (1 worker, 10 s a call, 120 s an episode, 4 GiB)")
        count, add = asks("count", start=2), asks("add")
        assert len(environments.schemas(add)) == 1
        assert environments.open("a", count).result() == "Count from 2."
        assert environments.open("b", add).result() is None
        assert environments.call("b", [ToolCall("add", {"a": 1})]).result()[0].text == "2"
        assert environments.close("a").result().reward == 2.0
        environments.drop("b")
        assert environments.metrics == {"environment/answered": 1.0}


def test_an_environment_is_tried_on_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    config = campaign(
        count={"environment": f"{WORLDS}:Counter"}, dice={"environment": f"{WORLDS}:Dice"}
    )
    described(monkeypatch, config)
    count, dice = config.rounds
    episode = try_environment(count, "rounds.0", asks("count", start=4))
    assert (episode.reward, episode.state["count"]) == (4.0, 4)
    with pytest.raises(UserError, match="reset raised ValueError: no sides") as caught:
        try_environment(dice, "rounds.1", asks("dice", sides=0))
    assert "p.jsonl:1" in str(caught.value.where)


def test_the_hash_of_a_suite_covers_its_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    file = tmp_path / "world.py"
    contents = []
    for text in (WORLDS.read_text(), WORLDS.read_text() + "\n"):
        file.write_text(text)
        config = campaign(count={"environment": f"{file}:Counter"})
        described(monkeypatch, config)
        spec = config.rounds[0]
        acting = acting_of(spec, "rounds.0", [asks("count")], placed_rewards(spec, 0), 64)
        assert acting is not None
        contents.append(acting.content)
    assert contents[0] != contents[1]
    plain = campaign(plain={"rewards": ["length"]}).rounds[0]
    assert acting_of(plain, "rounds.0", [], {}, 64) is None


@pytest.mark.parametrize(
    ("room", "episode", "says"),
    [
        (61, {}, []),
        (60, {}, ["1 of 2 prompts have no room behind them for two turns of 30 tokens, 60 at the"]),
        (
            61,
            {"tokens": 45},
            ["2 of 2 prompts have no room behind them for two turns of 30 tokens, 45"],
        ),
    ],
)
def test_prompts_without_room_for_two_turns_are_told(
    monkeypatch: pytest.MonkeyPatch, room: int, episode: dict[str, int], says: list[str]
) -> None:
    """Documents stand before one of the prompts and make it the longest."""
    config = campaign(
        act={"environment": f"{WORLDS}:Counter", "episode": episode, "sampling": {"max_tokens": 30}}
    )
    described(monkeypatch, config)
    index, _ = DocumentIndex(settings=RetrievalConfig()).changed(
        IndexChange(texts={"sky": "The sky is blue."}), "facts"
    )
    prompts = [replace(asks("act"), text=text) for text in ("Go!", "sky?")]
    spec = config.rounds[0]
    with WorkerEnvironments(spec.environments_plan("rounds.0")) as environments:
        plain, behind = (
            len(encoded(prompts[1], each, environments))
            for each in (encoder(), RetrievingEncoder(encoder(), index, context=10**6))
        )
    assert behind > plain
    reader = RetrievingEncoder(encoder(), index, context=behind + room, answer=30)
    lines = list(cramped_lines(config, spec, prompts, reader, behind + room))
    assert len(lines) == len(says)
    assert all(said in line for said, line in zip(says, lines, strict=True))


def test_a_suite_is_refused_for_a_misspelt_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = {"name": "s", "prompts": "p.jsonl", "environment": f"{WORLDS}:Counter", "margin": 0.1}
    spec = SuiteConfig.model_validate(
        suite | {"metric": {"name": "success", "options": {"attribute": "cuont"}}}
    )
    assert spec.metric is not None
    describe_here(monkeypatch, spec.environments_plan("suites.0"))
    with pytest.raises(UserError) as refusal:
        acting_of(spec, "suites.0", [asks(None)], {"suites.0.metric": spec.metric}, 64)
    assert refusal.value.where == "suites.0.metric.options.attribute"
    assert "did you mean 'count'" in str(refusal.value.remedy)
