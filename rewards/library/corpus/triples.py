"""F1 of relation triples, or of other tuples, that an answer lists one on a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rewards.library.corpus.f1 import Named, SetF1
from rewards.signatures.options import given, whole_number
from rollouts.errors import UserError


class TripleF1(SetF1):
    """F1 of the triples in an answer, ``head | relation | tail`` on each line, against those in ``answer``.

    The column holds a list of triples, or text in the same form. An answer may also be a JSON list of
    lists. A triple counts if all its ``parts`` are right up to case and white space; one that is named
    twice counts once, and a line with another number of parts is a wrong one. With ``parts`` 2 it compares
    pairs, such as ``Ada Lovelace | PER``.
    """

    def __init__(self, parts: int = 3, separator: str = "|") -> None:
        """Check the options.

        Raises:
            UserError: there are fewer than two parts, or no separator.
        """
        whole_number("parts", parts, 2)
        given("triple_f1", "separator", separator, '"|"')
        self._parts, self._separator = parts, separator

    def named(self, text: str) -> Named:
        """Return the triples of an answer."""
        return frozenset(map(_plain, self._rows(text)))

    def there(self, right: Any) -> Named:
        """Return the right triples.

        Raises:
            UserError: one of them has another number of parts.
        """
        rows = self._rows(right) if isinstance(right, str) else [self._row(row) for row in right]
        for row in rows:
            if len(row) != self._parts:
                raise UserError(
                    f"the column 'answer' holds {self._separator.join(row)!r}, which has {len(row)} parts "
                    f"and not {self._parts}",
                    remedy="give lists of that length, or set the option parts",
                )
        return frozenset(map(_plain, rows))

    def _rows(self, text: str) -> list[list[str]]:
        listed = _json_rows(text)
        if listed is not None:
            return listed
        return [self._row(line) for line in text.splitlines() if line.strip()]

    def _row(self, row: Any) -> list[str]:
        return row.split(self._separator) if isinstance(row, str) else [str(part) for part in row]


def _json_rows(text: str) -> list[list[str]] | None:
    """Return the rows of a JSON list of lists; None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        rows = json.loads(text)
        if not all(isinstance(row, list) for row in rows):
            return None
        return [[str(part) for part in row] for row in rows]
    except (ValueError, RecursionError):
        return None


def _plain(row: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(part.casefold().split()) for part in row)
