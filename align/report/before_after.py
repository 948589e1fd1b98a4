"""Answers of the campaign's start beside production's, on a few items drawn by hash."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from rich.text import Text

from align.gate.evidence import Evidence
from align.report.printable import printable
from align.report.records.compared import ComparedItem, pair_between

NUM_ANSWERS = 3
MOST_BYTES = 400
"""Most bytes of a prompt, and of an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One item with both answers, and its suite."""

    suite: str
    item: ComparedItem


def before_and_after(evidence: Evidence, most: int = NUM_ANSWERS) -> list[Shown]:
    """Return items with stored answers of start and production, from the accepted rounds' suites in turn.

    They are drawn by a hash of their ids, as the report draws its samples.
    """
    production = evidence.ledger.alias("production")
    if production is None or production == evidence.base:
        return []

    hashes = {record.suite: record.suite_hash for record in evidence.ledger.evaluations(production)}
    columns: list[list[Shown]] = []
    for suite in (name for name in evidence.accepted("policy") if name in hashes):
        if len(columns) == most:
            break  # One item of each comes before a second one of any.
        pair = pair_between(evidence, hashes.get(suite), production, evidence.base)
        if pair is not None:
            drawn = sorted(pair.changes, key=lambda change: sha256(change[1].encode()).digest())
            items = pair.items(drawn[:most], MOST_BYTES)
            answered = [i for i in items if None not in (i.answer_before, i.answer_after)]
            if answered:
                columns.append([Shown(suite=suite, item=item) for item in answered])
    turns = [shown[i] for i in range(most) for shown in columns if i < len(shown)]
    return turns[:most]


def answer_lines(evidence: Evidence) -> Iterator[Text]:
    """Yield the prompts, with the answer and its score before and after."""
    shown = before_and_after(evidence)
    if shown:
        yield Text("\nAnswers before the first round and now")
    for entry in shown:
        yield Text(f"  {entry.suite}: {_line(prompt_words(entry.item.prompt or ''))}")
        for when, score, answer in (
            ("before", entry.item.before, entry.item.answer_before),
            ("now", entry.item.after, entry.item.answer_after),
        ):
            yield Text(f"    {when:<6}  {score:5.2f}  {_line(answer or '')}")


def prompt_words(prompt: str) -> str:
    """Return the words of a stored prompt; of a chat, its last turn's.

    >>> prompt_words('[{"role": "user", "content": "Hello?"}]')
    'Hello?'
    """
    try:
        turns = json.loads(prompt)
    except (ValueError, RecursionError):
        return prompt
    if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
        return str(turns[-1].get("content", prompt))
    return prompt


def _line(text: str) -> str:
    return printable(" ".join(text.split()))
