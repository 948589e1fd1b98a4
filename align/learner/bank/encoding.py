"""Encoder of a bank's prompts, over a base that is in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import ceil
from pathlib import Path
from typing import Any

from torch import Tensor

from align.bank.encoder import PolicyEncoder, PromptEncoding, SentenceEncoder, states_after
from align.bank.folder import weights_hash
from align.config.policy import BankConfig
from align.learner.ranks.sharding import decoder_layers, decoder_of
from rollouts.errors import UserError

DEPTHS = {"root": 6, "none": 3}
"""Parts of the layers, of which the first is run where no layer is named, by the scale of its states."""


def encoder_of(
    config: BankConfig,
    model: Any,
    base: Path,
    *,
    resting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> PromptEncoding:
    """Build the encoder that a bank's settings name.

    Args:
        model: base as a causal language model; adapters may lie over it.
        base: folder of the base.
        resting: makes a context in which no adapter acts.

    Raises:
        UserError: the encoder cannot be used, or groups do not divide its width.
    """
    if config.encoder is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base)
        folder = Path(config.encoder).expanduser()
        encoder: PromptEncoding = SentenceEncoder(folder, tokenizer.decode)
    else:
        layers = decoder_layers(model)
        if not layers:
            raise UserError(
                f"the layers of {type(model).__name__} cannot be told apart, so it encodes no prompts",
                where="policy.bank.encoder",
                remedy="name a folder of sentence-transformers as policy.bank.encoder",
            )
        number = config.layer or ceil(len(layers) / DEPTHS[config.scale])

        def states(tokens_1T: Tensor) -> Tensor:
            with resting():
                return states_after(
                    decoder_of(model), layers[number - 1], tokens_1T.to(model.device)
                )

        width = int(model.config.get_text_config().hidden_size)
        encoder = PolicyEncoder(states, weights_hash(base), width, number, config.scale)
    if encoder.identity.width % config.groups:
        raise UserError(
            f"the encoder gives {encoder.identity.width} numbers, which {config.groups} groups do not "
            "divide",
            where="policy.bank.groups",
            remedy=f"set groups to a divisor of {encoder.identity.width}",
        )
    return encoder
