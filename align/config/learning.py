"""Settings of a round's sampling, optimizer and retention in a campaign file."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from align.settings import Settings, without_unset


def listed(value: Any) -> Any:
    """Accept a single entry for a list of one."""
    return [value] if isinstance(value, dict | str) else value


StopTexts = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]

Decay = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(gt=0)]


BOUNDING = (
    "top_p", "top_k", "min_p", "typical_p", "stop_token_ids", "min_tokens", "bad_words",
    "logit_bias", "repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos",
)  # fmt: skip
"""Settings of samplers that change the distribution of answers."""


class SamplingConfig(Settings):
    """Sampling of one learner step's rollouts."""

    group_size: Annotated[int, Field(ge=1)] = 8
    """Completions per new prompt."""
    prompts_per_step: Annotated[int, Field(ge=1)] = 16
    """Number of prompts whose groups make up a step's budget of ``prompts_per_step * group_size``
    completions, replay included."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of sampling, and of the distribution that the loss is computed on."""
    max_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest completion, in tokens."""
    stop: StopTexts = ()
    """Texts, or one of them, that end a completion. Its tokens up to the end of the text are learned from,
    and rewards see what comes before it."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables of the chat template for the round's own prompts, over those of the policy, such as
    ``{enable_thinking: false}``."""
    repairs: Annotated[int, Field(ge=0)] = 1
    """Number of times that a step samples again for groups with fewer than two scored completions."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Learner steps that samples may lag behind the weights that learn from them. 0 samples and learns
    in turn; 1 does both at the same time; k also syncs the engines only at every k-th step."""
    in_flight: bool = False
    """Send new weights to the engines while they sample the next step; the completions in progress go on
    under the new weights, so that their later tokens are fresher. Needs ``max_staleness`` of at least 1."""

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out settings that older stores do not have, unless they are set."""
        return without_unset(dump(self), ("stop", "chat_template_kwargs"))

    @model_validator(mode="before")
    @classmethod
    def _true_distribution(cls, data: Any) -> Any:
        if isinstance(data, dict) and (names := [name for name in BOUNDING if name in data]):
            raise ValueError(
                f"{', '.join(names)}: a round learns from the policy's own distribution, and tokens that "
                "sampling leaves out or favours would have other probabilities than the learner computes, "
                f"so its gradients would be wrong; remove {'it' if len(names) == 1 else 'them'} here. "
                "top_p, top_k and min_p can be set on suites and under serving"
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
                "in_flight changes the weights of samples in progress, and with max_staleness 0 there are "
                "none at a sync; set max_staleness to 1, or in_flight to false"
            )
        return self


class OptimizerConfig(Settings):
    """AdamW, which starts without state in every round."""

    lr: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Learning rate, after the warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the running means of gradients and of their squares."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Number added to the root of the squares' mean, which prevents a division by zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decay of all trained weights, decoupled from the gradient."""
    moments: Literal["float32", "8bit"] = "float32"
    """Numbers of these running means: ``8bit`` takes a quarter of the memory, with a scale for every 256
    of them, and needs the extra ``quantized``. Tensors of fewer than 4,096 numbers stay in float32."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Global norm that larger gradients are scaled down to."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises linearly."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate's fall to ``final_lr``: even, slow at both ends, or none."""
    final_lr: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of ``lr`` that is left at the round's last step; with 1 the rate does not fall."""
    decay_from: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the round after which the learning rate begins to fall."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Number of passes over every batch of rollouts."""
    mini_batches: Annotated[int, Field(ge=1)] = 1
    """Number of optimizer steps in one pass, each on an equal part of the batch."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Largest number of padded tokens whose activations are in memory at a time, over all forward passes
    that run side by side; any value gives the same gradient. None: 2,600 on CPU, where activations should
    stay in the cache, and fewer for models that would keep more than 768 MiB; 16,384 on GPU."""

    @model_serializer(mode="wrap")
    def _without_moments(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out ``moments`` in float32: stores that are older than the setting have no such key."""
        values: dict[str, Any] = dump(self)
        if self.moments == "float32":
            values.pop("moments", None)
        return values

    @model_validator(mode="after")
    def _falls_or_not(self) -> Self:
        if self.schedule == "constant" and self.final_lr < 1:
            raise ValueError(
                f"schedule constant never falls to final_lr {self.final_lr:g}; set final_lr to 1, or "
                "choose schedule linear or cosine"
            )
        return self
