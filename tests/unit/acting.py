"""A byte-level tokenizer with a Hermes chat template, and environments of real functions in threads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from rollouts.episodes.environment import (
    EpisodeRules,
    Observation,
    Outcome,
    Schema,
    ToolCall,
)
from rollouts.prompts import PromptEncoder
from rollouts.types import Message, Prompt

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HERMES = (
    "{%- if tools %}<|im_start|>system\nTools:"
    "{%- for tool in tools %} {{ tool | tojson }}{%- endfor %}<|im_end|>\n{% endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'tool' %}"
    "{%- if messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n' }}<tool_response>\n{{ m.content }}\n</tool_response>"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{%- else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{%- for call in m.tool_calls or [] %}{{ '\n' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's form, shortened: tools in a system message, answers of tools in a user's."""


@cache
def encoder(template: str | None = HERMES) -> PromptEncoder:
    """An encoder whose tokens are bytes, three merges and three special tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = [("t", "o"), ("to", "o"), ("too", "l")]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet, "to", "too", "tool"])}
    backend = Tokenizer(BPE(vocab, merges))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    return PromptEncoder(tokenizer)


def ids(text: str) -> tuple[int, ...]:
    """Token ids of a text as the tokenizer would write it."""
    return tuple(encoder().tokenizer(text, add_special_tokens=False).input_ids)


def text(token_ids: Sequence[int]) -> str:
    """Text of token ids, special tokens too."""
    return str(encoder().tokenizer.decode(list(token_ids)))


def call(name: str, **arguments: Any) -> str:
    """A turn that makes one call, without its end."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def schema(name: str, **types: str) -> Schema:
    """JSON schema of a tool whose arguments all have to be there."""
    properties = {argument: {"type": kind} for argument, kind in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(types)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


SCHEMAS = (schema("add", a="integer", b="integer"), schema("tell", text="string"))


@dataclass
class LocalEnvironments:
    """`Environments` of functions that run in threads."""

    tools: Mapping[str, Callable[..., Any]]
    schema_list: Sequence[Schema] = SCHEMAS
    limits: EpisodeRules = field(default_factory=EpisodeRules)
    opening: Callable[[str], str | None] = lambda key: None
    reward: Callable[[str], float | None] = lambda key: None
    acts: Callable[[Prompt], bool] = lambda prompt: True
    opened: list[str] = field(default_factory=list)
    made: list[tuple[str, ToolCall]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(16))

    def rules(self, prompt: Prompt) -> EpisodeRules | None:
        return self.limits if self.acts(prompt) else None

    def schemas(self, prompt: Prompt) -> Sequence[Schema]:
        return self.schema_list

    def open(self, key: str, prompt: Prompt) -> Future[str | None]:
        self.opened.append(key)
        return self.threads.submit(self.opening, key)

    def call(self, key: str, calls: Sequence[ToolCall]) -> Future[Sequence[Observation]]:
        self.made += [(key, each) for each in calls]
        return self.threads.submit(lambda: [self._observation(each) for each in calls])

    def close(self, key: str, messages: Sequence[Message] = ()) -> Future[Outcome]:
        self.ended.append(key)
        assert messages[-1]["role"] in ("assistant", "tool")
        return self.threads.submit(
            lambda: Outcome(reward=self.reward(key), state={"key": key}, environment="local")
        )

    def drop(self, key: str) -> None:
        self.dropped.append(key)

    def _observation(self, each: ToolCall) -> Observation:
        answer = self.tools[each.name](**each.arguments)
        return answer if isinstance(answer, Observation) else Observation(str(answer), failed=False)
