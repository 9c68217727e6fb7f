"""What a person wrote or a model said: nowhere by default, and where it is asked for, valid, bounded and redacted."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import pickle

import openai
import pytest
import schemas
from api_forms import exists
from canaries import (
    ANSWER,
    CHUNKS,
    FAILURE,
    HAS_EVENTS,
    HEADERS,
    HISTORY,
    REQUEST,
    RESPONSES_ANSWER,
    RESPONSES_EVENTS,
    RESPONSES_FAILED,
    RESPONSES_REQUEST,
    SHOWN_OF_REQUESTS,
    SHOWN_OF_RESPONSES,
    SHOWN_OF_RESPONSES_REQUESTS,
    TOOL,
    Crash,
    Logs,
    OurLog,
    canaries_in,
    canary,
    credentials,
    everything,
)
from missing import give_up
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode
from telemetry.facts import exception, only_span, request_attributes

import otel_llm_callback
from otel_llm_callback.content import DEFAULT_LIMIT, Gate
from otel_llm_callback.telemetry import OpenTelemetryCallback
from otel_llm_callback.testing import (
    JsonReply,
    RecordingCallback,
    StreamReply,
    TelemetryCollector,
    chat_chunk,
    chat_chunks,
    chat_completion,
    error_body,
    response_events,
    response_object,
    search_page,
    text_completion,
    transcription,
)
from otel_llm_callback.testing._bodies import TEXT

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
INPUT, OUTPUT, TOOLS = "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.definitions"
INSTRUCTIONS = "gen_ai.system_instructions"
CONTENT = (INPUT, OUTPUT, TOOLS, INSTRUCTIONS)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in (CAPTURE, "OTEL_INSTRUMENTATION_GENAI_EMIT_EVENT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def logs():
    if not HAS_EVENTS:
        pytest.skip("this version of the OpenTelemetry API has no log events")
    return Logs()


def instrument(telemetry, *callbacks, logs=None, **settings):
    if logs is not None:
        settings["logger_provider"] = LoggerProvider(shutdown_on_exit=False)
        settings["logger_provider"].add_log_record_processor(logs)
    otel_llm_callback.instrument(
        *callbacks,
        delivery="inline",
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        **settings,
    )


def always(reply):
    return lambda _: reply


def captured(telemetry):
    """The content attributes of the only span, as values."""
    (span,) = telemetry.spans()
    return {name: json.loads(text) for name, text in span.attributes.items() if name in CONTENT}


# --- Off: the canaries ------------------------------------------------------------------------------------------------


@pytest.fixture
def our_log():
    logger, handler = logging.getLogger("otel_llm_callback"), OurLog()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


def call(client, **more):
    answer = client.chat.completions.create(**REQUEST, **more)
    if more.get("stream"):
        list(answer)


def ask(client):
    call(client)


def stream(client):
    call(client, stream=True)


def refused(client):
    with pytest.raises(openai.BadRequestError):
        call(client)


def broken_stream(client):
    with pytest.raises(openai.APIError):
        call(client, stream=True)


def timed_out(client):
    with pytest.raises(openai.APITimeoutError):
        call(client.with_options(timeout=0.05, max_retries=0))


def cut_short(client):
    with client.chat.completions.create(**REQUEST, stream=True) as answer:
        next(iter(answer))


def retried(client):
    call(client)


def refused_then_answered(request):
    if request.attempt == 0:
        return JsonReply(FAILURE, 429, {**HEADERS, "retry-after-ms": "1"})
    return JsonReply(ANSWER, headers=HEADERS)


OUTCOMES = {
    "success": (ask, always(JsonReply(ANSWER, headers=HEADERS)), SHOWN_OF_RESPONSES),
    "stream": (stream, always(StreamReply(CHUNKS, headers=HEADERS)), SHOWN_OF_RESPONSES),
    "retried": (retried, refused_then_answered, SHOWN_OF_RESPONSES),
    "400": (refused, always(JsonReply(FAILURE, 400, HEADERS)), {"request.id"}),
    "stream error": (broken_stream, always(StreamReply([*CHUNKS, FAILURE], headers=HEADERS)), SHOWN_OF_RESPONSES),
    "timeout": (timed_out, always(JsonReply({}, delay_s=5)), set()),
    "closed early": (
        cut_short,
        always(StreamReply([*CHUNKS, *[b""] * 500], headers=HEADERS, delay_s=0.01)),
        SHOWN_OF_RESPONSES - {"finish.reason"},
    ),
}


@pytest.mark.parametrize("callbacks", [[], [Crash()]], ids=["", "callbacks crash"])
@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.usefixtures("expected_logs")
def test_nothing_is_shown_by_default(server, our_log, outcome, callbacks):
    """Of all that is sent and received, only what the conventions make attributes can be seen anywhere."""
    act, server.reply, shown = OUTCOMES[outcome]
    telemetry, logs, recorder = TelemetryCollector(), Logs(), RecordingCallback(content="none")
    instrument(telemetry, recorder, *callbacks, logs=logs, emit_event=HAS_EVENTS, metrics="both")
    with openai.OpenAI(**credentials(server)) as client:
        act(client)
    found = {
        place: set().union(*map(canaries_in, texts))
        for place, texts in everything(telemetry, logs, our_log, recorder).items()
    }
    on_spans = SHOWN_OF_REQUESTS | shown
    assert (found["spans"], found["pickles"]) == (on_spans, on_spans)
    assert found["log events"] == (on_spans if HAS_EVENTS else set())
    assert found["reprs"] <= on_spans
    assert found["metrics"] == on_spans & {"request.model", "response.model", "response.tier"}
    assert found["our log"] | found["status"] == set()
    assert (our_log.lines != []) == (callbacks != [])


def respond(client):
    client.responses.create(**RESPONSES_REQUEST)


def respond_streamed(client):
    list(client.responses.create(**RESPONSES_REQUEST, stream=True))


def embed(client):
    client.embeddings.create(model=canary("request.model"), input=canary("prompt"), user=canary("user"))


def complete(client):
    client.completions.create(model=canary("request.model"), prompt=canary("prompt"), suffix=canary("suffix"))


def paint(client):
    client.images.generate(model=canary("request.model"), prompt=canary("prompt"))


def speak(client):
    client.audio.speech.create(model=canary("request.model"), voice="alloy", input=canary("prompt")).read()


def transcribe(client):
    sound = (canary("file.name"), canary("sound").encode())
    client.audio.transcriptions.create(model=canary("request.model"), file=sound, prompt=canary("prompt"))


def moderate(client):
    client.moderations.create(model=canary("request.model"), input=canary("prompt"))


def search(client):
    list(client.vector_stores.search(canary("store"), query=canary("prompt"), filters={"key": canary("filter")}))


API_CALLS = {
    "response": (
        respond,
        JsonReply(RESPONSES_ANSWER),
        SHOWN_OF_RESPONSES_REQUESTS | {"response.id", "response.model"},
    ),
    "streamed response": (
        respond_streamed,
        StreamReply(RESPONSES_EVENTS, done=False, named=True),
        SHOWN_OF_RESPONSES_REQUESTS | {"response.id", "response.model"},
    ),
    "failed response": (
        respond,
        JsonReply(RESPONSES_FAILED),
        SHOWN_OF_RESPONSES_REQUESTS | {"response.id", "response.model", "failure.code"},
    ),
    "embeddings": (embed, None, {"request.model"}),
    "completion": (complete, JsonReply(text_completion(canary("answer"), model="m")), {"request.model"}),
    "image": (paint, JsonReply({"created": 1, "data": [{"revised_prompt": canary("revised")}]}), {"request.model"}),
    "speech": (speak, None, {"request.model"}),
    "transcription": (transcribe, JsonReply(transcription(canary("answer"))), {"request.model"}),
    "moderation": (moderate, None, {"request.model"}),
    "search": (search, JsonReply(search_page(canary("answer"))), {"store"}),
}


@pytest.mark.parametrize("callbacks", [[], [Crash()]], ids=["", "callbacks crash"])
@pytest.mark.parametrize("api", [api for api in API_CALLS if api != "search" or exists("vector_stores.search")])
@pytest.mark.usefixtures("expected_logs")
def test_nothing_is_shown_by_default_of_any_api(server, our_log, api, callbacks):
    """The same for the other APIs: parameters and ids, never what was said, searched or found."""
    act, reply, shown = API_CALLS[api]
    server.reply = always(reply)
    telemetry, logs, recorder = TelemetryCollector(), Logs(), RecordingCallback(content="none")
    instrument(telemetry, recorder, *callbacks, logs=logs, emit_event=HAS_EVENTS, metrics="both")
    with openai.OpenAI(**credentials(server)) as client:
        act(client)
    found = {
        place: set().union(*map(canaries_in, texts))
        for place, texts in everything(telemetry, logs, our_log, recorder).items()
    }
    assert (found["spans"], found["log events"]) == (shown, shown if HAS_EVENTS else set())
    assert found["pickles"] | found["reprs"] <= shown
    assert found["metrics"] <= {"request.model", "response.model", "failure.code"}
    assert found["our log"] | found["status"] == set()


def test_the_sweep_finds_what_is_shown_of_a_response(server, telemetry, logs, our_log):
    """With everything switched on the same sweep finds content; with a redactor it finds what gives structure."""
    server.reply = always(JsonReply(RESPONSES_ANSWER))
    content = {"instructions", "prompt", "text.part", "image.url", "tool.result", "earlier.thought"}
    content |= {"answer", "call.args", "reasoning", "web.query"}
    for redactor, expected in ((None, content), (lambda _: "X", set())):
        telemetry.clear()
        instrument(telemetry, logs=logs, capture_content="span_only", redactor=redactor)
        with openai.OpenAI(**credentials(server)) as client:
            respond(client)
        otel_llm_callback.uninstrument()
        found = canaries_in("".join(span.to_json() for span in telemetry.spans()))
        assert found & content == expected


async def test_nothing_is_shown_of_a_cancelled_call(server, telemetry, our_log):
    """Nor of a stream that is cancelled half way."""
    server.reply = always(StreamReply([*CHUNKS[:1], *[b""] * 500], headers=HEADERS, delay_s=0.01))
    logs, recorder = Logs(), RecordingCallback(content="none")
    instrument(telemetry, recorder, logs=logs, emit_event=HAS_EVENTS)
    async with openai.AsyncOpenAI(**credentials(server)) as client:
        answer = await client.chat.completions.create(**REQUEST, stream=True)
        await anext(answer)
        task = asyncio.ensure_future(anext(answer))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    texts = [text for place in everything(telemetry, logs, our_log, recorder).values() for text in place]
    assert canaries_in("".join(texts)) == SHOWN_OF_REQUESTS | SHOWN_OF_RESPONSES - {"finish.reason"}


def test_the_sweep_finds_what_is_shown(server, telemetry, logs, our_log):
    """With everything switched on the same sweep finds content, so its silence means something."""
    server.reply = always(JsonReply(ANSWER, headers=HEADERS))
    recorder = RecordingCallback(content="none")
    instrument(telemetry, recorder, logs=logs, capture_content="span_and_event", tool_details=True)
    with openai.OpenAI(**credentials(server)) as client:
        ask(client)
    found = everything(telemetry, logs, our_log, recorder)
    content = {
        "system",
        "prompt",
        "participant",
        "text.part",
        "image.url",
        "file.id",
        "tool.result",
        "tool.description",
    }
    content |= {"earlier.refusal", "earlier.args", "answer", "refusal", "reasoning", "call.args", "function.args"}
    for place in ("spans", "log events"):
        assert canaries_in("".join(found[place])) >= content
    assert canaries_in("".join(found["reprs"] + found["pickles"])) == SHOWN_OF_REQUESTS | SHOWN_OF_RESPONSES


def test_absent_is_not_empty(client, telemetry):
    """What is not captured has no attribute, not an empty one."""
    instrument(telemetry)
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert captured(telemetry) == {}


# --- On: the shape ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validate():
    """Checks a value against one of the conventions' schemas, each part against the very type it claims to be."""
    check = schemas.checker()
    if check is None:
        give_up(f"the conventions' schemas are not in {schemas.FOLDER}; GENAI_SCHEMAS may name another folder")
    return check


