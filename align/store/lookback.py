"""Earlier rounds that a round looks back on: the newest of a template, and some of its older ones by lot.

Every accepted round of a template leaves a suite that must not be lost, and prompts to replay. Were all of
them kept, a decision would cost more every night, and an equal candidate would sooner or later fail one of
so many tests. So a round looks back on every plain round before it, on the newest of each template, and on
a fixed number of its older ones. These are drawn anew for every round, each with the same chance, from the
campaign's seed and the names alone: a resumed round finds the same ones, and over the rounds all come up.

Gate and replay draw apart. Were only rounds looked at that are replayed as well, the gate would see what is
held and never what is not; drawn apart, what it sees is a fair sample of all that was learnt.

A round that is left out keeps its anchor and its best: what was lost while nobody looked counts in full
against its budget when it is drawn again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, select

from align.config.schedule import RememberConfig
from align.store.database.database import Database
from align.store.ledger.tables.due import due_claims

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig


Purpose = Literal["gate", "replay"]
"""Purpose that rounds are drawn for."""


FOLDED = re.compile(r"(.+)-\[(\d+)\.\.(\d+)\]")
"""Entry for consecutive rounds of a template; no round's name has brackets."""
SHOWN = 5
"""Names in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A round of the campaign file that others are made of."""

    name: str
    remember: RememberConfig | None
    """Settings of the lookback; None: all of its rounds."""

    @property
    def sentence(self) -> str:
        if self.remember is None:
            return (
                f"rounds of {self.name!r}: later rounds look back on all, and cost more each time"
            )
        return (
            f"rounds of {self.name!r}: later rounds look back on the newest {self.remember.newest} and on "
            f"{self.remember.older} of the older ones, drawn anew each time"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookback:
    """Earlier rounds, divided; both in the order they were given in."""

    kept: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Sentence that says how many, and which are not among them."""
        count = len(self.kept) + len(self.left_out)
        skipped = first_names(self.left_out)
        return f"looks back on {len(self.kept)} of {count} earlier rounds, not on {skipped}"


def look_back(
    earlier: Sequence[str],
    templates: Mapping[str, Template],
    draw: str,
    gone: Collection[str] = frozenset(),
) -> Lookback:
    """Divide earlier rounds into those that are looked at and those that are not this time.

    Args:
        earlier: accepted rounds, in order.
        templates: of those rounds that are a template's; all others stay.
        draw: names the draw. Different ones are independent.
        gone: rounds that cannot be looked at, since their snapshots were collected.
    """
    by_template: dict[Template, list[str]] = {}
    for name in earlier:
        if name in templates and name not in gone:
            by_template.setdefault(templates[name], []).append(name)
    left_out = set(gone)
    for template, names in by_template.items():
        if template.remember is not None:
            older = names[: -template.remember.newest]
            # By lot, and so that one more name moves no other.
            older.sort(key=lambda name: sha256(f"{draw}/{name}".encode()).digest())
            left_out.update(older[template.remember.older :])
    return Lookback(
        kept=tuple(name for name in earlier if name not in left_out),
        left_out=tuple(name for name in earlier if name in left_out),
    )


def first_names(names: Sequence[str]) -> str:
    """List the first few by name.

    >>> first_names(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def folded(names: Sequence[str]) -> list[str]:
    """Write the consecutive rounds of a template as one entry, so that a verdict's record stays short.

    >>> folded(["plain", "nightly-1", "nightly-2", "nightly-3", "nightly-5", "nightly-07"])
    ['plain', 'nightly-[1..3]', 'nightly-5', 'nightly-07']
    """
    entries: list[str] = []
    template, first, last = "", 0, 0

    def close() -> None:
        if template:
            entries.append(
                f"{template}-{first}" if first == last else f"{template}-[{first}..{last}]"
            )

    for name in names:
        head, _, number = name.rpartition("-")
        if not (head and number.isdecimal() and str(int(number)) == number):
            close()
            template = ""
            entries.append(name)
        elif head == template and int(number) == last + 1:
            last += 1
        else:
            close()
            template, first, last = head, int(number), int(number)
    close()
    return entries


def unfolded(entries: Iterable[str]) -> list[str]:
    """Return the names that `folded` wrote; a name stands for itself.

    >>> unfolded(["plain", "nightly-[1..3]"])
    ['plain', 'nightly-1', 'nightly-2', 'nightly-3']
    """
    names: list[str] = []
    for entry in entries:
        if match := FOLDED.fullmatch(entry):
            head, first, last = match.groups()
            names += [f"{head}-{number}" for number in range(int(first), int(last) + 1)]
        else:
            names.append(entry)
    return names


def nights_of(database: Database) -> dict[str, Template]:
    """Return the template of every round that is one's, in the order they fell due.

    What a template remembers is what the campaign file said when its last round fell due: an edit is for
    rounds to come, and an interrupted round goes on as it began.
    """
    return dict(database.follow("nights", _nights))


def _nights(connection: Connection) -> dict[str, Template]:
    columns = (due_claims.c.schedule, due_claims.c.round)
    claims = connection.execute(select(*columns).order_by(due_claims.c.seq)).all()
    newest = dict(claims)
    specs = select(due_claims.c.schedule, due_claims.c.spec)
    templates = {
        schedule: template_of(schedule, json.loads(spec).get("remember"))
        for round in newest.values()
        for schedule, spec in connection.execute(specs.where(due_claims.c.round == round))
    }
    # A schedule that does not repeat runs under its own name: a plain round.
    return {round: templates[schedule] for schedule, round in claims if round != schedule}


def template_of(name: str, stated: Any) -> Template:
    """Make a template; ``stated`` is what the round said of ``remember``, as a model or as JSON."""
    if stated == "all":
        return Template(name=name, remember=None)
    return Template(name=name, remember=RememberConfig.model_validate(stated or {}))


def templates_in(config: CampaignConfig) -> list[Template]:
    """List the templates of a campaign file as it was read."""
    return [template_of(spec.name, spec.remember) for spec in config.rounds if spec.repeats]


def upcoming(nights: Mapping[str, Template], decided: Collection[str]) -> list[str]:
    """List the round of every template that is decided on next, whether it fell due yet or not."""
    newest = {template.name: round for round, template in nights.items()}
    return [
        f"{name}-{int(last.rpartition('-')[2]) + 1}" if last in decided else last
        for name, last in newest.items()
    ]
