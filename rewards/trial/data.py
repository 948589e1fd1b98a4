"""Answers to try a reward on, from a data file: rows with a prompt, its completions and other columns.

    {"prompt": "2 + 2 =", "completion": "4", "answer": "4"}
    {"prompt": [{"role": "user", "content": "Hi"}], "completions": ["Hello.", "What?"]}

``completion`` is one answer and ``completions`` a list of them; an answer is a text, or messages of which
the last is the assistant's. ``completion_ids`` beside ``completion`` are its tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from rewards.base import Sample
from rollouts.errors import UserError
from rollouts.prompts import content_id, distinct, told_apart
from rollouts.rows import FileRow, read_rows
from rollouts.types import Completion, Prompt

ANSWERS = ("completion", "completions", "completion_ids")


def read_samples(
    data: str, completions: str | None = None, limit: int | None = None
) -> list[Sample]:
    """Read the samples [B] of a data file, in its order.

    Args:
        completions: another file that holds the answers: joined by its ``prompt`` column where its rows
            have one, else row by row.
        limit: rows of ``data`` to read.

    Raises:
        UserError: a file cannot be read, or a row has no prompt or no answer; the row is named.
    """
    rows = list(islice(read_rows(data, "train"), limit))
    if not rows:
        raise UserError("holds no rows", where=data)
    pairs: Iterable[tuple[FileRow, list[FileRow]]] = [(row, [row]) for row in rows]
    if completions is not None:
        answers = list(read_rows(completions, "train"))
        pairs = _joined(rows, answers, data, completions)
    pairs = list(pairs)
    prompts = told_apart(_prompt(row, _columns(row)) for row, _ in pairs)
    return [
        Sample(prompt=prompt, completion=completion)
        for prompt, (_, its) in zip(prompts, pairs, strict=True)
        for answer in its
        for completion in _completions(answer)
    ]


def read_prompts(data: str, limit: int | None = None) -> list[Prompt]:
    """Read the distinct prompts of a data file with their columns, in its order; answers are left out.

    Raises:
        UserError: the file cannot be read or holds no rows, or a row has no prompt.
    """
    rows = list(islice(read_rows(data, "train"), limit))
    if not rows:
        raise UserError("holds no rows", where=data)
    return distinct(told_apart(_prompt(row, _columns(row)) for row in rows))


def groups_of(samples_B: Sequence[Sample], group_size: int | None = None) -> list[list[Sample]]:
    """Group the samples of one prompt, at most ``group_size`` in a group; prompts as they come."""
    by_prompt: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples_B:
        by_prompt[sample.prompt.id].append(sample)
    return [
        samples[start : start + (group_size or len(samples))]
        for samples in by_prompt.values()
        for start in range(0, len(samples), group_size or len(samples))
    ]


def _joined(
    rows: Sequence[FileRow], answers: Sequence[FileRow], data: str, completions: str
) -> Iterable[tuple[FileRow, list[FileRow]]]:
    """Yield every row with the rows that hold its answers."""
    if not answers or "prompt" not in answers[0].values:
        if len(answers) < len(rows):
            raise UserError(
                f"holds {len(answers)} rows, {data} has {len(rows)}",
                where=completions,
                remedy="one row for each row of the data, or a prompt column to join them by",
            )
        return [(row, [answer]) for row, answer in zip(rows, answers, strict=False)]
    by_prompt: defaultdict[str, list[FileRow]] = defaultdict(list)
    for answer in answers:
        by_prompt[_prompt(answer, {}).id].append(answer)
    pairs = [(row, by_prompt.get(_prompt(row, {}).id, [])) for row in rows]
    if not any(its for _, its in pairs):
        raise UserError(f"answers no prompt of {data}", where=completions)
    return pairs


def _columns(row: FileRow) -> dict[str, Any]:
    return {k: v for k, v in row.values.items() if k != "prompt" and k not in ANSWERS}


def _prompt(row: FileRow, columns: Mapping[str, Any]) -> Prompt:
    value = row.values.get("prompt")
    try:
        if isinstance(value, str):
            return Prompt(id=content_id(value), text=value, columns=columns, location=row.location)
        if isinstance(value, list) and _are_messages(value):
            turns = tuple(value)
            return Prompt(
                id=content_id(value), messages=turns, columns=columns, location=row.location
            )
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not valid Unicode: {error}", where=row.location) from error
    raise UserError(
        "no column 'prompt'" if value is None else "the prompt is neither text nor messages",
        where=row.location,
        remedy='write {"prompt": "...", "completion": "..."}',
    )


def _completions(row: FileRow) -> list[Completion]:
    single, several = row.values.get("completion"), row.values.get("completions")
    if (single is None) == (not several):
        raise UserError(
            "no answer: give either of the columns 'completion' and 'completions'",
            where=row.location,
            remedy="--completions FILE names another file that holds them",
        )
    completions = [single] if single is not None else several
    if not isinstance(completions, list):
        raise UserError("the column 'completions' is not a list", where=row.location)
    ids = row.values.get("completion_ids") if single is not None else None
    if ids is not None and not (isinstance(ids, list) and all(type(i) is int for i in ids)):
        raise UserError("the column 'completion_ids' is no list of integers", where=row.location)
    texts = [value[-1]["content"] if _are_messages(value) else value for value in completions]
    if not all(isinstance(text, str) for text in texts):
        raise UserError("a completion is neither text nor messages", where=row.location)
    tokens = tuple(ids or ())
    return [
        Completion(
            token_ids=tokens, logprobs_T=(0.0,) * len(tokens), text=text, finish_reason="stop"
        )
        for text in texts
    ]


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict)
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            for turn in value
        )
    )
