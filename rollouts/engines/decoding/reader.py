"""A causal language model that reads rows of tokens and returns logits only where they are wanted.

Shapes: ``B`` rows, ``T`` positions, ``D`` hidden numbers, ``V`` tokens of the vocabulary, ``N`` positions
of all rows together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from rollouts.engines.decoding.gated import AdapterBank
from rollouts.types import Mix

LOGITS_BYTES = 128 << 20
"""Most bytes that the logits of one pass take, in float32."""
TOKENS_PER_PASS = 8192
"""Most positions that one pass of scoring reads; a longer row is read alone."""


class ModelReader:
    """Logits and logprobs of a transformers model.

    Args:
        model: a causal language model in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device: torch.device = model.device
        self.vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
        self._head: Any = model.get_output_embeddings()
        self._decoder: Any = model.get_decoder() if self._head is not None else None
        if self._decoder is not None and not self._head_is_last():
            self._decoder = None
        self._known = set(signature((self._decoder or model).forward).parameters)
        self.bank: AdapterBank | None = None
        """Adapters over the model; None: it reads every row alike."""

    @property
    def rows_per_pass(self) -> int:
        """Rows whose next tokens' logits fit the bound together."""
        return max(1, LOGITS_BYTES // (4 * self.vocabulary))

    @torch.inference_mode()
    def next_logits(
        self,
        tokens_BT: Tensor,
        last_B: Tensor | None = None,
        *,
        mixes: Sequence[Mix] = (),
        **inputs: Any,
    ) -> Any:
        """Read rows and return the logits after position ``last_B`` of each, and the model's cache.

        Args:
            last_B: position of each row's last token; None: the last column.
            mixes: adapters of the bank that each row is read under; empty: the base reads all.
        """
        self._open_gates(mixes)
        rows_B = torch.arange(len(tokens_BT), device=self.device)
        columns_B = -1 if last_B is None else last_B
        if self._decoder is not None:
            outputs = self._decoder(input_ids=tokens_BT, **self._accepted(inputs))
            logits_BV = self._head(outputs.last_hidden_state[rows_B, columns_B])
        else:
            if last_B is None:
                inputs["logits_to_keep"] = 1
            outputs = self.model(input_ids=tokens_BT, **self._accepted(inputs))
            logits_BV = outputs.logits[rows_B, columns_B]
        return logits_BV[:, : self.vocabulary], getattr(outputs, "past_key_values", None)

    def _open_gates(self, mixes: Sequence[Mix]) -> None:
        if self.bank is not None:
            self.bank.open_gates(mixes)

    @torch.inference_mode()
    def logprobs(
        self, rows: Sequence[tuple[Sequence[int], int]], mixes: Sequence[Mix] = ()
    ) -> list[tuple[float, ...]]:
        """Return the logprobs, in nats at temperature 1, of each row's tokens from a position on.

        Args:
            rows: tokens, and how many of the first are not scored; at least one.
            mixes: adapters of the bank that each row is read under; empty: the base reads all.
        """
        results: list[tuple[float, ...]] = [()] * len(rows)
        for indices in self._passes([len(tokens) for tokens, _ in rows]):
            batch = [rows[index] for index in indices]
            self._open_gates([mixes[index] for index in indices] if mixes else ())
            values = self._pass(batch).tolist()
            for index, (tokens, start) in zip(indices, batch, strict=True):
                scored = len(tokens) - start
                results[index], values = tuple(values[:scored]), values[scored:]
        return results

    def _passes(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield indices of rows that are read together, of similar lengths."""
        limit = TOKENS_PER_PASS
        if self._decoder is None:  # Logits of every position come at once.
            limit = min(limit, LOGITS_BYTES // (4 * self.vocabulary))
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
            if batch and (len(batch) + 1) * lengths[index] > limit:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _pass(self, batch: Sequence[tuple[Sequence[int], int]]) -> Tensor:
        """Read rows with padding on the right, which no earlier position sees; logprobs of all, ``N``."""
        tokens_BT = right_padded([tokens for tokens, _ in batch], self.device)
        spans = [(b, start, len(tokens)) for b, (tokens, start) in enumerate(batch)]
        rows_N = torch.tensor([b for b, start, end in spans for _ in range(start, end)])
        ends_N = torch.tensor([t for _, start, end in spans for t in range(start, end)])
        if not len(rows_N):
            return torch.zeros(0)
        rows_N, ends_N = rows_N.to(self.device), ends_N.to(self.device)
        targets_N = tokens_BT[rows_N, ends_N]
        if self._decoder is None:
            outputs = self.model(input_ids=tokens_BT, **self._accepted({}))
            return _taken(outputs.logits[rows_N, ends_N - 1], targets_N, self.vocabulary)
        outputs = self._decoder(input_ids=tokens_BT, **self._accepted({}))
        hidden_ND = outputs.last_hidden_state[rows_N, ends_N - 1]
        limit = self.rows_per_pass
        return torch.cat(
            [
                _taken(
                    self._head(hidden_ND[n : n + limit]), targets_N[n : n + limit], self.vocabulary
                )
                for n in range(0, len(targets_N), limit)
            ]
        )

    def _accepted(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs that the architecture knows: not every one takes positions."""
        wanted = {"use_cache": False, **inputs}
        return {name: value for name, value in wanted.items() if name in self._known}

    @torch.inference_mode()
    def _head_is_last(self) -> bool:
        """Tell if the logits are the output head's, neither scaled nor capped after it."""
        tokens_BT = torch.arange(4, device=self.device)[None] % self.vocabulary
        whole = self.model(input_ids=tokens_BT, use_cache=False).logits.float()
        try:
            hidden = self._decoder(input_ids=tokens_BT, use_cache=False).last_hidden_state
            short = self._head(hidden).float()
        except (AttributeError, RuntimeError, TypeError):
            return False  # The head wants another size, or the decoder is the model itself.
        return whole.shape == short.shape and bool(torch.allclose(whole, short, atol=1e-3))


def right_padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Put rows of tokens into one tensor, ``B, T``, with zeros after their ends."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)


def _taken(logits_NV: Tensor, targets_N: Tensor, vocabulary: int) -> Tensor:
    """Return the logprobs of some tokens; a head may have more rows than there are tokens."""
    logits_NV = logits_NV[:, :vocabulary].float()
    return logits_NV.gather(-1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
