"""One call of every reward of the rounds to come, on a real row of its round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from align.config.campaign import CampaignConfig, RewardConfig, RoundConfig
from align.round.inputs import Inputs
from rewards.rubric import build_rubric
from rewards.trial.canaries import asks_a_model
from rewards.trial.first_call import call_once


def call_rewards(
    config: CampaignConfig,
    inputs: Inputs,
    done: frozenset[str],
    *,
    models: bool,
    say: Callable[[str], None],
) -> list[str]:
    """Call each reward once; return one line for each that was not called.

    Args:
        done: rounds that do not run again.
        models: also call rewards that ask a model or a server, which costs time or money.
        say: told while a reward is waited for.

    Raises:
        UserError: a reward failed on its row.
    """
    skipped: list[str] = []
    for index, spec in enumerate(config.rounds):
        pool = inputs.prompts.get(spec.name, ())
        if spec.name in done or not pool or spec.algorithm.material != "rollouts":
            continue
        for where, reward in _rewards(index, spec):
            if not models and (why := _costly(reward)):
                skipped.append(f"reward {reward.name} of round {spec.name} was not called: {why}")
                continue
            rubric = build_rubric([reward], where)
            try:
                call_once(rubric.parts[0], reward.name, pool[0], where, say)
            finally:
                rubric.close()
    return skipped


def _rewards(index: int, spec: RoundConfig) -> Iterator[tuple[str, RewardConfig]]:
    kinds: Sequence[tuple[str, Sequence[RewardConfig]]] = (
        ("rewards", spec.rewards), ("gold", spec.gold),
    )  # fmt: skip
    for kind, rewards in kinds:
        for position, reward in enumerate(rewards):
            yield f"rounds.{index}.{kind}.{position}", reward


def _costly(reward: RewardConfig) -> str | None:
    """Return why a reward is only called on request; None if it is always called."""
    if asks_a_model(reward.name, reward.options):
        return "it asks a model (--call-models calls it)"
    if reward.environment:
        return f"it is given {', '.join(reward.environment)} (--call-models calls it)"
    return None
