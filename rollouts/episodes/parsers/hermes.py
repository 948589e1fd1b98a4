"""Calls in the Hermes form, ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, also Qwen's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from rollouts.episodes.environment import Schema, ToolCall
from rollouts.episodes.parsers import UNKNOWN, ParsedTurn, TurnTokens, UnreadCall, read_call

THOUGHT, THOUGHT_END = "<think>", "</think>"
BEFORE = 8
"""Tokens before a turn that may open a thought for it."""
CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
"""One call; the end mark may be missing, as where it ends the turn as a stop text."""


class HermesParser:
    """A `Parser` of calls as JSON between marks; what is in a thought is no call.

    Args:
        decode: text of tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode

    def parse(self, turn: TurnTokens, schemas: Sequence[Schema]) -> ParsedTurn:
        """Return the calls in the order in which they were written."""
        thought, mark, rest = "", "", turn.text
        before = self._decode(turn.prompt_ids[-BEFORE:])
        if rest.lstrip().startswith(THOUGHT) or before.rstrip().endswith(THOUGHT):
            thought, mark, rest = rest.partition(THOUGHT_END)
        calls = tuple(_call(body.strip()) for body in CALL.findall(rest))
        content = (thought + mark + CALL.sub("", rest)).strip()
        return ParsedTurn(content, calls)


def _call(body: str) -> ToolCall | UnreadCall:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        return UnreadCall(UNKNOWN, f"the call is not JSON: {error}")
    if not isinstance(value, dict):
        return UnreadCall(UNKNOWN, "the call is no object with name and arguments")
    return read_call(value.get("name"), value.get("arguments", value.get("parameters")))
