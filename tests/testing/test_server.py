"""The scripted server: what it sends, what it notices, and that nothing is left of it."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time

import openai
import pytest

from otel_llm_callback.testing import (
    JsonReply,
    ReceivedRequest,
    ScriptedServer,
    StreamReply,
    chat_chunk,
    chat_chunks,
    chat_completion,
    error_body,
)
from otel_llm_callback.testing import _server as module


def exchange(server, method="POST", path="/v1/chat/completions", body=b"{}", headers=None):
    """One request on a connection of its own; returns status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.split(":")[2].removesuffix("/v1")), timeout=5)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def raw(server, data):
    """Send bytes on a socket; returns the socket."""
    connection = socket.create_connection(("127.0.0.1", server._listener.server_port), timeout=5)
    connection.sendall(data)
    return connection


def wait_until(condition):
    deadline = time.monotonic() + 3
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert condition()


# --- What it answers --------------------------------------------------------------------------------------------------


def test_usual_answer_is_a_chat_completion(server, client):
    """With ids that differ, the model that was asked for, and usage."""
    answers = [client.chat.completions.create(model="m", messages=[]) for _ in range(2)]
    assert [answer.id for answer in answers] == ["chatcmpl-000001", "chatcmpl-000002"]
    assert [answer._request_id for answer in answers] == ["req_000001", "req_000002"]
    assert answers[0].model_dump(exclude_unset=True) == chat_completion(model="m", response_id="chatcmpl-000001")


@pytest.mark.parametrize("asked", [False, True])
def test_usual_stream_has_usage_only_if_asked(asked, server, client):
    """As the API does."""
    options = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = list(client.chat.completions.create(model="m", messages=[], stream=True, **options))
    expected = chat_chunks(model="m", response_id="chatcmpl-000001", usage=(5, 7) if asked else None)
    assert [chunk.model_dump(exclude_unset=True) for chunk in chunks] == expected


def test_usual_answer_has_as_many_choices_as_asked(server, client):
    assert len(client.chat.completions.create(model="m", messages=[], n=3).choices) == 3
    chunks = client.chat.completions.create(model="m", messages=[], n=2, stream=True)
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


def test_models_are_listed(server, client):
    assert [model.id for model in client.models.list()] == ["gpt-4o-mini"]


def test_other_paths_are_not_found(server):
    status, _, body = exchange(server, "DELETE", "/v1/files/1")
    assert (status, json.loads(body)) == (404, error_body("Invalid URL (DELETE /files/1)"))


def test_script_may_leave_the_usual_answer(server, client):
    """Returning None means it."""
    server.reply = lambda request: None if request.method == "GET" else JsonReply(chat_completion("mine"))
    assert client.models.list().data[0].id == "gpt-4o-mini"
    assert client.chat.completions.create(model="m", messages=[]).choices[0].message.content == "mine"


def test_script_that_raises_shows_where_the_client_is_called(server, client):
    """One request, no retries, and the message says what it was."""
    server.reply = lambda request: request.json["no such key"]
    with pytest.raises(openai.InternalServerError, match="reply function raised KeyError"):
        client.models.list()
    assert len(server.requests) == 1


def test_bytes_go_out_as_they_are(server):
    server.reply = lambda request: JsonReply(
        b"\x00\xff", status=201, headers={"content-type": "audio/mpeg", "x-a": "b"}
    )
    status, headers, body = exchange(server)
    assert (status, headers["content-type"], headers["x-a"], body) == (201, "audio/mpeg", "b", b"\x00\xff")


def test_events_are_sent_as_server_sent_events(server):
    """With names where asked for, with bytes and pauses as they are, with [DONE] at the end."""
    server.reply = lambda request: StreamReply([{"type": "a.b"}, {"x": 1}, b"", b": ping\n\n", 7], named=True)
    status, headers, body = exchange(server)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert body == (b'event: a.b\ndata: {"type": "a.b"}\n\ndata: {"x": 1}\n\n: ping\n\ndata: 7\n\ndata: [DONE]\n\n')


def test_stream_may_end_without_done(server):
    server.reply = lambda request: StreamReply([1], done=False)
    assert exchange(server)[2] == b"data: 1\n\n"


def test_connection_is_cut_after_so_many_events(server):
    server.reply = lambda request: StreamReply([1, 2, 3], cut_after=2)
    with pytest.raises(http.client.IncompleteRead) as cut:
        exchange(server)
    assert cut.value.partial == b"data: 1\n\ndata: 2\n\n"
    assert server.closed_early == 0


def test_answers_wait_as_long_as_they_are_told(server):
    server.reply = lambda request: (
        StreamReply([1, 2], delay_s=0.02) if request.path == "/s" else JsonReply(1, delay_s=0.04)
    )
    for path in ("/s", "/j"):
        before = time.monotonic()
        exchange(server, path=path)
        assert time.monotonic() - before >= 0.04


def test_mistake_in_the_events_is_printed(server, capfd):
    """The stream breaks off; the traceback says why."""

    def events():
        yield 1
        raise RuntimeError("my mistake")

    server.reply = lambda request: StreamReply(events())
    with pytest.raises(http.client.IncompleteRead):
        exchange(server)
    wait_until(lambda: not server._listener._open)
    assert "RuntimeError: my mistake" in capfd.readouterr().err


# --- What it notices --------------------------------------------------------------------------------------------------


def test_requests_are_kept(server):
    exchange(server, path="/v1/chat/completions?a=1&b=2", body=b'{"c": 3}', headers={"X-Stainless-Retry-Count": "2"})
    (request,) = server.requests
    assert (request.method, request.path, request.query, request.body) == (
        "POST",
        "/chat/completions",
        "a=1&b=2",
        b'{"c": 3}',
    )
    assert (request.json, request.attempt, request.headers["x-stainless-retry-count"]) == ({"c": 3}, 2, "2")


