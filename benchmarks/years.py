"""Claim: a store that is years old answers as quickly as a young one.

Writes the store of a campaign whose template ran every night, 10,000 of them and a million rows of its
ledger by default, through the ledger's own tables, with a file behind every evaluation. Then times commands
over it, each in a process of its own, beside the same commands over a store of three rounds. Modules are
compiled beforehand, as an installation has them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import parser, prepare, show
from benchmarks.years_store import PLAIN, STREAM, Night, Years, campaign_text, feedback_row

SENT = 2_000
"""Rows of feedback that are sent at once."""
YOUNG = 3
"""Rounds of the store that commands are compared on: what they take there is imports, mostly."""

COMMANDS: Mapping[str, Sequence[str]] = {
    "status": ("status", "{file}"),
    "status --json": ("status", "{file}", "--json"),
    "run, nothing due": ("run", "{file}"),
    "plan": ("plan", "{file}"),
    "schedule next": ("schedule", "next", "{file}"),
    "schedule tick, nothing due": ("schedule", "tick", "{file}"),
    "gate explain": ("gate", "explain", "{file}", "{last}"),
    "rounds list": ("rounds", "list", "{file}"),
    "rounds show": ("rounds", "show", "{file}", "{last}"),
    "report": ("report", "{file}", "--out", "{folder}/report.html"),
}
"""Commands that are timed."""


class Cost(NamedTuple):
    """Cost of one command."""

    wall_s: float
    cpu_s: float
    rss_mib: float
    code: int | str
    """Exit code, or why there is none."""


def cost_of(command: Sequence[str], limit_s: float) -> Cost:
    """Run ``keel`` in a process of its own and return what it took."""
    code = (
        "import atexit, resource, sys\n"
        "def end():\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    print('\\ncost', used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, file=sys.stderr)\n"
        "atexit.register(end)\n"
        "from launch.cli import main\n"
        "main()\n"
    )
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *command],
            capture_output=True,
            timeout=limit_s,
            text=True,
            env=compiling(),
        )
    except subprocess.TimeoutExpired:
        return Cost(time.perf_counter() - start, 0.0, 0.0, f"over {limit_s:.0f} s")
    wall_s = time.perf_counter() - start
    _, cpu, rss = done.stderr.rstrip().splitlines()[-1].split()
    return Cost(wall_s, float(cpu), float(rss), done.returncode)


def compiling() -> dict[str, str]:
    """Return the environment with compiled modules kept, whatever this one says of them."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {"PYTHONPYCACHEPREFIX": str(Path("runs/benchmarks/compiled").absolute()), **kept}


def fill_inbox(folder: Path, count: int) -> tuple[Path, float, float]:
    """Send feedback to a new store; return its campaign file, and rows a second at first and at last."""
    from align.config.file import load_campaign
    from align.schedule.inbox.inbox import Inbox
    from align.schedule.inbox.rows import stream_forms
    from align.store.ledger.ledger import Ledger

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = folder / "campaign.yaml"
    lines = campaign_text(folder / "store").replace("100000", str(count + 1)).splitlines()
    file.write_text("\n".join(line for line in lines if f"name: {PLAIN}," not in line))
    config = load_campaign(file).config
    inbox, form = Inbox(Ledger(config.ledger_url).database), stream_forms(config)[STREAM]
    rates = []
    for start in range(0, count, SENT):
        pairs = (json.loads(feedback_row(n)["payload"]) for n in range(start, start + SENT))
        rows = [form.judge({**pair, "prompt": f"{pair['prompt']} {start + i}"}, f"row {i}")
                for i, pair in enumerate(pairs)]  # fmt: skip
        began = time.perf_counter()
        inbox.add(STREAM, rows)
        rates.append(SENT / (time.perf_counter() - began))
    return file, rates[0], rates[-1]


def inbox_rows(folder: Path, counts: Sequence[int], limit_s: float) -> list[list[str]]:
    """Time a tick over inboxes with so many rows that wait."""
    rows = []
    for count in counts:
        file, first, last = fill_inbox(folder / "inbox", count)
        cost = cost_of(("schedule", "tick", str(file)), limit_s)
        rows.append(
            [
                f"{count:,}", f"{first:,.0f}", f"{last:,.0f}", f"{cost.wall_s:.2f}", f"{cost.cpu_s:.2f}",
                f"{cost.rss_mib:.0f}", str(cost.code),
            ]
        )  # fmt: skip
    return rows


def written(folder: Path, rounds: int, events: int) -> Path:
    """Return the folder of a store with so many rounds and rows; write it where there is none."""
    place = folder / f"{rounds}-{events}"
    if not (place / "written").exists():
        start = time.perf_counter()
        rows = Years(place, rounds, events).write()
        (place / "written").write_text(str(rows))
        print(f"{rows:,} rows in {time.perf_counter() - start:.0f} s", flush=True)
    return place


def main() -> None:
    """Write the stores where there are none yet, then time the commands on an old one and a young one."""
    prepare()
    args = arguments()
    old = written(args.folder, args.rounds, args.events)
    young = written(args.folder, YOUNG, 100)
    rows = []
    for title in args.commands or COMMANDS:
        costs = []
        for place, last in ((young, YOUNG - 1), (old, args.rounds - 1)):
            words = {"file": str(place / "campaign.yaml"), "folder": str(place)}
            command = [word.format(**words, last=Night(last).name) for word in COMMANDS[title]]
            cost_of(command, args.limit)  # The first one fills the caches.
            costs.append(cost_of(command, args.limit))
        before, after = costs
        rows.append(
            [
                title, f"{after.wall_s:.2f}", f"{after.cpu_s:.2f}", f"{before.cpu_s:.2f}",
                f"{after.cpu_s - before.cpu_s:.2f}", f"{after.rss_mib:.0f}", str(after.code),
            ]
        )  # fmt: skip
        print(rows[-1], flush=True)
    if args.inbox:
        columns = ["rows that wait", "stored/s, first", "last", "tick s", "CPU", "MiB", "exit code"]
        show("Feedback", columns, inbox_rows(args.folder, args.inbox, args.limit))
    columns = ["command", "seconds", "CPU", "young", "difference", "MiB", "exit code"]
    show(f"{args.rounds:,} rounds, {args.events:,} rows", columns, rows)


def arguments() -> argparse.Namespace:
    """Read the options of the command line."""
    options = parser("A store of 10,000 rounds is read as quickly as a young one.")
    options.add_argument("--rounds", type=int, default=10_000)
    options.add_argument("--events", type=int, default=1_000_000)
    options.add_argument("--limit", type=float, default=300.0, help="seconds of one command")
    options.add_argument("--folder", type=Path, default=Path("runs/benchmarks/years"))
    options.add_argument("--commands", nargs="*", choices=list(COMMANDS))
    options.add_argument("--inbox", type=int, nargs="*", default=[10_000, 100_000], metavar="ROWS")
    args = options.parse_args()
    if args.quick:
        args.rounds, args.events, args.inbox = 60, 3_000, [4_000]
    return args


if __name__ == "__main__":
    main()
