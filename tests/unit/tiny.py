"""A random two-layer Llama and batches for it, small enough for unit tests."""

from __future__ import annotations

from pathlib import Path

import torch

from align.algorithms.rows import Row

VOCABULARY = 20


def save_model(folder: Path, seed: int = 0, *, tied: bool = True) -> Path:
    """Write a random model in Hugging Face format."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=1, num_key_value_heads=1, head_dim=32, max_position_embeddings=64,
        tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def row(
    prompt: tuple[int, ...] = (1, 2, 3),
    completion: tuple[int, ...] = (4, 5),
    advantage: float | None = 1.0,
    source: str = "new",
    owner: str | None = None,
    round: str | None = None,
) -> Row:
    return Row(
        prompt_ids=prompt, completion_ids=completion, sampler_logprobs_T=(0.0,) * len(completion),
        advantage=advantage, source=source, owner=owner, round=round, policy="",  # type: ignore[arg-type]
    )  # fmt: skip
