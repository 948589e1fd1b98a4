"""Rules between a round's change of the index and its other settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig


def check_index(spec: RoundConfig) -> None:
    """Refuse a round that changes nothing, and an index for what reads no documents.

    Raises:
        ValueError: the rule, the value and the remedy.
    """
    if spec.index is None:
        if spec.steps == 0:
            raise ValueError(
                "steps is 0, so the round learns nothing; raise it, or set index to the documents that the "
                "round adds"
            )
        return
    if spec.algorithm.makes == "reward_model":
        raise ValueError(
            "index: a reward model reads no documents; remove it from this round, and set it on one that "
            "trains the policy"
        )
    if spec.steps == 0 and spec.merge is not None:
        raise ValueError(
            f"merge is {spec.merge.name} and steps is 0: nothing is trained that could be merged; remove "
            "merge, or raise steps"
        )
