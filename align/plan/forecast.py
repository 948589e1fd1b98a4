"""What `run_campaign` would do now: rounds that are due, what each samples, and what all of it takes.

Read from the campaign file, its inputs and, where the ledger is a file, a copy of it: opening the file
itself could create tables in it. Nothing is started, claimed or written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from sqlalchemy import make_url

from align.config import CampaignConfig, RoundConfig
from align.gate.suites import Suite
from align.inputs import Inputs, load_inputs
from align.memory.ledger import Ledger, RoundRecord
from align.plan.sizes import (
    LearnerMemory,
    checkpoint_bytes,
    engine_bytes,
    folder_bytes,
    learner_memory,
    snapshot_bytes,
)
from align.schedule.claims import Dues, schedules_of
from align.schedule.due import History, Tick, tick
from align.schedule.expand import expand, expanded, known_ledger


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundForecast:
    """One round: done, or what it would take."""

    name: str
    state: Literal["accepted", "rejected", "resumes", "due"]
    algorithm: str
    steps: int
    """Learner steps that are left."""
    from_step: int
    """Where a round that was stopped goes on."""
    new: float
    """Prompts of a step that are the round's own, or units of its file; a mean."""
    past: float
    """And those of earlier rounds."""
    general: float
    completions: int
    """Sampled by the steps that are left."""
    tokens: int
    """Sampled at most: every completion as long as it may be."""
    measured: int
    """Completions that the gate asks of the candidate."""
    memory: LearnerMemory | None
    """Of each rank; None: the round is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """Of the store, in bytes; rollout tables and results of suites are small beside the weights."""

    base: int
    """The model that is copied in when a campaign begins."""
    snapshots: int
    """Candidates of the rounds to come, kept whatever the verdict; repairs not counted."""
    checkpoint: int
    """Of the round under way."""
    free: int

    @property
    def needed(self) -> int:
        return self.base + self.snapshots + self.checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a run would do."""

    campaign: str
    store: str
    began: bool
    rounds: tuple[RoundForecast, ...]
    claims: tuple[str, ...]
    """Due keys that `keel schedule tick` would claim, each with its round."""
    waits: tuple[str, ...]
    """Schedules that are not due, and why."""
    engine: int
    """Bytes of one engine on a CPU."""
    available: int
    """Bytes of memory that this machine has left."""
    disk: Disk

    @property
    def to_run(self) -> tuple[RoundForecast, ...]:
        return tuple(one for one in self.rounds if one.memory is not None)


def forecast(config: CampaignConfig, now: datetime | None = None) -> Forecast:
    """Raises `UserError` as `run_campaign` would, for inputs that cannot be used."""
    import psutil

    with stored(config) as ledger:
        found = _look(config, ledger, now or datetime.now(UTC))
        records = [] if ledger is None else ledger.rounds()
        chosen = expand(config, (), ()) if ledger is None else expanded(config, ledger)
    inputs = load_inputs(chosen)
    try:
        rounds = list(_rounds(chosen, inputs, records))
        coming = sum(one.memory is not None for one in rounds)
        disk = Disk(
            base=0 if records else folder_bytes(inputs.model),
            snapshots=coming * snapshot_bytes(inputs.model, config.policy),
            checkpoint=checkpoint_bytes(inputs.model, config.policy) if coming else 0,
            free=shutil.disk_usage(_nearest(config.folder)).free,
        )
    finally:
        inputs.close()
    return Forecast(
        campaign=config.name,
        store=str(config.folder),
        began=bool(records),
        rounds=tuple(rounds),
        claims=tuple(f"{d.key} -> {d.round}: {d.reason}" for d in found.due if not d.claimed),
        waits=tuple(f"{w.schedule}: {w.why}" for w in found.waits),
        engine=engine_bytes(inputs.model, config),
        available=psutil.virtual_memory().available,
        disk=disk,
    )


@contextmanager
def stored(config: CampaignConfig) -> Iterator[Ledger | None]:
    """The campaign's ledger, of a file a copy; None where there is none."""
    url = make_url(config.ledger_url)
    if url.get_backend_name() != "sqlite":
        yield known_ledger(config)
        return
    path = Path(url.database or "")
    if not path.is_file():
        yield None
        return
    with TemporaryDirectory(prefix="keel-plan-") as folder:
        # The log of what is not yet in the file belongs to it.
        for file in (path, path.with_name(f"{path.name}-wal")):
            if file.is_file():
                shutil.copyfile(file, Path(folder) / file.name)
        yield Ledger(f"sqlite:///{Path(folder) / path.name}")


def _look(config: CampaignConfig, ledger: Ledger | None, now: datetime) -> Tick:
    if ledger is None:
        return tick(schedules_of(config), History(), {}, now)
    return Dues(ledger.database, config).look(now)


def _rounds(
    config: CampaignConfig, inputs: Inputs, records: Sequence[RoundRecord]
) -> Iterator[RoundForecast]:
    states = {record.name: record.state for record in records}
    asked_before = 0
    for index, spec in enumerate(config.rounds):
        state = states.get(spec.name)
        if state in ("accepted", "rejected"):
            yield _done(spec, "accepted" if state == "accepted" else "rejected")
        else:
            folder = config.folder / "rounds" / f"{index:02d}-{spec.name}" / "checkpoint"
            yield _coming(config, inputs, spec, newest_step(folder), asked_before)
        # A round that is still to come counts as accepted: that is what it is run for.
        asked_before += state != "rejected" and spec.algorithm.makes == "policy"


def _done(spec: RoundConfig, state: Literal["accepted", "rejected"]) -> RoundForecast:
    return RoundForecast(
        name=spec.name, state=state, algorithm=spec.algorithm.name, steps=0, from_step=0, new=0.0,
        past=0.0, general=0.0, completions=0, tokens=0, measured=0, memory=None,
    )  # fmt: skip


def _coming(
    config: CampaignConfig, inputs: Inputs, spec: RoundConfig, from_step: int, before: int
) -> RoundForecast:
    steps = spec.steps - from_step
    new, past, general = step_counts(spec, before)
    sampled = past * spec.replay.samples_per_prompt + general
    if spec.algorithm.material == "rollouts":
        sampled += new * spec.sampling.group_size
    if spec.algorithm.makes != "policy":
        sampled = 0.0
    completions = round(steps * sampled)
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
        measured=_measured(inputs.policy_suites) if spec.algorithm.makes == "policy" else 0,
        memory=learner_memory(inputs.model, config.policy, spec),
    )


def step_counts(spec: RoundConfig, before: int) -> tuple[float, float, float]:
    """New, past and general prompts of one step, as `Mixture.draw` deals them, in the mean.

    Args:
        before: earlier rounds that made a policy.
    """
    budget, replay = spec.sampling.budget, spec.replay
    past = replay.past if before else 0.0
    sampled = replay.general_prompts is not None and replay.general_answers == "sampled"
    general = replay.general if sampled else 0.0
    rest = budget * (1.0 - past - general)
    per_unit = {"rollouts": spec.sampling.group_size, "pairs": 2}.get(spec.algorithm.material, 1)
    return rest / per_unit, budget * past / replay.samples_per_prompt, budget * general


def _measured(suites: Sequence[Suite]) -> int:
    return sum(
        len(s.prompts) * s.samples for s in suites if s.kind == "items" and s.role != "sealed"
    )


def newest_step(folder: Path) -> int:
    """Of the last checkpoint of a round; 0 where there is none. `align.learner.checkpoint` names them."""
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("step-*")), default=0)


def _nearest(folder: Path) -> Path:
    """The folder, or the closest above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
