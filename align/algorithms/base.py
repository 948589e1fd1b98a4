"""What every algorithm is: a config object that turns a step's material into rows, and rows into a loss.

Three pure stages, in this order:

    rows      scored groups (or examples from a file) -> rows that teach
    complete  rows whose ``needs`` the learner has filled in -> rows with their final numbers
    objective one forward pass -> loss and metrics, summable over micro-batches and ranks

Families differ in what a row's loss is made of: `PolicyGradient` (tokens with advantages, here),
`Preference` (pairs of whole answers), `Imitation` (tokens to repeat). A new algorithm is a new file
and a line in `ALGORITHMS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from align.algorithms.rows import Batch, Row, Totals, row_of
from align.settings import Settings
from rollouts.types import Prompt, ScoredGroup

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from align.algorithms.micro_batch import MicroBatch
    from align.algorithms.outputs import Outputs
    from align.algorithms.policy_gradient.ppo import CriticConfig

Need = Literal["start", "reference", "values"]
"""Columns that the learner computes before the first step on a batch, without gradient."""
Material = Literal["rollouts", "pairs", "ratings", "demonstrations", "texts"]
"""What an algorithm learns from: this round's own samples, or rows of a file."""
LossAndMetrics = tuple["Tensor", Mapping[str, "Tensor"]]


class Algorithm(Settings):
    """Base of all algorithms."""

    name: str

    needs: ClassVar[frozenset[Need]] = frozenset()
    anchors_are_reference: ClassVar[bool] = False
    """The anchors of new prompts are this loss's reference, and add no KL term of their own."""

    makes: ClassVar[Literal["policy", "reward_model"]] = "policy"
    """What a round leaves behind. Only a policy can become production."""
    in_reward_over: ClassVar[Literal["tokens", "completions"]] = "tokens"
    """Unit that the KL of new prompts is averaged over when it acts through the reward (``k1``)."""
    needs_rewards: ClassVar[bool] = True
    """Whether rollouts must be scored to learn from them."""
    learns_here: ClassVar[bool] = True
    """True if the learner takes the round's steps; False if another program trains."""
    unused: ClassVar[Mapping[str, str]] = {}
    """Settings of a round that the algorithm does not read, by key, each with the reason."""

    @property
    def material(self) -> Material:
        """What a step of new prompts is made of."""
        return "rollouts"

    @property
    def critic_config(self) -> CriticConfig | None:
        """The critic that gives `Outputs.values_N` and the need ``values``; None: there is none."""
        return None

    @property
    def teacher_snapshot(self) -> str | None:
        """The model that gives `Outputs.teacher`, named as anchors are, or ``model:PATH``; None: there
        is none."""
        return None

    @property
    def teacher_follows(self) -> float | None:
        """Share of the way to the policy that the teacher's weights go after every optimizer step; None:
        it stays."""
        return None

    def teacher_prompt(self, prompt: Prompt) -> Prompt | None:
        """What the teacher reads in place of a prompt; None: the same."""
        return None

    def check(self, group_size: int, where: str) -> None:
        """Raise ValueError (rule, value, remedy) where the algorithm cannot work with a setting."""

    def check_here(self, folder: Path, where: str) -> None:
        """Raise `UserError` where this machine lacks what the algorithm runs.

        Args:
            folder: the campaign file's.
        """

    def for_round(self, max_tokens: int) -> Self:
        """The same algorithm for a round whose completions have at most so many tokens."""
        return self

    @property
    def resamples(self) -> int:
        """How often a step draws again in place of groups that are not `informative`."""
        return 0

    def informative(self, scored: ScoredGroup) -> bool:
        """Whether a group is worth its place in a step."""
        return True

    def rows(self, groups: Sequence[ScoredGroup]) -> Batch:
        """What the sampled groups that teach become; completions without tokens are left out."""
        raise NotImplementedError

    def examples(self, rows: Sequence[Row]) -> Sequence[Row]:
        """What rows of a file become; may add rows that are only measured."""
        return rows

    def needs_of(self, row: Row) -> frozenset[Need]:
        """Which of `needs` a row is asked for."""
        return self.needs

    def complete(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows after the learner has filled in `needs`; may drop rows that were only measured."""
        return rows

    def moves(self, advantage: float) -> bool:
        """Whether a row with this advantage can have a gradient; the rest need none taken."""
        return True

    def objective(self, micro: MicroBatch, outputs: Outputs, totals: Totals) -> LossAndMetrics:
        """Loss of one micro-batch and metrics, both summable over the micro-batches of a step."""
        raise NotImplementedError

    def derived(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Metrics of an update that are no sums, from those that are."""
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyInputs:
    """Flat over the ``N`` completion tokens that carry an advantage; no padding anywhere."""

    logprobs_N: Tensor
    """Of the policy that learns, nats, with gradient."""
    start_logprobs_N: Tensor
    """Of the policy when this batch came: what ratios are taken to. No gradient."""
    advantages_N: Tensor
    rows_N: Tensor
    """Index of the completion each token belongs to, non-decreasing."""
    weights_N: Tensor | None = None
    """Importance weight for samples of other weights than the start's; None: all 1."""


class PolicyGradient(Algorithm):
    """Algorithms whose loss is a sum over sampled tokens, weighted by advantages."""

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
        """One advantage per completion of each group; None masks the completion out of the loss."""
        raise NotImplementedError

    def rows(self, groups: Sequence[ScoredGroup]) -> Batch:
        found = [
            row_of(scored.group, completion, advantage)
            for scored, advantages_G in zip(groups, self.advantages(groups), strict=True)
            for completion, advantage in zip(scored.group.completions_G, advantages_G, strict=True)
            if completion.token_ids
        ]
        return Batch(rows=tuple(found))

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        """The formula. Both results summable over the micro-batches of a step."""
        raise NotImplementedError

    def objective(self, micro: MicroBatch, outputs: Outputs, totals: Totals) -> LossAndMetrics:
        teaches_N = micro.teaches_N
        logprobs_N = outputs.logprobs_N
        if not teaches_N.any():
            return logprobs_N.sum() * 0.0, {}
        moved = any(row.start_logprobs_T is not None for row in micro.rows)
        start_N = micro.of_tokens("start_logprobs_T") if moved else logprobs_N.detach()
        loss, metrics = self.loss(
            PolicyInputs(
                logprobs_N=logprobs_N[teaches_N],
                start_logprobs_N=start_N[teaches_N],
                advantages_N=micro.advantages_N[teaches_N],
                rows_N=micro.rows_N[teaches_N],
                weights_N=None if micro.weights_N is None else micro.weights_N[teaches_N],
            ),
            totals,
        )
        return loss, {**metrics, "loss/policy": loss.detach()}
