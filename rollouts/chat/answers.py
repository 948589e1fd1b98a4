"""Answers as the tokens a policy would sample: those after the prompt, up to the first end.

What a chat template writes behind the end of a turn (a line break, a second end of the whole text) is
never sampled, since sampling stops at the end, so nothing learns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from rollouts.types import Message, Prompt, TokenSpan

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

Ids = tuple[int, ...]


class UnfitAnswer(Exception):
    """An answer that cannot be told apart from its prompt; the message is the reason."""


def text_answer(text: str, prompt_ids: Ids, answer: str, encoder: PromptEncoder) -> Ids:
    """Return the token ids of an answer after a plain prompt, with an end.

    It is read as the tokenizer has it behind the prompt, unless tokens merge across the seam: then on its
    own. Blank text behind an end that the answer holds itself is cut off.
    """
    whole = encoder.encode(Prompt(id="", text=text + answer))
    if whole[: len(prompt_ids)] == prompt_ids:
        ids = whole[len(prompt_ids) :]
    else:
        tokenizer = encoder.tokenizer
        ids = tuple(tokenizer(answer, add_special_tokens=False, verbose=False).input_ids)
    ends = [index for index, token in enumerate(ids) if token in encoder.eos_ids]
    if ends and not encoder.decode(ids[ends[-1] + 1 :]).strip():
        ids = ids[: ends[-1] + 1]
    if not ids:
        raise UnfitAnswer("an answer without tokens")
    return ended(ids, encoder)


def chat_answer(
    turns: Sequence[Message],
    prompt_ids: Ids,
    answer: Sequence[Message],
    encoder: PromptEncoder,
    tools: Sequence[Any] = (),
) -> Ids:
    """Return the token ids that the chat template adds to a prompt for an answer, up to the first end.

    Some templates end a prompt that waits for its answer otherwise than one that has it (an empty thought,
    say). The answer then begins where the two part, if that is behind the last turn. Of several turns the
    last one's end counts.

    Args:
        tools: functions that the assistant may call.

    Raises:
        TemplateRefusal: the template raises on the turns, or leaves calls out.
        UnfitAnswer: it leaves the answer out, or changes the prompt before it.
    """
    whole, start = chat_whole(turns, prompt_ids, answer, encoder, tools)
    if start < len(prompt_ids) and start < len(encoder.render(turns, opened=False, tools=tools)):
        raise UnfitAnswer("the chat template changes the prompt once it is answered")
    if start == len(whole):
        raise UnfitAnswer("an answer without tokens")
    return ended(whole[start:], encoder)


def chat_episode(
    turns: Sequence[Message],
    prompt_ids: Ids,
    answer: Sequence[Message],
    encoder: PromptEncoder,
    tools: Sequence[Any] = (),
) -> tuple[Ids, tuple[TokenSpan, ...]]:
    """Return the token ids of an answer of several turns, and the spans that are not the assistant's.

    These are the tokens from behind the end of one of its turns to where the prompt of its next turn ends:
    what tools and users said, and what the template writes around it. Turns behind the assistant's last one
    are left out.

    Raises:
        TemplateRefusal: as `chat_answer`.
        UnfitAnswer: as `chat_answer`; or the template changes earlier turns once later ones follow.
    """
    spoken = [i for i, turn in enumerate(answer) if turn["role"] == "assistant"]
    answer = answer[: spoken[-1] + 1] if spoken else answer
    if spoken in ([], [0]):
        return chat_answer(turns, prompt_ids, answer, encoder, tools), ()
    whole, start = chat_whole(turns, prompt_ids, answer, encoder, tools)
    begins = [_begin(whole, (*turns, *answer[:i]), encoder, tools) for i in spoken]
    ends = [_end(whole, begin, encoder) for begin in begins[:-1]]
    start = min(start, begins[0])
    gaps = [(start, begins[0]), *zip(ends, begins[1:], strict=True)]
    if any(begin < end for end, begin in gaps):
        raise UnfitAnswer("the chat template changes earlier turns once later ones follow")
    if begins[-1] == len(whole):
        raise UnfitAnswer("an answer without tokens")
    observed = tuple(TokenSpan(a - start, b - start) for a, b in gaps if a < b)
    return ended(whole[start:], encoder), observed


def chat_whole(
    turns: Sequence[Message],
    prompt_ids: Ids,
    answer: Sequence[Message],
    encoder: PromptEncoder,
    tools: Sequence[Any] = (),
) -> tuple[Ids, int]:
    """Render prompt and answer up to the answer's end; return the ids and where the answer begins."""
    whole = encoder.render((*turns, *answer), opened=False, tools=tools)
    start = last = _common(whole, prompt_ids)
    if len(answer) > 1:
        last = _common(whole, encoder.render((*turns, *answer[:-1]), opened=True, tools=tools))
    end = next((i for i in range(last, len(whole)) if whole[i] in encoder.eos_ids), len(whole))
    return whole[: end + 1], start


def _begin(
    whole: Ids, turns: Sequence[Message], encoder: PromptEncoder, tools: Sequence[Any]
) -> int:
    """Return where the answer to these turns begins in the rendering of all turns."""
    opened = encoder.render(turns, opened=True, tools=tools)
    begin = _common(whole, opened)
    if begin < len(opened) and begin < len(encoder.render(turns, opened=False, tools=tools)):
        raise UnfitAnswer("the chat template changes earlier turns once later ones follow")
    return begin


def _end(whole: Ids, begin: int, encoder: PromptEncoder) -> int:
    """Return where the turn that begins at a token ends, behind its ending token."""
    ends = (i for i in range(begin, len(whole)) if whole[i] in encoder.eos_ids)
    return next(ends, len(whole)) + 1


def ended(ids: Ids, encoder: PromptEncoder) -> Ids:
    """Return the ids with an end of sequence behind them, unless they have one or the encoder has none."""
    if not encoder.eos_ids or (ids and ids[-1] in encoder.eos_ids):
        return ids
    return (*ids, encoder.eos_ids[0])


def _common(first: Ids, second: Ids) -> int:
    """Count the tokens that two sequences begin with in common."""
    return len(list(takewhile(lambda two: two[0] == two[1], zip(first, second, strict=False))))
