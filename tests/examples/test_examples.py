"""Each program in examples/ runs as it stands and prints what it promises.

A new example needs a row in ``EXAMPLES``, or a test of its own if it serves until it is stopped.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from frameworks import _environments
from missing import give_up
from zero_code._receiver import HttpReceiver

from otel_llm_callback.testing import JsonReply, ScriptedServer, StreamReply, chat_chunks, chat_completion, error_body

DIRECTORY = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Example:
    """A program that runs to its end.

    Attributes:
        name: Of its file.
        prints: Line by line, with times and ids taken out as `shape` does.
        framework: Which environment of `tests/frameworks` it needs.
        spans: How many it sends, each from a process of its own.
        errors: What may be on standard error.
    """

    name: str
    prints: str
    framework: str | None = None
    spans: int = 0
    errors: re.Pattern[str] = field(default=re.compile(""))


EXAMPLES = [
    Example(
        "chat_agent",
        """
        You: Who are you?
        [request #1] gpt-4o-mini, plain, <n> characters of JSON
        [response] 12 tokens in <time>, finish reason stop
        [so far] 1 requests, 1 responses, 12 tokens
        Bob: Hello! I am a scripted server, and this is all I ever say.

        You: What is a trace?
        [request #2] gpt-4o-mini, plain, <n> characters of JSON
        [response] 12 tokens in <time>, finish reason stop
        [so far] 2 requests, 2 responses, 24 tokens
        Bob: Hello! I am a scripted server, and this is all I ever say.

        You: And a callback?
        [request #3] gpt-4o-mini, stream, <n> characters of JSON
        [first chunk]
        [response] 12 tokens in <time>, finish reason stop
        [so far] 3 requests, 3 responses, 36 tokens
        Bob: Hello! I am a scripted server, and this is all I ever say.

        === Session summary ===
        Duration: <time>
        Requests: 3, responses: 3, errors: 0
        Tokens: 36
        Average tokens per response: 12.0
        """,
    ),
    Example(
        "several_callbacks",
        """
        The caller sees the error as ever: NotFoundError
        Metrics: {'completed': 2, 'NotFoundError': 1}
        Audit:
        <clock> <id> <json>
        <clock> <id> <json>
        <clock> <id> <json>
        Cost: 0.0000096 USD
        """,
    ),
    Example(
        "prometheus_metrics",
        """
        Of your own:
        chat_tokens_total{model="gpt-4o-mini"} 12.0
        chat_latency_seconds_count{model="gpt-4o-mini"} 2.0
        chat_answers_without_usage_total{model="gpt-4o-mini"} 1.0
        Of the package:
        # TYPE gen_ai_client_operation_duration_seconds histogram
        # TYPE gen_ai_client_token_usage histogram
        # TYPE gen_ai_client_operation_time_to_first_chunk_seconds histogram
        # TYPE gen_ai_client_operation_time_per_output_chunk_seconds histogram
        """,
    ),
    Example(
        "json_logging",
        """
        INFO app asks gpt-4o-mini
        INFO app.llm request sent chat gpt-4o-mini s-42
        INFO app.llm response received chat gpt-4o-mini s-42
        INFO app asks no-such-model
        INFO app.llm request sent chat no-such-model s-42
        WARNING app does without: NotFoundError
        ERROR app.llm error chat no-such-model error NotFoundError s-42
        """,
    ),
    Example(
        "sentry_errors",
        """
        What: chat no-such-model failed with NotFoundError (HTTP 404)
        Group: chat openai no-such-model NotFoundError
        Team: search
        Request id: req_000002
        Says what was said: False
        """,
    ),
    Example(
        "celery_task",
        """
        Bob: Hello! I am a scripted server, and this is all I ever say.
        Bob: Hello! I am a scripted server, and this is all I ever say.
        Bob: Hello! I am a scripted server, and this is all I ever say.
        3 answers by 3 processes
        """,
        spans=3,
        # It says that it ends, and warns whoever is root.
        errors=re.compile(r"(\S*: SecurityWarning: (.+\n\n?)+)?\s*worker: Warm shutdown \(MainProcess\)\s*"),
    ),
    Example(
        "langchain_app",
        """
        Bob: Hello! I am a scripted server, and this is all I ever say.
        Bob: Hello! I am a scripted server, and this is all I ever say.
        Bob: Hello! I am a scripted server, and this is all I ever say.
        Bob: Hello! I am a scripted server, and this is all I ever say.
        plain: 1 responses, 12 tokens
        streamed: 1 responses, 12 tokens
        batch: 2 responses, 24 tokens
        """,
        framework="langchain",
    ),
]
SERVICES = ["fastapi_service"]


def environment(**settings):
    without = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "OTEL_", "SENTRY_"))}
    return {**without, "OTEL_EXPORTER_PROMETHEUS_PORT": str(free_port()), **settings}


def free_port():
    with closing(socket.create_server(("localhost", 0))) as probe:
        return probe.getsockname()[1]


def run(name, *arguments, python=sys.executable, errors=re.compile(""), **settings):
    """Return what the program printed; fail if it failed, warned or logged anything that is not expected."""
    done = subprocess.run(
        [python, "-X", "dev", "-W", "error", f"{name}.py", *arguments],
        cwd=DIRECTORY,
        env=environment(**settings),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert errors.fullmatch(done.stderr), done.stderr
    return done.stdout


def shape(text):
    """The lines that are not empty, with what differs from run to run taken out."""
    text = re.sub(r"\d\d:\d\d:\d\d", "<clock>", text)
    text = re.sub(r"\b\d+(\.\d+)? (ms|s)\b", "<time>", text)
    text = re.sub(r"\b\d+ characters", "<n> characters", text)
    text = re.sub(r'\b[0-9a-f]{32} \{"\w.*\}', "<id> <json>", text)
    return [logged(line.strip()) for line in text.splitlines() if line.strip()]


def logged(line):
    """What a JSON line says, in words."""
    if not line.startswith("{"):
        return line
    said = json.loads(line)
    return " ".join(said[name] for name in ("level", "logger", "message", "session_id") if name in said)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_prints_what_it_promises(example):
    python = sys.executable if example.framework is None else _environments.python(example.framework)
    if python is None:
        give_up(f"{example.name} needs the environment of {example.framework}; `make frameworks` makes it")
    with HttpReceiver() as receiver:
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url} if example.spans else {}
        printed = run(example.name, python=python, errors=example.errors, **settings)
        spans = receiver.spans()
    assert shape(printed) == shape(example.prints)
    assert len(spans) == len({span.instance for span in spans}) == example.spans


def test_every_example_is_tested_and_in_the_readme():
    programs = sorted(path.stem for path in DIRECTORY.glob("[!_]*.py"))
    listed = re.findall(
        r"^\| \[(\w+)\.py\]\(\1\.py\) \| .+ \|$", (DIRECTORY / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert sorted([*(example.name for example in EXAMPLES), *SERVICES]) == programs
    assert sorted(listed) == programs


def test_an_example_talks_to_the_server_in_the_environment():
    """The agent remembers what was said, and a server that reports no usage adds nothing to the average."""

    def reply(request):
        if request.json.get("stream"):
            return StreamReply(chat_chunks(["It ", "tells."], model="other"))
        return JsonReply(chat_completion("A story.", model="other", usage=(10, 2)))

    with ScriptedServer(reply) as server:
        printed = run("chat_agent", OPENAI_BASE_URL=server.url, OPENAI_MODEL="other")
        requests = [request.json for request in server.requests]
    assert [(request["model"], len(request["messages"])) for request in requests] == [
        ("other", 2),
        ("other", 4),
        ("other", 6),
    ]
    assert shape(printed)[-5:] == [
        "=== Session summary ===",
        "Duration: <time>",
        "Requests: 3, responses: 3, errors: 0",
        "Tokens: 24",
        "Average tokens per response: 12.0",
    ]


def test_prompts_are_logged_on_request_only():
    assert "Hello!" not in run("json_logging")
    lines = map(json.loads, run("json_logging", "--prompts").splitlines())
    prompts = [line["message"].removeprefix("REQUEST: ") for line in lines if line["logger"] == "prompts"]
    assert [json.loads(prompt)["messages"][0]["content"] for prompt in prompts] == ["Hello!", "Hello!"]


def test_a_service_streams_and_every_call_of_every_worker_arrives():
    """Each worker has an identity and metrics of its own; a client reads while the model still writes."""
    may_end = threading.Event()

    def words():
        first, *rest = chat_chunks(["It ", "tells."], usage=(5, 2))
        yield first
        yield from rest[:1]
        assert may_end.wait(30)
        yield from rest[1:]

    def reply(request):
        if request.json["model"] == "no-such-model":
            return JsonReply(error_body("no"), status=404)
        if request.json["messages"][0]["content"] == "Slowly!":
            return StreamReply(words())
        return StreamReply(chat_chunks(["It ", "tells."], usage=(5, 2)))

    with HttpReceiver() as receiver, ScriptedServer(reply) as server:
        # Spans are sent at once, so that it shows which worker has answered.
        settings = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "any", "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with serving("fastapi_service", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, **settings) as url:
            with httpx.stream("GET", url, params={"question": "Slowly!"}) as response:
                pieces = response.iter_text()
                assert next(pieces) == "It "
                may_end.set()
                assert "".join(pieces) == "tells."
            assert httpx.get(url, params={"question": "Who?", "model": "no-such-model"}).status_code == 502
            sessions = ["s-0"]
            deadline = time.monotonic() + 60
            while len({span.instance for span in of_calls(receiver.spans())}) < 2 and time.monotonic() < deadline:
                headers = {"x-session-id": sessions[-1]}
                assert httpx.get(url, params={"question": "Who?"}, headers=headers).text == "It tells."
                sessions.append(f"s-{len(sessions)}")
        spans = of_calls(receiver.spans())
        points = [point for point in receiver.points() if point.name == "gen_ai.client.operation.duration"]
    sessions.pop()
    answered = [span for span in spans if "error.type" not in span.attributes]
    workers = {span.instance for span in spans}
    assert (len(workers), {span.service for span in spans}) == (2, {"chat-service"})
    assert Counter(span.attributes.get("session.id") for span in answered) == Counter([None, *sessions])
    assert [span.attributes["gen_ai.usage.output_tokens"] for span in answered] == [2] * len(answered)
    assert [span.attributes.get("error.type") for span in spans if span not in answered] == ["NotFoundError"]
    # The last point of a series is its total; of each worker there is one.
    series = {(point.instance, *sorted(map(str, point.attributes.items()))): point for point in points}
    calls = Counter(key[0] for key, point in series.items() for _ in range(point.count))
    assert calls == Counter(span.instance for span in spans)


def of_calls(spans):
    """Ours: newer releases of FastAPI make spans too."""
    return [span for span in spans if "gen_ai.operation.name" in span.attributes]


@contextmanager
def serving(name, **settings):
    """Start a service, give the address of its page, stop it as a supervisor does; fail if it complains."""
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore::ResourceWarning",
            f"{name}.py",
        ],  # uvicorn closes not all it opens
        cwd=DIRECTORY,
        env=environment(PORT=str(port), **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    said = []
    reader = threading.Thread(target=lambda: said.extend(process.stdout), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + 60
        while sum("startup complete" in line for line in said) < 2 and time.monotonic() < deadline:
            assert process.poll() is None, "".join(said)
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/chat"
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        process.stdout.close()
    assert [line for line in said if not line.startswith("INFO:")] == []
