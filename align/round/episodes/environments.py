"""Tools and environments of a round: checked before anything costly starts, opened while it runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from align.config.campaign import CampaignConfig, RoundConfig
from align.gate.suites.kinds.acting import check_rewards, placed_rewards
from rewards.environments.by_round import PromptEnvironments
from rewards.environments.cluster.planned import open_planned
from rewards.environments.describe import (
    check_rewarded,
    check_rows,
    check_turns,
    describe_environments,
)
from rewards.environments.environments import WorkerEnvironments
from rewards.trial.first_call import ANSWER
from rollouts.episodes.ticket import check_episodes, encoded
from rollouts.errors import RunError, UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Episode, Prompt

TRIED = "tried"
"""Key of the episode that an environment is tried by."""


def check_environments(
    config: CampaignConfig, spec: RoundConfig, prompts: Sequence[Prompt], encoder: PromptEncoder
) -> None:
    """Load a round's tools and environments in a worker; hold rows and chat template against them.

    Raises:
        UserError: code, a docstring, a type, a row or a reward is missing or wrong, or the model's template
            renders no calls.
    """
    if not acts(spec):
        return
    index = index_of(config, spec)
    plan = spec.environments_plan(f"rounds.{index}")
    described = describe_environments(plan)
    check_turns(plan, described, spec.episode.turns)
    gold = {f"rounds.{index}.gold.{i}": reward for i, reward in enumerate(spec.gold)}
    check_rewards(described, placed_rewards(spec, index))
    check_rewards(described, gold)
    if spec.turn_rewards:
        check_rewarded(described, plan.place("turn_rewards"), turns=True)
    check_rows(plan, described, prompts)
    first = {plan.name_for(prompt): prompt for prompt in reversed(prompts)}
    environments = encoder.acting_in(open_planned(plan, spec.episode.rules()))
    assert environments is not None, "an encoder adds to them"
    check_episodes(environments, list(first.values()), encoder, plan.where)


def cramped_lines(
    config: CampaignConfig,
    spec: RoundConfig,
    prompts: Sequence[Prompt],
    encoder: PromptEncoder,
    context: int,
) -> Iterator[str]:
    """Yield a line on prompts of a round that acts behind which two whole turns have no room.

    Args:
        encoder: of prompts as the round reads them, documents included.
        context: tokens that the engines read.
    """
    environments = encoder.acting_in(open_environments(config, {spec.name}, context))
    if environments is None:
        return
    turn, most = spec.sampling.max_tokens, spec.episode.tokens or context
    rooms = [
        min(most, context - len(encoded(prompt, encoder, environments)))
        for prompt in prompts
        if (rules := environments.rules(prompt)) is not None
        and rules.turns > 1
        and environments.schemas(prompt)
    ]
    cramped = [room for room in rooms if room <= 2 * turn]
    if cramped:
        yield (
            f"{len(cramped)} of {len(prompts)} prompts have no room behind them for two turns of "
            f"{turn} tokens, {min(cramped)} at the least: after a first turn of that length what a tool "
            "answers is never read; lower sampling.max_tokens or policy.retrieval.top_k, or raise "
            "rollouts.max_model_len or episode.tokens"
        )


def index_of(config: CampaignConfig, spec: RoundConfig) -> int:
    """Return the position of a round in the campaign."""
    return [other.name for other in config.rounds].index(spec.name)


def try_environment(spec: RoundConfig, where: str, prompt: Prompt) -> Episode:
    """Begin and end an episode on one row; return it as a reward would see it, without a call.

    Args:
        where: place of the round in the campaign file.

    Raises:
        UserError: ``reset`` or ``get_reward`` failed.
    """
    with WorkerEnvironments(spec.environments_plan(where)) as environments:
        try:
            environments.open(TRIED, prompt).result()
            outcome = environments.close(TRIED).result()
        except RunError as error:
            raise UserError(
                f"the environment failed on a row of the round: {error.what}",
                where=f"{where}.environment, {prompt.label}",
                cause=error.cause,
                remedy="mend the environment or the row; keel env try shows one episode",
            ) from error
    answer = {"role": "assistant", "content": ANSWER.text}
    return Episode(
        observed=(),
        messages=(answer,),
        turns=1,
        reward=outcome.reward,
        state=outcome.state,
        environment=outcome.environment,
    )


def open_environments(
    config: CampaignConfig, names: Collection[str], context: int
) -> PromptEnvironments | None:
    """Open the environments of rounds; None where none of them acts.

    Workers start with the first episode.

    Args:
        names: rounds whose prompts may be sampled.
        context: tokens that the engines read.
    """
    opened = {
        spec.name: open_planned(
            spec.environments_plan(f"rounds.{index}"), spec.episode.rules(context)
        )
        for index, spec in enumerate(config.rounds)
        if spec.name in names and acts(spec)
    }
    return PromptEnvironments(opened) if opened else None


@contextmanager
def environments_of(
    config: CampaignConfig, prompts: Iterable[Prompt], context: int
) -> Iterator[PromptEnvironments | None]:
    """Open the environments of the rounds that some prompts belong to; end them with the block."""
    names = {prompt.round for prompt in prompts if prompt.round is not None}
    environments = open_environments(config, names, context)
    try:
        yield environments
    finally:
        if environments is not None:
            environments.shutdown()


def acts(spec: RoundConfig) -> bool:
    """Tell if a round samples episodes."""
    return spec.acts and spec.algorithm.material == "rollouts" and spec.algorithm.learns_here


def longest_completion(spec: RoundConfig) -> int:
    """Return the most tokens that the policy of a round samples in one completion."""
    if not acts(spec):
        return spec.sampling.max_tokens
    most = spec.episode.turns * spec.sampling.max_tokens
    return most if spec.episode.tokens is None else min(most, spec.episode.tokens)
