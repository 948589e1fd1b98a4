"""A judgement as Markdown, such as for the comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator

from align.judge.formats.rows import COLUMNS, passed_line, rows_of
from align.judge.judgement import Judgement, LostItem

SHOWN = 3
"""Most items shown of each suite that failed."""
LONGEST = 400
"""Characters shown of a prompt or an answer."""


def markdown_of(judgement: Judgement) -> str:
    """Write the verdict, the table of its checks, the reasons, and some of the items that were lost."""
    mark = {0: "✅", 3: "⚠️"}.get(judgement.exit_code, "❌")
    lines = [f"## {mark} {_plain(judgement.headline)}", "", *_table(judgement), ""]
    lines += [f"- {_plain(reason)}" for reason in judgement.reasons]
    lines += [f"- {_plain(line)}" for line in judgement.figures]
    lines += [f"- {line}" for line in (passed_line(judgement), judgement.level) if line]
    lines += [f"- {_plain(note)}" for note in judgement.notes]
    lines += list(_lost(list(judgement.lost(SHOWN))))
    ids = f"`{judgement.candidate.id[:16]}` against `{judgement.incumbent.id[:16]}`"
    return "\n".join([*lines, "", f"Contents: {ids}", ""])


def _table(judgement: Judgement) -> Iterator[str]:
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'|'.join('---' if n in (0, len(COLUMNS) - 1) else '--:' for n in range(len(COLUMNS)))}|"
    for row in rows_of(judgement):
        yield f"| {' | '.join(map(_plain, row.cells))} |"


def _lost(items: list[LostItem]) -> Iterator[str]:
    shown = [item for item in items if item.prompt]
    if not shown:
        return
    yield from ("", "<details><summary>Items that the candidate lost</summary>", "")
    for item in shown:
        yield from (
            f"**{_plain(item.suite)}**, item `{item.item}`: {item.before:g} -> {item.after:g}",
            "",
            *_block("prompt", item.prompt),
            *_block("incumbent", item.incumbent_answer),
            *_block("candidate", item.candidate_answer),
        )
    yield "</details>"


def _block(title: str, text: str) -> Iterator[str]:
    """Yield a text that no Markdown in it can leave: the fence is longer than any run of its sign."""
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    longest = max((len(run) for run in re.findall(r"`+", cut)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (f"{title}:", "", f"{fence}text", cut, fence, "")


def _plain(text: str) -> str:
    """Escape what a table or a line of Markdown would read as markup.

    >>> _plain("a|b <c> *d*")
    'a\\\\|b &lt;c&gt; \\\\*d\\\\*'
    """
    escaped = re.sub(r"([\\`*|\[\]])", r"\\\1", text.replace("\n", " "))
    return escaped.replace("<", "&lt;").replace(">", "&gt;")
