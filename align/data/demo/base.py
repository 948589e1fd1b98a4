"""Training of the tiny world's base model from a seed: latent ops, solid general skills.

The pretraining mixture makes the world forgetful. Prompts differ only in the op word, and the base gives
the right answer of an op only a part of the time. The fastest way to learn one op is then to ignore the
word, which overwrites the other ops.

    50%  a single op     its own answer .36, the copied digits .28, another op's answer .36
    25%  a general skill always right
    25%  a trained pair  right .50, the answer of any one op .50

The less the answer depends on the op word, the more a naive sequence of rounds forgets: with .35 / .35 /
.30 and pairs that never answer with a foreign op, backward transfer was -.12 instead of -.62.

The loss is on the answer and the end token only. Digits come from the train split.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from align.data.demo.tokenizer import CONTEXT, WORDS, build_tokenizer
from align.data.demo.world import (
    GENERAL,
    LENGTH,
    OPS,
    SOURCES,
    TRAINED_PAIRS,
    Digits,
    Task,
    WorldExample,
    examples,
    spell,
    strings,
)
from align.data.word_models import EOS, PAD, warm_cosine

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

STEPS = 1200
BATCH = 256
PEAK_LR = 2e-3
WARMUP = 50

OP_SHARE, GENERAL_SHARE = 0.50, 0.25
"""Shares of the pretraining mixture; trained pairs take the rest."""

OP_RIGHT, OP_COPIED = 0.36, 0.28
"""Shares of single ops with the right answer, and with their own digits; the rest has another op's."""

PAIR_RIGHT = 0.50
"""Share of trained pairs with the right answer; the rest has the answer of any one op."""

_IDS = {word: i for i, word in enumerate(WORDS)}
_ANSWER = slice(-LENGTH - 2, -1)
"""Positions whose next token is an answer digit or the end."""


def config() -> LlamaConfig:
    """Return a config of 0.42M parameters, with tied embeddings and head_dim 32 to exercise real
    engines."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=_IDS[EOS],
        pad_token_id=_IDS[PAD],
        dtype="float32",
    )


def build(
    folder: Path,
    seed: int = 0,
    steps: int = STEPS,
    progress: Callable[[int, float], None] | None = None,
) -> dict[str, float]:
    """Train the base and write it, its tokenizer and `skills.json` to a folder.

    `progress(step, loss)` is called after every step. Returns the measured skills, see `measure`.
    """
    model = train(seed, steps, progress)
    skills = measure(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    record = {
        "skills": {name: round(value, 4) for name, value in skills.items()},
        "settings": {"seed": seed, "steps": steps, "batch": BATCH, "peak_lr": PEAK_LR},
    }
    (folder / "skills.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return skills


def train(
    seed: int, steps: int, progress: Callable[[int, float], None] | None = None
) -> LlamaForCausalLM:
    """Train the base for `steps` batches of the mixture; the caller's random state stays unchanged."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config())
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_cosine(step, steps, WARMUP)
    )
    for step in range(steps):
        tokens_BT = torch.tensor([lesson(rng) for _ in range(BATCH)])
        loss = -answer_logprobs(model, tokens_BT).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, loss.item())
    model.train(False)
    return model


def lesson(rng: random.Random) -> list[int]:
    """Make one pretraining sequence, prompt and possibly wrong answer, as token ids."""
    digits = rng.choice(strings("train"))
    kind = rng.random()
    if kind < OP_SHARE:
        task = Task(rng.choice(list(OPS)))
        answer = _op_answer(rng, task.first, digits)
    elif kind < OP_SHARE + GENERAL_SHARE:
        task = Task(rng.choice(list(GENERAL)))
        answer = task.answer(digits)
    else:
        task = Task(*rng.choice(TRAINED_PAIRS))
        answered_task = task if rng.random() < PAIR_RIGHT else Task(rng.choice(list(OPS)))
        answer = answered_task.answer(digits)
    return _token_ids(task.prompt(digits), spell(answer))


def _op_answer(rng: random.Random, op: str, digits: Digits) -> Digits:
    kind = rng.random()
    if kind < OP_RIGHT:
        return OPS[op](digits)
    if kind < OP_RIGHT + OP_COPIED:
        return digits
    return OPS[rng.choice([other for other in OPS if other != op])](digits)


def measure(model: LlamaForCausalLM, n: int = 200) -> dict[str, float]:
    """Measure success at temperature 1 of every op, general skill and held-out pair, on `n` eval items.

    The measure is exact, not sampled: the mean over items of the right answer's probability. `heldout` is
    the mean of the held-out pairs.
    """
    pairs = [task.name for task in SOURCES["heldout"]]
    skills = {name: success(model, examples(name, n, "eval")) for name in (*OPS, *GENERAL, *pairs)}
    return skills | {"heldout": sum(skills[name] for name in pairs) / len(pairs)}


@torch.no_grad()
def success(model: LlamaForCausalLM, items: Sequence[WorldExample]) -> float:
    """Return the mean probability of the right answer followed by the end token."""
    tokens_BT = torch.tensor([_token_ids(item.prompt, item.answer) for item in items])
    was_training = model.training
    model.train(False)
    logprobs_B = answer_logprobs(model, tokens_BT).sum(dim=-1)
    model.train(was_training)
    return float(logprobs_B.exp().mean())


def answer_logprobs(model: LlamaForCausalLM, tokens_BT: Tensor) -> Tensor:
    """Return the logprob of each answer token and of the end token, `[B, LENGTH + 1]`."""
    logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
    logprobs_BTV = F.log_softmax(logits_BTV[:, _ANSWER], dim=-1)
    return logprobs_BTV.gather(-1, tokens_BT[:, -LENGTH - 1 :, None]).squeeze(-1)


def _token_ids(prompt: str, answer: str) -> list[int]:
    return [_IDS[word] for word in (*prompt.split(), *answer.split(), EOS)]
