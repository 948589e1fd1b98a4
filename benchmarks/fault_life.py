"""Life of a store: hundreds of nights on a bounded disk, and collections that are killed at any moment.

A night here is real but for the sampling: the tiny model, or an adapter on it, takes AdamW steps on worked
digit tasks; the snapshot, the verdict's transaction, the collection and the packing are Keel's own. So the
bytes of a round are those of a campaign, and 300 nights take minutes. ``python -m benchmarks.fault_life``
prints the bytes of each way to keep them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.common import parser, prepare, processor, show
from benchmarks.fault_trial import FaultOutcome, FaultTrial

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.gate.evidence import Evidence

TASKS = ("rev", "sort", "rotl", "inc")
ACCEPTED = 3
"""Of so many nights one is rejected."""
KEPT: dict[str, dict[str, Any]] = {
    "everything, whole": {},
    "everything, deltas": {"snapshots": "delta"},
    "10 nights, whole": {"accepted": 10, "rejected": 0},
    "10 nights, deltas": {"accepted": 10, "rejected": 0, "snapshots": "delta"},
}
"""Ways to keep the past, as the campaign file's ``keep`` says them."""


class NightLife:
    """A campaign of nights in one folder.

    Args:
        lora: true for an adapter of rank 16, false for full weights.
        steps: AdamW steps of a night.
        dtype: precision of the snapshots' numbers.
    """

    def __init__(
        self, folder: Path, keep: dict[str, Any], *, lora: bool, steps: int, dtype: str = "float32"
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from align.data.base_model import resolve_model
        from align.learner.folder.source import take_base
        from align.store.ledger.ledger import Ledger
        from align.store.store import open_store

        self.stated = nightly_campaign(folder / "store", keep, lora=lora)
        self.lora, self.steps, self.dtype, self.lived = lora, steps, dtype, 0
        self.ledger = Ledger(self.stated.ledger_url)
        self.store = open_store(self.stated, self.ledger)
        self.open()
        source = resolve_model(self.stated.policy)
        base = take_base(source, self.stated.policy, self.store.snapshots, self.stated.hash())
        self.ledger.record_snapshot(base)
        self.ledger.set_alias_initial("production", base.id)
        self.model: Any = AutoModelForCausalLM.from_pretrained(base.path)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base.path)
        if lora:
            self.model = with_adapter(self.model)

    @property
    def evidence(self) -> Evidence:
        """Evidence of the campaign as it stands."""
        from align.gate.evidence import Evidence

        return Evidence(store=self.store, config=self.config)

    def open(self) -> None:
        """Read the campaign with the nights that fell due."""
        from align.store.changes.expand import expanded

        self.config: CampaignConfig = expanded(self.stated, self.ledger)
        self.ledger.open_campaign(self.config.name, self.config.content(), self.config.hash())

    def night(self, note: Any = lambda text: None) -> None:
        """Train, publish and decide one night, and keep of the past what the campaign says."""
        from align.store.snapshots.snapshots import Provenance
        from align.upkeep.collect import tidy

        self.lived += 1
        name, parent = f"nightly-{self.lived}", self.ledger.alias("production") or ""
        claim(self.ledger, self.stated, name)
        self.open()
        index = next(r.index for r in self.ledger.rounds() if r.name == name)
        attempt = self.ledger.begin_round(index, name, parent)
        self.train()
        kind = self.stated.policy.snapshot_kind
        origin = Provenance(kind=kind, parent=parent, round=name)
        candidate = self.store.snapshots.publish(self.write, origin)
        self.ledger.record_snapshot(candidate)
        self.ledger.enter_gating(index, attempt, candidate.id)
        state = "rejected" if self.lived % ACCEPTED == 0 else "accepted"
        self.ledger.commit_round(index, attempt, state, candidate.id, {})  # type: ignore[arg-type]
        tidy(self.evidence, note)

    def train(self) -> None:
        """Take the steps of a night on its task."""
        import torch

        from align.data.demo.world import OPS

        draw = random.Random(self.lived)
        answer = OPS[TASKS[self.lived % len(TASKS)]]
        task = TASKS[self.lived % len(TASKS)]
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
        for _ in range(self.steps):
            digits = [tuple(draw.randrange(10) for _ in range(5)) for _ in range(16)]
            texts = [
                f"{task} _ {' '.join(map(str, x))} = {' '.join(map(str, answer(x)))}"
                for x in digits
            ]
            ids_BT = self.tokenizer(texts, return_tensors="pt").input_ids
            self.model(input_ids=ids_BT, labels=ids_BT).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def write(self, folder: Path) -> None:
        """Write the policy as a round does."""
        import torch

        rounded = self.dtype == "bfloat16" and not self.lora
        model = self.model.to(torch.bfloat16) if rounded else self.model
        model.save_pretrained(folder)
        for extra in folder.glob("*.md"):
            extra.unlink()
        self.tokenizer.save_pretrained(folder)
        if rounded:  # The next night begins from what was rounded.
            self.model = model.to(torch.float32)

    def bytes(self) -> int:
        """Bytes of all snapshots in the store."""
        return sum(self.store.snapshots.sizes().values())


def nightly_campaign(store: Path, keep: dict[str, Any], *, lora: bool) -> CampaignConfig:
    """Return a campaign of one template whose nights fall due by hand."""
    from align.config.campaign import CampaignConfig

    policy = {"model": "demo://digits", **({"lora": {"rank": 16}} if lora else {})}
    night = {
        "name": "nightly",
        "manual": True,
        "prompts": "demo://rev?n=60",
        "rewards": ["exact_match"],
        "steps": 1,
    }
    values = {"name": "life", "policy": policy, "store": str(store), "rounds": [night]}
    return CampaignConfig.model_validate({**values, **({"keep": keep} if keep else {})})


