"""Index of documents: immutable versions, each a folder of the snapshot whose weights it is judged with.

    retrieval/index.json        version, settings of the search, id
    retrieval/documents.jsonl   key, text and round of each document, in the order of the search
    retrieval/vectors.safetensors   tensor ``vectors``, ``N, C``: those of the documents, if it is dense

A snapshot is weights and index together: the gate measures the pair, an alias moves both, and a rollback
brings both back. What a search by words needs is computed from the documents when a version is read.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from align.config.retrieval.settings import RetrievalConfig
from align.data.retrieval.documents import IndexChange, IndexedDocument
from align.data.retrieval.search import BM25Search, DenseSearch, Embedder, Search, best
from align.errors import SnapshotError

FOLDER = "retrieval"
INDEX = "index.json"
DOCUMENTS = "documents.jsonl"
VECTORS = "vectors.safetensors"
VERSION = 1
KEPT = 20_000
"""Questions whose documents are kept; beyond them those asked least recently go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeCounts:
    """Numbers of documents that a change touched."""

    added: int
    overwritten: int
    """Documents whose text is another one than before."""
    unchanged: int
    """Documents that the index had, word for word."""
    forgotten: int
    unknown: int
    """Keys to forget that the index does not have."""

    @property
    def touched(self) -> bool:
        """True if the index after the change is another one."""
        return bool(self.added or self.overwritten or self.forgotten)

    @property
    def sentence(self) -> str:
        """Counts above 0 as words, such as ``3 added, 1 overwritten``."""
        counts = asdict(self)
        words = {"unknown": "to forget that were not there"}
        parts = [f"{count} {words.get(name, name)}" for name, count in counts.items() if count]
        return ", ".join(parts) or "nothing changed"


