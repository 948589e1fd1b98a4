"""Suites as a campaign states them, and what their items can show of an equal candidate.

The candidate is compared with its parent, with the best snapshot so far and with a fixed anchor, and the
shares of its answers that are cut or left without a score are compared with its parent's: all of that must
pass. Numbers only; `align.gate.power.power` knows how much items change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from align.config.campaign import CampaignConfig, RoundConfig, SuiteConfig
from align.config.gate import Family, SuiteDemands
from align.gate.power.early_power import STEPS, EarlyPower, drifted, early_power
from align.gate.statistics.betting import wager
from align.gate.statistics.comparison import (
    MIN_SCORED_ITEMS,
    USUAL_WIDTH,
    clusters_needed,
    unseen_reach,
    windows_needed,
)
from align.gate.statistics.significance import critical_value, joint_power, normal_quantile, power
from align.gate.suites.demands import USUAL_RATE_MARGIN
from align.gate.suites.kinds import KINDS, kind_of_round
from align.gate.suites.looks import LOOKS, num_looks
from align.gate.suites.scale import ScoreScale
from align.gate.suites.suite import Suite
from align.store.lookback import Template
from rewards.registry import facts_of

PlanRole = Literal["gate", "watch", "sealed", "round"]
"""Role of a suite; ``round`` is the target of its round, and guarded after it."""
LARGEST = 1 << 40
"""Upper end of a search for items or for a margin; no campaign reaches it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StatedSuite:
    """Statement of one suite in a campaign file. Margins are in units of its metric."""

    name: str
    family: Family
    role: PlanRole
    where: str
    """Key of the suite in the campaign file."""
    scale: ScoreScale
    """Facts about its values."""
    answers: bool
    """True if it samples answers, of which shares may be cut or left without a score."""
    items: int
    margin: float
    best_margin: float
    budget: float
    rate_margins: tuple[float | None, float | None]
    """Stated margins for the rates of cut answers and of answers without a score; None: not stated."""
    width: float | None
    """Range of the metric; None if it is not known."""
    graded: bool
    """True if the metric is known to give values between pass and fail."""
    snapshots: int
    """Different snapshots that the last round of the campaign is compared with."""
    guards: int
    """Suites like this one that the last round must not lose; for a template, those it remembers."""
    tokens_per_item: int | None
    rounds: int = 0
    """Earlier rounds of a template that a decision looks at once there are enough; 0 if no template."""
    behind: int = 1
    """Rounds between the start, which a budget counts from, and the last candidate."""
    stops: bool = False
    """True if the suite may stop early."""
    max_looks: int = LOOKS
    """Batches that a suite which may stop early is measured in, at most."""
    clusters: int | None = None
    """Independent clusters of the items; None if every item counts by itself or clusters are not known."""
    reduced: bool = False
    """True if items of the suite are retired by a later round, so that results on record have more."""

    def counted(self, suite: Suite | None) -> StatedSuite:
        """Return this statement with the items of the loaded suite; unchanged if it was not loaded."""
        if suite is None:
            return self
        items, labels = len(suite.item_ids), len(set(suite.item_clusters))
        clusters = labels if 0 < labels < items else None
        return replace(self, items=items, clusters=clusters, reduced=bool(suite.larger))

    def margins(self, margin: float) -> tuple[float, ...]:
        """Return the largest loss per comparator if the margin against the parent is ``margin``."""
        best, budget = max(margin, self.best_margin), max(margin, self.budget)
        # Of two snapshots one is the best.
        return {1: (margin,), 2: (margin, budget)}.get(self.snapshots, (margin, best, budget))

    def variances(self, variance: float) -> tuple[float, ...]:
        """Return the variance of one item's difference per comparator, in the last round.

        Answers drift: a snapshot that lies rounds back has fewer in common with a candidate.
        """
        width = self.width or USUAL_WIDTH if self.scale.bounded else None
        start = drifted(variance, self.behind, width)
        best = 0.5 * (variance + start)
        return {1: (variance,), 2: (variance, start)}.get(self.snapshots, (variance, best, start))

    def rate_margin(self, margin: float) -> float | None:
        """Return the smallest rise of cut or unscored answers that is tested; None if none is."""
        if not self.answers:
            return None
        usual = margin / self.width if self.width else USUAL_RATE_MARGIN
        return min(stated or usual for stated in self.rate_margins)

    def fewest(self, pass_fail: bool, margin: float, alpha: float) -> int:
        """Return the number of items below which the gate calls them too few; a margin of 0: a gain."""
        if not self.scale.bounded:
            return windows_needed(margin, alpha)
        return 1 if pass_fail else MIN_SCORED_ITEMS

    def fewest_clusters(self, margin: float, alpha: float) -> int:
        """Return the number of clusters below which the gate calls them too few; a margin of 0: a gain."""
        unseen = self.width or USUAL_WIDTH if self.scale.bounded else math.inf
        return clusters_needed(margin, unseen, alpha)

    def reach(self, n: int, variance: float, pass_fail: bool) -> float:
        """Return the worst difference of an item that a test reckons with; 0: with none."""
        if pass_fail:
            return 0.0
        if not self.scale.bounded:
            return unseen_reach(n, variance)
        return self.width or USUAL_WIDTH

    def joint(
        self,
        n: int,
        variance: float,
        alpha: float,
        *,
        pass_fail: bool,
        margin: float | None = None,
        loss: float = 0.0,
    ) -> float:
        """Return the chance that a candidate passes every check of the suite.

        Args:
            n: items.
            variance: of one item's difference.
            margin: against the parent; None: the stated one.
            loss: true loss of the candidate; 0: it is equal.
        """
        margin = self.margin if margin is None else margin
        few = self.clusters is not None and self.clusters < self.fewest_clusters(margin, alpha)
        if n < self.fewest(pass_fail, margin, alpha) or few:
            return 0.0
        rate = self.rate_margin(margin)
        if self.stops:
            if rate is not None and wager([0.0] * n, rate, alpha, reach=1.0, units=n).lacking:
                return 0.0
            return self.early(n, variance, alpha, margin, loss).joint
        # Shares of answers cut are tested like items; how much they change is nowhere measured.
        shown = 1.0 if rate is None else power(n, 0.0, rate, alpha)
        reach = self.reach(n, variance, pass_fail)
        return shown * joint_power(
            n,
            self.variances(variance),
            self.margins(margin),
            alpha,
            loss=loss,
            pass_fail=pass_fail,
            reach=reach,
        )

    def early(
        self,
        n: int,
        variance: float,
        alpha: float,
        margin: float | None = None,
        loss: float = 0.0,
    ) -> EarlyPower:
        """Return what ``n`` items do with a candidate of some true loss where the suite may stop early."""
        margins = self.margins(self.margin if margin is None else margin)
        width = self.width or USUAL_WIDTH
        # What is lost has changed, at least.
        variances = self.variances(max(variance, loss * width))
        return early_power(n, variances, margins, alpha, width, loss, self.looks(n))

    def looks(self, n: int) -> int:
        """Return how often ``n`` items are looked at: once if the suite does not stop early."""
        units = n if self.clusters is None else min(n, self.clusters)
        return num_looks(units, self.max_looks) if self.stops else 1

    def expected(self, n: int, variance: float, alpha: float) -> int:
        """Return the items that are measured of an equal candidate; all where the suite does not stop."""
        return min(n, math.ceil(self.early(n, variance, alpha).items)) if self.stops else n

    def smallest(
        self, n: int, variance: float, alpha: float, wanted: float, *, pass_fail: bool
    ) -> float | None:
        """Return the smallest margin against the parent at which `joint` is ``wanted``; None if none is."""

        def passes(margin: float) -> bool:
            return self.joint(n, variance, alpha, pass_fail=pass_fail, margin=margin) >= wanted

        top = 1.0 - 1e-9 if pass_fail else float(LARGEST)
        if not passes(top):
            return None
        low = 0.0
        for _ in range(STEPS if self.stops else 60):
            middle = 0.5 * (low + top)
            low, top = (low, middle) if passes(middle) else (middle, top)
        return top

    def enough(self, variance: float, alpha: float, wanted: float, *, pass_fail: bool) -> int:
        """Return the items at which `joint` is ``wanted`` at the stated margin, with a cluster per item."""
        free = replace(self, clusters=None)
        most = 1 << 22 if self.stops else LARGEST
        return _first(lambda n: free.joint(n, variance, alpha, pass_fail=pass_fail) >= wanted, most)

    def gain(
        self,
        n: int,
        variance: float,
        alpha: float,
        wanted: float,
        *,
        pass_fail: bool,
        min_gain: float,
    ) -> float:
        """Return the smallest gain over the parent that ``n`` items show with chance ``wanted``, or inf.

        A pass/fail suite that gains a share g of its items changes at least so many of them.
        """
        if n < self.fewest(pass_fail, 0.0, alpha):
            return math.inf
        reach = self.reach(n, variance, pass_fail)
        deviates = critical_value(n, variance, alpha, reach) + normal_quantile(wanted)
        usual = min_gain + deviates * math.sqrt(variance / n)
        if not pass_fail or usual <= variance:
            return usual
        # (g - min_gain) sqrt(n / g) = deviates, a quadratic in sqrt(g).
        half = 0.5 * deviates / math.sqrt(n)
        gain = (half + math.sqrt(half * half + min_gain)) ** 2
        return gain if gain <= 1.0 else math.inf


