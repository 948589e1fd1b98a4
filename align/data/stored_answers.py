"""Stored answers of the campaign's start to general prompts, which later policies are held to.

They are sampled once and stored as token ids, so later steps need no sampling for them. No logits are
stored: the anchor's distribution is computed in each step that uses them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from align.errors import StoreError
from align.store.durable import write_atomic
from rollouts.types import Completion, Prompt, RolloutGroup, SnapshotId

SCHEMA_VERSION = 1


def save_answers(path: Path, groups: Sequence[RolloutGroup]) -> None:
    """Write JSON lines atomically: a version line, then one answer with its prompt on each line."""
    lines: list[dict[str, object]] = [{"schema_version": SCHEMA_VERSION}]
    for group in groups:
        lines += [
            {
                "prompt": group.prompt.id,
                "prompt_ids": group.prompt_ids,
                "completion_ids": completion.token_ids,
                "logprobs": completion.logprobs_T,
                "policy": group.policy,
            }
            for completion in group.completions_G
            if completion.token_ids
        ]
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def load_answers(path: Path) -> list[RolloutGroup]:
    """Read what `save_answers` wrote, one group per answer.

    Raises:
        StoreError: a line is damaged, or a newer Keel wrote the file.
    """
    groups = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            data = json.loads(line)
            if number == 1:
                if data["schema_version"] != SCHEMA_VERSION:
                    raise ValueError(f"version {data['schema_version']} is not known here")
                continue
            groups.append(_group(data))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"this is no stored answer ({error!r})",
                where=f"{path}:{number}",
                cause="the file was edited or damaged, or a newer Keel wrote it",
                remedy="delete the file: it is sampled again from the campaign's start",
            ) from error
    return groups


def _group(data: dict[str, object]) -> RolloutGroup:
    ids, logprobs = data["completion_ids"], data["logprobs"]
    assert isinstance(ids, list) and isinstance(logprobs, list)
    policy: SnapshotId = str(data["policy"])
    return RolloutGroup(
        prompt=Prompt(id=str(data["prompt"]), text="", source="general"),
        prompt_ids=tuple(data["prompt_ids"]),  # type: ignore[arg-type]
        completions_G=(
            Completion(
                token_ids=tuple(ids),
                logprobs_T=tuple(logprobs),
                text="",
                finish_reason="stop",
            ),
        ),
        policy=policy,
        seed=0,
    )
