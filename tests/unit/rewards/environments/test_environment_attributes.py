"""Attributes that a class shows, and classes of which they cannot be known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rewards.environments.state import attributes_of


class Base:
    tried: int
    limit = 3

    def __init__(self) -> None:
        self.left, self._hidden = 3, 4

    @property
    def over(self) -> bool:
        return self.left == 0


class Game(Base):
    __slots__ = ("slot",)

    def reset(self, **row: Any) -> None:
        for self.turn in range(1):
            self.board: list[int] = []

    def play(self) -> int:
        self.score += 1
        return self.unset  # type: ignore[attr-defined,no-any-return]


@dataclasses.dataclass
class Record:
    won: bool = False

    def reset(self, **row: Any) -> None:
        self.moves = 0


class Dynamic(Base):
    def reset(self, **row: Any) -> None:
        for name, value in row.items():
            setattr(self, name, value)


class Updating(Base):
    def reset(self, **row: Any) -> None:
        self.__dict__.update(row)


class Handing(Base):
    def reset(self, **row: Any) -> None:
        prepare(self)


class Open(Base):
    def __getattr__(self, name: str) -> int:
        return 1


def prepare(game: Any) -> None:
    game.ready = True


def test_what_a_class_and_its_methods_set_is_known() -> None:
    names = ["board", "left", "limit", "over", "score", "slot", "tried", "turn"]
    assert attributes_of(Game()) == names
    assert attributes_of(Record()) == ["moves", "won"]


@pytest.mark.parametrize("kind", [Dynamic, Updating, Handing, Open])
def test_a_class_that_hides_what_it_sets_is_not_known(kind: type[Base]) -> None:
    assert attributes_of(kind()) is None
