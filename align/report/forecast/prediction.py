"""Memory and time of a campaign on devices that are not here: a model's sizes, `formulas` and a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

from align.config.campaign import CampaignConfig, RoundConfig
from align.data.base_model import resolve_model
from align.learner.folder.folder import weight_files
from align.learner.folder.sizes import BYTES, FLOAT32, learner_memory, num_trained, synced_bytes
from align.report.forecast import formulas
from align.report.forecast.devices import DeviceConfig
from align.report.forecast.formulas import Rows, SamplingLoad
from align.report.forecast.shape import ModelShape, shape_of

PASS_TOKENS = 16_384
"""Tokens of a forward pass on a GPU, unless the campaign says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Lengths of prompts and completions, in tokens, in the mean."""

    prompt: float
    completion: float | None = None
    """Completions are as long as ``sampling.max_tokens`` allows if it is None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """Bytes of one rank of the learner on its device."""

    weights: int
    gradients: int
    moments: int
    anchors: int
    others: int
    """Critic, teacher, reward model, and weights that retention methods hold."""
    gathered: int
    """Weights and gradients that FSDP2 has gathered at a time."""
    casts: int
    """Copies of the weights in the products' dtype."""
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(getattr(self, name) for name in self.__slots__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineMemory:
    """Bytes of one device of an engine."""

    weights: int
    cache_tokens: int
    """Tokens that the KV cache of the whole engine holds."""
    sequences: int
    """Sequences of the context's length that it decodes at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundPrediction:
    """One round on the cluster."""

    name: str
    steps: int
    rank: RankMemory
    engine: EngineMemory
    sampling_s: float
    learning_s: float
    sync_s: float
    step_s: float
    tokens_per_s: float
    """Sampled and prompt tokens that a step learns from, by its seconds and by all devices."""
    misfits: tuple[str, ...]
    """Sentences on what does not fit on the devices; empty if all does."""

    @property
    def round_s(self) -> float:
        """Seconds of the round's steps; its suites come on top."""
        return self.steps * self.step_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A campaign on a cluster."""

    model: str
    parameters: int
    active: int
    """Parameters that one token is multiplied with."""
    device: str
    learner_devices: int
    engine_devices: int
    rounds: tuple[RoundPrediction, ...]


def predict(config: CampaignConfig, device: DeviceConfig, texts: Texts) -> Prediction:
    """Predict every round of a campaign, whatever its store holds.

    Raises:
        UserError: there is no such model, or the formulas do not know its layers.
    """
    folder = resolve_model(config.policy)
    shape = shape_of(folder)
    with sized(folder) as model:
        rounds = tuple(
            predict_round(config, spec, model, shape, device, texts) for spec in config.rounds
        )
    return Prediction(
        model=config.policy.model,
        parameters=shape.parameters,
        active=shape.active + shape.ends,
        device=device.name,
        learner_devices=config.policy.ranks,
        engine_devices=config.rollouts.engines * config.rollouts.division.num_devices,
        rounds=rounds,
    )


@contextmanager
def sized(folder: Path) -> Iterator[Path]:
    """Yield a model folder whose weights have their sizes: itself, or one with files of holes.

    A ``config.json`` alone is enough: the files take no disk, and headers are all that is read.
    """
    if weight_files(folder):
        yield folder
        return
    with TemporaryDirectory() as name:
        _write_holes(folder, Path(name))
        yield Path(name)


def _write_holes(folder: Path, target: Path) -> None:
    import json

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(target)
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * FLOAT32
        header[name] = {
            "dtype": "F32", "shape": list(parameter.shape), "data_offsets": [end, end + size],
        }  # fmt: skip
        end += size
    text = json.dumps(header).encode()
    with (target / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def predict_round(
    config: CampaignConfig,
    spec: RoundConfig,
    model: Path,
    shape: ModelShape,
    device: DeviceConfig,
    texts: Texts,
) -> RoundPrediction:
    """Predict one round.

    Args:
        model: folder whose weights have their sizes, see `sized`.
    """
    policy, rows = config.policy, rows_of(spec, texts)
    rank = rank_memory(config, spec, model, shape, rows)
    engine = engine_memory(config, shape, device, rows)
    learning = learning_s(config, spec, model, shape, device, rows)
    samples = spec.algorithm.material == "rollouts" and spec.algorithm.trains_policy
    sampling = sampling_s(config, spec, shape, device, rows, engine) if samples else 0.0
    apart = config.policy.nodes + 1 if policy.ranks > 1 else 1
    sync = formulas.sync_s(
        synced_bytes(model, policy) or FLOAT32 * num_trained(model, policy),
        device,
        nodes=apart,
        through_host=config.rollouts.weight_transfer == "host",
    )
    sync *= samples
    ahead = spec.sampling.max_staleness > 0
    step = (max(sampling, learning) if ahead else sampling + learning) + sync
    devices = policy.ranks + config.rollouts.engines * config.rollouts.division.num_devices
    tokens = rows.completions * rows.length
    return RoundPrediction(
        name=spec.name,
        steps=spec.steps,
        rank=rank,
        engine=engine,
        sampling_s=sampling,
        learning_s=learning,
        sync_s=sync,
        step_s=step,
        tokens_per_s=tokens / step / devices if step else 0.0,
        misfits=tuple(_misfits(rank, engine, config, device)),
    )


def rows_of(spec: RoundConfig, texts: Texts) -> Rows:
    """Return the rows of one step; completions of a group share their prompt."""
    completion = texts.completion or spec.sampling.max_tokens
    groups = spec.algorithm.material == "rollouts"
    return Rows(
        prompts=spec.sampling.budget / (spec.sampling.group_size if groups else 1),
        completions=spec.sampling.budget,
        prompt_tokens=texts.prompt,
        completion_tokens=min(completion, spec.sampling.max_tokens),
    )


def references_of(spec: RoundConfig) -> float:
    """Return the anchors that a row asks, in the mean over new, past and general rows."""
    anchors, replay = spec.anchors, spec.replay
    general = replay.general if replay.general_prompts is not None else 0.0
    new = sum(bool(anchor.beta) for anchor in anchors.new)
    if spec.algorithm.anchors_are_reference:
        new = max(1, len(anchors.new))
    past = sum(bool(anchor.beta) for anchor in anchors.past)
    general_terms = sum(bool(anchor.beta) for anchor in anchors.general)
    return (1 - replay.past - general) * new + replay.past * past + general * general_terms


def rank_memory(
    config: CampaignConfig, spec: RoundConfig, model: Path, shape: ModelShape, rows: Rows,
    budget: int = PASS_TOKENS,
) -> RankMemory:  # fmt: skip
    """Count the bytes of one rank at the fullest moment of a step.

    Args:
        budget: tokens of a pass, unless the campaign says so.
    """
    policy, fixed = config.policy, learner_memory(model, config.policy, spec)
    number = BYTES[policy.dtype]
    tokens = min(rows.tokens / policy.ranks, spec.optimizer.micro_batch_tokens or budget)
    tokens = max(tokens, rows.length)
    sampled = tokens * rows.sampled / rows.tokens
    checkpointed = policy.gradient_checkpointing
    adapter = policy.adapter
    activations = formulas.kept_bytes(
        shape,
        tokens,
        number=number,
        checkpointed=checkpointed,
        rank=0 if adapter is None else adapter.rank,
    )
    return RankMemory(
        weights=fixed.weights,
        gradients=fixed.gradients,
        moments=fixed.moments,
        anchors=fixed.anchors,
        others=fixed.retention + fixed.critic + fixed.teacher + fixed.reward_model,
        gathered=0 if adapter else int(formulas.gathered_bytes(shape, policy.ranks)),
        casts=int(formulas.cast_bytes(shape, number, checkpointed=checkpointed)),
        activations=int((1 + bool(fixed.critic)) * activations),
        logits=int(formulas.logit_bytes(shape, sampled)),
    )


def engine_memory(
    config: CampaignConfig, shape: ModelShape, device: DeviceConfig, rows: Rows
) -> EngineMemory:
    """Count the bytes of one device of an engine on GPUs, and what its KV cache holds."""
    engines = config.rollouts
    number = _engine_number(config)
    devices = engines.division.num_devices
    room = formulas.kv_tokens(
        shape, device, devices=devices, number=number, share=engines.gpu_memory_utilization
    )
    weights = ceil(shape.parameters * number / devices)
    return EngineMemory(
        weights=weights,
        cache_tokens=int(room),
        sequences=min(engines.max_num_seqs, int(room / rows.length)),
    )


def learning_s(
    config: CampaignConfig,
    spec: RoundConfig,
    model: Path,
    shape: ModelShape,
    device: DeviceConfig,
    rows: Rows,
) -> float:
    """Return the seconds of one learner step: products and the exchange of weights side by side, then the
    optimizer."""
    policy = config.policy
    if not spec.algorithm.trains_policy:
        return 0.0
    number = BYTES[policy.dtype]
    # A critic learns as the policy does, and values of both are asked before the first step.
    critic = 5.0 if spec.algorithm.critic_config is not None else 0.0
    teacher = 1.0 if spec.algorithm.teacher_snapshot is not None else 0.0
    several = spec.optimizer.epochs * spec.optimizer.mini_batches > 1
    flops = formulas.learning_flops(
        shape,
        rows,
        references=references_of(spec),
        checkpointed=policy.gradient_checkpointing,
        adapter=policy.lora is not None,
        passes=spec.optimizer.epochs,
        extra=critic + teacher + several,
    )
    trained = num_trained(model, policy) / (policy.ranks if policy.lora is None else 1)
    products = flops / policy.ranks / formulas.rate(device, shape, number, device.learning)
    budget = spec.optimizer.micro_batch_tokens or PASS_TOKENS
    exchange = 0.0
    if policy.lora is None:
        exchange = formulas.exchange_s(
            shape,
            device,
            ranks=policy.ranks,
            nodes=policy.nodes,
            passes=spec.optimizer.epochs * formulas.num_passes(rows.tokens / policy.ranks, budget),
        )
    updates = spec.optimizer.epochs * spec.optimizer.mini_batches
    return max(products, exchange) + updates * formulas.optimizer_s(trained, device)


def sampling_s(
    config: CampaignConfig,
    spec: RoundConfig,
    shape: ModelShape,
    device: DeviceConfig,
    rows: Rows,
    memory: EngineMemory,
) -> float:
    """Return the seconds in which the engines sample a step, each an equal part."""
    engines = config.rollouts
    load = SamplingLoad(
        prompts=rows.prompts / engines.engines,
        completions=rows.completions / engines.engines,
        prompt_tokens=rows.prompt_tokens,
        completion_tokens=rows.completion_tokens,
        longest=spec.sampling.max_tokens,
    )
    return formulas.sampling_s(
        shape,
        device,
        load,
        devices=engines.division.num_devices,
        number=_engine_number(config),
        at_once=max(1, memory.sequences),
    )


def _engine_number(config: CampaignConfig) -> int:
    dtype = config.rollouts.dtype
    return BYTES[config.policy.dtype if dtype == "auto" else dtype]


def _misfits(
    rank: RankMemory, engine: EngineMemory, config: CampaignConfig, device: DeviceConfig
) -> Iterator[str]:
    """Yield sentences on what is larger than a device, and what makes it smaller."""
    room = int(device.memory_gib * 2**30)
    if rank.total > room:
        ways = {
            "policy.gradient_checkpointing: true": rank.activations + rank.casts,
            "more policy.ranks": rank.weights + rank.gradients + rank.moments,
            "a smaller optimizer.micro_batch_tokens": rank.logits,
            "fewer anchors, or policy.lora": rank.anchors,
        }
        if config.policy.gradient_checkpointing:
            del ways["policy.gradient_checkpointing: true"]
        remedy = max(ways, key=lambda name: ways[name])
        yield (
            f"a rank takes {rank.total / 2**30:.0f} GiB and a device has {device.memory_gib:g}: "
            f"{remedy} saves most"
        )
    if not engine.sequences:
        yield (
            f"an engine's device holds {engine.weights / 2**30:.0f} GiB of weights, and its KV cache not "
            "one sequence: raise rollouts.tensor_parallel"
        )