PIXEL = base64.b64encode(b"\x89PNG").decode()

HISTORIES = {
    "text": [{"role": "user", "content": "hi"}],
    "empty": [],
    "system and developer": [{"role": "system", "content": "be terse"}, {"role": "developer", "content": "be kind"}],
    "named": [{"role": "user", "name": "ada", "content": "hi"}],
    "no content": [{"role": "assistant", "content": None}],
    "text parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "image by URL": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}
    ],
    "image inline": [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}],
        }
    ],
    "audio": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}}]}],
    "file by id": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}],
    "file inline": [
        {
            "role": "user",
            "content": [{"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PIXEL}"}}],
        }
    ],
    "unknown part": [{"role": "user", "content": [{"type": "hologram", "hologram": {"a": 1}}]}],
    "refusal": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "refusal": "no"}],
    "tool round trip": HISTORY,
    "tool arguments that are no JSON": [
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}],
        }
    ],
    "custom tool": [
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "anything"}}],
        }
    ],
    "legacy function": [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "1"},
    ],
    "tool result in parts": [{"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "1"}]}],
    "half an emoji": [{"role": "user", "content": "\N{GRINNING FACE} and more"}],
}


def test_schemas_refuse_a_malformed_part_of_a_known_type(validate):
    """The check above means something: the conventions' catch-all part does not swallow mistakes."""
    validate(INPUT, [{"role": "user", "parts": [{"type": "hologram"}, text("hi")]}])
    for part in ({"type": "text"}, {"type": "tool_call", "id": "c"}, {"type": "uri", "uri": "a"}, {"content": "a"}):
        with pytest.raises(Exception, match=r"is not valid|is a required property"):
            validate(INPUT, [{"role": "user", "parts": [part]}])


@pytest.mark.parametrize("history", HISTORIES)
def test_request_messages_have_the_shape_of_the_conventions(client, telemetry, validate, history):
    """Whatever is in the history: one message each, in order, with the caller's role."""
    instrument(telemetry, capture_content="span_only")
    client.chat.completions.create(model="m", messages=HISTORIES[history], tools=[TOOL])
    found = captured(telemetry)
    validate(INPUT, found.get(INPUT, []))
    validate(TOOLS, found[TOOLS])
    assert [message["role"] for message in found.get(INPUT, [])] == [turn["role"] for turn in HISTORIES[history]]


def text(content):
    return {"type": "text", "content": content}


CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"city": "Oslo"}'}}
CALLED = {"type": "tool_call", "id": "c1", "name": "look_up", "arguments": {"city": "Oslo"}}


