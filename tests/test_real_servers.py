"""Servers written by others: the caller gets the same with us and without, and spans say what went over the wire.

`exercise.py`, kept beside the checkout, calls a real server in 68 ways. It runs once under observation, through a tap
that keeps every byte; what spans should say is worked out from those bytes. Then it runs without us against the bytes
that were kept, so that both runs get the same answers however random the server is, and must give the same results.

The addresses come from ``OTEL_LLM_CALLBACK_TEST_LLAMA_URL`` and ``OTEL_LLM_CALLBACK_TEST_AIMOCK_URL``. Without them a
server is started if that takes seconds: aimock where npm is there, llama-server where ``make parts`` has installed it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import re
import socket
import subprocess
import threading
import time
import types
from collections import defaultdict, deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from forms import StreamCut
from missing import give_up
from real_servers import CACHE, FOLDER, is_installed, lacks, settings

import otel_llm_callback
from otel_llm_callback.testing import check_grammar

VARIABLES = {
    "llama-server": "OTEL_LLM_CALLBACK_TEST_LLAMA_URL",
    "aimock": "OTEL_LLM_CALLBACK_TEST_AIMOCK_URL",
}
# Taken out of the environment: instrument() warns of variables with our prefix that are no settings.
ADDRESSES = {name: os.environ.pop(variable, None) for name, variable in VARIABLES.items()}
EMBED_MODELS = {"llama-server": "tiny-embed", "aimock": "tiny-chat"}
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "chat",
    "/v1/responses/input_tokens": "count_tokens",
    "/v1/images/generations": "image_generation",
    "/v1/audio/speech": "speech",
    "/v1/audio/transcriptions": "transcription",
    "/v1/moderations": "moderation",
}
ERRORS = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError"}
SPAN = (
    "gen_ai.operation.name",
    "gen_ai.request.model",
    "gen_ai.request.stream",
    "llm_callback.outcome",
    "error.type",
    "http.response.status_code",
    "llm_callback.request_id",
    "gen_ai.response.id",
    "gen_ai.response.model",
    "gen_ai.response.finish_reasons",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "llm_callback.rate_limit.requests.remaining",
)
MODEL = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "tiny-chat"}
UNANSWERED = {
    "error_timeout": [{**MODEL, "llm_callback.outcome": "error", "error.type": "APITimeoutError"}],
    "error_refused": [{**MODEL, "llm_callback.outcome": "error", "error.type": "APIConnectionError"}],
}
RAW = {"chat_streamed_raw"}  # the caller reads the lines itself: nobody parses what they say
LEFT = {  # after a few chunks; the helper of the SDK fails on the events of llama-server
    "llama-server": {"chat_stream_left_early", "response_stream_helper"},
    "aimock": {"chat_stream_left_early"},
}
LATE = "async_chat_cancelled"  # half a second after its start, wherever it is by then
HEAD = (*MODEL, "gen_ai.request.stream", "gen_ai.response.id", "gen_ai.response.model")
# What the caller did not wait for.
UNREAD = ("gen_ai.response.finish_reasons", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")


# --- The servers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(VARIABLES))
def real(request):
    """Name and address of a server."""
    name = request.param
    if address := ADDRESSES[name]:
        yield name, address
        return
    if (reason := lacks(name)) is None and name == "llama-server" and not is_installed(name):
        reason = f"llama-server is not installed; `make parts` does it, or name a running one in {VARIABLES[name]}"
    if reason:
        give_up(reason)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    command = ["bash", str(FOLDER / "serve.sh")]
    log = CACHE / f"{name}.log"
    CACHE.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        # No pipe: the server would keep it open.
        started = subprocess.run(
            command, env=settings(name, port), stdout=output, stderr=output, timeout=100, check=False
        )
    if started.returncode:
        give_up(f"{name} does not start, see {log}")
    try:
        yield name, f"http://127.0.0.1:{port}/v1"
    finally:
        subprocess.run([*command, "stop"], env=settings(name, port), timeout=30, check=True)


# --- On the wire ------------------------------------------------------------------------------------------------------


@dataclass
class Connection:
    """What went over one connection."""

    sent: bytearray = field(default_factory=bytearray)
    got: bytearray = field(default_factory=bytearray)
    left: bool = False
    cut: bool = False

    def is_whole(self):
        """Whether all of its requests have arrived."""
        requests = _Bytes(self.sent)
        while request := _read_request(requests):
            if len(request[1]) < request[2]:
                return False
        return True

    def exchanges(self):
        """Its requests, each with its answer."""
        requests, answers = _Bytes(self.sent), _Bytes(self.got)
        while request := _read_request(requests):
            begin = answers.tell()
            status, headers, body = _read_answer(answers)
            raw = bytes(self.got[begin : answers.tell()])
            yield Exchange(*request[:2], status, headers, body, raw, self.cut and answers.tell() == len(self.got))


@dataclass(frozen=True)
class Exchange:
    """A request and its answer; *cut* if the server ended the connection after it."""

    target: str
    sent: bytes
    status: int | None
    headers: dict[str, str]
    body: bytes
    raw: bytes
    cut: bool

    @property
    def key(self):
        """What makes the request the same; the boundary in an upload is random."""
        return self.target, re.sub(rb"--[0-9a-f]{32}", b"--", self.sent)

    @property
    def path(self):
        return self.target.partition(" ")[2]

    @property
    def request(self):
        with contextlib.suppress(ValueError):
            return json.loads(self.sent)
        model = re.search(rb'name="model"\r\n\r\n(.*?)\r\n', self.sent)
        return {"model": model[1].decode()} if model else {}

    @property
    def events(self):
        """The JSON of the answer: one object, or those of the stream."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            data = re.findall(rb"^data: (.*?)\r?$", self.body, re.MULTILINE)
            return [json.loads(event) for event in data if event != b"[DONE]" and _is_json(event)]
        return [json.loads(self.body)] if _is_json(self.body) else []


