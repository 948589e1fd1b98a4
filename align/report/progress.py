"""Live progress of a campaign: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from align.gate.measurement.progress import duration_text, per_second
from align.report.tables import outcome_of, summary

if TYPE_CHECKING:
    from align.gate.measurement.progress import SuiteProgress
    from align.round.plan import RoundOutcome, RoundPlan

SHOWN = {"reward/mean": "reward", "pairs/accuracy": "right pairs", "entropy": "entropy"}
"""Metrics on a line of progress, and what they are called there; an algorithm may lack some."""
TIMES = {
    "time/sampling_s": "sampling",
    "time/scoring_s": "scoring",
    "time/update_s": "learning",
    "sync/seconds": "sync",
}
"""Shares of a step's seconds; sampling and scoring as far as the step waited for them."""
LINE_EVERY = 15
"""Steps between lines where there is no terminal to draw a bar on."""
LINE_EVERY_S = 10.0
"""Seconds after which a line comes earlier, so that no log is silent for long."""


class LiveProgress:
    """An `Observer` that shows a person what is going on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[tuple[int, int, str], TaskID] = {}
        self._started = self._last_line = perf_counter()
        self._measuring: TaskID | None = None
        self._measured = (0, 0.0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line of its own."""
        self._last_line = perf_counter()
        self._bar.console.print(f"[{self._last_line - self._started:6.1f}s] {text}", markup=False)

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        """Advance the round's bar."""
        key = (plan.index, plan.attempt, plan.title)
        if key not in self._tasks:
            self._tasks[key] = self._bar.add_task(plan.title, total=plan.spec.steps, status="")
        status = status_of(metrics)
        self._bar.update(self._tasks[key], completed=step + 1, status=status)
        last = step + 1 == plan.spec.steps
        if not self._console.is_terminal and (step % LINE_EVERY == 0 or last or self._silent()):
            self.note(f"{plan.title} step {step + 1}/{plan.spec.steps}  {status}")

    def on_measuring(self, what: str, progress: SuiteProgress) -> None:
        """Advance the bar of the suite that is measured, and sum up after the last one."""
        position = f" ({progress.number} of {progress.suites})" if progress.suites > 1 else ""
        title = f"measuring {what} on {progress.suite}{position}"
        if self._measuring is None:
            self._measuring = self._bar.add_task(title, total=progress.total, status="")
        self._bar.update(
            self._measuring,
            description=title,
            completed=progress.done,
            total=progress.total,
            status=progress.speed,
        )
        if progress.stage == "measured":
            self._sum_up(what, progress)
        elif not self._console.is_terminal and self._silent():
            self.note(f"{title}: {progress.done} of {progress.total} items, {progress.speed}")

    def on_verdict(self, plan: RoundPlan, outcome: RoundOutcome) -> None:
        """Say what the gate decided, and why when it refused."""
        self.note(f"{plan.spec.name}: {outcome_of(outcome.verdict)}")
        for line in summary(outcome.verdict):
            self._bar.console.print(f"          {line}", markup=False, soft_wrap=True)

    def _sum_up(self, what: str, progress: SuiteProgress) -> None:
        """Close a suite's bar; after the last suite, one line for all of them."""
        if self._measuring is not None:
            self._bar.remove_task(self._measuring)
            self._measuring = None
        items, seconds = self._measured
        self._measured = (items + progress.done, seconds + progress.seconds)
        if progress.number == progress.suites:
            items, seconds = self._measured
            suites = "1 suite" if progress.suites == 1 else f"{progress.suites} suites"
            rate = per_second(items / max(seconds, 1e-9))
            self.note(
                f"measured {what}: {suites}, {items:,} items in {duration_text(seconds)}, {rate}"
            )
            self._measured = (0, 0.0)

    def _silent(self) -> bool:
        """Tell if nothing was printed for a while."""
        return perf_counter() - self._last_line >= LINE_EVERY_S


def status_of(metrics: Mapping[str, float]) -> str:
    """Say what a step reached, and where its seconds went."""
    reached = [f"{word} {metrics[name]:.3f}" for name, word in SHOWN.items() if name in metrics]
    times = [f"{word} {metrics[name]:.1f}" for name, word in TIMES.items() if name in metrics]
    return "  ".join([*reached, f"seconds: {', '.join(times)}"] if times else reached)
