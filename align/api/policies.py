"""Policies of a store as transformers has them: a model and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.gate.evidence import Evidence
from align.report.export.export import find, refuse_bank
from align.store.snapshots.snapshots import Snapshot
from rollouts.errors import UserError


def policy_of(evidence: Evidence, name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load a snapshot's model, in evaluation mode, and its tokenizer; every byte is verified first.

    Args:
        name: of a round, ``production``, ``base``, or a snapshot's id or the id's beginning.
        options: arguments of ``from_pretrained``.

    Raises:
        UserError: there is no such snapshot, or it is a reward model or a bank.
        SnapshotError: it is missing or damaged.
    """
    snapshots, trusted = evidence.store.snapshots, evidence.config.policy.trust_remote_code
    id = find(evidence, name)
    is_adapter = snapshots.manifest(id).provenance.kind == "adapter"
    below = evidence.base if is_adapter else id
    with snapshots.reading(id) as snapshot, snapshots.reading(below) as base:
        return _loaded(name, snapshot, base.path, trusted=trusted, options=options)


def _loaded(
    name: str, snapshot: Snapshot, base: Path, *, trusted: bool, options: dict[str, Any]
) -> tuple[Any, Any]:
    if snapshot.kind == "reward":
        raise UserError(
            f"{name!r} is a reward model: it scores answers and writes none",
            where="snapshot",
            remedy="load it with transformers.AutoModelForSequenceClassification.from_pretrained("
            f"{str(snapshot.path)!r})",
        )
    refuse_bank(snapshot, name, "snapshot")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = snapshot.path if snapshot.kind == "model" else base
    arguments = {"dtype": "auto", "trust_remote_code": trusted, **options}
    model = AutoModelForCausalLM.from_pretrained(folder, **arguments)
    if snapshot.kind == "adapter":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(snapshot.path))
    tokenizer = AutoTokenizer.from_pretrained(snapshot.path, trust_remote_code=trusted)
    return model.eval(), tokenizer


def load_policy(snapshot: str | Path, **options: Any) -> tuple[Any, Any]:
    """Load the model and the tokenizer of a snapshot; ``model, tokenizer = load_policy("runs/a#first")``.

    Args:
        snapshot: ``STORE#NAME``. STORE is the folder of a store, or a campaign file; NAME is a round,
            ``production``, ``base`` or a snapshot's id. STORE alone stands for its production.
        options: arguments of transformers' ``from_pretrained``, such as ``dtype`` and ``device_map``.

    Raises:
        UserError: no store there, no such snapshot in it, or a reward model.
        RunError: the snapshot is damaged.
    """
    from align.api.campaign import load_campaign
    from align.api.stored import open_store

    store, sign, name = str(snapshot).rpartition("#")
    path = Path(store if sign else snapshot)
    campaign = load_campaign(path) if path.is_file() else open_store(path)
    return campaign.load_policy(name if sign else "production", **options)
