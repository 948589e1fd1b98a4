"""A snapshot as an ordinary Hugging Face folder, with a model card made from the ledger.

The folder appears as a whole or not at all. What the gate did not accept is refused unless it is asked for
by force, and then the card says so.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import rmtree

import yaml

from align.data.retrieval.index import FOLDER, has_index
from align.gate.evidence import Evidence
from align.learner.folder.folder import ADAPTER_BASE
from align.report.export.answering import prepare
from align.report.export.card import (
    UNKNOWN,
    Ancestor,
    base_name,
    is_accepted,
    model_card,
    source_name,
)
from align.settings import stated
from align.store.durable import replace, sync
from align.store.ledger.ledger import RoundRecord
from align.store.snapshots.contained import copy_contained
from align.store.snapshots.snapshots import Snapshot, SnapshotStore
from rollouts.errors import UserError, nearest
from rollouts.types import SnapshotId

CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
SHORTEST_ID = 8
"""Digits of a snapshot's id that may stand for it."""


WHOLE = {
    "model": "whole model",
    "reward": "whole model",
    "bank": "bank, whose prompts each take their own adapters",
}
"""Words for snapshots that are not merged, by their kind."""


def export(evidence: Evidence, which: str, folder: Path, *, merge: bool, force: bool) -> Snapshot:
    """Write one snapshot and its card; returns the snapshot.

    Args:
        which: ``production``, ``base``, the name of a round, or a snapshot id or its beginning.
        folder: must not exist, or be empty.
        merge: an adapter becomes a whole model.
        force: also what was not accepted.

    Raises:
        UserError: no such snapshot, not accepted, nothing to merge, or the folder is in use.
        SnapshotError: the snapshot is damaged; nothing was written.
    """
    _require_free(folder)
    store = evidence.store.snapshots
    line = list(_ancestors(evidence, store, find(evidence, which)))[::-1]
    exported = line[-1]
    if not is_accepted(exported) and not force:
        state = exported.record.state if exported.record else "unknown"
        raise UserError(
            f"{which!r} names a snapshot that was not accepted (state: {state})",
            where="SNAPSHOT",
            remedy="export production, or add --force: the card will say that it was not accepted",
        )
    below = evidence.base if merge else exported.snapshot
    with store.reading(exported.snapshot) as snapshot, store.reading(below) as base:
        _write(evidence, which, line, snapshot, base, folder, merge=merge)
    return snapshot


def _write(
    evidence: Evidence,
    which: str,
    line: Sequence[Ancestor],
    snapshot: Snapshot,
    base: Snapshot,
    folder: Path,
    *,
    merge: bool,
) -> None:
    """Write the folder of an export.

    Args:
        line: the snapshot and its ancestors, from the start on.
    """
    if merge and snapshot.kind != "adapter":
        raise UserError(
            f"{which!r} is no adapter but a {WHOLE[snapshot.kind]}, so there is nothing to merge",
            where="--merge",
            remedy="leave --merge out",
        )
    # The licence that the base's card names; those of data are not recorded.
    sources = [source_name(stated(spec.asks.source)) for spec in evidence.config.rounds]
    licences = [("base model", licence_of(Path(evidence.config.policy.model)))]
    licences += [(f"data {source}", UNKNOWN) for source in dict.fromkeys(sources)]
    card = model_card(evidence, line, merged=merge, licences=licences)
    staged = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        staged.mkdir(parents=True)
        if merge:
            trusted = evidence.config.policy.trust_remote_code
            _write_merged(snapshot, base, staged, trusted=trusted)
        else:
            _write_copy(snapshot, base_name(evidence), staged)
        if merge or snapshot.kind == "model":
            prepare(staged, evidence.config)
        (staged / CARD).write_text(card, encoding="utf-8", errors="replace")
        for path in (*staged.iterdir(), staged):
            sync(path)
        # An empty folder is replaced; one that has been filled meanwhile is not.
        replace(staged, folder)
    finally:
        rmtree(staged, ignore_errors=True)


