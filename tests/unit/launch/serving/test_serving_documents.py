"""Documents before the prompts of requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from align.config.retrieval.settings import RetrievalConfig
from align.data.demo.tokenizer import build_tokenizer
from align.data.retrieval.documents import IndexChange
from align.data.retrieval.index import DocumentIndex
from launch.serving.documents import DocumentReader
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder

TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def reader() -> DocumentReader:
    settings = RetrievalConfig(template="{documents} {prompt}", separator=" ")
    texts = {"a": "rev 1 1 1", "b": "rev 2"}
    index = DocumentIndex(settings=settings).changed(IndexChange(texts=texts), "first")[0]
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return DocumentReader(index, PromptEncoder(tokenizer), context=20)


def read(reader: DocumentReader, **request: Any) -> dict[str, Any]:
    return dict(json.loads(reader.read(json.dumps(request).encode())))


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "shown"),
    [
        ("rev 1 =", 6, "rev 1 1 1 rev 2 rev 1 ="),
        ("rev 1 =", 12, "rev 1 1 1 rev 1 ="),
        ("rev 1 =", 16, "rev 1 ="),
        ("rev 1 =", None, "rev 1 ="),  # 16 tokens is what a server gives where nothing is asked.
        (["rev 1 =", "sort 9 ="], 6, ["rev 1 1 1 rev 2 rev 1 =", "sort 9 ="]),
        ("sort 9 =", 6, "sort 9 ="),
        ("", 6, ""),
        ([3, 4], 6, [3, 4]),
        ([[3], [4]], 6, [[3], [4]]),
        (7, 6, 7),
    ],
)
def test_a_prompt_is_answered_behind_its_documents(
    reader: DocumentReader, prompt: Any, max_tokens: int | None, shown: Any
) -> None:
    request = {"model": "m", "prompt": prompt, "max_tokens": max_tokens, "n": 2}
    assert read(reader, **request) == {**request, "prompt": shown}


def test_a_chat_is_answered_behind_the_documents_of_its_last_user_message(
    reader: DocumentReader,
) -> None:
    turns = [{"role": "user", "content": "sort 9"}, {"role": "assistant", "content": "9"}]
    asked = {"role": "user", "content": "rev 2"}
    shown = read(reader, messages=[*turns, asked], max_completion_tokens=3)["messages"]
    assert shown == [*turns, {"role": "user", "content": "rev 2 rev 1 1 1 rev 2"}]
    text, image = {"type": "text", "text": "rev 2"}, {"type": "image_url", "image_url": {"url": ""}}
    parts = {"role": "user", "content": [text]}
    shown = read(reader, messages=[parts], max_completion_tokens=3)["messages"]
    assert shown == [{"role": "user", "content": "rev 2 rev 1 1 1 rev 2"}]
    for content in ([text, image], [{"type": "text", "text": "sort 9"}], [text, {}]):
        other = {"role": "user", "content": content}
        assert read(reader, messages=[other], max_completion_tokens=3)["messages"] == [other]


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'{"messages": []}', b'{"input": "rev"}'])
def test_what_is_no_request_is_left_to_the_server(reader: DocumentReader, body: bytes) -> None:
    assert reader.read(body) == body


@pytest.mark.parametrize("messages", [["rev"], [{"role": "user"}]])
def test_messages_that_cannot_be_read_are_the_clients_error(
    reader: DocumentReader, messages: list[Any]
) -> None:
    with pytest.raises(UserError, match="messages cannot be read"):
        read(reader, messages=messages)
