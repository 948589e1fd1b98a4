"""TRL's side of `benchmarks.step` and `benchmarks.learner`: a process with one of its trainers.

Whole steps sample with TRL's own generation. With ``--completions given`` the completions are those of
`benchmarks.given`, and a step is the rest: the forward passes that TRL adds to every step (reference,
RLOO's old logprobs, KTO's mismatched answers), loss, gradient and optimizer, in TRL's own training loop.
`benchmarks.worker` has the protocol of orders and answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.common import PAD, letter_share, prepare
from benchmarks.given import Given, given, task
from benchmarks.worker import answer, now, orders, since

SAMPLED = ("grpo", "rloo")
IGNORED = -100
"""Label of tokens that are not learnt."""


def main() -> None:
    """Build the trainer and follow the orders."""
    prepare()
    options = task(__doc__)
    options.add_argument("--completions", choices=["sampled", "given"], default="sampled")
    options.add_argument("--passes", type=int, default=1, help="forward passes a step is cut into")
    options.add_argument("--out", required=True)
    chosen = options.parse_args()

    import torch

    torch.set_num_threads(chosen.threads)
    trainer = build_trainer(chosen)
    if chosen.completions == "given":
        feed(trainer, chosen)
    trainer.train()


def build_trainer(chosen: argparse.Namespace) -> Any:
    """Build TRL's trainer on the same model as ours; only the settings that define the work are set."""
    import torch
    import trl
    from datasets import Dataset  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kind = chosen.algorithm.upper()
    units = chosen.prompts * chosen.group // (2 if chosen.algorithm == "dpo" else 1)
    config = getattr(trl, f"{kind}Config")(
        output_dir=chosen.out,
        per_device_train_batch_size=units // chosen.passes,
        gradient_accumulation_steps=chosen.passes,
        learning_rate=chosen.lr,
        lr_scheduler_type="constant",
        max_steps=10**6,
        use_cpu=not torch.cuda.is_available(),
        bf16=chosen.dtype == "bfloat16",
        gradient_checkpointing=False,
        report_to=[],
        logging_first_step=True,
        logging_steps=10**6,
        save_strategy="no",
        disable_tqdm=True,
        **_own_settings(chosen),
    )
    rewards = {"reward_funcs": [_reward]} if chosen.algorithm in SAMPLED else {}
    return getattr(trl, f"{kind}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_dict(_texts(chosen.algorithm)),
        processing_class=AutoTokenizer.from_pretrained(chosen.model, padding_side="left"),
        callbacks=[_clock()],
        peft_config=_adapter(chosen.lora) if chosen.lora else None,
        **rewards,
    )


def _adapter(rank: int) -> Any:
    """Return the config of the adapter that our policy has by default."""
    from peft import LoraConfig

    from align.config.campaign import LoraConfig as Ours

    ours = Ours(rank=rank)
    return LoraConfig(
        r=ours.rank,
        lora_alpha=ours.alpha,
        lora_dropout=ours.dropout,
        target_modules=list(ours.targets),
        task_type="CAUSAL_LM",
    )


def _own_settings(chosen: argparse.Namespace) -> dict[str, Any]:
    if chosen.algorithm in SAMPLED:
        return {
            "num_generations": chosen.group,
            "max_completion_length": chosen.tokens,
            "generation_kwargs": {"min_new_tokens": chosen.tokens},
            "beta": chosen.beta,
        }
    return {"max_length": None, "train_sampling_strategy": "sequential"}


def _texts(algorithm: str) -> dict[str, list[Any]]:
    """Return prompts to sample from; for other algorithms two rows that `feed` replaces."""
    prompts = [f"add {i} and {i + 1} =" for i in range(80)]
    return {
        "dpo": {"prompt": prompts[:2], "chosen": ["1", "2"], "rejected": ["3", "4"]},
        "sft": {"prompt": prompts[:2], "completion": ["1", "2"]},
        "kto": {"prompt": prompts[:2], "completion": ["1", "2"], "label": [True, False]},
    }.get(algorithm, {"prompt": prompts})


def _reward(completions: list[str], **_: Any) -> list[float]:
    return letter_share(completions)


