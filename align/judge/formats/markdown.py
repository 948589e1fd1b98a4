"""A judgement as Markdown, such as for the comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator

from align.judge.formats.rows import COLUMNS, passed_line, rows_of
from align.judge.judgement import Judgement

SHOWN = 3
"""Most items shown of each suite that failed."""
LONGEST = 400
"""Characters shown of a prompt or an answer."""


def markdown_of(judgement: Judgement) -> str:
    """Write the verdict, the table of its checks, the reasons, and some of the items that were lost."""
    mark = {0: "✅", 3: "⚠️"}.get(judgement.exit_code, "❌")
    lines = [f"## {mark} {_plain(judgement.headline)}", "", f"| {' | '.join(COLUMNS)} |"]
    # Words at both ends, and numbers between them.
    lines += [f"|---|{'--:|' * (len(COLUMNS) - 2)}---|"]
    lines += [f"| {' | '.join(map(_plain, row.cells))} |" for row in rows_of(judgement)]
    lines += [""]
    lines += [f"- {_plain(reason)}" for reason in judgement.reasons]
    lines += [f"- {_plain(line)}" for line in judgement.figures]
    lines += [f"- {_plain(line)}" for line in (passed_line(judgement), judgement.level) if line]
    lines += [f"- {_plain(note)}" for note in judgement.notes]
    if lost := [item for item in judgement.lost(SHOWN) if item.prompt]:
        lines += ["", "<details><summary>Items that the candidate lost</summary>", ""]
        for item in lost:
            lines += [
                f"**{_plain(item.suite)}**, item {_plain(item.item)}: {item.before:g} -> {item.after:g}",
                "",
                *_block("prompt", item.prompt),
                *_block("incumbent", item.incumbent_answer),
                *_block("candidate", item.candidate_answer),
            ]
        lines += ["</details>"]
    ids = f"`{judgement.candidate.id[:16]}` against `{judgement.incumbent.id[:16]}`"
    return "\n".join([*lines, "", f"Contents: {ids}", ""])


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
