"""Folders of banks: written and read again, and refused where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from align.bank.bank import BANK, KEYS, Bank, KeyedAdapter, read_bank, write_keys
from align.bank.encoder import EncoderIdentity
from align.bank.folder import check_sentence_encoder, sentence_width
from align.errors import SnapshotError
from rollouts.errors import UserError

ENCODER = EncoderIdentity(kind="policy", sha256="e" * 64, width=8)


def bank_in(folder: Path, *names: str) -> Path:
    adapters = []
    for name in names:
        place = folder / "loose" / name
        place.mkdir(parents=True)
        (place / "adapter_model.safetensors").write_bytes(name.encode())
        (place / "adapter_config.json").write_text('{"r": 4}')
        keys_GPC = torch.full((2, 2, 4), float(len(adapters)))
        write_keys(place, keys_GPC)
        adapters.append(KeyedAdapter(name=name, folder=place, keys_GPC=keys_GPC))
    bank = Bank(base="b" * 64, encoder=ENCODER, groups=2, top_k=2, adapters=tuple(adapters))
    bank.write(folder / "bank")
    return folder / "bank"


def test_a_bank_is_read_as_it_was_written(tmp_path: Path) -> None:
    bank = read_bank(bank_in(tmp_path, "first", "second"))
    assert bank.names == ("first", "second")
    assert (bank.base, bank.encoder, bank.groups, bank.top_k) == ("b" * 64, ENCODER, 2, 2)
    assert bank.keys_GPC.shape == (2, 4, 4)
    assert bank.keys_GPC[:, 2:].eq(1.0).all()
    # A bank of the next round copies the earlier adapters, byte for byte.
    bank.write(tmp_path / "again")
    assert (tmp_path / "again" / BANK).read_bytes() == (tmp_path / "bank" / BANK).read_bytes()


def damaged(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        place = folder / "adapters/first"
        content = json.loads((folder / BANK).read_text())
        if name == "no keys":
            (place / KEYS).unlink()
        elif name == "other bytes":
            (place / "adapter_model.safetensors").write_bytes(b"other")
        elif name == "no adapter":
            (place / "adapter_model.safetensors").unlink()
        elif name == "other groups":
            (folder / BANK).write_text(json.dumps({**content, "groups": 4}))
        elif name == "newer":
            (folder / BANK).write_text(json.dumps({**content, "version": 99}))
        elif name == "a path":
            content["adapters"][0]["name"] = "../first"
            (folder / BANK).write_text(json.dumps(content))
        elif name == "no encoder":
            del content["encoder"]
            (folder / BANK).write_text(json.dumps(content))
        else:
            (folder / BANK).write_text("[")

    return damage


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no keys", "the keys of this adapter are missing"),
        ("other bytes", "adapter_model.safetensors has changed"),
        ("no adapter", "adapter_model.safetensors is missing"),
        ("other groups", r"the keys are \(2, 2, 4\)"),
        ("newer", "version 99 of the bank is newer"),
        ("a path", "wrong value"),
        ("no encoder", "lacks something"),
        ("no JSON", "this is no bank"),
    ],
)
def test_a_damaged_bank_is_refused(name: str, words: str, tmp_path: Path) -> None:
    folder = bank_in(tmp_path, "first")
    damaged(name)(folder)
    with pytest.raises(SnapshotError, match=words):
        read_bank(folder)


@pytest.mark.parametrize(
    ("base", "encoder", "words"),
    [
        ("c" * 64, ENCODER, "belongs to the base bbbbbbbbbbbb"),
        ("b" * 64, replace(ENCODER, width=16), "keys have 8 numbers, and the encoder gives 16"),
        ("b" * 64, replace(ENCODER, layer=3), "belong to the encoder policy eeeeeeeeeeee"),
        ("b" * 64, replace(ENCODER, sha256="f" * 64), "belong to the encoder policy eeeeeeeeeeee"),
    ],
)
def test_a_bank_of_other_weights_is_refused(
    base: str, encoder: EncoderIdentity, words: str, tmp_path: Path
) -> None:
    bank = read_bank(bank_in(tmp_path, "first"))
    bank.check_fit(base="b" * 64, encoder=ENCODER, where="here")
    with pytest.raises(SnapshotError, match=words):
        bank.check_fit(base=base, encoder=encoder, where="here")


def test_a_bank_of_other_groups_is_refused(tmp_path: Path) -> None:
    bank = read_bank(bank_in(tmp_path, "first"))
    bank.check_groups(2, "here")
    with pytest.raises(SnapshotError, match=r"set policy\.bank\.groups to 2"):
        bank.check_groups(4, "here")


def test_a_folder_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no modules\.json"):
        check_sentence_encoder(tmp_path)


def test_an_encoder_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules.json").write_text("[]")
    monkeypatch.setattr("align.bank.folder.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"keel-align\[bank\]"):
        check_sentence_encoder(tmp_path)


def test_the_width_of_an_encoder_is_that_of_its_last_module(tmp_path: Path) -> None:
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "3_Normalize"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    for path, settings in (
        ("", {"hidden_size": 48}),
        ("1_Pooling", {"word_embedding_dimension": 48}),
        ("2_Dense", {"in_features": 48, "out_features": 16}),
    ):
        (tmp_path / path).mkdir(exist_ok=True)
        (tmp_path / path / "config.json").write_text(json.dumps(settings))
    assert sentence_width(tmp_path) == 16
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(UserError, match="does not say how long its vectors are"):
        sentence_width(tmp_path)
