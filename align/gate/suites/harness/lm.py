"""Our engines as a language model of lm_eval: the same tokens in, the same numbers out as its `HFLM`.

Tokenization, the windows of long texts and truncation from the left are those of `HFLM` with the
same ``max_length``. An engine scores a sequence by generating one token after it and `HFLM` never
feeds the last token, so ``max_length`` is the engine's context less two.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rollouts.collect import cut
from rollouts.engines.protocol import RolloutEngine, SampleRequest, ScoreRequest
from rollouts.types import Completion, FinishReason, Sampling

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

MAX_GEN_TOKS = 256
"""Longest answer of a task that does not say, as in `HFLM`."""
KNOWN_OPTIONS = frozenset({"until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks"})
FINISHES: tuple[FinishReason, ...] = ("failed", "length", "stop")
"""The worst first."""


class TextModel:
    """The tokenizer of a model and its context: all that is known before an engine holds it."""

    def __init__(self, encoder: PromptEncoder, context: int | None) -> None:
        super().__init__()
        self.tokenizer: Any = encoder.tokenizer
        self._encoder = encoder
        self.max_length: int = (context or 1 << 30) - 2
        """Longest sequence that is fed, in tokens."""

    @property
    def eot_token_id(self) -> int | None:
        eos: int | None = self.tokenizer.eos_token_id
        return eos

    @property
    def prefix_token_id(self) -> int | None:
        """Token that a text without anything before it is conditioned on."""
        bos: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return token ids with what the tokenizer puts around them, unless the text begins with it."""
        if add_special_tokens is None and self._opened(string, self._prefix):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, verbose=False, **options))

    def encode_context(self, context: str) -> list[int]:
        """Return the token ids that an answer is generated after, before truncation."""
        options = {}
        if self._opened(context, self.tokenizer.bos_token):
            options = {"add_special_tokens": False}
        return list(self.tokenizer(context, verbose=False, **options).input_ids)

    def tok_decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render the turns as text; an answer that is begun for the model stays open."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    @property
    def _prefix(self) -> str | None:
        first = self.prefix_token_id
        return None if first is None else str(self.tokenizer.decode([first]))

    @staticmethod
    def _opened(text: str, opening: str | None) -> bool:
        return bool(opening) and text.startswith(str(opening))


