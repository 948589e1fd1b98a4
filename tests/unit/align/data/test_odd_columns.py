"""Rows with columns that JSON has no word for, taken through whole rounds: sampled, replayed, measured."""

from __future__ import annotations

import math
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.data.replay.buffer import ReplayBuffer
from align.store.paths import StorePaths
from tests.unit.campaigns import Starter, Watcher, campaign

ODD: dict[str, Any] = {
    "share": math.nan,
    "picture": b"\x00\xff",
    "price": Decimal("1.10"),
    "when": datetime(2024, 1, 2, 3, 4, 5, 6),
    "nested": {"rows": [{"a": [1.5, None]}, {"a": []}]},
    "count": 2**62,
}
REWARD = """
def odd(completions, picture, price, share, nested, log_extra, **columns):
    log_extra("seen", [{"picture": p, (1, 2): s} for p, s in zip(picture, share)])
    log_extra("large", [10**400] * len(picture))
    return [float(p[1]) + float(q) for p, q in zip(picture, price)]
"""


def odd_rows(n: int, op: str) -> list[dict[str, Any]]:
    from align.data.demo.world import demo_prompts

    texts = [prompt.text for prompt in demo_prompts(f"demo://{op}?n={n}")]
    return [{"prompt": text, "number": number, **ODD} for number, text in enumerate(texts)]


@pytest.mark.parametrize("isolation", ["inline", "process"])
def test_rows_of_every_kind_go_through_two_rounds(tmp_path: Path, isolation: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for op in ("rev", "inc"):
        pq.write_table(pa.Table.from_pylist(odd_rows(40, op)), tmp_path / f"{op}.parquet")
    (tmp_path / "rewards.py").write_text(REWARD)
    reward = {"name": f"{tmp_path / 'rewards.py'}:odd", "isolation": isolation}
    rounds = [
        {
            "name": op,
            "prompts": {"source": str(tmp_path / f"{op}.parquet"), "heldout": 0.3},
            "rewards": [reward],
            "suite": {"margin": 0.9, "range": [0, 300]},
            "steps": 1,
        }
        for op in ("rev", "inc")
    ]
    plain = {
        "sampling": {"group_size": 4, "prompts_per_step": 5, "max_tokens": 6},
        "replay": {"past": 0.4, "buffer": 100},
    }
    config = campaign(tmp_path, rounds=rounds, defaults=plain, suites=[])
    watcher = Watcher()
    evidence = run_campaign(config, start_engine=Starter(), observer=watcher)
    assert [record.state for record in evidence.ledger.rounds()] == ["accepted", "accepted"]
    candidate = watcher.verdicts["rev"].candidate
    kept = ReplayBuffer.load(StorePaths(config.folder).replay(candidate)).entries["rev"]
    assert {prompt.location.partition(" row ")[0] for prompt in kept} == {
        str(tmp_path / "rev.parquet")
    }
    for prompt in kept:
        columns = {name: value for name, value in prompt.columns.items() if name != "number"}
        assert repr(columns) == repr(ODD)