def saying(finish_reason="stop", **message):
    answer = chat_completion(None, finish_reason=finish_reason)
    answer["choices"][0]["message"] = {"role": "assistant", "content": None, **message}
    return JsonReply(answer)


def streaming(*deltas, finish_reason="stop"):
    return StreamReply([*map(chat_chunk, deltas), chat_chunk({}, finish_reason=finish_reason)])


def tool_delta(index, arguments, **more):
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}, **more}]}


ANSWERS = {
    "text": (saying(content="hi"), [[text("hi")]]),
    "refusal": (saying(refusal="no"), [[text("no")]]),
    "reasoning": (
        saying(content="hi", reasoning_content="hm"),
        [[{"type": "reasoning", "content": "hm"}, text("hi")]],
    ),
    "tool call": (saying("tool_calls", tool_calls=[CALL]), [[CALLED]]),
    "two choices": (JsonReply(chat_completion("hi", choices=2)), [[text("hi")], [text("hi")]]),
    "audio": (
        saying(audio={"id": "a", "data": PIXEL, "expires_at": 1, "transcript": "hi"}),
        [
            [
                {
                    "type": "blob",
                    "modality": "audio",
                    "content": "",
                    "size_bytes": 4,
                    "sha256": "0f4636c78f65d3639ece5a064b5ae753e3408614a14fb18ab4d7540d2c248543",
                },
                text("hi"),
            ]
        ],
    ),
    "streamed text": (StreamReply(chat_chunks(["h", "i"])), [[text("hi")]]),
    "streamed choices": (StreamReply(chat_chunks(["h", "i"], choices=2)), [[text("hi")], [text("hi")]]),
    "streamed refusal": (streaming({"refusal": "n"}, {"refusal": "o"}), [[text("no")]]),
    "streamed reasoning": (
        streaming({"reasoning_content": "h"}, {"reasoning_content": "m"}, {"content": "hi"}),
        [[{"type": "reasoning", "content": "hm"}, text("hi")]],
    ),
    "streamed tool call": (
        streaming(
            {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "look_up"}}]},
            tool_delta(0, '{"city": '),
            tool_delta(0, '"Oslo"}'),
            finish_reason="tool_calls",
        ),
        [[CALLED]],
    ),
    "streamed custom tool call": (
        streaming(
            {"tool_calls": [{"index": 0, "id": "c1", "type": "custom", "custom": {"name": "run", "input": "1"}}]},
            {"tool_calls": [{"index": 0, "custom": {"input": " + 1"}}]},
        ),
        [[{"type": "tool_call", "id": "c1", "name": "run", "arguments": "1 + 1"}]],
    ),
    "streamed audio": (
        streaming({"audio": {"id": "a", "transcript": "h"}}, {"audio": {"transcript": "i"}}),
        [[text("hi")]],
    ),
    "streamed halves of an emoji": (streaming({"content": "\ud83d"}, {"content": "\ude00"}), [[text("\U0001f600")]]),
    "arguments Python takes for JSON": (
        saying(tool_calls=[{**CALL, "function": {"name": "look_up", "arguments": '{"a": NaN}'}}]),
        [[{**CALLED, "arguments": '{"a": NaN}'}]],
    ),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_response_messages_have_the_shape_of_the_conventions(server, client, telemetry, validate, answer):
    """One message per choice with everything the choice said; streamed or not makes no difference."""
    reply, expected = ANSWERS[answer]
    server.reply = always(reply)
    instrument(telemetry, capture_content="span_only")
    result = client.chat.completions.create(model="m", messages=[], stream=isinstance(reply, StreamReply))
    if isinstance(reply, StreamReply):
        list(result)
    found = captured(telemetry)[OUTPUT]
    validate(OUTPUT, found)
    assert [message["parts"] for message in found] == expected
    assert {message["role"] for message in found} == {"assistant"}


@pytest.mark.parametrize(("raw", "normalised"), [("tool_calls", "tool_call"), ("length", "length")])
def test_finish_reasons_are_raw_on_the_attribute_and_normalised_in_messages(server, client, telemetry, raw, normalised):
    """The attribute has the provider's word, the message that of the conventions."""
    server.reply = always(JsonReply(chat_completion("hi", finish_reason=raw)))
    instrument(telemetry, capture_content="span_only")
    client.chat.completions.create(model="m", messages=[])
    (span,) = telemetry.spans()
    assert span.attributes["gen_ai.response.finish_reasons"] == (raw,)
    assert captured(telemetry)[OUTPUT] == [{"role": "assistant", "parts": [text("hi")], "finish_reason": normalised}]


def test_request_without_messages_or_tools_has_no_content_attributes(client, telemetry):
    """Nothing to show is nothing shown."""
    instrument(telemetry, capture_content="span_only")
    client.chat.completions.create(model="m", messages=[])
    assert set(captured(telemetry)) == {OUTPUT}


