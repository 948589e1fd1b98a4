"""Implicit rewards of pairs: a preference loss with a reference raises them, and is judged by them.

DPO and its kin never ask for a likelihood. They raise the log ratio to their reference of the better answer
above that of the worse one, ``sum_t log pi(y_t) - sum_t log ref(y_t)``, which is the reward that the policy
is optimal for, divided by beta (Rafailov et al. 2023, arXiv 2305.18290, section 4). A pair counts 1 where
the better answer has the larger one, and one half for a tie; so the reference itself has one half
everywhere. The reference is the round's: the anchors of its new prompts by weight, its parent without any.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import StoreError
from align.store.durable import write_atomic
from align.store.paths import StorePaths
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from align.gate.evidence import Evidence
    from align.gate.suites.suite import Suite

TIE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Snapshots whose weighted mean of log-likelihoods is a round's reference."""

    weights: tuple[tuple[SnapshotId, float], ...]
    """Snapshots with their shares, which add up to 1."""
    files: tuple[Path, ...]
    """Their log-likelihoods of the suite's answers, one file each."""

    def logprobs(self) -> list[float]:
        """Return the reference's log-likelihood of every answer, in nats.

        Raises:
            StoreError: a file is missing or damaged.
        """
        columns = [load_logprobs(file) for file in self.files]
        shares = [share for _, share in self.weights]
        return [
            math.fsum(share * value for share, value in zip(shares, values, strict=True))
            for values in zip(*columns, strict=True)
        ]

    def is_only(self, snapshot: SnapshotId) -> bool:
        """Tell if the reference is this one snapshot."""
        return [name for name, _ in self.weights] == [snapshot]


def preferred(sums: Sequence[float], suite: Suite, snapshot: SnapshotId) -> list[float]:
    """Return the value of every pair under a snapshot.

    Args:
        sums: its log-likelihoods of better, worse, better, ... answers, in nats.
    """
    reference = suite.reference
    if reference is None:
        raise ValueError(f"the reference of suite {suite.name!r} is not known yet")
    if reference.is_only(snapshot):  # What rounding makes of no difference is no preference.
        return [TIE] * (len(sums) // 2)
    whole = reference.logprobs()
    places = range(len(whole) // 2) if suite.positions is None else suite.positions
    references = [value for place in places for value in whole[2 * place : 2 * place + 2]]
    ratios = [own - ref for own, ref in zip(sums, references, strict=True)]
    return wins(ratios)


def wins(scores: Sequence[float]) -> list[float]:
    """Return 1 for every pair whose better answer scores higher, one half for a tie, else 0.

    >>> wins([2.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    [1.0, 0.5, 0.0]
    """
    pairs = zip(scores[::2], scores[1::2], strict=True)
    return [TIE if better == worse else float(better > worse) for better, worse in pairs]


def with_references(suites: Sequence[Suite], evidence: Evidence) -> Iterator[Suite]:
    """Yield the suites with their references by now; without those of rounds that are still to come."""
    parents = _parents(evidence, {suite.target_of for suite in suites})
    specs = {spec.name: spec for spec in evidence.config.rounds}
    accepted = {r.name: r.candidate for r in evidence.committed() if r.state == "accepted"}
    for suite in suites:
        if not suite.implicit:
            yield suite
            continue
        parent = parents.get(suite.target_of or "")
        if parent is None:
            continue
        known = {"parent": parent, "base": evidence.base}
        known |= {f"round:{name}": candidate for name, candidate in accepted.items() if candidate}
        weights = shares(specs[suite.target_of or ""])
        if all(name in known for name in weights):
            found = tuple((known[name], share) for name, share in weights.items())
            files = tuple(_file(evidence.store.paths, suite, snapshot) for snapshot, _ in found)
            yield replace(suite, reference=Reference(weights=found, files=files))


def shares(spec: RoundConfig) -> dict[str, float]:
    """Return the anchors of a round's new prompts, each with its share of their weight."""
    betas: dict[str, float] = {}
    for term in spec.anchors.new:
        betas[term.to] = betas.get(term.to, 0.0) + term.beta
    total = math.fsum(betas.values())
    return {name: beta / total for name, beta in betas.items()} if total else {"parent": 1.0}


def _parents(evidence: Evidence, measured: Set[str | None]) -> dict[str, SnapshotId]:
    """Return the parent of every round that is over, that runs, and that comes next.

    Args:
        measured: rounds that have a suite. Those that wait for feedback have none, and do not come next.
    """
    records = evidence.ledger.rounds()
    found = {r.name: r.parent for r in records if r.parent is not None and (r.closed or r.live)}
    coming = (r.name for r in records if not r.closed and r.name in measured)
    if (name := next(coming, None)) is not None:
        found[name] = evidence.ledger.alias("production") or evidence.base
    return found


def _file(store: StorePaths, suite: Suite, snapshot: SnapshotId) -> Path:
    content = json.dumps([suite.sequences, suite.encoding, dict(suite.engine)], sort_keys=True)
    return store.reference(snapshot, hashlib.sha256(content.encode()).hexdigest())


def save_logprobs(path: Path, sums: Sequence[float]) -> None:
    """Write the log-likelihoods of a suite's answers, atomically."""
    write_atomic(path, json.dumps(list(sums)).encode())


def load_logprobs(path: Path) -> list[float]:
    """Read what `save_logprobs` wrote.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        return [float(value) for value in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            f"the reference's log-likelihoods cannot be read: {error!r}",
            where=str(path),
            remedy="delete the file; keel run computes it again",
        ) from error
