"""Checks that a teacher or critic shares with the policy what every token id means."""

from __future__ import annotations

import json
from pathlib import Path

from align.learner.folder.checks import check_companion_folder
from rollouts.errors import UserError


def check_companion(policy_folder: Path, folder: Path, *, what: str, where: str) -> None:
    """Raise `UserError` unless a folder holds a whole model that has the policy's tokens.

    Its weights are checked as a base's are, for as far as it is not sampled from.

    Args:
        what: the model's part, such as ``teacher``.
        where: the key that names its folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no model folder {str(folder)!r}",
            where=where,
            remedy=f"give the folder of the {what} as written by save_pretrained",
        )
    try:
        check_companion_folder(folder)
    except UserError as error:
        raise UserError(
            f"the {what} in {str(folder)!r}: {error.what}",
            where=where,
            cause=error.cause,
            remedy=error.remedy,
        ) from error
    expected, tokens = tokens_of(policy_folder, where), tokens_of(folder, where)
    if differing := sorted(expected.items() ^ tokens.items()):
        token, number = differing[0]
        raise UserError(
            f"the {what} has another tokenizer than the policy: only one of them has the token "
            f"{token!r} as {number}",
            where=where,
            cause="the two are not from one model family",
            remedy=f"choose a {what} with the policy's tokenizer",
        )


def tokens_of(folder: Path, where: str) -> dict[str, int]:
    """Return the id of every token of a folder's tokenizer.

    The file's bytes would say less: each version of its library writes the same tokenizer differently, and
    how ids become text again does not change what is learned.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"there is no tokenizer.json in {str(folder)!r}",
            where=where,
            cause="without it nobody can tell whether two models mean the same by a token id",
            remedy="save the model's fast tokenizer into the folder with save_pretrained",
        )
    content = json.loads(file.read_text(encoding="utf-8"))
    listed = content["model"]["vocab"]
    tokens = dict(listed) if isinstance(listed, dict) else {t: i for i, (t, _) in enumerate(listed)}
    return tokens | {added["content"]: added["id"] for added in content.get("added_tokens", [])}
