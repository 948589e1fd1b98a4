"""Choice of the baseline by a person: snapshots that may be chosen, and the lines of its log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from align.gate.evidence import Evidence
from align.store.ledger.baseline import BaselineMove, baseline_moves, move_baseline
from rollouts.errors import UserError


def choose_baseline(evidence: Evidence, snapshot: str, reason: str) -> BaselineMove:
    """Count total budgets from another snapshot that is or was production.

    Args:
        snapshot: its id, or so many first digits that only one has them.

    Raises:
        UserError: there is no such snapshot, or more than one; it was never production or has another
            tokenizer than the start; no reason is given.
        SnapshotError: its files are missing or damaged.
    """
    targets = list(dict.fromkeys(move.target for move in evidence.ledger.alias_moves()))
    matches = [id for id in targets if id.startswith(snapshot)] if snapshot else []
    if len(matches) > 1:
        raise UserError(
            f"{len(matches)} snapshots begin with {snapshot!r}",
            where="SNAPSHOT",
            remedy=f"give more digits: {', '.join(id[:16] for id in matches)}",
        )
    chosen = matches[0] if matches else snapshot
    if matches:
        store = evidence.store.snapshots
        require_same_tokenizer(store.open(evidence.base).path, store.open(chosen).path)
    return move_baseline(evidence.ledger, chosen, reason)


def require_same_tokenizer(start: Path, other: Path) -> None:
    """Refuse another tokenizer: log-likelihoods per token only compare where both snapshots see the
    same tokens."""
    first_vocabulary, other_vocabulary = (vocabulary(folder) for folder in (start, other))
    if (
        first_vocabulary is not None
        and other_vocabulary is not None
        and first_vocabulary != other_vocabulary
    ):
        differing = {token for token, _ in first_vocabulary.items() ^ other_vocabulary.items()}
        raise UserError(
            f"its tokenizer differs from the start's in {len(differing)} tokens, such as "
            f"{min(differing)!r}",
            where=str(other),
            cause="the snapshot is of another model",
            remedy="choose a snapshot of this campaign",
        )


def vocabulary(folder: Path) -> dict[str, int] | None:
    """Read tokens and their ids; None where the folder holds no tokenizer."""
    if not any(folder.glob("tokenizer*")):
        return None
    from transformers import AutoTokenizer

    return dict(AutoTokenizer.from_pretrained(folder).get_vocab())


def baseline_lines(evidence: Evidence) -> Iterator[str]:
    """Yield what budgets count from, and every time a person moved it."""
    yield f"start    {evidence.base[:16]}"
    for move in baseline_moves(evidence.ledger):
        yield f"baseline {move.snapshot[:16]}  since {move.time}: {move.reason}"
