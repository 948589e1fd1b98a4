"""Chat turns and tools of a row, as a chat template takes them: checked, and never partly ignored.

A turn is ``{"role": "user", "content": "..."}``. An assistant's turn may hold ``tool_calls`` (then its
content may be empty), and a turn of role ``tool`` what a call returned. A row's column ``tools`` lists the
functions that may be called, as JSON schemas. Both are TRL's and transformers' formats. Values that are
None, which tables fill in, are left out at every depth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rollouts.errors import TemplateRefusal
from rollouts.types import Message

TOOLS = "tools"
"""Column of a row that lists the functions that may be called."""
CALLS = "tool_calls"
SHAPE = 'write messages as {"role": "user", "content": "..."}, all values text'
RESULTS = ("tool", "function", "ipython")
"""Roles of what a call returned."""
MAY_BE_EMPTY = ("system", "developer", *RESULTS)
"""Roles whose content may be empty: no instructions, or a call that returned nothing."""
WAITING = ("assistant", "system", "developer")
"""Roles that no prompt ends with: the turn after them is not an answer."""

Rendered = Callable[[Sequence[Message], Sequence[Any]], str]
"""Function from chat turns and the functions that may be called to their text."""
PROBE = "Keel reads what a tool returned"
"""Text that is put in the place of a result, to see if the template writes it."""


class BadMessages(ValueError):
    """Messages that cannot be used; the message is the reason, without what is written in them."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


def turns_of(value: Sequence[Any], column: str) -> tuple[Message, ...]:
    """Return the messages of a column.

    Raises:
        BadMessages: a message without role or content, or with a value that no template takes.
    """
    return tuple(_turn(message, column) for message in value)


def check_turns(turns: Sequence[Message]) -> None:
    """Check that no turn is empty.

    Raises:
        BadMessages: a turn says nothing.
    """
    for number, turn in enumerate(turns, start=1):
        if not says_something(turn) and turn["role"] not in MAY_BE_EMPTY:
            raise BadMessages(
                f"message {number} ({turn['role']}) is empty", "drop it, or write what it says"
            )


def says_something(turn: Message) -> bool:
    """Tell if a turn holds a text or calls a tool."""
    return bool(turn["content"].strip() or turn.get(CALLS))


def check_asks(turns: Sequence[Message], column: str) -> None:
    """Check that the last turn is one that the assistant answers.

    Raises:
        BadMessages: it is not.
    """
    last = turns[-1]["role"] if turns else ""
    if last in WAITING:
        whose = "assistant's" if last == "assistant" else f"{last} prompt's"
        raise BadMessages(
            f"the last message in column {column!r} is the {whose}",
            "a prompt ends with the turn that is to be answered, of role user or tool"
            + ("; drop the answer" if last == "assistant" else ""),
        )


def tools_of(columns: Mapping[str, Any]) -> list[Any]:
    """Return the functions that the assistant may call in a row; empty without such a column.

    Raises:
        BadMessages: the column holds something else than a list of JSON schemas.
    """
    value = columns.get(TOOLS)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            value = [value]
    if not value:
        return []
    plain = _without_none(value)
    if not _names_functions(plain):
        raise BadMessages(
            f"column {TOOLS!r} is no list of functions",
            'write [{"type": "function", "function": {"name": ..., "parameters": ...}}], or give the '
            "column another name",
        )
    return list(plain)


def check_tools(content: str | Sequence[Message], columns: Mapping[str, Any]) -> None:
    """Check that a chat template could render a row's tools.

    Raises:
        BadMessages: they are ill-formed, or stand beside plain text.
    """
    if not isinstance(content, str):
        tools_of(columns)
        return
    try:
        tools = tools_of(columns)
    except BadMessages:
        return  # A column of that name with something else in it.
    if tools:
        raise BadMessages(
            f"column {TOOLS!r} lists functions, and the prompt is text, which goes through no chat "
            "template",
            "write the prompt as messages, or give the column another name",
        )


def _turn(message: Any, column: str) -> Message:
    """Check a message and bring its calls into the one form that chat templates expect."""
    if not isinstance(message, Mapping):
        raise BadMessages(f"column {column!r} holds the message {message!r:.200}", SHAPE)
    turn: dict[str, Any] = _without_none(message)
    if {"from", "value"} <= turn.keys():
        raise BadMessages(
            f"column {column!r} holds a message with 'from' and 'value' in place of role and content",
            f"{SHAPE}; human is user and gpt is assistant",
        )
    if turn.get(CALLS):
        turn.setdefault("content", "")
        if turn.get("role") != "assistant":
            raise BadMessages(
                f"column {column!r} holds {CALLS} in a turn that is not the assistant's"
            )
        if not _names_functions(turn[CALLS]):
            raise BadMessages(
                f"column {column!r} holds {CALLS} that are no list of calls",
                'write [{"type": "function", "function": {"name": ..., "arguments": {...}}}]',
            )
        turn[CALLS] = [_with_arguments(call) for call in turn[CALLS]]
    if not {"role", "content"} <= turn.keys():
        raise BadMessages(f"column {column!r} holds a message without role or content", SHAPE)
    if isinstance(turn["content"], list):
        raise BadMessages(
            f"column {column!r} holds a message whose content is a list of parts", SHAPE
        )
    for name, part in turn.items():
        if name != CALLS and not isinstance(part, str):
            raise BadMessages(
                f"column {column!r} holds a message whose {name} is a {type(part).__name__}",
                SHAPE,
            )
    return turn


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


def _with_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a call with its arguments as a mapping, as templates take them, even if given as JSON text."""
    inner = call.get("function", call)
    try:
        arguments = json.loads(inner["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    if not isinstance(arguments, dict):
        return call
    inner = {**inner, "arguments": arguments}
    return {**call, "function": inner} if "function" in call else inner


def _names_functions(value: Any) -> bool:
    """Tell if a value is a list of functions or calls, with ``type`` and ``function`` around them or
    without, and JSON, as which chat templates write them."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    functions = [
        item.get("function", item) if isinstance(item, Mapping) else None
        for item in (value if isinstance(value, list) else [None])
    ]
    return all(isinstance(f, Mapping) and isinstance(f.get("name"), str) for f in functions)


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def _equal(whole: str, rendered: Rendered, turns: Sequence[Message], tools: Sequence[Any]) -> bool:
    try:
        return rendered(turns, tools) == whole
    except TemplateRefusal:
        return False  # It minds what is missing.