def stated_suites(
    config: CampaignConfig, templates: Mapping[str, Template], loaded: Sequence[Suite] = ()
) -> Iterator[StatedSuite]:
    """Yield suites of capabilities, then one per round that makes a policy; a template yields one in all.

    Args:
        loaded: suites whose items can be counted.
    """
    known = {suite.name: suite for suite in loaded}
    policies = [round.name for round in config.rounds if round.algorithm.makes == "policy"]
    for index, spec in enumerate(config.suites):
        snapshots = min(3, max(1, 3 if templates else len(policies)))
        stated = _of_suite(config, spec, f"suites.{index}", snapshots)
        # Rounds from the start to the last candidate; without end, those declared.
        behind = config.gate.campaign_rounds if templates else max(1, len(policies))
        yield replace(stated, behind=behind).counted(known.get(spec.name))
    for index, round in enumerate(config.rounds):
        if round.name in policies:
            template = templates.get(round.name)
            remember = None if template is None else template.remember
            rounds = 0 if remember is None else remember.newest + remember.older
            later = len(policies) - 1 - policies.index(round.name)
            snapshots = 3 if templates else min(3, later)
            guards = (rounds or 1) if later or rounds else 0
            sequential = config.gate.stopping == "sequential"
            stated = _of_round(
                round, f"rounds.{index}.suite", max(1, snapshots), guards, sequential
            )
            behind = config.gate.campaign_rounds if templates else max(1, later)
            stated = replace(stated, rounds=rounds, behind=behind, max_looks=config.gate.max_looks)
            yield stated.counted(known.get(round.name))


