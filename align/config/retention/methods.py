"""Settings of retention methods on the weights, the gradient and the answers of earlier rounds."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from align.config.learning import Weight
from align.config.retention.anchors import AnchorsConfig
from align.settings import Settings


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
    adds_up: ClassVar[bool] = False
    """True if the stored tensors are those of every accepted round so far, not of as many as one."""
    input_bases: ClassVar[bool] = False
    """True if the method keeps directions among each layer's inputs, at most as many as inputs."""
    changes_step: ClassVar[bool] = False
    """True if the method changes the gradient or the optimizer's step; a round takes one such method."""
    needs_fresh_adapter: ClassVar[bool] = False
    """True if the method keeps the adapters of rounds apart, and so needs ``policy.lora.merge``."""
    needs_samples: ClassVar[bool] = False
    """True if the method reads completions that the policy drew, and without them does nothing."""
    needs_float32: ClassVar[bool] = False
    """True if the method measures differences that are smaller than bfloat16's rounding of logprobs."""

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
    input_bases: ClassVar[bool] = True
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


class TrustRegionConfig(RetentionConfig):
    """Trust region: each step is as long as a KL between the policy before and after it allows.

    Needs completions of the policy, and float32: rounding to bfloat16 alone moves logprobs by more.
    """

    name: Literal["trust_region"] = "trust_region"
    kl: Annotated[float, Field(gt=0)] = 5e-4
    """KL of a step at the peak of the learning rate, in nats per token. Warm-up and decay shorten steps as
    they shorten a rate; the rate itself only gives the length that is measured."""
    rows: Annotated[int, Field(ge=1)] = 16
    """Number of completions of a batch that the KL is measured on, by two passes without gradient."""

    weight_copies: ClassVar[int] = 2
    changes_step: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = True
    needs_float32: ClassVar[bool] = True


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
