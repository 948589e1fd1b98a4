"""Claim: an adapter bank that retrieves by the prompt forgets less than a point over a stream of tasks.

Text classification as generation: each round of a campaign learns one file of texts and labels by
supervised fine-tuning of LoRA adapters; no prompt names its task, and only the rows ``replay`` and
``joint`` see an earlier file again. After every round all tasks are answered greedily. Runs are appended to
a JSONL file as they end, and one that was killed goes on in the round it was in.

A folder of data has ``<task>_train.jsonl`` and ``<task>_test.jsonl``, rows of ``text`` and ``label``.

Columns: accuracy over all tasks at the end; forgetting, the mean loss of the earlier tasks since their own
round; routing accuracy, the share of a task's test prompts that its own adapter answers at the end;
retrieval's share of the time of measuring where it is largest; seconds of the whole run.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.common import parser, prepare, save, show, verdict, write_model

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.gate.evidence import Evidence

ORDERS: dict[str, tuple[str, ...]] = {
    "given": ("agnews", "sst2", "amazon"),
    "reversed": ("amazon", "sst2", "agnews"),
}
NO_REPLAY: dict[str, Any] = {
    "replay": {"past": 0.0, "general": 0.0},
    "anchors": {"new": [], "past": [], "general": []},
}
ROWS: dict[str, dict[str, Any]] = {
    "sequential": {"defaults": NO_REPLAY},
    "replay": {
        "defaults": {
            "replay": {"past": 0.0, "general": 0.0, "examples": 0.1},
            "anchors": {"new": [], "past": [], "general": []},
        }
    },
    "ewc": {
        "defaults": {
            "replay": {"past": 0.0, "general": 0.0},
            "retention": [{"name": "ewc", "lambda": 1000.0, "samples": 64}],
        }
    },
    "o_lora": {
        "defaults": {"replay": {"past": 0.0, "general": 0.0}, "retention": [{"name": "o_lora"}]},
        "policy": {"lora": {"merge": True}},
    },
    "joint": {"defaults": NO_REPLAY},
    "slm": {"defaults": NO_REPLAY, "policy": {"bank": {"keys": 4, "top_k": 2}}},
    "slm_nearest": {"defaults": NO_REPLAY, "policy": {"bank": {"keys": 4, "top_k": 1}}},
}
"""Settings of each row over the same campaign; ``joint`` learns all files in one round."""
FORGETTING, GAIN = 1.0, 10.0
"""Largest forgetting of the bank, and its smallest gain over sequential fine-tuning, in points."""
HELD_OUT = 8
"""Rows whose likelihood a round is measured on by itself; the figures here are of the tasks' own suites."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Campaign to run."""

    row: str
    order: str
    seed: int
    settings: argparse.Namespace

    @property
    def key(self) -> str:
        """Name of the run in the result file and of its store, with all that decides its result."""
        s = self.settings
        size = f"{s.train}t-{s.items}i-{s.steps}x{s.batch}-c{s.chars}"
        model = f"{s.model.name}-{s.dtype}"
        return f"{self.row}-{self.order}-s{self.seed}-lr{s.lr:g}-r{s.rank}-{size}-{model}"

    def config(self, stores: Path) -> CampaignConfig:
        """Build the campaign and write the files that it reads."""
        from align.config.campaign import CampaignConfig, overlay

        tasks, s = ORDERS[self.order], self.settings
        data = write_data(s.data, stores / "data", tasks, s)
        rounds = [self._round(task, [data[task]]) for task in tasks]
        if self.row == "joint":
            rounds = [self._round("joint", [data[task] for task in tasks], steps=len(tasks))]
        campaign = {
            "name": "slm",
            "policy": {
                "model": str(s.model),
                "lora": {"rank": s.rank},
                "dtype": s.dtype,
                "threads": s.threads,
            },
            "store": str(stores / self.key),
            "seed": self.seed,
            "rollouts": {"backend": "transformers", "threads": s.threads, "probe_sequences": 2},
            "defaults": {
                "algorithm": "sft",
                "sampling": {"prompts_per_step": s.batch, "group_size": 1, "max_tokens": s.tokens},
                "optimizer": {"lr": s.lr},
                "meter_every": 10**6,
            },
            "rounds": rounds,
            "suites": [self._suite(task, data[task]) for task in tasks],
            "gate": {"mode": "observe"},
        }
        return CampaignConfig.model_validate(overlay(campaign, ROWS[self.row]))

    def _round(
        self, name: str, files: Sequence[Mapping[str, Path]], steps: int = 1
    ) -> dict[str, Any]:
        train, test = (
            joined([file[part] for file in files], name) for part in ("train", "heldout")
        )
        return {
            "name": name,
            "prompts": None,
            "rewards": [],
            "data": {"source": str(train), "heldout_source": str(test)},
            "steps": steps * self.settings.steps,
        }

    def _suite(self, task: str, files: Mapping[str, Path]) -> dict[str, Any]:
        return {
            "name": f"{task}-test", "prompts": str(files["test"]), "metric": "exact_match",
            "items": self.settings.items, "max_tokens": self.settings.tokens, "temperature": 0.0,
        }  # fmt: skip


