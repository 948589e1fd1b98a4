"""Claim: keys that a round trained at the default layer are nearest to nine of ten prompts it never saw.

Routing alone, without any adapter: each task's prompts train its keys as a round of a bank does, then
prompts that were held out retrieve among the keys of all tasks. Tasks are those of `benchmarks.slm`, or the
four of the tiny world where no data is named.

Columns: layer of the base whose hidden states are compared, None for the bank's default; share of the
held-out prompts of each task that its own keys answered, or most of the mix that did.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.campaigns import TASKS
from benchmarks.common import parser, prepare, save, show, verdict

if TYPE_CHECKING:
    from rollouts.types import Prompt

ENOUGH = 0.9
"""Smallest share of held-out prompts that the claim allows, as a mean over the tasks."""


def main() -> None:
    """Print the shares of every layer, and whether the claim holds at the default one."""
    prepare()
    args = arguments()
    import torch

    from align.config.policy import PolicyConfig
    from align.data.base_model import load_encoder, resolve_model
    from rollouts.engines.decoding.weights import load_model

    torch.set_num_threads(args.threads)
    policy = PolicyConfig(model=args.model)
    folder = resolve_model(policy)
    encoder = load_encoder(folder, policy)
    model = load_model(
        str(folder), getattr(torch, args.dtype), torch.device("cpu"), trust_remote_code=False
    )
    texts = demo_texts(args) if args.data is None else file_texts(args)
    prompts = {
        task: [[encoder.encode(prompt_of(text, args.chat)) for text in part] for part in parts]
        for task, parts in texts.items()
    }
    records = []
    for layer in args.layers:
        shares = routed(model, folder, prompts, layer, args)
        records.append({"layer": layer, "mean": sum(shares.values()) / len(shares), **shares})
    rows = [[str(r["layer"]), *(f"{r[name]:.3f}" for name in ("mean", *prompts))] for r in records]
    notes = [
        f"{ENOUGH:.0%} at the default layer: {verdict(record['mean'] >= ENOUGH)}"
        for record in records
        if record["layer"] is None
    ]
    show("Held-out prompts that retrieve their own task", ("layer", "mean", *prompts), rows, *notes)
    save(args.json, "routing", args, records)


def routed(
    model: Any,
    folder: Path,
    prompts: Mapping[str, Sequence[Sequence[tuple[int, ...]]]],
    layer: int | None,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Train the keys of every task, and return the share of its held-out prompts that they answer."""
    import torch

    from align.bank.keys import train_keys
    from align.bank.router import Queries, Router
    from align.config.policy import BankConfig
    from align.learner.bank.encoding import encoder_of

    config = BankConfig(
        keys=args.keys, top_k=args.top_k, groups=args.groups, layer=layer, scale=args.scale
    )
    queries = Queries(encoder_of(config, model, folder))
    keys: list[tuple[str, torch.Tensor]] = []
    for seed, (task, (learnt, _)) in enumerate(prompts.items()):
        keys.append((task, train_keys(queries.of(learnt), config, seed=seed)))
    router = Router(queries, keys, top_k=args.top_k)
    shares = {}
    for task, (_, heldout) in prompts.items():
        own = [
            sum(part.weight for part in mix if part.adapter == task)
            for mix in router.mixes(heldout)
        ]
        shares[task] = sum(weight > 0.5 for weight in own) / len(own)
    return shares


def prompt_of(text: str, chat: bool) -> Prompt:
    """Return a text as a prompt, or as what a user says in a chat."""
    from rollouts.types import Prompt

    if chat:
        return Prompt(id=text, messages=({"role": "user", "content": text},))
    return Prompt(id=text, text=text)


def file_texts(args: argparse.Namespace) -> dict[str, list[list[str]]]:
    """Return the prompts of each task of `benchmarks.slm`: those to learn, and those held out."""
    import json

    from benchmarks.slm import ORDERS, write_data

    count = args.train + args.items if args.validate else args.train
    settings = argparse.Namespace(train=count, items=args.items, chars=args.chars)
    with TemporaryDirectory(prefix="routing-") as scratch:
        files = write_data(args.data, Path(scratch), ORDERS["given"], settings)
        texts = {
            task: [
                [json.loads(line)["prompt"] for line in parts[part].read_text().splitlines()]
                for part in ("train", "test")
            ]
            for task, parts in files.items()
        }
    if args.validate:
        return {task: [rows[: args.train], rows[args.train :]] for task, (rows, _) in texts.items()}
    return texts


def demo_texts(args: argparse.Namespace) -> dict[str, list[list[str]]]:
    """Return the prompts of each task of the tiny world: those to learn, and those held out."""
    from align.data.demo.world import examples

    return {
        task: [
            [example.prompt for example in examples(task, count, split)]
            for count, split in ((args.train, "train"), (args.items, "eval"))
        ]
        for task in TASKS
    }


def layer_of(text: str) -> int | None:
    """Read the number of a layer; ``default`` is the bank's own."""
    return None if text == "default" else int(text)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    options = parser("Which adapter of a bank a prompt retrieves, by the layer that is compared.")
    options.add_argument("--model", default="demo://digits", help="folder of the model")
    options.add_argument("--data", type=Path, help="folder of the tasks' files; none: tiny world")
    options.add_argument(
        "--layers", type=lambda text: [*map(layer_of, text.split(","))], default=[None, 1, 2, 3]
    )
    options.add_argument("--scale", choices=["root", "none"], default="root")
    options.add_argument("--keys", type=int, default=4, help="of a round")
    options.add_argument("--top-k", type=int, default=1, help="keys that answer a prompt")
    options.add_argument("--groups", type=int, default=4, help="of features")
    options.add_argument("--train", type=int, default=128, help="prompts of each task to learn")
    options.add_argument("--items", type=int, default=100, help="prompts of each task held out")
    options.add_argument("--chars", type=int, default=160, help="characters of a text")
    options.add_argument(
        "--validate", action="store_true", help="hold out texts to learn instead of test texts"
    )
    options.add_argument("--chat", action="store_true", help="render texts as a user's message")
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--threads", type=int, default=1)
    args = options.parse_args()
    if args.quick:
        args.layers, args.train, args.items = [None], 16, 8
    return args


if __name__ == "__main__":
    main()
