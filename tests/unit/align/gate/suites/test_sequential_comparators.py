"""Comparators of suites that stop early: chosen before the first look, unchanged by measuring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from align.data.base_model import SCHEMES
from align.gate.checks import Against
from align.gate.evidence import Evidence
from align.gate.statistics.sequential import stopping
from align.gate.suites.suites import Suite, build_suites
from tests.unit.decided import BASE, FIRST, SECOND, decided


def suites_of(evidence: Evidence) -> list[Suite]:
    return build_suites(evidence.config, SCHEMES, None)  # type: ignore[arg-type]


def early_of(evidence: Evidence) -> list[Suite]:
    return [stopping(suite) for suite in suites_of(evidence)]


def judged(
    evidence: Evidence, compared: Mapping[str, Mapping[Against, str]], items: dict[str, Any]
) -> dict[str, str]:
    """Return whom the verdict on the second round calls best."""
    suites = early_of(evidence)
    verdict = evidence.judge("second", SECOND.id, FIRST.id, suites, items=items, compared=compared)
    assert verdict.inputs.items == items
    return dict(verdict.inputs.best)


def test_the_best_of_a_verdict_is_the_one_that_was_measured_against(tmp_path: Path) -> None:
    """By all items the base is the best of general: 200 right, and 198 after the first round."""
    evidence = decided(tmp_path, rounds=1)
    compared = evidence.comparator_snapshots("second", early_of(evidence), FIRST.id)
    assert compared["general"] == {"parent": FIRST.id, "best": BASE.id, "start": BASE.id}
    assert compared["second"] == {"parent": FIRST.id}
    chosen = {**compared, "general": {**compared["general"], "best": FIRST.id}}
    items = {name: dict.fromkeys(of.values(), 66) for name, of in chosen.items()}
    assert judged(evidence, chosen, items)["general"] == FIRST.id


@pytest.mark.parametrize(
    "change",
    [
        {"general": {FIRST.id: 66}},
        {"general": {FIRST.id: 66, BASE.id: 66, SECOND.id: 66}},
        {"general": {}},
        {"unknown": {FIRST.id: 66}},
    ],
)
def test_items_name_exactly_the_comparators(change: dict[str, Any], tmp_path: Path) -> None:
    evidence = decided(tmp_path, rounds=1)
    compared = evidence.comparator_snapshots("second", early_of(evidence), FIRST.id)
    items = {name: dict.fromkeys(of.values(), 66) for name, of in compared.items()}
    with pytest.raises(ValueError, match="measured"):
        judged(evidence, compared, items | change)
