"""Rewards and metrics of episodes: the environment's own, success, turns and calls.

``turns``, ``calls`` and ``failed_calls`` are counts: give a reward or a metric a negative weight where
fewer are better. An answer in which the policy could not act abstains.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.base import ShownCompletion
from rewards.environments.state import EndedEnvironment, episode_of


def environment(
    completions: Sequence[ShownCompletion], environments: Sequence[EndedEnvironment | None]
) -> list[float | None]:
    """Return the environment's ``get_reward()`` at the end of the episode; abstain without one."""
    return [ended.get_reward() if ended is not None else None for ended in environments]


def success(
    completions: Sequence[ShownCompletion],
    environments: Sequence[EndedEnvironment | None],
    at_least: float = 1.0,
    attribute: str | None = None,
) -> list[float | AttributeError | None]:
    """Score 1 for an episode that succeeded, else 0; abstain where the environment does not tell.

    Args:
        at_least: smallest reward of the environment that is a success.
        attribute: public attribute of the environment that is true after a success, instead of its reward;
            None abstains. An episode that ends without it is a failure of the reward, not a zero.
    """
    if attribute is not None:
        return [_shown_by(ended, attribute) for ended in environments]
    episodes = map(episode_of, environments)
    return [
        None if e is None or e.reward is None else float(e.reward >= at_least) for e in episodes
    ]


def _shown_by(ended: EndedEnvironment | None, attribute: str) -> float | AttributeError | None:
    """Return an attribute as a score; the error where the episode ended without it."""
    episode = episode_of(ended)
    if ended is None or episode is None:
        return None
    if attribute not in episode.state:
        return ended.lacking(attribute)
    value = episode.state[attribute]
    return None if value is None else float(bool(value))


def turns(
    completions: Sequence[ShownCompletion], environments: Sequence[EndedEnvironment | None]
) -> list[float | None]:
    """Count the policy's turns in an episode."""
    return [None if e is None else float(e.turns) for e in map(episode_of, environments)]


def calls(
    completions: Sequence[ShownCompletion], environments: Sequence[EndedEnvironment | None]
) -> list[float | None]:
    """Count the calls that an episode made."""
    return [None if e is None else float(e.calls) for e in map(episode_of, environments)]


def failed_calls(
    completions: Sequence[ShownCompletion], environments: Sequence[EndedEnvironment | None]
) -> list[float | None]:
    """Count the calls that failed: unreadable, of no such tool, with wrong arguments, raised or cut off."""
    return [None if e is None else float(e.failed_calls) for e in map(episode_of, environments)]
