"""What is taken in: any OTLP over HTTP, whole, once, and nothing that is not OTLP."""

from __future__ import annotations

import base64
import gzip
import json
import time
import tracemalloc
import zlib

import openai
import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from viewer._serving import JSON, PROTOBUF, serving
from viewer._spans import CALL, any_value, request, span, trace_id

import otel_llm_callback
from otel_llm_callback.testing import ScriptedServer
from otel_llm_callback.viewer import Limits, Options
from otel_llm_callback.viewer._otlp import TooLargeError, inflate, plain, scalar


def as_json(message):
    """OTLP's JSON: protobuf's own, but ids in hex."""
    told = json_format.MessageToDict(message)
    for group in told["resourceSpans"]:
        for scope in group["scopeSpans"]:
            for one in scope["spans"]:
                for key in ("traceId", "spanId", "parentSpanId"):
                    if key in one:
                        one[key] = base64.b64decode(one[key]).hex()
    return json.dumps(told).encode()


ENCODINGS = {
    "protobuf": (lambda m: m.SerializeToString(), {"content_type": PROTOBUF}),
    "protobuf gzip": (
        lambda m: gzip.compress(m.SerializeToString()),
        {"content_type": PROTOBUF, "content_encoding": "gzip"},
    ),
    "protobuf deflate": (
        lambda m: zlib.compress(m.SerializeToString()),
        {"content_type": PROTOBUF, "content_encoding": "deflate"},
    ),
    "json": (as_json, {"content_type": "application/json; charset=utf-8"}),
    "json gzip": (lambda m: gzip.compress(as_json(m)), {"content_type": JSON, "content_encoding": "gzip"}),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_stores_the_same_span(viewer, encoding):
    encode, headers = ENCODINGS[encoding]
    told = {**CALL, "list": ["a", 1, True], "mapping": {"deep": {"er": 1.5}}, "text": "naïve 😀\n\x00"}
    parent = span("turn", attributes={}, took_ms=300)
    child = span(trace=parent.trace_id, parent=parent.span_id, attributes=told, events={"first": 20}, failed=True)
    child.status.message = "why"
    answer = viewer("POST", "/v1/traces", encode(request(parent, child)), **headers)
    said = answer.headers["content-type"].partition(";")[0]
    assert (answer.status, said) == (200, headers["content_type"].partition(";")[0])
    stored = viewer.get(f"/api/traces/{child.trace_id.hex()}/spans/{child.span_id.hex()}")
    assert stored["attributes"] == told
    assert (stored["name"], stored["kind"], stored["status"], stored["status_message"]) == (
        child.name,
        "client",
        "error",
        "why",
    )
    assert (stored["parent_id"], stored["resource"]) == (parent.span_id.hex(), {"service.name": "test"})
    assert [(event["name"], round(event["at_ms"], 3)) for event in stored["events"]] == [("first", 20)]
    trace = viewer.get(f"/api/traces/{child.trace_id.hex()}")
    assert (trace["name"], trace["spans"], trace["calls"], trace["errors"]) == ("turn", 2, 1, 1)


BAD_BODIES = {
    "no protobuf": (b"\xff\xff\xff\xff", {"content_type": PROTOBUF}, 400),
    "protobuf cut short": (request(span()).SerializeToString()[:-3], {"content_type": PROTOBUF}, 400),
    "text that is no utf-8": (
        request(span("AAAA")).SerializeToString().replace(b"AAAA", b"\xff\xfe\xfd\xfc"),
        {"content_type": PROTOBUF},
        400,
    ),
    "no json": (b"{", {"content_type": JSON}, 400),
    "json of another kind": (b"[1]", {"content_type": JSON}, 400),
    "json with other types": (b'{"resourceSpans": 1}', {"content_type": JSON}, 400),
    "an id that is no hex": (
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"zz"}]}]}]}',
        {"content_type": JSON},
        400,
    ),
    "json nested a thousand deep": (b'{"a":' * 1000 + b"1" + b"}" * 1000, {"content_type": JSON}, 400),
    "json nested beyond any parser": (b"[" * 200_000, {"content_type": JSON}, 400),
    "no gzip": (b"hello", {"content_type": PROTOBUF, "content_encoding": "gzip"}, 400),
    "gzip cut short": (gzip.compress(b"x" * 100)[:-4], {"content_type": PROTOBUF, "content_encoding": "gzip"}, 400),
    "an encoding nobody knows": (b"x", {"content_type": PROTOBUF, "content_encoding": "br"}, 400),
    "no content type": (b"x", {}, 415),
    "a form": (b"a=1", {"content_type": "application/x-www-form-urlencoded"}, 415),
    "a bomb": (gzip.compress(bytes(100_000_000)), {"content_type": PROTOBUF, "content_encoding": "gzip"}, 413),
    "too large as it is": (bytes(17 * 1024 * 1024), {"content_type": PROTOBUF}, 413),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_is_refused_and_nothing_is_lost(viewer, case):
    """What was stored stays, what comes after is stored, and the refusal quotes nothing."""
    body, headers, status = BAD_BODIES[case]
    before, after = span(), span()
    viewer.send(request(before))
    try:
        answer = viewer("POST", "/v1/traces", body, **headers)
    except OSError:  # the viewer hung up while a body it had refused already was still being sent
        assert status == 413
    else:
        assert answer.status == status
        if headers.get("content_type") == PROTOBUF:
            assert Status.FromString(answer.body).message
    assert viewer.send(request(after)).status == 200
    assert {trace["trace_id"] for trace in viewer.traces()} == {before.trace_id.hex(), after.trace_id.hex()}


