"""``keel reward test --policy`` on the built-in model, as a process of its own with Ray and vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from align.data.demo import BASE_MODEL
from tests.patience import patient

ROOT = Path(__file__).parents[2]
DEADLINE_S = patient(240.0)
ROWS = [
    {"prompt": "rev _ 3 1 4 1 5 =", "answer": "5 1 4 1 3"},
    {"prompt": "rev _ 2 7 1 8 2 =", "answer": "2 8 1 7 2"},
]


def test_a_reward_is_tried_on_what_a_policy_says(tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = [
        sys.executable, "-c", "from launch.cli import main; main()",
        "reward", "test", "exact_match", "--data", str(data), "--policy", str(BASE_MODEL),
        "--group-size", "8", "--max-tokens", "8", "--json",
    ]  # fmt: skip
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")}
    ran = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    assert (found["samples"], found["scored"], found["groups"]) == (16, 16, 2)
    # The base model knows the task, and not perfectly.
    assert (found["distribution"]["min"], found["distribution"]["max"]) == (0.0, 1.0)
