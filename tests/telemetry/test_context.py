"""Whose child is what: the span is current while the request is in flight and at no other time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import subprocess
import sys
import textwrap

import openai
import pytest
from opentelemetry import metrics, trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, get_current, set_value
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from telemetry.facts import answered, facts, request_attributes

import otel_llm_callback
from otel_llm_callback.testing import JsonReply, RecordingCallback, StreamReply, TelemetryCollector, chat_chunks

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}


def by_name(telemetry):
    """The finished spans by name; names are unique in these tests."""
    return {span.name: span for span in telemetry.spans()}


def parent_of(span):
    return span.parent.span_id if span.parent is not None else None


def instrument(telemetry, *callbacks, **settings):
    otel_llm_callback.instrument(
        *callbacks,
        delivery="inline",
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        **settings,
    )


# --- Current while in flight ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_http_span_is_a_child_of_ours(server, telemetry, instrumented, stream):
    """What the HTTP layer records while the request is in flight lies under the span of the call."""
    tracer = telemetry.tracer_provider.get_tracer("http")

    def record(_):
        tracer.start_span("POST").end()

    with (
        openai.DefaultHttpxClient(event_hooks={"request": [record]}) as http_client,
        openai.OpenAI(api_key="k", base_url=server.url, http_client=http_client) as client,
    ):
        answer = client.chat.completions.create(**ASKED, stream=stream)
        if stream:
            list(answer)
    spans = by_name(telemetry)
    assert parent_of(spans["POST"]) == spans["chat gpt-4o-mini"].context.span_id
    assert parent_of(spans["chat gpt-4o-mini"]) is None


@pytest.mark.parametrize("stream", [False, True])
async def test_http_span_is_a_child_of_ours_in_async_code(server, telemetry, instrumented, stream):
    """The same for the async client."""
    tracer = telemetry.tracer_provider.get_tracer("http")

    async def record(_):
        tracer.start_span("POST").end()

    async with (
        openai.DefaultAsyncHttpxClient(event_hooks={"request": [record]}) as http_client,
        openai.AsyncOpenAI(api_key="k", base_url=server.url, http_client=http_client) as client,
    ):
        answer = await client.chat.completions.create(**ASKED, stream=stream)
        if stream:
            _ = [chunk async for chunk in answer]
    spans = by_name(telemetry)
    assert parent_of(spans["POST"]) == spans["chat gpt-4o-mini"].context.span_id


def test_each_retry_is_a_child_of_the_one_span(server, telemetry, instrumented):
    """Three attempts are three HTTP spans under one span of ours."""
    tracer = telemetry.tracer_provider.get_tracer("http")
    server.reply = lambda request: JsonReply({}, 429, {"retry-after-ms": "1"}) if request.attempt < 2 else None
    with (
        openai.DefaultHttpxClient(event_hooks={"request": [lambda _: tracer.start_span("POST").end()]}) as http_client,
        openai.OpenAI(api_key="k", base_url=server.url, http_client=http_client) as client,
    ):
        client.chat.completions.create(**ASKED)
    *attempts, call = telemetry.spans()
    assert [parent_of(span) for span in attempts] == [call.context.span_id] * 3


# --- And at no other time ---------------------------------------------------------------------------------------------


def test_reading_a_stream_leaves_the_callers_context_alone(client, telemetry, instrumented):
    """What the caller records while it reads a stream, and after, belongs to the caller's span."""
    tracer = telemetry.tracer_provider.get_tracer("app")
    with tracer.start_as_current_span("app") as app:
        context = get_current()
        seen = []
        stream = client.chat.completions.create(**ASKED, stream=True)
        seen.append(get_current() is context)
        for _ in stream:
            seen.append(get_current() is context)
            tracer.start_span("work").end()
        seen.append(get_current() is context)
    assert set(seen) == {True}
    assert {parent_of(span) for span in telemetry.spans() if span.name == "work"} == {app.context.span_id}


async def test_reading_an_async_stream_leaves_the_callers_context_alone(aclient, telemetry, instrumented):
    """The same for the async client, and when reading stops half way."""
    tracer = telemetry.tracer_provider.get_tracer("app")
    with tracer.start_as_current_span("app"):
        context = get_current()
        seen = []
        async with await aclient.chat.completions.create(**ASKED, stream=True) as stream:
            async for _ in stream:
                seen.append(get_current() is context)
                if len(seen) == 3:
                    break
        seen.append(get_current() is context)
    assert seen == [True] * 4


