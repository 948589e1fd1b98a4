"""Vocabulary of the tiny world: a prompt has eight tokens and an answer six, its end included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.data.demo.world import BLANK, EQUALS, GENERAL, OPS
from align.data.word_models import SPECIAL, word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS: tuple[str, ...] = (*SPECIAL, *map(str, range(10)), *OPS, *GENERAL, BLANK, EQUALS)
"""Vocabulary; the index of a word is its token id."""
CONTEXT = 64
"""Most tokens that the model reads."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of the tiny world."""
    return word_tokenizer(WORDS, CONTEXT)