class EngineModel(TextModel):
    """The three questions of lm_eval, answered by an engine. `engine_lm` makes it an ``LM``.

    Attributes:
        finishes: by ``doc_id``, how the worst of its answers ended.
        num_tokens: generated and scored so far.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        encoder: PromptEncoder,
        context: int | None,
        seed: int = 0,
        *,
        greedy: bool = True,
    ) -> None:
        super().__init__(encoder, context)
        self._engine, self._seed, self._greedy = engine, seed, greedy
        self.finishes: dict[int, FinishReason] = {}
        self.num_tokens = 0

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Sample answers, each cut before the first of its stop texts."""
        prepared = [
            self._sample_request(number, request.args[0], request.args[1])
            for number, request in enumerate(requests)
        ]
        texts, completions = [], self._completed(prepared)
        for request, (_, until), completion in zip(requests, prepared, completions, strict=True):
            self.num_tokens += len(completion.token_ids)
            whole = self.tok_decode(completion.token_ids)
            text = cut(whole, until)
            self._note(request.doc_id, completion, stopped=text != whole)
            texts.append(text)
        return texts

    def _completed(self, prepared: Sequence[tuple[SampleRequest, list[str]]]) -> list[Completion]:
        """Return the engine's answers, each up to an end that is one in the decoded text too.

        An engine sees a completion in its context, where its first word may have a space before it
        that decoding the completion alone does not give: it can stop at " 7" where the answer is "7".
        """
        if not prepared:
            return []
        results = self._engine.generate([request for request, _ in prepared])
        completions = [result.completions[0] for result in results]
        early = [
            index
            for index, (completion, (request, until)) in enumerate(
                zip(completions, prepared, strict=True)
            )
            if len(completion.token_ids) < request.sampling.max_tokens
            and self._stopped_early(completion, until)
        ]
        rest = [_rest(prepared[index][0], completions[index]) for index in early]
        for index, result in zip(early, self._engine.generate(rest) if rest else [], strict=True):
            begun, ended = completions[index], result.completions[0]
            completions[index] = replace(
                ended,
                token_ids=(*begun.token_ids, *ended.token_ids),
                logprobs_T=(*begun.logprobs_T, *ended.logprobs_T),
            )
        return completions

    def _stopped_early(self, completion: Completion, until: Sequence[str]) -> bool:
        ids = completion.token_ids
        if (
            completion.finish_reason != "stop"
            or not ids
            or ids[-1] in (*self.tokenizer.all_special_ids, *self._encoder.eos_ids)
        ):
            return False
        text = self.tok_decode(ids)
        return cut(text, until) == text

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts in nats: every token once, in windows of ``max_length`` tokens."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows = [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        sums = iter(self._sums([window for of_text in windows for window in of_text]))
        return [math.fsum(next(sums) for _ in of_text) for of_text in windows]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Score every continuation, and tell if greedy decoding gives it."""
        pairs = []
        for _, context, continuation in requests:
            whole = (context + continuation)[-(self.max_length + 1) :]
            pairs.append((whole[: len(whole) - len(continuation)], continuation))
        sums = self._sums(pairs)
        chosen = self._chosen(pairs) if self._greedy else [False] * len(pairs)
        return list(zip(sums, chosen, strict=True))

    def _sums(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        requests = [
            ScoreRequest(prompt_ids=tuple(context), completion_ids=tuple(continuation))
            for context, continuation in pairs
        ]
        self.num_tokens += sum(len(request.completion_ids) for request in requests)
        return (
            [math.fsum(logprobs) for logprobs in self._engine.score(requests)] if requests else []
        )

    def _chosen(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[bool]:
        """Tell of each continuation if it is what the model says; every context is asked once.

        Greedy decoding ends with an end-of-sequence token: what follows one is never chosen.
        """
        longest: dict[tuple[int, ...], int] = {}
        for context, continuation in pairs:
            key = tuple(context)
            longest[key] = max(longest.get(key, 0), len(continuation))
        requests = [
            self._request(f"greedy/{number}", list(key), Sampling(max_tokens=n, temperature=0.0))
            for number, (key, n) in enumerate(longest.items())
        ]
        results = self._engine.generate(requests) if requests else []
        greedy = {
            request.prompt_ids: result.completions[0].token_ids
            for request, result in zip(requests, results, strict=True)
        }
        self.num_tokens += sum(len(token_ids) for token_ids in greedy.values())
        return [greedy[tuple(context)][: len(rest)] == tuple(rest) for context, rest in pairs]

    def _sample_request(
        self, number: int, context: str, options: dict[str, Any]
    ) -> tuple[SampleRequest, list[str]]:
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        settings: dict[str, Any] = dict(normalize_gen_kwargs(options, MAX_GEN_TOKS))
        eos = self.eot_token_id
        until = handle_stop_sequences(
            list(settings["until"]), eos=None if eos is None else str(self.tokenizer.decode([eos]))
        )
        sampling = Sampling(
            max_tokens=settings["max_gen_toks"],
            temperature=float(settings.get("temperature", 1.0)) if settings["do_sample"] else 0.0,
            top_p=float(settings.get("top_p", 1.0)),
            top_k=int(settings.get("top_k", -1)),
            stop_texts=tuple(until),
        )
        room = self.max_length - sampling.max_tokens
        if room < 1:
            raise ValueError(
                f"{sampling.max_tokens} tokens are to be generated, and {self.max_length} fit"
            )
        context_ids = self.encode_context(context)[-room:]
        return self._request(f"{number}", context_ids, sampling), until

    def _request(self, name: str, context_ids: list[int], sampling: Sampling) -> SampleRequest:
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        return SampleRequest(
            id=f"harness/{name}",
            prompt_ids=tuple(context_ids),
            n=1,
            sampling=self._encoder.ended(sampling),
            seed=int.from_bytes(digest[:4], "big") >> 1,
        )

    def _note(self, doc_id: int, completion: Completion, *, stopped: bool) -> None:
        finish = completion.finish_reason
        if stopped and finish == "length":
            finish = "stop"
        self.finishes[doc_id] = min(finish, self.finishes.get(doc_id, "stop"), key=FINISHES.index)


def _rest(request: SampleRequest, begun: Completion) -> SampleRequest:
    """Return the request for what follows, however it is worded."""
    left = request.sampling.max_tokens - len(begun.token_ids)
    return replace(
        request,
        id=f"{request.id}/rest",
        prompt_ids=(*request.prompt_ids, *begun.token_ids),
        sampling=replace(request.sampling, max_tokens=left, stop_texts=()),
    )


def engine_lm(
    engine: RolloutEngine, encoder: PromptEncoder, context: int | None, **rest: Any
) -> Any:
    """Return an engine as an ``lm_eval.api.model.LM``, for `lm_eval.simple_evaluate` or a suite.

    Args:
        context: prompt plus completion that the engine holds, in tokens; None: any.
        rest: ``seed`` of what is sampled; ``greedy=False`` leaves out whether a continuation is the
            greedy one, where no metric asks.
    """
    from lm_eval.api.model import TemplateLM

    class EngineLM(EngineModel, TemplateLM):
        """`TemplateLM` splits contexts from continuations and asks for tokens."""

    return EngineLM(engine, encoder, context, **rest)
