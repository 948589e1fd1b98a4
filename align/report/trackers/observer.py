"""Observer that passes steps and verdicts on to trackers; one that fails is dropped, not the round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from align.report.trackers.base import Tracker
from align.round.session import MeasuringObserver

if TYPE_CHECKING:
    from align.gate.measurement.progress import SuiteProgress
    from align.round.plan import RoundOutcome, RoundPlan
    from align.round.session import Observer


class TrackedObserver:
    """Passes everything on to another observer, and steps and verdicts to trackers as well."""

    def __init__(self, observer: Observer, trackers: Sequence[Tracker]) -> None:
        self._observer, self._trackers = observer, list(trackers)
        self._last: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for tracker in self._trackers:
            with suppress(Exception):
                tracker.close()

    def note(self, text: str) -> None:
        """Pass a line for people on; trackers do not get it."""
        self._observer.note(text)

    def on_measuring(self, what: str, progress: SuiteProgress) -> None:
        """Pass the progress on to the next observer; no curve is drawn of it."""
        if isinstance(self._observer, MeasuringObserver):
            self._observer.on_measuring(what, progress)

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to every curve of the round's attempt."""
        self._observer.on_step(plan, step, metrics)
        self._last[plan.run] = step
        self._log(plan.run, step, metrics)

    def on_verdict(self, plan: RoundPlan, outcome: RoundOutcome) -> None:
        """Log the verdict, and by how much every suite differs from its comparators."""
        self._observer.on_verdict(plan, outcome)
        checks = {f"gate/{c.suite}/{c.against}": c.difference for c in outcome.verdict.checks}
        metrics = {"gate/accepted": float(outcome.verdict.accepted)} | checks
        self._log(plan.run, self._last.get(plan.run, 0), metrics)

    def _log(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for tracker in list(self._trackers):
            try:
                tracker.log(run, step, finite)
            except Exception as error:  # Whatever a third party raises, the round goes on.
                self._trackers.remove(tracker)
                self._observer.note(f"{type(tracker).__name__} is left out from now on: {error!r}")