def feed(trainer: Any, chosen: argparse.Namespace) -> None:
    """Give a trainer the step's completions instead of its own."""
    from datasets import Dataset

    rows = given(chosen.algorithm, chosen)
    if chosen.algorithm in SAMPLED:
        trainer._generate_and_score_completions = _measured(trainer, rows, chosen)
    else:
        columns = {"dpo": _pairs, "sft": _demonstrations, "kto": _ratings}[chosen.algorithm]
        trainer.train_dataset = Dataset.from_list(columns(rows))


def _measured(trainer: Any, rows: Sequence[Given], chosen: argparse.Namespace) -> Any:
    """Return a function that prepares the rows as TRL prepares its samples, without sampling and
    scoring."""
    import torch

    def padded(name: str, *, left: bool) -> tuple[Any, Any]:
        lines = [torch.tensor(getattr(row, name)) for row in rows]
        side = "left" if left else "right"
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(lines, batch_first=True, padding_value=PAD, padding_side=side)
        ones = [torch.ones_like(line) for line in lines]
        mask = pad(ones, batch_first=True, padding_side=side)
        return ids.to(trainer.accelerator.device), mask.to(trainer.accelerator.device)

    prompt_ids, prompt_mask = padded("prompt_ids", left=True)
    completion_ids, mask = padded("completion_ids", left=False)
    ids, whole = torch.cat([prompt_ids, completion_ids], 1), torch.cat([prompt_mask, mask], 1)
    advantages = torch.tensor([row.advantage for row in rows], device=ids.device)
    batch = {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask,
        "completion_ids": completion_ids, "completion_mask": mask,
    }  # fmt: skip
    size = trainer.args.per_device_train_batch_size

    @torch.no_grad()
    def logprobs(model: Any) -> Any:
        width = completion_ids.shape[1]
        return trainer._get_per_token_logps_and_entropies(model, ids, whole, width, size)[0]

    def grpo(_: Any) -> dict[str, Any]:
        return batch | {
            "advantages": advantages,
            "num_items_in_batch": mask.sum(),
            "ref_per_token_logps": logprobs(trainer.ref_model),
        }

    def rloo(_: Any) -> dict[str, Any]:
        old, reference = logprobs(trainer.model), logprobs(trainer.ref_model)
        kl = ((old - reference) * mask).sum(1)
        return batch | {
            "old_logps": (old * mask).sum(1),
            "advantages": advantages - trainer.beta * kl,
        }

    return {"grpo": grpo, "rloo": rloo}[chosen.algorithm]


def _pairs(rows: Sequence[Given]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_ids": list(chosen.prompt_ids),
            "chosen_ids": list(chosen.completion_ids),
            "rejected_ids": list(rejected.completion_ids),
        }
        for chosen, rejected in zip(rows[::2], rows[1::2], strict=True)
    ]


def _demonstrations(rows: Sequence[Given]) -> list[dict[str, Any]]:
    return [
        {
            "input_ids": [*row.prompt_ids, *row.completion_ids],
            "labels": [*[IGNORED] * len(row.prompt_ids), *row.completion_ids],
        }
        for row in rows
    ]


def _ratings(rows: Sequence[Given]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_ids": list(row.prompt_ids),
            "completion_ids": list(row.completion_ids),
            "KL_completion_ids": list(rows[index - 1].completion_ids),
            "label": row.advantage > 0,
        }
        for index, row in enumerate(rows)
    ]


def _clock() -> Any:
    """Return a callback that waits for an order before a step and answers after the last step of it."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.orders, self.left = orders(), 0
            self.logged: dict[str, Any] = {}

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.left == 0:
                self.left, self.taken = next(self.orders, 0), []
                if self.left == 0:
                    sys.exit()
            self.started = now()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.taken.append(since(self.started))
            self.left -= 1
            if self.left == 0:
                answer(self.taken, **self.logged)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            # TRL logs the first step only, after its answer; later answers have the norm.
            self.logged |= {"grad_norm": float(logs["grad_norm"])} if "grad_norm" in logs else {}

    return Clock()


if __name__ == "__main__":
    main()
