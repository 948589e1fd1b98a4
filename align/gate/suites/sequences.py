"""Suites of given token sequences: windows of a text, and held-out examples of a round's own file.

Items depend on each other, and count accordingly: windows of one document, pairs of one prompt. Documents
of a text are parted by the end-of-text token where it is written out, else by blank lines.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from align.config.campaign import SuiteConfig
from align.data.examples.holdout import measured_units, name_of
from rollouts.errors import UserError, nearest
from rollouts.types import Prompt, TokenSpan

if TYPE_CHECKING:
    from align.data.examples import Unit
    from rollouts.prompts import PromptEncoder

TokenPair = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt and of what follows it."""

Spans = tuple[TokenSpan, ...]
"""Tokens of what follows it that were observed and not said."""

MIN_ITEMS = 8
"""Fewest items of such a suite: below, the spread between them cannot be estimated."""


class Sequences(TypedDict):
    """The fields of a suite that hold sequences."""

    sequences: tuple[TokenPair, ...]
    sequence_ids: tuple[str, ...]
    sequence_places: tuple[str, ...]
    sequence_clusters: tuple[str, ...]
    observed: tuple[Spans, ...]
    sequence_prompts: tuple[Prompt | None, ...]


BY_ITEM = ("window", "item")
"""Values of ``cluster`` for a text and for examples by which every item counts by itself."""
END_OF_TEXT = "<|endoftext|>"
BLANK_LINES = re.compile(r"\n\s*\n")


def windows_of(
    token_ids: Sequence[int], window: int, bos: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """Cut non-overlapping windows of ``window`` tokens, each opened by ``bos`` where there is one.

    The remainder is left out: shorter windows would be noisier items.

    >>> windows_of([1, 2, 3, 4, 5], 2)
    ((1, 2), (3, 4))
    >>> windows_of([0, 1, 2, 3, 4, 5], 3, bos=0)
    ((0, 1, 2), (0, 3, 4))
    """
    body = token_ids[1:] if bos is not None and token_ids[:1] == [bos] else token_ids
    opening = () if bos is None else (bos,)
    size = window - len(opening)
    starts = range(0, len(body) - size + 1, size)
    return tuple((*opening, *body[start : start + size]) for start in starts)


def text_sequences(spec: SuiteConfig, where: str, encoder: PromptEncoder) -> Sequences:
    """Read at most ``items`` windows of a text file, each predicted from its first token."""
    path = Path(spec.text or "")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(
            f"the text {spec.text!r} of suite {spec.name!r} cannot be read: {reason}",
            where=f"{where}.text",
            remedy="name a text file in UTF-8; its path starts from the campaign file's folder",
        ) from error
    token_ids = list(encoder.encode(Prompt(id=spec.name, text=text)))
    windows = windows_of(token_ids, spec.window, encoder.tokenizer.bos_token_id)[: spec.items]
    if len(windows) < MIN_ITEMS:
        raise UserError(
            f"the text of suite {spec.name!r} fills {len(windows)} windows of {spec.window} "
            f"tokens, at least {MIN_ITEMS} are needed",
            where=f"{where}.text",
            remedy="give it a longer text, or a smaller window",
        )
    return Sequences(
        sequences=tuple((window[:1], window[1:]) for window in windows),
        observed=(),
        sequence_ids=tuple(f"window/{index}" for index in range(len(windows))),
        sequence_places=(),
        sequence_prompts=(),
        sequence_clusters=_text_clusters(spec, where, text, len(windows), encoder),
    )


def _text_clusters(
    spec: SuiteConfig, where: str, text: str, windows: int, encoder: PromptEncoder
) -> tuple[str, ...]:
    """Name the document that each window begins in; a text of one document has none to name."""
    if spec.cluster not in (None, "document", "window"):
        raise UserError(
            f"suite {spec.name!r} is a text, and cluster is {spec.cluster!r}",
            where=f"{where}.cluster",
            cause="a text has no columns",
            remedy="set cluster to document, as it is by default, or to window, where windows of one "
            "document say nothing of each other",
        )
    starts = list(document_starts(text, encoder.tokenizer.eos_token))
    if spec.cluster == "window" or len(starts) < 2:
        return ()
    bos = encoder.tokenizer.bos_token_id

    def tokens(part: str) -> int:
        try:
            ids = encoder.encode(Prompt(id=spec.name, text=part))
        except UserError:  # Nothing in it but what the tokenizer leaves out.
            return 0
        return len(ids) - (bos is not None and ids[:1] == (bos,))

    parts = [text[start:end] for start, end in pairwise([*starts, len(text)])]
    ends = list(accumulate(map(tokens, parts)))
    # What lies between documents is tokens too, and spread evenly over them.
    scale = ends[-1] / max(1, tokens(text))
    size = spec.window - (bos is not None)
    firsts = [bisect_right(ends, index * size * scale) for index in range(windows)]
    return tuple(f"document/{min(first, len(parts) - 1)}" for first in firsts)


def document_starts(text: str, end_of_text: str | None = None) -> Iterator[int]:
    """Yield where each document of a text begins; the first at 0.

    >>> list(document_starts("One.\\n\\nTwo.\\n \\nThree."))
    [0, 6, 13]
    >>> list(document_starts("One.\\n\\nStill one.<|endoftext|>Two."))
    [0, 29]
    """
    yield 0
    marks = [re.escape(mark) for mark in (end_of_text, END_OF_TEXT) if mark and mark in text]
    for match in re.finditer("|".join(marks) if marks else BLANK_LINES, text.rstrip()):
        yield match.end()


def example_sequences(
    examples: Sequence[Unit], items: int, where: str, cluster: str | None = None
) -> Sequences:
    """Return the answers of at most ``items`` held-out examples; of a pair the better one first.

    Args:
        cluster: column of what examples have in common; None: their prompt, of texts their document.

    Raises:
        UserError: too few examples are held out to measure anything, or they have no such column.
    """
    units = measured_units(examples, items)
    if len(units) < MIN_ITEMS:
        raise UserError(
            f"{len(units)} examples are held out, at least {MIN_ITEMS} are needed",
            where=where,
            remedy="raise heldout, give the file more rows, or name prompts in suite.prompts",
        )
    rows = [
        row
        for unit in units
        for row in sorted(unit.rows, key=lambda row: -(row.advantage or 0.0))
        if len(unit.rows) == 2 or row.advantage == 1.0
    ]
    return Sequences(
        sequences=tuple((row.prompt_ids, row.completion_ids) for row in rows),
        observed=tuple(row.observed for row in rows) if any(row.observed for row in rows) else (),
        sequence_ids=tuple(unit.id for unit in units),
        sequence_places=tuple(unit.location for unit in units),
        sequence_prompts=tuple(unit.prompt for unit in units),
        sequence_clusters=tuple(_example_clusters(units, where, cluster)),
    )


def _example_clusters(units: Sequence[Unit], where: str, cluster: str | None) -> Iterator[str]:
    for unit in units if cluster not in BY_ITEM else ():
        columns = unit.prompt.columns if unit.prompt is not None else {}
        if cluster in (None, "prompt", "document") and cluster not in columns:
            yield unit.documents[0] if unit.documents else name_of(unit)
        elif cluster is not None and cluster in columns:
            yield str(columns[cluster])
        else:
            raise UserError(
                f"{unit.location or f'example {unit.id}'} has no column {cluster!r}",
                where=where.replace(".data", ".suite.cluster"),
                remedy=nearest(str(cluster), ["prompt", "item", *sorted(columns)]),
            )
