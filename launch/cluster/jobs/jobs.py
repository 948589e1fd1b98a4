"""A campaign as a job of a Ray cluster: what is sent there, and the jobs that are there.

Sent are the campaign file, the files named beside it, and Keel's own code, so that cluster and sender
never differ; the packages it needs are the cluster's. Secrets are not sent: a job names variables, and
their values are found on the cluster (`launch.cluster.jobs.entrypoint`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from align.config.store import SQLITE, StoreSettings
from align.settings import Places, is_relative, stated
from launch.cluster.cluster import PACKAGE_ROOT
from launch.cluster.jobs.address import shown
from launch.cluster.jobs.log import Log, tail
from rollouts.errors import RunError, UserError

PACKAGES = ("align", "launch", "rewards", "rollouts")
REQUEST_TIMEOUT_S = 60.0
POLL_S = 1.0
OUTAGE_S = 120.0
"""So long a job that is watched may not be asked about: its cluster, or the way there, has an outage."""
QUIET_S = 300.0
"""After so long without a word a connection to a log counts as lost; a job may just be quiet."""
RECONNECT_S = 5.0
T = TypeVar("T")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """Specification of a job; everything in it can be read by whoever may list jobs."""

    entrypoint: str
    files: Mapping[str, Path]
    """Files here by their path in the job's working directory."""
    metadata: Mapping[str, str]
    ship: bool = True
    """Send Keel's own code; otherwise it is installed on every node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job of the cluster."""

    id: str
    status: str
    campaign: str | None
    """Name of the campaign; None for a job that is not one of Keel's."""
    started: float | None
    """Unix seconds."""
    ended: float | None
    message: str | None
    """Reason for the job's status, in Ray's words."""


def entrypoint(
    campaign: str,
    *,
    overrides: Sequence[str] = (),
    env: Sequence[str] = (),
    env_dir: str | None = None,
    wait_s: float = 0.0,
    insecure: bool = False,
    python: str = "python",
) -> str:
    """Return the job's command line.

    >>> entrypoint("nightly.yaml", env=["JUDGE_API_KEY"])
    'python -m launch.cluster.jobs.entrypoint --env JUDGE_API_KEY -- run nightly.yaml --address auto'
    """
    words = [python, "-m", "launch.cluster.jobs.entrypoint"]
    words += [word for name in env for word in ("--env", name)]
    words += ["--env-dir", env_dir] if env_dir else []
    words += ["--", "run", campaign, "--address", "auto"]
    words += ["--wait", f"{wait_s:g}"] if wait_s else []
    words += ["--insecure-cluster"] if insecure else []
    words += [word for override in overrides for word in ("--set", override)]
    return shlex.join(words)


def working_files(campaign: Path, include: Sequence[Path], raw: Any) -> dict[str, Path]:
    """Return the files a job works with, under the names that the campaign file knows them by.

    Args:
        raw: the campaign as it was read; a file that it names and that is not included is an error.
    """
    here, files = Path.cwd().resolve(), {}
    for path in (campaign, *include):
        if not path.exists():
            raise UserError("there is no such file", where=str(path))
        there = path.resolve()
        if not there.is_relative_to(here) or there == here:
            raise UserError(
                "not a file below this folder, so that the job would not find it under the same name",
                where=str(path),
                remedy="run keel submit in the folder that the campaign's paths start from",
            )
        files[there.relative_to(here).as_posix()] = path
    for key, file in files_named(raw, campaign.parent):
        if not any(file.is_relative_to(name) for name in files):
            raise UserError(
                f"{file} is a file here, and the job would not find it",
                where=key,
                remedy=f"send it along with --include {file}, or name a path that every node can read",
            )
    return files


def files_named(raw: Any, folder: Path = Path()) -> list[tuple[str, Path]]:
    """List files and folders that a campaign in a folder names by a relative path, each with its key.

    They are given relative to the current folder. A reward in a file is named as ``file.py:function``.
    """
    paths, files = Places(folder=folder), []
    for key, text in _texts(raw):
        file, colon, _ = text.rpartition(":")
        name = file if colon and file.endswith(".py") else text
        path = Path(paths.input(name))
        # Not Path.exists: it raises for a text that is too long for a path.
        if is_relative(name) and Path(name).name not in ("", "..") and os.path.exists(path):
            files.append((key, path))
    return files


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a campaign with its key, but not what store and names say."""
    if isinstance(value, dict):
        for name, below in value.items():
            if name not in ("name", "store"):
                yield from _texts(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _texts(below, f"{key}.{index}")
    elif isinstance(value, str) and value:
        yield key, value


def check_store(config: StoreSettings) -> None:
    """Refuse a store in the job's own folder, which ends with the job and which other nodes never see."""
    if not Path(stated(config.cache if config.is_remote else config.store)).is_absolute():
        name = "cache" if config.is_remote else "store"
        raise UserError(
            f"the {name} {str(config.folder)!r} would lie in the job's own folder, which is removed",
            where=name,
            remedy=f"set {name} to an absolute path on a file system that every node has mounted, such as "
            f"--set {name}=/shared/runs/nightly",
        )
    ledger = stated(config.ledger).removeprefix(SQLITE)
    if ledger != stated(config.ledger) and not Path(ledger).is_absolute():
        raise UserError(
            "the ledger would lie in the job's own folder, which is removed",
            where="ledger",
            remedy="name a file by its absolute path, sqlite:////shared/ledger.db, or a PostgreSQL server",
        )


def check_env(names: Sequence[str]) -> None:
    """Refuse values of variables: a job's specification can be read by whoever lists jobs, so it has
    names only."""
    for name in names:
        if not name.isidentifier():
            raise UserError(
                f"{name.partition('=')[0]!r} is to be the name of a variable, without a value",
                where="--env",
                remedy="put the value on the cluster: in the environment of its nodes, or in a file of "
                "that name in --env-dir",
            )


