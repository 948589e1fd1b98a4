"""A model folder that cannot be served is refused with its name, its fault and a remedy."""

from __future__ import annotations

import json

import pytest

from rollouts.errors import UserError
from rollouts.model_folder import check_model_folder


@pytest.fixture
def folder(tmp_path):
    """A folder that passes."""
    config = {"hidden_size": 256, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    return tmp_path


def test_a_whole_folder_passes(folder):
    check_model_folder(folder)


def test_sharded_weights_pass(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    check_model_folder(folder)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"no model folder .*absent"):
        check_model_folder(tmp_path / "absent")


@pytest.mark.parametrize(("file", "message"), [
    ("config.json", r"no config\.json"),
    ("model.safetensors", r"no \*\.safetensors weights"),
    ("tokenizer.json", "no tokenizer"),
])  # fmt: skip
def test_a_missing_file_is_named(folder, file, message):
    (folder / file).unlink()
    with pytest.raises(UserError, match=message) as error:
        check_model_folder(folder)
    assert error.value.where == str(folder)
    assert error.value.remedy


def test_pickled_weights_are_named_as_the_cause(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError) as error:
        check_model_folder(folder)
    assert "pytorch_model.bin" in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_config(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        check_model_folder(folder)


def test_an_unknown_architecture_passes(folder):
    (folder / "config.json").write_text("{}")
    check_model_folder(folder)
