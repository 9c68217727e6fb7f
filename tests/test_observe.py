"""Calls of other clients, driven by hand: the same grammar, the same spans, the same rules."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_llm_callback import Usage, flush, instrument, observe, register, session, suppress, uninstrument, using
from otel_llm_callback.testing import RecordingCallback, check_grammar

USAGE = Usage(input_tokens=3, output_tokens=5)
MESSAGES = [{"role": "user", "content": "Who wrote Faust?"}]
ASKED = {"model": "m", "messages": MESSAGES, "temperature": 0.5}


def call_once(**over):
    """One plain call."""
    with observe(**{"provider": "x", "model": "m", **over}) as call:
        call.response(id="r-1", model="m-1", finish_reasons=("end_turn",), usage=USAGE)


def test_request_says_what_was_given_and_what_the_body_says(instrumented, recorder):
    with (
        session("s-1", user="bob", plan="pro"),
        observe(
            provider="x",
            operation="invoke_agent",
            request=ASKED,
            stream=True,
            server_address="api.example",
            server_port=8443,
        ) as call,
    ):
        assert call.request is recorder.requests[0]
    (request,) = recorder.requests
    told = (request.operation, request.provider, request.model, request.api, request.stream, request.temperature)
    assert told == ("invoke_agent", "x", "m", "custom", True, 0.5)
    assert (request.server_address, request.server_port) == ("api.example", 8443)
    assert (request.session_id, request.user_id, request.attributes) == ("s-1", "bob", {"plan": "pro"})
    assert request.context_length == len("Who wrote Faust?")
    assert json.loads(recorder.events[0].request_json) == ASKED


def test_response_says_what_was_given(instrumented, recorder):
    with observe(provider="x", model="m") as call:
        call.response(id="r-1", usage=USAGE, status_code=200, request_id="req-1")
        call.response(model="m-1", created=7, finish_reasons=["end_turn"], service_tier="fast", body={"text": "Goethe"})
    (response,) = recorder.responses
    assert (response.outcome, response.id, response.model, response.created) == ("completed", "r-1", "m-1", 7)
    assert (response.finish_reasons, response.usage, response.usage_source) == (("end_turn",), USAGE, "reported")
    assert (response.status_code, response.request_id, response.service_tier) == (200, "req-1", "fast")
    assert (response.chunk_count, response.truncated) == (None, False)
    assert recorder.names() == ["request_sent", "response_received"]
    assert json.loads(recorder.events[1].response_json) == {"text": "Goethe"}


def test_usage_may_be_the_provider_s_own_object(instrumented, recorder):
    with observe(provider="x") as call:
        call.response(usage={"input_tokens": 3, "output_tokens": 5})
    assert recorder.responses[0].usage == USAGE


def test_chunks_are_told_in_order_and_add_up(instrumented, recorder):
    with observe(provider="x", model="m", stream=True) as call:
        call.chunk("", kind="event")
        call.chunk("Hm.", kind="reasoning")
        call.chunk("Goe")
        call.chunk("the")
        call.response(id="r-1", finish_reasons=("stop",))
    assert [(str(chunk), chunk.kind) for chunk in recorder.chunks] == [
        ("", "event"),
        ("Hm.", "reasoning"),
        ("Goe", "text"),
        ("the", "text"),
    ]
    (response,) = recorder.responses
    assert (response.outcome, response.chunk_count, response.finish_reasons) == ("completed", 4, ("stop",))
    assert response.time_to_first_output_s > response.time_to_first_chunk_s > 0
    message = {"role": "assistant", "reasoning_content": "Hm.", "content": "Goethe"}
    assert json.loads(recorder.events[-1].response_json) == {
        "id": "r-1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    }
    check_grammar(recorder.events)


@pytest.mark.parametrize(("chunks", "outcome"), [((), "completed"), (("Goe", "the"), "closed_early")])
def test_block_left_without_a_response_says_what_is_known(instrumented, recorder, chunks, outcome):
    """Chunks without a response mean that somebody stopped reading."""
    with observe(provider="x", stream=bool(chunks)) as call:
        for chunk in chunks:
            call.chunk(chunk)
    (response,) = recorder.responses
    assert (response.outcome, response.truncated, response.usage, response.usage_source) == (
        outcome,
        False,
        None,
        "missing",
    )
    assert recorder.names() == ["request_sent", *["stream_chunk"] * len(chunks), "response_received"]


def test_chunks_may_come_although_nobody_asked_for_a_stream(instrumented, recorder):
    with observe(provider="x") as call:
        call.chunk("a")
        call.chunk("b")
        call.response(id="r-1")
    assert (recorder.responses[0].chunk_count, recorder.responses[0].outcome) == (2, "completed")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(ValueError("no"), "error"), (asyncio.CancelledError(), "cancelled"), (KeyboardInterrupt(), "cancelled")],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("partial", [False, True])
def test_exception_is_told_and_goes_on_untouched(instrumented, recorder, error, outcome, partial):
    with pytest.raises(type(error)) as raised, observe(provider="x") as call:  # noqa: PT012 - the block is the subject
        if partial:
            call.chunk("Goe")
        raise error
    assert raised.value is error
    (context,) = recorder.errors
    assert (str(context), context.outcome, context.error_type) == (
        f"chat {'stream' if partial else 'request'}",
        outcome,
        type(error).__name__,
    )
    assert (context.partial is not None) == partial
    assert recorder.events[-1].error is error
    check_grammar(recorder.events)


def test_asynchronous_block_is_the_same(instrumented, recorder, telemetry):
    async def ask():
        async with observe(provider="x", model="m") as call:
            await asyncio.sleep(0)
            call.response(usage=USAGE)

    async def cancel():
        async with observe(provider="x", model="m"):
            await asyncio.sleep(60)

    async def main():
        await ask()
        task = asyncio.create_task(cancel())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [response.usage for response in recorder.responses] == [USAGE]
    assert [context.outcome for context in recorder.errors] == ["cancelled"]
    assert [span.attributes["llm_callback.outcome"] for span in telemetry.spans()] == ["completed", "cancelled"]


def test_generator_that_is_closed_leaves_the_call_abandoned(instrumented, recorder, telemetry):
    """Closing may be the collector's doing, so nobody is told before the next safe moment."""
    before = trace.get_current_span()

    def answer():
        with observe(provider="x", stream=True) as call:
            call.chunk("Goe")
            yield "Goe"

    for _ in answer():
        break
    assert flush()
    assert [response.outcome for response in recorder.responses] == ["abandoned"]
    assert (trace.get_current_span(), len(telemetry.spans())) == (before, 1)


