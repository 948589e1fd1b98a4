"""Wall time of a round, split so that its parts sum to the whole.

Attempts write their seconds by phase into ``times.json``. Those of older stores have none: their steps say
what they waited for and learnt for, their files of results how long each suite took, and the rest is
called not recorded.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from align.gate.evidence import Evidence
from align.gate.measurement.progress import duration_text
from align.gate.measurement.results import measured_seconds
from align.round.times.clock import MEASURING
from align.round.times.record import AttemptTimes
from align.store.ledger.ledger import RoundRecord
from align.store.repairs import repairs_of
from align.store.run_folder import RunFolder

MEANINGS: Mapping[str, str] = {
    "start-up": "engines and models loaded, the round planned, the learner set up",
    "sampling": "waiting for engines to answer prompts; what they sampled meanwhile is not in it",
    "scoring": "waiting for rewards",
    "learning": "the learner's updates",
    "command": "the round's own command",
    "weight sync": "weights handed from the learner to the engines",
    "drift meters": "samples and divergences of K_new, K_old, K_gen",
    "watching": "detectors, gold rewards and canaries",
    "checkpoints": "the learner's state written down",
    "records": "metrics and tables of rollouts written down",
    "parity probe": "engines and learner compared on fresh samples",
    "publishing": "the candidate written and hashed as a snapshot",
    "measuring": "the candidate's answers to the suites, sampled and scored",
    "judging": "the gate's statistics",
    "other": "what no part covers",
    "not recorded": "what nothing on record says",
}
"""Parts of a round's wall time in the order of a round, and what each is."""
STEP_METRICS = {
    "time/sampling_s": "sampling",
    "time/scoring_s": "scoring",
    "time/update_s": "learning",
    "sync/seconds": "weight sync",
}
"""Parts that the steps of older stores measured."""
SMALL = 0.02
"""Share of a round below which a part is not named in its sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Seconds of one kind of work."""

    name: str
    seconds: float

    @property
    def meaning(self) -> str:
        """Description of the work in it; empty for a suite."""
        return MEANINGS.get(self.name, "")


@dataclass(frozen=True, kw_only=True, slots=True)
class WallTime:
    """Wall time of all attempts at a round."""

    seconds: float
    parts: tuple[Part, ...]
    """Parts in the order of a round; they sum to ``seconds``."""
    suites: tuple[Part, ...] = ()
    """The part ``measuring`` by suite, the longest first."""
    before: tuple[Part, ...] = ()
    """Work of the run before the round, such as starting engines and measuring the base; it is not in
    ``seconds``."""

    def of(self, name: str) -> float:
        """Return the seconds of one part; 0 if there is none."""
        return math.fsum(part.seconds for part in self.parts if part.name == name)

    @property
    def sentence(self) -> str:
        """The whole and its parts, the longest first."""
        if not self.seconds:
            return ""
        parts = sorted(self.parts, key=lambda part: -part.seconds)
        large = [part for part in parts if part.seconds >= SMALL * self.seconds]
        words = [f"{took(part.seconds)} {part.name}{self._suites(part)}" for part in large]
        rest = math.fsum(part.seconds for part in parts[len(large) :])
        if rest >= 0.05:
            words.append(f"{took(rest)} in smaller parts")
        return f"{took(self.seconds)}: {', '.join(words)}"

    def _suites(self, part: Part, most: int = 3) -> str:
        if part.name != "measuring" or not self.suites:
            return ""
        words = [f"{suite.name} {took(suite.seconds)}" for suite in self.suites[:most]]
        if len(self.suites) > most:
            words.append(f"{len(self.suites) - most} more")
        return f" ({', '.join(words)})"


def took(seconds: float) -> str:
    """Format a duration for people, with one decimal below ten seconds.

    >>> [took(s) for s in (0.0, 0.04, 6.04, 6.25, 42.4, 61.0)]
    ['0 s', '0.04 s', '6 s', '6.2 s', '42 s', '1 min 1 s']
    """
    if seconds >= 9.95:
        return duration_text(seconds)
    text = f"{seconds:.2f}" if seconds < 0.1 else f"{seconds:.1f}"
    return f"{text.rstrip('0').rstrip('.')} s"


def wall_time(
    evidence: Evidence, attempts: Sequence[RoundRecord], now: datetime | None = None
) -> WallTime:
    """Read the wall time of a round.

    Args:
        attempts: those at the round, each from its beginning to its end.
        now: end of an attempt that runs; None: such an attempt counts nothing.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    before: defaultdict[str, float] = defaultdict(float)
    whole = 0.0
    for attempt in attempts:
        took_s = attempt_seconds(attempt, now)
        folder = evidence.store.paths.attempt(attempt.index, attempt.name, attempt.attempt)
        times = AttemptTimes.load(folder.path)
        parts = dict(times.seconds if times else _from_steps(evidence, attempt, folder))
        rest = took_s - math.fsum(parts.values())
        name = "other" if times else "not recorded"
        parts[name] = parts.get(name, 0.0) + max(0.0, rest)
        whole += math.fsum(parts.values())
        for name, value in parts.items():
            seconds[name] += value
        for name, value in (times.before if times else {}).items():
            before[name] += value
    return WallTime(
        seconds=whole,
        parts=tuple(_ordered(seconds)),
        suites=tuple(_suites(seconds)),
        before=tuple(_ordered(before)),
    )


def wall_time_of(evidence: Evidence, name: str, now: datetime | None = None) -> WallTime:
    """Read the wall time of all attempts at a round by its name."""
    attempts = [a for a in evidence.ledger.attempts() if a.name == name and a.attempt > 0]
    return wall_time(evidence, attempts, now)


def attempt_seconds(attempt: RoundRecord, now: datetime | None) -> float:
    """Return the wall time of one attempt, until ``now`` if it has not ended."""
    if attempt.started is None:
        return 0.0
    started = datetime.fromisoformat(attempt.started)
    end = datetime.fromisoformat(attempt.ended) if attempt.ended else now
    return max(0.0, (end - started).total_seconds()) if end else 0.0


def _from_steps(evidence: Evidence, attempt: RoundRecord, folder: RunFolder) -> dict[str, float]:
    """Sum up what steps and files of results say of an attempt of an older store."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for run in (folder, *folder.repairs()):
        for step in run.steps().values():
            for name, value in step.items():
                if name in STEP_METRICS:
                    seconds[STEP_METRICS[name]] += value
    repairs = (step.candidate for step in repairs_of(attempt.report))
    for snapshot in dict.fromkeys(filter(None, (attempt.candidate, *repairs))):
        for record in evidence.ledger.evaluations(snapshot):
            took_s = measured_seconds(evidence.folder / record.path)
            seconds[f"{MEASURING}{record.suite}"] += took_s or 0.0
    return dict(seconds)


def _ordered(seconds: Mapping[str, float]) -> Iterator[Part]:
    """Yield the parts that took time in the order of a round; suites are one part."""
    sums: defaultdict[str, float] = defaultdict(float)
    for name, value in seconds.items():
        sums["measuring" if name.startswith(MEASURING) else name] += value
    known = [name for name in MEANINGS if name in sums]
    for name in (*known, *sorted(sums.keys() - MEANINGS.keys())):
        if sums[name] > 0:
            yield Part(name=name, seconds=sums[name])


def _suites(seconds: Mapping[str, float]) -> list[Part]:
    parts = [
        Part(name=name.removeprefix(MEASURING), seconds=value)
        for name, value in seconds.items()
        if name.startswith(MEASURING) and value > 0
    ]
    return sorted(parts, key=lambda part: -part.seconds)
