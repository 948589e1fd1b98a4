"""Sizes of a decoder by its ``config.json``: parameters, and the products that one token takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollouts.errors import UserError

OTHER_LAYERS = ("kv_lora_rank", "ssm_cfg", "linear_num_key_heads", "attn_layer_period")
"""Config keys of models whose layers have other products than those that are counted here."""
TWO_MATRICES = frozenset({"gpt2", "gpt_neox", "gptj", "opt", "phi", "starcoder2"})
"""Types of models whose dense layers have no gate, and so two matrices in place of three."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of a decoder with attention in every layer, dense or with experts."""

    layers: int
    hidden: int
    inner: int
    """Width of a dense layer's middle."""
    heads: int
    kv_heads: int
    head: int
    """Size of one head."""
    vocabulary: int
    tied: bool
    """True if the output head is the embedding."""
    matrices: int = 3
    """Matrices of a dense layer, or of an expert."""
    experts: int = 0
    """Experts of a layer; 0: all layers are dense."""
    chosen: int = 0
    """Experts that one token passes."""
    expert_inner: int = 0
    shared_inner: int = 0
    """Width of the expert that every token passes; 0: there is none."""
    dense_layers: int = 0
    """Layers without experts in a model that has them."""

    @property
    def attention(self) -> int:
        """Weights of one layer's attention."""
        return self.hidden * self.head * 2 * (self.heads + self.kv_heads)

    @property
    def largest_layer(self) -> int:
        """Weights of the largest layer."""
        return self.attention + max(self._experts(self.experts), self._dense)

    @property
    def ends(self) -> int:
        """Weights of embedding and output head."""
        return self.hidden * self.vocabulary * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights but the biases."""
        return self.ends + self._layers(self.experts) + (2 * self.layers + 1) * self.hidden

    @property
    def active(self) -> int:
        """Weights of the layers that one token is multiplied with."""
        return self._layers(self.chosen)

    @property
    def routed(self) -> int:
        """Weights of all experts that tokens choose among."""
        sparse = self.layers - self.dense_layers if self.experts else 0
        return sparse * self.experts * self.matrices * self.hidden * self.expert_inner

    @property
    def width(self) -> int:
        """Width of what one token passes in a layer besides attention, in the mean of the layers."""
        if not self.experts:
            return self.inner
        sparse = self.layers - self.dense_layers
        chosen = self.chosen * self.expert_inner + self.shared_inner
        return (sparse * chosen + self.dense_layers * self.inner) // self.layers

    @property
    def kv_numbers(self) -> int:
        """Numbers of the KV cache for each token."""
        return 2 * self.layers * self.kv_heads * self.head

    @property
    def _dense(self) -> int:
        return self.matrices * self.hidden * self.inner

    def _experts(self, count: int) -> int:
        routed = self.matrices * self.hidden * self.expert_inner * count
        return routed + self.hidden * (self.experts + self.matrices * self.shared_inner)

    def _layers(self, experts: int) -> int:
        sparse = self.layers - self.dense_layers if self.experts else 0
        return (
            self.layers * self.attention
            + sparse * self._experts(experts)
            + (self.layers - sparse) * self._dense
        )


def shape_of(folder: Path) -> ModelShape:
    """Read the sizes of a model folder; its weights need not be there.

    Raises:
        UserError: there is no config, or it is of a model whose layers are not counted.
    """
    file = folder / "config.json"
    try:
        return shape_from(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the sizes of the model cannot be read: {error}",
            where=str(file),
            cause="the file is missing, damaged, or of a model that the formulas do not know",
            remedy="name a decoder with a config.json of transformers, such as Llama's or Qwen3's",
        ) from error


def shape_from(content: Mapping[str, Any]) -> ModelShape:
    """Read the sizes from a ``config.json``.

    >>> llama = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    ...          "hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152,
    ...          "tie_word_embeddings": True}
    >>> shape_from(llama).parameters
    134515008

    Raises:
        ValueError: a size is missing, or the layers are of another kind.
    """
    text = content.get("text_config")
    text = text if isinstance(text, dict) else content
    if other := [name for name in OTHER_LAYERS if text.get(name)]:
        raise ValueError(f"{other[0]} is set, so layers have other products")
    heads = _size(text, "num_attention_heads", "n_head")
    hidden = _size(text, "hidden_size", "n_embd")
    layers = _size(text, "num_hidden_layers", "n_layer")
    experts = (
        text.get("num_experts") or text.get("num_local_experts") or text.get("n_routed_experts")
    )
    inner = text.get("intermediate_size") or text.get("n_inner") or 4 * hidden
    sparse: dict[str, Any] = {}
    if experts:
        sparse = {
            "experts": experts,
            "chosen": _size(text, "num_experts_per_tok", "num_experts_per_token"),
            "expert_inner": text.get("moe_intermediate_size") or inner,
            "shared_inner": text.get("shared_expert_intermediate_size") or 0,
            "dense_layers": len(text.get("mlp_only_layers") or ()),
        }
    return ModelShape(
        layers=layers,
        hidden=hidden,
        inner=inner,
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head=text.get("head_dim") or hidden // heads,
        vocabulary=_size(text, "vocab_size"),
        tied=bool(text.get("tie_word_embeddings", True)),
        matrices=2 if text.get("model_type") in TWO_MATRICES else 3,
        **sparse,
    )


def _size(text: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(value := text.get(name), int) and value > 0:
            return value
    raise ValueError(f"{names[0]} is missing")
