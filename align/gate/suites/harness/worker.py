"""Inside the process of a task: load it, build its questions, judge answers, until the owner is gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align.gate.suites.harness.lm import TextModel
from align.gate.suites.harness.loaded import LoadedTask, as_json
from rewards.isolation.protocol import receive, send, send_message
from rewards.isolation.worker import pack_error
from rollouts.errors import KeelError


def serve_task(channel: socket.socket, plan: Mapping[str, Any]) -> None:
    """Load the task of a plan, say what it is, then do what each message says."""
    options = plan["options"]
    task = LoadedTask(Path(options["path"]), options["changes"], plan["where"])
    send_message(channel, {"ready": asdict(task.facts)})
    while True:
        message = receive(channel)
        try:
            for result in results(task, message, channel):
                send(channel, f'{{"result":{as_json(result)}}}')
            send_message(channel, {"done": True})
        except KeelError as error:
            send_message(channel, {"error": pack_error(error)})


def results(
    task: LoadedTask, message: Mapping[str, Any], channel: socket.socket
) -> Iterator[dict[str, Any]]:
    """Yield the contents of a task, or the score of each document."""
    if build := message.get("build"):
        model = OwnersModel(channel, build["tokenizer"])
        yield task.contents(build["number"], model, build["chat"]).dump()
    else:
        for score in task.scores(**message["judge"]):
            yield asdict(score)


class OwnersModel(TextModel):
    """The tokenizer of the owner, which renders turns of a chat when it is asked."""

    def __init__(self, channel: socket.socket, name: str) -> None:
        self._channel, self._name = channel, name

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer."""
        return self._name

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Ask the owner to render turns as text."""
        turns = [dict(turn) for turn in chat_history]
        send_message(self._channel, {"question": {"turns": turns, "open": add_generation_prompt}})
        return str(receive(self._channel)["answer"])
