"""Decisions before Ray starts: addresses, secrets, the token file, the deadline."""

from __future__ import annotations

import os
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.cluster import cluster
from launch.cluster.local_ray.sockets import ListeningSocket, listening_sockets
from rollouts.errors import RunError, UserError
from rollouts.machine.variables import is_secret

FAR = "192.0.2.1:6379"  # A documentation address: never assigned, so nothing may be asked of it.


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("address", ["somewhere", ":6379", "host:", "host:port"])
def test_malformed_addresses(address: str) -> None:
    with pytest.raises(UserError, match="host:port"):
        cluster.check_address(address, {}, insecure=True)


def test_other_services_of_ray_are_no_cluster() -> None:
    with pytest.raises(UserError, match="is not a cluster address") as caught:
        cluster.check_address("http://host:8265", {}, insecure=True)
    assert "keel submit" in str(caught.value)


def test_ray_client_is_asked_for_a_token_too() -> None:
    with pytest.raises(UserError, match="without authentication"):
        cluster.check_address(f"ray://{FAR}", {}, insecure=False)
    with pytest.raises(UserError, match="not host:port"):
        cluster.check_address("ray://host", {}, insecure=True)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"},
        {"RAY_AUTH_TOKEN": "t"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nonexistent"},
    ],
)
def test_another_host_without_authentication_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(UserError, match="without authentication") as caught:
        cluster.check_address(FAR, environ, insecure=False)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("insecure", [True, False])
def test_another_host_is_asked_with_a_token_or_on_purpose(
    insecure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(cluster, "_probe", lambda host, port: asked.append((host, port)))
    environ = {} if insecure else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"}
    cluster.check_address(FAR, environ, insecure=insecure)
    assert asked == [("192.0.2.1", 6379)]


def test_this_host_needs_no_token(listener: int) -> None:
    cluster.check_address(f"127.0.0.1:{listener}", {}, insecure=False)
    cluster.check_address("auto", {}, insecure=False)


def test_a_closed_port_is_a_clear_error(listener: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match="nothing answers"):
        cluster.check_address(f"127.0.0.1:{port}", {}, insecure=False)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.8.0.1", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert cluster.is_loopback(host) is expected


@pytest.mark.parametrize(
    ("host", "reachable"),
    [
        ("127.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("::", True),
        ("0.0.0.0", True),
    ],
)
def test_sockets_that_other_machines_reach(host: str, reachable: bool) -> None:
    listening = ListeningSocket(host=host, port=1, owner="raylet")
    assert listening.is_loopback is not reachable
    assert str(listening) == f"raylet on {host}:1"


def test_listening_sockets_of_this_process(listener: int) -> None:
    assert listener in {each.port for each in listening_sockets() if each.is_loopback}


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("OPENAI_API_KEY", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("db_password", True),
        ("RAY_AUTH_TOKEN", False),
        ("RAY_AUTH_TOKEN_PATH", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("PATH", False),
    ],
)
def test_secret_names(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_actor_environment_hides_secrets_and_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "hidden")
    monkeypatch.setenv("JUDGE_KEY", "kept")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), cluster._actor_environment(keep=["JUDGE_KEY"]):
        assert "A_TOKEN" not in os.environ
        assert os.environ["JUDGE_KEY"] == "kept"
        assert os.environ["PYTHONPATH"] == f"{cluster.PACKAGE_ROOT}:/elsewhere"
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        raise ZeroDivisionError
    assert dict(os.environ) == before


def test_token_file_is_made_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    cluster.secure_token_file({}, create=False)
    assert not token.exists()
    cluster.secure_token_file({}, create=True)
    assert len(token.read_text()) == 64
    assert (mode(token), list(token.parent.iterdir())) == (0o600, [token])


def test_an_open_token_file_is_closed_and_its_token_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("old")
    token.chmod(0o644)
    cluster.secure_token_file({}, create=True)
    assert (mode(token), token.read_text()) == (0o600, "old")


def test_a_token_elsewhere_creates_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cluster.secure_token_file({"RAY_AUTH_TOKEN": "t"}, create=True)
    cluster.secure_token_file({"RAY_AUTH_MODE": "disabled"}, create=True)
    assert not (tmp_path / ".ray").exists()


def test_deadline_interrupts_and_winds_the_outer_timer_on() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    outer_s, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        signal.setitimer(signal.ITIMER_REAL, 50)
        with pytest.raises(RunError, match=r"not ready after 0\.1 s"), cluster._deadline(0.1):
            time.sleep(5)
        assert 40 < signal.getitimer(signal.ITIMER_REAL)[0] < 49.95
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.setitimer(signal.ITIMER_REAL, outer_s)


def test_deadline_leaves_no_timer_behind() -> None:
    outer_s, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        with cluster._deadline(5):
            pass
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, outer_s)


@pytest.mark.parametrize("address", [None, "auto"])
def test_the_address_of_the_environment_is_checked_as_any_other(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", FAR)
    with (
        pytest.raises(UserError, match="without authentication") as caught,
        cluster.connect(address),
    ):
        pass
    assert FAR in str(caught.value)


def test_without_a_home_to_write_to_the_token_lives_with_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file where the folder should be stands for a home that is read-only: root may write anywhere."""
    home = tmp_path / "home"
    home.write_text("")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert not cluster.secure_token_file({}, create=True)
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert cluster.has_token({"RAY_AUTH_MODE": "token", **os.environ})
    monkeypatch.delenv("RAY_AUTH_TOKEN")


def test_a_home_that_cannot_be_read_is_as_one_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read anywhere, so the refusal is made up."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    assert not cluster.secure_token_file({}, create=True)
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.delenv("RAY_AUTH_TOKEN")


def test_an_error_names_the_logs_of_the_folder_that_ray_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/short")
    with pytest.raises(RunError, match="/short/ray/session_latest/logs"), cluster._deadline(0.05):
        time.sleep(5)


def test_a_cluster_of_ones_own_starts_without_shared_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "shared_memory", lambda: None)
    assert cluster._local_options(1, None, {}, 0)["_plasma_directory"] == tempfile.gettempdir()
    monkeypatch.setattr(cluster, "shared_memory", lambda: 8 << 30)
    options = cluster._local_options(1, None, {}, 1 << 30)
    assert "_plasma_directory" not in options
    assert int(str(options["object_store_memory"])) >= 2 << 30


@pytest.mark.parametrize("aborted", [0, 1, 3, 4])
def test_a_connection_that_ray_clients_proxy_aborts_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, aborted: int
) -> None:
    """On a busy host the proxy may take the server that it has just begun for dead."""
    calls = []

    def init(**options: object) -> object:
        calls.append(options["address"])
        if len(calls) <= aborted:
            raise ConnectionAbortedError("Starting Ray client server failed")
        return None

    monkeypatch.setattr("ray.init", init)
    options = {"address": "ray://10.0.0.5:10001"}
    if aborted < cluster.CLIENT_TRIES:
        assert cluster._init(options, limit_s=60.0) == {"gcs_address": options["address"]}
        assert len(calls) == aborted + 1
    else:
        with pytest.raises(UserError, match=r"no cluster answers at 'ray://10\.0\.0\.5:10001'"):
            cluster._init(options, limit_s=60.0)
        assert len(calls) == cluster.CLIENT_TRIES
