"""Chat templates with the campaign's own defaults written in front of them.

``chat_template_kwargs`` and ``system`` belong to the policy: it is trained, measured and served with them.
So they become part of the template that the tokenizer carries. Whoever renders with that tokenizer, a
person who chats with an exported folder too, gets the same tokens; a caller who names a variable or gives a
system message of his own still decides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from rollouts.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESERVED = frozenset(
    {
        "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
        "tokenize", "return_dict", "chat_template", "bos_token", "eos_token", "pad_token",
        "unk_token", "raise_exception", "strftime_now",
    }
)  # fmt: skip
"""Variables that the caller, the tokenizer or transformers set."""


def pin(
    tokenizer: PreTrainedTokenizerBase,
    system: str | None,
    kwargs: Mapping[str, Any],
    today: date | None = None,
    where: str = "policy",
) -> None:
    """Write these defaults into a tokenizer's chat template; do nothing if there are none.

    Args:
        today: the date that ``strftime_now`` prints; None: that of the day.

    Raises:
        UserError: there is no chat template, it reads no such variable, or one may not be set.
    """
    stated = {"system": system, "chat_template_kwargs": kwargs or None, "chat_template_date": today}
    names = [name for name, value in stated.items() if value is not None]
    if not names:
        return
    template: Any = tokenizer.chat_template
    if not template:
        raise UserError(
            "the tokenizer has no chat template to apply it in",
            where=f"{where}.{names[-1]}",
            remedy="remove it, or use a model whose tokenizer has a chat template",
        )
    check_names(template, kwargs, f"{where}.chat_template_kwargs")
    if isinstance(template, dict):
        tokenizer.chat_template = {n: pinned(t, system, kwargs, today) for n, t in template.items()}
    else:
        tokenizer.chat_template = pinned(template, system, kwargs, today)


def pinned(
    template: str, system: str | None, kwargs: Mapping[str, Any], today: date | None = None
) -> str:
    """Return the template behind its defaults; one that has them already is unchanged."""
    front = "" if today is None else _clock(template, today)
    for name, value in kwargs.items():
        front += f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif +%}}"
    if system is not None:
        turn = f"{{'role': 'system', 'content': {_literal(system)}}}"
        lacks_one = "messages and messages[0]['role'] not in ['system', 'developer']"
        front += (
            f"{{%- if {lacks_one} %}}{{%- set messages = [{turn}] + messages %}}{{%- endif +%}}"
        )
    return template if template.startswith(front) else front + template


def parted(template: str) -> tuple[str, str]:
    """Return the defaults that `pinned` wrote in front of a template, and the template itself."""
    front, mark, model_template = template.rpartition("+%}")
    return front + mark, model_template


def variables(template: str) -> set[str]:
    """Return the names that a template reads before it sets them."""
    from jinja2 import meta

    return set(meta.find_undeclared_variables(_parsed(template)))


def draws(template: str) -> str | None:
    """Name what a template draws at random with; None where it draws nothing."""
    from jinja2 import nodes

    parsed = _parsed(template)
    if any(each.name == "random" for each in parsed.find_all(nodes.Filter)):
        return "the filter random"
    names = {each.name for each in parsed.find_all(nodes.Name)}
    return "lipsum" if "lipsum" in names else None


def _parsed(template: str) -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(template).environment.parse(template)


def _clock(template: str, today: date) -> str:
    """Return a macro that replaces ``strftime_now``, for the formats that a template asks for."""
    from jinja2 import nodes

    calls = [
        call
        for call in _parsed(template).find_all(nodes.Call)
        if isinstance(call.node, nodes.Name) and call.node.name == "strftime_now"
    ]
    formats = [call.args[0].value for call in calls if isinstance(call.args[0], nodes.Const)]
    if len(formats) < len(calls):
        raise UserError(
            "the chat template computes the format of the date that it prints, so no date can stand for it",
            where="policy.chat_template_date",
            remedy="write the format out in the template, as in strftime_now('%d %B %Y')",
        )
    moment = datetime(today.year, today.month, today.day)
    texts = _literal({text: moment.strftime(text) for text in dict.fromkeys(formats)})
    return (
        f"{{%- macro strftime_now(format) %}}{{{{- {texts}[format] }}}}{{%- endmacro +%}}"
        if formats
        else ""
    )


def _literal(value: Any) -> str:
    """Write a JSON value in Jinja's syntax."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(k))}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def check_names(template: Any, kwargs: Mapping[str, Any], where: str) -> None:
    """Refuse variables that the template does not read, or that its caller sets.

    Raises:
        UserError: names the variables that the template reads.
    """
    templates = list(template.values()) if isinstance(template, dict) else [template]
    readable = {name for each in templates for name in variables(each)} - RESERVED
    for name in kwargs:
        if name in RESERVED:
            raise UserError(
                f"{name!r} is set by the caller of a template, not by a campaign",
                where=where,
                remedy=f"remove it; this template reads {', '.join(sorted(readable)) or 'nothing else'}",
            )
        if name not in readable:
            raise UserError(
                f"the chat template reads no variable {name!r}, so it would change nothing",
                where=where,
                remedy=nearest(name, sorted(readable)) if readable else "remove it",
            )
