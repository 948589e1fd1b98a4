"""vLLM server in a process of its own, for one snapshot: started, asked once, stopped.

It listens on loopback and asks for a key that is made for it alone and passed in its environment. The
proxy in front has the address and the key that people know.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import TypeVar

import httpx

from align.config.campaign import CampaignConfig
from align.data.base_model import load_encoder
from align.gate.evidence import stored_evidence
from align.report.export.answering import write_answering
from align.round.inputs import context_of
from launch.serving.bank import BankChooser, write_modules
from launch.serving.command import Device, environment, vllm_arguments
from launch.serving.documents import DocumentReader
from launch.serving.served_alias import SHOWN, ServedAlias, ServedSnapshot
from launch.serving.server_files import ServerFiles, claim, clear
from rollouts.errors import RunError
from rollouts.machine.watchdog import end_with_parent, watched
from rollouts.types import SnapshotId

# -P: the working folder may not slip a module in.
SERVER = ("-P", "-m", "vllm.entrypoints.openai.api_server")
"""Arguments of Python before vLLM's own."""
GRACE_S = 10.0
"""Seconds that vLLM has to end when it is asked to; no request runs any more by then."""
LOOK_S = 0.2
WARM_UP_S = 120.0
TAIL_LINES = 15

T = TypeVar("T")