@pytest.mark.parametrize(
    "reply",
    [
        saying(tool_calls=[{**CALL, "function": {"name": "f", "arguments": "[" * 100_000}}]),
        saying(tool_calls=[{**CALL, "function": {"name": "f", "arguments": "[" * 700 + "]" * 700}}]),
        saying(content="\ud83d"),
        saying(content=["a", {"b": 1}]),
        saying(tool_calls=[None, 1, {}]),
        JsonReply({"choices": [None, {}, {"message": 3}]}),
    ],
    ids=["nested without end", "nested deeply", "half an emoji", "parts", "odd tool calls", "odd choices"],
)
def test_odd_answer_never_costs_the_span_or_the_metrics(server, client, telemetry, expected_logs, reply):
    """Content that cannot be shown is left out; the span still ends and the call still counts."""
    server.reply = always(reply)
    instrument(telemetry, capture_content="span_only")
    client.chat.completions.create(model="m", messages=[])
    (span,) = telemetry.spans()
    shown = span.attributes.get(OUTPUT, "[]")
    assert isinstance(json.loads(shown), list)
    assert shown.encode()  # an exporter fails on half a character
    assert [point.count for point in telemetry.metrics("gen_ai.client.operation.duration")] == [1]


class Unreadable(dict):
    """A message that the SDK can send and nobody can look into."""

    def get(self, *_):
        raise RuntimeError("no")


def test_message_that_cannot_be_read_costs_only_the_messages(server, client, telemetry, expected_logs):
    """The other content is there, the span is complete, the call counts, and the failure is counted."""
    instrument(telemetry, capture_content="span_only")
    message = Unreadable(role="user", content="hi")
    client.chat.completions.create(model="m", messages=[], tools=[TOOL], extra_body={"messages": [message]})
    assert server.requests[0].json["messages"] == [{"role": "user", "content": "hi"}]
    assert set(captured(telemetry)) == {TOOLS, OUTPUT}
    (span,) = telemetry.spans()
    assert span.attributes["llm_callback.outcome"] == "completed"
    assert [point.count for point in telemetry.metrics("gen_ai.client.operation.duration")] == [1]
    assert [record.getMessage().splitlines()[0] for record in expected_logs] == [
        "a body could not be made into messages (stage content): RuntimeError; the call is unaffected"
    ]


# --- On: Responses and legacy completions -----------------------------------------------------------------------------


def part_of_tool(call_id, response):
    return {"type": "tool_call_response", "id": call_id, "response": response}


def server_call(kind, call_id, **more):
    call = {"type": f"{kind}_call", "status": "completed", **more}
    return {"type": "server_tool_call", "name": kind, "id": call_id, "server_tool_call": call}


PIXEL_DIGEST = {
    "type": "blob",
    "modality": "image",
    "content": "",
    "mime_type": "image/png",
    "size_bytes": 4,
    "sha256": "0f4636c78f65d3639ece5a064b5ae753e3408614a14fb18ab4d7540d2c248543",
}
PIXEL_URL = f"data:image/png;base64,{PIXEL}"

