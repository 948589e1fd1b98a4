"""The protocol between an acting policy and its environments, which live in worker processes elsewhere.

Every call answers with a `concurrent.futures.Future`, so that many episodes are waited for at once. Each
future ends: whoever implements this ends what hangs. A future that raises says that the environment is
dead, and the episode is then a failed completion, never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from rollouts.types import Message, Prompt

Schema = Mapping[str, Any]
"""One tool as chat templates take it: ``{"type": "function", "function": {"name", "parameters", ...}}``."""


class ToolCall(NamedTuple):
    """One call of a tool, with arguments that fit its schema."""

    name: str
    arguments: Mapping[str, Any]


class Observation(NamedTuple):
    """Text that an environment answers one call with."""

    text: str
    failed: bool
    done: bool = False
    """True if the environment says that the episode is over."""
    reward: float | None = None
    """Reward of the call; None where the environment gives none."""
    seconds: float = 0.0
    """Wall time that the call took where it ran, without the wait for a free worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """State of an environment at the end of an episode."""

    reward: float | None = None
    """Value of ``get_reward()``; None where the environment has none."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """Public attributes of the environment as JSON values."""
    environment: str = ""
    """Name of the environment among several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeRules:
    """Limits of an episode, and the form in which the model writes its calls."""

    turns: int = 8
    """Most assistant turns; calls of the last one are not made."""
    tokens: int | None = None
    """Most tokens after the prompt, sampled and observed; None: as many as the context holds."""
    context: int | None = None
    """Most tokens that the engines read, prompt included; None: it is not known."""
    episode_s: float = 120.0
    """Most seconds that an episode's calls may take together."""
    observation_chars: int = 8000
    """Characters of one result that the policy is shown."""
    parser: str = "auto"
    """Name in `PARSERS` or of a tool parser of vLLM; ``auto`` takes the response template of the tokenizer
    where it has one, else the Hermes form."""


class Environments(Protocol):
    """All environments of a round, by the key of the episode that each of them serves."""

    def rules(self, prompt: Prompt) -> EpisodeRules | None:
        """Return the limits of a prompt's episodes; None for a prompt that is answered in one turn."""
        ...

    def schemas(self, prompt: Prompt) -> Sequence[Schema]:
        """Return the JSON schemas of the tools that a prompt's episodes may call."""
        ...

    def open(self, key: str, prompt: Prompt) -> Future[str | None]:
        """Begin an episode; the text, if any, is appended to the last message of the prompt."""
        ...

    def call(self, key: str, calls: Sequence[ToolCall]) -> Future[Sequence[Observation]]:
        """Make the calls of one turn; one observation for each, in order."""
        ...

    def close(self, key: str, messages: Sequence[Message] = ()) -> Future[Outcome]:
        """End an episode and free its environment.

        Args:
            messages: turns of the assistant and answers of tools, for rewards that read them.
        """
        ...

    def drop(self, key: str) -> None:
        """Free the environment of an episode that is given up; safe for an unknown key."""
        ...
