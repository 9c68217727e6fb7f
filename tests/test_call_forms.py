"""However the client is called: the caller cannot tell that we are there, and callbacks are told the whole story."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import re
import threading
import types
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pydantic
import pytest
from api_forms import exists, no_deprecation, takes
from api_scenarios import API_SCENARIOS, OUTPUT_ITEMS
from forms import MODEL, Scene, http_library, legacy_httpx
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from openai._base_client import AsyncPaginator, PageInfo
from openai._legacy_response import LegacyAPIResponse
from openai._response import BaseAPIResponse
from openai.pagination import SyncPage
from opentelemetry import trace
from scenarios import (
    SCENARIOS,
    STREAM,
    TOOL_CALLS,
    Chunk,
    Failed,
    Received,
    own_answer,
    told,
    tool_delta,
)

import otel_llm_callback
from otel_llm_callback import _faults
from otel_llm_callback._jobs import JOBS, TURNS
from otel_llm_callback.testing import (
    JsonReply,
    RecordingCallback,
    ScriptedServer,
    StreamReply,
    TelemetryCollector,
    chat_chunk,
    chat_chunks,
    chat_completion,
    check_grammar,
    embedding_list,
    image_events,
    image_list,
    response_events,
    response_object,
    search_page,
    text_completion,
    text_completion_chunks,
    video,
)

no_legacy_client = pytest.mark.skipif(find_spec("httpx") is None, reason="needs httpx, which openai 3 comes without")

every_form = pytest.mark.parametrize(
    ("scenario", "asynchronous"),
    [
        pytest.param(
            scenario,
            asynchronous,
            id=f"{scenario.name} ({'async' if asynchronous else 'sync'})",
            marks=no_legacy_client if scenario.client is legacy_httpx else (),
        )
        for scenario in (*SCENARIOS, *API_SCENARIOS)
        for asynchronous in (False, True)
        if (scenario.asynchronous if asynchronous else scenario.sync) is not None
    ],
)


@every_form
def test_caller_sees_the_same(scenario, asynchronous):
    """Results, chunks, exceptions, arguments and what is sent are the same with instrumentation off and on."""
    off, on = run(scenario, asynchronous, False), run(scenario, asynchronous, True)
    assert off.error_type is scenario.raises
    assert off.arguments_before == off.arguments_after
    assert on.seen() == off.seen()


@every_form
def test_callbacks_are_told_the_whole_story(scenario, asynchronous):
    """Each call tells exactly the events of its scenario, in order."""
    told_of = run(scenario, asynchronous, True).told
    assert sorted(told_of, key=repr) == sorted(expected(scenario), key=repr)


@every_form
def test_every_call_has_one_span(scenario, asynchronous):
    """Each call makes one span, which is an error if and only if the call failed."""
    done = run(scenario, asynchronous, True)
    assert sorted(map(span_facts, done.spans), key=repr) == sorted(map(expected_span, expected(scenario)), key=repr)


# --- Spans and their surroundings -------------------------------------------------------------------------------------


async def test_concurrent_calls_keep_their_parents(server, aclient, telemetry, instrumented):
    """Twenty tasks, each with a span of its own: the call's span is the child of its task's."""
    server.reply = own_answer
    tracer = telemetry.tracer_provider.get_tracer("app")

    async def work(number):
        with tracer.start_as_current_span(f"call-{number}"):
            messages = [{"role": "user", "content": f"call-{number}"}]
            async for _ in await aclient.chat.completions.create(model=MODEL, messages=messages, stream=True):
                await asyncio.sleep(0)

    await asyncio.gather(*map(work, range(20)))
    spans = {span.context.span_id: span for span in telemetry.spans()}
    calls = [span for span in spans.values() if span.kind.name == "CLIENT"]
    parents = {span.attributes["gen_ai.response.id"]: spans[span.parent.span_id].name for span in calls}
    assert parents == {f"call-{number}": f"call-{number}" for number in range(20)}


def test_span_is_current_only_while_the_request_is_in_flight(server, client, telemetry, instrumented):
    """HTTP spans nest in it; what the application does with an open stream does not."""
    server.reply = lambda request: STREAM
    sending = []
    prepare = client._prepare_request
    client._prepare_request = lambda request: sending.append(trace.get_current_span()) or prepare(request)
    outside = trace.get_current_span()
    around = []
    with client.chat.completions.create(model=MODEL, messages=[], stream=True) as chunks:
        around.extend(trace.get_current_span() for _ in chunks)
    around.append(trace.get_current_span())
    (span,) = telemetry.spans()
    assert [each.get_span_context() for each in sending] == [span.get_span_context()]
    assert around == [outside] * 7


# --- Bodies and pages ------------------------------------------------------------------------------------------------


class Halves:
    """Speech whose second half the server sends only once the client says that it has the first."""

    def __init__(self):
        self.has_first = threading.Event()

    def __call__(self, request):
        return StreamReply(self.parts(), done=False, headers={"content-type": "audio/mpeg"})

    def parts(self):
        yield bytes(1024)
        yield b"late" if self.has_first.wait(5) else b"never asked for"


SPEAK = {"model": "tts-1", "voice": "alloy", "input": "hello"}


def test_speech_is_not_read_ahead(server, client, recorder, instrumented):
    """The caller has the first half before the second is made; the call ends when the body does."""
    server.reply = halves = Halves()
    with client.audio.speech.with_streaming_response.create(**SPEAK) as answer:
        parts = answer.iter_bytes(1024)
        first = next(parts)
        told_so_far = [event.name for event in recorder.events]
        halves.has_first.set()
        rest = list(parts)
    assert (first, rest, told_so_far) == (bytes(1024), [b"late"], ["request_sent"])
    (response,) = recorder.responses
    assert (response.outcome, response.request.operation, response.usage) == ("completed", "speech", None)


async def test_speech_is_not_read_ahead_async(server, aclient, recorder, instrumented):
    """The same for an asynchronous client."""
    server.reply = halves = Halves()
    async with aclient.audio.speech.with_streaming_response.create(**SPEAK) as answer:
        parts = answer.iter_bytes(1024)
        first = await anext(parts)
        told_so_far = [event.name for event in recorder.events]
        halves.has_first.set()
        rest = [part async for part in parts]
    assert (first, rest, told_so_far) == (bytes(1024), [b"late"], ["request_sent"])
    assert [response.outcome for response in recorder.responses] == ["completed"]


@pytest.mark.skipif(not exists("vector_stores.search"), reason="this release of openai has no such method")
async def test_async_pages_stay_what_they_are(aclient, recorder, instrumented):
    """The SDK's paginator is handed out before anything is sent; it can be awaited and iterated, each time a call."""
    pages = aclient.vector_stores.search("vs_1", query="cats")
    assert (type(pages), recorder.events) == (AsyncPaginator, [])
    page = await pages
    found = [item.file_id async for item in aclient.vector_stores.search("vs_1", query="cats")]
    assert [item.file_id for item in page.data] == found == ["file-1"]
    assert [request.data_source_id for request in recorder.requests] == ["vs_1", "vs_1"]


