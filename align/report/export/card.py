"""The model card of an exported snapshot: where it comes from, what the gate said, and what is not known.

Everything is read from the ledger, the manifests and the campaign. Text of others is escaped: a card is
Markdown, and Markdown may hold HTML.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from align.config.campaign import RoundConfig
from align.data.retrieval.index import DOCUMENTS, FOLDER, INDEX
from align.gate.checks import Check
from align.gate.evidence import Evidence
from align.gate.summary import HEAD, RATES, reason_of, verdict_rows
from align.gate.verdict import Verdict
from align.report.export.answering import default_line
from align.report.families import GUARDED, ORDER
from align.report.records.acts import acts_of
from align.report.records.history import watch_of
from align.report.records.seals import seals_of
from align.report.tables import outcome_of
from align.settings import stated
from align.store.ledger.ledger import RoundRecord
from align.store.ledger.reservations import reservations_by_round
from align.store.repairs import merge_of, repaired_by, repairs_of
from align.store.snapshots.manifest import Manifest
from rollouts.types import SnapshotId

UNKNOWN = "not recorded"
FEW = 2
"""Comparisons of shares that are listed one by one even if they passed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ancestor:
    """One snapshot on the way from the start to the exported one."""

    snapshot: SnapshotId
    manifest: Manifest
    record: RoundRecord | None
    """The attempt that made it; None for the start."""
    spec: RoundConfig | None


def model_card(
    evidence: Evidence,
    line: Sequence[Ancestor],
    *,
    merged: bool,
    licences: Sequence[tuple[str, str]],
) -> str:
    """Write the whole README.md.

    Args:
        line: the ancestors in order, the exported snapshot last.
        merged: an adapter was merged into the base.
        licences: what and under which licence, as far as known.
    """
    acts = [(act.time[:16], act.what, act.reason) for act in acts_of(evidence)]
    seals = [
        (seal.suite, f"after every {seal.every} accepted rounds", seal.state)
        for seal in seals_of(evidence)
    ]
    # What detectors and canaries reported of the rounds of the lineage.
    remarks = [
        (ancestor.record.name, remark)
        for ancestor in line
        if ancestor.record is not None
        for remark in watch_of(evidence, ancestor.record).lines()
    ]
    noticed = _table(("round", "noticed"), remarks) if remarks else "None was noticed."
    parts = (
        _front_matter(evidence, line, merged, licences),
        _head(evidence, line[-1], merged),
        _section("In short", _in_short(evidence, line[-1])),
        _section("How it is asked", _asked(evidence, line[-1])),
        _section("Lineage", _lineage(line)),
        _section("What the gate said", _gate(line[-1])),
        _section("Sealed suites", _table(("suite", "opened", "state"), seals) if seals else ""),
        _section("Signs of reward hacking", noticed),
        _section("Rewards and data", _data(evidence, line)),
        _section("Acts of people", _table(("UTC", "what", "reason"), acts) if acts else ""),
        _section("Licences", _table(("what", "licence"), licences)),
        _section("Hashes and versions", _hashes(line[-1])),
    )
    return "\n".join(part for part in parts if part) + "\n"


def is_accepted(ancestor: Ancestor) -> bool:
    """Tell if the gate accepted a snapshot; the start counts as accepted."""
    if ancestor.record is None:
        return ancestor.manifest.provenance.round is None
    return ancestor.record.state == "accepted"


def _front_matter(
    evidence: Evidence,
    line: Sequence[Ancestor],
    merged: bool,
    licences: Sequence[tuple[str, str]],
) -> str:
    """Write the part that a model hub reads."""
    adapter = line[-1].manifest.provenance.kind in ("adapter", "bank") and not merged
    known = dict(licences)
    fields: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "base_model": base_name(evidence),
        "tags": ["keel", "alignment"],
    }
    if (licence := known.get("base model", UNKNOWN)) != UNKNOWN:
        fields["license"] = licence
    return f"---\n{yaml.safe_dump(fields, sort_keys=True)}---"


def base_name(evidence: Evidence) -> str:
    """Return the base's name in the campaign; of a folder only the last part, which names no machine."""
    model = evidence.config.policy.model
    return Path(model).name if Path(model).is_dir() or model.startswith(("/", ".", "~")) else model


