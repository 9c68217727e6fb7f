"""The demo, run as users run it: in a process of its own, on real sockets."""

from __future__ import annotations

import gzip
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from viewer._serving import Process

import otel_llm_callback
from otel_llm_callback import cli
from otel_llm_callback._demo import _agent, _export, _live
from otel_llm_callback.testing import JsonReply, ScriptedServer, error_body
from otel_llm_callback.viewer._probe import about

SOURCES = str(Path(otel_llm_callback.__file__).parent.parent)
SECRETS = ("Hello Bob", "I am Bob", "friendly agent")


def run(*arguments, **environment):
    """Run the demo in an environment that knows of no server, no receiver and no colours."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OPENAI_", "OTEL_")) and name not in ("FORCE_COLOR", "NO_COLOR", "PYTHONIOENCODING")
    }
    usual = {"COLUMNS": "80", "PYTHONPATH": SOURCES, "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-m", "otel_llm_callback.cli", "demo", *arguments],
        env={**inherited, **usual, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def dead_endpoint():
    """An address where nothing listens, though the port is taken.

    Most runs name it as the receiver: what happens to listen on this machine's 4318 is none of a test's business.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def usual(dead_endpoint):
    """One plain run, and how long it took."""
    began = time.monotonic()
    result = run(OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint)
    return result, time.monotonic() - began


def sections(text):
    """The output by heading."""
    found = defaultdict(list)
    heading = ""
    for line in text.splitlines():
        if title := re.match(r"(.+?) [─-]{3,}$", line):
            heading = title[1]
        elif line.startswith("Session summary"):
            heading = line
        elif line.startswith("Trace id"):
            heading = "end"
        found[heading].append(line)
    return found


def test_it_goes_as_intended(usual):
    result, _ = usual
    assert (result.returncode, result.stderr) == (0, "")
    assert list(sections(result.stdout)) == [
        "",
        "Bob, a chat agent with telemetry callbacks",
        "Live notifications",
        "Session summary",
        "Trace",
        "Metrics",
        "end",
    ]


def test_it_says_which_server_it_talks_to(usual):
    assert re.search(r"^Server: http://127\.0\.0\.1:\d+/v1, scripted", usual[0].stdout, re.MULTILINE)


def test_each_event_is_shown_live(usual):
    """Three questions, the last one streamed, and a call that fails."""
    told = [line[9:24].split() for line in sections(usual[0].stdout)["Live notifications"][1:]]
    assert [event for event in told if event] == [
        *(["#1", "request"], ["#1", "response"]),
        *(["#2", "request"], ["#2", "response"]),
        *(["#3", "request"], ["#3", "chunk"], ["#3", "response"]),
        *(["#4", "request"], ["#4", "error"]),
    ]


def test_the_summary_adds_up(usual):
    rows = dict(
        re.findall(r"^  (\S.*?)  +(.+)$", "\n".join(sections(usual[0].stdout)["Session summary"]), re.MULTILINE)
    )
    assert (rows["Requests"], rows["Responses"], rows["Errors"]) == ("4", "3", "1 (1 NotFoundError)")
    assert rows["Tokens"] == "298 total"
    assert rows["Tokens per response"] == "99.3 on average over 3 responses"
    assert rows["Retries"] == "1 retry in 1 call, 150 ms of waiting"


def test_the_trace_is_one_tree_with_its_events(usual):
    trace = sections(usual[0].stdout)["Trace"]
    assert re.fullmatch(r"Bob session  [\d.]+ m?s", trace[1])
    titles = [line for line in trace if re.match(r"[├└]── ", line)]
    assert [re.sub(r"  [\d.]+ m?s", "", title)[4:] for title in titles] == [
        "chat gpt-4o-mini",
        "chat gpt-4o-mini",
        "chat gpt-4o-mini",
        "chat no-such-model  error",
    ]
    events = re.findall(r"── +[\d.]+ m?s  (\w+)(?: \(|$)", "\n".join(trace), re.MULTILINE)
    assert events == [
        *("request_sent", "response_received"),
        *("request_sent", "retry", "response_received"),
        *("request_sent", "first_chunk", "response_received"),
        *("request_sent", "exception"),
    ]
    assert "retry (delay 150 ms, status_code 429" in "\n".join(trace)
    assert "error.type NotFoundError" in "\n".join(trace)


def test_the_metrics_are_listed(usual):
    metrics = "\n".join(sections(usual[0].stdout)["Metrics"])
    for name in ("duration", "time_to_first_chunk", "time_per_output_chunk"):
        assert f"operation.{name}" in metrics
    assert re.search(r"token\.usage +input, gpt-4o-mini +3 +211 +70\.3", metrics)