def _of_suite(config: CampaignConfig, spec: SuiteConfig, where: str, snapshots: int) -> StatedSuite:
    kind = KINDS[spec.source]
    max_tokens = spec.max_tokens or config.defaults.sampling.max_tokens
    budget = config.gate.budget_of(spec)
    known = kind.stated_range(spec, spec.metrics)
    return StatedSuite(
        name=spec.name,
        family=spec.family,
        role=spec.role,
        where=where,
        scale=kind.scale,
        answers=kind.answers,
        items=spec.items,
        margin=spec.margin,
        best_margin=spec.best_margin or budget,
        budget=budget,
        rate_margins=(spec.truncation_margin, spec.failure_margin),
        width=known[1] - known[0] if known else None,
        graded=_graded(spec, kind.scale, [reward.name for reward in spec.metrics]),
        snapshots=snapshots,
        guards=int(spec.role == "gate"),
        stops=config.gate.stopping == "sequential"
        and spec.role == "gate"
        and (known or kind.scale.range) is not None
        and not (kind.whole or spec.rotate or spec.zero_tolerance),
        max_looks=config.gate.max_looks,
        tokens_per_item=kind.stated_tokens(spec, max_tokens),
    )


def _of_round(
    spec: RoundConfig, where: str, snapshots: int, guards: int, sequential: bool
) -> StatedSuite:
    suite, kind = spec.suite, kind_of_round(spec)
    items = suite.items
    if not kind.answers and spec.data is not None and spec.when is not None:
        # What a round waits for before it takes its rows from the inbox.
        items = max(1, min(items, int(spec.when.new_pairs * spec.data.heldout)))
    budget = suite.budget if suite.budget is not None else 2 * suite.margin
    known = kind.stated_range(suite, spec.rewards)
    return StatedSuite(
        name=spec.name,
        family=suite.family,
        role="round",
        where=where,
        scale=kind.scale,
        answers=kind.answers,
        items=items,
        margin=suite.margin,
        best_margin=suite.best_margin or budget,
        budget=budget,
        rate_margins=(suite.truncation_margin, suite.failure_margin),
        width=known[1] - known[0] if known else None,
        graded=_graded(suite, kind.scale, [reward.name for reward in spec.rewards]),
        snapshots=snapshots,
        guards=guards,
        stops=sequential
        and (known or kind.scale.range) is not None
        and not (kind.whole or suite.zero_tolerance),
        tokens_per_item=suite.max_tokens or spec.sampling.max_tokens if kind.answers else None,
    )


def _graded(spec: SuiteDemands, scale: ScoreScale, metrics: Sequence[str]) -> bool:
    """Tell if values of the suite are known to lie between pass and fail."""
    facts = [facts_of(name) for name in metrics]
    known = any(fact is not None and fact.graded for fact in facts)
    return scale.graded or spec.samples > 1 or known


def _first(holds: Callable[[int], bool], most: int) -> int:
    """Return the smallest of 1 .. most from which a monotone condition holds; ``most`` if it never does."""
    high = 1
    while high < most and not holds(high):
        high *= 2
    low = high // 2 + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high