@pytest.mark.skipif(not takes("responses.retrieve", "stream"), reason="pages of this release are made in another way")
def test_each_page_is_a_call(server, client, recorder, instrumented, monkeypatch):
    """If a search has a second page, fetching it is a call of its own, told like the first."""

    def next_page(page):
        return PageInfo(json={"after": "file-1"}) if page.data[0].file_id == "file-1" else None

    monkeypatch.setattr(SyncPage, "next_page_info", next_page)
    pages = iter(
        [search_page("a"), {**search_page("b"), "data": [{**search_page("b")["data"][0], "file_id": "file-2"}]}]
    )
    server.reply = lambda request: JsonReply(next(pages))
    assert [item.file_id for item in client.vector_stores.search("vs_1", query="cats")] == ["file-1", "file-2"]
    check_grammar(recorder.events)
    assert [response.request.operation for response in recorder.responses] == ["retrieval", "retrieval"]


# --- Odd payloads, more of them than anyone could write down ----------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 10**20) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PAYLOADS = [
    chat_completion("Hello", usage=(1, 2), tool_calls=TOOL_CALLS),
    [
        *chat_chunks(["Hello"], usage=(1, 2)),
        tool_delta(0, "{}", call_id="call_1"),
        {**chat_chunks(["Hello"])[1], "usage": None},
    ],
]
OTHER_PAYLOADS = {
    "responses": [
        response_object("Hello", output=[*OUTPUT_ITEMS, *response_object("Hello")["output"]]),
        response_object(status="failed"),
        response_object(status="incomplete"),
        response_events(["Hello"]),
        response_events(["Hello"], status="failed"),
    ],
    "completions": [text_completion("Hello", choices=2), text_completion_chunks(["Hello"], usage=(1, 2))],
    "images": [image_list(), *([image_events()] if takes("images.generate", "stream") else [])],
    "embeddings": [embedding_list()],
    "videos": [video(status="failed")],
}
CALLS = {
    "chat": lambda client, **more: client.chat.completions.create(model=MODEL, messages=[], **more),
    "responses": lambda client, **more: client.responses.create(model=MODEL, input="a", tools=[{}], **more),
    "completions": lambda client, **more: client.completions.create(model=MODEL, prompt="a", **more),
    "images": lambda client, **more: client.images.generate(model=MODEL, prompt="a", **more),
    "embeddings": lambda client, **_: client.embeddings.create(model=MODEL, input="a", encoding_format="float"),
    "videos": lambda client, **_: client.videos.create(model="sora-2", prompt="a"),
}


