"""A verdict in plain sentences: what was lost and won, how sure that is, and what would have changed it.

Everything follows from the stored verdict and the stored items; the prompts are read from the campaign's
own files where they are at hand. It decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from align.config.campaign import CampaignConfig, PromptsConfig
from align.config.gate import Family, Spending
from align.data.retirement import RetiredItems
from align.data.retrieval.record import IndexRecord, index_of_report
from align.gate.checks import Check, Role
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults, paired
from align.gate.reward_models import TIE
from align.gate.statistics.alpha import alpha_spent
from align.gate.statistics.rules import RULES
from align.gate.statistics.significance import holm, mcnemar_exact
from align.gate.suites.kinds import kind_of, score_scale
from align.gate.suites.looks import first
from align.gate.suites.suites import SuiteRule, rendered
from align.gate.summary import HEAD, VerdictRow, reason_of, text_table, verdict_rows
from align.gate.verdict import Verdict
from align.report.explanation.counterfactual import would_change
from align.report.records.history import record_of, watch_of
from align.store.ledger.baseline import BaselineMove, baseline_moves
from align.store.lookback import first_names
from align.store.repairs import MergeOrigin, RepairStep, merge_of, repairs_of
from rollouts.errors import KeelError, UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedItem:
    """One item under the comparator and under the candidate."""

    id: str
    before: float
    after: float
    prompt: str | None
    """Text of the prompt; None if its source is not at hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A check, and what a reader wants to know besides."""

    check: Check
    chance: float
    """McNemar's p that losing and winning an item are equally likely; describes, never decides."""
    budget_used: float | None
    """Share of the suite's budget against the baseline; None against other snapshots."""
    would_change: str
    """Sentence on the smallest change that would have turned this check."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteStory:
    """One suite in a decision, with the items behind it."""

    suite: str
    family: Family
    role: Role
    comparisons: tuple[Compared, ...]
    """Comparisons of the mean with every snapshot."""
    strict: tuple[Compared, ...]
    """Comparisons of answers cut or without a score, and of items that must not fail."""
    lost: tuple[ChangedItem, ...]
    """Against the first comparator; the largest losses first."""
    won: tuple[ChangedItem, ...]
    beside: str
    """Sentence about how often other rules are right about the suite's pairs; else empty."""
    alarm: float | None
    """Holm's p over all guarded suites that it is worse than the parent at all, margin or not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """One decided round."""

    round: str
    accepted: bool
    outcome: str
    look: int
    """Number of this decision in its campaign."""
    campaign_rounds: int
    alpha: float
    """Error that the whole campaign may make."""
    alpha_here: float
    alpha_spent: float
    """Part of ``alpha`` that this decision and those before it have spent; of a window, those in it."""
    suites: tuple[SuiteStory, ...]
    anchors: tuple[BaselineMove, ...] = ()
    """Human acts that moved the baseline before the decision, oldest first."""
    repairs: tuple[RepairStep, ...] = ()
    """All candidates, if the first was refused and others were tried. Everything else here is about the one
    that was decided on."""
    merge: MergeOrigin | None = None
    """Origin of the round's own candidate if it was merged; None if it is what was trained."""
    documents: IndexRecord | None = None
    """Index that the candidate reads; None if it reads none."""
    objections: tuple[str, ...] = ()
    """Signs that the reward was gamed, which rejected it whatever its suites say."""
    noticed: tuple[str, ...] = ()
    """Other such signs, which decided nothing."""
    spending: Spending = "campaign"
    """Rule by which decisions share ``alpha``."""
    left_out: tuple[str, ...] = ()
    """Earlier rounds of templates that were not looked at."""
    retired_items: tuple[RetiredItems, ...] = ()
    """Items of earlier rounds' suites that a later round overrides; every comparison leaves them out."""
    production: str = ""
    """The name of the round that production is from, and the snapshot."""
    reason: str = ""
    """First reason that kept the candidate out; empty if nothing did."""
    table: tuple[VerdictRow, ...] = ()

    def lines(self, items: int = 3) -> Iterator[str]:
        """Yield the explanation for people.

        Args:
            items: most items shown as lost, and as won, of a suite.
        """
        words = self.outcome.replace("_", " ")
        if self.accepted and self.outcome != "accepted":
            words = f"accepted, because the gate only observes; the evidence says {words}"
        yield f"{self.round}: {words}."
        yield f"Production is {self.production}. {_spent(self)}"
        if self.reason:
            yield f"Because {self.reason}."
        yield ""
        yield from text_table(HEAD, (row.cells for row in self.table))
        if self.left_out:
            yield (
                f"Not looked at this time: {len(self.left_out)} of the earlier rounds, "
                f"{first_names(self.left_out)}."
            )
        if self.merge is not None:
            yield f"{self.merge.sentence}."
        if self.documents is not None:
            yield f"It reads {self.documents.sentence}."
        if self.documents is not None and self.documents.verdict:
            yield f"Apart: {self.documents.verdict}."
        for entry in self.retired_items:
            yield f"{entry.sentence[0].upper()}{entry.sentence[1:]}."
        yield from (f"Candidate of decision {r.look}: {r.sentence}." for r in self.repairs)
        yield from (f"Rejected whatever its suites say: {sign}." for sign in self.objections)
        yield from (f"Noticed, {sign}." for sign in self.noticed)
        for move in self.anchors:
            yield (
                f"Budgets count from snapshot {move.snapshot[:16]} since {move.time[:10]}: "
                f"{_short(move.reason)}"
            )
        families = sorted({story.family for story in self.suites})
        for family in families:
            if len(families) > 1:
                yield ""
                yield f"{family.upper()}"
            for story in self.suites:
                if story.family == family:
                    yield ""
                    yield from _story_lines(story, items)


