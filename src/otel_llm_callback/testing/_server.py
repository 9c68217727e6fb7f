"""A server on this machine that answers like the OpenAI API: real sockets, real JSON, real event streams.

The server and the bodies it answers with; nothing here knows of callbacks or telemetry. Standard library only.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from ._bodies import (
    CREATED,
    SPEECH,
    TEXT,
    Counts,
    agent_invocation,
    agent_session,
    agent_session_events,
    chat_usage,
    compaction,
    cut_at_words,
    decision,
    embedding_list,
    grade,
    image_events,
    image_list,
    moderation,
    response_events,
    response_object,
    search_page,
    text_completion,
    text_completion_chunks,
    thread_run,
    thread_run_events,
    transcription,
    transcription_events,
    video,
)

if TYPE_CHECKING:
    from typing_extensions import Self

KEPT_REQUESTS: Final = 10_000
"""How many requests ``ScriptedServer.requests`` keeps; the oldest go first."""

LARGEST_BODY: Final = 64 * 1024 * 1024
"""Longest request body the server takes, in bytes; longer ones are answered with status 413."""

_IDLE_S: Final = 60.0
"""After this long without a request a connection is closed."""

_PREFIX: Final = re.compile(r"^(/openai)?(/deployments/[^/]+|/v1)?(?=/)")


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as it arrived.

    Attributes:
        method: In capitals.
        path: Without host, query, ``/v1`` or Azure's ``/openai/deployments/NAME``: ``/chat/completions``.
        query: What followed the question mark, undecoded.
        headers: Names in lower case.
        body: As it arrived.
        attempt: How often the client had sent the same request before; the SDK says so in a header.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    attempt: int = 0

    @property
    def json(self) -> Mapping[str, Any]:
        """The body as an object, empty if it is not a JSON object."""
        try:
            body = json.loads(self.body)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}


@dataclass(frozen=True)
class JsonReply:
    """One answer, sent whole.

    Attributes:
        body: Anything JSON can carry; ``bytes`` go out as they are.
        status: HTTP status.
        headers: Added to the usual ones, or in place of them where the name is the same.
        delay_s: Wait this long before anything is sent, in seconds.
    """

    body: object
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0


@dataclass(frozen=True)
class StreamReply:
    """An answer sent as an event stream.

    Attributes:
        events: Each becomes one event; ``bytes`` go out as they are, so empty ones are a pause. May be endless: the
            client ends it by leaving.
        delay_s: Wait this long before each event, in seconds.
        headers: Added to the usual ones, or in place of them where the name is the same.
        done: Whether ``data: [DONE]`` ends the stream, as Chat Completions does.
        named: Whether each event also gets an ``event:`` line with its ``type``, as Responses does.
        cut_after: Send that many events at most, then drop the connection as if the network had failed.
    """

    events: Iterable[object]
    delay_s: float = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    done: bool = True
    named: bool = False
    cut_after: int | None = None


Reply: TypeAlias = "JsonReply | StreamReply"
_Socket: TypeAlias = "socket.socket | tuple[bytes, socket.socket]"  # as socketserver declares it; ours are never pairs
Script: TypeAlias = "Callable[[ReceivedRequest], Reply | None]"


class ScriptedServer:
    """Answer HTTP requests as the OpenAI API would, or as *reply* says.

    Example::

        with ScriptedServer() as server:
            client = openai.OpenAI(api_key="any", base_url=server.url)
            client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}])
            assert server.requests[0].json["model"] == "gpt-4o-mini"

    It listens on the loopback interface, on a free port, from the moment it is made until ``close``; every connection
    gets a thread. Nothing outlives ``close``. The same requests in the same order get the same answers.

    Attributes:
        reply: Asked for each request, from the thread of its connection. None, as the attribute or as what it returns,
            means the usual answer: a fixed text for chat completions and responses, something alike for the other APIs,
            404 for paths it does not know. If it raises, the client gets status 500 with the exception as message, and
            does not retry.
        requests: What arrived, in order; the last ``KEPT_REQUESTS`` of it.
        closed_early: How many answers the client hung up on before all was sent. A hang-up is noticed before each event
            and during each delay, so give a stream a delay if this number matters.
    """

    def __init__(self, reply: Script | None = None) -> None:
        self.reply = reply
        self.requests: list[ReceivedRequest] = []
        self.closed_early = 0
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._listener = _Listener(self._answer, self._hung_up)
        self._thread = threading.Thread(
            target=self._listener.serve_forever, args=(0.01,), name="scripted-server", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """The base URL for a client, with ``/v1``."""
        return f"http://127.0.0.1:{self._listener.server_port}/v1"

    def close(self) -> None:
        """Stop listening, cut what is still open and wait for its threads, for five seconds at most. Once is enough."""
        if not self._listener.closing.is_set():
            self._listener.close(deadline=time.monotonic() + 5)
            self._thread.join(timeout=5)

    def __enter__(self) -> Self:
        """Return the server, which is listening already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _answer(self, request: ReceivedRequest) -> tuple[Reply, int]:
        """Return what to send and the number that makes its ids unique."""
        with self._lock:
            self.requests.append(request)
            del self.requests[:-KEPT_REQUESTS]
            number = next(self._numbers)
        return self._scripted(request) or _usual_reply(request, number), number

    def _scripted(self, request: ReceivedRequest) -> Reply | None:
        if self.reply is None:
            return None
        try:
            return self.reply(request)
        except Exception as error:  # noqa: BLE001 - a mistake in the script should show where the client is called
            body = error_body(f"the server's reply function raised {error!r}", "scripted_server_error")
            return JsonReply(body, status=500, headers={"x-should-retry": "false"})

    def _hung_up(self) -> None:
        with self._lock:
            if not self._listener.closing.is_set():
                self.closed_early += 1


