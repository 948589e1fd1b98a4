"""COPR's constraint: the distribution over earlier rounds' ranked answers that was optimal then stays.

    J_i = mean_{x in R_i} 1/J sum_j [log P(y_j | Y_x) - log P*_i(y_j | Y_x)]^2 - d_i  <= 0
    ln lambda_i <- ln lambda_i + rate * lambda_i * J_i
    L = (loss of the step + sum_i lambda_i J_i) / (1 + sum_i lambda_i)

``R_i`` are prompts of an earlier round with their ranked answers and targets ``P*_i``, which
`align.algorithms.preference.copr` defines; ``d_i`` is what the round's parent has of the first term. So a
multiplier grows while an earlier preference is being lost, and falls while it is kept. Source: COPR, Zhang
et al. 2024, arXiv 2402.14228.

Each step passes some stored prompts besides its batch. ``d`` is taken prompt by prompt, which has the same
mean and less noise. A prompt that the present round ranks, too, is its own from then on; what a round
overrides is constrained no more. A multiplier changes by a factor of at most e in one step. A candidate
that a merge or a repair made leaves the answers that the round's first training ranked: their targets do
not depend on where the policy ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import chain
from math import ceil, exp, isfinite
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import Outputs
from align.algorithms.preference.copr import COPR, sets_in
from align.algorithms.rows import Row, spans_of
from align.config.retention.methods import COPRConfig
from align.learner.batching import passes, to_tensors
from align.learner.model.policy import completion_outputs
from align.learner.penalty import LearnerView
from align.retention.base import Ids, RetentionMethod
from rollouts.types import TokenSpan

PASS_TOKENS = 4096
"""Padded tokens of a pass that measures stored answers when a round begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedAnswers:
    """Answers to one prompt, and the logarithms of their optimal shares."""

    round: str
    """Round that they were ranked in."""
    temperature: float
    """Temperature of the log-probabilities that the targets are made of."""
    prompt: Ids
    answers: tuple[Ids, ...]
    targets: tuple[float, ...]
    """Logarithms of the optimal shares, in nats."""
    observed: tuple[tuple[TokenSpan, ...], ...] = ()
    """Tokens of each answer that an environment wrote; empty if it wrote none of any."""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> RankedAnswers:
        """Build one from JSON values."""
        listed = {key: tuple(data[key]) for key in ("prompt", "targets")}
        observed = tuple(spans_of(spans) for spans in data.get("observed", ()))
        answers = tuple(map(tuple, data["answers"]))
        return cls(**{**data, **listed, "answers": answers, "observed": observed})

    def rows(self, unit: int) -> list[Row]:
        """Return the answers as rows of one unit."""
        return [
            Row(
                prompt_ids=self.prompt,
                completion_ids=answer,
                observed=observed,
                advantage=0.0,
                source="past",
                round=self.round,
                unit=unit,
            )
            for answer, observed in zip(
                self.answers, self.observed or [()] * len(self.answers), strict=True
            )
        ]


