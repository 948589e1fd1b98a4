"""Documents of a snapshot's index before the prompts of requests, as in training and on suites."""

from __future__ import annotations

import json
from collections.abc import Mapping
from threading import Lock
from typing import Any

from align.data.retrieval.encoder import RetrievingEncoder
from align.data.retrieval.index import DocumentIndex
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Message, Prompt

DEFAULT_TOKENS = 16
"""Most tokens of an answer whose request names no limit: OpenAI's for completions. A chat has none, so its
documents leave as much room."""
LIMITS = ("max_completion_tokens", "max_tokens")
"""Keys of a request that limit its answer."""


class DocumentReader:
    """Reader of an index for requests.

    Args:
        index: index of the snapshot that answers.
        encoder: its encoder of prompts alone, which counts their tokens.
        context: longest prompt plus answer, in tokens.
    """

    def __init__(self, index: DocumentIndex, encoder: PromptEncoder, context: int) -> None:
        self._encoder = RetrievingEncoder(encoder, index, context=context)
        self._lock = Lock()

    def read(self, body: bytes) -> bytes:
        """Return a request's body with its prompt behind the documents that fit it.

        A body that is no request, or whose prompt is given as tokens, is left as it is.

        Raises:
            UserError: the messages cannot be read.
        """
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            return body  # The server says what is wrong with it.
        if not isinstance(request, dict):
            return body
        try:
            with self._lock:  # One tokenizer counts for all requests.
                changed = self._changed(request)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"the messages cannot be read: {error}", where="messages") from error
        return body if changed is request else json.dumps(changed).encode()

    def _changed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        messages, prompt = request.get("messages"), request.get("prompt")
        limit = self._encoder.limit - _answer_tokens(request)
        if isinstance(messages, list) and any(turn.get("role") == "user" for turn in messages):
            columns = {"tools": request["tools"]} if request.get("tools") else {}
            question = Prompt(id="request", messages=tuple(map(joined, messages)), columns=columns)
            shown = self._encoder.reading(question, limit)
            if shown == question:
                return request
            return {**request, "messages": [dict(turn) for turn in shown.messages or ()]}
        if isinstance(prompt, str):
            return {**request, "prompt": self._text(prompt, limit)}
        if isinstance(prompt, list) and prompt and all(isinstance(text, str) for text in prompt):
            return {**request, "prompt": [self._text(text, limit) for text in prompt]}
        return request

    def _text(self, text: str, limit: int) -> str:
        if not text:
            return text
        return self._encoder.reading(Prompt(id="request", text=text), limit).text or ""


def joined(turn: Message) -> Message:
    """Return a turn whose content is a list of texts with one text, as vLLM joins them; others as they are.

    >>> joined({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})
    {'role': 'user', 'content': 'a\\nb'}
    """
    parts = turn.get("content")
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and part.get("type") == "text" for part in parts
    ):
        return turn
    return {**turn, "content": "\n".join(str(part["text"]) for part in parts)}


def _answer_tokens(request: Mapping[str, Any]) -> int:
    """Return the tokens that a request wants for its answer."""
    limits = [request[key] for key in LIMITS if type(request.get(key)) is int]
    return int(limits[0]) if limits else DEFAULT_TOKENS
