"""Suites of how often a snapshot's answers beat another snapshot's (`align.gate.suites.win_rate`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from align.config.gate import SuiteConfig, SuiteDemands
from align.config.rewards import RewardConfig
from align.gate.suites.kinds.answers import AnswerSuite
from align.gate.suites.known import KnownSnapshots, NeededFile
from align.gate.suites.scale import UNIT, Range
from align.gate.suites.suite import SuiteEntry
from align.gate.suites.win_rate import REFERENCE, ROUND, Duel, save_answers
from rollouts.errors import UserError, nearest
from rollouts.types import RolloutGroup, ScoredGroup

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from rollouts.engines.protocol import RolloutEngine
    from rollouts.prompts import PromptEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class WinRateSuite(AnswerSuite):
    """Prompts that two snapshots answer, and a metric that tells the better answer."""

    whole: ClassVar[bool] = True

    duel: Duel
    """The snapshot that answers are compared with."""

    @classmethod
    def own_fields(cls, entry: SuiteEntry) -> dict[str, Any]:
        """Return the snapshot that answers are compared with."""
        spec = entry.spec
        if spec.samples > 1:
            raise UserError(
                f"suite {spec.name!r} compares one answer of each snapshot, and samples is {spec.samples}",
                where=f"{entry.where}.samples",
                remedy="remove samples, or give the suite more items",
            )
        return {"duel": duel_of(entry.config, spec, f"{entry.where}.against")}

    @classmethod
    def stated_range(cls, spec: SuiteDemands, metric: Sequence[RewardConfig]) -> Range | None:
        """Return 0 and 1, whatever the range of the metric."""
        return UNIT

    @classmethod
    def reading(cls, spec: SuiteConfig) -> str:
        """Name the snapshot that answers are compared with."""
        return f"win rate against {(spec.against or '').replace('round:', 'round ')}"

    def content(self) -> Mapping[str, Any]:
        """Return that of a suite of answers, and the snapshot that they are compared with."""
        return {**AnswerSuite.content(self), "against": self.duel.comparator}

    @property
    def stand_ins(self) -> Mapping[str, Any]:
        """An empty text for the other answer, which a pairwise metric is given."""
        return {REFERENCE: ""}

    @property
    def needs(self) -> Sequence[NeededFile]:
        """The other snapshot's answers."""
        duel = self.duel
        if duel.comparator is None or duel.answers is None:
            return ()
        return (
            NeededFile(
                path=duel.answers,
                snapshot=duel.comparator,
                snapshot_name=duel.against,
                note=f"sampling the answers of {duel.against} for {self.name}",
                write=self._write_answers,
            ),
        )

    def compared(self, known: KnownSnapshots) -> WinRateSuite | None:
        """Return the suite with its rival; None before the rival's round was accepted."""
        snapshots = {"base": known.base, "parent": known.production}
        snapshots |= {ROUND + name: snapshot for name, snapshot in known.accepted.items()}
        if self.duel.against not in snapshots:
            return None
        suite = replace(
            self, duel=replace(self.duel, comparator=snapshots[self.duel.against], answers=None)
        )
        path = known.store.rival_answers(suite.name, suite.hash)
        return replace(suite, duel=replace(suite.duel, answers=path))

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        """Score the completions of some items beside the rival's answers."""
        if self.rubric is None:
            raise ValueError(f"suite {self.name!r} has no rubric")
        return self.duel.score(groups, self.rubric)

    def _write_answers(self, engine: RolloutEngine, encoder: PromptEncoder, seed: int) -> None:
        assert self.duel.comparator is not None and self.duel.answers is not None
        groups = self.sampled(engine, encoder, self.duel.comparator, seed, 1)
        save_answers(self.duel.answers, groups)


def duel_of(config: CampaignConfig, spec: SuiteConfig, where: str) -> Duel:
    """Return the comparison that a suite asks for.

    Raises:
        UserError: it names no round that makes a policy.
    """
    assert spec.against is not None, "the check of the source"
    policies = [r.name for r in config.rounds if r.algorithm.makes == "policy"]
    name = spec.against.removeprefix(ROUND)
    if spec.against.startswith(ROUND) and name not in policies:
        raise UserError(
            f"suite {spec.name!r} is compared with {spec.against!r}, and no round of that name makes a "
            "policy",
            where=where,
            remedy=nearest(name, policies) if policies else "name base or parent",
        )
    return Duel(against=spec.against)