# --- Telemetry --------------------------------------------------------------------------------------------------------


def test_span_is_current_inside_the_block_only(instrumented, recorder, telemetry):
    tracer = telemetry.tracer_provider.get_tracer("test")
    before = trace.get_current_span()
    with observe(provider="x", model="m") as call:
        with tracer.start_as_current_span("inner"):
            call.response(id="r-1", usage=USAGE)
        current = trace.get_current_span().get_span_context()
        assert (f"{current.trace_id:032x}", f"{current.span_id:016x}") == (call.request.trace_id, call.request.span_id)
    assert trace.get_current_span() is before
    inner, outer = telemetry.spans()
    assert (inner.parent.span_id, outer.name) == (outer.context.span_id, "chat m")
    assert dict(outer.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "x",
        "gen_ai.request.model": "m",
        "gen_ai.response.id": "r-1",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "llm_callback.outcome": "completed",
    }
    assert [point.count for point in telemetry.metrics("gen_ai.client.operation.duration")] == [1]


def test_calls_of_a_patched_client_nest_below(server, client, instrumented, recorder, telemetry):
    with observe(provider="x", operation="invoke_agent", model="agent"):
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    below, above = telemetry.spans()
    assert (below.name, below.parent.span_id) == ("chat gpt-4o-mini", above.context.span_id)
    assert (above.name, len(recorder.requests)) == ("invoke_agent agent", 2)


