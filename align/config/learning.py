"""Settings of a round's sampling, optimizer and retention in a campaign file."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from align.settings import Settings
from rollouts.errors import nearest


def listed(value: Any) -> Any:
    """Accept a single entry for a list of one."""
    return [value] if isinstance(value, dict | str) else value


Decay = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(gt=0)]


BOUNDING = (
    "top_p", "top_k", "min_p", "typical_p", "stop", "stop_token_ids", "min_tokens", "bad_words",
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
    repairs: Annotated[int, Field(ge=0)] = 1
    """Number of times that a step samples again for groups with fewer than two scored completions."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Learner steps that samples may lag behind the weights that learn from them. 0 samples and learns
    in turn; 1 does both at the same time; k also syncs the engines only at every k-th step."""
    in_flight: bool = False
    """Send new weights to the engines while they sample the next step; the completions in progress go on
    under the new weights, so that their later tokens are fresher. Needs ``max_staleness`` of at least 1."""

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

    @model_validator(mode="after")
    def _falls_or_not(self) -> Self:
        if self.schedule == "constant" and self.final_lr < 1:
            raise ValueError(
                f"schedule constant never falls to final_lr {self.final_lr:g}; set final_lr to 1, or "
                "choose schedule linear or cosine"
            )
        return self


_STAGNATION = ("after_stagnation", "metric", "goal", "gain", "restart_optimizer")


class FollowConfig(Settings):
    """Movement of an anchor after the policy: ``share`` of the way at every ``every``-th step, or once a
    metric has stopped improving."""

    every: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps between two moves."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the way from the anchor to the policy that a move goes; 1 makes the anchor the policy."""
    above: Annotated[float, Field(gt=0)] | None = None
    """KL in nats per token beyond which the anchor moves at once; None: only with ``every``."""
    after_stagnation: Annotated[int, Field(ge=1)] | None = None
    """Learner steps whose mean of ``metric`` has to beat that of as many before; if it does not, the anchor
    moves and counting begins again. An ``every`` of 1 has no effect then. None: no metric moves it."""
    metric: str = "reward/mean"
    """Metric of the steps that shows stagnation, by its name in ``metrics.jsonl``."""
    goal: Literal["higher", "lower"] = "higher"
    """Direction in which the metric improves."""
    gain: Annotated[float, Field(ge=0)] = 0.0
    """Improvement up to which it counts as stagnating, in units of the metric."""
    restart_optimizer: bool = False
    """Let the optimizer begin without moments when the anchor moves for stagnation; the learning rate keeps
    its schedule."""

    @property
    def moves_every(self) -> int | None:
        """Optimizer steps between two moves; None if only KL or stagnation moves the anchor."""
        return None if self.after_stagnation is not None and self.every == 1 else self.every

    @model_serializer(mode="wrap")
    def _without_stagnation(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out unset stagnation: stores that are older than the setting have no such keys."""
        values: dict[str, Any] = dump(self)
        if self.after_stagnation is None:
            for key in _STAGNATION:
                values.pop(key, None)
        return values

    @model_validator(mode="after")
    def _stagnates(self) -> Self:
        if self.after_stagnation is None and (setting := self.changed(*_STAGNATION)):
            raise ValueError(
                f"{setting} belongs to a move on stagnation, and after_stagnation is not set; set it to a "
                f"number of steps, or remove {setting}"
            )
        if self.metric.startswith("time/"):
            raise ValueError(
                f"metric {self.metric!r} is a time, and a run that is stopped and gone on with would move "
                "the anchor at another step; name a metric of what is learnt"
            )
        return self


class AnchorConfig(Settings):
    """One KL term: ``beta`` times the mean per-token KL toward one earlier snapshot, in nats."""

    to: Annotated[str, Field(pattern=r"^(parent|owner|base|round:.+)$")]
    """Anchor's snapshot: ``parent`` (where the round started), ``owner`` (the round that a replayed prompt
    comes from), ``base`` or ``round:NAME``."""
    beta: Annotated[float, Field(ge=0)]
    """Weight of the term; the initial weight if there is a target."""
    estimator: Literal["full", "forward", "k1", "k2", "k3"] = "full"
    """Estimator of the KL: ``full`` sums over the vocabulary; k1 to k3 use sampled tokens only;
    ``forward`` is for stored answers, which the anchor sampled."""
    target: Annotated[float, Field(gt=0)] | None = None
    """KL in nats per token that ``beta`` is adjusted to reach; None keeps beta fixed."""
    rate: Annotated[float, Field(gt=0)] = 0.1
    """Largest relative change of an adjusted beta in one step."""
    bounds: tuple[Weight, Weight] = (1e-4, 1e2)
    """Smallest and largest adjusted beta."""
    follow: FollowConfig | None = None
    """Movement of the anchor within the round, which begins at ``to``; None keeps it where it is."""

    @property
    def label(self) -> str:
        """Name of the term in metrics, such as ``parent``, or ``parent~0.01/1`` for one that follows."""
        follow = self.follow
        if follow is None:
            return self.to
        when = [] if follow.moves_every is None else [str(follow.moves_every)]
        if follow.after_stagnation is not None:
            when.append(f"stagnation{follow.after_stagnation}")
        return f"{self.to}~{follow.share:g}/{'+'.join(when)}"

    @model_serializer(mode="wrap")
    def _without_follow(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an unset ``follow``: stores that are older than the setting have no such key."""
        values: dict[str, Any] = dump(self)
        if self.follow is None:
            values.pop("follow", None)
        return values

    @model_validator(mode="after")
    def _steered(self) -> Self:
        low, high = self.bounds
        if low > high:
            raise ValueError(
                f"bounds are the smallest and the largest beta, got {low:g} and {high:g}; swap them"
            )
        if self.target is None and (setting := self.changed("rate", "bounds")):
            raise ValueError(
                f"{setting} adjusts beta toward a target, and there is none; set target, or remove "
                f"{setting}"
            )
        if self.follow is not None and self.to == "owner":
            raise ValueError(
                "follow moves one anchor, and owner stands for the snapshot of each prompt's own round; "
                "set to: parent, or remove follow"
            )
        return self


