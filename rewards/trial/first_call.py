"""One call of a reward on one real row, before a run is paid for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rewards.base import RewardPart, Sample
from rewards.call import PartFailure
from rewards.isolation.batch import Clock
from rewards.isolation.reward import IsolatedReward
from rewards.patience import saying
from rewards.pending import LoopThread, PartCalls
from rollouts.errors import UserError
from rollouts.types import Completion, Episode, Prompt

ANSWER = Completion(token_ids=(), logprobs_T=(), text="An answer.", finish_reason="stop")
"""Answer that every reward must score or abstain from."""
LIMIT_S = 30.0
"""Longest wait for a reward in a process of its own, if its deadline is not shorter."""
TRACE_LINES = 3
"""Last lines of a traceback that an error shows; they name the reward's own line."""


def call_once(
    part: RewardPart,
    name: str,
    prompt: Prompt,
    where: str,
    say: Callable[[str], None],
    episode: Episode | None = None,
) -> None:
    """Ask a part about one answer to a prompt, under its own isolation.

    Args:
        name: of the reward, as the campaign file has it; ``where``: its place there.
        say: told while the reward is waited for.
        episode: of the answer, where the policy acts; None: the answer is one turn.

    Raises:
        UserError: it raised, returned no number, or did not answer in time.
    """
    limit_s = LIMIT_S
    clocks: dict[str, Clock] = {}
    if isinstance(part.function, IsolatedReward):
        limit_s = min(LIMIT_S, part.function.isolation.deadline_s)
        clocks[part.name] = Clock(limit_s)
    waits = (
        f"waiting for reward {name} (at most {limit_s:g} s)" if clocks else f"waiting for {name}"
    )
    with saying(waits, say):
        sample = Sample(prompt=prompt, completion=replace(ANSWER, episode=episode))
        calls = PartCalls((part,), (sample,), (0,), None, LoopThread(), clocks)
        (outcome,) = calls.outcomes()[part.name]
    if isinstance(outcome, PartFailure):
        lines = [line.strip() for line in outcome.trace.splitlines() if line.strip()]
        raise UserError(
            f"reward {name!r} failed on a row of the round: {outcome.reason}",
            where=f"{where}, {prompt.label}",
            cause=" | ".join(lines[-TRACE_LINES:]),
            remedy=f"mend the reward or the row{_shape(outcome, prompt)}; keel reward test {name} --data "
            "FILE tries it on more",
        )


def _shape(failure: PartFailure, prompt: Prompt) -> str:
    """Say what completions are beside such a prompt, which a reward that raised may have mistaken."""
    if failure.kind != "raised":
        return ""
    if prompt.messages is None:
        return " (the prompt is a text, and so is every completion)"
    return (
        " (the prompt is messages, so a completion is a list of one message, and its text is "
        "completion[0]['content'])"
    )
