"""One policy in one environment: from its opening over turns, calls and observations to a completion.

An actor waits for one thing at a time, a turn of the engine or an answer of the environment. Its methods
take what came and return the next request for the engine, if there is one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rollouts.engines.protocol import SampleRequest
from rollouts.episodes.environment import (
    Environments,
    EpisodeRules,
    Observation,
    ToolCall,
)
from rollouts.episodes.observations import ObservationFormat, UnfitTemplate, tool_message
from rollouts.episodes.parsers import ParsedTurn, Parser, TurnTokens, UnreadCall
from rollouts.episodes.tools import Tools
from rollouts.episodes.transcript import Transcript, behind
from rollouts.errors import UserError, first_line
from rollouts.types import Completion, EpisodeEnd, Message, Prompt

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

SHOWN_NAME = 80
"""Most characters of a tool's name that the model made up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Everything that the episodes of one prompt share."""

    prompt: Prompt
    request: SampleRequest
    """Request for the prompt's completions, as it would be without an environment."""
    environments: Environments
    rules: EpisodeRules
    tools: Tools
    parser: Parser
    form: ObservationFormat | None
    """Form of observations; None where there are no tools."""
    encoder: PromptEncoder


@dataclass(kw_only=True, slots=True)
class Actor:
    """One episode under way."""

    scene: Scene
    number: int
    """Place among the completions of the prompt."""
    waits_for: Future[Any] | None = None
    """Answer of the environment that the episode waits for; None while the engine has the word."""
    completion: Completion | None = None
    """The finished completion."""
    prompt_ids: tuple[int, ...] = ()
    """Tokens of the prompt with the text that the environment opened with."""
    _episode: Transcript = field(default_factory=Transcript)
    _step: str = "opening"
    _end: EpisodeEnd = "answer"
    _calls: tuple[ToolCall | UnreadCall, ...] = ()
    """Calls of the last turn."""
    _faults: tuple[str | None, ...] = ()
    """Reason for which each of them is not made; None for one that is."""
    _seconds: float = 0.0
    """Seconds that the environment has worked."""

    @property
    def key(self) -> str:
        """Name of the episode for its environment."""
        return f"{self.scene.request.id}/{self.number}"

    @property
    def future(self) -> Future[Any]:
        """Answer of the environment that the episode waits for."""
        assert self.waits_for is not None
        return self.waits_for

    def begin(self) -> None:
        """Open the environment."""
        self.waits_for = self.scene.environments.open(self.key, self.scene.prompt)

    def advance(self) -> SampleRequest | None:
        """Take the environment's answer, which is there."""
        future, self.waits_for = self.future, None
        try:
            answer = future.result()
        except (
            Exception
        ) as error:  # Whatever an environment dies of, its episode is a failed sample.
            self.fail(f"the environment failed while {self._step}: {first_line(error)}")
            return None
        if self._step == "opening":
            return self._opened(answer)
        if self._step == "calling":
            return self._observed(answer)
        self.completion = self._episode.completion(self._end, answer)
        return None

    def take(self, turn: Completion) -> SampleRequest | None:
        """Take a sampled turn, and make its calls."""
        if turn.finish_reason == "failed":
            self.fail(turn.detail or "no reason was given")
            return None
        has_tools = bool(self.scene.tools.names)
        parsed = self._parsed(turn) if has_tools else ParsedTurn("", ())
        text = self.scene.encoder.decode(turn.token_ids)
        self._episode.sample(turn, _message(parsed, text), text)
        rules = self.scene.rules
        if turn.finish_reason == "length":
            return self._finish("tokens")
        if not parsed.calls:
            return self._finish("answer")
        if self._episode.turns >= rules.turns:
            return self._finish("turns")
        self._calls = parsed.calls
        self._faults = tuple(map(self.scene.tools.fault, parsed.calls))
        valid = [c for c, fault in zip(self._calls, self._faults, strict=True) if fault is None]
        if not valid:
            return self._observed(())
        self._step = "calling"
        self.waits_for = self.scene.environments.call(
            self.key, [call for call in valid if isinstance(call, ToolCall)]
        )
        return None

    def fail(self, detail: str) -> None:
        """End the episode as a failed completion."""
        self.scene.environments.drop(self.key)
        self.waits_for, self.completion = None, Completion.failed(detail)

    def completion_behind(self, prompt_ids: tuple[int, ...]) -> Completion:
        """Return the completion as it stands behind a shorter prompt; the rest of its own is observed."""
        assert self.completion is not None
        return behind(self.completion, self.prompt_ids[len(prompt_ids) :])

    def _opened(self, text: str | None) -> SampleRequest | None:
        scene = self.scene
        self._episode.opening = self._readable(text or "")
        try:
            self.prompt_ids = (
                scene.encoder.encode(
                    opened(scene.prompt, self._episode.opening), tools=scene.tools.schemas
                )
                if self._episode.opening
                else tuple(scene.request.prompt_ids)
            )
        except UserError as error:
            self.fail(f"the text that the environment opened with cannot be rendered: {error.what}")
            return None
        return self._ask()

    def _observed(self, answers: Sequence[Observation]) -> SampleRequest | None:
        """Take the observations of the calls that were made, beside the faults of the others."""
        remaining = iter(answers)
        observations = [
            next(remaining, None) if fault is None else Observation(_error(fault), failed=True)
            for fault in self._faults
        ]
        if None in observations or next(remaining, None) is not None:
            self.fail(
                f"the environment made {len(answers)} observations, and not one for each call"
            )
            return None
        known = [each for each in observations if each is not None]
        self._episode.count(known)
        self._seconds += sum(each.seconds for each in known)
        messages = [
            tool_message(self._readable(call.name[:SHOWN_NAME]), self._readable(each.text))
            for call, each in zip(self._calls, known, strict=True)
        ]
        if any(each.done for each in known):
            self._episode.messages += messages
            return self._finish("done")
        if self._seconds >= self.scene.rules.episode_s:
            return self._finish("time")
        return self._continued(messages)

    def _continued(self, messages: Sequence[Message]) -> SampleRequest | None:
        """Append what tools answered and ask for the next turn, if there is room for one."""
        scene, episode = self.scene, self._episode
        assert scene.form is not None
        ended = episode.token_ids[-1] in scene.encoder.eos_ids
        try:
            observed = scene.form.tokens(messages, ended=ended)
        except UnfitTemplate as error:
            self.fail(f"the chat template cannot write what a tool answered: {error}")
            return None
        if self._room(len(observed)) < 1:
            return self._finish("tokens")
        episode.observe(observed)
        episode.messages += messages
        return self._ask()

    def _readable(self, text: str) -> str:
        """Return a text of the environment as valid Unicode that spells no control token."""
        return self.scene.encoder.harmless(text.encode(errors="replace").decode())

    def _ask(self) -> SampleRequest | None:
        base, turn = self.scene.request, self._episode.turns
        room = self._room(0)
        if room < 1:
            self.fail(f"the prompt has {len(self.prompt_ids)} tokens and leaves no room for a turn")
            return None
        request_id = f"{self.key}/{turn}"
        self._step = "sampling"
        return replace(
            base,
            id=request_id,
            prompt_ids=(*self.prompt_ids, *self._episode.token_ids),
            n=1,
            sampling=replace(base.sampling, max_tokens=min(base.sampling.max_tokens, room)),
            # 31 bits: every sampler's generator takes a non-negative int32.
            seed=int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:4], "big") >> 1,
            follows=f"{self.key}/{turn - 1}" if turn else None,
        )

    def _room(self, more: int) -> int:
        """Return the tokens that the next turn may have behind ``more`` observed ones."""
        rules, used = self.scene.rules, len(self._episode.token_ids) + more
        rooms = [self.scene.request.sampling.max_tokens]
        if rules.tokens is not None:
            rooms.append(rules.tokens - used)
        if rules.context is not None:
            rooms.append(rules.context - len(self.prompt_ids) - used)
        return min(rooms)

    def _finish(self, end: EpisodeEnd) -> SampleRequest | None:
        """Close the environment; its outcome ends the episode, and no request follows."""
        self._end, self._step = end, "closing"
        self.waits_for = self.scene.environments.close(self.key, tuple(self._episode.messages))
        return None

    def _parsed(self, turn: Completion) -> ParsedTurn:
        ids = turn.token_ids
        ended = bool(ids) and ids[-1] in self.scene.encoder.eos_ids
        written = ids[:-1] if ended else ids
        tokens = TurnTokens(
            text=str(self.scene.encoder.tokenizer.decode(list(written), skip_special_tokens=False)),
            token_ids=written,
            prompt_ids=(*self.prompt_ids, *self._episode.token_ids),
        )
        return self.scene.parser.parse(tokens, self.scene.tools.schemas)


def opened(prompt: Prompt, text: str | None) -> Prompt:
    """Return a prompt as chat turns, with what its environment opened with behind the last of them."""
    turns = prompt.messages or ({"role": "user", "content": str(prompt.text)},)
    if text:
        turns = (*turns[:-1], {**turns[-1], "content": turns[-1]["content"] + text})
    return replace(prompt, text=None, messages=turns)


def _message(parsed: ParsedTurn, text: str) -> Message:
    """Return the assistant's turn, in TRL's form; one with calls that could not be read as its text."""
    calls = [call for call in parsed.calls if isinstance(call, ToolCall)]
    if not calls or len(calls) < len(parsed.calls):
        return {"role": "assistant", "content": text}
    return {
        "role": "assistant",
        "content": parsed.content,
        "tool_calls": [
            {"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}}
            for c in calls
        ],
    }


def _error(reason: str) -> str:
    """Return what a model reads of a call that failed, in TRL's form."""
    return str({"error": reason})
