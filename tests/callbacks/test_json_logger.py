"""JsonLogger: the schema, sizes, files, standard logging and what formatters make of it, and loops that must not be."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import stat
from decimal import Decimal
from pathlib import Path

import openai
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pythonjsonlogger.json import JsonFormatter

import otel_llm_callback
from otel_llm_callback.callbacks import JsonLogger
from otel_llm_callback.protocol import check_callback
from otel_llm_callback.testing import (
    JsonReply,
    error_body,
    make_chunk,
    make_error_context,
    make_request,
    make_response,
)
from otel_llm_callback.types import Attributes, RateLimit, Retry, Usage

SECRET = "canary-4711"
ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": SECRET}]}


class Kept(logging.Handler):
    """Keeps records."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def file():
    return io.StringIO()


@pytest.fixture
def logger():
    """A logger of this test alone, which passes nothing on."""
    logger = logging.getLogger("calls of a test")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield logger
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def lines(file):
    return [json.loads(line) for line in file.getvalue().splitlines()]


def lines_of(*paths):
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


# --- The schema -------------------------------------------------------------------------------------------------------

REQUEST = make_request(
    call_id="c-1",
    trace_id="0" * 31 + "1",
    span_id="0" * 15 + "2",
    session_id="s-1",
    user_id="bob",
    attributes=Attributes(plan="pro", ids=(1, 2)),
    stream=True,
    temperature=0.5,
    stop_sequences=("a", "b"),
)
WHO = {
    "call_id": "c-1",
    "trace_id": "0" * 31 + "1",
    "span_id": "0" * 15 + "2",
    "session_id": "s-1",
    "user_id": "bob",
    "attributes": {"plan": "pro", "ids": [1, 2]},
    "operation": "chat",
    "api": "chat_completions",
    "provider": "openai",
    "model": "gpt-4o-mini",
}
RETRIES = (Retry(at_ns=0, delay_s=0.05, status_code=429), Retry(at_ns=0, delay_s=0.1, error="ReadTimeout"))


def test_it_is_a_callback_that_asks_for_no_content(file):
    check_callback(JsonLogger(file))
    check_callback(JsonLogger(file, chunks=True))
    assert JsonLogger(file).content == "none"


def test_a_request_is_one_object(file):
    JsonLogger(file).on_request_sent(REQUEST, "")
    assert lines(file) == [
        {
            "time": "2023-11-14T22:13:20.000000Z",
            "event": "request_sent",
            **WHO,
            "stream": True,
            "server_address": "api.openai.com",
            "server_port": 443,
            "context_length": 42,
            "temperature": 0.5,
            "stop_sequence_count": 2,
        }
    ]


def test_a_response_is_one_object(file):
    response = make_response(
        request=REQUEST,
        usage=Usage(input_tokens=41, output_tokens=23, cached_tokens=12, reasoning_tokens=0),
        retries=RETRIES,
        time_to_first_chunk_s=0.05,
        time_to_first_output_s=0.06,
        longest_gap_s=0.01,
        chunk_count=3,
        rate_limit=RateLimit(remaining_requests=9),
        cost=Decimal("0.00012"),
        processing_ms=80.0,
        truncated=True,
    )
    JsonLogger(file).on_response_received(response, "")
    assert lines(file) == [
        {
            "time": "2023-11-14T22:13:20.100000Z",
            "event": "response_received",
            **WHO,
            "outcome": "completed",
            "response_id": "chatcmpl-1",
            "response_model": "gpt-4o-mini",
            "finish_reasons": ["stop"],
            "truncated": True,
            "duration_ms": 100.0,
            "status_code": 200,
            "request_id": "req-1",
            "processing_ms": 80.0,
            "retry_count": 2,
            "retry_wait_ms": 150.0,
            "retry_causes": ["429", "ReadTimeout"],
            "remaining_requests": 9,
            "time_to_first_chunk_ms": 50.0,
            "time_to_first_output_ms": 60.0,
            "longest_gap_ms": 10.0,
            "chunk_count": 3,
            "usage_source": "reported",
            "input_tokens": 41,
            "output_tokens": 23,
            "cached_tokens": 12,
            "reasoning_tokens": 0,
            "total_tokens": 64,
            "cost_usd": 0.00012,
        }
    ]


