"""Whole campaigns on the tiny world: what the benchmarks that run them share.

A benchmark appends one JSON line to a file for each run as it ends, so the same command goes on after a
break; a campaign that was killed resumes in the round it was in, from its store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import middle

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.gate.evidence import Evidence
    from align.gate.measurement.evaluate import ItemResults

TASKS = ("rev", "sort", "rotl", "inc")
ORDERS: dict[str, tuple[str, ...]] = {"given": TASKS, "reversed": TASKS[::-1]}
"""Tasks of the tiny world's rounds, in the two orders that results are averaged over."""

DEFAULTS: dict[str, Any] = {
    "sampling": {"group_size": 8, "prompts_per_step": 16, "max_tokens": 6},
    "replay": {"general_prompts": "demo://general"},
    # The drift meter would add its own sampling to the time of every row.
    "meter_every": 10**6,
}
"""Settings of every round, over Keel's defaults."""


def world_config(
    name: str,
    store: Path,
    *,
    seed: int,
    rounds: Sequence[Mapping[str, Any]],
    defaults: Mapping[str, Any],
    suites: Sequence[Mapping[str, Any]],
    others: Mapping[str, Any] | None = None,
) -> CampaignConfig:
    """Build a campaign on the tiny world whose gate observes, so that naive rounds are accepted too.

    Args:
        defaults: settings of the rounds, over `DEFAULTS`.
        others: further keys of the campaign, such as ``rollouts``.
    """
    from align.config.campaign import CampaignConfig, overlay

    return CampaignConfig.model_validate(
        overlay(
            {
                "name": name,
                "policy": {"model": "demo://digits"},
                "store": str(store),
                "seed": seed,
                "defaults": overlay(DEFAULTS, defaults),
                "rounds": list(rounds),
                "suites": list(suites),
                "gate": {"mode": "observe"},
            },
            others or {},
        )
    )


def world_suite(
    name: str, source: str, items: int, temperature: float, role: str
) -> dict[str, Any]:
    """Return a suite of a source's eval split; every campaign measures the same items."""
    return {
        "name": name, "prompts": f"demo://{source}?split=eval&n={items}", "metric": "exact_match",
        "items": items, "max_tokens": 6, "temperature": temperature, "role": role,
    }  # fmt: skip


@dataclass(kw_only=True)
class Clock:
    """Observer that times the learner steps of every round, without evaluation."""

    label: str
    steps: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Seconds of wall time and of this process's CPU at the end of each step, by round."""

    def note(self, text: str) -> None:
        """Ignore a remark."""

    def on_step(self, plan: Any, step: int, metrics: Mapping[str, float]) -> None:
        """Record the time at which a step ends."""
        ends = self.steps.setdefault(plan.spec.name, [])
        ends.append((time.perf_counter(), time.process_time()))

    def on_verdict(self, plan: Any, outcome: Any) -> None:
        """Print that a round is done."""
        print(f"  {self.label}: {plan.spec.name} done", flush=True)

    def round_s(self) -> float:
        """Return the median seconds of a round; its first step counts as an average one."""
        return self._median(0)

    def round_cpu_s(self) -> float:
        """Return the median CPU seconds of a round in this process, counted in the same way."""
        return self._median(1)

    def _median(self, clock: int) -> float:
        spans = [
            (ends[-1][clock] - ends[0][clock]) * len(ends) / (len(ends) - 1)
            for ends in self.steps.values()
            if len(ends) > 1
        ]
        return middle(spans)


def lost_share(evidence: Evidence, config: CampaignConfig) -> float:
    """Return the share of greedy items lost from a round's snapshot to the end, averaged over rounds.

    The suites are named ``greedy-TASK``. The last round does not count.
    """
    from align.gate.forgetting import transitions

    snapshots = {record.name: record.candidate or "" for record in evidence.committed()}
    last = snapshots[config.rounds[-1].name]
    earlier = [spec.name for spec in config.rounds[:-1]]
    shares = [
        transitions(
            items_of(evidence, snapshots[task], f"greedy-{task}"),
            items_of(evidence, last, f"greedy-{task}"),
        ).lost_share
        for task in earlier
    ]
    return sum(shares) / len(shares)


def items_of(evidence: Evidence, snapshot: str, suite: str) -> ItemResults:
    """Load the items of a suite, as a snapshot was measured on them."""
    from align.gate.measurement.evaluate import ItemResults

    hashes = {record.suite: record.suite_hash for record in evidence.ledger.evaluations()}
    return ItemResults.load(evidence.locate(snapshot, hashes[suite]))


def load_results(path: Path) -> dict[str, dict[str, Any]]:
    """Read the lines of finished runs by key; a line that was cut short is ignored."""
    results: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        results[record["key"]] = record
    return results


def append_result(path: Path, record: Mapping[str, Any]) -> None:
    """Append the line of a finished run, on a line of its own even if the last one was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_cut = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * is_cut + json.dumps(record) + "\n")


def several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return a parser of lists such as ``1,2``."""
    return lambda text: [kind(part) for part in text.split(",")]


def several_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return a parser of lists of known names, which may have commas themselves.

    >>> several_of(["ewc", "o_lora, reserved,10"])("ewc,o_lora, reserved,10,none")
    ['ewc', 'o_lora, reserved,10', 'none']
    """

    def parse(text: str) -> list[str]:
        parts, names = text.split(","), []
        while parts:
            joined = [",".join(parts[:count]) for count in range(len(parts), 0, -1)]
            name = next((name for name in joined if name in known), parts[0])
            names.append(name)
            parts = parts[name.count(",") + 1 :]
        return names

    return parse
