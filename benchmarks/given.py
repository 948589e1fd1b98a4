"""Options of a measured step, and the made-up completions that both sides of `benchmarks.learner` get."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from random import Random

ALGORITHMS = ("grpo", "rloo", "dpo", "sft", "kto")
LENGTHS = ("equal", "ragged")
"""Lengths of completions: all of the largest length, or between an eighth of it and all of it."""
PROMPT_TOKENS = 16
PER_PROMPT = {"dpo": 2, "sft": 1, "kto": 1}
"""Completions of one prompt, for algorithms that learn from files; sampled prompts have a group. With one
completion per prompt no side saves work by sharing the prompt."""
TOKEN_IDS = range(3, 98)
"""Token ids that stand for characters in every model of `benchmarks.common`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """Completion of a prompt, as token ids."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    advantage: float
    """Advantage of a reward (grpo, rloo), side of a pair or of a rating (dpo, kto), or 1 (sft)."""


def work(options: ArgumentParser) -> ArgumentParser:
    """Add the options that define the work of a step."""
    options.add_argument("--prompts", type=int, default=8, help="per step")
    options.add_argument("--group", type=int, default=8, help="completions per prompt")
    options.add_argument("--tokens", type=int, default=64, help="per completion")
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--lora", type=int, default=0, help="rank of an adapter; 0: all weights")
    options.add_argument("--lr", type=float, default=1e-5)
    options.add_argument("--beta", type=float, default=0.04, help="weight of the KL term")
    return options


def work_of(args: Namespace) -> dict[str, object]:
    """Return the values of the options that `work` adds, for a worker."""
    names = [action.dest for action in work(ArgumentParser(add_help=False))._actions]
    return {name: getattr(args, name) for name in names}


def task(description: str | None) -> ArgumentParser:
    """Make a parser with the options of every worker."""
    options = work(ArgumentParser(description=description))
    options.add_argument("model", type=Path)
    options.add_argument("--algorithm", choices=ALGORITHMS, default="grpo")
    options.add_argument("--lengths", choices=LENGTHS, default="equal")
    options.add_argument("--threads", type=int, default=1)
    return options


def given(algorithm: str, args: Namespace) -> list[Given]:
    """Draw the completions of a step, prompt after prompt; neighbours are pairs, so groups must be even."""
    random = Random(0)
    shortest = max(1, args.tokens // 8) if args.lengths == "ragged" else args.tokens
    rows = []
    for _ in range(args.prompts):
        prompt: tuple[int, ...] = ()
        for index in range(args.group):
            if index % PER_PROMPT.get(algorithm, args.group) == 0:
                prompt = _tokens(random, PROMPT_TOKENS)
            completion = _tokens(random, random.randint(shortest, args.tokens))
            noise, side = random.gauss(0.0, 1.0), 1.0 - 2.0 * (index % 2)
            advantage = {"grpo": noise, "rloo": noise, "sft": 1.0}.get(algorithm, side)
            rows.append(Given(prompt_ids=prompt, completion_ids=completion, advantage=advantage))
    return rows


def _tokens(random: Random, count: int) -> tuple[int, ...]:
    return tuple(random.choice(TOKEN_IDS) for _ in range(count))
