"""Events of a run, and the observer that passes them to a function or an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.report.progress import status_of
from align.report.tables import outcome_of
from rollouts.errors import UserError

if TYPE_CHECKING:
    from align.gate.measurement.progress import SuiteProgress
    from align.gate.verdict import Outcome
    from align.round.plan import RoundOutcome, RoundPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class NoteEvent:
    """Remark that is worth a line."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEvent:
    """Learner step that is done."""

    round: str
    attempt: int
    repair: str | None
    """Label of the repair that the step belongs to; None for the round itself."""
    step: int
    """Number of the step, from 0, as in the metrics."""
    steps: int
    """Number of steps of the round."""
    metrics: Mapping[str, float]

    def __str__(self) -> str:
        title = f"{self.round}, {self.repair}" if self.repair else self.round
        return f"{title} step {self.step + 1}/{self.steps}  {status_of(self.metrics)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuringEvent:
    """Progress of measuring a snapshot on one suite."""

    snapshot: str
    """Snapshot as a person calls it."""
    suite: str
    done: int
    """Items that have their answers."""
    total: int

    def __str__(self) -> str:
        return f"measuring {self.snapshot} on {self.suite}: {self.done} of {self.total} items"


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictEvent:
    """Round that the gate has decided on."""

    round: str
    accepted: bool
    """True if the candidate is production now."""
    outcome: Outcome
    """Result of the evidence, whatever the gate's mode."""
    reasons: tuple[str, ...]
    """Sentences on what kept the candidate out, and notes."""
    candidate: str
    """Content hash of the candidate's snapshot."""
    text: str
    """The outcome in words."""

    def __str__(self) -> str:
        return "\n  ".join((f"{self.round}: {self.text}", *self.reasons))


Event = NoteEvent | StepEvent | MeasuringEvent | VerdictEvent
Handler = Callable[[Event], Any]
METHODS: dict[type, str] = {
    NoteEvent: "on_note",
    StepEvent: "on_step",
    MeasuringEvent: "on_measuring",
    VerdictEvent: "on_verdict",
}
"""Methods of an observing object, each called with an event of its kind; those it lacks are left out."""


def handler_of(observer: Any) -> Handler:
    """Return what handles every event for an observer.

    Args:
        observer: function that takes an event, object with some of `METHODS`, or None for nobody.

    Raises:
        UserError: it is none of them.
    """
    if observer is None:
        return lambda event: None
    methods = {
        kind: getattr(observer, name) for kind, name in METHODS.items() if hasattr(observer, name)
    }
    if methods:
        return lambda event: methods.get(type(event), lambda _: None)(event)
    if not callable(observer):
        raise UserError(
            f"an object of type {type(observer).__name__} cannot observe a run",
            where="observer",
            remedy=f"give a function of one event, or an object with any of {', '.join(METHODS.values())}",
        )
    handler: Handler = observer
    return handler


class EventObserver:
    """`align.round.session.Observer` that makes events of what it is told."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle

    def note(self, text: str) -> None:
        """Hand on a remark."""
        self._handle(NoteEvent(text=text))

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        """Hand on a learner step."""
        self._handle(
            StepEvent(
                round=plan.spec.name,
                attempt=plan.attempt,
                repair=plan.origin.label if plan.origin else None,
                step=step,
                steps=plan.spec.steps,
                metrics=dict(metrics),
            )
        )

    def on_measuring(self, what: str, progress: SuiteProgress) -> None:
        """Hand on how far a suite is; its last answers and its end are one event."""
        if progress.done == progress.total and progress.stage != "measured":
            return
        self._handle(
            MeasuringEvent(
                snapshot=what, suite=progress.suite, done=progress.done, total=progress.total
            )
        )

    def on_verdict(self, plan: RoundPlan, outcome: RoundOutcome) -> None:
        """Hand on the gate's decision."""
        verdict = outcome.verdict
        self._handle(
            VerdictEvent(
                round=plan.spec.name,
                accepted=verdict.accepted,
                outcome=verdict.outcome,
                reasons=verdict.reasons,
                candidate=outcome.candidate,
                text=outcome_of(verdict),
            )
        )
