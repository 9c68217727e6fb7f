"""RecordingCallback, its grammar check, and the factories."""

from __future__ import annotations

import threading
import time

import pytest

from otel_llm_callback.protocol import check_callback
from otel_llm_callback.testing import (
    CallFailed,
    ChunkReceived,
    RecordingCallback,
    RequestSent,
    ResponseReceived,
    check_grammar,
    make_chunk,
    make_error_context,
    make_request,
    make_response,
)

REQUEST = make_request(stream=True)
SENT = RequestSent(REQUEST, "{}")
CHUNKS = [ChunkReceived(make_chunk("x", request=REQUEST), index) for index in range(3)]
RECEIVED = ResponseReceived(make_response(request=REQUEST), "{}")
FAILED = CallFailed(ValueError(), make_error_context(request=REQUEST))


def tell(recorder, *events):
    for event in events:
        if isinstance(event, RequestSent):
            recorder.on_request_sent(event.metadata, event.request_json)
        elif isinstance(event, ChunkReceived):
            recorder.on_stream_chunk(event.chunk, event.index)
        elif isinstance(event, ResponseReceived):
            recorder.on_response_received(event.metadata, event.response_json)
        else:
            recorder.on_error(event.error, event.context)


def test_it_is_a_callback_of_any_content_level():
    check_callback(RecordingCallback("none"))
    assert (RecordingCallback("none").content, RecordingCallback().content) == ("none", "full")


def test_events_are_kept_in_order():
    recorder = RecordingCallback()
    tell(recorder, SENT, CHUNKS[0], RECEIVED, FAILED)
    assert recorder.events == [SENT, CHUNKS[0], RECEIVED, FAILED]
    assert recorder.names() == ["request_sent", "stream_chunk", "response_received", "error"]
    assert recorder.requests == [REQUEST]
    assert recorder.chunks == ["x"]
    assert recorder.responses == [RECEIVED.metadata]
    assert recorder.errors == ["chat.completions"]


def test_calls_are_told_apart():
    recorder, other = RecordingCallback(), RequestSent(make_request(), "")
    tell(recorder, SENT, other, RECEIVED)
    assert recorder.calls() == {REQUEST.call_id: [SENT, RECEIVED], other.request.call_id: [other]}
    assert recorder.events_of(other.request.call_id) == [other]
    assert recorder.names(REQUEST.call_id) == ["request_sent", "response_received"]
    recorder.clear()
    assert recorder.events == []


def test_events_are_a_copy():
    recorder = RecordingCallback()
    recorder.events.append(SENT)
    assert recorder.events == []


def test_waiting_ends_when_the_events_have_come():
    recorder = RecordingCallback()

    def later():
        for event in (SENT, *CHUNKS, RECEIVED):
            time.sleep(0.01)
            tell(recorder, event)

    thread = threading.Thread(target=later)
    thread.start()
    assert recorder.wait_for(2)[:2] == [SENT, CHUNKS[0]]
    assert recorder.wait_for_ends(1)[-1] == RECEIVED
    thread.join()


def test_waiting_ends_at_the_timeout_and_says_what_came():
    recorder = RecordingCallback()
    tell(recorder, SENT)
    with pytest.raises(AssertionError, match=r"2 events had not come after 0.01 s, only \['request_sent'\]"):
        recorder.wait_for(2, timeout=0.01)
    with pytest.raises(AssertionError, match="the end of 1 calls"):
        recorder.wait_for_ends(1, timeout=0.01)


@pytest.mark.parametrize("told", [[], [SENT, RECEIVED], [SENT, *CHUNKS, RECEIVED], [SENT, CHUNKS[0], FAILED]])
def test_the_grammar_allows(told):
    check_grammar(told)


def test_the_grammar_allows_interleaved_calls():
    other = make_request()
    told = [SENT, RequestSent(other, ""), CHUNKS[0], ResponseReceived(make_response(request=other), ""), RECEIVED]
    check_grammar(told)


@pytest.mark.parametrize(
    ("told", "rule"),
    [
        ([RECEIVED], "request_sent must come once, and first"),
        ([CHUNKS[0], SENT, RECEIVED], "request_sent must come once, and first"),
        ([SENT, SENT, RECEIVED], "request_sent must come once, and first"),
        ([SENT, RECEIVED, FAILED], "only one of"),
        ([SENT, RECEIVED, RECEIVED], "only one of"),
        ([SENT, RECEIVED, CHUNKS[0]], "nothing after it"),
        ([SENT], "neither response_received nor error"),
        ([SENT, CHUNKS[1], RECEIVED], r"must count from 0, they are \[1\]"),
        (
            [SENT, ResponseReceived(make_response(request=REQUEST, outcome="error"), "")],
            "cannot have the outcome error",
        ),
        (
            [SENT, CallFailed(ValueError(), make_error_context(request=REQUEST, outcome="completed"))],
            "outcome completed",
        ),
    ],
)
def test_the_grammar_forbids(told, rule):
    with pytest.raises(AssertionError, match=rule) as caught:
        check_grammar(told)
    assert REQUEST.call_id in str(caught.value)


def test_the_grammar_can_allow_open_calls_and_lost_chunks():
    check_grammar([SENT, CHUNKS[0], CHUNKS[2]], all_ended=False, all_chunks=False)
    with pytest.raises(AssertionError, match="must rise"):
        check_grammar([SENT, CHUNKS[2], CHUNKS[0]], all_ended=False, all_chunks=False)


def test_facts_can_be_made_with_any_field():
    request = make_request(model="m", session_id="s")
    assert (request.model, request.session_id, request.call_id != make_request().call_id) == ("m", "s", True)
    response = make_response(request=request, usage=None, response_time_ms=2.0)
    assert (response.call_id, response.usage_source, response.ended_ns - request.started_ns) == (
        request.call_id,
        "missing",
        2_000_000,
    )
    context = make_error_context("responses", request=request, status_code=None)
    assert (str(context), context.call_id, context.status_code) == ("responses", request.call_id, None)
    assert make_chunk("x", kind="reasoning", at_ns=0).at_ns == 0


@pytest.mark.parametrize("make", [make_request, make_response, make_error_context])
def test_a_field_that_does_not_exist_is_an_error(make):
    with pytest.raises(TypeError, match="no_such_field"):
        make(no_such_field=1)
