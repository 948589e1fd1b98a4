"""Demands of a suite besides its mean: a part of the suite's rule, stored with verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from align.config.campaign import CampaignConfig, RewardConfig
from align.config.gate import Family, SuiteDemands
from align.gate.suites.scale import Range
from rewards.registry import facts_of
from rollouts.errors import UserError, nearest

if TYPE_CHECKING:
    from align.gate.suites.suite import Suite

USUAL_RATE_MARGIN = 0.05
"""Margin of truncation and of failures, where the range of the metric is not known."""
MOST_OF_A_RATE = 0.99
"""Largest budget of a rate: a rise by the whole range is none that a test could exclude."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demands:
    """The defaults ask for nothing: verdicts that were stored without demands stay what they were."""

    family: Family = "general"
    best_margin: float | None = None
    """Largest loss against the best so far; None: the suite's margin."""
    truncation_margin: float | None = None
    """Largest rise of the share of answers that were cut; None: not tested."""
    failure_margin: float | None = None
    """The same of answers without a score."""
    truncation_budget: float | None = None
    """Largest rise of the share of answers that were cut against the fixed anchor, over the whole campaign;
    None: not tested."""
    failure_budget: float | None = None
    """The same of answers without a score."""
    zero_tolerance: tuple[str, ...] | Literal["all"] = ()
    """Items that must not fail once they passed."""


def with_demands(config: CampaignConfig, suite: Suite) -> Suite:
    """Return a suite with the demands that the campaign file makes of it.

    Raises:
        UserError: a margin does not fit the metric's range, or an item or a column does not exist.
    """
    spec, where = _spec(config, suite)
    known = suite.stated_range(spec, suite.metric)
    _check_margins(suite, known or suite.scale.range, where)
    _check_items(suite, spec, where)
    sampled = suite.answers
    width = known[1] - known[0] if known else None
    usual = suite.margin / width if width else USUAL_RATE_MARGIN
    cut, unscored = spec.truncation_margin or usual, spec.failure_margin or usual
    demands = Demands(
        family=spec.family,
        best_margin=max(suite.margin, spec.best_margin or suite.budget),
        truncation_margin=cut if sampled else None,
        failure_margin=unscored if sampled else None,
        truncation_budget=rate_budget(cut, suite.margin, suite.budget) if sampled else None,
        failure_budget=rate_budget(unscored, suite.margin, suite.budget) if sampled else None,
        zero_tolerance=spec.zero_tolerance,
    )
    return replace(suite, demands=demands, cluster=spec.cluster, value_range=known)


def rate_budget(rate_margin: float, margin: float, budget: float) -> float:
    """Return the rise of a rate that a campaign may cause, in proportion to the suite's own budget.

    >>> rate_budget(0.05, margin=0.02, budget=0.03)
    0.075
    """
    return min(rate_margin * max(1.0, budget / margin), MOST_OF_A_RATE)


def metric_range(spec: SuiteDemands, metric: Sequence[RewardConfig]) -> Range | None:
    """Return the smallest and largest value of a metric, as stated or as known; None: not known."""
    if spec.range is not None:
        return spec.range
    if len(metric) != 1 or metric[0].weight != 1.0:
        return None
    facts = facts_of(metric[0].name)
    return None if facts is None else facts.range


def _spec(config: CampaignConfig, suite: Suite) -> tuple[SuiteDemands, str]:
    for index, round in enumerate(config.rounds):
        if round.name == suite.target_of:
            return round.suite, f"rounds.{index}.suite"
    index = [spec.name for spec in config.suites].index(suite.name)
    return config.suites[index], f"suites.{index}"


def _check_margins(suite: Suite, known: Range | None, where: str) -> None:
    """Refuse margins as large as the whole range, since no test could exclude such a loss."""
    if known is not None:
        width = known[1] - known[0]
        for name, value in (("margin", suite.margin), ("budget", suite.budget)):
            if not 0 < value < width:
                raise UserError(
                    f"the {name} of {suite.name!r} is {value:g}, and its values lie within {width:g} of "
                    "each other",
                    where=f"{where}.{name}",
                    remedy=f"give a {name} between 0 and {width:g}, such as {0.02 * width:g}",
                )
    if suite.role == "gate" and suite.budget < suite.margin:
        raise UserError(
            f"the budget of {suite.name!r} for the whole campaign is {suite.budget:g}, less than the "
            f"margin of one round, {suite.margin:g}",
            where=f"{where}.budget",
            remedy="raise the budget (gate.total_budget, where the suite has none), or lower the margin",
        )


def _check_items(suite: Suite, spec: SuiteDemands, where: str) -> None:
    """Refuse demands that the suite's items cannot meet."""
    demanded = {
        "zero_tolerance": bool(spec.zero_tolerance),
        "samples": spec.samples > 1,
        "range": spec.range is not None,
    }
    if not suite.answers and any(demanded.values()):
        name = next(name for name, is_set in demanded.items() if is_set)
        raise UserError(
            f"suite {suite.name!r} measures log-likelihood and samples no answers",
            where=f"{where}.{name}",
            remedy=f"remove {name}, or give the suite prompts and a metric",
        )
    ids = [prompt.id for prompt in suite.pool]
    for item in () if spec.zero_tolerance == "all" else spec.zero_tolerance:
        if item not in ids:
            raise UserError(
                f"suite {suite.name!r} has no item {item!r}",
                where=f"{where}.zero_tolerance",
                remedy=nearest(item, ids),
            )
    for prompt in suite.pool if spec.cluster else ():
        if spec.cluster not in prompt.columns:
            item = prompt.location or f"item {prompt.id!r}"
            raise UserError(
                f"{item} of suite {suite.name!r} has no column {spec.cluster!r}",
                where=f"{where}.cluster",
                remedy=nearest(spec.cluster or "", sorted(prompt.columns)),
            )