class COPRConstraint(RetentionMethod[COPRConfig]):
    """Constraint of a round on the ranked answers of earlier ones, and the answers that it ranks itself."""

    def __init__(self, config: COPRConfig, view: LearnerView, artifact: Path | None = None) -> None:
        super().__init__(config, view, artifact)
        algorithm = view.spec.algorithm
        self._target = algorithm if isinstance(algorithm, COPR) else COPR(beta=config.beta)
        self._temperature = (
            view.spec.sampling.temperature if algorithm.material == "rollouts" else 1.0
        )
        self._earlier: dict[str, list[RankedAnswers]] = {}
        """Stored prompts by the round that ranked them."""
        for ranked in [] if artifact is None else read_sets(artifact):
            self._earlier.setdefault(ranked.round, []).append(ranked)
        self._distances: dict[str, float] = {}
        """Parent's distance from the targets, by `_key` of the prompt."""
        self._multipliers = dict.fromkeys(self._earlier, config.multiplier)
        self._collected: dict[str, RankedAnswers] = {}
        """Prompts that this round ranks, by their key, at most as many as are stored."""
        self._replaced: set[str] = set()
        """Keys of stored prompts that this round ranks itself."""
        self._passed: list[RankedAnswers] = []
        """Stored prompts of the step under way, by their unit."""
        self._steps = 0
        self.acts_on_weights = bool(self._earlier)

    def leave_out(self, retired: Mapping[str, AbstractSet[Ids] | None]) -> None:
        remaining = {
            name: [
                ranked
                for ranked in sets
                if (gone := retired.get(name, frozenset())) is not None
                and ranked.prompt not in gone
            ]
            for name, sets in self._earlier.items()
        }
        self._earlier = {name: sets for name, sets in remaining.items() if sets}
        self._multipliers = dict.fromkeys(self._earlier, self.config.multiplier)
        self.acts_on_weights = bool(self._earlier)

    def before_round(self) -> None:
        """Measure how far the parent is from each stored target."""
        if not self._earlier:
            return
        # It leaves the parent's weights in the policy.
        self.view.weights_of(self.view.references.parent)
        stored = [ranked for sets in self._earlier.values() for ranked in sets]
        policy = self.view.policy
        rows = [row for unit, ranked in enumerate(stored) for row in ranked.rows(unit)]
        for part in passes(rows, PASS_TOKENS):
            micro = to_tensors(part).to(policy.device)
            with policy.passing(learns=False), torch.no_grad():
                outputs = completion_outputs(
                    policy.model, micro, dtype=policy.dtype, temperature=1.0
                )
                for unit, distance in distances(micro, outputs, stored).items():
                    self._distances[self._key(stored[unit])] = float(distance)

    def before_batch(self, rows: Sequence[Row]) -> None:
        new = [
            row
            for row in rows
            if row.source == "new" and row.unit is not None and row.reference_logprobs_T is not None
        ]
        for indices in sets_in(new):
            members = [new[i] for i in indices]
            reference_J = torch.tensor([sum(row.reference_logprobs_T or ()) for row in members])
            ranked = RankedAnswers(
                round=members[0].round or f"round {len(self._earlier)}",
                temperature=self._temperature,
                prompt=members[0].prompt_ids,
                answers=tuple(row.completion_ids for row in members),
                targets=tuple(self._target.targets(reference_J, members).tolist()),
                observed=_stated([row.observed for row in members]),
            )
            self._collected[self._key(ranked)] = ranked
            self._replaced.add(self._key(ranked))
        self._replaced &= self._distances.keys()
        for key in sorted(self._collected)[self.config.stored :]:
            del self._collected[key]

    def own_rows(self) -> Sequence[Row]:
        remaining = {name: self._remaining(name) for name in self._earlier}
        each = ceil(self.config.per_step / max(len(remaining), 1))
        self._passed = []
        for name, sets in remaining.items():
            random = Random(f"{self.view.seed}/{self._steps}/{name}")
            self._passed += random.sample(sets, min(each, len(sets)))
        return [row for unit, ranked in enumerate(self._passed) for row in ranked.rows(unit)]

    def own_penalty(
        self, micro: MicroBatch, outputs: Outputs
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss = outputs.logprobs_N.sum() * 0.0
        metrics: dict[str, Tensor] = {}
        rounds = [ranked.round for ranked in self._passed]
        for unit, distance in distances(micro, outputs, self._passed).items():
            ranked = self._passed[unit]
            excess = distance - self._distances[self._key(ranked)]
            excess = excess / rounds.count(ranked.round)
            loss = loss + self._multipliers[ranked.round] * excess
            name = f"copr/excess/{ranked.round}"
            metrics[name] = metrics.get(name, excess.new_zeros(())) + excess.detach()
        return loss, metrics

    def project(self, gradients: Mapping[str, Tensor]) -> None:
        """Divide the whole step's gradient by one plus the multipliers."""
        for gradient in gradients.values():
            gradient.div_(1.0 + sum(self._multipliers.values()))

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        self._steps += 1
        reported: dict[str, float] = {}
        low, high = self.config.bounds
        total = 0.0
        for name, multiplier in self._multipliers.items():
            reported[f"copr/lambda/{name}"] = multiplier
            excess = metrics.get(f"copr/excess/{name}")
            if excess is None or not isfinite(excess):
                continue
            total += multiplier * excess
            rise = min(max(self.config.rate * multiplier * excess, -1.0), 1.0)
            self._multipliers[name] = min(max(multiplier * exp(rise), low), high)
        return {**reported, "retention/copr": total} if reported else {}

    def after_accept(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        earlier = [ranked for name in self._earlier for ranked in self._remaining(name)]
        return tensors_of([*earlier, *(self._collected[key] for key in sorted(self._collected))])

    def counters(self) -> Mapping[str, Any]:
        return {
            "copr": {
                "steps": self._steps,
                "multipliers": self._multipliers,
                "replaced": sorted(self._replaced),
                "collected": {key: asdict(ranked) for key, ranked in self._collected.items()},
            }
        }

    def resume(self, counters: Mapping[str, Any]) -> None:
        state = counters["copr"]
        self._steps, self._multipliers = state["steps"], dict(state["multipliers"])
        self._replaced = set(state["replaced"])
        self._collected = {k: RankedAnswers.read(v) for k, v in state["collected"].items()}

    def _remaining(self, name: str) -> list[RankedAnswers]:
        """Return an earlier round's stored prompts without those that the present round ranks."""
        return [r for r in self._earlier[name] if self._key(r) not in self._replaced]

    def _key(self, ranked: RankedAnswers) -> str:
        """Return a digest of the prompt; those with the smallest are a fair sample of all."""
        return blake2b(repr(ranked.prompt).encode(), digest_size=12).hexdigest()


def distances(
    micro: MicroBatch, outputs: Outputs, sets: Sequence[RankedAnswers]
) -> dict[int, Tensor]:
    """Compute the mean squared distance of log-shares from their targets, by the unit of the rows.

    Args:
        sets: the prompts that units are indices of; each is whole in the pass, or not in it.
    """
    measured: dict[int, Tensor] = {}
    for indices in sets_in(micro.rows):
        unit = micro.rows[indices[0]].unit
        assert unit is not None
        part = outputs.at(micro.tokens_of(indices)).tempered(sets[unit].temperature)
        lengths = [micro.rows[i].num_sampled for i in indices]
        sums_J = torch.stack([piece.sum() for piece in torch.split(part.logprobs_N, lengths)])
        answers = {answer: j for j, answer in enumerate(sets[unit].answers)}
        order = [answers[micro.rows[i].completion_ids] for i in indices]
        targets_J = sums_J.new_tensor([sets[unit].targets[j] for j in order])
        measured[unit] = (sums_J.log_softmax(-1) - targets_J).square().mean()
    return measured


def tensors_of(sets: Sequence[RankedAnswers]) -> dict[str, Tensor]:
    """Return ranked answers as the tensors of an artifact, round by round."""
    tensors: dict[str, Tensor] = {}
    for name in dict.fromkeys(entry.round for entry in sets):
        ranked = [entry for entry in sets if entry.round == name]
        tokens = [(*r.prompt, *(token for a in r.answers for token in a)) for r in ranked]
        sizes = [(len(r.prompt), len(r.answers), *map(len, r.answers)) for r in ranked]
        columns = {
            "tokens": torch.tensor([t for ids in tokens for t in ids], dtype=torch.int32),
            "sizes": torch.tensor([n for numbers in sizes for n in numbers], dtype=torch.int32),
            "targets": torch.tensor([t for r in ranked for t in r.targets], dtype=torch.float64),
            "temperature": torch.tensor([ranked[0].temperature], dtype=torch.float64),
        }
        if any(r.observed for r in ranked):
            spans = [s for r in ranked for s in r.observed or [()] * len(r.answers)]
            numbers = [n for each in spans for n in (len(each), *chain.from_iterable(each))]
            columns["observed"] = torch.tensor(numbers, dtype=torch.int32)
        tensors |= {f"{name}/{column}": tensor for column, tensor in columns.items()}
    return tensors


def read_sets(path: Path) -> list[RankedAnswers]:
    """Read what `tensors_of` made."""
    from safetensors.torch import load_file

    stored = load_file(path)
    sets: list[RankedAnswers] = []
    for name in sorted({key.rpartition("/")[0] for key in stored}):
        tokens, sizes, targets = (
            iter(stored[f"{name}/{column}"].tolist()) for column in ("tokens", "sizes", "targets")
        )
        temperature = float(stored[f"{name}/temperature"][0])
        observed = iter(stored.get(f"{name}/observed", torch.zeros(0, dtype=torch.int32)).tolist())
        for prompt_size in sizes:
            lengths = [next(sizes) for _ in range(next(sizes))]
            prompt = tuple(next(tokens) for _ in range(prompt_size))
            answers = tuple(tuple(next(tokens) for _ in range(n)) for n in lengths)
            spans = [
                tuple(TokenSpan(next(observed), next(observed)) for _ in range(next(observed, 0)))
                for _ in lengths
            ]
            sets.append(
                RankedAnswers(
                    round=name,
                    temperature=temperature,
                    prompt=prompt,
                    answers=answers,
                    targets=tuple(next(targets) for _ in lengths),
                    observed=_stated(spans),
                )
            )
    return sets


def _stated(observed: Sequence[tuple[TokenSpan, ...]]) -> tuple[tuple[TokenSpan, ...], ...]:
    """Return the observed tokens of each answer; empty if there are none."""
    return tuple(observed) if any(observed) else ()
