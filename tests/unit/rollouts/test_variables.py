"""Variables of other processes, and texts without secrets."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.config.file import parse_campaign
from align.report.printable import printable
from align.round.planning import failure_of
from launch.masked_logs import mask_logs
from launch.serving.command import environment
from rollouts.errors import RunError, UserError
from rollouts.machine.variables import (
    FAMILIES,
    PASSED,
    holds_secret,
    masked,
    passed_on,
    said_of,
)

SECRETS = {
    "DATABASE_URL": "postgresql://keel:hunter2pass@db.example/keel",
    "GITHUB_PAT": "ghp_" + "a1B2" * 9,
    "MYSQL_PASS": "correct horse",
    "SENTRY_DSN": f"https://{'0a' * 16}@o1.example.org/1",
    "HF_TOKEN": "hf_" + "x" * 34,
    "OPENAI_API_KEY": "sk-proj-" + "y" * 40,
    "HTTPS_PROXY": "http://me:secretpw@proxy:3128",
    "VLLM_EXTRA": "Bearer eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4",
    "SLACK": "xoxb-123456789012-abcdef",
}
"""What people keep in variables, under names that say so and under others."""
HARMLESS = {"PATH": "/bin", "OMP_NUM_THREADS": "2", "HF_HOME": "/models", "LC_ALL": "C.UTF-8"}


def test_only_listed_variables_without_secrets_are_passed_on() -> None:
    assert passed_on(SECRETS | HARMLESS) == HARMLESS
    assert (
        environment(SECRETS | HARMLESS, Path("/m"), "cpu", "key").keys() & SECRETS.keys() == set()
    )


@given(st.dictionaries(st.text(min_size=1), st.text()), st.sets(st.text(min_size=1)))
def test_nothing_but_what_is_listed_or_granted(environ: dict[str, str], granted: set[str]) -> None:
    passed = passed_on(environ, granted)
    assert passed.items() <= environ.items()
    assert granted & environ.keys() <= passed.keys()
    assert all(name in granted or name in PASSED or name.startswith(FAMILIES) for name in passed)


def test_a_listed_variable_is_passed_on_and_said() -> None:
    assert passed_on(SECRETS, ["DATABASE_URL"]) == {"DATABASE_URL": SECRETS["DATABASE_URL"]}
    assert said_of(["DATABASE_URL", "PATH", "MISSING"], SECRETS | HARMLESS) == [
        "DATABASE_URL holds a secret and is passed on, as it is listed",
        "MISSING is listed and not set",
    ]


@pytest.mark.parametrize("name", sorted(set(SECRETS) - {"MYSQL_PASS"}))
def test_shapes_of_secrets_are_masked_whatever_their_names(name: str) -> None:
    text = f"it said: {SECRETS[name]}, and more"
    assert holds_secret(SECRETS[name])
    assert masked(text, {}).startswith("it said: ")
    assert masked(text, {}).endswith(", and more")
    assert not holds_secret(masked(text, {}))


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000/v1",
        "a: b@c",
        "task-sk-learn",
        "sha256:" + "0a" * 32,
        "postgresql://me@db/x",
        "postgresql://USER:PASSWORD@HOST/DATABASE",
        "a" * 300_000,
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text, HARMLESS) == text


def test_values_of_secret_variables_are_masked_in_errors_and_logs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "not-of-any-shape")
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    error = RunError("the server said: not-of-any-shape is wrong", cause=SECRETS["DATABASE_URL"])
    assert "not-of-any-shape" not in str(error)
    assert "hunter2pass" not in str(error)
    assert error.args == ("the server said: *** is wrong",)
    placed = RunError("no answer", where=SECRETS["DATABASE_URL"], remedy=SECRETS["HTTPS_PROXY"])
    assert "hunter2pass" not in str(placed) and "secretpw" not in str(placed)
    mask_logs()
    logging.getLogger("httpx").warning("Bearer %s\x1b[2J", "not-of-any-shape")
    assert caplog.messages == ["Bearer ***\\x1b[2J"]


def test_a_secret_that_looks_like_a_path_is_masked_and_a_path_is_not(tmp_path: Path) -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": "/x8sQ+begins/like/a/path", "SSL_KEY": str(tmp_path)}
    text = f"{environ['AWS_SECRET_ACCESS_KEY']} of {tmp_path}"
    assert masked(text, environ) == f"*** of {tmp_path}"


@pytest.mark.parametrize("end", ["-----END RSA PRIVATE KEY-----", ""])
def test_a_private_key_is_masked_with_its_headers(end: str) -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC,0A\n\nMIIEpAIBAAKC\n" + end
    assert masked(f"it holds {key}", {}) == "it holds ***"


def test_what_the_ledger_keeps_of_a_failure_is_masked() -> None:
    assert failure_of(ValueError(f"no server at {SECRETS['DATABASE_URL']}")) == (
        "no server at postgresql://keel:***@db.example/keel"
    )


def test_a_campaign_that_holds_a_secret_is_refused(tmp_path: Path) -> None:
    text = f"name: x\npolicy: {{model: demo://digits}}\ntrackers: [{SECRETS['GITHUB_PAT']}]\nrounds: []\n"
    with pytest.raises(UserError, match=r"trackers: there is a token, a key or a URL") as refused:
        parse_campaign(text, tmp_path / "campaign.yaml")
    assert SECRETS["GITHUB_PAT"] not in str(refused.value)


@given(st.text())
def test_printable_text_has_nothing_that_a_terminal_obeys(text: str) -> None:
    shown = printable(text)
    assert not any(c < " " and c != "\n" for c in shown)
    assert not set("\x1b\x7f\x9b\u202e\u2066\u2028\r") & set(shown)
    assert printable(shown) == shown


def test_a_worker_of_a_reward_sees_none_of_them(tmp_path: Path) -> None:
    """The real child of a real worker's environment, not the function alone."""
    from rewards.isolation.sandbox.limits import environment as of_worker

    before = dict(os.environ)
    os.environ.update(SECRETS)
    try:
        code = "import json, os; print(json.dumps(dict(os.environ)))"
        done = subprocess.run(
            [sys.executable, "-c", code], env=of_worker(tmp_path), capture_output=True, text=True
        )
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert not any(value in done.stdout for value in SECRETS.values())
