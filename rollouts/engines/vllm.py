"""One vLLM in one process: samples, scores and takes new weights.

The sampler and the learner never share a process: importing vllm turns torch's thread settings
into no-ops, seeds its generators and binds its memory. `EnginePool` therefore gives every engine a
Ray actor of its own, started under ``engine_environment``. The engine steps vLLM itself (no
``LLM.generate``), so weights can change between two steps of one request: `VLLMEngine.deposit`.

An engine over several devices has a process of vLLM's own for each of them, and this one schedules.

Weights arrive through vLLM's weight-transfer verbs, by a backend of `rollouts.engines.transfer`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from rollouts.engines.backend import (
    BASE_VERSION,
    EngineParts,
    EngineSpec,
    ServedModel,
    offline_environment,
)
from rollouts.engines.division import WHOLE, check_division
from rollouts.engines.protocol import (
    Arrivals,
    SampleRequest,
    SampleResult,
    ScoreRequest,
    SyncReport,
    Ticket,
    WeightLoadError,
    WeightUpdate,
    check_update,
)
from rollouts.engines.turns import OpenRequest, SteppedConversation
from rollouts.engines.vllm_bank import IncrementServer
from rollouts.engines.vllm_format import (
    LOGITS_OF_PROMPTS_MIB,
    completions,
    sampling_params,
    scored_together,
    scores,
)
from rollouts.engines.vllm_models import (
    check_executor,
    check_head_dim,
    check_quantization,
    check_served,
    check_serves_adapters,
    check_transfer,
)
from rollouts.errors import UserError
from rollouts.machine.device import resolve_device
from rollouts.machine.fair_lock import FairLock
from rollouts.machine.memory import return_freed_memory
from rollouts.model_config import sizes_of
from rollouts.model_folder import check_model_folder
from rollouts.types import Mix, WeightVersion

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    Work = tuple[Sequence[int], SamplingParams, LoRARequest | None]
    """Tokens of one request, its sampling, and the adapter that answers it."""

CPU_BLOCK_TOKENS = 32
"""Tokens of a block of the KV cache on CPUs, the fewest that vLLM's attention takes there. The prefix cache
knows whole blocks only: with vLLM's own 128 a short prompt and its turns would never be found in it."""
EXECUTORS = {"processes": "mp", "ray": "ray"}
"""vLLM's names of what runs an engine's workers, by `DeviceDivision.executor`."""
WORKER_EXTENSION = "rollouts.engines.transfer.worker.WorkerExtension"
"""Class that vLLM's workers take methods from, by its name."""
PART_BYTES = 64 << 20
"""Weights that vLLM's workers in other processes are sent at a time."""
MAX_LORAS = 8
"""Largest number of increments of a bank in one batch of vLLM; requests of others wait their turn."""


