"""Rules between the settings of episodes and those of the round or suite that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.config.rewards import RewardConfig

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig, RoundConfig, RoundSettings
    from align.config.gate import SuiteConfig

ENVIRONMENT_REWARD = "environment"
"""Name of the reward that an environment gives an episode by its ``get_reward``."""
SUCCESS = "success"
"""Name of the reward that is 1 where an environment says that an episode succeeded."""
OF_ENVIRONMENTS = {
    ENVIRONMENT_REWARD: "the reward that an environment gives by get_reward",
    SUCCESS: "which an environment decides",
}
"""Rewards and metrics that abstain without an environment, and what each of them is."""
OF_EPISODES = ("turns", "calls", "failed_calls")
"""Rewards and metrics that abstain where no tool can be called."""


def with_environment_reward(spec: RoundConfig) -> tuple[RewardConfig, ...]:
    """Return a round's rewards with that of its environment, weight 1, where they do not name it.

    An environment without ``get_reward`` abstains.
    """
    is_listed = any(reward.name == ENVIRONMENT_REWARD for reward in spec.rewards)
    samples = spec.algorithm.material == "rollouts" and spec.algorithm.learns_here
    if spec.environment is None or is_listed or not samples:
        return spec.rewards
    return (*spec.rewards, RewardConfig(name=ENVIRONMENT_REWARD))


def check_acting(spec: RoundConfig) -> None:
    """Raise ValueError (rule, value, remedy) where a round cannot use its settings of acting."""
    names = [reward.name for reward in (*spec.rewards, *spec.gold)]
    needing = next((name for name in names if name in OF_ENVIRONMENTS), None)
    if needing is not None and spec.environment is None:
        raise ValueError(
            f"rewards names {needing!r}, {OF_ENVIRONMENTS[needing]}, and the round has no environment; set "
            "environment to file.py:Class, or remove the reward"
        )
    if spec.turn_rewards and spec.environment is None:
        raise ValueError(
            "turn_rewards is true and the round has no environment that could give them; set environment, "
            "or turn_rewards to false"
        )


def check_episode(spec: RoundConfig, defaults: RoundSettings, where: str) -> None:
    """Refuse settings of acting in a round that does not; those from ``defaults`` are allowed."""
    episodes = spec.algorithm.material == "rollouts" and spec.algorithm.learns_here
    for key in ("tools", "environment"):
        value = getattr(spec, key)
        if not episodes and value and value != getattr(defaults, key):
            raise ValueError(
                f"{where}.{key}: {spec.algorithm.name} samples nothing, so no tool is called; remove it, "
                "or choose an algorithm that learns from rollouts"
            )
    if spec.turn_rewards and not defaults.turn_rewards:
        try:
            spec.algorithm.by_turn()
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from error
    if spec.changed("episode") and not spec.acts and spec.episode != defaults.episode:
        raise ValueError(
            f"{where}.episode: it is set, and the round has neither tools nor an environment; add one of "
            "them, or remove episode"
        )


def with_environment_metric(suite: SuiteConfig) -> RewardConfig | None:
    """Return a suite's metric: the reward of its environment where it names none."""
    if suite.metric is None and suite.environment is not None and suite.prompts is not None:
        return RewardConfig(name=ENVIRONMENT_REWARD)
    return suite.metric


def check_acting_suite(suite: SuiteConfig) -> None:
    """Raise ValueError (rule, value, remedy) where a suite's items cannot be acted on."""
    if suite.acts and (suite.prompts is None or suite.against is not None):
        kind = "compares answers in pairs" if suite.against else "has no prompts to act on"
        setting = "tools" if suite.tools else "environment"
        raise ValueError(
            f"{setting} is set, and the suite {kind}; remove it, or give the suite prompts of its own and "
            "a metric"
        )
    if suite.turn_rewards:
        raise ValueError("turn_rewards is for rounds, which learn from them; remove it here")
    metric = suite.metric.name if suite.metric is not None else ""
    if metric in OF_ENVIRONMENTS and suite.environment is None:
        raise ValueError(
            f"metric is {metric!r}, {OF_ENVIRONMENTS[metric]}, and the suite has no environment; set "
            "environment to file.py:Class, or choose another metric"
        )


def check_counts(config: CampaignConfig) -> None:
    """Raise ValueError (rule, value, remedy) where calls are counted and no tool can be called."""
    retrieval = config.policy.retrieval
    if retrieval is not None and retrieval.form == "tool":
        return
    listed = [
        (f"rounds.{index}.rewards", [reward.name for reward in (*spec.rewards, *spec.gold)])
        for index, spec in enumerate(config.rounds)
        if not spec.acts
    ] + [
        (f"suites.{index}.metric", [suite.metric.name])
        for index, suite in enumerate(config.suites)
        if suite.metric is not None and not suite.acts
    ]
    for where, names in listed:
        counting = next((name for name in names if name in OF_EPISODES), None)
        if counting is not None:
            raise ValueError(
                f"{where}: {counting!r} counts in episodes, and there are no tools and no environment; "
                "set one of them, or remove it"
            )