@pytest.mark.parametrize("given", [False, True], ids=["chunks", "body"])
def test_content_is_shown_where_it_is_switched_on(telemetry, given):
    """The body if one was given, else what the chunks add up to."""
    instrument(tracer_provider=telemetry.tracer_provider, capture_content="span_only")
    with observe(provider="x", request=ASKED) as call:
        call.chunk("Goethe")
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Goethe"}}
        call.response(finish_reasons=("stop",), body={"choices": [choice]} if given else None)
    (span,) = telemetry.spans()
    parts = [{"type": "text", "content": "Who wrote Faust?"}]
    assert json.loads(span.attributes["gen_ai.input.messages"]) == [{"role": "user", "parts": parts}]
    assert json.loads(span.attributes["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "Goethe"}], "finish_reason": "stop"}
    ]


def test_api_says_what_shape_bodies_have(telemetry):
    """Bodies of the Responses API are read as such, its chunks as text."""
    instrument(tracer_provider=telemetry.tracer_provider, capture_content="span_only")
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Goethe"}]}
    for body in ({"status": "completed", "output": [item]}, None):
        with observe(provider="x", api="responses", request={"input": "Who?", "instructions": "Brief."}) as call:
            call.chunk("Goethe")
            call.response(id="r-1", body=body)
    for span in telemetry.spans():
        (message,) = json.loads(span.attributes["gen_ai.output.messages"])
        assert message["parts"] == [{"type": "text", "content": "Goethe"}]
        assert json.loads(span.attributes["gen_ai.system_instructions"]) == [{"type": "text", "content": "Brief."}]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("full", ["Who wrote Faust?", "Goethe", "Goethe"]),
        ("redacted", ["<16>", "", "<6>"]),
        ("none", ["", "", ""]),
    ],
)
def test_callbacks_are_given_the_content_they_declare(content, texts):
    recorder = RecordingCallback(content)
    instrument(recorder, delivery="inline", redactor=lambda text: f"<{len(text)}>")
    with observe(provider="x", request=ASKED) as call:
        call.chunk("Goethe")
        call.response(id="r-1")
    sent, chunk, received = recorder.events
    asked = json.loads(sent.request_json)["messages"][0]["content"] if sent.request_json else ""
    answered = received.response_json and json.loads(received.response_json)["choices"][0]["message"]["content"]
    assert [asked, str(chunk.chunk), answered] == texts


def test_content_is_not_even_read_for_nobody(telemetry):
    """Without a callback that takes JSON, and with capture off, the bodies are left alone."""

    class Unreadable(dict):
        def __getitem__(self, key):
            raise AssertionError(key)

    instrument(tracer_provider=telemetry.tracer_provider)
    with observe(provider="x", model="m", request={"messages": [Unreadable()]}) as call:
        call.response(body=Unreadable(content="secret"))
    assert "secret" not in str(telemetry.spans()[0].to_json())


# --- Who is told ------------------------------------------------------------------------------------------------------


def test_registered_callbacks_are_told_without_instrument(recorder):
    registration = register(recorder, delivery="inline")
    call_once()
    registration.remove()
    call_once()
    assert recorder.names() == ["request_sent", "response_received"]
    assert recorder.requests[0].trace_id is None


def test_callbacks_of_the_block_are_told(recorder):
    with using(recorder, delivery="inline"):
        call_once()
    assert recorder.names() == ["request_sent", "response_received"]


def test_nobody_told_means_nothing_done():
    with observe(provider="x") as call:
        call.chunk("a")
        call.response(id="r-1")
        assert call.request is None


