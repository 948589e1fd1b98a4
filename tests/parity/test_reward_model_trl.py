"""Our reward-model learner against TRL's RewardTrainer, on the same model and the same pairs.

TRL's tokenization, collator and `compute_loss` run as they are. It stacks chosen over rejected answers
and takes means; we split pairs over forward passes by a token budget and add up.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from align.algorithms.preference.reward_model import RewardModel
from align.algorithms.rows import Row
from align.config.campaign import OptimizerConfig, PolicyConfig, RoundSettings
from align.data.demo.tokenizer import build_tokenizer
from align.learner.heads.reward_model import RewardLearner
from rewards.library.reward_model import load_scorer
from tests.unit.tiny import save_model

TOKENIZER = build_tokenizer()
PAIRS = (
    ("1 2 3", " 4 5", " 6"),
    ("7", " 8 9 0 1 2", " 3 4"),
    ("3 4", " 5 6 7 8", " 9 9"),
)
MARGINS = (0.0, 1.5, 0.25)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("models") / "base", 0)
    TOKENIZER.save_pretrained(folder)
    return folder


def learner(base: Path, centring: float, **options: Any) -> RewardLearner:
    spec = RoundSettings(
        algorithm=RewardModel(centring=centring), optimizer=OptimizerConfig(**options)
    )
    return RewardLearner(base, TOKENIZER, PolicyConfig(model="tiny"), spec, num_steps=1, seed=0)


def make_trainer(folder: Path, tmp_path: Path, centring: float | None) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False, center_rewards_coefficient=centring,
    )  # fmt: skip
    columns = dict(zip(("prompt", "chosen", "rejected"), zip(*PAIRS, strict=True), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(folder),
            args=config,
            train_dataset=Dataset.from_dict({k: list(v) for k, v in columns.items()}),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
    trainer.model.eval()
    return trainer


def rows(trained_on: Any, margins: tuple[float, ...]) -> list[Row]:
    """TRL's own token ids as our rows."""
    return [
        Row(
            prompt_ids=tuple(ids[:1]), completion_ids=tuple(ids[1:]), advantage=advantage,
            source="new", unit=unit, margin=margin,
        )
        for unit, (example, margin) in enumerate(zip(trained_on, margins, strict=True))
        for ids, advantage in ((example["chosen_ids"], 1.0), (example["rejected_ids"], -1.0))
    ]  # fmt: skip


@pytest.mark.parametrize("batch_tokens", [10_000, 8])
@pytest.mark.parametrize("margins", [None, MARGINS])
@pytest.mark.parametrize("centring", [None, 0.3])
def test_loss_and_gradient_are_trls(
    base: Path,
    tmp_path: Path,
    centring: float | None,
    margins: tuple[float, ...] | None,
    batch_tokens: int,
) -> None:
    ours = learner(base, centring or 0.0, micro_batch_tokens=batch_tokens, max_grad_norm=1e9)
    ours.save(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    trainer = make_trainer(tmp_path / "model", tmp_path, centring)
    examples = [dict(example) for example in trainer.train_dataset]
    for example, margin in zip(examples, margins or (), strict=False):
        example["margin"] = margin
    theirs = trainer.compute_loss(trainer.model, trainer.data_collator(examples))
    theirs.backward()

    ours._step = dict  # type: ignore[method-assign]
    metrics = ours.update(rows(examples, margins or (0.0,) * len(examples)))
    assert metrics["loss/reward_model"] == pytest.approx(theirs.item(), rel=1e-6)
    for name, own in (("accuracy", "pairs/accuracy"), ("margin", "pairs/margin"),
                      ("mean_reward", "reward/mean")):  # fmt: skip
        assert metrics[own] == pytest.approx(
            trainer._metrics["eval"][name][0], rel=1e-6, abs=1e-6
        ), name
    their_gradient = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    our_gradient = {n: p.grad for n, p in ours.model.named_parameters() if p.grad is not None}
    assert our_gradient.keys() == their_gradient.keys()
    largest = max(g.abs().max().item() for g in their_gradient.values())
    assert largest > 1e-2, "nothing to compare"
    for name, gradient in their_gradient.items():
        assert (our_gradient[name] - gradient).abs().max().item() < 1e-5 * max(1.0, largest), name


def test_a_text_is_read_as_trl_reads_it(base: Path, tmp_path: Path) -> None:
    model = learner(base, 0.0)
    model.save(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    trained_on = make_trainer(tmp_path / "model", tmp_path, None).train_dataset
    scorer = load_scorer(tmp_path / "model")
    for (prompt, chosen, rejected), example in zip(PAIRS, trained_on, strict=True):
        assert scorer.encode(prompt, chosen) == tuple(example["chosen_ids"])
        assert scorer.encode(prompt, rejected) == tuple(example["rejected_ids"])
