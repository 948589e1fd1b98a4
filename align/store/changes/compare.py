"""Comparison of a campaign file with the store it was begun in; check, plan and run share it.

A default that changes is for rounds to come: decided rounds and judged suites that took the old one keep
it, pinned. Rounds without a verdict may be mended, renamed, moved, removed and inserted; those that were
begun give up their place in the ledger for it, and their attempts stay on record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import Any

from align.store.changes.difference import ABSENT, ConfigChange, differences, value_at
from align.store.changes.locks import JUDGES, Committed, Slot, lock_of

SHARED_CAP = ("sampling", "max_tokens")
"""Path of the default length of a suite's answers, used where the suite has no ``max_tokens``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """One change that committed verdicts do not allow."""

    sentence: str
    why: str

    @property
    def line(self) -> str:
        return f"{self.sentence} ({self.why})"


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignComparison:
    """Differences between a campaign file and the one its store knows."""

    changes: tuple[ConfigChange, ...] = ()
    """Allowed amendments, without those that follow from another one."""
    refusals: tuple[Refusal, ...] = ()
    pins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings to keep from now on, by the name of a decided round or judged suite."""
    planned: tuple[tuple[int, str], ...] = ()
    """Index and name of each round that gets a new slot in the ledger."""
    vacated: tuple[Slot, ...] = ()
    """Slots that are given up."""

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(change.sentence for change in self.changes)


def compare(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    committed: Committed,
    quiet: frozenset[str] = frozenset(),
) -> CampaignComparison:
    """Compare what the store knows with what the file says, both as `CampaignConfig.content`.

    Args:
        quiet: rounds whose coming is no amendment: they fell due.
    """
    names = [spec["name"] for spec in new.get("rounds", [])]
    changes, refusals = [], []
    for change in differences(dict(old), dict(new)):
        if change.path == ("rounds",) or (change.path[0] == "rounds" and change.path[1] in quiet):
            continue
        if _changes_nothing(change, old, new, committed):
            continue
        if (why := lock_of(change, committed)) is not None:
            refusals.append(Refusal(sentence=change.sentence, why=why))
        else:
            changes.append(change)
    refusals += _misplaced(names, committed)
    refusals += _renewed(new, old, committed)
    planned, vacated = _places(names, committed)
    known = {spec["name"] for spec in old.get("rounds", [])} & set(names)
    before = [spec["name"] for spec in old.get("rounds", []) if spec["name"] in known]
    after = [name for name in names if name in known]
    if before != after:
        changes.append(ConfigChange(("rounds",), before, after, order=True))
    return CampaignComparison(
        changes=tuple(changes),
        refusals=tuple(refusals),
        pins=dict(_pins(old, new, committed)),
        planned=tuple(planned),
        vacated=tuple(vacated),
    )


def _changes_nothing(
    change: ConfigChange, old: Mapping[str, Any], new: Mapping[str, Any], committed: Committed
) -> bool:
    """Tell if a setting is the one pinned for its round or suite anyway, or a default that differs."""
    if change.order or len(change.path) < 3:
        return False
    kind, name, *rest = change.path
    if name in committed.pins and value_at(committed.pins[name], tuple(rest)) == change.new:
        return True
    below = ("defaults", *rest)
    default, default_now = value_at(old, below), value_at(new, below)
    takes_default = change.old == default and change.new == default_now
    return bool(kind == "rounds" and default != default_now and takes_default)


def _misplaced(names: Sequence[str], committed: Committed) -> Iterator[Refusal]:
    """Refuse rounds newly placed before a decided one, and decided rounds in another order."""
    places = {slot.name: position for position, slot in enumerate(committed.slots)}
    decided = committed.decided
    common = [name for name in names if name in decided]
    in_both = set(common)
    ran = [name for name in decided if name in in_both]
    if common != ran:
        yield Refusal(
            sentence=f"rounds: order {', '.join(ran)} -> {', '.join(common)}",
            why="decided rounds stay in the order in which they ran",
        )
        return
    # Rounds so far that a decided one may refuse, the last in the ledger first.
    earlier: list[tuple[float, int, str]] = []
    for index, name in enumerate(names):
        refused = []
        while name in decided and earlier and -earlier[0][0] >= places[name]:
            refused.append(heappop(earlier)[1:])
        for _, other in sorted(refused):
            yield Refusal(
                sentence=f"rounds.{other}: stands before {name}",
                why=f"round {name!r} was {decided[name]}, and later rounds come after it",
            )
        heappush(earlier, (-places.get(name, inf), index, name))


def _renewed(
    new: Mapping[str, Any], old: Mapping[str, Any], committed: Committed
) -> Iterator[Refusal]:
    """Refuse suites that reuse a judged name and measure something else."""
    known = {suite["name"] for suite in old.get("suites", [])}
    for suite in new.get("suites", []):
        name = suite["name"]
        if name in known or name not in committed.judged or name not in committed.pins:
            continue
        pin = dict(committed.pins[name])
        if suite.get("max_tokens") is None:
            pin["max_tokens"] = None
        for change in differences(pin, dict(suite), ("suites", name)):
            if change.path[2] not in JUDGES:
                why = f"verdicts rest on what {name!r} measured; give the suite another name"
                yield Refusal(sentence=change.sentence, why=why)


def _places(names: Sequence[str], committed: Committed) -> tuple[list[tuple[int, str]], list[Slot]]:
    """Choose slots for rounds that have none, or whose slot no longer fits the order."""
    slots = {slot.name: slot for slot in committed.slots}
    planned: list[tuple[int, str]] = []
    names_in_place: set[str] = set()
    last, free = -1, committed.next_index
    for name in names:
        slot = slots.get(name)
        if slot is not None and (slot.decided or slot.index > last):
            names_in_place.add(name)
            last = max(last, slot.index)
            continue
        planned.append((free, name))
        last, free = free, free + 1
    return planned, [s for s in committed.slots if s.name not in names_in_place and not s.decided]


def _pins(
    old: Mapping[str, Any], new: Mapping[str, Any], committed: Committed
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """List the specs that the file no longer gives but committed verdicts rest on."""
    now = {spec["name"]: spec for kind in ("rounds", "suites") for spec in new.get(kind, [])}
    decided = committed.decided
    for spec in old.get("rounds", []):
        name = spec["name"]
        if name in decided and name not in committed.pins and now.get(name) != spec:
            yield name, spec
    cap = [value_at(content, ("defaults", *SHARED_CAP)) for content in (old, new)]
    for suite in old.get("suites", []):
        name = suite["name"]
        if name not in committed.judged or name in committed.pins:
            continue
        capped = suite.get("prompts") is not None and suite.get("max_tokens") is None
        if name not in now or (capped and cap[0] != cap[1]):
            yield (
                name,
                {**suite, "max_tokens": cap[0]} if capped and cap[0] is not ABSENT else suite,
            )


def kept(spec: Mapping[str, Any], pin: Mapping[str, Any], *, round: bool) -> dict[str, Any]:
    """Return a pinned spec with the margins that the file states now."""
    if round:
        suite = {**pin["suite"], **{k: v for k, v in spec["suite"].items() if k in JUDGES}}
        return {**pin, "suite": suite}
    return {**pin, **{key: value for key, value in spec.items() if key in JUDGES}}
