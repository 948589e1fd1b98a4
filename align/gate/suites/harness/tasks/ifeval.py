"""Scores of `ifeval_local.yaml`: the reward `ifeval`, under lm_eval's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.library.ifeval.reward import ifeval


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Tell if all instructions of a prompt are followed, and of each instruction if it is."""
    ids = doc["instruction_id_list"]
    # A table has every argument of every instruction in each row: those that are not its own are None.
    arguments = [{k: v for k, v in row.items() if v is not None} for row in doc["kwargs"]]
    scores: dict[str, Any] = {}
    for name, loose in (("strict", False), ("loose", True)):
        followed = [
            ifeval(results[:1], [[instruction]], [[values]], loose=loose)[0] == 1.0
            for instruction, values in zip(ids, arguments, strict=True)
        ]
        scores[f"prompt_level_{name}_acc"] = all(followed)
        scores[f"inst_level_{name}_acc"] = followed
    return scores


def mean_of_instructions(items: Sequence[Sequence[bool]]) -> float:
    """Return the share of all instructions of all prompts that are followed."""
    followed = [is_followed for item in items for is_followed in item]
    return sum(followed) / len(followed)
