"""A small classifier that is made from a file of labelled texts, as a reward: how likely is the label?

Naive Bayes over which words a text has (Bernoulli model, present words only; Manning et al. 2008,
"Introduction to Information Retrieval", section 13.3). Made in a second from a few thousand rows, it is no
match for a large reward model, and hence a good witness: it was trained on other texts and falls for
other tricks. Use it as ``gold``, and learn from something better.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rewards.base import ShownCompletion, completion_text
from rollouts.errors import UserError

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


class NaiveBayes:
    """The probability, 0 to 1, that a text has the label ``positive`` and not another one.

    ``data`` is a .jsonl file with the columns ``text`` and ``label``. A text without known words has the
    share of that label in the file. ``smoothing`` is the count added to each word (Lidstone).
    """

    def __init__(
        self,
        data: str | None = None,
        positive: str = "positive",
        text: str = "text",
        label: str = "label",
        smoothing: float = 1.0,
    ) -> None:
        if not data:
            raise UserError("naive_bayes needs data", remedy="add options: {data: FILE.jsonl}")
        if not smoothing > 0:
            raise UserError(f"smoothing must be above 0, got {smoothing}")
        rows = [(words(row[text]), row[label] == positive) for row in _rows(data, text, label)]
        if len({has_label for _, has_label in rows}) < 2:
            raise UserError(
                f"naive_bayes needs texts with the label {positive!r} and texts without",
                where=data,
                remedy="set positive to a label of the file",
            )
        has_label, other = (
            len([1 for _, is_own in rows if is_own is side]) for side in (True, False)
        )
        self.bias = math.log(has_label / other)
        self.weights = log_odds(rows, smoothing)

    def __call__(self, completions: Sequence[ShownCompletion]) -> list[float]:
        """Return one probability per completion."""
        return [self.probability(completion_text(completion)) for completion in completions]

    def probability(self, text: str) -> float:
        """Return the probability that a text has the label."""
        odds = self.bias + sum(self.weights.get(word, 0.0) for word in words(text))
        return 0.5 * (1.0 + math.tanh(0.5 * odds))


def words(text: str) -> frozenset[str]:
    """Return the words of a text, each once, in lower case."""
    return frozenset(WORD.findall(text.lower()))


def log_odds(
    rows: Iterable[tuple[frozenset[str], bool]], smoothing: float = 1.0
) -> dict[str, float]:
    """Return log P(word | label) - log P(word | other label) of each word, as shares of the texts that
    have it."""
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    texts: Counter[bool] = Counter()
    for word_set, has_label in rows:
        counts[has_label].update(word_set)
        texts[has_label] += 1

    def log_share(word: str, has_label: bool) -> float:
        return math.log((counts[has_label][word] + smoothing) / (texts[has_label] + 2 * smoothing))

    return {
        word: log_share(word, True) - log_share(word, False)
        for word in sorted({*counts[True], *counts[False]})
    }


def _rows(path: str, text: str, label: str) -> Iterator[Mapping[str, str]]:
    try:
        lines = Path(path).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("naive_bayes cannot read its data", where=path, cause=str(error)) from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            yield {text: str(row[text]), label: str(row[label])}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"row {number} is not a JSON object with {text!r} and {label!r}",
                where=path,
                cause=f"{type(error).__name__}: {error}",
            ) from error
