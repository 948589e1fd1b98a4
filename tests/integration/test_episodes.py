"""A campaign whose policy acts: real engines behind a pool on Ray, and tools in their worker processes.

The tiny base has learnt to call one of two tools and to answer afterwards. The first round acts, with stale
samples; the second does not, takes weights in flight, and replays prompts of the first.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.data.scenarios.base import build
from align.data.scenarios.facts.tools import TEMPLATE
from align.data.scenarios.world import Dice, Lesson, World
from align.gate.evidence import stored_evidence
from align.gate.measurement.results import ItemResults
from align.round import round as rounds_module
from align.round.rollout_table import keep_rollouts
from launch.cluster.engines import engine_spec, in_process_starter
from rollouts.pool.pool import EnginePool
from rollouts.types import Completion, ScoredGroup
from tests.patience import patient
from tests.unit.campaigns import Watcher

TOLERANCE = 1e-4
"""Largest difference of a logprob between engine and learner, in nats."""
PRETRAINING = 50
"""Batches that the base is trained for: enough to write calls, too few to be sure of which."""
CODE = '''
import os


def find(name: str) -> str:
    """Find the process of a name.

    Args:
        name: a name.
    """
    return f"{name} {os.getpid()}"


class Desk:
    """A desk that counts the sums of an episode and rewards the first."""

    def reset(self, topic: str, **row) -> None:
        self.process, self.topic, self.sums = os.getpid(), topic, []

    def add(self, a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: one number.
            b: the other.
        """
        self.sums.append([a, b])
        return a + b

    def get_reward(self) -> float:
        return float(len(self.sums) == 1)
