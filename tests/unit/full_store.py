"""A store with all that a report can show, and one text wherever a model, a reward or a person wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from align.gate.evidence import Evidence
from align.gate.overlap import Overlap, save_overlaps
from align.round.rollout_table import FIXED, save_records
from align.round.watch.detectors import Signal
from align.round.watch.record import CanaryRecord, WatchRecord
from align.schedule.inbox.purge import purge
from align.store.ledger.baseline import move_baseline
from align.store.ledger.lineage import move_production
from align.store.ledger.tables.inbox import inbox_reservations
from align.store.repairs import RepairStep, with_repairs
from tests.unit.campaigns import rounds
from tests.unit.stores import BETTER, GOOD, add_answers, made, write_steps

LOSING = {"round1": 55, "secret": 20}
"""Items that a candidate passes that the gate accepts, and that a sealed suite says has lost."""
SUITES = [
    {"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": 30},
    {"name": "polite", "prompts": "demo://general", "metric": "exact_match", "family": "safety",
     "zero_tolerance": "all", "items": 30},
    {"name": "secret", "prompts": "demo://general", "metric": "exact_match", "role": "sealed",
     "every": 1, "margin": 0.2, "budget": 0.3, "items": 30},
]  # fmt: skip
STEPS = 20


def full(folder: Path, text: str) -> Evidence:
    """Three rounds: accepted, accepted after a repair, rejected for an item that must not fail."""
    harmful = {**BETTER, "polite": 20}
    evidence = made(
        folder,
        GOOD,
        LOSING,
        harmful,
        report=lambda name, verdict: with_repairs(verdict, steps(text) if name == "round1" else ()),
        rounds=rounds(*({"steps": STEPS} for _ in range(3))),
        suites=SUITES,
    )
    for record in evidence.ledger.evaluations():
        add_answers(evidence, record.path, text, text)
    for index, name in enumerate(("round0", "round1", "round2")):
        _leave(evidence, index, name, text)
    save_overlaps(evidence.folder, [overlap(text)])
    with evidence.ledger.database.write() as connection:
        connection.execute(inbox_reservations.insert().values(**reserved("round1")))
    purge(evidence.store, {}, text)
    _move(evidence, text)
    return evidence


def steps(text: str) -> tuple[RepairStep, ...]:
    """The round itself, a mixture that kept too little, and the distillation that was accepted."""

    def step(look: int, rung: Any, told: str, outcome: Any, kept: float) -> RepairStep:
        return RepairStep(
            rung=rung,
            description=told,
            candidate=f"{look}" * 64,
            look=look,
            outcome=outcome,
            kept=kept,
            reasons=(text,) * 3 if outcome == "rejected" else (),
            seconds=None if rung == "round" else 4.0,
        )

    return (
        step(2, "round", "the round itself", "rejected", 1.0),
        step(3, "interpolate", "interpolation at 0.5", "too_little_kept", 0.25),
        step(4, "distil", "distillation, 15 steps", "accepted", 0.92),
    )


def overlap(suite: str) -> Overlap:
    return Overlap(
        suite=suite, items=30, only_whole=3, ngram=13, unit="words", limit=0.5, highest=0.31, refused=()
    )  # fmt: skip


def reserved(round: str) -> dict[str, Any]:
    return {
        "round": round, "stream": "taste", "above": 40, "newest": 160, "watermark": 40,
        "after_rejection": "used", "num_rows": 118, "state": "used", "taken": "2030-01-01", "ended": None,
    }  # fmt: skip


def metrics(text: str, names: Iterable[str] = ()) -> list[dict[str, float]]:
    """Steps of a round whose parts, owners and others are called after a text."""
    return [
        {
            "reward/mean": 0.1 * i,
            f"reward/{text}": 0.1 * i + 0.01,
            "gold/mean": 0.5 - 0.01 * i,
            "kl/new/parent": 0.01 * i,
            f"drift/K_old/{text}": 0.02 * i,
            "drift/K_new": 0.03 * i,
            "drift/K_gen": 0.001 * i,
            "entropy": 2.0 - 0.05 * i,
            "completions/tokens_mean": 20.0 + i,
            "rollouts/new": 64.0,
            "rollouts/past": 16.0,
            "batch/new_tokens": 100.0,
            "batch/past_tokens": 25.0,
            "time/update_s": 0.5,
            **dict.fromkeys(names, 0.5 + i),
        }
        for i in range(STEPS)
    ]


def _leave(evidence: Evidence, index: int, name: str, text: str) -> None:
    """Write the files of a round's attempt beside the ledger."""
    path = write_steps(evidence, index, 1, metrics(text)).parent
    (path / "distil").mkdir()
    lines = (json.dumps({"step": i, **step}) for i, step in enumerate(metrics(text)))
    (path / "distil/metrics.jsonl").write_text("\n".join(lines))
    for step in (0, 19):
        save_records(path / f"rollouts/step-{step:04d}.parquet", [said(text, n) for n in range(5)])
    signal = Signal(name="length_drift", step=11, sentence=text, value=2.0, threshold=1.0)
    canary = CanaryRecord(reward=text, canary="empty", fooled=5, prompts=8, score=1.0, refused=True)
    WatchRecord(signals=(signal,), canaries_tried=(text,), after=(canary,)).save(path)


def said(text: str, value: int) -> dict[str, Any]:
    """One row of a table of rollouts."""
    empty = {name: 0 if kind == "int64" else None for name, kind in FIXED.items()}
    return {
        **empty, "source": "new", "prompt": text, "completion": text, "status": "scored",
        "value": float(value), "detail": text, f"reward/{text}": float(value), "reward/length": 0.5,
    }  # fmt: skip


def _move(evidence: Evidence, text: str) -> None:
    """A person goes back to the first round and forward again, and moves the anchor."""
    move_production(evidence.ledger, "round0", back=True, reason=text)
    move_production(evidence.ledger, "round1", back=False, reason=text)
    move_baseline(evidence.ledger, evidence.ledger.alias("production") or "", text)
