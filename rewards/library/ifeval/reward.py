"""IFEval as a reward: the share of a prompt's instructions that its answer follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewards.base import ShownCompletion, completion_text
from rewards.library.ifeval.instructions import follows
from rewards.signatures.options import one_of
from rollouts.errors import UserError

LEVELS = ("instruction", "prompt")


def ifeval(
    completions: Sequence[ShownCompletion],
    instruction_id_list: Sequence[Sequence[str] | None],
    kwargs: Sequence[Sequence[Mapping[str, Any]]],
    level: str = "instruction",
    loose: bool = False,
) -> list[float | None]:
    """Score the share of the prompt's instructions that the completion follows, 0 to 1.

    The columns are those of the data set: ids, and for each its arguments. ``level: prompt`` gives
    1.0 for all of them and 0.0 otherwise. ``loose`` forgives a first or last line around the answer
    and asterisks, as the paper's loose accuracy does (arXiv 2311.07911, section 2.2). None where a
    prompt has no instructions. `rewards.library.ifeval.counting` says where it differs from the original.
    """
    one_of("level", level, LEVELS)
    scores: list[float | None] = []
    for completion, ids, arguments in zip(completions, instruction_id_list, kwargs, strict=True):
        if not ids:
            scores.append(None)
            continue
        if len(arguments or ()) != len(ids):
            raise UserError(f"kwargs has other entries than instruction_id_list, {list(ids)}")
        text = completion_text(completion)
        texts = list(loosened(text)) if loose else [text]
        followed = [
            any(follows(variant, name, values or {}) for variant in texts)
            for name, values in zip(ids, arguments, strict=True)
        ]
        share = sum(followed) / len(followed)
        scores.append(float(share == 1.0) if level == "prompt" else share)
    return scores


def loosened(text: str) -> Iterator[str]:
    """Yield the text without its first line, last line, both or neither; each with and without
    asterisks."""
    lines = text.split("\n")
    for remaining in (lines, lines[1:], lines[:-1], lines[1:-1]):
        variant = "\n".join(remaining).strip()
        yield from (variant, variant.replace("*", ""))