def test_failure_leaves_the_callers_context_alone(server, client, telemetry, instrumented):
    """Nor does an error leave our span current."""
    server.reply = lambda _: JsonReply({}, 400)
    context = get_current()
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**ASKED)
    assert get_current() is context


def test_parent_goes_on_after_our_span_ends(client, telemetry, instrumented):
    """The caller's span still records after our child has ended, and nothing was added to it."""
    tracer = telemetry.tracer_provider.get_tracer("app")
    with tracer.start_as_current_span("app", attributes={"a": 1}) as app:
        client.chat.completions.create(**ASKED)
        assert app.is_recording()
    span = by_name(telemetry)["app"]
    assert (span.name, dict(span.attributes), span.events, span.status.is_unset) == ("app", {"a": 1}, (), True)
    assert parent_of(by_name(telemetry)["chat gpt-4o-mini"]) == span.context.span_id


def test_parent_goes_on_after_an_error(server, client, telemetry, instrumented):
    """An error that the caller handles is not an error of the caller's span."""
    server.reply = lambda _: JsonReply({}, 400)
    tracer = telemetry.tracer_provider.get_tracer("app")
    with tracer.start_as_current_span("app") as app:
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**ASKED)
        assert app.is_recording()
    span = by_name(telemetry)["app"]
    assert (span.events, span.status.is_unset) == ((), True)


async def test_concurrent_streams_keep_their_own_parents(server, aclient, telemetry, instrumented):
    """Twenty streams read at once: each call is a child of its task's span, which stays current throughout."""
    tracer = telemetry.tracer_provider.get_tracer("app")
    server.reply = lambda _: StreamReply(chat_chunks(["a", "b", "c"]), delay_s=0.002)

    async def read(number):
        with tracer.start_as_current_span(f"task {number}") as span:
            stream = await aclient.chat.completions.create(model=str(number), messages=[], stream=True)
            async for _ in stream:
                assert trace.get_current_span() is span

    await asyncio.gather(*(read(number) for number in range(20)))
    spans = by_name(telemetry)
    assert len(spans) == 40
    for number in range(20):
        assert parent_of(spans[f"chat {number}"]) == spans[f"task {number}"].context.span_id


class _Parked:
    """A transport whose answer never comes."""

    async def handle_async_request(self, _request):
        await asyncio.get_running_loop().create_future()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None

    async def aclose(self):
        return None


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_coroutine_thrown_away_in_flight(telemetry, instrumented, elsewhere):
    """A request whose coroutine is closed, even in another context than it ran in, ends once and leaks nothing."""
    client = openai.AsyncOpenAI(api_key="k", http_client=openai.DefaultAsyncHttpxClient(transport=_Parked()))
    coroutine = client.chat.completions.create(**ASKED)
    before = get_current()
    context = contextvars.copy_context()
    context.run(coroutine.send, None)  # by now it waits for the answer
    assert context.run(trace.get_current_span).name == "chat gpt-4o-mini"
    if elsewhere:
        coroutine.close()
    else:
        context.run(coroutine.close)
        assert context.run(get_current) is before
    assert get_current() is before
    otel_llm_callback.flush()  # nothing is told from inside a coroutine that is being closed
    assert [span.attributes["llm_callback.outcome"] for span in telemetry.spans()] == ["abandoned"]


def test_callbacks_are_told_the_ids_of_the_span(client, telemetry, recorder, instrumented):
    """Trace and span id in the metadata are those of our span."""
    client.chat.completions.create(**ASKED)
    (span,) = telemetry.spans()
    (request,) = recorder.requests
    expected = (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}")
    assert (request.trace_id, request.span_id) == expected


def test_without_telemetry_callbacks_are_told_the_ids_of_the_callers_span(client, telemetry, recorder):
    """In callbacks-only mode the ids are those of the caller's span."""
    otel_llm_callback.instrument(recorder, delivery="inline", telemetry=False)
    with telemetry.tracer_provider.get_tracer("app").start_as_current_span("app") as app:
        client.chat.completions.create(**ASKED)
    (request,) = recorder.requests
    expected = (f"{app.context.trace_id:032x}", f"{app.context.span_id:016x}")
    assert (request.trace_id, request.span_id) == expected


# --- Sampling ---------------------------------------------------------------------------------------------------------


class _Noting(Sampler):
    """Keep what a sampler is shown."""

    def __init__(self):
        self.shown = []

    def should_sample(self, parent_context, trace_id, name, *rest):
        kind, attributes, *_ = rest
        self.shown.append((name, kind, dict(attributes)))
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, *rest)

    def get_description(self):
        return "noting"


