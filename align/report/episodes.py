"""Episodes as lines of text, for a terminal and for the page: turns, calls, observations and rewards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from align.report.printable import printable


def episode_lines(stored: str, limit: int | None = None) -> list[str]:
    """Write an episode of a table of rollouts, turn by turn.

    Args:
        stored: its JSON, the column ``episode``.
        limit: characters of one text; a longer one is cut in the middle.

    >>> call = {"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    >>> messages = [{"role": "assistant", "content": "", "tool_calls": [call]},
    ...             {"role": "tool", "name": "add", "content": "3"},
    ...             {"role": "assistant", "content": "It is 3."}]
    >>> print("\\n".join(episode_lines(json.dumps({"messages": messages, "turn_rewards": [0.5, None]}))))
    turn 1 (reward 0.5)
      calls add(a=1, b=2)
      add returned: 3
    turn 2
      It is 3.
    """
    episode: Mapping[str, Any] = json.loads(stored)
    lines: list[str] = []
    turn = 0
    for message in episode.get("messages", ()):
        if message.get("role") == "assistant":
            lines.append(_heading(turn, episode))
            turn += 1
        lines += [
            f"  {line}" for text in _parts(message) for line in printable(text, limit).split("\n")
        ]
    return [*lines, *_ending(episode, limit)]


def _heading(turn: int, episode: Mapping[str, Any]) -> str:
    notes = []
    for name, column in (("reward", "turn_rewards"), ("advantage", "turn_advantages")):
        values = episode.get(column) or ()
        if turn < len(values) and values[turn] is not None:
            notes.append(f"{name} {values[turn]:.4g}")
    return f"turn {turn + 1}" + (f" ({', '.join(notes)})" if notes else "")


def _parts(message: Mapping[str, Any]) -> Iterator[str]:
    """Yield what an assistant says and calls, or what a tool returned."""
    content = str(message.get("content") or "")
    if message.get("role") != "assistant":
        yield f"{message.get('name') or message.get('role')} returned: {content}"
        return
    if content.strip():
        yield content
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        arguments = function.get("arguments")
        if isinstance(arguments, Mapping):
            arguments = ", ".join(f"{k}={json.dumps(v, default=str)}" for k, v in arguments.items())
        yield f"calls {function.get('name')}({arguments if arguments is not None else ''})"


def _ending(episode: Mapping[str, Any], limit: int | None) -> Iterator[str]:
    """Yield how the episode ended, and what its environment says of it."""
    notes = [f"ended by {episode['end']}"] if episode.get("end") else []
    if episode.get("reward") is not None:
        notes.append(f"reward of the environment {episode['reward']:.4g}")
    if episode.get("environment"):
        notes.append(f"environment {printable(str(episode['environment']), limit)}")
    if notes:
        yield ", ".join(notes)
    if episode.get("state"):
        yield f"state {printable(json.dumps(episode['state'], default=str), limit)}"