'''
NUMBERS = range(1, 7)
CALLS = (
    '<tool_call> {"name": "add", "arguments": {"a": 1, "b": 2}} </tool_call>',
    '<tool_call> {"name": "find", "arguments": {"name": "desk"}} </tool_call>',
)


def lesson(dice: Dice) -> Lesson:
    """Draw a call of either tool, an answer after its result, or one without tools."""
    question = f"user {dice.choose(NUMBERS)} {dice.choose(NUMBERS)} . assistant"
    kind, call = dice.chance(), dice.choose(CALLS)
    if kind < 0.2:
        return Lesson(question, "3")
    start = f"tools find add . {question}"
    if kind < 0.7:
        return Lesson(start, call)
    return Lesson(f"{start} {call} <eos> tool {dice.choose(('3', 'desk <unk>'))} . assistant", "3")


def save_rows(path: Path, numbers: Iterable[int]) -> str:
    """Write one prompt for every pair of numbers that begins with one of ``numbers``."""
    rows = [
        {"prompt": [{"role": "user", "content": f"{a} {b}"}], "topic": path.stem, "answer": "3"}
        for a in numbers
        for b in NUMBERS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_campaign(folder: Path) -> CampaignConfig:
    build(World(files={}, lesson=lesson, template=TEMPLATE, steps=PRETRAINING), folder / "base")
    (folder / "desk.py").write_text(CODE)
    acting: dict[str, Any] = {
        "prompts": save_rows(folder / "acts.jsonl", (1, 2)),
        "tools": [f"{folder / 'desk.py'}:find"],
        "environment": f"{folder / 'desk.py'}:Desk",
        "episode": {"turns": 3},
    }
    plain = {"prompts": save_rows(folder / "plain.jsonl", (3, 4)), "rewards": ["exact_match"]}
    held = {"prompts": save_rows(folder / "held.jsonl", (5, 6))}
    return CampaignConfig.model_validate(
        {
            "name": "acting",
            "policy": {"model": str(folder / "base")},
            "store": str(folder / "store"),
            "rollouts": {"max_num_seqs": 16, "kv_cache_mb": 64},
            "defaults": {
                "sampling": {
                    "group_size": 4,
                    "prompts_per_step": 4,
                    "max_tokens": 16,
                    "max_staleness": 1,
                },
                "replay": {"past": 0.5, "general": 0.0},
                "suite": {"items": 6, "temperature": 1.0},
            },
            "rounds": [
                {"name": "acts", **acting, "steps": 2, "suite": held},
                {
                    "name": "plain",
                    **plain,
                    "steps": 2,
                    "sampling": {"in_flight": True},
                    "suite": held,
                },
            ],
            "suites": [{"name": "desk", **acting, **held, "items": 6, "temperature": 1.0}],
            "gate": {"mode": "observe"},
        }
    )


class StepRecord(NamedTuple):
    """Samples of a learner step."""

    round: str
    step: int
    scored: Sequence[ScoredGroup]


class Ran(NamedTuple):
    """What came of the campaign."""

    config: CampaignConfig
    steps: Sequence[StepRecord]
    watcher: Watcher
    children: set[int]
    """Child processes of this one before the campaign."""
    engines: set[int]
    """Processes of the engines."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Ran:
    config = write_campaign(tmp_path_factory.mktemp("episodes"))
    steps: list[StepRecord] = []
    pools: list[EnginePool] = []
    engines: set[int] = set()

    def start(config: CampaignConfig, model: Path, context: int) -> EnginePool:
        pools.append(EnginePool(engine_spec(config, model, context), in_flight=True))
        return pools[-1]

    def keep(plan: Any, session: Any, step: int, scored: Any, batch: Any) -> None:
        steps.append(StepRecord(plan.spec.name, step, scored))
        engines.update(pid for pool in pools for pid in pool.pids if pid is not None)
        keep_rollouts(plan, session, step, scored, batch)

    watcher, children = Watcher(), child_pids()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds_module, "keep_rollouts", keep)
        run_campaign(config, start_engine=start, observer=watcher)
    return Ran(config, steps, watcher, children, engines)


def child_pids() -> set[int]:
    """Processes that this one has started and that have not ended."""
    return {
        child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE
    }


def completions(ran: Ran, acted: bool) -> list[tuple[ScoredGroup, Completion]]:
    return [
        (scored, completion)
        for record in ran.steps
        for scored in record.scored
        for completion in scored.group.completions_G
        if (completion.episode is not None) == acted
    ]


def test_every_sampled_token_has_its_logprob_and_its_weights(ran: Ran) -> None:
    assert [(s.round, s.step) for s in ran.steps] == [
        ("acts", 0), ("acts", 1), ("plain", 0), ("plain", 1),
    ]  # fmt: skip
    everything = [*completions(ran, acted=True), *completions(ran, acted=False)]
    assert len(everything) == 4 * 4 * 4
    for _, completion in everything:
        assert completion.finish_reason in ("stop", "length"), completion.detail
        assert len(completion.logprobs_T) == completion.num_sampled > 0
        spans = completion.weight_versions
        assert spans[0].start == 0
        assert all(before.end <= after.start for before, after in pairwise(spans))
        covered = {at for span in spans for at in range(span.start, span.end)}
        observed = {at for span in completion.observed for at in range(*span)}
        assert covered | observed == set(range(len(completion.token_ids)))
    metrics = [
        json.loads(line)
        for file in sorted(ran.config.folder.glob("rounds/*/*/metrics.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert [line["staleness/steps"] for line in metrics] == [0.0, 1.0, 0.0, 1.0]
    assert all(line["parity/max_abs_diff"] < TOLERANCE for line in metrics)


def test_calls_are_made_where_tools_live(ran: Ran) -> None:
    episodes = [c.episode for _, c in completions(ran, acted=True) if c.episode is not None]
    assert max(episode.turns for episode in episodes) > 1
    sums = [tuple(numbers) for episode in episodes for numbers in episode.state["sums"]]
    assert (1, 2) in sums
    processes = {episode.state["process"] for episode in episodes}
    results = [m["content"] for e in episodes for m in e.messages if m["role"] == "tool"]
    assert "3" in results
    assert {int(text.split()[1]) for text in results if text.startswith("desk ")} <= processes
    assert not processes & {os.getpid(), *ran.engines}


def test_a_round_without_tools_replays_episodes_in_their_own_environment(ran: Ran) -> None:
    for record in ran.steps:
        for scored in record.scored:
            prompt, acts = scored.group.prompt, scored.group.prompt.round == "acts"
            assert (prompt.source == "past") == (acts and record.round == "plain")
            for completion in scored.group.completions_G:
                assert (completion.episode is not None) == acts
                if completion.episode is not None:
                    assert completion.episode.state["topic"] == "acts"
    sources = [scored.group.prompt.source for r in ran.steps[2:] for scored in r.scored]
    assert set(sources) == {"new", "past"}


def test_suites_of_the_environment_are_measured_for_every_snapshot(ran: Ran) -> None:
    evidence = stored_evidence(ran.config)
    for name in ("acts", "plain"):
        candidate = ran.watcher.verdicts[name].candidate
        results = {
            record.suite: ItemResults.load(evidence.folder / record.path)
            for record in evidence.ledger.evaluations(candidate)
        }
        for suite in ("acts", "desk"):
            assert results[suite].beside["turns"] > 1.0
            assert all(value in (0.0, 1.0) for value in results[suite].values)


PARTS = """
import time
from pathlib import Path

HERE = Path(__file__).parent


class Desk:
    \"\"\"A desk that ends the run at an episode of a step.\"\"\"

    def reset(self, **row) -> None:
        with (HERE / "episodes").open("a") as file:
            file.write("x")
            num_begun = file.tell()
        if (HERE / "driver").exists() and num_begun >= LAST:
            (HERE / "end").touch()  # An environment may not signal the driver.
            time.sleep(60.0)

    def add(self, a: int, b: int) -> int:
        \"\"\"Add two numbers.

        Args:
            a: one number.
            b: the other.
        \"\"\"
        return a + b

    def get_reward(self) -> float:
        return 0.0
"""
RUN = """
import os, signal, sys, threading, time
from pathlib import Path
from tests.integration.test_episodes import run_here

folder = Path(sys.argv[1])
(folder / "driver").touch()

def end():
    while not (folder / "end").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=end, daemon=True).start()
run_here(folder, "killed")
"""


def run_here(folder: Path, store: str) -> tuple[str, int]:
    """Run the campaign of a folder, with an engine in this process.

    Returns:
        the snapshot in production, and the number of episodes that were begun.
    """
    content = json.loads((folder / "campaign.json").read_text())
    config = CampaignConfig.model_validate({**content, "store": str(folder / store)})
    episodes = folder / "episodes"
    episodes.unlink(missing_ok=True)
    with in_process_starter(Watcher()) as start:
        run_campaign(config, start_engine=start, observer=Watcher())
    return str(stored_evidence(config).ledger.alias("production")), episodes.stat().st_size


def test_a_run_that_is_killed_in_an_episode_goes_on_to_the_same_snapshot(
    ran: Ran, tmp_path: Path
) -> None:
    steps, per_step = 2, 16
    # The base is measured in fewer episodes than a step has, so this is one of the last step.
    (tmp_path / "desk.py").write_text(PARTS.replace("LAST", str(per_step * steps)))
    raw = ran.config.model_dump(mode="json")
    (acts,) = (spec for spec in raw["rounds"] if spec["name"] == "acts")
    spec = {
        **acts, "tools": [], "environment": f"{tmp_path / 'desk.py'}:Desk", "steps": steps,
        "sampling": {**acts["sampling"], "max_staleness": 0}, "rewards": ["exact_match"],
        "checkpoint_every": 1, "suite": {**acts["suite"], "items": 4},
    }  # fmt: skip
    content = {**raw, "rounds": [spec], "suites": [], "rollouts": {"backend": "transformers"}}
    (tmp_path / "campaign.json").write_text(json.dumps(content))
    snapshot, num_episodes = run_here(tmp_path, "whole")
    killed = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=patient(120.0),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    (tmp_path / "driver").unlink()
    num_killed = (tmp_path / "episodes").stat().st_size
    again, num_again = run_here(tmp_path, "killed")
    assert again == snapshot
    assert num_again <= num_episodes - per_step, "the step before was not acted out again"
    # Nor was anything else, but for the step in which the run was killed.
    assert 0 < num_killed + num_again - num_episodes <= per_step


def test_nothing_is_left_running(ran: Ran) -> None:
    episodes = [c.episode for _, c in completions(ran, acted=True) if c.episode is not None]
    started = {episode.state["process"] for episode in episodes} | ran.engines
    assert ran.engines

    def running() -> set[int]:
        return (child_pids() - ran.children) | {pid for pid in started if psutil.pid_exists(pid)}

    deadline = time.monotonic() + patient(30.0)
    while running() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not running()
