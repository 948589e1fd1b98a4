"""Small random models of many architectures, as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile
from typing import Any

import torch

from align.data.demo import BASE_MODEL

_COMMON: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_GPT: dict[str, Any] = {
    "vocab_size": 128, "n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3_moe": {**_COMMON, **_EXPERTS, "head_dim": 32},
    "qwen2_moe": {**_COMMON, **_EXPERTS, "shared_expert_intermediate_size": 32},
    "mixtral": {**_COMMON, "num_key_value_heads": 1, "num_local_experts": 4},
    "gpt_neox": _COMMON,
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gptj": {**_GPT, "rotary_dim": 16},
    "phi3": _COMMON,
    "phi": _COMMON,
    "opt": {**_COMMON, "ffn_dim": 64, "word_embed_proj_dim": 64},
    "bloom": {**_COMMON, "n_layer": 2, "n_head": 2},
    "falcon": _COMMON,
    "stablelm": {**_COMMON, "num_key_value_heads": 2},
    "gemma3_text": {**_COMMON, "num_key_value_heads": 1, "head_dim": 32},
    "rwkv": {**_COMMON, "context_length": 64},
    "mamba": _COMMON,
}
"""Settings by ``model_type``; every head has 32 numbers or more, as vLLM's CPU attention asks for."""
REFUSED_ON_CPU: dict[str, dict[str, Any]] = {
    "mistral": {**_COMMON, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4},
}
"""Settings of models that vLLM's CPU attention refuses: small heads, here under a short window."""


def save_kind(folder: Path, kind: str, seed: int = 0, **changes: Any) -> Path:
    """Write a random model of a kind; ``changes`` go into its config."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {"initializer_range": 0.2, **{**KINDS, **REFUSED_ON_CPU}[kind], **changes}
    config = AutoConfig.for_model(kind, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def save_folder(folder: Path, kind: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Write a random model of a kind with the demo world's tokenizer of 128 tokens."""
    save_kind(folder, kind, seed, **changes)
    for file in BASE_MODEL.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            copyfile(file, folder / file.name)
    return folder
