"""Checkpoints of a real run of TRL's SFTTrainer, judged while it goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from align.data.demo import BASE_MODEL
from align.judge.trl import RANKS, VERDICT, JudgeCallback, JudgeProcess
from rollouts.errors import RunError, UserError
from tests.unit.align.judge.judging import judged, write_suites

BASE = "demo://digits"


def trained(folder: Path, callback: Any, *, lr: float, steps: int = 4) -> Any:
    """Run TRL's trainer on the demo's model, with a checkpoint at every second step."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": f"copy {n} 2 3 = ", "completion": f"{n} 2 3"} for n in range(10)]
    trainer = SFTTrainer(
        model=str(BASE_MODEL),
        args=SFTConfig(
            output_dir=str(folder), max_steps=steps, save_steps=2, learning_rate=lr, report_to="none",
            per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True, bf16=False, max_length=32,
            gradient_checkpointing=False, lr_scheduler_type="constant",
        ),
        train_dataset=Dataset.from_list(rows * 2),
        processing_class=AutoTokenizer.from_pretrained(BASE_MODEL),
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    return trainer


def in_process(tmp_path: Path) -> Callable[[Path], Mapping[str, Any]]:
    """Return ``keel judge`` with an engine in this process."""
    suites = write_suites(tmp_path)

    def judge(folder: Path) -> Mapping[str, Any]:
        judgement = judged(folder, BASE, suites, tmp_path / "cache")
        plain: dict[str, Any] = json.loads(json.dumps(judgement.to_dict(), default=str))
        return plain

    return judge


def test_every_checkpoint_is_judged_and_the_training_goes_on(tmp_path: Path) -> None:
    callback = JudgeCallback(judge=in_process(tmp_path))
    trainer = trained(tmp_path / "run", callback, lr=1e-9)
    assert list(callback.judgements) == [2, 4] and trainer.state.global_step == 4
    for step, judgement in callback.judgements.items():
        folder = tmp_path / f"run/checkpoint-{step}"
        assert json.loads((folder / VERDICT).read_text()) == judgement
        assert judgement["outcome"] == "accepted"
    assert callback.judgements[4]["incumbent"]["reused"] == ["general"]
    assert callback.best == tmp_path / "run/checkpoint-4"
    logged = [entry for entry in trainer.state.log_history if "judge/accepted" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]


def test_a_checkpoint_that_lost_something_stops_the_training(tmp_path: Path) -> None:
    callback = JudgeCallback(judge=in_process(tmp_path), stop="rejected")
    trainer = trained(tmp_path / "run", callback, lr=0.5)
    assert trainer.state.global_step == 2
    assert callback.judgements[2]["outcome"] == "rejected" and callback.best is None


def test_only_every_second_checkpoint(tmp_path: Path) -> None:
    seen: list[str] = []

    def judge(folder: Path) -> Mapping[str, Any]:
        seen.append(folder.name)
        return {"accepted": False, "outcome": "too_few_items", "suites": []}

    trained(tmp_path / "run", JudgeCallback(judge=judge, every=2, stop="rejected"), lr=1e-9)
    assert seen == ["checkpoint-4"]


def test_a_judgement_that_fails_does_not_end_the_training(tmp_path: Path) -> None:
    def judge(folder: Path) -> Mapping[str, Any]:
        raise RunError("the engine is gone")

    callback = JudgeCallback(judge=judge)
    assert trained(tmp_path / "run", callback, lr=1e-9).state.global_step == 4
    assert list(callback.failed) == [2, 4] and "the engine is gone" in callback.failed[2]


def test_suites_that_cannot_be_used_end_the_training_before_its_first_step(tmp_path: Path) -> None:
    callback = JudgeCallback(against=BASE, suites=tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"(?s)could not judge.*no such suites file"):
        trained(tmp_path / "run", callback, lr=1e-9)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_the_command_is_a_process_of_this_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = JudgeProcess(
        against="org/name", suites="s.yaml", options=("--cache", "c"), environment=("A_KEY",)
    )
    words = process.command("out/checkpoint-1", "--json")
    assert words[0] == sys.executable
    assert words[3:] == [
        "judge", "out/checkpoint-1", "--against", "org/name", "--suites", "s.yaml", "--cache", "c",
        "--json",
    ]  # fmt: skip
    for name in RANKS:
        monkeypatch.setenv(name, "1")
    for name in ("A_KEY", "HF_TOKEN", "DATABASE_URL", "HF_HOME"):
        monkeypatch.setenv(name, "1")
    done = process._run([sys.executable, "-c", "import os; print(*os.environ)"])
    names = set(done.stdout.split())
    assert not names & {*RANKS, "HF_TOKEN", "DATABASE_URL"}
    assert names >= {"A_KEY", "HF_HOME", "PATH"}
