"""Checks that a campaign fits the machine that would run it: KV cache, shared memory, memory.

What cannot work is refused; what works slowly, or may not, is a line for people. All of it concerns engines
and a learner on this machine's processors: what a GPU or another node has is asked of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any

from align.config.campaign import CampaignConfig
from align.learner.folder.sizes import BYTES, MIB, engine_bytes, learner_memory, synced_bytes
from rollouts.engines.division import share_of_cache
from rollouts.errors import UserError
from rollouts.machine.device import resolve_device
from rollouts.machine.memory import address_space, available_memory, shared_memory
from rollouts.machine.object_store import needed_bytes, shortage

OTHER_ATTENTION = (
    "kv_lora_rank",
    "sliding_window",
    "layer_types",
    "attn_layer_period",
    "multi_query",
)
"""Settings of models with layers that keep less than every key and value; such models are not judged."""
LIBRARIES = 3 << 30
"""Address space that the libraries map in one process before it does any work."""
ROOMY = 16 << 30
"""Address space that no process was seen to exceed, without its weights."""


def check_kv_cache(model: Path, context: int, config: CampaignConfig) -> None:
    """Check that an engine's KV cache holds one sequence of the context.

    Args:
        context: prompt plus completion, in tokens, that engines are started for.
        config: the campaign, `without_auto`.
    """
    each = kv_bytes(model, config)
    cache = config.rollouts.kv_cache_mb * MIB
    if each is None or context * each <= cache:
        return
    least = -(-context * each // MIB)
    raise UserError(
        f"the KV cache of an engine holds {cache // each:,} tokens, and one sequence may have {context:,}",
        where="rollouts.kv_cache_mb",
        cause=f"every token takes {each / 1000:.3g} KB of the {config.rollouts.kv_cache_mb} MiB",
        remedy=f"set rollouts.kv_cache_mb to {least} or more, or rollouts.max_model_len to "
        f"{cache // each} or less; where a cluster's GPUs will hold it instead, name it in RAY_ADDRESS",
    )


def check_addresses(model: Path, config: CampaignConfig) -> None:
    """Check that ``ulimit -v`` leaves a process enough addresses for its libraries and weights."""
    limit, needed = address_space(), memory_needed(model, config) + LIBRARIES
    if limit is not None and limit < needed:
        raise UserError(
            f"a process may have {limit // MIB} MiB of addresses, and libraries and weights map more than "
            f"{needed // MIB} MiB",
            where="ulimit -v",
            remedy="ulimit -v unlimited, in the shell that starts it; limit memory with a control group",
        )


def kv_bytes(model: Path, config: CampaignConfig) -> int | None:
    """Return the bytes of the KV cache per token on one device of an engine; None for models whose layers
    are not all alike."""
    engines = config.rollouts
    dtype = BYTES[config.policy.dtype if engines.dtype == "auto" else engines.dtype]
    content = json.loads((model / "config.json").read_text())
    whole = kv_bytes_of(content, dtype)
    return None if whole is None else ceil(whole * share_of_cache(content, engines.division))


def kv_bytes_of(content: Mapping[str, Any], dtype: int) -> int | None:
    """Return the bytes of the KV cache per token by a ``config.json``, with ``dtype`` bytes a number.

    >>> llama = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    >>> kv_bytes_of({**llama, "hidden_size": 576}, 4)
    46080
    """
    text = content.get("text_config")
    text = text if isinstance(text, dict) else content
    slides = text.get("use_sliding_window", True)
    odd = [
        name for name in OTHER_ATTENTION if text.get(name) and (name != "sliding_window" or slides)
    ]
    types = set(text.get("layer_types") or ())
    if odd and not (odd == ["layer_types"] and types == {"full_attention"}):
        return None
    layers = text.get("num_hidden_layers") or text.get("n_layer")
    heads = text.get("num_attention_heads") or text.get("n_head")
    kv_heads = text.get("num_key_value_heads") or heads
    width = text.get("hidden_size") or text.get("n_embd")
    known = [
        size for size in (layers, heads, kv_heads, width) if isinstance(size, int) and size > 0
    ]
    if len(known) < 4:
        return None
    layers, heads, kv_heads, width = known
    head = text.get("head_dim") or width // heads
    return 2 * layers * kv_heads * head * dtype if isinstance(head, int) else None


def fit_lines(model: Path, context: int, config: CampaignConfig) -> Iterator[str]:
    """Yield lines on what is tight or slow on this machine and what to do; none if engines have a GPU.

    Args:
        config: the campaign, `without_auto`.
    """
    if resolve_device("auto") == "cuda":
        return
    if (each := kv_bytes(model, config)) is not None:
        capacity = config.rollouts.kv_cache_mb * MIB // each
        yield (
            f"KV cache: {each / 1000:.3g} KB a token, so {config.rollouts.kv_cache_mb} MiB hold "
            f"{capacity:,} tokens; one sequence of {context:,} needs {-(-context * each // MIB)} MiB"
        )
    if warning := thread_warning(config, len(os.sched_getaffinity(0))):
        yield f"warning: {warning}"
    weights = synced_bytes(model, config.policy)
    if warning := shortage(weights, shared_memory()):
        yield f"warning: {warning}"
    needed, available = memory_needed(model, config), available_memory()
    if needed > available:
        yield (
            f"warning: memory: learner, engines and object store take {needed // MIB} MiB without "
            f"activations and libraries, and {available // MIB} MiB are available here, control groups "
            "counted (lower rollouts.engines or rollouts.kv_cache_mb, use policy.lora, or a larger machine)"
        )
    limit = address_space()
    if limit is not None and limit < needed + ROOMY:
        yield (
            f"warning: memory: a process may have {limit // MIB} MiB of addresses (ulimit -v), which may "
            "be less than libraries and weights map (ulimit -v unlimited)"
        )


def thread_warning(config: CampaignConfig, cores: int) -> str | None:
    """Name settings that let more threads compute at a time than there are cores; None if none do.

    Engines and learner take turns unless a round samples ahead.
    """
    engines = config.rollouts.engines * config.rollouts.threads
    learner = config.policy.ranks_together * config.policy.threads
    ahead = any(spec.sampling.max_staleness for spec in config.rounds)
    if max(engines, learner) <= cores and not (ahead and engines >= cores > 1):
        return None
    together = ", at the same time where a round samples ahead" if ahead else ""
    return (
        f"threads: engines compute with {engines} (rollouts.engines x rollouts.threads), the learner with "
        f"{learner} (policy.ranks x policy.threads){together}, and {cores} cores are free here: threads "
        "that wait for a core make all of them slower"
    )


def memory_needed(model: Path, config: CampaignConfig) -> int:
    """Return the bytes that a run's processes on this machine take for weights and caches."""
    # Rounds of a template share all of their settings but the name.
    kinds = {tuple(id(v) for n, v in spec if n != "name"): spec for spec in config.rounds}
    rounds = [learner_memory(model, config.policy, spec).total for spec in kinds.values()]
    engines = engine_bytes(model, config) * config.rollouts.engines
    learner = max(rounds, default=0) * config.policy.ranks_together
    return learner + engines + needed_bytes(synced_bytes(model, config.policy))
