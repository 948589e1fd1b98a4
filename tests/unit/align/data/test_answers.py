"""Stored answers survive the disk, and a damaged file says which line."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.data.stored_answers import load_answers, save_answers
from align.errors import StoreError
from rollouts.types import Completion, Prompt, RolloutGroup


def group(name: str, ids: tuple[int, ...]) -> RolloutGroup:
    answer = Completion(
        token_ids=ids, logprobs_T=(-0.5,) * len(ids), text="ignored", finish_reason="stop"
    )
    return RolloutGroup(
        prompt=Prompt(id=name, text=name, source="general"),
        prompt_ids=(1, 2),
        completions_G=(answer,),
        policy="base",
        seed=7,
    )


def test_round_trip_keeps_what_the_learner_needs(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    save_answers(path, [group("a", (3, 4)), group("b", ()), group("c", (5,))])
    loaded = load_answers(path)
    assert [g.prompt.id for g in loaded] == ["a", "c"], "an empty answer holds nothing"
    assert loaded[0].prompt_ids == (1, 2)
    assert loaded[0].completions_G[0].token_ids == (3, 4)
    assert loaded[0].completions_G[0].logprobs_T == (-0.5, -0.5)
    assert loaded[0].prompt.source == "general"
    assert loaded[0].policy == "base"


@pytest.mark.parametrize("line", ["{", '{"prompt": "a"}', "[]"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    save_answers(path, [group("a", (3, 4))])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(StoreError, match="stored answer") as caught:
        load_answers(path)
    assert caught.value.where == f"{path}:3"


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"schema_version": 99}\n')
    with pytest.raises(StoreError, match="99"):
        load_answers(path)
