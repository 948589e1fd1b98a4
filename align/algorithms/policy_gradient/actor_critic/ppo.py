"""PPO: the clipped surrogate with an advantage for each token, estimated from a critic's values.

    A_t  generalised advantage estimates of a completion whose score is the reward of its last token
    L    = -1/N sum_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t)
           + value_weight 1/N sum_t 1/2 max((V_t - R_t)^2, (clip(V_t, v_t - c, v_t + c) - R_t)^2)

``v_t`` are the critic's values when the batch came, ``V_t`` those it gives now, ``R_t = A_t + v_t`` before
whitening, ``c`` is ``value_clip``. Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7; advantages:
Schulman et al. 2016, arXiv 1506.02438, eq. 16; value clipping, whitening and the penalty on truncated
answers: Huang et al. 2024, arXiv 2403.17031.

The KL to earlier policies is no part of the reward: anchors add it to the loss, and the anchor estimator
``k1`` has the gradient that a KL reward has. A critic replaces the comparison within a group, so one
completion per prompt is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import add
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from align.algorithms.base import LossAndMetrics, Need, PolicyGradient, PolicyInputs
from align.algorithms.policy_gradient.actor_critic.gae import (
    explained_variance,
    gae,
    terminal_rewards,
    whiten,
)
from align.algorithms.policy_gradient.clipping import clipped_surrogate
from align.algorithms.policy_gradient.turns import with_turn_rewards
from align.algorithms.rows import Batch, Row, Totals
from align.settings import Settings
from rollouts.types import ScoredGroup

if TYPE_CHECKING:
    from torch import Tensor

    from align.algorithms.micro_batch import MicroBatch
    from align.algorithms.outputs import Outputs

SHARED = "shared"
"""Value of ``critic.model`` for a head on the policy's own hidden states."""

VALUE_PARTS = ("value/return", "value/return_square", "value/error_square")
"""Metrics that are the arguments of `explained_variance`, in its order; means over the tokens."""


class CriticConfig(Settings):
    """Model that predicts the score of a completion from each of its tokens, new in every round."""

    model: str | None = None
    """Critic's network. None: a copy of the round's parent, all of it trained. ``shared``: a head on the
    policy's hidden states, which costs next to nothing. Otherwise a folder with a model that has the
    policy's tokenizer, such as a reward model, whose own head is not used. Under ``lora`` the copy is of
    the base without its adapter, in full weights, so ``shared`` is then the natural choice. With several
    learner ranks each holds the whole critic."""
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Learning rate; the optimizer's schedule scales it like the policy's."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates at the start of a round in which only the critic learns."""
    shared_gradient: bool = False
    """Let the value loss of a ``shared`` critic also move the policy's hidden states."""

    @model_validator(mode="after")
    def _gradient(self) -> Self:
        if self.shared_gradient and self.model != SHARED:
            raise ValueError(
                f"critic.shared_gradient needs a critic on the policy's hidden states, got model "
                f"{self.model!r}; set critic.model to shared, or shared_gradient to false"
            )
        return self


