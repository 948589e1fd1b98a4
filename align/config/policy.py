"""The model that is aligned, the engines that sample from it, and what their processes reserve."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from align.settings import InputPath, Settings
from rollouts.engines import DEFAULT_BACKEND, ENGINES
from rollouts.engines.backend import LINEAR_LAYERS
from rollouts.errors import nearest
from rollouts.machine.processor import Dtype


class ResourcesConfig(Settings):
    """Ray's logical resources: what decides how many processes fit on a node, not what they may use."""

    cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPUs."""
    gpus: Annotated[float, Field(ge=0, le=1)] | None = None
    """GPUs, or a share of one; None: one where the cluster has any. 0 keeps the process on the CPU."""
    custom: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Resources that nodes were started with (``ray start --resources``), such as ``{a100: 1}``: the
    process goes where they are. On a cluster of your own on this machine there are always enough."""

    def bundle(self, *, gpus: bool) -> dict[str, float]:
        """Return the resources as Ray names them.

        Args:
            gpus: whether the cluster has any.
        """
        share = float(gpus) if self.gpus is None else self.gpus
        return {"CPU": self.cpus, **({"GPU": share} if share else {}), **self.custom}


class LoraConfig(Settings):
    """A peft adapter in place of full weights; snapshots are adapters over one base, or merged into it."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Inner dimension of the update."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale: the update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input, for rounds that learn from files and replay nothing: engines drop
    nothing, so in rounds that sample the learner's logprobs would not be theirs."""
    targets: tuple[str, ...] = LINEAR_LAYERS
    """Linear layers that get an adapter, by the last part of their names. The default stands for all there
    are where a model has others, such as ``c_attn``. Never lm_head: engines drop its update silently."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, so that high ranks learn as fast as low ones: rsLoRA, arXiv
    2312.03732."""
    dora: bool = False
    """Learn the length of every weight row apart from its direction: DoRA, arXiv 2402.09353. Every forward
    pass then computes the update in full."""
    serve: Literal["auto", "adapter", "merged"] = "auto"
    """Weights that engines get: the adapter, small to send and slower to sample with, or the base with
    the update added, as full weights. ``auto``: merged on a CPU, whose kernels for adapters gather
    weights token by token, and where other settings ask for it; the adapter on a GPU. A store keeps
    what it began with."""
    merge: bool = False
    """The snapshot of a round is a whole model, with the update added to the base, and the next round
    begins a fresh adapter over it: the rank bounds what one round changes, not the campaign."""

    @property
    def needs_merging(self) -> bool:
        """True if engines cannot hold what the adapter is, or the base that it belongs to."""
        return self.dora or self.merge

    @model_validator(mode="after")
    def _served(self) -> Self:
        if any("lm_head" in target for target in self.targets):
            raise ValueError(
                "targets holds lm_head, whose update engines drop or get wrong; leave it out"
            )
        if self.serve != "adapter":
            return self
        if self.dora:
            raise ValueError(
                "dora needs serve: merged, since vLLM takes no DoRA adapters; set serve to merged"
            )
        if self.merge:
            raise ValueError(
                "merge needs serve: merged, since engines hold the campaign's base and a later round's "
                "adapter belongs to another one; set serve to merged"
            )
        return self


