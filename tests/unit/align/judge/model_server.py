"""An OpenAI-compatible server on loopback over a real model, for tests; it can be told to misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rollouts.engines.protocol import SampleRequest, ScoreRequest
from rollouts.types import Sampling
from tests.unit.hf_engine import HFEngine


@dataclass
class ModelServer:
    """A server of one model; what it is asked is kept."""

    folder: Path
    names: tuple[str, ...] = ("tiny",)
    echoes: bool = True
    """It returns the logprobs of a prompt."""
    takes_ids: bool = True
    """It answers to prompts of token ids."""
    statuses: list[int] = field(default_factory=list)
    """Errors that the next requests get."""
    key: str | None = None
    url: str = ""
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
        self.model = HFEngine(self.folder)

    def answer(self, path: str, body: dict[str, Any], key: str | None) -> tuple[int, Any]:
        """Return status and content for a request."""
        with self.lock:
            self.bodies.append((path, body))
            if self.key is not None and key != f"Bearer {self.key}":
                return 401, f"wrong key {key}"
            if self.statuses:
                return self.statuses.pop(0), "busy"
            if path == "/v1/models":
                return 200, {"data": [{"id": name} for name in self.names]}
            if "/completions" not in path:
                return 404, "no"
            if not (self.takes_ids or isinstance(body.get("prompt", ""), str)):
                return 400, "prompt must be a string"
            return 200, self._completion(path, body)

    def _completion(self, path: str, body: dict[str, Any]) -> Any:
        if "messages" in body:
            said = f"{len(body['messages'])} turns"
            return {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
        prompt = body["prompt"]
        ids = self.tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt
        if body.get("echo") and not self.echoes:
            return {"choices": [{"text": "", "finish_reason": "length", "logprobs": None}]}
        if body.get("echo"):
            request = ScoreRequest(prompt_ids=tuple(ids[:1]), completion_ids=tuple(ids[1:]))
            values = [None, *self.model.score([request])[0], -1.0]
            tokens = [self.tokenizer.decode([token]) for token in (*ids, ids[0])]
            logprobs = {"token_logprobs": values, "tokens": tokens}
            return {"choices": [{"text": "", "finish_reason": "length", "logprobs": logprobs}]}
        request = SampleRequest(
            id="0", prompt_ids=tuple(ids), n=1, seed=body["seed"],
            sampling=Sampling(max_tokens=body["max_tokens"], temperature=body["temperature"]),
        )  # fmt: skip
        (completion,) = self.model.generate([request])[0].completions
        text = self.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        return {"choices": [{"text": text, "finish_reason": completion.finish_reason}]}


@contextmanager
def serving(server: ModelServer) -> Iterator[ModelServer]:
    """Serve until the context ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({})

        def do_POST(self) -> None:
            self._send(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _send(self, body: dict[str, Any]) -> None:
            status, content = server.answer(self.path, body, self.headers.get("Authorization"))
            data = (json.dumps(content) if status == 200 else str(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
