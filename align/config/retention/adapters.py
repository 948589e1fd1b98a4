"""Settings of the methods that keep the adapters of rounds apart."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from align.config.retention.methods import RetentionConfig


class OLoRAConfig(RetentionConfig):
    """O-LoRA: a round's adapter learns in directions that the adapters of earlier rounds do not have."""

    name: Literal["o_lora"] = "o_lora"
    strength: Annotated[float, Field(gt=0)] = 0.5
    """Weight of the penalty in the loss: ``strength`` times the sum of the absolute products of the present
    adapter's rows ``A`` with those of all earlier rounds."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the norms of the present adapter's factors, ``||A|| + ||B||`` of each layer."""

    keeps_artifact: ClassVar[bool] = True
    adds_up: ClassVar[bool] = True
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
    input_bases: ClassVar[bool] = True
    needs_fresh_adapter: ClassVar[bool] = True
    changes_step: ClassVar[bool] = True
    weight_copies: ClassVar[int] = 1

    @property
    def start_samples(self) -> int:
        return self.samples

    @property
    def accept_samples(self) -> int:
        return self.samples
