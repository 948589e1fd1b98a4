"""What a job is told, what it is never told, and what it finds on the cluster. No cluster is asked."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch import entrypoint, jobs
from launch.cli import app
from rollouts.errors import UserError
from tests.unit.campaigns import campaign

SECRET = "hunter2-hunter2"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def spec(**files: Path) -> jobs.JobSpec:
    return jobs.JobSpec(entrypoint="python -m launch.entrypoint", files=files, metadata={})


def test_the_command_survives_the_shell() -> None:
    line = jobs.entrypoint(
        "a b.yaml",
        overrides=["rounds.0.rewards=[{name: length}]"],
        env=["A", "B"],
        env_dir="/run/secrets",
        wait_s=300,
        insecure=True,
        python="/opt/python",
    )
    words = shlex.split(line)
    names, folder, command = entrypoint.parse(words[3:])
    assert words[:3] == ["/opt/python", "-m", "launch.entrypoint"]
    assert (names, folder) == (["A", "B"], Path("/run/secrets"))
    assert command == [
        "run", "a b.yaml", "--address", "auto", "--wait", "300", "--insecure-cluster",
        "--set", "rounds.0.rewards=[{name: length}]",
    ]  # fmt: skip


def test_files_keep_the_names_that_the_campaign_has_for_them(here: Path) -> None:
    (here / "data").mkdir()
    for name in ("c.yaml", "data/prompts.jsonl", "mine.py"):
        (here / name).write_text("")
    raw = {
        "name": "data",
        "store": "data",
        "rounds": [
            {"prompts": "data/prompts.jsonl", "rewards": ["mine.py:f", {"name": "exact_match"}]}
        ],
    }
    include = [Path("data"), here / "mine.py"]
    found = jobs.working_files(Path("c.yaml"), include, raw)
    assert list(found) == ["c.yaml", "data", "mine.py"]
    for left_out, key in (
        ([Path("mine.py")], "rounds.0.prompts"),
        ([Path("data")], "rounds.0.rewards.0"),
    ):
        with pytest.raises(UserError, match="--include") as caught:
            jobs.working_files(Path("c.yaml"), left_out, raw)
        assert caught.value.where == key


@pytest.mark.parametrize("outside", ["../other.yaml", "/etc/hostname", "."])
def test_a_file_elsewhere_has_no_name_in_the_job(here: Path, outside: str) -> None:
    (here.parent / "other.yaml").write_text("")
    with pytest.raises(UserError, match="below this folder"):
        jobs.working_files(Path(outside), (), {})


S3 = {"store": "s3://bucket/x", "ledger": "postgresql://keel@db/keel"}


@pytest.mark.parametrize(
    ("stated", "key"),
    [
        ({"store": ""}, "store"),
        ({"store": "runs/x"}, "store"),
        (S3, "cache"),
        ({"store": "/shared/x", "ledger": "sqlite:///x.db"}, "ledger"),
    ],
)
def test_what_lies_in_the_jobs_own_folder_is_refused(
    tmp_path: Path, stated: dict[str, str], key: str
) -> None:
    with pytest.raises(UserError, match="the job's own folder") as caught:
        jobs.check_store(campaign(tmp_path, **stated))
    assert caught.value.where == key


@pytest.mark.parametrize(
    "stated",
    [
        {"store": "/shared/x"},
        {"store": "/shared/x", "ledger": "sqlite:////shared/x.db"},
        {**S3, "cache": "/shared/x"},
    ],
)
def test_a_store_that_every_node_reaches(tmp_path: Path, stated: dict[str, str]) -> None:
    jobs.check_store(campaign(tmp_path, **stated))


@pytest.mark.parametrize("wrong", [f"KEY={SECRET}", "A B", ""])
def test_a_value_is_refused_and_not_repeated(wrong: str) -> None:
    with pytest.raises(UserError) as caught:
        jobs.check_env([wrong])
    assert SECRET not in str(caught.value)


def test_values_of_secrets_are_not_sent(here: Path) -> None:
    environ = {
        "JUDGE_API_KEY": SECRET,
        "RAY_AUTH_TOKEN": "r" * 64,
        "SHORT_KEY": "abc",
        "HOME": SECRET,
    }
    file = here / "c.yaml"
    file.write_text("abc, and nothing else that is secret")
    jobs.check_no_secrets(spec(a=file), environ)
    (here / "folder").mkdir()
    for value, name in ((SECRET, "JUDGE_API_KEY"), ("r" * 64, "RAY_AUTH_TOKEN")):
        (here / "folder" / "x.py").write_text(f"key = '{value}'")
        with pytest.raises(UserError, match=name) as caught:
            jobs.check_no_secrets(spec(a=file, b=here / "folder"), environ)
        assert value not in str(caught.value)
    with pytest.raises(UserError, match="the job's command"):
        line = jobs.entrypoint("c.yaml", overrides=[f"x={SECRET}"])
        jobs.check_no_secrets(jobs.JobSpec(entrypoint=line, files={}, metadata={}), environ)


@pytest.mark.parametrize("address", ["10.0.0.5:6379", "ray://head:10001", "head:8265", "http://"])
def test_an_address_that_is_no_jobs_api(address: str) -> None:
    with pytest.raises(UserError, match="http://head:8265"):
        jobs.check_jobs_address(address, {}, insecure=True)


def test_another_host_needs_a_token_or_the_word_insecure(here: Path) -> None:
    with pytest.raises(UserError, match="without authentication"):
        jobs.check_jobs_address("http://head:8265", {}, insecure=False)
    assert jobs.check_jobs_address("http://head:8265", {}, insecure=True) == []
    assert jobs.check_jobs_address("http://127.0.0.1:8265", {}, insecure=False) == []


def test_a_token_that_is_there_is_used_and_made_private(here: Path) -> None:
    token = here / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("t" * 64)
    token.chmod(0o644)
    environ: dict[str, str] = {}
    notes = jobs.check_jobs_address("http://head:8265", environ, insecure=False)
    assert environ == {"RAY_AUTH_MODE": "token"}
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert ["0600" in notes[0], "https" in notes[1]] == [True, True]
    assert jobs.check_jobs_address("https://head", environ, insecure=False) == []


def test_authentication_that_is_switched_off_stays_off(here: Path) -> None:
    environ = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}
    with pytest.raises(UserError, match="without authentication"):
        jobs.check_jobs_address("http://head:8265", environ, insecure=False)
    assert environ["RAY_AUTH_MODE"] == "disabled"


def test_nothing_answers_there(here: Path) -> None:
    (here / "c.yaml").write_text(
        "{name: a, store: /shared/a, policy: {model: 'demo://digits'}, "
        "rounds: [{name: r, prompts: 'demo://rev', rewards: [exact_match], steps: 1}]}"
    )
    run = CliRunner().invoke(app, ["submit", "c.yaml", "--address", "http://127.0.0.1:1"])
    assert isinstance(run.exception, UserError)
    assert "no jobs API answers" in str(run.exception)


def test_variables_come_from_the_node_or_from_files(tmp_path: Path) -> None:
    (tmp_path / "A").write_text("from the file\n")
    (tmp_path / "B").write_text("not this")
    for name in ("A", "B"):
        (tmp_path / name).chmod(0o600)
    environ = {"B": "from the node"}
    entrypoint.fill(environ, ["A", "B"], tmp_path)
    assert environ == {"A": "from the file", "B": "from the node"}


def test_a_variable_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="A is not set on the cluster"):
        entrypoint.fill({}, ["A"], tmp_path)


def test_a_secret_that_others_can_read(tmp_path: Path) -> None:
    (tmp_path / "A").write_text(SECRET)
    (tmp_path / "A").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600") as caught:
        entrypoint.fill({}, ["A"], tmp_path)
    assert SECRET not in str(caught.value)
