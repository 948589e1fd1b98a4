"""Formulas of memory and time for learning and sampling: pure functions of sizes, in bytes and seconds.

They count what Keel's learner and engines do: master weights in float32, FSDP2 that gathers one layer at a
time, products in the policy's dtype, logits in pieces, completions that share their prompt. What the
learner's libraries and the allocator take comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from align.algorithms.outputs import CHUNK
from align.report.forecast.devices import DeviceConfig
from align.report.forecast.shape import ModelShape

FLOAT32 = 4
LAYER_VECTORS = 9
"""Vectors of the hidden size that a layer keeps of each token for its backward pass."""
MIDDLE_VECTORS = 4
"""Vectors of a dense layer's width that it keeps."""
LOGIT_VECTORS = 6
"""Vectors of the vocabulary's size that a sampled token takes: log-probabilities of policy and anchor,
results of divergences between them, gradients."""
GATHERED_LAYERS = 2
"""Layers that FSDP2 has gathered at a time: the one at work, and the one that is fetched ahead."""
BACKWARD = 2
"""Products of a backward pass by those of its forward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of one learner step, in the mean."""

    prompts: float
    """Distinct prompts, each computed once for its group."""
    completions: float
    prompt_tokens: float
    completion_tokens: float

    @property
    def tokens(self) -> float:
        """Tokens that are computed."""
        return self.prompts * self.prompt_tokens + self.completions * self.completion_tokens

    @property
    def sampled(self) -> float:
        """Tokens that get logits."""
        return self.completions * self.completion_tokens

    @property
    def length(self) -> float:
        """Length of a row, prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


def kept_bytes(
    shape: ModelShape, tokens: float, *, number: int, checkpointed: bool, rank: int = 0
) -> float:
    """Return the bytes that a forward pass keeps of its tokens for the backward pass.

    Args:
        number: bytes of a number in products.
        checkpointed: layers keep their inputs, and one at a time computes the rest again.
        rank: of an adapter, whose layers keep what lies between their two factors.
    """
    layer = LAYER_VECTORS * shape.hidden + MIDDLE_VECTORS * shape.width + 7 * rank
    numbers = shape.layers * shape.hidden + layer if checkpointed else shape.layers * layer
    return tokens * numbers * number


def logit_bytes(shape: ModelShape, sampled: float, chunk: int = CHUNK) -> float:
    """Return the bytes of a pass's logits and of what is derived from them, at most ``chunk`` at a time."""
    return min(sampled * shape.vocabulary, chunk) * LOGIT_VECTORS * FLOAT32


def cast_bytes(shape: ModelShape, number: int, *, checkpointed: bool) -> float:
    """Return the bytes of the weights' copies in the products' dtype, which backward passes need again."""
    if number == FLOAT32:
        return 0.0
    layers = shape.parameters - shape.ends
    return number * ((shape.largest_layer if checkpointed else layers) + shape.ends)


def gathered_bytes(shape: ModelShape, ranks: int) -> float:
    """Return the bytes of what FSDP2 has gathered at a time: layers and the ends, and their gradients."""
    if ranks == 1:
        return 0.0
    return FLOAT32 * ((GATHERED_LAYERS + 1) * shape.largest_layer + 2 * shape.ends)


def forward_flops(shape: ModelShape, rows: Rows) -> float:
    """Count the operations of a forward pass over all tokens: layers, attention, and the head."""
    attention = 2 * shape.layers * shape.heads * shape.head * rows.length
    layers = rows.tokens * (2 * shape.active + attention)
    return layers + head_flops(shape, rows.sampled)


def head_flops(shape: ModelShape, sampled: float) -> float:
    """Count the operations of the output head over sampled tokens."""
    return 2 * sampled * shape.hidden * shape.vocabulary


def learning_flops(
    shape: ModelShape,
    rows: Rows,
    *,
    references: float,
    checkpointed: bool,
    adapter: bool = False,
    passes: int = 1,
    extra: float = 0.0,
) -> float:
    """Count the operations of one learner step.

    Args:
        references: anchors that a row asks, in the mean.
        checkpointed: layers are computed once more.
        adapter: weights get no gradient, which is half of the backward pass.
        passes: over the batch (epochs).
        extra: forward passes without gradient besides, over the whole batch.
    """
    forward, head = forward_flops(shape, rows), head_flops(shape, rows.sampled)
    backward = (1 if adapter else BACKWARD) * (forward - head) + BACKWARD * head
    again = (forward - head) * checkpointed
    if rows.sampled * shape.vocabulary > CHUNK:
        again += head  # Logits in pieces are computed once more.
    return passes * (forward + backward + again) + (references + extra) * forward


