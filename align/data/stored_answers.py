"""Stored answers: of the campaign's start to general prompts, which later policies are held to, and of a
round's parent to prompts of earlier rounds, which the round imitates.

They are sampled once and stored as token ids, those of an episode with the spans that were observed, so
later steps need no sampling for them. No logits are stored: the anchor's distribution is computed in each
step that uses them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from align.algorithms.rows import spans_of
from align.data.json_lines import Record, load_lines, save_lines
from rollouts.types import Completion, Episode, Prompt, RolloutGroup, SnapshotId

SCHEMA_VERSION = 2
"""Version of the file's format: 2 has episodes. A file without any is written as version 1."""


def save_answers(path: Path, groups: Sequence[RolloutGroup]) -> None:
    """Write JSON lines atomically: a version line, then one answer with its prompt on each line."""
    records = [
        {
            "prompt": group.prompt.id,
            "prompt_ids": group.prompt_ids,
            "completion_ids": completion.token_ids,
            "logprobs": completion.logprobs_T,
            "policy": group.policy,
            **_acted(completion),
            **_owned(group),
        }
        for group in groups
        for completion in group.completions_G
        if completion.token_ids
    ]
    episodes = any("observed" in record for record in records)
    save_lines(path, {"schema_version": SCHEMA_VERSION if episodes else 1}, records)


def load_answers(path: Path) -> list[RolloutGroup]:
    """Read what `save_answers` wrote, one group per answer.

    Raises:
        StoreError: a line is damaged, or a newer Keel wrote the file.
    """

    def read(lines: Iterator[Record]) -> list[RolloutGroup]:
        next(lines, None)  # The head.
        return [_group(record) for record in lines]

    return load_lines(
        path,
        read,
        newest=SCHEMA_VERSION,
        what="stored answer",
        remedy="delete the file: it is sampled again from the campaign's start",
    )


def _owned(group: RolloutGroup) -> Record:
    """Return what a line holds of an answer to an earlier round's prompt beyond that of a general one."""
    prompt = group.prompt
    return {} if prompt.source == "general" else {"round": prompt.round, "owner": prompt.owner}


def _acted(completion: Completion) -> Record:
    """Return what a line holds of an episode beyond that of an answer."""
    episode = completion.episode
    return {} if episode is None else {"observed": episode.observed, "turns": episode.turns}


def _episode(data: Record) -> Episode | None:
    if "observed" not in data:
        return None
    return Episode(observed=spans_of(data["observed"]), messages=(), turns=data["turns"])


def _group(data: Record) -> RolloutGroup:
    ids, logprobs = data["completion_ids"], data["logprobs"]
    assert isinstance(ids, list) and isinstance(logprobs, list)
    policy: SnapshotId = str(data["policy"])
    return RolloutGroup(
        prompt=Prompt(
            id=str(data["prompt"]),
            text="",
            source="past" if "round" in data else "general",
            round=data.get("round"),
            owner=data.get("owner"),
        ),
        prompt_ids=tuple(data["prompt_ids"]),
        completions_G=(
            Completion(
                token_ids=tuple(ids),
                logprobs_T=tuple(logprobs),
                text="",
                finish_reason="stop",
                episode=_episode(data),
            ),
        ),
        policy=policy,
        seed=0,
    )
