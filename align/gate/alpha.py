"""How alpha is spread over decisions: those of a campaign that ends, or of one that does not.

``T`` rounds are declared, and the ``t``-th decision is taken at

    campaign   alpha / max(t, T). T decisions keep alpha together. Looking on is possible, ever stricter,
               and exceeds it: t decisions by about alpha ln(t / T), without bound.
    window     alpha / T, always. Any T decisions in a row keep alpha, whatever was before: how often a loss
               slips through stays the same, and so does what items can show. How much slips through in
               all is for the budgets against fixed anchors to bound.
    forever    alpha / (2 T) up to T, then alpha T / (2 t (t - 1)), which sums to alpha over all t. All that
               there will be keep alpha, and show ever less: at T = 10 the 300th has 3e-6 of 0.05 left.
"""

from __future__ import annotations

import math

from align.gate_config import GateConfig, Spending


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


def spent_by(gate: GateConfig, *, endless: bool) -> GateConfig:
    """The gate with its way of spending, where the file leaves it to the kind of campaign."""
    if gate.spending is None and endless:
        return gate.model_copy(update={"spending": "window"})
    return gate


def spending_sentence(gate: GateConfig, look: int) -> str:
    """What the ``look``-th decision is taken at, and what that keeps."""
    rounds = gate.campaign_rounds
    here = alpha_at(gate.alpha, rounds, look, gate.spending)
    if gate.spending == "window":
        return f"alpha {gate.alpha:g} over any {rounds} decisions in a row: {here:.3g} each, without end"
    if gate.spending == "forever":
        return f"alpha {gate.alpha:g} over all there will ever be: {here:.3g} for number {look}"
    return f"alpha {gate.alpha:g} over {max(look, rounds)} decisions: {here:.3g} each"
