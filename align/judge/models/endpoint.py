"""OpenAI-compatible endpoints: ``http://HOST/v1#MODEL``, or without a name if the server has one model.

Suites that sample answers send words, and the server applies its own chat template. Suites that score texts
need the server's tokenizer here, and a server that returns the logprobs of a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.data.base_model import SCHEMES, load_encoder
from align.gate.suites.kinds import KINDS
from align.gate.suites.suites import Suite, build_suites
from align.judge.models.base import Named
from align.judge.models.digest import combined
from align.judge.suites_file import SuitesFile
from align.round.session import StartEngine
from rollouts.engines.endpoint.client import EndpointClient, EndpointError, EndpointRefusal
from rollouts.engines.endpoint.engine import EndpointEngine, NoPromptLogprobs
from rollouts.engines.endpoint.text import TextEncoder
from rollouts.engines.protocol import RolloutEngine, SampleRequest
from rollouts.errors import UserError, nearest
from rollouts.types import Sampling

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

SIGN = "#"
"""Sign between an address and the name of a model there."""
ABSENT = 404


@dataclass(frozen=True, kw_only=True)
class EndpointModel:
    """A model that somebody serves; its content is not known, so its measurements are not kept."""

    name: str
    file: SuitesFile
    engine: EndpointEngine
    words: TextEncoder
    """Encoder of prompts that the server reads as words."""
    tokens: PromptEncoder | None
    """The server's tokenizer; None: it is not known."""

    settings: None = None

    @property
    def id(self) -> str:
        """Hash of the address and the name; not of what is behind them."""
        return combined(self.engine.client.base_url, self.engine.model)

    @property
    def notes(self) -> tuple[str, ...]:
        """Say that nothing is kept."""
        return (f"{self.name}: an endpoint may change, so it is measured anew every time",)

    def suites(self) -> list[Suite]:
        """Load the suites, after a check that the endpoint can be asked them.

        Raises:
            UserError: a suite needs the tokenizer, or logprobs that the endpoint does not return.
        """
        # How long a context the server has, and how many tokens a prompt, is its own business.
        rollouts = self.file.rollouts.model_copy(update={"max_model_len": None})
        campaign = self.file.campaign(self.file.policy).model_copy(update={"rollouts": rollouts})
        needing = [s.name for s in campaign.suites if not KINDS[s.source].by_words]
        if needing and self.tokens is None:
            raise UserError(
                f"suite {needing[0]!r} is about tokens, and the tokenizer of {self.name} is not known",
                where=f"suite {needing[0]!r}",
                cause="an endpoint takes and gives words",
                remedy="name a folder or hub id that has it with --tokenizer, or remove the suite",
            )
        suites = build_suites(campaign, SCHEMES, self.tokens or self.words)
        for suite in suites:
            if suite.answers and not suite.by_words:
                self._require_token_ids(suite)
        scored = next((s for s in suites if s.scores_texts), None)
        if scored is not None:
            self._require_logprobs(scored)
        return suites

    def check_machine(self) -> None:
        """Do nothing: it runs elsewhere."""

    def encoder_of(self, suite: Suite) -> PromptEncoder:
        """Return words for answers that are sampled, tokens for all else."""
        if suite.by_words:
            return self.words
        assert self.tokens is not None, "the check of the suites"
        return self.tokens

    @contextmanager
    def serve(self, start_engine: StartEngine) -> Iterator[RolloutEngine]:
        """Yield the engine that asks the server; nothing is started."""
        yield self.engine

    def _require_token_ids(self, suite: Suite) -> None:
        """Check with one item that the endpoint answers to token ids, by which a harness task asks."""
        assert self.tokens is not None, "the check before"
        request = SampleRequest(
            id="0",
            prompt_ids=suite.probe(self.tokens),
            n=1,
            seed=0,
            sampling=Sampling(max_tokens=1),
        )
        ((completion,),) = (result.completions for result in self.engine.generate([request]))
        if completion.detail is not None:
            raise UserError(
                f"suite {suite.name!r} is a harness task, which asks by token ids, and the endpoint does "
                "not answer to those",
                where=self.name,
                cause=completion.detail,
                remedy="remove the suite, or serve the model by a server that takes a prompt of token ids "
                "on /v1/completions, as vLLM does",
            )

    def _require_logprobs(self, suite: Suite) -> None:
        """Check with one item that the endpoint scores prompts, and cuts them into the same tokens."""
        assert self.tokens is not None, "the check before"
        ids = suite.probe(self.tokens)
        try:
            endpoint_ids = self.engine.tokens_of(ids)
        except NoPromptLogprobs as error:
            raise UserError(
                f"suite {suite.name!r} needs the logprobs of given texts: {error.what}",
                where=self.name,
                cause=error.cause,
                remedy="remove the suite, or serve the model by a server that takes echo and logprobs on "
                "/v1/completions, as vLLM does",
            ) from error
        except EndpointError as error:
            raise _unreachable(self.name, error) from error
        if _letters(self.tokens.decode(ids)) not in _letters("".join(endpoint_ids)):
            raise UserError(
                "the tokenizer is not the one of the endpoint's model: the same token ids are other words",
                where="--tokenizer",
                cause=f"{self.tokens.decode(ids)[:40]!r} here, {''.join(endpoint_ids)[:40]!r} there",
                remedy="name the folder or hub id of the model that is served",
            )


