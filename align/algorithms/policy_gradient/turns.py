"""Advantages of single turns of an episode, from the rewards that its environment gave after each of them.

    A_ik = A_i + sum_{l >= k} N(t)_il        for every sampled token of turn k of episode i

``A_i`` is the algorithm's advantage of the whole episode, from the round's rewards; ``t_il`` is the reward
after turn ``l``; ``N`` compares it with the same turn of the other episodes of its prompt as the algorithm
compares scores, with the same spread. So a turn is credited with what came after it, its own reward
included, and never with what came before. An episode that had no reward after turn ``l``, or is the only
one with such a turn, adds nothing there; without any turn rewards this is the advantage per episode.

Source: MT-GRPO, Zeng et al. 2025, arXiv 2505.11821, adds the normalised reward of a turn to the normalised
outcome (there for two turns); the sum over what follows is that of GRPO's process supervision, Shao et al.
2024, arXiv 2402.03300, section 4.1.3. For an algorithm with a critic
(`align.algorithms.policy_gradient.actor_critic.ppo`) the rewards stand at the last token of their turns,
and generalised advantage estimation spreads them.

Assumes that rewards of turns do not hold the score again: what a score counts already is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from align.algorithms.rows import Batch, Floats, Row
from rollouts.types import Completion, ScoredGroup, sampled_spans

Compared = Callable[[list[list[float | None]]], list[list[float | None]]]
"""Function that compares the rewards of each group's completions; None stands for no reward."""


def with_turn_advantages(batch: Batch, groups: Sequence[ScoredGroup], compare: Compared) -> Batch:
    """Give the sampled tokens of every episode's turns advantages of their own.

    Args:
        batch: a row of every completion that has tokens, in the order of the groups.
    """
    credits_PG = turn_credits(groups, compare)
    credits = [
        credit_K
        for scored, credits_G in zip(groups, credits_PG, strict=True)
        for completion, credit_K in zip(scored.group.completions_G, credits_G, strict=True)
        if completion.token_ids
    ]
    rows = [
        row if row.advantage is None or not any(credit_K) else _credited(row, credit_K)
        for row, credit_K in zip(batch.rows, credits, strict=True)
    ]
    return replace(batch, rows=tuple(rows))


def with_turn_rewards(batch: Batch, groups: Sequence[ScoredGroup]) -> Batch:
    """Put the reward of each turn at the last token that was sampled in it, for a critic's estimates.

    Args:
        batch: as in `with_turn_advantages`.
    """
    completions = [c for scored in groups for c in scored.group.completions_G if c.token_ids]
    rows = []
    for row, completion in zip(batch.rows, completions, strict=True):
        rewards_K = rewards_of(completion)
        if any(rewards_K):
            rewards_T = [0.0] * row.num_sampled
            for end, reward in zip(accumulate(turn_lengths(row)), rewards_K, strict=False):
                rewards_T[end - 1] = reward or 0.0
            row = replace(row, rewards_T=tuple(rewards_T))
        rows.append(row)
    return replace(batch, rows=tuple(rows))


def turn_credits(groups: Sequence[ScoredGroup], compare: Compared) -> list[list[Floats]]:
    """Compute ``sum_{l >= k} N(t)_il`` of the module's formula for every turn of every completion.

    A completion that was not scored is compared with nothing.
    """
    rewards_PG = [
        [
            () if score.value is None else rewards_of(completion)
            for completion, score in zip(scored.group.completions_G, scored.scores_G, strict=True)
        ]
        for scored in groups
    ]
    longest = max((len(turns) for rewards_G in rewards_PG for turns in rewards_G), default=0)
    by_turn = [
        compare(
            [
                [turns[k] if k < len(turns) else None for turns in rewards_G]
                for rewards_G in rewards_PG
            ]
        )
        for k in range(longest)
    ]
    return [
        [
            _summed_from_the_end([by_turn[k][p][g] or 0.0 for k in range(len(turns))])
            for g, turns in enumerate(rewards_G)
        ]
        for p, rewards_G in enumerate(rewards_PG)
    ]


def rewards_of(completion: Completion) -> tuple[float | None, ...]:
    """Return the reward after each turn; empty for an answer of one turn."""
    return () if completion.episode is None else completion.episode.turn_rewards


def turn_lengths(row: Row) -> list[int]:
    """Count the sampled tokens of every turn.

    >>> from rollouts.types import TokenSpan
    >>> row = Row(prompt_ids=(1,), completion_ids=(2, 3, 4, 5, 6), observed=(TokenSpan(2, 4),),
    ...           advantage=None, source="new")
    >>> turn_lengths(row)
    [2, 1]
    """
    return [end - start for start, end in sampled_spans(len(row.completion_ids), row.observed)]


def _credited(row: Row, credit_K: Sequence[float]) -> Row:
    """Return the row with its advantage and the credit of their turn at all tokens."""
    assert row.advantage is not None
    lengths = turn_lengths(row)
    credits = [*credit_K, *[0.0] * (len(lengths) - len(credit_K))]
    advantages_T = [
        row.advantage + credit
        for credit, length in zip(credits, lengths, strict=False)
        for _ in range(length)
    ]
    return replace(row, advantages_T=tuple(advantages_T))


def _summed_from_the_end(values: Sequence[float]) -> Floats:
    """Sum each value with all that follow it.

    >>> _summed_from_the_end([1.0, 2.0, 3.0])
    (6.0, 5.0, 3.0)
    """
    return tuple(accumulate(reversed(values)))[::-1]
