"""Tokens that end an answer: one set for engines, examples and the gate.

A model folder names them in two places that often differ: the tokenizer has one ``eos_token``, and
``generation_config.json`` has a list. vLLM and transformers stop at all of them. The chat template may end
a turn with a special token that neither names; a model that learned the template stops there.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollouts.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

GENERATION_CONFIG = "generation_config.json"
_ANSWER = "Keel7answer"
"""Word that no chat template writes by itself."""


def extra_endings(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return token ids that end an answer besides the tokenizer's own end of sequence.

    Those of ``generation_config.json`` come first (of ``config.json`` where there is none, as transformers
    reads them), then what the chat template ends a turn with. Ids that the tokenizer does not have are left
    out: no answer holds one.

    Raises:
        UserError: one of the files is not JSON, or its ``eos_token_id`` is neither a number nor a list.
    """
    ending_ids = [token for token in generation_endings(folder) if token < len(tokenizer)]
    eos_id = tokenizer.eos_token_id
    closing = turn_end(tokenizer, ending_ids if eos_id is None else [eos_id, *ending_ids])
    if closing is not None and closing not in (eos_id, *ending_ids):
        logger.warning(
            "the chat template ends a turn with %s, which neither the tokenizer nor %s names as an end; "
            "it is taken for one",
            tokenizer.convert_ids_to_tokens(closing),
            GENERATION_CONFIG,
        )
        ending_ids.append(closing)
    if eos_id is None and not ending_ids:
        logger.warning(
            "%s: neither the tokenizer (eos_token) nor %s (eos_token_id) names a token that ends an "
            "answer, so answers run to max_tokens and examples of a file teach no end",
            folder,
            GENERATION_CONFIG,
        )
    return tuple(token for token in dict.fromkeys(ending_ids) if token != eos_id)


def generation_endings(folder: Path) -> tuple[int, ...]:
    """Read the ``eos_token_id`` of a model folder as transformers does; empty if it has none."""
    file = folder / GENERATION_CONFIG
    if not file.is_file():
        file = folder / "config.json"
    if not file.is_file():
        return ()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{file.name} is not JSON: {error}", where=str(file), remedy="save the model again"
        ) from error
    config: dict[str, Any] = content if isinstance(content, dict) else {}
    text = config.get("text_config") if file.name == "config.json" else None
    nested = text.get("eos_token_id") if isinstance(text, dict) else None
    value = config.get("eos_token_id", nested)
    ids = [token for token in (value if isinstance(value, list) else [value]) if token is not None]
    if any(isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in ids):
        raise UserError(
            f"eos_token_id is {value!r}, and must be a token id or a list of them",
            where=str(file),
            remedy="write the ids of the tokens that end an answer, such as [2, 32000]",
        )
    return tuple(dict.fromkeys(ids))


def turn_end(tokenizer: PreTrainedTokenizerBase, known_ids: Collection[int] = ()) -> int | None:
    """Return the special token that the chat template ends an answer with; None if it writes none.

    Args:
        known_ids: tokens known to end an answer. Behind an answer the first of these counts, and any other
            special token only where the template writes none of them.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
    try:
        rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # A template may refuse a turn in any way; the prompts will say so.
        return None
    _, answered, behind = rendered.rpartition(_ANSWER)
    special = {
        token.content: token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    if not answered or not special:
        return None
    longest_first = sorted(map(re.escape, filter(None, special)), key=len, reverse=True)
    written = [special[text] for text in re.findall("|".join(longest_first), behind)]
    return next((token for token in written if token in known_ids), next(iter(written), None))
