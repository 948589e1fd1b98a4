"""Prompts that continue one another because they were cut from one conversation or text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from align.data.examples.fingerprints import words
from rollouts.types import Message, Prompt

SHORTEST = 13
"""Smallest number of words that count as the beginning of another text."""


def continuations(
    names: Sequence[str], prompts: Sequence[Prompt | None]
) -> Iterator[tuple[str, str]]:
    """Yield pairs of names whose prompts belong to one conversation.

    Two chats belong to one conversation if one begins with all turns of the other, or if both begin with
    the same exchange. Two texts do if one begins with all words of the other.
    """
    rows = [
        (name, prompt) for name, prompt in zip(names, prompts, strict=True) if prompt is not None
    ]
    yield from _of_chats([(name, p.messages) for name, p in rows if p.messages is not None])
    yield from _of_texts([(name, p.text) for name, p in rows if p.text is not None])


def _of_chats(rows: Sequence[tuple[str, Sequence[Message]]]) -> Iterator[tuple[str, str]]:
    whole = {_beginnings(turns)[-1]: name for name, turns in rows}
    exchanges: dict[int, str] = {}
    for name, turns in rows:
        beginnings = _beginnings(turns)
        for beginning in beginnings[:-1]:
            if beginning in whole:
                yield whole[beginning], name
        answered = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), None)
        if answered is not None:
            yield exchanges.setdefault(beginnings[answered], name), name


def _beginnings(turns: Sequence[Message]) -> list[int]:
    """Return a hash for each turn, of all turns up to and including it."""
    beginnings, above = [], 0
    for turn in turns:
        above = hash((above, turn["role"], turn["content"]))
        beginnings.append(above)
    return beginnings


def _of_texts(rows: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    hashed = [
        np.fromiter(map(hash, words(text)), dtype=np.int64).view(np.uint64) for _, text in rows
    ]
    longest = max(map(len, hashed), default=0)
    factors = np.random.default_rng(0).integers(
        2**64, size=longest, dtype=np.uint64, endpoint=False
    )
    sums = [np.cumsum(hashes * factors[: len(hashes)], dtype=np.uint64) for hashes in hashed]
    whole = {
        int(beginnings[-1]): name
        for (name, _), beginnings in zip(rows, sums, strict=True)
        if len(beginnings) >= SHORTEST
    }
    if not whole:
        return
    known = np.array(sorted(whole), dtype=np.uint64)
    for (name, _), beginnings in zip(rows, sums, strict=True):
        inner = beginnings[SHORTEST - 1 : -1]
        at = np.minimum(np.searchsorted(known, inner), len(known) - 1)
        for beginning in inner[known[at] == inner].tolist():
            yield whole[beginning], name
