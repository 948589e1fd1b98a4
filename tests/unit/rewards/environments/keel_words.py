"""A taskset of the package verifiers, with a tool server, a state and two rewards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf


class WordState(vf.State):
    looked: int = 0


class WordData(vf.TaskData):
    answer: str


class Dictionary(vf.Toolset[vf.ToolsetConfig, WordState]):
    async def setup_task(self, task: Any) -> None:
        self.answer = task.answer

    @vf.tool
    def look_up(self, word: str, times: int = 1) -> str:
        """Look a word up."""
        self.state.looked += 1
        return f"{word} is {self.answer}"


class WordTask(vf.Task[WordData, WordState, vf.TaskConfig]):
    @classmethod
    def toolsets(cls, config: Any) -> list[Any]:
        return [Dictionary(vf.ToolsetConfig())]

    @vf.reward
    async def right(self, task: Any, trace: Any) -> float:
        return float(task.answer in trace.last_reply)

    @vf.reward(weight=0.5)
    async def looked(self, trace: Any) -> float:
        return float(trace.state.looked == len(trace.tool_messages))


class WordTaskset(vf.Taskset[WordTask, vf.TasksetConfig]):
    def load(self) -> Iterator[WordTask]:
        for index in range(3):
            data = WordData(prompt=f"What is {index}?", answer=str(40 + index), name=f"w{index}")
            yield WordTask(data, self.config.task)


__all__ = ["WordTaskset"]