@st.composite
def odd_payloads(draw, payloads=PAYLOADS):
    """An answer or the events of a stream, with one to four places changed or missing."""
    payload = {"payload": json.loads(json.dumps(draw(st.sampled_from(payloads))))}
    for _ in range(draw(st.integers(1, 4))):
        left = [place for place in places(payload) if place[0] is not payload]
        if not left:
            break
        owner, key = draw(st.sampled_from(left))
        if draw(st.booleans()):
            owner[key] = draw(JSON_VALUES)
        else:
            del owner[key]
    return payload["payload"]


def places(value):
    """Every place in a JSON value where something stands."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from places(inner)


@settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(payload=odd_payloads())
@example(payload=[chat_chunk({}, finish_reason={"": None})])
@example(payload={"choices": [{"message": {"tool_calls": 1}}]})
@example(payload=[chat_chunk({"tool_calls": 1}), chat_chunk({"tool_calls": [1]}), chat_chunk({"content": ["a"]})])
@example(payload=[{"choices": [{"index": {}, "delta": {"content": "a"}, "finish_reason": "stop"}]}])
def test_odd_payloads_reach_the_caller_unchanged(payload, server, client, recorder, telemetry, reports):
    """Whatever a server sends, the caller gets the same; the call is told in order, without a fuss, in proper types."""
    assert_odd_payload_is_harmless("chat", payload, server, client, recorder, telemetry, reports)


@pytest.mark.parametrize("api", [api for api in OTHER_PAYLOADS if api != "videos" or exists("videos.create")])
@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(draws=st.data())
def test_odd_payloads_of_every_api_reach_the_caller_unchanged(api, draws, server, client, recorder, telemetry, reports):
    """The same for the other APIs."""
    payload = draws.draw(odd_payloads(OTHER_PAYLOADS[api]))
    assert_odd_payload_is_harmless(api, payload, server, client, recorder, telemetry, reports)


def assert_odd_payload_is_harmless(api, payload, server, client, recorder, telemetry, reports):
    streamed = isinstance(payload, list)
    server.reply = lambda request: StreamReply(payload) if streamed else JsonReply(payload)

    def look():
        try:
            with no_deprecation():
                answer = CALLS[api](client, stream=True) if streamed else CALLS[api](client)
            return plain(list(answer)) if streamed else plain(answer)
        except Exception as error:
            return plain(error)

    def volatile(seen):
        return re.sub(r"req_\d+", "req", repr(seen))

    off = look()
    recorder.clear()
    reports.clear()
    _faults.forget()
    providers = {"tracer_provider": telemetry.tracer_provider, "meter_provider": telemetry.meter_provider}
    otel_llm_callback.instrument(recorder, delivery="inline", capture_content="span_and_event", **providers)
    try:
        on = look()
        assert otel_llm_callback.flush(5)
    finally:
        otel_llm_callback.uninstrument()
    assert volatile(on) == volatile(off)
    assert len(recorder.calls()) == 1
    check_grammar(recorder.events)
    assert [record.getMessage() for record in reports] == []
    assert [name for response in recorder.responses for name in badly_typed(response)] == []


def badly_typed(response):
    """The facts whose value is of another type than the class declares."""
    usage = dataclasses.asdict(response.usage) if response.usage is not None else {}
    integers = {"created": response.created, **usage}
    texts = {
        "id": response.id,
        "model": response.model,
        "service_tier": response.service_tier,
        "system_fingerprint": response.system_fingerprint,
        "status": response.status,
        "failure": response.failure,
    }
    bad = [name for name, value in integers.items() if type(value) not in (int, type(None))]
    bad += [name for name, value in texts.items() if type(value) not in (str, type(None))]
    return bad + ["finish_reasons" for reason in response.finish_reasons if type(reason) is not str]


# --- What is expected -------------------------------------------------------------------------------------------------


def expected(scenario):
    """The events of each call; where calls run at once, ``<n>`` is the number of the call."""
    alike = [tuple(numbered(event, str(number)) for event in scenario.events) for number in range(scenario.calls)]
    return [*alike, *scenario.more]


def numbered(event, number):
    if isinstance(event, Chunk):
        return event._replace(text=event.text.replace("<n>", number))
    if isinstance(event, Received) and event.id is not None:
        return event._replace(id=event.id.replace("<n>", number))
    return event


def span_facts(span):
    attributes = span.attributes
    outcome, error = attributes.get("llm_callback.outcome"), attributes.get("error.type")
    return span.name, span.kind.name, span.status.status_code.name, outcome, error


def expected_span(events):
    sent, end = events[0], events[-1]
    failed = isinstance(end, Failed)
    name = f"{sent.operation} {sent.model}" if sent.model else sent.operation
    return name, "CLIENT", "ERROR" if failed else "UNSET", end.outcome, end.error if failed else None


# --- Running a scenario -----------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What came of one run, as plain data wherever two runs are to be compared."""

    result: object = None
    error_type: type[BaseException] | None = None
    error: object = None
    arguments_before: object = None
    arguments_after: object = None
    requests: object = None
    told: Any = None
    spans: Any = None

    def seen(self):
        """What caller and server saw."""
        return {
            "result": self.result,
            "error": self.error,
            "arguments": self.arguments_after,
            "requests": self.requests,
        }


