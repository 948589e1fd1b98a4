"""What the gate will be able to tell, before it decides: margins, items, power and cost of every suite.

An equal candidate is assumed, whose answers differ from its parent's as much as earlier candidates' did:
measured on the stored results of every decided round against its parent, and assumed where there are
none; in no case less than two measurements of one snapshot differ, where ``keel gate aa`` took them.
Nothing is loaded but the campaign file and the store, so a plan can be had before the first run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from align.config import CampaignConfig, RoundConfig, SuiteConfig
from align.demands_config import Family
from align.evidence import Evidence
from align.gate.alpha import spending_sentence, spent_by
from align.gate.checks import MIN_SCORED_ITEMS, compare
from align.gate.evaluate import ItemResults
from align.gate.gate import level_of
from align.gate.noise import noise_floor, repeats_of
from align.gate.sequences import MIN_ITEMS
from align.gate.statistics import items_needed, power, smallest_margin
from align.gate.suites import Kind
from align.memory.ledger import EvaluationRecord, RoundRecord
from align.memory.manifest import MANIFEST
from align.schedule.nights import nights_of, templates_in, upcoming
from align.schedule.recall import Recall, Template
from rollouts.errors import UserError
from rollouts.types import SnapshotId

POWERS = (0.8, 0.95)
ASSUMED_DISCORDANCE = 0.1
"""Share of items that change between two snapshots, or variance of a score's difference."""
ASSUMED_NATS = 0.01
"""Variance of a window's difference in mean logprob: 0.1 nats either way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How much one item differs between a candidate and its parent."""

    variance: float
    """Of one difference; for pass/fail items the share of discordant ones."""
    pass_fail: bool
    rounds: int
    """Decided rounds it was measured on; 0: assumed, unless it is the noise."""
    noise: float | None = None
    """The same between two measurements of one snapshot: a floor; None: not measured."""

    @property
    def source(self) -> Literal["rounds", "A/A", "assumed"]:
        """Where the variance is from."""
        if self.noise is not None and self.variance == self.noise:
            return "A/A"
        return "rounds" if self.rounds else "assumed"


@dataclass(frozen=True, kw_only=True, slots=True)
class SuitePlan:
    """What one suite can tell. Margins are in units of its metric."""

    suite: str
    family: Family
    role: Literal["gate", "watch", "sealed", "round"]
    """``round``: the target of its round, and guarded after it."""
    n: int
    """Items: as measured, else as configured."""
    margin: float
    spread: Spread
    testable: Mapping[float, float]
    """By power, the smallest margin these items can show."""
    needed: Mapping[float, int]
    """By power, items that can show the configured margin."""
    power: float
    """Chance that an equal candidate passes this one check at the configured margin."""
    rounds: int
    """Of a template: earlier rounds with such a suite that a decision looks at, once there are so many.
    0: it is no template, or one that remembers all."""
    tokens: int | None
    """For measuring one snapshot: as it was counted last; else at most, generated or scored for a text;
    None where it depends on a file's rows."""
    seconds: float | None
    """For measuring one snapshot, as it took last; None where it was never measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatePlan:
    """All suites of a campaign, and what a decision rests on."""

    alpha: float
    """Over the whole campaign."""
    looks: int
    """Decisions that share it; beyond the declared ones, the number of the next."""
    spending: str
    """How it is spread over them, and what that comes to."""
    alpha_per_look: float
    suites: tuple[SuitePlan, ...]
    all_pass: float
    """Chance that an equal candidate of the last round passes every suite that guards by then, were
    they independent and the parent the only comparator."""
    seconds: float | None
    """For measuring one candidate on all suites, as it took on average; None where not known."""
    templates: tuple[Template, ...] = ()
    """Rounds without end, and what is remembered of them."""
    recalls: Mapping[str, Recall] = field(default_factory=dict)
    """By the round of a template that is decided on next: what it looks at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What a campaign file says of one suite."""

    name: str
    family: Family
    role: Literal["gate", "watch", "sealed", "round"]
    where: str
    kind: Kind
    items: int
    margin: float
    tokens_per_item: int | None
    rounds: int = 0


def plan_gate(
    config: CampaignConfig, evidence: Evidence | None, discordance: float | None = None
) -> GatePlan:
    """What the gate of a campaign can tell.

    Args:
        evidence: of the store; None before the first run.
        discordance: assumed share of items that change where nothing was measured.

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
    level = None if evidence is None else evidence.amended_level(look)
    alpha = level_of(gate, look, level)
    suites = tuple(
        _plan(asked, evidence, decided, alpha, discordance)
        for asked in _asked(config, {template.name: template for template in templates})
    )
    coming = upcoming(nights, () if evidence is None else evidence.ledger.closed())
    return GatePlan(
        alpha=gate.alpha,
        looks=gate.campaign_rounds
        if gate.spending == "window"
        else max(gate.campaign_rounds, look),
        spending=spending_sentence(gate, look, level),
        alpha_per_look=alpha,
        suites=suites,
        all_pass=math.prod(suite.power**times for suite, times in _guards(suites)),
        seconds=None if evidence is None else measuring_seconds(evidence),
        templates=tuple(templates),
        recalls={} if evidence is None else {n: evidence.recall(n, "gate") for n in coming},
    )


