"""Gate of reward models, which must be right about more held-out pairs than two rules that know nothing.

    length    the longer answer is the better one; a pair of equal lengths is worth one half
    chance    half of all pairs

A model that only learnt that people like long answers is thereby found out. Both are superiority tests
over the same pairs: Tango's for paired results against the length rule, and for chance the score test
that right and wrong are equally likely, which is Tango's with wrong pairs lost and right ones won.
A verdict is drawn from stored results, so it comes out the same at any later time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from align.config.campaign import GateConfig
from align.gate.case import Locate, VerdictInputs, load_results
from align.gate.checks import Check, Outcome
from align.gate.measurement.evaluate import ItemResults, paired
from align.gate.statistics.alpha import level_of
from align.gate.statistics.comparison import Comparison, of_clusters
from align.gate.statistics.rules import CURRENT_RULE
from align.gate.statistics.significance import items_needed, tango_interval, tango_noninferiority
from align.gate.suites.kinds.pairs import PairSuite
from align.gate.suites.suite import SuiteRule
from align.gate.verdict import Verdict
from rollouts.types import SnapshotId

Rule = Literal["length", "chance"]
TIE = 0.5


def pair_rules(suite: PairSuite) -> tuple[SuiteRule, SuiteRule]:
    """Return the suite as the model is measured on it, and as the length rule is."""
    digest = hashlib.sha256(f"{suite.hash}/length".encode()).hexdigest()
    return suite.rule, replace(suite.rule, name=f"{suite.name}.length", hash=digest)


def measure_pairs(
    suite: PairSuite, snapshot: SnapshotId, scores: Sequence[float]
) -> dict[str, ItemResults]:
    """Measure per pair if the model is right, and the length rule's result; by name of `pair_rules`.

    Args:
        suite: of pairs; ``sequences`` are better, worse, better, ...
        scores: rewards of the sequences, in their order.
    """
    lengths = suite.lengths
    wins = {
        # A model that cannot tell two answers apart is not right about them.
        "model": [float(a > b) for a, b in zip(scores[::2], scores[1::2], strict=True)],
        "length": [
            TIE if a == b else float(a > b)
            for a, b in zip(lengths[::2], lengths[1::2], strict=True)
        ],
    }
    return {
        rule.name: ItemResults(
            suite=rule.name,
            suite_hash=rule.hash,
            snapshot=snapshot,
            item_ids=suite.item_ids,
            values=tuple(values),
            statuses=tuple("scored" for _ in values),
            finishes=tuple("stop" for _ in values),
            clusters=suite.item_clusters,
        )
        for rule, values in zip(pair_rules(suite), wins.values(), strict=True)
    }


def pair_inputs(
    suite: PairSuite,
    candidate: SnapshotId,
    gate: GateConfig,
    looks: int,
    level: float | None = None,
) -> VerdictInputs:
    """Collect everything that `decide_pairs` follows from.

    Args:
        looks: this decision's number in the campaign.
        level: error of this decision, where alpha was amended after earlier ones.
    """
    rules = pair_rules(suite)
    return VerdictInputs(
        target=suite.name,
        gate=gate,
        looks=max(looks, gate.campaign_rounds),
        suites=rules,
        accepted_rounds=(),
        retired=(),
        candidate={rule.name: candidate for rule in rules},
        parent={},
        best={},
        start={},
        level=level,
        decided_by=CURRENT_RULE,
    )


def decide_pairs(inputs: VerdictInputs, locate: Locate) -> Verdict:
    """Decide on a reward model; the same inputs give the same verdict.

    Raises:
        RunError: a file is missing, damaged, or holds results of something else.
    """
    again = "restore the file from a backup, or run the round in a new store"
    model, length = (
        load_results(locate, rule.name, rule.hash, inputs.candidate[rule.name], remedy=again)
        for rule in inputs.suites
    )
    gate = inputs.gate
    alpha = level_of(gate, inputs.looks, inputs.level)
    length = replace(length, suite=model.suite, suite_hash=model.suite_hash)
    coin = replace(model, values=(TIE,) * len(model.values))
    checks = (check_rule(model, length, "length", alpha), check_rule(model, coin, "chance", alpha))
    outcomes = {check.outcome for check in checks}
    outcome: Literal["accepted", "rejected", "too_few_items"] = (
        "accepted"
        if outcomes == {"passed"}
        else "rejected"
        if "not_improved" in outcomes
        else "too_few_items"
    )
    reasons = [check.sentence for check in checks if check.outcome != "passed"]
    observed = inputs.gate.mode == "observe"
    if observed and reasons:
        reasons.append("accepted all the same: the gate only observes")
    return Verdict(
        accepted=outcome == "accepted" or observed,
        outcome=outcome,
        checks=checks,
        reasons=tuple(reasons),
        inputs=inputs,
    )


def check_rule(model: ItemResults, other: ItemResults, rule: Rule, alpha: float) -> Check:
    """Test that the model is right about more pairs than a rule is."""
    after, before = paired(model, other)
    n = len(after)
    differences = [a - b for a, b in zip(after, before, strict=True)]
    # Against chance every pair differs by one half; counted whole, they are the sign test's.
    scale = TIE if rule == "chance" else 1.0
    down = math.fsum(-d for d in differences if d < 0) / scale
    up = math.fsum(d for d in differences if d > 0) / scale
    low, high = tango_interval(down, up, n, alpha)
    difference = math.fsum(differences) / n
    compared = Comparison(
        test="tango",
        n=n,
        lost=sum(d < 0 for d in differences),
        won=sum(d > 0 for d in differences),
        difference=difference,
        interval=(low * scale, high * scale),
        p=tango_noninferiority(down, up, n, 0.0).p,
        variance=math.fsum((d - difference) ** 2 for d in differences) / max(1, n - 1),
    )
    compared = of_clusters(compared, differences, model.clusters, 0.0, alpha, reach=1.0)
    outcome: Outcome = (
        "passed"
        if compared.enough and compared.p <= alpha
        else "not_improved"
        if difference <= 0
        else "too_few_items"
    )
    needed = None
    if outcome == "too_few_items":
        usual = items_needed(compared.variance, difference, alpha, pass_fail=False)
        needed = max(n + 1, usual, compared.fewest)
    check = Check(
        suite=model.suite,
        role="target",
        # The fixed anchor of a reward model is a rule; no snapshot stands behind it.
        against="start",
        snapshot=rule,
        test="tango",
        n=n,
        lost=compared.lost,
        won=compared.won,
        difference=difference,
        interval=compared.interval,
        margin=0.0,
        p=compared.p,
        alpha=alpha,
        clusters=len(set(model.clusters)) or None,
        needed=needed,
        outcome=outcome,
        sentence="",
    )
    return replace(check, sentence=_sentence(check, model.mean, other.mean, rule))


def _sentence(check: Check, accuracy: float, other: float, rule: Rule) -> str:
    what = "choosing the longer answer is right about" if rule == "length" else "chance is"
    low, high = (100 * end for end in check.interval)
    ending = check.outcome.replace("_", " ")
    if check.needed is not None:
        ending += f" to tell, about {check.needed} needed"
    return (
        f"{check.suite}: right about {100 * accuracy:.1f}% of {check.n} held-out pairs, {what} "
        f"{100 * other:.1f}% (difference {low:.1f} to {high:.1f} points), must be better: {ending}"
    )
