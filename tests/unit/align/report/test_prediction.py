"""Predictions for clusters: formulas by hand, models of which there is a config alone, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from align.report.forecast import formulas
from align.report.forecast.devices import DEVICES, DeviceConfig
from align.report.forecast.formulas import Rows, SamplingLoad
from align.report.forecast.shape import shape_from
from launch.cli import app
from rollouts.errors import UserError

TINY = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 8,
        "intermediate_size": 16, "vocab_size": 10, "tie_word_embeddings": True}  # fmt: skip
LLAMA_70B = {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
             "hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 32000,
             "tie_word_embeddings": False}  # fmt: skip
QWEN_30B = {"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "hidden_size": 2048, "intermediate_size": 6144, "vocab_size": 151936, "num_experts": 128,
            "num_experts_per_tok": 8, "moe_intermediate_size": 768,
            "tie_word_embeddings": False}  # fmt: skip
UNIT = DeviceConfig(
    memory_gib=1, tflops=1, tflops_float32=1, memory_gbs=1, link_gbs=1, network_gbs=1, learning=1,
    reading=1, decoding=1, moving=1, token_s=0, experts=1,
)  # fmt: skip
"""A device of 10^12 operations and 10^9 bytes a second."""


def test_sizes_by_hand() -> None:
    shape = shape_from(TINY)
    # q and o: 8 x 8 each; k and v: 8 x 4 each; the dense layer: 3 x 8 x 16.
    assert shape.attention == 2 * 64 + 2 * 32
    assert shape.largest_layer == 192 + 384
    assert shape.parameters == 80 + 2 * 576 + (2 * 2 + 1) * 8
    assert (shape.active, shape.kv_numbers) == (2 * 576, 2 * 2 * 2 * 2)


@pytest.mark.parametrize(
    ("content", "parameters", "active"),
    [(LLAMA_70B, 68.98e9, 68.98e9), (QWEN_30B, 30.53e9, 3.35e9)],
)
def test_sizes_of_known_models(content: dict[str, Any], parameters: float, active: float) -> None:
    """Llama 2 70B has 68.98 billion parameters; of Qwen3-30B-A3B 3.3 of 30.5 are active, by its card."""
    shape = shape_from(content)
    assert shape.parameters == pytest.approx(parameters, rel=2e-3)
    assert shape.active + shape.ends == pytest.approx(active, rel=2e-2)


@pytest.mark.parametrize("name", ["kv_lora_rank", "linear_num_key_heads"])
def test_layers_of_another_kind_are_not_guessed(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        shape_from({**TINY, name: 8})


def test_memory_by_hand() -> None:
    shape = shape_from(TINY)
    layer = 9 * 8 + 4 * 16
    assert formulas.kept_bytes(shape, 5, number=4, checkpointed=False) == 5 * 2 * layer * 4
    assert formulas.kept_bytes(shape, 5, number=2, checkpointed=True) == 5 * (2 * 8 + layer) * 2
    assert formulas.logit_bytes(shape, 7) == 7 * 10 * 6 * 4
    assert formulas.logit_bytes(shape, 7, chunk=30) == 30 * 6 * 4
    assert formulas.gathered_bytes(shape, 1) == 0
    assert formulas.gathered_bytes(shape, 4) == 4 * (3 * 576 + 2 * 80)
    assert formulas.cast_bytes(shape, 4, checkpointed=False) == 0
    assert formulas.cast_bytes(shape, 2, checkpointed=True) == 2 * (576 + 80)


def test_operations_by_hand() -> None:
    shape = shape_from(TINY)
    rows = Rows(prompts=1, completions=2, prompt_tokens=3, completion_tokens=4)
    # 11 tokens: the prompt once, both completions; attention reads half of 7 places, twice 2 operations.
    layers = 11 * (2 * 1152 + 2 * 2 * 8 * 7)
    head = 2 * 8 * 8 * 10
    assert formulas.forward_flops(shape, rows) == layers + head
    learning = formulas.learning_flops(shape, rows, references=1, checkpointed=False)
    assert learning == 4 * (layers + head)
    again = formulas.learning_flops(shape, rows, references=0, checkpointed=True)
    assert again == 4 * layers + 3 * head
    adapter = formulas.learning_flops(shape, rows, references=0, checkpointed=False, adapter=True)
    assert adapter == 2 * layers + 3 * head


def test_seconds_by_hand() -> None:
    shape = shape_from(TINY)
    assert formulas.exchange_s(shape, UNIT, ranks=1, nodes=1, passes=9) == 0
    moved = 3 * 2 * 4 * shape.parameters * 3 / 4
    assert formulas.exchange_s(shape, UNIT, ranks=4, nodes=1, passes=2) == moved / 1e9
    assert formulas.optimizer_s(100, UNIT) == 7 * 4 * 100 / 1e9
    load = SamplingLoad(prompts=1, completions=2, prompt_tokens=3, completion_tokens=4, longest=6)
    read = 3 * (2 * 1152 + 2 * 2 * 8 * 3) / 1e12
    weights = 6 * 4 * (80 + 1152) / 1e9
    cache = 8 * (3 + 2) * 16 * 4 / 1e9
    seconds = formulas.sampling_s(shape, UNIT, load, devices=1, number=4, at_once=8)
    assert seconds == pytest.approx(read + weights + cache)


def test_few_tokens_read_few_experts() -> None:
    shape = shape_from(QWEN_30B)
    one, many = formulas.touched(shape, 1), formulas.touched(shape, 1000)
    assert one == pytest.approx(shape.active)
    assert many == pytest.approx(shape.parameters - shape.ends, rel=1e-3)


def campaign(folder: Path, content: dict[str, Any], policy: str, rollouts: str) -> Path:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    known = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (model / "config.json").write_text(json.dumps({**known, **content}))
    file = folder / "plan.yaml"
    file.write_text(
        f"name: plan\nstore: {folder / 'store'}\n"
        f"policy: {{model: {model}, dtype: bfloat16, {policy}}}\nrollouts: {{{rollouts}}}\n"
        "rounds:\n  - {name: rev, prompts: demo://rev, rewards: [exact_match], steps: 10}\n"
    )
    return file


def run(file: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["plan", str(file), *words])


def test_a_config_alone_is_predicted(tmp_path: Path) -> None:
    """Four layers of a 70B model: parts of 16 bytes a weight, and an anchor that is whole on every rank."""
    content = {**LLAMA_70B, "num_hidden_layers": 4}
    size = shape_from(content).parameters
    file = campaign(
        tmp_path,
        content,
        "ranks: 32, ranks_per_node: 8, gradient_checkpointing: true",
        "engines: 8, tensor_parallel: 4",
    )
    outcome = run(file, "--gpu", "h100", "--json")
    assert outcome.exit_code == 0, outcome.output
    prediction = json.loads(outcome.stdout)
    assert (prediction["parameters"], prediction["device"]) == (size, "h100")
    assert (prediction["learner_devices"], prediction["engine_devices"]) == (32, 32)
    (entry,) = prediction["rounds"]
    rank = entry["rank"]
    parts = rank["weights"] + rank["gradients"] + rank["moments"]
    assert parts == pytest.approx(size * 16 / 32, abs=4)
    assert rank["total"] == sum(value for name, value in rank.items() if name != "total")
    assert entry["engine"]["weights"] == pytest.approx(size * 2 / 4, abs=1)
    assert entry["step_s"] == pytest.approx(
        entry["sampling_s"] + entry["learning_s"] + entry["sync_s"]
    )
    assert not (tmp_path / "store").exists()


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    content = {**LLAMA_70B, "num_hidden_layers": 2}
    devices = tmp_path / "small.yaml"
    devices.write_text(
        json.dumps(DEVICES["h100"].model_dump() | {"memory_gib": 2, "name": "small"})
    )
    shown = run(campaign(tmp_path, content, "ranks: 1", "engines: 1"), "--devices", str(devices))
    assert shown.exit_code == 0, shown.output
    assert "Predicted on small" in shown.stdout and "2.24 billion parameters" in shown.stdout
    assert "rev: does not fit: a rank takes" in shown.stdout
    assert "raise rollouts.tensor_parallel" in shown.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--gpu", "h10"], "did you mean 'h100'"),
        (["--gpu", "h100", "--devices", "x.yaml"], "both name the devices"),
        (["--devices", "missing.yaml"], "cannot be read"),
        (["--devices", "bad.yaml"], "tflops: "),
    ],
)
def test_devices_that_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content = DEVICES["h100"].model_dump() | {"tflops": -1}
    Path("bad.yaml").write_text(json.dumps(content))
    outcome = run(campaign(tmp_path, TINY, "ranks: 1", "engines: 1"), *words)
    assert isinstance(outcome.exception, UserError)
    assert reason in str(outcome.exception)


def test_a_model_that_the_formulas_do_not_know(tmp_path: Path) -> None:
    file = campaign(tmp_path, {**TINY, "kv_lora_rank": 4}, "ranks: 1", "engines: 1")
    outcome = run(file, "--gpu", "h100")
    assert isinstance(outcome.exception, UserError)
    assert "kv_lora_rank is set" in str(outcome.exception)