def test_a_bomb_is_not_inflated():
    """Of 256 MiB of zeros no more is ever made than the limit allows."""
    compressor = zlib.compressobj(9, wbits=31)
    block = bytes(1024 * 1024)
    bomb = b"".join(compressor.compress(block) for _ in range(256)) + compressor.flush()
    tracemalloc.start()
    with pytest.raises(TooLargeError):
        inflate(bomb, "gzip", 1024 * 1024)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 * 1024 * 1024


ODD_SPANS = {
    "short trace id": lambda s: setattr(s, "trace_id", b"short"),
    "trace id of zeros": lambda s: setattr(s, "trace_id", bytes(16)),
    "no span id": lambda s: setattr(s, "span_id", b""),
    "time beyond the year 2262": lambda s: setattr(s, "start_time_unix_nano", 2**64 - 1),
}


@pytest.mark.parametrize("case", ODD_SPANS)
def test_a_span_that_cannot_be_kept_costs_its_neighbours_nothing(viewer, case):
    odd, good = span(), span()
    ODD_SPANS[case](odd)
    answer = viewer.send(request(odd, good))
    said = ExportTraceServiceResponse.FromString(answer.body).partial_success
    assert (answer.status, said.rejected_spans) == (200, 1)
    assert said.error_message == "spans refused: 1 without valid ids or times"
    assert [trace["trace_id"] for trace in viewer.traces()] == [good.trace_id.hex()]


MADE_UP = {
    "gen_ai.usage.input_tokens": [2**63 - 1, -5, float("nan"), float("inf"), True, "12", "many", [1], {"a": 1}],
    "gen_ai.usage.cost": [1e300, -1.0, "0.0001", "1e400", "nan", b"1"],
    "gen_ai.response.time_to_first_chunk": [1e30, -1.0, "soon"],
    "gen_ai.request.model": [1, True, "x" * 10_000, "", "\x00", ["a"]],
    "llm_callback.retry.count": [2**62, 0.5],
}


def test_made_up_figures_do_no_harm(viewer):
    """Whatever an attribute holds, the span is stored as it came, and list, charts and summary go on."""
    sent = [
        span(attributes={**CALL, "session.id": "odd", name: value})
        for name, values in MADE_UP.items()
        for value in values
        for _ in range(3)
    ]
    assert viewer.send(request(*sent)).status == 200
    assert viewer.get("/api/traces")["totals"]["spans"] == len(sent)
    viewer.get("/api/figures")
    viewer.get("/api/sessions/odd")
    for one in sent:
        viewer.get(f"/api/traces/{one.trace_id.hex()}/spans/{one.span_id.hex()}")


def test_a_span_sent_twice_is_stored_once(viewer):
    """A sender whose answer was lost sends again; counts and charts must not grow by that."""
    parent = span("turn", attributes={})
    child = span(trace=parent.trace_id, parent=parent.span_id)
    for _ in range(3):
        viewer.send(request(child, parent))
    [trace] = viewer.traces()
    assert (trace["spans"], trace["calls"], trace["input_tokens"]) == (2, 1, 10)
    assert viewer.get("/api/figures")["totals"]["calls"] == 1


def test_logs_are_said_not_to_be_kept(viewer):
    """Not a silent success: the answer counts what was left out, in a form that senders do not repeat."""
    logs = ExportLogsServiceRequest()
    logs.resource_logs.add().scope_logs.add().log_records.add()
    answer = viewer("POST", "/v1/logs", logs.SerializeToString(), content_type=PROTOBUF)
    said = ExportLogsServiceResponse.FromString(answer.body).partial_success
    assert (answer.status, said.rejected_log_records) == (200, 1)
    assert said.error_message == "the live view keeps traces and metrics, no logs"


