"""Lookback of a round on rounds without end: the newest, and of the older ones some by lot.

Every accepted round of a template leaves a suite that must not be lost, and prompts to replay. Were all of
them kept, a decision would cost more every night, and an equal candidate would sooner or later fail one of
so many tests. So a round looks back on every plain round before it, on the newest of each template, and on
a fixed number of its older ones. These are drawn anew for every round, each with the same chance, from the
campaign's seed and the names alone: a resumed round finds the same ones, and over the rounds all come up.

Gate and replay draw apart. Were only rounds looked at that are replayed as well, the gate would see what is
held and never what is not; drawn apart, what it sees is a fair sample of all that was learnt.

A round that is left out keeps its anchor and its best: what was lost while nobody looked counts in full
against its budget when it is drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from align.config.schedule import RememberConfig

Purpose = Literal["gate", "replay"]
"""Purpose that rounds are drawn for."""
SHOWN = 5
"""Names in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A round of the campaign file that others are made of."""

    name: str
    remember: RememberConfig | None
    """Settings of the lookback; None: all of its rounds."""

    @property
    def sentence(self) -> str:
        if self.remember is None:
            return (
                f"rounds of {self.name!r}: later rounds look back on all, and cost more each time"
            )
        return (
            f"rounds of {self.name!r}: later rounds look back on the newest {self.remember.newest} and on "
            f"{self.remember.older} of the older ones, drawn anew each time"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """Earlier rounds, divided; both in the order they were given in."""

    kept: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Sentence that says how many, and which are not among them."""
        count = len(self.kept) + len(self.left_out)
        return f"looks back on {len(self.kept)} of {count} earlier rounds, not on {listed(self.left_out)}"


def recall(earlier: Sequence[str], templates: Mapping[str, Template], draw: str) -> Recall:
    """Divide earlier rounds into those that are looked at and those that are not this time.

    Args:
        earlier: accepted rounds, in order.
        templates: of those rounds that are a template's; all others stay.
        draw: names the draw. Different ones are independent.
    """
    by_template: dict[Template, list[str]] = {}
    for name in earlier:
        if name in templates:
            by_template.setdefault(templates[name], []).append(name)
    left_out: set[str] = set()
    for template, names in by_template.items():
        if template.remember is not None:
            older = names[: -template.remember.newest]
            left_out.update(_in_turn(older, draw)[template.remember.older :])
    return Recall(
        kept=tuple(name for name in earlier if name not in left_out),
        left_out=tuple(name for name in earlier if name in left_out),
    )


def _in_turn(names: Sequence[str], draw: str) -> list[str]:
    """Order names by lot, so that one more name moves no other."""
    return sorted(names, key=lambda name: sha256(f"{draw}/{name}".encode()).digest())


def listed(names: Sequence[str]) -> str:
    """List the first few by name.

    >>> listed(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
