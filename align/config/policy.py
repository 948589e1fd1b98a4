"""Settings of the policy, of the engines that sample from it, and of their processes' resources."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from align.config.retrieval.settings import RetrievalConfig
from align.settings import InputPath, Settings
from rollouts.engines import DEFAULT_BACKEND, ENGINES
from rollouts.engines.backend import LINEAR_LAYERS, EngineParts
from rollouts.engines.division import DeviceDivision, Executor
from rollouts.engines.protocol import WeightTransfer
from rollouts.errors import nearest
from rollouts.machine.processor import Dtype


class ResourcesConfig(Settings):
    """Logical resources that a process reserves in Ray: they limit the processes on a node, not their
    use."""

    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Number of CPUs."""
    gpus: Annotated[float, Field(ge=0, le=1)] | None = None
    """One GPU or a share of one; None: one if the cluster has GPUs. 0 keeps the process on the CPU."""
    custom: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Resources that nodes were started with (``ray start --resources``), such as ``{a100: 1}``; the
    process runs on a node that has them. A cluster that Keel starts on this machine always has enough."""

    def bundle(self, *, gpus: bool) -> dict[str, float]:
        """Return the resources as Ray names them.

        Args:
            gpus: true if the cluster has GPUs.
        """
        share = float(gpus) if self.gpus is None else self.gpus
        return {"CPU": self.cpus, **({"GPU": share} if share else {}), **self.custom}


class LoraConfig(Settings):
    """Adapter (peft) that is trained instead of full weights; snapshots are adapters or merged models."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Inner dimension of the update."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the update, which is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input, for rounds that learn from files and replay nothing. Engines have no
    dropout, so in rounds that sample their logprobs would differ from the learner's."""
    targets: tuple[str, ...] = LINEAR_LAYERS
    """Linear layers that get an adapter, by the last part of their names. In a model with other names, such
    as ``c_attn``, the default stands for all its linear layers. lm_head is refused: engines drop its update
    silently."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, so that high ranks learn as fast as low ones: rsLoRA, arXiv
    2312.03732."""
    dora: bool = False
    """Learn the length of every weight row separately from its direction: DoRA, arXiv 2402.09353. Every
    forward pass then computes the update in full."""
    serve: Literal["auto", "adapter", "merged"] = "auto"
    """Weights that engines get: the ``adapter``, which is small to send but slower to sample with, or
    ``merged``, full weights with the update added to the base. ``auto``: merged on a CPU, whose kernels for
    adapters gather weights token by token, and if other settings require it; otherwise the adapter. A
    store keeps the choice that it began with."""
    merge: bool = False
    """Make a round's snapshot a whole model, with the update added to the base, over which the next round
    begins a fresh adapter. The rank then bounds the change of one round, not that of the campaign."""

    @property
    def needs_merging(self) -> bool:
        """True if engines cannot hold the adapter, or the base that it belongs to."""
        return self.dora or self.merge

    @model_validator(mode="after")
    def _served(self) -> Self:
        if any("lm_head" in target for target in self.targets):
            raise ValueError(
                "targets has lm_head, whose update engines drop or get wrong; leave it out"
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


class BankConfig(Settings):
    """Bank of adapters: each round trains one of its own, and prompts retrieve them by their keys.

    SLM, Peng et al. 2024: arXiv 2404.07470. The base stays frozen, nothing is replayed, and no prompt says
    which round it belongs to.
    """

    keys: Annotated[int, Field(ge=1)] = 1
    """Keys of a round, each with an increment of rank ``policy.lora.rank``. The paper takes 4."""
    top_k: Annotated[int, Field(ge=1)] = 1
    """Increments that answer a prompt, weighted by their similarity; the paper takes 2 or 4. vLLM serves
    one adapter for each request, so its engines need 1."""
    groups: Annotated[int, Field(ge=1)] = 4
    """Groups of features in which prompts and keys are compared; divides the encoder's width. The paper
    takes 6 of 768 features."""
    mixing: Literal["example", "batch"] = "example"
    """Prompts that share their choice of increments. ``example``: each has its own; ``batch``: those that
    are asked together have one, as in the code released with the paper."""
    encoder: InputPath | None = None
    """Folder of sentence-transformers that prompts are compared by, which needs the extra ``bank``. None:
    the mean of the base's hidden states over the prompt."""
    layer: Annotated[int, Field(ge=1)] | None = None
    """Layer of the base after which these hidden states are taken; None: a sixth of the way up, or a third
    without ``scale``. Retrieval computes the layers up to it."""
    scale: Literal["root", "none"] = "root"
    """Scaling of these hidden states. ``root``: the signed square root of each number, without which a few
    large features alone decide what is near; ``none``, as in banks that were begun before."""
    prompts: Annotated[int, Field(ge=1)] = 512
    """Prompts of a round, from its first, that its keys are trained on."""
    init: Literal["average", "orthogonal"] = "average"
    """Beginning of the keys: means of the round's prompts, or random orthogonal vectors."""
    mask: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Probability that a key is passed over in one step of its training."""
    epochs: Annotated[int, Field(ge=0)] = 3
    """Passes over the prompts that train the keys; 0 keeps their beginning."""
    lr: Annotated[float, Field(gt=0)] = 0.001
    """Learning rate of the keys."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Prompts of one step of the keys."""
    centrifugal: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a term that pushes new keys away from those of earlier rounds."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.encoder is not None and self.changed("layer"):
            raise ValueError(
                f"layer is {self.layer} and encoder names a folder, which is asked instead of the base; "
                "remove one"
            )
        if self.top_k > self.keys:
            raise ValueError(
                f"top_k is {self.top_k} and a round has {self.keys} keys: a round learns with its own "
                "keys alone; lower top_k or raise keys"
            )
        return self


class PolicyConfig(Settings):
    """Model that is aligned, its precision, adapter and chat template."""

    model: InputPath
    """Base model: ``demo://digits``, a folder in Hugging Face format, or a Hugging Face id."""
    lora: LoraConfig | None = None
    """Adapter that is trained; None trains all weights."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the engines and of the learner's matrix products; master weights stay in float32.
    ``auto``: bfloat16 if the GPU or the processor has instructions for it, else float32. The machine that
    begins the store decides, and the store keeps the choice."""
    bank: BankConfig | None = None
    """Bank of adapters, one for each round, that prompts retrieve; None: one policy for all rounds."""
    retrieval: RetrievalConfig | None = None
    """Search in the index of documents that rounds change with ``index``, which is a part of the policy as
    its weights are; None: the defaults of these settings, where a round has an ``index``."""
    snapshot_dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of whole-model snapshots. bfloat16 halves their size; the gate then measures the rounded
    weights and the next round begins from them, so an update smaller than bfloat16's three digits is lost
    between rounds. ``auto``: bfloat16 if the base's files have it, else float32. Adapters, checkpoints
    inside a round and the base itself stay unchanged."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; read the code before you set it. The code is copied into
    every snapshot and verified by hash."""
    revision: str | None = None
    """Commit of a Hugging Face id; None takes the newest."""
    ranks: Annotated[int, Field(ge=1)] = 1
    """Number of processes that learn together, each on a GPU of its own if there are GPUs. Full weights are
    sharded over them; an adapter and the anchors are on each."""
    ranks_per_node: Annotated[int, Field(ge=1)] | None = None
    """Number of ``ranks`` on each of several nodes, which need no common disk; None: all are on one."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Number of times that one run starts ``ranks`` anew after one was lost with its process, its node or
    the way to it. The round goes on from its checkpoint once there is room for all of them again."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: a third slower, with activations of one layer at a
    time in memory."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of every rank of the learner. A small model runs one forward pass on each thread; the
    matrix products of a large model, and those under adapters, are divided over them. More threads than
    free cores slow the learner down, since waiting threads spin."""

    system: str | None = None
    """System message of every chat prompt that has none of its own. With None the chat template decides,
    which may write one."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables of the chat template, such as ``{enable_thinking: false}``. Training, replay, the gate and
    served models render with them."""
    chat_template_date: date | None = None
    """Date that the chat template prints as today's, at midnight. A template that prints the date is
    refused without it, since prompts would change every day."""

    resources: ResourcesConfig = ResourcesConfig()
    """Resources that each of several ``ranks`` reserves; a learner of one rank runs in the driver, which
    reserves nothing."""

    @model_serializer(mode="wrap")
    def _without_retrieval(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out unset ``retrieval``: stores that are older than the setting have no such key."""
        values: dict[str, Any] = dump(self)
        if self.retrieval is None:
            values.pop("retrieval", None)
        return values

    @model_validator(mode="after")
    def _equal_nodes(self) -> Self:
        if self.ranks_per_node is not None and self.ranks % self.ranks_per_node:
            raise ValueError(
                f"ranks_per_node is {self.ranks_per_node}, and {self.ranks} ranks do not fill nodes "
                "evenly; set ranks to a multiple of ranks_per_node"
            )
        return self

    @property
    def nodes(self) -> int:
        """Number of nodes that the ranks of the learner are on."""
        return self.ranks // self.ranks_together

    @property
    def ranks_together(self) -> int:
        """Number of ranks on each node."""
        return self.ranks_per_node or self.ranks

    @model_validator(mode="after")
    def _bank_of_adapters(self) -> Self:
        if self.bank is None:
            return self
        if self.lora is None:
            raise ValueError(
                "bank holds adapters, and lora is not set, so all weights would be trained; set lora, "
                "such as {rank: 8}, or remove bank"
            )
        for name, unfit in (
            ("merge", self.lora.merge),
            ("dora", self.lora.dora),
            ("dropout", bool(self.lora.dropout)),
        ):
            if unfit:
                raise ValueError(
                    f"bank mixes plain low-rank updates over a frozen base, which lora.{name} does not "
                    f"leave; remove lora.{name}, or bank"
                )
        if self.lora.serve == "merged":
            raise ValueError(
                "bank holds several adapters in one engine, and lora.serve is merged; set serve to "
                "adapter, or remove it"
            )
        return self

    @property
    def adapter(self) -> LoraConfig | None:
        """Adapter that is trained, as peft has it: that of a bank joins the increments of a round."""
        if self.lora is None or self.bank is None:
            return self.lora
        # peft divides alpha by the joint rank, or by its root; each increment keeps its own scale.
        count = self.bank.keys
        alpha = self.lora.alpha * (count**0.5 if self.lora.rslora else count)
        return self.lora.model_copy(update={"rank": self.lora.rank * count, "alpha": alpha})

    @property
    def snapshot_kind(self) -> Literal["model", "adapter", "bank"]:
        """Kind of snapshot that a round writes."""
        if self.bank is not None:
            return "bank"
        return "model" if self.lora is None or self.lora.merge else "adapter"

    @property
    def serves_adapters(self) -> bool:
        """True if engines get adapters, not full weights; an unresolved ``auto`` counts as adapters."""
        return self.lora is not None and self.lora.serve != "merged" and not self.lora.needs_merging

    @property
    def may_round(self) -> bool:
        """True if snapshots may be rounded, and so differ from the learner that wrote them."""
        return self.snapshot_dtype != "float32" and self.snapshot_kind == "model"

    def without_auto(self, dtype: Dtype, serve: Literal["adapter", "merged"] = "adapter") -> Self:
        """Return the policy with these values for the settings that are ``auto``."""
        lora = self.lora
        if lora is not None and lora.serve == "auto":
            chosen = "merged" if lora.needs_merging else serve
            chosen = "adapter" if self.bank is not None else chosen
            lora = lora.model_copy(update={"serve": chosen})
        resolved = dtype if self.dtype == "auto" else self.dtype
        return self.model_copy(update={"dtype": resolved, "lora": lora})

    @property
    def has_bare_dora(self) -> bool:
        """True if snapshots are DoRA adapters, whose row lengths the base does not have."""
        return self.lora is not None and self.lora.dora and not self.lora.merge


class EngineConfig(Settings):
    """Engines that sample and evaluate."""

    backend: str = DEFAULT_BACKEND
    """Library of the engines: ``vllm``, or ``transformers`` for machines without vLLM and for models that
    vLLM's CPU attention refuses, such as those with small heads. It is slower on large models."""

    engines: Annotated[int, Field(ge=1)] = 1
    """Number of engine actors."""
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """Devices that every layer of the model is divided over; divides its attention heads."""
    pipeline_parallel: Annotated[int, Field(ge=1)] = 1
    """Groups of such devices that the layers are dealt out to, one after another."""
    executor: Executor = "processes"
    """Workers of an engine on several devices: ``processes`` on the engine's node, or ``ray`` for GPUs of
    several nodes."""
    expert_parallel: bool = False
    """Divide a mixture of experts over an engine's devices by whole experts, instead of each of them."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers that engines compute in; ``auto``: those of the policy."""
    quantization: str | None = None
    """vLLM's method of quantising the weights as they are loaded, such as ``fp8``, sync after sync; None:
    they stay as they are. ``probe_tolerance`` then bounds the gap to the learner."""
    weight_transfer: WeightTransfer = "host"
    """Way of full weights to engines: ``host``, through the memory of one rank and Ray's object store; or
    straight from the ranks, in buckets: ``gloo`` on CPUs, ``nccl`` between GPUs, ``ipc`` within one GPU."""
    resources: ResourcesConfig = ResourcesConfig()
    """Resources that each device of an engine reserves on the cluster."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of one device of an engine. Engines and learner take turns unless a round samples ahead,
    so each may have all cores; threads beyond the free cores cost speed, since waiting threads spin."""
    max_num_seqs: Annotated[int, Field(ge=1)] = 256
    """Sequences that one engine decodes at a time."""
    max_model_len: Annotated[int, Field(ge=8)] | None = None
    """Longest prompt plus completion, in tokens. None: the model's own limit, at most 4096."""
    kv_cache_mb: Annotated[int, Field(ge=16)] = 256
    """Size of the KV cache of one device of an engine on CPU, in MiB."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of each of its GPUs' memory that one engine may take."""
    start_deadline_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds that an engine may take to start."""
    deadline_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a call of an engine may take before the engine is replaced."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Number of engines that one run may replace before it stops."""
    probe_sequences: Annotated[int, Field(ge=1)] = 8
    """Number of sequences whose logprobs engine and learner compare after every sync."""
    probe_tolerance: Annotated[float, Field(gt=0)] | None = None
    """Largest allowed difference of these logprobs, in nats. None: 1e-4 in float32, 0.1 in bfloat16.
    Engines with another dtype, or with quantised weights, need one."""
    environment: tuple[str, ...] = ()
    """Names of environment variables that the processes of a local cluster may see, besides libraries' own
    settings that hold no secret."""

    @field_validator("backend")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        if name not in ENGINES:
            raise ValueError(f"there is no engine backend {name!r}; {nearest(name, list(ENGINES))}")
        return name

    @model_validator(mode="after")
    def _divides(self) -> Self:
        for name, default in (("executor", "processes"), ("expert_parallel", False)):
            if self.division.num_devices == 1 and getattr(self, name) != default:
                raise ValueError(
                    f"{name}: it is about engines on several devices, and this one has one; set "
                    "tensor_parallel or pipeline_parallel, or leave it out"
                )
        share = self.resources.gpus
        if self.division.num_devices > 1 and share is not None and 0 < share < 1:
            raise ValueError(
                f"resources: gpus is {share:g}, and an engine on several devices takes whole ones; set it "
                "to 1, or leave it out"
            )
        setting = self.changed("quantization", "dtype")
        if setting is not None and self.probe_tolerance is None:
            raise ValueError(
                f"{setting}: engines compute other numbers than the learner, and probe_tolerance is not "
                "set; set it to the largest gap in nats that you accept, such as 0.3"
            )
        return self

    @property
    def differ(self) -> bool:
        """True if engines compute other numbers than the learner: they sample from another distribution."""
        return self.changed("quantization", "dtype") is not None

    @property
    def parts(self) -> EngineParts:
        """Parts of an engine that a backend may not have."""
        return EngineParts(
            division=self.division,
            quantization=self.quantization,
            weight_transfer=self.weight_transfer,
        )

    @property
    def division(self) -> DeviceDivision:
        """Division of one engine's model over its devices."""
        return DeviceDivision(
            tensor=self.tensor_parallel,
            pipeline=self.pipeline_parallel,
            executor=self.executor,
            experts=self.expert_parallel,
        )


class WaitsConfig(Settings):
    """Waits of a run on its own processes, and on the runner before it.

    Those on engines are ``rollouts.start_deadline_s`` and ``rollouts.deadline_s``, and those on rewards
    ``deadline_s`` and ``sample_deadline_s`` of each.
    """

    silence_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds of a wait after which the run says what it waits for, and again, at the latest each time it
    has waited twice as long."""
    ranks_start_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds that learner ranks may take to start."""
    ranks_s: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds that a call of the learner ranks may take before the run stops."""
    control_s: Annotated[float, Field(ge=10)] = 300.0
    """Silence of Ray's control service (GCS) after which the run stops. Steps go on without it; engines and
    ranks that start wait for it."""
    lease_s: Annotated[float, Field(ge=1)] = 120.0
    """Silence after which a runner on another host, or in another PID namespace, counts as dead. It renews
    its lease of the store eight times as often, however long its steps are."""
