"""A model folder that changes between runs, and what a suite's hash says of tokenizer and template."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.errors import StoreError
from align.round.inputs import load_inputs
from align.round.session import claim_store
from align.store.changes.settle import settle
from align.store.durable import digest_of
from align.store.stored_base import stored_base
from rollouts.errors import UserError
from tests.unit.chats import IM, build, save_folder


def campaign(tmp_path: Path, **policy: Any) -> CampaignConfig:
    """One round of chat prompts on a model of a few words."""
    for name, number in (("train", 8), ("eval", 8)):
        rows = [
            {"prompt": [{"role": "user", "content": " ".join(name[:1] + str(i))}], "answer": "b"}
            for i in range(number)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    round = {
        "name": "brief", "prompts": str(tmp_path / "train.jsonl"), "rewards": ["exact_match"],
        "steps": 1, "sampling": {"max_tokens": 4},
        "suite": {"prompts": str(tmp_path / "eval.jsonl"), "items": 8},
    }  # fmt: skip
    return CampaignConfig.model_validate(
        {
            "name": "changes",
            "policy": {"model": str(tmp_path / "model"), **policy},
            "store": str(tmp_path / "store"),
            "rounds": [round],
        }
    )


def begun(tmp_path: Path, **policy: Any) -> CampaignConfig:
    """A campaign whose store holds its base."""
    save_folder(tmp_path / "model")
    config = campaign(tmp_path, **policy)
    with claim_store(settle(config), load_inputs(config)) as claim:
        claim.confirm_base()
    return config


def edit_json(name: str, **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


CHANGES: dict[str, Callable[[Path], Any]] = {
    "chat_template.jinja has changed": lambda folder: (folder / "chat_template.jinja").write_text(
        IM.replace("<|im_start|> ", "")
    ),
    "tokenizer_config.json has changed": edit_json("tokenizer_config.json", eos_token="</s>"),
    "tokenizer.json has changed": lambda folder: (folder / "tokenizer.json").write_text(
        (folder / "tokenizer.json").read_text() + "\n"
    ),
    "generation_config.json has changed": edit_json("generation_config.json", eos_token_id=[5]),
    "chat_template.json is new": lambda folder: (folder / "chat_template.json").write_text("{}"),
    "special_tokens_map.json is new": lambda folder: (
        folder / "special_tokens_map.json"
    ).write_text("{}"),
    "tokenizer.json is gone": lambda folder: (folder / "tokenizer.json").unlink(),
    "model.safetensors has changed": lambda folder: save_folder(folder, seed=1),
}


@pytest.mark.parametrize("named", CHANGES)
def test_a_folder_that_changed_is_named_and_mended_by_its_old_content(
    tmp_path: Path, named: str
) -> None:
    config = begun(tmp_path)
    folder = tmp_path / "model"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    CHANGES[named](folder)
    with pytest.raises(UserError) as caught:
        load_inputs(config)
    assert named in str(caught.value)
    for path in set(folder.iterdir()) - before.keys():
        path.unlink()
    for path, content in before.items():
        path.write_bytes(content)
    load_inputs(config).close()


def test_a_hub_cache_is_compared_through_its_links(tmp_path: Path) -> None:
    """The files of a snapshot in the cache are links to blobs, of the base and of every later look."""
    model = tmp_path / "models--org--name" / "snapshots" / "0123abcd"
    blobs = model.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    for file in list(save_folder(model).iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(blobs / file.name)
    config = campaign(tmp_path, model=str(model))
    with claim_store(settle(config), load_inputs(config)) as claim:
        claim.confirm_base()
    load_inputs(config).close()
    (blobs / "config.json").write_text((blobs / "config.json").read_text() + "\n")
    with pytest.raises(StoreError, match=r"config\.json has changed"):
        load_inputs(config)


def test_a_folder_is_hashed_once_per_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = begun(tmp_path)
    hashed: list[str] = []

    def counted(file: Path) -> tuple[int, str]:
        hashed.append(file.name)
        return digest_of(file)

    monkeypatch.setattr("align.learner.folder.source.digest_of", counted)
    for _ in range(2):
        inputs = load_inputs(config)
        with claim_store(settle(config), inputs):
            inputs.close()
    assert "model.safetensors" in hashed
    assert len(hashed) == len(set(hashed))


def test_the_tokenizer_is_read_from_the_store(tmp_path: Path) -> None:
    config = begun(tmp_path)
    base = stored_base(config)
    assert base is not None
    read_from = load_inputs(config).encoder.tokenizer.name_or_path
    assert Path(read_from) == base.folder


def hashes(config: CampaignConfig) -> list[str]:
    inputs = load_inputs(config)
    inputs.close()
    return [suite.hash for suite in inputs.suites]


@pytest.mark.parametrize(
    "tokenizer",
    [
        build(IM.replace("\n", " ")),
        build(eos="</s>"),
        build(bos=True),
    ],
)
def test_a_suite_is_another_one_with_another_tokenizer_or_template(
    tmp_path: Path, tokenizer: Any
) -> None:
    save_folder(tmp_path / "model")
    config = campaign(tmp_path)
    before = hashes(config)
    assert hashes(config) == before
    tokenizer.save_pretrained(tmp_path / "model")
    assert hashes(config) != before


def test_a_suite_is_another_one_with_another_system_message(tmp_path: Path) -> None:
    save_folder(tmp_path / "model")
    assert hashes(campaign(tmp_path)) != hashes(campaign(tmp_path, system="be brief"))


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"lora": {"rank": 2}}], ids=str)
def test_a_suite_is_another_one_with_other_engine_settings(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    save_folder(tmp_path / "model")
    assert hashes(campaign(tmp_path)) != hashes(campaign(tmp_path, **changes))


def test_a_suite_stays_the_same_where_engines_compute_the_same(tmp_path: Path) -> None:
    """The rank of an adapter changes the weights, not how they answer."""
    save_folder(tmp_path / "model")
    merged = {"rank": 2, "serve": "merged"}
    assert hashes(campaign(tmp_path)) == hashes(campaign(tmp_path, lora=merged))
    adapters = [hashes(campaign(tmp_path, lora={"rank": rank})) for rank in (2, 4)]
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("known", [{"encoding": None}, {}], ids=["no tokenizer", "no engine"])
def test_a_store_from_before_keeps_the_hashes_it_holds(
    tmp_path: Path, known: dict[str, None]
) -> None:
    """Results under a hash that covers less are reused, and nothing is measured twice."""
    config = begun(tmp_path)
    inputs = load_inputs(config)
    assert all(suite.encoding for suite in inputs.suites)
    inputs.close()
    (older,) = [replace(suite, engine={}, **known) for suite in inputs.suites]
    with claim_store(settle(config), inputs) as claim:
        claim.ledger.record_evaluation(
            claim.base, older.name, older.hash, "evaluations/x.parquet", n=8, mean=0.5
        )
        assert claim.evidence.missing(claim.base, inputs.suites)
    again = load_inputs(config)
    assert [suite.hash for suite in again.suites] == [older.hash]
    with claim_store(settle(config), again) as claim:
        assert claim.evidence.missing(claim.base, again.suites) == []
    again.close()