def is_endpoint(name: str) -> bool:
    """Tell an address from all other names."""
    return name.startswith(("http://", "https://"))


def open_endpoint(argument: Named) -> EndpointModel:
    """Open an endpoint, after a check that it answers and has the model.

    Raises:
        UserError: nobody answers there, the key is refused, or there is no such model.
    """
    address, _, model = argument.name.partition(SIGN)
    client = EndpointClient(
        base_url=address,
        api_key_env=argument.api_key_env,
        deadline_s=argument.file.rollouts.deadline_s,
    )
    model = _model_of(client, model)
    policy, tokens = argument.file.policy, None
    if argument.tokenizer is not None:
        from align.judge.models.local import find_folder

        tokens = load_encoder(find_folder(argument.tokenizer, policy), policy)
    chat = {"chat_template_kwargs": policy.chat_template_kwargs}
    return EndpointModel(
        name=argument.name,
        file=argument.file,
        engine=EndpointEngine(
            client=client,
            model=model,
            tokenizer=None if tokens is None else tokens.tokenizer,
            concurrency=min(64, argument.file.rollouts.max_num_seqs),
            extra=chat if policy.chat_template_kwargs else {},
        ),
        words=TextEncoder(policy.system),
        tokens=tokens,
    )


def _model_of(client: EndpointClient, wanted: str) -> str:
    """Return the name of a model that the server has; the only one if none is wanted."""
    try:
        listed = client.get("/models").get("data") or []
        names = [str(entry["id"]) for entry in listed]
    except EndpointError as error:
        raise _unreachable(client.base_url, error) from error
    except EndpointRefusal as error:
        if not (wanted and error.status == ABSENT):
            raise
        names = []  # Not every server lists its models.
    except (LookupError, TypeError):
        names = []
    if wanted and (wanted in names or not names):
        return wanted
    if not wanted and len(names) == 1:
        return names[0]
    raise UserError(
        f"the endpoint has no model {wanted!r}" if wanted else "the endpoint has several models",
        where=client.base_url,
        remedy=nearest(wanted, names) if names else f"write {client.base_url}{SIGN}MODEL",
    )


def _unreachable(where: str, error: EndpointError) -> UserError:
    return UserError(
        "the endpoint does not answer",
        where=where,
        cause=error.cause,
        remedy="start the server, or check the address (up to /v1)",
    )


def _letters(text: str) -> str:
    """Return letters and digits alone: tokens that are parts of a character print as anything."""
    return re.sub("[^A-Za-z0-9]", "", text)
