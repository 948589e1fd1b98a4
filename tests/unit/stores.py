"""Stores of campaigns that never ran: every file a report reads, made without a model in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

from align.config.campaign import CampaignConfig
from align.gate.case import Case
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults
from align.gate.suites.demands import Demands
from align.gate.suites.suites import SuiteRule
from align.gate.verdict import decide
from align.store.ledger.ledger import Ledger
from align.store.snapshots.snapshots import Provenance, Snapshot, SnapshotKind, SnapshotStore
from align.store.store import Store
from tests.unit.campaigns import ENFORCE, campaign, rounds

ITEMS = 60
START = {"general": 50, "polite": 50, "secret": 50, "round0": 10, "round1": 10, "round2": 10}
"""Items that the base passes, of 60."""
GOOD, HARMFUL, BETTER = ({"round0": 50}, {"round1": 55, "general": 20}, {"round2": 45})
"""Items that the candidates of three rounds pass, where that is not what their parents do."""


def stub(folder: Path, name: str | None) -> SnapshotKind:
    """A snapshot whose only file says whose it is."""
    (folder / "config.json").write_text(json.dumps({"made_by": name}))
    return "model"


def made(
    folder: Path,
    *scores: Mapping[str, int],
    write: Callable[[Path, str | None], SnapshotKind] = stub,
    report: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda _, verdict: verdict,
    **changes: Any,
) -> Evidence:
    """A store with one round per mapping, each judged by the real gate; accepted ones become production.

    Args:
        write: puts the files of a round's candidate (None: of the base) into a folder; says what they are.
        report: what a round of this name leaves on record, of its verdict.
    """
    raw = {
        "rounds": rounds(*({} for _ in scores)),
        "gate": ENFORCE,
    } | changes
    config = campaign(folder, **raw)
    ledger = Ledger(f"sqlite:///{config.folder / 'ledger.db'}")
    ledger.open_campaign(config.name, config.content(), config.hash())
    store = Store(config.folder, ledger)
    evidence = Evidence(store=store, config=config)
    base = _snapshot(store.snapshots, config, None, None, write)
    ledger.record_snapshot(base)
    ledger.set_alias_initial("production", base.id)
    rules = _rules(config)
    known = {base.id: _results(base.id, rules, START)}
    evidence.save(base.id, known[base.id])
    passes = {base.id: START}
    accepted: dict[str, str] = {}
    for index, (spec, own) in enumerate(zip(config.rounds, scores, strict=True)):
        parent = ledger.alias("production")
        assert parent is not None
        attempt = ledger.begin_round(index, spec.name, parent)
        candidate = _snapshot(store.snapshots, config, parent, spec.name, write)
        passes[candidate.id] = {**passes[parent], **own}
        known[candidate.id] = _results(candidate.id, rules, passes[candidate.id])
        ledger.record_snapshot(candidate)
        ledger.enter_gating(index, attempt, candidate.id)
        evidence.save(candidate.id, known[candidate.id])
        case = Case(
            target=spec.name,
            candidate=known[candidate.id],
            parent=known[parent],
            start={r.name: known[accepted.get(r.name, base.id)][r.name] for r in rules},
            best={
                r.name: max((known[s][r.name] for s in (base.id, *accepted.values())), key=_mean)
                for r in rules
            },
            suites=tuple(rule for rule in rules if rule.role != "sealed"),
            gate=config.gate,
            accepted_rounds=tuple(accepted),
        )
        verdict = decide(case)
        state = "accepted" if verdict.accepted else "rejected"
        if verdict.accepted:
            accepted[spec.name] = candidate.id
        write_steps(evidence, index, attempt, [_metrics(step) for step in range(spec.steps)])
        ledger.commit_round(
            index, attempt, state, candidate.id, report(spec.name, verdict.to_dict())
        )
    return evidence


def write_steps(
    evidence: Evidence, index: int, attempt: int, steps: Sequence[Mapping[str, float]]
) -> Path:
    """``metrics.jsonl`` of an attempt, one line per step."""
    name = evidence.config.rounds[index].name
    path = evidence.folder / "rounds" / f"{index:02d}-{name}" / f"attempt-{attempt}/metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": i, **m}) + "\n" for i, m in enumerate(steps)))
    return path


def add_answers(evidence: Evidence, name: str, prompt: str, answer: str) -> None:
    """Give every item of a file of results this prompt and this answer, as if it was written so.

    Args:
        name: path in the store.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = evidence.folder / name
    table = pq.ParquetFile(path).read()
    for name, text in (("prompt", prompt), ("answer", answer)):
        table = table.append_column(name, pa.array([text] * table.num_rows))
    pq.write_table(table, path)
    evidence.files.record([path])


def _metrics(step: int) -> dict[str, float]:
    return {
        "reward/mean": 0.1 * step,
        "reward/exact_match": 0.1 * step,
        "kl/new/base": 0.01 * step,
        "entropy": 2.0 - 0.1 * step,
        "completions/tokens_mean": 20.0 + step,
        "drift/K_new": 0.02 * step,
        "batch/new_tokens": 100.0,
        "batch/past_tokens": 10.0,
        "time/update_s": 0.5,
    }


def _rules(config: CampaignConfig) -> list[SuiteRule]:
    suites: list[tuple[str, str | None, Any]] = [(one.name, None, one) for one in config.suites]
    suites += [(spec.name, spec.name, spec.suite) for spec in config.rounds]
    return [
        SuiteRule(
            name=name,
            kind="items",
            role=getattr(suite, "role", "gate"),
            margin=0.2,
            budget=0.3,
            target_of=target,
            hash=f"{name:_<64}",
            demands=Demands(family=suite.family, zero_tolerance=suite.zero_tolerance),
        )
        for name, target, suite in suites
    ]


def _results(
    snapshot: str, rules: Sequence[SuiteRule], passes: Mapping[str, int]
) -> dict[str, ItemResults]:
    """The first items of a suite pass, as many as are given."""
    return {
        rule.name: ItemResults(
            suite=rule.name,
            suite_hash=rule.hash,
            snapshot=snapshot,
            item_ids=tuple(f"{rule.name}-{i}" for i in range(ITEMS)),
            values=tuple(float(i < passes.get(rule.name, 0)) for i in range(ITEMS)),
            statuses=("scored",) * ITEMS,
            finishes=("stop",) * ITEMS,
        )
        for rule in rules
    }


def _mean(items: ItemResults) -> float:
    return items.mean


def _snapshot(
    store: SnapshotStore,
    config: CampaignConfig,
    parent: str | None,
    name: str | None,
    write: Callable[[Path, str | None], SnapshotKind],
) -> Snapshot:
    with TemporaryDirectory() as scratch:
        kind = write(Path(scratch), name)
        return store.publish(
            lambda folder: copytree(scratch, folder, dirs_exist_ok=True) and None,
            Provenance(
                kind=kind,
                parent=parent,
                round=name,
                config_hash=config.hash(),
                seeds={"round": 7},
                data_hashes={"prompts": "d" * 64} if name else {},
                versions={"keel-align": "0.1.0"},
            ),
        )