def measuring_seconds(evidence: Evidence) -> float | None:
    """Seconds from a candidate's publication to its first recorded result, on average.

    The file times of a store that was copied come after its records; those say nothing.
    """
    times = []
    for record in evidence.committed():
        manifest = evidence.folder / "snapshots" / (record.candidate or "") / MANIFEST
        recorded = [e.recorded for e in evidence.ledger.evaluations(record.candidate)]
        if recorded and manifest.is_file():
            first = min(map(datetime.fromisoformat, recorded)).timestamp()
            times.append(first - manifest.stat().st_mtime)
    usable = [time for time in times if time > 0]
    return math.fsum(usable) / len(usable) if usable else None


def _asked(config: CampaignConfig, templates: Mapping[str, Template]) -> Iterator[_Asked]:
    """Capability suites, then one per round that makes a policy; one stands for all of a template."""
    for index, spec in enumerate(config.suites):
        yield _of_suite(config, spec, f"suites.{index}")
    for index, round in enumerate(config.rounds):
        if round.algorithm.makes == "policy":
            asked = _of_round(round, f"rounds.{index}.suite")
            template = templates.get(round.name)
            remember = None if template is None else template.remember
            many = 0 if remember is None else remember.newest + remember.older
            yield replace(asked, rounds=many)


def _of_suite(config: CampaignConfig, spec: SuiteConfig, where: str) -> _Asked:
    generated = spec.max_tokens or config.defaults.sampling.max_tokens
    return _Asked(
        name=spec.name,
        family=spec.family,
        role=spec.role,
        where=where,
        kind="items" if spec.text is None else "likelihood",
        items=spec.items,
        margin=spec.margin,
        tokens_per_item=generated if spec.text is None else spec.window,
    )


def _of_round(spec: RoundConfig, where: str) -> _Asked:
    own = spec.suite
    sampled = own.prompts is not None or spec.data is None
    given: Kind = "pairs" if spec.algorithm.material == "pairs" else "likelihood"
    return _Asked(
        name=spec.name,
        family=own.family,
        role="round",
        where=where,
        kind="items" if sampled else given,
        items=own.items,
        margin=own.margin,
        tokens_per_item=(own.max_tokens or spec.sampling.max_tokens) if sampled else None,
    )


def _plan(
    asked: _Asked,
    evidence: Evidence | None,
    decided: list[RoundRecord],
    alpha: float,
    discordance: float | None,
) -> SuitePlan:
    pairs = [] if evidence is None else _measured(evidence, decided, asked.name)
    repeats = None if evidence is None else _repeats(evidence, asked.name, bool(pairs))
    spread = _spread(asked.kind, pairs, repeats, discordance)
    if spread.pass_fail and not 0 < asked.margin < 1:
        raise UserError(
            f"the margin of {asked.name!r} is {asked.margin:g} and counts in shares of items",
            where=f"{asked.where}.margin",
            remedy="give a share between 0 and 1, such as 0.02 for two points",
        )
    last = pairs[-1][0] if pairs else repeats[1] if repeats else None
    n = len(last.values) if last else asked.items
    variance, whole = spread.variance, spread.pass_fail
    # Below, the gate finds too few items whatever they say.
    fewest = 1 if whole else MIN_SCORED_ITEMS if asked.kind == "items" else MIN_ITEMS
    return SuitePlan(
        suite=asked.name,
        family=asked.family,
        role=asked.role,
        n=n,
        margin=asked.margin,
        spread=spread,
        testable={p: smallest_margin(n, variance, alpha, p, pass_fail=whole) for p in POWERS},
        needed={
            p: max(fewest, items_needed(variance, asked.margin, alpha, p, pass_fail=whole))
            for p in POWERS
        },
        power=power(n, variance, asked.margin, alpha, pass_fail=whole) if n >= fewest else 0.0,
        rounds=asked.rounds,
        tokens=_tokens(asked, n, last),
        seconds=last.seconds if last else None,
    )