ITEMS = {
    "text": ("hi", [("user", [text("hi")])]),
    "nothing": ([], []),
    "messages": (
        [{"role": "developer", "content": "be terse"}, {"role": "user", "content": "hi", "type": "message"}],
        [("developer", [text("be terse")]), ("user", [text("hi")])],
    ),
    "earlier answer": (
        [
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [
                    {"type": "output_text", "text": "hi", "annotations": []},
                    {"type": "refusal", "refusal": "no"},
                ],
            }
        ],
        [("assistant", [text("hi"), text("no")])],
    ),
    "images": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "see"},
                    {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"},
                    {"type": "input_image", "image_url": PIXEL_URL, "detail": "low"},
                    {"type": "input_image", "file_id": "file-1", "detail": "low"},
                ],
            }
        ],
        [
            (
                "user",
                [
                    text("see"),
                    {"type": "uri", "modality": "image", "uri": "https://example.com/a.png"},
                    PIXEL_DIGEST,
                    {"type": "file", "modality": "image", "file_id": "file-1"},
                ],
            )
        ],
    ),
    "files": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "input_file", "file_id": "file-1"},
                    {"type": "input_file", "file_url": "https://example.com/a.pdf"},
                    {"type": "input_file", "filename": "a.png", "file_data": PIXEL_URL},
                ],
            }
        ],
        [
            (
                "user",
                [
                    {"type": "file", "modality": "document", "file_id": "file-1"},
                    {"type": "uri", "modality": "document", "uri": "https://example.com/a.pdf"},
                    {**PIXEL_DIGEST, "modality": "document"},
                ],
            )
        ],
    ),
    "function call and output": (
        [
            {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": '{"city": "Oslo"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        ],
        [("assistant", [CALLED]), ("tool", [part_of_tool("c1", "rain")])],
    ),
    "output in parts": (
        [{"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "rain"}]}],
        [("tool", [part_of_tool("c1", [text("rain")])])],
    ),
    "custom call and output": (
        [
            {"type": "custom_tool_call", "call_id": "c2", "name": "run", "input": "1 + 1"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "2"},
        ],
        [
            ("assistant", [{"type": "tool_call", "id": "c2", "name": "run", "arguments": "1 + 1"}]),
            ("tool", [part_of_tool("c2", "2")]),
        ],
    ),
    "screenshot": (
        [
            {
                "type": "computer_call_output",
                "call_id": "c3",
                "output": {"type": "computer_screenshot", "image_url": PIXEL_URL},
            }
        ],
        [("tool", [part_of_tool("c3", [PIXEL_DIGEST])])],
    ),
    "reasoning": (
        [
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": "hm"}],
                "content": [{"type": "reasoning_text", "text": "hmm"}],
                "encrypted_content": "AAAA",
            }
        ],
        [("assistant", [{"type": "reasoning", "content": "hm"}, {"type": "reasoning", "content": "hmm"}])],
    ),
    "compaction": (
        [{"type": "compaction", "id": "cmp_1", "encrypted_content": "AAAA"}],
        [("assistant", [{"type": "compaction", "id": "cmp_1"}])],
    ),
    "calls of the server": (
        [
            {
                "type": "web_search_call",
                "id": "ws_1",
                "status": "completed",
                "action": {"type": "search", "query": "cats"},
            },
            {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["cats"]},
            {
                "type": "code_interpreter_call",
                "id": "ci_1",
                "status": "completed",
                "code": "1",
                "container_id": "c",
                "outputs": [],
            },
            {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": PIXEL},
        ],
        [
            ("assistant", [server_call("web_search", "ws_1", query="cats")]),
            ("assistant", [server_call("file_search", "fs_1", queries=["cats"])]),
            ("assistant", [server_call("code_interpreter", "ci_1", code="1")]),
            ("assistant", [server_call("image_generation", "ig_1")]),
        ],
    ),
    "result of the server": (
        [{"type": "shell_call_output", "id": "so_1", "call_id": "c4", "output": []}],
        [
            (
                "assistant",
                [
                    {
                        "type": "server_tool_call_response",
                        "id": "so_1",
                        "server_tool_call_response": {"type": "shell_call_output"},
                    }
                ],
            )
        ],
    ),
    "reference": (
        [{"type": "item_reference", "id": "msg_1"}],
        [("assistant", [{"type": "item_reference", "id": "msg_1"}])],
    ),
}

RESPONSE_TOOLS = [
    {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}, "strict": True},
    {"type": "web_search"},
    {"type": "mcp", "server_label": "sea", "server_url": "https://example.com", "headers": {"authorization": "x"}},
    {"type": "custom", "name": "run", "description": "Run it."},
]


@pytest.mark.parametrize("items", ITEMS)
def test_input_items_have_the_shape_of_the_conventions(client, telemetry, validate, items):
    """Each item is a message, in order; media are digests, what is encrypted is left out."""
    instrument(telemetry, capture_content="span_only")
    given, expected = ITEMS[items]
    client.responses.create(model="m", input=given)
    found = captured(telemetry).get(INPUT, [])
    validate(INPUT, found)
    assert [(message["role"], message["parts"]) for message in found] == expected


@pytest.mark.parametrize("details", [False, True])
def test_tools_are_shown_in_full_only_if_asked_for(client, telemetry, validate, details):
    """By default a tool has what the conventions require, its type and name; the rest has a switch of its own."""
    instrument(telemetry, capture_content="span_only", tool_details=details)
    client.chat.completions.create(model="m", messages=[], tools=[TOOL])
    found = captured(telemetry)[TOOLS]
    validate(TOOLS, found)
    shown = TOOL["function"] if details else {"name": TOOL["function"]["name"]}
    assert found == [{"type": "function", **shown}]


def test_instructions_and_tools_stand_apart(client, telemetry, validate):
    """What is given outside the input is not among the messages; a built-in tool has its type as name."""
    instrument(telemetry, capture_content="span_only", tool_details=True)
    client.responses.create(model="m", input="hi", instructions="be terse", tools=RESPONSE_TOOLS)
    found = captured(telemetry)
    validate(INSTRUCTIONS, found[INSTRUCTIONS])
    validate(TOOLS, found[TOOLS])
    assert found == {
        INPUT: [{"role": "user", "parts": [text("hi")]}],
        INSTRUCTIONS: [text("be terse")],
        TOOLS: [
            {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}},
            {"type": "web_search", "name": "web_search"},
            {"type": "mcp", "name": "sea"},
            {"type": "custom", "name": "run", "description": "Run it."},
        ],
        OUTPUT: [{"role": "assistant", "parts": [text(TEXT)], "finish_reason": "stop"}],
    }


def sse(events):
    return StreamReply(events, done=False, named=True)


OUTPUT_ITEMS = [
    ITEMS[name]
    for name in (
        "earlier answer",
        "function call and output",
        "custom call and output",
        "reasoning",
        "compaction",
        "calls of the server",
        "result of the server",
    )
]

RESPONSE_ANSWERS = {
    "text": (JsonReply(response_object("hi")), [text("hi")], "stop"),
    "streamed text": (sse(response_events(["h", "i"])), [text("hi")], "stop"),
    "cut short": (JsonReply(response_object("hi", status="incomplete")), [text("hi")], "length"),
    "stream that breaks off": (sse(response_events(["h", "i"], status=None)), [text("hi")], "incomplete"),
    "everything": (
        JsonReply(response_object(output=[item for given, _ in OUTPUT_ITEMS for item in given])),
        [part for _, messages in OUTPUT_ITEMS for _, parts in messages for part in parts],
        "tool_call",
    ),
}


@pytest.mark.parametrize("answer", RESPONSE_ANSWERS)
def test_output_of_a_response_is_one_message(server, client, telemetry, validate, answer):
    """All items of an answer are parts of one message; streamed or not makes no difference."""
    reply, parts, reason = RESPONSE_ANSWERS[answer]
    server.reply = always(reply)
    instrument(telemetry, capture_content="span_only")
    result = client.responses.create(model="m", input=[], stream=isinstance(reply, StreamReply))
    if isinstance(reply, StreamReply):
        list(result)
    found = captured(telemetry)[OUTPUT]
    validate(OUTPUT, found)
    assert found == [{"role": "assistant", "parts": parts, "finish_reason": reason}]


def test_fetched_response_has_output_only(client, telemetry):
    """Its input was another call's."""
    instrument(telemetry, capture_content="span_only")
    client.responses.retrieve("resp_1")
    assert captured(telemetry) == {OUTPUT: [{"role": "assistant", "parts": [text(TEXT)], "finish_reason": "stop"}]}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("Once", [{"role": "user", "parts": [text("Once")]}]),
        (["Once", "Twice"], [{"role": "user", "parts": [text("Once"), text("Twice")]}]),
        ([1, 2], None),
    ],
    ids=["text", "texts", "tokens"],
)
def test_completion_is_a_user_and_an_assistant(client, telemetry, validate, prompt, messages, streamed):
    """The prompt is one message, each choice another; tokens nobody can read are left out."""
    instrument(telemetry, capture_content="span_only")
    answer = client.completions.create(model="m", prompt=prompt, n=2, stream=streamed)
    if streamed:
        list(answer)
    found = captured(telemetry)
    for name, value in found.items():
        validate(name, value)
    assert found.get(INPUT) == messages
    assert found[OUTPUT] == [{"role": "assistant", "parts": [text(TEXT)], "finish_reason": "stop"}] * 2


# --- On: the limits ---------------------------------------------------------------------------------------------------

LARGE_TEXT = "a long story, " * 150_000  # 2 MB

LARGE = {
    "a text of 2 MB": [{"role": "user", "content": LARGE_TEXT}],
    "5,000 messages": [{"role": "user", "content": f"message {number}"} for number in range(5000)],
    "tool arguments of 2 MB": [
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": LARGE_TEXT})}}
            ],
        }
    ],
    "a tool result of 2 MB": [{"role": "tool", "tool_call_id": "c", "content": LARGE_TEXT}],
    "a name of 2 MB": [{"role": "user", "name": LARGE_TEXT, "content": "hi"}],
    "quotes only": [{"role": "user", "content": '"' * 5000}],
    "no ASCII": [{"role": "user", "content": "\N{GRINNING FACE}" * 5000}],
}


@pytest.mark.parametrize("limit", [200, 2000])
@pytest.mark.parametrize("history", LARGE)
def test_long_content_stays_valid_and_within_the_limit(client, telemetry, validate, history, limit):
    """An attribute is never longer than the limit, and is always JSON of the right shape."""
    instrument(telemetry, capture_content="span_only", content_limit=limit)
    tools = [{"type": "function", "function": {"name": f"tool-{number}"}} for number in range(100)]
    client.chat.completions.create(model="m", messages=LARGE[history], tools=tools)
    (span,) = telemetry.spans()
    assert len(span.attributes[INPUT]) <= limit
    assert len(span.attributes[TOOLS]) <= limit
    found = captured(telemetry)
    validate(INPUT, found[INPUT])
    validate(TOOLS, found[TOOLS])
    if limit == 2000 and history != "a name of 2 MB":  # at 200 characters a single message may not fit at all
        assert found[INPUT][-1]["role"] == LARGE[history][-1]["role"]


