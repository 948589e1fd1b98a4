"""Documents that a snapshot reads, as a person looks at them: all of them, or those that fit a question."""

from __future__ import annotations

from dataclasses import dataclass

from align.data.retrieval.documents import IndexedDocument
from align.data.retrieval.index import has_index, read_index
from align.gate.evidence import Evidence
from align.learner.bank.texts import embedder_of
from align.report.export.export import find
from rollouts.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownDocuments:
    """Documents of one version of the index."""

    snapshot: str
    index: str
    """Id of the version."""
    total: int
    documents: tuple[IndexedDocument, ...]
    """Documents that fit the question, best first; the first of all without a question."""


def documents_of(
    evidence: Evidence, which: str, *, query: str | None, limit: int
) -> ShownDocuments:
    """Return documents that a snapshot reads.

    Args:
        which: a round, ``production``, or a snapshot's id.
        query: question that they are to fit; None: any.
        limit: most documents to return without a question; with one, the policy's own number counts.

    Raises:
        UserError: there is no such snapshot, or it reads no documents.
        SnapshotError: it is damaged.
    """
    store = evidence.store.snapshots
    snapshot = store.open(find(evidence, which))
    if not has_index(snapshot.path):
        raise UserError(
            f"{which!r} reads no documents",
            where="ROUND",
            cause="no round up to it changed an index",
            remedy="add documents with index in a round; see policy.retrieval",
        )
    policy = evidence.config.policy
    embedder = None if query is None else embedder_of(policy, store.open(evidence.base).path)
    index = read_index(snapshot.path, embedder)
    assert index is not None, "has_index says that there is one"
    return ShownDocuments(
        snapshot=snapshot.id,
        index=index.id,
        total=len(index.documents),
        documents=index.documents[:limit] if query is None else index.search(query),
    )
