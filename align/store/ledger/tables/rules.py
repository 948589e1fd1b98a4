"""Rules that the database itself keeps, written once for SQLite and PostgreSQL.

The ledger checks all of them before it writes; as triggers they hold against every other hand, too. In
PostgreSQL a rule first takes the lock that the ledger's own writers hold, so that what it reads cannot
change before it has decided.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import DDL, MetaData, Table, event

Change = Literal["INSERT", "UPDATE", "DELETE"]

WRITER_LOCK = "pg_advisory_xact_lock(hashtextextended('keel ledger ' || current_schema(), 0))"
"""Held until the transaction ends, by one transaction of a schema at a time."""


def forbid(
    target: Table | MetaData, name: str, change: Change, on: str, message: str, when: str = ""
) -> None:
    """Refuse a change of the table ``on`` wherever ``when`` holds: an SQL condition over OLD and NEW that
    both databases understand; empty: always.

    Args:
        target: the rule is made when this is: the table itself, or all of them.
    """
    # The standard's spelling is known to SQLite from 3.39 on only.
    condition = when.replace("IS DISTINCT FROM", "IS NOT")
    sqlite = f"""
        CREATE TRIGGER {name} BEFORE {change} ON {on}
        {f"WHEN {condition}" if condition else ""}
        BEGIN SELECT RAISE(ABORT, '{message}'); END
    """
    # Emptying a table removes its rows past every trigger that looks at rows.
    truncates = "TG_OP = 'TRUNCATE' OR " if change == "DELETE" else ""
    body = f"""
        CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $rule$
        BEGIN
            PERFORM {WRITER_LOCK};
            IF {truncates}({when or "true"}) THEN
                RAISE EXCEPTION USING
                    ERRCODE = 'integrity_constraint_violation', MESSAGE = '{message}';
            END IF;
            {"RETURN OLD" if change == "DELETE" else "RETURN NEW"};
        END $rule$
    """
    trigger = (
        f"CREATE TRIGGER {name} BEFORE {change} ON {on} FOR EACH ROW EXECUTE FUNCTION {name}()"
    )
    execute(target, sqlite, dialect="sqlite")
    execute(target, body, dialect="postgresql")
    execute(target, trigger, dialect="postgresql")
    if truncates:
        empty = trigger.replace("BEFORE DELETE", "BEFORE TRUNCATE").replace(
            "EACH ROW", "EACH STATEMENT"
        )
        execute(target, empty.replace(name, f"{name}_at_once", 1), dialect="postgresql")


def append_only(table: Table, message: str, prefix: str) -> None:
    """Refuse to change or remove a row of a log, as rules named ``<prefix>_update`` and so on."""
    for change in ("UPDATE", "DELETE"):
        forbid(table, f"{prefix}_{change.lower()}", change, table.name, message)


def execute(target: Table | MetaData, statement: str, dialect: str | None = None) -> None:
    """Run a statement once, right after the target's tables were made."""
    ddl = DDL(statement)  # type: ignore[no-untyped-call]
    event.listen(
        target, "after_create", ddl if dialect is None else ddl.execute_if(dialect=dialect)
    )
