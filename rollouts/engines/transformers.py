"""Engine over a transformers model: every causal architecture that transformers has, and no vLLM.

`TransformersEngine` decodes rows in batches with a KV cache and computes what the learner computes, so it
also serves what vLLM's CPU kernels refuse: small heads and recurrent layers. Results follow from a
request's seed and the weights, whatever is decoded beside it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rollouts.engines.backend import BASE_VERSION, EngineSpec, ServedModel, offline_environment
from rollouts.engines.protocol import (
    Arrivals,
    BankAdapter,
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
from rollouts.errors import UserError
from rollouts.machine.device import resolve_device
from rollouts.machine.fair_lock import FairLock
from rollouts.machine.memory import return_freed_memory
from rollouts.types import Completion, WeightVersion

if TYPE_CHECKING:
    from rollouts.engines.decoding.completions import OpenCompletion
    from rollouts.engines.decoding.queue import DecodingQueue

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TransformersConfig(EngineSpec):
    """Description of one engine over a transformers model."""

    module: ClassVar[str] = "transformers"
    probe: ClassVar[str] = (
        "from transformers import AutoModelForCausalLM, __version__; print(__version__)"
    )
    remedy: ClassVar[str] = "pip install transformers"
    shares_process: ClassVar[bool] = True

    def environment(self, device: Literal["cpu", "cuda"]) -> dict[str, str]:
        """Return variables of the engine's process."""
        # Advice of transformers to whoever calls generate(), which nobody does.
        quiet = {"TRANSFORMERS_VERBOSITY": "error"}
        return {**offline_environment(self.model, self.threads), **quiet}

    def start(self) -> TransformersEngine:
        """Load the model in this process."""
        return TransformersEngine(self)

    @classmethod
    def check_model(cls, model: ServedModel) -> None:
        """Accept every architecture: what transformers loads, the engine decodes."""

    @classmethod
    def check_adapters(cls, model: ServedModel) -> None:
        """Accept every architecture: peft puts adapters into all of them."""


