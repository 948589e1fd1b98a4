"""Artifacts of accepted rounds: tensors that retention methods hand on to later rounds.

    rounds/00-first/attempt-1/artifacts/ewc.safetensors

They are written, and their hashes recorded, before the verdict that accepts the round is committed, so an
accepted round always has its artifacts. A rejected round leaves none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from align.algorithms.rows import Row, row_of
from align.config.retention.rules import without_samples
from align.data.replay.contributions import rounds_to_come
from align.errors import ArtifactError, EvidenceError
from align.gate.evidence import Evidence
from align.retention.methods import RetentionMethods
from align.round.records.history import check_history
from align.round.session import seed_of
from align.store.ledger.ledger import Ledger
from align.store.store import store_to_read
from rollouts.collect import collect
from rollouts.errors import RunError
from rollouts.types import SnapshotId, WeightVersion

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig, RoundConfig
    from align.config.retention.methods import RetentionConfig
    from align.learner.ranks.group import GroupTraining
    from align.learner.training import Training
    from align.round.plan import RoundOutcome, RoundPlan
    from align.round.session import Session

LOST = "restore the file from a backup, or take the method out of the rounds to come"
"""Remedy for an artifact that was changed or removed: the samples it was made of are not kept."""


def penalties_of(plan: RoundPlan) -> RetentionMethods:
    """Return what builds a round's penalties on every rank of the learner."""
    return RetentionMethods(
        artifacts={name: path.absolute() for name, path in plan.artifacts.items()},
        retired=plan.retired,
    )


def earlier_artifacts(
    spec: RoundConfig, parent: SnapshotId, evidence: Evidence, *, fetch: bool = True
) -> dict[str, Path]:
    """Return what each method of a round goes on from: the newest artifact on the parent's line, by method.

    Args:
        fetch: get files that a store with a URL has not here; else the URL is only asked for their sizes.

    Raises:
        EvidenceError: a file is missing, or was changed.
    """
    store = evidence.store
    check = store.checked if fetch else store.checked_unfetched
    artifacts: dict[str, Path] = {}
    for method in keeping(spec):
        path = _newest(method.name, parent, evidence)
        if path is not None:
            artifacts[method.name] = check(path, remedy=LOST)
    return artifacts


def check_artifacts(
    specs: Iterable[RoundConfig], evidence: Evidence, *, fetch: bool = True
) -> None:
    """Check what rounds would go on from now, before anything starts for them.

    Args:
        fetch: see `earlier_artifacts`.

    Raises:
        ArtifactError: a file is missing, or was changed.
    """
    parent = evidence.ledger.alias("production")
    if parent is None:
        return
    for spec in specs:
        with _refused(f"round {spec.name!r} goes on from what retention kept of an accepted round"):
            earlier_artifacts(spec, parent, evidence, fetch=fetch)
        with _refused(f"round {spec.name!r} draws by the history of prompts of an accepted round"):
            check_history(spec, parent, evidence.store, fetch=fetch)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Raise for a file that is missing or was changed before the round that needs it begins."""
    try:
        yield
    except EvidenceError as error:
        raise ArtifactError(
            f"{what}, and {error.what}", where=error.where, cause=error.cause, remedy=error.remedy
        ) from error


def check_stored_artifacts(config: CampaignConfig, ledger: Ledger) -> None:
    """Check what all rounds without a verdict would go on from, for a command that starts nothing.

    Files that a store with a URL has not here are not fetched: a file of the right size is left to the run.

    Args:
        ledger: of the store, or a copy of it.

    Raises:
        ArtifactError: a file is missing, or was changed.
        KeelError: the store's URL cannot be used; it is only asked once the campaign has begun.
    """
    closed = ledger.closed()
    coming = [
        spec
        for spec in config.rounds
        if spec.name not in closed and (keeping(spec) or spec.replay.draw.keeps_history)
    ]
    if coming and ledger.alias("production") is not None:
        evidence = Evidence(store=store_to_read(config, ledger), config=config)
        check_artifacts(coming, evidence, fetch=False)


def first_lines(spec: RoundConfig, artifacts: Mapping[str, Path]) -> Iterator[str]:
    """Name the methods of a round that go on from nothing."""
    for method in keeping(spec):
        if method.name not in artifacts:
            yield (
                f"{spec.name}: {method.name} holds nothing yet: no accepted round before it left what the "
                "method needs"
            )


def stateless_lines(rounds: Sequence[RoundConfig], states: Mapping[str, str]) -> Iterator[str]:
    """Warn of methods that do nothing in a round to come: no round before it leaves their state, or it
    draws no samples that they could read.

    Args:
        rounds: all rounds of the campaign, in order.
        states: state of every round in the ledger. A round to come counts as accepted.
    """
    policies = [spec for spec in rounds if spec.algorithm.makes == "policy"]
    for spec, earlier in rounds_to_come(policies, states):
        for name in without_samples(spec):
            yield (
                f"warning: round {spec.name}: {name} does nothing: it measures its steps on completions of "
                f"the policy, and {spec.algorithm.name} learns {spec.algorithm.material} of a file; the "
                "learning rate sets the steps"
            )
        for method in keeping(spec) if earlier else ():
            if all(method.name not in {m.name for m in keeping(other)} for other in earlier):
                yield (
                    f"warning: round {spec.name}: {method.name} holds nothing: no round before it lists "
                    f"{method.name}, so none leaves the state that it needs; list it in the rounds it is "
                    "to hold, or use kl_anchors or l2_sp, which need none"
                )


def keeping(spec: RoundConfig) -> list[RetentionConfig]:
    """Return the methods of a round that leave an artifact; none where the policy does not learn."""
    methods = spec.retention if spec.algorithm.trains_policy else ()
    return [method for method in methods if method.keeps_artifact]


def keep_counters(plan: RoundPlan, session: Session) -> None:
    """Keep what the methods counted in the round's own training, which a merge or a repair lets go of."""
    if plan.origin is None and session.training is not None and keeping(plan.spec):
        session.counters = session.training.counters()


