"""Numbers and LaTeX expressions, equal when mathematics says so: ``0.5``, ``1/2``, ``\\frac{2}{4}``.

By math-verify (https://github.com/huggingface/Math-Verify), in the extra ``rewards``. Its own timeouts
are alarm signals, which only work in a main thread and which computer algebra can outlive, so they are
off: run it under ``isolation: process``, whose deadline ends what hangs, such as ``9^{9^{9^9}}``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from rewards.base import ShownCompletion, completion_text
from rewards.signatures.options import missing_package, whole_number


def math_answer(
    completions: Sequence[ShownCompletion], answer: Sequence[Any], last: int = 2000
) -> list[float | None]:
    """Score 1.0 where the completion's answer equals the column ``answer``, else 0.0.

    The completion's answer is its last boxed or otherwise final expression. Only the ``last``
    characters are read: an endless answer must not cost an endless search. None where the dataset
    has no answer, or one that cannot be read.
    """
    whole_number("last", last)
    try:
        import math_verify
    except ImportError as error:
        raise missing_package("math_answer", "math-verify", error, "rewards") from error
    # It warns at first use that its timeouts are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    scores: list[float | None] = []
    for completion, right in zip(completions, answer, strict=True):
        text = "" if right is None else str(right)
        # LaTeX is only read between delimiters.
        boxed = text if "$" in text or "\\boxed" in text else f"\\boxed{{{text}}}"
        gold = right is not None and (
            math_verify.parse(boxed, parsing_timeout=None)
            or math_verify.parse(text, parsing_timeout=None)
        )
        if not gold:
            scores.append(None)
            continue
        parsed = math_verify.parse(completion_text(completion)[-last:], parsing_timeout=None)
        scores.append(float(math_verify.verify(gold, parsed, timeout_seconds=None)))
    return scores
