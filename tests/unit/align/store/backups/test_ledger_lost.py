"""A lost ledger is refused with what brings it back; a store never begins a new life by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from align.config.campaign import CampaignConfig
from align.errors import LedgerLost, StoreError
from align.gate.evidence import stored_evidence
from align.report.forecast.forecast import forecast
from align.store.backups.ledger_backups import back_up, ledger_file
from align.store.store import known_ledger, open_ledger
from tests.unit.campaigns import campaign
from tests.unit.stores import BETTER, GOOD, made


def finished(folder: Path, *, backed_up: bool = True) -> CampaignConfig:
    """A store of two rounds whose ledger nobody has open."""
    config = made(folder, GOOD, BETTER).config
    if backed_up:
        assert back_up(config) is None
    return config


def path_of(config: CampaignConfig) -> Path:
    file = ledger_file(config)
    assert file is not None
    return file


def put(file: Path, content: bytes) -> None:
    for ending in ("-wal", "-shm"):
        file.with_name(file.name + ending).unlink(missing_ok=True)
    file.write_bytes(content)


def zeros_in_the_first_page(content: bytes) -> bytes:
    return content[:100] + bytes(3000) + content[3100:]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda content: b"", "the ledger is empty"),
        (lambda content: content[:20000], "the ledger is damaged: .* malformed"),
        (lambda content: b"?" * len(content), "the ledger is damaged: .* not a database"),
        (zeros_in_the_first_page, "the ledger is damaged: .* malformed"),
    ],
    ids=["empty", "truncated", "overwritten", "page"],
)
def test_a_damaged_ledger_is_refused_and_stays(
    damage: Callable[[bytes], bytes], fault: str, tmp_path: Path
) -> None:
    config = finished(tmp_path)
    file = path_of(config)
    put(file, damage(file.read_bytes()))
    before = file.read_bytes()
    for use in (open_ledger, known_ledger, stored_evidence, forecast):
        with pytest.raises(LedgerLost, match=fault) as refused:
            use(config)
        assert "snapshots of the base, round0" in refused.value.what
        assert "ledger-backups/000001.db, with 2 decided rounds" in (refused.value.remedy or "")
        assert refused.value.exit_code == 2
    assert file.read_bytes() == before


def test_a_missing_ledger_is_refused_and_not_made(tmp_path: Path) -> None:
    config = finished(tmp_path, backed_up=False)
    path_of(config).unlink()
    for use in (open_ledger, known_ledger, stored_evidence, forecast):
        with pytest.raises(
            LedgerLost, match=r"the ledger is missing; .* of the base, round0"
        ) as refused:
            use(config)
        assert "no backup beside it" in (refused.value.remedy or "")
    assert not path_of(config).exists()


def test_a_folder_in_the_place_of_the_ledger(tmp_path: Path) -> None:
    config = finished(tmp_path)
    path_of(config).unlink()
    path_of(config).mkdir()
    with pytest.raises(LedgerLost, match="is no file"):
        open_ledger(config)


def test_a_fresh_ledger_beside_old_snapshots_is_refused(tmp_path: Path) -> None:
    other = campaign(tmp_path / "other")
    ledger = open_ledger(other)
    assert not ledger.has_campaign()
    del ledger
    config = finished(tmp_path)
    put(path_of(config), path_of(other).read_bytes())
    with pytest.raises(LedgerLost, match="holds no campaign"):
        open_ledger(config)


def test_a_store_without_snapshots_may_begin(tmp_path: Path) -> None:
    config = campaign(tmp_path)
    assert known_ledger(config) is None
    ledger = open_ledger(config)
    assert not ledger.has_campaign()
    # Feedback lies in a ledger before any campaign does.
    assert known_ledger(config) is not None


def test_a_first_commit_that_lies_in_the_log_alone_is_a_ledger(tmp_path: Path) -> None:
    config = finished(tmp_path)
    content = path_of(config).read_bytes()
    put(path_of(config), b"")
    path_of(config).with_name("ledger.db-wal").write_bytes(content)
    with pytest.raises(StoreError) as refused:
        open_ledger(config)
    assert "is empty" not in refused.value.what


def test_a_lost_ledger_behind_a_url_is_refused_on_a_new_machine(tmp_path: Path) -> None:
    (tmp_path / "far/snapshots" / ("a" * 64)).mkdir(parents=True)
    (tmp_path / "far/snapshots" / ("a" * 64) / "manifest.json").write_text("{}")
    config = campaign(
        tmp_path,
        store=f"file://{tmp_path}/far",
        cache=str(tmp_path / "cache"),
        ledger=f"sqlite:///{tmp_path}/here/nightly.db",
    )
    with pytest.raises(
        LedgerLost, match="is missing; the store still has snapshots of aaaaaaaaaaaa"
    ):
        known_ledger(config)