def rate(device: DeviceConfig, shape: ModelShape, number: int, share: float) -> float:
    """Return the operations a second that products reach on a device."""
    tflops = device.tflops_float32 if number == FLOAT32 else device.tflops
    return tflops * 1e12 * share * (device.experts if shape.experts else 1.0)


def exchange_s(
    shape: ModelShape, device: DeviceConfig, *, ranks: int, nodes: int, passes: int
) -> float:
    """Return the seconds in which FSDP2 gathers weights twice a pass and adds their gradients up."""
    if ranks == 1:
        return 0.0
    moved = 3 * passes * FLOAT32 * shape.parameters * (ranks - 1) / ranks
    link = device.link_gbs if nodes == 1 else device.network_gbs
    return moved / (link * 1e9 * device.moving)


def optimizer_s(trained: float, device: DeviceConfig) -> float:
    """Return the seconds of AdamW over a rank's weights: seven readings and writings of each."""
    return 7 * FLOAT32 * trained / (device.memory_gbs * 1e9 * device.moving)


def kv_tokens(
    shape: ModelShape, device: DeviceConfig, *, devices: int, number: int, share: float
) -> float:
    """Return the tokens of an engine's KV cache on GPUs, of which the engine takes a share."""
    room = devices * device.memory_gib * 2**30 * share - shape.parameters * number
    return max(0.0, room) / (shape.kv_numbers * number)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingLoad:
    """Work of one engine in a step."""

    prompts: float
    completions: float
    prompt_tokens: float
    completion_tokens: float
    longest: float
    """Longest completion, in tokens: the batch ends with it."""


def sampling_s(
    shape: ModelShape,
    device: DeviceConfig,
    load: SamplingLoad,
    *,
    devices: int,
    number: int,
    at_once: float,
) -> float:
    """Return the seconds in which an engine samples: prompts are read once, then a token at a time.

    Every token of a batch reads the weights once, all KV of its sequences, and multiplies; a token takes
    the longer of reading and products. The batch lasts until its longest completion ends.

    Args:
        at_once: sequences that are decoded together at most.
    """
    reading = rate(device, shape, number, device.reading) * devices
    rows = Rows(prompts=load.prompts, completions=0, prompt_tokens=load.prompt_tokens,
                completion_tokens=0)  # fmt: skip
    seconds = forward_flops(shape, rows) / reading
    batch = max(1.0, min(at_once, load.completions))
    # Sequences that end are followed by waiting ones; after the last of these the batch shrinks.
    steps = max(load.longest, load.completions * load.completion_tokens / batch)
    steps += (load.longest - load.completion_tokens) * (load.completions > batch)
    bandwidth = device.memory_gbs * 1e9 * device.decoding * devices
    scattered = bandwidth * (device.experts if shape.experts else 1.0)
    weights = (shape.ends + touched(shape, batch)) * number / scattered
    context = load.prompt_tokens + load.completion_tokens / 2
    tokens = load.completions * load.completion_tokens
    cache = tokens * context * shape.kv_numbers * number / bandwidth
    products = tokens * 2 * (shape.active + shape.hidden * shape.vocabulary) / reading
    return seconds + steps * device.token_s + max(steps * weights + cache, products)


def touched(shape: ModelShape, batch: float) -> float:
    """Return the weights of the layers that a batch of tokens reads: of experts those that are chosen."""
    if not shape.experts:
        return shape.active
    share = shape.chosen / shape.experts
    unread: float = (1 - share) ** batch
    return shape.active + shape.routed * (1 - unread - share)


def sync_s(bytes_moved: float, device: DeviceConfig, *, nodes: int, through_host: bool) -> float:
    """Return the seconds in which new weights reach the engines, each of which loads them as they come."""
    link = device.link_gbs if nodes == 1 else device.network_gbs
    seconds = bytes_moved / (link * 1e9 * device.moving)
    host = 2 * bytes_moved / (device.host_gbs * 1e9 * device.moving)
    return seconds + host if through_host else seconds


def num_passes(tokens: float, budget: float) -> int:
    """Return the number of forward passes that a rank's tokens are cut into."""
    return max(1, ceil(tokens / budget))