class AnchorsConfig(Settings):
    """KL terms of each class of prompts; the KL of a class is a mean over its own tokens."""

    new: Annotated[tuple[AnchorConfig, ...], BeforeValidator(listed)] = ()
    """Terms on the round's own prompts: a trust region, for rewards that are models or judges. It slows
    learning down."""
    past: Annotated[tuple[AnchorConfig, ...], BeforeValidator(listed)] = (
        AnchorConfig(to="owner", beta=3.0),
    )
    """Terms on prompts of earlier rounds: by default each prompt is held to the snapshot of its own
    round."""
    general: Annotated[tuple[AnchorConfig, ...], BeforeValidator(listed)] = (
        AnchorConfig(to="base", beta=1.0),
    )
    """Terms on general prompts, which protect what no round trains."""

    @field_validator("new", "past", "general")
    @classmethod
    def _distinct(cls, anchors: tuple[AnchorConfig, ...]) -> tuple[AnchorConfig, ...]:
        names = [anchor.label for anchor in anchors]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"two anchors to {twice!r} would share one KL and its metrics; write one, with both betas "
                "added up"
            )
        return anchors


class RetentionConfig(Settings):
    """Base of the settings of retention methods."""

    name: str
    """Name of the method."""

    keeps_artifact: ClassVar[bool] = False
    """True if the method stores tensors for later rounds, as large as the trained weights."""
    stores_weights: ClassVar[bool] = True
    """True if these tensors belong to the trained weights themselves, and so to no other adapter."""
    weight_copies: ClassVar[int] = 0
    """Number of tensors as large as the trained weights that the method keeps in memory."""
    checkpoint_copies: ClassVar[int] = 0
    """Number of such tensors that a checkpoint of a round holds."""
    changes_step: ClassVar[bool] = False
    """True if the method changes the gradient or the optimizer's step; a round takes one such method."""
    needs_fresh_adapter: ClassVar[bool] = False
    """True if the method keeps the adapters of rounds apart, and so needs ``policy.lora.merge``."""

    @property
    def start_samples(self) -> int:
        """Number of completions that the method needs of the policy that a round begins with."""
        return 0

    @property
    def accept_samples(self) -> int:
        """Number of completions of the accepted policy that the method needs."""
        return 0

    @property
    def artifact_copies(self) -> int:
        """Number of tensors as large as the trained weights that an accepted round's artifact holds."""
        return int(self.keeps_artifact)


