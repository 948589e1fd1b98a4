"""Claim: every command prints its first line within 0.5 s, and the mistakes of a campaign file within 1 s.

The benchmark measures wall and CPU seconds of whole processes, and the wall seconds until their first line.
tests/unit/launch/test_cli.py checks the imported modules, on which they depend; the seconds here are those
of this machine.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import middle, parser, prepare, save, show, spread, verdict

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
KEEL = [sys.executable, "-c", "from launch.cli import main; main()"]
FIRST_LINE_S = 0.5
WRONG_KEY_S = 1.0
WRONG_KEY = "config check, wrong key"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds of one process."""

    first_line_s: float
    """Wall time until the first line of either stream."""
    wall_s: float
    cpu_s: float


def main() -> None:
    """Measure every command and print."""
    options = parser(__doc__ or "").parse_args()
    prepare()
    with TemporaryDirectory() as folder:
        wrong = Path(folder) / "wrong.yaml"
        wrong.write_text(QUICKSTART.read_text().replace("policy:", "polcy:"))
        commands = {
            "help": ["--help"],
            WRONG_KEY: ["config", "check", str(wrong)],
            "config show": ["config", "show", str(QUICKSTART)],
            "config check": ["config", "check", str(QUICKSTART)],
            "plan": ["plan", str(QUICKSTART)],
        }
        repeats = 1 if options.quick else 5
        timings = {name: [timed(c) for _ in range(repeats)] for name, c in commands.items()}
    first_s = max(middle([t.first_line_s for t in runs]) for runs in timings.values())
    wrong_s = middle([t.wall_s for t in timings[WRONG_KEY]])
    rows = [
        [
            name,
            spread([t.first_line_s for t in runs], 2),
            spread([t.wall_s for t in runs], 2),
            spread([t.cpu_s for t in runs], 2),
        ]
        for name, runs in timings.items()
    ]
    show(
        "Seconds of a command",
        ["command", "first line", "wall", "CPU"],
        rows,
        f"first line within {FIRST_LINE_S:g} s: {verdict(first_s <= FIRST_LINE_S)}",
        f"a wrong key reported within {WRONG_KEY_S:g} s: {verdict(wrong_s <= WRONG_KEY_S)}",
    )
    data = {name: [asdict(t) for t in runs] for name, runs in timings.items()}
    save(options.json, "front_door", options, data)


def timed(arguments: list[str]) -> Timing:
    """Run a command once."""
    before, start = cpu_of_children(), time.perf_counter()
    with subprocess.Popen(
        [*KEEL, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first_line_s = time.perf_counter() - start
        process.stdout.read()
    return Timing(
        first_line_s=first_line_s,
        wall_s=time.perf_counter() - start,
        cpu_s=cpu_of_children() - before,
    )


def cpu_of_children() -> float:
    """Return the CPU seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
