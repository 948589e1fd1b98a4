"""Claim: one file takes story models of any size and origin through three rounds over the same prompts.

Every model goes through `configs/stories.yaml` as it is, and without any retention, which shows what each
reward could gain at all. A model is a folder, or
``WIDTHxLAYERS:SEED``, which is trained here from the text: a Llama with heads of 32.

Columns: each reward's score at the base, after its own round and at the end, and the last two as shares of
what naive training gains over the base; likelihood and variety at the base and at the end.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import align
from benchmarks.common import parser, prepare, save, show

SHAPE = re.compile(r"(\d+)x(\d+):(\d+)")
"""A model to train: width, layers and seed."""

NAIVE = (
    "defaults.mode=override", "defaults.anchors.new=[]", "defaults.anchors.general=[]",
    "defaults.replay.general=0.0", "gate.mode=observe",
)  # fmt: skip
"""Settings of a campaign without retention."""


def train(name: str, text: str, tokenizer: Path, folder: Path, steps: int) -> Path:
    """Train a small Llama on a text, once; return its folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if (folder / "config.json").is_file():
        return folder
    width, layers, seed = (int(part) for part in _parts(name))
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(encoder), hidden_size=width, intermediate_size=11 * width // 4,
            num_hidden_layers=layers, num_attention_heads=width // 32, head_dim=32,
            num_key_value_heads=width // 32, max_position_embeddings=256, tie_word_embeddings=True,
            bos_token_id=encoder.bos_token_id, eos_token_id=encoder.eos_token_id,
            pad_token_id=encoder.pad_token_id,
        )
    )  # fmt: skip
    tokens = torch.tensor(encoder(text.replace("\n", " "))["input_ids"])
    tokens, unseen = tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - 193, (16,)).tolist()
        batch = torch.stack([tokens[start : start + 192] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    whole = unseen[: len(unseen) // 192 * 192].view(-1, 192)
    with torch.no_grad():
        nats = float(model(input_ids=whole, labels=whole).loss)
    size = f"{model.num_parameters():,} parameters"
    print(f"{name}: {size}, {nats:.3f} nats per token of unseen text", flush=True)
    encoder.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def measure(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run a model's campaigns, or go on with them; return the states and scores of their rounds."""
    figures = {}
    for row, overrides in ((args.label, args.set), ("naive", NAIVE)):
        store = (args.folder / row / model.name).resolve()
        sets = [f"policy.model={model}", f"suites.likelihood.text={args.text}"]
        campaign = align.load_campaign(args.campaign, [*sets, f"store={store}", *overrides])
        campaign.run(partial(_print, f"{model.name}, {row}"))
        matrix = campaign.evidence.matrix()
        figures["naive" if row == "naive" else "keel"] = {
            "states": {r.name: r.state for r in campaign.evidence.ledger.rounds()},
            "path": [dict(zip(matrix.suites, r.scores, strict=True)) for r in matrix.path],
        }
    return figures


def main() -> None:
    """Measure every model and print the table."""
    prepare()
    args = _arguments()
    rows, data = [], {}
    for name in args.models:
        folder = Path(name)
        if SHAPE.fullmatch(name):
            folder = args.folder / "models" / name.replace(":", "-")
            train(name, args.text.read_text(), args.tokenizer, folder, args.train_steps)
        data[name] = measure(folder, args)
        rows += _rows(folder.name, data[name])
    names = ("round", "state", "base", "own round", "end", "share", "share at the end")
    show("Three rewards over the same prompts", ["model", *names], rows)
    save(args.json, "stories", args, data)


def _print(label: str, event: object) -> None:
    """Print what a campaign says, but for the progress of a measurement."""
    if not str(event).startswith("measuring"):
        print(f"  {label}: {event}", flush=True)


def _rows(name: str, figures: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for every round, and two for what the rounds cost."""
    states, path, rows = figures["keel"]["states"], figures["keel"]["path"], []
    accepted = [round for round, state in states.items() if state == "accepted"]
    for number, (round, state) in enumerate(states.items(), start=1):
        base, gain = path[0][round], figures["naive"]["path"][number][round] - path[0][round]
        own = path[accepted.index(round) + 1][round] if round in accepted else None
        shares = [
            None if score is None else (score - base) / gain for score in (own, path[-1][round])
        ]
        rows.append([name, round, state, *map(_cell, [base, own, path[-1][round], *shares])])
    for suite in ("likelihood", "variety"):
        rows.append([name, suite, "", *map(_cell, [path[0][suite], None, path[-1][suite]]), "", ""])
    return rows


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _parts(name: str) -> Sequence[str]:
    match = SHAPE.fullmatch(name)
    assert match is not None
    return match.groups()


def _arguments() -> argparse.Namespace:
    options = parser("Story models through the rounds of configs/stories.yaml.")
    options.add_argument("--models", nargs="+", required=True, help="folders, or WIDTHxLAYERS:SEED")
    options.add_argument("--text", type=Path, required=True, help="file of stories")
    options.add_argument("--tokenizer", type=Path, help="folder, for models that are trained here")
    options.add_argument("--campaign", type=Path, default=Path("configs/stories.yaml"))
    options.add_argument("--set", action="append", default=[], help="as of keel run")
    options.add_argument("--label", default="keel", help="name of the stores, one for each --set")
    options.add_argument("--train-steps", type=int, default=300)
    options.add_argument("--folder", type=Path, default=Path("runs/benchmarks/stories"))
    args = options.parse_args()
    args.text = args.text.resolve()
    if any(map(SHAPE.fullmatch, args.models)) and args.tokenizer is None:
        options.error("a model that is trained here needs --tokenizer FOLDER")
    return args


if __name__ == "__main__":
    main()
