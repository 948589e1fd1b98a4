"""Banks under ``keel serve``: a name for each adapter, and ``auto`` that retrieves one by the prompt.

vLLM holds every increment of the bank as a LoRA with a name of its own; the base has another name. Clients
ask for the campaign's name, or ``auto``, and get what their prompt retrieves among all adapters; or for
``NAME/ROUND``, the adapter of one round. The proxy puts the name of the increment in place of theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from align.bank.bank import Bank, read_bank
from align.config.campaign import CampaignConfig
from rollouts.engines.protocol import ADAPTER_CONFIG
from rollouts.engines.vllm_bank import write_increment
from rollouts.errors import TemplateRefusal, UserError
from rollouts.types import Prompt

AUTO = "auto"
"""Model name under which a prompt retrieves its adapter; the campaign's name means the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedBank:
    """Bank of a snapshot, as vLLM is started with it."""

    folder: Path
    """Folder of the bank's snapshot."""
    rank: int
    """Rank of one increment."""
    targets: tuple[str, ...]
    """Names of the layers that adapters change."""
    modules: Mapping[str, Path] = field(default_factory=dict)
    """Folder of each increment that was written for vLLM, by its name there."""


def served_bank(folder: Path, where: str) -> ServedBank:
    """Read what vLLM has to know of a bank.

    Raises:
        SnapshotError: the bank is damaged.
        UserError: it mixes several increments for a prompt, which vLLM cannot.
    """
    bank = read_bank(folder)
    if bank.top_k > 1:
        raise UserError(
            f"the bank mixes {bank.top_k} increments for each prompt, and vLLM serves one adapter for each "
            "request",
            where=where,
            remedy="train the bank with policy.bank.top_k 1 to serve it, or export it and answer with "
            "rollouts.backend: transformers",
        )
    rank, targets = 1, ()
    for adapter in bank.adapters:
        config = json.loads((adapter.folder / ADAPTER_CONFIG).read_text())
        rank = max(rank, int(config["r"]) // adapter.keys_GPC.shape[1])
        targets = tuple(config["target_modules"])
    return ServedBank(folder=folder, rank=rank, targets=targets)


def write_modules(bank: ServedBank, pinned: str, folder: Path) -> dict[str, Path]:
    """Write every increment as an adapter of its own, and one of zeros that answers for the base.

    In a batch in which some requests have a LoRA, vLLM's CPU kernels give the others that of the last slot.

    Returns:
        Folders by their names in vLLM; none for a bank without adapters.
    """
    modules: dict[str, Path] = {}
    for adapter in read_bank(bank.folder).adapters:
        count = adapter.keys_GPC.shape[1]
        for number in range(count):
            target = folder / adapter.name / str(number)
            write_increment(adapter.folder, number, count, target)
            modules[module_name(pinned, adapter.name, number)] = target
        if zeros_name(pinned) not in modules:
            zeros = folder / "zeros"
            write_increment(adapter.folder, None, count, zeros)
            modules[zeros_name(pinned)] = zeros
    return modules


def module_name(pinned: str, adapter: str, number: int) -> str:
    """Return the name of an increment in vLLM.

    >>> module_name("digits@0123", "first", 2)
    'digits@0123/first.2'
    """
    return f"{pinned}/{adapter}.{number}"


def base_name(pinned: str) -> str:
    """Return the base's name in vLLM, which clients do not need."""
    return f"base-of-{pinned}"


def zeros_name(pinned: str) -> str:
    """Return the name in vLLM of the increment of zeros."""
    return f"{base_name(pinned)}.zeros"


class BankChooser:
    """Choice of the increment that answers a request, by the name it asks for and its prompt.

    Args:
        folder: folder of the bank.
        base: folder of the base, which encodes prompts.
        name: name that stands for whatever is served.
        pinned: name of the snapshot, before those of its increments in vLLM.
    """

    def __init__(
        self, folder: Path, base: Path, config: CampaignConfig, *, name: str, pinned: str
    ) -> None:
        import torch

        from align.bank.folder import weights_hash
        from align.bank.router import Queries, Router
        from align.data.base_model import load_encoder
        from align.learner.bank.encoding import encoder_of
        from rollouts.engines.decoding.weights import load_model

        assert config.policy.bank is not None, "only a campaign with a bank has one to serve"
        model = load_model(
            str(base),
            torch.float32,
            torch.device("cpu"),
            trust_remote_code=config.policy.trust_remote_code,
        )
        encoder = encoder_of(config.policy.bank, model, base)
        bank: Bank = read_bank(folder)
        bank.check_groups(config.policy.bank.groups, str(folder))
        bank.check_fit(base=weights_hash(base), encoder=encoder.identity, where=str(folder))
        queries, self._pinned = Queries(encoder), pinned
        self._prompts = load_encoder(base, config.policy)
        keys = [(adapter.name, adapter.keys_GPC) for adapter in bank.adapters]
        self._whole = frozenset({name, pinned, AUTO})
        self._routers: dict[str, Any] = dict.fromkeys(self._whole, Router(queries, keys, top_k=1))
        for pair in keys:
            router = Router(queries, [pair], top_k=1)
            self._routers |= {f"{prefix}/{pair[0]}": router for prefix in (name, pinned)}
        # A bank without adapters has no increment of zeros, and no batch in which one would be needed.
        self._base = zeros_name(pinned) if keys else base_name(pinned)
        self._lock = Lock()

    def choose(self, body: bytes) -> bytes:
        """Return a request's body with the name of the increment that answers it.

        A body that names no model of the bank, or is no request, is left to vLLM.

        Raises:
            UserError: the request has several prompts, or messages that cannot be rendered.
        """
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            return body
        requested = request.get("model") if isinstance(request, dict) else None
        if requested == base_name(self._pinned):
            return json.dumps({**request, "model": self._base}).encode()
        if not isinstance(requested, str) or requested not in self._routers:
            return body
        prompt = self._tokens(request)
        if prompt is None:
            return body
        with self._lock:  # One model encodes for all requests.
            (mix,) = self._routers[requested].mixes([prompt])
        model = self._base
        if mix:
            model = module_name(self._pinned, mix[0].adapter, mix[0].number)
        return json.dumps({**request, "model": model}).encode()

    def _tokens(self, request: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Return the tokens of a request's prompt; None where vLLM is to say what is wrong with it."""
        messages, prompt = request.get("messages"), request.get("prompt")
        if isinstance(messages, list) and messages:
            try:
                return self._prompts.encode(Prompt(id="request", messages=tuple(messages)))
            except (TemplateRefusal, TypeError, ValueError, KeyError, AttributeError) as error:
                raise UserError(
                    f"the messages cannot be read: {error}", where="messages"
                ) from error
        if isinstance(prompt, str):
            return self._prompts.encode(Prompt(id="request", text=prompt))
        if isinstance(prompt, list) and all(type(token) is int for token in prompt):
            return tuple(prompt)
        if isinstance(prompt, list):
            raise UserError(
                f"the request has {len(prompt)} prompts, and each retrieves an adapter of its own",
                where="prompt",
                remedy="send one request for each prompt",
            )
        return None
