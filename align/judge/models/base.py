"""A model as a judgement needs it: suites read with its own tokenizer, and an engine that answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from align.gate.suites.suites import Suite
from align.judge.suites_file import SuitesFile
from align.round.session import StartEngine
from rollouts.engines.protocol import RolloutEngine
from rollouts.errors import UserError

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """A model by the name it was given, with all that may be needed to find it."""

    name: str
    where: str
    """Argument that it was given with, for messages."""
    file: SuitesFile
    base: str | None = None
    """Base of an adapter, in place of the one that the adapter names."""
    tokenizer: str | None = None
    """Folder with the tokenizer of what an endpoint serves; None: it is not known."""
    api_key_env: str | None = None
    """Environment variable with the key of an endpoint; None: none is sent."""


class JudgedModel(Protocol):
    """A model that was found and checked."""

    @property
    def name(self) -> str:
        """Name as it was given."""
        ...

    @property
    def id(self) -> str:
        """Name of its content, 64 hex digits; of an endpoint, of its address."""
        ...

    @property
    def settings(self) -> str | None:
        """All besides its content that decides an answer, such as precision and versions; None where the
        content is not known, so that measurements cannot be kept."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user."""
        ...

    def suites(self) -> list[Suite]:
        """Load the suites as this model reads them.

        Raises:
            UserError: it cannot be measured on one of them.
        """
        ...

    def check_machine(self) -> None:
        """Raise `UserError` where an engine on this machine could not hold the model's sequences."""
        ...

    def encoder_of(self, suite: Suite) -> PromptEncoder:
        """Return the encoder that a suite is asked with."""
        ...

    def serve(self, start_engine: StartEngine) -> AbstractContextManager[RolloutEngine]:
        """Start an engine that answers as the model, and close it in the end."""
        ...


@contextmanager
def named_in(where: str) -> Iterator[None]:
    """Name the model's argument at the beginning of the place in every `UserError`."""
    try:
        yield
    except UserError as error:
        location = (
            where if error.where in (None, where, "policy.model") else f"{where}: {error.where}"
        )
        raise UserError(
            error.what, where=location, cause=error.cause, remedy=error.remedy
        ) from error
