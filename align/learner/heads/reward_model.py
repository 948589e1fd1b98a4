"""The learner of a reward model: a decoder with a head of one number, trained on pairs.

It is a model for sequence classification from the start, so whoever can load one can use the result.
Its head begins at random, fixed by the seed; rewards are read as `rewards.library.reward_model` reads them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from align.algorithms.preference.preference import pairs_in
from align.algorithms.preference.reward_model import RewardModel
from align.algorithms.rows import Batch, Row, units_of
from align.config.campaign import PolicyConfig, RoundSettings
from align.errors import NonFiniteError
from align.learner.batching import micro_batches
from align.learner.learner import MICRO_BATCH_TOKENS
from align.learner.optimizer import count_skipped, learning_rate, make_optimizer, set_learning_rates
from align.learner.training import Metrics
from rewards.library.reward_model import sequence_scores, set_padding
from rollouts.chat.endings import generation_endings


class RewardLearner:
    """Model and optimizer of one round."""

    def __init__(
        self,
        start: Path,
        tokenizer: Any,
        policy: PolicyConfig,
        spec: RoundSettings,
        *,
        num_steps: int,
        seed: int,
    ) -> None:
        """Begin from the decoder of a folder with full weights.

        Args:
            num_steps: updates to come, for the learning rate's schedule.
        """
        assert isinstance(spec.algorithm, RewardModel)
        self._algorithm, self._chosen = spec.algorithm, spec.optimizer
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype: torch.dtype = getattr(torch, policy.dtype)
        torch.manual_seed(seed)
        self.model = fresh_model(start, policy).to(self.device)
        model_padding = self.model.config.get_text_config().pad_token_id
        paddings = (tokenizer.pad_token_id, model_padding, tokenizer.eos_token_id)
        set_padding(self.model, paddings)
        # Its snapshot has no generation config, and scores answers up to the same ends.
        if ends := generation_endings(start):
            self.model.config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
        self._optimizer = make_optimizer(self.model.parameters(), spec.optimizer)
        per_update = spec.optimizer.epochs * spec.optimizer.mini_batches
        self._num_steps, self._steps, self._skipped = num_steps * per_update, 0, 0

    def update(self, rows: Sequence[Row]) -> Metrics:
        """Learn from pairs; returns plain floats, means over the optimizer steps."""
        steps = [
            self._step_on(part.rows)
            for _ in range(self._chosen.epochs)
            for part in Batch(rows=tuple(rows)).split(self._chosen.mini_batches)
        ]
        return {name: fmean(step[name] for step in steps) for name in steps[0]}

    def loss(self, rows: Sequence[Row], num_pairs: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and summable metrics of whole pairs in one forward pass.

        The ``margin`` of a chosen row is its pair's.
        """
        chosen, rejected = [list(side) for side in zip(*pairs_in(rows), strict=True)]
        scores_B = self._scores(rows)
        chosen_U, rejected_U = scores_B[chosen], scores_B[rejected]
        margins_U = scores_B.new_tensor([rows[index].margin for index in chosen])
        loss, metrics = self._algorithm.loss(chosen_U, rejected_U, margins_U, num_pairs)
        return loss, dict(metrics)

    @torch.no_grad()
    def scores(self, rows: Sequence[Row]) -> list[float]:
        """Return the reward of each row, in the order of the rows.

        Raises:
            NonFiniteError: one of them is no number.
        """
        rewards: dict[int | None, float] = {}
        numbered = [replace(row, unit=index) for index, row in enumerate(rows)]
        for micro in micro_batches(numbered, self._micro_batch_tokens):
            scores = self._scores(micro.rows).tolist()
            rewards |= {row.unit: score for row, score in zip(micro.rows, scores, strict=True)}
        if not all(map(isfinite, rewards.values())):
            raise NonFiniteError(
                "the reward model gives rewards that are not finite", where="learner"
            )
        return [rewards[index] for index in range(len(rows))]

    def calibrate(self, scores: Sequence[float]) -> None:
        """Write mean and standard deviation of these rewards into the model's config."""
        self.model.config.reward_mean = fmean(scores)
        self.model.config.reward_std = pstdev(scores) or 1.0

    def save(self, folder: Path) -> None:
        """Write safetensors and config; the tokenizer is the caller's."""
        self.model.save_pretrained(folder)

    @property
    def _micro_batch_tokens(self) -> int:
        return self._chosen.micro_batch_tokens or MICRO_BATCH_TOKENS[self.device.type]

    def _scores(self, rows: Sequence[Row]) -> Tensor:
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return sequence_scores(self.model, [(*r.prompt_ids, *r.completion_ids) for r in rows])

    def _step_on(self, rows: Sequence[Row]) -> Metrics:
        """Take one optimizer step on whole pairs; return its metrics.

        If the gradient is not finite, nothing moves, and the step is counted as skipped.
        """
        self._optimizer.zero_grad()
        sums: defaultdict[str, float] = defaultdict(float)
        num_pairs = len(units_of(rows))
        for micro in micro_batches(rows, self._micro_batch_tokens):
            loss, metrics = self.loss(micro.rows, num_pairs)
            loss.backward()  # type: ignore[no-untyped-call]
            for name, value in metrics.items():
                sums[name] += float(value)
        norm = float(
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._chosen.max_grad_norm)
        )
        lr = learning_rate(self._chosen, self._steps, self._num_steps)
        set_learning_rates(self._optimizer, lr / self._chosen.lr)
        self._steps += 1
        if isfinite(norm):
            self._optimizer.step()
            self._skipped = 0
        else:
            self._skipped = count_skipped(self._skipped, lr)
        skipped = float(self._skipped > 0)
        return {**sums, "grad_norm": norm, "lr": lr, "steps_skipped": skipped}


def fresh_model(folder: Path, policy: PolicyConfig) -> Any:
    """Load the decoder of a causal language model under a new head, its master weights in float32."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # It would warn that the head is new, which is meant.
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=1,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=policy.trust_remote_code,
            use_safetensors=True,
        )
    finally:
        logging.set_verbosity(before)
    return model.eval()