class _Bytes(io.BytesIO):
    def close(self):
        """Stay open: an HTTPResponse closes what it has read."""

    def makefile(self, _mode):
        return self


def _is_json(data):
    with contextlib.suppress(ValueError):
        return isinstance(json.loads(data), dict)
    return False


def _read_request(data):
    """The first line without the version, the body, and how long the body should be; None if there is none."""
    first = data.readline().decode()
    if not first.endswith("\n"):
        return None
    headers = http.client.parse_headers(data)
    length = int(headers.get("content-length", 0))
    return first.rpartition(" ")[0], data.read(length), length


def _read_answer(data):
    answer = http.client.HTTPResponse(data)
    try:
        answer.begin()
    except (http.client.HTTPException, ConnectionError):
        return None, {}, b""
    headers = {name.lower(): value for name, value in answer.getheaders()}
    try:
        return answer.status, headers, answer.read()
    except http.client.IncompleteRead as broken:
        return answer.status, headers, broken.partial


class _Loopback:
    """A listener on this machine; every connection gets a thread."""

    def __init__(self):
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self._threads = []
        self.port = self._sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._start(self._accept)

    def _start(self, work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._sockets[0].accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.append(client)
                self._start(self._serve, client)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(5)


class Tap(_Loopback):
    """Pass everything on to a server and back, and keep it."""

    def __init__(self, address):
        self._target = (urlsplit(address).hostname, urlsplit(address).port)
        self._connections = []
        super().__init__()

    def take(self):
        """Return what was exchanged since the last time."""
        taken, self._connections = self._connections, []
        deadline = time.monotonic() + 2
        while not all(connection.is_whole() for connection in taken) and time.monotonic() < deadline:
            time.sleep(0.001)
        return [exchange for connection in taken for exchange in connection.exchanges()]

    def _serve(self, client):
        connection = Connection()
        self._connections.append(connection)
        server = socket.create_connection(self._target)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets.append(server)

        def answered(ended):
            connection.cut = ended and not connection.left

        def left(_):
            connection.left = True

        self._start(_pump, server, client, connection.got, answered, socket.SHUT_WR)
        _pump(client, server, connection.sent, left, socket.SHUT_RDWR)


def _pump(source, target, kept, at_end, how):
    """Pass on what comes from *source* and keep it; *at_end* is told, before *target* is, if *source* ended it."""
    ended = True
    while data := _receive(source):
        kept += data
        try:
            target.sendall(data)
        except OSError:  # it may answer and leave before it has read all: keep the rest nevertheless
            ended = False
    at_end(ended)
    with contextlib.suppress(OSError):
        target.shutdown(how)


def _receive(source):
    with contextlib.suppress(OSError):
        return source.recv(65536)
    return b""


class Replay(_Loopback):
    """Give the answers that a tap kept to whoever sends the same requests."""

    def __init__(self):
        self.answers = defaultdict(deque)
        self.unknown = []
        super().__init__()

    def expect(self, exchanges):
        self.answers.clear()
        for exchange in exchanges:
            self.answers[exchange.key].append(exchange)

    def _serve(self, client):
        with contextlib.suppress(OSError), client.makefile("rb") as arriving:
            while request := _read_request(arriving):
                exchange = Exchange(*request[:2], None, {}, b"", b"", False)
                if not self.answers[exchange.key]:
                    self.unknown.append(exchange.key)
                    break
                kept = self.answers[exchange.key].popleft()
                client.sendall(kept.raw)
                if kept.cut:
                    break
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


# --- The calls --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exercise():
    path = FOLDER / "exercise.py"
    if not path.exists():
        give_up(f"no {path}")
    module = types.ModuleType("exercise")
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), module.__dict__)
    module.clients = []  # made for each call and never closed there
    make = module.Setup.c.fget
    module.Setup.c = property(lambda setup: module.clients.append(make(setup)) or module.clients[-1])
    return module


