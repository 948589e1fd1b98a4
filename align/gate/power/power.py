"""Power of a gate before it decides: margins, items, chances and cost of every suite.

An equal candidate is assumed, whose answers differ from its parent's as much as earlier candidates' did:
measured on the stored results of every decided round against its parent, and assumed where there are
none; in no case less than two measurements of one snapshot differ, where ``keel gate aa`` took them.
Nothing is loaded but the campaign file and the store, so a plan can be had before the first run; items of
suites that were loaded all the same are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from align.config.campaign import CampaignConfig, GateConfig
from align.config.gate import Family
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults
from align.gate.measurement.scores import measured_names
from align.gate.statistics.alpha import level_of, spending_sentence, spent_by
from align.gate.statistics.comparison import variance_of
from align.gate.statistics.noise import noise_floor, repeats_of
from align.gate.statistics.significance import items_needed, power, smallest_margin
from align.gate.suites.looks import in_common
from align.gate.suites.stated import PlanRole, StatedSuite, stated_suites
from align.gate.suites.suites import Suite
from align.store.ledger.ledger import RoundRecord
from align.store.lookback import Lookback, Template, nights_of, templates_in, upcoming
from align.store.snapshots.manifest import MANIFEST
from align.store.stored_files import fault_of
from rollouts.errors import UserError
from rollouts.types import SnapshotId

POWERS = (0.8, 0.95)
NEWEST = 20
"""Decided rounds whose results say how much items change: a campaign of years is not read whole."""
LEAST_POWER = 0.5
"""Power below which an equal candidate fails more often than not."""
ASSUMED_DISCORDANCE = GateConfig().assumed_change
"""Share of items that change between two snapshots, or variance of a score's difference."""
ASSUMED_NATS = 0.01
"""Variance of a window's difference in mean logprob: 0.1 nats either way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Spread of one item's difference between a candidate and its parent."""

    variance: float
    """Variance of one difference; for pass/fail items the share of discordant ones."""
    pass_fail: bool
    rounds: int
    """Decided rounds it was measured on; 0: assumed, unless it is the noise."""
    noise: float | None = None
    """The same between two measurements of one snapshot: a floor; None: not measured."""

    @property
    def source(self) -> Literal["rounds", "A/A", "assumed"]:
        """Origin of the variance, in words."""
        if self.noise is not None and self.variance == self.noise:
            return "A/A"
        return "rounds" if self.rounds else "assumed"


