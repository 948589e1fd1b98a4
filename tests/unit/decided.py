"""A campaign that was decided on without a model: given values of every snapshot on every suite."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from align.config.campaign import CampaignConfig
from align.data.base_model import SCHEMES
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults
from align.gate.suites.suites import Suite, build_suites
from align.store.ledger.ledger import Ledger
from align.store.store import Store
from launch import cli
from tests.unit.campaigns import raw_campaign
from tests.unit.ledgers import BASE, FIRST, SECOND

N = 200
CHANGES: dict[str, Any] = {
    "gate": {"alpha": 0.05, "campaign_rounds": 2},
    "suites": [
        {"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": N,
         "margin": 0.05, "budget": 0.08}
    ],
}  # fmt: skip

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""Values by snapshot and suite."""


def right(share: int, *, first: int = 0) -> list[float]:
    """``share`` of N items right, from item ``first`` on."""
    return [float(first <= index < first + share) for index in range(N)]


VALUES: Values = {
    BASE.id: {"general": right(N), "first": right(0), "second": right(0)},
    # Loses items 0 and 1 of general.
    FIRST.id: {"general": right(N - 2, first=2), "first": right(100), "second": right(4)},
    # Loses items 2 to 31 of general; of first it loses 0 to 4 and wins 100 to 104.
    SECOND.id: {
        "general": right(N - 32, first=32),
        "first": right(100, first=5),
        "second": right(150),
    },
}
"""The first round is accepted, the second rejected."""


def raw(folder: Path) -> dict[str, Any]:
    campaign = raw_campaign(folder, **CHANGES)
    campaign["defaults"]["suite"] = {"items": N, "temperature": 1.0, "margin": 0.1}
    return campaign


def campaign_file(folder: Path) -> Path:
    """The campaign as a file, its store next to it."""
    path = folder / "campaign.yaml"
    path.write_text(json.dumps(raw(folder)))
    return path


def decided(folder: Path, values: Values = VALUES, rounds: int = 2) -> Evidence:
    """A store in which the first rounds have been decided on these values."""
    config = CampaignConfig.model_validate(raw(folder))
    suites = build_suites(config, SCHEMES, None)  # type: ignore[arg-type]  # No texts to encode.
    ledger = Ledger(f"sqlite:///{config.folder / 'ledger.db'}", clock=Clock())
    ledger.open_campaign(config.name, config.content(), config.hash())
    evidence = Evidence(store=Store(config.folder, ledger), config=config)
    for snapshot in (BASE, FIRST, SECOND):
        ledger.record_snapshot(snapshot)
        evidence.save(snapshot.id, results(suites, snapshot.id, values[snapshot.id]))
    ledger.set_alias_initial("production", BASE.id)
    for index, candidate in enumerate((FIRST, SECOND)[:rounds]):
        name, parent = config.rounds[index].name, ledger.alias("production") or ""
        attempt = ledger.begin_round(index, name, parent)
        ledger.enter_gating(index, attempt, candidate.id)
        verdict = evidence.judge(name, candidate.id, parent, suites)
        outcome = "accepted" if verdict.accepted else "rejected"
        ledger.commit_round(index, attempt, outcome, candidate.id, verdict.to_dict())  # type: ignore[arg-type]
        steps = config.folder / "rounds" / f"{index:02d}-{name}" / f"attempt-{attempt}"
        steps.mkdir(parents=True)
        (steps / "metrics.jsonl").write_text(METRICS)
    return evidence


STEPS: list[dict[str, float]] = [
    {"step": 0, "reward/mean": 0.25, "reward/exact_match": 0.25, "drift/K_new": 0.1}
    | {"batch/new_tokens": 30.0},
    {"step": 1, "reward/mean": 0.75, "reward/exact_match": 0.75}
    | {"batch/new_tokens": 20.0, "batch/past_tokens": 7.0},
]
METRICS = "".join(json.dumps(step) + "\n" for step in STEPS) + '{"step": 2, "rewa'
"""Two steps, and the beginning of a third."""


class Clock:
    """Every look at it takes ten seconds."""

    def __init__(self) -> None:
        self.now = 1_750_000_000.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


def results(
    suites: Sequence[Suite], snapshot: str, values: Mapping[str, Sequence[float]]
) -> dict[str, ItemResults]:
    return {
        suite.name: ItemResults(
            suite=suite.name,
            suite_hash=suite.hash,
            snapshot=snapshot,
            item_ids=suite.item_ids,
            values=tuple(values[suite.name]),
            statuses=("scored",) * N,
            finishes=("stop",) * N,
        )
        for suite in suites
    }


def keel(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in this process."""
    out, error = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        redirect_stdout(out),
        redirect_stderr(error),
        patch.object(sys, "argv", ["keel", *arguments]),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    return int(code), out.getvalue(), error.getvalue()