def test_what_is_unknown_is_absent(file):
    request = make_request(call_id="c", model=None, context_length=None, server_address=None, server_port=None)
    response = make_response(request=request, id=None, model=None, usage=None, finish_reasons=(), request_id=None)
    JsonLogger(file).on_response_received(response, "")
    assert lines(file) == [
        {
            "time": "2023-11-14T22:13:20.100000Z",
            "event": "response_received",
            "call_id": "c",
            "operation": "chat",
            "api": "chat_completions",
            "provider": "openai",
            "outcome": "completed",
            "duration_ms": 100.0,
            "status_code": 200,
            "retry_count": 0,
            "usage_source": "missing",
        }
    ]


def test_an_error_is_its_type_and_what_had_arrived(file):
    partial = make_response(request=REQUEST, chunk_count=2, usage=None, finish_reasons=(), response_time_ms=20.0)
    context = make_error_context(request=REQUEST, partial=partial, retries=RETRIES[:1])
    JsonLogger(file).on_error(ValueError(SECRET), context)
    assert lines(file) == [
        {
            "time": "2023-11-14T22:13:20.100000Z",
            "event": "error",
            **WHO,
            "outcome": "error",
            "error_type": "RateLimitError",
            "where": "chat.completions",
            "response_id": "chatcmpl-1",
            "response_model": "gpt-4o-mini",
            "duration_ms": 100.0,
            "status_code": 429,
            "request_id": "req-1",
            "retry_count": 1,
            "retry_wait_ms": 50.0,
            "retry_causes": ["429"],
            "chunk_count": 2,
            "usage_source": "missing",
        }
    ]


def test_the_fields_are_those_that_are_documented(file):
    """Every field that the tests above see stands in the table of the schema."""
    page = (Path(__file__).parents[2] / "docs" / "logging.md").read_text(encoding="utf-8")
    logger = JsonLogger(file, content="full", chunks=True)
    logger.on_request_sent(REQUEST, '{"a":1}')
    logger.on_stream_chunk(make_chunk("x", request=REQUEST), 0)
    logger.on_response_received(make_response(request=REQUEST, retries=RETRIES, rate_limit=RateLimit()), '{"a":1}')
    logger.on_error(ValueError("x" * 20_000), make_error_context(request=REQUEST))
    assert {name for line in lines(file) for name in line if f"`{name}`" not in page} == set()


# --- Content and size -------------------------------------------------------------------------------------------------


def test_content_is_written_only_on_request(file):
    logger = JsonLogger(file, content="full", chunks=True)
    logger.on_request_sent(make_request(), json.dumps(ASKED))
    logger.on_stream_chunk(make_chunk("Hello"), 0)
    logger.on_response_received(make_response(), '{"choices":[]}')
    logger.on_error(ValueError("it said no"), make_error_context())
    request, chunk, response, error = lines(file)
    assert request["request"] == ASKED
    assert {name: chunk[name] for name in ("event", "index", "kind", "text")} == {
        "event": "stream_chunk",
        "index": 0,
        "kind": "text",
        "text": "Hello",
    }
    assert response["response"] == {"choices": []}
    assert error["error_text"] == "it said no"


@pytest.mark.parametrize("content", ["none", "redacted", "full"])
def test_each_level_shows_what_it_says(client, server, file, content):
    """Prompt, answer and error text of real calls: all, none, or only their shape."""
    server.reply = lambda request: (
        JsonReply(error_body(f"You said {SECRET}"), status=400) if request.json["model"] == "bad" else None
    )
    otel_llm_callback.instrument(JsonLogger(file, content=content, chunks=True), delivery="inline")
    client.chat.completions.create(**ASKED)
    list(client.chat.completions.create(**ASKED, stream=True))
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**{**ASKED, "model": "bad"})
    events = [line["event"] for line in lines(file) if line["event"] != "stream_chunk"]
    assert events == ["request_sent", "response_received"] * 2 + ["request_sent", "error"]
    assert (SECRET in file.getvalue(), "scripted" in file.getvalue()) == ((content == "full"),) * 2
    assert ("[redacted]" in file.getvalue()) == (content == "redacted")


