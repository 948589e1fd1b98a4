"""Error that the decisions of a campaign were allowed, from the digests of their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from align.config.gate import GateConfig
from align.gate.statistics.alpha import Decision, Recycled, amended_level, level_of, recycled_level
from align.store.ledger.digests import VerdictDigest
from align.store.ledger.records import RoundRecord

Judged = Sequence[tuple[RoundRecord, VerdictDigest]]
"""Committed rounds with the digests of their verdicts, in order."""


def decisions_of(judged: Judged) -> list[Decision]:
    """Return every decision of these rounds, in order, with the error that it was allowed."""
    decisions: list[Decision] = []
    recycled = Recycled()
    for record, digest in judged:
        gate = _gate(digest.gate or "{}")
        accepted = digest.outcome == "accepted"
        looks = [look for look, _ in digest.tried] or [digest.look or 1]
        outcomes = [accepted and id == record.candidate for _, id in digest.tried] or [accepted]
        for look, outcome in zip(looks, outcomes, strict=True):
            decision = Decision(level_of(gate, look, digest.level), outcome)
            if gate.spending == "recycle":
                decision = recycled.next(gate)._replace(accepted=outcome)
            decisions.append(decision)
            recycled.add(decision)
    return decisions


def level_after(judged: Judged, gate: GateConfig, look: int) -> float | None:
    """Return the error of a decision to come if it depends on those before it; None: the rule says it."""
    gates = {_shares(_gate(text)) for text in {digest.gate or "{}" for _, digest in judged}}
    if gate.spending != "recycle" and len(gates | {_shares(gate)}) == 1:
        return None
    decisions = decisions_of(judged)
    if gate.spending == "recycle":
        while len(decisions) < look - 1:  # Candidates of the same round that were refused.
            decisions.append(recycled_level(gate, decisions))
        return recycled_level(gate, decisions[: look - 1]).level
    spent = [decision.own for decision in decisions]
    while len(spent) < look - 1:
        spent.append(amended_level(gate, spent, len(spent) + 1))
    return amended_level(gate, spent, look)


def _shares(gate: GateConfig) -> tuple[float, int, str]:
    """Return the settings by which alpha is shared."""
    return gate.alpha, gate.campaign_rounds, gate.spending or "campaign"


@lru_cache(maxsize=64)
def _gate(text: str) -> GateConfig:
    """Read a gate's settings; most verdicts of a campaign have the same."""
    return GateConfig.model_validate_json(text)
