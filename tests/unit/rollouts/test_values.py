"""Values of columns: brought into plain kinds, and carried through JSON without a change."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollouts.values import TAG, Unholdable, from_json, normalised, to_json

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text()
    | st.binary()
    | st.decimals()
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just(TAG), inner),
    max_leaves=8,
)


@given(value=values)
def test_json_gives_every_value_back(value: Any) -> None:
    plain = normalised(value)
    text = json.dumps(to_json(plain), allow_nan=False)
    back = from_json(json.loads(text))
    assert repr(back) == repr(plain)
    assert json.dumps(to_json(back)) == text


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, (2,)), [1, [2]]),
        (np.float64(1.5), 1.5),
        (np.float16(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (OrderedDict(a=(1,)), {"a": [1]}),
        (bytearray(b"x"), b"x"),
        (
            datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Europe/Paris")),
            datetime(2024, 7, 1, 12, tzinfo=timezone(timedelta(hours=2))),
        ),
        (time(1, 2, 3), time(1, 2, 3)),
    ],
)
def test_other_classes_become_plain_ones(value: Any, plain: Any) -> None:
    made = normalised(value)
    assert made == plain and type(made) is type(plain)


def test_a_tagged_value_by_hand() -> None:
    row = {"a": Decimal("1.10"), "b": b"\x00", "c": date(2024, 1, 2), "d": math.inf}
    assert to_json(row) == {
        "a": {TAG: "decimal", "value": "1.10"},
        "b": {TAG: "bytes", "value": "AA=="},
        "c": {TAG: "date", "value": "2024-01-02"},
        "d": {TAG: "float", "value": "inf"},
    }
    assert from_json(to_json({"e": UUID(int=1), "f": datetime(2024, 1, 2, tzinfo=UTC)})) == {
        "e": UUID(int=1),
        "f": datetime(2024, 1, 2, tzinfo=UTC),
    }


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"a": [{1: "x"}]}, "a mapping with the key 1, which is no text at a.0"),
        ({"a": {0: "x"}}, "a mapping with the key 0, which is no text at a"),
        ({"": 1, None: "x"}, "a mapping with the key None, which is no text"),
        ([object()], "a object at 0"),
        ({1, 2}, "a set"),
        (1j, "a complex"),
    ],
)
def test_a_kind_that_is_not_kept_is_named(value: Any, kind: str) -> None:
    with pytest.raises(Unholdable, match=kind):
        normalised(value)


def test_nanoseconds_are_not_cut_off() -> None:
    import pandas as pd

    assert normalised(pd.Timestamp(2_000)) == datetime(1970, 1, 1, 0, 0, 0, 2)
    with pytest.raises(Unholdable, match="nanoseconds"):
        normalised(pd.Timestamp(1))
    with pytest.raises(Unholdable, match="nanoseconds"):
        normalised(pd.Timedelta(1))
