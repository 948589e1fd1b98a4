"""Live progress of a campaign: one bar per round on a terminal, plain lines elsewhere."""

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

from align.report.tables import outcome_of, summary

if TYPE_CHECKING:
    from align.round_plan import RoundOutcome, RoundPlan

SHOWN = {"reward/mean": "reward", "pairs/accuracy": "right pairs", "entropy": "entropy"}
"""Metrics on a line of progress, and what they are called there; an algorithm may lack some."""
LINE_EVERY = 15
"""Steps between lines where there is no terminal to draw a bar on."""


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
        self._started = perf_counter()

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
        """A line of its own."""
        self._bar.console.print(f"[{perf_counter() - self._started:6.1f}s] {text}", markup=False)

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        """Advance the round's bar."""
        name = f"{plan.spec.name}, {plan.origin.rung}" if plan.origin else plan.spec.name
        key = (plan.index, plan.attempt, name)
        if key not in self._tasks:
            self._tasks[key] = self._bar.add_task(name, total=plan.spec.steps, status="")
        status = "  ".join(
            f"{word} {metrics[name]:.3f}" for name, word in SHOWN.items() if name in metrics
        )
        self._bar.update(self._tasks[key], completed=step + 1, status=status)
        last = step + 1 == plan.spec.steps
        if not self._console.is_terminal and (step % LINE_EVERY == 0 or last):
            self.note(f"{name} step {step + 1}/{plan.spec.steps}  {status}")

    def on_verdict(self, plan: RoundPlan, outcome: RoundOutcome) -> None:
        """Say what the gate decided, and why when it refused."""
        self.note(f"{plan.spec.name}: {outcome_of(outcome.verdict)}")
        for line in summary(outcome.verdict):
            self._bar.console.print(f"          {line}", markup=False, soft_wrap=True)
