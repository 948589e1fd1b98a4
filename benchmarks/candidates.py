"""Candidates with a planted loss, made by plain TRL: one run each, and its true accuracy to the item.

    digits model ── TRL: SFT on right answers ──> peak ── TRL: SFT on wrong ones ──> end
                                                    └───── point with the planted loss ─────┘

Tasks of the digits world can be listed in full, and greedy answers are right or wrong: so the true accuracy
of a model is no estimate but the share of all prompts that it answers rightly. A candidate is the point of
the straight line between the two ends of its run, in the space of their weights, at which this accuracy has
fallen by the planted loss below the incumbent's; it lies apart by what the last step of a search left over.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from align.data.demo import BASE_MODEL
from align.data.demo.world import LENGTH, SOURCES, WorldExample, spell, strings

if TYPE_CHECKING:
    from torch import Tensor

RIGHT, WRONG, BATCH, LR = 160, 320, 32, 6e-5
"""Rows with right answers, rows with wrong ones, rows of a batch, and learning rate."""
MOST_PASSES = 6
"""Most passes over the wrong answers, each a run of the trainer, until the largest loss is behind."""
PART = 800
"""Prompts by which the search looks for the neighbourhood before it counts all."""
CLOSE = 0.0005
"""Distance from the planted loss at which the search ends."""
AHEAD = 0.02
"""Distance behind the planted loss that a run goes to, by a part of the prompts."""
LOOKS = (4, 1, 0, 0)
"""Looks at a part of the prompts before each count of all of them; there are at most so many counts."""

Weights = Mapping[str, "Tensor"]
Right = NDArray[np.bool_]
"""Prompts that are answered rightly, in the order of `population`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One model on disk and the truth about it."""

    number: int
    planted: float
    """Loss that was asked for, in shares of all prompts."""
    folder: Path
    lost: int
    """Prompts that only the incumbent answers rightly."""
    won: int
    prompts: int

    @property
    def loss(self) -> float:
        """True loss, in shares of all prompts."""
        return (self.lost - self.won) / self.prompts

    @property
    def change(self) -> float:
        """Share of all prompts on which it differs from the incumbent."""
        return (self.lost + self.won) / self.prompts


def population(task: str) -> list[WorldExample]:
    """Return all prompts of a task that suites are drawn from."""
    (only,) = SOURCES[task]
    return [WorldExample(only, digits) for digits in strings("eval")]


class Model:
    """The network that weights are put into to count what they answer rightly."""

    def __init__(self, task: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from align.data.demo.base import _token_ids

        self.network: Any = AutoModelForCausalLM.from_pretrained(BASE_MODEL).eval()
        examples = population(task)
        rows = [_token_ids(example.prompt, example.answer) for example in examples]
        self.tokens_BT = torch.tensor(rows)
        order = np.random.default_rng(0).permutation(len(rows))
        self.part = np.sort(order[:PART])

    @property
    def weights(self) -> dict[str, Tensor]:
        """Copy of the network's own weights."""
        return {name: p.detach().clone() for name, p in self.network.named_parameters()}

    def right(self, weights: Weights, which: NDArray[np.intp] | None = None) -> Right:
        """Tell which prompts are answered rightly by greedy decoding; ``which`` counts these alone.

        A greedy answer is right if and only if each of its tokens, and the end, is the most likely one
        after the right ones before it.
        """
        import torch

        tokens_BT = self.tokens_BT if which is None else self.tokens_BT[torch.from_numpy(which)]
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(weights[name])
            answers = []
            for rows_BT in tokens_BT.split(1024):
                hidden = self.network.model(input_ids=rows_BT[:, :-1], use_cache=False)
                last = hidden.last_hidden_state[:, -LENGTH - 1 :]
                chosen = self.network.lm_head(last).argmax(-1)
                answers.append((chosen == rows_BT[:, -LENGTH - 1 :]).all(-1))
        return np.asarray(torch.cat(answers).numpy(), dtype=np.bool_)


def make_candidate(
    model: Model, base: Weights, before: Right, task: str, number: int, planted: float, folder: Path
) -> Candidate:
    """Train one candidate, plant its loss and write it."""
    right, wrong = lessons(task, number)
    scratch = folder.parent / f".run-{number}"
    peak = end = sft(base, right, number, scratch)
    for _ in range(MOST_PASSES):
        end = sft(end, wrong, number, scratch)
        if loss_of(model, end, before) > planted + AHEAD:
            break
    share, after = planted_at(model, peak, end, before, planted)
    mixed = between(peak, end, share)
    write(mixed, folder)
    truth = {
        "number": number, "planted": planted, "lost": int((before & ~after).sum()),
        "won": int((after & ~before).sum()), "prompts": len(before),
    }  # fmt: skip
    (folder / "truth.json").write_text(json.dumps(truth))
    return Candidate(folder=folder, **truth)


