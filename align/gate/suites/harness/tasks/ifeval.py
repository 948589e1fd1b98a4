"""What `ifeval_local.yaml` scores an answer with: the reward `ifeval`, under lm_eval's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.library.ifeval.reward import ifeval


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Per prompt whether all instructions are followed; of each instruction whether it is."""
    ids = doc["instruction_id_list"]
    # A table has every argument of every instruction in each row: those that are not its own are None.
    arguments = [{k: v for k, v in one.items() if v is not None} for one in doc["kwargs"]]
    found: dict[str, Any] = {}
    for name, loose in (("strict", False), ("loose", True)):
        followed = [
            ifeval(results[:1], [[one]], [[values]], loose=loose)[0] == 1.0
            for one, values in zip(ids, arguments, strict=True)
        ]
        found[f"prompt_level_{name}_acc"] = all(followed)
        found[f"inst_level_{name}_acc"] = followed
    return found


def mean_of_instructions(items: Sequence[Sequence[bool]]) -> float:
    """Over all instructions of all prompts."""
    followed = [one for item in items for one in item]
    return sum(followed) / len(followed)
