"""F1 of labelled spans, such as named entities, in answers that are one tag for each word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rewards.library.corpus.f1 import Named, SetF1
from rewards.signatures.options import missing_package, one_of
from rollouts.errors import UserError

PREFIXES = {
    "IOB1": "IB",
    "IOB2": "IB",
    "IOE1": "IE",
    "IOE2": "IE",
    "IOBES": "IBES",
    "BILOU": "IBLU",
}
"""Letters that begin a tag besides O, by tagging scheme."""
USUAL = "IBES"
"""The same where no scheme is stated."""
OUTSIDE = "O"


class SpanF1(SetF1):
    """F1 of the spans in an answer of tags, ``O B-PER I-PER``, against the tags in the column ``answer``.

    The column holds a list of tags or one text of them. A span counts if its type and both ends are right.
    Spans are read as seqeval reads them: leniently, or by a tagging ``scheme`` such as IOB2, where a span
    that does not begin as the scheme demands is none. A word that is no tag counts as O; missing tags are
    O, and those beyond the last word count as what they say. Needs the extra ``metrics``.
    """

    def __init__(self, scheme: str | None = None) -> None:
        """Check the scheme.

        Raises:
            UserError: there is no such scheme, or seqeval is not installed.
        """
        if scheme is not None:
            one_of("scheme", scheme, list(PREFIXES))
        try:
            import seqeval.metrics.sequence_labeling as labeling
            import seqeval.scheme as schemes
        except ImportError as error:
            raise missing_package("span_f1", "seqeval", error, "metrics") from error
        self._labeling = labeling
        self._schemes = schemes
        self._scheme = None if scheme is None else getattr(schemes, scheme)
        letters = USUAL if scheme is None else PREFIXES[scheme]
        self._tag = re.compile(rf"O|[{letters}]-\S+")

    def named(self, text: str) -> Named:
        """Return the spans of an answer as type, first word and last word."""
        return self._spans(text.split())

    def there(self, right: Any) -> Named:
        """Return the spans of the right tags.

        Raises:
            UserError: one of them is no tag of the scheme.
        """
        tags = right.split() if isinstance(right, str) else [str(tag) for tag in right]
        for tag in tags:
            if not self._tag.fullmatch(tag):
                raise UserError(
                    f"the column 'answer' holds {tag!r}, which is no tag",
                    remedy="write one tag for each word, such as O, B-PER and I-PER",
                )
        return self._spans(tags)

    def _spans(self, words: Sequence[str]) -> Named:
        tags = [word if self._tag.fullmatch(word) else OUTSIDE for word in words]
        if not tags:
            return frozenset()
        if self._scheme is None:
            return frozenset(self._labeling.get_entities(tags))
        (entities,) = self._schemes.Entities([tags], scheme=self._scheme).entities
        return frozenset((e.tag, e.start, e.end - 1) for e in entities)
