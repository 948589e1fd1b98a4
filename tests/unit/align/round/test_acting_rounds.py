"""Rounds whose policies act: each prompt in the environment of its own round, replayed ones too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.gate.evidence import stored_evidence
from align.gate.measurement.results import ItemResults
from align.round.rollout_table import find_table, load_records
from tests.unit.acting import encoder
from tests.unit.campaigns import Starter, Watcher

WORLDS = '''
class First:
    """An environment that rewards every other episode."""

    def __init__(self) -> None:
        self.episodes, self.world = 0, type(self).__name__.lower()

    def reset(self, **row) -> None:
        self.episodes += 1
        self.topic = row["topic"]

    def add(self, a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: one number.
            b: the other.
        """
        return a + b

    def get_reward(self) -> float:
        return float(self.episodes % 2)


class Second(First):
    """The same under another name."""
'''


def save_model(folder: Path) -> Path:
    """A random model that reads bytes and has a template for tools."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = encoder().tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=1, num_key_value_heads=1, head_dim=32, max_position_embeddings=1024,
        tie_word_embeddings=True, initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_prompts(path: Path, count: int) -> str:
    rows = [
        {"prompt": [{"role": "user", "content": f"{path.stem} {i}?"}], "topic": path.stem}
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[CampaignConfig, Watcher]:
    folder = tmp_path_factory.mktemp("acting")
    (folder / "worlds.py").write_text(WORLDS)
    rounds = [
        {
            "name": name,
            "prompts": save_prompts(folder / f"{name}.jsonl", 8),
            "environment": f"{folder / 'worlds.py'}:{world}",
            "suite": {"prompts": save_prompts(folder / f"{held}.jsonl", 8), "items": 8},
            "steps": 1,
        }
        for name, held, world in (("one", "gamma", "First"), ("two", "delta", "Second"))
    ]
    config = CampaignConfig.model_validate(
        {
            "name": "acting",
            "policy": {"model": str(save_model(folder / "model"))},
            "store": str(folder / "store"),
            "defaults": {
                "sampling": {"group_size": 2, "prompts_per_step": 4, "max_tokens": 4},
                "replay": {"past": 0.5, "general": 0.0},
                "episode": {"turns": 2},
            },
            "rounds": rounds,
            "gate": {"mode": "observe"},
        }
    )
    watcher = Watcher()
    run_campaign(config, start_engine=Starter(), observer=watcher)
    return config, watcher


def worlds(config: CampaignConfig, name: str) -> set[tuple[str, str, str]]:
    """Source of the prompts of a step, their topic, and the world that they were acted on in."""
    _, path = find_table(config, name, None)
    states = [(r["source"], json.loads(r["episode"])["state"]) for r in load_records(path)]
    return {(source, state["topic"], state["world"]) for source, state in states}


def test_a_past_prompt_acts_in_the_environment_of_its_own_round(
    ran: tuple[CampaignConfig, Watcher],
) -> None:
    config, _ = ran
    assert worlds(config, "one") == {("new", "one", "first")}
    assert worlds(config, "two") == {("new", "two", "second"), ("past", "one", "first")}


def test_suites_of_rounds_act_and_show_it(ran: tuple[CampaignConfig, Watcher]) -> None:
    config, watcher = ran
    evidence = stored_evidence(config)
    candidate = watcher.verdicts["two"].candidate
    results = {
        record.suite: ItemResults.load(evidence.folder / record.path)
        for record in evidence.ledger.evaluations(candidate)
    }
    assert set(results) == {"one", "two"}
    for result in results.values():
        assert result.beside["turns"] == 1.0 and 0.0 <= result.beside["success"] <= 1.0
