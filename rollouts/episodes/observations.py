"""Observations as tokens: what a chat template writes between two turns of the assistant.

The template is rendered for a short conversation with and without the answers of the tools, and the tokens
behind the end of the assistant's turn are the observation's. This holds for every conversation only where
the template is prefix-preserving: earlier turns are written the same whatever follows. A template that is
not is replaced, for observations, by its training variant of TRL where there is one, and refused otherwise.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollouts.chat.messages import left_out
from rollouts.chat.pinned import parted
from rollouts.episodes.environment import Schema
from rollouts.errors import UserError
from rollouts.types import Message

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

logger = logging.getLogger(__name__)

Ids = tuple[int, ...]
USER: Message = {"role": "user", "content": "Keel0turn"}
TOOL = "keel_tool"
SCHEMA: Schema = {
    "type": "function",
    "function": {
        "name": TOOL,
        "description": "Keel reads what a template writes.",
        "parameters": {"type": "object", "properties": {}},
    },
}
CALL_ID = "keelcall1"
"""Nine letters and digits, as templates ask for that write ids of calls."""


class UnfitTemplate(ValueError):
    """A chat template that no episode can be rendered with; the message is the reason."""


def tool_message(name: str, content: str) -> Message:
    """Return the answer of a tool as a chat turn, in TRL's form."""
    return {"role": "tool", "name": name, "content": content}


class ObservationFormat:
    """Form in which a chat template writes what tools answer.

    Args:
        kwargs: variables of the template, over those that it carries.

    Raises:
        UnfitTemplate: the template leaves something out, or is not prefix-preserving and TRL has no
            variant of it that is.
    """

    def __init__(self, encoder: PromptEncoder, kwargs: Mapping[str, Any]) -> None:
        template = _default_of(encoder.tokenizer.chat_template)
        if template is None:
            raise UnfitTemplate("the model has no chat template")
        self._encoder, self._template, self._kwargs = encoder, template, kwargs
        try:
            _check(self)
        except UnfitTemplate as error:
            variant = _training_variant(template)
            if variant is None:
                raise
            self._template = variant
            _check(self)
            logger.warning(
                "the chat template is not fit for episodes (%s); what tools answer is written by the "
                "training variant of it that TRL has",
                error,
            )

    def tokens(
        self, answers: Sequence[Message], *, ended: bool = True, turns: Sequence[Message] = (USER,)
    ) -> Ids:
        """Return the tokens from the end of an assistant's turn to the beginning of the next.

        Args:
            answers: messages of the tools that the turn called, in order.
            ended: the turn has an end of its own; False: the template's end comes first.
            turns: turns before it.

        Raises:
            UnfitTemplate: the template raises on them, or changes what stood before.
        """
        name = str(answers[0].get("name"))
        calling = [*turns, self._calling(name)]
        # What stands before an answer is the same for all of a tool's, and rendering takes a millisecond.
        if tuple(turns) == (USER,):
            before, has_end = _until_call(self, self._template, name)
        else:
            before, has_end = self.until_end(turns, calling)
        whole = self.render([*calling, *map(self._numbered, answers)], opened=True)
        if whole[: len(before)] != before:
            raise UnfitTemplate(
                "earlier turns are written or tokenized otherwise once an answer of a tool follows"
            )
        start = len(before) if ended or not has_end else len(before) - 1
        return whole[start:]

    def render(self, turns: Sequence[Message], *, opened: bool) -> Ids:
        """Return the token ids of chat turns."""
        text = self.text(turns, opened=opened)
        ids = self._encoder.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return tuple(int(token) for token in ids)

    def text(self, turns: Sequence[Message], *, opened: bool, tools: Sequence[Schema] = ()) -> str:
        """Return the text of chat turns as this format's template writes them."""
        tokenizer: Any = self._encoder.tokenizer
        try:
            return str(
                tokenizer.apply_chat_template(
                    [dict(turn) for turn in turns],
                    chat_template=self._template,
                    tools=list(tools) or None,
                    add_generation_prompt=opened,
                    tokenize=False,
                    **self._kwargs,
                )
            )
        except Exception as error:  # A template runs whatever its author wrote.
            raise UnfitTemplate(f"it raises: {str(error) or type(error).__name__}") from error

    def probe(self, content: str) -> tuple[Message, ...]:
        """Return a turn that calls a tool and the tool's answer."""
        return self._calling(TOOL), self._numbered(tool_message(TOOL, content))

    def call_until_end(self, name: str) -> tuple[Ids, bool]:
        """Return the tokens up to the end of a first turn that calls a tool; see `until_end`."""
        return self.until_end([USER], [USER, self._calling(name)])

    def until_end(self, turns: Sequence[Message], calling: Sequence[Message]) -> tuple[Ids, bool]:
        """Return the tokens up to the end of the last turn, and whether a token ends it."""
        whole, base = self.render(calling, opened=False), self.render(turns, opened=False)
        common = zip(whole, base, strict=False)
        begin = next((i for i, (left, right) in enumerate(common) if left != right), len(base))
        ends = [i for i in range(begin, len(whole)) if whole[i] in self._encoder.eos_ids]
        return (whole[: ends[-1] + 1], True) if ends else (whole, False)

    def _calling(self, name: str) -> Message:
        """Return an assistant's turn that calls a tool; of several calls the first stands for all."""
        call = {"type": "function", "function": {"name": name, "arguments": {}}}
        numbered = {"id": CALL_ID, **call} if self._has_ids else call
        return {"role": "assistant", "content": "", "tool_calls": [numbered]}

    def _numbered(self, answer: Message) -> Message:
        return {**answer, "tool_call_id": CALL_ID} if self._has_ids else answer

    @property
    def _has_ids(self) -> bool:
        return "tool_call_id" in self._template or "tool_call.id" in self._template


