"""Claim: on samples of older weights, importance weights of sequences give KL terms back their gradient.

All answers of a small vocabulary are enumerated, so expectations are exact and nothing is trained. The
policy, its anchor and the sampler are tables of random logits, with a row for each text that may come
before a token. The first row of the table is the distance of each estimator's gradient from that of the
sequence KL on the policy's own samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from align.algorithms import divergences as kl
from align.algorithms.importance import ImportanceConfig, importance_weights
from benchmarks.common import parser, prepare, save, show, verdict

VOCABULARY, LENGTH = 4, 4
APART = 0.5
"""Standard deviation of the anchor's logits around the policy's."""
DRIFTS = (0.1, 0.3, 1.0)
"""Standard deviations of the sampler's logits around the policy's."""
ESTIMATORS = ("full", "k1", "k2", "k3")
UNCAPPED = "sequence, no cap"
EXACT = 1e-5
"""Relative error that rounding may leave."""
WEIGHTS: Mapping[str, ImportanceConfig | None] = {
    "none": None,
    "token": ImportanceConfig(level="token"),
    "sequence": ImportanceConfig(level="sequence"),
    UNCAPPED: ImportanceConfig(level="sequence", cap=1e6),
}

ANSWERS = list(itertools.product(range(VOCABULARY), repeat=LENGTH))
TEXTS = [t for n in range(LENGTH) for t in itertools.product(range(VOCABULARY), repeat=n)]
_INDEX = {text: index for index, text in enumerate(TEXTS)}
STATES_N = torch.tensor([_INDEX[answer[:t]] for answer in ANSWERS for t in range(LENGTH)])
TOKENS_N = torch.tensor([token for answer in ANSWERS for token in answer])
ROWS_N = torch.arange(len(ANSWERS)).repeat_interleave(LENGTH)


def main() -> None:
    """Enumerate and print."""
    prepare()
    options = parser("Exact gradients of the KL estimators, on own samples and on older ones.")
    options.add_argument("--policies", type=int, default=20, help="random policies to average over")
    args = options.parse_args()
    seeds = range(3 if args.quick else args.policies)
    on_policy = _mean([errors_on_own_samples(seed) for seed in seeds])
    rows = []
    for drift in DRIFTS:
        for name, config in WEIGHTS.items():
            errors = _mean([errors_on_older_samples(seed, drift, config) for seed in seeds])
            away = sum(distance(seed, drift) for seed in seeds) / len(seeds)
            rows.append({"drift": drift, "nats a token": away, "weights": name, **errors})
    report(on_policy, rows)
    save(args.json, "kl_gradients", args, {"own": on_policy, "older": rows})


def report(on_policy: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table."""
    exact = [row[name] for row in rows if row["weights"] == UNCAPPED for name in ESTIMATORS]
    errors = (f"{on_policy[name]:.1%}" for name in ESTIMATORS)
    first = ("own, against the sequence KL", "", "", *errors)
    older = [
        (
            "older, against own",
            f"{row['nats a token']:.3f}",
            row["weights"],
            *(f"{row[name]:.1%}" for name in ESTIMATORS),
        )
        for row in rows
    ]
    show(
        "Relative error of the expected gradient",
        ("samples", "nats a token", "weights", *ESTIMATORS),
        [first, *older],
        f"weights of sequences correct all of it: {verdict(max(exact) < EXACT)}",
    )


def errors_on_own_samples(seed: int) -> dict[str, float]:
    """Compute each estimator's relative error against the sequence KL's gradient, by enumeration."""
    policy, anchor, _ = tables(seed, 0.0)
    exact = _gradient(policy, lambda logits: sequence_kl(logits, anchor))
    return {
        name: _apart(_gradient(policy, _loss(name, anchor, policy, None)), exact)
        for name in ESTIMATORS
    }


def errors_on_older_samples(
    seed: int, drift: float, config: ImportanceConfig | None
) -> dict[str, float]:
    """Compute each estimator's relative error on a sampler's answers, against the policy's own answers.

    Args:
        config: importance weights; None treats samples as the policy's own.
    """
    policy, anchor, sampler = tables(seed, drift)
    return {
        name: _apart(
            _gradient(policy, _loss(name, anchor, sampler, config)),
            _gradient(policy, _loss(name, anchor, policy, None)),
        )
        for name in ESTIMATORS
    }


def distance(seed: int, drift: float) -> float:
    """Compute the KL of the policy from the sampler, in nats a token."""
    policy, _, sampler = tables(seed, drift)
    return float(sequence_kl(policy, sampler)) / LENGTH


def tables(seed: int, drift: float) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the logits of policy, anchor and sampler, with a row for each text."""
    random = torch.Generator().manual_seed(seed)
    policy, away, older = (
        torch.randn(len(TEXTS), VOCABULARY, generator=random, dtype=torch.float64) for _ in range(3)
    )
    return policy, policy + APART * away, policy + drift * older


def sequence_kl(logits: Tensor, other: Tensor) -> Tensor:
    """Compute the KL of whole answers, with its gradient through all of them."""
    log_ratio_S = _of_answers(_logprobs(logits) - _logprobs(other))
    return (_of_answers(_logprobs(logits)).exp() * log_ratio_S).sum()


def _loss(
    name: str, anchor: Tensor, sampler: Tensor, config: ImportanceConfig | None
) -> Callable[[Tensor], Tensor]:
    """Return the expectation of an estimator's loss over the sampler's answers, as a function of logits."""

    def loss(logits: Tensor) -> Tensor:
        policy_N, anchor_N, sampler_N = (_logprobs(table) for table in (logits, anchor, sampler))
        chance_N = _of_answers(sampler_N).exp()[ROWS_N]
        if config is not None and (name != "full" or config.level == "sequence"):
            gap_N = (policy_N - sampler_N).detach()
            chance_N = chance_N * importance_weights(gap_N, ROWS_N, config)
        if name == "full":
            distributions = [table.log_softmax(-1)[STATES_N] for table in (logits, anchor)]
            return (chance_N * kl.full(*distributions)).sum()
        if name == "k1":
            return (chance_N * kl.k1_in_reward(policy_N, anchor_N, ROWS_N)).sum()
        return (chance_N * kl.TOKEN_ESTIMATORS[name](policy_N, anchor_N)).sum()

    return loss


def _logprobs(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)[STATES_N, TOKENS_N]


def _of_answers(values_N: Tensor) -> Tensor:
    return values_N.view(len(ANSWERS), LENGTH).sum(-1)


def _gradient(table: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    logits = table.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    return gradient


def _apart(gradient: Tensor, exact: Tensor) -> float:
    return float((gradient - exact).norm() / exact.norm())


def _mean(rows: list[dict[str, float]]) -> dict[str, Any]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


if __name__ == "__main__":
    main()