@pytest.mark.parametrize("limit", [200, 2000])
def test_long_answer_stays_valid_and_within_the_limit(server, client, telemetry, validate, limit):
    """The same for what comes back."""
    server.reply = always(JsonReply(chat_completion(LARGE_TEXT, choices=3)))
    instrument(telemetry, capture_content="span_only", content_limit=limit)
    client.chat.completions.create(model="m", messages=[])
    (span,) = telemetry.spans()
    assert len(span.attributes[OUTPUT]) <= limit
    validate(OUTPUT, captured(telemetry)[OUTPUT])


def test_large_image_becomes_a_note_of_its_size(client, telemetry):
    """20 MB of image leave type and size; reading them is not worth a hash."""
    data = "A" * 20_000_000
    instrument(telemetry, capture_content="span_only")
    client.chat.completions.create(
        model="m",
        messages=[
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}],
            }
        ],
    )
    image = {"type": "blob", "modality": "image", "content": "", "mime_type": "image/png", "size_bytes": 15_000_000}
    assert captured(telemetry)[INPUT] == [{"role": "user", "parts": [image]}]


def test_small_image_becomes_a_digest(client, telemetry):
    """A small image can be recognised, not seen."""
    instrument(telemetry, capture_content="span_only")
    client.chat.completions.create(model="m", messages=HISTORIES["image inline"])
    image = {
        "type": "blob",
        "modality": "image",
        "content": "",
        "mime_type": "image/png",
        "size_bytes": 4,
        "sha256": "0f4636c78f65d3639ece5a064b5ae753e3408614a14fb18ab4d7540d2c248543",
    }
    assert captured(telemetry)[INPUT] == [{"role": "user", "parts": [image]}]


@pytest.mark.parametrize("variable", ["OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT"])
def test_limit_of_the_sdk_is_ours_too(monkeypatch, client, validate, variable):
    """The SDK would cut a text in the middle; we make it fit before."""
    monkeypatch.setenv(variable, "300")
    telemetry = TelemetryCollector()  # its limits are read from the environment
    instrument(telemetry, capture_content="span_only")
    client.chat.completions.create(model="m", messages=LARGE["5,000 messages"][:500])
    (span,) = telemetry.spans()
    assert 150 <= len(span.attributes[INPUT]) <= 300
    validate(INPUT, captured(telemetry)[INPUT])


def test_four_attributes_at_the_default_limit_fit_an_otlp_message():
    """Four attributes of four-byte characters stay below 4 MiB."""
    assert 4 * DEFAULT_LIMIT * 4 <= 4 * 1024 * 1024


# --- Who decides ------------------------------------------------------------------------------------------------------


def plain_call(client):
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        (("", None), "no_content"),
        (("", "span_only"), "span_only"),
        (("", "event_only"), "event_only"),
        (("", "span_and_event"), "span_and_event"),
        (("SPAN_ONLY", None), "span_only"),
        (("Event_Only", None), "event_only"),
        (("span_and_event", None), "span_and_event"),
        (("span_only", "no_content"), "no_content"),
        (("no_content", "span_and_event"), "no_content"),
        (("NO_CONTENT", "span_only"), "no_content"),
    ],
    ids=str,
)
def test_where_content_goes(monkeypatch, client, logs, given, mode):
    """The variable of the conventions decides, code decides over it, and a hard off in the environment over code."""
    variable, argument = given
    monkeypatch.setenv(CAPTURE, variable)
    telemetry = TelemetryCollector()
    instrument(telemetry, logs=logs, capture_content=argument)
    plain_call(client)
    shown = {INPUT, OUTPUT}
    assert set(captured(telemetry)) == (shown if "span" in mode else set())
    assert [shown <= set(record.attributes) for record in logs.records] == [True] * ("event" in mode)


def test_hard_off_holds_for_an_adapter_made_by_hand(monkeypatch, server, client, telemetry):
    """Whoever builds the adapter, and whatever it may show: where the environment says no, there is nothing."""
    monkeypatch.setenv(CAPTURE, "no_content")
    server.reply = always(JsonReply(error_body("secret"), 400))
    adapter = OpenTelemetryCallback(
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        gate=Gate("span_and_event", error_text=True),
    )
    otel_llm_callback.instrument(adapter, telemetry=False)
    with pytest.raises(openai.BadRequestError):
        plain_call(client)
    (span,) = telemetry.spans()
    assert "secret" not in span.to_json()
    assert captured(telemetry) == {}


@pytest.mark.parametrize("value", ["true", "false", "all", "1"])
def test_unknown_mode_is_off_whatever_code_says(monkeypatch, client, telemetry, expected_logs, value):
    """Other packages take other values for this variable; off is the only safe reading, and it is said once."""
    monkeypatch.setenv(CAPTURE, value)
    instrument(telemetry, capture_content="span_only")
    plain_call(client)
    assert captured(telemetry) == {}
    allowed = "`no_content`, `span_only`, `event_only`, `span_and_event`"
    (record,) = expected_logs
    assert record.getMessage() == f"{CAPTURE}={value!r} is not understood and means off here; allowed: {allowed}"


# --- Redaction --------------------------------------------------------------------------------------------------------

NAMES = {"tool.name", "earlier.call.name", "earlier.call.id", "call.name", "call.id", "function.name", "tool.property"}
"""What gives a message its structure: names of tools, ids and keys are not redacted."""


def test_redactor_is_applied_to_everything(server, telemetry, logs, our_log):
    """Every text of every message, tool definition and argument passes the redactor, on spans and on events."""
    server.reply = always(JsonReply(ANSWER, headers=HEADERS))
    recorder = RecordingCallback(content="none")
    settings = {"capture_content": "span_and_event", "tool_details": True, "redactor": lambda _: "X"}
    instrument(telemetry, recorder, logs=logs, **settings)
    with openai.OpenAI(**credentials(server)) as client:
        ask(client)
    found = everything(telemetry, logs, our_log, recorder)
    for place in ("spans", "log events"):
        assert canaries_in("".join(found[place])) == (SHOWN_OF_REQUESTS - {"stop"}) | SHOWN_OF_RESPONSES | NAMES
    assert captured(telemetry)[INPUT][1] == {"role": "user", "name": "X", "parts": [text("X")]}
    (span,) = telemetry.spans()
    (record,) = logs.records
    stops = [tuple(kept.attributes["gen_ai.request.stop_sequences"]) for kept in (span, record)]
    assert stops == [("X",), ("X",)]