@dataclass(frozen=True, kw_only=True, slots=True)
class SuitePlan:
    """Power of one suite. Margins are in units of its metric."""

    suite: str
    family: Family
    role: PlanRole
    where: str
    """Key of the suite in the campaign file."""
    n: int
    """Number of items: as measured, else as loaded, else as configured."""
    measured: bool
    """True once some snapshot was measured on the suite."""
    margin: float
    spread: Spread
    testable: Mapping[float, float]
    """Smallest margin that these items can show, by power."""
    needed: Mapping[float, int]
    """Items that can show the configured margin, by power."""
    power: float
    """Chance that a candidate, equal or with `GatePlan.loss`, passes this one check at the configured
    margin."""
    joint: float
    """Chance that it passes every check of the suite: against the parent, the best so far and the start
    where these differ in the last round, and whether more answers are cut or left without a score."""
    undrifted: float
    """The same chance while best and start answer as much like the candidate as its parent does: in the
    first rounds. Where even this is small, a campaign is refused."""
    smallest: float | None
    """Smallest margin at which `joint` suffices for all suites to pass together with a chance of .8, were
    they alike; None: there is none."""
    enough: int
    """Items at which `joint` suffices in the same sense, at the configured margin."""
    expected: int
    """Items measured of an equal candidate in the last round: below ``n`` if the suite may stop early."""
    looks: int
    """Batches that the items are measured in, at most; 1 if the suite is measured whole."""
    rate_margin: float | None
    """Largest rise of answers cut or without a score; None: not tested."""
    clusters: int | None
    """Independent clusters of items; None if every item counts by itself or clusters are not known."""
    clusters_needed: int = 0
    """Clusters below which the margin cannot be shown, where items come in clusters."""
    gain: float | None
    """Smallest gain that is shown with a chance of .8 where the suite is its round's target; infinite: no
    gain is. None: it is no target."""
    reachable: bool
    """True if some gain is shown more often than not, or the suite is no target."""
    guards: int
    """Suites like it that the last round must not lose; 0 if only shown or the last target."""
    rounds: int
    """Number of earlier rounds of a template whose suites a decision looks at, once there are so many.
    0: it is no template, or one that remembers all."""
    tokens: int | None
    """Tokens that measuring one snapshot takes, as last counted; before that the most that it can generate,
    or score of a text. None where it depends on a file's rows."""
    seconds: float | None
    """Seconds that measuring one snapshot took last; None where none was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatePlan:
    """All suites of a campaign, and what a decision rests on."""

    alpha: float
    """Over the whole campaign."""
    looks: int
    """Decisions that share it; beyond the declared ones, the number of the next."""
    spending: str
    """Way that alpha is spread over decisions, and what that comes to, in words."""
    alpha_per_look: float
    suites: tuple[SuitePlan, ...]
    all_pass: float
    """Chance that an equal candidate of the last round passes every check of every suite that guards by
    then, were the suites independent."""
    all_undrifted: float
    """The same by `SuitePlan.undrifted`."""
    seconds: float | None
    """Seconds that measuring one candidate on all suites took on average; None where not known."""
    wanted: float = POWERS[0]
    """Chance to pass all checks of all suites for which `SuitePlan.enough` counts items."""
    loss: float = 0.0
    """True loss of the candidate that ``all_pass``, `SuitePlan.power` and `SuitePlan.joint` are for."""
    templates: tuple[Template, ...] = ()
    """Rounds without end, and what is remembered of them."""
    recalls: Mapping[str, Lookback] = field(default_factory=dict)
    """Earlier rounds that the next round of each template looks at, by its name."""

    def tokens(self, *, enough: bool = False, whole: bool = False) -> tuple[int, bool]:
        """Return the tokens of measuring one candidate on all suites, and whether all are known.

        Args:
            enough: with the items at which all suites pass together; else with those that are expected to
                be measured.
            whole: with all items of every suite, the most that a candidate takes.
        """
        each = [
            None
            if suite.tokens is None
            else suite.tokens
            * (suite.n if whole else suite.enough if enough and suite.guards else suite.expected)
            // suite.n
            for suite in self.suites
        ]
        return sum(tokens or 0 for tokens in each), None not in each


def plan_gate(
    config: CampaignConfig,
    evidence: Evidence | None,
    discordance: float | None = None,
    suites: Sequence[Suite] = (),
    loss: float = 0.0,
) -> GatePlan:
    """Compute the power of a campaign's gate.

    Args:
        evidence: of the store; None before the first run.
        discordance: assumed share of items that change where nothing was measured; None: the campaign's.
        suites: those that were loaded, so that their items can be counted.
        loss: true loss of the candidate on every suite, in units of its metric, that the chances to pass
            are for; 0: it is equal.

    Raises:
        UserError: a margin or the assumed share lies outside (0, 1).
    """
    if discordance is not None and not 0 < discordance < 1:
        raise UserError(
            f"an assumed share of {discordance:g} of the items changes",
            where="--discordance",
            remedy="give a share between 0 and 1, such as 0.1",
        )
    decided = [] if evidence is None else evidence.committed()
    nights = {} if evidence is None else nights_of(evidence.ledger.database)
    templates = templates_in(config)
    gate = spent_by(config.gate, endless=bool(templates or nights))
    look = 1 if evidence is None else evidence.looks() + 1
    amended = None if evidence is None else evidence.amended_level(look)
    alpha = level_of(gate, look, amended)
    stated = list(
        stated_suites(config, {template.name: template for template in templates}, suites)
    )
    guards = sum(suite.guards for suite in stated)
    level = _Level(
        alpha=alpha,
        wanted=POWERS[0] ** (1 / max(1, guards)),
        min_gain=gate.min_gain,
        change=gate.assumed_change if discordance is None else discordance,
        loss=loss,
    )
    planned = tuple(_plan(suite, evidence, decided, level) for suite in stated)
    coming = upcoming(nights, () if evidence is None else evidence.ledger.closed())
    return GatePlan(
        alpha=gate.alpha,
        looks=gate.campaign_rounds
        if gate.spending == "window"
        else max(gate.campaign_rounds, look),
        spending=spending_sentence(gate, look, amended),
        alpha_per_look=alpha,
        suites=planned,
        all_pass=math.prod(suite.joint**suite.guards for suite in planned),
        all_undrifted=math.prod(suite.undrifted**suite.guards for suite in planned),
        seconds=None if evidence is None else measuring_seconds(evidence),
        loss=loss,
        templates=tuple(templates),
        recalls={} if evidence is None else {n: evidence.look_back(n, "gate") for n in coming},
    )


def measuring_seconds(evidence: Evidence) -> float | None:
    """Return the mean seconds from a candidate's publication to its first recorded result, of the newest.

    The file times of a store that was copied come after its records; those say nothing.
    """
    times = []
    for record in evidence.committed()[-NEWEST:]:
        manifest = evidence.store.paths.snapshot(record.candidate or "-") / MANIFEST
        if not manifest.is_file():
            continue
        recorded = [e.recorded for e in evidence.ledger.evaluations(record.candidate)]
        if recorded:
            first = min(map(datetime.fromisoformat, recorded)).timestamp()
            times.append(first - manifest.stat().st_mtime)
    usable = [time for time in times if time > 0]
    return math.fsum(usable) / len(usable) if usable else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Level:
    """Settings that all suites of one decision are planned with."""

    alpha: float
    wanted: float
    """Chance to pass that each suite needs for all to pass with a chance of .8."""
    min_gain: float
    change: float
    """Share of items that is assumed to change where nothing was measured."""
    loss: float
    """True loss of the candidate."""


def _plan(
    stated: StatedSuite, evidence: Evidence | None, decided: list[RoundRecord], level: _Level
) -> SuitePlan:
    pairs = [] if evidence is None else _measured(evidence, decided, stated.name)
    repeats = None if evidence is None else _repeats(evidence, stated.name, bool(pairs))
    spread = _spread(stated, pairs, repeats, level.change)
    if spread.pass_fail and not 0 < stated.margin < 1:
        raise UserError(
            f"the margin of {stated.name!r} is {stated.margin:g} and counts in shares of items",
            where=f"{stated.where}.margin",
            remedy="give a share between 0 and 1, such as 0.02 for two points",
        )
    last = pairs[-1][0] if pairs else repeats[1] if repeats else None
    n = len(last.values) if last and not stated.stops and not stated.reduced else stated.items
    variance, alpha, whole = spread.variance, level.alpha, spread.pass_fail
    fewest, target = stated.fewest(whole, stated.margin, alpha), stated.role == "round"
    reach = stated.reach(n, variance, whole)

    def gain(chance: float) -> float:
        return stated.gain(n, variance, alpha, chance, pass_fail=whole, min_gain=level.min_gain)

    return SuitePlan(
        suite=stated.name,
        family=stated.family,
        role=stated.role,
        where=stated.where,
        n=n,
        measured=evidence is not None and stated.name in measured_names(evidence.ledger.database),
        margin=stated.margin,
        spread=spread,
        testable={
            p: smallest_margin(n, variance, alpha, p, pass_fail=whole, reach=reach) for p in POWERS
        },
        needed={
            p: max(
                fewest,
                items_needed(variance, stated.margin, alpha, p, pass_fail=whole, reach=reach),
            )
            for p in POWERS
        },
        power=_alone(stated, n, variance, alpha, whole, level.loss) if n >= fewest else 0.0,
        joint=stated.joint(n, variance, alpha, pass_fail=whole, loss=level.loss),
        undrifted=replace(stated, behind=1).joint(
            n, variance, alpha, pass_fail=whole, loss=level.loss
        ),
        smallest=stated.smallest(n, variance, alpha, level.wanted, pass_fail=whole),
        enough=stated.enough(variance, alpha, level.wanted, pass_fail=whole),
        expected=stated.expected(n, variance, alpha),
        looks=stated.looks(n),
        rate_margin=stated.rate_margin(stated.margin),
        clusters=stated.clusters,
        clusters_needed=stated.fewest_clusters(stated.margin, alpha),
        gain=gain(POWERS[0]) if target else None,
        reachable=not target or math.isfinite(gain(LEAST_POWER)),
        guards=stated.guards,
        rounds=stated.rounds,
        tokens=_tokens(stated, n, last),
        seconds=last.seconds if last else None,
    )


def _alone(
    stated: StatedSuite, n: int, variance: float, alpha: float, whole: bool, loss: float
) -> float:
    """Return the chance of a candidate with a true loss to pass against its parent alone."""
    if stated.stops:
        return stated.early(n, variance, alpha, loss=loss).each[0]
    reach = stated.reach(n, variance, whole)
    return power(n, variance, stated.margin, alpha, loss=loss, pass_fail=whole, reach=reach)


def _repeats(
    evidence: Evidence, suite: str, judged: bool
) -> tuple[ItemResults, ItemResults] | None:
    """Load two measurements of one snapshot, where there are any.

    Once candidates were judged, only those of the snapshot that is production now count: the answers to
    what was learnt since have less noise.
    """
    repeats = repeats_of(evidence, suite)
    if repeats is None or not judged or repeats[0].snapshot == evidence.ledger.alias("production"):
        return repeats
    return None


def _tokens(stated: StatedSuite, n: int, last: ItemResults | None) -> int | None:
    if last is not None and last.tokens is not None:
        return last.tokens * n // len(last.values)
    return None if stated.tokens_per_item is None else n * stated.tokens_per_item


def _measured(
    evidence: Evidence, decided: list[RoundRecord], suite: str
) -> list[tuple[ItemResults, ItemResults]]:
    """Return the results of candidate and parent on a suite, for the newest decided rounds that have both.

    The round that was to change the suite says how much it changed, not how much an equal candidate
    would: it counts only where there is no other.
    """
    newest = decided[-NEWEST:]
    others = [record for record in newest if record.name != suite]
    taught = [record for record in decided if record.name == suite]
    return list(_pairs(evidence, others, suite)) or list(_pairs(evidence, taught, suite))


def _pairs(
    evidence: Evidence, decided: list[RoundRecord], suite: str
) -> Iterator[tuple[ItemResults, ItemResults]]:
    paths: dict[SnapshotId | None, dict[str, Path]] = {}
    snapshots = dict.fromkeys(id for r in decided for id in (r.candidate, r.parent) if id)
    stored = [e for snapshot in snapshots for e in evidence.ledger.evaluations(snapshot)]
    for evaluation in (e for e in stored if e.suite == suite):
        path = evidence.folder / evaluation.path
        if fault_of(path, evaluation.sha256) is None:  # keel run measures the others again.
            paths.setdefault(evaluation.snapshot, {})[evaluation.suite_hash] = path
    for record in decided:
        parents = paths.get(record.parent, {})
        for suite_hash, path in paths.get(record.candidate, {}).items():
            if suite_hash in parents:
                yield in_common(ItemResults.load(path), ItemResults.load(parents[suite_hash]))


def _spread(
    stated: StatedSuite,
    pairs: list[tuple[ItemResults, ItemResults]],
    repeats: tuple[ItemResults, ItemResults] | None,
    change: float,
) -> Spread:
    """Return the mean spread over the rounds, at least the noise; a usual one where none was measured."""
    floor = noise_floor(*repeats, stated.scale) if repeats else None
    if pairs:
        variance = math.fsum(variance_of(after, before) for after, before in pairs) / len(pairs)
    else:
        variance = change if stated.scale.bounded else ASSUMED_NATS
    kinds = [after.is_pass_fail and before.is_pass_fail for after, before in pairs]
    kinds += [floor.pass_fail] if floor else []
    return Spread(
        variance=max(variance, floor.variance if floor else 0.0),
        pass_fail=all(kinds) if kinds else stated.scale.bounded and not stated.graded,
        rounds=len(pairs),
        noise=floor.variance if floor else None,
    )
