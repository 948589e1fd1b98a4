"""The base of every model that a campaign file may hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""Lower-case letters, digits, dot, dash, underscore: names become folders."""


class Settings(BaseModel):
    """Frozen; an unknown key is an error, and so is a number that is infinite or none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def changed(self, *names: str) -> str | None:
        """The first of these fields whose value is not its default; None: there is none.

        By value, not by what was written: a campaign that is read back from its ledger states all of it.
        """
        fields = type(self).model_fields
        return next((n for n in names if getattr(self, n) != fields[n].get_default()), None)
