"""Our GRPO against TRL's own trainer, on the same model and the same tensors.

TRL pads prompts on the left and completions on the right and masks; we keep flat tokens. Everything
after that has to be the same number: loss, gradient, advantages, KL. TRL's `_compute_loss` runs as
it is, in eval mode, where no gradient accumulation scales it.
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

from align.algorithms import GRPO, PolicyInputs
from align.algorithms.policy_gradient.advantages import Scale, group_relative
from align.algorithms.rows import Batch, Row, Totals
from align.config.campaign import AnchorConfig, AnchorsConfig, PolicyConfig, RoundSettings
from align.data.demo import BASE_MODEL
from align.learner.batching import to_tensors
from align.learner.learner import Learner
from align.learner.model.policy import completion_outputs
from align.learner.references import References
from align.retention.methods import RetentionMethods
from rollouts.types import TokenSpan
from tests.unit.tiny import row, save_model

ROWS = (
    row((1, 2, 3), (4, 5), 1.3),
    row((7,), (8, 9, 10), -0.7),
    row((3, 4), (5, 6, 7, 8), 0.9),
    row((2, 2, 2, 2), (9,), -2.1),
)
NUM_TOKENS = 10
BETA = 0.3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"base": save_model(root / "base", 0), "other": save_model(root / "other", 1)}


def make_trainer(model: Path, tmp_path: Path, reward: Any = None, **options: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False, per_device_train_batch_size=8, num_generations=4,
        max_completion_length=4, temperature=1.0, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            reward_funcs=reward or (lambda completions, **_: [0.0] * len(completions)),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["rev", "sort"]}),
            processing_class=PreTrainedTokenizerFast.from_pretrained(BASE_MODEL),
        )
    trainer.model.eval()
    return trainer


def trl_inputs(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Rows in TRL's layout: prompts padded on the left, completions on the right."""
    before = max(len(r.prompt_ids) for r in rows)
    after = max(len(r.completion_ids) for r in rows)

    def padded(ids: Sequence[int], width: int, *, left: bool) -> tuple[list[int], list[int]]:
        gap = width - len(ids)
        filled, mask = [0] * gap, [0] * gap
        ones = [1] * len(ids)
        return ([*filled, *ids], [*mask, *ones]) if left else ([*ids, *filled], [*ones, *mask])

    prompts = [padded(r.prompt_ids, before, left=True) for r in rows]
    completions = [padded(r.completion_ids, after, left=False) for r in rows]
    return {
        "prompt_ids": torch.tensor([ids for ids, _ in prompts]),
        "prompt_mask": torch.tensor([mask for _, mask in prompts]),
        "completion_ids": torch.tensor([ids for ids, _ in completions]),
        "completion_mask": torch.tensor([mask for _, mask in completions]),
        "advantages": torch.tensor([r.advantage or 0.0 for r in rows]),
        "num_items_in_batch": torch.tensor(sum(len(r.completion_ids) for r in rows)),
    }


def spread(flat_N: Tensor, rows: Sequence[Row]) -> Tensor:
    """Flat completion tokens in TRL's ``B, T`` with zeros where it masks."""
    out_BT = torch.zeros(len(rows), max(len(r.completion_ids) for r in rows))
    start = 0
    for b, r in enumerate(rows):
        out_BT[b, : len(r.completion_ids)] = flat_N[start : start + len(r.completion_ids)]
        start += len(r.completion_ids)
    return out_BT