def test_sampler_sees_what_the_conventions_want_at_creation(server, client):
    """Operation, provider, model and server are there when the sampler decides."""
    sampler = _Noting()
    instrument(TelemetryCollector(sampler=sampler))
    client.chat.completions.create(**ASKED)
    expected = request_attributes(server)
    assert sampler.shown == [("chat gpt-4o-mini", trace.SpanKind.CLIENT, expected)]
    assert set(expected) >= {
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "server.address",
        "server.port",
    }


class _Guarded(dict):
    """A message that the SDK can send and that counts the looks of anybody else."""

    looks = 0

    def get(self, *arguments):
        _Guarded.looks += 1
        return super().get(*arguments)


@pytest.mark.parametrize(("sampler", "looked"), [(ALWAYS_OFF, False), (ALWAYS_ON, True)], ids=["off", "on"])
def test_unsampled_span_costs_no_content(server, client, sampler, looked):
    """Where a span is not recorded no message is read and no redactor called; metrics are complete all the same."""
    telemetry, redacted = TelemetryCollector(sampler=sampler), []

    def redactor(text):
        redacted.append(text)
        return text

    instrument(telemetry, capture_content="span_only", redactor=redactor)
    _Guarded.looks = 0
    message = _Guarded(role="user", content="hi")
    client.chat.completions.create(model="gpt-4o-mini", messages=[], extra_body={"messages": [message]})
    assert server.requests[0].json["messages"] == [{"role": "user", "content": "hi"}]
    assert (_Guarded.looks > 0, redacted != []) == (looked, looked)
    assert len(telemetry.spans()) == looked
    counts = {point.name: point.count for point in telemetry.metrics() if point.name.startswith("gen_ai.")}
    assert counts == {"gen_ai.client.operation.duration": 1, "gen_ai.client.token.usage": 1}