@functools.cache
def run(scenario, asynchronous, instrumented):
    """Run a scenario once; the tests above look at different sides of the same run."""
    recorder = RecordingCallback()
    TURNS._seen.clear()
    JOBS._open.clear()  # what another scenario left under way is not this one's
    done = Run(arguments_before=without_generators(scenario.arguments()))
    with ScriptedServer(script_of(scenario.reply)) as server, TelemetryCollector() as telemetry:

        def start():
            if instrumented:
                otel_llm_callback.instrument(
                    recorder,
                    delivery="inline",
                    tracer_provider=telemetry.tracer_provider,
                    meter_provider=telemetry.meter_provider,
                )

        try:
            if asynchronous:
                asyncio.run(aplay(scenario, server, start, done))
            else:
                play(scenario, server, start, done)
            if instrumented:
                assert otel_llm_callback.flush(5)
        finally:
            if instrumented:
                otel_llm_callback.uninstrument()
        done.requests = sorted(map(request_facts, server.requests), key=repr)
        done.told, done.spans = told(recorder), telemetry.spans()
    return done


def play(scenario, server, start, done):
    if scenario.keep is None:
        start()
    with scenario.client(server.url, False) as client:
        kept = None
        if scenario.keep is not None:
            kept = scenario.keep(client)
            start()
        scene = Scene(client, scenario.arguments(), server, kept)
        try:
            done.result = plain(scenario.sync(scene))
        except BaseException as error:
            done.error_type, done.error = kind_of(error, scenario), plain(error)
        done.arguments_after = without_generators(scene.arguments)


