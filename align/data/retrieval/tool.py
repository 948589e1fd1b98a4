"""Tool ``search(query)``: the index of documents as a policy calls it, beside an environment's own tools.

A search takes less than a millisecond, so it is answered where the policy acts and needs no worker process.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from align.config.retrieval.settings import RetrievalConfig
from align.data.retrieval.index import DocumentIndex
from rewards.environments.observations import text_of
from rollouts.episodes.environment import (
    Environments,
    EpisodeRules,
    Observation,
    Outcome,
    Schema,
    ToolCall,
)
from rollouts.episodes.ticket import check_episodes
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Message, Prompt

SEARCH = "search"
"""Name of the tool."""
NOTHING = "No document fits this query."
SCHEMA: Schema = {
    "type": "function",
    "function": {
        "name": SEARCH,
        "description": "Search the documents and return those that fit a query best.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "Words to look for."}},
            "required": ["query"],
        },
    },
}
Value = TypeVar("Value")


@dataclass(kw_only=True)
class SearchEnvironments:
    """`Environments` with a search in an index among the tools of every episode."""

    index: DocumentIndex
    """Version that is searched."""
    limits: EpisodeRules
    """Limits of episodes that have no tools but the search."""
    others: Environments | None = None
    """Environments with tools of their own; None: there is only the search."""
    _acting: set[str] = field(default_factory=set)
    """Keys of the episodes that act in one of `others`."""
    _rules: dict[str, EpisodeRules] = field(default_factory=dict)
    """Limits of the episodes under way, by key."""

    def rules(self, prompt: Prompt) -> EpisodeRules | None:
        """Return the limits of a prompt's episodes: every chat may search; a text cannot call."""
        rules = self._rules_of(prompt)
        return self.limits if rules is None and prompt.messages is not None else rules

    def schemas(self, prompt: Prompt) -> Sequence[Schema]:
        """Return the schemas of a prompt's own tools, and of the search."""
        schemas: Sequence[Schema] = ()
        if self.others is not None and self._rules_of(prompt) is not None:
            schemas = self.others.schemas(prompt)
        return (*schemas, SCHEMA)

    def open(self, key: str, prompt: Prompt) -> Future[str | None]:
        """Begin an episode; see `Environments.open`."""
        self._rules[key] = self.rules(prompt) or self.limits
        if self.others is None or self._rules_of(prompt) is None:
            return finished(None)
        self._acting.add(key)
        return self.others.open(key, prompt)

    def call(self, key: str, calls: Sequence[ToolCall]) -> Future[Sequence[Observation]]:
        """Make the calls of one turn: searches here, all others in the episode's environment."""
        rest = [call for call in calls if call.name != SEARCH]
        if not rest or self.others is None:
            return finished([self._answer(key, call) for call in calls])
        answered: Future[Sequence[Observation]] = Future()

        def join(others: Future[Sequence[Observation]]) -> None:
            try:
                observations = iter(others.result())
                answers = [
                    self._answer(key, c) if c.name == SEARCH else next(observations) for c in calls
                ]
            except BaseException as error:  # Nobody else would hear of it: this is a callback.
                answered.set_exception(error)
            else:
                answered.set_result(answers)

        self.others.call(key, rest).add_done_callback(join)
        return answered

    def close(self, key: str, messages: Sequence[Message] = ()) -> Future[Outcome]:
        """End an episode; see `Environments.close`."""
        self._rules.pop(key, None)
        if self.others is None or key not in self._acting:
            return finished(Outcome())
        self._acting.discard(key)
        return self.others.close(key, messages)

    def drop(self, key: str) -> None:
        """Give an episode up; see `Environments.drop`."""
        self._rules.pop(key, None)
        if self.others is not None and key in self._acting:
            self._acting.discard(key)
            self.others.drop(key)

    def _rules_of(self, prompt: Prompt) -> EpisodeRules | None:
        return None if self.others is None else self.others.rules(prompt)

    def _answer(self, key: str, call: ToolCall) -> Observation:
        """Return the documents that fit a call's query, or what is wrong with it."""
        query = call.arguments.get("query")
        if call.name != SEARCH or not isinstance(query, str):
            return Observation(text=f"{call.name} needs a query, as text.", failed=True)
        texts = [document.text for document in self.index.search(query)]
        answer = self.index.settings.separator.join(texts) or NOTHING
        most = self._rules.get(key, self.limits).observation_chars
        return Observation(text=text_of(answer, most).text, failed=False)


class SearchingEncoder(PromptEncoder):
    """`PromptEncoder` of a policy that may search an index before it answers.

    Args:
        plain: encoder of prompts.
        index: version of the index that is searched.
        limits: limits of episodes that have no tools but the search.
    """

    def __init__(self, plain: PromptEncoder, index: DocumentIndex, limits: EpisodeRules) -> None:
        super().__init__(plain.tokenizer, plain.extra_eos_ids)
        self._plain, self._index, self._limits = plain, index, limits

    @cached_property
    def digest(self) -> str:
        """Digest of the plain encoder: what is found is the snapshot's business."""
        return self._plain.digest

    def acting_in(self, environments: Environments | None) -> SearchEnvironments:
        """Return environments with a search among their tools; see `PromptEncoder.acting_in`."""
        return SearchEnvironments(index=self._index, limits=self._limits, others=environments)


def check_search(encoder: PromptEncoder, where: str) -> None:
    """Check that the chat template writes the tool and its results, and that calls can be read.

    Raises:
        UserError: there is no chat template, or it does not fit.
    """
    if encoder.tokenizer.chat_template is None:
        raise UserError(
            "form is tool, and the model has no chat template that could write a tool",
            where=where,
            remedy="set form to prompt, which puts documents before prompts, or use a chat model",
        )
    question = Prompt(id="search", messages=({"role": "user", "content": "?"},))
    empty = DocumentIndex(settings=RetrievalConfig())
    check_episodes(
        SearchEnvironments(index=empty, limits=EpisodeRules()), [question], encoder, where
    )


def finished(value: Value) -> Future[Value]:
    """Return a future that has its value already."""
    future: Future[Value] = Future()
    future.set_result(value)
    return future
