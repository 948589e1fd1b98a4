"""``turn_rewards`` goes with losses that have a ratio for each token, and is refused with the others."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from align.config.campaign import CampaignConfig
from align.round.planning import fitted_algorithm

ROUND: dict[str, Any] = {
    "name": "act",
    "prompts": "p.jsonl",
    "environment": "w.py:World",
    "steps": 2,
}


def campaign(algorithm: str, **defaults: Any) -> CampaignConfig:
    own = {} if defaults else {"turn_rewards": True}
    spec = {**ROUND, "algorithm": algorithm, **own}
    content = {"name": "c", "store": "s", "policy": {"model": "m"}, "rounds": [spec]}
    return CampaignConfig.model_validate({**content, "defaults": defaults})


@pytest.mark.parametrize(
    "name", ["grpo", "dapo", "dr_grpo", "cispo", "reinforce_pp", "ppo", "cppo"]
)
def test_a_round_learns_from_rewards_of_turns(name: str) -> None:
    fitted = fitted_algorithm(campaign(name).rounds[0])
    assert fitted == fitted.by_turn()


@pytest.mark.parametrize("name", ["gspo", "rloo", "dpo", "kto", "copr", "rft"])
def test_an_algorithm_that_cannot_is_refused(name: str) -> None:
    with pytest.raises(
        ValidationError, match=rf"rounds\.0\.turn_rewards .*{name} has one for a whole"
    ):
        campaign(name)


def test_a_default_is_meant_for_the_rounds_that_can() -> None:
    spec = campaign("gspo", turn_rewards=True).rounds[0]
    assert spec.turn_rewards and fitted_algorithm(spec) == spec.algorithm


def test_lengths_are_those_of_a_whole_episode() -> None:
    """Eight turns of 256 tokens, or what the episode may have in all."""
    spec = campaign("dapo").rounds[0]
    most = spec.sampling.max_tokens * spec.episode.turns
    assert fitted_algorithm(spec).max_tokens == most  # type: ignore[attr-defined]
    limited = spec.model_copy(update={"episode": spec.episode.model_copy(update={"tokens": 100})})
    assert fitted_algorithm(limited).max_tokens == 100  # type: ignore[attr-defined]
