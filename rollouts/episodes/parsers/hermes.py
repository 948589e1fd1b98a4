"""Calls in the Hermes form, ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, also Qwen's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress

from rollouts.episodes.environment import Schema, ToolCall
from rollouts.episodes.parsers import UNKNOWN, ParsedTurn, TurnTokens, UnreadCall, read_call

THOUGHT, THOUGHT_END = "<think>", "</think>"
BEFORE = 8
"""Tokens before a turn that may open a thought for it."""
CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
"""One call; the end mark may be missing, as where it ends the turn as a stop text."""
END = re.compile(r"\s*(?:</tool_call>|(?=<tool_call>)|\Z)")
_DECODER = json.JSONDecoder()


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
        bodies, beside = _parted(rest)
        return ParsedTurn((thought + mark + beside).strip(), tuple(map(_call, bodies)))


def _parted(text: str) -> tuple[list[str], str]:
    """Return what stands in each call, and the text beside the calls.

    A call that is JSON ends where its JSON does: marks within its texts are part of them.
    """
    bodies, beside, at = [], [], 0
    while (call := CALL.search(text, at)) is not None:
        body, end = call[1].strip(), call.end()
        begin = text.find("{", call.start(1))
        if begin >= 0 and not text[call.start(1) : begin].strip():
            with suppress(ValueError, RecursionError):
                _, stop = _DECODER.raw_decode(text, begin)
                if (ending := END.match(text, stop)) is not None:
                    body, end = text[begin:stop], ending.end()
        bodies.append(body)
        beside.append(text[at : call.start()])
        at = end
    return bodies, "".join(beside) + text[at:]


def _call(body: str) -> ToolCall | UnreadCall:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        return UnreadCall(UNKNOWN, f"the call is not JSON: {error}")
    if not isinstance(value, dict):
        return UnreadCall(UNKNOWN, "the call is no object with name and arguments")
    return read_call(value.get("name"), value.get("arguments", value.get("parameters")))
