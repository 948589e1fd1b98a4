"""Documents put before a prompt: what is asked of the index, and the text that the model then reads."""

from __future__ import annotations

from collections.abc import Sequence

from align.config.retrieval.settings import RetrievalConfig
from align.data.retrieval.documents import IndexedDocument
from rollouts.types import Message

SYSTEM_ROLES = ("system", "developer")


def question_of(turns: Sequence[Message]) -> str:
    """Return the text that the index is asked with: that of the user's last message.

    >>> question_of([{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}])
    'a?'
    """
    questions = [turn["content"] for turn in turns if turn["role"] == "user"]
    return questions[-1] if questions and isinstance(questions[-1], str) else ""


def text_with(text: str, documents: Sequence[IndexedDocument], settings: RetrievalConfig) -> str:
    """Return a text with documents put before it; without any the text itself.

    >>> paris = IndexedDocument(key="fr", text="Paris is the capital.", round="facts")
    >>> text_with("Capital?", [paris], RetrievalConfig(template="[{documents}] {prompt}"))
    '[Paris is the capital.] Capital?'
    """
    if not documents:
        return text
    shown = settings.separator.join(document.text for document in documents)
    return settings.template.format(documents=shown, prompt=text)


def turns_with(
    turns: Sequence[Message], documents: Sequence[IndexedDocument], settings: RetrievalConfig
) -> tuple[Message, ...]:
    """Return chat turns with documents put before one of them, or in a system message of their own."""
    if not documents:
        return tuple(turns)
    if settings.role == "system":
        if not turns or turns[0]["role"] not in SYSTEM_ROLES:
            content = text_with("", documents, settings).strip()
            return ({"role": "system", "content": content}, *turns)
        index = 0
    else:
        index = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
    content = text_with(str(turns[index]["content"]), documents, settings)
    return (*turns[:index], {**turns[index], "content": content}, *turns[index + 1 :])