def _head(evidence: Evidence, exported: Ancestor, merged: bool) -> str:
    provenance = exported.manifest.provenance
    what = {
        "model": "a language model",
        "adapter": "an adapter, merged into its base" if merged else "a peft adapter",
        "bank": "a bank of peft adapters, with the keys that retrieve them by the prompt",
        "reward": "a reward model, which scores answers and writes none",
    }[provenance.kind]
    name = provenance.round or "base"
    lines = [f"# {_text(evidence.config.name)}: {_text(name)}", ""]
    if not is_accepted(exported):
        state = exported.record.state if exported.record else "unknown"
        lines += [
            f"> **This snapshot was not accepted (state: {state}).** The gate did not let it into "
            "production; it was exported by force.",
            "",
        ]
    lines.append(
        f"Snapshot `{exported.snapshot}` of the campaign {_text(evidence.config.name)}: {what}, from "
        f"the base {_text(base_name(evidence))}. Made by Keel; this card follows from its ledger."
    )
    return "\n".join(lines)


def _in_short(evidence: Evidence, exported: Ancestor) -> str:
    """Say what is production and why this snapshot is not, with the verdict in one table."""
    production = evidence.ledger.alias("production") or evidence.base
    this = "This snapshot" if exported.snapshot == production else "Not this snapshot"
    lines = f"{this} is production: {_text(evidence.production_words())}.\n"
    record = exported.record
    if record is None or record.state not in ("accepted", "rejected"):
        return lines
    verdict = Verdict.from_dict(record.report or {})
    if reason := reason_of(verdict):
        lines += f"\nThe gate would not have it: {_text(reason)}.\n"
    return f"{lines}\n{_table(HEAD, (row.cells for row in verdict_rows(verdict)))}"


def _asked(evidence: Evidence, exported: Ancestor) -> str:
    """List chat defaults that it was trained and measured with, and how answers are sampled by default."""
    if exported.manifest.provenance.kind == "reward":
        return ""
    policy = evidence.config.policy
    lines = []
    if policy.system is not None:
        lines.append(
            f"- system message of every chat that has none of its own: {_text(policy.system)}"
        )
    if policy.chat_template_kwargs:
        values = ", ".join(f"{k}: {json.dumps(v)}" for k, v in policy.chat_template_kwargs.items())
        lines.append(f"- variables of the chat template: {_text(values)}")
    if lines:
        lines.append(
            "- the tokenizer's chat template applies them by itself; a caller may say otherwise"
        )
    if (index := exported.manifest.provenance.extra.get("index")) is not None:
        lines.append(
            f"- it reads documents, with which it was measured: {index['documents']} of them in "
            f"`{FOLDER}/{DOCUMENTS}`, searched and put before prompts as `{FOLDER}/{INDEX}` says"
        )
    lines.append(f"- {_text(default_line(evidence.config))}")
    return "\n".join(lines)


def _lineage(line: Sequence[Ancestor]) -> str:
    rows = []
    for ancestor in line:
        record, outcome = ancestor.record, "start"
        if record is not None:
            outcome = record.state
        if record is not None and record.state in ("accepted", "rejected"):
            words = outcome_of(Verdict.from_dict(record.report or {}))
            outcome = ", ".join(filter(None, (words, repaired_by(repairs_of(record.report)))))
        name = ancestor.manifest.provenance.round or "base"
        algorithm = ancestor.spec.algorithm.name if ancestor.spec else ""
        rows.append((name, algorithm, outcome, ancestor.snapshot[:16]))
    return _table(("round", "algorithm", "outcome", "snapshot"), rows)


def _gate(exported: Ancestor) -> str:
    """List the checks of the snapshot's own verdict, the reasons first."""
    record = exported.record
    if record is None:
        return "The start of a campaign meets no gate."
    if record.state not in ("accepted", "rejected"):
        return f"No verdict: the attempt is {record.state}."
    verdict = Verdict.from_dict(record.report or {})
    reasons = "".join(f"- {_text(reason)}\n" for reason in verdict.reasons)
    alpha = f"One-sided alpha per look: {verdict.checks[0].alpha:.4g}.\n" if verdict.checks else ""
    # One table per family: a gain in one makes up for nothing in another.
    values = [check for check in verdict.checks if check.what not in RATES]
    present = [family for family in ORDER if any(check.family == family for check in values)]
    families = [
        f"### Family {family}\n\n" * (len(present) > 1)
        + _checks(check for check in values if check.family == family)
        for family in present
    ]
    tables = "\n".join((*families, *_rates(verdict.checks), *_early(verdict)))
    tried = "".join(f"- {_text(repair.sentence)}\n" for repair in repairs_of(record.report))
    repairs = f"\nCandidates of this round, each a decision of its own:\n\n{tried}" if tried else ""
    merge = merge_of(record.report)
    merged = f"\n{_text(merge.sentence)}.\n" if merge else ""
    return f"{reasons}\n{tables}\n{alpha}{merged}{repairs}".lstrip()