def explain(evidence: Evidence, name: str) -> Explanation:
    """Explain a round's verdict.

    Raises:
        UserError: there is no such round, or no decision on it yet.
        RunError: stored results are missing or damaged.
    """
    record = record_of(evidence, name)
    committed = [decided.name for decided in evidence.committed()]
    if name not in committed:
        raise UserError(
            f"round {name!r} is {record.state} and has no verdict",
            where="ROUND",
            remedy=f"decided rounds: {', '.join(committed) or 'none'}; go on with keel run",
        )
    verdict = Verdict.from_dict(record.report or {})
    gate, repairs = verdict.inputs.gate, repairs_of(record.report)
    look = evidence.look_of(name)
    rules = {rule.name: rule for rule in verdict.inputs.suites}
    alarms = _alarms(evidence, verdict)
    names = dict.fromkeys(check.suite for check in verdict.checks)
    return Explanation(
        round=name,
        accepted=verdict.accepted,
        outcome=verdict.outcome,
        look=look,
        campaign_rounds=gate.campaign_rounds,
        alpha=gate.alpha,
        alpha_here=verdict.checks[0].alpha,
        alpha_spent=alpha_spent(gate.alpha, gate.campaign_rounds, look, gate.spending)
        if verdict.inputs.level is None
        else math.fsum(decision.own for decision in evidence.decisions()[:look]),
        anchors=tuple(
            move
            for move in baseline_moves(evidence.ledger)
            if move.decisions <= committed.index(name)
        ),
        suites=tuple(_story(evidence, verdict, rules[suite], alarms.get(suite)) for suite in names),
        repairs=repairs,
        merge=merge_of(record.report),
        documents=index_of_report(record.report),
        objections=verdict.inputs.objections,
        noticed=tuple(watch_of(evidence, record).remarks()),
        spending=gate.spending or "campaign",
        left_out=verdict.inputs.left_out,
        retired_items=verdict.inputs.retired_items,
        production=evidence.production_words(),
        reason=reason_of(verdict),
        table=tuple(verdict_rows(verdict)),
    )


def prompt_texts(config: CampaignConfig, suite: str) -> dict[str, str]:
    """Load the prompts of a suite by id, from files and schemes; none if that would be costly or fails."""
    from align.data.base_model import SCHEMES
    from rollouts.prompts import load_prompts

    source, items = _source(config, suite)
    if source is None or not ("://" in source.source or "." in source.source):
        return {}  # An id of a data set, which may have to be fetched.
    if source.source.startswith("demo://"):
        address, _, query = source.source.partition("?")
        options = {"split": "eval", "n": str(items), **dict(parse_qsl(query))}
        source = source.model_copy(update={"source": f"{address}?{urlencode(options)}"})
    try:
        return {p.id: rendered(p) for p in load_prompts(source, SCHEMES, None, "general")}
    except KeelError:
        return {}


def _source(config: CampaignConfig, suite: str) -> tuple[PromptsConfig | None, int]:
    """Return the source of a suite's items and their number; of a demo round, that of its eval split."""
    for spec in config.suites:
        if spec.name == suite:
            return spec.prompt_source, spec.items
    for round in config.rounds:
        if round.name == suite and round.suite.prompts is not None:
            return round.suite.prompts, round.suite.items
        if round.name == suite and round.prompts is not None:
            source = round.prompts.source
            bare = source.partition("?")[0] if source.startswith("demo://") else source
            return round.prompts.model_copy(
                update={"source": bare, "limit": None}
            ), round.suite.items
    return None, 0


def _story(
    evidence: Evidence, verdict: Verdict, rule: SuiteRule, alarm: float | None
) -> SuiteStory:
    checks = [check for check in verdict.checks if check.suite == rule.name]
    candidate = _candidate(evidence, verdict, rule)
    comparator = _comparator(evidence, verdict, checks[0], candidate)
    if rule.name in verdict.inputs.items:
        candidate, comparator = (first(of, checks[0].n) for of in (candidate, comparator))
    after, before = paired(candidate, comparator)
    texts = prompt_texts(evidence.config, rule.name)
    changed = sorted(
        (
            ChangedItem(id=id, before=was, after=now, prompt=texts.get(id))
            for id, now, was in zip(candidate.item_ids, after, before, strict=True)
            if now != was
        ),
        key=lambda item: (item.after - item.before, item.id),
    )
    return SuiteStory(
        suite=rule.name,
        family=rule.demands.family,
        role=checks[0].role,
        comparisons=tuple(_compared(check, rule) for check in checks if check.what == "value"),
        strict=tuple(_compared(check, rule) for check in checks if check.what != "value"),
        lost=tuple(item for item in changed if item.after < item.before),
        won=tuple(item for item in reversed(changed) if item.after > item.before),
        beside=kind_of(rule).side_sentence(candidate),
        alarm=alarm,
    )


