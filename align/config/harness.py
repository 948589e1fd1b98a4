"""A task of the lm-evaluation-harness as a suite, as a campaign file says it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from align.settings import InputPath, Settings


class HarnessConfig(Settings):
    """Which task of a local folder, on which data, and which of its numbers counts."""

    task: Annotated[str, Field(min_length=1)]
    """Name of one task, as ``task:`` in its YAML file."""
    include_path: Annotated[InputPath, Field(min_length=1)] | None = None
    """Folder with the task files; those below it are found too, and nothing is looked up elsewhere. None:
    the tasks that come with Keel."""
    data_files: dict[str, InputPath | tuple[InputPath, ...]] = Field(default_factory=dict)
    """Local files by split, in place of the data set that the task names: ``{test: gsm8k.jsonl}``."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Worked examples before every item; None: as the task says."""
    metric: str | None = None
    """The metric whose value per item is compared; None: the task's first."""
    filter: str | None = None
    """The filter of the answers that it is taken after; None: the task's first."""
    chat_template: bool = False
    """Ask in the turns of the model's chat template; without, in plain text."""
    allow_code: bool = False
    """Let the task's files run code, as ``!function`` and ``unsafe_code`` do. Read them first."""
