"""Files of suites over the tiny world, and models of it, for tests that judge in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from align.data.demo import BASE_MODEL
from align.judge.judge import judge, opened_case
from align.judge.judgement import Judgement
from align.judge.models import Named, open_model
from align.judge.suites_file import load_suites_file
from tests.unit.campaigns import Starter, Watcher


def raw_suites(items: int = 200, **changes: Any) -> dict[str, Any]:
    """Return one suite that the demo's base model mostly solves, and a gate for a single decision."""
    return {
        "suites": [
            {"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": items,
             "margin": 0.05, "budget": 0.05, "max_tokens": 8}
        ],
        "gate": {"campaign_rounds": 1},
        "policy": {"dtype": "float32"},
    } | changes  # fmt: skip


def write_suites(folder: Path, items: int = 200, **changes: Any) -> Path:
    """Write such a file."""
    path = folder / "suites.yaml"
    path.write_text(json.dumps(raw_suites(items, **changes)))
    return path


def copied_model(folder: Path) -> Path:
    """Copy the demo's base model."""
    shutil.copytree(BASE_MODEL, folder)
    return folder


def changed_model(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """Copy the demo's base model with every weight of its last layer changed."""
    copied_model(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    last = max(name.split(".")[2] for name in tensors if name.startswith("model.layers."))
    changed = {
        name: change(tensor) if f"layers.{last}." in name else tensor
        for name, tensor in tensors.items()
    }
    save_file(changed, file, metadata={"format": "pt"})
    return folder


def judged(
    candidate: Path | str,
    against: Path | str,
    suites: Path,
    root: Path,
    *,
    target: str | None = None,
    starter: Starter | None = None,
    watcher: Watcher | None = None,
    **named: Any,
) -> Judgement:
    """Judge with an engine in this process."""
    file, _ = load_suites_file(suites)
    ours, theirs = (
        open_model(Named(name=str(name), where=where, file=file, **named))
        for name, where in ((candidate, "CANDIDATE"), (against, "--against"))
    )
    with opened_case(file, ours, theirs, root=root, target=target) as case:
        return judge(case, start_engine=starter or Starter(), observer=watcher or Watcher())
