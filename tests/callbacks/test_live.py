"""LiveView: the viewer is told while it happens; one that is slow, gone or strange costs the program nothing."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

import otel_llm_callback
from otel_llm_callback.callbacks import LiveView
from otel_llm_callback.testing import (
    JsonReply,
    StreamReply,
    chat_chunks,
    error_body,
    make_request,
    make_response,
)
from otel_llm_callback.types import StreamChunk, Usage

SECRET = "the-secret-word"


class Recorder:
    """Stands where the viewer would, and keeps what it was sent."""

    def __init__(self, status=204, hangs=False):
        self.events, self.headers, self.connections = [], [], set()
        self.hold = threading.Event()
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                recorder.headers.append(dict(self.headers))
                recorder.connections.add(self.client_address)
                if hangs:
                    recorder.hold.wait(10)
                recorder.events += json.loads(body)["events"]
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def text(self):
        return "".join(event.get("text", "") for event in self.events)


def chunk(text, request, number=0):
    return StreamChunk(text, request=request, at_ns=request.started_ns + (number + 1) * 1_000_000)


def test_a_call_is_told_from_its_request_to_its_end():
    made = make_request(model="m", session_id="s", trace_id="a" * 32, span_id="b" * 16)
    usage = Usage(input_tokens=3, output_tokens=5, cached_tokens=1, reasoning_tokens=2)
    with Recorder() as viewer:
        view = LiveView(viewer.url, content="full", token="t")
        view.on_request_sent(made, json.dumps({"messages": [{"role": "user", "content": SECRET}]}))
        for number in range(3):
            view.on_stream_chunk(chunk(f"w{number} ", made, number), number)
        view.on_response_received(make_response(request=made, usage=usage), "")
        assert view.flush(10)
    assert [event["event"] for event in viewer.events] == ["request", "chunk", "end"]
    begun, middle, end = viewer.events
    assert (begun["model"], begun["session_id"], begun["trace_id"], begun["span_id"]) == ("m", "s", "a" * 32, "b" * 16)
    assert begun["prompt"] == f"user: {SECRET}"
    assert (middle["text"], middle["count"]) == ("w0 w1 w2 ", 3)
    assert (middle["model"], middle["started_ms"]) == ("m", begun["at_ms"])
    assert middle["at_ms"] - middle["first_at_ms"] == pytest.approx(2, abs=0.01)
    assert (end["outcome"], end["input_tokens"], end["output_tokens"], end["cached_tokens"]) == ("completed", 3, 5, 1)
    assert {header["authorization"] for header in viewer.headers} == {"Bearer t"}
    assert (view.sent, view.dropped) == (3, 0)


@pytest.mark.parametrize("content", ["none", "redacted"])
def test_content_is_sent_only_if_asked(server, content):
    """Also the text of an error stays here, of which only the type is told."""
    server.reply = lambda _: JsonReply(error_body(SECRET), status=400)
    with Recorder() as viewer:
        view = LiveView(viewer.url, content=content)
        otel_llm_callback.instrument(view, telemetry=False)
        with openai.OpenAI(api_key="k", base_url=server.url) as client:
            messages = [{"role": "user", "content": SECRET}]
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(model="m", messages=messages)
            server.reply = lambda _: StreamReply(chat_chunks([SECRET, SECRET], model="m"))
            list(client.chat.completions.create(model="m", messages=messages, stream=True))
        otel_llm_callback.flush(5)
        assert view.flush(10)
    assert [event["event"] for event in viewer.events if event["event"] != "chunk"] == ["request", "end"] * 2
    assert viewer.events[1]["error_type"] == "BadRequestError"
    assert SECRET not in json.dumps(viewer.events)


def test_the_default_is_no_content():
    assert LiveView().content == "none"


def test_a_viewer_that_is_not_there_costs_nothing_but_the_count():
    """No retry, no log record, no error: what was not told is counted."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    view = LiveView(f"http://127.0.0.1:{port}")
    for _ in range(50):
        view.on_request_sent(make_request(), "")
    assert view.flush(10)
    assert (view.sent, view.dropped) == (0, 50)


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_refusal_is_not_repeated(status):
    with Recorder(status) as viewer:
        view = LiveView(viewer.url)
        view.on_request_sent(make_request(), "")
        assert view.flush(10)
        view.on_request_sent(make_request(), "")
        assert view.flush(10)
    assert len(viewer.headers) == 1  # after a failure it is silent for a while
    assert (view.sent, view.dropped) == (0, 2)


def test_a_viewer_that_hangs_bounds_what_waits():
    """Neither time of the caller nor memory: beyond the bound chunks go first, then whole events, all counted."""
    with Recorder(hangs=True) as viewer:
        view = LiveView(viewer.url, content="full")
        began = time.monotonic()
        made = make_request()
        view.on_request_sent(made, "")
        while view._idle.is_set() or view._waiting:
            time.sleep(0.01)  # the first one is under way, and hangs
        for number in range(20_000):
            other = make_request()
            view.on_request_sent(other, "")
            view.on_stream_chunk(chunk("x" * 500, other, number), number)
        assert time.monotonic() - began < 30
        assert len(view._waiting) <= 4096
        assert view._waiting_text <= 1024 * 1024
        assert view.dropped + len(view._waiting) + 1 >= 20_000
        viewer.hold.set()


def test_chunks_of_other_calls_are_kept_apart():
    one, other = make_request(), make_request()
    with Recorder() as viewer:
        view = LiveView(viewer.url, content="full")
        for number in range(10):
            view.on_stream_chunk(chunk("a", one, number), number)
            view.on_stream_chunk(chunk("b", other, number), number)
        assert view.flush(10)
    texts = {
        call: "".join(e["text"] for e in viewer.events if e["call_id"] == call) for call in (one.call_id, other.call_id)
    }
    assert texts == {one.call_id: "a" * 10, other.call_id: "b" * 10}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_starts_clean():
    """It tells of its own calls, over a connection of its own, and not of its parent's."""
    with Recorder() as viewer:
        view = LiveView(viewer.url)
        view.on_request_sent(make_request(model="parent"), "")
        assert view.flush(10)
        child = os.fork()
        if child == 0:
            view.on_request_sent(make_request(model="child"), "")
            os._exit(0 if view.flush(10) and (view.sent, view.dropped) == (1, 0) else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert [event["model"] for event in viewer.events] == ["parent", "child"]
    assert len(viewer.connections) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("ftp://x",), "url must be"), (("localhost:4318",), "url must be"), (("http://",), "url must be")],
)
def test_a_wrong_address_is_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        LiveView(*arguments)


def test_an_unknown_content_level_is_refused_at_once():
    with pytest.raises(ValueError, match="allowed are 'full', 'redacted', 'none'"):
        LiveView(content="some")


def test_a_token_that_cannot_be_sent_is_a_viewer_that_is_not_there():
    with Recorder() as viewer:
        view = LiveView(viewer.url, token="two\nlines")
        view.on_request_sent(make_request(), "")
        assert view.flush(10)
    assert (view.sent, view.dropped, viewer.events) == (0, 1, [])
