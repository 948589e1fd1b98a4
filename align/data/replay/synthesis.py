"""Prompts that a policy writes itself, so that a round can rehearse without stored ones.

The policy continues a list of stored prompts of an earlier round (in-context learning), or an empty user's
turn, or nothing at all. Equal prompts are written once, and the most diverse are chosen. Source:
self-synthesised rehearsal, Huang et al. 2024, arXiv 2403.01244, which prompts with stored examples and
chooses by clusters of sentence embeddings; here prompts are chosen greedily, each as unlike those before as
possible. An empty user's turn as the beginning is Magpie's, Xu et al. 2024, arXiv 2406.08464.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from align.config.replay.synthesis import SynthesisConfig
from rollouts.prompts import PromptEncoder, content_id
from rollouts.types import Message, Prompt

MARK = "\u27e6prompt\u27e7"
"""Text that stands for a user's message while a chat template is cut in two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Beginning of a prompt to be written, and what ends it."""

    before: str
    """Text that the policy continues."""
    stops: tuple[str, ...] = ()
    """Texts of the chat template that end a user's turn."""
    turns: tuple[Message, ...] | None = None
    """Turns before the user's; None for prompts that are plain text."""

    @classmethod
    def like(cls, prompt: Prompt, encoder: PromptEncoder) -> Frame:
        """Return the frame of prompts of this kind: a text, or a user's turn after the system message."""
        tokenizer = encoder.tokenizer
        if prompt.messages is None:
            begin = tokenizer.bos_token or tokenizer.eos_token or ""
            return cls(before=str(begin))
        turns = tuple(m for m in prompt.messages[:1] if m["role"] in ("system", "developer"))
        text = encoder.rendered([*turns, {"role": "user", "content": MARK}], opened=True)
        before, _, after = text.partition(MARK)
        ids = tokenizer(after.lstrip(), add_special_tokens=False, verbose=False).input_ids
        return cls(before=before, stops=(str(tokenizer.decode(ids[:1])),), turns=turns)

    def asking(self, shots: Sequence[str], separator: str, name: str) -> Prompt:
        """Return the text that the policy continues: the frame, then the shots with the separator."""
        listed = "".join(f"{shot}{separator}" for shot in shots)
        bare = bool(shots) and self.turns is None
        return Prompt(id=name, text=listed if bare else self.before + listed)

    def prompt(self, text: str) -> Prompt:
        """Return the prompt with this text."""
        if self.turns is None:
            return Prompt(id=content_id(text), text=text)
        messages = (*self.turns, {"role": "user", "content": text})
        return Prompt(id=content_id(messages), messages=messages)


def shown(prompts: Sequence[Prompt], config: SynthesisConfig, key: str) -> list[list[str]]:
    """Return the texts of the shots for each prompt that is written, drawn by the key.

    Of a chat the last message is shown, if it is the user's and follows no answer.
    """
    texts = [text for prompt in prompts if (text := _asked(prompt)) is not None]
    size = min(config.shots, len(texts))
    return [Random(f"{key}/{number}").sample(texts, size) for number in range(config.num_written)]


def cleaned(text: str, config: SynthesisConfig) -> str | None:
    """Return what was written as the text of a prompt; None if it is none."""
    text = next((part for part in text.split(config.separator) if part.strip()), "")
    if config.end is not None:
        before, end, _ = text.partition(config.end)
        return (before + end).strip() if end and before.strip() else None
    return text.strip() or None


def diverse(features: Sequence[AbstractSet[Hashable]], count: int) -> list[int]:
    """Choose positions greedily, each as unlike those chosen before as possible; the first comes first.

    The distance of two sets is that of Jaccard, ``1 - |a & b| / |a | b|``.

    >>> diverse([{1, 2}, {1, 2, 3}, {7}], 2)
    [0, 2]
    """
    if not features or count < 1:
        return []
    chosen = [0]
    nearest = [_distance(features[0], other) for other in features]
    while len(chosen) < min(count, len(features)):
        open_positions = [p for p in range(len(features)) if p not in chosen]
        best = max(open_positions, key=lambda position: (nearest[position], -position))
        chosen.append(best)
        nearest = [
            min(old, _distance(features[best], other))
            for old, other in zip(nearest, features, strict=True)
        ]
    return chosen


def features_of(ids: Sequence[int]) -> frozenset[Hashable]:
    """Return the tokens of a prompt, and its pairs of neighbours."""
    return frozenset((*ids, *pairwise(ids)))


def _asked(prompt: Prompt) -> str | None:
    if prompt.messages is None:
        return prompt.text
    turns = [m for m in prompt.messages if m["role"] not in ("system", "developer")]
    return str(turns[0]["content"]) if len(turns) == 1 else None


def _distance(first: AbstractSet[Hashable], second: AbstractSet[Hashable]) -> float:
    union = len(first | second)
    return 1.0 - len(first & second) / union if union else 0.0
