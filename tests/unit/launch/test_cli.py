"""The command line: instant help, exit codes, and what each command prints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.errors import RunError
from launch import cli
from tests.patience import patient
from tests.unit.campaigns import ENFORCE, Starter, Watcher, campaign, raw_campaign, rounds

KEEL = "from launch.cli import main; main()"
HEAVY = {
    "datasets", "matplotlib", "numpy", "pandas", "peft", "pyarrow", "ray", "scipy", "sklearn", "sqlalchemy",
    "torch", "transformers", "trl", "vllm",
}  # fmt: skip
STARTED_WITH = {"sitecustomize", "usercustomize", "apport_python_hook"}
"""Modules that the Python of a distribution, such as Debian's, loads before any program."""
SHOWN_WITH = {
    "annotated_doc", "annotated_types", "attr", "launch", "markdown_it", "mdurl", "pydantic",
    "pydantic_core", "pygments", "rich", "rollouts", "shellingham", "typer", "typing_extensions",
    "typing_inspection",
}  # fmt: skip
"""All that help may import besides the standard library: the command line and what draws it."""
ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "configs/quickstart.yaml"


@pytest.fixture
def keel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the entry point in this process; exit code, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["keel", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, error = capsys.readouterr()
        return int(caught.value.code or 0), out, error

    return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A campaign file whose store is next to it."""
    file = tmp_path / "campaign.yaml"
    file.write_text(json.dumps(raw_campaign(tmp_path)))
    return file


# help


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["gate", "recompute", "--help"], ["config", "--help"]],
    ids=" ".join,
)
def test_help_imports_little(arguments: list[str]) -> None:
    """Few imports make help fast on any machine: benchmarks/front_door.py has the seconds."""
    modules = loaded_by(arguments)
    assert packages(modules) <= SHOWN_WITH
    assert {name for name in modules if name.startswith("rollouts.")} == {
        "rollouts.errors",
        "rollouts.machine",
        "rollouts.machine.collector",
        "rollouts.machine.stopping",
    }
    assert len(modules) <= 500


def test_a_campaign_is_shown_without_torch() -> None:
    modules = loaded_by(["config", "show", str(QUICKSTART), "--resolved"])
    assert packages(modules) & HEAVY == set()


@pytest.mark.parametrize(
    "command",
    [
        ["config", "check"],
        ["config", "show"],
        ["plan"],
        ["run"],
        ["status"],
        ["rounds", "list"],
        ["gate", "plan"],
        ["schedule", "next"],
        ["report"],
        ["serve"],
        ["submit", "--address", "http://127.0.0.1:1"],
        ["k8s", "render", "--image", "keel:1"],
    ],
    ids=" ".join,
)
def test_a_wrong_key_is_told_before_anything_heavy_is_imported(
    tmp_path: Path, command: list[str]
) -> None:
    """After the line that says which file is read."""
    file = tmp_path / "wrong.yaml"
    file.write_text(QUICKSTART.read_text().replace("policy:", "polcy:"))
    modules = loaded_by([*command, str(file)], code=2, told="did you mean 'policy'?")
    assert packages(modules) & HEAVY == set()
    assert len(modules) <= 600


def test_the_version_is_the_packages(keel: Callable[..., tuple[int, str, str]]) -> None:
    assert keel("--version") == (0, f"keel {metadata.version('keel-align')}\n", "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [("keel con", "config"), ("keel config ch", "check"), ("keel run --s", "--set")],
)
def test_the_shell_completes_and_imports_nothing_heavy(line: str, expected: str) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    completed = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = ['keel']; {KEEL}"],
        env={**os.environ, **words, "_KEEL_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert expected in completed.stdout.split()
    assert packages(loaded_by([], environment={**words, "_KEEL_COMPLETE": "complete_bash"})) <= {
        *SHOWN_WITH
    }


def loaded_by(
    arguments: list[str],
    code: int = 0,
    told: str = "",
    environment: Mapping[str, str] | None = None,
) -> set[str]:
    """Modules in a process that ran a command, which ended with a code and told something."""
    script = f"""
import sys
sys.argv = ["keel", *{arguments!r}]
try:
    {KEEL}
except SystemExit as end:
    assert (end.code or 0) == {code}, end.code
print("LOADED", *sys.modules)
""".replace("import main; main()", "import main\n    main()")
    shown = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert told in shown.stderr
    modules = set(shown.stdout.splitlines()[-1].split()[1:])
    assert "typer" in modules
    return modules


def packages(modules: set[str]) -> set[str]:
    """Top-level packages of third parties and our own, without compiled helpers."""
    names = {name.partition(".")[0] for name in modules} - STARTED_WITH
    return {name for name in names - sys.stdlib_module_names if not name.startswith("_")}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]], ids=" ".join)
def test_every_command_and_option_says_what_it_does(
    keel: Callable[..., tuple[int, str, str]], arguments: list[str]
) -> None:
    code, out, _ = keel(*arguments)
    assert code == 0
    names = ["run", "status", "doctor", "config", "demo", "gate"]
    options = ["--set", "--address", "--strict", "--insecure-cluster"]
    assert all(name in out for name in (options if "run" in arguments else names))


# exit codes


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], 2),
        (["run"], 2),
        (["run", "nowhere.yaml"], 2),
        (["status", "nowhere.yaml"], 2),
        (["config", "check", "nowhere.yaml"], 2),
        (["config", "show", "nowhere.yaml"], 2),
        (["run", "campaign.yaml", "--sett", "seed=1"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_wrong_input_exits_2(
    keel: Callable[..., tuple[int, str, str]], arguments: list[str], code: int
) -> None:
    found, _, error = keel(*arguments)
    assert found == code
    assert error.strip()
    assert "Traceback" not in error


def test_a_run_that_fails_exits_1_with_what_to_do(
    keel: Callable[..., tuple[int, str, str]], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RunError("the tide went out", where="harbour", remedy="wait")

    monkeypatch.setattr("align.campaign.run_campaign", fail)
    code, _, error = keel("run", str(path))
    assert code == 1
    said = "error: harbour: the tide went out\n  what to do:   wait\n"
    assert error == f"reading {path}\n{said}"


def test_a_defect_of_ours_keeps_its_trace(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("align.campaign.run_campaign", fail)
    monkeypatch.setattr(sys, "argv", ["keel", "run", str(path)])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_termination_exits_143_and_says_what_is_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cluster's handler of SIGTERM raises this once engines and workers have ended."""

    def terminate(*_: Any, **__: Any) -> None:
        sys.exit(128 + signal.SIGTERM)

    monkeypatch.setattr("align.campaign.run_campaign", terminate)
    monkeypatch.setattr(sys, "argv", ["keel", "run", str(path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 143
    _, error = capsys.readouterr()
    assert error.endswith(
        "terminated: finished rounds are kept; the same command goes on from there\n"
    )


def heed_interrupts() -> None:
    """A background job of a script starts with SIGINT ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow, id="SIGINT"),
        pytest.param(signal.SIGTERM, 143, "terminated", id="SIGTERM"),
    ],
)
def test_a_signal_ends_a_run_in_order_and_says_what_is_kept(
    path: Path, number: signal.Signals, code: int, word: str
) -> None:
    script = f"""
import time, align.campaign
def stand_still(*_, **__):
    print("standing", flush=True)
    time.sleep(60)
align.campaign.run_campaign = stand_still
{KEEL}
"""
    command = [sys.executable, "-c", script, "run", str(path)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=heed_interrupts,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "standing\n"
        child.send_signal(number)
        _, error = child.communicate(timeout=patient(30))
    assert child.returncode == code
    assert error == (
        f"reading {path}\n{word}: finished rounds are kept; the same command goes on from there\n"
    )


# commands


def test_config_show(keel: Callable[..., tuple[int, str, str]], path: Path) -> None:
    code, out, _ = keel("config", "show", str(path), "--set", "rounds.second.steps=9")
    assert code == 0
    assert "steps: 9" in out
    assert "alpha" not in out


def test_config_show_resolved(keel: Callable[..., tuple[int, str, str]], path: Path) -> None:
    code, out, _ = keel("config", "show", str(path), "--resolved", "--set", "rounds.second.steps=9")
    assert code == 0
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert lines["rounds.1.steps"].split() == ["9", "#", "--set"]
    assert lines["rounds.0.steps"].split() == ["2", "#", "file"]
    assert lines["rounds.0.optimizer.lr"].split() == ["0.0003", "#", "defaults"]
    assert lines["gate.alpha"].split() == ["0.05", "#", "built-in"]


def test_config_check_writes_nothing(keel: Callable[..., tuple[int, str, str]], path: Path) -> None:
    code, out, _ = keel("config", "check", str(path))
    assert code == 0
    assert "2 rounds, 3 suites, 120 prompts: valid" in out
    assert [file.name for file in path.parent.iterdir()] == ["campaign.yaml"]


@pytest.mark.parametrize("arguments", [["status"], ["gate", "recompute"]], ids=" ".join)
def test_nothing_to_show_of_an_empty_store(
    keel: Callable[..., tuple[int, str, str]], path: Path, arguments: list[str]
) -> None:
    round_name = ["first"] if "gate" in arguments else []
    code, _, error = keel(*arguments, str(path), *round_name)
    assert code == 2
    assert "there is no campaign in this store yet" in error
    assert "start it with keel run" in error
    assert [file.name for file in path.parent.iterdir()] == ["campaign.yaml"]


def test_what_a_finished_campaign_prints(
    keel: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """One campaign in this process, then every command that looks at it."""
    harmful = {"name": "harmful", "optimizer": {"lr": 0.5}}
    changes: dict[str, Any] = {
        "rounds": rounds(harmful),
        "gate": ENFORCE,
    }
    config = campaign(tmp_path, **changes)
    run_campaign(config, start_engine=Starter(), observer=Watcher())
    path = tmp_path / "campaign.yaml"
    path.write_text(json.dumps(raw_campaign(tmp_path, **changes)))

    code, out, _ = keel("status", str(path))
    assert code == 0
    assert "Score of every snapshot on every suite" in out
    assert "harmful: rejected" in out
    assert "production" in out and "ledger.db" in out

    code, again, _ = keel("run", str(path))
    assert code == 0
    assert "no round is due; nothing to run" in again
    assert "harmful: rejected" in again
    assert keel("run", str(path), "--strict")[0] == 3

    code, out, _ = keel("gate", "recompute", str(path), "harmful")
    assert code == 0
    assert "harmful: rejected; identical to the ledger" in out
    code, _, error = keel("gate", "recompute", str(path), "harmfull")
    assert code == 2
    assert "did you mean 'harmful'?" in error
