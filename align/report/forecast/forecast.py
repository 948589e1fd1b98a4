"""Forecast of `run_campaign`: rounds that are due, what each samples, and what all of it takes.

Read from the campaign file, its inputs and a copy of the ledger. What is due is claimed there, so that the
rounds it would become are forecast like all others; nothing is started, claimed or written elsewhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from align.config.campaign import CampaignConfig, RoundConfig
from align.data.examples.contradictions import contradiction_lines
from align.data.replay.contributions import contributors, keeping_prompts, replay_lines
from align.gate.evidence import view_of_due
from align.gate.power.power import GatePlan
from align.gate.power.underpowered import foresee
from align.learner.folder.sizes import (
    LearnerMemory,
    artifact_bytes,
    checkpoint_bytes,
    engine_bytes,
    folder_bytes,
    learner_memory,
    snapshots_bytes,
)
from align.learner.model.targets import adaptation_of
from align.report.forecast.fit import check_kv_cache, fit_lines
from align.report.forecast.machine import runs_here
from align.round.inputs import Inputs
from align.round.merge.checks import merge_lines, merging
from align.round.records.artifacts import check_stored_artifacts
from align.round.records.named_rounds import check_stored_named_rounds
from align.round.records.retirement import remaining_suites
from align.schedule.checked import load_checked, open_claims
from align.schedule.claims import Dues
from align.store.auto import auto_lines
from align.store.changes.settle import settle
from align.store.ledger.copy import ledger_copy
from align.store.ledger.ledger import RoundRecord
from align.store.paths import StorePaths
from align.store.run_folder import checkpoints_in
from align.store.store import ledger_place
from rollouts.machine.memory import available_memory


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundForecast:
    """One round: done, or what it would take."""

    name: str
    state: Literal["accepted", "rejected", "skipped", "resumes", "due", "unclaimed"]
    """``unclaimed``: due, and a round of the campaign once ``keel schedule tick`` claims it."""
    algorithm: str
    steps: int
    """Learner steps that are left."""
    from_step: int
    """Step at which a round that was stopped goes on."""
    new: float
    """Prompts of a step that are the round's own, or units of its file; a mean."""
    past: float
    """Prompts of earlier rounds in one step, in the mean."""
    general: float
    completions: int
    """Sampled by the steps that are left."""
    tokens: int
    """Sampled at most: every completion as long as it may be."""
    measured: int
    """Completions that the gate asks of the candidate; of all points of a merge's search, at most."""
    memory: LearnerMemory | None
    """Memory of each rank; None if the round is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """Bytes that a store takes; rollout tables and results of suites are small beside the weights."""

    base: int
    """The model that is copied in when a campaign begins."""
    snapshots: int
    """Candidates of the rounds to come and what they are merged of, kept whatever the verdict; repairs not
    counted."""
    checkpoint: int
    """Bytes of the newest checkpoint of the round under way."""
    artifacts: int
    """Bytes that retention methods leave, if all rounds to come are accepted."""
    free: int

    @property
    def needed(self) -> int:
        return self.base + self.snapshots + self.checkpoint + self.artifacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Work of the next run."""

    campaign: str
    store: str
    began: bool
    rounds: tuple[RoundForecast, ...]
    amendments: tuple[str, ...]
    """Changes of the campaign file that the run would record, such as ``seed: 0 -> 1``."""
    claims: tuple[str, ...]
    """Due keys that `keel schedule tick` would claim, each with its round."""
    waits: tuple[str, ...]
    """Schedules that are not due, and why."""
    machine: tuple[str, ...]
    """Lines on what an adapter changes, what ``auto`` settings mean here, and what is slow."""
    merges: tuple[str, ...]
    """Lines on the cost of merges."""
    replay: tuple[str, ...]
    """Lines on the examples that earlier rounds give to rounds to come, and on contradicting pairs."""
    reports: Mapping[str, str]
    """Rows read, cut and left out of the files that rounds learn from, by round."""
    engine: int
    """Bytes of one engine on a CPU."""
    available: int
    """Bytes of memory that this machine has left."""
    disk: Disk
    gate: GatePlan
    """Power of the suites."""

    @property
    def to_run(self) -> tuple[RoundForecast, ...]:
        return tuple(coming for coming in self.rounds if coming.memory is not None)


