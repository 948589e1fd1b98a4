"""Backends by name: what each can serve, whether it is installed, and how a campaign file chooses one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.config.file import load_campaign
from align.config.policy import PolicyConfig
from align.learner.folder.checks import check_base
from align.report.forecast.machine import check_machine
from launch.cluster.engines import engine_spec
from rollouts.engines import ENGINES, backend_named
from rollouts.engines.transformers import TransformersConfig
from rollouts.engines.vllm import VLLMConfig
from rollouts.errors import UserError
from tests.unit.model_kinds import REFUSED_ON_CPU, save_folder

CAMPAIGN = """
name: tiny
store: store
policy: {model: demo://digits}
rounds:
  - {name: reverse, prompts: demo://rev, rewards: [exact_match], steps: 1}
"""


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    path = tmp_path / "campaign.yaml"
    path.write_text(CAMPAIGN)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes, with head size 64."""
    config = {"hidden_size": 256, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    return tmp_path


@pytest.mark.parametrize("name", ENGINES)
def test_a_campaign_chooses_a_backend_and_keeps_its_hash(campaign: Path, name: str) -> None:
    plain = load_campaign(campaign).config
    chosen = load_campaign(campaign, [f"rollouts.backend={name}"]).config
    assert plain.rollouts.backend == "vllm"
    assert chosen.hash() == plain.hash()
    spec = engine_spec(chosen, Path("model"), 32)
    assert type(spec) is ENGINES[name] is backend_named(name)
    assert (spec.max_model_len, spec.max_num_seqs) == (32, chosen.rollouts.max_num_seqs)


def test_an_unknown_backend_is_named_with_the_known_ones(campaign: Path) -> None:
    with pytest.raises(UserError, match="there is no engine backend 'transfomers'") as error:
        load_campaign(campaign, ["rollouts.backend=transfomers"])
    assert "did you mean 'transformers'" in str(error.value)
    with pytest.raises(UserError, match="Known: transformers, vllm"):
        backend_named("sglang")


@pytest.mark.parametrize("config", [
    {"head_dim": 16, "hidden_size": 256, "num_attention_heads": 4},
    {"hidden_size": 64, "num_attention_heads": 4},
    {"text_config": {"hidden_size": 64, "num_attention_heads": 4}},
])  # fmt: skip
def test_head_size_16_is_refused_by_vllm_on_a_cpu_only(
    folder: Path, config: dict[str, Any]
) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="head size 16") as error:
        VLLMConfig(model=str(folder)).check_folder("cpu")
    assert "32, 64" in str(error.value)
    assert "rollouts.backend: transformers" in str(error.value)
    VLLMConfig(model=str(folder)).check_folder("cuda")
    TransformersConfig(model=str(folder)).check_folder("cpu")


def test_an_explicit_head_size_wins_over_the_quotient(folder: Path) -> None:
    config = {"head_dim": 32, "hidden_size": 64, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(config))
    VLLMConfig(model=str(folder)).check_folder("cpu")


@pytest.mark.parametrize("kind", ["rwkv", "mamba", *REFUSED_ON_CPU])
def test_what_vllm_refuses_on_a_cpu_transformers_serves(tmp_path: Path, kind: str) -> None:
    model = save_folder(tmp_path / "model", kind)
    policy = PolicyConfig(model=str(model))
    with pytest.raises(UserError, match=r"vLLM|on a CPU") as error:
        check_base(model, policy, "cpu")
    assert "rollouts.backend: transformers" in str(error.value)
    check_base(model, policy, "cpu", backend="transformers")


@pytest.mark.parametrize("name", ENGINES)
def test_a_backend_that_is_not_installed_is_refused_before_anything_starts(
    campaign: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load_campaign(campaign, [f"rollouts.backend={name}"]).config
    monkeypatch.setattr(ENGINES[name], "module", "a_package_that_is_not_there")
    with pytest.raises(UserError, match="a_package_that_is_not_there is not installed") as error:
        check_machine(config, None)
    assert error.value.where == "rollouts.backend"
    if name == "vllm":
        assert "rollouts.backend: transformers" in str(error.value)
    # Nodes of a cluster have their own packages.
    check_machine(config, "ray://elsewhere:10001")


def test_everything_but_vllm_works_without_vllm(tmp_path: Path) -> None:
    """A process in which vllm cannot be imported samples, and says what the vLLM backend lacks."""
    model = save_folder(tmp_path / "model", "llama")
    program = f"""
import sys
sys.modules["vllm"] = None
from launch import cli, doctor
from launch.cluster import engines
from rollouts.engines import ENGINES
from rollouts.engines.protocol import SampleRequest
from rollouts.types import Sampling
options = dict(model={str(model)!r}, device="cpu", max_model_len=32)
request = SampleRequest(id="a", prompt_ids=(3,), n=2, sampling=Sampling(max_tokens=4), seed=0)
(result,) = ENGINES["transformers"](**options).start().generate([request])
print(result.completions[0].finish_reason)
found = doctor.check_backend("vllm")
print(found.status, found.detail)
try:
    ENGINES["vllm"](**options).start()
except Exception as error:
    print(type(error).__name__, error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    lines = run.stdout.splitlines()
    assert lines[0] in ("length", "stop")
    assert lines[1] == "warn not installed; available backends: transformers"
    assert lines[2].startswith("UserError rollouts.backend: vllm is not installed")
    assert "rollouts.backend: transformers" in run.stdout
