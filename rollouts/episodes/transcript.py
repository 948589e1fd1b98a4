"""One episode under way: the tokens, turns and rewards of a completion that acts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rollouts.episodes.environment import Observation, Outcome
from rollouts.types import (
    Completion,
    Episode,
    EpisodeEnd,
    Message,
    TokenSpan,
    WeightSpan,
)


@dataclass(kw_only=True, slots=True)
class Transcript:
    """Tokens after the prompt, in the order in which they were sampled and observed."""

    token_ids: list[int] = field(default_factory=list)
    logprobs_T: list[float] = field(default_factory=list)
    versions: list[WeightSpan] = field(default_factory=list)
    observed: list[TokenSpan] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    turns: int = 0
    calls: int = 0
    failed_calls: int = 0
    turn_rewards: list[float | None] = field(default_factory=list)
    text: str = ""
    """Text of the last turn."""
    opening: str = ""
    """Text that the environment opened with."""

    def sample(self, turn: Completion, message: Message, text: str) -> None:
        """Append a sampled turn."""
        offset = len(self.token_ids)
        self.token_ids += turn.token_ids
        self.logprobs_T += turn.logprobs_T
        self.versions += [
            WeightSpan(span.version, offset + span.start, offset + span.end)
            for span in turn.weight_versions
        ]
        self.messages.append(message)
        self.turns += 1
        self.turn_rewards.append(None)
        self.text = text

    def observe(self, token_ids: tuple[int, ...]) -> None:
        """Append tokens that no policy sampled."""
        if token_ids:
            start = len(self.token_ids)
            self.token_ids += token_ids
            self.observed.append(TokenSpan(start, len(self.token_ids)))

    def count(self, observations: Sequence[Observation]) -> None:
        """Add the calls of the last turn, and their rewards as its own."""
        self.calls += len(observations)
        self.failed_calls += sum(each.failed for each in observations)
        rewards = [each.reward for each in observations if each.reward is not None]
        self.turn_rewards[-1] = sum(rewards) if rewards else None

    def completion(self, end: EpisodeEnd, outcome: Outcome) -> Completion:
        """Return the finished completion."""
        return Completion(
            token_ids=tuple(self.token_ids),
            logprobs_T=tuple(self.logprobs_T),
            text=self.text,
            finish_reason="length" if end == "tokens" else "stop",
            weight_versions=tuple(self.versions),
            episode=Episode(
                observed=tuple(self.observed),
                messages=tuple(self.messages),
                turns=self.turns,
                calls=self.calls,
                failed_calls=self.failed_calls,
                end=end,
                reward=outcome.reward,
                turn_rewards=self._turn_rewards,
                state=dict(outcome.state),
                environment=outcome.environment,
                opening=self.opening,
            ),
        )

    @property
    def _turn_rewards(self) -> tuple[float | None, ...]:
        has_any = any(reward is not None for reward in self.turn_rewards)
        return tuple(self.turn_rewards) if has_any else ()


def behind(completion: Completion, token_ids: tuple[int, ...]) -> Completion:
    """Return an episode with observed tokens in front of its first turn."""
    shift, episode = len(token_ids), completion.episode
    if not shift or episode is None:
        return completion
    observed = [TokenSpan(span.start + shift, span.end + shift) for span in episode.observed]
    return replace(
        completion,
        token_ids=(*token_ids, *completion.token_ids),
        weight_versions=tuple(
            WeightSpan(span.version, span.start + shift, span.end + shift)
            for span in completion.weight_versions
        ),
        episode=replace(episode, observed=(TokenSpan(0, shift), *observed)),
    )
