"""Terms that make replayed answers and texts likely, beside whatever the round's algorithm minimises.

    sum_s weight_s * -1/N_s sum_t log pi(y_t | x, y_<t)

over the classes ``s`` of such rows, with ``N_s`` all their tokens in the mini-batch, at temperature 1.

``answers`` are on-policy replay: the newest accepted policy answers earlier prompts, and the best answers
are imitated (arXiv 2605.29495; released code: OPR-RU filters by the task's score, OPR-SC by the mean
log-probability). ``texts`` are the pre-training mix of InstructGPT (PPO-ptx, Ouyang et al. 2022, arXiv
2203.02155, equation 2), there with weight 27.8; OpenRLHF's default for means over tokens is 0.05.

A round's settings of replay ask for the terms; no entry of ``retention`` names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from align.algorithms.rows import Row
from align.config.retention.methods import RetentionConfig
from align.retention.base import RetentionMethod

if TYPE_CHECKING:
    from torch import Tensor

    from align.algorithms.micro_batch import MicroBatch
    from align.algorithms.outputs import Outputs
    from align.learner.batching import Denominators


class RehearsalConfig(RetentionConfig):
    """Weights of the terms, by the source of their rows."""

    name: Literal["rehearsal"] = "rehearsal"
    weights: dict[str, float]


class Rehearsal(RetentionMethod[RehearsalConfig]):
    """Mean negative log-likelihood of each class of rehearsed rows, times its weight."""

    def moves(self, row: Row) -> bool:
        return row.source in self.config.weights

    def penalty(
        self, micro: MicroBatch, outputs: Outputs, over: Denominators
    ) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        for source, weight in self.config.weights.items():
            rows = [index for index, row in enumerate(micro.rows) if row.source == source]
            if not rows:
                continue
            rehearsed = outputs.at(micro.tokens_of(rows)).tempered(1.0)
            mean = -rehearsed.logprobs_N.sum() / max(over.class_tokens.get(source, 0), 1)
            yield weight * mean, {f"rehearsal/{source}": mean.detach()}