def test_redacted_parameters_are_still_a_schema(client, telemetry, validate):
    """What a schema is made of stays, and the names of properties, which are keys; what it says is redacted."""
    parameters = {
        "type": "object",
        "description": "secret",
        "properties": {
            "type": {"type": ["string", "null"], "enum": ["secret", "hidden"], "default": "secret"},
            "place": {"type": "secret", "required": ["secret"]},
        },
        "required": ["type", "place"],
    }
    instrument(telemetry, capture_content="span_only", tool_details=True, redactor=lambda _: "X")
    tool = {"type": "function", "function": {"name": "f", "description": "secret", "parameters": parameters}}
    client.chat.completions.create(model="m", messages=[], tools=[tool])
    (found,) = captured(telemetry)[TOOLS]
    telemetry.clear()
    assert found == {
        "type": "function",
        "name": "f",
        "description": "X",
        "parameters": {
            "type": "object",
            "description": "X",
            "properties": {
                "type": {"type": ["string", "null"], "enum": ["X", "X"], "default": "X"},
                "place": {"type": "X", "required": ["X"]},
            },
            "required": ["type", "place"],
        },
    }


def test_keys_of_arguments_are_no_structure(server, client, telemetry):
    """In what a model or a user made up, a value under `name` or `id` is content like any other."""
    arguments = {"name": "Ada", "id": "1", "role": {"type": "admin"}, "list": [{"status": "ill"}], "age": 36}
    call = {**CALL, "function": {"name": "look_up", "arguments": json.dumps(arguments)}}
    server.reply = always(saying(tool_calls=[call]))
    instrument(telemetry, capture_content="span_only", redactor=lambda _: "X")
    client.chat.completions.create(model="m", messages=[])
    redacted = {"name": "X", "id": "X", "role": {"type": "X"}, "list": [{"status": "X"}], "age": 36}
    assert captured(telemetry)[OUTPUT][0]["parts"] == [{**CALLED, "arguments": redacted}]


def raising(_):
    raise RuntimeError("no")


@pytest.mark.parametrize(
    "redactor", [raising, lambda _: None, lambda text: text.encode()], ids=["raises", "None", "bytes"]
)
def test_redactor_that_fails_shows_nothing(server, client, telemetry, expected_logs, redactor):
    """Redaction fails closed: in place of each text it could not redact there is a note."""
    server.reply = always(saying(content="secret answer", tool_calls=[CALL]))
    instrument(telemetry, capture_content="span_only", redactor=redactor)
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "secret"}])
    failed = "[redaction_failed]"
    assert captured(telemetry) == {
        INPUT: [{"role": "user", "parts": [text(failed)]}],
        OUTPUT: [
            {
                "role": "assistant",
                "parts": [text(failed), {**CALLED, "arguments": {"city": failed}}],
                "finish_reason": "stop",
            }
        ],
    }


def test_redactor_never_changes_what_is_sent_or_returned(server, client, telemetry):
    """It works on copies."""
    instrument(telemetry, capture_content="span_only", redactor=lambda _: "X")
    messages = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(model="m", messages=messages)
    assert (messages, server.requests[0].json["messages"]) == ([{"role": "user", "content": "hi"}],) * 2
    assert answer.choices[0].message.content.startswith("Hello!")


# --- What had arrived of a call that failed ---------------------------------------------------------------------------


def cut_off(events, after):
    return StreamReply(events, done=False, named=True, cut_after=after)


PARTIAL = {
    "chat": (
        lambda client: list(client.chat.completions.create(model="m", messages=[], stream=True)),
        StreamReply(chat_chunks(["Once ", "upon "]), cut_after=2),
        {"role": "assistant", "parts": [text("Once ")]},
    ),
    "response": (
        lambda client: list(client.responses.create(model="m", input="a", stream=True)),
        cut_off(response_events(["Once ", "upon "]), 5),
        {"role": "assistant", "parts": [text("Once ")], "finish_reason": "incomplete"},
    ),
    "response that says it failed": (
        lambda client: client.responses.create(model="m", input="a"),
        JsonReply({**response_object("Once "), "status": "failed", "error": {"code": "server_error", "message": "no"}}),
        {"role": "assistant", "parts": [text("Once ")], "finish_reason": "error"},
    ),
    "nothing yet": (
        lambda client: list(client.chat.completions.create(model="m", messages=[], stream=True)),
        StreamReply(chat_chunks(["Once "]), cut_after=0),
        None,
    ),
}


@pytest.mark.parametrize("case", PARTIAL)
@pytest.mark.parametrize("mode", ["no_content", "span_only", "event_only", "span_and_event"])
def test_partial_output_of_a_failed_call_goes_where_output_goes(server, client, telemetry, logs, validate, case, mode):
    """What a model said before it broke off is what people look for; what it did not say is not made up."""
    call, server.reply, expected = PARTIAL[case][0], always(PARTIAL[case][1]), PARTIAL[case][2]
    instrument(telemetry, logs=logs, capture_content=mode, emit_event=True)
    with contextlib.suppress(Exception):
        call(client)
    (span,) = telemetry.spans()
    (record,) = logs.records
    found = captured(telemetry).get(OUTPUT)
    told = json.loads(json.dumps(record.attributes.get(OUTPUT)))
    shown = None if expected is None else [expected]
    validate(OUTPUT, shown or [])
    assert found == (shown if mode in {"span_only", "span_and_event"} else None)
    assert told == (shown if mode in {"event_only", "span_and_event"} else None)
    assert span.attributes["llm_callback.outcome"] == "error"


def test_partial_output_is_redacted_and_kept_from_callbacks_without_content(server, client, telemetry):
    """It goes through the gate, and ``on_error`` is given facts only."""
    server.reply = always(StreamReply(chat_chunks(["secret ", "upon "]), cut_after=2))
    recorder = RecordingCallback(content="none")
    instrument(telemetry, recorder, capture_content="span_only", redactor=lambda _: "X")
    with pytest.raises(Exception, match=r"."):
        list(client.chat.completions.create(model="m", messages=[], stream=True))
    assert captured(telemetry)[OUTPUT][0]["parts"] == [text("X")]
    (failed,) = recorder.errors
    assert failed.partial is not None
    assert "secret" not in pickle.dumps([failed.partial, str(failed)]).decode("latin-1")


