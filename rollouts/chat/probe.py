"""Checks that a chat template does what training and the gate need, by rendering it.

Turns with contents that no template writes by itself show what becomes of each of them. Rendering at two
dates shows whether tomorrow's prompts are today's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rollouts.chat.messages import tools_of
from rollouts.chat.pinned import check_names, draws, variables
from rollouts.errors import TemplateRefusal, UserError
from rollouts.types import Message, Prompt

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

SPOKEN = ("system", "user", "assistant")
"""Roles whose words a template has to show."""
DATES = (datetime(2019, 1, 7, 3, 4, 5), datetime(2031, 12, 28, 16, 57, 48))
"""Two moments that differ in every part a template could print."""
TIMELY = ("date", "time", "today", "now", "year", "month", "day")

Roles = tuple[str, ...]
"""Roles of the speakers, turn by turn."""


def check_conversations(encoder: PromptEncoder, prompts: Iterable[Prompt], where: str) -> None:
    """Refuse a chat template that drops turns of these prompts or renders them differently tomorrow.

    Every order of roles among them is rendered once, and of prompts with tools or their results the first
    of every order as it is.

    Raises:
        UserError: the template prints the date, draws at random, leaves a turn out, or raises on the turns.
    """
    prompts = list(prompts)
    _check_kwargs(encoder, prompts, where)
    orders: dict[tuple[Roles, bool], tuple[tuple[Message, ...], list[Any]]] = {}
    for prompt in prompts:
        if prompt.messages:
            roles, tools = tuple(turn["role"] for turn in prompt.messages), tools_of(prompt.columns)
            orders.setdefault((roles, bool(tools)), (prompt.messages, tools))
    if not orders or encoder.tokenizer.chat_template is None:
        return
    for (roles, _), (turns, tools) in orders.items():
        if not tools and all(role in SPOKEN for role in roles):
            turns = probe_turns(roles)
            # Encoding says why it refuses these roles.
            encoder.encode(Prompt(id="/".join(roles), messages=turns))
            lost = [index for index, is_shown in enumerate(shown(encoder, turns)) if not is_shown]
            if lost:
                role = roles[lost[0]]
                raise UserError(
                    f"the chat template leaves out the {role} message, turn {lost[0] + 1} of "
                    f"{len(roles)} ({', '.join(roles)})",
                    where=where,
                    cause="the template does not write turns of this role, or not there",
                    remedy=f"take {role} messages out of the prompts (and out of policy.system), or use a "
                    "template that writes them",
                )
        check_dates(encoder, turns, where, tools)


def check_system(prompts: Iterable[Prompt], system: str | None, where: str) -> None:
    """Refuse prompts with a system message of their own where a campaign states one for all of them.

    Raises:
        UserError: names the first such prompt.
    """
    for prompt in prompts if system is not None else ():
        first = prompt.messages[0] if prompt.messages else {"role": "user"}
        if first["role"] in ("system", "developer") and first["content"] != system:
            raise UserError(
                f"{prompt.label} has a {first['role']} message of its own, and {where} states another one",
                where=where,
                remedy="take it out of the prompts, or remove system here; prompts.system is for prompts "
                "of which some have their own",
            )


def _check_kwargs(encoder: PromptEncoder, prompts: Iterable[Prompt], where: str) -> None:
    """Refuse variables of single prompts that the chat template does not read."""
    for kwargs in {str(p.chat_template_kwargs): p.chat_template_kwargs for p in prompts}.values():
        if kwargs and (template := encoder.tokenizer.chat_template) is not None:
            # Where there is no template, encoding says so.
            check_names(template, kwargs, f"{where}, chat_template_kwargs")


def check_answers(encoder: PromptEncoder, where: str) -> None:
    """Refuse a chat template that shows no answers, or changes a prompt once it is answered.

    Raises:
        UserError: examples of chats cannot be learned with it.
    """
    turns = probe_turns(("user", "assistant"))
    try:
        whole = encoder.rendered(turns, opened=False)
        begun = [encoder.rendered(turns[:1], opened=opened) for opened in (True, False)]
    except TemplateRefusal:
        return  # It wants other turns than these; of those that it refuses each row is told.
    reason = None
    if turns[1]["content"] not in whole:
        reason = "the chat template leaves out what the assistant says"
    elif not any(map(whole.startswith, begun)):
        reason = "the chat template changes the prompt once it is answered"
    if reason is not None:
        raise UserError(
            f"{reason}, so nothing can be learned from chats",
            where=where,
            cause="a prompt must be the beginning of the same prompt with its answer, or the learner and "
            "the engines would read different contexts",
            remedy="use the chat template that the model was trained with, or examples of plain text",
        )
    check_dates(encoder, turns[:1], where)


def check_dates(
    encoder: PromptEncoder, turns: Sequence[Message], where: str, tools: Sequence[Any] = ()
) -> None:
    """Refuse a chat template that renders the same turns differently at another date, or by chance.

    Raises:
        UserError: says which variable of the template fixes the date, where there is one.
    """
    renderings = []
    for date in DATES:
        with frozen(date):
            try:
                renderings.append(encoder.rendered(turns, opened=True, tools=tools))
            except TemplateRefusal:
                return  # Encoding the prompt says so.
    template = encoder.tokenizer.chat_template
    text = template if isinstance(template, str) else str(template.get("default", ""))
    if means := draws(text):
        raise UserError(
            f"the chat template draws at random ({means})",
            where=where,
            cause="one prompt would be read differently each time",
            remedy="take it out of the template",
        )
    if renderings[0] == renderings[1]:
        return
    names = sorted(name for name in variables(text) if any(word in name for word in TIMELY))
    names = [name for name in names if name != "strftime_now"]
    remedy = "fix it with policy: {chat_template_date: 2024-07-26}"
    if names:
        remedy += f", or with the template's own {{chat_template_kwargs: {{{names[0]}: ...}}}}"
    raise UserError(
        "the chat template prints the date of the day on which it is rendered",
        where=where,
        cause="training, replay and the gate would read other prompts tomorrow than today",
        remedy=remedy,
    )


def shown(encoder: PromptEncoder, turns: Sequence[Message]) -> list[bool]:
    """Tell per turn if the template writes its content."""
    text = encoder.rendered(turns, opened=False)
    return [message["content"] in text for message in turns]


def probe_turns(roles: Roles) -> tuple[Message, ...]:
    """Make chat turns whose contents tell them apart."""
    return tuple({"role": role, "content": f"Keel{i}turn"} for i, role in enumerate(roles))


@contextmanager
def frozen(date: datetime) -> Iterator[None]:
    """Make ``strftime_now`` of chat templates print this date."""
    from transformers.utils import chat_template_utils

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Frozen:
            return cls(*date.timetuple()[:6])

    real = chat_template_utils.datetime
    chat_template_utils.datetime = Frozen
    try:
        yield
    finally:
        chat_template_utils.datetime = real
