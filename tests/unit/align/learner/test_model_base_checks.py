"""A campaign's base is whole, trainable and servable, or refused with the reason before anything runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.config.campaign import CampaignConfig, PolicyConfig
from align.learner.folder.checks import check_base
from align.round.inputs import context_of
from rollouts.errors import UserError
from tests.unit.campaigns import raw_campaign
from tests.unit.model_kinds import save_folder

Change = Callable[[Path], object]


def check(folder: Path, device: Any = "cpu", **policy: Any) -> None:
    """Check a folder as a campaign's base."""
    check_base(folder, PolicyConfig(model=str(folder), **policy), device)


def edit(name: str, **values: Any) -> Change:
    """A change of a JSON file; None removes a key."""

    def change(folder: Path) -> None:
        file = folder / name
        content = json.loads(file.read_text()) if file.exists() else {}
        content |= values
        file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """A change of the weights."""

    def apply(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", {"format": "pt"})

    return apply


def shard(folder: Path) -> dict[str, str]:
    """Split the weights over two files with an index; returns the index's map."""
    held = load_file(folder / "model.safetensors")
    names = sorted(held)
    places = {
        name: f"model-0000{1 + (index % 2)}-of-00002.safetensors"
        for index, name in enumerate(names)
    }
    for file in set(places.values()):
        part = {name: held[name] for name in names if places[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    content = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return places


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lose_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def misplace(folder: Path) -> None:
    places = shard(folder)
    swapped = {name: places[other] for name, other in zip(places, reversed(places), strict=True)}
    content = {"metadata": {}, "weight_map": swapped}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def lose_index(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()


def index(places: dict[str, Any]) -> Change:
    """Shards with another index."""

    def change(folder: Path) -> None:
        shard(folder)
        content = json.dumps({"weight_map": places})
        (folder / "model.safetensors.index.json").write_text(content)

    return change


def only(*names: str) -> Change:
    """Keep nothing but empty files of these names."""

    def change(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        for name in names:
            (folder / name).write_text("{}")

    return change


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def link_out(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(elsewhere)
    (folder / "model.safetensors").symlink_to(elsewhere)


def link_nowhere(folder: Path) -> None:
    (folder / "merges.txt").symlink_to(folder / "gone.txt")


def add_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<new{number}>" for number in range(128)])
    tokenizer.save_pretrained(folder)


def spoil(name: str, value: float) -> Change:
    """Put one number into one tensor."""
    return tensors(lambda held: held[name].flatten()[3:4].fill_(value))


NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
BROKEN: dict[str, tuple[Change, str]] = {
    "empty folder": (only(), "the model folder is empty"),
    "adapter alone": (only("adapter_config.json", "adapter_model.safetensors"), "PEFT adapter, not"),
    "adapter beside": (edit("adapter_config.json", peft_type="LORA"), "PEFT adapter beside"),
    "GGUF alone": (only("config.json", "model-q4.gguf"), r"in GGUF only \(model-q4.gguf\)"),
    "pickle alone": (pickle_only, r"pickled \(pytorch_model.bin\)"),
    "no config": (remove("config.json"), r"no config\.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{,"), "is not JSON"),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer"),
    "missing shard": (lose_shard, r"names 1 file\(s\) that are not there: model-00002"),
    "index of another version": (misplace, "which the index lists for it"),
    "no index": (lose_index, "neither model.safetensors nor model.safetensors.index.json"),
    "index is no JSON": (
        lambda f: [lose_index(f), (f / "model.safetensors.index.json").write_text("{")],
        "index of the weights cannot be read",
    ),
    "truncated": (truncate, "cannot be read as safetensors"),
    "LFS pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs"),
        "cannot be read as safetensors",
    ),
    "link out": (link_out, "link points to a file outside the model folder"),
    "hard link out": (
        lambda f: os.link(f / "model.safetensors", f.parent / "other"), "another name outside",
    ),
    "pipe": (lambda f: os.mkfifo(f / "pipe.txt"), "not a plain file"),
    "link to nothing": (link_nowhere, "file that the link points to does not exist"),
    "link to itself": (
        lambda f: (f / "vocab.txt").symlink_to("vocab.txt"),
        "file that the link points to does not exist",
    ),
    "index of numbers": (index({NORM: 1}), "a value that is no file's name in its weight_map"),
    "index of nothing": (index({}), "has nothing in its weight_map"),
    "index leads out": (
        index({NORM: "../model.safetensors"}), "names a file outside the folder",
    ),
    "tokenizer is no JSON": (
        lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json is not JSON",
    ),
    "generation config is no JSON": (
        lambda f: (f / "generation_config.json").write_text("{,"), "generation_config.json is not JSON",
    ),
    "float8": (
        tensors(lambda held: held.update({NORM: held[NORM].to(torch.float8_e4m3fn)})),
        "stored in float8_e4m3fn",
    ),
    "whole numbers": (
        tensors(lambda held: held.update({EMBEDDING: held[EMBEDDING].to(torch.int8)})),
        "'model.embed_tokens.weight' is stored in int8",
    ),
    "NaN": (spoil(NORM, float("nan")), "'model.norm.weight' has numbers that are not finite"),
    "infinity": (spoil(EMBEDDING, float("-inf")), "not finite"),
    "missing tensor": (tensors(lambda held: held.pop(NORM)), "lack 1 parameter.*model.norm.weight"),
    "other shape": (
        tensors(lambda held: held.update({NORM: torch.ones(32)})),
        "another shape than the model: model.norm.weight",
    ),
    "fewer layers than the files": (
        edit("config.json", num_hidden_layers=1),
        r"have 9 tensor\(s\) of layers that config.json does not have: model.layers.1",
    ),
    "no layers at all": (
        edit("config.json", num_hidden_layers=0),
        r"have 18 tensor\(s\) of layers that config.json does not have",
    ),
    "a size that is text": (
        edit("config.json", vocab_size="128"), "Validation error for field 'vocab_size': .*'128'",
    ),
    "more layers than the files": (edit("config.json", num_hidden_layers=3), "lack 9 parameter"),
    "not tied as it says": (
        edit("config.json", tie_word_embeddings=False), "tie_word_embeddings: true",
    ),
    "tied and not": (
        tensors(lambda held: held.update({"lm_head.weight": held[EMBEDDING] + 1})),
        "ties lm_head.weight to model.embed_tokens.weight, and the files have two",
    ),
    "tokenizer beyond the embedding": (add_tokens, r"token\(s\) beyond the embedding's 128 rows"),
    "unknown type": (edit("config.json", model_type="llama99"), "model_type 'llama99'"),
    "no type": (edit("config.json", model_type=None), "has no model_type"),
    "quantised": (
        edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised \(gptq\)",
    ),
    "code of its own": (
        edit("config.json", model_type="own", auto_map={"AutoConfig": "own.OwnConfig"}),
        "brings code of its own",
    ),
    "classification head": (
        edit("config.json", architectures=["LlamaForSequenceClassification"]),
        "classifies whole texts",
    ),
    "no head": (edit("config.json", architectures=["LlamaModel"]), "no output head"),
    "sampling that cannot be saved": (
        edit("generation_config.json", do_sample=False, temperature=0.9),
        "generation_config.json can be read but not written",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path, name: str) -> None:
    """The same folder passes before the change, and its mending helps."""
    change, message = BROKEN[name]
    folder = save_folder(tmp_path / "model")
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        check(folder)
    assert str(folder) in (error.value.where or "")
    assert error.value.remedy
    for file in folder.iterdir():
        file.unlink()
    check(save_folder(folder))


@pytest.mark.parametrize(("kind", "message"), [
    ("t5", "encoder-decoder"),
    ("bart", "encoder-decoder"),
    ("bert", "is no causal language model"),
    ("qwen2_vl", "reads more than text"),
])  # fmt: skip
def test_models_that_continue_no_text(tmp_path: Path, kind: str, message: str) -> None:
    from transformers import AutoConfig

    folder = save_folder(tmp_path / "model")
    config = AutoConfig.for_model(kind)
    config.architectures = {"bert": ["BertForMaskedLM"]}.get(kind)
    config.save_pretrained(folder)
    with pytest.raises(UserError, match=message):
        check(folder)


@pytest.mark.parametrize(("kind", "message"), [
    ("rwkv", "vLLM cannot serve RwkvForCausalLM"),
    ("mamba", "MambaForCausalLM cannot be sampled on a CPU"),
])  # fmt: skip
def test_architectures_that_are_not_served(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(save_folder(tmp_path / "model", kind))


@pytest.mark.parametrize(("kind", "changes"), [
    ("llama", {"head_dim": 16}),
    ("gpt2", {"n_head": 4}),
    ("gpt_neox", {"num_attention_heads": 4}),
])  # fmt: skip
def test_heads_that_are_too_small_for_a_cpu(
    tmp_path: Path, kind: str, changes: dict[str, int]
) -> None:
    folder = save_folder(tmp_path / "model", kind, **changes)
    with pytest.raises(UserError, match="attention head size 16 cannot be sampled on a CPU"):
        check(folder)
    check(folder, "cuda")


@pytest.mark.parametrize(("kind", "longest"), [("gpt2", 64), ("llama", 64), ("gemma3_text", 64)])
def test_contexts_are_read_by_their_name(tmp_path: Path, kind: str, longest: int) -> None:
    folder = save_folder(tmp_path / "model", kind)
    raw = raw_campaign(tmp_path, policy={"model": str(folder)})
    assert context_of(folder, CampaignConfig.model_validate(raw)) == longest
    raw["rollouts"] = {"max_model_len": longest + 1}
    with pytest.raises(UserError, match=f"read {longest + 1} tokens, and the model was made for"):
        context_of(folder, CampaignConfig.model_validate(raw))


def test_a_model_without_a_context(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model")
    edit("config.json", max_position_embeddings=0)(folder)
    config = CampaignConfig.model_validate(raw_campaign(tmp_path, policy={"model": str(folder)}))
    with pytest.raises(UserError, match="says that it reads 0 tokens"):
        context_of(folder, config)


def test_logits_that_change_after_the_head(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model")
    edit("config.json", final_logit_softcapping=30.0)(folder)
    with pytest.raises(UserError, match="final_logit_softcapping is 30"):
        check(folder)


def test_experts_beyond_the_config_are_not_cut_off(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model", "qwen3_moe")
    edit("config.json", num_local_experts=2)(folder)
    with pytest.raises(UserError, match=r"another shape than the model: .*experts"):
        check(folder)


@pytest.mark.parametrize("kind", [
    "llama", "qwen3_moe", "gpt_neox", "gpt2", "gptj", "phi3", "bloom", "gemma3_text", "opt",
])  # fmt: skip
def test_whole_folders_pass(tmp_path: Path, kind: str) -> None:
    check(save_folder(tmp_path / "model", kind))


def test_harmless_oddities_pass(tmp_path: Path) -> None:
    """Shards, more rows than tokens, float16, extra tensors and files, notes that are no JSON, no named
    architecture, and an output layer that is stored although it is tied."""
    from transformers import AutoModelForCausalLM

    folder = save_folder(tmp_path / "model", vocab_size=160)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    tensors(lambda held: held.update({"lm_head.weight": held[EMBEDDING].clone()}))(folder)
    tensors(lambda held: held.update({"v_head.weight": torch.ones(3)}))(folder)
    save_file({"other": torch.ones(2)}, folder / "consolidated.safetensors")
    (folder / "notes.json").write_text("{step 7")
    edit("config.json", architectures=None)(folder)
    shard(folder)
    check(folder)


def test_a_hub_cache_may_link_to_its_own_blobs(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    folder = save_folder(cache / "snapshots" / "0123abcd")
    blobs = cache / "blobs"
    blobs.mkdir()
    for file in list(folder.iterdir()):
        file.rename(blobs / f"hash-{file.name}")
        file.symlink_to(Path("../../blobs") / f"hash-{file.name}")
    check(folder)
    (folder / "config.json").unlink()
    (tmp_path / "outside.json").write_bytes((blobs / "hash-config.json").read_bytes())
    (folder / "config.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(UserError, match="points to a file outside the model folder"):
        check(folder)