def test_chunks_are_written_only_on_request(client, file):
    otel_llm_callback.instrument(JsonLogger(file), delivery="inline")
    list(client.chat.completions.create(**ASKED, stream=True))
    assert [line["event"] for line in lines(file)] == ["request_sent", "response_received"]
    assert lines(file)[1]["chunk_count"] > 1


@given(
    body=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    error_text=st.text(max_size=3000),
    model=st.text(max_size=2000),
    attributes=st.dictionaries(st.text(), st.text() | st.floats()),
    limit=st.integers(512, 4000),
)
def test_every_record_is_one_line_of_strict_json_within_the_limit(body, error_text, model, attributes, limit):
    """Whatever is in it: hostile texts, numbers JSON does not have, a session with a thousand attributes."""
    file = io.StringIO()
    logger = JsonLogger(file, content="full", limit=limit)
    request = make_request(model=model, attributes=Attributes(attributes), temperature=float("nan"))
    logger.on_request_sent(request, json.dumps(body))
    logger.on_error(ValueError(error_text), make_error_context(request=request))
    written = file.getvalue().split("\n")
    assert (len(written), written[2]) == (3, "")
    for line in written[:2]:
        assert len(line) <= limit
        assert line.isascii()
        assert line.isprintable()
        assert json.loads(line, parse_constant=pytest.fail)["call_id"] == request.call_id


def test_a_long_body_is_cut_and_says_so(file):
    body = {"messages": [{"role": "user", "content": "x" * 50_000}]}
    JsonLogger(file, content="full", limit=2000).on_request_sent(make_request(), json.dumps(body))
    (line,) = lines(file)
    assert line["cut"] is True
    assert line["request"]["messages"][0]["content"].endswith("x…[+49000]")


def test_a_body_too_deep_to_be_cut_costs_only_itself(file):
    JsonLogger(file, content="full").on_request_sent(make_request(call_id="c"), "[" * 900 + "1e999" + "]" * 900)
    JsonLogger(file, content="full").on_request_sent(make_request(call_id="c"), "[" * 100_000)
    assert [(line["call_id"], line["model"], "request" in line) for line in lines(file)] == [
        ("c", "gpt-4o-mini", False)
    ] * 2


# --- Files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_for_its_owner_only(tmp_path):
    path = tmp_path / "calls.jsonl"
    before = os.umask(0)
    try:
        logger = JsonLogger(path)
    finally:
        os.umask(before)
    logger.on_request_sent(make_request(call_id="c"), "")
    logger.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [line["call_id"] for line in lines_of(path)] == ["c"]


def test_a_file_is_rotated_by_size(tmp_path):
    path = tmp_path / "calls.jsonl"
    logger = JsonLogger(path, max_bytes=1000, backups=2)
    for number in range(40):
        logger.on_request_sent(make_request(call_id=str(number)), "")
    logger.close()
    files = [tmp_path / name for name in ("calls.jsonl.2", "calls.jsonl.1", "calls.jsonl")]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.stat().st_size <= 1000 and stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    kept = [int(line["call_id"]) for line in lines_of(*files)]
    assert kept == list(range(40 - len(kept), 40))


def test_a_file_that_others_rotated_is_left_to_them(tmp_path):
    path = tmp_path / "calls.jsonl"
    logger = JsonLogger(path)
    logger.on_request_sent(make_request(call_id="before"), "")
    path.rename(tmp_path / "moved")
    logger.on_request_sent(make_request(call_id="after"), "")
    logger.close()
    assert [line["call_id"] for line in lines_of(tmp_path / "moved", path)] == ["before", "after"]


def _write_many(path, name, count):
    logger = JsonLogger(path, content="full", limit=40_000, max_bytes=200_000, backups=200)
    body = json.dumps({"text": name * 20_000})
    for number in range(count):
        logger.on_request_sent(make_request(call_id=f"{name}{number}"), body)
    logger.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no locks on directories")
