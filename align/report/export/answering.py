"""Sampling of requests that name none: as the gate measured.

A base model's ``generation_config.json`` may ask for a temperature, a penalty, a top_p that no suite was
measured with; vLLM's server and transformers apply it all the same. What is published and served gets one
of the campaign's own: the tokens that end an answer, and the sampling of its suites.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align.config.campaign import CampaignConfig
from align.config.gate import AnswerSampling
from align.data.base_model import ENCODING_FILES, load_encoder
from rollouts.chat.endings import GENERATION_CONFIG
from rollouts.prompts import PromptEncoder

KEPT = (
    "bos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "use_cache",
    "transformers_version",
)
"""Entries of a base model's generation config that change no distribution."""
CHAT_TEMPLATE = "chat_template.jinja"


def served_sampling(config: CampaignConfig) -> AnswerSampling | None:
    """Return the campaign's ``serving``, else how all its suites sample; None where they differ."""
    if config.serving is not None:
        return config.serving
    ways = list(dict.fromkeys(_ways(config)))
    return ways[0] if len(ways) == 1 else None


def default_line(config: CampaignConfig) -> str:
    """Say in one sentence how a request without sampling settings is answered."""
    sampling = served_sampling(config)
    if sampling is None:
        number = len(set(_ways(config)))
        why = f"the suites are sampled in {number} ways" if number else "no suite samples answers"
        return (
            "a request that names no sampling is answered at temperature 1, the policy's own distribution: "
            f"{why}; set serving to choose"
        )
    values: dict[str, Any] = {"temperature": sampling.temperature} | {
        name: getattr(sampling, name)
        for name, field in AnswerSampling.model_fields.items()
        if getattr(sampling, name) != field.get_default()
    }
    stated = ", ".join(
        f"{name} {value:g}"
        if isinstance(value, int | float)
        else f"{name} {json.dumps(list(value))}"
        for name, value in values.items()
    )
    source = "serving says" if config.serving is not None else "the gate measured"
    return f"a request that names no sampling is answered as {source}: {stated}"


def ends(encoder: PromptEncoder, config: CampaignConfig) -> list[int]:
    """Return the tokens that end an answer, and those of stop texts that are one special token."""
    sampling = served_sampling(config) or AnswerSampling()
    stops = encoder.ended(sampling.sampling(1)).stop_token_ids
    return list(dict.fromkeys((*encoder.eos_ids, *stops)))


def write_generation_config(folder: Path, eos_ids: Sequence[int], config: CampaignConfig) -> None:
    """Replace a model folder's generation config, or write one, by the campaign's settings."""
    file = folder / GENERATION_CONFIG
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    content = generation_config(before, eos_ids, served_sampling(config))
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def generation_config(
    before: dict[str, Any], eos_ids: Sequence[int], sampling: AnswerSampling | None
) -> dict[str, Any]:
    """Return the config for transformers and vLLM, in a form that transformers can save again."""
    content = {name: before[name] for name in KEPT if before.get(name) is not None}
    if eos_ids:
        content["eos_token_id"] = list(eos_ids)
    if sampling is None:
        sampling = AnswerSampling(temperature=1.0)
    if sampling.temperature == 0.0:
        return {**content, "do_sample": False}
    # Without an entry, transformers would take the 50 likeliest tokens.
    content |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
    content["top_k"] = max(sampling.top_k, 0)
    return {**content, "min_p": sampling.min_p} if sampling.min_p else content


def vllm_overrides(config: CampaignConfig) -> dict[str, Any]:
    """Return the sampling of vLLM's server for requests without any, greedy decoding included."""
    sampling = served_sampling(config) or AnswerSampling(temperature=1.0)
    values = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    return {**values, "top_k": sampling.top_k or -1, "min_p": sampling.min_p}


def prepare(folder: Path, config: CampaignConfig) -> None:
    """Give an exported model folder the campaign's chat defaults and generation config.

    A folder without a tokenizer is nobody's to chat with, and is left as it is.
    """
    if not has_tokenizer(folder):
        return
    encoder = load_encoder(folder, config.policy)
    policy = config.policy
    if policy.system is not None or policy.chat_template_kwargs or policy.chat_template_date:
        encoder.tokenizer.save_pretrained(folder)
    write_generation_config(folder, ends(encoder, config), config)


def write_answering(model: Path, folder: Path, config: CampaignConfig) -> list[str]:
    """Write what vLLM's server needs to answer as the gate measured; return the arguments for it.

    Args:
        model: the folder that is served, which is left as it is.
        folder: a scratch folder of the server's.
    """
    overrides = ["--override-generation-config", json.dumps(vllm_overrides(config))]
    if not has_tokenizer(model):
        return ["--generation-config", "vllm", *overrides]
    encoder = load_encoder(model, config.policy)
    folder.mkdir(exist_ok=True)
    source = model / GENERATION_CONFIG
    if source.is_file():
        (folder / GENERATION_CONFIG).write_bytes(source.read_bytes())
    write_generation_config(folder, ends(encoder, config), config)
    arguments = ["--generation-config", str(folder), *overrides]
    template = encoder.tokenizer.chat_template
    if isinstance(template, str):
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        arguments += ["--chat-template", str(folder / CHAT_TEMPLATE)]
    return arguments


def has_tokenizer(folder: Path) -> bool:
    """Tell if a model folder has the files of a tokenizer."""
    return any((folder / name).is_file() for name in ENCODING_FILES)


def _ways(config: CampaignConfig) -> Iterator[AnswerSampling]:
    """Yield the sampling of each suite that samples answers."""
    fields = AnswerSampling.model_fields
    for suite in config.suites:
        if suite.prompts is not None:
            yield AnswerSampling(**{name: getattr(suite, name) for name in fields})
    for spec in config.rounds:
        if spec.algorithm.makes == "policy" and (spec.prompts or spec.suite.prompts):
            yield AnswerSampling(**{name: getattr(spec.suite, name) for name in fields})
