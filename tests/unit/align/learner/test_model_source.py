"""A base: what is taken of a folder, when it becomes production, and what a change of it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig, PolicyConfig
from align.data.demo import BASE_MODEL
from align.errors import RunError, StoreError
from align.learner.folder.checks import check_base
from align.learner.folder.source import changed_files, left_behind, take_base
from align.report.forecast.forecast import forecast
from align.round.inputs import load_inputs
from align.store.snapshots.snapshots import Snapshot, SnapshotStore
from align.store.store import known_ledger
from rollouts.errors import UserError
from tests.unit.campaigns import Starter, Watcher, campaign, rounds
from tests.unit.model_kinds import save_folder


def digits(folder: Path) -> Path:
    """A copy of the demo world's model."""
    folder.mkdir()
    for file in BASE_MODEL.iterdir():
        copyfile(file, folder / file.name)
    return folder


def small(tmp_path: Path, model: Path, **policy: Any) -> CampaignConfig:
    """A campaign of one short round."""
    return campaign(tmp_path, policy={"model": str(model), **policy}, rounds=rounds({}))


def scale(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    held["model.norm.weight"] *= 1.5
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps(content))

    return change


def template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights": (scale, "model.safetensors has changed"),
    "tokenizer": (edit("tokenizer_config.json", note=1), "tokenizer_config.json has changed"),
    "config": (edit("config.json", note=1), "config.json has changed"),
    "template": (template, "chat_template.jinja is new"),
    "gone": (lambda f: (f / "generation_config.json").unlink(), "generation_config.json is gone"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> CampaignConfig:
    folder = tmp_path_factory.mktemp("begun")
    config = small(folder, digits(folder / "model"))
    run_campaign(config, start_engine=Starter(), observer=Watcher())
    return config


@pytest.mark.parametrize("name", CHANGES)
def test_a_folder_that_changed_is_named(begun: CampaignConfig, name: str) -> None:
    """Restored, the campaign goes on."""
    folder = Path(begun.policy.model)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    change, message = CHANGES[name]
    change(folder)
    with pytest.raises(StoreError, match=message) as error:
        run_campaign(begun, start_engine=Starter(), observer=Watcher())
    with pytest.raises(StoreError, match=message):
        forecast(begun)
    assert "set store to another folder" in str(error.value)
    for file in folder.iterdir():
        file.unlink()
    for file, content in before.items():
        file.write_bytes(content)
    run_campaign(begun, start_engine=Starter(), observer=Watcher())


def test_files_that_nothing_reads_may_come_and_go(begun: CampaignConfig) -> None:
    folder = Path(begun.policy.model)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "README.md").write_text("a card")
    run_campaign(begun, start_engine=Starter(), observer=Watcher())
    (folder / "trainer_state.json").unlink()
    (folder / "README.md").unlink()
    again = Watcher()
    run_campaign(begun, start_engine=Starter(), observer=again)
    assert again.notes[-1] == "no round is due; nothing to run"


class Broken(Starter):
    """Engines that refuse the first weights."""

    def __call__(self, *arguments: Any) -> Any:
        engine = super().__call__(*arguments)

        def sync(update: Any) -> Any:
            raise RunError("the engine takes no such weights")

        engine.sync = sync  # type: ignore[method-assign]
        return engine


def test_what_no_engine_takes_does_not_become_production(tmp_path: Path) -> None:
    """After a failed start the folder is mended, and the same store begins from what it is then."""
    folder = digits(tmp_path / "model")
    config = small(tmp_path, folder)
    with pytest.raises(RunError, match="takes no such weights"):
        run_campaign(config, start_engine=Broken(), observer=Watcher())
    ledger = known_ledger(config)
    assert ledger is not None
    assert ledger.alias("production") is None
    scale(folder)
    evidence = run_campaign(config, start_engine=Starter(), observer=Watcher())
    base = SnapshotStore(config.folder).open(evidence.base)
    expected = load_file(folder / "model.safetensors")
    held = load_file(base.path / "model.safetensors")
    assert all(torch.equal(held[name], tensor) for name, tensor in expected.items())


