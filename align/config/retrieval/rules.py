"""Rules between a round's change of the index and its other settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationInfo, ValidatorFunctionWrapHandler

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig


def index_alone(steps: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> int:
    """Allow a round to take no steps if it changes the index."""
    if type(steps) is int and steps == 0 and info.data.get("index") is not None:
        return 0
    validated: int = validate(steps)
    return validated


def check_index(spec: RoundConfig) -> None:
    """Refuse an index for what reads no documents, and a merge of weights that did not learn.

    Raises:
        ValueError: the rule, the value and the remedy.
    """
    if spec.index is None:
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
