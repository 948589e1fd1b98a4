"""Everything the page shows of a campaign, read from its store without loading a model.

The ledger says what happened, manifests say from what, ``metrics.jsonl`` what the steps measured, and the
files of results what became of single items. What is missing or damaged is left out of the page: a report
of half a campaign is of use, an error is not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from align.gate.evidence import Evidence
from align.gate.overlap import Overlap, load_overlaps
from align.gate.verdict import Verdict
from align.report.explanation.answer import ReportAnswer, answer_of
from align.report.html.charts import Curve, Panel, thinned
from align.report.html.forest import Forest, forests_of
from align.report.html.limits import Limits
from align.report.html.rounds import RoundView, manifest_of, round_view
from align.report.html.scores import FamilyView, family_views
from align.report.learning_cost import learning_of
from align.report.records.acts import Act, acts_of
from align.report.records.seals import Seal, seals_of
from align.report.records.wall_time import MEANINGS
from align.report.records.window import SHOWN_ON_PAGE, Window, window_of
from align.round.spending import Spent, Split
from align.store.ledger.ledger import RoundRecord
from align.store.ledger.reservations import reservations_by_round
from align.store.repairs import repaired_by, repairs_of
from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignView:
    """A campaign as the page shows it."""

    name: str
    config_hash: str
    made: datetime
    base: SnapshotId
    production: SnapshotId | None
    families: tuple[FamilyView, ...]
    lineage: tuple[Node, ...]
    drift: tuple[Panel, ...]
    rounds: tuple[RoundView, ...]
    seals: tuple[Seal, ...]
    acts: tuple[Act, ...]
    overlaps: tuple[Overlap, ...]
    gate: tuple[tuple[str, str], ...]
    answer: ReportAnswer
    kept_out_left_out: int
    """Older rounds that were refused or failed, which the first paragraph does not name."""
    forests: tuple[Forest, ...]
    """The gate's comparisons, suite by suite."""
    forests_left_out: int
    faults: tuple[str, ...] = ()
    """Sentences about files of results that are missing or were changed."""
    window: str = ""
    """Sentence that says which rounds the page is about; empty if it is about all."""

    @property
    def running(self) -> bool:
        """Some round has no verdict yet."""
        return any(round.state in ("planned", "running", "gating") for round in self.rounds)

    @property
    def total(self) -> Spent:
        """Work of the learner steps of all rounds."""
        spent = [round.cost.spent for round in self.rounds]
        return Spent(
            rollouts=_summed([each.rollouts for each in spent]),
            tokens=_summed([each.tokens for each in spent]),
            seconds=_summed([each.seconds for each in spent]),
        )

    @property
    def phases(self) -> tuple[str, ...]:
        """Parts of wall time that took any in some round, in the order of a round."""
        present = {part.name for round in self.rounds for part in round.time.parts}
        return (*(n for n in MEANINGS if n in present), *sorted(present - MEANINGS.keys()))

    @property
    def alarms(self) -> tuple[str, ...]:
        """Sentences to act on: evidence that is gone, sealed suites last seen to have lost."""
        last = (seal.openings[-1] for seal in self.seals if seal.openings)
        lost = tuple(opening.sentence for opening in last if opening.outcome == "lost")
        return (*self.faults, *lost)


def collect(evidence: Evidence, now: datetime, window: Window | None = None) -> CampaignView:
    """Read a campaign's store.

    Args:
        now: noted as the time at which the page was made.
        window: rounds to show; None: the newest, which are all of most campaigns.
    """
    config, ledger = evidence.config, evidence.ledger
    window = window or window_of(evidence, None, SHOWN_ON_PAGE)
    attempts = [attempt for attempt in ledger.attempts() if attempt.index in window]
    answer, records = answer_of(evidence, window), [r for r in ledger.rounds() if r.index in window]
    limits, reservations = Limits.of(len(records)), reservations_by_round(ledger.database)
    committed = [
        (r.index, r.name, Verdict.to_show(r.report or {}))
        for r in evidence.committed()
        if r.index in window
    ]
    forests, forests_left_out = forests_of(committed, limits)
    production = ledger.alias("production")
    full = _in_full(records, limits)
    rounds = tuple(
        round_view(
            evidence, r, attempts, reservations, now, limits if r.index in full else limits.brief()
        )
        for r in records
    )

    def kind_of(snapshot: SnapshotId) -> str | None:
        manifest = manifest_of(evidence, snapshot)
        return manifest.provenance.kind if manifest else None

    return CampaignView(
        name=config.name,
        config_hash=config.hash(),
        made=now,
        base=evidence.base,
        production=production,
        families=family_views(
            evidence.matrix(window.newest(SHOWN_ON_PAGE)),
            config,
            {name: verdict for _, name, verdict in committed},
            answer.round or "base",
            limits,
            learning_of(evidence, window),
            evidence.path_scores(),
        ),
        lineage=lineage(evidence.base, attempts, production, kind_of),
        drift=_drift(evidence, rounds),
        rounds=rounds,
        seals=seals_of(evidence),
        acts=acts_of(evidence),
        overlaps=load_overlaps(evidence.folder),
        gate=tuple(_settings(evidence.gate.model_dump(exclude_none=True))),
        answer=replace(answer, kept_out=answer.kept_out[-limits.kept_out :]),
        kept_out_left_out=max(0, len(answer.kept_out) - limits.kept_out),
        forests=forests,
        forests_left_out=forests_left_out,
        faults=tuple(evidence.faults(None if window.whole else [r.candidate for r in records])),
        window=window.sentence,
    )


