"""Sizes of a model, read from its ``config.json`` by whatever name the architecture gives them.

GPT-2 calls its context ``n_positions`` and its heads ``n_head``, and a model of several parts keeps its
language model's numbers one level down: transformers knows these names. A type that it does not know is
read by the usual names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """Sizes of a language model; None where its config does not say."""

    context: int | None
    """Longest sequence that the positions were made for, in tokens."""
    vocabulary: int | None
    """Rows of the embedding."""
    head_dim: int | None
    """Numbers per attention head."""
    stretched: bool
    """True if rotary positions are scaled, so that the model may read further than ``context`` says."""


def sizes_of(folder: Path, *, trust_remote_code: bool = False) -> ModelSizes:
    """Read the sizes of a model folder.

    Raises:
        ValueError: ``config.json`` is not JSON.
        OSError: there is none.
    """
    text = text_config(folder, trust_remote_code=trust_remote_code)
    head_dim = _number(text, "head_dim")
    hidden, heads = _number(text, "hidden_size"), _number(text, "num_attention_heads")
    if head_dim is None and hidden and heads:
        head_dim = hidden // heads
    scaling = setting(text, "rope_parameters") or setting(text, "rope_scaling")
    rope_type: Any = "default"
    if isinstance(scaling, dict):
        rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    return ModelSizes(
        context=_number(text, "max_position_embeddings"),
        vocabulary=_number(text, "vocab_size"),
        head_dim=head_dim,
        stretched=rope_type != "default",
    )


def text_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Read the language model's config: transformers' object, or where it knows none the plain mapping."""
    from transformers import AutoConfig

    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        return config.get_text_config(decoder=True)
    except Exception:
        # Whatever is wrong with it, such as an unknown type, the checks of a model folder say.
        nested = raw.get("text_config") if isinstance(raw, dict) else None
        return nested if isinstance(nested, dict) else raw


def setting(config: Any, name: str) -> Any:
    """Read one value of a `text_config`; None where there is none."""
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _number(config: Any, name: str) -> int | None:
    value = setting(config, name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
