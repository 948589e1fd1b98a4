"""Frozen encoders of prompts: the policy's base by default, or a folder of sentence-transformers.

An encoder never changes during a campaign: keys of early rounds would lose their meaning. Its identity
stands in every bank. Each prompt is encoded on its own, so its query, and with it every later choice, is
the same whatever it is asked beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from align.bank.folder import check_sentence_encoder, weights_hash
from rollouts.types import PromptIds


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderIdentity:
    """Identity of an encoder, by the bytes of its weights."""

    kind: str
    """``policy``: mean-pooled hidden states of the base; ``sentences``: a sentence-transformers folder."""
    sha256: str
    """Hash of the folder's weights."""
    width: int
    """Length of a query."""
    layer: int | None = None
    """Layer of the base after which hidden states are taken; None for a folder's own output."""
    scale: str = "none"
    """Scaling of the numbers of a query; banks that were written before there was one have none."""

    @property
    def label(self) -> str:
        """Words that messages name the encoder by."""
        layer = "" if self.layer is None else f", layer {self.layer}"
        scale = "" if self.scale == "none" else f", scale {self.scale}"
        return f"{self.kind} {self.sha256[:12]}{layer}{scale}"


class PromptEncoding(Protocol):
    """Map from the tokens of a prompt to a vector."""

    @property
    def identity(self) -> EncoderIdentity:
        """Identity that banks state."""
        ...

    def encode(self, prompts: Sequence[PromptIds]) -> Tensor:
        """Return the queries of prompts, ``B, C``, in float32 on the CPU."""
        ...


class PolicyEncoder:
    """Mean over a prompt's positions of the base's hidden states.

    A few features of a language model are so much larger than all others that cosines see them alone. With
    the scale ``root`` each number of the mean becomes ``sign(x) sqrt(|x|)`` (power normalisation: Perronnin
    et al. 2010, Improving the Fisher kernel for large-scale image classification, section 3.1).

    Args:
        states: hidden states, ``1, T, D``, of one prompt's tokens, ``1, T``, under the base alone.
        sha256: hash of the base's weights.
        layer: number of the layer after which they are taken, from 1.
        scale: ``root`` or ``none``.
    """

    def __init__(
        self,
        states: Callable[[Tensor], Tensor],
        sha256: str,
        width: int,
        layer: int,
        scale: str = "none",
    ) -> None:
        self._states = states
        self.identity = EncoderIdentity(
            kind="policy", sha256=sha256, width=width, layer=layer, scale=scale
        )

    @torch.no_grad()
    def encode(self, prompts: Sequence[PromptIds]) -> Tensor:
        """Return the queries of prompts; see `PromptEncoding`."""
        means_BC = torch.stack(
            [self._states(torch.tensor([prompt]))[0].float().mean(0).cpu() for prompt in prompts]
        )
        return signed_root(means_BC) if self.identity.scale == "root" else means_BC


def signed_root(vectors_BC: Tensor) -> Tensor:
    """Return the square root of each number's size, with its sign.

    >>> signed_root(torch.tensor([[-9.0, 0.0, 0.25]])).tolist()
    [[-3.0, 0.0, 0.5]]
    """
    return vectors_BC.sign() * vectors_BC.abs().sqrt()


class SentenceEncoder:
    """Encoder of a folder of sentence-transformers, which reads prompts as text.

    Args:
        decode: gives the text of a prompt's tokens.

    Raises:
        UserError: the package or the folder is missing.
    """

    def __init__(self, folder: Path, decode: Callable[[Sequence[int]], str]) -> None:
        check_sentence_encoder(folder)
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

        self._decode = decode
        self._model: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        width = int(self._model.get_sentence_embedding_dimension())
        self.identity = EncoderIdentity(kind="sentences", sha256=weights_hash(folder), width=width)

    def encode(self, prompts: Sequence[PromptIds]) -> Tensor:
        """Return the queries of prompts; see `PromptEncoding`."""
        return torch.stack([self.vector(self._decode(prompt)) for prompt in prompts])

    @torch.no_grad()
    def vector(self, text: str) -> Tensor:
        """Return the vector of a text, in float32 on the CPU."""
        vector: Tensor = self._model.encode(text, convert_to_tensor=True)
        return vector.float().cpu()


class _Reached(Exception):
    """The layer whose states are wanted; the layers above it need not run."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def states_after(decoder: Callable[..., Any], layer: Any, tokens_1T: Tensor) -> Tensor:
    """Return the hidden states after one layer of a decoder, ``1, T, D``; later layers do not run."""

    def stop(module: Any, inputs: Any, output: Any) -> None:
        raise _Reached(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(stop)
    try:
        decoder(input_ids=tokens_1T, use_cache=False)
    except _Reached as reached:
        return reached.states
    finally:
        handle.remove()
    raise RuntimeError("the decoder did not run the layer whose states are wanted")