def refuse_bank(snapshot: Snapshot, name: str, where: str) -> None:
    """Refuse a bank where one model is wanted: each prompt has adapters of its own.

    Raises:
        UserError: the snapshot is a bank; the message says how to load one of its adapters.
    """
    if snapshot.kind == "bank":
        raise UserError(
            f"{name!r} is a bank of adapters, of which each prompt retrieves its own, and no single model",
            where=where,
            remedy="load one adapter over the base with peft, from a folder below "
            f"{str(snapshot.path / 'adapters')!r}, or name the base",
        )


def find(evidence: Evidence, which: str) -> SnapshotId:
    """Find the snapshot that a person means."""
    records = [r for r in evidence.ledger.attempts() if r.candidate is not None]
    by_round = {r.name: r.candidate for r in records if r.candidate}
    by_name = {"base": evidence.base, "production": evidence.ledger.alias("production")} | by_round
    if (snapshot := by_name.get(which)) is not None:
        return snapshot
    known = {evidence.base, *by_round.values(), *(r.candidate for r in records if r.candidate)}
    matches = [id for id in known if len(which) >= SHORTEST_ID and id.startswith(which)]
    if len(matches) == 1:
        return matches[0]
    planned = [r.name for r in evidence.ledger.rounds() if r.name == which]
    raise UserError(
        f"round {which!r} has no snapshot yet" if planned else f"there is no snapshot {which!r}",
        where="SNAPSHOT",
        remedy=nearest(which, list(by_name)) or "name a round, production, base or a snapshot id",
    )


def _ancestors(
    evidence: Evidence, store: SnapshotStore, snapshot: SnapshotId
) -> Iterator[Ancestor]:
    """Yield the snapshot, its parent, and so on to the start."""
    makers: dict[SnapshotId, RoundRecord] = {}
    for record in evidence.ledger.attempts():
        # Attempts that ended in the same bytes share a snapshot; one that was accepted speaks for it.
        if record.candidate and (record.candidate not in makers or record.state == "accepted"):
            makers[record.candidate] = record
    specs = {spec.name: spec for spec in evidence.config.rounds}
    at: SnapshotId | None = snapshot
    while at is not None:
        manifest = store.manifest(at)
        record_of = makers.get(at)
        yield Ancestor(
            snapshot=at,
            manifest=manifest,
            record=record_of,
            spec=specs.get(record_of.name) if record_of else None,
        )
        at = manifest.provenance.parent


def _require_free(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise UserError(
            f"{folder} is there already; an export overwrites nothing",
            where="--to",
            remedy="name a new folder, or remove that one first",
        )


def _write_copy(snapshot: Snapshot, base: str, staged: Path) -> None:
    """Copy the snapshot's files; an adapter names its base as the campaign does."""
    for entry in snapshot.manifest.files:
        (staged / entry.path).parent.mkdir(parents=True, exist_ok=True)
        copy_contained(snapshot.path / entry.path, staged / entry.path)
    if snapshot.kind == "adapter":
        path = staged / ADAPTER_CONFIG
        config = json.loads(path.read_text()) | {ADAPTER_BASE: base}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_merged(adapter: Snapshot, base: Snapshot, staged: Path, *, trusted: bool) -> None:
    """Write base plus update as full weights, in the base's precision, and the adapter's tokenizer."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype="auto", trust_remote_code=trusted)
    merged = PeftModel.from_pretrained(model, str(adapter.path)).merge_and_unload(safe_merge=True)
    merged.save_pretrained(staged)
    tokenizer = AutoTokenizer.from_pretrained(adapter.path, trust_remote_code=trusted)
    tokenizer.save_pretrained(staged)
    if has_index(adapter.path):
        (staged / FOLDER).mkdir()
        for file in (adapter.path / FOLDER).iterdir():
            copy_contained(file, staged / FOLDER / file.name)


def licence_of(model: Path) -> str:
    """Read ``license`` in the front matter of a local model's card."""
    try:
        text = (model / CARD).read_text()
        if not text.startswith("---\n"):
            return UNKNOWN
        fields = yaml.safe_load(text[4 : text.index("\n---", 3)])
        return str(fields["license"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return UNKNOWN
