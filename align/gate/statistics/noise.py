"""A/A results: one snapshot measured twice, so that every difference is noise.

Sampling draws other completions, and engines round differently from batch to batch. No candidate can be
told from its parent better than its parent from itself: what an A/A run finds is a floor under the
discordance that a plan reckons with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from align.gate.evidence import Evidence
from align.gate.measurement.results import ItemResults
from align.gate.statistics.comparison import compare
from align.gate.statistics.significance import exact_interval, mcnemar_exact
from align.gate.suites.scale import ScoreScale
from align.store.paths import StorePaths
from rollouts.types import SnapshotId

ALPHA = 0.05
"""Each side's error of the intervals below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseFloor:
    """What two measurements of one snapshot differ in, on one suite."""

    suite: str
    snapshot: SnapshotId
    n: int
    lost: int
    won: int
    variance: float
    """Of one item's difference; for pass/fail items the discordance."""
    pass_fail: bool
    largest: float | None
    """Upper end of the exact interval of the share of items that change; None for scores."""
    difference: float
    """Mean over items; 0 but for noise."""
    interval: tuple[float, float]
    chance: float
    """McNemar's p that losing and winning are equally likely: a small one says the runs were not alike."""
    tokens: int | None
    """Of one measurement; so ``seconds``."""
    seconds: float | None


def save_repeats(store: StorePaths, first: ItemResults, second: ItemResults) -> tuple[Path, Path]:
    """Keep two measurements of a snapshot, in the place of earlier ones; return their files."""
    paths = store.repeats(first.snapshot, first.suite)
    for path, results in zip(paths, (first, second), strict=True):
        results.save(path)
    return paths


def repeats_of(evidence: Evidence, suite: str) -> tuple[ItemResults, ItemResults] | None:
    """The two measurements of the latest production that has them, unharmed."""
    moves = evidence.ledger.alias_moves()
    for snapshot in dict.fromkeys(move.target for move in reversed(moves)):
        paths = evidence.store.paths.repeats(snapshot, suite)
        if not any(evidence.files.fault_of(path) for path in paths):
            first, second = map(ItemResults.load, paths)
            return first, second
    return None


def noise_floor(first: ItemResults, second: ItemResults, scale: ScoreScale) -> NoiseFloor:
    """What two measurements of one snapshot differ in."""
    found = compare(second, first, scale, 0.0, ALPHA)
    pass_fail = found.test == "tango"
    changed = found.lost + found.won
    seconds = [results.seconds for results in (first, second) if results.seconds is not None]
    return NoiseFloor(
        suite=first.suite,
        snapshot=first.snapshot,
        n=found.n,
        lost=found.lost,
        won=found.won,
        variance=found.variance,
        pass_fail=pass_fail,
        largest=exact_interval(changed, found.n, ALPHA)[1] if pass_fail else None,
        difference=found.difference,
        interval=found.interval,
        chance=mcnemar_exact(found.lost, found.won),
        tokens=first.tokens,
        seconds=sum(seconds) / len(seconds) if seconds else None,
    )


def noise_lines(floors: list[NoiseFloor]) -> Iterator[str]:
    """To be read by a person."""
    for one in floors:
        if one.pass_fail:
            changed = 100 * (one.lost + one.won) / one.n
            spread = (
                f"{changed:.1f}% of {one.n} items change (at most {100 * (one.largest or 0):.1f}%)"
            )
            low, high = (f"{100 * end:+.1f}" for end in one.interval)
            mean = f"{100 * one.difference:+.1f} points ({low} to {high})"
        else:
            spread = f"sd {one.variance**0.5:.3g} over {one.n} items"
            low, high = (f"{end:+.3g}" for end in one.interval)
            mean = f"{one.difference:+.3g} ({low} to {high})"
        yield f"{one.suite}: {spread}; mean {mean}"
        if one.chance < ALPHA / max(1, len(floors)):
            yield f"  the two runs are not alike, p = {one.chance:.2g}: something else changed"