class KLAnchorsConfig(AnchorsConfig, RetentionConfig):
    """KL toward earlier snapshots, on each class of prompts; ``anchors`` is its short form."""

    name: Literal["kl_anchors"] = "kl_anchors"


class EWCConfig(RetentionConfig):
    """Online elastic weight consolidation, which keeps weights that earlier rounds depend on near
    theirs."""

    model_config = ConfigDict(
        validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )

    name: Literal["ewc"] = "ewc"
    strength: Annotated[float, Field(gt=0, alias="lambda")]
    """Weight of the penalty in the loss: ``lambda / 2 * sum_i F_i * (theta_i - theta*_i)^2``."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Factor on the earlier rounds' Fisher information at each accepted round. 1 forgets none; 0 keeps only
    that of the newest round."""
    samples: Annotated[int, Field(ge=1)] = 64
    """Number of completions of an accepted policy that its Fisher information is estimated from, spread
    over the round's prompts. Each costs one backward pass."""

    keeps_artifact: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 2

    @property
    def accept_samples(self) -> int:
        return self.samples


class MASConfig(RetentionConfig):
    """Memory aware synapses, which keep weights near theirs that the policy's logits are sensitive to."""

    name: Literal["mas"] = "mas"
    strength: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the penalty in the loss: ``strength * sum_i Omega_i * (theta_i - theta*_i)^2``."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Factor on the earlier rounds' importance at each accepted round. 1 forgets none."""
    samples: Annotated[int, Field(ge=1)] = 64
    """Number of completions of an accepted policy that the importance is estimated from, spread over the
    round's prompts. Each costs one backward pass."""

    keeps_artifact: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 2

    @property
    def accept_samples(self) -> int:
        return self.samples


class CPOMaskConfig(RetentionConfig):
    """Mask of continual policy optimization: the weights that a round moved most are drawn to where it
    left them."""

    name: Literal["cpo_mask"] = "cpo_mask"
    strength: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the penalty in the loss: ``strength`` times the mean absolute distance of each tensor's
    masked weights, summed over tensors."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of each tensor's weights that an accepted round adds to the mask: those that it moved most."""

    keeps_artifact: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 2