def test_processes_share_one_file(tmp_path):
    """Long lines of several processes, rotated meanwhile: none is broken, lost or doubled."""
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "calls.jsonl"
    writers = [context.Process(target=_write_many, args=(path, name, 100)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    told = sorted(line["call_id"] for line in lines_of(*tmp_path.iterdir()))
    assert told == sorted(f"{name}{number}" for name in "abc" for number in range(100))
    assert len(list(tmp_path.iterdir())) > 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # earlier tests left threads that wait for work
def test_a_forked_child_has_a_file_of_its_own_if_it_is_so_named(tmp_path):
    logger = JsonLogger(tmp_path / "calls-{pid}.jsonl")
    child = os.fork()
    if child == 0:
        try:
            logger.on_request_sent(make_request(call_id="child"), "")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    logger.on_request_sent(make_request(call_id="parent"), "")
    logger.close()
    files = {path.name: [line["call_id"] for line in lines_of(path)] for path in tmp_path.iterdir()}
    assert files == {f"calls-{os.getpid()}.jsonl": ["parent"], f"calls-{child}.jsonl": ["child"]}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_is_counted_and_prints_nothing(client, expected_logs, capfd):
    logger = JsonLogger(Path("/dev/full"), max_bytes=0)
    with pytest.raises(OSError, match="No space left"):
        logger.on_request_sent(make_request(), "")
    otel_llm_callback.instrument(logger, delivery="inline")
    client.chat.completions.create(**ASKED)
    (registered,) = otel_llm_callback.status().callbacks
    assert (registered.failed, capfd.readouterr().err.count("Logging error")) == (2, 0)
    assert [record.levelname for record in expected_logs] == ["ERROR"]
    assert SECRET not in expected_logs[0].getMessage()
    logger.close()


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        ("calls.jsonl", {}, ValueError, r"for a file pass pathlib.Path\('calls.jsonl'\)"),
        ("logs/calls", {}, ValueError, "name of a logger"),
        (None, {}, TypeError, "target is NoneType; allowed are a logger"),
        (Path("/no/such/directory/calls"), {}, FileNotFoundError, "/no/such"),
        ("calls", {"content": "some"}, ValueError, "allowed are 'full', 'redacted', 'none'"),
        ("calls", {"limit": 100}, ValueError, "from 512"),
        ("calls", {"backups": 0}, ValueError, "from 1"),
    ],
)
def test_what_is_wrong_is_said_at_once(target, options, error, message):
    with pytest.raises(error, match=message):
        JsonLogger(target, **options)


# --- Standard logging -------------------------------------------------------------------------------------------------


def test_events_are_standard_records(logger):
    logger.addHandler(kept := Kept())
    callback = JsonLogger(logger, chunks=True)
    request = make_request()
    callback.on_request_sent(request, "")
    callback.on_stream_chunk(make_chunk(request=request), 0)
    callback.on_response_received(make_response(request=request), "")
    callback.on_error(ValueError(SECRET), make_error_context(request=request))
    callback.on_error(KeyboardInterrupt(), make_error_context(request=request, outcome="cancelled"))
    assert [(record.levelname, record.getMessage()) for record in kept.records] == [
        ("INFO", "request sent chat gpt-4o-mini"),
        ("DEBUG", "stream chunk chat gpt-4o-mini"),
        ("INFO", "response received chat gpt-4o-mini"),
        ("ERROR", "error chat gpt-4o-mini error RateLimitError"),
        ("WARNING", "error chat gpt-4o-mini cancelled RateLimitError"),
    ]
    assert {record.llm["call_id"] for record in kept.records} == {request.call_id}


def test_a_level_that_is_off_costs_no_record(logger):
    logger.addHandler(kept := Kept())
    logger.setLevel(logging.WARNING)
    JsonLogger(logger).on_request_sent(make_request(), "")
    assert kept.records == []


def test_a_model_name_cannot_forge_a_line(logger):
    out = io.StringIO()
    logger.addHandler(logging.StreamHandler(out))
    JsonLogger(logger).on_request_sent(make_request(model="m\nERROR forged\x1b[2J"), "")
    assert out.getvalue() == "request sent chat m\\nERROR forged\\x1b[2J\n"


def test_a_name_is_that_of_a_logger(caplog):
    with caplog.at_level(logging.INFO, "llm_calls"):
        JsonLogger().on_request_sent(make_request(call_id="default"), "")
        JsonLogger("llm_calls.other").on_request_sent(make_request(call_id="named"), "")
    assert [(record.name, record.llm["call_id"]) for record in caplog.records] == [
        ("llm_calls", "default"),
        ("llm_calls.other", "named"),
    ]


