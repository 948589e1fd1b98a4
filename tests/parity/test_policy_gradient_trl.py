"""The other policy gradients against TRL's own trainers: same tensors in, same loss and gradient out.

Ratios lie on both sides of every clip. See `tests.parity.test_grpo_trl` for how tensors are handed over.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.algorithms import GRPO, PolicyGradient, PolicyInputs
from align.algorithms.importance import ImportanceConfig, importance_weights
from align.algorithms.micro_batch import MicroBatch
from align.algorithms.policy_gradient.advantages import leave_one_out
from align.algorithms.policy_gradient.cispo import CISPO
from align.algorithms.policy_gradient.dapo import DAPO, overlong_punishment
from align.algorithms.policy_gradient.dr_grpo import DrGRPO
from align.algorithms.policy_gradient.gspo import GSPO
from align.algorithms.policy_gradient.rloo import RLOO
from align.algorithms.rows import Batch
from align.data.demo import BASE_MODEL
from align.learner.batching import to_tensors
from align.learner.model.policy import completion_outputs
from tests.parity.test_grpo_trl import (
    NUM_TOKENS,
    ROWS,
    gradient,
    make_trainer,
    same_gradient,
    spread,
    trl_inputs,
)
from tests.unit.tiny import save_model

GAPS_N = torch.linspace(-0.6, 0.6, NUM_TOKENS)
"""Nats by which the weights that sampled a token preferred it. Summed over a completion, -1.1 to 1.1."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "base", 0)


def make_rloo_trainer(model: Path, tmp_path: Path, reward: Any, **options: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import RLOOConfig, RLOOTrainer

    config = RLOOConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False, per_device_train_batch_size=8, num_generations=4,
        max_completion_length=4, temperature=1.0, beta=0.0, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = RLOOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["rev", "sort"]}),
            processing_class=PreTrainedTokenizerFast.from_pretrained(BASE_MODEL),
        )
    trainer.model.eval()
    return trainer


def own_logprobs(trainer: Any) -> tuple[MicroBatch, Tensor]:
    micro = to_tensors(ROWS)
    outputs = completion_outputs(trainer.model, micro, dtype=torch.float32, temperature=1.0)
    return micro, outputs.logprobs_N


