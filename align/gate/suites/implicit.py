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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import StoreError
from align.store.durable import write_atomic
from align.store.paths import StorePaths
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig

TIE = 0.5
"""Value of a pair whose answers score alike."""


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


def ties(count: int) -> list[float]:
    """Return the values of pairs that nothing is preferred in."""
    return [TIE] * count


def wins(scores: Sequence[float]) -> list[float]:
    """Return 1 for every pair whose better answer scores higher, one half for a tie, else 0.

    >>> wins([2.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    [1.0, 0.5, 0.0]
    """
    pairs = zip(scores[::2], scores[1::2], strict=True)
    return [TIE if better == worse else float(better > worse) for better, worse in pairs]


def shares(spec: RoundConfig) -> dict[str, float]:
    """Return the anchors of a round's new prompts, each with its share of their weight."""
    betas: dict[str, float] = {}
    for term in spec.anchors.new:
        betas[term.to] = betas.get(term.to, 0.0) + term.beta
    total = math.fsum(betas.values())
    return {name: beta / total for name, beta in betas.items()} if total else {"parent": 1.0}


def reference_file(store: StorePaths, content: Sequence[Any], snapshot: SnapshotId) -> Path:
    """Return the file in a store that holds a snapshot's log-likelihoods.

    Args:
        content: the sequences, and how they are read and scored.
    """
    text = json.dumps(content, sort_keys=True)
    return store.reference(snapshot, hashlib.sha256(text.encode()).hexdigest())


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
