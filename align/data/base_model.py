"""Base model of a campaign: the folder that ``policy.model`` stands for, and its tokenizer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from align.config.campaign import PolicyConfig
from align.data.demo import BASE_MODEL
from align.data.demo.world import demo_prompts
from align.settings import stated
from align.store.durable import digest_of
from rollouts.chat.bounded import check_bounded
from rollouts.chat.endings import extra_endings
from rollouts.chat.pinned import pin
from rollouts.errors import UserError, nearest
from rollouts.prompts import PromptEncoder
from rollouts.rows import PATHS_START
from rollouts.types import Prompt

DEMO_MODELS = {"digits": BASE_MODEL}
ENCODING_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files of a model folder that decide how texts and messages become tokens."""
SNAPSHOT_SUFFIXES = {".safetensors", ".json", ".txt", ".jinja", ".model"}
"""Suffixes of the files that are downloaded: weights, configs, tokenizer. Code is added if it is
allowed."""


def demo_source(uri: str) -> list[Prompt]:
    """Load ``demo://NAME?split=...`` as prompts of the built-in tiny world."""
    try:
        return demo_prompts(uri)
    except ValueError as error:
        raise UserError(str(error), where=uri) from error


SCHEMES = {"demo": demo_source}
"""Prompt sources by URI scheme, for `rollouts.prompts.load_prompts`."""


def resolve_model(policy: PolicyConfig) -> Path:
    """Find the local folder of the policy's base model; download a Hugging Face id if need be.

    Raises:
        UserError: there is no such model, or it cannot be downloaded.
    """
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
    as_written = str(stated(policy.model))
    if as_written.startswith((".", "/", "~")) or policy.model.count("/") != 1:
        raise UserError(
            f"there is no folder {as_written!r}",
            where="policy.model",
            cause=f"there is no {folder.absolute()}; {PATHS_START}",
            remedy="give a folder in Hugging Face format, an id such as org/name, or demo://digits",
        )
    return _download(policy)


def load_tokenizer(folder: Path, policy: PolicyConfig) -> Any:
    """Load the model's own tokenizer.

    Raises:
        UserError: its files are damaged, or transformers cannot read them.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=policy.trust_remote_code
        )
    # The libraries that read the files raise errors of many classes.
    except Exception as error:
        raise UserError(
            f"the tokenizer cannot be loaded: {type(error).__name__}: {error}",
            where=str(folder),
            cause="a file of it is missing, damaged, or written by a newer transformers",
            remedy="call tokenizer.save_pretrained on the folder again",
        ) from error


def load_encoder(folder: Path, policy: PolicyConfig) -> PromptEncoder:
    """Load the policy's encoder of prompts: its tokenizer, chat defaults and tokens that end an answer.

    Raises:
        UserError: the tokenizer, or the file that names its ending tokens, cannot be read; or there is no
            chat template that takes ``system``, ``chat_template_kwargs`` and ``chat_template_date``.
    """
    tokenizer = load_tokenizer(folder, policy)
    templates = tokenizer.chat_template or {}
    for template in templates.values() if isinstance(templates, dict) else (templates,):
        check_bounded(template, str(folder))
    extra = extra_endings(folder, tokenizer)
    pin(tokenizer, policy.system, policy.chat_template_kwargs, policy.chat_template_date)
    names = [name for name in ENCODING_FILES if (folder / name).is_file()]
    files = [[name, digest_of((folder / name).resolve())[1]] for name in names]
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return PromptEncoder(tokenizer, extra, digest)


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