class Unreachable(UserError):
    """Error that nothing answers at the address; something may again."""


class Jobs:
    """The jobs API of one cluster. Every request has a deadline.

    Args:
        address: such as ``http://head:8265``.

    Raises:
        UserError: nothing answers there, or it refuses the token.
    """

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):
            def _do_request(self, *args: Any, **options: Any) -> Any:
                return super()._do_request(*args, timeout=REQUEST_TIMEOUT_S, **options)

        # Ray announces there every connection to a log that ends, in order or not.
        logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)
        self._address, self._where = address, shown(address)
        # Ray lets these two overrule the address that it is given.
        overruling = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
        before = {name: os.environ.pop(name) for name in overruling if name in os.environ}
        try:
            with self._asking():
                self._client = Client(address)
        finally:
            os.environ.update(before)

    def submit(self, spec: JobSpec, submission_id: str) -> None:
        """Send the files and start the job."""
        with TemporaryDirectory(prefix="keel-job-") as folder, self._asking():
            for name, source in spec.files.items():
                target = Path(folder) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
            environment: dict[str, Any] = {
                "working_dir": folder,
                "excludes": ["**/__pycache__/"],
                "env_vars": {"RAY_USAGE_STATS_ENABLED": "0"},
            }
            if spec.ship:
                environment["py_modules"] = [str(PACKAGE_ROOT / name) for name in PACKAGES]
            self._client.submit_job(
                entrypoint=spec.entrypoint,
                submission_id=submission_id,
                runtime_env=environment,
                metadata=dict(spec.metadata),
            )

    def list(self) -> list[Job]:
        """List the jobs, newest first; drivers that were not submitted are left out."""
        with self._asking():
            jobs = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: -(job.started or 0.0))

    def get(self, submission_id: str) -> Job:
        """Return one job."""
        with self._asking(submission_id):
            return _job(self._client.get_job_info(submission_id))

    def logs(self, submission_id: str) -> str:
        """Return everything the job has printed."""
        with self._asking(submission_id):
            return str(self._client.get_job_logs(submission_id))

    def follow(
        self, submission_id: str, write: Callable[[str], None], timeout_s: float | None = None
    ) -> Job:
        """Print what the job prints until it ends; return the job as it is then, or when time is up.

        Ray sends what is new over one connection. Where that breaks, or cannot be had, the whole log says
        what is missing, and a new connection goes on.
        """
        limit = inf if timeout_s is None else time.monotonic() + timeout_s
        log = Log(write)
        self.get(submission_id)  # One that does not exist is not waited for.
        while True:
            asyncio.run(tail(self._client.tail_job_logs(submission_id), log, limit, QUIET_S))
            # In this order: of a job that has ended, the log is complete.
            job = self._insist(lambda: self.get(submission_id), limit)
            log.write_rest(self._insist(lambda: self.logs(submission_id), limit))
            if job.status in ENDED or time.monotonic() >= limit:
                return job
            time.sleep(max(0.0, min(RECONNECT_S, limit - time.monotonic())))

    def stop(self, submission_id: str, timeout_s: float) -> Job:
        """Ask the job to end, and wait until it has."""
        with self._asking(submission_id):
            self._client.stop_job(submission_id)
        deadline = time.monotonic() + timeout_s
        while True:
            job = self._insist(lambda: self.get(submission_id), deadline)
            if job.status in ENDED:
                return job
            if time.monotonic() >= deadline:
                raise RunError(
                    f"job {submission_id} is still {job.status} after {timeout_s:g} s",
                    where=self._where,
                    remedy="ask again with `keel jobs status`",
                )
            time.sleep(POLL_S)

    def _insist(self, ask: Callable[[], T], limit: float) -> T:
        """Ask until there is an answer, through failures of OUTAGE_S at most, and not beyond a moment."""
        limit = min(limit, time.monotonic() + OUTAGE_S)
        while True:
            try:
                return ask()
            except (Unreachable, RunError):
                if time.monotonic() >= limit:
                    raise
            time.sleep(POLL_S)

    @contextmanager
    def _asking(self, submission_id: str | None = None) -> Iterator[None]:
        """Turn whatever Ray and requests raise into one error of ours."""
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        try:
            yield
        except AuthenticationError as error:
            raise UserError(
                "the cluster refuses the token",
                where=self._where,
                cause="RAY_AUTH_MODE is not `token` here, or the token is another cluster's",
                remedy="export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file with its token>",
            ) from error
        except (ConnectionError, RequestException) as error:
            raise Unreachable(
                "no jobs API answers",
                where=self._where,
                cause=f"{type(error).__name__}: no head node, or not its dashboard's port",
                remedy="give the dashboard's address, such as http://head:8265; from outside, through a "
                "tunnel (ssh -L 8265:127.0.0.1:8265, kubectl port-forward)",
            ) from error
        except (RuntimeError, ValueError) as error:
            text = next(iter(str(error).splitlines()), "").replace(self._address, self._where)
            if submission_id is not None and "404" in text:
                raise UserError(
                    f"there is no job {submission_id!r}",
                    where=self._where,
                    remedy="`keel jobs list` shows those there are",
                ) from error
            raise RunError(f"the jobs API refused: {text}", where=self._where) from error


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=str(details.submission_id),
        status=str(getattr(details.status, "value", details.status)),
        campaign=metadata.get("keel_campaign"),
        started=None if details.start_time is None else details.start_time / 1000,
        ended=None if details.end_time is None else details.end_time / 1000,
        message=details.message,
    )
