"""Trainings of a tiny policy under retention methods, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from align.algorithms import GRPO, Algorithm
from align.algorithms.preference.dpo import DPO
from align.algorithms.rows import DATA, Batch
from align.config.campaign import (
    AnchorsConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    ReplayConfig,
    RoundSettings,
)
from align.config.retention.anchors import AnchorConfig
from align.config.retention.methods import RetentionConfig
from align.learner.learner import Learner
from align.learner.references import References
from align.learner.training import Training
from align.retention.methods import RetentionMethods
from tests.unit.tiny import row, save_model

LORA = LoraConfig(rank=2, alpha=4.0)
POLICIES: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora": LORA}}
KINDS: dict[str, dict[str, Any]] = {
    **POLICIES,
    "fresh": {"lora": LORA.model_copy(update={"merge": True})},
}
"""Settings of a policy: full weights, one adapter for all rounds, or a fresh one in every round."""
NEW = (row((1, 2, 3), (4, 5, 6), 1.0), row((7, 2), (8, 9, 10), -1.0), row((3, 4), (5, 6), 0.5))
"""Rows that teach."""
PAST = (
    row((9, 4), (2, 3, 1), None, "past", "base"),
    row((6, 5, 1), (7, 8), None, "past", "base"),
)
"""Rows that an anchor holds."""
PAIRS = tuple(
    replace(side, advantage=advantage, unit=unit, policy=DATA, sampler_logprobs_T=())
    for unit, pair in enumerate(
        (
            (row((1, 2, 3), (4, 5)), row((1, 2, 3), (6, 7, 8))),
            (row((7,), (8, 9, 10)), row((7,), (3,))),
        )
    )
    for side, advantage in zip(pair, (1.0, -1.0), strict=True)
)
"""Rows of two pairs of a file."""
MIXED = Batch(rows=(*NEW, *PAST))
HELD = AnchorsConfig(new=(), past=(AnchorConfig(to="owner", beta=1.0),), general=())


def save_models(folder: Path) -> dict[str, Path]:
    """Save two models of the same shape; return their folders by name."""
    return {
        name: save_model(folder / name, seed=seed) for seed, name in enumerate(("base", "other"))
    }


def kinds_of(config: RetentionConfig) -> list[str]:
    """Name the policies that a method goes with; it may be told of no other."""
    if config.needs_fresh_adapter:
        return ["fresh"]
    return [*POLICIES] if config.keeps_artifact else [*KINDS]


def learner_of(models: Mapping[str, Path], folder: Path, policy: str) -> Learner:
    """Load the base, in full or under an adapter."""
    return Learner(
        models["base"],
        PolicyConfig(model="tiny", **KINDS[policy]),
        folder_of=lambda snapshot: models[snapshot],
        scratch=folder,
        tolerance=1e9,
    )


def begin(
    learner: Learner,
    *methods: RetentionConfig,
    artifacts: Mapping[str, Path] | None = None,
    parent: str = "base",
    lr: float = 1e-3,
    seed: int = 5,
    anchors: AnchorsConfig = HELD,
    algorithm: Algorithm | None = None,
    replay: ReplayConfig | None = None,
) -> Training:
    """Begin a round of six steps under these methods, which have seen `NEW` before the first.

    The algorithm is GRPO unless one is named.
    """
    spec = RoundSettings(
        algorithm=algorithm or GRPO(),
        anchors=anchors,
        retention=methods,
        optimizer=OptimizerConfig(lr=lr, max_grad_norm=1e9),
        replay=replay or ReplayConfig(),
    )
    training = learner.begin(
        spec,
        References(base="base", parent=parent),
        num_steps=6,
        seed=seed,
        penalties=RetentionMethods(artifacts=artifacts or {}),
    )
    training.before_steps(NEW)
    return training


def after_a_step(learner: Learner, method: RetentionConfig) -> Training:
    """Take the first round's only step, on pairs where the method keeps ranked answers."""
    if method.name == "copr":
        training = begin(learner, method, algorithm=DPO(pairs="file"))
        training.update(Batch(rows=PAIRS))
    else:
        training = begin(learner, method)
        training.update(Batch(rows=NEW))
    return training


def weights_of(training: Training) -> dict[str, Tensor]:
    """Copy the trained weights."""
    named = training.learner.policy.named_parameters()
    return {name: parameter.detach().clone() for name, parameter in named.items()}


def accepted(training: Training, folder: Path, name: str) -> dict[str, Path]:
    """Write what a method keeps of the present policy; return it as artifacts of the next round."""
    training.write_artifacts(folder, NEW)
    path = folder / f"{name}.safetensors"
    return {name: path} if path.exists() else {}
