"""Suites of held-out pairs: which of two answers a snapshot prefers (`align.gate.suites.implicit`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from align.gate.measurement.results import ItemResults
from align.gate.measurement.samples import checked
from align.gate.suites.implicit import Reference, reference_file, save_logprobs, shares, ties, wins
from align.gate.suites.kinds.sequences import SequenceSuite
from align.gate.suites.known import KnownSnapshots, NeededFile
from align.gate.suites.scale import UNIT, ScoreScale
from align.gate.suites.sequences import example_sequences
from rollouts.types import Score, SnapshotId

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from align.data.examples import Unit
    from rollouts.engines.protocol import RolloutEngine
    from rollouts.prompts import PromptEncoder

LONGER = "the longer answer"
LIKELIHOOD = "the higher likelihood per token"
"""Rules that pairs are also judged by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSuite(SequenceSuite):
    """A better and a worse answer of every item, each worth 1 where the better one is preferred.

    ``sequences`` are better, worse, better, ...
    """

    kind: ClassVar[str] = "pairs"
    scale: ClassVar[ScoreScale] = ScoreScale(range=UNIT)
    has_figures: ClassVar[bool] = True

    implicit: bool = False
    """True if pairs are compared by their log ratios to the round's reference, not by likelihood."""
    anchors: tuple[tuple[str, float], ...] = field(default=(("parent", 1.0),), compare=False)
    """Names of the snapshots that the reference is a mean of, with their shares."""
    reference: Reference | None = field(default=None, repr=False)
    """The round's reference; None before it is known, or if pairs go by likelihood."""

    @classmethod
    def of_examples(cls, spec: RoundConfig, index: int, examples: Sequence[Unit]) -> Self:
        """Make the suite of a round that learns from pairs, from those that it never sees."""
        suite = spec.suite
        return cls.of_sequences(
            spec,
            example_sequences(examples, suite.items, f"rounds.{index}.data", suite.cluster),
            implicit=suite.pairs == "implicit_reward" and spec.algorithm.anchors_are_reference,
            anchors=tuple(shares(spec).items()),
        )

    @classmethod
    def side_sentence(cls, results: ItemResults) -> str:
        """Say how many pairs the other rules are right about."""
        if not results.beside:
            return ""
        rules = [
            f"{name} is right about {100 * share:.1f}%" for name, share in results.beside.items()
        ]
        rate = f"right about {100 * results.mean:.1f}% of {len(results.values)} pairs"
        return f"{rate}; {', '.join(rules)}"

    @property
    def needs(self) -> Sequence[NeededFile]:
        """The reference's log-likelihoods of the answers."""
        if self.reference is None:
            return ()
        return [
            NeededFile(
                path=path,
                snapshot=snapshot,
                snapshot_name=snapshot[:16],
                note=f"scoring the pairs of {self.name} by {snapshot[:16]}",
                write=partial(self._write_logprobs, path),
            )
            for (snapshot, _), path in zip(
                self.reference.weights, self.reference.files, strict=True
            )
        ]

    @property
    def earlier_forms(self) -> Sequence[PairSuite]:
        """The same pairs by likelihood, as all were once."""
        return (replace(self, implicit=False),) if self.implicit else ()

    def compared(self, known: KnownSnapshots) -> PairSuite | None:
        """Return the suite with its reference; None before the round's parent is known."""
        if not self.implicit:
            return self
        parent = known.parents.get(self.target_of or "")
        if parent is None:
            return None
        snapshots = {"parent": parent, "base": known.base}
        snapshots |= {f"round:{name}": candidate for name, candidate in known.ever_accepted.items()}
        if not all(name in snapshots for name, _ in self.anchors):
            return None
        weights = tuple((snapshots[name], share) for name, share in self.anchors)
        content: list[Any] = [self.sequences, self.encoding, dict(self.engine)]
        content += [self.observed] if self.observed else []
        files = tuple(reference_file(known.store, content, snapshot) for snapshot, _ in weights)
        return replace(self, reference=Reference(weights=weights, files=files))

    def content(self) -> Mapping[str, Any]:
        """Return the sequences, and the reference that pairs are compared by."""
        content = SequenceSuite.content(self)
        if not self.implicit:
            return content
        return {**content, "implicit": self.reference.weights if self.reference else ()}

    def measure(
        self, engine: RolloutEngine, encoder: PromptEncoder, snapshot: SnapshotId, seed: int
    ) -> ItemResults:
        """Score both answers of every pair; other rules that are right about them stand beside."""
        sums, lengths = self.logprobs(engine, encoder), self.lengths
        means = [total / length for total, length in zip(sums, lengths, strict=True)]
        likelier = [float(a > b) for a, b in zip(means[::2], means[1::2], strict=True)]
        longer = wins([float(length) for length in lengths])
        beside = {LONGER: math.fsum(longer) / len(longer)}
        values = likelier
        if self.implicit:
            values = self.preferred(sums, snapshot)
            beside[LIKELIHOOD] = math.fsum(likelier) / len(likelier)
        scores = [checked(Score(value=value, status="scored"), None) for value in values]
        return replace(self.results(snapshot, scores, sum(lengths)), beside=beside)

    def preferred(self, sums: Sequence[float], snapshot: SnapshotId) -> list[float]:
        """Return the value of every pair under a snapshot by its log ratios to the reference.

        Args:
            sums: its log-likelihoods of better, worse, better, ... answers, in nats.
        """
        reference = self.reference
        if reference is None:
            raise ValueError(f"the reference of suite {self.name!r} is not known yet")
        if reference.is_only(snapshot):  # What rounding makes of no difference is no preference.
            return ties(len(sums) // 2)
        whole = reference.logprobs()
        positions = range(len(whole) // 2) if self.positions is None else self.positions
        references = [value for index in positions for value in whole[2 * index : 2 * index + 2]]
        return wins([total - ref for total, ref in zip(sums, references, strict=True)])

    def _write_logprobs(
        self, path: Path, engine: RolloutEngine, encoder: PromptEncoder, seed: int
    ) -> None:
        save_logprobs(path, self.logprobs(engine, encoder))
