"""Viewers to test against: one in a thread of this process, or one in a process of its own as users run it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import otel_llm_callback
from otel_llm_callback.viewer import Options
from otel_llm_callback.viewer._app import Viewer
from otel_llm_callback.viewer._server import _Server, listen

SOURCES = str(Path(otel_llm_callback.__file__).parent.parent)
PROTOBUF = "application/x-protobuf"
JSON = "application/json"


class Answer:
    """What the viewer said."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Talks to a viewer over a connection of its own, with exactly the headers it is told to."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.address = urlsplit(url)

    def __call__(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.address.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host="host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Any:
        """The JSON of an answer that must be good."""
        answer = self("GET", path, **headers)
        assert answer.status == 200, (answer.status, answer.body)
        return answer.json

    def send(self, request: ExportTraceServiceRequest, **headers: str) -> Answer:
        """Send spans as protobuf."""
        return self("POST", "/v1/traces", request.SerializeToString(), content_type=PROTOBUF, **headers)

    def traces(self, query: str = "") -> list[dict[str, Any]]:
        return self.get(f"/api/traces{query}")["traces"]


@contextlib.contextmanager
def serving(options: Options) -> Iterator[Client]:
    """A viewer in a thread, for as long as the block lasts."""
    sockets = listen(options)
    viewer = Viewer(options)
    server = _Server(viewer)
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    client = Client(f"http://127.0.0.1:{sockets[0].getsockname()[1]}")
    try:
        yield client
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(20)
        assert not thread.is_alive()


class Process(Client):
    """A viewer as users run it."""

    def __init__(self, *arguments: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHONWARN"))}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-X",
                "dev",
                "-W",
                "error",
                "-m",
                "otel_llm_callback.cli",
                "view",
                "--port",
                "0",
                *arguments,
            ],
            env={**inherited, "PYTHONPATH": SOURCES, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("Ctrl-C"):
                break
        found = re.search(r"http://\S+", "".join(self.said))
        assert found, self.process.communicate(timeout=20)
        super().__init__(found[0])

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Stop it; return its exit code and what it said on standard error."""
        self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=30)
        return self.process.returncode, stderr

    def __enter__(self) -> Process:  # noqa: PYI034 - no class is made of this one
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=30)


class Watch:
    """Reads the viewer's stream of events in a thread."""

    def __init__(self, client: Client) -> None:
        self.events: list[tuple[str, Any]] = []
        self._arrived = threading.Condition()
        self._connection = http.client.HTTPConnection("127.0.0.1", client.address.port, timeout=30)
        self._connection.request("GET", "/api/events")
        self.response = self._connection.getresponse()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        name = ""
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException, AttributeError):
            while line := self.response.readline():
                kind, _, value = line.decode().strip().partition(": ")
                if kind == "event":
                    name = value
                elif kind == "data":
                    with self._arrived:
                        self.events.append((name, json.loads(value)))
                        self._arrived.notify_all()

    def wait_for(self, name: str, timeout_s: float = 20) -> Any:
        """The first event of that name, waited for."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: any(event == name for event, _ in self.events), timeout_s), (
                self.events
            )
            return next(told for event, told in self.events if event == name)

    def close(self) -> None:
        self._connection.close()
        self.response.close()
        self._thread.join(10)
