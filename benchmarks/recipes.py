"""Settings of each algorithm on the tiny world, for the rows of `benchmarks.retention`.

The row ``ours:dpo`` has the defaults with DPO instead of GRPO; ``naive:dpo`` has no replay and no anchors.
Learning rates are multiples of the run's rate, since the losses differ in scale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"algorithm": "dr_grpo"},
    "dapo": {"algorithm": {"name": "dapo", "max_resamples": 1}},
    "gspo": {"algorithm": "gspo"},
    "cispo": {"algorithm": "cispo"},
    "rloo": {"algorithm": "rloo"},
    "reinforce_pp": {"algorithm": "reinforce_pp"},
    "ppo": {"algorithm": {"name": "ppo", "critic": {"model": "shared", "lr": 1e-3}}},
    "rft": {"algorithm": {"name": "rft", "keep": 8, "threshold": 1.0}},
    "dpo": {"algorithm": {"name": "dpo", "beta": 0.3, "choose": "all", "max_pairs": 4}},
    "kto": {"algorithm": {"name": "kto", "ratings": "online", "beta": 0.3}},
    "sft": {"algorithm": "sft"},
}
"""Settings over the defaults, by name of the algorithm."""

LR_FACTORS = {"dpo": 1.5, "kto": 2.0, "dr_grpo": 1.5}
"""Learning rate as a multiple of the run's; 1 for the other algorithms."""


def rounds_of(name: str, tasks: tuple[str, ...], steps: int, folder: Path) -> list[dict[str, Any]]:
    """Return the four rounds; for algorithms that learn from a file, write the file."""
    rounds: list[dict[str, Any]] = [
        {"name": task, "prompts": f"demo://{task}", "rewards": ["exact_match"], "steps": steps}
        for task in tasks
    ]
    if name == "sft":
        for spec in rounds:
            spec["data"] = {"source": str(_demonstrations(spec["name"], folder)), "heldout": 0.01}
            spec["suite"] = {"prompts": f"demo://{spec['name']}?split=eval"}
    return rounds


def _demonstrations(task: str, folder: Path) -> Path:
    """Write the right answers to the prompts that other algorithms sample for; return the file."""
    from align.data.demo.world import demo_prompts

    path = folder / f"{task}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"prompt": prompt.text, "completion": prompt.columns["answer"]}
        for prompt in demo_prompts(f"demo://{task}")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
