"""A KV cache that cannot hold one sequence is refused; what is tight on a machine is said before a run."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.data.demo import BASE_MODEL
from align.report.forecast import fit
from align.report.forecast.fit import (
    check_kv_cache,
    fit_lines,
    kv_bytes_of,
    memory_needed,
    thread_warning,
)
from align.report.forecast.forecast import forecast
from align.report.forecast.machine import check_machine, machine_lines, runs_here
from rollouts.errors import UserError
from tests.unit.campaigns import campaign

MIB = 1 << 20
LLAMA = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
         "hidden_size": 576}  # fmt: skip
"""SmolLM2-135M, whose token takes 46 KB in float32."""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (LLAMA, 46_080),
        ({"text_config": LLAMA, "hidden_size": 1}, 46_080),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, 2 * 12 * 768 * 4),
        ({**LLAMA, "head_dim": 128}, 92_160),
        ({**LLAMA, "sliding_window": 4096, "use_sliding_window": False}, 46_080),
        ({**LLAMA, "layer_types": ["full_attention"] * 30}, 46_080),
        ({**LLAMA, "sliding_window": 4096}, None),
        ({**LLAMA, "layer_types": ["full_attention", "sliding_attention"]}, None),
        ({**LLAMA, "kv_lora_rank": 512}, None),
        ({"model_type": "mamba"}, None),
        ({**LLAMA, "num_key_value_heads": [3] * 30}, None),
        ({**LLAMA, "num_attention_heads": 0}, None),
    ],
)
def test_bytes_of_a_token(content: dict[str, Any], expected: int | None) -> None:
    assert kv_bytes_of(content, 4) == expected


@pytest.fixture
def smollm2(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def test_the_least_cache_is_named(tmp_path: Path, smollm2: Path) -> None:
    config = campaign(tmp_path, rollouts={"kv_cache_mb": 64})
    with pytest.raises(UserError) as caught:
        check_kv_cache(smollm2, 8192, config)
    told = str(caught.value)
    assert "holds 1,456 tokens, and one sequence may have 8,192" in told
    assert "every token takes 46.1 KB of the 64 MiB" in told
    assert "set rollouts.kv_cache_mb to 360 or more, or rollouts.max_model_len to 1456" in told
    enough = campaign(tmp_path, rollouts={"kv_cache_mb": 360})
    check_kv_cache(smollm2, 8192, enough)
    # Half the bytes a number, half the cache.
    half = campaign(
        tmp_path,
        rollouts={"kv_cache_mb": 180},
        policy={"model": "demo://digits", "dtype": "bfloat16"},
    )
    check_kv_cache(smollm2, 8192, half)


def tight(folder: Path) -> Any:
    """The digits, made for a context that 16 MiB cannot hold."""
    model = folder / "long"
    copytree(BASE_MODEL, model)
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**content, "max_position_embeddings": 100_000}))
    return campaign(
        folder,
        policy={"model": str(model)},
        rollouts={"kv_cache_mb": 16, "max_model_len": 100_000},
    )


def test_all_that_look_at_a_file_refuse_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = tight(tmp_path)
    for look in (
        lambda: machine_lines(config, Path(config.policy.model), 100_000),
        lambda: check_machine(config, None),
        lambda: forecast(config),
    ):
        with pytest.raises(UserError, match="the KV cache of an engine holds"):
            look()
    assert not (tmp_path / "store").exists()


def test_a_process_that_may_map_too_little_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(fit, "address_space", lambda: 2 << 30)
    with pytest.raises(UserError, match=r"ulimit -v: a process may have 2048 MiB of addresses"):
        check_machine(campaign(tmp_path), None)
    monkeypatch.setattr(fit, "address_space", lambda: None)
    check_machine(campaign(tmp_path), None)


@pytest.mark.parametrize("text", [None, "", "[]", '{"n_layer": "x"}'])
def test_a_folder_that_cannot_be_read_is_left_to_whoever_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    model = tmp_path / "broken"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"cut")
    if text is not None:
        (model / "config.json").write_text(text)
    check_machine(campaign(tmp_path, policy={"model": str(model)}), None)


def test_a_cluster_sees_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    assert not runs_here(None)
    check_machine(tight(tmp_path), None)
    monkeypatch.delenv("RAY_ADDRESS")
    assert runs_here(None) and runs_here("local") and not runs_here("auto")


def test_what_is_tight_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = campaign(tmp_path)
    monkeypatch.setattr(fit, "shared_memory", lambda: 64 * MIB)
    monkeypatch.setattr(fit, "available_memory", lambda: 300 * MIB)
    monkeypatch.setattr(fit, "address_space", lambda: 1000 * MIB)
    lines = list(fit_lines(BASE_MODEL, 32, config))
    assert lines[0].startswith("KV cache: ")
    assert [line.split(":")[1].strip() for line in lines[1:]] == [
        "shared memory",
        "memory",
        "memory",
    ]
    assert "300 MiB are available here" in lines[2]
    assert "ulimit -v" in lines[3]
    # An engine's cache, and a few MiB of weights; the object store is never below 80.
    assert memory_needed(BASE_MODEL, config) // MIB in range(256 + 80, 256 + 160)


def test_a_roomy_machine_is_told_of_its_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("shared_memory", "available_memory"):
        monkeypatch.setattr(fit, name, lambda: 64 << 30)
    monkeypatch.setattr(fit, "address_space", lambda: None)
    (line,) = fit_lines(BASE_MODEL, 32, campaign(tmp_path))
    assert "one sequence of 32 needs 1 MiB" in line
    monkeypatch.setattr(fit, "resolve_device", lambda _: "cuda")
    assert list(fit_lines(BASE_MODEL, 32, campaign(tmp_path))) == []


@pytest.mark.parametrize(
    ("engines", "threads", "learner", "staleness", "cores", "warned"),
    [
        (1, 2, 2, 0, 2, False),  # They take turns.
        (1, 1, 2, 1, 2, False),
        (1, 2, 1, 1, 2, True),  # Nothing is left for the learner.
        (1, 1, 1, 1, 1, False),
        (1, 4, 1, 0, 2, True),
        (3, 1, 1, 0, 2, True),
        (1, 1, 3, 0, 2, True),
    ],
)
def test_more_threads_than_cores_are_named(
    engines: int, threads: int, learner: int, staleness: int, cores: int, warned: bool
) -> None:
    config = CampaignConfig.model_validate(
        {
            "name": "threads",
            "policy": {"model": "demo://digits", "threads": learner},
            "rollouts": {"engines": engines, "threads": threads},
            "rounds": [
                {
                    "name": "one",
                    "prompts": "demo://rev",
                    "rewards": ["exact_match"],
                    "steps": 1,
                    "sampling": {"max_staleness": staleness},
                }
            ],
        }
    )
    assert (thread_warning(config, cores) is not None) is warned