async def aplay(scenario, server, start, done):
    if scenario.keep is None:
        start()
    async with scenario.client(server.url, True) as client:
        kept = None
        if scenario.keep is not None:
            kept = scenario.keep(client)
            start()
        scene = Scene(client, scenario.arguments(), server, kept)
        try:
            done.result = plain(await scenario.asynchronous(scene))
        except BaseException as error:
            done.error_type, done.error = kind_of(error, scenario), plain(error)
        done.arguments_after = without_generators(scene.arguments)


def script_of(reply):
    return (lambda request: reply) if isinstance(reply, (JsonReply, StreamReply)) else reply


def kind_of(error, scenario):
    """The class the scenario names, if the exception is one of it; else its own."""
    return scenario.raises if scenario.raises and isinstance(error, scenario.raises) else type(error)


def without_generators(arguments):
    """A generator can be compared only by what the server got."""
    return {name: value for name, value in arguments.items() if not isinstance(value, types.GeneratorType)}


# --- Plain data -------------------------------------------------------------------------------------------------------

# Made anew by the client for each call, or different because the server listens elsewhere.
VOLATILE = {"host", "idempotency-key"}


def request_facts(request):
    headers = {name: value for name, value in request.headers.items() if name not in VOLATILE}
    body = request.body
    if found := re.search("boundary=(.+)", headers.get("content-type", "")):  # a random text for each form that is sent
        body = body.replace(found[1].encode(), b"boundary")
        headers["content-type"] = headers["content-type"].replace(found[1], "boundary")
    return request.method, request.path, request.query, body, request.attempt, headers, sorted(request.headers)


def plain(value):  # noqa: PLR0911 - one line per kind
    """Everything public about *value*, as data two runs can be compared by."""
    if isinstance(value, (str, bytes, int, float, type(None), type)):
        return value
    if isinstance(value, pydantic.BaseModel):
        extra = getattr(value, "_request_id", None)
        return kind(value), value.model_dump(warnings=False), sorted(value.model_fields_set), extra
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, BaseException):
        return kind(value), plain(list(value.args)), str(value), plain(facts_of(value))
    if isinstance(value, (LegacyAPIResponse, BaseAPIResponse)):
        facts = value.status_code, value.request_id, value.is_closed, value.retries_taken, value.http_version
        return kind(value), facts, plain_headers(value.headers), value.method, value.url.path, repr(value)
    if isinstance(value, http_library.Response):
        return kind(value), value.status_code, plain_headers(value.headers), value.text, value.is_closed
    raise TypeError(f"a form returned {value!r}; teach plain() to compare it")


def kind(value):
    return f"{value.__class__.__module__}.{value.__class__.__qualname__}"


def facts_of(error):
    """The public attributes of an exception of the SDK, and what it was raised from."""
    names = ("message", "body", "code", "param", "type", "status_code", "request_id", "completion")
    facts = {name: getattr(error, name) for name in names if hasattr(error, name)}
    if error.__cause__ is not None:
        facts["cause"] = (kind(error.__cause__), str(error.__cause__))
    if error.__context__ is not None:
        facts["context"] = kind(error.__context__)
    return facts


def plain_headers(headers):
    return {name.lower(): value for name, value in headers.items() if name.lower() not in {"date", "server"}}
