"""``keel feedback``: add, list, show, quarantine and purge, without anything heavy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch import cli
from tests.unit.inboxes import pair, settled

Keel = Callable[..., tuple[int, str, str]]
CAMPAIGN: dict[str, Any] = {
    "name": "fed",
    "policy": {"model": "demo://digits"},
    "store": "store",
    "rounds": [
        {
            "name": "first",
            "algorithm": {"name": "dpo", "pairs": "file"},
            "data": "inbox://taste",
            "steps": 1,
        }
    ],
}


@pytest.fixture
def keel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Keel:
    """Run `keel feedback ACTION campaign.yaml ...` in a folder of its own; exit code and outputs."""
    monkeypatch.chdir(tmp_path)
    Path("campaign.yaml").write_text(json.dumps(CAMPAIGN))
    rows = [{**pair(1), "who": "ann"}, {**pair(2), "who": "bob"}, {"x": 1, "who": "bob"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(action: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["keel", "feedback", action, "campaign.yaml", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def test_the_life_of_a_row(keel: Keel) -> None:
    code, out, _ = keel("add", "rows.jsonl", "--user-column", "who")
    assert (code, out.splitlines()) == (
        0,
        [
            "rows.jsonl: 2 stored in inbox://taste, 0 known already, 1 quarantined, 0 with a key of "
            "another row",
            "  rows.jsonl:3: neither a pair nor a rating",
        ],
    )
    assert json.loads(keel("show", "2", "--json")[1])[0]["user"] == "bob"
    assert "1 pair" in keel("show")[1]
    assert "1 of 1 rows set aside" in keel("quarantine", "1", "--reason", "spam")[1]
    assert "1 rows.jsonl:1: spam" in keel("quarantine")[1]
    assert (
        "2 rows, 0 replayed prompts and 0 answers to them removed"
        in keel("purge", "--user", "bob")[1]
    )
    shown = json.loads(keel("list", "--json")[1])
    (stream,) = shown["streams"]
    assert (stream["ready"], stream["quarantined"], stream["newest"]) == (0, 1, 3)
    assert (shown["takes"], shown["purges"][0]["num_rows"]) == ([], 2)
    assert "purged" in keel("list")[1]


def test_the_drop_folder_by_hand(keel: Keel) -> None:
    assert "0 files taken from store/inbox/drop" in keel("sweep")[1]
    dropped = Path("rows.jsonl").rename("store/inbox/drop/taste/rows.jsonl")
    out = keel("sweep")[1]
    assert "0 files taken" in out and "1 left there: changed in the last 2 s" in out
    settled(dropped)
    assert "rows.jsonl: 2 stored, 1 aside" in keel("sweep")[1]
    assert json.loads(keel("sweep", "--json")[1]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "rows.jsonl", "--stream", "tatse"), "did you mean 'taste'"),
        (("add", "absent.jsonl"), "cannot open the file"),
        (("add", "absent.txt"), "cannot open the file: there is none"),
        (("add", "campaign.yaml"), "cannot read .yaml file"),
        (("show", "7"), "nothing has arrived yet"),
        (("show", "--stream", "other"), "no round reads inbox://other"),
    ],
)
def test_what_cannot_be_done_is_said(keel: Keel, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = keel(*arguments)
    assert code == 2
    assert message in err


def test_looking_makes_no_store(keel: Keel) -> None:
    assert keel("list")[:2] == (0, "nothing has arrived yet\n")
    assert json.loads(keel("list", "--json")[1]) == {"streams": [], "takes": [], "purges": []}
    for words in (("show",), ("quarantine",), ("quarantine", "1"), ("show", "--stream", "other")):
        assert keel(*words)[0] == 2
    assert not Path("store").exists()


def test_a_row_that_is_not_there(keel: Keel) -> None:
    keel("add", "rows.jsonl")
    assert "has no row 7" in keel("show", "7")[2]


def test_a_campaign_without_a_stream_has_nothing_to_serve(keel: Keel, tmp_path: Path) -> None:
    plain = {"prompts": "demo://rev", "rewards": ["exact_match"], "name": "first", "steps": 1}
    Path("campaign.yaml").write_text(json.dumps({**CAMPAIGN, "rounds": [plain]}))
    code, _, err = keel("serve")
    assert code == 2
    assert "no round reads feedback" in err
    assert not (tmp_path / "store").exists()


def test_words_of_others_are_no_orders_to_the_terminal(keel: Keel) -> None:
    hostile = "a\x1b]0;t\x07\x9b2J\u202e.jsonl"
    drop = Path("store/inbox/drop/taste")
    drop.mkdir(parents=True)
    (drop / hostile).write_text(json.dumps({**pair(1), "who": hostile}) + "\n" + '{"x": 1}\n')
    settled(drop / hostile)
    printed = [keel("sweep"), keel("show"), keel("quarantine"), keel("show", "--json")]
    assert all(code == 0 for code, _, _ in printed)
    assert hostile in json.loads(printed[-1][1])[0]["source"]
    for _, out, _ in printed:
        assert "jsonl" in out
        assert all(c.isprintable() or c == "\n" for c in out)
