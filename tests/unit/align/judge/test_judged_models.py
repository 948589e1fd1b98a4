"""Every way to name a model: folders, adapters, snapshots, hub ids, quantised copies; and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align.campaign import run_campaign
from align.config.retrieval.settings import RetrievalConfig
from align.data.demo import BASE_MODEL
from align.data.retrieval.documents import IndexedDocument
from align.data.retrieval.index import DocumentIndex
from align.judge.models import Named, open_model
from align.judge.models.adapter import AdapterModel, write_merged
from align.judge.models.local import LocalModel
from align.judge.suites_file import load_suites_file
from rollouts.errors import UserError
from rollouts.types import Prompt
from tests.unit.align.judge.judging import copied_model, judged, write_suites
from tests.unit.campaigns import Starter, Watcher, campaign, rounds
from tests.unit.model_kinds import save_folder

BASE = "demo://digits"


def adapter(
    folder: Path, base: Path | str = BASE_MODEL, *, scale: float = 0.0, **config: object
) -> Path:
    """Write a peft adapter over the demo's base model, whose update is ``scale`` wide."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL)
    settings = {"r": 2, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **config}
    adapted = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale) if scale else torch.nn.init.zeros_(
                parameter
            )
    adapted.save_pretrained(folder)
    file = folder / "adapter_config.json"
    said = json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}
    file.write_text(json.dumps(said))
    return folder


def test_a_backend_decides_what_is_served_and_what_a_cache_may_answer(
    tmp_path: Path, suites: Path
) -> None:
    models = []
    for overrides in ([], ["rollouts.backend=vllm"], ["rollouts.backend=transformers"]):
        file, _ = load_suites_file(suites, overrides)
        models.append(open_model(Named(name=BASE, where="CANDIDATE", file=file, base=None)))
    plain, vllm, transformers = (json.loads(model.settings) for model in models)
    assert plain == vllm
    assert transformers == {**plain, "backend": "transformers"}
    small = save_folder(tmp_path / "small", "mistral")
    with pytest.raises(UserError, match="head size 16"):
        open_model(Named(name=str(small), where="CANDIDATE", file=models[1].file, base=None))
    open_model(Named(name=str(small), where="CANDIDATE", file=models[2].file, base=None))


def opened(name: Path | str, suites: Path, base: str | None = None) -> object:
    file, _ = load_suites_file(suites)
    return open_model(Named(name=str(name), where="CANDIDATE", file=file, base=base))


@pytest.fixture
def suites(tmp_path: Path) -> Path:
    return write_suites(tmp_path, 100)


def test_an_adapter_is_judged_as_its_base_with_the_update(tmp_path: Path, suites: Path) -> None:
    same = adapter(tmp_path / "same")
    judgement = judged(same, BASE, suites, tmp_path / "cache")
    (check,) = [c for c in judgement.verdict.checks if c.what == "value"]
    assert (check.lost, check.won) == (0, 0)
    assert judgement.candidate.id != judgement.incumbent.id
    wide = adapter(tmp_path / "wide", scale=3.0)
    assert judged(wide, BASE, suites, tmp_path / "cache").exit_code == 1