def keep_artifacts(plan: RoundPlan, session: Session, outcome: RoundOutcome) -> None:
    """Write what the round's methods keep of its accepted policy, and record the hashes."""
    if not keeping(plan.spec):
        return
    training = session.training
    if outcome.repairs or outcome.merge is not None or training is None:
        # The learner holds the candidate that was tried last, which need not be the accepted one.
        training = session.begin(plan, penalties_of(plan))
        training.resume(session.counters)
        session.learner.load(outcome.candidate)
    session.engine.sync(session.learner.weights(f"{plan.run}/accepted"))
    attempt = session.store.paths.attempt(plan.index, plan.spec.name, plan.attempt)
    folder = attempt.artifacts
    rmtree(folder, ignore_errors=True)
    wanted = max(method.accept_samples for method in keeping(plan.spec))
    training.write_artifacts(
        folder, drawn_rows(plan, session, outcome.candidate, wanted, "artifacts")
    )
    session.store.files.record(sorted(folder.glob("*.safetensors")))


def show_start(
    plan: RoundPlan, session: Session, training: Training | GroupTraining, version: WeightVersion
) -> None:
    """Show the round's methods samples of the policy that it begins with, if one of them asks for any.

    Args:
        version: name under which the engines hold these weights.
    """
    wanted = max((method.start_samples for method in plan.spec.retention), default=0)
    if wanted:
        training.before_steps(drawn_rows(plan, session, version, wanted, "start"))


def drawn_rows(
    plan: RoundPlan, session: Session, policy: SnapshotId | WeightVersion, wanted: int, purpose: str
) -> list[Row]:
    """Draw completions of the round's prompts from the weights that the engines hold.

    Args:
        policy: name of these weights.
        wanted: number of completions.
        purpose: name that the draw's seed comes from.

    Raises:
        RunError: no completion has a token.
    """
    if not wanted:
        return []
    stream = plan.mixture.new
    stream.seek(0)
    prompts = stream.take(min(wanted, len(stream)))
    sizes = [wanted // len(prompts) + (i < wanted % len(prompts)) for i in range(len(prompts))]
    groups = collect(
        session.engine,
        prompts,
        sizes,
        session.encoder,
        plan.sampling,
        seed=seed_of(plan.seed, purpose),
        policy=policy,
        environments=plan.environments,
    )
    rows = [row_of(g, completion, None) for g in groups for completion in g.completions_G]
    if not (rows := [row for row in rows if row.completion_ids]):
        raise RunError(
            "the policy gave no answer to any of the round's prompts",
            where=f"round {plan.spec.name}, {purpose}",
            cause="engines failed on every request",
            remedy="look at the engines' messages, then run again",
        )
    return rows


def _newest(method: str, snapshot: SnapshotId, evidence: Evidence) -> Path | None:
    """Follow a snapshot's line of accepted rounds to the newest that recorded such a file."""
    accepted = {r.candidate: r for r in evidence.ledger.attempts() if r.state == "accepted"}
    while (record := accepted.pop(snapshot, None)) is not None:
        folder = evidence.store.paths.attempt(record.index, record.name, record.attempt)
        path = folder.artifact(method)
        if evidence.files.hash_of(path) is not None:
            return path
        if record.parent is None:
            return None
        snapshot = record.parent
    return None
