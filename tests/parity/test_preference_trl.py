"""Our DPO and KTO against TRL's own trainers, on the same models and the same tensors.

A whole update of our learner, reference and all, against TRL's `_compute_loss` as it is, in eval mode:
loss, metrics and gradient have to be the same numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.algorithms import Algorithm
from align.algorithms.preference.dpo import DPO
from align.algorithms.preference.fpo import FPO
from align.algorithms.preference.kto import KTO, mismatched
from align.algorithms.rows import Batch, Row
from align.config.campaign import (
    AnchorConfig,
    AnchorsConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
)
from align.data.demo import BASE_MODEL
from align.data.examples.forms import common_prompt
from align.learner.learner import Learner
from align.learner.references import References
from align.retention.methods import RetentionMethods
from tests.unit.tiny import row, save_model

BETA = 0.3
CHOSEN = (row((1, 2, 3), (4, 5)), row((7,), (8, 9, 10)), row((3, 4), (5,)))
REJECTED = (row((1, 2, 3), (6, 7, 8)), row((7,), (3,)), row((3, 4), (5, 6, 7, 8)))
PAIRS = tuple(
    replace(side, advantage=advantage, unit=unit)
    for unit, pair in enumerate(zip(CHOSEN, REJECTED, strict=True))
    for side, advantage in zip(pair, (1.0, -1.0), strict=True)
)
RATED = (
    row((1, 2, 3), (4, 5), 1.0),
    row((7,), (8, 9, 10), -1.0),
    row((3, 4), (5, 6, 7), 1.0),
    row((2, 2), (9,), 1.0),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"base": save_model(root / "base", 0), "other": save_model(root / "other", 1)}


def ours(
    models: dict[str, Path], tmp_path: Path, algorithm: Algorithm, rows: Sequence[Row]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and gradient of an update of ``base`` against ``other``, before anything moves."""
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny"),
        folder_of=lambda snapshot: models[snapshot],
        scratch=tmp_path,
        tolerance=1e9,
    )
    spec = RoundSettings(
        algorithm=algorithm,
        anchors=AnchorsConfig(new=(AnchorConfig(to="base", beta=1.0),), past=(), general=()),
        optimizer=OptimizerConfig(micro_batch_tokens=16),
    )
    training = learner.begin(
        spec,
        References(base="other", parent="base"),
        num_steps=5,
        seed=0,
        penalties=RetentionMethods(),
    )
    training._optimize = dict  # type: ignore[method-assign]
    metrics = training.update(Batch(rows=tuple(rows)))
    return metrics, gradient(learner.policy.model)