def _in_full(records: Sequence[RoundRecord], limits: Limits) -> set[int]:
    """Choose the rounds that are shown in full, by their places in the ledger."""
    # Half of the rounds that are shown in full may be old ones that were kept out.
    kept_out = [r.index for r in records if r.state in ("rejected", "failed")]
    kept_out = kept_out[-(limits.rounds // 2) :]
    begun = [r.index for r in records if r.state != "planned" and r.index not in kept_out]
    return {*kept_out, *begun[-(limits.rounds - len(kept_out)) :]}


def _drift(evidence: Evidence, rounds: Sequence[RoundView]) -> tuple[Panel, ...]:
    """Collect drift over the learner steps of all rounds, one after the other."""
    curves: dict[str, list[tuple[float, float]]] = {}
    done = 0
    for round in rounds:
        steps = evidence.store.paths.round(round.index, round.name).steps()
        for step, metrics in steps.items():
            old = [v for name, v in metrics.items() if name.startswith("drift/K_old/")]
            meters = {
                "K_new, from the parent": metrics.get("drift/K_new"),
                "K_old, the largest": max(old, default=None),
                "K_gen, from the base": metrics.get("drift/K_gen"),
            }
            for name, value in meters.items():
                if value is not None:
                    curves.setdefault(name, []).append((done + step + 1, value))
        done += round.steps_done
    if not curves:
        return ()
    whole = [
        Curve(name=name, x=tuple(x for x, _ in points), y=tuple(y for _, y in points))
        for name, points in curves.items()
    ]
    return (
        Panel(
            title="Drift over the campaign",
            unit="nats per token",
            over="learner steps of all rounds",
            curves=tuple(thinned(curve, 400) for curve in whole),
        ),
    )


def _settings(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield settings with their values; nested ones under both names."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{path}{key}: ")
        else:
            yield f"{path}{key}", f"{value:g}" if isinstance(value, float) else str(value)


def _summed(splits: Sequence[Split]) -> Split:
    return Split(
        new=math.fsum(split.new for split in splits),
        retention=math.fsum(split.retention for split in splits),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One attempt at a round, or the start of the campaign."""

    name: str
    state: str
    """``start``, or the state of the attempt."""
    attempt: int
    snapshot: SnapshotId | None
    kind: str | None
    """Kind of the snapshot: model, adapter or reward."""
    production: bool = False
    repaired: str = ""
    """Words on the repair, if the first candidate was refused and another took its place."""
    sides: tuple[tuple[Node, ...], ...] = ()
    """Lines that left from here and that production did not follow."""


def lineage(
    base: SnapshotId,
    attempts: Iterable[RoundRecord],
    production: SnapshotId | None,
    kind_of: Callable[[SnapshotId], str | None],
) -> tuple[Node, ...]:
    """Follow the line from the start to the newest accepted policy; everything else hangs on its sides."""
    children: defaultdict[SnapshotId, list[Node]] = defaultdict(list)
    for record in attempts:
        if record.parent is not None:
            children[record.parent].append(
                Node(
                    name=record.name,
                    state=record.state,
                    attempt=record.attempt,
                    snapshot=record.candidate,
                    kind=kind_of(record.candidate) if record.candidate else None,
                    production=record.state == "accepted" and record.candidate == production,
                    repaired=repaired_by(repairs_of(record.report)),
                )
            )
    start = Node(
        name="base",
        state="start",
        attempt=0,
        snapshot=base,
        kind=kind_of(base),
        production=base == production,
    )
    return _line(start, children)


def _line(first: Node, children: defaultdict[SnapshotId, list[Node]]) -> tuple[Node, ...]:
    """Follow a node to the accepted policy that came of it, and so on to the last."""
    nodes: list[Node] = []
    node: Node | None = first
    while node is not None:
        born = children.pop(node.snapshot or "", []) if node.state in ("start", "accepted") else []
        heirs = [c for c in born if c.state == "accepted" and c.kind != "reward"]
        heir = heirs[-1] if heirs else None
        sides = tuple(_line(child, children) for child in born if child is not heir)
        nodes.append(replace(node, sides=sides))
        node = heir
    return tuple(nodes)