def forecast(config: CampaignConfig, now: datetime | None = None) -> Forecast:
    """Forecast the next run; raise `UserError` as it would for inputs that cannot be used."""
    with ledger_copy(config) as ledger:
        dues = Dues(ledger.database, config).claim(now or datetime.now(UTC))
        records = ledger.rounds()
        settled = settle(config, ledger, where=ledger_place(config))
        settled.check()
        chosen = settled.config
        check_stored_artifacts(chosen, ledger)
        check_stored_named_rounds(chosen, ledger)
        view = view_of_due(chosen, ledger)
        unclaimed = {due.round for due in dues.due if not due.claimed}
        claims = open_claims(ledger, apart=unclaimed)
        inputs = load_checked(view, claims)
        try:
            if runs_here(None):
                check_kv_cache(inputs.model, inputs.context, chosen)
            planned = {name: index for index, name in settled.comparison.planned}
            rounds = list(_rounds(chosen, inputs, records, planned, unclaimed))
            names = {item.name for item in rounds if item.memory is not None}
            learnt = [spec for spec in chosen.rounds if spec.name in names]
            states = {record.name: record.state for record in records}
            replay = [
                *replay_lines(chosen.rounds, states),
                *contradiction_lines(chosen.rounds, inputs.examples, states, inputs.held_out),
            ]
            disk = _disk(config, inputs.model, chosen.rounds, learnt, states)
            gate = foresee(view, remaining_suites(view.rounds, inputs, ledger), ledger)
            adapted = adaptation_of(inputs.model, config.policy)
        finally:
            inputs.close()
    return Forecast(
        campaign=config.name,
        store=str(config.folder),
        began=bool(records),
        rounds=tuple(rounds),
        amendments=settled.comparison.sentences,
        claims=tuple(f"{d.key} -> {d.round}: {d.reason}" for d in dues.due if not d.claimed),
        waits=tuple(f"{w.schedule}: {w.why}" for w in dues.waits),
        machine=(
            *([] if adapted is None else [str(adapted)]),
            *auto_lines(config, chosen),
            *(fit_lines(inputs.model, inputs.context, chosen) if runs_here(None) else ()),
        ),
        merges=tuple(merge_lines(chosen, names)),
        replay=tuple(replay),
        reports=inputs.reports,
        engine=engine_bytes(inputs.model, chosen),
        available=available_memory(),
        disk=disk,
        gate=gate,
    )


def _disk(
    config: CampaignConfig,
    model: Path,
    rounds: Sequence[RoundConfig],
    learnt: Sequence[RoundConfig],
    states: Mapping[str, str],
) -> Disk:
    """Count what the next run writes, and what is free where it writes.

    Args:
        model: folder of the base.
        rounds: all rounds of the campaign, in order.
        learnt: those that the run is to train.
        states: state of every round in the ledger; empty before the first run.
    """
    folder, policy = config.folder.absolute(), config.policy
    present = next(path for path in (folder, *folder.parents) if path.exists())
    coming = sum(map(num_snapshots, learnt))
    return Disk(
        base=0 if states else folder_bytes(model),
        snapshots=snapshots_bytes(model, policy, coming, states.values()),
        checkpoint=checkpoint_bytes(model, policy, learnt) if learnt else 0,
        artifacts=sum(
            artifact_bytes(model, policy, spec, earlier=rounds.index(spec)) for spec in learnt
        ),
        free=shutil.disk_usage(present).free,
    )


def _rounds(
    config: CampaignConfig,
    inputs: Inputs,
    records: Sequence[RoundRecord],
    planned: Mapping[str, int],
    unclaimed: Set[str],
) -> Iterator[RoundForecast]:
    """Forecast every round in the file's order.

    Args:
        planned: index of rounds that get a new place in the ledger.
    """
    states = {record.name: record.state for record in records}
    places = {**{record.name: record.index for record in records}, **planned}
    asked_before: list[RoundConfig] = []
    for spec in config.rounds:
        state = states.get(spec.name)
        if state == "accepted" or state == "rejected" or state == "skipped":
            yield RoundForecast(
                name=spec.name, state=state, algorithm=spec.algorithm.name, steps=0, from_step=0,
                new=0.0, past=0.0, general=0.0, completions=0, tokens=0, measured=0, memory=None,
            )  # fmt: skip
        else:
            folder = StorePaths(config.folder).round(places[spec.name], spec.name)
            first_step = max(checkpoints_in(folder.checkpoints()), default=0)
            coming = _coming(config, inputs, spec, first_step, asked_before)
            yield replace(coming, state="unclaimed") if spec.name in unclaimed else coming
        # A round that is still to come counts as accepted: that is what it is run for.
        if state not in ("rejected", "skipped") and spec.algorithm.makes == "policy":
            asked_before.append(spec)


