"""Values that the parts of a rubric logged for one batch, and counters of their workers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WORK = ("restarts", "deadlines", "quarantined")
"""Events of worker processes that are counted."""


@dataclass(kw_only=True, slots=True)
class Logged:
    """Log of one batch, or of several after `merge`."""

    values: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Values given to ``log_metric``, by ``<part>/<name>``."""
    extras: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    """Values given to ``log_extra``, by ``<part>/<column>``."""
    counts: Counter[str] = field(default_factory=Counter)
    """Counters of the workers, by ``<part>/<one of WORK>``."""
    busy_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds that the workers of a part spent, by part."""
    sent: Counter[str] = field(default_factory=Counter)
    """Samples given to the workers, by part."""

    def metric(self, part: str, name: str, value: float) -> None:
        """Record one call of ``log_metric``."""
        self.values[f"{part}/{name}"].append(float(value))

    def extra(self, part: str, column: str, values: Sequence[Any]) -> None:
        """Record one call of ``log_extra``."""
        self.extras[f"{part}/{column}"].extend(values)

    def work(self, part: str, counts: Mapping[str, int], busy_s: float, samples: int) -> None:
        """Record what a batch cost the workers of a part."""
        self.counts.update({f"{part}/{name}": counts.get(name, 0) for name in WORK})
        self.busy_s[part] += busy_s
        self.sent[part] += samples

    def merge(self, other: Logged) -> None:
        """Add a later batch."""
        for name, values in other.values.items():
            self.values[name].extend(values)
        for column, cells in other.extras.items():
            self.extras[column].extend(cells)
        self.counts.update(other.counts)
        for part, seconds in other.busy_s.items():
            self.busy_s[part] += seconds
        self.sent.update(other.sent)

    @property
    def metrics(self) -> dict[str, float]:
        """Means of logged values, sums of counters, and seconds per sample."""
        return {
            **{name: sum(values) / len(values) for name, values in self.values.items()},
            **{name: float(count) for name, count in self.counts.items()},
            **{
                f"{part}/seconds_per_sample": self.busy_s[part] / count
                for part, count in self.sent.items()
                if count
            },
        }

    def context(
        self, part: str, trainer_state: Any, extra: Callable[[str, Sequence[Any]], None]
    ) -> dict[str, Any]:
        """Return TRL's extra arguments, bound to one part.

        Args:
            extra: what ``log_extra`` calls.
        """
        return {
            "trainer_state": trainer_state,
            "log_extra": extra,
            "log_metric": lambda name, value: self.metric(part, name, value),
        }
