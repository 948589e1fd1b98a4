"""Tokenizer of the tiny world: a Hugging Face fast tokenizer with exactly the words of the world.

One word is one token, so a prompt has eight tokens and an answer six, its end included, and
`decode(answer_ids, skip_special_tokens=True)` returns the answer text unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from align.data.demo.world import BLANK, EQUALS, GENERAL, OPS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"

WORDS: tuple[str, ...] = (
    *(PAD, EOS, UNK),
    *map(str, range(10)),
    *OPS,
    *GENERAL,
    *(BLANK, EQUALS),
)
"""Vocabulary; the index of a word is its token id."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of the tiny world, without training or download."""
    from transformers import PreTrainedTokenizerFast

    words = WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=UNK)
    backend = Tokenizer(words)
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )
