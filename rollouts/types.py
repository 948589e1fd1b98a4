"""The carriers: what moves between sampling, scoring and learning.

Frozen, keyword-only, slotted; no dict with string keys crosses a module. Shapes are in the names:
``_G`` completions of one group, ``_T`` tokens of one completion. Imports no torch, no ray, no vllm.

Example, one group of two completions of a digit task::

    prompt = Prompt(id="rev/31415", text="rev _ 3 1 4 1 5 =", columns={"answer": "5 1 4 1 3"})
    RolloutGroup(
        prompt=prompt,
        prompt_ids=(10, 15, 3, 1, 4, 1, 5, 16),
        completions_G=(
            Completion(token_ids=(5, 1, 4, 1, 3, 17), logprobs_T=(-0.1,) * 6, text="5 1 4 1 3",
                       finish_reason="stop", weight_versions=(WeightSpan("reverse/12", 0, 6),)),
            Completion.failed("engine 0 died twice on this prompt"),
        ),
        policy="reverse/12",
        seed=17,
    )
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Source = Literal["new", "past", "general"]
"""Class of a prompt: this round's own, replayed from an earlier round, or from the general pool."""

SnapshotId = str
"""sha256 of a snapshot's manifest, in hex: it names exact bytes."""

WeightVersion = str
"""Name of the weights an engine holds, ``<round>/<learner step>`` while training."""

FinishReason = Literal["stop", "length", "failed"]
"""``stop``: the model ended; ``length``: cut at max_tokens; ``failed``: no usable completion."""

Message = Mapping[str, Any]
"""One chat turn, ``{"role": "user", "content": "..."}``; all values text but an assistant's tool_calls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One thing to answer. Exactly one of ``text`` and ``messages`` is set."""

    id: str
    """Stable across runs: derived from the content, never from the position alone."""
    text: str | None = None
    """Plain text, tokenized as it is."""
    messages: tuple[Message, ...] | None = None
    """Chat turns, rendered with the model's chat template."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template for this prompt, over the policy's; empty for most."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The dataset's other columns, handed to rewards by name."""
    source: Source = "new"
    owner: SnapshotId | None = None
    """Accepted snapshot that holds the behaviour of a replayed prompt; None for other prompts."""
    round: str | None = None
    """Name of the round the prompt belongs to; None for the general pool."""
    location: str = field(default="", compare=False)
    """File and line that the prompt was read from, ``prompts.jsonl:7``; empty if it was made, not read."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise ValueError(f"prompt {self.id!r}: give exactly one of text and messages")

    @property
    def label(self) -> str:
        """Words that messages name the prompt by: its file and line, else its id."""
        return self.location or f"prompt {self.id!r}"


class WeightSpan(NamedTuple):
    """Tokens ``[start, end)`` of a completion were sampled by weights ``version``."""

    version: WeightVersion
    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens ``[start, end)`` of a completion."""

    start: int
    end: int


class Increment(NamedTuple):
    """One low-rank increment of an adapter, and the weight that it has in an answer."""

    adapter: str
    """Name of the adapter, as the last weight update gave it."""
    number: int
    """Position of the increment within its adapter, from 0."""
    weight: float
    """Factor of the increment, which is added to the base's weights."""


PromptIds = tuple[int, ...]
"""Tokens of a prompt."""
Mix = tuple[Increment, ...]
"""Increments that act together on one prompt; none leaves the base alone."""