class VLLMServer:
    """Running vLLM as a `Backend`."""

    def __init__(
        self,
        target: ServedSnapshot,
        *,
        url: str,
        key: str,
        process: subprocess.Popen[bytes],
        log: Path,
        chooser: BankChooser | None = None,
        reader: DocumentReader | None = None,
    ) -> None:
        self._chooser, self._reader = chooser, reader
        self._target, self._url, self._key = target, url, key
        self._process, self._log = process, log

    @property
    def snapshot(self) -> SnapshotId:
        """Snapshot whose weights it holds."""
        return self._target.snapshot

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``."""
        return self._url

    @property
    def key(self) -> str:
        """Bearer token that it asks for."""
        return self._key

    async def choose(self, body: bytes) -> bytes:
        """Return a request's body with its documents, and with the adapter of the bank that answers it.

        See `DocumentReader` and `BankChooser`.
        """
        chooser, reader = self._chooser, self._reader
        if reader is not None:
            body = await _in_background(lambda: reader.read(body))
        return body if chooser is None else await _in_background(lambda: chooser.choose(body))

    def alive(self) -> bool:
        """Tell if its process runs."""
        return self._process.poll() is None

    async def stop(self) -> None:
        """Close the pipe to the watchdog, which ends everything that was started."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        until = time.monotonic() + 2 * GRACE_S
        while self.alive() and time.monotonic() < until:
            await asyncio.sleep(LOOK_S / 4)
        if self.alive():
            self._process.kill()
        self._process.wait()

    async def ready(self, deadline_s: float) -> None:
        """Wait until it is healthy, has the snapshot's name, and has answered a request.

        Raises:
            RunError: it ended, or was not ready in time; with the last lines of its log.
        """
        async with httpx.AsyncClient(
            base_url=self._url, trust_env=False, headers={"Authorization": f"Bearer {self._key}"}
        ) as client:
            until = time.monotonic() + deadline_s
            while not await _healthy(client):
                if not self.alive():
                    raise self._failure("vLLM ended before it was ready")
                if time.monotonic() > until:
                    raise self._failure(f"vLLM was not ready after {deadline_s:g} s")
                await asyncio.sleep(LOOK_S)
            question = {"model": self._target.probed, "prompt": [0], "max_tokens": 1}
            try:
                answer = await client.post("/v1/completions", json=question, timeout=WARM_UP_S)
            except httpx.TransportError as error:
                raise self._failure(f"vLLM did not answer ({type(error).__name__})") from error
            if answer.status_code != 200:
                raise self._failure(f"vLLM answered with {answer.status_code}: {answer.text[:300]}")

    def _failure(self, message: str) -> RunError:
        tail = self._log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return RunError(
            message,
            where=str(self._log),
            cause="\n    ".join(["the last it wrote:", *tail]),
            remedy="pass what is missing to vLLM with --vllm, or give it more time or memory",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VLLMStarter:
    """Starter of servers for one campaign's snapshots."""

    shelf: ServedAlias
    device: Device
    gpu_memory_utilization: float
    """Share of a GPU that one server takes."""
    extra: Sequence[str]
    """Arguments for vLLM besides Keel's own."""
    deadline_s: float
    """Seconds that a server may take to be healthy."""

    async def __call__(self, snapshot: SnapshotId) -> VLLMServer:
        """Start a server that has answered once; leave nothing of one that has not.

        Raises:
            SnapshotError: the snapshot is damaged; nothing was started.
            RunError: vLLM did not come up.
        """
        target = await _in_background(lambda: self.shelf.open(snapshot))
        folder = self.shelf.evidence.store.paths.serving.absolute()
        await _in_background(lambda: clear(folder))
        files = claim(folder, snapshot[:SHOWN])
        try:
            if target.adapter is not None and target.adapter.must_merge:
                merged = files.scratch / "merged"
                await _merge_into(merged, self.shelf.evidence.config, snapshot, self.deadline_s)
                target = replace(target, folder=merged, adapter=None)
            chooser = None
            if target.bank is not None:
                target, chooser = await _in_background(lambda: self._with_bank(target, files))
            answering = await _in_background(
                lambda: write_answering(
                    target.folder, files.scratch / "answering", self.shelf.evidence.config
                )
            )
            reader = await _in_background(lambda: self._reader(target))
            server = self._launch(target, files, answering, chooser, reader)
        except BaseException:
            rmtree(files.scratch, ignore_errors=True)
            raise
        finally:
            os.close(files.output)
        try:
            await server.ready(self.deadline_s)
        except BaseException:
            await asyncio.shield(server.stop())
            raise
        return server

    def _with_bank(
        self, target: ServedSnapshot, files: ServerFiles
    ) -> tuple[ServedSnapshot, BankChooser]:
        """Write the increments of a bank for vLLM, and load what retrieves them."""
        bank, config = target.bank, self.shelf.evidence.config
        assert bank is not None
        modules = write_modules(bank, target.pinned, files.scratch / "increments")
        chooser = BankChooser(
            bank.folder, target.folder, config, name=target.name, pinned=target.pinned
        )
        return replace(target, bank=replace(bank, modules=modules)), chooser

    def _reader(self, target: ServedSnapshot) -> DocumentReader | None:
        """Load what puts documents before prompts; None for a snapshot that reads none."""
        if target.index is None or target.index.settings.form == "tool":
            return None
        config = self.shelf.evidence.config
        encoder = load_encoder(target.folder, config.policy)
        return DocumentReader(target.index, encoder, context_of(target.folder, config))

    def _launch(
        self,
        target: ServedSnapshot,
        files: ServerFiles,
        answering: Sequence[str],
        chooser: BankChooser | None,
        reader: DocumentReader | None,
    ) -> VLLMServer:
        port, key = free_port(), secrets.token_urlsafe(32)
        arguments = vllm_arguments(
            target,
            self.shelf.evidence.config,
            port=port,
            device=self.device,
            gpu_memory_utilization=self.gpu_memory_utilization,
        )
        command = [sys.executable, *SERVER, *arguments, *answering, *self.extra]
        process = subprocess.Popen(
            watched(command, GRACE_S, scratch=str(files.scratch)),
            env=environment(os.environ, target.folder, self.device, key),
            stdin=subprocess.PIPE,
            stdout=files.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{port}"
        return VLLMServer(
            target,
            url=url,
            key=key,
            process=process,
            log=files.log,
            chooser=chooser,
            reader=reader,
        )


def free_port() -> int:
    """Find a port of the loopback interface that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def _healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health", timeout=5.0)).status_code == 200
    except httpx.TransportError:
        return False


async def _merge_into(
    folder: Path, config: CampaignConfig, snapshot: SnapshotId, deadline_s: float
) -> None:
    """Write the whole model that an adapter stands for, in a process that gives its memory back."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_merge, args=(config, snapshot, folder), daemon=True)
    process.start()
    until = time.monotonic() + deadline_s
    try:
        while process.is_alive() and time.monotonic() < until:
            await asyncio.sleep(LOOK_S)
        late = process.is_alive()
    finally:
        process.kill()
        process.join()
    if late or process.exitcode != 0:
        how = f"within {deadline_s:g} s" if late else f"(exit code {process.exitcode})"
        raise RunError(
            f"the adapter of {snapshot[:SHOWN]} could not be merged {how}",
            cause="too little memory or disk; what it said stands above",
            remedy="free some, or give it more time with --start-deadline-s"
            if late
            else "free some",
        )


async def _in_background(work: Callable[[], T]) -> T:
    """Run a function in a thread that nothing waits for, and return its result: a model takes minutes
    to read.

    `asyncio.to_thread` would hold up the end of the process until the function returned.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(done)


def _merge(config: CampaignConfig, snapshot: SnapshotId, folder: Path) -> None:
    from transformers.utils.logging import disable_progress_bar

    from align.report.export.export import export

    end_with_parent()
    disable_progress_bar()
    export(stored_evidence(config), snapshot, folder, merge=True, force=True)
