"""vLLM against the learner: what an engine says it sampled from is what the learner computes.

Each case goes the way of a round: sync, sample, update, five times over. The update compares every token's
two logprobs, at the temperature it was sampled at, before it moves the weights; the learner raises where
they differ by more than its tolerance. The engines of all cases start at once and are shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest

from align.algorithms.rows import Batch, Row
from align.config.campaign import (
    AnchorsConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
    SamplingConfig,
)
from align.learner.learner import TOLERANCE, Learner, Metrics
from align.learner.references import References
from align.retention.methods import RetentionMethods
from rollouts.engines.protocol import SampleRequest
from rollouts.engines.vllm import VLLMConfig
from rollouts.pool.pool import EnginePool
from rollouts.types import Sampling
from tests.unit.model_kinds import save_kind
from tests.unit.tiny import save_model

pytestmark = pytest.mark.usefixtures("ray_cluster")

SYNCS = 5
RANK = 4
ENGINES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {},
    "experts": {},
    "neox": {},
    "adapters": {"lora_rank": RANK},
}
"""Engines by name: a model each, or adapters over the tied one.

Experts lie stacked in the learner and packed in the engine; vLLM serves GPT-NeoX through transformers.
"""
CASES: dict[str, tuple[str, LoraConfig | None]] = {
    "tied": ("tied", None),
    "untied": ("untied", None),
    "experts": ("experts", None),
    "experts_lora_merged": ("experts", LoraConfig(rank=RANK, serve="merged")),
    "neox": ("neox", None),
    "lora": ("adapters", LoraConfig(rank=RANK)),
    "rslora": ("adapters", LoraConfig(rank=RANK, rslora=True)),
    "lora_merged": ("tied", LoraConfig(rank=RANK, serve="merged")),
    # vLLM fuses a layer that changes with some that do not.
    "lora_merged_in_part": (
        "tied",
        LoraConfig(rank=RANK, serve="merged", targets=("q_proj", "up_proj")),
    ),
    "dora_merged": ("tied", LoraConfig(rank=RANK, serve="merged", dora=True)),
    "dora_merged_untied": ("untied", LoraConfig(rank=RANK, serve="merged", dora=True)),
}
"""An engine, and how the policy over its model learns."""


@pytest.fixture(scope="module")
def models(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    folders = {name: save_model(root / name, tied=name == "tied") for name in ("tied", "untied")}
    folders["experts"] = save_kind(root / "experts", "qwen3_moe", vocab_size=64)
    folders["neox"] = save_kind(root / "neox", "gpt_neox", vocab_size=64)
    for folder in folders.values():
        for file in tiny_llama.glob("tokenizer*.json"):
            copyfile(file, folder / file.name)
    return {**folders, "adapters": folders["tied"]}


@pytest.fixture(scope="module")
def engines(ray_cluster: None, models: dict[str, Path]) -> Iterator[dict[str, EnginePool]]:
    pools = {
        name: EnginePool(
            VLLMConfig(
                model=str(models[name]), max_num_seqs=32, kv_cache_mb=64, device="cpu", **options
            ),
            bundle={"CPU": 0.5},
        )
        for name, options in ENGINES.items()
    }
    yield pools
    for pool in pools.values():
        pool.close()


def sampled(engine: EnginePool, version: str, temperature: float) -> list[Row]:
    """Four completions of each of four prompts; every other one is to be unlearnt."""
    requests = [
        SampleRequest(
            id=f"{version}.{i}",
            prompt_ids=(3 + i, 4, 5 + i),
            n=4,
            sampling=Sampling(max_tokens=16, temperature=temperature),
            seed=i,
        )
        for i in range(4)
    ]
    found = []
    for request, result in zip(requests, engine.generate(requests), strict=True):
        for i, completion in enumerate(result.completions):
            assert {span.version for span in completion.weight_versions} == {version}
            found.append(
                Row(
                    prompt_ids=request.prompt_ids,
                    completion_ids=completion.token_ids,
                    sampler_logprobs_T=completion.logprobs_T,
                    advantage=(-1.0) ** i,
                    source="new",
                    policy=version,
                )
            )
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_engine_and_learner_agree_after_every_sync(
    engines: dict[str, EnginePool],
    models: dict[str, Path],
    tmp_path: Path,
    case: str,
    temperature: float,
) -> None:
    name, lora = CASES[case]
    engine, model = engines[name], models[name]
    learner = Learner(
        model,
        PolicyConfig(model="tiny", lora=lora),
        folder_of=lambda _: model,
        scratch=tmp_path,
        tolerance=TOLERANCE["float32"],
    )
    spec = RoundSettings(
        anchors=AnchorsConfig(new=(), past=(), general=()),
        optimizer=OptimizerConfig(lr=3e-3),
        sampling=SamplingConfig(temperature=temperature),
    )
    learner.begin(
        spec,
        References(base="base", parent="base"),
        num_steps=SYNCS + 1,
        seed=0,
        penalties=RetentionMethods(),
    )
    steps: list[Metrics] = []
    for sync in range(SYNCS + 1):
        version = f"{case}/{temperature}/{sync}"
        engine.sync(learner.weights(version))
        rows = sampled(engine, version, temperature)
        before = learner.completion_logprobs(rows)
        steps.append(learner.update(Batch(rows=tuple(rows))))
        moved = [
            abs(a - b)
            for olds, news in zip(before, learner.completion_logprobs(rows), strict=True)
            for a, b in zip(olds, news, strict=True)
        ]
        assert max(moved) > 100 * TOLERANCE["float32"], "a stale engine would not be noticed"
    gaps = [step["parity/max_abs_diff"] for step in steps]
    assert 0.0 < max(gaps) <= TOLERANCE["float32"]
