"""The ledger's tables, and the rules the database itself keeps.

One store holds one campaign. ``rounds`` has one row per attempt, so a failed attempt stays on
record; attempt 0 is the plan. JSON and times (ISO 8601, UTC) are text, readable with any tool.
"""

from __future__ import annotations

from sqlalchemy import (
    DOUBLE_PRECISION,
    REAL,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeEngine

from align.store.ledger.tables.rules import execute, forbid

SCHEMA_VERSION = 1
STATES = ("planned", "running", "gating", "accepted", "rejected", "failed")

REAL_8: TypeEngine[float] = REAL().with_variant(DOUBLE_PRECISION(), "postgresql")
"""Eight bytes everywhere: what SQLite calls REAL has four in PostgreSQL."""
INTEGER_8: TypeEngine[int] = Integer().with_variant(BigInteger(), "postgresql")

metadata = MetaData()

store_schema = Table(
    "store_schema",
    metadata,
    Column("version", Integer, nullable=False),
    sqlite_strict=True,
)

campaigns = Table(
    "campaigns",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True),
    Column("name", Text, nullable=False),
    Column("config", Text, nullable=False),
    Column("config_hash", Text, nullable=False),
    Column("created", Text, nullable=False),
    sqlite_strict=True,
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("parent", Text),
    Column("round", Text),
    Column("bytes", INTEGER_8, nullable=False),
    Column("manifest", Text, nullable=False),
    Column("recorded", Text, nullable=False),
    sqlite_strict=True,
)

rounds = Table(
    "rounds",
    metadata,
    Column("index", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, CheckConstraint(f"state IN {STATES}"), nullable=False),
    Column("parent", Text),
    Column("candidate", Text, ForeignKey("snapshots.id")),
    Column("report", Text),
    Column("started", Text),
    Column("ended", Text),
    PrimaryKeyConstraint("index", "attempt"),
    CheckConstraint("state NOT IN ('gating', 'accepted', 'rejected') OR candidate IS NOT NULL"),
    sqlite_strict=True,
)
Index("rounds_by_name", rounds.c.name, rounds.c.attempt)
Index(
    "rounds_without_reports",
    *(rounds.c[name] for name in ("index", "attempt", "name", "state", "parent", "candidate")),
    *(rounds.c[name] for name in ("started", "ended")),
)
"""Every column but the report, so that ten thousand rounds are listed without reading their verdicts."""

evaluations = Table(
    "evaluations",
    metadata,
    Column("snapshot", Text, ForeignKey("snapshots.id"), nullable=False),
    Column("suite", Text, nullable=False),
    Column("suite_hash", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("n", Integer, nullable=False),
    Column("mean", REAL_8, nullable=False),
    Column("recorded", Text, nullable=False),
    UniqueConstraint("snapshot", "suite_hash"),
    sqlite_strict=True,
)

Index("evaluations_by_suite", evaluations.c.suite_hash, evaluations.c.snapshot)
Index(
    "evaluations_in_order",
    *(evaluations.c[name] for name in ("recorded", "suite", "snapshot", "suite_hash", "n", "mean")),
)

alias_moves = Table(
    "alias_moves",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("alias", Text, nullable=False),
    Column("previous", Text),
    Column("target", Text, ForeignKey("snapshots.id"), nullable=False),
    Column("round", Integer),
    Column("reason", Text, nullable=False),
    Column("time", Text, nullable=False),
    sqlite_strict=True,
)

leases = Table(
    "claims",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True),
    Column("token", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_started", REAL_8, nullable=False),
    Column("heartbeat", REAL_8, nullable=False),
    sqlite_strict=True,
)
"""Lease of the store, as every version reads it."""

lease_renewals = Table(
    "lease_renewals",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True),
    Column("token", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("start_ticks", INTEGER_8, nullable=False),
    Column("renewals", INTEGER_8, nullable=False),
    Column("renewed", REAL_8),
    Column("expiry_s", REAL_8, nullable=False),
    sqlite_strict=True,
)
"""Facts of the lease that no clock of its holder decides; earlier versions wrote none."""

execute(
    metadata,
    """CREATE UNIQUE INDEX one_accepted_attempt ON rounds ("index") WHERE state = 'accepted'""",
)
execute(
    metadata,
    "CREATE UNIQUE INDEX one_live_attempt ON rounds ((1)) WHERE state IN ('running', 'gating')",
)
forbid(
    metadata,
    "alias_moves_need_an_accept",
    "INSERT",
    "alias_moves",
    "an alias moves only to the candidate of an accepted round",
    """
    EXISTS (SELECT 1 FROM alias_moves WHERE alias = NEW.alias)
    AND NOT EXISTS (
        SELECT 1 FROM rounds
        WHERE "index" = NEW.round AND state = 'accepted' AND candidate = NEW.target
    )
    """,
)
forbid(
    metadata,
    "alias_moves_compare_and_set",
    "INSERT",
    "alias_moves",
    "the alias does not point where the move expects it",
    """
    NEW.previous IS DISTINCT FROM (
        SELECT target FROM alias_moves WHERE alias = NEW.alias ORDER BY seq DESC LIMIT 1
    )
    """,
)
APPEND_ONLY = "alias moves are append-only"
forbid(metadata, "alias_moves_are_never_changed", "UPDATE", "alias_moves", APPEND_ONLY)
forbid(metadata, "alias_moves_are_never_deleted", "DELETE", "alias_moves", APPEND_ONLY)
FINAL = "the verdict of an attempt is final"
DECIDED = "OLD.state IN ('accepted', 'rejected', 'failed')"
forbid(metadata, "verdicts_are_never_changed", "UPDATE", "rounds", FINAL, DECIDED)
forbid(metadata, "verdicts_are_never_deleted", "DELETE", "rounds", FINAL, DECIDED)
