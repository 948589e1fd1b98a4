"""Checks of a model's architecture: a text decoder with an output head that transformers knows."""

from __future__ import annotations

from align.learner.folder.folder import ModelFolder
from align.learner.model.mapping import model_class
from rollouts.errors import UserError

HEADS = {
    "ForSequenceClassification": "it classifies whole texts",
    "ForTokenClassification": "it labels tokens",
    "ForQuestionAnswering": "it marks answers in a text",
    "ForMaskedLM": "it is an encoder, which fills gaps and does not continue a text",
    "ForPreTraining": "it is an encoder, which fills gaps and does not continue a text",
    "ForConditionalGeneration": "it reads an input through an encoder, or pictures and sound",
    "Model": "it has no output head",
}
"""Reasons why a class is no causal language model, by the ending of its name."""
LOGIT_CHANGES = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Config keys of models that scale or cap their logits after the output head."""


def is_plain_precision(folder: ModelFolder) -> None:
    """Refuse quantised weights, which have no gradient."""
    chosen = folder.raw.get("quantization_config") or folder.raw.get("compression_config")
    if not chosen:
        return
    method = chosen.get("quant_method", "unknown") if isinstance(chosen, dict) else chosen
    raise _refused(
        folder,
        f"the weights are quantised ({method})",
        cause="quantised weights cannot be trained, nor updated in an engine",
        remedy="give the folder of the original model in bfloat16, float16 or float32",
    )


def is_known(folder: ModelFolder) -> None:
    """Refuse a type that transformers cannot build."""
    from transformers import __version__

    try:
        config = folder.config
    except Exception as error:
        kind = folder.raw.get("model_type")
        raise _refused(
            folder,
            f"transformers {__version__} cannot read the config (model_type {kind!r}): "
            f"{_first_line(error)}",
            cause="the model is newer than the installed transformers, or its config.json is damaged"
            if kind
            else "config.json has no model_type",
            remedy="install a newer transformers, or choose another model",
        ) from error
    if kinds := [k for k in ("vision_config", "audio_config") if getattr(config, k, None)]:
        raise _refused(
            folder,
            f"{config.model_type!r} reads more than text ({kinds[0]})",
            cause="rounds sample and learn from text alone",
            remedy="choose the text-only model of the family",
        )
    if getattr(config, "is_encoder_decoder", False):
        raise _refused(
            folder,
            f"{config.model_type!r} is an encoder-decoder model",
            cause="rounds train decoders, which continue a prompt",
            remedy="choose a causal language model (AutoModelForCausalLM)",
        )


def is_causal(folder: ModelFolder) -> None:
    """Refuse a model that is no decoder with an output head over its vocabulary."""
    for name in folder.architectures:
        ending = next((e for e in HEADS if name.endswith(e)), None)
        # Names such as GPT2LMHeadModel end in Model, too.
        if ending is not None and not name.endswith(("ForCausalLM", "LMHeadModel")):
            raise _refused(
                folder,
                f"{name} is no causal language model: {HEADS[ending]}",
                remedy="choose a model that was saved as a causal language model (...ForCausalLM)",
            )
    try:
        model_class(folder.path, folder.policy)
    except (ValueError, KeyError, OSError, ImportError, AttributeError) as error:
        raise _refused(
            folder,
            f"there is no causal language model for it: {_first_line(error)}",
            remedy="choose a model that was saved as a causal language model (...ForCausalLM)",
        ) from error


def keeps_its_logits(folder: ModelFolder) -> None:
    """Refuse models that change their logits after the output head."""
    text = folder.config.get_text_config(decoder=True)
    changed = [key for key in LOGIT_CHANGES if getattr(text, key, None) not in (None, 1, 1.0)]
    if changed:
        raise _refused(
            folder,
            f"the model changes its logits after the output head ({changed[0]} is "
            f"{getattr(text, changed[0]):g})",
            cause="it scales or caps them, and the learner computes logits without that step",
            remedy="choose a model without logit scaling or soft-capping",
        )


def _first_line(error: BaseException) -> str:
    """Return an error's first line, and the next ones as long as a line ends with a colon."""
    lines = [line.strip() for line in (str(error).strip() or repr(error)).splitlines()]
    number = next((n for n, line in enumerate(lines, start=1) if not line.endswith(":")), None)
    return " ".join(lines[:number])


def _refused(folder: ModelFolder, what: str, *, remedy: str, cause: str | None = None) -> UserError:
    return UserError(what, where=str(folder.path / "config.json"), cause=cause, remedy=remedy)
