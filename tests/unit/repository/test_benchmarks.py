"""The benchmarks' own parts: what they promise, what both sides are given, and how a verdict is reached."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import processor, without_end
from benchmarks.given import ALGORITHMS, PROMPT_TOKENS, given, task, work_of
from benchmarks.worker import Worker, answer, orders

FOLDER = Path(__file__).parents[3] / "benchmarks"
NAMES = sorted(
    path.stem for path in FOLDER.glob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8")
)
CLAIMS = [name for name in NAMES if not name.endswith("_worker")]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks prepare the environment of their own process, not that of the tests."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_says_what_can_be_varied(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    assert ended.value.code == 0
    assert "--help" in capsys.readouterr().out


def test_every_claim_is_in_the_overview() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"-m benchmarks\.(\w+)", text)) == set(CLAIMS)


def step(algorithm: str, *words: str) -> list[Any]:
    return given(algorithm, task(None).parse_args(["model", "--algorithm", algorithm, *words]))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_both_sides_are_given_the_same(algorithm: str) -> None:
    words = ("--prompts", "3", "--group", "4", "--tokens", "16")
    rows = step(algorithm, *words, "--lengths", "ragged")
    # Sampled prompts have a group, pairs have two sides, and in a file no prompt comes again.
    shared = {"grpo": 4, "rloo": 4, "dpo": 2, "sft": 1, "kto": 1}[algorithm]
    assert rows == step(algorithm, *words, "--lengths", "ragged")
    assert [len(row.prompt_ids) for row in rows] == [PROMPT_TOKENS] * 12
    assert all(
        row.prompt_ids == rows[index - index % shared].prompt_ids for index, row in enumerate(rows)
    )
    assert len({row.prompt_ids for row in rows}) == 12 // shared
    assert len({len(row.completion_ids) for row in rows}) > 1
    assert {len(row.completion_ids) for row in step(algorithm, *words)} == {16}


def test_pairs_and_ratings_alternate_and_demonstrations_all_teach() -> None:
    for algorithm in ("dpo", "kto"):
        assert [row.advantage for row in step(algorithm)[:4]] == [1.0, -1.0, 1.0, -1.0]
    assert {row.advantage for row in step("sft")} == {1.0}


def test_work_is_handed_on_whole() -> None:
    words = ["model", "--prompts", "3", "--dtype", "bfloat16", "--lr", "0.1"]
    assert work_of(task(None).parse_args(words)) == {
        "prompts": 3, "group": 8, "tokens": 64, "dtype": "bfloat16", "lr": 0.1, "beta": 0.04,
        "lora": 0,
    }  # fmt: skip


def test_orders_end_with_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\n1\n0\n5\n"))
    assert list(orders()) == [2, 1]


def test_an_answer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    answer([(1.0, 0.5), (2.0, 1.5)], grad_norm=3.0)
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line.removeprefix("@ "))
    assert (found["wall_s"], found["cpu_s"], found["grad_norm"]) == ([1.0, 2.0], [0.5, 1.5], 3.0)
    assert found["rss_mib"] > 1.0


def test_a_worker_that_ends_is_named() -> None:
    worker = Worker.start("benchmarks.given", threads=1)
    try:
        with pytest.raises(RuntimeError, match=r"enter 1 to see why: .*benchmarks\.given"):
            worker.steps(1)
    finally:
        worker.close()


def figures(step_s: float, peak_mib: float, grad_norm: float = 1.0) -> dict[str, Any]:
    return {
        "threads": 1, "wall_s": [step_s], "cpu_s": [step_s],
        "grad_norm": grad_norm, "peak_mib": peak_mib,
    }  # fmt: skip


def line_of(capsys: pytest.CaptureFixture[str], **sides: Any) -> str:
    """The table's row for a step of 1000 tokens and 100 parameters, where 1e6 operations take 1 s."""
    from benchmarks.learner import report

    found = {
        "algorithm": "grpo", "lengths": "equal", "tokens": 1000, "parameters": 100,
        "matmul_flops": [1e6], **sides,
    }  # fmt: skip
    shape = Namespace(prompts=1, group=1, tokens=1, size="3M", dtype="float32", threads=1)
    report([found], shape)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "grpo, equal" in line]
    return line


def test_the_quicker_run_and_the_leaner_one_are_what_ours_is_held_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = line_of(capsys, ours=figures(1.0, 90.0), trl=[figures(3.0, 91.0), figures(2.0, 99.0)])
    for shown in ("1,000", "500 (1)", "2.00x", "80%", "40%", "90", "91", "passed"):
        assert shown in line
    assert "FAILED" in line_of(capsys, ours=figures(1.0, 92.0), trl=[figures(2.0, 91.0)])
    assert "FAILED" in line_of(capsys, ours=figures(1.0, 90.0), trl=[figures(1.4, 91.0)])


def test_other_work_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match=r"gradients 50\.0% apart"):
        line_of(capsys, ours=figures(1.0, 9.0, 1.5), trl=[figures(2.0, 9.0)])


def test_without_a_gpu_the_gpu_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from benchmarks.gpu import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "CUDA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        ("fma avx2", "", "AVX2"),
        ("fma avx2 avx512f", "", "AVX-512"),
        ("avx2 avx512f avx512_bf16", "", "AVX-512 BF16"),
        ("avx2 avx512f avx512_bf16", "AVX2", "AVX2 (limited from AVX-512 BF16)"),
        ("fma", "", "no AVX2"),
    ],
)
def test_a_table_names_the_processor(flags: str, limit: str, expected: str) -> None:
    cpuinfo = f"model name : Some CPU\nflags : {flags}\nmodel name : Some CPU\nflags : {flags}\n"
    line = processor(cpuinfo, {"ONEDNN_MAX_CPU_ISA": limit} if limit else {})
    assert line.startswith("Some CPU, ") and line.endswith(f" cores, {expected}")


def test_a_model_without_an_end_keeps_everything_else(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "tokenizer.json").write_text("{}")
    settings = {"hidden_size": 8, "eos_token_id": 2}
    for name in ("config.json", "generation_config.json"):
        (model / name).write_text(json.dumps(settings))
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "unk": "?"}))
    made = without_end(model, tmp_path / "endless")
    assert json.loads((made / "config.json").read_text()) == {**settings, "eos_token_id": None}
    assert json.loads((made / "tokenizer_config.json").read_text()) == {
        "eos_token": None,
        "unk": "?",
    }
    assert (made / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((model / "config.json").read_text()) == settings
