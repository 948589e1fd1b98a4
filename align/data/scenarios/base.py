"""Base models of scenarios: small Llamas with a vocabulary of words, trained from a seed in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from align.data.scenarios.world import Dice, Lesson, World
from align.data.word_models import EOS, SPECIAL, warm_cosine, word_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

BATCH = 64
PEAK_LR = 3e-3
WARMUP = 40
IGNORED = -100
"""Target of a position without a loss."""
CONTEXT = 128


def build(world: World, folder: Path, seed: int = 0) -> float:
    """Train a world's base and write it with its tokenizer to a folder; return the last steps' loss."""
    words = [*SPECIAL, *(word for word in world.words() if word not in SPECIAL)]
    model, loss = train(world, words, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    word_tokenizer(words, CONTEXT, world.template).save_pretrained(folder)
    return loss


def new_model(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """Make an untrained Llama of about 0.4M parameters; the caller's random state stays unchanged."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary, hidden_size=128, intermediate_size=192, num_hidden_layers=3,
                num_attention_heads=4, num_key_value_heads=4, head_dim=32,
                max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=None,
                pad_token_id=0, eos_token_id=1, dtype="float32",
            )
        )  # fmt: skip


def train(world: World, words: Sequence[str], seed: int) -> tuple[LlamaForCausalLM, float]:
    """Train a model on a world's lessons; return it with the mean loss of the last tenth of the steps."""
    model = new_model(len(words), seed)
    ids = {word: index for index, word in enumerate(words)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_cosine(step, world.steps, WARMUP)
    )
    losses = []
    for tokens_BT, targets_BT in batches(world, ids, Dice(f"lessons/{seed}")):
        loss = model(input_ids=tokens_BT, labels=targets_BT, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.train(False)
    last = losses[-max(1, len(losses) // 10) :]
    return model, sum(last) / len(last)


def batches(world: World, ids: dict[str, int], dice: Dice) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tokens and targets `[B, T]` of every step, padded at the right."""
    for _ in range(world.steps):
        pairs = [encode(world.lesson(dice), ids) for _ in range(BATCH)]
        length = max(len(tokens) for tokens, _ in pairs)
        tokens_BT = torch.zeros(BATCH, length, dtype=torch.long)
        targets_BT = torch.full((BATCH, length), IGNORED)
        for row, (tokens, targets) in enumerate(pairs):
            tokens_BT[row, : len(tokens)] = torch.tensor(tokens)
            targets_BT[row, : len(targets)] = torch.tensor(targets)
        yield tokens_BT, targets_BT


def encode(lesson: Lesson, ids: dict[str, int]) -> tuple[list[int], list[int]]:
    """Return the token ids of a lesson, its end included, and its targets."""
    prompt, answer = ([ids[word] for word in part.split()] for part in lesson)
    tokens = [*prompt, *answer, ids[EOS]]
    return tokens, [IGNORED] * len(prompt) + tokens[len(prompt) :]
