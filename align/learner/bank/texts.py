"""Vectors of texts for a dense index of documents, by an encoder that never changes during a campaign."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from align.bank.encoder import EncoderIdentity, PromptEncoding, SentenceEncoder
from align.config.policy import BankConfig, PolicyConfig
from align.data.base_model import load_tokenizer
from align.data.retrieval.search import Vectors
from align.learner.bank.encoding import encoder_of

QUESTIONS = 4096
"""Questions whose vectors are kept; a policy that searches asks ever new ones."""


class TextEmbedder:
    """Encoder of texts whose vectors have unit length; see `align.data.retrieval.search.Embedder`.

    Each text is encoded on its own.

    Args:
        encode: gives the vector of a text.
        identity: encoder behind it.
    """

    def __init__(self, encode: Callable[[str], Tensor], identity: EncoderIdentity) -> None:
        self._encode, self._identity = encode, identity
        self._known: dict[str, Vectors] = {}
        self._asked: OrderedDict[str, Vectors] = OrderedDict()

    @property
    def id(self) -> str:
        """Words that tell the encoder from any other: its kind, weights and layer."""
        layer = "" if self._identity.layer is None else f"/{self._identity.layer}"
        return f"{self._identity.kind}/{self._identity.sha256}{layer}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors of documents, ``N, C``."""
        for text in texts:
            if text not in self._known:
                self._known[text] = self._encoded(text)
        rows = [self._known[text] for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self._identity.width), dtype=np.float32)

    def vector(self, question: str) -> Vectors:
        """Return the vector of a question, ``C``."""
        vector = self._known.get(question)
        if vector is None:
            vector = self._asked.pop(question, None)
            vector = self._encoded(question) if vector is None else vector
            self._asked[question] = vector
            while len(self._asked) > QUESTIONS:
                self._asked.popitem(last=False)
        return vector

    def keep(self, vectors: Mapping[str, Vectors]) -> None:
        """Take vectors that the same encoder gave before."""
        self._known.update(vectors)

    def _encoded(self, text: str) -> Vectors:
        vector: Vectors = normalize(self._encode(text).float().cpu(), dim=0).numpy()
        return vector


def embedder_of(policy: PolicyConfig, base: Path) -> TextEmbedder | None:
    """Build the encoder of a policy's dense index; None for one that is searched by words.

    The policy's own hidden states are those of its base, of which a copy stays in memory.

    Args:
        base: folder of the base.

    Raises:
        UserError: the encoder cannot be used.
    """
    config = policy.retrieval
    if config is None or config.method != "dense":
        return None
    tokenizer = load_tokenizer(base, policy)
    if config.encoder is not None:
        sentences = SentenceEncoder(Path(config.encoder).expanduser(), tokenizer.decode)
        return TextEmbedder(sentences.vector, sentences.identity)
    from rollouts.engines.decoding.weights import load_model

    model = load_model(
        str(base),
        torch.float32,
        torch.device("cpu"),
        trust_remote_code=policy.trust_remote_code,
    )
    states = BankConfig(layer=config.layer, groups=1, scale="none")
    encoder: PromptEncoding = encoder_of(states, model, base)
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0)) or None

    def encode(text: str) -> Tensor:
        ids = tuple(tokenizer(text, verbose=False).input_ids)[:longest]
        return encoder.encode([ids])[0] if ids else torch.zeros(encoder.identity.width)

    return TextEmbedder(encode, encoder.identity)
