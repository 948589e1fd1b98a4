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
    """Differences between two measurements of one snapshot on one suite."""

    suite: str
    snapshot: SnapshotId
    n: int
    lost: int
    won: int
    variance: float
    """Variance of one item's difference; for pass/fail items the discordance."""
    pass_fail: bool
    largest: float | None
    """Upper end of the exact interval of the share of items that change; None for scores."""
    difference: float
    """Mean over items; 0 but for noise."""
    interval: tuple[float, float]
    chance: float
    """McNemar's p that losing and winning are equally likely: a small one says the runs were not alike."""
    tokens: int | None
    """Tokens of one measurement; ``seconds`` is, too."""
    seconds: float | None


def save_repeats(store: StorePaths, first: ItemResults, second: ItemResults) -> tuple[Path, Path]:
    """Keep two measurements of a snapshot, in the place of earlier ones; return their files."""
    paths = store.repeats(first.snapshot, first.suite)
    for path, results in zip(paths, (first, second), strict=True):
        results.save(path)
    return paths


def repeats_of(evidence: Evidence, suite: str) -> tuple[ItemResults, ItemResults] | None:
    """Load the two measurements of the latest production that has them, undamaged."""
    moves = evidence.ledger.alias_moves()
    for snapshot in dict.fromkeys(move.target for move in reversed(moves)):
        paths = evidence.store.paths.repeats(snapshot, suite)
        # Few snapshots have any, and of the others nobody has to ask the ledger.
        if all(path.is_file() for path in paths) and not any(
            evidence.files.fault_of(path) for path in paths
        ):
            first, second = map(ItemResults.load, paths)
            return first, second
    return None


def noise_floor(first: ItemResults, second: ItemResults, scale: ScoreScale) -> NoiseFloor:
    """Compute the differences between two measurements of one snapshot."""
    result = compare(second, first, scale, 0.0, ALPHA)
    pass_fail = result.test == "tango"
    changed = result.lost + result.won
    seconds = [results.seconds for results in (first, second) if results.seconds is not None]
    return NoiseFloor(
        suite=first.suite,
        snapshot=first.snapshot,
        n=result.n,
        lost=result.lost,
        won=result.won,
        variance=result.variance,
        pass_fail=pass_fail,
        largest=exact_interval(changed, result.n, ALPHA)[1] if pass_fail else None,
        difference=result.difference,
        interval=result.interval,
        chance=mcnemar_exact(result.lost, result.won),
        tokens=first.tokens,
        seconds=sum(seconds) / len(seconds) if seconds else None,
    )


def noise_lines(floors: list[NoiseFloor]) -> Iterator[str]:
    """Yield lines about the noise of each suite, for a person."""
    for floor in floors:
        if floor.pass_fail:
            changed = 100 * (floor.lost + floor.won) / floor.n
            spread = f"{changed:.1f}% of {floor.n} items change (at most {100 * (floor.largest or 0):.1f}%)"
            low, high = (f"{100 * end:+.1f}" for end in floor.interval)
            mean = f"{100 * floor.difference:+.1f} points ({low} to {high})"
        else:
            spread = f"sd {floor.variance**0.5:.3g} over {floor.n} items"
            low, high = (f"{end:+.3g}" for end in floor.interval)
            mean = f"{floor.difference:+.3g} ({low} to {high})"
        yield f"{floor.suite}: {spread}; mean {mean}"
        if floor.chance < ALPHA / max(1, len(floors)):
            yield f"  the two runs are not alike, p = {floor.chance:.2g}: something else changed"
