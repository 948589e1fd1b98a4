"""Our SFT and our distillation against TRL's own losses, on the same models and tokens.

SFT runs through `SFTTrainer.compute_loss` with its collator. Distillation has two oracles: the
`generalized_jsd_loss` of the GKD trainer over whole padded logits, and the loss of the stable
distillation trainer, which never holds them.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.algorithms import Algorithm
from align.algorithms.imitation.distill import Distill
from align.algorithms.imitation.sft import SFT
from align.algorithms.rows import Batch
from align.config.campaign import (
    AnchorsConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
    SamplingConfig,
)
from align.data.demo import BASE_MODEL
from align.learner.learner import Learner
from align.learner.references import References
from align.retention.methods import RetentionMethods
from tests.unit.tiny import row, save_model

ROWS = (
    row((1, 2, 3), (4, 5)),
    row((7,), (8, 9, 10)),
    row((3, 4), (5, 6, 7, 8)),
    row((2, 2, 2, 2), (9,)),
)
NUM_TOKENS = 10
MASKED = -100
DIVERGENCES = {
    0.0: Distill(teacher="base", divergence="forward_kl"),
    0.5: Distill(teacher="base", divergence="jsd"),
    0.9: Distill(teacher="base", divergence="jsd", beta=0.9),
    1.0: Distill(teacher="base", divergence="reverse_kl"),
}
"""Ours by TRL's beta: at its ends TRL takes the KLs that the divided JSD tends to."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"policy": save_model(root / "policy", 0), "teacher": save_model(root / "teacher", 1)}


def learner_step(
    models: dict[str, Path],
    tmp_path: Path,
    algorithm: Algorithm,
    *,
    temperature: float = 1.0,
    batch_tokens: int = 10_000,
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of one real update, before the optimizer moves anything."""
    spec = RoundSettings(
        algorithm=algorithm,
        anchors=AnchorsConfig(new=(), past=(), general=()),
        sampling=SamplingConfig(temperature=temperature),
        optimizer=OptimizerConfig(micro_batch_tokens=batch_tokens),
    )
    learner = Learner(
        models["policy"],
        PolicyConfig(model="tiny"),
        folder_of=lambda snapshot: models[snapshot],
        scratch=tmp_path,
        tolerance=1e9,
    )
    training = learner.begin(
        spec,
        References(base="teacher", parent="policy"),
        num_steps=5,
        seed=0,
        penalties=RetentionMethods(),
    )
    training._optimize = dict  # type: ignore[method-assign]
    metrics = training.update(Batch(rows=ROWS))
    return metrics["loss/policy"], gradient(learner.policy.model)


def gradient(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same_gradient(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(g.abs().max().item() for g in theirs.values())
    assert largest > 1e-2, "nothing to compare"
    for name in theirs:
        difference = (ours[name] - theirs[name]).abs().max().item()
        assert difference < 1e-5 * max(1.0, largest), f"{name}: {difference:.3g} of {largest:.3g}"


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def examples() -> list[dict[str, list[int]]]:
    """Rows as TRL's collator takes them: the prompt's labels are masked."""
    return [
        {
            "input_ids": [*r.prompt_ids, *r.completion_ids],
            "labels": [*[MASKED] * len(r.prompt_ids), *r.completion_ids],
        }
        for r in ROWS
    ]


@pytest.mark.parametrize("batch_tokens", [10_000, 8])
@pytest.mark.parametrize("num_items", [None, NUM_TOKENS])
def test_sft_is_trls(
    models: dict[str, Path], tmp_path: Path, batch_tokens: int, num_items: int | None
) -> None:
    """TRL's mean over its batch, and its sum over a count that it was given; theirs at temperature 1
    whatever completions would be sampled with."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False, per_device_train_batch_size=4,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = SFTTrainer(
            model=load(models["policy"]),
            args=config,
            train_dataset=Dataset.from_list(examples()),
            processing_class=PreTrainedTokenizerFast.from_pretrained(BASE_MODEL),
        )
    trainer.model.eval()
    count = None if num_items is None else torch.tensor(num_items)
    theirs = trainer.compute_loss(
        trainer.model, trainer.data_collator(examples()), num_items_in_batch=count
    )
    theirs.backward()

    loss, ours = learner_step(models, tmp_path, SFT(), temperature=0.5, batch_tokens=batch_tokens)
    assert loss == pytest.approx(theirs.item(), rel=1e-6)
    same_gradient(ours, gradient(trainer.model))


def padded() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, attention mask and labels ``B, T``, padded on the right."""
    found = examples()
    width = max(len(example["input_ids"]) for example in found)

    def column(name: str, filler: int) -> Tensor:
        return torch.tensor([e[name] + [filler] * (width - len(e[name])) for e in found])

    labels_BT = column("labels", MASKED)
    mask_BT = torch.tensor([[int(t < len(e["input_ids"])) for t in range(width)] for e in found])
    return column("input_ids", 0), mask_BT, labels_BT


@pytest.mark.parametrize("beta", DIVERGENCES)
@pytest.mark.parametrize(("temperature", "batch_tokens"), [(1.0, 10_000), (0.7, 8)])
def test_distillation_is_trls_generalised_jsd(
    models: dict[str, Path], tmp_path: Path, beta: float, temperature: float, batch_tokens: int
) -> None:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    policy, teacher = load(models["policy"]), load(models["teacher"])
    tokens_BT, mask_BT, labels_BT = padded()
    with torch.no_grad():
        held = teacher(tokens_BT, attention_mask=mask_BT).logits
    theirs = GKDTrainer.generalized_jsd_loss(
        policy(tokens_BT, attention_mask=mask_BT).logits[:, :-1],
        held[:, :-1],
        labels=labels_BT[:, 1:],
        beta=beta,
        temperature=temperature,
    )
    theirs.backward()

    loss, ours = learner_step(
        models, tmp_path, DIVERGENCES[beta], temperature=temperature, batch_tokens=batch_tokens
    )
    assert loss == pytest.approx(theirs.item(), rel=1e-6)
    assert loss > 0.05
    same_gradient(ours, gradient(policy))


@pytest.mark.parametrize("beta", DIVERGENCES)
def test_distillation_is_that_of_trls_stable_trainer(
    models: dict[str, Path], tmp_path: Path, beta: float
) -> None:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    policy, teacher = load(models["policy"]), load(models["teacher"])
    tokens_BT, mask_BT, labels_BT = padded()

    def hidden(model: Any) -> Tensor:
        states = model.model(input_ids=tokens_BT, attention_mask=mask_BT).last_hidden_state
        return states[:, :-1]  # type: ignore[no-any-return]

    with torch.no_grad():
        held = hidden(teacher)
    theirs, _, num_tokens = _chunked_divergence_loss(
        hidden(policy),
        held,
        policy.lm_head.weight,
        teacher.lm_head.weight,
        labels_BT[:, 1:] != MASKED,
        beta,
    )
    theirs.backward()
    assert int(num_tokens) == NUM_TOKENS

    loss, ours = learner_step(models, tmp_path, DIVERGENCES[beta])
    assert loss == pytest.approx(theirs.item(), rel=1e-6)
    same_gradient(ours, gradient(policy))
