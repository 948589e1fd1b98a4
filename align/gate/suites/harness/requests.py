"""Requests of a task to a model, checked before an engine is started for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from align.gate.suites.harness.lm import KNOWN_OPTIONS, MAX_GEN_TOKS, TextModel
from rollouts.errors import UserError


def check_requests(instances: Iterable[Any], model: TextModel, where: str) -> int:
    """Count the requests that are longer than the context and lose their beginning.

    Raises:
        UserError: a request that no truncation makes fit, or that asks for what engines cannot do.
    """
    return sum(_is_cut(instance, model, where) for instance in instances)


def _is_cut(instance: Any, model: TextModel, where: str) -> bool:
    if len(instance.args) != (1 if instance.request_type == "loglikelihood_rolling" else 2):
        raise UserError("the task shows images or sounds, and engines read text", where=where)
    if instance.request_type == "generate_until":
        return _context_is_cut(instance.args[0], instance.args[1], model, where)
    if model.prefix_token_id is None and not (len(instance.args) == 2 and instance.args[0]):
        raise UserError(
            "the task scores texts from their first token, and the tokenizer has neither a bos nor an "
            "eos token to begin with",
            where=where,
            remedy="leave the suite out, or give the tokenizer a bos_token",
        )
    if instance.request_type == "loglikelihood_rolling":
        return False
    context, continuation = instance.args
    alone = len(model.tok_encode(continuation, add_special_tokens=False))
    if not 0 < alone <= model.max_length:
        raise UserError(
            f"the task scores an answer of {alone} tokens, and engines score 1 to {model.max_length}: "
            f"{continuation[:60]!r}",
            where=where,
            remedy="drop the item with process_docs, or raise rollouts.max_model_len",
        )
    return len(model.tok_encode(context + continuation)) > model.max_length + 1


def _context_is_cut(context: str, options: dict[str, Any], model: TextModel, where: str) -> bool:
    from lm_eval.models.utils import normalize_gen_kwargs

    settings = normalize_gen_kwargs(options, MAX_GEN_TOKS)
    unknown = sorted(settings.keys() - KNOWN_OPTIONS)
    if unknown:
        raise UserError(
            f"the task samples with {', '.join(unknown)}, which engines do not know",
            where=where,
            remedy=f"remove it from generation_kwargs; known: {', '.join(sorted(KNOWN_OPTIONS))}",
        )
    room = model.max_length - int(settings["max_gen_toks"])
    if room < 1:
        raise UserError(
            f"the task generates up to {settings['max_gen_toks']} tokens, and of the engines' context "
            f"{model.max_length} can be used",
            where=where,
            remedy="set max_tokens of the suite, or raise rollouts.max_model_len",
        )
    return len(model.encode_context(context)) > room
