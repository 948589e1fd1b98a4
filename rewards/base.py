"""Rewards as functions with TRL's signature, each named and weighted as one part of a rubric.

    def shouting(completions, **columns) -> list[float | None]:
        return [float(completion.isupper()) for completion in completions]

Sync or async. It is called once per batch, by keyword, with what it names (all of it when it takes
``**kwargs``): ``prompts``, ``completions``, ``completion_ids``, every dataset column as a list,
``environments`` where the policy acted, ``trainer_state``, ``log_extra``, ``log_metric`` and its own
options. A batch is whole groups of a step, not always all of them: they are scored as they come. A chat
prompt comes as a list of messages and its completion as ``[{"role": "assistant", "content": ...}]``, with
calls and their results where the policy acted; a text prompt and its completion as strings. None abstains.
Functions written for TRL's GRPOTrainer work unchanged
(https://huggingface.co/docs/trl/grpo_trainer, "Using a custom reward function").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.environments.state import EndedEnvironment
from rewards.library.gating import Gate
from rewards.normalise import Bounds, Normalise
from rewards.signatures.parameters import Parameters, parameters
from rollouts.types import Completion, Prompt

RewardFunction = Callable[..., Any]
"""``f(prompts, completions, completion_ids, **columns) -> list[float | None]``, sync or async."""

ShownCompletion = str | Sequence[Mapping[str, Any]]
"""A completion as a reward sees it: text, or one assistant message in a list; the messages of all turns
where the policy acted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardPart:
    """One named, weighted reward of a rubric."""

    name: str
    """Name in scores, metrics and messages; unique in a rubric."""
    weight: float
    """Factor in the sum."""
    function: RewardFunction
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of every call."""
    normalise: Normalise = "none"
    """Change of the part's values within a group before they are summed."""
    bounds: Bounds | None = None
    """Bounds for ``normalise: clip``."""
    gate: Gate | None = None
    """Bar that a completion must pass before the other parts count; None: the part is like any other."""
    takes: Parameters = field(init=False, repr=False, compare=False)
    """Keyword arguments of the function, read once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "takes", parameters(self.function))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Completion with the prompt it answers. A batch of ``_B`` samples is one call."""

    prompt: Prompt
    completion: Completion


def shown_prompt(sample: Sample) -> str | list[dict[str, str]]:
    """Return the prompt as a reward sees it: with what an environment opened with, as in TRL.

    Messages are copies, so no reward can change them.
    """
    prompt, episode = sample.prompt, sample.completion.episode
    opening = "" if episode is None else episode.opening
    if prompt.messages is None:
        assert prompt.text is not None
        return prompt.text + opening
    turns = [dict(message) for message in prompt.messages]
    if opening and turns:
        turns[-1] = {**turns[-1], "content": turns[-1]["content"] + opening}
    return turns


def shown_completion(sample: Sample) -> str | list[dict[str, Any]]:
    """Return the completion as a reward sees it: in the form of its prompt."""
    completion = sample.completion
    if sample.prompt.messages is None:
        return completion.text
    if completion.episode is not None:
        return [dict(message) for message in completion.episode.messages]
    return [{"role": "assistant", "content": completion.text}]


def shown_environment(sample: Sample) -> EndedEnvironment | None:
    """Return the environment of a completion as a reward sees it; None where the policy did not act."""
    episode = sample.completion.episode
    if episode is None:
        return None
    return EndedEnvironment(episode.environment, episode.state, episode.reward, episode)


def completion_text(completion: ShownCompletion) -> str:
    """Return the text of a completion in either form: that of the last assistant turn."""
    if isinstance(completion, str):
        return completion
    spoken = [message for message in completion if message.get("role", "assistant") == "assistant"]
    return str((spoken or completion)[-1].get("content") or "")