class SIConfig(RetentionConfig):
    """Synaptic intelligence, which keeps weights near theirs that made earlier rounds' losses fall."""

    name: Literal["si"] = "si"
    strength: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the penalty in the loss: ``strength * sum_i Omega_i * (theta_i - theta*_i)^2``."""
    xi: Annotated[float, Field(gt=0)] = 1e-3
    """Number added to a weight's squared way through a round, which bounds the importance of weights that
    hardly moved. It has the scale of that way: with small learning rates take a smaller one."""

    keeps_artifact: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 5
    checkpoint_copies: ClassVar[int] = 1


class L2SPConfig(RetentionConfig):
    """L2 penalty toward a starting point, with the same strength for every weight."""

    name: Literal["l2_sp"] = "l2_sp"
    alpha: Annotated[float, Field(gt=0)] = 0.01
    """Weight of the penalty in the loss: ``alpha / 2 * |theta - theta_0|^2``."""
    to: Literal["parent", "base"] = "parent"
    """Snapshot of ``theta_0``: where the round started (``parent``), or the campaign (``base``)."""

    weight_copies: ClassVar[int] = 1


class AGEMConfig(RetentionConfig):
    """Averaged gradient episodic memory: replayed rows constrain the gradient and are no part of it."""

    name: Literal["agem"] = "agem"

    weight_copies: ClassVar[int] = 1
    changes_step: ClassVar[bool] = True


class OGDConfig(RetentionConfig):
    """Orthogonal gradient descent: steps leave the log-probability of earlier rounds' answers alone."""

    name: Literal["ogd"] = "ogd"
    samples: Annotated[int, Field(ge=1)] = 16
    """Number of completions of an accepted policy whose gradients are kept as directions. Each costs one
    backward pass, and a tensor as large as the trained weights."""
    most: Annotated[int, Field(ge=1)] = 64
    """Largest number of directions, over all rounds; beyond it the oldest are dropped."""

    keeps_artifact: ClassVar[bool] = True
    changes_step: ClassVar[bool] = True

    @property
    def accept_samples(self) -> int:
        return self.samples

    @property
    def weight_copies(self) -> int:  # type: ignore[override]
        return self.most + 2

    @property
    def artifact_copies(self) -> int:
        return self.most

    @model_validator(mode="after")
    def _holds_a_round(self) -> Self:
        if self.samples > self.most:
            raise ValueError(
                f"samples is {self.samples} and most is {self.most}: a round's own directions would push "
                "each other out; raise most, or lower samples"
            )
        return self


class GPMConfig(RetentionConfig):
    """Gradient projection memory: steps leave layers' outputs alone on what earlier rounds read."""

    name: Literal["gpm"] = "gpm"
    energy: Annotated[float, Field(gt=0, le=1)] = 0.97
    """Share of the squared length of a layer's inputs that its basis explains after an accepted round. More
    protects more, and leaves less room to learn."""
    samples: Annotated[int, Field(ge=1)] = 64
    """Number of completions of an accepted policy whose inputs are looked at; each costs a forward pass."""
    others: Literal["rest", "train"] = "rest"
    """Treatment of weights that are no linear layer's alone (embeddings, tied output heads, norms, biases)
    once an earlier round has a basis: ``rest`` or ``train`` on as always."""

    keeps_artifact: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 3
    changes_step: ClassVar[bool] = True

    @property
    def accept_samples(self) -> int:
        return self.samples


class HFTConfig(RetentionConfig):
    """Half fine-tuning: in every round a random half of each block's matrices rests."""

    name: Literal["hft"] = "hft"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of each block's modules that rest."""

    weight_copies: ClassVar[int] = 1
    changes_step: ClassVar[bool] = True


class MoFOConfig(RetentionConfig):
    """Momentum-filtered optimizer: a step moves only the weights with the largest momentum."""

    name: Literal["mofo"] = "mofo"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of each tensor's weights that a step moves."""

    weight_copies: ClassVar[int] = 1
    changes_step: ClassVar[bool] = True


class MIGUConfig(RetentionConfig):
    """Magnitude-based gradient updating: small outputs of a layer get no gradient."""

    name: Literal["migu"] = "migu"
    masked: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Share of each linear layer's outputs whose rows get no gradient in a step: those that are smallest on
    its batch."""

    changes_step: ClassVar[bool] = True


class OLoRAConfig(RetentionConfig):
    """O-LoRA: a round's adapter learns in directions that the adapters of earlier rounds do not have."""

    name: Literal["o_lora"] = "o_lora"
    strength: Annotated[float, Field(gt=0)] = 0.5
    """Weight of the penalty in the loss: ``strength`` times the sum of the absolute products of the present
    adapter's rows ``A`` with those of all earlier rounds."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the lengths of the present adapter's factors."""

    keeps_artifact: ClassVar[bool] = True
    needs_fresh_adapter: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 1


class NLoRAConfig(RetentionConfig):
    """N-LoRA: a round's update is sparse, so that those of several rounds rarely move the same weight."""

    name: Literal["n_lora"] = "n_lora"
    strength: Annotated[float, Field(gt=0)] = 1e-4
    """Weight of the penalty in the loss: ``strength`` times the sum of the absolute changes of all adapted
    weights."""

    needs_fresh_adapter: ClassVar[bool] = True


