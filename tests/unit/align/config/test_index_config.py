"""Settings of retrieval and of a round's change of the index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align.config.campaign import CampaignConfig, RoundConfig
from align.config.policy import PolicyConfig
from align.config.repair import RepairConfig
from align.config.retrieval.settings import IndexConfig, RetrievalConfig
from align.store.changes.earlier_versions import as_read
from tests.unit.campaigns import campaign, raw_campaign, rounds

ROUND = {"name": "new", "prompts": "demo://rev", "rewards": ["exact_match"], "steps": 1}


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ("a.jsonl", IndexConfig(add=("a.jsonl",))),
        (["a.jsonl", "b.csv"], IndexConfig(add=("a.jsonl", "b.csv"))),
        ({"forget": "a"}, IndexConfig(forget=("a",))),
        ({"forget": [7, "a"]}, IndexConfig(forget=("7", "a"))),
        ({"forget": "all"}, IndexConfig(forget="all")),
    ],
)
def test_short_forms(short: Any, whole: IndexConfig) -> None:
    assert RoundConfig.model_validate({**ROUND, "index": short}).index == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "greater than or equal to 1"),
        ({"index": {}}, "neither gains nor loses a document"),
        ({"index": {"add": "a.jsonl", "columns": "x"}}, "Extra inputs"),
        (
            {"steps": 0, "index": "a.jsonl", "merge": "linear"},
            "nothing is trained that could be merged",
        ),
        (
            {
                "index": "a.jsonl", "algorithm": "reward_model", "prompts": None, "rewards": [],
                "data": "pairs.jsonl",
            },
            "a reward model reads no documents",
        ),
    ],
)  # fmt: skip
def test_a_change_that_does_nothing_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RoundConfig.model_validate({**ROUND, **change})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"template": "{documents}"}, "once each"),
        ({"template": "{documents} {prompt} {prompt}"}, "once each"),
        ({"template": "{documents!r} {prompt}"}, "once each"),
        ({"template": "{documents {prompt}"}, "braces"),
        ({"encoder": "e"}, "encoder is set and method is bm25"),
        ({"method": "dense", "b": 0.5}, "b is set and method is dense"),
        ({"method": "dense", "encoder": "e", "layer": 1}, "remove one"),
        ({"form": "tool", "role": "system"}, "role is of documents before a prompt"),
        ({"top_k": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RetrievalConfig(**settings)


def test_campaigns_without_an_index_have_the_content_that_they_had(tmp_path: Path) -> None:
    """Stores are told by the hash of the content, and know none of the new settings."""
    plain = campaign(tmp_path, rounds=rounds({}))
    content = plain.content()
    assert "retrieval" not in content["policy"]
    assert not {"index"} & {*content["rounds"][0], *content["rounds"][0]["repair"]}
    assert "index" not in RoundConfig.model_validate(ROUND).model_dump()
    assert "retrieval" not in PolicyConfig(model="m").model_dump()
    assert RepairConfig().model_dump().keys() == {"interpolate", "distil", "rerun", "keep"}
    reading = campaign(tmp_path, rounds=rounds({"index": "a.jsonl"}))
    assert reading.hash() != plain.hash()
    assert reading.content()["rounds"][0]["index"]["add"] == ["a.jsonl"]


def test_a_round_that_switches_the_repair_of_the_defaults_off_goes_on_so(tmp_path: Path) -> None:
    raw = raw_campaign(tmp_path)
    raw["defaults"]["repair"] = {"index": True}
    raw["rounds"][1]["repair"] = {"index": False}
    config = CampaignConfig.model_validate(raw)
    assert [spec.repair.index for spec in config.rounds] == [True, False]
    assert as_read(json.loads(json.dumps(config.content()))) == config.content()
