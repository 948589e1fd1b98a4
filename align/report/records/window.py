"""Rounds that are shown of a campaign: the newest, a range, or all.

A table of every round against every other one says nothing when there are thousands, and takes minutes. So
whoever shows rounds shows a window, says which one it is, and counts over the whole campaign what is one
number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from align.gate.evidence import Evidence
from rollouts.errors import UserError, nearest

SHOWN_ROUNDS = 50
"""Newest rounds that a command shows where nothing else is asked for."""
SHOWN_ON_PAGE = 400
"""Newest rounds that a report page shows where nothing else is asked for."""
ALL = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Places in the ledger of the rounds to show, from ``first`` to ``last``, both included."""

    first: int
    last: int
    total: int
    """Number of rounds of the campaign."""

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and self.first <= index <= self.last

    def newest(self, count: int) -> Window:
        """Return the newest of these rounds."""
        return replace(self, first=max(self.first, self.last - count + 1))

    @property
    def whole(self) -> bool:
        """True if no round is left out."""
        return self.first <= 0 and self.last >= self.total - 1

    @property
    def ends(self) -> bool:
        """True if the newest round is shown."""
        return self.last >= self.total - 1

    @property
    def sentence(self) -> str:
        """Say which rounds are shown, and how others are; empty where all are."""
        if self.whole:
            return ""
        if self.first >= self.total:
            return f"no round has the number {self.first:,} or a higher one: the last is {self.total - 1:,}"
        return (
            f"rounds {self.first:,} to {self.last:,} of 0 to {self.total - 1:,} are shown; "
            "--rounds FROM..TO shows others, --rounds all every one"
        )


def window_of(evidence: Evidence, stated: str | None, newest: int = SHOWN_ROUNDS) -> Window:
    """Choose the rounds to show.

    Args:
        stated: ``FROM..TO``, each a round's name or its place in the ledger, ``all``, or the number of the
            newest rounds; None: the ``newest``.

    Raises:
        UserError: it is none of these, or there is no such round.
    """
    places = {record.name: record.index for record in evidence.ledger.attempts()}
    last = max(places.values(), default=0)
    total = last + 1
    if stated is None or stated.isdigit():
        count = newest if stated is None else max(1, int(stated))
        return Window(first=max(0, total - count), last=last, total=total)
    if stated == ALL:
        return Window(first=0, last=last, total=total)
    begin, dots, end = stated.partition("..")
    if not dots:
        raise UserError(
            f"{stated!r} says no range of rounds",
            where="--rounds",
            remedy="write FROM..TO with names or numbers of rounds, a number for the newest, or all",
        )
    first, end_place = (_place(word, places, ends) for word, ends in ((begin, 0), (end, last)))
    if first > end_place and end:
        raise UserError(
            f"{stated!r} ends before it begins", where="--rounds", remedy=f"write {end}..{begin}"
        )
    return Window(first=first, last=min(last, end_place), total=total)


def _place(word: str, places: dict[str, int], end: int) -> int:
    """Return the place of a round by its name or number, which may be beyond the last; of nothing, the
    campaign's own end."""
    if not word:
        return end
    if word in places:
        return places[word]
    if word.isdigit():
        return int(word)
    raise UserError(
        f"there is no round {word!r}", where="--rounds", remedy=nearest(word, list(places))
    )