def with_adapter(model: Any) -> Any:
    """Return a model with a fresh adapter that alone is trained."""
    from peft import LoraConfig, get_peft_model

    from align.config.policy import LoraConfig as Settings

    settings = Settings(rank=16)
    targets = list(settings.targets)
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets))


def claim(ledger: Any, config: CampaignConfig, name: str) -> None:
    """Let a night fall due."""
    from sqlalchemy import insert

    from align.schedule.claims import stated
    from align.store.ledger.tables.due import due_claims

    (spec,) = config.rounds
    values = {
        "schedule": spec.name,
        "due_key": f"manual/{name}",
        "round": name,
        "spec": json.dumps(stated(spec, name)),
        "reason": "a benchmark",
        "newest": 0,
        "watermark": 0,
        "claimed": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    with ledger.database.write() as connection:
        connection.execute(insert(due_claims).values(**values))


def bounded(seed: int, folder: Path) -> FaultOutcome:
    """Live 300 nights and compare the disk of the last hundred with that of the hundred before."""
    from align.upkeep.verify import verify

    keep = KEPT["10 nights, deltas" if seed % 2 else "10 nights, whole"]
    life = NightLife(folder, keep, lora=seed % 4 > 1, steps=2)
    sizes = list(lived(life, 300))
    if max(sizes[200:]) > 1.05 * max(sizes[100:200]):
        return FaultOutcome.lost(f"the disk grows: {max(sizes[100:200])}, then {max(sizes[200:])}")
    result = verify(life.evidence, lambda name, total: None)
    if not result.whole:
        return FaultOutcome.lost(result.faults[0].sentence)
    return FaultOutcome.kept(f"{max(sizes[200:]) / 1e6:.1f} MB at most; {result.sentence}")


def killed(seed: int, folder: Path) -> FaultOutcome:
    """Kill a collection that packs as well, at a moment of the seed's, until one comes through."""
    from align.upkeep.verify import verify

    life = NightLife(folder, {}, lora=False, steps=1)
    for _ in lived(life, 14):
        pass
    draw, kills = random.Random(seed), 0
    while True:
        # A fork has what the parent has loaded, and its own connection to the ledger.
        worker = multiprocessing.get_context("fork").Process(target=_collect, args=(life,))
        worker.start()
        time.sleep(draw.uniform(0.0, 0.2 + 0.1 * kills))
        if worker.is_alive():
            os.kill(worker.pid or 0, signal.SIGKILL)
            kills += 1
        worker.join()
        if worker.exitcode == 0:
            break
        life.store.snapshots.clean()
    result = verify(life.evidence, lambda name, total: None)
    if not result.whole or life.store.snapshots.staged():
        return FaultOutcome.lost(str([fault.sentence for fault in result.faults]))
    gone, known = life.ledger.collected(), life.ledger.snapshots()
    there = life.store.snapshots.sizes().keys()
    if there != {record.id for record in known} - gone:
        return FaultOutcome.lost("the ledger and the folders name other snapshots")
    return FaultOutcome.kept(f"{kills} kills, {len(gone)} of {len(known)} snapshots collected")


def _collect(life: NightLife) -> None:
    from align.config.store import KeepConfig
    from align.upkeep.collect import collect, pack_kept

    with life.ledger.lease("keel gc"):
        collect(life.evidence, KeepConfig(accepted=2, rejected=0), alone=True)
        pack_kept(life.evidence)


def lived(life: NightLife, nights: int) -> Iterator[int]:
    """Live so many nights; yield the bytes of the snapshots after each."""
    for _ in range(nights):
        life.night()
        yield life.bytes()


TRIALS = {
    "300-nights": FaultTrial(
        tried="Nights are lived through, of full weights and of adapters, whole and as deltas: the disk "
        "stops growing, and every byte that is kept verifies.",
        tries=4,
        run=bounded,
    ),
    "killed-collection": FaultTrial(
        tried="SIGKILL of a collection that packs at a random moment, again and again: ledger and folders "
        "agree, and what is left verifies.",
        tries=20,
        run=killed,
        quick=2,
    ),
}
"""Trials of this family."""


def main() -> None:
    """Print the bytes of nights for each way to keep them."""
    prepare()
    options = parser("Bytes of a store that lives long.")
    options.add_argument("--nights", type=int, default=300)
    options.add_argument("--steps", type=int, default=10, help="AdamW steps of a night")
    args = options.parse_args()
    rows = []
    for what, lora, dtype in (
        ("full, float32", False, "float32"),
        ("full, bfloat16", False, "bfloat16"),
        ("LoRA, float32", True, "float32"),
    ):
        for name, keep in KEPT.items():
            with TemporaryDirectory() as folder:
                life = NightLife(Path(folder), keep, lora=lora, steps=args.steps, dtype=dtype)
                start = time.perf_counter()
                sizes = list(lived(life, 20 if args.quick else args.nights))
                seconds = (time.perf_counter() - start) / len(sizes)
                base = life.store.snapshots.manifest(life.evidence.base).blob_bytes
                per_round = (sizes[-1] - base) / len(sizes)
                cells = (sizes[-1] / 1e6, max(sizes) / 1e6, per_round / 1e3, seconds)
                rows.append([what, name, *(f"{cell:.2f}" for cell in cells)])
                print(rows[-1], flush=True)
            rmtree(folder, ignore_errors=True)
    columns = ["snapshots", "kept", "MB at the end", "MB at most", "kB a round", "s a night"]
    show(f"{args.nights} nights on {processor()}", columns, rows)


if __name__ == "__main__":
    main()
