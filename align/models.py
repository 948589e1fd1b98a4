"""From ``policy.model`` to a folder of weights and a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.config import PolicyConfig
from align.demo import BASE_MODEL
from align.demo.world import demo_prompts
from rollouts.errors import UserError, nearest
from rollouts.types import Prompt

DEMO_MODELS = {"digits": BASE_MODEL}
SNAPSHOT_SUFFIXES = {".safetensors", ".json", ".txt", ".jinja", ".model"}
"""Files of a model that are downloaded: weights, configs, tokenizer; code where it was asked for."""


def demo_source(uri: str) -> list[Prompt]:
    """``demo://NAME?split=...`` as prompts of the built-in tiny world."""
    try:
        return demo_prompts(uri)
    except ValueError as error:
        raise UserError(str(error), where=uri) from error


SCHEMES = {"demo": demo_source}
"""Prompt sources by URI scheme, for `rollouts.prompts.load_prompts`."""


def resolve_model(policy: PolicyConfig) -> Path:
    """A local folder with the policy's base model; downloads a Hugging Face id if it must."""
    if policy.model.startswith("demo://"):
        name = policy.model.removeprefix("demo://")
        if name not in DEMO_MODELS:
            raise UserError(
                f"no demo model {name!r}",
                where="policy.model",
                remedy=nearest(name, list(DEMO_MODELS)),
            )
        return DEMO_MODELS[name]
    folder = Path(policy.model).expanduser()
    if folder.is_dir():
        return folder
    if policy.model.startswith((".", "/", "~")) or policy.model.count("/") != 1:
        raise UserError(
            f"there is no folder {policy.model!r}",
            where="policy.model",
            remedy="give a folder in Hugging Face format, an id such as org/name, or demo://digits",
        )
    return _download(policy)


def load_tokenizer(folder: Path, policy: PolicyConfig) -> Any:
    """The model's own tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=policy.trust_remote_code
    )


def _download(policy: PolicyConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted = SNAPSHOT_SUFFIXES | ({".py"} if policy.trust_remote_code else set())
    patterns = [f"*{suffix}" for suffix in sorted(wanted)]
    try:
        return Path(
            snapshot_download(policy.model, revision=policy.revision, allow_patterns=patterns)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError) as error:
        raise UserError(
            f"cannot get the model {policy.model!r}: {type(error).__name__}",
            where="policy.model",
            cause="the id does not exist, needs a login, or there is no network",
            remedy="check the id, or download it elsewhere and give its folder",
        ) from error