def compare(
    trainer: Any,
    algorithm: PolicyGradient,
    inputs: dict[str, Tensor],
    start_N: Tensor,
    weights_N: Tensor | None = None,
) -> float:
    """Assert the same loss and gradient; returns our clip share."""
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    their_gradient = gradient(trainer.model)
    trainer.model.zero_grad()

    micro, logprobs_N = own_logprobs(trainer)
    loss, metrics = algorithm.loss(
        PolicyInputs(
            logprobs_N=logprobs_N,
            start_logprobs_N=start_N,
            advantages_N=micro.advantages_N,
            rows_N=micro.rows_N,
            weights_N=weights_N,
        ),
        Batch(rows=ROWS).totals,
    )
    loss.backward()
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-6)
    same_gradient(gradient(trainer.model), their_gradient)
    return float(metrics["loss/clip_share"])


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (
            DrGRPO(clip_low=0.1, clip_high=0.4).for_round(4),
            {"loss_type": "dr_grpo", "epsilon": 0.1, "epsilon_high": 0.4},
        ),
        (DAPO(), {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}),
        (
            GSPO(clip_low=0.25, clip_high=0.2),
            {
                "loss_type": "grpo",
                "importance_sampling_level": "sequence",
                "epsilon": 0.25,
                "epsilon_high": 0.2,
            },
        ),
        (CISPO(cap=1.3), {"loss_type": "cispo", "epsilon_high": 1.3}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_off_policy_loss_and_gradient_are_trls(
    model: Path, tmp_path: Path, algorithm: PolicyGradient, options: dict[str, Any]
) -> None:
    trainer = make_trainer(model, tmp_path, beta=0.0, **options)
    _, own_N = own_logprobs(trainer)
    start_N = own_N.detach() + GAPS_N
    inputs = trl_inputs(ROWS) | {"old_per_token_logps": spread(start_N, ROWS)}
    assert 0.0 < compare(trainer, algorithm, inputs, start_N) < 1.0


@pytest.mark.parametrize("size", [1e-4, 1e-3])
def test_gspo_at_the_papers_clips_is_trls(model: Path, tmp_path: Path, size: float) -> None:
    """Two closer policies: inside the paper's narrow clips, and around them."""
    trainer = make_trainer(
        model, tmp_path, beta=0.0, loss_type="grpo", importance_sampling_level="sequence",
        epsilon=3e-4, epsilon_high=4e-4,
    )  # fmt: skip
    _, own_N = own_logprobs(trainer)
    start_N = own_N.detach() + size * GAPS_N
    inputs = trl_inputs(ROWS) | {"old_per_token_logps": spread(start_N, ROWS)}
    share = compare(trainer, GSPO(), inputs, start_N)
    assert (share == 0.0) if size < 3e-4 else (0.0 < share < 1.0)


def test_rloo_is_trls(model: Path, tmp_path: Path) -> None:
    trainer = make_rloo_trainer(
        model,
        tmp_path,
        lambda completions, **_: [0.0] * len(completions),
        epsilon=0.7,
        epsilon_high=0.4,
    )
    _, own_N = own_logprobs(trainer)
    start_N = own_N.detach() + GAPS_N
    inputs = trl_inputs(ROWS) | {"old_logps": spread(start_N, ROWS).sum(1)}
    assert 0.0 < compare(trainer, RLOO(clip_low=0.7, clip_high=0.4), inputs, start_N) < 1.0


def test_leave_one_out_is_trls(model: Path, tmp_path: Path) -> None:
    rewards = [1.0, 0.0, 0.25, 0.5, 2.0, None, -1.0, 0.0]
    trainer = make_rloo_trainer(model, tmp_path, lambda completions, **_: rewards)
    trainer.model.train()
    prompts = [{"prompt": "rev"}] * 4 + [{"prompt": "sort"}] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = trainer._generate_and_score_completions(prompts)["advantages"]
    ours = [a for group in leave_one_out([rewards[:4], rewards[4:]]) for a in group]
    assert [a is None for a in ours] == [r is None for r in rewards]
    torch.testing.assert_close(torch.tensor([a or 0.0 for a in ours]), theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("limit", ["truncate", "mask"])
@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_importance_weights_are_trls(
    model: Path, tmp_path: Path, level: Any, limit: Any, name: str
) -> None:
    """TRL is told that vLLM sampled these tokens with these logprobs, weighs them and takes its loss.
    Its GSPO shows that a token's weight enters as the mean over its completion."""
    cap = 1.6
    bounds = {"vllm_importance_sampling_clip_min": 1 / cap} if limit == "mask" else {}
    kind: dict[str, Any] = {
        "grpo": {"loss_type": "dapo"},
        "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    }[name]
    trainer = make_trainer(
        model, tmp_path, beta=0.0, vllm_importance_sampling_mode=f"{level}_{limit}",
        vllm_importance_sampling_clip_max=cap, **bounds, **kind,
    )  # fmt: skip
    trainer.use_vllm = True
    micro, own_N = own_logprobs(trainer)
    start_N = own_N.detach()
    sampler_N = start_N + GAPS_N.roll(1)
    counts = [len(r.completion_ids) for r in ROWS]
    trainer._generate = lambda prompts: (
        [list(r.prompt_ids) for r in ROWS], [list(r.completion_ids) for r in ROWS], None,
        [""] * len(ROWS), [part.tolist() for part in sampler_N.split(counts)], {}, None, None,
    )  # fmt: skip
    inputs = trainer._generate_and_score_completions([{"prompt": "rev"}] * len(ROWS))
    inputs["advantages"] = torch.tensor([r.advantage for r in ROWS])

    config = ImportanceConfig(level=level, limit=limit, cap=cap)
    weights_N = importance_weights(start_N - sampler_N, micro.rows_N, config)
    assert weights_N.unique().numel() > 1, "the cap acts on some only"
    theirs_BT = inputs["importance_sampling_ratio"].expand(inputs["completion_mask"].shape)
    torch.testing.assert_close(spread(weights_N, ROWS), theirs_BT * inputs["completion_mask"])
    compare(trainer, GRPO() if name == "grpo" else GSPO(), inputs, start_N, weights_N)


def test_overlong_punishment_is_trls() -> None:
    from trl.rewards import get_soft_overlong_punishment

    theirs = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    lengths = [0, 1, 79, 80, 81, 93, 99, 100, 101, 500]
    assert [overlong_punishment(length, 100, 20) for length in lengths] == pytest.approx(
        theirs([[0] * length for length in lengths])
    )
