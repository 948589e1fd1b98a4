"""Whether a chat template writes a row's tools and calls: what it would leave out is told, never lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rollouts.chat.messages import CALLS
from rollouts.errors import TemplateRefusal
from rollouts.types import Message

Rendered = Callable[[Sequence[Message], Sequence[Any]], str]
"""The text of chat turns and of the functions that may be called."""
PROBE = "Keel reads what a tool returned"


def left_out(turns: Sequence[Message], tools: Sequence[Any], rendered: Rendered) -> str | None:
    """What of tools, calls and results does not reach the text, in words; None: all of it does."""
    whole = rendered(turns, tools)
    if tools and _equal(whole, rendered, turns, ()):
        return "the functions in the column 'tools'"
    for index, turn in enumerate(turns):
        if turn.get(CALLS):
            bare = {name: part for name, part in turn.items() if name != CALLS}
            if _equal(whole, rendered, [*turns[:index], bare, *turns[index + 1 :]], tools):
                return f"the {CALLS} of message {index + 1}"
        if turn["role"] == "tool" and turn["content"]:
            other = {**turn, "content": PROBE}
            if _equal(whole, rendered, [*turns[:index], other, *turns[index + 1 :]], tools):
                return f"what a tool returned in message {index + 1}"
    return None


def calls_or_tools(turns: Sequence[Message], tools: Sequence[Any]) -> bool:
    """Whether there is anything of tools in a conversation."""
    return bool(tools) or any(turn.get(CALLS) or turn["role"] == "tool" for turn in turns)


def _equal(whole: str, rendered: Rendered, turns: Sequence[Message], tools: Sequence[Any]) -> bool:
    try:
        return rendered(turns, tools) == whole
    except TemplateRefusal:
        return False  # It minds what is missing.