# --- Error text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({}, slice(0)),
        ({"capture_content": "span_only"}, slice(0)),
        ({"error_text": True}, slice(None)),
        ({"error_text": True, "content_limit": 15}, slice(15)),
        ({"error_text": True, "redactor": lambda text: text[:5]}, slice(5)),
    ],
    ids=["default", "content", "on", "limited", "redacted"],
)
def test_error_text_is_a_switch_of_its_own(server, client, telemetry, settings, shown):
    """What an exception says is in the status and the event only if asked for, and goes through the same gate."""
    server.reply = always(JsonReply(error_body("the prompt was: secret"), 400))
    instrument(telemetry, **settings)
    with pytest.raises(openai.BadRequestError, match="secret") as raised:
        plain_call(client)
    message = str(raised.value)[shown]
    facts = only_span(telemetry)
    assert facts.status == (StatusCode.ERROR, message or None)
    told = {"exception__message": message} if message else {}
    assert facts.events[-1] == exception("openai.BadRequestError", **told)


# --- Log events -------------------------------------------------------------------------------------------------------


def event_of(record):
    severity = getattr(record.severity_number, "value", None)
    return (record.event_name, severity, f"{record.trace_id:x}", f"{record.span_id:x}", dict(record.attributes))


def ids_of(span):
    return (f"{span.context.trace_id:x}", f"{span.context.span_id:x}")


def test_event_has_the_attributes_of_the_span_and_structured_content(server, client, telemetry, logs):
    """With `event_only` messages are values on the event, not text, and are not on the span."""
    instrument(telemetry, logs=logs, capture_content="event_only")
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], tools=[TOOL], temperature=0)
    (span,) = telemetry.spans()
    (record,) = logs.records
    answer = "Hello! I am a scripted server, and this is all I ever say."
    content = {
        INPUT: [{"role": "user", "parts": [text("hi")]}],
        OUTPUT: [{"role": "assistant", "parts": [text(answer)], "finish_reason": "stop"}],
        TOOLS: [{"type": "function", "name": TOOL["function"]["name"]}],
    }
    expected = {**span.attributes, **content}
    name = "gen_ai.client.inference.operation.details"
    found = event_of(record)
    assert found[:4] == (name, 5, *ids_of(span))
    assert json.loads(json.dumps(found[4])) == json.loads(json.dumps(expected))
    assert not {INPUT, OUTPUT, TOOLS} & set(span.attributes)
    assert record.timestamp == span.end_time


def test_span_and_event_agree(client, telemetry, logs):
    """With `span_and_event` the text on the span is the value on the event."""
    instrument(telemetry, logs=logs, capture_content="span_and_event")
    plain_call(client)
    (record,) = logs.records
    assert captured(telemetry) == {name: json.loads(json.dumps(record.attributes[name])) for name in (INPUT, OUTPUT)}


@pytest.mark.parametrize(
    ("settings", "events"),
    [
        ({}, 0),
        ({"emit_event": True}, 1),
        ({"capture_content": "event_only"}, 1),
        ({"capture_content": "event_only", "emit_event": False}, 0),
        ({"capture_content": "span_only"}, 0),
    ],
    ids=str,
)
def test_when_the_event_is_written(client, telemetry, logs, settings, events):
    """By default if messages go on it; a setting says otherwise."""
    instrument(telemetry, logs=logs, **settings)
    plain_call(client)
    assert len(logs.records) == events
    assert [INPUT in record.attributes for record in logs.records] == [bool(settings.get("capture_content"))] * events


def test_event_of_a_failed_call(server, client, telemetry, logs):
    """It has the span's attributes too, and no text of the error."""
    server.reply = always(JsonReply(error_body("secret"), 400))
    instrument(telemetry, logs=logs, emit_event=True)
    with pytest.raises(openai.BadRequestError):
        plain_call(client)
    (span,) = telemetry.spans()
    (record,) = logs.records
    assert dict(record.attributes) == dict(span.attributes)


@pytest.mark.parametrize("where", ["span", "logs", "both"])
def test_exceptions_go_where_they_are_wanted(server, client, telemetry, logs, where):
    """The adapter, used alone, records exceptions on the span, as log events, or both."""
    server.reply = always(JsonReply(error_body("secret"), 400))
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(logs)
    adapter = OpenTelemetryCallback(
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        logger_provider=provider,
        exceptions=where,
    )
    otel_llm_callback.instrument(adapter, telemetry=False)
    with pytest.raises(openai.BadRequestError):
        plain_call(client)
    (span,) = telemetry.spans()
    assert sum(event.name == "exception" for event in span.events) == (where != "logs")
    expected = ("gen_ai.client.operation.exception", 13, *ids_of(span), {"exception.type": "openai.BadRequestError"})
    assert [event_of(record) for record in logs.records] == [expected] * (where != "span")


def test_event_is_written_for_unsampled_spans_too(client, logs):
    """Events have a life of their own: they carry the ids of the span that was not recorded."""
    telemetry = TelemetryCollector(sampler=ALWAYS_OFF)
    instrument(telemetry, logs=logs, emit_event=True)
    plain_call(client)
    (record,) = logs.records
    assert record.attributes["llm_callback.outcome"] == "completed"
    assert record.trace_id != 0


def test_failure_of_an_unsampled_call_is_an_event_too(server, client, logs):
    """The same for errors."""
    server.reply = always(JsonReply({}, 400))
    telemetry = TelemetryCollector(sampler=ALWAYS_OFF)
    instrument(telemetry, logs=logs, emit_event=True)
    with pytest.raises(openai.BadRequestError):
        plain_call(client)
    (record,) = logs.records
    assert record.attributes["error.type"] == "BadRequestError"


class Raising(Logs):
    def on_emit(self, log):
        raise RuntimeError("no disk")


@pytest.mark.parametrize("status", [200, 400])
def test_raising_log_processor_costs_only_the_event(server, client, telemetry, expected_logs, status):
    """Somebody's broken log pipeline costs neither the span nor the metrics; nor does an API without events."""
    server.reply = always(JsonReply(chat_completion() if status == 200 else {}, status))
    instrument(telemetry, logs=Raising(), emit_event=True)
    with contextlib.suppress(openai.BadRequestError):
        plain_call(client)
    assert [span.attributes["llm_callback.outcome"] for span in telemetry.spans()] == [
        "completed" if status == 200 else "error"
    ]
    assert [point.count for point in telemetry.metrics("gen_ai.client.operation.duration")] == [1]
    (record,) = expected_logs
    assert record.getMessage().startswith("a log event was not written (stage event): ")


def test_attributes_of_the_request_are_there_from_the_start(server, client, telemetry, logs):
    """Event and span share what every call has."""
    instrument(telemetry, logs=logs, emit_event=True)
    client.chat.completions.create(model="gpt-4o-mini", messages=[])
    (record,) = logs.records
    expected = request_attributes(server)
    assert {name: record.attributes[name] for name in expected} == expected
