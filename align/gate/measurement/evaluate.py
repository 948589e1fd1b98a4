"""Measures one snapshot on every suite, by the measure of each suite's own kind.

The engine already holds the snapshot's weights. An item without a value (a failed rollout, a failed
or abstaining metric) counts as the worst and is counted; dropping it would hide a regression.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from align.bank.routed import RoutedEngine
from align.gate.measurement.progress import CountedEngine, SuiteMeter, Tell
from align.gate.measurement.results import ItemResults, ItemStatus, no_value, paired
from align.gate.suites.suite import Suite
from rollouts.engines.protocol import KnownEngine, RolloutEngine
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

__all__ = ["ItemResults", "ItemStatus", "evaluate", "no_value", "paired"]


def evaluate(
    engine: RolloutEngine,
    suites: Iterable[Suite],
    encoder: PromptEncoder,
    snapshot_id: SnapshotId,
    seed: int,
    tell: Tell = lambda _: None,
) -> dict[str, ItemResults]:
    """Return the results of every suite by name, under the weights that the engine holds.

    Args:
        seed: fixes every item's sampling; use one for the whole campaign, so that items are paired.
        tell: told of progress, many times a suite.

    Raises:
        RunError: no item of a whole suite has a value, or one is outside the metric's range.
    """
    results_by_suite, suites = {}, list(suites)
    about = engine.about() if suites and isinstance(engine, KnownEngine) else {}
    for number, suite in enumerate(suites, start=1):
        began = time.monotonic()
        meter = SuiteMeter(
            suite=suite.name,
            number=number,
            suites=len(suites),
            items=len(suite.item_ids),
            tell=tell,
        )
        if isinstance(engine, RoutedEngine):
            engine.take_record()
        results = suite.measure(CountedEngine(engine, meter), encoder, snapshot_id, seed)
        meter.finish()
        if isinstance(engine, RoutedEngine):
            record = engine.take_record()
            routes = record.routes(len(results.item_ids))
            results = replace(results, routes=routes, retrieval_s=record.seconds)
        results_by_suite[suite.name] = replace(
            results, seconds=time.monotonic() - began, measured_by=about
        )
    return results_by_suite
