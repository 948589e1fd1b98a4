"""Checks that a chat template writes a row's tools and calls, so that none is lost in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rollouts.chat.messages import CALLS
from rollouts.errors import TemplateRefusal
from rollouts.types import Message

Rendered = Callable[[Sequence[Message], Sequence[Any]], str]
"""Function from chat turns and the functions that may be called to their text."""
PROBE = "Keel reads what a tool returned"


def left_out(turns: Sequence[Message], tools: Sequence[Any], rendered: Rendered) -> str | None:
    """Name the tools, calls or results that do not reach the text; None if all do."""
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
    """Tell if a conversation has tools, calls or results."""
    return bool(tools) or any(turn.get(CALLS) or turn["role"] == "tool" for turn in turns)


def _equal(whole: str, rendered: Rendered, turns: Sequence[Message], tools: Sequence[Any]) -> bool:
    try:
        return rendered(turns, tools) == whole
    except TemplateRefusal:
        return False  # It minds what is missing.