def gradient(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same_gradient(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(g.abs().max().item() for g in theirs.values())
    assert largest > 1e-2, "nothing to compare"
    for name in theirs:
        difference = (ours[name] - theirs[name]).abs().max().item()
        assert difference < 1e-5 * max(1.0, largest), f"{name}: {difference:.3g} of {largest:.3g}"


def learner_step(
    models: dict[str, Path],
    tmp_path: Path,
    anchors: AnchorsConfig,
    batch_tokens: int,
    algorithm: GRPO | None = None,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and gradient of one real update, before the optimizer moves anything."""
    spec = RoundSettings(anchors=anchors, algorithm=algorithm or GRPO())
    spec = spec.model_copy(
        update={"optimizer": spec.optimizer.model_copy(update={"micro_batch_tokens": batch_tokens})}
    )
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny"),
        folder_of=lambda snapshot: models[snapshot],
        scratch=tmp_path,
        tolerance=1e9,
    )
    training = learner.begin(
        spec,
        References(base="other", parent="base"),
        num_steps=5,
        seed=0,
        penalties=RetentionMethods(),
    )
    training._optimize = dict  # type: ignore[method-assign]
    metrics = training.update(Batch(rows=ROWS))
    return metrics, gradient(learner.policy.model)


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo"])
@pytest.mark.parametrize("batch_tokens", [10_000, 8])
def test_a_learner_step_is_trls_token_mean(
    models: dict[str, Path], tmp_path: Path, loss_type: str, batch_tokens: int
) -> None:
    trainer = make_trainer(models["base"], tmp_path, loss_type=loss_type, beta=0.0)
    theirs = trainer._compute_loss(trainer.model, trl_inputs(ROWS))
    theirs.backward()

    metrics, ours = learner_step(
        models, tmp_path, AnchorsConfig(new=(), past=(), general=()), batch_tokens
    )
    assert metrics["loss/policy"] == pytest.approx(theirs.item(), abs=1e-6)
    assert abs(theirs.item()) > 0.01
    same_gradient(ours, gradient(trainer.model))


@pytest.mark.parametrize("batch_tokens", [10_000, 8])
def test_the_mean_over_completions_is_the_papers_and_trls_grpo(
    models: dict[str, Path], tmp_path: Path, batch_tokens: int
) -> None:
    trainer = make_trainer(models["base"], tmp_path, loss_type="grpo", beta=0.0)
    theirs = trainer._compute_loss(trainer.model, trl_inputs(ROWS))
    theirs.backward()

    none = AnchorsConfig(new=(), past=(), general=())
    metrics, ours = learner_step(models, tmp_path, none, batch_tokens, GRPO(mean="completions"))
    other, _ = learner_step(models, tmp_path, none, batch_tokens)
    assert metrics["loss/policy"] == pytest.approx(theirs.item(), abs=1e-6)
    assert abs(metrics["loss/policy"] - other["loss/policy"]) > 1e-3
    same_gradient(ours, gradient(trainer.model))


def test_clipping_off_policy_is_trls(models: dict[str, Path], tmp_path: Path) -> None:
    """Another model sampled, so that ratios lie on both sides of an uneven clip range."""
    trainer = make_trainer(
        models["base"], tmp_path, loss_type="dapo", beta=0.0, epsilon=0.1, epsilon_high=0.4
    )
    micro = to_tensors(ROWS)

    def logprobs(model: Any) -> Tensor:
        outputs = completion_outputs(model, micro, dtype=torch.float32, temperature=1.0)
        return outputs.logprobs_N

    own_N = logprobs(trainer.model)
    sampler_N = own_N.detach() + torch.linspace(-0.6, 0.6, NUM_TOKENS)
    inputs = trl_inputs(ROWS) | {"old_per_token_logps": spread(sampler_N, ROWS)}
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    their_gradient = gradient(trainer.model)
    trainer.model.zero_grad()

    loss, metrics = GRPO(clip_low=0.1, clip_high=0.4).loss(
        PolicyInputs(
            logprobs_N=own_N,
            start_logprobs_N=sampler_N,
            advantages_N=torch.tensor([r.advantage or 0.0 for r in ROWS])[micro.rows_N],
            rows_N=micro.rows_N,
        ),
        Totals(tokens=NUM_TOKENS, sequences=len(ROWS), units=len(ROWS)),
    )
    loss.backward()
    assert 0.0 < float(metrics["loss/clip_share"]) < 1.0
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-6)
    same_gradient(gradient(trainer.model), their_gradient)


@pytest.mark.parametrize(("corrected", "estimator"), [(False, "k3"), (True, "k2")])
def test_kl_to_an_anchor_is_trls_kl_to_its_reference(
    models: dict[str, Path], tmp_path: Path, corrected: bool, estimator: Any
) -> None:
    """TRL reports k3, as we do. It descends k3 itself, whose expected gradient is the forward KL's,
    or by default k3 times the importance ratio, and that gradient is our k2's."""
    from transformers import AutoModelForCausalLM

    trainer = make_trainer(
        models["base"], tmp_path, loss_type="dapo", beta=BETA, use_bias_correction_kl=corrected
    )
    reference = AutoModelForCausalLM.from_pretrained(models["other"])
    micro = to_tensors(ROWS)
    with torch.no_grad():
        outputs = completion_outputs(reference, micro, dtype=torch.float32, temperature=1.0)
        held_N = outputs.logprobs_N
    inputs = trl_inputs(ROWS) | {"ref_per_token_logps": spread(held_N, ROWS)}
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    (their_kl,) = trainer._metrics["eval"]["kl"]

    anchor = AnchorConfig(to="base", beta=BETA, estimator=estimator)
    metrics, ours = learner_step(
        models, tmp_path, AnchorsConfig(new=(anchor,), past=(), general=()), 10_000
    )
    assert their_kl > 0.1
    # exp(-r) turns the rounding of log-probabilities, two of up to 16 nats with an ulp of 1e-6, into as
    # large a relative difference.
    assert metrics["kl/new/base"] == pytest.approx(their_kl, rel=3e-6)
    assert metrics["loss/policy"] + BETA * metrics["kl/new/base"] == pytest.approx(
        theirs.item(), rel=3e-6
    )
    same_gradient(ours, gradient(trainer.model))


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_are_trls(models: dict[str, Path], tmp_path: Path, scale: Scale) -> None:
    """TRL samples, scores with these rewards and normalises; ``none`` is Dr. GRPO's advantage."""
    rewards = [1.0, 0.0, 0.25, 0.5, 2.0, None, -1.0, 0.0]
    trainer = make_trainer(
        models["base"], tmp_path, lambda completions, **_: rewards, scale_rewards=scale, beta=0.0
    )
    trainer.model.train()
    prompts = [{"prompt": "rev"}] * 4 + [{"prompt": "sort"}] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = trainer._generate_and_score_completions(prompts)["advantages"]
    ours = [a for group in group_relative([rewards[:4], rewards[4:]], scale) for a in group]
    assert [a is None for a in ours] == [r is None for r in rewards]
    torch.testing.assert_close(torch.tensor([a or 0.0 for a in ours]), theirs, atol=1e-6, rtol=1e-6)


def test_a_group_of_equal_rewards_has_no_advantage_in_either(
    models: dict[str, Path], tmp_path: Path
) -> None:
    rewards = [0.1] * 8
    trainer = make_trainer(models["base"], tmp_path, lambda completions, **_: rewards, beta=0.0)
    trainer.model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = trainer._generate_and_score_completions([{"prompt": "rev"}] * 8)["advantages"]
    assert theirs.abs().max().item() < 1e-3
    assert group_relative([rewards[:4]], "group") == [[0.0] * 4]


def test_a_masked_batch_has_trls_loss(models: dict[str, Path], tmp_path: Path) -> None:
    """Episodes: TRL masks what tools returned (``tool_mask``), and so do spans of observed tokens."""
    observed = ((), (TokenSpan(1, 2),), (TokenSpan(1, 3),), ())
    rows = [replace(r, observed=spans) for r, spans in zip(ROWS, observed, strict=True)]
    trainer = make_trainer(models["base"], tmp_path, beta=0.0, loss_type="dapo")
    inputs = trl_inputs(rows)
    mask_BT = torch.ones_like(inputs["completion_mask"])
    for b, spans in enumerate(observed):
        for span in spans:
            mask_BT[b, span.start : span.end] = 0
    sampled = torch.tensor(NUM_TOKENS - 3)
    inputs |= {"tool_mask": mask_BT, "num_items_in_batch": sampled}
    micro = to_tensors(rows)
    outputs = completion_outputs(trainer.model, micro, dtype=torch.float32, temperature=1.0)
    totals = Batch(rows=tuple(rows)).totals
    assert totals.tokens == sampled.item()
    for algorithm, loss_type in ((GRPO(), "dapo"), (GRPO(mean="completions"), "grpo")):
        trainer.loss_type = loss_type
        trainer.model.zero_grad()
        theirs = trainer._compute_loss(trainer.model, inputs)
        theirs.backward()
        their_gradient = gradient(trainer.model)
        trainer.model.zero_grad()
        loss, _ = algorithm.objective(micro, outputs, totals)
        loss.backward(retain_graph=True)
        assert loss.item() == pytest.approx(theirs.item(), abs=1e-6)
        same_gradient(gradient(trainer.model), their_gradient)
