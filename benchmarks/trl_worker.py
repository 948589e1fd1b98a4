"""The other side of `benchmarks.step`: TRL's GRPOTrainer in a process of its own, step by step.

Reads ``N`` (steps to take) or ``0`` (end) from standard input, one a line, and answers with a line
``@ [[wall seconds, cpu seconds], ...]``. Between orders it sleeps, so whoever is measured next has
the machine to itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from benchmarks.common import letter_share, prepare


def main() -> None:
    """Build the trainer and obey."""
    prepare()
    options = argparse.ArgumentParser()
    options.add_argument("model")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--prompts", type=int, default=8)
    options.add_argument("--group", type=int, default=8)
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--lr", type=float, default=1e-5)
    options.add_argument("--beta", type=float, default=0.04)
    options.add_argument("--bf16", action="store_true")
    options.add_argument("--out", required=True)
    chosen = options.parse_args()

    import torch

    torch.set_num_threads(chosen.threads)
    build_trainer(chosen).train()


def build_trainer(chosen: argparse.Namespace) -> Any:
    """TRL's trainer with TRL's own generation, on the same model, prompts and reward as ours."""
    import torch
    from datasets import Dataset  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(chosen.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.float32)
    config = GRPOConfig(
        output_dir=chosen.out,
        per_device_train_batch_size=chosen.prompts * chosen.group,
        num_generations=chosen.group,
        max_completion_length=chosen.tokens,
        generation_kwargs={"min_new_tokens": chosen.tokens},
        beta=chosen.beta,
        learning_rate=chosen.lr,
        lr_scheduler_type="constant",
        max_steps=10**6,
        use_cpu=not torch.cuda.is_available(),
        bf16=chosen.bf16,
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=10**6,
        save_strategy="no",
        disable_tqdm=True,
    )
    prompts = [f"add {i} and {i + 1} =" for i in range(80)]
    return GRPOTrainer(
        model=model,
        reward_funcs=[_reward],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[_clock()],
    )


def _reward(completions: list[str], **_: Any) -> list[float]:
    return letter_share(completions)


def _clock() -> Any:
    """A callback that waits for orders before a step and answers after the last one ordered."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = 0
            self.steps: list[tuple[float, float]] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.left == 0:
                self.left = int(sys.stdin.readline() or 0)
                self.steps = []
                if self.left == 0:
                    sys.exit()
            self.started = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wall, cpu = self.started
            self.steps.append((time.perf_counter() - wall, time.process_time() - cpu))
            self.left -= 1
            if self.left == 0:
                print("@", json.dumps(self.steps), flush=True)

    return Clock()


if __name__ == "__main__":
    main()
