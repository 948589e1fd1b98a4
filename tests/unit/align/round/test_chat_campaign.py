"""The data of the shipped chat campaign: what is measured is not trained on, and all of it is sound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewards.library.ifeval.instructions import INSTRUCTIONS
from rewards.library.ifeval.reward import ifeval

CHAT = Path(__file__).parents[4] / "configs" / "chat"


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (CHAT / name).read_text().splitlines()]


def asked(name: str) -> list[str]:
    return [row["prompt"][-1]["content"] for row in rows(name)]


@pytest.mark.parametrize("name", ["length", "commas", "hasty"])
def test_no_prompt_is_both_trained_on_and_measured(name: str) -> None:
    training, measured = asked(f"{name}.jsonl"), asked(f"{name}_heldout.jsonl")
    assert len(set(training)) == len(training) and len(set(measured)) == len(measured)
    assert not set(training) & set(measured)


def test_pairs_differ_by_their_friendly_beginning_alone() -> None:
    for row in rows("pairs.jsonl"):
        (chosen,), (rejected,) = row["chosen"], row["rejected"]
        assert chosen["content"] == f"Good question! {rejected['content']}"
        assert row["prompt"][0]["role"] == "user" and chosen["role"] == "assistant"


def test_every_instruction_is_one_of_ifevals_and_takes_its_arguments() -> None:
    items = rows("ifeval.jsonl")
    for item in items:
        assert set(item["instruction_id_list"]) <= INSTRUCTIONS.keys()
        assert item["instruction_id_list"][0] in INSTRUCTIONS
        ifeval(["some text"], [item["instruction_id_list"]], [item["kwargs"]])
    assert len({item["prompt"] for item in items}) == len(items) == 64


def test_every_sum_is_right() -> None:
    for row in rows("gsm8k.jsonl"):
        result = int(row["answer"].rpartition("#### ")[2])
        steps = [step.partition(">>")[0] for step in row["answer"].split("<<")[1:]]
        for step in steps:
            left, _, right = step.partition("=")
            numbers = [
                int(n) for n in left.replace("*", " ").replace("+", " ").replace("-", " ").split()
            ]
            a, b = numbers
            assert int(right) == (a * b if "*" in left else a + b if "+" in left else a - b)
        assert steps[-1].endswith(f"={result}") and result > 0
