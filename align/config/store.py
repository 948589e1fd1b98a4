"""Locations of a campaign's store and ledger, and what the store keeps of the past."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from align.settings import InputPath, Name, Places, Settings, StatedPath
from rollouts.errors import UserError

FROM_ENVIRONMENT = "env:"
SQLITE = "sqlite:///"
LEDGER = "ledger.db"
"""File of the ledger in a store that names no other database."""
_SECRET = re.compile(r"(?i)secret|token|passw|credential|^key$|_key$")


class ReferencesConfig(Settings):
    """Stores of campaigns that the summary numbers are compared with, local folders or none yet.

    Rounds and suites of the same names are compared.
    """

    joint: InputPath | None = None
    """Store of a campaign that learnt all tasks together, with the rollouts of all rounds: its production's
    scores are what a sequence could have reached (IM, C_joint)."""
    alone: tuple[InputPath, ...] = ()
    """Stores of campaigns whose rounds of the same names began at the base, without earlier rounds
    (FWT_gain, N80_ratio)."""

    @model_validator(mode="after")
    def _are_folders(self) -> Self:
        for store in (*self.alone, *filter(None, [self.joint])):
            if store.endswith((".yaml", ".yml")):
                raise ValueError(
                    f"{store} is a campaign file, and references are stores; name the folder that its "
                    "store names"
                )
            if "://" in store:
                raise ValueError(
                    f"{store} is an address, and the stores of references are read as local folders; name "
                    "the campaign's cache, or a copy"
                )
        return self


class KeepConfig(Settings):
    """Snapshots that a store keeps although nothing needs them; the others are removed as rounds end.

    What verdicts rest on stays in any case: results of every item, metrics, the ledger. So do snapshots
    that a round to come needs.
    """

    accepted: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """Number of each template's newest accepted rounds whose snapshots are kept, or ``all``. Later rounds
    look back on those that are left; at least on the newest that ``remember`` names."""
    snapshots: Literal["whole", "delta"] = "whole"
    """Form of kept snapshots that no alias names, in a local store. ``delta``: the bits in which each
    differs from its parent, compressed, with a whole one every eight; nothing is rounded, and opening one
    takes seconds for every gigabyte."""
    rejected: Annotated[int, Field(ge=0)] | Literal["all"] = "all"
    """Number of rounds, newest first, whose other snapshots are kept, or ``all``: candidates that were
    rejected or repaired, runs of a merge, and what failed attempts left."""


class StoreSettings(Settings):
    """Name of a campaign, and the locations of its store, cache and ledger."""

    name: Name
    """Name of the campaign, which also names its store."""
    store: Annotated[str, Field(validate_default=True)] = ""
    """Folder of snapshots, ledger, metrics and evaluations, relative to the campaign file's folder; empty:
    ``runs/<name>``. A URL such as ``s3://bucket/prefix`` holds all of them except the ledger; its
    credentials come from the environment."""
    store_options: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Options of the fsspec file system of a store with a URL, such as ``endpoint_url``; no credentials."""
    cache: Annotated[str, Field(validate_default=True)] = ""
    """Local folder to work in, for a store with a URL; empty: ``runs/<name>``. It may be removed at any
    time, and another machine begins without it."""
    ledger: str = ""
    """SQLAlchemy URL of the ledger; empty: ``ledger.db`` in a local store. Many machines can share
    ``postgresql://USER@HOST/NAME``; ``env:VARIABLE`` names a variable that holds the URL. A password
    belongs into that variable, PGPASSWORD or ~/.pgpass, and is refused here."""
    ledger_backups: Annotated[int, Field(ge=0)] = 5
    """Backups of a SQLite ledger that are kept beside it, and behind the store's URL; one is made after
    every verdict. 0 makes none. A PostgreSQL server has backups of its own, such as pg_dump."""

    keep: KeepConfig = KeepConfig()
    """Snapshots that the store keeps; the default keeps all."""

    @field_validator("store", "cache")
    @classmethod
    def _located(cls, text: str, info: ValidationInfo) -> str:
        """Make relative folders, and the default one, relative to the campaign file's folder."""
        remote = "://" in (text if info.field_name == "store" else info.data.get("store", ""))
        is_folder = remote == (info.field_name == "cache")
        if not (isinstance(info.context, Places) and is_folder):
            return text
        return info.context.output(text or f"runs/{info.data.get('name', '')}")

    @field_validator("ledger")
    @classmethod
    def _located_ledger(cls, url: str, info: ValidationInfo) -> str:
        """Make a relative SQLite file relative to the campaign file's folder."""
        file = url.removeprefix(SQLITE)
        if file in (url, "", ":memory:") or not isinstance(info.context, Places):
            return url
        return StatedPath(SQLITE + info.context.output(file), url)

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        if not self.is_remote and (self.cache or self.store_options):
            which = "cache" if self.cache else "store_options"
            raise ValueError(
                f"{which} is for a store with a URL, and {self.store or 'runs/<name>'!r} is a local "
                f"folder; remove {which}, or set store to a URL such as s3://bucket/prefix"
            )
        if self.is_remote and "@" in urlsplit(self.store).netloc:
            raise ValueError("store holds credentials; leave them to the environment")
        if self.is_remote and self.keep.snapshots == "delta":
            raise ValueError(
                f"keep.snapshots is delta, which is for local stores, and {self.store} is a URL; set it to "
                "whole"
            )
        if secret := next(_secrets(self.store_options), None):
            raise ValueError(
                f"store_options.{secret} looks like a secret; leave it to the environment, such as "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if self.is_remote and not self.ledger:
            raise ValueError(
                f"the store {self.store} needs a ledger of its own, since no database can lie in it; set "
                "ledger to postgresql://USER@HOST/NAME or env:VARIABLE, or, for one machine only, to "
                "sqlite:////PATH outside the cache"
            )
        return self

    @model_validator(mode="after")
    def _check_ledger(self) -> Self:
        if self.ledger.startswith(FROM_ENVIRONMENT):
            if not self.ledger.removeprefix(FROM_ENVIRONMENT).isidentifier():
                raise ValueError(
                    f"ledger is {self.ledger!r}, and env: must be followed by the name of a variable"
                )
            return self
        parts = urlsplit(self.ledger)
        options = [name.lower() for name, _ in parse_qsl(parts.query)]
        if ":" in parts.netloc.rpartition("@")[0] or any("password" in name for name in options):
            raise ValueError(
                "ledger holds a password; put the URL into a variable and set ledger to env:VARIABLE, or "
                "leave the password to PGPASSWORD or ~/.pgpass"
            )
        file, cache = self.ledger.removeprefix(SQLITE), self.folder.absolute().resolve()
        if self.is_remote and file != self.ledger and Path(file).resolve().is_relative_to(cache):
            raise ValueError(
                f"the ledger {file} lies in the cache {self.folder}, which may be removed at any time; "
                "name a file elsewhere, or a PostgreSQL server"
            )
        return self

    @property
    def is_remote(self) -> bool:
        """True if the store has a URL."""
        return "://" in self.store

    @property
    def folder(self) -> Path:
        """Local folder that runs work in: the store itself, or the cache of a store with a URL."""
        local = self.cache if self.is_remote else self.store
        return Path(local or f"runs/{self.name}")

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy URL of the ledger, which may hold a password.

        Raises:
            UserError: the variable that should hold the URL is not set.
        """
        if not self.ledger.startswith(FROM_ENVIRONMENT):
            return self.ledger or sqlite_url(self.folder / LEDGER)
        name = self.ledger.removeprefix(FROM_ENVIRONMENT)
        if not (url := os.environ.get(name, "").strip()):
            raise UserError(
                f"the variable {name} should hold the ledger's URL, and it is not set",
                where="ledger",
                remedy=f"export {name}=postgresql://USER:PASSWORD@HOST/DATABASE",
            )
        return url


def _secrets(options: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the dotted names of options that are credentials."""
    for name, value in options.items():
        if _SECRET.search(name):
            yield f"{above}{name}"
        elif isinstance(value, Mapping):
            yield from _secrets(value, f"{above}{name}.")


QUERIES = ("uri", "mode", "cache", "immutable", "vfs", "timeout", "cached_statements")
"""Options that a SQLite URL may end with; any other text behind a ``?`` belongs to the path."""


def sqlite_url(path: Path) -> str:
    """Return SQLAlchemy's URL of a database file."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def cut_path(url: str) -> str | None:
    """Return the part of its path that a SQLite URL loses behind an unquoted ``?``; None if none."""
    path, mark, rest = url.partition("?")
    options = [option.partition("=") for option in rest.split("&")]
    known = all(name in QUERIES and mark and value for name, mark, value in options)
    return None if not mark or not path.startswith("sqlite:") or known else f"?{rest}"
