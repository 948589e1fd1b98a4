"""Suites without the items that a later round overrides, and what is on record of the larger ones.

What is left of a suite is a suite of its own, with its own hash. Results of a larger form hold its items,
sampled in the same places and with the same seeds, so nothing is measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from align.data.retirement import RetiredItems
from align.gate.suites.suite import Suite

Prepare = Callable[[Sequence[Suite]], list[Suite]]
"""Function that makes suites ready to be measured, which may change their hashes or leave some out."""


def forms_of(suite: Suite, retired: Iterable[RetiredItems]) -> list[Suite]:
    """Return a suite as it was before each round that overrides items of it, and as it is now.

    The last form is the suite as it is. A suite of which no item would be left stays as it was.
    """
    forms, gone = [suite], set[str]()
    for entry in retired:
        if entry.suite != suite.name:
            continue
        gone |= set(entry.items)
        places = [i for i, item in enumerate(suite.item_ids) if item not in gone]
        if places and len(places) < len(forms[-1].item_ids):
            forms.append(suite.reduced(places))
    return forms


def without_retired(
    suites: Sequence[Suite], retired: Sequence[RetiredItems], prepare: Prepare
) -> list[Suite]:
    """Return suites without their retired items, ready to be measured.

    Each knows the hashes of its larger forms, whose results hold all of its items.
    """
    if not retired:
        return prepare(suites)
    current: list[Suite] = []
    for suite in suites:
        forms = [ready for form in forms_of(suite, retired) for ready in prepare([form])]
        if forms:
            larger = tuple(form.hash for form in reversed(forms[:-1]))
            current.append(replace(forms[-1], larger=larger))
    return current
