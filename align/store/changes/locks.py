"""Settings that committed verdicts rest on and that may not change; all others may.

A round that was accepted or rejected keeps what it was trained by, its place and its name. A suite that
took part in a verdict keeps what it measures: under another name it may measure something else. How much
may be lost (margins, budgets, roles, alpha) is for rounds to come: verdicts store what they were drawn by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from align.store.changes.difference import ABSENT, ConfigChange

JUDGES = frozenset(
    {
        "margin", "budget", "best_margin", "truncation_margin", "failure_margin", "zero_tolerance",
        "family", "role", "every",
    }
)  # fmt: skip
"""Settings of a suite that limit losses and do not affect what is measured."""
DEADLINE = ["harness", "deadline_s"]
"""Path, within a suite, of the seconds that code of its task may take: what is measured does not depend on
them."""

CODE = ["algorithm", "code_sha256"]
"""Path of the hash of a user's own algorithm; it may change, since the code of each run is on record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One live round of the ledger."""

    index: int
    name: str
    state: str
    attempts: int
    """Attempts begun; 0 if the round is only planned."""

    @property
    def decided(self) -> bool:
        return self.state in ("accepted", "rejected")


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """Contents of a store that a campaign file has to respect."""

    slots: tuple[Slot, ...] = ()
    """Live rounds, in the ledger's order."""
    next_index: int = 0
    """Lowest index that was never given to a round."""
    has_base: bool = False
    """True once the base model is the store's first snapshot."""
    judged: frozenset[str] = frozenset()
    """Suites with at least one verdict."""
    pins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of decided rounds and judged suites that the file's defaults no longer give."""

    @property
    def decided(self) -> dict[str, str]:
        """Verdict of every decided round, in order."""
        return {slot.name: slot.state for slot in self.slots if slot.decided}


def lock_of(change: ConfigChange, committed: Committed) -> str | None:
    """Return why a change is refused, or None if it is allowed."""
    head, *rest = change.path
    if head not in RULES:
        return "this version of Keel knows no such setting"
    rule = RULES[head]
    return None if rule is None else rule(change, rest, committed)


def _policy(change: ConfigChange, rest: list[str], committed: Committed) -> str | None:
    if rest == ["model"] and committed.has_base:
        return "the store's base snapshot was made from it; another model is another campaign"
    decided = ", ".join(committed.decided)
    return f"the snapshots of decided rounds were made with it ({decided})" if decided else None


def _seed(change: ConfigChange, rest: list[str], committed: Committed) -> str | None:
    decided = ", ".join(committed.decided)
    return (
        f"decided rounds and what they were measured on were drawn with it ({decided})"
        if (decided)
        else None
    )


def _round(change: ConfigChange, rest: list[str], committed: Committed) -> str | None:
    if not rest or rest[0] not in committed.decided:
        return None
    name, state = rest[0], committed.decided[rest[0]]
    if change.new is ABSENT and len(rest) == 1:
        return (
            f"round {name!r} was {state}: it stays in the file under its name; keel rollback takes "
            "production back behind it"
        )
    if (len(rest) > 2 and rest[1] == "suite" and rest[2] in JUDGES) or rest[1:] == CODE:
        return None
    return f"round {name!r} was {state}, and its verdict rests on it"


def _suite(change: ConfigChange, rest: list[str], committed: Committed) -> str | None:
    if len(rest) < 2 or rest[0] not in committed.judged:
        return None
    if rest[1] in JUDGES or rest[1:] == DEADLINE:
        return None
    return f"verdicts rest on what {rest[0]!r} measures; give the changed suite another name"


RULES: dict[str, Callable[[ConfigChange, list[str], Committed], str | None] | None] = {
    "name": None,
    "policy": _policy,
    "seed": _seed,
    "defaults": None,
    "rounds": _round,
    "suites": _suite,
    "gate": None,
}
"""Rule per top-level key of a campaign's content: why a change is refused. None allows every change."""