def observation_format(
    encoder: PromptEncoder, kwargs: Mapping[str, Any] | None = None
) -> ObservationFormat:
    """Return the format of a model's chat template, checked once.

    Args:
        kwargs: variables of the template, over those that it carries.

    Raises:
        UnfitTemplate: no episode can be rendered with it.
    """
    return _format(encoder, json.dumps(kwargs or {}, sort_keys=True))


@lru_cache(maxsize=256)
def _until_call(form: ObservationFormat, template: str, name: str) -> tuple[Ids, bool]:
    """Return what a form makes of a first call of a tool while it has this template."""
    return form.call_until_end(name)


@lru_cache(maxsize=16)
def _format(encoder: PromptEncoder, kwargs: str) -> ObservationFormat:
    return ObservationFormat(encoder, json.loads(kwargs))


def checked_format(
    encoder: PromptEncoder, where: str, kwargs: Mapping[str, Any] | None = None
) -> ObservationFormat:
    """Return the format of a model's chat template, or refuse the template.

    Raises:
        UserError: says why, and what could be used.
    """
    try:
        return observation_format(encoder, kwargs)
    except UnfitTemplate as error:
        raise UserError(
            f"the chat template cannot write what tools answer: {error}",
            where=where,
            cause="a policy acts on the tokens it sampled, with answers appended to them, so a template "
            "must write tools, calls and answers, and earlier turns the same whatever follows",
            remedy="use a model whose chat template has tools (such as Qwen2.5, Qwen3 or Llama 3.1), put "
            "one that does into the model folder (chat_template.jinja), or remove tools and environment",
        ) from error


def _check(form: ObservationFormat) -> None:
    """Try what episodes need: tools, calls and answers are written, and none changes what stood before."""
    first, second = form.probe("Keel1turn"), form.probe("Keel2turn")
    turns = (USER, *first)
    if form.text(turns, opened=True, tools=[SCHEMA]) == form.text(turns, opened=True):
        raise UnfitTemplate("it leaves out the functions that may be called")
    lost = left_out(turns, (), lambda shown, tools: form.text(shown, opened=True, tools=tools))
    if lost is not None:
        raise UnfitTemplate(f"it leaves out {lost.rpartition(' in ')[0] or lost}")
    early = form.tokens(second[1:])
    late = form.tokens(second[1:], turns=turns)
    if early != late:
        raise UnfitTemplate("it writes the same answer otherwise after other turns")
    before, mark, _ = form.text(turns, opened=True).partition("Keel1turn")
    if not form.text((*turns, *second), opened=True).startswith(before + mark):
        raise UnfitTemplate("it leaves out or changes an earlier answer once a later one follows")


def _default_of(template: Any) -> str | None:
    """Return a chat template; of several named ones the default."""
    chosen = template.get("default") if isinstance(template, dict) else template
    return str(chosen) if chosen else None


def _training_variant(template: str) -> str | None:
    """Return TRL's prefix-preserving variant of a template, behind the same defaults; None without one.

    TRL keeps the templates that it knows as files, each beside its variant; importing it takes seconds.
    """
    spec = find_spec("trl")
    folders = spec.submodule_search_locations if spec is not None else None
    front, model_template = parted(template)
    for folder in folders or ():
        for variant in sorted(Path(folder, "chat_templates").glob("*_training.jinja")):
            original = variant.with_name(variant.name.replace("_training", ""))
            if original.is_file() and original.read_text(encoding="utf-8") == model_template:
                return front + variant.read_text(encoding="utf-8")
    return None
