"""Episodes as lines of text for people: what each turn said and called, and what tools returned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rollouts.chat.messages import CALLS
from rollouts.types import Completion, Message


def shown_answer(completion: Completion) -> str:
    """Return what a completion says; of an episode all turns, calls and results."""
    episode = completion.episode
    if episode is None or not episode.messages:
        return completion.text
    return "\n".join(transcript(episode.messages))


def transcript(messages: Sequence[Message], notes: Sequence[str] = ()) -> Iterator[str]:
    """Yield a line that names each turn of the assistant, and indented what belongs to it.

    Args:
        notes: remarks on the turns, such as their rewards; empty ones are left out.

    >>> call = {"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    >>> messages = [{"role": "assistant", "content": "", "tool_calls": [call]},
    ...             {"role": "tool", "name": "add", "content": "3"},
    ...             {"role": "assistant", "content": "It is 3."}]
    >>> print("\\n".join(transcript(messages, ["reward 0.5"])))
    turn 1 (reward 0.5)
      calls add(a=1, b=2)
      add returned: 3
    turn 2
      It is 3.
    """
    turn = 0
    for message in messages:
        if message.get("role") == "assistant":
            note = notes[turn] if turn < len(notes) else ""
            turn += 1
            yield f"turn {turn}" + (f" ({note})" if note else "")
        for text in _parts(message):
            yield from (f"  {line}" for line in text.split("\n"))


def _parts(message: Message) -> Iterator[str]:
    """Yield what an assistant says and calls, or what a tool returned."""
    content = str(message.get("content") or "")
    if message.get("role") != "assistant":
        yield f"{message.get('name') or message.get('role')} returned: {content}"
        return
    if content.strip():
        yield content
    for call in message.get(CALLS) or ():
        function = call.get("function", call)
        yield f"calls {function.get('name')}({_listed(function.get('arguments'))})"


def _listed(arguments: Any) -> str:
    if not isinstance(arguments, Mapping):
        return "" if arguments is None else str(arguments)
    values = {name: json.dumps(value, default=str) for name, value in arguments.items()}
    return ", ".join(f"{name}={value}" for name, value in values.items())
