"""The benchmark of a stream of tasks: each of its rows is a campaign that can run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.slm import ORDERS, ROWS, Run, row_of

TASKS = sorted(ORDERS["given"])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_campaign_over_the_same_texts(row: str, order: str, tmp_path: Path) -> None:
    for task in TASKS:
        for part in ("train", "test"):
            rows = [{"text": f"{task} {number}", "label": "x"} for number in range(12)]
            text = "".join(json.dumps(each) + "\n" for each in rows)
            (tmp_path / f"{task}_{part}.jsonl").write_text(text)
    settings = argparse.Namespace(
        data=tmp_path, model=Path("model"), train=10, items=5, steps=3, batch=4, chars=40,
        tokens=4, lr=1e-3, rank=2, dtype="float32", threads=1,
    )  # fmt: skip
    config = Run(row=row, order=order, seed=0, settings=settings).config(tmp_path / "stores")
    names = ("joint",) if row == "joint" else ORDERS[order]
    assert tuple(spec.name for spec in config.rounds) == names
    assert sum(spec.steps for spec in config.rounds) == 3 * len(TASKS)
    assert [suite.name for suite in config.suites] == [f"{task}-test" for task in ORDERS[order]]
    assert (config.policy.bank is not None) == row.startswith("slm")


def test_no_prompt_names_its_task() -> None:
    row = row_of({"text": "Title: a\nText:  b", "label": "World"}, 40)
    assert row == {"prompt": "Title: a Text: b\nAnswer:", "completion": " World", "answer": "World"}
