"""Several turns of an engine against the learner: every sampled token's logprob, after every sync.

The model is random, so a parser that takes each turn for a call makes the turns; tokens, template, engine
and learner are real.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from align.algorithms.rows import Batch, Row
from align.config.campaign import (
    AnchorsConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
    SamplingConfig,
)
from align.learner.learner import TOLERANCE, Learner
from align.learner.references import References
from align.retention.methods import RetentionMethods
from rollouts.collect import collect
from rollouts.engines.transformers import TransformersConfig
from rollouts.episodes.environment import EpisodeRules, Schema, ToolCall
from rollouts.episodes.parsers import PARSERS, ParsedTurn, TurnTokens
from rollouts.types import Prompt, Sampling
from tests.unit.acting import LocalEnvironments, encoder

SYNCS, PROMPTS, GROUP, TURNS = 3, 3, 3, 3
RULES = EpisodeRules(turns=TURNS, context=1024, parser="always")


class AlwaysCalls:
    """A parser that takes every turn for a call."""

    def parse(self, turn: TurnTokens, schemas: Sequence[Schema]) -> ParsedTurn:
        return ParsedTurn("", (ToolCall("tell", {"text": turn.text}),))


def save_model(folder: Path) -> Path:
    """Write a random Llama of the byte-level tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(encoder().tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=1, num_key_value_heads=1, head_dim=32, max_position_embeddings=1024,
        tie_word_embeddings=True, initializer_range=0.3, eos_token_id=encoder().eos_ids[0],
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    encoder().tokenizer.save_pretrained(folder)
    return folder


def test_turns_after_syncs_agree_with_the_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARSERS, "always", lambda encoder: AlwaysCalls())
    model = save_model(tmp_path / "model")
    engine = TransformersConfig(model=str(model), device="cpu", max_model_len=1024).start()
    learner = Learner(
        model,
        PolicyConfig(model="tiny"),
        folder_of=lambda _: model,
        scratch=tmp_path,
        tolerance=TOLERANCE["float32"],
    )
    spec = RoundSettings(
        anchors=AnchorsConfig(new=(), past=(), general=()),
        optimizer=OptimizerConfig(lr=1e-3),
        sampling=SamplingConfig(temperature=0.8),
    )
    references = References(base="base", parent="base")
    training = learner.begin(
        spec, references, num_steps=SYNCS, seed=0, penalties=RetentionMethods()
    )
    environments = LocalEnvironments({"tell": lambda text: text[::-1]}, limits=RULES)
    # A third of all tokens ends a turn.
    ends = tuple(range(3, len(encoder().tokenizer), 3))
    sampling = Sampling(max_tokens=40, temperature=0.8, stop_token_ids=ends)
    prompts = [
        Prompt(id=str(i), messages=({"role": "user", "content": f"go {i}"},))
        for i in range(PROMPTS)
    ]
    for sync in range(SYNCS):
        engine.sync(learner.weights(f"v/{sync}"))
        groups = collect(
            engine, prompts, [GROUP] * PROMPTS, encoder(), sampling, sync, f"v/{sync}",
            environments=environments,
        )  # fmt: skip
        rows = [
            Row(
                prompt_ids=group.prompt_ids,
                completion_ids=completion.token_ids,
                observed=completion.observed,
                sampler_logprobs_T=completion.logprobs_T,
                advantage=(-1.0) ** number,
                source="new",
                policy=f"v/{sync}",
            )
            for group in groups
            for number, completion in enumerate(group.completions_G)
        ]
        turns = [c.episode.turns for g in groups for c in g.completions_G if c.episode is not None]
        assert len(turns) == len(rows) and max(turns) == TURNS
        assert {s.version for g in groups for c in g.completions_G for s in c.weight_versions} == {
            f"v/{sync}"
        }
        metrics = training.update(Batch(rows=tuple(rows)))
        assert 0.0 < metrics["parity/max_abs_diff"] <= TOLERANCE["float32"]