def _coming(
    config: CampaignConfig,
    inputs: Inputs,
    spec: RoundConfig,
    from_step: int,
    earlier: Sequence[RoundConfig],
) -> RoundForecast:
    steps = spec.steps - from_step
    keeping = [] if config.policy.bank is not None else keeping_prompts(spec, earlier)
    examples = bool(contributors(earlier, spec))
    new, past, general = step_counts(spec, len(keeping), examples=examples)
    sampled = past * spec.replay.samples_per_prompt + general
    if spec.algorithm.material == "rollouts":
        sampled += new * spec.sampling.group_size
    if not spec.algorithm.trains_policy:
        sampled = 0.0
    merge = merging(spec)
    runs, points = (1, 1) if merge is None else (merge.num_runs, len(merge.points))
    completions = round((steps + (runs - 1) * spec.steps) * sampled)
    completions += 0 if from_step else answered(spec, earlier, inputs)
    completions += 0 if merge is None else merge.fitted_answers
    answers = [suite.num_answers for suite in inputs.policy_suites if suite.role != "sealed"]
    # Weights and index are measured apart as well where both change.
    compares = spec.index is not None and spec.index.compare and spec.algorithm.learns_here
    apart = 2 if compares and spec.steps else 0
    return RoundForecast(
        name=spec.name,
        state="resumes" if from_step else "due",
        algorithm=spec.algorithm.name,
        steps=steps,
        from_step=from_step,
        new=new,
        past=past,
        general=general,
        completions=completions,
        tokens=completions * spec.sampling.max_tokens,
        measured=(points + apart) * sum(answers) if spec.algorithm.makes == "policy" else 0,
        memory=learner_memory(inputs.model, config.policy, spec),
    )


def answered(spec: RoundConfig, earlier: Sequence[RoundConfig], inputs: Inputs) -> int:
    """Count the prompts and answers that a round's parent writes, once before the round's steps.

    Args:
        earlier: rounds that made a policy; all are counted, though prompts that two of them share are
            answered once.
    """
    answers, synthesis = spec.replay.answers, spec.replay.synthesis
    if not spec.algorithm.trains_policy:
        return 0
    pools = ((other, inputs.prompts.get(other.name, ())) for other in earlier)
    stored = [min(other.replay.buffer, len(pool)) for other, pool in pools]
    if synthesis is None:
        return sum(stored) if answers is not None else 0
    shown = sum(bool(count and synthesis.shots) for count in stored)
    groups = shown + (shown < len(stored))
    return groups * (synthesis.num_written + (synthesis.count if answers is not None else 0))


def num_snapshots(spec: RoundConfig) -> int:
    """Return the largest number of snapshots that a round writes without its repairs."""
    merge = merging(spec)
    return 1 if merge is None else merge.num_snapshots


def step_counts(
    spec: RoundConfig, before: int, *, examples: bool = False
) -> tuple[float, float, float]:
    """Return the mean number of new, past and general prompts of one step, as `Mixture.draw` deals them.

    Args:
        before: earlier rounds whose prompts the round replays.
        examples: some of them have examples that the round can learn from.
    """
    budget, replay = spec.sampling.budget, spec.replay
    past = replay.past if before else 0.0
    sampled = replay.general_prompts is not None and replay.general_answers == "sampled"
    general = replay.general if sampled else 0.0
    rest = budget * (1.0 - past - general - (replay.examples if examples else 0.0))
    per_unit = {"rollouts": spec.sampling.group_size, "pairs": 2}.get(spec.algorithm.material, 1)
    return rest / per_unit, budget * past / replay.samples_per_prompt, budget * general