@dataclass(frozen=True, kw_only=True)
class DocumentIndex:
    """One version of the index. Never changed: `changed` returns the next one."""

    settings: RetrievalConfig
    documents: tuple[IndexedDocument, ...] = ()
    embedder: Embedder | None = field(default=None, repr=False, compare=False)
    """Encoder of a dense index; None where it is searched by words, or not at all."""
    _searched: OrderedDict[str, tuple[IndexedDocument, ...]] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    @cached_property
    def id(self) -> str:
        """sha256 of the documents and of the settings that decide what a prompt is shown."""
        content = [self.settings.stored, [asdict(document) for document in self.documents]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the documents."""
        return tuple(document.key for document in self.documents)

    def changed(self, change: IndexChange, round: str) -> tuple[DocumentIndex, ChangeCounts]:
        """Return the next version, and what was changed.

        A document that is overwritten keeps its place.

        Args:
            round: name of the round that makes the change.
        """
        before = {document.key: document for document in self.documents}
        remaining = {} if change.empties else dict(before)
        unknown = [key for key in change.forgotten if key not in before]
        for key in change.forgotten:
            remaining.pop(key, None)
        forgotten = len(before) - len(remaining)
        counts = {"added": 0, "overwritten": 0, "unchanged": 0}
        for key, text in change.texts.items():
            old = remaining.get(key)
            same = old is not None and old.text == text
            counts["added" if old is None else "unchanged" if same else "overwritten"] += 1
            if not same:
                remaining[key] = IndexedDocument(key=key, text=text, round=round)
        index = replace(self, documents=tuple(remaining.values()), _searched=OrderedDict())
        return index, ChangeCounts(**counts, forgotten=forgotten, unknown=len(unknown))

    @property
    def searchable(self) -> bool:
        """True if there are documents to find, and the encoder of a dense index is at hand."""
        return bool(self.documents) and (
            self.settings.method == "bm25" or self.embedder is not None
        )

    def search(self, question: str) -> tuple[IndexedDocument, ...]:
        """Return the documents that fit a question, best first; at most ``top_k``."""
        if question in self._searched:
            self._searched.move_to_end(question)
            return self._searched[question]
        positions: list[int] = []
        if self.documents:
            positions = best(self._search.scores(question), self.settings.top_k)
        documents = tuple(self.documents[position] for position in positions)
        self._searched[question] = documents
        while len(self._searched) > KEPT:
            self._searched.popitem(last=False)
        return documents

    @cached_property
    def _search(self) -> Search:
        if self.settings.method == "bm25":
            return BM25Search(self.texts, k1=self.settings.k1, b=self.settings.b)
        assert self.embedder is not None, "whoever searches a dense index reads it with its encoder"
        return DenseSearch(self.texts, self.embedder)

    @property
    def texts(self) -> list[str]:
        """Texts of the documents."""
        return [document.text for document in self.documents]

    def write(self, snapshot: Path) -> None:
        """Write the version into the folder of a snapshot."""
        folder = snapshot / FOLDER
        folder.mkdir()
        lines = [json.dumps(asdict(document), sort_keys=True) for document in self.documents]
        (folder / DOCUMENTS).write_text("".join(f"{line}\n" for line in lines))
        content = {"version": VERSION, "id": self.id, "settings": self.settings.stored}
        if self.embedder is not None:
            from safetensors.numpy import save_file

            content["encoder"] = self.embedder.id
            save_file({"vectors": self.embedder.embed(self.texts)}, folder / VECTORS)
        (folder / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def has_index(snapshot: Path) -> bool:
    """Tell if a snapshot's folder holds an index."""
    return (snapshot / FOLDER / INDEX).is_file()


def read_index(snapshot: Path, embedder: Embedder | None = None) -> DocumentIndex | None:
    """Read the index in the folder of a snapshot; None if it has none.

    Args:
        embedder: encoder to search a dense index with; None: it is not searched.

    Raises:
        SnapshotError: a file is missing or damaged, a newer Keel wrote it, or it is not what its id says.
    """
    if not has_index(snapshot):
        return None
    path = snapshot / FOLDER / INDEX
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        version = int(content["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if version > VERSION:
        raise SnapshotError(
            f"version {version} of the index is newer than {VERSION}",
            where=str(path),
            cause="a newer Keel wrote it",
            remedy="update Keel",
        )
    documents_path = snapshot / FOLDER / DOCUMENTS
    try:
        settings = RetrievalConfig.model_validate(content["settings"])
        expected = str(content["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    try:
        documents = tuple(_parsed(documents_path.read_text().splitlines()))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(documents_path, error) from error
    index = DocumentIndex(settings=settings, documents=documents, embedder=embedder)
    if embedder is not None and settings.method == "dense":
        _keep_vectors(snapshot / FOLDER, index.texts, str(content.get("encoder")), embedder)
    if index.id != expected:
        raise _damaged(documents_path, ValueError(f"its id is {index.id[:12]}"), expected[:12])
    return index


def _keep_vectors(folder: Path, texts: Sequence[str], encoder: str, embedder: Embedder) -> None:
    """Hand stored vectors to the encoder that made them.

    Raises:
        SnapshotError: another encoder made them, or there are not as many as documents.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if encoder != embedder.id:
        raise SnapshotError(
            f"the documents' vectors are of the encoder {encoder[:24]}, and the policy's is "
            f"{embedder.id[:24]}",
            where=str(folder),
            cause="policy.retrieval.encoder or layer was changed, or the encoder's files were",
            remedy="name the encoder that the index began with, or begin a new store",
        )
    path = folder / VECTORS
    try:
        vectors_NC = load_file(path)["vectors"]
    except (OSError, KeyError, SafetensorError) as error:
        raise _damaged(path, error) from error
    if len(vectors_NC) != len(texts):
        raise _damaged(path, ValueError(f"{len(vectors_NC)} vectors of {len(texts)} documents"))
    embedder.keep(dict(zip(texts, vectors_NC, strict=True)))


def _parsed(lines: Sequence[str]) -> list[IndexedDocument]:
    documents = [IndexedDocument(**json.loads(line)) for line in lines]
    if len({document.key for document in documents}) < len(documents):
        raise ValueError("a key stands there twice")
    return documents


def _damaged(path: Path, error: Exception, expected: str = "") -> SnapshotError:
    but = f", and {INDEX} names {expected}" if expected else ""
    return SnapshotError(
        f"the index cannot be read: {error}{but}",
        where=str(path),
        cause="the folder was copied in part, or someone edited the file",
        remedy="restore it from a backup; nothing was loaded",
    )
