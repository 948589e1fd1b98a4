"""Spending of alpha over decisions: those of a campaign that ends, or of one that does not.

``T`` rounds are declared, and the ``t``-th decision is taken at

    campaign   alpha / max(t, T). T decisions keep alpha together. Looking on is possible, ever stricter,
               and exceeds it: t decisions by about alpha ln(t / T), without bound.
    recycle    alpha / T and what the decision before it was allowed, if that accepted: ten that accept are
               taken at alpha / 10, 2 alpha / 10, ..., alpha, and the first after a rejection at alpha / 10
               again. The chance that any of T decisions accepts a loss is at most alpha: an acceptance
               either lets a loss through, which is the error itself, or was no test of a loss and spent
               nothing (the fallback procedure: Wiens 2003, Pharmaceutical Statistics 2; Bretz et al. 2009,
               Statistics in Medicine 28). After T decisions what was passed on remains, and else they
               exceed alpha as in ``campaign``.
    window     alpha / T, always. Any T decisions in a row keep alpha, whatever was before: how often a loss
               slips through stays the same, and so does what items can show. How much slips through in
               all is for the budgets against fixed anchors to bound.
    forever    alpha / (2 T) up to T, then alpha T / (2 t (t - 1)), which sums to alpha over all t. All that
               there will be keep alpha, and show ever less: at T = 10 the 300th has 3e-6 of 0.05 left.

Where alpha, T or the way of spending were amended after decisions, what those took stays spent: decisions
to come share what is left in the ratio in which the rule would have shared it, and none gets more than the
rule gives it. With T raised from 4 to 10 after two decisions at alpha / 4, half of alpha is left for eight:
each gets alpha / 16, not alpha / 10. Where nothing is left, decisions go on as undeclared ones do, and
exceed alpha.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from align.config.gate import GateConfig, Spending


class Decision(NamedTuple):
    """A decision that was taken."""

    level: float
    """Error that it was allowed."""
    accepted: bool
    passed_on: float = 0.0
    """Part of the level that the decision before it had passed on."""

    @property
    def own(self) -> float:
        """Part of the level that no earlier decision had."""
        return self.level - self.passed_on


NOTHING = 1e-9
"""Share of alpha below which nothing is left: the rest is rounding."""


def alpha_at(
    alpha: float, campaign_rounds: int, look: int, spending: Spending | None = None
) -> float:
    """Return the error that the ``look``-th decision may make; None spends as ``campaign``.

    Under ``recycle`` this is the level after a rejection; see `recycled_level`.

    >>> [round(alpha_at(0.05, 10, look, "forever"), 6) for look in (1, 10, 11, 300)]
    [0.0025, 0.0025, 0.002273, 3e-06]
    """
    if campaign_rounds < 1:
        raise ValueError(f"a campaign has at least one round, got {campaign_rounds}")
    if spending == "window":
        return alpha / campaign_rounds
    if spending != "forever":
        return alpha / max(look, campaign_rounds)
    if look <= campaign_rounds:
        return alpha / (2 * campaign_rounds)
    return alpha * campaign_rounds / (2 * look * (look - 1))


def level_of(gate: GateConfig, look: int, level: float | None) -> float:
    """Return the error that a decision may make: ``level`` if it was fixed, else by the rule.

    Args:
        look: number of the decision; up to the declared rounds it is one of them.
    """
    look = max(look, gate.campaign_rounds)
    return (
        alpha_at(gate.alpha, gate.campaign_rounds, look, gate.spending) if level is None else level
    )


def alpha_spent(
    alpha: float, campaign_rounds: int, looks: int, spending: Spending | None = None
) -> float:
    """Return the error that ``looks`` decisions may have made together; of a window, those in it.

    >>> round(alpha_spent(0.05, campaign_rounds=10, looks=4), 6)
    0.02
    """
    first = max(1, looks - campaign_rounds + 1) if spending == "window" else 1
    shares = (alpha_at(alpha, campaign_rounds, t, spending) for t in range(first, looks + 1))
    return math.fsum(shares)


def recycled_level(gate: GateConfig, decisions: Iterable[Decision]) -> Decision:
    """Return the next decision of a gate that recycles alpha, with its level; not accepted yet.

    Rejections spend their level. What is left over, and was not passed on, is shared by the declared
    decisions to come; so alpha and ``campaign_rounds`` may be amended on the way.

    Args:
        decisions: those before it, in order, by whatever rule they were taken.

    >>> gate = GateConfig(alpha=0.08, campaign_rounds=4)
    >>> decisions: list[Decision] = []
    >>> for accepted in (True, True, False, True):
    ...     decisions.append(recycled_level(gate, decisions)._replace(accepted=accepted))
    >>> [round(decision.level, 9) for decision in decisions]
    [0.02, 0.04, 0.06, 0.02]
    """
    recycled = Recycled()
    for decision in decisions:
        recycled.add(decision)
    return recycled.next(gate)


@dataclass(slots=True)
class Recycled:
    """Sums over decisions by which a gate that recycles alpha finds the level of the next one."""

    number: int = 0
    spent: float = 0.0
    passed_on: float = 0.0
    """Level of the last decision, if it accepted."""

    def add(self, decision: Decision) -> None:
        """Count a decision that was taken."""
        self.number += 1
        self.passed_on = decision.level if decision.accepted else 0.0
        self.spent += 0.0 if decision.accepted else decision.level

    def next(self, gate: GateConfig) -> Decision:
        """Return the decision to come, with its level; not accepted yet."""
        left = gate.campaign_rounds - self.number
        share = max(0.0, gate.alpha - self.spent - self.passed_on) / left if left > 0 else 0.0
        passed_on = max(0.0, min(self.passed_on, gate.alpha - self.spent))
        if passed_on + share > gate.alpha * NOTHING:
            return Decision(passed_on + share, False, passed_on)
        return Decision(gate.alpha / max(self.number + 1, gate.campaign_rounds), False)


def amended_level(gate: GateConfig, spent: Sequence[float], look: int) -> float:
    """Return the error of the ``look``-th decision after others that were taken by other settings.

    Args:
        spent: error of every decision before it, in order.

    >>> gate = GateConfig(alpha=0.08, campaign_rounds=10)
    >>> amended_level(gate, [0.02, 0.02], look=3)
    0.005
    """
    rounds, spending = gate.campaign_rounds, gate.spending
    rule = alpha_at(gate.alpha, rounds, max(look, rounds), spending)
    if spending == "window":
        window = spent[-(rounds - 1) :] if rounds > 1 else ()
        share = gate.alpha - math.fsum(window)
    else:
        rest = _rest(gate.alpha, rounds, len(spent), spending)
        share = rule * (gate.alpha - math.fsum(spent)) / rest if rest > 0.0 else 0.0
    return min(rule, share) if share > 0.0 else rule


def _rest(alpha: float, campaign_rounds: int, done: int, spending: Spending | None) -> float:
    """Return the error that the rule leaves to all decisions after the first ``done``."""
    declared = max(campaign_rounds - done, 0) / campaign_rounds
    if spending != "forever":
        return alpha * declared
    # 1 / (t (t - 1)) sums to 1 / done over all t > done.
    beyond = campaign_rounds / max(done, campaign_rounds)
    return alpha * (declared + beyond) / 2


def spent_by(gate: GateConfig, *, endless: bool) -> GateConfig:
    """Return the gate with its way of spending, where the file leaves it to the kind of campaign."""
    if gate.spending is not None:
        return gate
    if endless:
        return gate.model_copy(update={"spending": "window"})
    if gate.stopping == "sequential":
        return gate.model_copy(update={"spending": "recycle"})
    return gate


def spending_sentence(gate: GateConfig, look: int, level: float | None = None) -> str:
    """Say which error the ``look``-th decision may make, and what that keeps.

    Args:
        level: where alpha was amended after decisions, or is recycled; None: the rule says it.
    """
    rounds = gate.campaign_rounds
    if gate.spending == "recycle":
        here = alpha_at(gate.alpha, rounds, look) if level is None else level
        return (
            f"alpha {gate.alpha:g} over {max(look, rounds)} decisions: {here:.3g} for number {look}; what "
            "one that accepts was allowed passes on to the next"
        )
    if level is not None:
        shared = f"alpha {gate.alpha:g} over {rounds} decisions"
        return f"{shared}, amended after {look - 1}: {level:.3g} for the next"
    here = alpha_at(gate.alpha, rounds, look, gate.spending)
    if gate.spending == "window":
        return f"alpha {gate.alpha:g} over any {rounds} decisions in a row: {here:.3g} each, without end"
    if gate.spending == "forever":
        return f"alpha {gate.alpha:g} over all there will ever be: {here:.3g} for number {look}"
    return f"alpha {gate.alpha:g} over {max(look, rounds)} decisions: {here:.3g} each"