def _compared(check: Check, rule: SuiteRule) -> Compared:
    anchored = "start" in (check.against, *check.also) and check.role == "retention"
    budgeted = anchored and check.what == "value"
    return Compared(
        check=check,
        chance=mcnemar_exact(check.lost, check.won),
        budget_used=max(0.0, -check.difference) / rule.budget if budgeted else None,
        would_change=would_change(check),
    )


def _candidate(evidence: Evidence, verdict: Verdict, rule: SuiteRule) -> ItemResults:
    return ItemResults.load(evidence.locate(verdict.inputs.candidate[rule.name], rule.hash))


def _comparator(
    evidence: Evidence, verdict: Verdict, check: Check, candidate: ItemResults
) -> ItemResults:
    """Load the results of the other snapshot; those of a rule are made from the candidate's."""
    if check.snapshot == "chance":
        return replace(candidate, values=(TIE,) * len(candidate.values))
    if check.snapshot == "length":
        rule = verdict.inputs.suites[1]
        lengths = _candidate(evidence, verdict, rule)
        return replace(lengths, suite=candidate.suite, suite_hash=candidate.suite_hash)
    return ItemResults.load(evidence.locate(check.snapshot, candidate.suite_hash))


def _alarms(evidence: Evidence, verdict: Verdict) -> dict[str, float]:
    """Return Holm's p, by guarded suite, that the candidate is worse than its parent at all."""
    rules = {rule.name: rule for rule in verdict.inputs.suites}
    p_values: dict[str, float] = {}
    for check in verdict.checks:
        if check.role == "retention" and check.against == "parent" and check.what == "value":
            candidate = _candidate(evidence, verdict, rules[check.suite])
            parent = _comparator(evidence, verdict, check, candidate)
            rule, compare = rules[check.suite], RULES[verdict.inputs.decided_by]
            if rule.early is not None:  # Files may hold more items than the check was drawn from.
                candidate, parent = first(candidate, check.n), first(parent, check.n)
            p_values[check.suite] = compare(
                parent, candidate, score_scale(rule), 0.0, check.alpha
            ).p
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))


def _spent(decision: Explanation) -> str:
    look, rounds = decision.look, decision.campaign_rounds
    here, spent = (
        f"alpha {decision.alpha_here:.3g}",
        f"{decision.alpha_spent:.3g} of {decision.alpha:g}",
    )
    if decision.spending == "window":
        return f"Decision {look}, at {here}: any {rounds} in a row share {decision.alpha:g}."
    if decision.spending == "recycle":
        passed_on = f"; {here} passes on to the next" if decision.outcome == "accepted" else ""
        return f"Decision {look} of {rounds} declared, at {here}: {spent} was given out{passed_on}."
    if decision.spending == "forever":
        return f"Decision {look} of any number, at {here}: {spent} is spent."
    return f"Decision {look} of {rounds} declared, each at {here}: {spent} is spent."


ALARM = 0.05
"""Largest p, over all guarded suites, that is worth a line."""

ROLES: Mapping[Role, str] = {
    "target": "what the round was for",
    "retention": "must not be lost",
    "shown": "shown, decides nothing",
}


def _story_lines(story: SuiteStory, items: int) -> Iterator[str]:
    yield f"{story.suite} ({ROLES[story.role]})"
    if story.beside:
        yield f"  {story.beside}"
    for compared in story.comparisons:
        yield f"  {compared.check.sentence.partition(': ')[2]}"
        if compared.budget_used is not None:
            yield f"    {100 * compared.budget_used:.0f}% of its budget against the start is used"
        if story.role != "shown":
            yield f"    {compared.would_change}"
        yield f"    lost and won equally likely: p = {compared.chance:.3g}"
    for compared in story.strict:
        if compared.check.outcome != "passed" or compared.check.what == "zero_tolerance":
            yield f"  {compared.check.sentence.partition(': ')[2]}"
            yield f"    {compared.would_change}"
    if story.alarm is not None and story.alarm <= ALARM:
        yield f"  worse than the parent, whatever the margin: p = {story.alarm:.2g} over all suites"
    for word, changed in (("lost", story.lost), ("won", story.won)):
        for item in changed[:items]:
            text = "" if item.prompt is None else f"  {_short(item.prompt)}"
            yield f"  {word} {_short(item.id)}  {item.before:.3g} -> {item.after:.3g}{text}"
        if len(changed) > items > 0:
            yield f"  {word}: {len(changed) - items} more"


def _short(text: Any, most: int = 70) -> str:
    """Shorten any text to one line that a terminal can show."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(str(text).split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"