def _early(verdict: Verdict) -> Iterator[str]:
    """Yield a paragraph on suites that were decided on their first items, whose means are over fewer than
    those of other snapshots.
    """
    sizes = {rule.name: rule.early.items for rule in verdict.inputs.suites if rule.early}
    lines = [
        f"- {_text(suite)}: {max(items.values()):,} of {sizes[suite]:,} items\n"
        for suite, items in verdict.inputs.items.items()
        if max(items.values()) < sizes[suite]
    ]
    if lines:
        yield (
            "### Suites that stopped early\n\nEvery difference is of the same items for both sides. A mean "
            "of this snapshot is over the items below, and one of another snapshot may be over more.\n\n"
            + "".join(lines)
        )


def _rates(checks: Sequence[Check]) -> Iterator[str]:
    """Yield the shares of answers that are not cut and of those with a score; they measure no learning."""
    rates = [check for check in checks if check.what in RATES]
    failed = [check for check in rates if check.outcome != "passed"]
    shown = rates if len(rates) <= FEW else failed
    if rates:
        table = _checks(shown) if shown else ""
        rest = f"{len(rates) - len(shown)} comparisons passed.\n" if len(rates) > len(shown) else ""
        yield (
            "### Answers that were cut or have no score\n\n"
            "Shares of the answers to a suite, held to margins of their own: where they fall, its mean "
            f"says less.\n\n{rest}{table}"
        )


def _checks(checks: Iterable[Check]) -> str:
    head = (
        "suite",
        "part",
        "against",
        "difference",
        "interval",
        "margin",
        "lost / won / n",
        "outcome",
    )
    rows = (
        (
            check.suite,
            # The role, or the share of answers that is compared.
            GUARDED[check.what]
            if check.what in RATES
            else ", ".join(filter(None, (check.role, GUARDED[check.what]))),
            ", ".join((check.against, *check.also)),
            f"{check.difference:+.4g}",
            f"{check.interval[0]:+.4g} to {check.interval[1]:+.4g}",
            f"{check.margin:.4g}",
            f"{check.lost} / {check.won} / {check.n}",
            check.words,
        )
        for check in checks
    )
    return _table(head, rows)


def _data(evidence: Evidence, line: Sequence[Ancestor]) -> str:
    """List rewards, sources of prompts and their hashes, round by round of the lineage."""
    reservations = reservations_by_round(evidence.ledger.database)
    names = [ancestor.record.name for ancestor in line if ancestor.record is not None]
    read = "".join(
        f"- {_text(n)} read {_text(reservations[n].sentence)}\n" for n in names if n in reservations
    )
    rows = [
        (
            a.manifest.provenance.round,
            ", ".join(f"{r.name} × {r.weight:g}" for r in a.spec.rewards) if a.spec else UNKNOWN,
            source_name(stated(a.spec.asks.source)) if a.spec else UNKNOWN,
            ", ".join(
                f"{k} {v[:16]}" for k, v in sorted(a.manifest.provenance.data_hashes.items())
            ),
        )
        for a in line
        if a.record is not None
    ]
    head = ("round", "rewards", "data", "sha256")
    return f"{_table(head, rows)}\n{read}" if rows else "No round has trained this snapshot."


def source_name(source: str) -> str:
    """Name a source without the folders of a machine."""
    return (
        source if "://" in source or not source.startswith(("/", "~", ".")) else Path(source).name
    )


def _hashes(exported: Ancestor) -> str:
    provenance = exported.manifest.provenance
    files = _table(("file of the snapshot", "bytes", "sha256"), (
        (entry.path, f"{entry.size:,}", entry.sha256) for entry in exported.manifest.files
    ))  # fmt: skip
    versions = ", ".join(f"{name} {v}" for name, v in sorted(provenance.versions.items()))
    seeds = ", ".join(f"{name} {seed}" for name, seed in sorted(provenance.seeds.items()))
    return (
        f"{files}\n"
        f"- configuration: `{provenance.config_hash or UNKNOWN}`\n"
        f"- seeds: {_text(seeds or UNKNOWN)}\n"
        f"- versions: {_text(versions or UNKNOWN)}\n"
    )


def _section(title: str, body: str) -> str:
    """Write a section; nothing if its body is empty."""
    return f"\n## {title}\n\n{body.rstrip()}" if body else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def lines() -> Iterator[str]:
        yield " | ".join(head)
        yield " | ".join("---" for _ in head)
        for row in rows:
            yield " | ".join(_text(str(cell)) for cell in row)

    return "".join(f"| {line} |\n" for line in lines())


def _text(text: str) -> str:
    """Escape a text so that nothing of it is markup, in one line."""
    plain = escape(" ".join(text.split()), quote=False)
    for sign in "\\`*[]|":
        plain = plain.replace(sign, f"\\{sign}")
    return plain
