"""Choice for ``auto``: by the machine on which a store begins, and later by the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.data.demo import BASE_MODEL
from align.report.forecast.machine import machine_lines
from align.store import auto as module
from align.store.auto import auto_lines, without_auto
from align.store.changes.earlier_versions import as_read
from align.store.changes.expand import expanded
from align.store.ledger.ledger import Ledger
from align.store.store import known_ledger, open_ledger
from rollouts.errors import UserError
from tests.unit.campaigns import campaign, rounds

AVX2 = frozenset({"avx2", "fma"})
BF16 = AVX2 | {"avx512f", "avx512_bf16"}


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "resolve_device", lambda _: request.param)
    return str(request.param)


def expanded_here(config: CampaignConfig) -> CampaignConfig:
    """The campaign beside its store, if it has one."""
    return expanded(config, known_ledger(config))


def on(monkeypatch: pytest.MonkeyPatch, flags: frozenset[str]) -> None:
    """Go on, on a machine with such a processor and no GPU."""
    monkeypatch.setattr(module, "resolve_device", lambda _: "cpu")
    monkeypatch.setattr(module, "processor_flags", lambda: flags)
    monkeypatch.setattr("rollouts.machine.processor.processor_flags", lambda: flags)


def with_policy(folder: Path, **policy: Any) -> CampaignConfig:
    return campaign(folder, policy={"model": "demo://digits", **policy})


def begin(config: CampaignConfig) -> Ledger:
    """The store as a run would begin it here."""
    config = expanded_here(config)
    ledger = open_ledger(config)
    ledger.open_campaign(config.name, config.content(), config.hash(), read=as_read)
    return ledger


@pytest.mark.parametrize(("flags", "expected"), [(AVX2, "float32"), (BF16, "bfloat16")])
def test_dtype_follows_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: frozenset[str], expected: str
) -> None:
    on(monkeypatch, flags)
    written = with_policy(tmp_path, dtype="auto")
    assert without_auto(written, None).policy.dtype == expected
    (line,) = auto_lines(written, without_auto(written, None))
    assert line.startswith(f"policy.dtype: {expected} (auto; this processor has ")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_file_says_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    on(monkeypatch, AVX2)
    written = with_policy(tmp_path, dtype=dtype)
    assert without_auto(written, None) == written
    warned = [line for line in auto_lines(written, written) if "warning" in line]
    assert bool(warned) == (dtype == "bfloat16")
    assert all("40 to 80 times slower than in float32" in line for line in warned)


def test_adapters_are_merged_on_a_cpu_and_served_on_a_gpu(tmp_path: Path, device: str) -> None:
    written = with_policy(tmp_path, lora={"rank": 4})
    chosen = without_auto(written, None).policy
    assert chosen.lora is not None
    assert chosen.lora.serve == {"cpu": "merged", "cuda": "adapter"}[device]
    assert chosen.serves_adapters == (device == "cuda")


@pytest.mark.parametrize("lora", [{"dora": True}, {"merge": True}])
def test_what_cannot_be_served_as_an_adapter_is_merged_anywhere(
    tmp_path: Path, device: str, lora: dict[str, Any]
) -> None:
    written = with_policy(tmp_path, lora={"rank": 4, **lora})
    assert not written.policy.serves_adapters
    chosen = without_auto(written, None).policy.lora
    assert chosen is not None and chosen.serve == "merged"


def test_weights_in_flight_are_merged_anywhere(tmp_path: Path, device: str) -> None:
    flight = rounds({"sampling": {"max_staleness": 1, "in_flight": True}})
    policy = {"model": "demo://digits", "lora": {"rank": 4}}
    chosen = without_auto(campaign(tmp_path, policy=policy, rounds=flight), None).policy.lora
    assert chosen is not None and chosen.serve == "merged"


def test_a_store_goes_on_as_it_began_on_any_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = with_policy(tmp_path, dtype="auto", lora={"rank": 4})
    on(monkeypatch, BF16)
    begin(written)
    began = expanded_here(written)
    on(monkeypatch, AVX2)
    assert expanded_here(written) == began
    assert began.policy.dtype == "bfloat16"
    begin(written)  # Nothing has changed, so nothing is refused.
    lines = machine_lines(written, BASE_MODEL, 32)
    assert (
        "policy.dtype: bfloat16 (auto; as the store began, though this processor has no "
        in lines[1]
    )
    assert "times slower than in float32" in lines[2]


@pytest.mark.parametrize(
    "known", [True, False], ids=["adapter stored", "before there was a choice"]
)
def test_a_store_from_before_auto_keeps_its_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    on(monkeypatch, AVX2)
    then = with_policy(tmp_path, lora={"rank": 4, "serve": "adapter"})
    content = json.loads(json.dumps(then.content()))
    if not known:
        del content["policy"]["lora"]["serve"]
    ledger = open_ledger(then)
    ledger.open_campaign(then.name, content, "hash-of-then")
    now = expanded_here(with_policy(tmp_path, lora={"rank": 4}))
    assert now.policy.serves_adapters
    if not known:  # One more default is written down.
        ledger.open_campaign(now.name, now.content(), now.hash(), read=as_read)


def test_a_store_with_adapters_takes_no_weights_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, AVX2)
    begin(with_policy(tmp_path, lora={"rank": 4, "serve": "adapter"}))
    flight = rounds({"sampling": {"max_staleness": 1, "in_flight": True}})
    policy = {"model": "demo://digits", "lora": {"rank": 4}}
    with pytest.raises(UserError, match="began with engines that serve adapters"):
        expanded_here(campaign(tmp_path, policy=policy, rounds=flight))


def test_auto_that_stands_for_bfloat16_is_refused_where_a_round_needs_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = rounds({"retention": ["kl_anchors", "trust_region"]})
    config = campaign(tmp_path, policy={"model": "demo://digits", "dtype": "auto"}, rounds=specs)
    on(monkeypatch, BF16)
    with pytest.raises(UserError, match=r"set policy\.dtype to float32") as refusal:
        expanded_here(config)
    assert "auto stands for bfloat16" in str(refusal.value)
    on(monkeypatch, AVX2)
    assert expanded_here(config).policy.dtype == "float32"