class PPO(PolicyGradient):
    """Proximal policy optimisation with a critic."""

    name: Literal["ppo"] = "ppo"
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Distance below 1 beyond which a ratio has no gradient."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """Distance above 1 beyond which a ratio has no gradient."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount per token; below 1 it favours short answers."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Mixing of the advantage estimate: 0 trusts the critic for all that follows a token, 1 the score."""
    whiten: bool = True
    """Shift and scale the advantages of a batch to mean 0 and standard deviation 1."""
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2
    """Distance, in units of the score, that a value may move within one batch before its gradient stops;
    None for no bound."""
    value_weight: Annotated[float, Field(gt=0)] = 0.1
    """Weight of the value loss. It scales the gradient of the critic alone, unless that is shared."""
    truncation_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Penalty subtracted from the score of an answer that was truncated at ``max_tokens``."""
    critic: CriticConfig = CriticConfig()
    """Model that the values come from."""

    needs = frozenset[Need]({"start", "values"})
    credits_turns: ClassVar[bool] = True

    @property
    def critic_config(self) -> CriticConfig:
        return self.critic

    def advantages(self, groups: Sequence[ScoredGroup]) -> list[list[float | None]]:
        """Return the scores, which `complete` spreads over the tokens once their values are known."""
        return [
            [
                None
                if score.value is None
                else score.value - self.truncation_penalty * (completion.finish_reason == "length")
                for completion, score in zip(
                    scored.group.completions_G, scored.scores_G, strict=True
                )
            ]
            for scored in groups
        ]

    def rows(self, groups: Sequence[ScoredGroup]) -> Batch:
        batch = super().rows(groups)
        return with_turn_rewards(batch, groups) if self._by_turn else batch

    def complete(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Give every token of the scored rows an advantage and a return."""
        scored: list[Row] = []
        for row in rows:
            if row.advantage is not None:
                assert row.values_T is not None
                rewards_T = terminal_rewards(row.advantage, row.num_sampled)
                if row.rewards_T is not None:
                    rewards_T = tuple(map(add, rewards_T, row.rewards_T))
                estimates = gae(rewards_T, row.values_T, gamma=self.gamma, lam=self.lam)
                scored.append(replace(row, advantages_T=estimates[0], returns_T=estimates[1]))
        if self.whiten:
            white_BT = whiten([row.advantages_T or () for row in scored])
            scored = [
                replace(row, advantages_T=white_T)
                for row, white_T in zip(scored, white_BT, strict=True)
            ]
        return [*scored, *(row for row in rows if row.advantage is None)]

    def loss(self, inputs: PolicyInputs, totals: Totals) -> LossAndMetrics:
        loss_N, clipped_N = clipped_surrogate(inputs, self.clip_low, self.clip_high)
        share = clipped_N.float().sum() / totals.tokens
        return loss_N.sum() / totals.tokens, {"loss/clip_share": share}

    def objective(self, micro: MicroBatch, outputs: Outputs, totals: Totals) -> LossAndMetrics:
        loss, metrics = super().objective(micro, outputs, totals)
        teaches_N = micro.teaches_N
        assert outputs.values_N is not None
        if not teaches_N.any():
            # Ranks run the backward pass of a sharded critic together, so every loss depends on it.
            return loss + outputs.values_N.sum() * 0.0, metrics
        start_N = micro.of_tokens("values_T")[teaches_N]
        returns_N = micro.of_tokens("returns_T")[teaches_N]
        loss_N, clipped_N = clipped_value_loss(
            outputs.values_N[teaches_N], start_N, returns_N, self.value_clip
        )
        value_loss = loss_N.sum() / totals.tokens
        parts = (returns_N, returns_N.square(), (returns_N - start_N).square())
        return loss + self.value_weight * value_loss, {
            **metrics,
            "loss/value": value_loss.detach(),
            "loss/value_clip_share": clipped_N.float().sum() / totals.tokens,
            **{n: part.sum() / totals.tokens for n, part in zip(VALUE_PARTS, parts, strict=True)},
        }

    def derived(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        parts = [metrics[name] for name in VALUE_PARTS if name in metrics]
        return {"value/explained_variance": explained_variance(*parts)} if parts else {}


def clipped_value_loss(
    values_N: Tensor, start_values_N: Tensor, returns_N: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Compute the value loss per token, and a mask of the tokens whose value the clip stopped.

    The loss is the larger of two halved squared errors: that of the value, and that of the value clipped
    to within ``clip`` of its start. Both results have shape ``N``. Source: Huang et al. 2024, arXiv
    2403.17031.
    """
    error_N = (values_N - returns_N).square()
    if clip is None:
        return 0.5 * error_N, error_N.new_zeros(error_N.shape)
    near_N = values_N.clamp(start_values_N - clip, start_values_N + clip)
    near_error_N = (near_N - returns_N).square()
    return 0.5 * error_N.maximum(near_error_N), (near_error_N > error_N).detach()
