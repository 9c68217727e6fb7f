"""Calls in flight: from the callback to the page, bounded, and gone when their spans are there."""

from __future__ import annotations

import json

import openai
import pytest
from viewer._serving import Watch, serving
from viewer._spans import request, span

import otel_llm_callback
from otel_llm_callback.callbacks import LiveView
from otel_llm_callback.testing import ScriptedServer, StreamReply, chat_chunks, make_request
from otel_llm_callback.viewer import Limits, Options


def test_what_happens_is_on_the_stream_of_the_page(viewer):
    """From the client through the callback to the viewer's events, before and after the end of a call."""
    watch = Watch(viewer)
    view = LiveView(viewer.url, content="full")
    otel_llm_callback.instrument(view, telemetry=False)
    reply = StreamReply(chat_chunks(["one ", "two"], model="m"))
    with ScriptedServer(lambda _: reply) as server, openai.OpenAI(api_key="k", base_url=server.url) as client:
        list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True))
    otel_llm_callback.flush(5)
    assert view.flush(10)
    [call] = watch.wait_for("live")
    assert (call["model"], call["started_ms"] > 0) == ("m", True)
    [left] = viewer.get("/api/live")["calls"]
    assert (left["is_over"], left["outcome"], left["text"], left["prompt"]) == (
        True,
        "completed",
        "one two",
        "user: hi",
    )
    watch.close()


def test_a_span_takes_the_place_of_its_call(viewer):
    """Whichever comes first: the span of a short call may be stored before the viewer is told of its start."""
    for span_first in (False, True):
        stored = span()
        made = make_request(trace_id=stored.trace_id.hex(), span_id=stored.span_id.hex())
        view = LiveView(viewer.url)
        if span_first:
            viewer.send(request(stored))
        view.on_request_sent(made, "")
        assert view.flush(10)
        if not span_first:
            assert len(viewer.get("/api/live")["calls"]) == 1
            viewer.send(request(stored))
        assert viewer.get("/api/live")["calls"] == []


def test_a_viewer_that_is_started_meanwhile_shows_the_rest():
    """It was not told of the request: the call appears with its next chunk, and is said to be seen in part."""
    events = [
        {"event": "chunk", "call_id": "c", "at_ms": 5.0, "started_ms": 1.0, "text": "rest", "model": "m"},
        {"event": "end", "call_id": "c", "at_ms": 9.0, "outcome": "completed", "duration_ms": 8.0},
        {"event": "end", "call_id": "never seen", "at_ms": 9.0, "outcome": "completed"},
    ]
    with serving(Options(port=0, store=None)) as viewer:
        body = json.dumps({"events": events}).encode()
        assert viewer("POST", "/v1/live", body, content_type="application/json").status == 204
        [call] = viewer.get("/api/live")["calls"]
        assert (call["model"], call["text"], call["is_partial"], call["is_over"]) == ("m", "rest", True, True)
        assert "first_chunk_ms" not in call


BAD = [b"", b"{", b"[]", b'{"events": 1}', b'{"events": [1]}', b'{"events": [{"event": "request"}]}', b"[" * 100_000]
BAD += [
    json.dumps({"events": [{"event": kind, "call_id": "c", "at_ms": at_ms}]}).encode()
    for kind, at_ms in (("x", 1), ("request", "1"), ("request", -1))
]


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_events_that_are_none_are_refused(viewer, body):
    assert viewer("POST", "/v1/live", body, content_type="application/json").status == 400
    assert viewer.get("/api/live")["calls"] == []


def test_live_calls_are_bounded():
    with serving(Options(port=0, store=None, limits=Limits(live_calls=5, live_text=100))) as viewer:
        events = [{"event": "request", "call_id": str(number), "at_ms": 1} for number in range(20)]
        events += [{"event": "chunk", "call_id": "19", "at_ms": 2, "text": f"{number:03}"} for number in range(100)]
        body = json.dumps({"events": events}).encode()
        assert viewer("POST", "/v1/live", body, content_type="application/json").status == 204
        told = viewer.get("/api/live")
        assert ([call["call_id"] for call in told["calls"]], told["lost"]) == (["19", "18", "17", "16", "15"], 15)
        last = told["calls"][0]
        assert (len(last["text"]), last["cut"], last["text"][-3:], last["chunks"]) == (100, 200, "099", 100)