def write_data(
    source: Path, folder: Path, tasks: Sequence[str], settings: argparse.Namespace
) -> dict[str, dict[str, Path]]:
    """Write prompts and answers of every task, the same for all rows; return the files by task and part.

    The prompt ends alike for every task, so that nothing but the text says which one it is.
    """
    files: dict[str, dict[str, Path]] = {}
    parts = (("train", settings.train), ("test", settings.items), ("heldout", HELD_OUT))
    for task, (part, count) in product(tasks, parts):
        name = f"{task}_{'train' if part == 'train' else 'test'}.jsonl"
        lines = (source / name).read_text().splitlines()
        random.Random(f"{task}/{part}").shuffle(lines)
        rows = [json.loads(line) for line in lines[:count]]
        path = folder / f"{task}_{part}_{count}_{settings.chars}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row_of(row, settings.chars)) + "\n" for row in rows))
        files.setdefault(task, {})[part] = path
    return files


def row_of(row: Mapping[str, str], chars: int) -> dict[str, str]:
    """Return a row of a campaign from one of the data: at most so many characters of the text."""
    text = " ".join(row["text"].split())[:chars]
    label = row["label"]
    return {"prompt": f"{text}\nAnswer:", "completion": f" {label}", "answer": label}


def joined(files: Sequence[Path], name: str) -> Path:
    """Return the file with the rows of all of these."""
    if len(files) == 1:
        return files[0]
    path = files[0].with_name(f"{name}_{files[0].name}")
    path.write_text("".join(file.read_text() for file in files))
    return path


class Quiet:
    """Observer that says when a round is done."""

    def __init__(self, label: str) -> None:
        self.label = label

    def note(self, text: str) -> None:
        """Print what adapters answered; other remarks are left out."""
        if "adapters of" in text:
            print(f"  {text}", flush=True)

    def on_step(self, plan: Any, step: int, metrics: Mapping[str, float]) -> None:
        """Ignore a step."""

    def on_verdict(self, plan: Any, outcome: Any) -> None:
        """Print that a round is done."""
        print(f"  {self.label}: {plan.spec.name} done", flush=True)


def execute(run: Run, stores: Path) -> dict[str, Any]:
    """Run a campaign to its end and compute its figures from its store."""
    from align.campaign import run_campaign
    from launch.cluster.engines import in_process_starter

    began, observer = time.perf_counter(), Quiet(run.key)
    config = run.config(stores)
    with in_process_starter(observer) as start:
        evidence = run_campaign(config, start_engine=start, observer=observer)
    return {**figures_of(evidence, ORDERS[run.order]), "seconds": time.perf_counter() - began}


def figures_of(evidence: Evidence, tasks: Sequence[str]) -> dict[str, Any]:
    """Compute accuracy, forgetting and routing of a finished campaign, in points and shares."""
    from align.report.status import status_of

    matrix = status_of(evidence).matrix
    rows = {row.round: row for row in matrix}
    last = matrix[-1]

    def accuracy(round: str, task: str) -> float:
        score = rows[round].scores[f"{task}-test"]
        assert score is not None, f"{task} was not measured after {round}"
        return 100 * score

    final = {task: accuracy(last.round, task) for task in tasks}
    losses = [accuracy(task, task) - final[task] for task in tasks[:-1] if task in rows]
    routing, retrieval = routing_of(evidence, tasks)
    return {
        "average": sum(final.values()) / len(final),
        "forgetting": sum(losses) / len(losses) if losses else None,
        "routing": routing,
        "retrieval": retrieval,
        "final": final,
    }


def routing_of(evidence: Evidence, tasks: Sequence[str]) -> tuple[float | None, float | None]:
    """Return the share of test prompts that their own adapters answer, and retrieval's of the time.

    The first is of the end, the second of the snapshot where it is largest, since queries are kept. Both
    are None without a bank.
    """
    from align.gate.measurement.results import header_of

    final = evidence.ledger.rounds()[-1].candidate
    routed: list[float] = []
    retrieval: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for path in sorted(evidence.folder.glob("evaluations/*/*-test-*.parquet")):
        header = header_of(path)
        task, snapshot = header["suite"].removesuffix("-test"), header["snapshot"]
        if snapshot == final and task in tasks:
            routed.append(header.get("routed", {}).get(task, 0.0))
        retrieval[snapshot] = retrieval.get(snapshot, 0.0) + (header.get("retrieval_s") or 0.0)
        seconds[snapshot] = seconds.get(snapshot, 0.0) + header["seconds"]
    if not any(retrieval.values()):
        return None, None
    share = max(retrieval[snapshot] / seconds[snapshot] for snapshot in retrieval)
    return sum(routed) / len(routed), share