EpisodeEnd = Literal["answer", "done", "turns", "tokens", "time"]
"""``answer``: a turn without a call; ``done``: the environment ended it; the others are limits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """Turns, observations and rewards of a completion that acted in an environment."""

    observed: tuple[TokenSpan, ...]
    """Tokens that the environment and the chat template wrote; no policy sampled them, no loss is taken."""
    messages: tuple[Message, ...]
    """Turns of the assistant, with their calls, and results of tools, in order."""
    turns: int
    """Turns of the assistant."""
    calls: int = 0
    failed_calls: int = 0
    """Calls, of ``calls``, that did not parse, named no tool, had wrong arguments, raised or were late."""
    end: EpisodeEnd = "answer"
    reward: float | None = None
    """Reward of the environment itself; None if it gives none."""
    turn_rewards: tuple[float | None, ...] = ()
    """Reward of each turn; empty if the environment gives none."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """Public attributes of the environment at the end, as JSON values."""
    environment: str = ""
    """Name of the environment, where a round has several."""
    opening: str = ""
    """Text that the environment opened with, behind the prompt's last message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One sampled answer, or one episode. ``logprobs_T`` are nats under the true sampling distribution."""

    token_ids: tuple[int, ...]
    """All tokens behind the prompt, sampled and observed."""
    logprobs_T: tuple[float, ...]
    """Log-probability of each sampled token."""
    text: str
    """Text of the answer; of an episode, that of its last turn."""
    finish_reason: FinishReason
    weight_versions: tuple[WeightSpan, ...] = ()
    detail: str | None = None
    """Reason why the completion failed; None for a usable one."""
    episode: Episode | None = None
    """Turns and observations; None for an answer of one turn."""

    @property
    def observed(self) -> tuple[TokenSpan, ...]:
        """Tokens that no policy sampled, as ascending spans; none in an answer of one turn."""
        return () if self.episode is None else self.episode.observed

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """Tokens that the policy sampled, in order."""
        return tuple(
            self.token_ids[i] for i in sampled_positions(len(self.token_ids), self.observed)
        )

    @property
    def num_sampled(self) -> int:
        """Number of tokens that the policy sampled."""
        return len(self.token_ids) - sum(span.end - span.start for span in self.observed)

    @classmethod
    def failed(cls, detail: str) -> Completion:
        """Make a completion that stands for a failed rollout, which is data with a reason and no crash."""
        return cls(token_ids=(), logprobs_T=(), text="", finish_reason="failed", detail=detail)


def sampled_positions(length: int, observed: Sequence[TokenSpan]) -> list[int]:
    """Return the positions in a completion of ``length`` tokens that no span covers, in order.

    Example: `sampled_positions(5, [TokenSpan(1, 3)]) == [0, 3, 4]`
    """
    return [at for span in sampled_spans(length, observed) for at in range(*span)]


def sampled_spans(length: int, observed: Sequence[TokenSpan]) -> list[TokenSpan]:
    """Return the spans of a completion of ``length`` tokens that a policy sampled: its turns, in order.

    Example: `sampled_spans(5, [TokenSpan(0, 1), TokenSpan(2, 4)]) == [TokenSpan(1, 2), TokenSpan(4, 5)]`
    """
    starts = [0, *(span.end for span in observed)]
    ends = [*(span.start for span in observed), length]
    return [TokenSpan(*pair) for pair in zip(starts, ends, strict=True) if pair[0] < pair[1]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroup:
    """All completions of one prompt, sampled by one policy."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completions_G: tuple[Completion, ...]
    policy: SnapshotId | WeightVersion
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Score that the rubric gave one completion. ``value`` is set exactly when ``status`` is scored."""

    value: float | None
    status: Literal["scored", "abstained", "failed"]
    parts: Mapping[str, float | None] = field(default_factory=dict)
    """Unweighted value of every named part; None where that part abstained."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of every named part in ``value``."""
    counted: Mapping[str, float | None] = field(default_factory=dict)
    """Values that enter ``value`` where they differ from ``parts``: a normalised value, or None for a
    part that a closed gate holds back."""
    detail: str | None = None
    """Part and reason of a failure; for a closed gate, the gate."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Reason of every named part that failed."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Values that parts gave ``log_extra`` for this completion, by ``<part>/<column>``."""

    @property
    def terms(self) -> dict[str, float | None]:
        """Value of every named part as it counts, before its weight; None where it does not."""
        return {**self.parts, **self.counted}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """A group with one score per completion, in the same order."""

    group: RolloutGroup
    scores_G: tuple[Score, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Sampling parameters. The defaults are the plain distribution: logprobs then need no correction."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion besides the model's own end-of-sequence token."""
    stop_texts: tuple[str, ...] = ()
    """Texts that end a completion and are kept in it. An engine that only knows tokens samples on, and
    `rollouts.collect.cut` shortens the text."""

    @property
    def has_bounds(self) -> bool:
        """True if ``min_p`` or ``stop_texts`` bound what is sampled."""
        return self.min_p > 0.0 or bool(self.stop_texts)
