"""Base classes of all algorithms: config objects that turn samples into rows, and rows into a loss.

An algorithm has three pure stages, in this order:

    rows      scored groups (or examples of a file) -> rows for the learner
    complete  rows whose ``needs`` the learner has filled in -> rows with their final numbers
    objective one forward pass -> loss and metrics, summable over micro-batches and ranks

There are three families: the loss of `PolicyGradient` (in this file) is over tokens with advantages,
that of `Preference` over pairs of whole answers, that of `Imitation` over tokens to repeat. A new
algorithm is a new file and a line in `ALGORITHMS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import PrivateAttr

from align.algorithms.rows import Batch, Row, Totals, row_of
from align.settings import Settings
from rollouts.types import Prompt, ScoredGroup

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from align.algorithms.micro_batch import MicroBatch
    from align.algorithms.outputs import Outputs
    from align.algorithms.policy_gradient.actor_critic.ppo import CriticConfig

Need = Literal["start", "reference", "values"]
"""Columns that the learner computes before the first step on a batch, without gradient."""
Material = Literal["rollouts", "pairs", "ratings", "demonstrations", "texts"]
"""Kind of data that an algorithm learns from: this round's own samples, or rows of a file."""
LossAndMetrics = tuple["Tensor", Mapping[str, "Tensor"]]


class Algorithm(Settings):
    """Settings and the three stages of an algorithm."""

    name: str
    _by_turn: bool = PrivateAttr(default=False)

    needs: ClassVar[frozenset[Need]] = frozenset()
    anchors_are_reference: ClassVar[bool] = False
    """True if the anchors of new prompts are this loss's reference, and so add no KL term there."""

    ranks_answers: ClassVar[bool] = False
    """True if the rows of a unit are answers to one prompt, whose advantages rank them."""
    makes: ClassVar[Literal["policy", "reward_model"]] = "policy"
    """Kind of model that a round writes. Only a policy can become production."""
    in_reward_over: ClassVar[Literal["tokens", "completions"]] = "tokens"
    """Unit that the KL of new prompts is averaged over when it acts through the reward (``k1``)."""
    needs_rewards: ClassVar[bool] = True
    """True if the algorithm learns from the rollouts' rewards."""
    learns_here: ClassVar[bool] = True
    """True if the learner takes the round's steps; False if another program trains."""
    credits_turns: ClassVar[bool] = False
    """True if the turns of an episode may have advantages of their own (``turn_rewards``)."""
    unused: ClassVar[Mapping[str, str]] = {}
    """Reasons why the algorithm does not read a setting of the round, by the setting's key."""

    @property
    def trains_policy(self) -> bool:
        """True if the learner trains the policy: not a reward model, and not by another program."""
        return self.makes == "policy" and self.learns_here

    @property
    def material(self) -> Material:
        """Kind of data that a step of new prompts learns from."""
        return "rollouts"

    @property
    def critic_config(self) -> CriticConfig | None:
        """Settings of the critic behind `Outputs.values_N` and the need ``values``; None without one."""
        return None

    @property
    def teacher_snapshot(self) -> str | None:
        """Name of the model behind `Outputs.teacher`, as anchors are named or ``model:PATH``; None
        without a teacher."""
        return None

    @property
    def teacher_follows(self) -> float | None:
        """Share of the way to the policy that the teacher's weights move after every optimizer step;
        None for a teacher that stays as it is."""
        return None

    def teacher_prompt(self, prompt: Prompt) -> Prompt | None:
        """Return the prompt that the teacher reads instead of this one; None if it reads the same."""
        return None

    def check(self, group_size: int, where: str) -> None:
        """Raise ValueError if the algorithm cannot work with this group size.

        Args:
            where: the round's path in the campaign file, such as ``rounds.maths``.
        """

    def check_here(self, folder: Path, where: str) -> None:
        """Raise `UserError` if this machine lacks a program that the algorithm runs.

        Args:
            folder: folder of the campaign file.
            where: path of the algorithm's settings in the campaign file.
        """

    def for_round(self, max_tokens: int) -> Self:
        """Return the algorithm for a round whose completions have at most ``max_tokens`` tokens."""
        return self

    def by_turn(self) -> Self:
        """Return the algorithm that learns from the rewards of single turns beside the score of an episode.

        Raises:
            ValueError: the algorithm takes a whole answer as one action, or learns from no advantages.
        """
        if not self.credits_turns:
            raise ValueError(
                f"turn_rewards gives each turn of an episode an advantage of its own, and {self.name} has "
                "one for a whole answer, or none; use grpo, dapo, dr_grpo, cispo, reinforce_pp, ppo or "
                "cppo, or remove turn_rewards"
            )
        copy = self.model_copy()
        copy._by_turn = True
        return copy

    @property
    def resamples(self) -> int:
        """Number of times that a step may draw new groups for those that are not `informative`."""
        return 0

    def informative(self, scored: ScoredGroup) -> bool:
        """Tell if a group can teach anything; a step with `resamples` replaces those that cannot."""
        return True

    def rows(self, groups: Sequence[ScoredGroup]) -> Batch:
        """Turn sampled groups into rows for the learner; completions without tokens are left out."""
        raise NotImplementedError

    def examples(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Prepare the rows of a file; may add rows that are only measured."""
        return rows

    def needs_of(self, row: Row) -> frozenset[Need]:
        """Return the part of `needs` that the learner has to compute for a row."""
        return self.needs

    def complete(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Finish the rows after the learner has filled in `needs`; may drop rows only measured."""
        return rows

    def moves(self, advantage: float) -> bool:
        """Tell if a row with this advantage can have a gradient; the learner skips the rest."""
        return True

    def objective(self, micro: MicroBatch, outputs: Outputs, totals: Totals) -> LossAndMetrics:
        """Compute loss and metrics of one micro-batch, both summable over those of a step."""
        raise NotImplementedError

    def derived(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Compute the metrics of an update that are no sums, such as ratios, from those that are."""
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyInputs:
    """Tensors over the ``N`` completion tokens that carry an advantage, flat and without padding."""

    logprobs_N: Tensor
    """Log-probabilities of the policy that learns, in nats, with gradient."""
    start_logprobs_N: Tensor
    """Log-probabilities of the policy when the batch came, the denominator of ratios. No gradient."""
    advantages_N: Tensor
    rows_N: Tensor
    """Index of the completion each token belongs to, non-decreasing."""
    weights_N: Tensor | None = None
    """Importance weights of samples that older weights drew; None if all are 1."""


class PolicyGradient(Algorithm):
    """Algorithms whose loss is a sum over sampled tokens, weighted by advantages."""

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
        """Return one advantage per completion of each group; None keeps it out of the loss."""
        raise NotImplementedError

    def rows(self, groups: Sequence[ScoredGroup]) -> Batch:
        return Batch(
            rows=tuple(
                row_of(scored.group, completion, advantage)
                for scored, advantages_G in zip(groups, self.advantages(groups), strict=True)
                for completion, advantage in zip(
                    scored.group.completions_G, advantages_G, strict=True
                )
                if completion.token_ids
            )
        )

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        """Compute loss and metrics, both summable over the micro-batches of a step."""
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
