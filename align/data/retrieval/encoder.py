"""Encoder of prompts that puts documents of an index before them.

A policy that reads documents is trained, measured and served with this encoder in place of the plain one,
so that engine and learner see the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from align.data.examples.stream import Unit
from align.data.retrieval.before import question_of, text_with, turns_with
from align.data.retrieval.documents import IndexedDocument
from align.data.retrieval.index import DocumentIndex
from rollouts.prompts import PromptEncoder
from rollouts.types import Prompt


class RetrievingEncoder(PromptEncoder):
    """`PromptEncoder` whose prompts begin with the documents that fit them.

    Args:
        plain: encoder of prompts alone.
        index: version of the index that is read.
        context: longest prompt plus answer, in tokens.
        answer: longest answer to a prompt. The least fitting documents of a prompt that would leave less
            room than that are left out.
    """

    def __init__(
        self, plain: PromptEncoder, index: DocumentIndex, *, context: int, answer: int = 0
    ) -> None:
        super().__init__(plain.tokenizer, plain.extra_eos_ids)
        self.plain, self.index, self.context = plain, index, context
        self.limit = context - answer

    @cached_property
    def digest(self) -> str:
        """Digest of the plain encoder: which documents are shown is the snapshot's business."""
        return self.plain.digest

    def encode(self, prompt: Prompt, tools: Sequence[Any] = ()) -> tuple[int, ...]:
        """Return the token ids of a prompt behind its documents; see `PromptEncoder.encode`."""
        return self.encode_within(prompt, self.limit, tools)

    def encode_all(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, ...]]:
        """Yield what `encode` returns for each prompt."""
        return map(self.encode, prompts)

    def encode_within(
        self, prompt: Prompt, limit: int, tools: Sequence[Any] = ()
    ) -> tuple[int, ...]:
        """Return the token ids of a prompt behind as many of its documents as fit ``limit`` tokens."""
        return self.plain.encode(self.reading(prompt, limit, tools), tools)

    def reread(self, prompt: Prompt, ids: tuple[int, ...], answer: int) -> tuple[int, ...]:
        """Return the token ids of an encoded prompt behind its documents; see `PromptEncoder.reread`."""
        # Engines score an answer by sampling one token after it.
        return self.encode_within(prompt, self.context - answer - 1)

    def documents_of(self, prompt: Prompt) -> tuple[IndexedDocument, ...]:
        """Return the documents that fit a prompt, best first."""
        if prompt.messages is None:
            return self.index.search(prompt.text or "")
        question = question_of(prompt.messages)
        return self.index.search(question) if question.strip() else ()

    def reading(self, prompt: Prompt, limit: int, tools: Sequence[Any] = ()) -> Prompt:
        """Return a prompt behind as many of its documents as fit ``limit`` tokens."""
        return self._shown(prompt, self._fitting(prompt, limit, tools))

    def leaves_out(self, prompt: Prompt) -> bool:
        """Tell if there is no room for all documents that fit a prompt."""
        return len(self._fitting(prompt, self.limit)) < len(self.documents_of(prompt))

    def reading_unit(self, unit: Unit) -> Unit:
        """Return a unit of a file whose prompt is read behind its documents; the answers stay."""
        if unit.prompt is None or unit.prompt.text == "":  # A kept example whose file is gone.
            return unit
        longest = max(len(row.completion_ids) for row in unit.rows)
        ids = self.reread(unit.prompt, unit.rows[0].prompt_ids, longest)
        return replace(unit, rows=tuple(replace(row, prompt_ids=ids) for row in unit.rows))

    def _fitting(
        self, prompt: Prompt, limit: int, tools: Sequence[Any] = ()
    ) -> tuple[IndexedDocument, ...]:
        """Return the documents of a prompt that have room before it, best first."""
        documents = self.documents_of(prompt)
        while documents and len(self.plain.encode(self._shown(prompt, documents), tools)) > limit:
            documents = documents[:-1]
        return documents

    def _shown(self, prompt: Prompt, documents: tuple[IndexedDocument, ...]) -> Prompt:
        settings = self.index.settings
        documents = tuple(replace(each, text=self.harmless(each.text)) for each in documents)
        if prompt.messages is None:
            return replace(prompt, text=text_with(prompt.text or "", documents, settings))
        return replace(prompt, messages=turns_with(prompt.messages, documents, settings))