class PolicyConfig(Settings):
    """The model that is aligned."""

    model: InputPath
    """``demo://digits``, a folder in Hugging Face format, or a Hugging Face id."""
    lora: LoraConfig | None = None
    """Adapter that is trained; None trains all weights."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the engines and of the learner's matrix products; master weights stay in float32.
    ``auto``: bfloat16 where the GPU, or the processor, has instructions for it, float32 elsewhere; decided
    on the machine that begins the store, which keeps it."""
    snapshot_dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of whole-model snapshots. bfloat16 halves them; the gate then measures the rounded weights,
    and the next round begins from them, so an update below bfloat16's three digits is lost between rounds.
    ``auto``: that of the base's files where it is bfloat16, else float32. Adapters, checkpoints inside a
    round and the base itself stay as they are."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read it. The code is copied into every
    snapshot and verified by hash."""
    revision: str | None = None
    """Commit of a Hugging Face id; None takes the newest."""
    ranks: Annotated[int, Field(ge=1)] = 1
    """Processes that learn together, each on a GPU of its own where there are any. Full weights are dealt
    out over them; an adapter is on each, and so are anchors."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: a third slower, and memory for one layer at a
    time."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of every rank of the learner. A small model's forward passes run side by side, one on
    each; a large one's products, and those under adapters, are divided. More than the free cores make it
    slower, not faster: waiting threads spin."""

    system: str | None = None
    """System message of every chat prompt that has none of its own. None leaves it to the chat template,
    which may write one."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables of the chat template, such as ``{enable_thinking: false}``. Training, replay, the gate and
    served models render with them."""
    chat_template_date: date | None = None
    """Date that the chat template prints for the day's, at midnight. Templates that print one are refused
    without it: prompts would be others tomorrow."""

    resources: ResourcesConfig = ResourcesConfig()
    """Resources that each of several ``ranks`` reserves; a learner that is one process lives in the
    driver, which reserves nothing."""

    @property
    def snapshot_kind(self) -> Literal["model", "adapter"]:
        """Kind of snapshot that a round leaves behind."""
        return "model" if self.lora is None or self.lora.merge else "adapter"

    @property
    def serves_adapters(self) -> bool:
        """True if engines get adapters, not full weights; an unresolved ``auto`` counts as adapters."""
        return self.lora is not None and self.lora.serve != "merged" and not self.lora.needs_merging

    @property
    def may_round(self) -> bool:
        """True if snapshots may hold other numbers than the learner that wrote them."""
        return self.snapshot_dtype != "float32" and self.snapshot_kind == "model"

    def without_auto(self, dtype: Dtype, serve: Literal["adapter", "merged"] = "adapter") -> Self:
        """Return the policy with these values for the settings it leaves to ``auto``."""
        lora = self.lora
        if lora is not None and lora.serve == "auto":
            chosen = "merged" if lora.needs_merging else serve
            lora = lora.model_copy(update={"serve": chosen})
        resolved = dtype if self.dtype == "auto" else self.dtype
        return self.model_copy(update={"dtype": resolved, "lora": lora})

    @property
    def has_bare_dora(self) -> bool:
        """Snapshots are DoRA adapters, whose row lengths the base does not have."""
        return self.lora is not None and self.lora.dora and not self.lora.merge


def _known_backend(name: str) -> str:
    if name not in ENGINES:
        raise ValueError(f"there is no engine backend {name!r}; {nearest(name, list(ENGINES))}")
    return name


class EngineConfig(Settings):
    """The engines that sample and evaluate."""

    backend: Annotated[str, AfterValidator(_known_backend)] = DEFAULT_BACKEND
    """``vllm``, or ``transformers``: slower on large models, for machines without vLLM and for models that
    vLLM's CPU attention refuses, such as small heads."""

    engines: Annotated[int, Field(ge=1)] = 1
    """Engine actors."""
    resources: ResourcesConfig = ResourcesConfig()
    """Resources that each of them reserves on the cluster."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of one engine. As many as the learner's are right where they take turns, which is unless
    a round samples ahead; waiting threads spin, so threads beyond the free cores cost speed."""
    max_num_seqs: Annotated[int, Field(ge=1)] = 256
    """Sequences one engine decodes at a time."""
    max_model_len: Annotated[int, Field(ge=8)] | None = None
    """Prompt plus completion, in tokens. None takes the model's own limit, at most 4096."""
    kv_cache_mb: Annotated[int, Field(ge=16)] = 256
    """KV cache of one engine on CPU, in MiB."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of a GPU one engine may take."""
    start_deadline_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds an engine may take to start."""
    deadline_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds any one engine call may take before the engine is replaced."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Engines replaced in one run before the run stops."""
    probe_sequences: Annotated[int, Field(ge=1)] = 8
    """Sequences compared between engine and learner after every sync."""
    probe_tolerance: Annotated[float, Field(gt=0)] | None = None
    """Largest allowed logprob difference in nats. None: 1e-4 in float32, 0.1 in bfloat16."""