def stored(folder: Path) -> Candidate | None:
    """Return a candidate that was made before; None: it has to be."""
    file = folder / "truth.json"
    return Candidate(folder=folder, **json.loads(file.read_text())) if file.exists() else None


def loss_of(model: Model, weights: Weights, before: Right) -> float:
    """Return the loss by a part of the prompts."""
    right = model.right(weights, model.part)
    return float((before[model.part].astype(float) - right).mean())


def planted_at(
    model: Model, peak: Weights, end: Weights, before: Right, planted: float
) -> tuple[float, Right]:
    """Search the line from ``peak`` to ``end`` for the point with the planted loss.

    Returns:
        The point's share of the way, and what it answers rightly.

    Raises:
        ValueError: the run does not pass the planted loss.
    """

    line = {share: loss_of(model, between(peak, end, share), before) for share in (0.0, 1.0)}
    if not line[0.0] < planted < line[1.0]:
        raise ValueError(f"a run does not pass the loss {planted:g}")
    counts: dict[float, tuple[float, Right]] = {}
    share = 0.5
    for looks in LOOKS:
        # The part and the whole differ by nearly the same wherever the line is looked at.
        apart = line[share] - counts[share][0] if looks and counts else 0.0
        for _ in range(looks):
            share = crossing(line, planted + apart)
            line[share] = loss_of(model, between(peak, end, share), before)
        if len(counts) > 1:
            share = crossing({0.0: line[0.0], 1.0: line[1.0], **losses(counts)}, planted)
        after = model.right(between(peak, end, share))
        counts[share] = float((before.astype(float) - after).mean()), after
        if abs(counts[share][0] - planted) <= CLOSE:
            break
    share = min(counts, key=lambda share: abs(counts[share][0] - planted))
    return share, counts[share][1]


def losses(counts: Mapping[float, tuple[float, Right]]) -> dict[float, float]:
    """Return the losses of all prompts by their share of the way."""
    return {share: loss for share, (loss, _) in counts.items()}


def crossing(line: Mapping[float, float], wanted: float) -> float:
    """Return where a loss passes ``wanted``, by straight lines between the points that are known."""
    points = sorted(line.items())
    for (low, below), (high, above) in pairwise(points):
        if below < wanted <= above:
            return low + (high - low) * (wanted - below) / (above - below)
    return points[0][0] if wanted <= points[0][1] else points[-1][0]


def between(start: Weights, end: Weights, share: float) -> dict[str, Tensor]:
    """Return the weights ``share`` of the way from one model to another."""
    return {name: tensor.lerp(end[name], share) for name, tensor in start.items()}


def lessons(task: str, number: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Draw the rows of one run: prompts with right answers, and with those of other tasks."""
    seed = random.Random(f"{task}/{number}")
    (only,) = SOURCES[task]
    others = [name for name in ("rev", "sort", "rotl", "inc", "copy") if name != task]
    digits = seed.sample(strings("train"), RIGHT + WRONG)
    right = [_row(WorldExample(only, d), spell(only.answer(d))) for d in digits[:RIGHT]]
    wrong = [
        _row(WorldExample(only, d), spell(SOURCES[seed.choice(others)][0].answer(d)))
        for d in digits[RIGHT:]
    ]
    return right, wrong


def _row(example: WorldExample, answer: str) -> dict[str, str]:
    return {"prompt": f"{example.prompt} ", "completion": answer}


def sft(base: Weights, rows: Sequence[Mapping[str, str]], seed: int, scratch: Path) -> Weights:
    """Run TRL's own trainer over some rows once; return the weights."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model: Any = AutoModelForCausalLM.from_pretrained(BASE_MODEL)
    model.load_state_dict(dict(base), strict=False)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(scratch), num_train_epochs=1, learning_rate=LR, seed=seed, save_strategy="no",
            report_to="none", per_device_train_batch_size=BATCH, use_cpu=True, disable_tqdm=True,
            bf16=False, max_length=32, gradient_checkpointing=False, logging_strategy="no",
            lr_scheduler_type="constant",
        ),
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(BASE_MODEL),
    )  # fmt: skip
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def write(weights: Weights, folder: Path) -> None:
    """Write a model folder: the digits model's files with these weights."""
    from safetensors.torch import save_file

    copytree(BASE_MODEL, folder, dirs_exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
