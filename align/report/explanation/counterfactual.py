"""The smallest change to the evidence that would have turned a check."""

from __future__ import annotations

from bisect import bisect_left

from align.gate.checks import IN_POINTS, MAX_FAILED_SHARE, Check
from align.gate.statistics.significance import tango_noninferiority


def would_change(check: Check) -> str:
    """Say what would have turned a check.

    For pass/fail items this is the number of items that would have had to go the other way; for scores the
    distance of the interval's lower end from what was demanded.
    """
    passed = check.outcome == "passed"
    if check.outcome == "void":
        return (
            f"it would have been judged with at most {int(MAX_FAILED_SHARE * check.n)} failed items"
        )
    if check.test == "exact":
        return (
            f"it would have {'failed with 1 of them wrong' if passed else 'passed with them right'}"
        )
    if check.needed is not None and not passed:
        return (
            f"about {check.needed} items would show it, were the true difference the measured one"
        )
    # Counts alone decided if they give the same p: no scores or clusters, no pairs with ties.
    lost, won = check.lost, check.won
    if (
        check.test == "tango"
        and tango_noninferiority(lost, won, check.n, check.allowed).p == check.p
    ):
        turned = _items_to_turn(check)
        if turned is None:
            return "no other answers to these items would have turned it"
        items = f"{turned} more {'item' if turned == 1 else 'items'}"
        return f"it would have {f'failed with {items} wrong' if passed else f'passed with {items} right'}"
    value = "value" if check.test == "bootstrap" else "mean"
    slack = check.interval[0] + check.allowed
    if passed:
        return f"it would have failed with a {value} lower by {_amount(slack, check)}"
    shown = _amount(max(0.0, -check.interval[0]), check)
    other = "" if check.role == "target" else f", or at a margin above {shown}"
    return f"it would have passed with a {value} higher by {_amount(-slack, check)}{other}"


def _items_to_turn(check: Check) -> int | None:
    """Return the fewest items whose other answer turns the check; None if no number does."""
    passed = check.outcome == "passed"

    def turns(turned: int) -> bool:
        if passed:
            lost, won = check.lost + turned, min(check.won, check.n - check.lost - turned)
        else:
            lost, won = max(0, check.lost - turned), check.won + max(0, turned - check.lost)
        return (tango_noninferiority(lost, won, check.n, check.allowed).p <= check.alpha) != passed

    numbers = range(1, check.n - (check.lost if passed else check.won) + 1)
    # The check turns at some number of items and stays turned at all larger ones.
    first = bisect_left(numbers, True, key=turns)
    return numbers[first] if first < len(numbers) else None


def _amount(value: float, check: Check) -> str:
    return f"{check.amount(value)}{' points' if check.test in IN_POINTS else ''}"