def test_unsampled_stream_has_complete_metrics_and_callbacks(client, recorder):
    """Sampling concerns spans only."""
    telemetry = TelemetryCollector(sampler=ALWAYS_OFF)
    instrument(telemetry, recorder)
    chunks = list(client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    assert telemetry.spans() == ()
    assert {point.name: point.count for point in telemetry.metrics() if point.name.startswith("gen_ai.")} == {
        "gen_ai.client.operation.duration": 1,
        "gen_ai.client.token.usage": 1,
        "gen_ai.client.operation.time_to_first_chunk": 1,
        "gen_ai.client.operation.time_per_output_chunk": len(chunks) - 1,
    }
    assert recorder.names() == ["request_sent", *["stream_chunk"] * len(chunks), "response_received"]


# --- Providers --------------------------------------------------------------------------------------------------------


def test_global_providers_are_left_alone(client, telemetry):
    """Neither instrumenting nor calling sets or replaces a global provider."""
    before = (trace.get_tracer_provider(), metrics.get_meter_provider())
    processors = telemetry.tracer_provider._active_span_processor._span_processors
    instrument(telemetry)
    client.chat.completions.create(**ASKED)
    otel_llm_callback.uninstrument()
    assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == before
    assert trace._TRACER_PROVIDER is None
    assert telemetry.tracer_provider._active_span_processor._span_processors is processors


LATE_SDK = """
    import gc
    import openai
    from opentelemetry import metrics, trace
    import otel_llm_callback
    from otel_llm_callback._exchange import Exchange
    from otel_llm_callback.testing import RecordingCallback, ScriptedServer, TelemetryCollector

    recorder, observed = RecordingCallback(), {}

    def reply(request):
        observed[request.json["model"]] = sum(type(thing) is Exchange for thing in gc.get_objects())

    with ScriptedServer(reply) as server, openai.OpenAI(api_key="k", base_url=server.url) as client:
        otel_llm_callback.instrument(delivery="inline")
        client.chat.completions.create(model="alone", messages=[])
        registration = otel_llm_callback.register(recorder)
        client.chat.completions.create(model="with callback", messages=[])
        telemetry = TelemetryCollector()
        trace.set_tracer_provider(telemetry.tracer_provider)
        metrics.set_meter_provider(telemetry.meter_provider)
        client.chat.completions.create(model="with both", messages=[])
        registration.remove()
        client.chat.completions.create(model="with SDK", messages=[])
    print(observed)
    print([request.model for request in recorder.requests])
    print([span.name for span in telemetry.spans()])
    durations = telemetry.metrics("gen_ai.client.operation.duration")
    print({point.attributes["gen_ai.request.model"]: point.count for point in durations})
"""


def test_sdk_set_after_instrument_is_picked_up():
    """As long as there is neither SDK nor callback no call is observed; with either it is, whichever comes first.

    Global providers can be set only once, so this runs in a Python of its own.
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(LATE_SDK)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.splitlines(), done.stderr) == (
        [
            "{'alone': 0, 'with callback': 1, 'with both': 1, 'with SDK': 1}",
            "['with callback', 'with both']",
            "['chat with both', 'chat with SDK']",
            "{'with both': 1, 'with SDK': 1}",
        ],
        "",
    )


class _Raising(SpanProcessor):
    def __init__(self, *hooks):
        self.hooks = hooks

    def on_start(self, span, parent_context=None):
        if "on_start" in self.hooks:
            raise RuntimeError("on_start")

    def on_end(self, span):
        if "on_end" in self.hooks:
            raise RuntimeError("on_end")


@pytest.mark.parametrize("hook", ["on_start", "on_end"])
@pytest.mark.parametrize("stream", [False, True])
def test_raising_span_processor_never_reaches_the_caller(client, recorder, expected_logs, hook, stream):
    """Somebody's broken processor costs at most the span; callbacks are told, the caller gets the answer."""
    telemetry = TelemetryCollector()
    telemetry.tracer_provider.add_span_processor(_Raising(hook))
    instrument(telemetry, recorder)
    context = get_current()
    answer = client.chat.completions.create(**ASKED, stream=stream)
    if stream:
        list(answer)
    assert get_current() is context
    assert [response.outcome for response in recorder.responses] == ["completed"]
    what = {
        "on_start": "a span could not be started (stage span)",
        "on_end": "callback OpenTelemetryCallback.on_response_received failed",
    }[hook]
    assert [record.getMessage().splitlines()[0] for record in expected_logs] == [
        f"{what}: RuntimeError; the call is unaffected"
    ]
    assert [point.count for point in telemetry.metrics("gen_ai.client.operation.duration")] == [1]


class _Broken(SpanExporter):
    def export(self, spans):
        raise RuntimeError("no network")


def test_raising_exporter_never_reaches_the_caller(server, client, telemetry, expected_logs):
    """Nor does a broken exporter; the SDK reports it, and other exporters get the span."""
    telemetry.tracer_provider.add_span_processor(SimpleSpanProcessor(_Broken()))
    instrument(telemetry)
    client.chat.completions.create(**ASKED)
    assert [facts(span) for span in telemetry.spans()] == [answered(server)]
    assert [record.name.startswith("opentelemetry.sdk") for record in expected_logs] == [True]


# --- Silence ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def exporting():
    """What the SDK puts around its exporters: another key than the one above."""
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    yield
    detach(token)


@pytest.mark.parametrize("silence", [suppress_instrumentation, exporting, otel_llm_callback.suppress])
def test_suppressed_calls_are_told_to_required_callbacks_only(client, telemetry, recorder, silence):
    """Inside OpenTelemetry's suppression, as inside ours, there is no span, no metric and no event, but for audits."""
    required = RecordingCallback()
    instrument(telemetry, recorder)
    registration = otel_llm_callback.register(required, required=True, delivery="inline")
    with silence():
        client.chat.completions.create(**ASKED)
    registration.remove()
    assert required.names() == ["request_sent", "response_received"]
    assert (recorder.events, telemetry.spans()) == ([], ())
    assert [point.name for point in telemetry.metrics() if point.name.startswith("gen_ai.")] == []


@pytest.mark.parametrize("silence", [suppress_instrumentation, otel_llm_callback.suppress])
async def test_suppression_ends_with_its_block(aclient, telemetry, recorder, silence):
    """A stream opened inside stays silent when read outside, and the next call is observed."""
    instrument(telemetry, recorder)
    with silence():
        stream = await aclient.chat.completions.create(**ASKED, stream=True)
    _ = [chunk async for chunk in stream]
    assert (recorder.events, telemetry.spans()) == ([], ())
    await aclient.chat.completions.create(**ASKED)
    assert (recorder.names(), len(telemetry.spans())) == (["request_sent", "response_received"], 1)


def test_stream_opened_outside_is_told_to_its_end_inside_suppression(client, telemetry, recorder):
    """Suppression concerns calls that begin in the block, not those that end there."""
    instrument(telemetry, recorder)
    stream = client.chat.completions.create(**ASKED, stream=True)
    with otel_llm_callback.suppress():
        list(stream)
    assert [response.outcome for response in recorder.responses] == ["completed"]
    assert len(telemetry.spans()) == 1
