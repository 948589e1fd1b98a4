"""Settings that a job gets, secrets that it never gets, and its files. No cluster is asked."""

from __future__ import annotations

import json
import shlex
import stat
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from launch.cli import app
from launch.cluster.jobs import entrypoint, jobs
from launch.cluster.jobs.address import check_jobs_address, shown
from launch.cluster.jobs.leaks import check_no_secrets
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
    assert words[:3] == ["/opt/python", "-m", "launch.cluster.jobs.entrypoint"]
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
    check_no_secrets("", [file], environ)
    (here / "folder").mkdir()
    for value, name in ((SECRET, "JUDGE_API_KEY"), ("r" * 64, "RAY_AUTH_TOKEN")):
        (here / "folder" / "x.py").write_text(f"key = '{value}'")
        with pytest.raises(UserError, match=name) as caught:
            check_no_secrets("", [file, here / "folder"], environ)
        assert value not in str(caught.value)
    with pytest.raises(UserError, match="the job's command"):
        line = jobs.entrypoint("c.yaml", overrides=[f"x={SECRET}"])
        check_no_secrets(line, [], environ)


@pytest.mark.parametrize(
    "address", ["10.0.0.5:6379", "ray://head:10001", "head:8265", "http://", "http://[head"]
)
def test_an_address_that_is_no_jobs_api(address: str) -> None:
    with pytest.raises(UserError, match="http://head:8265"):
        check_jobs_address(address, {}, insecure=True)


def test_another_host_needs_a_token_or_the_word_insecure(here: Path) -> None:
    with pytest.raises(UserError, match="without authentication"):
        check_jobs_address("http://head:8265", {}, insecure=False)
    assert check_jobs_address("http://head:8265", {}, insecure=True) == []
    assert check_jobs_address("http://127.0.0.1:8265", {}, insecure=False) == []


def test_a_token_that_is_there_is_used_and_made_private(here: Path) -> None:
    token = here / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("t" * 64)
    token.chmod(0o644)
    environ: dict[str, str] = {}
    notes = check_jobs_address("http://head:8265", environ, insecure=False)
    assert environ == {"RAY_AUTH_MODE": "token"}
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert ["0600" in notes[0], "https" in notes[1]] == [True, True]
    assert check_jobs_address("https://head", environ, insecure=False) == []


def test_authentication_that_is_switched_off_stays_off(here: Path) -> None:
    environ = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}
    with pytest.raises(UserError, match="without authentication"):
        check_jobs_address("http://head:8265", environ, insecure=False)
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


@pytest.mark.parametrize(
    "secret", ["a" * 300, "/".join(["b" * 200] * 30), '{"k": "' + "z" * 2000 + '"}', "line\nline"]
)
def test_a_secret_that_is_no_path(here: Path, secret: str) -> None:
    """Longer than a file's name may be, as tokens and credentials in JSON are."""
    file = here / "c.py"
    file.write_text("nothing")
    check_no_secrets("x", [file], {"A_TOKEN": secret})
    with pytest.raises(UserError, match="A_TOKEN") as caught:
        check_no_secrets(shlex.join(["--set", f"x={secret}"]), [file], {"A_TOKEN": secret})
    assert secret not in str(caught.value)


def test_a_link_out_of_a_folder_is_not_sent(here: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "inside").write_text("x")
    (folder / "link").symlink_to("inside")
    check_no_secrets("keel run", [folder], {})
    (folder / "out").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="the link leads out of the folder that is sent"):
        check_no_secrets("keel run", [folder], {})


def test_the_path_of_a_file_is_no_secret(here: Path) -> None:
    (here / "credentials.json").write_text("{}")
    environ = {"CREDENTIALS": "credentials.json"}
    check_no_secrets("--set x=credentials.json", [], environ)
    (here / "credentials.json").unlink()
    with pytest.raises(UserError):
        check_no_secrets("--set x=credentials.json", [], environ)


QUOTES = 'it\'s "my" pass\\word'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", yaml.safe_dump({"key": QUOTES})),
        ("c.yaml", yaml.safe_dump({"key": QUOTES}, default_style='"')),
        ("c.yaml", 'key: "it\'s \\"my\\"\n  pass\\x5cword"'),
        ("c.jsonl", "\n".join(['{"a": 1}', json.dumps({"key": QUOTES})])),
        ("c.py", f"KEY = {QUOTES!r}"),
    ],
)
def test_quotes_do_not_hide_a_secret(here: Path, name: str, text: str) -> None:
    (here / name).write_text(text)
    with pytest.raises(UserError, match="PASSWORD"):
        check_no_secrets("", [here / name], {"PASSWORD": QUOTES})
    check_no_secrets("", [here / name], {"PASSWORD": QUOTES + "!"})


@pytest.mark.parametrize("value", [QUOTES, json.dumps(QUOTES), f"[{json.dumps(QUOTES)}]"])
def test_nor_in_the_command(value: str) -> None:
    line = jobs.entrypoint("c.yaml", overrides=[f"rounds.0.name={value}"])
    with pytest.raises(UserError, match="the job's command"):
        check_no_secrets(line, [], {"PASSWORD": QUOTES})


def test_an_empty_file_and_a_broken_one_hold_nothing(here: Path) -> None:
    for name, text in (("empty.yaml", ""), ("broken.yaml", "{[\x00")):
        (here / name).write_text(text)
    check_no_secrets("", [here], {"PASSWORD": SECRET})


def test_a_long_text_in_a_campaign_is_no_file(here: Path) -> None:
    raw = {"rounds": [{"rewards": [{"rubric": "x" * 300, "other": "y/" * 3000}]}]}
    assert jobs.files_named(raw) == []


@pytest.mark.parametrize(
    "address", ["http://ann:hunter2@head:8265", "ray://ann:hunter2@head", "ann:hunter2@head"]
)
def test_a_password_in_an_address_is_not_repeated(here: Path, address: str) -> None:
    with pytest.raises(UserError) as caught:
        check_jobs_address(address, {}, insecure=False)
    assert "hunter2" not in str(caught.value)
    assert shown(address) in str(caught.value)
    assert shown(address) == address.replace("ann:hunter2", "***")
    assert shown("http://head:8265/x") == "http://head:8265/x"


def test_nor_by_what_ray_says_of_it(here: Path) -> None:
    (here / "c.yaml").write_text(
        "{name: a, store: /shared/a, policy: {model: 'demo://digits'}, "
        "rounds: [{name: r, prompts: 'demo://rev', rewards: [exact_match], steps: 1}]}"
    )
    run = CliRunner().invoke(app, ["submit", "c.yaml", "--address", "http://a:hunter2@127.0.0.1:1"])
    assert isinstance(run.exception, UserError)
    assert "***@127.0.0.1:1" in str(run.exception)
    assert "hunter2" not in run.output + str(run.exception)
