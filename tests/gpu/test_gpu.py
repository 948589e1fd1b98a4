"""What only a GPU can show: the learner computes there what it computes on a CPU, a vLLM on the same card
samples from the learner's weights, and a campaign's round goes through.

    pytest -m gpu tests/gpu

One card is enough: engine and learner share it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align.algorithms import algorithm_from
from align.algorithms.rows import Batch, Row
from align.config.campaign import (
    AnchorConfig,
    AnchorsConfig,
    CampaignConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
)
from align.learner.learner import TOLERANCE, Learner
from align.learner.references import References
from align.learner.training import Training
from align.retention.methods import RetentionMethods
from benchmarks.common import write_model
from rollouts.engines.protocol import SampleRequest
from rollouts.types import Sampling
from tests.patience import patient
from tests.unit.campaigns import Watcher, raw_campaign, rounds

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SHARE = 0.3
"""Share of the card's memory for an engine; the learner uses the same card."""
START_S = patient(600.0)
"""An engine compiles its model when it starts."""
PAIRS = tuple(
    Row(
        prompt_ids=(3, 4, 5 + pair), completion_ids=completion,
        advantage=advantage, source="new", unit=pair,
    )
    for pair in range(2)
    for completion, advantage in (((6, 7, 8, 9), 1.0), ((10 + pair, 11), -1.0))
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "3M", "3M")


def make(model: Path, algorithm: Any, *, lr: float = 1e-4, **policy: Any) -> Training:
    learner = Learner(
        model,
        PolicyConfig(model=str(model), **policy),
        folder_of=lambda _: model,
        scratch=model,
    )
    anchor = AnchorConfig(to="base", beta=0.1)
    spec = RoundSettings(
        algorithm=algorithm_from(algorithm),
        optimizer=OptimizerConfig(lr=lr),
        anchors=AnchorsConfig(new=(anchor,), past=(), general=()),
    )
    training = learner.begin(
        spec,
        References(base="base", parent="base"),
        num_steps=10,
        seed=0,
        penalties=RetentionMethods(),
    )
    return training


def gradient(training: Training, rows: tuple[Row, ...]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one update, before the optimizer moves anything."""
    training._optimize = dict  # type: ignore[method-assign]
    metrics = training.update(Batch(rows=tuple(training.spec.algorithm.examples(rows))))
    parts = [
        p.grad.flatten().cpu() for p in training.learner.policy.parameters() if p.grad is not None
    ]
    return metrics["loss/policy"], torch.cat(parts)


@pytest.mark.parametrize(
    "algorithm",
    ["grpo", "sft", {"name": "dpo", "pairs": "file"}, {"name": "kto", "ratings": "file"}],
    ids=lambda given: given if isinstance(given, str) else given["name"],
)
def test_a_gradient_is_the_one_of_a_cpu(
    model: Path, monkeypatch: pytest.MonkeyPatch, algorithm: Any
) -> None:
    here = make(model, algorithm)
    assert here.learner.device.type == "cuda"
    loss, found = gradient(here, PAIRS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    there = make(model, algorithm)
    assert there.learner.device.type == "cpu"
    expected_loss, expected = gradient(there, PAIRS)
    assert loss == pytest.approx(expected_loss, abs=1e-4)
    largest = expected.abs().max().item()
    assert largest > 1e-3, "nothing to compare"
    assert (found - expected).abs().max().item() < 1e-3 * largest


def test_the_weights_move_and_come_back_from_a_snapshot(model: Path, tmp_path: Path) -> None:
    training = make(model, "sft", lr=1e-3)
    before = training.learner.completion_logprobs(list(PAIRS))
    for _ in range(3):
        training.update(Batch(rows=PAIRS[::2]))
    after = training.learner.completion_logprobs(list(PAIRS))
    assert sum(after[0]) > sum(before[0]) + 0.1
    training.learner.save(tmp_path / "snapshot")
    training.learner.policy.load(model)
    training.learner.policy.load(tmp_path / "snapshot")
    again = training.learner.completion_logprobs(list(PAIRS))
    assert again[0] == pytest.approx(after[0], abs=1e-5)


def test_engine_and_learner_agree_in_bfloat16_after_every_sync(model: Path) -> None:
    """The update itself compares every sampled token, and fails beyond its tolerance. A learning rate
    of 0.01 moves logprobs by far more, so weights that did not arrive would be noticed."""
    from launch.cluster.cluster import connect
    from rollouts.engines.vllm import VLLMConfig
    from rollouts.pool.pool import EnginePool

    config = VLLMConfig(
        model=str(model), dtype="bfloat16", max_model_len=128, gpu_memory_utilization=SHARE
    )
    with connect(num_engines=1):
        pool = EnginePool(config, start_deadline_s=START_S)
        training = make(model, "grpo", lr=1e-2, dtype="bfloat16")
        request = SampleRequest(
            id="a", prompt_ids=(3, 4, 5), n=8, sampling=Sampling(max_tokens=16), seed=0
        )
        for number in range(3):
            pool.sync(training.learner.weights(f"step/{number}"))
            (result,) = pool.generate([request])
            rows = [
                replace(
                    PAIRS[0],
                    completion_ids=completion.token_ids,
                    sampler_logprobs_T=completion.logprobs_T,
                    advantage=(-1.0) ** index,
                    unit=None,
                    prompt_ids=request.prompt_ids,
                    policy=f"step/{number}",
                )
                for index, completion in enumerate(result.completions)
            ]
            gap = training.update(Batch(rows=tuple(rows)))["parity/max_abs_diff"]
            assert 0.0 < gap <= TOLERANCE["bfloat16"]
        pool.close()


def test_a_round_on_the_demo_ends_with_a_verdict(tmp_path: Path) -> None:
    from align.campaign import run_campaign
    from launch.cluster.engines import engine_starter

    config = CampaignConfig.model_validate(
        raw_campaign(
            tmp_path,
            policy={"model": "demo://digits", "dtype": "bfloat16"},
            rollouts={
                "gpu_memory_utilization": SHARE,
                "max_num_seqs": 64,
                "probe_tolerance": 0.3,
                "start_deadline_s": START_S,
            },
            rounds=rounds({"steps": 3}),
        )
    )
    watcher = Watcher()
    with engine_starter(None, watcher) as start:
        evidence = run_campaign(config, start_engine=start, observer=watcher)
    assert watcher.steps == [("round0", 0), ("round0", 1), ("round0", 2)]
    assert list(watcher.verdicts) == ["round0"]
    assert [record.name for record in evidence.committed()] == ["round0"]
