"""Rounds that a command trains where the policy is an adapter: every way to keep it, and refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.config.file import load_campaign
from align.data.demo import BASE_MODEL
from align.errors import RunError
from align.gate.evidence import Evidence
from align.store.store import Store, open_ledger
from rollouts.engines.protocol import RolloutEngine
from tests.unit.adapter_engine import AdapterEngine
from tests.unit.campaigns import Starter, Watcher, raw_campaign

LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "up_proj"], "serve": "merged"}
PEFT = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"}
"""The same in peft's words."""


class AdapterStarter(Starter):
    """A starter of engines that take adapters."""

    def __call__(self, config: CampaignConfig, model: Path, context: int) -> RolloutEngine:
        engine = AdapterEngine(model)
        self.engines.append(engine)
        return engine


def adapter(folder: Path, step: float = 1e-5, *, merged: bool = False, **settings: Any) -> Path:
    """Write what somebody's trainer writes with peft: an adapter on the base, or the base with it added."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(BASE_MODEL)
    model: Any = get_peft_model(base, LoraConfig(**{**PEFT, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += step
    AutoTokenizer.from_pretrained(BASE_MODEL).save_pretrained(folder)
    (model.merge_and_unload() if merged else model).save_pretrained(folder)
    return folder


def write(folder: Path, lora: dict[str, Any], commands: Sequence[Sequence[str]]) -> CampaignConfig:
    """Write a campaign of one round a command, and load it."""
    rounds = [
        {"name": f"round{number}", "algorithm": {"name": "external", "command": list(command)},
         "prompts": "demo://rev?n=40", "rewards": ["exact_match"]}
        for number, command in enumerate(commands)
    ]  # fmt: skip
    raw = raw_campaign(folder, policy={"model": "demo://digits", "lora": lora}, rounds=rounds)
    path = folder / "campaign.yaml"
    path.write_text(json.dumps(raw))
    return load_campaign(path).config


def copies(source: Path) -> list[str]:
    """Return a command whose training is a copy."""
    return ["cp", "-r", f"{source}/.", "{output}"]


KINDS: dict[str, tuple[dict[str, Any], type[Starter], dict[str, Any]]] = {
    "merged for engines": (LORA, Starter, {}),
    "served as adapters": (LORA | {"serve": "adapter"}, AdapterStarter, {}),
    "rank-stabilised": (LORA | {"rslora": True}, Starter, {"use_rslora": True}),
    "dora": (LORA | {"dora": True}, Starter, {"use_dora": True}),
    "merged into the base": (LORA | {"merge": True}, Starter, {"merged": True}),
}


@pytest.mark.parametrize(("lora", "starter", "settings"), KINDS.values(), ids=KINDS)
def test_an_adapter_that_peft_wrote_is_a_candidate_like_any_other(
    tmp_path: Path, lora: dict[str, Any], starter: type[Starter], settings: dict[str, Any]
) -> None:
    made = [adapter(tmp_path / f"made{n}", 1e-5 * n, **settings) for n in (1, 2)]
    config = write(tmp_path, lora, [copies(folder) for folder in made])
    evidence = run_campaign(config, start_engine=starter(), observer=Watcher())
    first, second = evidence.ledger.rounds()
    assert (first.state, second.state) == ("accepted", "accepted")
    assert second.parent == first.candidate != evidence.base
    snapshots = [evidence.store.snapshots.open(r.candidate or "") for r in (first, second)]
    assert {s.kind for s in snapshots} == {"model" if lora.get("merge") else "adapter"}
    if not lora.get("merge"):
        config_file = snapshots[1].path / "adapter_config.json"
        assert json.loads(config_file.read_text())["base_model_name_or_path"] is None


GOES_ON = """
import os
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, parent, output = (os.environ[f"KEEL_{name}"] for name in ("BASE", "PARENT", "OUTPUT"))
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), parent, is_trainable=True)
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter += 1e-5
model.save_pretrained(output)
"""


def test_peft_goes_on_from_the_adapter_of_the_round_before(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    (tmp_path / "train.py").write_text(GOES_ON)
    first_adapter = adapter(tmp_path / "made")
    config = write(tmp_path, LORA, [copies(first_adapter), ["python", "train.py"]])
    evidence = run_campaign(config, start_engine=Starter(), observer=Watcher())
    _, second = evidence.ledger.rounds()
    assert second.state == "accepted"
    written = load_file(
        evidence.store.snapshots.open(second.candidate or "").path / "adapter_model.safetensors"
    )
    for name, tensor in written.items():
        if "lora_B" in name:
            torch.testing.assert_close(tensor, torch.full_like(tensor, 2e-5))


FAILURES: dict[str, tuple[float, dict[str, Any], str]] = {
    "another rank": (1e-5, {"r": 8}, "not those of the policy"),
    "other layers": (1e-5, {"target_modules": ["v_proj"]}, "not those of the policy"),
    "another scale": (1e-5, {"lora_alpha": 16}, "lora_alpha of the adapter is 16"),
    "another scaling": (1e-5, {"use_rslora": True}, "use_rslora of the adapter is True"),
    "a scale of one layer": (1e-5, {"alpha_pattern": {"q_proj": 64}}, "alpha_pattern of the adapter"),
    "whole modules beside": (1e-5, {"modules_to_save": ["lm_head"]}, "not those of the policy"),
    "no number": (float("nan"), {}, "not finite"),
    "a whole model": (1e-5, {"merged": True}, r"no adapter_config\.json"),
}  # fmt: skip


@pytest.mark.parametrize(("step", "settings", "said"), FAILURES.values(), ids=FAILURES)
def test_an_adapter_that_is_not_the_policys_fails_the_round_and_moves_nothing(
    tmp_path: Path, step: float, settings: dict[str, Any], said: str
) -> None:
    config = write(tmp_path, LORA, [copies(adapter(tmp_path / "made", step, **settings))])
    with pytest.raises(RunError, match=f"(?s){said}"):
        run_campaign(config, start_engine=Starter(), observer=Watcher())
    evidence = Evidence(store=Store(config.folder, open_ledger(config)), config=config)
    (record,) = evidence.ledger.rounds()
    assert record.state == "failed"
    assert evidence.ledger.alias("production") == evidence.base


@pytest.mark.parametrize("content", ["{", "[1]", ""], ids=["cut short", "no mapping", "empty"])
def test_an_adapter_whose_config_cannot_be_read_fails_the_round(
    tmp_path: Path, content: str
) -> None:
    made = adapter(tmp_path / "made")
    (made / "adapter_config.json").write_text(content)
    config = write(tmp_path, LORA, [copies(made)])
    with pytest.raises(RunError, match="config cannot be read"):
        run_campaign(config, start_engine=Starter(), observer=Watcher())