def test_a_broken_folder_leaves_no_store(tmp_path: Path) -> None:
    folder = digits(tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    config = small(tmp_path, folder)
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        run_campaign(config, start_engine=Starter(), observer=Watcher())
    assert not config.folder.exists()
    (folder / "model.safetensors").write_bytes(whole)
    run_campaign(config, start_engine=Starter(), observer=Watcher())


def take(tmp_path: Path, source: Path, **policy: Any) -> Snapshot:
    settings = PolicyConfig(model=str(source), **policy)
    return take_base(source, settings, SnapshotStore(tmp_path / "store"), "hash")


def test_tensors_and_files_beyond_the_model_stay_behind(tmp_path: Path) -> None:
    """Tensors that engines cannot read are not copied, and a change of the folder is still noticed."""
    source = save_folder(tmp_path / "model")
    held = load_file(source / "model.safetensors")
    save_file(
        held | {"v_head.weight": torch.ones(3)}, source / "model.safetensors", {"format": "pt"}
    )
    save_file({"other": torch.ones(2)}, source / "consolidated.safetensors")
    settings = PolicyConfig(model=str(source))
    assert left_behind(source, settings) == ["v_head.weight", "consolidated.safetensors"]
    base = take(tmp_path, source)
    taken = load_file(base.path / "model.safetensors")
    assert taken.keys() == held.keys()
    assert all(torch.equal(taken[name], tensor) for name, tensor in held.items())
    assert not (base.path / "consolidated.safetensors").exists()
    assert changed_files(source, base.manifest, code=False) == []
    scale(source)
    assert changed_files(source, base.manifest, code=False) == ["model.safetensors has changed"]


@pytest.mark.parametrize("named", [
    None, "LlamaForCausalLM", ["FooForCausalLM"], ["GPT2LMHeadModel", "LlamaForCausalLM"],
])  # fmt: skip
def test_the_base_names_the_class_that_is_trained(tmp_path: Path, named: Any) -> None:
    """Engines go by the name in the config, and transformers by the model's type."""
    source = save_folder(tmp_path / "model")
    edit("config.json", architectures=named)(source)
    check_base(source, PolicyConfig(model=str(source)), "cpu")
    base = take(tmp_path, source)
    content = json.loads((base.path / "config.json").read_text())
    assert content["architectures"] == ["LlamaForCausalLM"]
    assert changed_files(source, base.manifest, code=False) == []


def test_names_without_the_prefix_of_the_model(tmp_path: Path) -> None:
    """The folder was saved from the model without its head; engines know the names of the whole model."""
    source = save_folder(tmp_path / "model")
    held = load_file(source / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in held.items()}
    save_file(bare, source / "model.safetensors", {"format": "pt"})
    base = take(tmp_path, source)
    taken = load_file(base.path / "model.safetensors")
    assert taken.keys() == held.keys()
    assert all(torch.equal(taken[name], tensor) for name, tensor in held.items())


def test_an_index_that_nothing_reads_stays_behind(tmp_path: Path) -> None:
    """transformers reads the one file; an engine that went by the index would look for shards."""
    source = save_folder(tmp_path / "model")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    base = take(tmp_path, source)
    assert not list(base.path.glob("*.index.json"))
    assert changed_files(source, base.manifest, code=False) == []


def test_a_snapshot_of_another_store_is_a_model_folder(tmp_path: Path) -> None:
    first = take(tmp_path, save_folder(tmp_path / "model"))
    second = take(tmp_path / "other", first.path)
    assert {e.path: e.sha256 for e in second.manifest.files} == {
        e.path: e.sha256 for e in first.manifest.files
    }
    assert changed_files(first.path, second.manifest, code=False) == []


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo model as one of a type that only code beside it defines."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = digits(tmp_path / "model")
    (folder / "modeling_own.py").write_text(CODE)
    edit(
        "config.json",
        model_type="own_llama",
        architectures=["OwnForCausalLM"],
        auto_map={
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    )(folder)
    return folder


def test_code_is_run_only_where_it_is_asked_for(tmp_path: Path, remote: Path) -> None:
    """Asked for, it travels with every snapshot, under its hash."""
    with pytest.raises(UserError, match=r"brings code of its own \(modeling_own.OwnConfig"):
        load_inputs(small(tmp_path, remote))
    config = small(tmp_path, remote, trust_remote_code=True)
    evidence = run_campaign(config, start_engine=Starter(), observer=Watcher())
    store = SnapshotStore(config.folder)
    for record in evidence.ledger.rounds():
        assert record.candidate is not None
        for snapshot in map(store.open, (evidence.base, record.candidate)):
            assert (snapshot.path / "modeling_own.py").read_text() == CODE
            assert "modeling_own.py" in {entry.path for entry in snapshot.manifest.files}
    (remote / "modeling_own.py").write_text(CODE + "# changed\n")
    with pytest.raises(StoreError, match=r"modeling_own\.py has changed"):
        run_campaign(config, start_engine=Starter(), observer=Watcher())


def test_code_that_lies_elsewhere_is_refused(tmp_path: Path, remote: Path) -> None:
    edit("config.json", auto_map={"AutoConfig": "org/repo--modeling_own.OwnConfig"})(remote)
    with pytest.raises(UserError, match="is not in the folder"):
        load_inputs(small(tmp_path, remote, trust_remote_code=True))


@pytest.mark.parametrize(("dtype", "stored", "expected"), [
    ("float32", torch.float32, torch.float32),
    ("bfloat16", torch.float32, torch.bfloat16),
    ("auto", torch.float32, torch.float32),
    ("auto", torch.bfloat16, torch.bfloat16),
])  # fmt: skip
def test_snapshots_in_a_precision_of_choice(
    tmp_path: Path, dtype: str, stored: torch.dtype, expected: torch.dtype
) -> None:
    """The gate measured the published weights: the engines have the snapshot's own numbers."""
    folder = digits(tmp_path / "model")
    held = load_file(folder / "model.safetensors")
    save_file(
        {n: t.to(stored) for n, t in held.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    starter = Starter()
    config = small(tmp_path, folder, snapshot_dtype=dtype)
    evidence = run_campaign(config, start_engine=starter, observer=Watcher())
    (record,) = evidence.ledger.rounds()
    path = SnapshotStore(config.folder).open(record.candidate or "").path
    published = load_file(path / "model.safetensors")
    assert {tensor.dtype for tensor in published.values()} == {expected}
    assert json.loads((path / "config.json").read_text())["dtype"] == str(expected)[6:]
    weights = starter.engines[0]._model.state_dict()
    assert all(torch.equal(weights[name], tensor.float()) for name, tensor in published.items())
