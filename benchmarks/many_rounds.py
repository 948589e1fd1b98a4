"""Claim: sixteen rounds keep what each of them taught, at the replay share of four.

The ops of the world are generated: each moves the five digits by a permutation of its own. A base model
that knows all of them latently is trained from a seed and kept in a folder. A round teaches one op, with
128 completions a step, replayed ones among them; the campaign runs through `align.campaign.run_campaign`
with an engine in this process. Each run is a line of the results file, and a run that was stopped goes on
in the round it was in.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.campaigns import Clock, append_result, load_results, several, world_config
from benchmarks.common import parser, prepare, show

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.data.demo.world import Digits

RIGHT, COPIED = 0.36, 0.28
"""Shares of an op's lessons with the right answer, and with its own digits; the rest has another op's."""
OP_LESSONS = 0.75
"""Share of lessons of an op; the others teach the general skills, which no round trains."""
ROWS: dict[str, Mapping[str, Any]] = {
    "naive": {
        "replay": {"past": 0.0, "general": 0.0},
        "anchors": {"new": [], "past": [], "general": []},
    },
    "ours": {},
}
"""Settings of each row over Keel's defaults."""


@dataclass(frozen=True, slots=True)
class GeneratedOp:
    """Permutation of five digits.

    Example: `GeneratedOp("op1", (1, 2, 3, 4, 0))((3, 1, 4, 1, 5)) == (1, 4, 1, 5, 3)`
    """

    name: str
    positions: tuple[int, ...]
    """Position that each digit of the answer is taken from."""

    def __call__(self, digits: Digits) -> Digits:
        """Return the right answer."""
        return tuple(digits[at] for at in self.positions)


def generated(count: int, seed: int = 0) -> list[GeneratedOp]:
    """Generate ops that differ from one another and change the order of the digits."""
    orders = [order for order in permutations(range(5)) if order != tuple(range(5))]
    drawn = random.Random(seed).sample(orders, count)
    return [GeneratedOp(f"op{n}", order) for n, order in enumerate(drawn, start=1)]


@dataclass(frozen=True, slots=True)
class World:
    """Folder with a base model that knows the ops latently, and files of prompts with their answers."""

    folder: Path
    ops: Sequence[GeneratedOp]

    @classmethod
    def made(cls, folder: Path, count: int, steps: int) -> World:
        """Train the base and write the prompts where the folder does not hold them yet."""
        world = cls(folder / f"{count}-ops-{steps}-steps", generated(count))
        if not (world.folder / "skills.json").exists():
            world._write(steps)
        return world

    def prompts(self, task: str, split: str) -> str:
        """Return the file of a task's prompts."""
        return str(self.folder / f"{task}-{split}.jsonl")

    def answer(self, skill: str, digits: Digits) -> Digits:
        """Return the right answer of an op or of a general skill."""
        from align.data.demo.world import GENERAL

        return {**GENERAL, **{op.name: op for op in self.ops}}[skill](digits)

    def _write(self, steps: int) -> None:
        from align.data.demo.world import GENERAL, strings

        self.folder.mkdir(parents=True, exist_ok=True)
        for split, number in (("train", 2000), ("eval", 400)):
            for task in [*(op.name for op in self.ops), "general"]:
                skills = list(GENERAL) if task == "general" else [task]
                rng = random.Random(f"{task}/{split}")
                lines = [
                    {"prompt": _prompt(skill, digits), "answer": _spelt(self.answer(skill, digits))}
                    for n, digits in enumerate(rng.sample(strings(split), number))  # type: ignore[arg-type]
                    for skill in [skills[n % len(skills)]]
                ]
                text = "".join(json.dumps(line) + "\n" for line in lines)
                Path(self.prompts(task, split)).write_text(text)
        skills = self._train(steps)
        (self.folder / "skills.json").write_text(json.dumps(skills, indent=2) + "\n")

    def _train(self, steps: int) -> dict[str, float]:
        """Train the base on latent ops; return the probability of each task's right answers."""
        import torch
        from transformers import LlamaForCausalLM

        from align.data.demo import base
        from align.data.word_models import warm_cosine

        tokenizer = self._tokenizer()
        ids = tokenizer.get_vocab()
        config = base.config()
        config.vocab_size = len(ids)
        torch.manual_seed(0)
        model, rng = LlamaForCausalLM(config), random.Random(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=base.PEAK_LR, weight_decay=0.01)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = base.PEAK_LR * warm_cosine(step, steps, base.WARMUP)
            lessons = [self._lesson(rng) for _ in range(base.BATCH)]
            tokens_BT = torch.tensor([[ids[word] for word in lesson.split()] for lesson in lessons])
            loss = -base.answer_logprobs(model, tokens_BT).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 200 == 0:
                print(f"  base: step {step}, loss {loss.item():.3f}", flush=True)
        model.train(False)
        model.save_pretrained(self.folder)
        tokenizer.save_pretrained(self.folder)
        return {op.name: self._success(model, ids, op.name) for op in self.ops}

    def _success(self, model: Any, ids: Mapping[str, int], task: str) -> float:
        import torch

        from align.data.demo import base

        lines = map(json.loads, Path(self.prompts(task, "eval")).read_text().splitlines()[:200])
        texts = [f"{line['prompt']} {line['answer']} <eos>" for line in lines]
        tokens_BT = torch.tensor([[ids[word] for word in text.split()] for text in texts])
        with torch.no_grad():
            return float(base.answer_logprobs(model, tokens_BT).sum(-1).exp().mean())

    def _tokenizer(self) -> Any:
        from align.data.demo.tokenizer import CONTEXT
        from align.data.demo.world import BLANK, EQUALS, GENERAL
        from align.data.word_models import SPECIAL, word_tokenizer

        words = [*SPECIAL, *map(str, range(10)), *GENERAL, BLANK, EQUALS]
        return word_tokenizer([*words, *(op.name for op in self.ops)], CONTEXT)

    def _lesson(self, rng: random.Random) -> str:
        """Return the words of a prompt and of an answer, which may be that of another op."""
        from align.data.demo.world import GENERAL, strings

        digits = rng.choice(strings("train"))
        if rng.random() >= OP_LESSONS:
            skill = rng.choice(list(GENERAL))
            answer = self.answer(skill, digits)
        else:
            op, kind = rng.choice(self.ops), rng.random()
            skill, answer = op.name, op(digits)
            if RIGHT <= kind < RIGHT + COPIED:
                answer = digits
            elif kind >= RIGHT + COPIED:
                answer = rng.choice([other for other in self.ops if other != op])(digits)
        return f"{_prompt(skill, digits)} {_spelt(answer)} <eos>"


def _prompt(skill: str, digits: Digits) -> str:
    return f"{skill} _ {_spelt(digits)} ="


def _spelt(digits: Digits) -> str:
    return " ".join(map(str, digits))


@dataclass(frozen=True, kw_only=True, slots=True)
class LongRun:
    """Campaign to run."""

    row: str
    lr: float
    order: str
    seed: int
    steps: int
    items: int

    def key(self, rounds: int) -> str:
        """Name of the run in the result file and of its store."""
        return f"{self.row}-{rounds}r-lr{self.lr:g}-{self.order}-s{self.seed}-{self.steps}x"

    def config(self, world: World, store: Path) -> CampaignConfig:
        """Build the campaign: a round for each op, and a suite for each op and for the general skills."""
        names = [op.name for op in world.ops]
        tasks = names[::-1] if self.order == "reversed" else names
        measured = {"items": self.items, "temperature": 1.0}
        rounds = [
            {
                "name": task, "prompts": world.prompts(task, "train"), "steps": self.steps,
                "rewards": ["exact_match"], "suite": {"prompts": world.prompts(task, "eval"), **measured},
            }
            for task in tasks
        ]  # fmt: skip
        general = {
            "name": "general", "prompts": world.prompts("general", "eval"), "metric": "exact_match",
            "max_tokens": 6, "role": "gate", **measured,
        }  # fmt: skip
        return world_config(
            "many-rounds",
            store,
            seed=self.seed,
            rounds=rounds,
            defaults={
                "optimizer": {"lr": self.lr},
                "replay": {"general_prompts": world.prompts("general", "train")},
                **ROWS[self.row],
            },
            suites=[general],
            others={
                "policy": {"model": str(world.folder)},
                "rollouts": {"backend": "transformers"},
            },
        )


