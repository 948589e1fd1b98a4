"""Prompts for servers with a tokenizer of their own: the words themselves, carried where token ids are.

An engine takes token ids and gives token ids. What a server reads are messages or a text, so a prompt's
"ids" are `TEXT` and the bytes of its request as JSON, and a completion's are the bytes of its text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from rollouts.chat.messages import tools_of
from rollouts.prompts import PromptEncoder
from rollouts.types import Prompt, Sampling

TEXT = -1
"""First id of a prompt that is words; no token has it."""


class TextEncoder(PromptEncoder):
    """An encoder for a server that applies its own chat template and tokenizer.

    Args:
        system: system message of every chat that has none of its own.
    """

    def __init__(self, system: str | None = None) -> None:
        # Nothing here asks a tokenizer; checks of chat templates look whether there is one.
        self.tokenizer: Any = SimpleNamespace(chat_template=None, bos_token_id=None)
        self.eos_ids = self.extra_eos_ids = ()
        self._files_digest = "text"
        self._system = system

    def encode(self, prompt: Prompt, tools: Sequence[Any] = ()) -> tuple[int, ...]:
        """Return `TEXT` and the bytes of the request's own fields."""
        if prompt.messages is None:
            fields: dict[str, Any] = {"prompt": prompt.text}
        else:
            turns = [dict(turn) for turn in prompt.messages]
            if self._system is not None and turns[0]["role"] not in ("system", "developer"):
                turns.insert(0, {"role": "system", "content": self._system})
            listed = list(tools or tools_of(prompt.columns))
            fields = {"messages": turns} | ({"tools": listed} if listed else {})
        return (TEXT, *json.dumps(fields).encode())

    def encode_all(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, ...]]:
        """Yield what `encode` returns for each prompt."""
        return map(self.encode, prompts)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text whose bytes these are."""
        return bytes(token_ids).decode()

    def ended(self, sampling: Sampling) -> Sampling:
        """Return the sampling as it is: the server knows what ends an answer."""
        return sampling


def fields_of(prompt_ids: Sequence[int]) -> dict[str, Any] | None:
    """Return the fields that `TextEncoder.encode` wrote; None for token ids."""
    if not prompt_ids or prompt_ids[0] != TEXT:
        return None
    fields: dict[str, Any] = json.loads(bytes(prompt_ids[1:]))
    return fields


def text_ids(text: str) -> tuple[int, ...]:
    """Return the bytes of a completion's text.

    >>> TextEncoder().decode(text_ids("né"))
    'né'
    """
    return tuple(text.encode())
