"""Models in folders, whole or as adapters, and those of the hub, which are downloaded into one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.campaign import CampaignConfig
from align.config.policy import PolicyConfig
from align.data.base_model import SCHEMES, load_encoder, resolve_model
from align.data.retrieval.encoder import RetrievingEncoder
from align.data.retrieval.index import DocumentIndex, read_index
from align.data.retrieval.tool import SearchingEncoder
from align.gate.suites.suites import Suite, build_suites
from align.judge.models.base import Named
from align.judge.models.digest import digest_of_model
from align.judge.suites_file import SuitesFile
from align.learner.folder.checks import check_served
from align.report.forecast.fit import check_addresses, check_kv_cache
from align.round.inputs import context_of, longest_answer
from align.round.session import StartEngine, versions
from align.store.snapshots.holds import Hold
from rollouts.engines import DEFAULT_BACKEND, backend_named
from rollouts.engines.protocol import RolloutEngine
from rollouts.episodes.environment import EpisodeRules
from rollouts.errors import UserError
from rollouts.machine.device import resolve_device

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

QUANTISED = ("quantization_config", "compression_config")
"""Keys of ``config.json`` with which a folder says that its weights are quantised."""
REVISION = "@"
"""Sign between a hub id and a commit, tag or branch."""


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A folder that engines serve as it is."""

    name: str
    folder: Path
    file: SuitesFile
    policy: PolicyConfig
    """Settings that engines serve it with."""
    id: str
    notes: tuple[str, ...] = field(default=())
    holds: tuple[Hold, ...] = field(default=(), repr=False, compare=False)
    """Locks that keep the folders of snapshots as they are; of other folders none."""

    @property
    def campaign(self) -> CampaignConfig:
        """Campaign without rounds, of the file's suites and this model."""
        return self.file.campaign(self.policy)

    @cached_property
    def encoder(self) -> PromptEncoder:
        """Reader of prompts, with the model's own tokenizer and chat template."""
        return load_encoder(self.folder, self.policy)

    @property
    def own_folder(self) -> Path:
        """Folder of what was trained: the model's, or the adapter's."""
        return self.folder

    @cached_property
    def index(self) -> DocumentIndex | None:
        """Documents that the model reads; None: it reads none.

        Raises:
            UserError: they are searched by an encoder.
        """
        index = read_index(self.own_folder)
        if index is not None and index.settings.method == "dense":
            raise UserError(
                "the model reads documents of a dense index, which its campaign's encoder searches",
                where=self.name,
                remedy="judge it in a round of the campaign, or a copy of the folder without retrieval/",
            )
        return index

    @property
    def context(self) -> int:
        """Prompt plus completion, in tokens, that engines are started for."""
        return context_of(self.folder, self.campaign)

    @cached_property
    def settings(self) -> str:
        """Precision, context, seed, chat settings, device, versions, and the backend unless it is vLLM."""
        policy = self.policy.model_dump(
            mode="json",
            include={"dtype", "system", "chat_template_kwargs", "chat_template_date"},
        )
        content: dict[str, Any] = {
            "policy": policy,
            "context": self.context,
            "seed": self.file.seed,
            "device": resolve_device("auto"),
            "versions": versions(),
        }
        if (backend := self.file.rollouts.backend) != DEFAULT_BACKEND:
            content["backend"] = backend
        if self.index is not None:
            content["index"] = self.index.id
        return json.dumps(content, sort_keys=True)

    def suites(self) -> list[Suite]:
        """Load the suites as the model's tokenizer reads them."""
        return build_suites(self.campaign, SCHEMES, self.encoder, self.context)

    def check_machine(self) -> None:
        """Refuse a backend that is not installed, and what an engine on these processors cannot hold."""
        backend_named(self.file.rollouts.backend).check_installed()
        check_kv_cache(self.folder, self.context, self.campaign)
        check_addresses(self.folder, self.campaign)

    def encoder_of(self, suite: Suite) -> PromptEncoder:
        """Return the model's own encoder, with its documents where the model reads any."""
        if self.index is None:
            return self.encoder
        if self.index.settings.form == "tool":
            return SearchingEncoder(self.encoder, self.index, EpisodeRules(context=self.context))
        answer = longest_answer(self.campaign)
        return RetrievingEncoder(self.encoder, self.index, context=self.context, answer=answer)

    @contextmanager
    def serve(self, start_engine: StartEngine) -> Iterator[RolloutEngine]:
        """Start engines on the folder, and close them in the end."""
        engine = start_engine(self.campaign, self.folder, self.context)
        try:
            yield engine
        finally:
            engine.close()


def open_local(argument: Named) -> LocalModel:
    """Open a folder, an adapter's folder, ``demo://digits`` or a hub id; ``ID@COMMIT`` fixes its version.

    Raises:
        UserError: there is none, or engines cannot serve it.
    """
    return open_folder(argument, find_folder(argument.name, argument.file.policy))


def open_folder(argument: Named, folder: Path, base: Path | None = None) -> LocalModel:
    """Open a folder that was found, whole or an adapter's.

    Args:
        base: folder of an adapter's base; None: the adapter names it, or the command line does.
    """
    from align.judge.models.adapter import is_adapter, open_adapter

    if is_adapter(folder):
        return open_adapter(argument, folder, base)
    policy = served_policy(argument.file, folder)
    method = quantised_by(folder)
    return LocalModel(
        name=argument.name,
        folder=folder,
        file=argument.file,
        policy=policy,
        id=digest_of_model(folder, code=policy.trust_remote_code),
        notes=()
        if method is None
        else (f"{argument.name}: quantised ({method}), in {policy.dtype}",),
    )


def served_policy(file: SuitesFile, folder: Path) -> PolicyConfig:
    """Check that engines can serve a whole model, and return the settings that they serve it with.

    Raises:
        UserError: the first thing that is wrong with the folder.
    """
    quantised = quantised_by(folder) is not None
    policy = file.policy_of(folder, quantised=quantised)
    check_served(
        folder,
        policy,
        resolve_device("auto"),
        quantised=quantised,
        backend=file.rollouts.backend,
    )
    return policy


def find_folder(name: str, policy: PolicyConfig) -> Path:
    """Return the folder that a name stands for; downloads a hub id."""
    model, _, revision = name.rpartition(REVISION)
    if model and not Path(name).expanduser().exists():
        return resolve_model(policy.model_copy(update={"model": model, "revision": revision}))
    return resolve_model(policy.model_copy(update={"model": name, "revision": None}))


def quantised_by(folder: Path) -> str | None:
    """Return the method that a folder's weights are quantised by; None: they are not."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        chosen = next((config[key] for key in QUANTISED if config.get(key)), None)
    except (OSError, ValueError, AttributeError):
        return None  # The checks of the folder say what is wrong with it.
    if chosen is None:
        return None
    method = chosen.get("quant_method", "unknown") if isinstance(chosen, dict) else chosen
    return str(method)
