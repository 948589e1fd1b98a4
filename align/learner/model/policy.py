"""Policy: the model that learns, its outputs at completion tokens, and its weights for others.

A policy has full weights, or a peft adapter over a frozen base (``lora``). `LoraConfig` decides if engines
and snapshots get the adapter alone or the plain model that computes the same. Earlier snapshots are not
here: `ReferenceModels` has them, and puts adapters over the same base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from align.algorithms.rows import Row
from align.config.campaign import PolicyConfig
from align.learner.bank.policy_bank import PolicyBank
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
from align.learner.model.loading import (
    convert_weights,
    load_mapped,
    load_model,
    read_weights,
    write_model,
)
from align.learner.model.mapping import stored_form
from align.learner.model.stored_update import stored_tensors, with_updates
from align.learner.packing import hidden_states, packs
from align.learner.ranks.parts import write_parts
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
"""Lock for passes over padded rows."""
EAGER_IN_BFLOAT16 = 256
"""Longest padded row, in tokens, whose attention a model writes out itself in bfloat16 on a CPU."""


def completion_outputs(
    model: Any, micro: MicroBatch, *, dtype: torch.dtype, temperature: float, chunk: int = CHUNK
) -> Outputs:
    """Run the decoder over all tokens; the output head will run at the completion positions only.

    Matrix products are computed in ``dtype``, whatever the precision of the weights.
    """
    causal = causal_of(model)
    device = micro.tokens_BT.device
    # Autocast would share its cache of weights between threads, some of them without gradients.
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
        if packs(causal):
            hidden_ND = hidden_states(decoder_of(causal), micro.packing)
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
    """Return the hidden states of padded rows, with the faster attention kernel for their width.

    In bfloat16 on CPU the fused kernel's backward pass is several times slower than plain products on short
    rows; in float32 the fused kernel is faster.
    """
    on_cpu, width = micro.tokens_BT.device.type == "cpu", micro.tokens_BT.shape[1]
    plain = on_cpu and dtype == torch.bfloat16 and width <= EAGER_IN_BFLOAT16
    fused = getattr(model, "_supports_sdpa", False)
    chosen = "eager" if plain or not fused else "sdpa"
    # The kernel is a setting of the model, which passes that run side by side may not change.
    with PADDED:
        if model.config._attn_implementation != chosen:
            model.set_attn_implementation(chosen)
        hidden_BTD: Tensor = decoder_of(model)(
            input_ids=micro.tokens_BT, use_cache=False
        ).last_hidden_state
    return hidden_BTD.flatten(0, 1)[micro.where_N]


class Policy:
    """Model that learns, on one rank of the learner."""

    def __init__(
        self, base: Path, config: PolicyConfig, *, device: torch.device, ranks: Ranks = SOLO
    ) -> None:
        self.config, self.device, self._ranks = config, device, ranks
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self._sharded = ranks.size > 1 and config.lora is None
        self._served: list[Path] = []
        self._under: Path | None = base
        """Folder with the weights under the adapter; None if no folder has them."""
        self._stored: dict[str, StoredTensor] | None = None
        """Places of these weights in the folder's files; None before they are looked up."""
        # A model that will be sharded may be too large for one device, and for the host's memory.
        self._home = torch.device("cpu") if self._sharded else device
        # Master weights are in float32, since in bfloat16 a step of 1e-5 would be lost to rounding.
        self.model: Any = (
            load_mapped(base, config)
            if self._sharded
            else load_model(base, config, self._home, torch.float32)
        )
        self.snapshot_dtype: torch.dtype = getattr(torch, stored_dtype(base, config))
        self._check_head()
        # transformers' own switch acts only in training mode, which would also turn dropout on.
        for layer in decoder_layers(self.model) if config.gradient_checkpointing else ():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if config.adapter is not None:
            self.model = with_adapter(self.model, config.adapter)
        elif self._sharded:
            shard(self.model, device)
        self.bank: PolicyBank | None = None
        if config.bank is not None:
            # Rows keep to themselves, since each has adapters of its own.
            causal_of(self.model).set_attn_implementation("sdpa")
            self.bank = PolicyBank(self.model, base, config.bank)

    def load(self, folder: Path) -> None:
        """Load the weights of a snapshot.

        Args:
            folder: a whole model; or if snapshots are adapters or banks, such a folder or the base's.
        """
        if self.bank is not None:
            self.bank.load(folder)
            return
        if self.config.snapshot_kind == "adapter":
            load_adapter(self.model, folder)
            return
        self._load_base(read_weights(causal_of(self.model), folder, mapped=self._sharded))
        self._under, self._stored = folder, None
        if self.config.lora is not None:
            reset_adapter(self.model)

    def blend(self, start: Path, end: Path, share: float) -> None:
        """Load the weights that are ``share`` of the way from one snapshot to another; see `blended`."""
        if share in (0.0, 1.0):
            self.load(end if share else start)
        else:
            self.take(blended(start, end, share), end.name)

    def take(self, tensors: Iterable[tuple[str, Tensor]], name: str) -> None:
        """Load weights that no snapshot has.

        Args:
            tensors: by the names of a snapshot's files: of a whole model, or of an adapter.
            name: name of the weights in errors.
        """
        if self.config.snapshot_kind == "adapter":
            set_adapter(self.model, dict(tensors))
            return
        self._load_base(convert_weights(causal_of(self.model), tensors, name))
        self._under = None
        if self.config.lora is not None:
            reset_adapter(self.model)

    def open_gates(self, rows: Sequence[Row]) -> None:
        """Let the adapters of a bank that answer the rows act in the passes to come; see `PolicyBank`."""
        if self.bank is not None:
            self.bank.open_gates(rows)

    @property
    def text_config(self) -> Any:
        """Config of the language model, which may be a part of a nested config."""
        return causal_of(self.model).config.get_text_config()

    @property
    def ranks(self) -> Ranks:
        """This rank of the learner, among the others."""
        return self._ranks

    @property
    def sharded(self) -> bool:
        """True if every rank has a part of the weights; False if each has all of them."""
        return self._sharded

    @property
    def packs(self) -> bool:
        """True if the model reads rows without padding."""
        return packs(causal_of(self.model))

    def passing(self, *, learns: bool) -> AbstractContextManager[None]:
        """Return the context of one pass, in which the adapter's dropout is on only if the pass learns.

        Args:
            learns: the pass has a gradient; its backward pass must be in the context, too.
        """
        return dropout(self.model, active=learns)

    def parameters(self) -> list[nn.Parameter]:
        """List the trained parameters."""
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name; this rank's part if weights are sharded."""
        drop_gathered(self.model)
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def weights(self, version: str, scratch: Path) -> WeightUpdate:
        """Return the current weights for engines: tensors, or a new folder if engines serve adapters.

        All ranks must call this; with several, only the first gets the weights. For a merged adapter the
        tensors are places in the base's files with the update to add.
        """
        if self.config.serves_adapters:
            folder = scratch / version.replace("/", "-")
            update = WeightUpdate(version=version, adapter=str(folder))
            if self.bank is None:
                self.save(folder)
            else:
                update = self.bank.update(version, folder)
            # Engines use the last adapter until they have the new one; older ones are not read again.
            if folder not in self._served:
                self._served.append(folder)
            if self._ranks.rank == 0 and len(self._served) > 2:
                rmtree(self._served.pop(0), ignore_errors=True)
            return update
        if self.config.lora is not None and (stored := self._stored_weights()) is not None:
            return WeightUpdate(version=version, tensors=stored)
        drop_gathered(self.model)
        if self._sharded:
            tensors = self._gathered(dict(self.model.named_parameters()))
        else:
            tensors = merged(self.model)
        # Ranks other than the first have no tensors to convert.
        converted = stored_form(causal_of(self.model), tensors) if tensors else tensors
        return WeightUpdate(version=version, tensors=converted)

    def _stored_weights(self) -> dict[str, StoredTensor] | None:
        """Return stored tensors with their updates; None if the files have the weights in another form."""
        if self._under is None:
            return None
        if self._stored is None:
            self._stored = stored_tensors(self.model, self._under)
        if self._stored is None:
            self._under = None
            return None
        return with_updates(self._stored, self.model)

    def save(self, folder: Path) -> None:
        """Write the snapshot's safetensors and configs: a whole model, or the adapter alone.

        All ranks must call this; the first writes, and of sharded weights each a part.
        """
        if self._sharded:
            drop_gathered(self.model)
            write_parts(self.model, folder, self._ranks, self.snapshot_dtype)
        if self._sharded or self._ranks.rank > 0:
            return
        state = None
        if self.bank is not None:
            self.bank.save(folder)
            return
        if self.config.snapshot_kind == "adapter":
            save_adapter(self.model, folder)
            return
        if self.config.lora is not None:
            state = merged(self.model)
        write_model(causal_of(self.model), folder, state, self.snapshot_dtype)

    def _load_base(self, tensors: Mapping[str, Tensor]) -> None:
        """Load full weights, under the adapter if there is one.

        Args:
            tensors: weights by the names of the plain model in memory.
        """
        drop_gathered(self.model)
        causal, keys = causal_of(self.model), base_keys(self.model)
        present = causal.state_dict()
        with torch.no_grad():
            for name, full in tensors.items():
                like = present[keys[name]]
                like.copy_(part_like(full.to(self._home), like))

    def _gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return gathered(tensors.items(), keep=self._ranks.rank == 0)

    def _check_head(self) -> None:
        """Check that decoder and output head, called one after another, give the model's own logits.

        A model that scales or caps its logits after the head would be trained on other numbers than
        engines sample from.

        Raises:
            UserError: the logits differ.
        """
        tokens_BT = (
            torch.arange(4, device=self._home)[None]
            % self.model.config.get_text_config().vocab_size
        )
        # Weights that stay in bfloat16 files meet vectors in float32 here.
        narrow = next((p.dtype for p in self.model.parameters() if p.ndim > 1), torch.float32)
        with (
            torch.no_grad(),
            torch.autocast(self._home.type, torch.bfloat16, enabled=narrow != torch.float32),
        ):
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
