"""Times of a round from falling due to its first sample and verdict, on a running cluster.

    .venv/bin/python -m benchmarks.due [--address HOST:PORT]

The pair that makes `configs/nightly.yaml` due is stored at second 0. The stages after it are: the round is
claimed; its inputs are checked and engines requested; an engine gives its first answer; the learner takes
its first step; the verdict. Engines start and end with a round, so only Ray and the files of the model are
warm, and vLLM is not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.common import middle, parser, prepare, save, show, spread

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.round.round import RoundOutcome, RoundPlan

ROOT = Path(__file__).parents[1]
STAGES = ("claimed", "engines asked for", "first sample", "first step", "verdict")


class Marks:
    """Observer that notes the seconds from the round falling due to each stage."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        self.seconds.setdefault(stage, time.perf_counter() - self.start)

    def note(self, text: str) -> None:
        pass

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        self.mark("first step")

    def on_verdict(self, plan: RoundPlan, outcome: RoundOutcome) -> None:
        self.mark("verdict")


class Heard:
    """Wrapper of an engine, or of one of its tickets, that marks the first answer."""

    def __init__(self, inner: Any, marks: Marks) -> None:
        self._inner, self._marks = inner, marks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self) -> Any:
        results = self._inner()
        self._marks.mark("first sample")
        return results

    def submit(self, requests: Sequence[Any]) -> Any:
        return Heard(self._inner.submit(requests), self._marks)

    def generate(self, requests: Sequence[Any]) -> Any:
        results = self._inner.generate(requests)
        self._marks.mark("first sample")
        return results


def once(folder: Path) -> dict[str, float]:
    """Run one night in a fresh store; return the seconds by stage."""
    from datetime import UTC, datetime

    from align.campaign import run_campaign
    from align.config.file import load_campaign
    from align.schedule.claims import Dues
    from align.schedule.inbox import Inbox
    from align.schedule.inbox.rows import stream_forms
    from align.store.store import open_ledger
    from launch.cluster.engines import cluster_has_gpus, engine_spec
    from rollouts.pool.pool import EnginePool

    config = load_campaign(ROOT / "configs/nightly.yaml", [f"store={folder}"]).config
    rows = json.loads((ROOT / "configs/nightly/monday.json").read_text())["rows"]
    form = stream_forms(config)["pairs"]
    database = open_ledger(config).database
    Inbox(database).add("pairs", [form.read(row, "benchmark") for row in rows])
    marks = Marks()
    assert Dues(database, config).claim(datetime.now(UTC)).due
    marks.mark("claimed")

    def start(config: CampaignConfig, model: Path, context: int) -> Any:
        marks.mark("engines asked for")
        engines = config.rollouts
        pool = EnginePool(
            engine_spec(config, model, context),
            num_engines=engines.engines,
            bundle=engines.resources.bundle(gpus=cluster_has_gpus()),
            start_deadline_s=engines.start_deadline_s,
            deadline_s=engines.deadline_s,
        )
        return Heard(pool, marks)

    run_campaign(config, start_engine=start, observer=marks)
    return marks.seconds


def main() -> None:
    """Measure and show."""
    prepare()
    arguments = parser(__doc__ or "")
    arguments.add_argument("--address", help="cluster to join; without, one is started first")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--insecure-cluster", action="store_true")
    options = arguments.parse_args()
    from launch.cluster.cluster import connect

    nights = []
    with (
        connect(options.address, num_engines=2, insecure=options.insecure_cluster),
        TemporaryDirectory() as scratch,
    ):
        for number in range(1 if options.quick else options.rounds):
            nights.append(once(Path(scratch) / str(number)))
    times = {stage: [night.get(stage, math.nan) for night in nights] for stage in STAGES}
    rows = [[stage, spread(seconds)] for stage, seconds in times.items()]
    note = f"From due to the first sample: {middle(times['first sample']):.1f} s."
    show("A round falls due", ["", "s since due, median [min, max]"], rows, note)
    save(options.json, "due", options, nights)


if __name__ == "__main__":
    main()
