"""A new reward with a test that passes: what ``keel reward new`` writes."""

from __future__ import annotations

import keyword
import sys
from pathlib import Path

from rollouts.errors import UserError

REWARD = '''"""The reward {name}, for a campaign file:

    rewards:
      - {{name: "{name}.py:{name}", weight: 1.0, options: {{words: 20}}}}

Try it first: keel reward test {name}.py:{name} --data answers.jsonl
"""

from __future__ import annotations

from typing import Any


def {name}(completions: list[Any], words: int = 20, **columns: Any) -> list[float | None]:
    """Share of ``words`` that an answer uses, 1.0 at most. Replace this by what you want more of.

    Args:
        completions: the answers of one batch: texts, or lists of one message for chat prompts.
        words: an option; its value is written in the campaign file.
        columns: prompts, and every other column of the data set, each a list as long as completions.
            Name one as an argument (``answer: list[str]``) to need it.

    Returns:
        One score per completion, in order. None abstains: that answer then teaches nothing.
    """
    return [score(text_of(completion), words) for completion in completions]


def score(text: str, words: int) -> float | None:
    """The score of one answer."""
    if not text.strip():
        return None
    return min(1.0, len(text.split()) / words)


def text_of(completion: Any) -> str:
    """The text of an answer in either form."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
'''

TEST = '''"""Hand-made cases for {name}: run pytest in this folder."""

from __future__ import annotations

from {name} import {name}


def test_more_words_score_higher_up_to_the_limit() -> None:
    assert {name}(["one two", "one two three four five"], words=4) == [0.5, 1.0]


def test_an_empty_answer_abstains() -> None:
    assert {name}(["", "one"], words=4) == [None, 0.25]


def test_chat_and_text_score_the_same() -> None:
    chat = [[{{"role": "assistant", "content": "one two"}}]]
    assert {name}(chat, words=4) == {name}(["one two"], words=4)
'''


def write_skeleton(name: str, folder: Path) -> tuple[Path, Path]:
    """Write ``NAME.py`` and ``test_NAME.py``.

    Raises:
        UserError: the name is none for a module, or a file is there already; nothing is written then.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name in sys.stdlib_module_names:
        raise UserError(
            f"{name!r} cannot name a reward",
            cause="it becomes a module and a function of Python",
            remedy="use letters, digits and underscores, and no name of Python's own",
        )
    files = (folder / f"{name}.py", folder / f"test_{name}.py")
    if not folder.is_dir():
        raise UserError("there is no such folder", where=str(folder))
    for file in files:
        if file.exists():
            raise UserError("the file exists and is left as it is", where=str(file))
    for file, text in zip(files, (REWARD, TEST), strict=True):
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text.format(name=name))
    return files
