"""Parity of engine and learner: what an engine says it sampled from is what the learner computes.

Each case goes the way of a round: sync, sample, update, five times over. The update compares every token's
two logprobs, at the temperature it was sampled at, before it moves the weights; the learner raises where
they differ by more than its tolerance.
"""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile
from typing import Any

from align.algorithms.rows import Batch, Row
from align.config.campaign import (
    AnchorsConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
    SamplingConfig,
)
from align.learner.learner import TOLERANCE, Learner
from align.learner.references import References
from align.learner.training import Metrics
from align.retention.methods import RetentionMethods
from rollouts.engines.protocol import RolloutEngine, SampleRequest
from rollouts.types import Sampling
from tests.unit.model_kinds import save_kind
from tests.unit.tiny import save_model

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


def save_models(root: Path, tokenizer: Path) -> dict[str, Path]:
    """Write the model of every engine, with the tokenizer of another folder."""
    folders = {name: save_model(root / name, tied=name == "tied") for name in ("tied", "untied")}
    folders["experts"] = save_kind(root / "experts", "qwen3_moe", vocab_size=64)
    folders["neox"] = save_kind(root / "neox", "gpt_neox", vocab_size=64)
    for folder in folders.values():
        for file in tokenizer.glob("tokenizer*.json"):
            copyfile(file, folder / file.name)
    return {**folders, "adapters": folders["tied"]}


def sampled(engine: RolloutEngine, version: str, temperature: float) -> list[Row]:
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


def check_parity(
    engine: RolloutEngine, model: Path, lora: LoraConfig | None, temperature: float, scratch: Path
) -> None:
    """Take an engine and a learner through a few updates, and compare them after each."""
    learner = Learner(
        model,
        PolicyConfig(model="tiny", lora=lora),
        folder_of=lambda _: model,
        scratch=scratch,
        tolerance=TOLERANCE["float32"],
    )
    spec = RoundSettings(
        anchors=AnchorsConfig(new=(), past=(), general=()),
        optimizer=OptimizerConfig(lr=3e-3),
        sampling=SamplingConfig(temperature=temperature),
    )
    references = References(base="base", parent="base")
    training = learner.begin(
        spec, references, num_steps=SYNCS + 1, seed=0, penalties=RetentionMethods()
    )
    steps: list[Metrics] = []
    for sync in range(SYNCS + 1):
        version = f"{scratch.name}/{sync}"
        engine.sync(learner.weights(version))
        rows = sampled(engine, version, temperature)
        before = learner.completion_logprobs(rows)
        steps.append(training.update(Batch(rows=tuple(rows))))
        moved = [
            abs(a - b)
            for olds, news in zip(before, learner.completion_logprobs(rows), strict=True)
            for a, b in zip(olds, news, strict=True)
        ]
        assert max(moved) > 100 * TOLERANCE["float32"], "a stale engine would not be noticed"
    gaps = [step["parity/max_abs_diff"] for step in steps]
    assert 0.0 < max(gaps) <= TOLERANCE["float32"]
