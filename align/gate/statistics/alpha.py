"""How alpha is spread over decisions: those of a campaign that ends, or of one that does not.

``T`` rounds are declared, and the ``t``-th decision is taken at

    campaign   alpha / max(t, T). T decisions keep alpha together. Looking on is possible, ever stricter,
               and exceeds it: t decisions by about alpha ln(t / T), without bound.
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
from collections.abc import Sequence

from align.config.gate import GateConfig, Spending


def alpha_at(
    alpha: float, campaign_rounds: int, look: int, spending: Spending | None = None
) -> float:
    """Error that the ``look``-th decision may make; None spends as ``campaign``.

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


def alpha_spent(
    alpha: float, campaign_rounds: int, looks: int, spending: Spending | None = None
) -> float:
    """Error that ``looks`` decisions may have made together, retries included; of a window, those in it.

    >>> round(alpha_spent(0.05, campaign_rounds=10, looks=4), 6)
    0.02
    """
    first = max(1, looks - campaign_rounds + 1) if spending == "window" else 1
    shares = (alpha_at(alpha, campaign_rounds, t, spending) for t in range(first, looks + 1))
    return math.fsum(shares)


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
    """The gate with its way of spending, where the file leaves it to the kind of campaign."""
    if gate.spending is None and endless:
        return gate.model_copy(update={"spending": "window"})
    return gate


def spending_sentence(gate: GateConfig, look: int, level: float | None = None) -> str:
    """Say which error the ``look``-th decision may make, and what that keeps.

    Args:
        level: where alpha was amended after decisions; None: the rule says it.
    """
    rounds = gate.campaign_rounds
    if level is not None:
        shared = f"alpha {gate.alpha:g} over {rounds} decisions"
        return f"{shared}, amended after {look - 1}: {level:.3g} for the next"
    here = alpha_at(gate.alpha, rounds, look, gate.spending)
    if gate.spending == "window":
        return f"alpha {gate.alpha:g} over any {rounds} decisions in a row: {here:.3g} each, without end"
    if gate.spending == "forever":
        return f"alpha {gate.alpha:g} over all there will ever be: {here:.3g} for number {look}"
    return f"alpha {gate.alpha:g} over {max(look, rounds)} decisions: {here:.3g} each"
