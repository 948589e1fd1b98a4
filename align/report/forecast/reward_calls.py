"""One call of every reward of the rounds to come, on a real row of its round, after one reset of its
environment."""

from __future__ import annotations

from collections.abc import Callable

from align.config.campaign import CampaignConfig
from align.round.episodes.environments import acts, try_environment
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
        UserError: a reward or an environment failed on its row.
    """
    skipped: list[str] = []
    for index, spec in enumerate(config.rounds):
        pool = inputs.prompts.get(spec.name, ())
        if spec.name in done or not pool or spec.algorithm.material != "rollouts":
            continue
        rewards = [
            (f"rounds.{index}.{field}.{position}", reward)
            for field, listed in (("rewards", spec.rewards), ("gold", spec.gold))
            for position, reward in enumerate(listed)
        ]
        episode = try_environment(spec, f"rounds.{index}", pool[0]) if acts(spec) else None
        for where, reward in rewards:
            why = ""
            if reward.environment:
                why = f"it is given {', '.join(reward.environment)}"
            if not models and asks_a_model(reward.name, reward.options):
                why = "it asks a model"
            if why and not models:
                skipped.append(
                    f"reward {reward.name} of round {spec.name} was not called: {why} "
                    "(--call-models calls it)"
                )
                continue
            rubric = build_rubric([reward], where)
            try:
                call_once(rubric.parts[0], reward.name, pool[0], where, say, episode)
            finally:
                rubric.close()
    return skipped
