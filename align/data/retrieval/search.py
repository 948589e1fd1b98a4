"""Search in a version of the index: which documents answer a question, best first.

BM25 is that of ``bm25s`` (Lù 2024, arXiv 2407.03618), in Lucene's variant, whose scores are never below 0.
Ties go to the document that has been in the index longer, so a search gives the same on every machine.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Vectors = NDArray[np.float32]

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and Han characters, which are written without spaces between words."""
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


class Search(Protocol):
    """Comparison of a question with all documents."""

    def scores(self, question: str) -> Scores:
        """Return the likeness of each document to the question; 0 or less where there is none."""
        ...


class Embedder(Protocol):
    """Encoder of texts for a dense index."""

    @property
    def id(self) -> str:
        """Words that tell the encoder from any other."""
        ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors of documents, of unit length, ``N, C``; each is encoded once and kept."""
        ...

    def vector(self, question: str) -> Vectors:
        """Return the vector of a question, of unit length, ``C``; only the latest ones are kept."""
        ...

    def keep(self, vectors: Mapping[str, Vectors]) -> None:
        """Take vectors of texts that the same encoder gave before."""
        ...


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case; a character that needs no spaces is a word.

    >>> words_of("Café no. 3: 東京")
    ['café', 'no', '3', '東', '京']
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class BM25Search:
    """Search by the words that question and document share.

    Args:
        k1: saturation of a word's count.
        b: share of the documents' length that is corrected for.
    """

    def __init__(self, texts: Sequence[str], *, k1: float, b: float) -> None:
        from bm25s import BM25  # type: ignore[import-untyped]

        words = [words_of(text) for text in texts]
        self._count = len(texts)
        self._known = frozenset(word for document in words for word in document)
        self._index: Any = None
        if self._known:
            self._index = BM25(k1=k1, b=b, method="lucene", backend="numpy")
            self._index.index(words, show_progress=False)

    def scores(self, question: str) -> Scores:
        """Return the BM25 score of each document; see `Search`."""
        words = [word for word in words_of(question) if word in self._known]
        if not words:
            return np.zeros(self._count, dtype=np.float32)
        return np.asarray(self._index.get_scores(words), dtype=np.float32)


class DenseSearch:
    """Search by the cosine of the vectors of question and document."""

    def __init__(self, texts: Sequence[str], embedder: Embedder) -> None:
        self._embedder, self._vectors_NC = embedder, embedder.embed(texts)

    def scores(self, question: str) -> Scores:
        """Return the cosine of each document; see `Search`."""
        return np.asarray(self._vectors_NC @ self._embedder.vector(question), dtype=np.float32)


def best(scores: Scores, count: int) -> list[int]:
    """Return the places of the highest scores above 0, best first.

    >>> best(np.array([0.0, 2.0, 3.0, 2.0], dtype=np.float32), 2)
    [2, 1]
    """
    order = np.argsort(-scores, kind="stable")[:count]
    return [int(position) for position in order if scores[position] > 0]