@pytest.mark.parametrize(
    "config",
    [{}, {"use_dora": True}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}],
    ids=str,
)
def test_kinds_of_adapters_are_added_as_peft_computes_them(
    tmp_path: Path, suites: Path, config: dict[str, object]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = adapter(tmp_path / "adapter", scale=0.3, **config)
    model = opened(folder, suites)
    assert isinstance(model, AdapterModel)
    write_merged(model, tmp_path / "merged")
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(BASE_MODEL)
        plain = base(ids).logits
        theirs = PeftModel.from_pretrained(base, str(folder)).eval()(ids).logits
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert (ours - plain).abs().max() > 1e-2


def test_a_model_with_an_index_is_judged_behind_its_documents(tmp_path: Path, suites: Path) -> None:
    plain, reading = copied_model(tmp_path / "plain"), copied_model(tmp_path / "reading")
    documents = (IndexedDocument(key="r", text="rev max", round="first"),)
    settings = RetrievalConfig(template="{documents} {prompt}")
    DocumentIndex(settings=settings, documents=documents).write(reading)
    models = [opened(folder, suites) for folder in (plain, reading)]
    prompt = Prompt(id="p", text="rev _ 1 2 3 4 5 =")
    texts = []
    for model in models:
        assert isinstance(model, LocalModel)
        encoder = model.encoder_of(model.suites()[0])
        texts.append(encoder.decode(encoder.encode(prompt)))
    assert texts == [prompt.text, f"rev max {prompt.text}"]
    ours, theirs = (json.loads(model.settings) for model in models)  # type: ignore[attr-defined]
    assert theirs.keys() - ours.keys() == {"index"}
    DocumentIndex(settings=RetrievalConfig(method="dense"), documents=documents).write(
        copied_model(tmp_path / "dense")
    )
    with pytest.raises(UserError, match="dense index"):
        opened(tmp_path / "dense", suites).settings  # type: ignore[attr-defined]  # noqa: B018


def test_the_base_may_lie_elsewhere(tmp_path: Path, suites: Path) -> None:
    moved = adapter(tmp_path / "moved", base="/old/machine/base")
    with pytest.raises(UserError, match=r"(?s)/old/machine/base.*--base"):
        opened(moved, suites)
    assert isinstance(opened(moved, suites, base=BASE), AdapterModel)
    beside = copied_model(tmp_path / "moved2base")
    relative = adapter(tmp_path / "moved2", base="../moved2base")
    model = opened(relative, suites)
    assert isinstance(model, AdapterModel) and model.folder.resolve() == beside.resolve()


def test_a_snapshot_by_round_production_base_and_id(tmp_path: Path, suites: Path) -> None:
    config = campaign(tmp_path, rounds=rounds({"name": "first"}))
    evidence = run_campaign(config, start_engine=Starter(), observer=Watcher())
    (record,) = evidence.ledger.rounds()
    store = tmp_path / "store"
    names = ["first", "production", record.candidate or "", (record.candidate or "")[:12]]
    ids = {opened(f"{store}#{name}", suites).id for name in names}  # type: ignore[attr-defined]
    assert ids == {opened(store, suites).id} and len(ids) == 1  # type: ignore[attr-defined]
    base = opened(f"{store}#base", suites)
    assert isinstance(base, LocalModel) and base.id not in ids
    with pytest.raises(UserError, match="there is no snapshot 'furst'"):
        opened(f"{store}#furst", suites)
    (tmp_path / "campaign.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    assert {opened(f"{tmp_path}/campaign.yaml#first", suites).id} == ids  # type: ignore[attr-defined]


def test_an_adapter_snapshot_finds_its_base_in_the_store(tmp_path: Path, suites: Path) -> None:
    policy = {"model": BASE, "lora": {"rank": 2, "serve": "merged"}}
    config = campaign(tmp_path, rounds=rounds({"name": "first"}), policy=policy)
    run_campaign(config, start_engine=Starter(), observer=Watcher())
    model = opened(f"{tmp_path}/store#first", suites)
    assert isinstance(model, AdapterModel)
    assert model.folder.parent == (tmp_path / "store/snapshots").absolute()


def test_a_hub_id_and_its_revision(
    tmp_path: Path, suites: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(repository: str, *, revision: str | None, allow_patterns: object) -> str:
        asked.append((repository, revision))
        return str(BASE_MODEL)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    plain, fixed = opened("org/name", suites), opened("org/name@abc123", suites)
    assert asked == [("org/name", None), ("org/name", "abc123")]
    assert isinstance(plain, LocalModel) and isinstance(fixed, LocalModel)
    assert plain.id == fixed.id == opened(BASE, suites).id  # type: ignore[attr-defined]


def test_a_quantised_copy_is_served_in_bfloat16_and_said_so(tmp_path: Path, suites: Path) -> None:
    folder = copied_model(tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = opened(folder, suites)
    assert isinstance(model, LocalModel)
    assert model.policy.dtype == "bfloat16"
    assert "quantised (compressed-tensors)" in model.notes[0]


def test_the_id_is_of_the_content(tmp_path: Path, suites: Path) -> None:
    first, second = (copied_model(tmp_path / name) for name in ("first", "second"))
    (second / "trainer_state.json").write_text("{}")
    (second / "README.md").write_text("a copy")
    assert opened(first, suites).id == opened(second, suites).id  # type: ignore[attr-defined]
    (second / "chat_template.jinja").write_text("{{ messages }}")
    assert opened(first, suites).id != opened(second, suites).id  # type: ignore[attr-defined]


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def of_another_base(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    tensors = {name.replace("layers.0", "layers.77"): t for name, t in load_file(file).items()}
    save_file(tensors, file)


WRONG_ADAPTERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (remove("adapter_model.safetensors"), "has no adapter_model.safetensors"),
    "pickled": (pickled, "pickled"),
    "no config": (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "said"), WRONG_ADAPTERS.values(), ids=WRONG_ADAPTERS)
def test_a_wrong_adapter_is_refused_when_it_is_opened(
    tmp_path: Path, suites: Path, damage: Callable[[Path], None], said: str
) -> None:
    folder = adapter(tmp_path / "adapter")
    damage(folder)
    with pytest.raises(UserError, match=f"(?s){said}"):
        opened(folder, suites)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, suites: Path) -> None:
    folder, starter = adapter(tmp_path / "adapter"), Starter()
    of_another_base(folder)
    with pytest.raises(UserError, match=r"no module for \d+ tensor"):
        judged(folder, BASE, suites, tmp_path / "cache", starter=starter)


def test_models_with_other_tokenizers_share_suites_of_answers_only(tmp_path: Path) -> None:
    other = copied_model(tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(content))
    answers = write_suites(tmp_path, 40)
    assert judged(other, BASE, answers, tmp_path / "cache").verdict is not None
    (tmp_path / "text.txt").write_text(f"copy {one} {two} 1 2 3 4 = 1 2 3 4\n" * 60)
    likelihood = {"name": "text", "text": "text.txt", "window": 16, "margin": 0.05, "budget": 0.05}
    texts = write_suites(tmp_path, suites=[likelihood])
    starter = Starter()
    with pytest.raises(UserError, match="different tokens"):
        judged(other, BASE, texts, tmp_path / "cache", starter=starter)
    assert not starter.engines
    shutil.rmtree(other)
