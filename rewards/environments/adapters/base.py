"""Base of environments that are made of another package's objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rollouts.errors import UserError
from rollouts.types import Message


class AdaptedEnvironment(ABC):
    """An environment that names its tools itself, with schemas of their own."""

    done = False
    """True once the episode is over."""
    messages: Sequence[Message] = ()
    """Prompt and all turns of the episode, before ``get_reward``."""

    @abstractmethod
    def reset(self, **row: Any) -> Any:
        """Begin an episode; return a text for the policy or None."""

    @abstractmethod
    def tools(self) -> Mapping[str, Callable[..., Any]]:
        """Return the tools by name; each has its schema as ``keel_schema``."""

    @abstractmethod
    def state(self) -> Mapping[str, Any]:
        """Return what rewards may know of it at the end of an episode."""


class EnvironmentAdapter(Protocol):
    """Way from an address behind a scheme to environments."""

    def maker(self, address: str, where: str | None) -> Callable[[], Any]:
        """Return what makes the objects of an environment.

        Raises:
            UserError: the package is missing, or has no such environment.
        """
        ...


def missing(name: str, package: str, extra: str, where: str | None, error: Exception) -> UserError:
    """Make the error for a package of an extra that is not installed."""
    return UserError(
        f"environment {name!r} needs the package {package}",
        where=where,
        cause=f"{type(error).__name__}: {error}",
        remedy=f"pip install 'keel-align[{extra}]'",
    )