def _repeats(
    evidence: Evidence, suite: str, judged: bool
) -> tuple[ItemResults, ItemResults] | None:
    """Two measurements of one snapshot. Once candidates were judged, only those of what is production now:
    what it has learnt since, it answers with less noise."""
    found = repeats_of(evidence, suite)
    if found is None or not judged or found[0].snapshot == evidence.ledger.alias("production"):
        return found
    return None


def _tokens(asked: _Asked, n: int, last: ItemResults | None) -> int | None:
    if last is not None and last.tokens is not None:
        return last.tokens
    return None if asked.tokens_per_item is None else n * asked.tokens_per_item


def _guards(suites: tuple[SuitePlan, ...]) -> Iterator[tuple[SuitePlan, int]]:
    """What a candidate of the last round must not lose, and how often. The last round's suite is its
    target, but other rounds of its template have left theirs."""
    rounds = [suite for suite in suites if suite.role == "round"]
    yield from ((suite, 1) for suite in suites if suite.role == "gate")
    yield from ((suite, suite.rounds or 1) for suite in rounds[:-1])
    yield from ((suite, suite.rounds) for suite in rounds[-1:])


def _measured(
    evidence: Evidence, decided: list[RoundRecord], suite: str
) -> list[tuple[ItemResults, ItemResults]]:
    """Results of (candidate, parent) on a suite, for every decided round that has both.

    The round that was to change the suite says how much it changed, not how much an equal candidate
    would: it counts only where there is no other.
    """
    stored = [e for e in evidence.ledger.evaluations() if e.suite == suite]
    others = [record for record in decided if record.name != suite]
    found = list(_pairs(evidence, others, stored))
    return found or list(_pairs(evidence, decided, stored))


def _pairs(
    evidence: Evidence, decided: list[RoundRecord], stored: list[EvaluationRecord]
) -> Iterator[tuple[ItemResults, ItemResults]]:
    paths: dict[SnapshotId | None, dict[str, Path]] = {}
    for one in stored:
        paths.setdefault(one.snapshot, {})[one.suite_hash] = evidence.folder / one.path
    for record in decided:
        parents = paths.get(record.parent, {})
        for suite_hash, path in paths.get(record.candidate, {}).items():
            if suite_hash in parents:
                yield ItemResults.load(path), ItemResults.load(parents[suite_hash])


def _spread(
    kind: Kind,
    pairs: list[tuple[ItemResults, ItemResults]],
    repeats: tuple[ItemResults, ItemResults] | None,
    discordance: float | None,
) -> Spread:
    """Mean over the rounds; of the kind of metric, where nothing was measured; at least the noise."""
    compared = [compare(after, before, kind, 0.0, 0.05) for after, before in pairs]
    floor = noise_floor(*repeats, kind) if repeats else None
    if compared:
        variance = math.fsum(one.variance for one in compared) / len(compared)
    elif discordance is not None and kind != "likelihood":
        variance = discordance
    else:
        variance = ASSUMED_NATS if kind == "likelihood" else ASSUMED_DISCORDANCE
    seen = [one.test == "tango" for one in compared] + ([floor.pass_fail] if floor else [])
    return Spread(
        variance=max(variance, floor.variance if floor else 0.0),
        pass_fail=all(seen) if seen else kind != "likelihood",
        rounds=len(compared),
        noise=floor.variance if floor else None,
    )
