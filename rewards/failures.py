"""Samples that rewards could not score: counted, with each part's first reason, and held to a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from rewards.call import PartFailure, PartOutcome
from rollouts.errors import RunError

_LINES = 6
"""Last lines of a traceback that are worth showing in a message."""


class RewardFailure(RunError):
    """More samples could not be scored than the round may lose."""


@dataclass(kw_only=True, slots=True)
class FailureLog:
    """Reward failures since the log was made. Failed rollouts are not among them.

    A place in a step is counted once, as it came out when it was first asked. What a replacement of its
    group came to is kept apart: the share that failed would otherwise depend on how often one tries.
    """

    samples: int = 0
    """Completions shown to the rewards, without replacements."""
    failed: int = 0
    """Samples that at least one part failed on."""
    counts: dict[str, int] = field(default_factory=dict)
    """Failed samples per part; a part that never failed is not in it."""
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    """The same failures by `FailureKind`, per part."""
    first: dict[str, str] = field(default_factory=dict)
    """First traceback (or reason) per part, as text."""
    replaced: int = 0
    """Completions shown to the rewards in place of others."""
    replaced_failed: int = 0
    """Replacements that at least one part failed on."""

    @property
    def failed_share(self) -> float:
        """Failed samples over samples; 0.0 before the first sample."""
        return self.failed / self.samples if self.samples else 0.0

    def record(
        self, outcomes: Mapping[str, Sequence[PartOutcome]], *, replacements: bool = False
    ) -> None:
        """Add one batch: part name -> outcomes [B].

        Args:
            replacements: of samples that were counted before.
        """
        rows = list(zip(*outcomes.values(), strict=True))
        failed = sum(any(isinstance(outcome, PartFailure) for outcome in row) for row in rows)
        if replacements:
            self.replaced += len(rows)
            self.replaced_failed += failed
            return
        self.samples += len(rows)
        self.failed += failed
        for name, outcomes_B in outcomes.items():
            failures = [outcome for outcome in outcomes_B if isinstance(outcome, PartFailure)]
            if failures:
                self.counts[name] = self.counts.get(name, 0) + len(failures)
                self.kinds.setdefault(name, Counter()).update(f.kind for f in failures)
                self.first.setdefault(name, failures[0].trace)

    def to_dict(self) -> dict[str, Any]:
        """Return the log as JSON values, for a checkpoint."""
        kinds = {name: dict(counts) for name, counts in self.kinds.items()}
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"kinds": kinds}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> FailureLog:
        """Restore a log from what `to_dict` returned."""
        kinds = {name: Counter(counts) for name, counts in saved["kinds"].items()}
        return cls(**{**saved, "kinds": kinds})

    def check_budget(self, budget: float, planned: int = 0) -> None:
        """Raise `RewardFailure` when more than ``budget`` (a share) of the samples failed.

        ``planned`` is the number of samples the whole round will have, counted as `samples` are, where
        the caller knows it: then one bad batch at the start does not end a round that can afford it.
        """
        total = max(self.samples, planned)
        if self.failed <= budget * total:
            return
        worst = max(self.counts, key=lambda name: self.counts[name])
        lines = self.first[worst].splitlines()[-_LINES:]
        kinds = self.kinds[worst].most_common()
        classes = ", ".join(f"{count} {kind}" for kind, count in kinds)
        raise RewardFailure(
            f"reward {worst!r} failed on {self.counts[worst]} of {self.samples} samples; "
            f"{self.failed / total:.1%} could not be scored, the budget is {budget:.1%}; "
            f"its failures: {classes}",
            cause="\n    ".join(lines),
            remedy="correct the reward, or raise failed_budget if the failures are expected",
        )
