"""What often goes with a reward that is gamed: drift, answers that grow, entropy that collapses.

Nothing here decides. Each remark says what was seen and from where on it counts as worth a look.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from align.report.html.charts.curves import Steps, curve
from align.round.watch.record import WatchRecord

GROWTH = 1.5
"""A mean length, or its inverse, that changed by this factor."""
COLLAPSE = 0.5
"""Share of its first entropy that a policy has left."""
SHARE = 0.2
"""Of completions that were cut, or of rewards that failed."""
STALE = 0.5
"""Of groups whose rewards are all equal: they teach nothing."""
PARTS_APART = 0.1
"""Fall of one part of the reward, as a share of its first value, while the whole rose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signals:
    """The meters at the end of a round, None where there were none, and what to look at."""

    k_new: float | None
    """From the parent on new prompts, in nats per token; so are the next two."""
    k_old: float | None
    """From the owners on earlier rounds' prompts, the largest."""
    k_gen: float | None
    entropy: tuple[float, float] | None
    """At the first step and at the last; so are the next two."""
    tokens: tuple[float, float] | None
    cut: tuple[float, float] | None
    remarks: tuple[str, ...]
    noticed: tuple[str, ...] = ()
    """What the round's own watch said, with the step of each."""


def signals_of(steps: Steps, watch: WatchRecord | None = None, most: int = 40) -> Signals:
    """The signals of one round, with at most so many remarks."""
    old = {
        name for metrics in steps.values() for name in metrics if name.startswith("drift/K_old/")
    }
    last_old = [ends[1] for name in sorted(old) if (ends := _ends(steps, name))]
    tokens = _ends(steps, "completions/tokens_mean")
    remarks = tuple(_remarks(steps))
    return Signals(
        k_new=_last(steps, "drift/K_new"),
        k_old=max(last_old, default=None),
        k_gen=_last(steps, "drift/K_gen"),
        entropy=_ends(steps, "entropy"),
        tokens=tokens if tokens and any(tokens) else None,
        cut=_ends(steps, "completions/length_cut_share") if tokens and any(tokens) else None,
        remarks=(
            *remarks[:most],
            *([f"and {len(remarks) - most} more"] if len(remarks) > most else ()),
        ),
        noticed=tuple(watch.lines()) if watch else (),
    )


def _remarks(steps: Steps) -> Iterator[str]:
    tokens, entropy = _ends(steps, "completions/tokens_mean"), _ends(steps, "entropy")
    if tokens and tokens[0] > 0 and tokens[1] / tokens[0] >= GROWTH:
        yield f"completions grew from {tokens[0]:.0f} to {tokens[1]:.0f} tokens"
    if tokens and 0 < tokens[1] <= tokens[0] / GROWTH:
        yield f"completions shrank from {tokens[0]:.0f} to {tokens[1]:.0f} tokens"
    if entropy and entropy[0] > 0 and entropy[1] <= COLLAPSE * entropy[0]:
        yield f"entropy fell from {entropy[0]:.2f} to {entropy[1]:.2f} nats"
    for name, limit, words in (
        ("completions/length_cut_share", SHARE, "of completions were cut at the last step"),
        ("reward/failed_share", SHARE, "of rewards failed at the last step"),
        ("groups/zero_variance_share", STALE, "of groups had equal rewards at the last step"),
    ):
        share = _last(steps, name)
        if share is not None and share >= limit:
            yield f"{100 * share:.0f}% {words}"
    whole = _ends(steps, "reward/mean")
    names = {n for metrics in steps.values() for n in metrics if n.startswith("reward/")}
    for name in sorted(names - {"reward/mean", "reward/failed_share", "reward/abstained_share"}):
        part = _ends(steps, name)
        if (
            whole
            and part
            and whole[1] > whole[0]
            and part[0] - part[1] > PARTS_APART * abs(part[0])
        ):
            yield f"{name} fell from {part[0]:.3g} to {part[1]:.3g} while the whole reward rose"


def _ends(steps: Steps, name: str) -> tuple[float, float] | None:
    values = curve(steps, name).y
    return (values[0], values[-1]) if values else None


def _last(steps: Steps, name: str) -> float | None:
    ends = _ends(steps, name)
    return ends[1] if ends else None