def test_after_uninstrument_nobody_is_told(recorder):
    instrument(recorder, delivery="inline")
    uninstrument()
    call_once()
    assert recorder.events == []


@pytest.mark.parametrize("silence", [suppress, suppress_instrumentation], ids=["ours", "OpenTelemetry's"])
def test_suppressed_calls_are_told_to_required_callbacks_only(instrumented, recorder, telemetry, silence):
    auditor = RecordingCallback()
    register(auditor, delivery="inline", required=True)
    with silence():
        call_once()
    assert (recorder.names(), telemetry.spans()) == ([], ())
    assert auditor.names() == ["request_sent", "response_received"]


def test_calls_made_by_a_hook_are_not_told():
    class Asking:
        told = 0

        def on_request_sent(self, metadata, request_json):
            self.told += 1
            call_once()

    asking = Asking()
    register(asking, delivery="inline")
    call_once()
    assert asking.told == 1


# --- Rules ------------------------------------------------------------------------------------------------------------


def test_after_the_end_nothing_is_told(instrumented, recorder):
    with observe(provider="x") as call:
        pass
    call.chunk("late")
    call.response(id="late")
    assert (recorder.names(), recorder.responses[0].id) == (["request_sent", "response_received"], None)


def test_chunks_may_come_from_many_threads(instrumented, recorder):
    """Each is told once, with an index of its own, and the end comes after all of them."""
    with observe(provider="x", stream=True) as call:
        threads = [threading.Thread(target=lambda: [call.chunk("a") for _ in range(200)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        call.response(id="r-1")
    assert [event.index for event in recorder.events[1:-1]] == list(range(1600))
    check_grammar(recorder.events)


def test_odd_facts_are_left_out_and_never_raise(instrumented, recorder):
    """What a server sent may be anything."""
    with observe(provider="x") as call:
        call.chunk(None, kind="smell")
        call.response(id=7, created="now", model=[], finish_reasons=(None, "stop"), usage=3, status_code="200")
    assert [(str(chunk), chunk.kind) for chunk in recorder.chunks] == [("", "event")]
    (response,) = recorder.responses
    assert (response.id, response.created, response.model, response.usage, response.status_code) == (None,) * 5
    assert response.finish_reasons == ("stop",)


def test_body_that_cannot_be_read_costs_the_call_nothing(instrumented, recorder, expected_logs):
    """A request of a shape we never saw is reported once, and the block runs."""

    class Broken(dict):
        def items(self):
            raise RuntimeError("secret")

    with observe(provider="x", request=Broken(a=1)) as call:
        call.response(id="r-1")
    assert recorder.events == []
    assert [record.getMessage().splitlines()[0] for record in expected_logs] == [
        "a call was not observed (stage observe): RuntimeError; the call is unaffected"
    ]


def test_one_object_is_one_call(recorder):
    call = observe(provider="x")
    with call:
        pass
    with pytest.raises(RuntimeError, match="was observed already; use observe"), call:
        pass


MISTAKES = {
    "empty provider": (
        {"provider": ""},
        ValueError,
        "observe(provider='') is not allowed; allowed: a name that is not empty",
    ),
    "no operation": ({"operation": None}, ValueError, "observe(operation=None) is not allowed"),
    "provider": ({"provider": 3}, TypeError, "observe(provider=) is int; it must be str"),
    "model": ({"model": 3}, TypeError, "observe(model=) is int; it must be str"),
    "request": ({"request": [1]}, TypeError, "observe(request=) is list; it must be Mapping"),
    "stream": ({"stream": "no"}, TypeError, "observe(stream=) is str; it must be bool"),
    "port": ({"server_port": "443"}, TypeError, "observe(server_port=) is str; it must be int"),
}


@pytest.mark.parametrize(("given", "error", "text"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_clear_error(given, error, text):
    with pytest.raises(error) as raised:
        observe(**{"provider": "x", **given})
    assert text in str(raised.value)
