"""Refusal of campaigns whose gate cannot pass, before anything starts, with the items that would suffice.

A candidate that loses nothing must pass more often than not, against all comparators and on all suites
together. What was measured in the store already is no reason to refuse: its campaign goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from align.config.campaign import CampaignConfig, GateConfig
from align.gate.evidence import Evidence
from align.gate.power.power import LEAST_POWER, GatePlan, SuitePlan, plan_gate
from align.gate.statistics.significance import power
from align.gate.suites.suites import Suite
from align.store.ledger.ledger import Ledger
from align.store.store import Store
from rollouts.errors import UserError

NOTHING_TO_LOSE = (
    "no suite guards what was there before: the round is judged by its own gain alone; list suites of what "
    "it must not lose"
)
"""Meaning of a plan without suites that a round could lose."""


def foresee(config: CampaignConfig, suites: Sequence[Suite], ledger: Ledger | None) -> GatePlan:
    """Plan the gate for loaded suites, with the store's measurements if the campaign has begun here."""
    begun = ledger is not None and ledger.alias("production") is not None
    evidence = None
    # The results of a store with a URL may not be here yet.
    if ledger is not None and begun and not config.is_remote:
        evidence = Evidence(store=Store(config.folder, ledger), config=config)
    return plan_gate(config, evidence, suites=suites)


def power_lines(planned: GatePlan) -> Iterator[str]:
    """Yield per suite the smallest margin that its items can test, then the chance to pass all suites."""
    yield f"gate: {planned.spending}"
    for suite in planned.suites:
        smallest = "no margin" if suite.smallest is None else _amount(suite, suite.smallest)
        role = "" if suite.role == "gate" else f" ({suite.role})"
        line = (
            f"  {suite.suite}{role}: {suite.n:,} items can test {smallest}; margin "
            f"{_amount(suite, suite.margin)}, power {suite.joint:.2f}"
        )
        if suite.gain is not None:
            shown = (
                "no gain" if math.isinf(suite.gain) else f"a gain of {_amount(suite, suite.gain)}"
            )
            line += f"; its own round can show {shown}"
        if suite.expected < suite.n:
            line += f"; stops after about {suite.expected:,}"
        yield line
    if not any(suite.guards for suite in planned.suites):
        yield f"  {NOTHING_TO_LOSE}"
        return
    yield (
        "  an equal candidate of the last round passes all of them, against parent, best and start, with "
        f"a chance of {planned.all_pass:.2f}"
    )


def check_power(planned: GatePlan, gate: GateConfig) -> list[str]:
    """Return warnings for suites with too few items, if the campaign goes on all the same.

    Raises:
        UserError: an equal candidate would fail more often than not, on a suite that nothing was measured
            on yet, and the campaign does not ask for a warning.
    """
    short = [
        suite
        for suite in planned.suites
        if not suite.reachable or (suite.guards > 0 and suite.undrifted < LEAST_POWER)
    ]
    together = not short and planned.all_undrifted < LEAST_POWER
    if together:
        short = sorted((s for s in planned.suites if s.guards), key=lambda s: s.undrifted)
    if not short:
        return []
    alpha = planned.alpha_per_look
    what = (
        f"a candidate that loses nothing passes all suites together with a chance of "
        f"{planned.all_undrifted:.2f}; the least certain is {short[0].suite!r}, {_state(short[0], alpha)}"
        if together
        else "; ".join(
            f"suite {suite.suite!r} cannot tell: {_state(suite, alpha)}" for suite in short
        )
    )
    remedy = "; ".join(_remedy(suite, alpha) for suite in (short[:1] if together else short))
    error = UserError(
        what,
        where=short[0].where,
        cause=f"{planned.spending}; {_change(short[0])}",
        remedy=f"{remedy}; or {', or '.join(_other_ways(short, gate))}",
    )
    decides = gate.mode == "enforce" and gate.underpowered == "refuse"
    if decides and any(not suite.measured for suite in short):
        raise error
    return [f"warning: {line}" for line in (what, f"what to do: {remedy}")]


def _other_ways(short: Sequence[SuitePlan], gate: GateConfig) -> Iterator[str]:
    """Yield what else gives suites more power, as far as the gate leaves room for it."""
    if gate.campaign_rounds > 1:
        yield f"declare fewer gate.campaign_rounds than {gate.campaign_rounds}"
    if any(suite.spread.source == "assumed" for suite in short):
        yield f"state a gate.assumed_change below {gate.assumed_change:g} where fewer answers change"
    yield "set gate.underpowered: warn"


def _state(suite: SuitePlan, alpha: float) -> str:
    items = f"{suite.n:,} item{'' if suite.n == 1 else 's'}"
    if not suite.reachable:
        return f"{items} show no gain, however large"
    if (rate := _held_rate(suite, alpha)) is not None:
        return (
            f"{items}, and the share of answers cut or without a score may rise by {100 * rate:.3g} points "
            f"at most, power {suite.undrifted:.2f}"
        )
    return f"{items}, margin {_amount(suite, suite.margin)}, power {suite.undrifted:.2f}"


def _held_rate(suite: SuitePlan, alpha: float) -> float | None:
    """Return the rise of cut or unscored answers that ``n`` items cannot exclude; None if not the cause."""
    rate, others = suite.rate_margin, suite.smallest is not None and suite.power < LEAST_POWER
    return None if rate is None or others or power(suite.n, 0.0, rate, alpha) > 0.0 else rate


def _change(suite: SuitePlan) -> str:
    spread = suite.spread
    much = (
        f"{100 * spread.variance:.3g}% of its items change between two equal snapshots"
        if spread.pass_fail
        else f"an item's difference has a standard deviation of {spread.variance**0.5:.3g}"
    )
    return f"{much} ({'assumed' if spread.source == 'assumed' else 'measured'})"


def _remedy(suite: SuitePlan, alpha: float) -> str:
    """Say which number of items or which margin would suffice."""
    if suite.clusters is not None and suite.clusters < suite.clusters_needed:
        return (
            f"give {suite.suite} items of at least {suite.clusters_needed} clusters, it has "
            f"{suite.clusters}: a collapse that costs the margin may hit none of them; or a larger margin"
        )
    ways = [f"{suite.enough:,} items"]
    if suite.smallest is not None:
        ways.append(f"a margin of {_rounded_up(suite.smallest):g}")
    elif _held_rate(suite, alpha) is not None:
        ways.append("the range of its metric, or a larger truncation_margin and failure_margin")
    return f"give {suite.suite} {' or '.join(ways)}"


def _rounded_up(margin: float) -> float:
    """Round up to two digits."""
    scale = 10.0 ** (math.floor(math.log10(margin)) - 1)
    return math.ceil(margin / scale * (1 - 1e-9)) * scale


def _amount(suite: SuitePlan, value: float) -> str:
    return f"{100 * value:.1f} points" if suite.spread.pass_fail else f"{value:.3g}"
