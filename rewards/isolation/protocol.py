"""Messages between a worker and its owner: JSON in frames, over a socket nobody else has.

A frame is the length of its body in four bytes, then the body. The owner sends a plan once, then one
request at a time; the worker answers a request with one frame or several, each deciding the next
samples in order. A worker runs code that may do anything, so everything it says is checked here.
"""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.base import Sample
from rewards.call import FAILURE_KINDS, PartFailure, PartOutcome
from rewards.signatures.parameters import Parameters
from rollouts.types import Completion, Episode, Prompt
from rollouts.values import Unholdable, from_json, normalised, to_json

LARGEST_FRAME = 2**28
"""Bytes of one frame; more is an error, never memory."""
LONGEST_TEXT = 20_000
"""Characters of a traceback that are passed on, counted from its end."""

# Bound now: what a reward puts into the json module later changes nothing here.
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


class Malformed(Exception):
    """Message of a worker that is no answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerAnswer:
    """Outcomes and logs in one frame of a worker."""

    outcomes: list[PartOutcome]
    metrics: list[tuple[str, float]] = field(default_factory=list)
    """Values that the reward gave ``log_metric``, in order."""
    extras: dict[str, list[Any]] = field(default_factory=dict)
    """Values that the reward gave ``log_extra``, per column."""


def send(channel: socket.socket, body: str) -> None:
    """Send one frame. Raises `OSError` when nobody is left to read it."""
    data = body.encode()
    channel.sendall(len(data).to_bytes(4, "big") + data)


def send_message(channel: socket.socket, message: Mapping[str, Any]) -> None:
    """Send a mapping that JSON can hold."""
    send(channel, _encode(message))


def receive(channel: socket.socket, until: float | None = None) -> dict[str, Any]:
    """Receive the next frame.

    Args:
        until: time of the monotonic clock at which waiting ends; None waits on.

    Raises:
        EOFError: the other side has ended.
        TimeoutError: it has not answered in time.
        Malformed: what it sent is no frame.
    """
    size = int.from_bytes(_exactly(channel, 4, until), "big")
    if size > LARGEST_FRAME:
        raise Malformed(f"a frame of {size} bytes")
    try:
        message = _decode(_exactly(channel, size, until).decode())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"a frame that is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise Malformed(f"a {type(message).__name__} instead of an object")
    return message


def _exactly(channel: socket.socket, size: int, until: float | None) -> bytes:
    data = bytearray()
    while len(data) < size:
        if until is not None:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            channel.settimeout(left)
        try:
            part = channel.recv(min(size - len(data), 2**20))
        except ConnectionError as error:
            raise EOFError from error
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def holds(value: Any) -> bool:
    """Tell if JSON gives this value back as it is; a tuple may come back as a list."""
    if value is None or isinstance(value, str | bool | int | float):
        return True
    if isinstance(value, list | tuple):
        return all(map(holds, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(holds, value.values()))
    return False


def pack_sample(sample: Sample, takes: Parameters, columns: Sequence[str]) -> str | PartFailure:
    """Pack the parts of a sample that the reward takes as JSON; return a failure if it cannot be sent."""
    prompt, completion = sample.prompt, sample.completion
    sent: dict[str, Any] = {}
    for name in filter(takes.take, columns):
        try:
            sent[name] = to_json(normalised(prompt.columns.get(name)))
        except Unholdable as error:
            return PartFailure.of(
                f"column {name!r} holds {error}, which cannot be sent to a worker as JSON", "column"
            )
    shown = takes.take("prompts")
    body: dict[str, Any] = {"completion": completion.text, "columns": sent}
    if prompt.messages is None:
        body["text"] = prompt.text if shown else ""
    else:
        body["messages"] = [dict(message) for message in prompt.messages] if shown else []
    if takes.take("completion_ids"):
        body["ids"] = list(completion.token_ids)
    if completion.episode is not None:
        body["episode"] = pack_episode(completion.episode, takes)
    return _encode(body)


def unpack_sample(body: Mapping[str, Any]) -> Sample:
    """Restore a sample from what `pack_sample` made."""
    messages, episode = body.get("messages"), body.get("episode")
    return Sample(
        prompt=Prompt(
            id="",
            text=body.get("text"),
            messages=None if messages is None else tuple(messages),
            columns={name: from_json(value) for name, value in body["columns"].items()},
        ),
        completion=Completion(
            token_ids=tuple(body.get("ids", ())),
            logprobs_T=(),
            text=body["completion"],
            finish_reason="stop",
            episode=None if episode is None else unpack_episode(episode),
        ),
    )


def pack_episode(episode: Episode, takes: Parameters) -> dict[str, Any]:
    """Pack the parts of an episode that a reward takes: its messages, and its environment's end."""
    packed: dict[str, Any] = {"messages": [], "environment": {}}
    if takes.take("prompts"):
        packed["opening"] = episode.opening
    if takes.take("completions"):
        packed["messages"] = [dict(message) for message in episode.messages]
    if takes.take("environments"):
        ended = {"name": episode.environment, "state": episode.state, "reward": episode.reward}
        packed["environment"] = ended
        counts = ("turns", "calls", "failed_calls", "end", "turn_rewards")
        packed["counts"] = {name: getattr(episode, name) for name in counts}
    return packed


