"""Small tokenizers with chat templates: one word is one token, and every kind of template trouble."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
WORDS = [
    *SPECIAL,
    "user",
    "assistant",
    "system",
    "be",
    "brief",
    "a",
    "b",
    "c",
    "d",
    "[no]",
    "[yes]",
]
IDS = {word: index for index, word in enumerate(WORDS)}

IM = (
    "{%- for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
"""ChatML: a turn ends with <|im_end|> and a line break."""


def build(
    chat: str | None = IM,
    *,
    eos: str | None = "<|im_end|>",
    bos: bool = False,
    pad: str | None = None,
) -> PreTrainedTokenizerFast:
    """A tokenizer; with ``bos`` it puts <s> in front of a text."""
    backend = Tokenizer(WordLevel(IDS, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    if bos:
        backend.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", IDS["<s>"])]
        )
    named = {"bos_token": "<s>", "eos_token": eos, "pad_token": pad}
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        **{name: token for name, token in named.items() if token},
    )
    made.chat_template = chat
    return made


def ids(text: str) -> tuple[int, ...]:
    """Token ids of words."""
    return tuple(IDS[word] for word in text.split())


def words(token_ids: Any) -> str:
    """Words of token ids."""
    return " ".join(WORDS[token] for token in token_ids)


def save_folder(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    generation: Any = None,
    seed: int = 0,
    head_dim: int = 32,
) -> Path:
    """A whole model folder: a random Llama of these words, the tokenizer, and a generation config."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=1, num_key_value_heads=1, head_dim=head_dim, max_position_embeddings=128,
        tie_word_embeddings=True, initializer_range=0.3, bos_token_id=IDS["<s>"],
        eos_token_id=IDS["<|im_end|>"],
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    (tokenizer or build()).save_pretrained(folder)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