def report(results: Sequence[Mapping[str, Any]]) -> None:
    """Print a row for each method and order, then whether the claim holds."""
    rows, notes = [], []
    for result in results:
        name = f"{result['row']}, {result['order']}, seed {result['seed']}"
        cells = [
            (result["average"], ".1f"),
            (result["forgetting"], ".1f"),
            (result["routing"], ".3f"),
            (result["retrieval"], ".3f"),
            (result["seconds"], ".0f"),
        ]
        rows.append([name, *("-" if v is None else f"{v:{f}}" for v, f in cells)])
    averages = {(r["row"], r["order"], r["seed"]): r["average"] for r in results}
    for result in (r for r in results if r["row"].startswith("slm")):
        text = f"{result['row']}, {result['order']}, seed {result['seed']}"
        kept = result["forgetting"] is not None and result["forgetting"] < FORGETTING
        notes.append(f"{text}: forgetting under {FORGETTING:g} point: {verdict(kept)}")
        before = averages.get(("sequential", result["order"], result["seed"]))
        if before is not None:
            gained = result["average"] - before >= GAIN
            notes.append(f"{text}: {GAIN:g} points above sequential: {verdict(gained)}")
    columns = ("", "average", "forgetting", "routing", "retrieval", "seconds")
    show("A stream of text classification, without task names", columns, rows, *notes)


def main() -> None:
    """Run the campaigns that have no result yet, then print all results."""
    prepare()
    args = arguments()
    with TemporaryDirectory(prefix="slm-") as scratch:
        if args.quick:
            args.model = write_model(Path(scratch) / "3M", "3M", with_eos=True)
            args.results, args.stores = Path(scratch) / "slm.jsonl", Path(scratch) / "stores"
        results = load(args.results)
        wanted = list(runs(args))
        for run in wanted:
            if run.key not in results:
                print(f"running {run.key}", flush=True)
                results[run.key] = execute(run, args.stores)
                append(args.results, run.key, results[run.key])
        data = [{"row": r.row, "order": r.order, "seed": r.seed, **results[r.key]} for r in wanted]
        report(data)
        save(args.json, "slm", args, data)


def runs(args: argparse.Namespace) -> Iterator[Run]:
    """Yield the runs that are asked for."""
    for seed, order, row in product(args.seeds, args.orders, args.rows):
        yield Run(row=row, order=order, seed=seed, settings=args)


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Read finished runs by key; a last line that was cut short is ignored."""
    results: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        results[record["key"]] = record["figures"]
    return results


def append(path: Path, key: str, figures: Mapping[str, Any]) -> None:
    """Add a finished run to the result file; a line that was cut short stays apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * cut + json.dumps({"key": key, "figures": figures}) + "\n")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    known = list(ROWS)
    options = parser("An adapter bank and other methods on a stream of text classification.")
    options.add_argument("--data", type=Path, required=True, help="folder of the tasks' files")
    options.add_argument("--model", type=Path, help="folder of the model")
    options.add_argument("--rows", type=lambda text: text.split(","), default=known)
    options.add_argument("--orders", type=lambda text: text.split(","), default=list(ORDERS))
    options.add_argument(
        "--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0]
    )
    options.add_argument("--train", type=int, default=480, help="rows of each task to learn")
    options.add_argument("--items", type=int, default=120, help="rows of each task to measure")
    options.add_argument("--steps", type=int, default=40, help="learner steps of a round")
    options.add_argument("--batch", type=int, default=12, help="rows of a step")
    options.add_argument("--chars", type=int, default=200, help="characters of a text")
    options.add_argument("--tokens", type=int, default=6, help="longest answer")
    options.add_argument("--lr", type=float, default=5e-4)
    options.add_argument("--rank", type=int, default=8, help="rank of an adapter or increment")
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--threads", type=int, default=1)
    folder = Path("runs/benchmarks")
    options.add_argument("--results", type=Path, default=folder / "slm.jsonl")
    options.add_argument("--stores", type=Path, default=folder / "slm")
    args = options.parse_args()
    for name, names in (("rows", known), ("orders", list(ORDERS))):
        if unknown := set(getattr(args, name)) - set(names):
            options.error(f"--{name}: {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    if args.quick:
        args.rows, args.orders, args.seeds = ["sequential", "slm"], ["given"], [0]
        args.train, args.items, args.steps, args.batch, args.chars = 64, 20, 2, 8, 60
        args.tokens = 24
    elif args.model is None:
        options.error("--model: name a model's folder")
    return args


if __name__ == "__main__":
    main()
