"""The model that learns: loading, logits where they are needed, weights out.

A policy holds full weights, or a peft adapter over a frozen base (``lora``). Engines and snapshots get what
`LoraConfig` says: the adapter alone, or the plain model that computes the same. Earlier snapshots never
live in here: `ReferenceModels` holds those, and for adapters borrows this base.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from shutil import rmtree
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.algorithms.micro_batch import MicroBatch
from align.algorithms.outputs import CHUNK, Outputs
from align.config.campaign import PolicyConfig
from align.learner.folder.folder import stored_dtype
from align.learner.model.adapter import (
    base_keys,
    causal_of,
    dropout,
    load_adapter,
    merged,
    reset_adapter,
    save_adapter,
    set_adapter,
    with_adapter,
)
from align.learner.model.blend import blended
from align.learner.model.loading import convert_weights, load_model, read_weights, write_model
from align.learner.model.mapping import stored_form
from align.learner.model.stored_update import stored_tensors, with_updates
from align.learner.packing import WRITTEN_OUT, hidden_states, packs
from align.learner.ranks.ranks import SOLO, Ranks
from align.learner.ranks.sharding import (
    decoder_layers,
    decoder_of,
    drop_gathered,
    gathered,
    part_like,
    shard,
)
from rollouts.engines.protocol import WeightUpdate
from rollouts.engines.stored_tensor import StoredTensor
from rollouts.errors import UserError

PADDED = Lock()
"""Held while a model reads padded rows."""


def completion_outputs(
    model: Any, micro: MicroBatch, *, dtype: torch.dtype, temperature: float, chunk: int = CHUNK
) -> Outputs:
    """Run the decoder over everything; the output head will see the completion positions only.

    With ``dtype`` bfloat16 the matrix products are computed in it, whatever the weights are held in.
    """
    causal = causal_of(model)
    device = micro.tokens_BT.device
    # The cache of cast weights is one for all threads, and keeps casts that carry no gradient.
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
        if packs(causal):
            packing = micro.packing
            hidden_ND = hidden_states(decoder_of(causal), packing).index_select(0, packing.where_N)
        else:
            hidden_ND = _padded_states(causal, micro, dtype)
    return Outputs(
        hidden_ND=hidden_ND,
        head=causal.get_output_embeddings(),
        targets_N=micro.targets_N,
        temperature=temperature,
        dtype=dtype,
        vocabulary=causal.config.get_text_config().vocab_size,
        chunk=chunk,
    )


def _padded_states(model: Any, micro: MicroBatch, dtype: torch.dtype) -> Tensor:
    # Passes may run side by side, and the choice is the model's: nobody else may make it meanwhile.
    with PADDED:
        _choose_attention(model, micro.tokens_BT.shape[1], micro.tokens_BT.device, dtype)
        hidden_BTD: Tensor = decoder_of(model)(
            input_ids=micro.tokens_BT, use_cache=False
        ).last_hidden_state
    return hidden_BTD.flatten(0, 1)[micro.where_N]


def _choose_attention(model: Any, width: int, device: torch.device, dtype: torch.dtype) -> None:
    """In bfloat16 on CPU the fused kernel's backward is several times slower than plain products on
    short rows; in float32 it is the quicker of the two."""
    plain = device.type == "cpu" and dtype == torch.bfloat16 and width <= WRITTEN_OUT
    fused = getattr(causal_of(model), "_supports_sdpa", False)
    chosen = "eager" if plain or not fused else "sdpa"
    if model.config._attn_implementation != chosen:
        model.set_attn_implementation(chosen)


class Policy:
    """The trained weights and what an engine or a snapshot needs of them."""

    def __init__(
        self, base: Path, config: PolicyConfig, *, device: torch.device, ranks: Ranks = SOLO
    ) -> None:
        self.config, self.device, self._ranks = config, device, ranks
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self._sharded = ranks.size > 1 and config.lora is None
        self._served: list[Path] = []
        self._under: Path | None = base
        """Folder whose weights lie under the adapter; None: no folder holds them."""
        self._stored: dict[str, StoredTensor] | None = None
        """Places of these weights in the folder's files, once they were looked up."""
        # A model that is dealt out over ranks need not fit one device before.
        self._home = torch.device("cpu") if self._sharded else device
        # Master weights stay in float32: in bfloat16 a step of 1e-5 would be lost to rounding.
        self.model: Any = load_model(base, config, self._home, torch.float32)
        self.snapshot_dtype: torch.dtype = getattr(torch, stored_dtype(base, config))
        self._check_head()
        if config.gradient_checkpointing:
            _recompute_layers(self.model)
        if config.lora is not None:
            self.model = with_adapter(self.model, config.lora)
        elif self._sharded:
            shard(self.model, device)

    def load(self, folder: Path) -> None:
        """Take over the weights of a snapshot: a model folder, or where snapshots are adapters an adapter
        folder, or the base's."""
        if self.config.snapshot_kind == "adapter":
            load_adapter(self.model, folder)
            return
        self._load_base(read_weights(causal_of(self.model), folder))
        self._under, self._stored = folder, None
        if self.config.lora is not None:
            reset_adapter(self.model)

    def blend(self, start: Path, end: Path, share: float) -> None:
        """Take over the weights ``share`` of the way from one snapshot to another; see `blended`."""
        if share in (0.0, 1.0):
            self.load(end if share else start)
        elif self.config.snapshot_kind == "adapter":
            set_adapter(self.model, dict(blended(start, end, share)))
        else:
            points = blended(start, end, share)
            self._load_base(convert_weights(causal_of(self.model), points, end.name))
            self._under = None
            if self.config.lora is not None:
                reset_adapter(self.model)

    @property
    def text_config(self) -> Any:
        """Config of the language model, which in a nested config is a part."""
        return causal_of(self.model).config.get_text_config()

    @property
    def sharded(self) -> bool:
        """True if every rank holds a part of the weights; False if each holds all of them."""
        return self._sharded

    @property
    def packs(self) -> bool:
        """Whether the model reads rows without padding."""
        return packs(causal_of(self.model))

    def passing(self, *, learns: bool) -> AbstractContextManager[None]:
        """Return the modes of one pass: an adapter drops inputs where its policy learns, and nowhere else.

        Args:
            learns: the pass has a gradient, whose backward pass belongs into the block.
        """
        return dropout(self.model, active=learns)

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer updates."""
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """`parameters` by name; of sharded weights this rank's part."""
        drop_gathered(self.model)
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def weights(self, version: str, scratch: Path) -> WeightUpdate:
        """The current weights for an engine: tensors, or a fresh folder where adapters are served. Of
        several ranks the first has them.

        Where an adapter is merged, the tensors name their places in the base's files and what is added.
        """
        if self.config.serves_adapters:
            folder = scratch / version.replace("/", "-")
            self.save(folder)
            # Engines keep the adapter before until they have the new one, and nobody reads older ones.
            if folder not in self._served:
                self._served.append(folder)
            if self._ranks.rank == 0 and len(self._served) > 2:
                rmtree(self._served.pop(0), ignore_errors=True)
            return WeightUpdate(version=version, adapter=str(folder))
        if self.config.lora is not None and (stored := self._stored_weights()) is not None:
            return WeightUpdate(version=version, tensors=stored)
        drop_gathered(self.model)
        if self._sharded:
            named = dict(self.model.named_parameters())
            tensors = self._gathered(named)
        else:
            tensors = merged(self.model)
        # Of several ranks the others hold nothing, and nothing can be made of that.
        own = stored_form(causal_of(self.model), tensors) if tensors else tensors
        return WeightUpdate(version=version, tensors=own)

    def _stored_weights(self) -> dict[str, StoredTensor] | None:
        """Name the stored tensors and their updates; None where files hold the weights in another form."""
        if self._under is None:
            return None
        if self._stored is None:
            self._stored = stored_tensors(self.model, self._under)
        if self._stored is None:
            self._under = None
            return None
        return with_updates(self._stored, self.model)

    def save(self, folder: Path) -> None:
        """Write safetensors and configs: a whole model, or the adapter alone where snapshots are adapters.
        Of several ranks the first writes, and all must call."""
        state = None
        if self._sharded:
            drop_gathered(self.model)
            state = self._gathered(self.model.state_dict(keep_vars=True))
        if self._ranks.rank > 0:
            return
        if self.config.snapshot_kind == "adapter":
            save_adapter(self.model, folder)
            return
        if self.config.lora is not None:
            state = merged(self.model)
        write_model(causal_of(self.model), folder, state, self.snapshot_dtype)

    def _load_base(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over full weights, under the adapter if there is one.

        Args:
            tensors: by the names of the plain model in memory.
        """
        drop_gathered(self.model)
        causal, keys = causal_of(self.model), base_keys(self.model)
        own = causal.state_dict()
        state = {
            keys[name]: part_like(full.to(self._home), own[keys[name]])
            for name, full in tensors.items()
        }
        causal.load_state_dict(state, strict=False)

    def _gathered(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return gathered(named.items(), keep=self._ranks.rank == 0)

    def _check_head(self) -> None:
        """The shortcut through the decoder must give the model's own logits.

        Models that scale or cap their logits after the head would be trained on other numbers than
        the engines sample from; better to say so at the start.
        """
        tokens_BT = (
            torch.arange(4, device=self._home)[None]
            % self.model.config.get_text_config().vocab_size
        )
        with torch.no_grad():
            whole = self.model(input_ids=tokens_BT, use_cache=False).logits.float()
            hidden = self.model.get_decoder()(
                input_ids=tokens_BT, use_cache=False
            ).last_hidden_state
            short = self.model.get_output_embeddings()(hidden).float()
        if not torch.allclose(whole, short, atol=1e-3):
            raise UserError(
                f"{type(self.model).__name__} changes its logits after the output head",
                where="policy.model",
                cause="it scales or caps them, and the learner computes logits without that step",
                remedy="choose a model without logit scaling or soft-capping",
            )


def _recompute_layers(model: Any) -> None:
    """Keep only each layer's input, and run the layer again in the backward pass.

    Not by transformers' own switch: that one acts in training mode only, where dropout acts too.
    """
    for layer in decoder_layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