def run(exercise, name, url, embed_model):
    arguments = argparse.Namespace(
        base_url=url,
        model="tiny-chat",
        embed_model=embed_model,
        tools_model=None,
        api_key="sk-test",
        timeout=60,
        max_retries=0,
        only=f"^{name}$",
        skip=None,
        json=False,
        quiet=True,
    )
    (result,) = exercise.run_all(arguments)
    while exercise.clients:
        exercise.clients.pop().close()
    del result["seconds"]
    return json.loads(json.dumps(result, default=str))


def test_caller_and_spans_agree_with_the_wire(real, exercise, telemetry, recorder):
    """Same results and same requests with us and without; each API call has one span with what the server said."""
    name, address = real
    embed_model = EMBED_MODELS[name]
    # Connections to the last are made, by the kernel, and never answered.
    with Tap(address) as tap, Replay() as replay, socket.create_server(("127.0.0.1", 0)) as mute:
        never = {"error_timeout": f"http://127.0.0.1:{mute.getsockname()[1]}/v1"}
        observed, plain, spans, expected = {}, {}, {}, {}
        for call, _, _ in exercise.CALLS:
            otel_llm_callback.instrument(
                recorder,
                delivery="inline",
                tracer_provider=telemetry.tracer_provider,
                meter_provider=telemetry.meter_provider,
            )
            before = len(telemetry.spans())
            observed[call] = run(exercise, call, never.get(call, tap.url), embed_model)
            assert otel_llm_callback.flush(5)
            spans[call] = in_order(facts(span.attributes) for span in telemetry.spans()[before:])
            exchanges = tap.take()
            told = [exchange for exchange in exchanges if exchange.path in OPERATIONS]
            expected[call] = UNANSWERED.get(call) or in_order(said(name, call, exchange) for exchange in told)
            otel_llm_callback.uninstrument()
            replay.expect(exchanges)
            plain[call] = run(exercise, call, never.get(call, replay.url), embed_model)
    for found in (spans, expected):
        found[LATE] = [{key: each[key] for key in HEAD} for each in found[LATE]]
    for found in (observed, plain):
        found[LATE] = found[LATE]["outcome"]
    assert spans == expected
    assert observed == plain
    assert replay.unknown == []
    check_grammar(recorder.events)
    assert counted(telemetry) == summed(telemetry.spans())


def in_order(found):
    return sorted(found, key=lambda each: json.dumps(each, sort_keys=True))


def facts(attributes):
    return {name: attributes[name] for name in SPAN if name in attributes}


def counted(telemetry):
    """Calls, input and output tokens by the metrics."""
    calls = sum(point.count for point in telemetry.metrics("gen_ai.client.operation.duration"))
    tokens = {"input": 0, "output": 0}
    for point in telemetry.metrics("gen_ai.client.token.usage"):
        tokens[point.attributes["gen_ai.token.type"]] += point.sum
    return (calls, *tokens.values())


def summed(spans):
    """The same by the spans."""
    kinds = ("input", "output")
    tokens = [sum(span.attributes.get(f"gen_ai.usage.{kind}_tokens", 0) for span in spans) for kind in kinds]
    return (len(spans), *tokens)


def said(name, call, exchange):
    """What the span of an exchange should say."""
    asked = exchange.request
    left = call in LEFT[name]
    body = {} if call in RAW else whole(exchange.events[:1] if left else exchange.events)
    failed = exchange.status >= 400
    ends = exchange.path == "/v1/responses" or b"[DONE]" in exchange.body
    cut = asked.get("stream") and exchange.cut and not (failed or ends)
    if cut:
        body["reasons"] = ("error",)
    outcome = "error" if failed or cut else "completed"
    usage = body.get("usage") or {}
    remaining = exchange.headers.get("x-ratelimit-remaining-requests")
    values = (
        OPERATIONS[exchange.path],
        asked.get("model"),
        asked.get("stream") or None,
        "closed_early" if left else outcome,
        StreamCut.__name__ if cut else ERRORS.get(exchange.status, "InternalServerError") if failed else None,
        exchange.status if failed or cut else None,
        exchange.headers.get("x-request-id"),
        body.get("id"),
        body.get("model"),
        body.get("reasons"),
        usage.get("prompt_tokens", usage.get("input_tokens")),
        usage.get("completion_tokens", usage.get("output_tokens")),
        (usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}).get("cached_tokens"),
        int(remaining) if remaining is not None else None,
    )
    found = dict(zip(SPAN, values, strict=True))
    unread = UNREAD if left else ()
    return {name: value for name, value in found.items() if value is not None and name not in unread}


def whole(events):
    """One answer from its events."""
    found = {}
    reasons = {}
    for event in events:
        found.update({key: value for key, value in event.items() if value is not None})
        found.update(event.get("response") or {})
        for choice in event.get("choices", ()):
            reasons[choice["index"]] = choice["finish_reason"] or reasons.get(choice["index"])
    if reasons:
        found["reasons"] = tuple(reasons[index] for index in sorted(reasons))
    if "output" in found:
        called = any(item["type"] == "function_call" for item in found["output"])
        found["reasons"] = ("tool_calls",) if called else ("stop",)
    return found
