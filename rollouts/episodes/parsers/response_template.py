"""Calls in the form that the tokenizer's own response template describes (``parse_response``)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from rollouts.episodes.environment import Schema, ToolCall
from rollouts.episodes.parsers import UNKNOWN, ParsedTurn, TurnTokens, UnreadCall, read_call
from rollouts.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ResponseTemplateParser:
    """A `Parser` by response template: the tokenizer's, else the one TRL knows for its chat template.

    Raises:
        UserError: neither is there.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        if getattr(tokenizer, "response_template", None) is None:
            self._tokenizer = _with_template(tokenizer)

    def parse(self, turn: TurnTokens, schemas: Sequence[Schema]) -> ParsedTurn:
        """Return the calls as the template reads them, with arguments cast to their schemas' types."""
        try:
            message = self._tokenizer.parse_response(
                list(turn.token_ids), prefix=list(turn.prompt_ids), tools=list(schemas) or None
            )
            calls = tuple(map(_call, message.get("tool_calls") or ()))
            content = str(message.get("content") or "")
        except Exception as error:  # The parser raises many kinds on what a model wrote.
            reason = f"the turn does not parse: {str(error) or type(error).__name__}"
            return ParsedTurn(turn.text, (UnreadCall(UNKNOWN, reason[:500]),))
        return ParsedTurn(content.removesuffix(self._tokenizer.eos_token or ""), calls)


def _call(value: Any) -> ToolCall | UnreadCall:
    function = value.get("function", value)
    return read_call(function.get("name"), function.get("arguments"))


def _with_template(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return a copy of a tokenizer with the response template that TRL has for its chat template."""
    from trl.chat_template_utils import add_response_schema

    try:
        return add_response_schema(copy(tokenizer))
    except ValueError as error:
        raise UserError(
            "the tokenizer has no response template, by which calls of tools are read",
            where="episode.parser",
            cause="neither tokenizer_config.json nor TRL has one for its chat template",
            remedy="set parser to hermes, or to the name of a tool parser of vLLM",
        ) from error
