"""Files that the ledger no longer names: no machine fetches them, and they do not stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.gate.evidence import Evidence
from align.gate.measurement.evaluate import ItemResults
from align.store.ledger.ledger import Ledger
from align.store.mirror import Mirror
from align.store.remote import Remote
from align.store.store import Store
from align.store.superseded import superseded_in, unfinished
from tests.unit.campaigns import Starter, Watcher, campaign, no_engine, rounds
from tests.unit.ledgers import BASE, FIRST, REPORT, started

SUITE_HASH = "0123abcd" + 56 * "0"
FOLDER = f"evaluations/{BASE.id[:16]}"
EARLY = {
    "mode": "observe",
    "stopping": "sequential",
    "underpowered": "warn",
    "campaign_rounds": 2,
}


class Killed(BaseException):
    """The process was killed."""


def kill(*_: object) -> None:
    raise Killed


def results(n: int) -> dict[str, ItemResults]:
    """The first ``n`` items of a suite."""
    return {
        "general": ItemResults(
            suite="general",
            suite_hash=SUITE_HASH,
            snapshot=BASE.id,
            item_ids=tuple(f"item-{i}" for i in range(n)),
            values=(1.0,) * n,
            statuses=("scored",) * n,
            finishes=("stop",) * n,
        )
    }


def store_of(folder: Path, ledger: Ledger, url: str | None) -> Store:
    return Store(folder, ledger, Mirror(folder, None if url is None else Remote(url)))


def evidence_of(config: CampaignConfig, store: Store) -> Evidence:
    return Evidence(store=store, config=config)


def files_in(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in paths} - {".mirror.json"}


def put(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


def test_a_look_replaces_the_file_of_the_look_before_here_and_there(
    tmp_path: Path, url: str
) -> None:
    ledger = started(tmp_path)
    evidence = evidence_of(campaign(tmp_path), store_of(tmp_path / "one", ledger, url))
    for n in (10, 20, 35):
        evidence.save(BASE.id, results(n))
    (record,) = ledger.evaluations()
    assert record.path == f"{FOLDER}/general-0123abcd-35.parquet"
    assert set(Remote(url).versions("evaluations")) == {record.path}
    assert files_in(tmp_path / "one") == {record.path}
    other = store_of(tmp_path / "other", ledger, url)
    other.pull()
    assert files_in(other.folder) == {record.path}
    again = evidence_of(campaign(tmp_path), other)
    assert ItemResults.load(again.checked(record)).mean == 1.0


@pytest.mark.parametrize("instant", ["before the files", "between here and there"])
def test_a_crash_leaves_what_nobody_fetches_and_the_next_sweep_takes(
    tmp_path: Path, url: str, instant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = started(tmp_path)
    store = store_of(tmp_path / "one", ledger, url)
    evidence = evidence_of(campaign(tmp_path), store)
    evidence.save(BASE.id, results(10))

    with monkeypatch.context() as patch, pytest.raises(Killed):
        method = (Store, "withdraw") if instant == "before the files" else (Remote, "remove")
        patch.setattr(*method, kill)
        evidence.save(BASE.id, results(20))
    (record,) = ledger.evaluations()
    old = f"{FOLDER}/general-0123abcd.parquet"
    assert record.n == 20 and set(Remote(url).versions("evaluations")) == {old, record.path}
    other = store_of(tmp_path / "other", ledger, url)
    other.pull()
    assert files_in(other.folder) == {record.path}
    other.sweep()
    assert set(Remote(url).versions("evaluations")) == {record.path}
    store.sweep()
    assert files_in(store.folder) == {record.path}


def test_a_crash_before_the_record_keeps_what_the_ledger_names(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = started(tmp_path)
    store = store_of(tmp_path / "one", ledger, url)
    evidence = evidence_of(campaign(tmp_path), store)
    evidence.save(BASE.id, results(10))

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Ledger, "extend_evaluation", kill)
        evidence.save(BASE.id, results(20))
    store.sweep()
    assert files_in(store.folder) == {f"{FOLDER}/general-0123abcd.parquet"}
    assert set(Remote(url).versions("evaluations")) == files_in(store.folder)
    assert list(evidence.faults()) == []


ROUND = "rounds/00-reverse"
KEPT = (
    f"{FOLDER}/general-0123abcd-20.parquet",
    f"{FOLDER}/other-0123abcd.parquet",
    f"{FOLDER}/aa/general-0123abcd.parquet",
    f"evaluations/{FIRST.id[:16]}/general-0123abcd.parquet",
    "evaluations/overlap.json",
    "evaluations/references/aaaaaaaaaaaaaaaa-0123abcd0123abcd.json",
    "replay/aaaaaaaaaaaaaaaa.jsonl",
    f"{ROUND}/attempt-2/artifacts/ewc.safetensors",
    f"{ROUND}/attempt-1/metrics.jsonl",
    f"{ROUND}/attempt-9/artifacts/ewc.safetensors",
    "rounds/01-sort/checkpoint/step-00000001/checkpoint.json",
    "rounds/07-unknown/checkpoint/step-00000001/checkpoint.json",
)
SUPERSEDED = (
    f"{FOLDER}/general-0123abcd.parquet",
    f"{FOLDER}/general-0123abcd-10.parquet",
    f"{FOLDER}/general-0123abcd-30.parquet",
    f"{ROUND}/attempt-1/artifacts/ewc.safetensors",
    f"{ROUND}/checkpoint/step-00000001/checkpoint.json",
    f"{ROUND}/checkpoint-distil/step-00000001/rank-0.safetensors",
    "rounds/01-renamed/checkpoint/step-00000001/checkpoint.json",
)


def judged(folder: Path) -> Ledger:
    """A campaign whose first round was accepted at its second attempt, and an evaluation of the base."""
    ledger = started(folder)
    ledger.record_evaluation(BASE.id, "general", SUITE_HASH, KEPT[0], n=20, mean=0.5)
    for verdict in ("failed", "accepted"):
        attempt = ledger.begin_round(0, "reverse", BASE.id)
        ledger.enter_gating(0, attempt, FIRST.id)
        ledger.commit_round(0, attempt, verdict, FIRST.id, REPORT)  # type: ignore[arg-type]
    return ledger


@pytest.mark.parametrize("path", [*KEPT, *SUPERSEDED])
def test_only_what_an_entry_of_the_ledger_replaces_is_superseded(tmp_path: Path, path: str) -> None:
    assert superseded_in(judged(tmp_path))(path) == (path in SUPERSEDED)


def test_another_ledger_takes_nothing_for_superseded(tmp_path: Path) -> None:
    assert not any(map(superseded_in(started(tmp_path)), (*KEPT, *SUPERSEDED[:-1])))


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_sweep_takes_every_kind(tmp_path: Path, url: str, is_remote: bool) -> None:
    ledger, folder = judged(tmp_path), tmp_path / "one"
    put(folder, *KEPT, *SUPERSEDED)
    store = store_of(folder, ledger, url if is_remote else None)
    if is_remote:
        store.copy_rewritten([])
    store.sweep()
    assert files_in(folder) == set(KEPT)
    assert not (folder / ROUND / "checkpoint").exists()
    there = {p for name in ("evaluations", "replay", "rounds") for p in Remote(url).versions(name)}
    assert there == (set(KEPT) if is_remote else set())


def remote_campaign(folder: Path, url: str, **changes: object) -> CampaignConfig:
    places = {"cache": str(folder / "cache"), "ledger": f"sqlite:///{folder / 'ledger.db'}"}
    return campaign(folder, store=url, **{**places, **changes})


def test_a_campaign_leaves_at_its_url_what_its_ledger_names(tmp_path: Path) -> None:
    """Looks of early stopping, checkpoints and tables of steps are replaced while it runs."""
    url = f"file://{tmp_path / 'far'}"
    suite = {"name": "general", "prompts": "demo://general", "metric": "exact_match", "items": 160,
             "margin": 0.05, "budget": 0.1}  # fmt: skip
    raw: dict[str, object] = {
        "suites": [suite],
        "gate": EARLY,
        "keep_rollouts": 2,
        "rounds": rounds({"steps": 4, "checkpoint_every": 1}),
    }
    watcher = Watcher()
    config = remote_campaign(tmp_path, url, **raw)
    evidence = run_campaign(config, start_engine=Starter(), observer=watcher)
    records = {record.path for record in evidence.ledger.evaluations()}
    assert any(path.count("-") > 1 for path in records), "some suite took several looks"
    remote = Remote(url)
    assert {p for p in remote.versions("evaluations") if p.endswith(".parquet")} == records
    assert set(remote.versions("rounds")) == {
        path for path in files_in(config.folder) if path.startswith("rounds/")
    }
    tables = [path for path in remote.versions("rounds") if "/rollouts/" in path]
    assert [Path(path).stem for path in sorted(tables)] == ["step-0002", "step-0003"]
    fresh = remote_campaign(tmp_path, url, cache=str(tmp_path / "fresh"), **raw)
    run_campaign(fresh, start_engine=no_engine, observer=watcher)
    assert {
        p for p in files_in(fresh.folder) if p.endswith(".parquet") and "/rollouts/" not in p
    } == records


def test_what_was_being_written_is_found_wherever_a_store_writes(tmp_path: Path) -> None:
    number = "0123456789abcdef" * 2
    staged = [
        f"..mirror.json.{number}",
        f"rounds/00-a/.times.json.{number}",
        "replay/.a.parquet.again",
    ]
    for name in (*staged, ".mirror.json", ".env", "rounds/00-a/.times.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert unfinished(tmp_path) == [tmp_path / name for name in sorted(staged)]
