"""Prompts and examples that later rounds replay, and stored answers of the general pool."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from align.data.examples.round_data import pool_hash
from align.data.examples.stream import ExampleStream
from align.data.replay.buffer import ReplayBuffer
from align.data.replay.examples import OwnedExamples
from align.data.retirement import Retired
from align.data.stored_answers import load_answers, save_answers
from align.round.records.documents import prompted, reading_units
from align.round.records.history import keep_history
from align.round.session import seed_of
from align.round.times.clock import phase
from align.store.durable import replace
from align.store.paths import StorePaths
from align.store.stored_files import fault_of
from rollouts.collect import collect
from rollouts.prompts import PromptStream
from rollouts.types import Prompt, RolloutGroup, Sampling, SnapshotId

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from align.data.retrieval.index import DocumentIndex
    from align.round.plan import RoundPlan
    from align.round.session import Session


def remember(plan: RoundPlan, session: Session, candidate: SnapshotId) -> None:
    """Write the prompts and examples that later rounds will replay, should the candidate be accepted.

    They are written before the verdict is committed: an accepted round always has its buffer.
    """
    path = session.store.paths.replay(candidate)
    stored = _buffer_of(plan.spec, candidate, session)
    stored.save(path)
    keep_history(plan, session, candidate, stored)
    written = [path]
    if plan.spec.name in session.inputs.examples:
        written.append(session.store.paths.replay_examples(candidate))
        _examples_of(plan.spec, candidate, session).save(written[-1])
    session.keep_times(plan.index, plan.spec.name, plan.attempt)
    session.store.files.record(written)


def require_replay(spec: RoundConfig, candidate: SnapshotId, session: Session) -> None:
    """Check the kept prompts of an accepted round; make the file again if it was lost or changed.

    They follow from the round's data and seed, so the same bytes come out while the data is the same.

    Raises:
        EvidenceError: other bytes come out: the data has changed as well.
    """
    make = partial(_buffer_of, spec, candidate, session)
    known = spec.name in session.inputs.prompts
    _require(session.store.paths.replay(candidate), spec, session, make if known else None)


def kept_examples(
    spec: RoundConfig, candidate: SnapshotId, session: Session
) -> OwnedExamples | None:
    """Load the kept examples of an accepted round; make the file again if it was lost or changed.

    Returns:
        None for a round that learnt from no file, and for one of an older store whose data has changed.

    Raises:
        EvidenceError: the file was lost or changed, and the data has changed as well.
    """
    path, files = session.store.paths.replay_examples(candidate), session.store.files
    units = session.inputs.examples.get(spec.name)
    make = None if units is None else partial(_examples_of, spec, candidate, session)
    if files.hash_of(path) is None:
        learnt = session.store.snapshots.manifest(candidate).provenance.data_hashes
        if units is None or learnt.get("examples") != pool_hash(units):
            return None
        _examples_of(spec, candidate, session).save(path)
        files.record([path], "the store is older than kept examples")
    _require(path, spec, session, make)
    return OwnedExamples.load(path)


def past_examples(
    spec: RoundConfig,
    accepted: Iterable[tuple[RoundConfig, SnapshotId]],
    asked_later: Mapping[str, AbstractSet[str]],
    retired: Mapping[str, Retired],
    documents: DocumentIndex | None,
    session: Session,
) -> dict[str, ExampleStream]:
    """Return the examples that a round replays, by earlier round; no held-out row is among them.

    Args:
        accepted: earlier rounds that may be replayed, with their snapshots.
        asked_later: names of the prompts that rounds after an earlier one ask, by that one's name.
        retired: parts of earlier rounds that later ones override, by their names.
        documents: index that prompts are read behind; None: none. An example whose file is gone is read
            alone, since only its tokens are kept.
    """
    streams: dict[str, ExampleStream] = {}
    if not spec.replay.examples or spec.algorithm.material == "rollouts":
        return streams
    for earlier, candidate in accepted:
        examples = kept_examples(earlier, candidate, session)
        if examples is None:
            continue
        held_out = session.inputs.held_names | session.inputs.held_examples
        left_out = held_out | asked_later.get(earlier.name, frozenset())
        examples = examples.without(left_out, retired.get(earlier.name, Retired()).examples)
        if units := examples.units_for(spec.algorithm.material):
            known = session.inputs.examples.get(earlier.name, ())
            read = reading_units(prompted(units, known), documents, session.inputs)
            streams[earlier.name] = ExampleStream(read, seed_of(session.config.seed, spec.name))
    return streams


def load_replay(paths: StorePaths, accepted: Sequence[SnapshotId]) -> ReplayBuffer:
    """Load the kept prompts of accepted rounds.

    Args:
        paths: paths of the store.
        accepted: snapshots that own the prompts.
    """
    entries: dict[str, Sequence[Prompt]] = {}
    for candidate in accepted:
        entries |= ReplayBuffer.load(paths.replay(candidate)).entries
    return ReplayBuffer(entries)


@phase("sampling")
def stored_answers(spec: RoundConfig, session: Session) -> list[RolloutGroup]:
    """Load the start's own answers to the general pool, sampled when a round first asks for them."""
    general = session.inputs.general.get(spec.name)
    if general is None or spec.replay.general_answers != "stored":
        return []
    sampling = Sampling(
        max_tokens=spec.replay.general_tokens or spec.sampling.max_tokens,
        temperature=spec.sampling.temperature,
        stop_texts=spec.sampling.stop,
    )
    seed, size = seed_of(session.config.seed, "general"), spec.replay.buffer
    content = json.dumps([sorted(p.id for p in general), asdict(sampling), seed, size])
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    path = session.store.paths.general_answers(name)
    if session.is_lost(path):
        session.hold(session.base, "base")
        prompts = PromptStream(general, seed).take(size)
        groups = collect(
            session.engine,
            prompts,
            [1] * len(prompts),
            session.encoder,
            sampling,
            seed,
            policy=session.base,
        )
        save_answers(path, groups)
        session.store.files.record([path])
    return load_answers(path)


def _require(
    path: Path,
    spec: RoundConfig,
    session: Session,
    make: Callable[[], ReplayBuffer | OwnedExamples] | None,
) -> None:
    """Check a kept file of a round; make it again if it was lost or changed and its data is there."""
    files = session.store.files
    fault = files.fault_of(path)
    if not fault:
        return
    if make is not None:
        again = path.with_name(f".{path.name}.again")
        make().save(again)
        if fault_of(again, files.hash_of(path)) is None:
            replace(again, path)
            session.observer.note(f"{path.name} {fault}; made again from the data of {spec.name}")
            files.record([path], f"made again: the file {fault}")
        again.unlink(missing_ok=True)
    files.check(
        path,
        remedy="restore it from a backup: it does not follow from the round's data as it is now",
    )


def _examples_of(spec: RoundConfig, candidate: SnapshotId, session: Session) -> OwnedExamples:
    """Choose the examples of a round that its candidate will own."""
    seed = seed_of(session.config.seed, spec.name)
    return OwnedExamples.chosen(spec, session.inputs.examples[spec.name], candidate, seed)


def _buffer_of(spec: RoundConfig, candidate: SnapshotId, session: Session) -> ReplayBuffer:
    """Draw the prompts of a round that its candidate will own."""
    buffer = ReplayBuffer()
    buffer.add(
        spec.name,
        session.inputs.prompts[spec.name],
        owner=candidate,
        cap=spec.replay.buffer,
        seed=seed_of(session.config.seed, spec.name),
    )
    return buffer
