"""Fields of a campaign file that say how a step samples, learns, and what holds it back."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from align.settings import Settings


def _listed(value: Any) -> Any:
    """Make a list of one anchor, which is short for it."""
    return [value] if isinstance(value, dict) else value


Decay = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(gt=0)]


BOUNDING = (
    "top_p", "top_k", "min_p", "typical_p", "stop", "stop_token_ids", "min_tokens", "bad_words",
    "logit_bias", "repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos",
)  # fmt: skip
"""Settings of samplers that change the distribution of answers."""


class SamplingConfig(Settings):
    """The rollouts of one learner step."""

    group_size: Annotated[int, Field(ge=1)] = 8
    """Completions per new prompt."""
    prompts_per_step: Annotated[int, Field(ge=1)] = 16
    """``prompts_per_step * group_size`` completions are the step's whole budget, replay included."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of sampling; the loss is of the distribution at this temperature."""
    max_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest completion, in tokens."""
    repairs: Annotated[int, Field(ge=0)] = 1
    """Number of times a step asks again in place of groups of which fewer than two completions were
    scored."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Learner steps that samples may lag behind the weights that learn from them. 0 samples and learns
    in turn; 1 does both at the same time; k also syncs the engines at every k-th step only."""
    in_flight: bool = False
    """Hand new weights to the engines while they sample the next step: completions under way go on under
    them, so that their later tokens are fresher. Needs ``max_staleness`` of at least 1."""

    @model_validator(mode="before")
    @classmethod
    def _true_distribution(cls, data: Any) -> Any:
        if isinstance(data, dict) and (names := [name for name in BOUNDING if name in data]):
            raise ValueError(
                f"{', '.join(names)}: a round learns from the policy's own distribution, and tokens that "
                "sampling leaves out or favours would have other probabilities than the learner computes, "
                f"so its gradients would be wrong; remove {'it' if len(names) == 1 else 'them'} here. "
                "top_p, top_k, min_p and stop can be set on suites and under serving"
            )
        return data

    @property
    def budget(self) -> int:
        """Completions of one step, replay included."""
        return self.prompts_per_step * self.group_size

    @model_validator(mode="after")
    def _samples_ahead(self) -> Self:
        if self.in_flight and self.max_staleness < 1:
            raise ValueError(
                "in_flight changes the weights of samples that are under way, and with max_staleness 0 "
                "there are none at a sync; set max_staleness to 1, or in_flight to false"
            )
        return self


class OptimizerConfig(Settings):
    """AdamW, fresh in every round."""

    lr: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Learning rate, after the warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the running means of gradients and of their squares."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the squares' mean, so that nothing is divided by zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decay of all weights that are trained, apart from the gradient."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this global norm."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises linearly."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate's fall to ``final_lr``: even, slow at both ends, or none."""
    final_lr: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of ``lr`` that is left at the round's last step. 1: it does not fall."""
    decay_from: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the round after which it begins to fall."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over every batch of rollouts."""
    mini_batches: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps in one pass: the batch is split into so many equal parts."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Padded tokens whose activations are held at a time, by one forward pass or by all that run side by
    side; any value gives the same gradient. None: 2,600 on CPU, where activations should stay in the cache,
    and fewer for models that would keep more than 768 MiB; 16,384 on GPU."""

    @model_validator(mode="after")
    def _falls_or_not(self) -> Self:
        if self.schedule == "constant" and self.final_lr < 1:
            raise ValueError(
                f"schedule constant never falls to final_lr {self.final_lr:g}; set final_lr to 1, or "
                "choose schedule linear or cosine"
            )
        return self


class AnchorConfig(Settings):
    """One KL term: ``beta`` times the mean per-token KL toward one earlier snapshot, in nats."""

    to: Annotated[str, Field(pattern=r"^(parent|owner|base|round:.+)$")]
    """``parent`` (where the round started), ``owner`` (of each prompt), ``base``, ``round:NAME``."""
    beta: Annotated[float, Field(ge=0)]
    """Weight; with a target, the weight it starts from."""
    estimator: Literal["full", "forward", "k1", "k2", "k3"] = "full"
    """``full`` sums over the vocabulary; k1 to k3 use sampled tokens only; ``forward`` is for stored
    answers, which the anchor sampled."""
    target: Annotated[float, Field(gt=0)] | None = None
    """KL in nats per token that ``beta`` is steered toward; None keeps beta fixed."""
    rate: Annotated[float, Field(gt=0)] = 0.1
    """Largest relative change of a steered beta in one step."""
    bounds: tuple[Weight, Weight] = (1e-4, 1e2)
    """Smallest and largest steered beta."""

    @model_validator(mode="after")
    def _steered(self) -> Self:
        low, high = self.bounds
        if low > high:
            raise ValueError(
                f"bounds are the smallest and the largest beta, got {low:g} and {high:g}; swap them"
            )
        if self.target is None and (setting := self.changed("rate", "bounds")):
            raise ValueError(
                f"{setting} says how beta is steered toward a target, and there is none; set target, or "
                f"remove {setting}"
            )
        return self


class AnchorsConfig(Settings):
    """Snapshots that hold the prompts of each class. Each class's KL is a mean over its own tokens."""

    new: Annotated[tuple[AnchorConfig, ...], BeforeValidator(_listed)] = ()
    """A trust region, for reward models and judges; costs plasticity."""
    past: Annotated[tuple[AnchorConfig, ...], BeforeValidator(_listed)] = (
        AnchorConfig(to="owner", beta=3.0),
    )
    """The retention term: each replayed prompt is held to the snapshot that owned it."""
    general: Annotated[tuple[AnchorConfig, ...], BeforeValidator(_listed)] = (
        AnchorConfig(to="base", beta=1.0),
    )
    """Holds what no round trains."""

    @field_validator("new", "past", "general")
    @classmethod
    def _distinct(cls, anchors: tuple[AnchorConfig, ...]) -> tuple[AnchorConfig, ...]:
        names = [anchor.to for anchor in anchors]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"two anchors to {twice!r} would share one KL and its metrics; write one, with both betas "
                "added up"
            )
        return anchors