def test_no_content_is_shown(usual):
    assert [secret for secret in SECRETS if secret in usual[0].stdout] == []


def test_it_fits_80_columns(usual):
    assert max(map(len, sections(usual[0].stdout)["Live notifications"])) <= 80
    assert max(map(len, sections(usual[0].stdout)["Trace"])) <= 80
    assert max(map(len, sections(usual[0].stdout)["Metrics"])) <= 80


def test_output_that_is_piped_has_no_colours(usual):
    assert "\x1b" not in usual[0].stdout


def test_a_dead_receiver_is_said_and_not_waited_for(usual):
    result, took_s = usual
    assert "Traces: NOT sent" in result.stdout
    assert "Metrics: NOT sent" in result.stdout
    assert "Jaeger:" not in result.stdout
    began = time.monotonic()
    without = run(OTEL_EXPORTER_OTLP_ENDPOINT="")
    assert without.returncode == 0
    assert took_s < (time.monotonic() - began) + 5


def test_a_receiver_that_never_answers_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        result = run(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 15
    assert result.returncode == 0
    assert "Traces: NOT sent" in result.stdout


@pytest.fixture
def receiver():
    """An OTLP receiver; what arrives is in ``received`` by path."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            zipped = self.headers.get("content-encoding") == "gzip"
            self.server.received[self.path] = gzip.decompress(body) if zipped else body
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.received = {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_receiver_gets_the_trace_and_the_metrics(receiver):
    result = run(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{receiver.server_port}",
        OTEL_LLM_CALLBACK_JAEGER_URL="http://jaeger.example/",
    )
    assert "Traces: sent" in result.stdout
    assert "Metrics: sent" in result.stdout
    trace_id = re.search(r"^Jaeger: http://jaeger\.example/trace/([0-9a-f]{32})$", result.stdout, re.MULTILINE)[1]
    traces = ExportTraceServiceRequest.FromString(receiver.received["/v1/traces"])
    spans = [span for r in traces.resource_spans for scope in r.scope_spans for span in scope.spans]
    assert len(spans) == 5
    assert {span.trace_id.hex() for span in spans} == {trace_id}
    told = ExportMetricsServiceRequest.FromString(receiver.received["/v1/metrics"])
    names = {metric.name for r in told.resource_metrics for scope in r.scope_metrics for metric in scope.metrics}
    assert "gen_ai.client.operation.duration" in names


def test_an_endpoint_for_traces_gets_only_traces(receiver):
    result = run(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"http://127.0.0.1:{receiver.server_port}/v1/traces")
    assert list(receiver.received) == ["/v1/traces"]
    assert "Metrics:" not in result.stdout.partition("Trace id")[2]


def test_the_conversation_is_shown_if_asked_for(dead_endpoint):
    result = run("--show-content", "--model", "my-model", OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint)
    assert "You: Hello Bob, who are you?" in result.stdout
    assert "Bob: I am Bob" in result.stdout
    assert "chat my-model" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "colored"),
    [
        ((), {}, True),
        (("--no-color",), {}, False),
        ((), {"NO_COLOR": "1"}, False),
    ],
)
def test_colours_can_be_had_and_refused(arguments, environment, colored, dead_endpoint):
    result = run(*arguments, FORCE_COLOR="1", TERM="xterm", OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint, **environment)
    assert result.returncode == 0
    assert bool(re.search(r"\x1b\[(\d+;)*3\dm", result.stdout)) is colored


def test_a_terminal_without_unicode_is_no_obstacle(dead_endpoint):
    result = run(PYTHONIOENCODING="ascii", OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint)
    assert (result.returncode, result.stderr, result.stdout.isascii()) == (0, "", True)


def test_a_proxy_for_the_internet_is_no_obstacle(dead_endpoint):
    proxy = {"HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
    assert run(OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint, **proxy).returncode == 0


def test_a_server_that_is_not_there_is_one_clear_line(dead_endpoint):
    result = run(OPENAI_BASE_URL=dead_endpoint.replace("://", "://user:canary@") + "/v1")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert re.fullmatch(
        r"The server could not be reached at http://127\.0\.0\.1:\d+/v1/models \(ConnectError\)\.\n", result.stderr
    )


def test_a_server_that_refuses_is_one_clear_line(dead_endpoint):
    with ScriptedServer(lambda _: JsonReply(error_body("Bad key \x1b[2J"), status=401)) as server:
        result = run(OPENAI_BASE_URL=server.url, OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint)
    assert result.returncode == 1
    assert re.fullmatch(r"The server did not do what the demo asked for: AuthenticationError: .*\n", result.stderr)
    assert "\x1b" not in result.stderr


def test_a_server_that_answers_for_any_model_is_reported_honestly(dead_endpoint):
    with ScriptedServer() as server:
        result = run(OPENAI_BASE_URL=server.url, OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint)
        models = {request.json["model"] for request in server.requests if request.json}
    assert result.returncode == 0
    assert models == {"gpt-4o-mini", "no-such-model"}
    assert "the call that was to fail did not" in result.stdout
    assert "(OPENAI_BASE_URL)" in result.stdout


def test_a_foreign_server_is_asked_for_its_models():
    def models(request):
        names = ["text-embed", "llama-4"] if request.path == "/models" else None
        return names and JsonReply({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    with ScriptedServer(models) as server, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENAI_BASE_URL", server.url)
        environment.delenv("OPENAI_MODEL", raising=False)
        with _agent.open_server(None) as chosen:
            assert chosen.model == "llama-4"
        environment.setenv("OPENAI_MODEL", "mine")
        with _agent.open_server(None) as chosen:
            assert chosen.model == "mine"


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "http/protobuf"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "http/protobuf",
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"),
    ],
)
def test_the_protocol_is_the_one_set_or_that_of_the_port(monkeypatch, environment, protocol):
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _export.find_target().protocol == protocol


def test_a_receiver_on_this_machine_is_found_by_its_port(monkeypatch):
    for name in ("ENDPOINT", "TRACES_ENDPOINT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ports = ((taken.getsockname()[1], "http/protobuf"), (listening.getsockname()[1], "grpc"))
        monkeypatch.setattr(_export, "_LOCAL", ports)
        assert _export.find_target().endpoint == f"http://localhost:{ports[1][0]}"
        monkeypatch.setattr(_export, "_LOCAL", ports[:1])
        assert _export.find_target() is None


def test_a_subcommand_is_needed(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([])
    assert left.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_packages_that_are_missing_are_named(monkeypatch, capsys):
    monkeypatch.setattr("otel_llm_callback._demo._PACKAGES", {"no_such_package.sub": "otel-llm-callback[console]"})
    assert cli.main(["demo"]) == 1
    assert "pip install 'otel-llm-callback[console]'" in capsys.readouterr().err


def test_a_live_view_that_runs_gets_the_calls_and_its_address_is_printed():
    """The calls are told while they go on, and the trace is where the address says; content only if it is asked for."""
    with Process("--memory") as viewer:
        plain = run(OTEL_EXPORTER_OTLP_ENDPOINT=viewer.url)
        shown = run("--show-content", OTEL_EXPORTER_OTLP_ENDPOINT=viewer.url)
        for result, has_content in ((plain, False), (shown, True)):
            assert (result.returncode, result.stderr) == (0, "")
            assert "Traces: sent, the live view that is running\n" in result.stdout
            trace_id = re.search(rf"^Live view: {viewer.url}/trace/(\w+)$", result.stdout, re.MULTILINE)[1]
            trace = viewer.get(f"/api/traces/{trace_id}")
            told = {name: trace[name] for name in ("name", "service", "spans", "calls", "errors", "retries", "session")}
            expected = {"name": "Bob session", "service": "bob-demo", "spans": 5, "calls": 4, "errors": 1, "retries": 1}
            assert told == {**expected, "session": "bob-demo"}
            spans = [viewer.get(f"/api/traces/{trace_id}/spans/{bar['id']}") for bar in trace["span_list"]]
            assert ("Hello Bob" in str(spans)) is has_content
        assert viewer.get("/api/metrics")["series"]
        assert viewer.get("/api/live")["calls"] == []  # the spans have taken their places


def test_a_live_view_is_started_where_nothing_listens():
    """It outlives the program that started it, keeps nothing on disk, and ends without use."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = _live.start(port)
    pid = int(re.search(r"process (\d+)", target.description)[1])
    try:
        assert target.view_url == f"http://localhost:{port}"
        assert about(target.view_url)["name"] == "otel-llm-callback view"
        assert _live.recognised(target).description == "the live view that is running"
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def test_a_live_view_that_cannot_start_is_no_target():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert _live.start(taken.getsockname()[1]) is None


def test_something_else_that_listens_is_no_live_view(dead_endpoint):
    target = _export.Target("http/protobuf", dead_endpoint, "a Collector")
    assert _live.recognised(target) is target
