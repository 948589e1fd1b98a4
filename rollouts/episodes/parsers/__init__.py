"""Parsers of tool calls by name: what a model wrote in one turn, as calls and the text beside them.

A call that cannot be read is data with a reason, which the model gets to see, and no error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rollouts.episodes.environment import Schema, ToolCall
from rollouts.errors import UserError, nearest

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder


class UnreadCall(NamedTuple):
    """A call that could not be read."""

    name: str
    """Name of the tool where that much was legible, else ``unknown``."""
    reason: str


class ParsedTurn(NamedTuple):
    """One assistant turn."""

    content: str
    """Text beside the calls."""
    calls: tuple[ToolCall | UnreadCall, ...]


class TurnTokens(NamedTuple):
    """One sampled turn, as a parser gets it."""

    text: str
    """Text with special tokens, without the token that ended the turn."""
    token_ids: Sequence[int]
    prompt_ids: Sequence[int]
    """All tokens before the turn."""


class Parser(Protocol):
    """Reader of one model family's form of tool calls."""

    def parse(self, turn: TurnTokens, schemas: Sequence[Schema]) -> ParsedTurn:
        """Return the calls of a turn; never raises on what a model wrote."""
        ...


UNKNOWN = "unknown"
"""Name of a tool where a call does not say it."""
AUTO = "auto"


def _hermes(encoder: PromptEncoder) -> Parser:
    from rollouts.episodes.parsers.hermes import HermesParser

    return HermesParser(encoder.decode)


def _template(encoder: PromptEncoder) -> Parser:
    from rollouts.episodes.parsers.response_template import ResponseTemplateParser

    return ResponseTemplateParser(encoder.tokenizer)


PARSERS: dict[str, Callable[[PromptEncoder], Parser]] = {"hermes": _hermes, "template": _template}
"""Parsers that need no vLLM: ``<tool_call>{json}</tool_call>``, and the tokenizer's response template."""


@lru_cache(maxsize=8)
def build_parser(name: str, encoder: PromptEncoder, where: str | None = None) -> Parser:
    """Return the parser of this name for a model.

    Raises:
        UserError: there is none of this name, or it cannot read this model.
    """
    if name == AUTO:
        has_template = getattr(encoder.tokenizer, "response_template", None) is not None
        name = "template" if has_template else "hermes"
    if name in PARSERS:
        return PARSERS[name](encoder)
    from rollouts.episodes.parsers.vllm import VLLMParser, vllm_parser_names

    names = vllm_parser_names()
    if name not in names:
        known = list(dict.fromkeys([AUTO, *PARSERS, *names]))
        raise UserError(
            f"no parser of tool calls is called {name!r}",
            where=where,
            cause=None if names else "vLLM is not installed, so its parsers are not there",
            remedy=f"{nearest(name, known)}; {AUTO} takes the one of the tokenizer, or hermes",
        )
    return VLLMParser(name, encoder.tokenizer.name_or_path)


def read_call(name: Any, arguments: Any) -> ToolCall | UnreadCall:
    """Return a call with its arguments as a mapping, given as one or as JSON text."""
    if not isinstance(name, str) or not name:
        return UnreadCall(UNKNOWN, "a call needs a name, as text")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return UnreadCall(name, f"the arguments are not JSON: {error}")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        kind = type(arguments).__name__
        return UnreadCall(name, f"the arguments are a {kind}, and must be an object of JSON")
    try:
        json.dumps([name, arguments], ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError, TypeError) as error:
        # A lone surrogate, an infinity, or nesting that is too deep: no worker could be told of it.
        return UnreadCall(_legible(name), f"the call cannot be handed on: {error}")
    return ToolCall(name, arguments)


def _legible(name: str) -> str:
    return name.encode(errors="replace").decode()
