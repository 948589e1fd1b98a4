"""A verdict in plain sentences: what was lost and won, how sure that is, and what would have changed it.

Everything follows from the stored verdict and the stored items; the prompts are read from the campaign's
own files where they are at hand. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from align.config import CampaignConfig, PromptsConfig
from align.evidence import Evidence
from align.gate.checks import Check, Role, compare
from align.gate.evaluate import ItemResults, paired
from align.gate.gate import Verdict
from align.gate.pairs import TIE
from align.gate.statistics import alpha_spent, holm, mcnemar_exact, tango_noninferiority
from align.gate.suites import SuiteRule, rendered
from align.history import record_of
from rollouts.errors import KeelError, UserError
from rollouts.types import SnapshotId


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedItem:
    """One item under the comparator and under the candidate."""

    id: str
    before: float
    after: float
    prompt: str | None
    """None where its source is not at hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One suite against one snapshot. Numbers are in units of the metric."""

    against: tuple[str, ...]
    """More than one where a snapshot plays several parts."""
    snapshot: SnapshotId
    n: int
    lost: int
    won: int
    difference: float
    interval: tuple[float, float]
    margin: float
    p: float
    chance: float
    """McNemar's p that losing and winning an item are equally likely; describes, never decides."""
    budget_used: float | None
    """Share of the suite's budget against the fixed start; None against other snapshots."""
    outcome: str
    sentence: str
    would_change: str
    """What would have turned this one check."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteStory:
    """One suite in a decision, with the items behind it."""

    suite: str
    role: Role
    comparisons: tuple[Comparison, ...]
    lost: tuple[ChangedItem, ...]
    """Against the first comparator; the largest losses first."""
    won: tuple[ChangedItem, ...]
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
    """Of the whole campaign."""
    alpha_here: float
    alpha_spent: float
    """By this decision and those before it."""
    suites: tuple[SuiteStory, ...]

    def lines(self, items: int = 3) -> Iterator[str]:
        """To be read by a person.

        Args:
            items: most items shown as lost, and as won, of a suite.
        """
        yield f"{self.round}: {_decision(self)}."
        yield (
            f"Decision {self.look} of {self.campaign_rounds} declared, each at alpha "
            f"{self.alpha_here:.3g}: {self.alpha_spent:.3g} of {self.alpha:g} is spent."
        )
        for story in self.suites:
            yield ""
            yield from _story_lines(story, items)


def explain(evidence: Evidence, name: str) -> Explanation:
    """Why a round was accepted or not.

    Raises:
        UserError: there is no such round, or no decision on it yet.
        RunError: stored results are missing or damaged.
    """
    record = record_of(evidence, name)
    committed = [one.name for one in evidence.committed()]
    if name not in committed:
        raise UserError(
            f"round {name!r} is {record.state} and has no verdict",
            where="ROUND",
            remedy=f"decided rounds: {', '.join(committed) or 'none'}; go on with keel run",
        )
    verdict = Verdict.from_dict(record.report or {})
    gate, look = verdict.inputs.gate, committed.index(name) + 1
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
        alpha_spent=alpha_spent(gate.alpha, gate.campaign_rounds, look),
        suites=tuple(_story(evidence, verdict, rules[suite], alarms.get(suite)) for suite in names),
    )


def would_change(check: Check) -> str:
    """The smallest change to the evidence that would have turned a check, in words.

    For pass/fail items the count of items that would have had to go the other way; for scores the
    distance of the interval's lower end from what was demanded.
    """
    allowed = -check.margin if check.role == "target" else check.margin
    passed = check.outcome == "passed"
    if check.needed is not None and not passed:
        return (
            f"about {check.needed} items would show it, were the true difference the measured one"
        )
    slack = check.interval[0] + allowed
    if _counted(check):
        turned = _items_to_turn(check, allowed)
        if turned is None:
            return "no other answers to these items would have turned it"
        items = f"{turned} more {'item' if turned == 1 else 'items'}"
        return f"it would have {f'failed with {items} wrong' if passed else f'passed with {items} right'}"
    if passed:
        return f"it would have failed with a mean lower by {_amount(slack, check)}"
    shown = _amount(max(0.0, -check.interval[0]), check)
    other = "" if check.role == "target" else f", or at a margin above {shown}"
    return f"it would have passed with a mean higher by {_amount(-slack, check)}{other}"


def prompt_texts(config: CampaignConfig, suite: str) -> dict[str, str]:
    """Prompts of a suite by id, from files and schemes; empty where that would be costly or fails."""
    from align.models import SCHEMES
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
    """Where the items of a suite come from; for a demo round, what its eval split is taken from."""
    for spec in config.suites:
        if spec.name == suite:
            return spec.prompts, spec.items
    for round in config.rounds:
        if round.name == suite and round.suite.prompts is not None:
            return round.suite.prompts, round.suite.items
        if round.name == suite and round.prompts is not None:
            bare = round.prompts.source.partition("?")[0]
            return round.prompts.model_copy(
                update={"source": bare, "limit": None}
            ), round.suite.items
    return None, 0


def _story(
    evidence: Evidence, verdict: Verdict, rule: SuiteRule, alarm: float | None
) -> SuiteStory:
    checks = [check for check in verdict.checks if check.suite == rule.name]
    candidate = _candidate(evidence, verdict, rule)
    after, before = paired(candidate, _comparator(evidence, verdict, checks[0], candidate))
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
        role=checks[0].role,
        comparisons=tuple(_comparison(check, rule) for check in checks),
        lost=tuple(item for item in changed if item.after < item.before),
        won=tuple(item for item in reversed(changed) if item.after > item.before),
        alarm=alarm,
    )


def _comparison(check: Check, rule: SuiteRule) -> Comparison:
    names = (check.against, *check.also)
    anchored = "start" in names and check.role == "retention"
    return Comparison(
        against=names,
        snapshot=check.snapshot,
        n=check.n,
        lost=check.lost,
        won=check.won,
        difference=check.difference,
        interval=check.interval,
        margin=check.margin,
        p=check.p,
        chance=mcnemar_exact(check.lost, check.won),
        budget_used=max(0.0, -check.difference) / rule.budget if anchored else None,
        outcome=check.outcome,
        sentence=check.sentence,
        would_change=would_change(check),
    )


def _candidate(evidence: Evidence, verdict: Verdict, rule: SuiteRule) -> ItemResults:
    return ItemResults.load(evidence.locate(verdict.inputs.candidate[rule.name], rule.hash))


def _comparator(
    evidence: Evidence, verdict: Verdict, check: Check, candidate: ItemResults
) -> ItemResults:
    """Results of the other snapshot; a reward model is compared with rules that have none."""
    if check.snapshot == "chance":
        return replace(candidate, values=(TIE,) * len(candidate.values))
    if check.snapshot == "length":
        rule = verdict.inputs.suites[1]
        found = _candidate(evidence, verdict, rule)
        return replace(found, suite=candidate.suite, suite_hash=candidate.suite_hash)
    return ItemResults.load(evidence.locate(check.snapshot, candidate.suite_hash))


def _alarms(evidence: Evidence, verdict: Verdict) -> dict[str, float]:
    """By guarded suite, Holm's p that the candidate is worse than its parent by anything at all."""
    rules = {rule.name: rule for rule in verdict.inputs.suites}
    p_values: dict[str, float] = {}
    for check in verdict.checks:
        if check.role == "retention" and check.against == "parent":
            candidate = _candidate(evidence, verdict, rules[check.suite])
            parent = _comparator(evidence, verdict, check, candidate)
            kind = rules[check.suite].kind
            p_values[check.suite] = compare(parent, candidate, kind, 0.0, check.alpha).p
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))