def test_only_the_last_requests_are_kept(server, monkeypatch):
    """A server that runs for days does not grow."""
    monkeypatch.setattr(module, "KEPT_REQUESTS", 2)
    for path in ("/a", "/b", "/c"):
        exchange(server, path=path)
    assert [request.path for request in server.requests] == ["/b", "/c"]


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("/v1/models", "/models"),
        ("/models", "/models"),
        ("/openai/deployments/gpt-4o/chat/completions", "/chat/completions"),
        ("/openai/v1/chat/completions", "/chat/completions"),
        ("/openai/models", "/models"),
        ("/v1", "/v1"),
    ],
)
def test_path_is_the_same_for_all_providers(sent, path, server):
    exchange(server, path=f"{sent}?api-version=1")
    assert [request.path for request in server.requests] == [path]


@pytest.mark.parametrize("body", [b"", b"no json", b"[1]", b"\xff"])
def test_body_that_is_no_object_reads_as_empty(body):
    assert ReceivedRequest("POST", "/", "", {}, body).json == {}


@pytest.mark.parametrize(
    "reply",
    [
        StreamReply([b""] * 100, delay_s=0.05),
        JsonReply({}, delay_s=5),
        StreamReply([b": x\n\n"] * 1_000_000),
    ],
    ids=["between events", "before the answer", "while sending"],
)
def test_client_that_hangs_up_is_noticed(reply, server):
    server.reply = lambda request: reply
    connection = raw(server, b"POST /v1/x HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
    wait_until(lambda: server.requests)
    connection.close()
    wait_until(lambda: server.closed_early == 1)


def test_client_that_read_all_did_not_hang_up(server, client):
    list(client.chat.completions.create(model="m", messages=[], stream=True))
    client.chat.completions.create(model="m", messages=[])
    assert server.closed_early == 0


# --- What it puts up with ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"transfer-encoding: chunked", b"411"),
        (b"content-length: many", b"411"),
        (b"content-length: 99999999999", b"413"),
    ],
)
def test_body_it_cannot_take_is_refused(headers, status, server):
    connection = raw(server, b"POST /v1/x HTTP/1.1\r\n" + headers + b"\r\n\r\n")
    with connection, connection.makefile("rb") as lines:
        assert lines.readline().split()[1] == status
    assert server.requests == []


def test_half_a_request_is_no_request(server):
    raw(server, b"POST /v1/x HTTP/1.1\r\ncontent-length: 10\r\n\r\nhalf").close()
    wait_until(lambda: not server._listener._open)
    assert server.requests == []


def test_request_sent_during_the_answer_waits_its_turn(server):
    """A client that does not wait for the first answer gets both, one after the other, with their delays."""
    server.reply = lambda request: JsonReply(request.path, delay_s=0.05)
    request = b"GET /%s HTTP/1.1\r\nhost: x\r\n%s\r\n"
    started = time.monotonic()
    with raw(server, request % (b"a", b"")) as connection:
        wait_until(lambda: server.requests)
        connection.sendall(request % (b"b", b"connection: close\r\n"))
        received = b"".join(iter(lambda: connection.recv(1000), b""))
    assert received.index(b'"/a"') < received.index(b'"/b"')
    assert time.monotonic() - started >= 0.1


def test_connection_reset_by_the_client_is_no_news(server, capfd):
    """Clients may leave as they like; nothing is printed."""
    connection = raw(server, b"POST /v1/x HT")
    wait_until(lambda: server._listener._open)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    wait_until(lambda: not server._listener._open)
    assert capfd.readouterr() == ("", "")


# --- Its end ----------------------------------------------------------------------------------------------------------


def test_nothing_outlives_close():
    """Open and idle connections are cut, threads end, the port is free; closing again is fine."""
    before = threading.enumerate()
    server = ScriptedServer(lambda request: StreamReply([b""] * 1000, delay_s=1))
    busy = raw(server, b"POST /v1/x HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
    idle = raw(server, b"")
    wait_until(lambda: server.requests and len(server._listener._open) == 2)
    started = time.monotonic()
    server.close()
    server.close()
    assert time.monotonic() - started < 3
    assert [thread for thread in threading.enumerate() if thread not in before] == []
    assert server.closed_early == 0
    with busy, idle, pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server._listener.server_port), timeout=1)


# --- Bodies -----------------------------------------------------------------------------------------------------------


def test_completion_has_what_is_asked_for():
    body = chat_completion(None, model="m", usage=None, finish_reason="tool_calls", tool_calls=[{"id": "c"}], choices=2)
    assert "usage" not in body
    assert [(choice["index"], choice["finish_reason"]) for choice in body["choices"]] == [
        (0, "tool_calls"),
        (1, "tool_calls"),
    ]
    assert body["choices"][0]["message"]["tool_calls"] == [{"id": "c"}]


def test_usage_may_be_spelled_out():
    assert chat_completion("a", usage={"prompt_tokens": 1})["usage"] == {"prompt_tokens": 1}


def test_chunks_add_up_to_the_text():
    """A text is cut at the words, pieces are sent as they are."""
    for text in ("one two  three", ["one two", "  three"]):
        chunks = chat_chunks(text, finish_reason=None)
        pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
        assert "".join(pieces) == "one two  three"
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * len(chunks)


def test_chunk_without_a_delta_has_no_choices():
    assert chat_chunk(None, usage=(1, 2))["choices"] == []
