"""Every way to call the client, as data: how it is called, what the server answers, what callbacks are to be told.

A scenario is a row. A new API method brings rows of its own, and a form (see `forms.py`) only where none of the
existing ones calls it that way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import forms
import openai
import pydantic
from forms import MODEL, MakeClient, MineError, Person, Scene, Stop, StreamCut, StreamTimeout, plain
from openai.types.chat import ChatCompletionMessage

from otel_llm_callback import FailedResponseError
from otel_llm_callback.testing import (
    JsonReply,
    RecordingCallback,
    StreamReply,
    chat_chunk,
    chat_chunks,
    chat_completion,
    check_grammar,
    error_body,
)

ANSWERED_BY = "gpt-4o-mini-2024-07-18"
MESSAGES = ({"role": "user", "content": "Say hello."},)
OMIT = getattr(openai, "omit", openai.NOT_GIVEN)  # openai 1.x has only the older one


# --- What callbacks are told ------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """``on_request_sent``, in the facts that differ between scenarios."""

    stream: bool = False
    model: str | None = MODEL
    operation: str = "chat"
    api: str = "chat_completions"


class Chunk(NamedTuple):
    """``on_stream_chunk``."""

    text: str
    kind: str = "text"


class Received(NamedTuple):
    """``on_response_received``, or what an error had ``partial``."""

    outcome: str = "completed"
    id: str | None = "chatcmpl-1"
    model: str | None = ANSWERED_BY
    finish_reasons: tuple[str, ...] = ("stop",)
    usage: tuple[int | None, int | None] | None = (5, 7)
    chunks: int | None = None
    status: int | None = 200
    retries: tuple[tuple[str | None, int | None], ...] = ()
    truncated: bool = False
    state: str | None = None
    """What the API calls the status of a response or job."""


class Failed(NamedTuple):
    """``on_error``."""

    error: str
    outcome: str = "error"
    status: int | None = 200
    retries: tuple[tuple[str | None, int | None], ...] = ()
    partial: Received | None = None


Told = Sent | Chunk | Received | Failed


def told(recorder: RecordingCallback) -> list[tuple[Told, ...]]:
    """Return what *recorder* was told, call by call in the order of the requests; the order of events is checked."""
    check_grammar(recorder.events)
    return [tuple(map(_told, call)) for call in recorder.calls().values()]


def _told(event: Any) -> Told:
    match event.name:
        case "request_sent":
            sent = event.metadata
            return Sent(sent.stream, sent.model, sent.operation, sent.api)
        case "stream_chunk":
            return Chunk(str(event.chunk), event.chunk.kind)
        case "response_received":
            return _received(event.metadata)
    context = event.context
    code = event.error.code if isinstance(event.error, FailedResponseError) else type(event.error).__name__
    assert context.error_type == code
    partial = context.partial and _received(context.partial)
    return Failed(context.error_type, context.outcome, context.status_code, _retries(context.retries), partial)


def _received(metadata: Any) -> Received:
    usage = metadata.usage and (metadata.usage.input_tokens, metadata.usage.output_tokens)
    return Received(
        metadata.outcome,
        metadata.id,
        metadata.model,
        metadata.finish_reasons,
        usage,
        metadata.chunk_count,
        metadata.status_code,
        _retries(metadata.retries),
        metadata.truncated,
        metadata.status,
    )


def _retries(retries: Any) -> tuple[tuple[str | None, int | None], ...]:
    return tuple((retry.error, retry.status_code) for retry in retries)


# --- What the server answers ------------------------------------------------------------------------------------------

USAGE = (5, 7)
PIECES = ("Hello ", "world", "!")

ANSWER = JsonReply(chat_completion("".join(PIECES), model=ANSWERED_BY, usage=USAGE))
STREAM = StreamReply(chat_chunks(PIECES, model=ANSWERED_BY, usage=USAGE))
ENDLESS = StreamReply(chat_chunks(["word "] * 500, model=ANSWERED_BY), delay_s=0.01)  # five seconds: nobody waits
PEOPLE = JsonReply(chat_completion('{"name": "Ada"}', model=ANSWERED_BY, usage=USAGE))
PEOPLE_STREAM = StreamReply(chat_chunks(['{"name": ', '"Ada"}'], model=ANSWERED_BY, usage=USAGE))

STREAMED = (Sent(stream=True), Chunk("", "event"), *map(Chunk, PIECES), Chunk("", "event"), Chunk("", "event"))
READ = (*STREAMED, Received(chunks=6))
BEGUN = (Sent(stream=True), Chunk("", "event"), Chunk("word "))
"""An endless stream of which two chunks were taken."""


def left(outcome: str, chunks: int) -> Received:
    """What is told of an endless stream that was left: no finish reason is invented, no usage."""
    return Received(outcome, finish_reasons=(), usage=None, chunks=chunks)


def after_retries(reply: Any, *, times: int = 2, status: int = 429) -> Any:
    """Answer with *status* a number of times, then with *reply*."""
    refusal = JsonReply(error_body("slow down", "rate_limit"), status=status, headers={"retry-after-ms": "1"})
    return lambda request: refusal if request.attempt < times else reply


def refusal(status: int, message: str = "no", **headers: str) -> JsonReply:
    """Refuse, with a delay for the retry that the tests can afford."""
    return JsonReply(error_body(message, code="refused"), status=status, headers={"retry-after-ms": "1", **headers})


def stream(*events: object, **options: Any) -> StreamReply:
    """Stream these events."""
    return StreamReply(events, **options)


def delta(**fields: object) -> dict[str, Any]:
    """A chunk with this delta."""
    return chat_chunk(fields, model=ANSWERED_BY)


def without(body: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """*body* without some of its fields."""
    return {name: value for name, value in body.items() if name not in names}


def own_answer(request: Any) -> JsonReply | StreamReply:
    """Answer with an id made of the message, so that concurrent calls can be told apart."""
    text = request.json["messages"][0]["content"]
    if request.json.get("stream"):
        return StreamReply(chat_chunks([text], model=ANSWERED_BY, usage=USAGE, response_id=text), delay_s=0.002)
    return JsonReply(chat_completion(text, model=ANSWERED_BY, response_id=text))


# --- The scenario -----------------------------------------------------------------------------------------------------


def chat(**more: Any) -> Callable[[], dict[str, Any]]:
    """Arguments of a chat completion, with some more; a callable is called anew for each run."""

    def arguments() -> dict[str, Any]:
        made = {
            name: value() if callable(value) and not isinstance(value, type) else value for name, value in more.items()
        }
        return {"model": MODEL, "messages": [dict(message) for message in MESSAGES], **made}

    return arguments


@dataclass(frozen=True, eq=False)  # two rows are two scenarios, and can be keys
class Scenario:
    """One way to call the client.

    Attributes:
        name: What is special about it.
        sync: How it is called; None if it makes no sense for the sync client.
        asynchronous: The async twin.
        reply: The server's answer or the function that decides it; None for the server's usual answers.
        arguments: Makes the call's keyword arguments, anew for each run.
        events: What callbacks are told of each call.
        calls: How many calls the form makes that are observed.
        more: What callbacks are told of calls that differ from the first.
        raises: The exception that reaches the caller, None if there is none.
        client: Makes the client.
        keep: Takes something from a client made before instrumentation; the form finds it in ``scene.kept``.
    """

    name: str
    sync: Callable[[Scene], object] | None
    asynchronous: Callable[[Scene], Any] | None
    reply: Any = ANSWER
    events: tuple[Told, ...] = (Sent(), Received())
    arguments: Callable[[], dict[str, Any]] = chat()  # noqa: RUF009 - a function
    calls: int = 1
    more: tuple[tuple[Told, ...], ...] = ()
    raises: type[BaseException] | None = None
    client: MakeClient = plain
    keep: Callable[[Any], object] | None = None

    def __str__(self) -> str:
        return self.name


# --- The rows: chat completions ---------------------------------------------------------------------------------------

TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
TOOL_CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"city": "Oslo"}'}},
    {"id": "call_2", "type": "function", "function": {"name": "look_up", "arguments": '{"city": "Rome"}'}},
]


def tool_delta(index: object, arguments: str | None, *, call_id: str | None = None) -> dict[str, Any]:
    """A chunk with a piece of a tool call; the first piece has the id and the name."""
    function: dict[str, Any] = {"arguments": arguments}
    if call_id is None:
        return delta(tool_calls=[{"index": index, "function": function}])
    function["name"] = "look_up"
    return delta(tool_calls=[{"index": index, "id": call_id, "type": "function", "function": function}])


FINISH = chat_chunk({}, model=ANSWERED_BY, finish_reason="stop")
COUNTS = chat_chunk(None, model=ANSWERED_BY, usage=USAGE)
EVENT = Chunk("", "event")
RETRIED = (("HTTPStatusError", 429), ("HTTPStatusError", 429))
ASKED_STREAM = Sent(stream=True)


def failed(error: str, status: int | None, **facts: Any) -> tuple[Told, ...]:
    """What is told of a call that failed before any answer came."""
    return (Sent(), Failed(error, status=status, **facts))


def broken(error: str, *chunks: Chunk, **facts: Any) -> tuple[Told, ...]:
    """What is told of a stream that failed after these chunks."""
    reasons = ("error",) if chunks else ()
    partial = Received("error", finish_reasons=reasons, usage=None, chunks=len(chunks)) if chunks else None
    return (ASKED_STREAM, *chunks, Failed(error, partial=partial, **facts))


def odd_stream(*chunks: Chunk, **facts: Any) -> tuple[Told, ...]:
    """What is told of a stream that ends by itself after these chunks."""
    return (ASKED_STREAM, *chunks, Received(chunks=len(chunks), **facts))


WHOLE = (
    Scenario("create", forms.create, forms.acreate),
    Scenario("usual answer", forms.create, forms.acreate, None, (Sent(), Received(id="chatcmpl-000001", model=MODEL))),
    Scenario("parse", forms.parse, forms.aparse, PEOPLE, arguments=chat(response_format=Person)),
    Scenario("raw", forms.raw, forms.araw),
    Scenario("raw, not parsed", forms.raw_unparsed, forms.araw_unparsed),
    Scenario("raw parse", forms.raw_parse, forms.araw_parse, PEOPLE, arguments=chat(response_format=Person)),
    Scenario("raw, parsed to other types", forms.raw_parse_other_type, forms.araw_parse_other_type),
    Scenario("streaming response, parsed", forms.streaming_parse, forms.astreaming_parse),
    Scenario(
        "streaming response, read as JSON",
        forms.streaming_json,
        forms.astreaming_json,
        events=(Sent(), Received(id=None, model=None, finish_reasons=(), usage=None)),
    ),
    Scenario(
        "streaming response, unread",
        forms.streaming_unread,
        forms.astreaming_unread,
        events=(Sent(), Received("closed_early", id=None, model=None, finish_reasons=(), usage=None)),
    ),
    Scenario(
        "streaming response, caller raises",
        forms.raise_in_streaming_response,
        forms.araise_in_streaming_response,
        events=(Sent(), Received("closed_early", id=None, model=None, finish_reasons=(), usage=None)),
        raises=MineError,
    ),
    Scenario(
        "post for an HTTP response",
        forms.post_for_http_response,
        forms.apost_for_http_response,
        events=(Sent(), Received(id=None, model=None, finish_reasons=(), usage=None)),
    ),
    Scenario("post for an object", forms.post_for_object, forms.apost_for_object),
    Scenario(
        "post for text",
        forms.post_for_text,
        forms.apost_for_text,
        events=(Sent(), Received(id=None, model=None, finish_reasons=(), usage=None)),
    ),
    Scenario("post elsewhere", forms.post_elsewhere, forms.apost_elsewhere, JsonReply({"b": 2}), events=(), calls=0),
    Scenario("list of models", forms.list_models, forms.alist_models, None, events=(), calls=0),
    Scenario("module-level client", forms.module_level, None),
    Scenario("copied client", forms.create, forms.acreate, client=forms.copied),
    Scenario("legacy httpx client", forms.create, forms.acreate, client=forms.legacy_httpx),
    Scenario("Azure", forms.create, forms.acreate, client=forms.azure),
    Scenario("Azure with a fixed deployment", forms.create, forms.acreate, client=forms.azure_deployment),
    Scenario("Azure raw", forms.raw, forms.araw, client=forms.azure),
    Scenario("client made before", forms.create, forms.acreate, keep=lambda client: None),
    Scenario(
        "raw accessor cached before",
        forms.kept_raw,
        forms.akept_raw,
        keep=lambda client: client.chat.completions.with_raw_response,
    ),
    Scenario(
        "bound method cached before",
        forms.kept_create,
        forms.akept_create,
        keep=lambda client: client.chat.completions.create,
    ),
    Scenario("openai debug log", forms.create_with_debug_log, forms.acreate_with_debug_log),
    Scenario("twenty at once", forms.twenty, forms.atwenty, own_answer, (Sent(), Received(id="call-<n>")), calls=20),
    # What callers pass.
    Scenario(
        "every parameter",
        forms.create,
        forms.acreate,
        arguments=chat(
            temperature=0.5,
            top_p=0.9,
            max_completion_tokens=64,
            stop=["END"],
            seed=7,
            presence_penalty=0.1,
            frequency_penalty=0.2,
            user="u-1",
            metadata=lambda: {"job": "a"},
            logit_bias=lambda: {"50256": -100},
            response_format=lambda: {"type": "json_object"},
            extra_headers=lambda: {"x-mine": "1"},
            extra_query=lambda: {"trial": "yes"},
            extra_body=lambda: {"top_k": 5, "nested": {"a": [1, 2]}},
            timeout=9.0,
        ),
    ),
    Scenario(
        "nothing given everywhere",
        forms.create,
        forms.acreate,
        arguments=chat(temperature=openai.NOT_GIVEN, top_p=OMIT, tools=OMIT, stop=openai.NOT_GIVEN, n=OMIT, user=OMIT),
    ),
    Scenario(
        "None where it is allowed",
        forms.create,
        forms.acreate,
        arguments=chat(temperature=None, stop=None, n=None, max_tokens=None),
    ),
    Scenario(
        "generator of messages",
        forms.create,
        forms.acreate,
        arguments=chat(messages=lambda: (dict(m) for m in MESSAGES)),
    ),
    Scenario(
        "generators of messages and tools, streamed",
        forms.read,
        forms.aread,
        STREAM,
        READ,
        arguments=chat(messages=lambda: (dict(m) for m in MESSAGES), tools=lambda: (dict(t) for t in [TOOL])),
    ),
    Scenario(
        "pydantic message",
        forms.create,
        forms.acreate,
        arguments=chat(
            messages=lambda: [
                *MESSAGES,
                ChatCompletionMessage(role="assistant", content="Yes?"),
                {"role": "user", "content": "Hi"},
            ]
        ),
    ),
    Scenario(
        "image in a message",
        forms.create,
        forms.acreate,
        arguments=chat(
            messages=lambda: [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}},
                    ],
                }
            ]
        ),
    ),
    Scenario(
        "messages as a tuple",
        forms.create,
        forms.acreate,
        arguments=chat(messages=lambda: tuple(dict(m) for m in MESSAGES)),
    ),
    Scenario(
        "odd messages",
        forms.create,
        forms.acreate,
        arguments=chat(messages=lambda: [None, 1, "text", {"content": None}]),
    ),
    Scenario(
        "model in the wrong type",
        forms.create,
        forms.acreate,
        arguments=chat(model=lambda: None),
        events=(Sent(model=None), Received()),
    ),
    Scenario(
        "no messages argument",
        forms.create,
        forms.acreate,
        arguments=lambda: {"model": MODEL},
        events=(),
        calls=0,
        raises=TypeError,
    ),
    # What servers answer.
    Scenario(
        "two choices",
        forms.create,
        forms.acreate,
        JsonReply(chat_completion("a", model=ANSWERED_BY, choices=2)),
        (Sent(), Received(finish_reasons=("stop", "stop"))),
        arguments=chat(n=2),
    ),
    Scenario(
        "tool calls",
        forms.create,
        forms.acreate,
        JsonReply(chat_completion(None, model=ANSWERED_BY, finish_reason="tool_calls", tool_calls=TOOL_CALLS)),
        (Sent(), Received(finish_reasons=("tool_calls",))),
        arguments=chat(tools=lambda: [TOOL]),
    ),
    Scenario(
        "parse cut at the length limit",
        forms.parse,
        forms.aparse,
        JsonReply(chat_completion('{"na', model=ANSWERED_BY, finish_reason="length")),
        (
            Sent(),
            Failed("LengthFinishReasonError", partial=Received("error", finish_reasons=("length",))),
        ),
        arguments=chat(response_format=Person),
        raises=openai.LengthFinishReasonError,
    ),
    Scenario(
        "raw parse cut at the length limit",
        forms.raw_parse,
        forms.araw_parse,
        JsonReply(chat_completion('{"na', model=ANSWERED_BY, finish_reason="length")),
        (Sent(), Received(finish_reasons=("length",))),
        arguments=chat(response_format=Person),
        raises=openai.LengthFinishReasonError,
    ),
    Scenario(
        "parse of something else",
        forms.parse,
        forms.aparse,
        JsonReply(chat_completion("no JSON", model=ANSWERED_BY)),
        (Sent(), Failed("ValidationError", partial=Received("error"))),
        arguments=chat(response_format=Person),
        raises=pydantic.ValidationError,
    ),
    Scenario(
        "usage null",
        forms.create,
        forms.acreate,
        JsonReply({**ANSWER.body, "usage": None}),
        (Sent(), Received(usage=None)),
    ),
    Scenario(
        "usage with null members",
        forms.create,
        forms.acreate,
        JsonReply({**ANSWER.body, "usage": {"prompt_tokens": 5, "completion_tokens": None, "total_tokens": None}}),
        (Sent(), Received(usage=(5, None))),
    ),
    Scenario(
        "usage of odd types",
        forms.create,
        forms.acreate,
        JsonReply({**ANSWER.body, "usage": {"prompt_tokens": "five", "completion_tokens": [7], "total_tokens": {}}}),
        (Sent(), Received(usage=None)),
    ),
    Scenario(
        "choices null",
        forms.create,
        forms.acreate,
        JsonReply({**ANSWER.body, "choices": None}),
        (Sent(), Received(finish_reasons=())),
    ),
    Scenario(
        "choices of odd types",
        forms.create,
        forms.acreate,
        JsonReply({**ANSWER.body, "choices": [None, 1, {"index": 0}]}),
        (Sent(), Received(finish_reasons=("error",) * 3)),
    ),
    Scenario(
        "id and model missing",
        forms.create,
        forms.acreate,
        JsonReply(without(ANSWER.body, "id", "model", "created")),
        (Sent(), Received(id=None, model=None)),
    ),
    Scenario(
        "id and model null",
        forms.create,
        forms.acreate,
        JsonReply({**ANSWER.body, "id": None, "model": None}),
        (Sent(), Received(id=None, model=None)),
    ),
    Scenario(
        "error object with status 200",
        forms.create,
        forms.acreate,
        JsonReply(error_body("overloaded", "server_error")),
        (Sent(), Received(id=None, model=None, finish_reasons=(), usage=None)),
    ),
    Scenario(
        "plain text",
        forms.create,
        forms.acreate,
        JsonReply(b"hello", headers={"content-type": "text/plain"}),
        (Sent(), Received(id=None, model=None, finish_reasons=(), usage=None)),
    ),
    Scenario(
        "a list",
        forms.create,
        forms.acreate,
        JsonReply([1, 2]),
        (Sent(), Received(id=None, model=None, finish_reasons=(), usage=None)),
    ),
    Scenario(
        "null",
        forms.create,
        forms.acreate,
        JsonReply(None),
        (Sent(), Received(id=None, model=None, finish_reasons=(), usage=None)),
    ),
    Scenario(
        "broken JSON",
        forms.create,
        forms.acreate,
        JsonReply(b'{"id": '),
        (Sent(), Failed("JSONDecodeError")),
        raises=ValueError,
    ),
    Scenario(
        "answer refused by strict validation",
        forms.create,
        forms.acreate,
        JsonReply({"id": 1}),
        (Sent(), Failed("APIResponseValidationError")),
        raises=openai.APIResponseValidationError,
        client=forms.strict,
    ),
)

REFUSED = (
    *(
        Scenario(
            f"status {status}",
            forms.create,
            forms.acreate,
            refusal(status),
            failed(error.__name__, status),
            raises=error,
            client=forms.no_retries,
        )
        for status, error in (
            (400, openai.BadRequestError),
            (401, openai.AuthenticationError),
            (403, openai.PermissionDeniedError),
            (404, openai.NotFoundError),
            (409, openai.ConflictError),
            (422, openai.UnprocessableEntityError),
            (429, openai.RateLimitError),
            (500, openai.InternalServerError),
            (503, openai.InternalServerError),
        )
    ),
    Scenario(
        "status 400, streamed",
        forms.read,
        forms.aread,
        refusal(400),
        (ASKED_STREAM, Failed("BadRequestError", status=400)),
        raises=openai.BadRequestError,
    ),
    Scenario(
        "status 400, raw",
        forms.raw,
        forms.araw,
        refusal(400),
        failed("BadRequestError", 400),
        raises=openai.BadRequestError,
    ),
    Scenario(
        "status 400, streaming response",
        forms.streaming_parse,
        forms.astreaming_parse,
        refusal(400),
        failed("BadRequestError", 400),
        raises=openai.BadRequestError,
    ),
    Scenario(
        "status 400, helper",
        forms.use_helper,
        forms.ause_helper,
        refusal(400),
        (ASKED_STREAM, Failed("BadRequestError", status=400)),
        raises=openai.BadRequestError,
    ),
    Scenario(
        "status 400 without JSON",
        forms.create,
        forms.acreate,
        JsonReply(b"<html>no</html>", status=400, headers={"content-type": "text/html"}),
        failed("BadRequestError", 400),
        raises=openai.BadRequestError,
    ),
    Scenario(
        "429 twice, then an answer",
        forms.create,
        forms.acreate,
        after_retries(ANSWER),
        (Sent(), Received(retries=RETRIED)),
    ),
    Scenario(
        "503 once, then an answer",
        forms.create,
        forms.acreate,
        after_retries(ANSWER, times=1, status=503),
        (Sent(), Received(retries=(("HTTPStatusError", 503),))),
    ),
    Scenario(
        "429 twice, then a stream",
        forms.read,
        forms.aread,
        after_retries(STREAM),
        (*STREAMED, Received(chunks=6, retries=RETRIED)),
    ),
    Scenario(
        "429 twice, then a raw answer",
        forms.raw,
        forms.araw,
        after_retries(ANSWER),
        (Sent(), Received(retries=RETRIED)),
    ),
    Scenario(
        "429 twice, then a raw stream",
        forms.raw_read,
        forms.araw_read,
        after_retries(STREAM),
        (*STREAMED, Received(chunks=6, retries=RETRIED)),
    ),
    Scenario(
        "429 twice, then a streaming response",
        forms.streaming_parse,
        forms.astreaming_parse,
        after_retries(ANSWER),
        (Sent(), Received(retries=RETRIED)),
    ),
    Scenario(
        "429 twice, then parsed",
        forms.parse,
        forms.aparse,
        after_retries(PEOPLE),
        (Sent(), Received(retries=RETRIED)),
        arguments=chat(response_format=Person),
    ),
    Scenario(
        "429 to the last retry",
        forms.create,
        forms.acreate,
        refusal(429),
        failed("RateLimitError", 429, retries=RETRIED),
        raises=openai.RateLimitError,
    ),
    Scenario(
        "server asks not to retry",
        forms.create,
        forms.acreate,
        refusal(500, **{"x-should-retry": "false"}),
        failed("InternalServerError", 500),
        raises=openai.InternalServerError,
    ),
    Scenario(
        "timeout",
        forms.create,
        forms.acreate,
        JsonReply(ANSWER.body, delay_s=5),
        failed("APITimeoutError", None, retries=(("ReadTimeout", None),)),
        raises=openai.APITimeoutError,
        client=forms.impatient,
    ),
    Scenario(
        "timeout between chunks",
        forms.read,
        forms.aread,
        StreamReply([delta(content="word ")] * 9, delay_s=5),
        broken(StreamTimeout.__name__),
        raises=StreamTimeout,
        client=forms.impatient,
    ),
    Scenario(
        "connection refused",
        forms.create,
        forms.acreate,
        None,
        failed("APIConnectionError", None, retries=(("ConnectError", None),)),
        raises=openai.APIConnectionError,
        client=forms.refused,
    ),
    Scenario(
        "connection refused, streamed",
        forms.read,
        forms.aread,
        None,
        (ASKED_STREAM, Failed("APIConnectionError", status=None, retries=(("ConnectError", None),))),
        raises=openai.APIConnectionError,
        client=forms.refused,
    ),
    Scenario(
        "cancelled before headers",
        None,
        forms.cancel_before_headers,
        JsonReply(ANSWER.body, delay_s=5),
        failed("CancelledError", None, outcome="cancelled"),
        raises=asyncio.CancelledError,
    ),
    Scenario(
        "wait_for runs out before headers",
        None,
        forms.wait_for_answer,
        JsonReply(ANSWER.body, delay_s=5),
        failed("CancelledError", None, outcome="cancelled"),
        raises=asyncio.TimeoutError,
    ),
)

STREAMS = (
    Scenario("stream", forms.read, forms.aread, STREAM, READ),
    Scenario(
        "usual stream with usage",
        forms.read,
        forms.aread,
        None,
        (
            ASKED_STREAM,
            EVENT,
            *(
                Chunk(f"{word} ")
                for word in ["Hello!", "I", "am", "a", "scripted", "server,", "and", "this", "is", "all", "I", "ever"]
            ),
            Chunk("say."),
            EVENT,
            EVENT,
            Received(id="chatcmpl-000001", model=MODEL, chunks=16),
        ),
        arguments=chat(stream_options=lambda: {"include_usage": True}),
    ),
    Scenario(
        "stream without usage",
        forms.read,
        forms.aread,
        stream(*chat_chunks(PIECES, model=ANSWERED_BY)),
        (*STREAMED[:-1], Received(usage=None, chunks=5)),
    ),
    Scenario("stream in a with block", forms.read_in_with, forms.aread_in_with, STREAM, READ),
    Scenario("stream by next", forms.read_by_next, forms.aread_by_next, STREAM, READ),
    Scenario("stream read twice", forms.read_twice, forms.aread_twice, STREAM, READ),
    Scenario("peek, then resume", forms.peek_then_resume, forms.apeek_then_resume, STREAM, READ),
    Scenario("break, then resume", forms.break_then_resume, forms.abreak_then_resume, STREAM, READ),
    Scenario(
        "close the iterator, then resume",
        forms.close_iterator_then_resume,
        forms.aclose_iterator_then_resume,
        STREAM,
        READ,
    ),
    Scenario("stream looked at", forms.look_at_stream, forms.alook_at_stream, STREAM, READ),
    Scenario("stream handed to other threads", forms.hand_over, forms.ahand_over, STREAM, READ),
    Scenario("helper", forms.use_helper, forms.ause_helper, STREAM, READ),
    Scenario("helper, final only", forms.helper_final_only, forms.ahelper_final_only, STREAM, READ),
    Scenario(
        "helper with a type",
        forms.use_helper,
        forms.ause_helper,
        PEOPLE_STREAM,
        (ASKED_STREAM, EVENT, Chunk('{"name": '), Chunk('"Ada"}'), EVENT, EVENT, Received(chunks=5)),
        arguments=chat(response_format=Person),
    ),
    Scenario("raw stream", forms.raw_read, forms.araw_read, STREAM, READ),
    Scenario(
        "raw stream, closed early",
        forms.close_raw_stream,
        forms.aclose_raw_stream,
        ENDLESS,
        (*BEGUN, left("closed_early", 2)),
    ),
    Scenario(
        "raw stream read as lines",
        forms.raw_lines,
        forms.araw_lines,
        STREAM,
        (ASKED_STREAM, Received(id=None, model=None, finish_reasons=(), usage=None, chunks=0)),
    ),
    Scenario(
        "raw stream closed unparsed",
        forms.close_raw_unparsed,
        forms.aclose_raw_unparsed,
        ENDLESS,
        (ASKED_STREAM, left("closed_early", 0)._replace(id=None, model=None)),
    ),
    Scenario("streaming response, stream", forms.streaming_read, forms.astreaming_read, STREAM, READ),
    Scenario(
        "streaming response, lines",
        forms.streaming_lines,
        forms.astreaming_lines,
        STREAM,
        (ASKED_STREAM, Received(id=None, model=None, finish_reasons=(), usage=None, chunks=0)),
    ),
    Scenario(
        "streaming response left early",
        forms.leave_streaming_response,
        forms.aleave_streaming_response,
        ENDLESS,
        (*BEGUN, left("closed_early", 2)),
    ),
    Scenario("post for a stream", forms.post_for_stream, forms.apost_for_stream, STREAM, READ),
    Scenario("stream, Azure", forms.read, forms.aread, STREAM, READ, client=forms.azure),
    Scenario("stream, legacy httpx client", forms.read, forms.aread, STREAM, READ, client=forms.legacy_httpx),
    Scenario(
        "stream closed early, legacy httpx client",
        forms.close_after_two,
        forms.aclose_after_two,
        ENDLESS,
        (*BEGUN, left("closed_early", 2)),
        client=forms.legacy_httpx,
    ),
    Scenario("stream, client made before", forms.read, forms.aread, STREAM, READ, keep=lambda client: None),
    Scenario("stream, openai debug log", forms.read_with_debug_log, forms.aread_with_debug_log, STREAM, READ),
    Scenario(
        "twenty streams at once",
        forms.twenty_streams,
        forms.atwenty_streams,
        own_answer,
        (ASKED_STREAM, EVENT, Chunk("call-<n>"), EVENT, EVENT, Received(id="call-<n>", chunks=4)),
        calls=20,
    ),
)

LEFT = (
    Scenario(
        "close after two", forms.close_after_two, forms.aclose_after_two, ENDLESS, (*BEGUN, left("closed_early", 2))
    ),
    Scenario(
        "break in a with block", forms.break_in_with, forms.abreak_in_with, ENDLESS, (*BEGUN, left("closed_early", 2))
    ),
    Scenario(
        "exception in a with block",
        forms.raise_in_with,
        forms.araise_in_with,
        ENDLESS,
        (*BEGUN, left("closed_early", 2)),
        raises=MineError,
    ),
    Scenario(
        "not an Exception in a with block",
        forms.stop_in_with,
        None,
        ENDLESS,
        (*BEGUN, left("closed_early", 2)),
        raises=Stop,
    ),
    Scenario(
        "close while handling an exception",
        forms.close_while_handling,
        forms.aclose_while_handling,
        ENDLESS,
        (*BEGUN, left("closed_early", 2)),
    ),
    Scenario(
        "response closed", forms.close_response, forms.aclose_response, ENDLESS, (*BEGUN, left("closed_early", 2))
    ),
    Scenario("dropped after two", forms.drop_after_two, forms.adrop_after_two, ENDLESS, (*BEGUN, left("abandoned", 2))),
    Scenario(
        "closed unread",
        forms.close_unread,
        forms.aclose_unread,
        ENDLESS,
        (ASKED_STREAM, left("closed_early", 0)._replace(id=None, model=None)),
    ),
    Scenario(
        "dropped unread",
        forms.drop_unread,
        forms.adrop_unread,
        ENDLESS,
        (ASKED_STREAM, left("abandoned", 0)._replace(id=None, model=None)),
    ),
    Scenario(
        "helper left early",
        forms.leave_helper,
        forms.aleave_helper,
        ENDLESS,
        (*BEGUN[:2], left("closed_early", 1)),
    ),
    Scenario("helper never entered", forms.never_enter_helper, None, STREAM, events=(), calls=0),
    Scenario(
        "cancelled mid-stream",
        None,
        forms.cancel_mid_stream,
        StreamReply([delta(content="word ")] * 2 + [b""] * 500, delay_s=0.01),
        (
            ASKED_STREAM,
            Chunk("word "),
            Chunk("word "),
            Failed(
                "CancelledError",
                "cancelled",
                partial=Received("cancelled", finish_reasons=("error",), usage=None, chunks=2),
            ),
        ),
        raises=asyncio.CancelledError,
    ),
    Scenario(
        "wait_for runs out mid-stream",
        None,
        forms.wait_for_stream,
        StreamReply([delta(content="word ")] * 2 + [b""] * 500, delay_s=0.01),
        (
            ASKED_STREAM,
            Chunk("word "),
            Chunk("word "),
            Failed(
                "CancelledError",
                "cancelled",
                partial=Received("cancelled", finish_reasons=("error",), usage=None, chunks=2),
            ),
        ),
        raises=asyncio.TimeoutError,
    ),
)

ODD_STREAMS = (
    Scenario(
        "two choices in turns",
        forms.read,
        forms.aread,
        StreamReply(
            [
                *chat_chunks(["a"], model=ANSWERED_BY, choices=2)[:-2],
                chat_chunk({}, model=ANSWERED_BY, finish_reason="length", choice=1),
                chat_chunk({}, model=ANSWERED_BY, finish_reason="stop", choice=0),
                COUNTS,
            ]
        ),
        odd_stream(EVENT, EVENT, Chunk("a"), Chunk("a"), EVENT, EVENT, EVENT, finish_reasons=("stop", "length")),
        arguments=chat(n=2),
    ),
    Scenario(
        "parallel tool calls",
        forms.read,
        forms.aread,
        stream(
            delta(role="assistant", content=None),
            tool_delta(0, "", call_id="call_1"),
            tool_delta(0, '{"city": '),
            tool_delta(1, "", call_id="call_2"),
            tool_delta(0, '"Oslo"}'),
            tool_delta(1, '{"city": "Rome"}'),
            chat_chunk({}, model=ANSWERED_BY, finish_reason="tool_calls"),
            COUNTS,
        ),
        odd_stream(
            EVENT,
            Chunk("", "tool_call"),
            Chunk('{"city": ', "tool_call"),
            Chunk("", "tool_call"),
            Chunk('"Oslo"}', "tool_call"),
            Chunk('{"city": "Rome"}', "tool_call"),
            EVENT,
            EVENT,
            finish_reasons=("tool_calls",),
        ),
        arguments=chat(tools=lambda: [TOOL]),
    ),
    Scenario(
        "tool index null",
        forms.read,
        forms.aread,
        stream(
            tool_delta(None, "{", call_id="call_1"),
            tool_delta(None, "}"),
            tool_delta(None, None),
            FINISH,
            COUNTS,
        ),
        odd_stream(Chunk("{", "tool_call"), Chunk("}", "tool_call"), Chunk("", "tool_call"), EVENT, EVENT),
    ),
    Scenario(
        "huge indices",
        forms.read,
        forms.aread,
        stream(
            chat_chunk({"content": "a"}, model=ANSWERED_BY, choice=10**12),
            tool_delta(10**12, "{}", call_id="call_1"),
            FINISH,
            COUNTS,
        ),
        odd_stream(
            Chunk("a"), Chunk("{}", "tool_call"), EVENT, EVENT, finish_reasons=("stop", "error"), truncated=True
        ),
    ),
    Scenario(
        "refusal and reasoning",
        forms.read,
        forms.aread,
        stream(delta(reasoning_content="Hm."), delta(refusal="No."), FINISH, COUNTS),
        odd_stream(Chunk("Hm.", "reasoning"), Chunk("No.", "refusal"), EVENT, EVENT),
    ),
    Scenario(
        "choices null in a stream",
        forms.read,
        forms.aread,
        stream({**delta(), "choices": None}, delta(content="a"), FINISH, COUNTS),
        odd_stream(EVENT, Chunk("a"), EVENT, EVENT),
    ),
    Scenario(
        "choices missing in a stream",
        forms.read,
        forms.aread,
        stream(without(delta(), "choices"), delta(content="a"), FINISH, COUNTS),
        odd_stream(EVENT, Chunk("a"), EVENT, EVENT),
    ),
    Scenario(
        "delta null",
        forms.read,
        forms.aread,
        stream(
            {**delta(), "choices": [{"index": 0, "delta": None, "finish_reason": None}]},
            delta(content="a"),
            FINISH,
            COUNTS,
        ),
        odd_stream(EVENT, Chunk("a"), EVENT, EVENT),
    ),
    Scenario(
        "delta missing",
        forms.read,
        forms.aread,
        stream({**delta(), "choices": [{"index": 0}]}, delta(content="a"), FINISH, COUNTS),
        odd_stream(EVENT, Chunk("a"), EVENT, EVENT),
    ),
    Scenario(
        "an object that is no chunk",
        forms.read,
        forms.aread,
        stream({"weird": 1}, delta(content="a"), FINISH, COUNTS),
        odd_stream(EVENT, Chunk("a"), EVENT, EVENT),
    ),
    Scenario(
        "a list for a chunk",
        forms.read,
        forms.aread,
        stream([1, 2], delta(content="a"), FINISH, COUNTS),
        odd_stream(EVENT, Chunk("a"), EVENT, EVENT),
    ),
    Scenario(
        "numbers, text and null for chunks",
        forms.read,
        forms.aread,
        stream(7, "text", None, delta(content="a"), FINISH, COUNTS),
        odd_stream(EVENT, EVENT, EVENT, Chunk("a"), EVENT, EVENT),
    ),
    Scenario(
        "content of odd types",
        forms.read,
        forms.aread,
        stream(delta(content=7), delta(content=["a"]), delta(tool_calls="no"), delta(content="a"), FINISH, COUNTS),
        odd_stream(EVENT, EVENT, Chunk("", "tool_call"), Chunk("a"), EVENT, EVENT),
    ),
    Scenario(
        "Azure's empty first chunk",
        forms.read,
        forms.aread,
        stream(
            {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": []},
            *chat_chunks(["a"], model=ANSWERED_BY, usage=USAGE),
        ),
        odd_stream(EVENT, EVENT, Chunk("a"), EVENT, EVENT),
    ),
    Scenario(
        "id and model missing in a stream",
        forms.read,
        forms.aread,
        stream(*(without(chunk, "id", "model") for chunk in chat_chunks(["a"], usage=USAGE))),
        odd_stream(EVENT, Chunk("a"), EVENT, EVENT, id=None, model=None),
    ),
    Scenario(
        "usage in every chunk",
        forms.read,
        forms.aread,
        stream(
            {**delta(content="a"), "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}},
            {**FINISH, "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}},
        ),
        odd_stream(Chunk("a"), EVENT),
    ),
    Scenario(
        "usage null in every chunk",
        forms.read,
        forms.aread,
        stream({**delta(content="a"), "usage": None}, {**FINISH, "usage": None}),
        odd_stream(Chunk("a"), EVENT, usage=None),
    ),
    Scenario(
        "no finish reason",
        forms.read,
        forms.aread,
        stream(delta(content="a")),
        odd_stream(Chunk("a"), finish_reasons=("error",), usage=None, truncated=True),
    ),
    Scenario("no [DONE]", forms.read, forms.aread, StreamReply(STREAM.events, done=False), READ),
    Scenario(
        "empty stream",
        forms.read,
        forms.aread,
        stream(),
        odd_stream(id=None, model=None, finish_reasons=(), usage=None, truncated=True),
    ),
    Scenario(
        "empty stream without [DONE]",
        forms.read,
        forms.aread,
        stream(done=False),
        odd_stream(id=None, model=None, finish_reasons=(), usage=None, truncated=True),
    ),
    Scenario(
        "comments and empty events",
        forms.read,
        forms.aread,
        stream(b": ping\n\n", *STREAM.events, b": ping\n\n"),
        READ,
    ),
    Scenario(
        "named events",
        forms.read,
        forms.aread,
        stream(*({**chunk, "type": "response.chunk"} for chunk in STREAM.events), named=True),
        READ,
    ),
    Scenario(
        "JSON where a stream was asked for",
        forms.read,
        forms.aread,
        ANSWER,
        odd_stream(id=None, model=None, finish_reasons=(), usage=None, truncated=True),
    ),
    Scenario(
        "error object in the stream",
        forms.read,
        forms.aread,
        stream(delta(content="a"), delta(content="b"), error_body("overloaded", "server_error", "busy")),
        broken("APIError", Chunk("a"), Chunk("b")),
        raises=openai.APIError,
    ),
    Scenario(
        "error object first in the stream",
        forms.read,
        forms.aread,
        stream(error_body("overloaded", "server_error", "busy")),
        broken("APIError"),
        raises=openai.APIError,
    ),
    Scenario(
        "error object in the stream, helper",
        forms.use_helper,
        forms.ause_helper,
        stream(delta(role="assistant", content="a"), error_body("overloaded", "server_error", "busy")),
        broken("APIError", Chunk("a")),
        raises=openai.APIError,
    ),
    Scenario(
        "error object in the stream, raw",
        forms.raw_read,
        forms.araw_read,
        stream(delta(content="a"), error_body("overloaded", "server_error", "busy")),
        broken("APIError", Chunk("a")),
        raises=openai.APIError,
    ),
    Scenario(
        "broken JSON in the stream",
        forms.read,
        forms.aread,
        stream(delta(content="a"), b"data: {oops\n\n"),
        broken("JSONDecodeError", Chunk("a")),
        raises=ValueError,
    ),
    Scenario(
        "dropped connection",
        forms.read,
        forms.aread,
        stream(delta(content="a"), delta(content="b"), FINISH, cut_after=2),
        broken(StreamCut.__name__, Chunk("a"), Chunk("b")),
        raises=StreamCut,
    ),
    Scenario(
        "connection dropped at once",
        forms.read,
        forms.aread,
        stream(delta(content="a"), cut_after=0),
        broken(StreamCut.__name__),
        raises=StreamCut,
    ),
    Scenario(
        "dropped connection, helper",
        forms.use_helper,
        forms.ause_helper,
        stream(delta(role="assistant", content="a"), FINISH, cut_after=1),
        broken(StreamCut.__name__, Chunk("a")),
        raises=StreamCut,
    ),
    Scenario(
        "dropped connection, streaming response",
        forms.streaming_read,
        forms.astreaming_read,
        stream(delta(content="a"), FINISH, cut_after=1),
        broken(StreamCut.__name__, Chunk("a")),
        raises=StreamCut,
    ),
)

CHAT = (*WHOLE, *REFUSED, *STREAMS, *LEFT, *ODD_STREAMS)
SCENARIOS = CHAT