def _counted(check: Check) -> bool:
    """Decided by the counts alone: not by scores, nor by pairs in which a tie is worth a half."""
    if check.test != "tango":
        return False
    allowed = -check.margin if check.role == "target" else check.margin
    return tango_noninferiority(check.lost, check.won, check.n, allowed).p == check.p


def _items_to_turn(check: Check, allowed: float) -> int | None:
    """Fewest items whose other answer turns the check; None where none would do."""
    passed = check.outcome == "passed"

    def passes(turned: int) -> bool:
        if passed:
            lost, won = check.lost + turned, min(check.won, check.n - check.lost - turned)
        else:
            lost, won = max(0, check.lost - turned), check.won + max(0, turned - check.lost)
        return tango_noninferiority(lost, won, check.n, allowed).p <= check.alpha

    most = check.n - (check.lost if passed else check.won)
    return _first(lambda turned: passes(turned) != passed, most)


def _first(holds: Callable[[int], bool], most: int) -> int | None:
    """Smallest of 1 .. most from which a monotone condition holds."""
    if most < 1 or not holds(most):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _amount(value: float, check: Check) -> str:
    return f"{100 * value:.1f} points" if check.test == "tango" else f"{value:.3g}"


def _decision(told: Explanation) -> str:
    words = told.outcome.replace("_", " ")
    if told.accepted and told.outcome != "accepted":
        return f"accepted, because the gate only observes; the evidence says {words}"
    return words


ALARM = 0.05
"""Largest p, over all guarded suites, that is worth a line."""

ROLES: Mapping[Role, str] = {
    "target": "what the round was for",
    "retention": "must not be lost",
    "shown": "shown, decides nothing",
}


def _story_lines(story: SuiteStory, items: int) -> Iterator[str]:
    yield f"{story.suite} ({ROLES[story.role]})"
    for one in story.comparisons:
        yield f"  {one.sentence.partition(': ')[2]}"
        if one.budget_used is not None:
            yield f"    {100 * one.budget_used:.0f}% of its budget against the start is used"
        if story.role != "shown":
            yield f"    {one.would_change}"
        yield f"    lost and won equally likely: p = {one.chance:.3g}"
    if story.alarm is not None and story.alarm <= ALARM:
        yield f"  worse than the parent, whatever the margin: p = {story.alarm:.2g} over all suites"
    for word, changed in (("lost", story.lost), ("won", story.won)):
        yield from _item_lines(word, changed, items)


def _item_lines(word: str, changed: Sequence[ChangedItem], items: int) -> Iterator[str]:
    for item in changed[:items]:
        text = "" if item.prompt is None else f"  {_short(item.prompt)}"
        yield f"  {word} {_short(item.id)}  {item.before:.3g} -> {item.after:.3g}{text}"
    if len(changed) > items > 0:
        yield f"  {word}: {len(changed) - items} more"


def _short(text: Any, most: int = 70) -> str:
    """One line that a terminal can show, whatever is in the prompt."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(str(text).split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"
