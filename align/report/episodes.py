"""Episodes of a table of rollouts as lines of text, for a terminal and for the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from align.report.printable import printable
from rollouts.chat.transcript import transcript


def episode_lines(stored: str, limit: int | None = None) -> list[str]:
    """Write an episode turn by turn, with rewards and advantages, and how it ended.

    Args:
        stored: its JSON, the column ``episode``.
        limit: characters of one line; a longer one is cut in the middle.
    """
    episode: Mapping[str, Any] = json.loads(stored)
    messages = episode.get("messages") or ()
    lines = transcript(messages, [_note(turn, episode) for turn in range(len(messages))])
    return [printable(line, limit) for line in (*lines, *_ending(episode))]


def _note(turn: int, episode: Mapping[str, Any]) -> str:
    """Return reward and advantage of a turn, counted from 0."""
    notes = []
    for name, column in (("reward", "turn_rewards"), ("advantage", "turn_advantages")):
        values = episode.get(column) or ()
        if turn < len(values) and values[turn] is not None:
            notes.append(f"{name} {values[turn]:.4g}")
    return ", ".join(notes)


def _ending(episode: Mapping[str, Any]) -> Iterator[str]:
    """Yield how the episode ended, and what its environment says of it."""
    notes = [f"ended by {episode['end']}"] if episode.get("end") else []
    if episode.get("reward") is not None:
        notes.append(f"reward of the environment {episode['reward']:.4g}")
    if episode.get("environment"):
        notes.append(f"environment {episode['environment']}")
    if notes:
        yield ", ".join(notes)
    if episode.get("state"):
        yield f"state {json.dumps(episode['state'], default=str)}"