@dataclass(frozen=True, kw_only=True)
class VLLMConfig(EngineSpec):
    """Description of one vLLM engine.

    Without ``kv_cache_mb`` vLLM would claim most of a machine's memory on a CPU.
    """

    module: ClassVar[str] = "vllm"
    probe: ClassVar[str] = "from vllm import LLM; import vllm; print(vllm.__version__)"
    remedy: ClassVar[str] = (
        "pip install 'keel-align[cpu]' or 'keel-align[gpu]', or set rollouts.backend: transformers; where "
        "a cluster has it, name that in RAY_ADDRESS"
    )

    def __post_init__(self) -> None:
        if any("lm_head" in target for target in self.lora_targets):
            raise UserError(
                "an engine cannot take adapters that change lm_head",
                where="lora.targets",
                cause="vLLM drops or breaks the output layer's adapter when it scores",
                remedy="leave lm_head out of the adapter's target modules",
            )

    def environment(self, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """Return variables that must be set before a process imports vllm."""
        return engine_environment(self.model, device, self.threads, self.division.num_devices)

    def start(self) -> VLLMEngine:
        """Start vLLM in this process; one engine per process."""
        return VLLMEngine(self)

    def check_folder(self, device: Literal["cpu", "cuda"]) -> None:
        """Refuse a folder that lacks files, or whose heads vLLM's CPU attention does not know."""
        check_model_folder(self.model)
        if device == "cpu":
            check_head_dim(sizes_of(Path(self.model)).head_dim, Path(self.model))

    @classmethod
    def check_model(cls, model: ServedModel) -> None:
        """Refuse an architecture that vLLM does not serve on the device."""
        check_served(model)

    @classmethod
    def check_adapters(cls, model: ServedModel) -> None:
        """Refuse an architecture whose adapters vLLM does not serve."""
        check_serves_adapters(model)

    @classmethod
    def check_parts(cls, folder: Path, parts: EngineParts, device: Literal["cpu", "cuda"]) -> None:
        """Refuse a division that the model's sizes do not allow, and what vLLM lacks on the device."""
        config = json.loads((folder / "config.json").read_text("utf-8"))
        check_division(config, parts.division, str(folder / "config.json"))
        check_executor(parts.division, device)
        check_quantization(parts.quantization, device)
        check_transfer(parts.weight_transfer, device)


def engine_environment(
    model: str, device: Literal["cpu", "cuda"], threads: int = 1, num_devices: int = 1
) -> dict[str, str]:
    """Return the variables that must be set before a process imports vllm."""
    env = {
        **offline_environment(model, threads),
        # In-process engine: without it vLLM forks two helpers that import everything again.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if device == "cpu":
        # Counting logprob ranks is compiled on first use otherwise: 4 to 20 s.
        env["TORCH_COMPILE_DISABLE"] = "1"
        if num_devices > 1:
            # vLLM would give every worker a NUMA node of its own, and refuse where there are fewer.
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return env


class VLLMEngine:
    """A `RolloutEngine` over one in-process vLLM; one per process.

    Raises:
        UserError: the model folder cannot be served (see `check_model_folder`).
    """

    def __init__(self, config: VLLMConfig) -> None:
        self._config = config
        self._llm: Any = _start_vllm(config)
        self._engine: Any = self._llm.llm_engine
        self._adapter: LoRARequest | None = None
        self._previous_adapter: LoRARequest | None = None
        self._adapters_seen = 0
        self._bank: IncrementServer | None = None
        self._holds_base = self._whole = True
        self._added = 0
        self._receivers: dict[str, OutputReceiver] = {}
        self._lock = FairLock()
        # Another thread may leave weights here; of two that nobody loaded the later one stays.
        self._mail: deque[WeightUpdate] = deque(maxlen=1)
        self._engine.set_weight_version(BASE_VERSION)

    @property
    def version(self) -> WeightVersion:
        """Name of the weights that the next token is sampled with."""
        return str(self._engine.get_weight_version())

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return int(self._llm.model_config.max_model_len)

    def about(self) -> Mapping[str, str]:
        """Return the version of vLLM and the device that it computes on."""
        import vllm

        return {"vllm": vllm.__version__, "device": resolve_device(self._config.device)}

    def submit(self, requests: Sequence[SampleRequest]) -> Ticket:
        """Sample now, since no other process could do it meanwhile."""
        results = self.generate(requests)
        return lambda: results

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        """Sample every request; one that vLLM refuses or aborts comes back as failed.

        ``logprobs_T`` are nats under the distribution that was sampled from, after temperature,
        top-p and top-k; at temperature 0 they are those of the model itself.
        """
        results = dict(pair for batch in self.stream(requests) for pair in batch)
        return [results[index] for index in range(len(requests))]

    def stream(self, requests: Sequence[SampleRequest]) -> Arrivals:
        """Yield the results of `generate`, each as soon as its last completion is finished."""
        yield from SteppedConversation(self).stream(requests)

    def open(self) -> SteppedConversation:
        """Begin a conversation: requests join those that vLLM works on; see `OpenEngine.open`.

        vLLM keeps what it read and sampled in its prefix cache, in whole blocks, until memory is short or
        the weights change: a prompt that goes on from there is only read from its end.
        """
        return SteppedConversation(self)

    def add(self, opened: Sequence[OpenRequest]) -> None:
        """Let requests join those that vLLM works on; one that it refuses is answered as failed."""
        with self._lock:
            self._open_mail()
            self._check_whole()
            for each in opened:
                request = each.request
                adapter = self._adapter_of(request.mix)
                receive = partial(_answer, each)
                work = request.prompt_ids, sampling_params(request), adapter
                self._add(work, receive, owner=each)

    def step(self) -> None:
        """Let vLLM take one step, under the newest weights, and answer what has ended."""
        self._step(opens_mail=True)

    def drop(self, opened: Collection[OpenRequest]) -> None:
        """Take requests out of vLLM that are not answered."""
        with self._lock:
            self._abort([key for key, each in self._receivers.items() if each.owner in opened])

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Return the logprobs of given completions at temperature 1, read from vLLM's prompt logprobs.

        All are of one version: weights that are deposited meanwhile are loaded by the next call.

        Raises:
            ValueError: prompt and completion together do not leave one free token in the context.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        outputs: list[Any] = []
        mib = LOGITS_OF_PROMPTS_MIB[resolve_device(self._config.device)]
        vocab_size = int(self._llm.model_config.get_vocab_size())
        with self._lock:
            self._open_mail()
            self._check_whole()
            for part in scored_together(requests, vocab_size, mib):
                outputs += self._scored(part, params)
            # Logits of whole prompts are the largest blocks of memory that an engine frees.
            return_freed_memory()
        return [scores(*pair) for pair in zip(requests, outputs, strict=True)]

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Load an update, drop the prefix cache, stamp the version; requests under way are finished first.

        Raises:
            ValueError: tensors for an adapter engine or the reverse, or tensors are missing.
            RuntimeError: the prefix cache could not be dropped.
        """
        with self._lock:
            self._mail.clear()
            while self._whole and self._receivers:
                self._step(opens_mail=False)
            return self._load(update)

    def deposit(self, update: WeightUpdate) -> SyncReport:
        """Leave weights, from any thread, for the one that steps vLLM: it loads them before its next step.

        Running requests then compute their KV cache again. Kept, it would mix keys and values of old
        weights with new ones: a distribution of no version.
        """
        self._mail.append(update)
        return SyncReport(version=update.version, seconds=0.0, num_engines=1)

    def transfer(self, verb: str, info: Any, version: WeightVersion) -> None:
        """See `TransferEngine.transfer`; requests under way are finished first."""
        with self._lock:
            self._mail.clear()
            if verb == "init":
                self._llm.init_weight_transfer_engine({"init_info": dict(info)})
            elif verb == "start":
                while self._whole and self._receivers:
                    self._step(opens_mail=False)
                self._holds_base = self._whole = False
                self._llm.start_weight_update()
            elif verb == "update":
                self._llm.update_weights({"update_info": info})
            elif verb == "finish":
                self._llm.finish_weight_update()
                self._llm.collective_rpc("return_memory")
                self._serve(version)
            else:
                self._llm.collective_rpc("abandon_update")

    def _open_mail(self) -> None:
        """Load what was deposited, if anything; where that fails we are to be replaced."""
        if self._mail:
            update = self._mail.popleft()
            try:
                self._load(update)
            except Exception as error:
                raise WeightLoadError(f"{update.version!r} was not loaded: {error}") from error

    def _load(self, update: WeightUpdate) -> SyncReport:
        start = time.perf_counter()
        running = self._engine.has_unfinished_requests()
        if running and self._config.lora_rank is not None:
            raise RuntimeError("running requests keep their adapter, no other can take its place")
        check_update(update, takes_adapters=self._config.lora_rank is not None)
        if update.bank is None and self._bank is not None:
            self._bank.close()
            self._bank = None
        if update.bank is not None:
            self._use_adapter(None)
            self._bank = self._bank or IncrementServer(self._engine)
            self._bank.hold(update.bank)
        elif update.adapter is not None:
            self._load_adapter(update.adapter)
        elif self._config.lora_rank is not None:
            self._use_adapter(None)
        elif update.tensors is not None or not self._holds_base:
            self._holds_base = self._whole = False
            self._llm.start_weight_update()
            for part in self._parts_of(update.tensors):
                self._llm.update_weights({"update_info": part})
            self._llm.finish_weight_update()
            self._holds_base = update.tensors is None
            # Layers are packed one by one: without it each leaves a gap of its size in the heap.
            self._llm.collective_rpc("return_memory")
        self._serve(update.version, running=running)
        seconds = time.perf_counter() - start
        return SyncReport(version=self.version, seconds=seconds, num_engines=1, load_s=seconds)

    def _serve(self, version: WeightVersion, *, running: bool = False) -> None:
        """Drop what was computed with the weights before, and stamp the version."""
        self._whole = bool(self._llm.reset_prefix_cache(reset_running_requests=running))
        if not self._whole:
            raise RuntimeError("the prefix cache of the old weights is in use and was not dropped")
        self._engine.set_weight_version(version)

    def _parts_of(self, tensors: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
        """Yield what vLLM's workers are sent of an update: all of it where they are in this process, and a
        bounded part at a time where they are not."""
        from rollouts.engines.transfer.host import in_parts, to_host

        if tensors is None or self._config.division.num_devices == 1:
            yield {"tensors": tensors}
            return
        parts = list(in_parts(to_host(tensors), PART_BYTES))
        for number, part in enumerate(parts, start=1):
            yield {"tensors": part, "is_part": len(parts) > 1, "is_last": number == len(parts)}

    def close(self) -> None:
        """Stop vLLM and free its memory."""
        llm, self._llm, self._engine = self._llm, None, None
        if self._bank is not None:
            self._bank.close()
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()

    def _adapter_of(self, mix: Mix | None) -> LoRARequest | None:
        """Return the adapter that answers a request of this mix."""
        return self._adapter if self._bank is None else self._bank.request_of(mix)

    def _load_adapter(self, folder: str) -> None:
        from vllm.lora.request import LoRARequest

        # A fresh id and name per version: vLLM serves what it cached under a known one.
        self._adapters_seen += 1
        number = self._adapters_seen
        adapter = LoRARequest(f"adapter-{number}", number, str(Path(folder).resolve()))
        if not self._engine.add_lora(adapter):
            raise ValueError(f"vLLM did not load the adapter in {folder}")
        self._use_adapter(adapter)

    def _use_adapter(self, adapter: LoRARequest | None) -> None:
        """Serve ``adapter`` from now on; the one before stays loaded for one more sync."""
        if self._previous_adapter is not None:
            self._engine.remove_lora(self._previous_adapter.lora_int_id)
        self._previous_adapter, self._adapter = self._adapter, adapter

    def _check_whole(self) -> None:
        if not self._whole:
            raise RuntimeError("the last weight update failed half-way; sync again")

    def _step(self, *, opens_mail: bool) -> None:
        """Step vLLM once and hand on what has ended.

        Args:
            opens_mail: False keeps the weights that vLLM holds, whatever is deposited meanwhile.
        """
        with self._lock:
            if not self._receivers:
                return
            if opens_mail:
                self._open_mail()
            self._check_whole()
            for output in self._engine.step():
                if (receiver := self._receivers.pop(output.request_id, None)) is not None:
                    receiver.receive(output)
            if not self._engine.has_unfinished_requests():
                silent, self._receivers = self._receivers, {}
                for receiver in silent.values():
                    receiver.receive(None)

    def _scored(self, part: Sequence[ScoreRequest], params: SamplingParams) -> list[Any]:
        """Return vLLM's outputs for sequences that are scored together; None where it has none."""
        outputs: list[Any] = [None] * len(part)
        keys, owner = set(), object()
        try:
            for index, request in enumerate(part):
                tokens = (*request.prompt_ids, *request.completion_ids)
                work = tokens, params, self._adapter_of(request.mix)
                keys.add(self._add(work, partial(outputs.__setitem__, index), owner))
            while not keys.isdisjoint(self._receivers):
                self._step(opens_mail=False)
        finally:
            self._abort([key for key in keys if key in self._receivers])
        return outputs

    def _add(self, work: Work, receive: Callable[[Any], None], owner: object) -> str:
        """Hand vLLM one request, and return its name there; a refusal is received at once."""
        from vllm.exceptions import VLLMClientError

        token_ids, params, adapter = work
        prompt = {"type": "token", "prompt_token_ids": list(token_ids)}
        self._added += 1
        key = str(self._added)
        self._receivers[key] = OutputReceiver(receive, owner)
        try:
            self._engine.add_request(key, prompt, params, lora_request=adapter)
        except (ValueError, VLLMClientError) as error:
            del self._receivers[key]
            receive(f"refused: {error}")
        return key

    def _abort(self, keys: Sequence[str]) -> None:
        """Take requests out of vLLM: left there, they would run, and count, beside those that follow."""
        for key in keys:
            del self._receivers[key]
        with suppress(Exception):
            self._engine.abort_request(list(keys))


class OutputReceiver(NamedTuple):
    """Caller that takes vLLM's output of one request."""

    receive: Callable[[Any], None]
    """Takes the output, the reason why vLLM refused the request, or None if vLLM has no output."""
    owner: object
    """Object by which the caller may take its requests back."""


def _answer(opened: OpenRequest, output: Any) -> None:
    opened.answer(completions(output, opened.request.n))


def _start_vllm(config: VLLMConfig) -> Any:
    """Import vllm in this process and build its ``LLM`` with the ``host`` backend for weights."""
    device = resolve_device(config.device)
    config.check_installed()
    if Path(config.model).is_dir() or config.model.startswith((".", "/", "~")):
        config.check_folder(device)
    if "vllm" not in sys.modules:
        os.environ.update(config.environment(device))
    # vllm announces on import that a machine has no GPU, and its own use of deprecated names.
    logging.getLogger("vllm").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from vllm import LLM

        llm = LLM(config.model, **_llm_arguments(config, device))
    return llm


def _llm_arguments(config: VLLMConfig, device: Literal["cpu", "cuda"]) -> dict[str, Any]:
    from rollouts.engines.transfer.backends import PREFIX

    division = config.division
    arguments: dict[str, Any] = {
        "trust_remote_code": config.trust_remote_code,
        "seed": config.seed,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "distributed_executor_backend": "uni"
        if division == WHOLE
        else EXECUTORS[division.executor],
        "tensor_parallel_size": division.tensor,
        "pipeline_parallel_size": division.pipeline,
        "enable_expert_parallel": division.experts,
        "quantization": config.quantization,
        "worker_extension_cls": WORKER_EXTENSION,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "weight_transfer_config": {"backend": PREFIX + config.weight_transfer},
    }
    usual_dtype = "bfloat16" if device == "cuda" else "float32"
    arguments["dtype"] = usual_dtype if config.dtype == "auto" else config.dtype
    if device == "cuda":
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    else:
        arguments |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": config.kv_cache_mb << 20,
            "block_size": CPU_BLOCK_TOKENS,
        }
    if config.lora_rank is not None:
        bank = config.bank_increments
        arguments |= {
            "enable_lora": True,
            "max_lora_rank": served_rank(config.lora_rank),
            # Two: the adapter in use and the one before it. Of a bank, those that one batch mixes, and
            # one for the base.
            "max_loras": 2 if bank is None else min(bank, MAX_LORAS) + 1,
            "max_cpu_loras": 4 if bank is None else bank + 1,
            "lora_target_modules": list(config.lora_targets),
        }
    return arguments


def served_rank(rank: int) -> int:
    """Return the smallest rank that vLLM can be started with and that holds ``rank``; UserError if none
    does."""
    ranks = (1, 8, 16, 32, 64, 128, 256, 320, 512)
    served = next((candidate for candidate in ranks if candidate >= rank), None)
    if served is None:
        raise UserError(
            f"vLLM serves adapters up to rank {ranks[-1]}, not {rank}",
            where="policy.lora.rank",
            remedy=f"choose a rank of at most {ranks[-1]}",
        )
    return served