class _Listener(ThreadingHTTPServer):
    """Accept connections, one thread each, and know them all so that none outlives the server."""

    request_queue_size = 128

    def __init__(self, answer: Callable[[ReceivedRequest], tuple[Reply, int]], hung_up: Callable[[], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.answer = answer
        self.hung_up = hung_up
        self.closing = threading.Event()
        self._open: dict[threading.Thread, socket.socket] = {}
        self._open_lock = threading.Lock()

    def server_bind(self) -> None:
        """Bind without asking a name server for our own name, which HTTPServer would do."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]

    def process_request(self, request: _Socket, client_address: object) -> None:
        """Serve the new connection in a thread of its own."""
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="scripted-server-connection", daemon=True
        )
        with self._open_lock:
            self._open[thread] = cast("socket.socket", request)
        thread.start()

    def _serve(self, request: _Socket, client_address: object) -> None:
        self.process_request_thread(request, client_address)
        with self._open_lock:
            del self._open[threading.current_thread()]

    def handle_error(self, request: _Socket, client_address: object) -> None:
        """Print what went wrong, unless it is only a client that left."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def close(self, deadline: float) -> None:
        """Stop accepting, cut the open connections and wait for their threads until *deadline*, a monotonic time."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        with self._open_lock:
            connections = list(self._open.items())
        for _, connection in connections:
            with contextlib.suppress(OSError):  # closed by its own thread meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        for thread, _ in connections:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))


class _Connection(BaseHTTPRequestHandler):
    """Read the requests of one connection and send what the script answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each event waits for the acknowledgement of the one before
    timeout = _IDLE_S
    server: _Listener

    def do_POST(self) -> None:
        """Answer one request."""
        length = self._body_length()
        if length is None:
            return
        body = self.rfile.read(length)
        if len(body) < length:  # the client left while sending
            self.close_connection = True
            return
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        attempt = headers.get("x-stainless-retry-count", "0")
        received = ReceivedRequest(
            method=self.command,
            path=_PREFIX.sub("", path),
            query=query,
            headers=MappingProxyType(headers),
            body=body,
            attempt=int(attempt) if attempt.isdecimal() else 0,
        )
        reply, number = self.server.answer(received)
        try:
            if isinstance(reply, StreamReply):
                self._send_stream(reply, number)
            else:
                self._send_whole(reply, number)
        except OSError:  # the client hung up, or the server is being closed
            self.close_connection = True
            self.server.hung_up()

    do_GET = do_DELETE = do_PUT = do_PATCH = do_POST  # noqa: N815 - names that http.server looks up

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
        """Say nothing; ``ScriptedServer.requests`` is the log."""

    def _body_length(self) -> int | None:
        """Return the length of the body, or refuse the request and return None."""
        text = self.headers.get("content-length", "0")
        if "transfer-encoding" in self.headers or not text.isdecimal():
            self.send_error(411)
        elif int(text) > LARGEST_BODY:
            self.send_error(413)
        else:
            return int(text)
        self.close_connection = True
        return None

    def _send_whole(self, reply: JsonReply, number: int) -> None:
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self._pause(reply.delay_s)
        usual = {"content-type": "application/json", "content-length": str(len(data))}
        self._send_headers(reply.status, {**usual, **reply.headers}, number)
        self.wfile.write(data)

    def _send_stream(self, reply: StreamReply, number: int) -> None:
        usual = {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}
        self._send_headers(200, {**usual, **reply.headers}, number)
        for event in itertools.islice(reply.events, reply.cut_after):
            self._pause(reply.delay_s)
            if data := _encode_event(event, named=reply.named):  # an empty HTTP chunk would end the body
                self.wfile.write(_http_chunk(data))
        if reply.cut_after is not None:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self._pause(0)
        done = _http_chunk(b"data: [DONE]\n\n") if reply.done else b""
        self.wfile.write(done + b"0\r\n\r\n")  # in one piece: the SDK may hang up as soon as it has read [DONE]

    def _send_headers(self, status: int, headers: Mapping[str, str], number: int) -> None:
        self.send_response(status)
        for name, value in {"x-request-id": f"req_{number:06}", "openai-processing-ms": "7", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _pause(self, delay_s: float) -> None:
        """Wait, or raise an OSError as soon as the client hangs up."""
        self.connection.settimeout(delay_s)
        try:
            if not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError("the client hung up")
        except (TimeoutError, BlockingIOError):  # nothing arrived, which is what clients do while they wait
            return
        finally:
            self.connection.settimeout(self.timeout)
        self.server.closing.wait(delay_s)  # a client that sends its next request already is not watched


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _encode_event(event: object, *, named: bool) -> bytes:
    if isinstance(event, bytes):
        return event
    name = f"event: {event['type']}\n" if named and isinstance(event, Mapping) and "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n".encode()


def chat_completion(
    text: str | None = TEXT,
    *,
    model: str = "gpt-4o-mini",
    usage: Counts | None = (5, 7),
    finish_reason: str | None = "stop",
    response_id: str = "chatcmpl-1",
    tool_calls: Sequence[Mapping[str, object]] | None = None,
    choices: int = 1,
) -> dict[str, Any]:
    """Return the body of a chat completion.

    Args:
        text: What the assistant says; None if it only calls tools.
        model: The model that answered.
        usage: None leaves it out.
        finish_reason: Of every choice.
        response_id: The ``id`` of the body.
        tool_calls: As the API spells them.
        choices: How many, all alike.
    """
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    if tool_calls is not None:
        message["tool_calls"] = list(tool_calls)
    body: dict[str, Any] = {
        "id": response_id,
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason}
            for index in range(choices)
        ],
    }
    if usage is not None:
        body["usage"] = chat_usage(usage)
    return body


def chat_chunk(
    delta: Mapping[str, object] | None,
    *,
    model: str = "gpt-4o-mini",
    usage: Counts | None = None,
    finish_reason: str | None = None,
    response_id: str = "chatcmpl-1",
    choice: int = 0,
) -> dict[str, Any]:
    """Return one chunk of a streamed chat completion.

    Args:
        delta: What is new in the choice; None for a chunk without choices, such as the one that carries the usage.
        model: The model that answered.
        usage: None leaves it out.
        finish_reason: None until the choice is complete.
        response_id: The ``id`` of the chunk, the same for the whole stream.
        choice: The index of the choice.
    """
    chunk: dict[str, Any] = {
        "id": response_id,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
        "choices": [],
    }
    if delta is not None:
        chunk["choices"] = [{"index": choice, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}]
    if usage is not None:
        chunk["usage"] = chat_usage(usage)
    return chunk


def chat_chunks(
    text: str | Sequence[str] = TEXT,
    *,
    model: str = "gpt-4o-mini",
    usage: Counts | None = None,
    finish_reason: str | None = "stop",
    response_id: str = "chatcmpl-1",
    choices: int = 1,
) -> list[dict[str, Any]]:
    """Return the chunks of a streamed chat completion: role, pieces of text, finish reason, usage.

    Args:
        text: Cut at the words, or pieces to be sent as they are.
        model: The model that answered.
        usage: None leaves the usage chunk out, as the API does unless it is asked for.
        finish_reason: None leaves its chunk out: a stream that breaks off.
        response_id: The ``id`` of every chunk.
        choices: How many, all alike, in turns.
    """
    pieces = cut_at_words(text)
    deltas: list[tuple[dict[str, object], str | None]] = [({"role": "assistant", "content": "", "refusal": None}, None)]
    deltas += [({"content": piece}, None) for piece in pieces]
    if finish_reason is not None:
        deltas.append(({}, finish_reason))
    chunks = [
        chat_chunk(delta, model=model, finish_reason=reason, response_id=response_id, choice=choice)
        for delta, reason in deltas
        for choice in range(choices)
    ]
    if usage is not None:
        chunks.append(chat_chunk(None, model=model, usage=usage, response_id=response_id))
    return chunks


def error_body(
    message: str,
    type: str = "invalid_request_error",  # noqa: A002 - its name in the body
    code: str | None = None,
) -> dict[str, Any]:
    """Return the body the API sends with a status of 400 and above."""
    return {"error": {"message": message, "type": type, "param": None, "code": code}}


def _usual_chat(request: ReceivedRequest, number: int) -> Reply:
    asked = request.json
    model, response_id = str(asked.get("model", "gpt-4o-mini")), f"chatcmpl-{number:06}"
    choices = asked.get("n") or 1
    if not asked.get("stream"):
        return JsonReply(chat_completion(model=model, response_id=response_id, choices=choices))
    options = asked.get("stream_options") or {}
    usage = (5, 7) if options.get("include_usage") else None
    return StreamReply(chat_chunks(model=model, usage=usage, response_id=response_id, choices=choices))


def _usual_models(_request: ReceivedRequest, _number: int) -> Reply:
    model = {"id": "gpt-4o-mini", "object": "model", "created": CREATED, "owned_by": "scripted-server"}
    return JsonReply({"object": "list", "data": [model]})


def _usual_response(request: ReceivedRequest, number: int) -> Reply:
    asked = request.json
    model, response_id = str(asked.get("model", "gpt-4o-mini")), f"resp_{number:06}"
    if asked.get("stream"):
        return StreamReply(response_events(model=model, response_id=response_id), done=False, named=True)
    if asked.get("background"):
        return JsonReply(response_object(model=model, response_id=response_id, status="queued", usage=None))
    return JsonReply(response_object(model=model, response_id=response_id))


def _usual_fetch(request: ReceivedRequest, _number: int) -> Reply:
    response_id = request.path.split("/")[2]
    if request.path.endswith("/cancel"):
        return JsonReply(response_object(response_id=response_id, status="cancelled", usage=None))
    if "stream=true" not in request.query:
        return JsonReply(response_object(response_id=response_id))
    cursor = re.search(r"starting_after=(\d+)", request.query)
    events = response_events(response_id=response_id)
    return StreamReply(events[int(cursor[1]) + 1 :] if cursor else events, done=False, named=True)


def _usual_completion(request: ReceivedRequest, number: int) -> Reply:
    asked = request.json
    model, response_id = str(asked.get("model", "gpt-3.5-turbo-instruct")), f"cmpl-{number:06}"
    choices = asked.get("n") or 1
    if asked.get("stream"):
        return StreamReply(text_completion_chunks(model=model, response_id=response_id, choices=choices))
    return JsonReply(text_completion(model=model, response_id=response_id, choices=choices))


def _usual_embeddings(request: ReceivedRequest, _number: int) -> Reply:
    asked = request.json
    given = asked.get("input")
    several = isinstance(given, list) and given and not isinstance(given[0], int)
    vectors = [(0.25, -0.5, 1.0)] * (len(given) if several and given is not None else 1)
    encoding = str(asked.get("encoding_format", "float"))
    return JsonReply(embedding_list(vectors, model=str(asked.get("model")), encoding_format=encoding))


def _usual_images(request: ReceivedRequest, _number: int) -> Reply:
    if _asked_to_stream(request):
        return StreamReply(image_events(edit=request.path.endswith("/edits")), done=False, named=True)
    return JsonReply(image_list(images=request.json.get("n") or 1))


def _usual_speech(_request: ReceivedRequest, _number: int) -> Reply:
    return JsonReply(SPEECH, headers={"content-type": "audio/mpeg"})


def _usual_transcription(request: ReceivedRequest, _number: int) -> Reply:
    if _asked_to_stream(request):
        return StreamReply(transcription_events(), done=False, named=True)
    if _form_field(request, "response_format") in {b"text", b"srt", b"vtt"}:
        return JsonReply(TEXT.encode() + b"\n", headers={"content-type": "text/plain; charset=utf-8"})
    return JsonReply(transcription(usage=None if request.path.endswith("/translations") else (5, 7)))


def _asked_to_stream(request: ReceivedRequest) -> bool:
    return request.json.get("stream") is True or _form_field(request, "stream") == b"true"


def _form_field(request: ReceivedRequest, name: str) -> bytes | None:
    found = re.search(rb'name="%s"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n' % name.encode(), request.body)
    return found[1] if found else None


def _usual_search(_request: ReceivedRequest, _number: int) -> Reply:
    return JsonReply(search_page())


def _usual_video(request: ReceivedRequest, _number: int) -> Reply:
    return JsonReply(video(model=str(request.json.get("model", "sora-2"))))


def _usual_run(request: ReceivedRequest, _number: int) -> Reply:
    if _asked_to_stream(request):
        return StreamReply(thread_run_events(), done=True)
    return JsonReply(thread_run())


def _usual_agent(request: ReceivedRequest, _number: int) -> Reply:
    if request.method == "GET" or _asked_to_stream(request):
        return StreamReply(agent_session_events(), done=False, named=True)
    if request.path.endswith("/events"):
        return JsonReply(b"", status=202)
    return JsonReply(agent_session(model=str((request.json.get("agent") or {}).get("model", "gpt-6-luna"))))


def _always(body: Callable[[], dict[str, Any]]) -> Callable[[ReceivedRequest, int], Reply]:
    return lambda _request, _number: JsonReply(body())


def _token_count() -> dict[str, Any]:
    return {"object": "response.input_tokens", "input_tokens": 5}


_USUAL: Final[Mapping[str, Callable[[ReceivedRequest, int], Reply]]] = MappingProxyType(
    {
        "POST /chat/completions": _usual_chat,
        "POST /responses": _usual_response,
        "POST /responses/compact": _always(compaction),
        "POST /responses/input_tokens": _always(_token_count),
        "GET /responses/*": _usual_fetch,
        "POST /responses/*/cancel": _usual_fetch,
        "POST /completions": _usual_completion,
        "POST /embeddings": _usual_embeddings,
        "POST /images/generations": _usual_images,
        "POST /images/edits": _usual_images,
        "POST /images/variations": _usual_images,
        "POST /audio/speech": _usual_speech,
        "POST /audio/transcriptions": _usual_transcription,
        "POST /audio/translations": _usual_transcription,
        "POST /moderations": _always(moderation),
        "POST /decisions": _always(decision),
        "POST /vector_stores/*/search": _usual_search,
        "POST /videos": _usual_video,
        "POST /videos/edits": _usual_video,
        "POST /videos/extensions": _usual_video,
        "POST /videos/*/remix": _usual_video,
        "POST /threads/runs": _usual_run,
        "POST /threads/*/runs": _usual_run,
        "POST /threads/*/runs/*/submit_tool_outputs": _usual_run,
        "POST /agents/sessions": _usual_agent,
        "POST /agents/sessions/*/events": _usual_agent,
        "GET /agents/sessions/*/events": _usual_agent,
        "POST /agents/automations/*/invocations": _always(agent_invocation),
        "POST /fine_tuning/alpha/graders/run": _always(grade),
        "GET /models": _usual_models,
    }
)


def _usual_reply(request: ReceivedRequest, number: int) -> Reply:
    route = f"{request.method} {request.path}"
    answer = _USUAL.get(route)
    if answer is None:
        answer = next((found for pattern, found in _USUAL.items() if _matches(pattern, route)), None)
    if answer is None:
        return JsonReply(error_body(f"Invalid URL ({route})"), status=404)
    return answer(request, number)


def _matches(pattern: str, route: str) -> bool:
    """Whether each star stands for one step of the path."""
    wanted, steps = pattern.split("/"), route.split("/")
    return len(wanted) == len(steps) and all(want in ("*", step) for want, step in zip(wanted, steps, strict=True))
