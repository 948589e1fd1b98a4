"""Claim: `keel judge` accepts a loss as large as the margin no more often than alpha says, and smaller ones
as often as `keel gate plan` had said, to two points.

200 candidates are made by plain TRL runs on the digits model, with planted true losses of 0, 1 and 3 points
(`benchmarks.candidates`), where the margin is 3 points: the hardest loss to keep out. Each is judged by
`align.judge` with one engine, whose weights are exchanged, on items of its own draw; the incumbent answers
the same ones. Beside the share that was accepted, whose error 200 verdicts leave at some points, stands the
expected share: the exact chance of every candidate over all draws of items, by the same test. With
``--draws 3`` every candidate is judged on three draws, which narrows what chance does.

What is finished stays in the work folder, and a second call goes on from there. Ends with 1 if the claim
does not hold, and with 3 if a time limit came before the end.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import numpy as np

from align.gate.statistics.significance import exact_interval, tango_noninferiority
from benchmarks.common import parser, prepare, save, show, verdict

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.judge.suites_file import SuitesFile
    from align.round.session import StartEngine
    from benchmarks.candidates import Candidate
    from rollouts.engines.protocol import RolloutEngine

TASK = "rev"
MARGIN, ALPHA = 0.03, 0.05
ITEMS = 600
PLANTED = (0.0, 0.01, 0.03)
"""True losses, the last as large as the margin."""
APART = 0.02
"""Largest distance of the expected share of accepted candidates from the planned one."""
SURE = 0.01
"""Error of the bound on what chance does to a share of so many candidates."""
DRAWS_APART = 100_000
"""Distance of the seeds of two draws for one candidate."""
UNFINISHED = 3


class OutOfTime(Exception):
    """The time limit of one call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """Time limit of one call; what was finished before is kept."""

    limit_s: float
    began: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Raise `OutOfTime` once the limit is over."""
        if time.monotonic() - self.began > self.limit_s:
            raise OutOfTime


def main() -> int:
    """Make the candidates, judge them, and compare; 1 if the claim does not hold."""
    prepare()
    options = parser("Acceptance of candidates with a known loss, beside alpha and the plan.")
    options.add_argument("--candidates", type=int, default=200)
    options.add_argument("--draws", type=int, default=1, help="draws of items for each candidate")
    options.add_argument("--items", type=int, default=ITEMS)
    options.add_argument("--work", type=Path, help="folder to keep candidates and verdicts in")
    options.add_argument("--limit-s", type=float, default=math.inf, help="stop after so long")
    args = options.parse_args()
    if args.quick:
        args.candidates, args.items = 3, 100
    clock = Clock(limit_s=args.limit_s)
    with _folder(args.work) as work:
        try:
            candidates = make(work, args.candidates, clock)
            accepted = judge_all(candidates, args.draws, args.items, work, clock)
        except OutOfTime:
            done = len(list(work.glob("candidates/*/truth.json")))
            judged = len(list(work.glob(f"verdicts-{args.items}/*.json")))
            print(f"{done} of {args.candidates} made, {judged} judged; call again to go on")
            return UNFINISHED
    levels = [level(planted, candidates, accepted, args.items) for planted in PLANTED]
    report(levels)
    save(args.json, "judge", args, levels)
    return int(not all(map(holds, levels)))


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    """Yield the folder for what is finished; one of its own is removed in the end."""
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="keel-judge-") as scratch:
        yield Path(scratch)


def make(work: Path, count: int, clock: Clock) -> list[Candidate]:
    """Train all candidates that the folder does not have; the planted losses take turns."""
    from benchmarks.candidates import Model, make_candidate, stored

    model = Model(TASK)
    base = model.weights
    before = model.right(base)
    made = []
    for number in range(count):
        clock.check()
        folder, planted = work / "candidates" / f"{number:03}", PLANTED[number % len(PLANTED)]
        made.append(
            stored(folder) or make_candidate(model, base, before, TASK, number, planted, folder)
        )
    return made


def judge_all(
    candidates: Sequence[Candidate], draws: int, items: int, work: Path, clock: Clock
) -> dict[int, list[bool]]:
    """Judge what the folder has no verdict on; by number, one verdict per draw, true if accepted."""
    from launch.cluster.engines import engine_starter

    folder = work / f"verdicts-{items}"
    folder.mkdir(exist_ok=True)

    def file_of(candidate: Candidate, draw: int) -> Path:
        return folder / (f"{candidate.number:03}" + (f"-{draw}" if draw else "") + ".json")

    every = [(candidate, draw) for draw in range(draws) for candidate in candidates]
    missing = [
        (candidate, draw) for candidate, draw in every if not file_of(candidate, draw).exists()
    ]
    if missing:
        with engine_starter(None, Silent()) as start, SwappedEngine(start) as swapped:
            for candidate, draw in missing:
                clock.check()
                seed = candidate.number + draw * DRAWS_APART
                judgement = judged(candidate, seed, items, swapped)
                file_of(candidate, draw).write_text(json.dumps(judgement, default=str))
    accepted: dict[int, list[bool]] = {candidate.number: [] for candidate in candidates}
    for candidate, draw in every:
        accepted[candidate.number].append(
            json.loads(file_of(candidate, draw).read_text())["accepted"]
        )
    return accepted


def judged(
    candidate: Candidate, seed: int, items: int, start_engine: StartEngine
) -> Mapping[str, Any]:
    """Judge a candidate on its own draw of items, as ``keel judge --json`` does."""
    from align.judge.judge import judge, opened_case
    from align.judge.models import Named, open_model

    file = suites(items, seed)
    names = ((str(candidate.folder), "CANDIDATE"), ("demo://digits", "--against"))
    ours, theirs = (open_model(Named(name=name, where=where, file=file)) for name, where in names)
    root = Path(tempfile.mkdtemp(prefix="keel-judge-"))
    try:
        with opened_case(file, ours, theirs, root=root) as case:
            return judge(case, start_engine=start_engine, observer=Silent()).to_dict()
    finally:
        rmtree(root)


def suites(items: int, draw: int, change: float | None = None) -> SuitesFile:
    """Return the file of suites: greedy answers to one draw of items.

    Args:
        change: assumed share of items that change; None: the usual.
    """
    from align.judge.suites_file import SuitesFile

    suite = {
        "name": TASK, "prompts": f"demo://{TASK}?seed={draw}", "metric": "exact_match", "items": items,
        "margin": MARGIN, "budget": MARGIN, "max_tokens": 8,
    }  # fmt: skip
    gate: dict[str, Any] = {"alpha": ALPHA, "campaign_rounds": 1, "underpowered": "warn"}
    if change is not None:
        gate["assumed_change"] = change
    return SuitesFile.model_validate(
        {"suites": [suite], "gate": gate, "policy": {"dtype": "float32"}}
    )


class Silent:
    """An observer that says nothing."""

    def note(self, text: str) -> None:
        """Drop a remark."""

    def on_step(self, *_: Any) -> None:
        """Drop a step."""

    def on_verdict(self, *_: Any) -> None:
        """Drop a verdict."""


class SwappedEngine:
    """A `StartEngine` with one engine for all models of one architecture: it is given their weights."""

    def __init__(self, start: StartEngine) -> None:
        self._start = start
        self._engine: RolloutEngine | None = None

    def __enter__(self) -> SwappedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._engine is not None:
            self._engine.close()

    def __call__(self, config: CampaignConfig, model: Path, context: int) -> RolloutEngine:
        from safetensors.numpy import load_file

        from rollouts.engines.protocol import WeightUpdate

        if self._engine is None:
            self._engine = self._start(config, model, context)
        tensors = load_file(model / "model.safetensors")
        self._engine.sync(WeightUpdate(version=model.name, tensors=tensors))
        return Lent(self._engine)


class Lent:
    """An engine that somebody else closes."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        """Do nothing."""


def level(
    planted: float,
    candidates: Sequence[Candidate],
    accepted: Mapping[int, Sequence[bool]],
    items: int,
) -> dict[str, Any]:
    """Put together what was planned, what is expected and what was measured at one planted loss."""
    own = [c for c in candidates if c.planted == planted]
    passed = sum(sum(accepted[c.number]) for c in own)
    verdicts = sum(len(accepted[c.number]) for c in own)
    change = math.fsum(c.change for c in own) / len(own)
    return {
        "planted": planted,
        "candidates": len(own),
        "verdicts": verdicts,
        "loss": [min(c.loss for c in own), max(c.loss for c in own)],
        "change": change,
        "planned": planned(planted, change, items),
        "expected": math.fsum(chance(c.lost, c.won, c.prompts, items) for c in own) / len(own),
        "accepted": passed,
        "interval": exact_interval(passed, verdicts, SURE / 2),
    }


def planned(loss: float, change: float, items: int) -> float:
    """Return the chance to be accepted that ``keel gate plan --loss`` states."""
    from align.gate.power.power import plan_gate

    file = suites(items, 0, change)
    return plan_gate(file.campaign(file.policy), None, loss=loss).all_pass


def chance(lost: int, won: int, prompts: int, items: int) -> float:
    """Return the chance that a candidate is accepted, over all draws of its items.

    Args:
        lost: prompts of all ``prompts`` that only the incumbent answers rightly.
        won: prompts that only the candidate does.
    """
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, prompts + 1)))))

    def ways(total: int, chosen: Any) -> Any:
        return logs[total] - logs[chosen] - logs[total - chosen]

    total = 0.0
    for gained in range(min(won, items) + 1):
        fewer = np.arange(_most_lost(gained, items) + 1)
        fewer = fewer[(fewer <= lost) & (fewer <= items - gained)]
        rest = ways(prompts - lost - won, items - gained - fewer)
        each = ways(won, gained) + ways(lost, fewer) + rest - ways(prompts, items)
        total += float(np.exp(each).sum())
    return total


@cache
def _most_lost(won: int, items: int) -> int:
    """Return the most items that may be lost where ``won`` are won; -1 if none may."""
    low, high = -1, items - won
    while low < high:
        middle = (low + high + 1) // 2
        passes = tango_noninferiority(middle, won, items, MARGIN).p <= ALPHA
        low, high = (middle, high) if passes else (low, middle - 1)
    return low


def holds(figures: Mapping[str, Any]) -> bool:
    """Tell if a loss is accepted as often as was planned, and one at the margin no more than alpha says."""
    low, high = figures["interval"]
    if figures["planted"] >= MARGIN:
        return bool(low <= ALPHA and figures["expected"] <= ALPHA)
    near = abs(figures["expected"] - figures["planned"]) <= APART
    return bool(near and low - APART <= figures["planned"] <= high + APART)


def report(levels: Sequence[Mapping[str, Any]]) -> None:
    """Print one row for each planted loss."""
    rows = [
        [
            f"{100 * figures['planted']:g} points",
            str(figures["candidates"]),
            str(figures["verdicts"]),
            f"{100 * figures['loss'][0]:.2f} to {100 * figures['loss'][1]:.2f}",
            f"{100 * figures['change']:.1f}%",
            f"{100 * figures['planned']:.1f}%"
            if figures["planted"] < MARGIN
            else f"≤ {100 * ALPHA:g}%",
            f"{100 * figures['expected']:.1f}%",
            f"{figures['accepted']} ({100 * figures['accepted'] / figures['verdicts']:.1f}%)",
            f"{100 * figures['interval'][0]:.1f} to {100 * figures['interval'][1]:.1f}%",
            verdict(holds(figures)),
        ]
        for figures in levels
    ]
    show(
        f"Candidates made by TRL, accepted by keel judge: margin {100 * MARGIN:g} points, alpha {ALPHA:g}",
        ["planted loss", "candidates", "verdicts", "true loss", "items that change", "planned", "expected",
         "accepted", "by chance", ""],
        rows,
        f"Expected is within {100 * APART:g} points of planned; what was accepted agrees with it but for "
        f"chance, at {100 * (1 - SURE):g}%.",
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