def test_too_much_at_once_is_to_be_sent_again(tmp_path):
    """The answer to a sender that is too fast is the one that OTLP has it repeat."""
    limits = Limits(waiting_bytes=1)
    with serving(Options(port=0, store=None, limits=limits)) as viewer:
        from concurrent.futures import ThreadPoolExecutor

        bodies = [request(*(span() for _ in range(400))) for _ in range(24)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(viewer.send, bodies))
        statuses = {answer.status for answer in answers}
        refused = [answer for answer in answers if answer.status == 503]
        assert statuses == {200, 503}
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        stored = viewer.get("/api/traces")["totals"]["spans"]
        assert stored == 400 * (len(answers) - len(refused))


def test_what_this_package_sends_is_shown(viewer, monkeypatch):
    """The real client, the real SDK and exporters: call, tokens, content, and the metrics beside them."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{viewer.url}/v1/traces")))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{viewer.url}/v1/metrics"))
    meters = MeterProvider([reader])
    otel_llm_callback.instrument(tracer_provider=provider, meter_provider=meters, capture_content="span_only")
    with ScriptedServer() as server, openai.OpenAI(api_key="k", base_url=server.url) as client:
        messages = [{"role": "user", "content": "What is <b>this</b>?"}]
        client.chat.completions.create(model="tiny-chat", messages=messages)
    meters.shutdown()
    provider.shutdown()
    [trace] = viewer.traces()
    assert (trace["name"], trace["models"], trace["calls"], trace["errors"]) == ("chat tiny-chat", ["tiny-chat"], 1, 0)
    [bar] = viewer.get(f"/api/traces/{trace['trace_id']}")["span_list"]
    assert [name for name, _ in bar["events"]] == ["llm_callback.request_sent", "llm_callback.response_received"]
    told = viewer.get(f"/api/traces/{trace['trace_id']}/spans/{bar['id']}")["attributes"]
    said = json.loads(told["gen_ai.input.messages"])
    assert said == [{"role": "user", "parts": [{"type": "text", "content": "What is <b>this</b>?"}]}]
    series = {row["name"]: row for row in viewer.get("/api/metrics")["series"]}
    assert series["gen_ai.client.operation.duration"]["count"] == 1


def test_a_metric_keeps_its_newest_point(viewer):
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{viewer.url}/v1/metrics"), export_interval_millis=1e8)
    meters = MeterProvider([reader])
    counter = meters.get_meter("test").create_counter("things", unit="1")
    for _ in range(3):
        counter.add(2, {"kind": "a"})
        reader.force_flush()
    meters.shutdown()
    [row] = viewer.get("/api/metrics")["series"]
    assert (row["name"], row["attributes"], row["kind"], row["value"]) == ("things", {"kind": "a"}, "sum", 6)


OTHERS = {
    "old conventions": {
        "gen_ai.system": "anthropic",
        "gen_ai.request.model": "m",
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.prompt_tokens": 3,
        "gen_ai.usage.completion_tokens": 4,
    },
    "OpenInference": {
        "openinference.span.kind": "LLM",
        "llm.model_name": "m",
        "llm.token_count.prompt": 3,
        "llm.token_count.completion": 4,
    },
}


@pytest.mark.parametrize("project", OTHERS)
def test_calls_of_other_instrumentations_are_calls(viewer, project):
    viewer.send(request(span(attributes=OTHERS[project])))
    [trace] = viewer.traces()
    assert (trace["calls"], trace["models"], trace["input_tokens"], trace["output_tokens"]) == (1, ["m"], 3, 4)


def test_the_tokens_of_a_step_are_those_of_its_calls(viewer):
    """An agent's span sums up what its calls used; adding both would count tokens twice."""
    agent = span("invoke_agent bob", attributes={**CALL, "gen_ai.operation.name": "invoke_agent"}, took_ms=500)
    call = span(trace=agent.trace_id, parent=agent.span_id)
    viewer.send(request(agent, call))
    [trace] = viewer.traces()
    assert (trace["spans"], trace["calls"], trace["input_tokens"]) == (2, 1, 10)


values = st.recursive(
    st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=10,
)


@given(values)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_value_is_shown_as_it_was_sent(value):
    """Reading what was written gives what there was, and what is no list or mapping is also what filters see."""
    assert plain(any_value(value)) == value
    assert scalar(any_value(value)) == (None if isinstance(value, (list, dict)) else value)


def test_the_list_is_there_when_the_answer_is(viewer):
    """Acknowledged is stored: no waiting between the answer and what the page is told."""
    began = time.time_ns()
    for number in range(1, 20):
        viewer.send(request(span(started_ns=began + number, trace=trace_id())))
        assert viewer.get("/api/traces")["totals"]["traces"] == number