def trainer(kind: str, models: dict[str, Path], tmp_path: Path, **options: Any) -> Any:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    columns: dict[str, list[Any]] = {"prompt": ["rev", "sort"]}
    if kind == "DPO":
        columns |= {"chosen": ["1", "2"], "rejected": ["3", "4"]}
    else:
        columns |= {"completion": ["1", "2"], "label": [True, False]}
    policy, reference = (AutoModelForCausalLM.from_pretrained(models[n]) for n in ("base", "other"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(trl, f"{kind}Trainer")(
            model=policy,
            ref_model=reference,
            args=getattr(trl, f"{kind}Config")(
                output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none",
                gradient_checkpointing=False, beta=BETA, **options,
            ),
            train_dataset=Dataset.from_dict(columns),
            processing_class=PreTrainedTokenizerFast.from_pretrained(BASE_MODEL),
        )  # fmt: skip
    made.model.eval()
    return made


def padded(rows: Sequence[Row], prefix: str = "") -> dict[str, Tensor]:
    """Rows as TRL's collators lay them out: whole sequences padded on the right, with masks."""
    width = max(r.num_tokens for r in rows)

    def stacked(sequences: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences])

    return {
        f"{prefix}input_ids": stacked([[*r.prompt_ids, *r.completion_ids] for r in rows]),
        f"{prefix}attention_mask": stacked([[1] * r.num_tokens for r in rows]),
        f"{prefix}completion_mask": stacked(
            [[0] * len(r.prompt_ids) + [1] * len(r.completion_ids) for r in rows]
        ),
    }


def gradient(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same_gradient(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(g.abs().max().item() for g in expected.values())
    assert largest > 1e-3, "nothing to compare"
    for name in expected:
        difference = (found[name] - expected[name]).abs().max().item()
        assert difference < 2e-5 * max(1.0, largest), f"{name}: {difference:.3g} of {largest:.3g}"


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {"loss_type": ["sigmoid"]}),
        ({"length_normalised": True}, {"loss_type": ["sigmoid_norm"]}),
        ({"loss": "ipo"}, {"loss_type": ["ipo"]}),
        ({"loss": "hinge"}, {"loss_type": ["hinge"]}),
        (
            {"label_smoothing": 0.2, "smoothing": "robust"},
            {"loss_type": ["robust"], "label_smoothing": 0.2},
        ),
    ],
)
def test_dpo_is_trls(
    models: dict[str, Path], tmp_path: Path, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    theirs = trainer("DPO", models, tmp_path, **options)
    loss = theirs._compute_loss(theirs.model, padded((*CHOSEN, *REJECTED)), False)
    loss.backward()

    metrics, found = ours(models, tmp_path, DPO(beta=BETA, **fields), PAIRS)
    assert metrics["loss/policy"] == pytest.approx(loss.item(), rel=1e-5)
    same_gradient(found, gradient(theirs.model))
    reported = {name: values[-1] for name, values in theirs._metrics["eval"].items()}
    assert metrics["pairs/margin"] == pytest.approx(reported["rewards/margins"], rel=1e-4)
    assert metrics["pairs/accuracy"] == pytest.approx(reported["rewards/accuracies"])
    assert metrics["pairs/chosen_reward"] == pytest.approx(reported["rewards/chosen"], rel=1e-4)


def test_fpo_without_its_exponent_is_trls_dpo(models: dict[str, Path], tmp_path: Path) -> None:
    theirs = trainer("DPO", models, tmp_path, loss_type=["sigmoid"])
    loss = theirs._compute_loss(theirs.model, padded((*CHOSEN, *REJECTED)), False)
    loss.backward()

    metrics, gradients = ours(models, tmp_path, FPO(beta=BETA, gamma=0.0), PAIRS)
    assert metrics["loss/policy"] == pytest.approx(loss.item(), rel=1e-5)
    same_gradient(gradients, gradient(theirs.model))


def test_conservative_smoothing_is_trls(models: dict[str, Path], tmp_path: Path) -> None:
    """TRL 1.16 smooths so in ``aot`` only, whose sorting changes nothing where there is one pair."""
    theirs = trainer("DPO", models, tmp_path, loss_type=["aot"], label_smoothing=0.2)
    loss = theirs._compute_loss(theirs.model, padded((CHOSEN[1], REJECTED[1])), False)
    loss.backward()

    algorithm = DPO(beta=BETA, label_smoothing=0.2)
    metrics, found = ours(models, tmp_path, algorithm, PAIRS[2:4])
    assert metrics["loss/policy"] == pytest.approx(loss.item(), rel=1e-5)
    same_gradient(found, gradient(theirs.model))


@pytest.mark.parametrize("swapped", [False, True])
def test_kto_is_trls(models: dict[str, Path], tmp_path: Path, swapped: bool) -> None:
    """With the models as they are the KL estimate is negative and clamped; swapped, it is not."""
    if swapped:
        models = {"base": models["other"], "other": models["base"]}
    weights = {"desirable_weight": 0.7, "undesirable_weight": 1.4}
    theirs = trainer(
        "KTO", models, tmp_path, train_sampling_strategy="sequential",
        per_device_train_batch_size=4, **weights,
    )  # fmt: skip
    inputs = padded(RATED) | padded(mismatched(RATED), "KL_")
    inputs["label"] = torch.tensor([r.advantage == 1.0 for r in RATED])
    loss = theirs._compute_loss(theirs.model, inputs, False)
    loss.backward()

    algorithm = KTO(beta=BETA, ratings="file", **weights)
    metrics, found = ours(models, tmp_path, algorithm, algorithm.examples(RATED))
    (kl,) = theirs._metrics["eval"]["kl"]
    assert metrics["ratings/baseline"] == pytest.approx(kl, rel=1e-5)
    assert metrics["loss/policy"] == pytest.approx(loss.item(), rel=1e-5)
    same_gradient(found, gradient(theirs.model))
    assert (kl > 0.1) == swapped


def test_the_shared_beginning_of_conversations_is_trls() -> None:
    from trl import extract_prompt

    asked = {"role": "user", "content": "What color is the sky?"}
    chosen, rejected = (
        (asked, {"role": "assistant", "content": answer}) for answer in ("Blue.", "Green.")
    )
    assert (
        common_prompt(chosen, rejected)
        == extract_prompt({"chosen": chosen, "rejected": rejected})["prompt"]
    )
