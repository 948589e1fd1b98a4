"""Episodes under way as a `StreamTicket`: begun at once, handed over as prompts are complete.

Over an engine in processes of its own the episodes go on in a thread while the caller learns. An engine
that samples within the caller's process is given the word until all have ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from rollouts.engines.protocol import SampleRequest, SampleResult
from rollouts.engines.turns import Generates, SteppedConversation, Waves, conversation_with
from rollouts.episodes.actor import Scene, opened
from rollouts.episodes.environment import Environments
from rollouts.episodes.loop import Delivery, EpisodeLoop, innermost
from rollouts.episodes.observations import checked_format
from rollouts.episodes.parsers import build_parser
from rollouts.episodes.tools import tools_of_schemas
from rollouts.errors import RunError, within
from rollouts.types import Prompt

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder


class EpisodesTicket:
    """Results of a loop that runs, in order or as they come."""

    def __init__(self, loop: EpisodeLoop, *, aside: bool) -> None:
        """Begin the episodes.

        Args:
            aside: they go on in a thread; False: all of them end first.
        """
        self.loop = loop
        self._results: dict[int, SampleResult] = {}
        self._news: SimpleQueue[Delivery | BaseException | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="episodes", daemon=True)
        self._thread.start() if aside else self._run()

    def __call__(self) -> list[SampleResult]:
        """Wait for all of them; results in request order."""
        for _ in self.arrivals():
            pass
        return [self._results[index] for index in range(len(self.loop.requests))]

    def arrivals(self) -> Iterator[Delivery]:
        """Yield every result once, as it comes."""
        try:
            while len(self._results) < len(self.loop.requests):
                news = self._news.get()
                if isinstance(news, BaseException):
                    self._news.put(news)  # Whoever asks once more gets the same.
                    raise news
                if news is None:
                    self._news.put(None)
                    raise RunError("episodes were given up while somebody waited for them")
                self._results |= dict(news)
                yield news
        except BaseException:
            self.stop()
            raise

    def settle(self) -> None:
        """Wait until no episode is under way; what they made is kept."""
        if self._thread.ident is not None:
            self._thread.join()

    def stop(self) -> None:
        """Give up what is under way."""
        self.loop.stopped = True
        self.settle()

    def _run(self) -> None:
        try:
            for delivery in self.loop.run():
                self._news.put(delivery)
        except BaseException as error:  # It is raised where somebody waits for the results.
            self._news.put(error)
        else:
            self._news.put(None)


def acts(environments: Environments, prompts: Sequence[Prompt]) -> bool:
    """Tell if some of the prompts are answered by episodes."""
    return any(environments.rules(prompt) is not None for prompt in prompts)


def encoded(
    prompt: Prompt, encoder: PromptEncoder, environments: Environments | None
) -> tuple[int, ...]:
    """Return the tokens of a prompt, with its tools where it is answered by episodes."""
    if environments is None or environments.rules(prompt) is None:
        return encoder.encode(prompt)
    return encoder.encode(opened(prompt, None), tools=environments.schemas(prompt))


def check_episodes(
    environments: Environments, prompts: Sequence[Prompt], encoder: PromptEncoder, where: str
) -> None:
    """Check that the episodes of some prompts can be rendered, and their calls be read.

    Args:
        where: place of tools and environment in the campaign file.

    Raises:
        UserError: the chat template, a tool's schema or the parser does not fit.
    """
    for prompt in prompts:
        if (rules := environments.rules(prompt)) is None:
            continue
        with within(f"{where}.tools"):
            names = tools_of_schemas(environments.schemas(prompt)).names
        if names:
            build_parser(rules.parser, encoder, f"{where}.episode.parser")
            checked_format(encoder, where, prompt.chat_template_kwargs)


def act(
    engine: Generates,
    prompts: Sequence[Prompt],
    requests: Sequence[SampleRequest],
    environments: Environments,
    encoder: PromptEncoder,
) -> EpisodesTicket:
    """Begin the completions of prompts in their environments, and of other prompts as they are.

    Raises:
        UserError: the chat template or the parser of calls does not fit the model.
    """
    scenes = [
        _scene(prompt, request, environments, encoder)
        for prompt, request in zip(prompts, requests, strict=True)
    ]
    conversation = conversation_with(engine)
    loop = EpisodeLoop(conversation=conversation, requests=requests, scenes=scenes)
    in_process = isinstance(innermost(conversation), SteppedConversation | Waves)
    return EpisodesTicket(loop, aside=not in_process)


def _scene(
    prompt: Prompt, request: SampleRequest, environments: Environments, encoder: PromptEncoder
) -> Scene | None:
    """Return what a prompt's episodes share; None for a prompt that is answered in one turn."""
    rules = environments.rules(prompt)
    if rules is None:
        return None
    tools = tools_of_schemas(environments.schemas(prompt))
    kwargs = prompt.chat_template_kwargs
    return Scene(
        prompt=prompt,
        request=request,
        environments=environments,
        rules=rules,
        tools=tools,
        parser=build_parser(rules.parser, encoder),
        form=checked_format(encoder, prompt.label, kwargs) if tools.names else None,
        encoder=encoder,
    )
