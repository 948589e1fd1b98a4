"""Small models with a vocabulary of words, as the tiny world and the scenarios have: what they share.

One word is one token, so `decode(answer_ids, skip_special_tokens=True)` returns an answer unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
"""Words that a vocabulary begins with."""


def word_tokenizer(
    words: Sequence[str], context: int, template: str | None = None
) -> PreTrainedTokenizerFast:
    """Build a tokenizer that has one token for every word, without training or download.

    Args:
        words: vocabulary; the index of a word is its token id.
        context: most tokens of a sequence.
        template: chat template; None: the model reads plain prompts.
    """
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """Return a step's share of the peak learning rate: a linear warm-up, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