def test_structlog_renders_the_fields(logger):
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logger.addHandler(handler)
    JsonLogger(logger).on_request_sent(make_request(call_id="c"), "")
    (line,) = lines(out)
    assert (line["event"], line["level"]) == ("request sent chat gpt-4o-mini", "info")
    assert (line["llm"]["event"], line["llm"]["call_id"]) == ("request_sent", "c")


def test_python_json_logger_renders_the_fields(logger):
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter("{levelname}{message}", style="{"))
    logger.addHandler(handler)
    JsonLogger(logger).on_request_sent(make_request(call_id="c"), "")
    (line,) = lines(out)
    assert (line["levelname"], line["message"]) == ("INFO", "request sent chat gpt-4o-mini")
    assert (line["llm"]["event"], line["llm"]["call_id"]) == ("request_sent", "c")


# --- Loops ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root_handler():
    """Put a handler on the root logger, for this test."""
    root = logging.getLogger()
    put = []

    def add(handler):
        put.append(handler)
        root.addHandler(handler)

    yield add
    for handler in put:
        root.removeHandler(handler)


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_a_handler_that_raises_everywhere_hurts_nobody(client, root_handler, expected_logs, delivery):
    """The record is lost and counted; what we say of that fails in the same handler, and goes no further either."""

    class Broken(logging.Handler):
        def emit(self, record):
            if record.name.startswith(("llm_calls", "otel_llm_callback")):
                raise OSError(SECRET)

    root_handler(Broken())
    logging.getLogger("llm_calls").setLevel(logging.INFO)
    try:
        otel_llm_callback.instrument(JsonLogger(), delivery=delivery)
        answers = [client.chat.completions.create(**ASKED).choices[0].finish_reason for _ in range(2)]
        assert otel_llm_callback.flush(10)
    finally:
        logging.getLogger("llm_calls").setLevel(logging.NOTSET)
    (registered,) = otel_llm_callback.status().callbacks
    assert (answers, registered.failed) == (["stop", "stop"], 4)


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_a_handler_that_calls_the_api_and_logs_makes_no_loop(client, logger, delivery):
    """What an exporter of logs does on its way, calls and records of its own included, is not told again."""

    class Exporter(logging.Handler):
        def __init__(self):
            super().__init__()
            self.told = []

        def emit(self, record):
            self.told.append(record.getMessage())
            if hasattr(record, "llm"):
                client.chat.completions.create(**ASKED)
                logger.info("exported")

    logger.addHandler(exporter := Exporter())
    otel_llm_callback.instrument(JsonLogger(logger), delivery=delivery)
    client.chat.completions.create(**ASKED)
    assert otel_llm_callback.flush(10)
    assert exporter.told == [
        "request sent chat gpt-4o-mini",
        "exported",
        "response received chat gpt-4o-mini",
        "exported",
    ]


@pytest.mark.filterwarnings("ignore:.*LoggingHandler.*:DeprecationWarning")
@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_records_may_go_to_otlp_log_export(client, logger, delivery):
    """The SDK's handler takes the fields along, and whoever exports them may fail and say so to the same logger."""
    logs = pytest.importorskip("opentelemetry.sdk._logs")
    export = pytest.importorskip("opentelemetry.sdk._logs.export")
    exported = []
    if not hasattr(export, "LogRecordExporter"):
        pytest.skip("needs a newer SDK")

    class Complaining(export.LogRecordExporter):
        def export(self, batch):
            exported.extend(item.log_record for item in batch)
            if exported[-1].body != "not exported":
                logger.error("not exported")
            return export.LogRecordExportResult.FAILURE

        def shutdown(self):
            pass

        def force_flush(self, timeout_millis=0):
            return True

    provider = logs.LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(export.SimpleLogRecordProcessor(Complaining()))
    logger.addHandler(logs.LoggingHandler(logger_provider=provider))
    otel_llm_callback.instrument(JsonLogger(logger), delivery=delivery)
    client.chat.completions.create(**ASKED)
    assert otel_llm_callback.flush(10)
    provider.shutdown()
    told = [(record.body, dict(record.attributes).get("llm", {}).get("event")) for record in exported]
    assert [one for one in told if one != ("not exported", None)] == [
        ("request sent chat gpt-4o-mini", "request_sent"),
        ("response received chat gpt-4o-mini", "response_received"),
    ]
