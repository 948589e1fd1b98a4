"""Prompts of accepted rounds, which are sampled again while later rounds train.

Only prompts are stored, without answers, labels or rewards: the snapshot named as their ``owner`` knows how
to answer, and the KL term holds the policy to it. A draw is a function of the seed and the step, so a
resumed round gets the same batches. Columns keep their values exactly, see `rollouts.values`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from align.data.json_lines import Record, load_lines, save_lines
from align.data.replay.dealing import chosen_evenly, dealt
from align.errors import UserError
from align.settings import without_unset
from rollouts.errors import nearest
from rollouts.types import Prompt, SnapshotId
from rollouts.values import Unholdable, from_json, normalised, to_json

SCHEMA_VERSION = 2
"""Version of the file's format; version 1 stored the columns as plain JSON."""


class ReplayBuffer:
    """Stored prompts of every accepted round, with rounds in the order in which they were added."""

    def __init__(self, entries: Mapping[str, Sequence[Prompt]] | None = None) -> None:
        self._entries = {round_: tuple(prompts) for round_, prompts in (entries or {}).items()}

    @property
    def entries(self) -> Mapping[str, Sequence[Prompt]]:
        """Prompts by round name."""
        return dict(self._entries)

    def __len__(self) -> int:
        return sum(len(prompts) for prompts in self._entries.values())

    def add(
        self, round: str, prompts: Iterable[Prompt], owner: SnapshotId, cap: int, seed: int
    ) -> None:
        """Store at most ``cap`` distinct prompts of an accepted round, chosen evenly by the seed.

        Adding a round again replaces its prompts, so a resumed run may repeat the call.

        Raises:
            UserError: a prompt has a column with a value that cannot be stored.
        """
        distinct = list({prompt.id: prompt for prompt in prompts}.values())
        chosen = chosen_evenly(distinct, cap, f"{seed}/{round}")
        self._entries[round] = tuple(_past(prompt, round, owner) for prompt in chosen)

    def draw(
        self,
        n: int,
        seed: int,
        step: int,
        rounds: Iterable[str] | None = None,
        first: int | None = None,
    ) -> list[Prompt]:
        """Draw ``n`` prompts with distinct ids, in turn from each round; fewer if there are no more.

        The prompts of all steps are numbered and dealt to the rounds in turn, so every round gets the same
        share. A round's prompts are drawn without replacement: each comes once before any comes again,
        in another order.

        Args:
            rounds: names to draw from; None draws from all.
            first: number of prompts that earlier steps drew; None: ``n`` for each step.
        """
        names = list(self._entries) if rounds is None else list(dict.fromkeys(rounds))
        for name in names:
            if name not in self._entries:
                hint = nearest(name, list(self._entries))
                raise ValueError(f"no round {name!r} in the buffer; {hint}")
        if not names:
            return []
        before = step * n if first is None else first
        queues = [
            self._from(name, seed, dealt(before, turn, len(names)))
            for turn, name in enumerate(names)
        ]
        drawn: dict[str, Prompt] = {}
        exhausted: set[int] = set()
        for turn in islice(cycle(range(len(names))), before % len(names), None):
            if len(drawn) >= n or len(exhausted) == len(names):
                return list(drawn.values())
            fresh = next((p for p in queues[turn] if p.id not in drawn), None)
            if fresh is None:
                exhausted.add(turn)
            else:
                drawn[fresh.id] = fresh
        raise AssertionError("the cycle over the rounds never ends")

    def save(self, path: Path) -> None:
        """Write JSON lines atomically: a version line, then one prompt on each line."""
        head = {"schema_version": SCHEMA_VERSION, "rounds": list(self._entries)}
        prompts = (prompt for entry in self._entries.values() for prompt in entry)
        save_lines(path, head, map(_line, prompts))

    @classmethod
    def load(cls, path: Path) -> ReplayBuffer:
        """Read what `save` wrote.

        Raises:
            StoreError: a line is damaged, or a newer Keel wrote the file; ``where`` names the line.
        """

        def read(lines: Iterator[Record]) -> ReplayBuffer:
            empty: Record = {"schema_version": SCHEMA_VERSION, "rounds": ()}
            head = next(lines, empty)
            entries: dict[str, list[Prompt]] = {name: [] for name in head["rounds"]}
            for record in lines:
                entries[record["round"]].append(_prompt(record, head["schema_version"]))
            return cls(entries)

        return load_lines(path, read, newest=SCHEMA_VERSION, what="replayed prompt")

    def _from(self, name: str, seed: int, start: int) -> Iterator[Prompt]:
        """Yield a round's prompts from position ``start``, counted over all passes.

        Each pass goes through the same two halves, each half in a new order. So the prompts at the end of
        one pass are not at the start of the next, and no step draws a prompt twice.
        """
        prompts = list(self._entries[name])
        Random(f"{seed}/{name}").shuffle(prompts)
        size, middle = len(prompts), (len(prompts) + 1) // 2
        for number in range(start, start + 2 * size):
            done, at = divmod(number, size)
            if at == 0 or number == start:
                halves = prompts[:middle], prompts[middle:]
                for half in halves:
                    Random(f"{seed}/{done}/{name}").shuffle(half)
                order = [*halves[0], *halves[1]]
            yield order[at]


def _past(prompt: Prompt, round_: str, owner: SnapshotId) -> Prompt:
    """Return the prompt as later rounds get it, with the values that it would have when read from the
    file."""
    columns = {}
    for name, value in prompt.columns.items():
        try:
            columns[name] = normalised(value)
        except Unholdable as error:
            raise UserError(
                f"it holds {error}, which cannot be stored",
                where=f"prompt {prompt.location or prompt.id}, column {name}",
                cause="replayed prompts are stored with all their columns",
                remedy="use text, numbers, lists and mappings with text keys, or drop the column",
            ) from error
    marked = replace(prompt, columns=columns, source="past", owner=owner, round=round_)
    return _prompt(json.loads(json.dumps(_line(marked))), SCHEMA_VERSION)


def _line(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as a line of the file."""
    data = without_unset(asdict(prompt), ("chat_template_kwargs",))
    return {**data, "columns": to_json(data["columns"]), "messages": to_json(data["messages"])}


def _prompt(data: Mapping[str, Any], version: int) -> Prompt:
    messages, columns = data["messages"], data["columns"]
    if version > 1:
        messages, columns = from_json(messages), from_json(columns)
    turns = None if messages is None else tuple(messages)
    return Prompt(**{**data, "messages": turns, "columns": columns})