class TransformersEngine:
    """A `RolloutEngine` over one transformers model in this process; it also takes weights in flight.

    Raises:
        UserError: the model folder cannot be served, or the KV cache holds no sequence of full length.
    """

    def __init__(self, config: TransformersConfig) -> None:
        import torch

        from rollouts.engines.decoding.batch import batch_kind
        from rollouts.engines.decoding.reader import ModelReader
        from rollouts.engines.decoding.weights import ReplaceableWeights, load_model

        config.check_installed()
        device = resolve_device(config.device)
        if Path(config.model).is_dir() or config.model.startswith((".", "/", "~")):
            config.check_folder(device)
        usual_dtype = "float32" if device == "cpu" else "bfloat16"
        self._config = config
        self._model: Any = load_model(
            config.model,
            getattr(torch, usual_dtype if config.dtype == "auto" else config.dtype),
            torch.device(device),
            trust_remote_code=config.trust_remote_code,
        )
        self._weights: Any = ReplaceableWeights(self._model, config.model)
        self._adapted: Any = None
        self._bank: Any = None
        self._reader: Any = ModelReader(self._model)
        self._kind, self._token_bytes = batch_kind(self._reader)
        self._version: WeightVersion = BASE_VERSION
        self._holds_base = self._whole = True
        # Another thread may leave weights here; of two that nobody loaded the later one stays.
        self._mail: deque[WeightUpdate] = deque(maxlen=1)
        self._rereads = False
        self._queue: DecodingQueue | None = None
        self._under_way: dict[OpenRequest, list[OpenCompletion]] = {}
        self._lock = FairLock()
        self._stops = _Stops(self._model, config)
        capacity = self._capacity()
        if config.max_model_len is not None and capacity < config.max_model_len:
            raise UserError(
                f"the KV cache of an engine holds {capacity:,} tokens, and one sequence may have "
                f"{config.max_model_len:,}",
                where="rollouts.kv_cache_mb",
                remedy="set rollouts.kv_cache_mb higher, or rollouts.max_model_len lower",
            )

    @property
    def version(self) -> WeightVersion:
        """Name of the weights that the next token is sampled with."""
        return self._version

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        if self._config.max_model_len is not None:
            return self._config.max_model_len
        text = self._model.config.get_text_config(decoder=True)
        return int(getattr(text, "max_position_embeddings", None) or 1 << 20)

    def submit(self, requests: Sequence[SampleRequest]) -> Ticket:
        """Sample now; there is nobody to do it meanwhile."""
        results = self.generate(requests)
        return lambda: results

    def generate(self, requests: Sequence[SampleRequest]) -> list[SampleResult]:
        """Sample every request; one that cannot be answered comes back as failed.

        ``logprobs_T`` are nats under the distribution that was sampled from, after temperature, min-p,
        top-k and top-p; at temperature 0 they are those of the model itself.
        """
        results = dict(pair for batch in self.stream(requests) for pair in batch)
        return [results[index] for index in range(len(requests))]

    def stream(self, requests: Sequence[SampleRequest]) -> Arrivals:
        """Yield the results of `generate`, each as soon as its last completion is finished.

        Raises:
            WeightLoadError: weights that were deposited could not be loaded; only a `sync` helps.
        """
        yield from SteppedConversation(self).stream(requests)

    def open(self) -> SteppedConversation:
        """Begin a conversation: requests join the batch that is decoded; see `OpenEngine.open`."""
        return SteppedConversation(self)

    def add(self, opened: Sequence[OpenRequest]) -> None:
        """Let requests join the batch; one that cannot be read is answered as failed.

        Raises:
            WeightLoadError: weights that were deposited could not be loaded; only a `sync` helps.
        """
        from rollouts.engines.decoding.completions import open_completions

        with self._lock:
            self._open_mail()
            if self._queue is None or self._queue.is_empty:
                self._queue = self._new_queue()
            for each in opened:
                request = each.request
                if reason := self._refusal(request.prompt_ids, request.prompt_ids):
                    each.answer((Completion.failed(f"refused: {reason}"),) * request.n)
                    continue
                room = self.max_model_len - len(request.prompt_ids)
                completions = open_completions(
                    each,
                    limit=min(request.sampling.max_tokens, room),
                    ends=self._stops.ends,
                    decode=self._stops.decode,
                )
                self._under_way[each] = completions
                self._queue.add(completions)

    def step(self) -> None:
        """Sample the next token of every row in the batch, and answer what has ended."""
        from rollouts.engines.decoding.completions import take_next

        with self._lock:
            if self._queue is None or self._queue.is_empty:
                return
            self._open_mail()
            rereads, self._rereads = self._rereads, True
            logits_BV = self._queue.next_logits(reread=rereads)
            take_next(logits_BV, self._queue.running, self._version)
            self._rereads = False
            touched = dict.fromkeys(each.opened for each in self._queue.pop_finished())
            for opened in touched:
                completions = self._under_way[opened]
                if all(each.finish for each in completions):
                    del self._under_way[opened]
                    opened.answer([each.completion() for each in completions])

    def drop(self, opened: Collection[OpenRequest]) -> None:
        """Decode these requests no further."""
        with self._lock:
            dropped = {each for each in opened if self._under_way.pop(each, None) is not None}
            if dropped and self._queue is not None:
                self._queue.drop(lambda completion: completion.opened in dropped)

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Return the logprobs of given completions at temperature 1.

        Raises:
            ValueError: a prompt is empty, has a token that the model has not, or prompt and completion
                together do not leave one free token in the context.
        """
        with self._lock:
            self._open_mail()
            for request in requests:
                tokens = (*request.prompt_ids, *request.completion_ids)
                if reason := self._refusal(request.prompt_ids, tokens):
                    raise ValueError(f"a sequence could not be scored: {reason}")
            rows = [((*r.prompt_ids, *r.completion_ids), len(r.prompt_ids)) for r in requests]
            mixes = [r.mix or () for r in requests]
            logprobs: list[tuple[float, ...]] = self._reader.logprobs(rows, mixes)
            return_freed_memory()
        return logprobs

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Load an update and take its version; requests under way are finished first.

        Raises:
            ValueError: tensors for an adapter engine or the reverse, or tensors are missing.
        """
        with self._lock:
            self._mail.clear()
            while self._whole and self._queue is not None and not self._queue.is_empty:
                self.step()
            return self._load(update)

    def deposit(self, update: WeightUpdate) -> SyncReport:
        """Leave weights, from any thread, for the next token; rows under way are read again under them."""
        self._mail.append(update)
        return SyncReport(version=update.version, seconds=0.0, num_engines=1)

    def close(self) -> None:
        """Free the model."""
        self._model = self._adapted = self._bank = self._reader = self._weights = None

    def _new_queue(self) -> DecodingQueue:
        from rollouts.engines.decoding.queue import DecodingQueue

        return DecodingQueue(
            lambda: self._kind(self._reader),
            max_rows=min(self._config.max_num_seqs, self._reader.rows_per_pass),
            max_tokens=self._capacity(),
        )

    def _open_mail(self) -> None:
        """Load what was deposited, if anything."""
        update = self._mail.popleft() if self._mail else None
        if update is not None:
            try:
                self._load(update)
            except Exception as error:
                raise WeightLoadError(f"{update.version!r} was not loaded: {error}") from error
        if not self._whole:
            raise RuntimeError("the last weight update failed half-way; sync again")

    def _load(self, update: WeightUpdate) -> SyncReport:
        start = time.perf_counter()
        check_update(update, takes_adapters=self._config.lora_rank is not None)
        if update.bank is not None:
            self._use_bank(update.bank)
        elif self._config.lora_rank is not None:
            self._use_adapter(update.adapter)
        elif update.tensors is not None or not self._holds_base:
            self._holds_base = self._whole = False
            self._weights.load(update.tensors)
            self._holds_base = update.tensors is None
            return_freed_memory()
        self._whole = self._rereads = True
        self._version = update.version
        seconds = time.perf_counter() - start
        return SyncReport(version=update.version, seconds=seconds, num_engines=1, load_s=seconds)

    def _use_bank(self, adapters: Mapping[str, BankAdapter]) -> None:
        """Hold the adapters of a bank over the base; each request says which of them answer it."""
        from rollouts.engines.decoding.gated import AdapterBank

        self._whole = False
        if self._adapted is not None:
            raise ValueError("this engine holds an adapter of its own, and takes no bank beside it")
        if self._bank is None:
            self._bank = self._reader.bank = AdapterBank(self._model)
        self._bank.hold(adapters)

    def _use_adapter(self, folder: str | None) -> None:
        """Put an adapter over the base in place of the one before; None takes it off."""
        from peft import PeftModel

        self._whole = False
        if self._bank is not None and folder is not None:
            raise ValueError("this engine holds a bank, and takes no adapter beside it")
        if self._bank is not None:
            self._bank.hold({})
        if self._adapted is not None:
            self._adapted.unload()
            self._adapted = None
        if folder is not None:
            self._adapted = PeftModel.from_pretrained(self._model, folder).eval()

    def _refusal(self, prompt_ids: Sequence[int], tokens: Sequence[int]) -> str | None:
        """Return why tokens cannot be read and gone on with; None if they can."""
        if not prompt_ids:
            return "the prompt is empty"
        if len(tokens) >= self.max_model_len:
            return (
                f"{len(tokens)} tokens and at least one more are longer than the maximum model length "
                f"of {self.max_model_len}"
            )
        wrong = next((token for token in tokens if not 0 <= token < self._reader.vocabulary), None)
        return None if wrong is None else f"token {wrong} is not in the vocabulary"

    def _capacity(self) -> int:
        """Return the tokens that a batch may keep."""
        if self._reader.device.type == "cpu":
            return self._config.kv_cache_mb * MIB // int(self._token_bytes)
        import torch

        free, total = torch.cuda.mem_get_info(self._reader.device)
        reserved = torch.cuda.memory_reserved(self._reader.device)
        # A cache that grows is copied: two of them are in memory for a moment.
        room = min(free + reserved, int(total * self._config.gpu_memory_utilization))
        room -= sum(tensor.nbytes for tensor in self._model.state_dict().values())
        tokens: int = max(0, room) // (2 * int(self._token_bytes))
        return tokens


class _Stops:
    """Tokens that end every completion, and the tokenizer where texts do."""

    def __init__(self, model: Any, config: TransformersConfig) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            config.model, trust_remote_code=config.trust_remote_code
        )
        ids = model.generation_config.eos_token_id
        eos_ids = [ids] if isinstance(ids, int) else list(ids or ())
        tokenizer_eos = self._tokenizer.eos_token_id
        self.ends = frozenset([*eos_ids, *([] if tokenizer_eos is None else [tokenizer_eos])])

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of a completion's tokens, without special tokens."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