class InfLoRAConfig(RetentionConfig):
    """InfLoRA: a round's adapter reads only what no earlier round read, in directions fixed beforehand."""

    name: Literal["inflora"] = "inflora"
    energy: Annotated[float, Field(gt=0, le=1)] = 0.97
    """Share of the squared length of a layer's inputs that its basis explains after an accepted round. More
    protects more, and leaves less room to learn."""
    samples: Annotated[int, Field(ge=1)] = 64
    """Number of completions whose inputs are looked at, of the policy that the round begins with and again
    of the accepted one; each costs a forward pass."""

    keeps_artifact: ClassVar[bool] = True
    needs_fresh_adapter: ClassVar[bool] = True
    changes_step: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 1

    @property
    def start_samples(self) -> int:
        return self.samples

    @property
    def accept_samples(self) -> int:
        return self.samples


class COPRConfig(RetentionConfig):
    """Constraint of COPR: the policy's shares of earlier rounds' ranked answers stay what was optimal."""

    name: Literal["copr"] = "copr"
    stored: Annotated[int, Field(ge=1)] = 64
    """Number of prompts whose ranked answers an accepted round leaves, chosen evenly."""
    per_step: Annotated[int, Field(ge=1)] = 8
    """Number of stored prompts that an optimizer step passes, of all earlier rounds together."""
    multiplier: Weight = 1.0
    """Multiplier of each earlier round's constraint when a round begins."""
    rate: Annotated[float, Field(ge=0)] = 0.1
    """Rate at which a multiplier rises while its constraint is violated; 0 keeps it fixed."""
    bounds: tuple[Weight, Weight] = (1e-3, 10.0)
    """Smallest and largest multiplier."""
    beta: Weight = 0.1
    """Temperature of the targets of rounds under ``dpo`` or ``fpo``; those of ``copr`` have its own."""

    keeps_artifact: ClassVar[bool] = True
    stores_weights: ClassVar[bool] = False

    @property
    def artifact_copies(self) -> int:
        return 0

    @model_validator(mode="after")
    def _begins_within_bounds(self) -> Self:
        low, high = self.bounds
        if not low <= self.multiplier <= high:
            raise ValueError(
                f"multiplier {self.multiplier:g} is outside of bounds {low:g} to {high:g}; change one of "
                "them"
            )
        return self


RETENTION: dict[str, type[RetentionConfig]] = {
    "kl_anchors": KLAnchorsConfig,
    "ewc": EWCConfig,
    "mas": MASConfig,
    "si": SIConfig,
    "l2_sp": L2SPConfig,
    "cpo_mask": CPOMaskConfig,
    "agem": AGEMConfig,
    "ogd": OGDConfig,
    "gpm": GPMConfig,
    "hft": HFTConfig,
    "mofo": MoFOConfig,
    "migu": MIGUConfig,
    "o_lora": OLoRAConfig,
    "n_lora": NLoRAConfig,
    "inflora": InfLoRAConfig,
    "copr": COPRConfig,
}
"""Settings of each retention method by name; `align.retention.METHODS` has the methods themselves."""


def retention_from(value: Any) -> Any:
    """Return the settings of a method, from ``ewc`` or ``{name: ewc, lambda: 100}``.

    Raises:
        ValueError: the value names no method, or one that does not exist.
    """
    value = {"name": value} if isinstance(value, str) else value
    if not isinstance(value, dict):
        return value
    if "name" not in value:
        raise ValueError(f"{value} names no method of retention; write which one as name")
    return retention_class(value["name"]).model_validate(value)


def retention_class(name: object) -> type[RetentionConfig]:
    """Return the class of a method's settings.

    Raises:
        ValueError: no method has this name.
    """
    if isinstance(name, str) and name in RETENTION:
        return RETENTION[name]
    raise ValueError(f"no retention method {name!r}; {nearest(str(name), list(RETENTION))}")