def unpack_episode(body: Mapping[str, Any]) -> Episode:
    """Restore what `pack_episode` packed."""
    ended, counts = body["environment"], body.get("counts", {})
    return Episode(
        observed=(),
        messages=tuple(body["messages"]),
        turns=counts.get("turns", 0),
        calls=counts.get("calls", 0),
        failed_calls=counts.get("failed_calls", 0),
        end=counts.get("end", "answer"),
        turn_rewards=tuple(counts.get("turn_rewards", ())),
        reward=ended.get("reward"),
        state=ended.get("state", {}),
        environment=ended.get("name", ""),
        opening=body.get("opening", ""),
    )


def pack_request(number: int, packed: Sequence[str], state: str) -> str:
    """Make a request of samples that are JSON already."""
    return f'{{"id":{number},"state":{state},"rows":[{",".join(packed)}]}}'


def pack_state(state: Any) -> str:
    """Pack the trainer's state: its public attributes, as far as JSON holds them."""
    if state is None:
        return "null"
    attributes = state if isinstance(state, Mapping) else getattr(state, "__dict__", {})
    return _encode(
        {str(k): v for k, v in attributes.items() if not str(k).startswith("_") and holds(v)}
    )


def pack_answer(number: int, answer: WorkerAnswer) -> dict[str, Any]:
    """Pack an answer into the frame that a worker sends."""
    return {
        "id": number,
        "outcomes": [pack_outcome(outcome) for outcome in answer.outcomes],
        "metrics": [list(pair) for pair in answer.metrics],
        "extras": {
            name: [value if holds(value) else str(value) for value in values]
            for name, values in answer.extras.items()
        },
    }


def pack_outcome(outcome: PartOutcome) -> Any:
    """Return an outcome in its JSON form."""
    if not isinstance(outcome, PartFailure):
        return outcome
    return {
        "reason": outcome.reason[:500],
        "trace": outcome.trace[-LONGEST_TEXT:],
        "kind": outcome.kind,
    }


def read_answer(message: Mapping[str, Any], number: int, most: int) -> WorkerAnswer:
    """Read the answer in a frame. Raise `Malformed` for anything that is none."""
    try:
        if message["id"] != number:
            raise Malformed(f"an answer to request {message['id']!r}, asked was {number}")
        outcomes = [read_outcome(value) for value in message["outcomes"]]
        metrics = [(str(name), float(value)) for name, value in message["metrics"]]
        extras = {str(name): list(values) for name, values in message["extras"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error
    if not 0 < len(outcomes) <= most:
        raise Malformed(f"{len(outcomes)} outcomes for {most} samples")
    return WorkerAnswer(outcomes=outcomes, metrics=metrics, extras=extras)


def read_outcome(value: Any) -> PartOutcome:
    """Read an outcome from its JSON form."""
    if value is None:
        return None
    if isinstance(value, dict):
        kind = value["kind"]
        if kind not in FAILURE_KINDS:
            raise Malformed(f"a failure of kind {kind!r}")
        return PartFailure(
            reason=str(value["reason"])[:500], trace=str(value["trace"])[-LONGEST_TEXT:], kind=kind
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Malformed(f"the outcome {value!r}")
    return float(value)
