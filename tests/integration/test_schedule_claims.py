"""Several schedulers on one ledger, as processes: every tick becomes one round."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from align.schedule.claims import Dues
from align.store.ledger.due_rounds import claimed_rounds
from align.store.ledger.ledger import Ledger
from tests.patience import patient
from tests.unit.campaigns import campaign, rounds
from tests.unit.ledgers import RAM, python, url
from tests.unit.schedules import START

PATIENCE_S = patient(500.0)
NIGHTLY = {"name": "nightly", "every": "0 3 * * *"}

# Every process looks at every tick until somebody has claimed it and given its round a verdict.
MANY = """
import json, sys
from datetime import datetime, timedelta
from time import sleep
from align.config.campaign import CampaignConfig
from align.store.ledger.ledger import Ledger
from align.schedule.claims import Dues
from tests.unit.schedules import verdict

folder, url, ticks = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = CampaignConfig.model_validate_json(open(f"{folder}/campaign.json").read())
ledger = Ledger(url)
dues = Dues(ledger.database, config)
start, won = datetime.fromisoformat(sys.argv[4]), []
print("ready", flush=True)
sys.stdin.readline()
for day in range(1, ticks + 1):
    now = start + timedelta(days=day)
    while (found := dues.claim(now)).due:
        (due,) = found.due
        if due.claimed:
            sleep(0.002)  # Somebody else's, still open.
            continue
        won.append(due.key)
        verdict(ledger, due.round, day)
print(json.dumps(won), flush=True)
"""


@pytest.mark.timeout(600)
def test_six_processes_claim_every_tick_once() -> None:
    with TemporaryDirectory(dir=RAM) as scratch:
        check_claims(Path(scratch), processes=6, ticks=300)


def check_claims(folder: Path, *, processes: int, ticks: int) -> None:
    """Let so many processes claim so many ticks, on the ledger of `tests.unit.ledgers`."""
    ledger = Ledger(url(folder))
    config = campaign(folder, rounds=rounds(NIGHTLY))
    (folder / "campaign.json").write_text(config.model_dump_json())
    Dues(ledger.database, config).claim(START)
    arguments = (str(folder), url(folder), str(ticks), START.isoformat())
    started = [python(MANY, *arguments) for _ in range(processes)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(processes) as threads:
        talks = list(threads.map(lambda p: p.communicate("go\n", timeout=PATIENCE_S)[0], started))
    claims = claimed_rounds(ledger.database)
    assert [process.returncode for process in started] == [0] * processes
    keys = sorted(key for talk in talks for key in json.loads(talk))
    days = (START + timedelta(days=day) for day in range(1, ticks + 1))
    assert keys == [f"cron/{day:%Y-%m-%d}T03:00Z" for day in days]
    assert [claim.spec.name for claim in claims] == [f"nightly-{n}" for n in range(1, ticks + 1)]