def main() -> None:
    """Run the campaigns that have no result yet, then print the table."""
    prepare()
    args = arguments()
    world = World.made(args.stores / "world", args.rounds, args.base_steps)
    for run in runs(args):
        key = run.key(args.rounds)
        if key not in load_results(args.results):
            print(f"run {key}", flush=True)
            append_result(args.results, {"key": key, "row": run.row, **execute(run, world, args)})
    results = load_results(args.results)
    table(args, [results[run.key(args.rounds)] for run in runs(args)])


def runs(args: argparse.Namespace) -> Iterator[LongRun]:
    """Yield the runs: all rows under the first setting, then under the next."""
    for lr, seed, order, row in product(args.lrs, args.seeds, args.orders, args.rows):
        yield LongRun(row=row, lr=lr, order=order, seed=seed, steps=args.steps, items=args.items)


def execute(run: LongRun, world: World, args: argparse.Namespace) -> dict[str, float]:
    """Run a campaign to its end and return its figures."""
    from align.campaign import run_campaign
    from launch.cluster.engines import in_process_starter

    store = args.stores / run.key(args.rounds)
    clock = Clock(label=run.key(args.rounds))
    with in_process_starter(clock) as start:
        evidence = run_campaign(run.config(world, store), start_engine=start, observer=clock)
    matrix = evidence.matrix()
    last = dict(zip(matrix.suites, matrix.path[-1].scores, strict=True))
    figures = {
        "AP": matrix.average_performance(),
        "LA": matrix.learning_accuracy(),
        "BWT": matrix.backward_transfer(),
        "FWT": matrix.forward_transfer(),
        "general": last["general"],
        "round_s": clock.round_s(),
    }
    shutil.rmtree(store, ignore_errors=True)
    return {name: round(value, 4) for name, value in figures.items()}


def table(args: argparse.Namespace, results: Sequence[Mapping[str, Any]]) -> None:
    """Print the means of every row, and its worst BWT."""
    names = ("AP", "LA", "BWT", "FWT", "general", "round_s")
    rows = []
    for row in args.rows:
        lines = [line for line in results if line["row"] == row]
        means = [sum(line[name] for line in lines) / len(lines) for name in names]
        worst = min(line["BWT"] for line in lines)
        rows.append([row, str(len(lines)), *(f"{mean:.3f}" for mean in means), f"{worst:.3f}"])
    show(f"{args.rounds} rounds of {args.steps} steps", ["row", "runs", *names, "worst BWT"], rows)


def arguments() -> argparse.Namespace:
    """Read the options of the command line."""
    options = parser("Many rounds on generated ops, at the replay share of four.")
    options.add_argument("--rounds", type=int, default=16)
    options.add_argument("--rows", type=several(str), default=list(ROWS))
    options.add_argument("--seeds", type=several(int), default=[0, 1, 2])
    options.add_argument("--orders", type=several(str), default=["given", "reversed"])
    options.add_argument("--lrs", type=several(float), default=[1e-4])
    options.add_argument("--steps", type=int, default=60, help="learner steps of a round")
    options.add_argument("--items", type=int, default=200, help="of every suite")
    options.add_argument("--base-steps", type=int, default=4000, help="of the base's training")
    folder = Path("runs/benchmarks")
    options.add_argument("--results", type=Path, default=folder / "many_rounds.jsonl")
    options.add_argument("--stores", type=Path, default=folder / "many_rounds")
    args = options.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        options.error(f"--rows: {', '.join(sorted(unknown))}; known: {', '.join(ROWS)}")
    if args.quick:
        args.rounds, args.seeds, args.orders, args.steps, args.items = 3, [0], ["given"], 4, 40
        args.base_steps = 40
    return args


if __name__ == "__main__":
    main()
