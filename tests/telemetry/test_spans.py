"""One call makes one span, and this is all of it: name, kind, attributes, events and status, as whole values."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
from dataclasses import replace

import openai
import pydantic
import pytest
from telemetry.facts import (
    ANSWERED,
    FAILED,
    FIRST_CHUNK,
    REQUEST_SENT,
    RESPONSE_RECEIVED,
    SECONDS,
    STREAMED,
    SpanFacts,
    answered,
    exception,
    failed,
    only_span,
    request_attributes,
    retried,
    transport,
    usage,
)

import otel_llm_callback
from otel_llm_callback.content import Gate
from otel_llm_callback.telemetry import OpenTelemetryCallback
from otel_llm_callback.testing import (
    JsonReply,
    StreamReply,
    chat_chunk,
    chat_chunks,
    chat_completion,
    error_body,
    make_chunk,
    make_error_context,
    make_request,
    make_response,
)
from otel_llm_callback.types import Retry, Usage

MESSAGES = [{"role": "user", "content": "Say hello."}]
ASKED = {"model": "gpt-4o-mini", "messages": MESSAGES}

pytestmark = pytest.mark.usefixtures("instrumented")


def always(reply):
    return lambda _: reply


def refusing(status, times, **headers):
    """Refuse the first *times* attempts, then answer as usual."""
    reply = JsonReply(error_body("no"), status=status, headers={"retry-after-ms": "1", **headers})
    return lambda request: reply if request.attempt < times else None


# --- Calls that succeed -----------------------------------------------------------------------------------------------


def test_plain_call(server, client, telemetry):
    """A call with nothing but a model says where it went, what came back and that it is complete."""
    client.chat.completions.create(**ASKED)
    assert only_span(telemetry) == answered(server)


async def test_async_call_makes_the_same_span(server, aclient, telemetry):
    """The async client's span is that of the sync client."""
    await aclient.chat.completions.create(**ASKED)
    assert only_span(telemetry) == answered(server)


def test_every_request_parameter_and_response_field(server, client, telemetry):
    """What the conventions name is there, what they do not name is not."""
    counts = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "total_tokens": 150,
        "prompt_tokens_details": {
            "cached_tokens": 40,
            "cache_write_tokens": 20,
            "text_tokens": 70,
            "image_tokens": 25,
            "audio_tokens": 5,
        },
        "completion_tokens_details": {
            "reasoning_tokens": 30,
            "text_tokens": 45,
            "image_tokens": 2,
            "audio_tokens": 3,
            "accepted_prediction_tokens": 1,
        },
    }
    answer = chat_completion(model="gpt-4o-mini-2024-07-18", usage=counts, choices=2)
    server.reply = always(JsonReply({**answer, "service_tier": "flex", "system_fingerprint": "fp_1"}))
    client.chat.completions.create(
        **ASKED,
        temperature=0.5,
        top_p=0.25,
        max_tokens=7,
        max_completion_tokens=9,
        frequency_penalty=0.125,
        presence_penalty=-0.5,
        seed=42,
        n=2,
        stop=["END", "STOP"],
        reasoning_effort="low",
        response_format={"type": "json_object"},
        service_tier="flex",
        user="somebody",
        metadata={"key": "value"},
        logit_bias={"50256": -100},
        logprobs=True,
        top_logprobs=5,
        parallel_tool_calls=False,
        store=False,
        extra_headers={"x-own": "1"},
        extra_body={"top_k": 40},
    )
    assert only_span(telemetry) == SpanFacts(
        attributes={
            **request_attributes(server),
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.top_p": 0.25,
            "gen_ai.request.top_k": 40,
            "gen_ai.request.max_tokens": 9,
            "gen_ai.request.frequency_penalty": 0.125,
            "gen_ai.request.presence_penalty": -0.5,
            "gen_ai.request.seed": 42,
            "gen_ai.request.choice.count": 2,
            "gen_ai.request.stop_sequences": ("END", "STOP"),
            "gen_ai.request.reasoning.level": "low",
            "gen_ai.output.type": "json",
            "openai.request.service_tier": "flex",
            "gen_ai.response.id": "chatcmpl-1",
            "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
            "gen_ai.response.finish_reasons": ("stop", "stop"),
            "openai.response.service_tier": "flex",
            "openai.response.system_fingerprint": "fp_1",
            "gen_ai.usage.input_tokens": 100,
            "gen_ai.usage.output_tokens": 50,
            "gen_ai.usage.cache_read.input_tokens": 40,
            "gen_ai.usage.cache_creation.input_tokens": 20,
            "gen_ai.usage.reasoning.output_tokens": 30,
            "gen_ai.usage.text.input_tokens": 70,
            "gen_ai.usage.text.output_tokens": 45,
            "gen_ai.usage.image.input_tokens": 25,
            "gen_ai.usage.image.output_tokens": 2,
            "gen_ai.usage.audio.input_tokens": 5,
            "gen_ai.usage.audio.output_tokens": 3,
            **transport(),
            "llm_callback.outcome": "completed",
        },
        events=ANSWERED,
    )


@pytest.mark.parametrize(
    ("given", "attributes"),
    [
        ({"n": 1}, {}),
        ({"n": 3}, {"gen_ai.request.choice.count": 3}),
        ({"stop": "END"}, {"gen_ai.request.stop_sequences": ("END",)}),
        ({"stop": []}, {}),
        ({"stop": None}, {}),
        ({"service_tier": "auto"}, {}),
        ({"service_tier": "default"}, {"openai.request.service_tier": "default"}),
        ({"max_tokens": 8}, {"gen_ai.request.max_tokens": 8}),
        ({"temperature": 0}, {"gen_ai.request.temperature": 0.0}),
        ({"response_format": {"type": "text"}}, {"gen_ai.output.type": "text"}),
        ({"response_format": {"type": "json_object"}}, {"gen_ai.output.type": "json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
            {"gen_ai.output.type": "json"},
        ),
        (
            {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "mp3"}},
            {"gen_ai.output.type": "speech"},
        ),
        ({"modalities": ["text"]}, {}),
        ({"stream": False}, {}),
    ],
    ids=str,
)
def test_parameter_rules(server, client, telemetry, given, attributes):
    """A parameter whose value is the default, or that was not given, has no attribute."""
    server.reply = always(JsonReply(chat_completion()))
    client.chat.completions.create(**ASKED, **given)
    expected = {**answered(server).attributes, "gen_ai.response.id": "chatcmpl-1", **attributes}
    assert only_span(telemetry) == SpanFacts(attributes=expected, events=ANSWERED)


def parsing(client):
    """Where `parse()` is: before openai 1.92 it was in beta."""
    completions = client.chat.completions
    return completions if hasattr(completions, "parse") else client.beta.chat.completions


def test_parse_asks_for_json(server, client, telemetry):
    """A pydantic class given to `parse()` makes the output type JSON."""

    class Person(pydantic.BaseModel):
        name: str

    server.reply = always(JsonReply(chat_completion('{"name": "Ada"}')))
    parsing(client).parse(**ASKED, response_format=Person)
    attributes = {**answered(server).attributes, "gen_ai.response.id": "chatcmpl-1", "gen_ai.output.type": "json"}
    assert only_span(telemetry) == SpanFacts(attributes=attributes, events=ANSWERED)


def test_stream(server, client, telemetry):
    """A stream's span ends with its last chunk and says how many there were and how long they took."""
    stream = client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
    count = sum(1 for _ in stream)
    expected = replace(answered(server), events=STREAMED).adding(
        gen_ai__request__stream=True,
        gen_ai__response__time_to_first_chunk=SECONDS,
        llm_callback__time_to_first_output=SECONDS,
        llm_callback__chunk__count=count,
        llm_callback__chunk__longest_gap=SECONDS,
    )
    assert only_span(telemetry) == expected


def test_stream_without_usage_says_that_it_is_missing(server, client, telemetry):
    """Where the server reports no usage there is no count, and never a zero."""
    list(client.chat.completions.create(**ASKED, stream=True))
    (span,) = telemetry.spans()
    assert {name: value for name, value in span.attributes.items() if "usage" in name} == {
        "llm_callback.usage.source": "missing"
    }


def test_stream_without_a_finish_reason_is_truncated(server, client, telemetry):
    """A choice that never said why it stopped reads `error`, and the span says so."""
    server.reply = always(StreamReply(chat_chunks(["a"], finish_reason=None)))
    list(client.chat.completions.create(**ASKED, stream=True))
    assert only_span(telemetry) == SpanFacts(
        attributes={
            **request_attributes(server),
            "gen_ai.request.stream": True,
            "gen_ai.response.id": "chatcmpl-1",
            "gen_ai.response.model": "gpt-4o-mini",
            "gen_ai.response.finish_reasons": ("error",),
            "gen_ai.response.time_to_first_chunk": SECONDS,
            "llm_callback.time_to_first_output": SECONDS,
            "llm_callback.chunk.count": 2,
            "llm_callback.chunk.longest_gap": SECONDS,
            "llm_callback.truncated": True,
            "llm_callback.usage.source": "missing",
            "llm_callback.outcome": "completed",
            **transport(),
        },
        events=STREAMED,
    )


def test_first_output_is_not_the_first_chunk(server, client, telemetry):
    """A leading chunk with only a role stops one clock, the first word the other."""
    server.reply = always(StreamReply(chat_chunks(["a", "b"]), delay_s=0.02))
    list(client.chat.completions.create(**ASKED, stream=True))
    (span,) = telemetry.spans()
    first_chunk_s = span.attributes["gen_ai.response.time_to_first_chunk"]
    assert span.attributes["llm_callback.time_to_first_output"] >= first_chunk_s + 0.015


def test_chunk_events_are_written_on_request_only_and_bounded(server, client, telemetry, recorder):
    """With `chunk_events` the first chunks become events; 2,000 chunks lose none of the others."""
    otel_llm_callback.uninstrument()
    providers = {"tracer_provider": telemetry.tracer_provider, "meter_provider": telemetry.meter_provider}
    otel_llm_callback.instrument(chunk_events=2, **providers)
    server.reply = always(StreamReply(chat_chunks(["a"] * 2000)))
    list(client.chat.completions.create(**ASKED, stream=True))
    (span,) = telemetry.spans()
    assert [(event.name, dict(event.attributes)) for event in span.events] == [
        REQUEST_SENT,
        ("llm_callback.chunk", {"llm_callback.chunk.index": 0, "llm_callback.chunk.kind": "event"}),
        ("llm_callback.chunk", {"llm_callback.chunk.index": 1, "llm_callback.chunk.kind": "text"}),
        FIRST_CHUNK,
        RESPONSE_RECEIVED,
    ]
    assert (span.dropped_events, span.attributes["llm_callback.chunk.count"]) == (0, 2002)


def test_n_choices_have_n_finish_reasons(server, client, telemetry):
    """Finish reasons are those of the provider, one per choice in the order of the index."""
    chunks = [
        chat_chunk({"content": "a"}, choice=0),
        chat_chunk({"content": "b"}, choice=1),
        chat_chunk({}, choice=1, finish_reason="length"),
        chat_chunk({}, choice=0, finish_reason="tool_calls"),
    ]
    server.reply = always(StreamReply(chunks))
    list(client.chat.completions.create(**ASKED, n=2, stream=True))
    (span,) = telemetry.spans()
    assert span.attributes["gen_ai.response.finish_reasons"] == ("tool_calls", "length")


def test_missing_finish_reason_keeps_its_place(server, client, telemetry):
    """A choice without a finish reason does not move the next one's into its place."""
    answer = chat_completion("a", choices=2)
    answer["choices"][0] = {**answer["choices"][0], "finish_reason": None}
    server.reply = always(JsonReply(answer))
    client.chat.completions.create(**ASKED, n=2)
    (span,) = telemetry.spans()
    assert span.attributes["gen_ai.response.finish_reasons"] == ("error", "stop")


# --- Transport --------------------------------------------------------------------------------------------------------


def test_two_retries_are_told_apart_from_the_call(server, client, telemetry):
    """Retries leave one span, two events and no error."""
    server.reply = refusing(429, times=2)
    client.chat.completions.create(**ASKED)
    expected = answered(server).adding(llm_callback__retry__count=2, llm_callback__retry__wait=SECONDS)
    expected.attributes.update({"gen_ai.response.id": "chatcmpl-000003", **transport(3)})
    retries = [retried(429, "HTTPStatusError")] * 2
    assert only_span(telemetry) == replace(expected, events=[REQUEST_SENT, *retries, RESPONSE_RECEIVED])


def test_retry_wait_is_the_sum_of_the_delays(server, client, telemetry):
    """The time spent waiting can be taken off the duration."""
    server.reply = refusing(429, times=2, **{"retry-after-ms": "30"})
    client.chat.completions.create(**ASKED)
    (span,) = telemetry.spans()
    delays = [event.attributes["llm_callback.retry.delay"] for event in span.events[1:3]]
    assert span.attributes["llm_callback.retry.wait"] == sum(delays)
    assert (span.end_time - span.start_time) / 1e9 >= sum(delays) >= 0.06
    assert span.events[2].timestamp - span.events[1].timestamp >= delays[0] * 1e9


def test_rate_limit_headers(server, client, telemetry):
    """What the headers say of limits is there in numbers, times in seconds; no other header is read."""
    headers = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-tokens": "29990",
        "x-ratelimit-reset-tokens": "6m0s",
        "x-request-id": "req-of-provider",
        "openai-processing-ms": "250",
        "openai-organization": "secret-org",
        "set-cookie": "a=b",
    }
    server.reply = always(JsonReply(chat_completion(), headers=headers))
    client.chat.completions.create(**ASKED)
    assert only_span(telemetry).attributes == {
        **answered(server).attributes,
        "gen_ai.response.id": "chatcmpl-1",
        "llm_callback.request_id": "req-of-provider",
        "llm_callback.processing_time": 0.25,
        "llm_callback.rate_limit.requests.limit": 500,
        "llm_callback.rate_limit.requests.remaining": 499,
        "llm_callback.rate_limit.requests.reset": 0.12,
        "llm_callback.rate_limit.tokens.limit": 30000,
        "llm_callback.rate_limit.tokens.remaining": 29990,
        "llm_callback.rate_limit.tokens.reset": 360.0,
    }


def test_azure(server, telemetry):
    """On Azure the provider is Azure and the requested model the deployment."""
    endpoint = server.url.removesuffix("/v1")
    with openai.AzureOpenAI(api_key="k", azure_endpoint=endpoint, api_version="2024-10-21") as client:
        client.chat.completions.create(model="my-deployment", messages=MESSAGES)
    attributes = {
        **answered(server).attributes,
        "gen_ai.provider.name": "azure.ai.openai",
        "gen_ai.request.model": "my-deployment",
        "gen_ai.response.model": "my-deployment",
    }
    assert only_span(telemetry) == SpanFacts("chat my-deployment", attributes=attributes, events=ANSWERED)


def test_port_of_an_https_url_is_443(telemetry):
    """The port is there with the address, also where the URL leaves it to the scheme."""
    with (
        openai.OpenAI(api_key="k", base_url="https://nowhere.invalid/v1", max_retries=0) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.chat.completions.create(**ASKED)
    (span,) = telemetry.spans()
    address = {name: span.attributes[name] for name in ("server.address", "server.port")}
    assert address == {"server.address": "nowhere.invalid", "server.port": 443}


def test_credentials_and_query_of_the_base_url_stay_there(server, telemetry):
    """Of the base URL the span has host and port, nothing else."""
    with openai.OpenAI(
        api_key="k",
        base_url=server.url.replace("http://", "http://alice:hunter2@"),
        default_query={"secret": "in-the-query"},
    ) as client:
        client.chat.completions.create(**ASKED)
    assert server.requests[0].query == "secret=in-the-query"
    assert only_span(telemetry) == answered(server)


def test_query_inside_the_base_url_stays_there(server, telemetry):
    """Even a URL that makes no sense is not quoted."""
    url = server.url.replace("http://", "http://alice:hunter2@") + "?secret=in-the-url"
    with openai.OpenAI(api_key="k", base_url=url, max_retries=0) as client, pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**ASKED)
    attributes = {**failed(server, "NotFoundError"), "http.response.status_code": 404}
    events = [REQUEST_SENT, exception("openai.NotFoundError")]
    assert only_span(telemetry) == SpanFacts(attributes=attributes, events=events, status=FAILED)


# --- Calls that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "BadRequestError"),
        (401, "AuthenticationError"),
        (403, "PermissionDeniedError"),
        (404, "NotFoundError"),
        (409, "ConflictError"),
        (422, "UnprocessableEntityError"),
        (429, "RateLimitError"),
        (500, "InternalServerError"),
        (503, "InternalServerError"),
    ],
)
def test_refusal(server, client, telemetry, status, kind):
    """An error says its class, the HTTP status and the request id, and not a word of its text."""
    server.reply = always(JsonReply(error_body("the prompt was: secret"), status=status))
    with pytest.raises(getattr(openai, kind)):
        client.with_options(max_retries=0).chat.completions.create(**ASKED)
    attributes = {**failed(server, kind), "http.response.status_code": status}
    events = [REQUEST_SENT, exception(f"openai.{kind}")]
    assert only_span(telemetry) == SpanFacts(attributes=attributes, events=events, status=FAILED)


def test_retries_that_do_not_help(server, client, telemetry):
    """A call that fails after all retries tells of them too."""
    server.reply = refusing(500, times=9)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**ASKED)
    attributes = {
        **failed(server, "InternalServerError", 3),
        "http.response.status_code": 500,
        "llm_callback.retry.count": 2,
        "llm_callback.retry.wait": SECONDS,
    }
    retries = [retried(500, "HTTPStatusError")] * 2
    events = [REQUEST_SENT, *retries, exception("openai.InternalServerError")]
    assert only_span(telemetry) == SpanFacts(attributes=attributes, events=events, status=FAILED)


def test_connection_refused(telemetry):
    """Where nobody listens there is no status and no request id."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with (
        openai.OpenAI(api_key="k", base_url=f"http://127.0.0.1:{port}/v1", max_retries=1) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.chat.completions.create(**ASKED)
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "server.address": "127.0.0.1",
        "server.port": port,
        "openai.api.type": "chat_completions",
        "error.type": "APIConnectionError",
        "llm_callback.outcome": "error",
        "llm_callback.retry.count": 1,
        "llm_callback.retry.wait": SECONDS,
    }
    events = [REQUEST_SENT, retried(None, "ConnectError"), exception("openai.APIConnectionError")]
    assert only_span(telemetry) == SpanFacts(attributes=attributes, events=events, status=FAILED)


def test_timeout(server, client, telemetry):
    """A timeout is an error of its own class."""
    server.reply = always(JsonReply({}, delay_s=5))
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.05, max_retries=0).chat.completions.create(**ASKED)
    events = [REQUEST_SENT, exception("openai.APITimeoutError")]
    assert only_span(telemetry) == SpanFacts(
        attributes=failed(server, "APITimeoutError", None), events=events, status=FAILED
    )


class Person(pydantic.BaseModel):
    name: str


def test_answer_cut_short_keeps_its_usage(server, client, telemetry):
    """`parse()` raises on an answer that ran into the limit; what came is told all the same."""
    server.reply = always(JsonReply(chat_completion('{"na', finish_reason="length")))
    with pytest.raises(openai.LengthFinishReasonError):
        parsing(client).parse(**ASKED, response_format=Person)
    attributes = {
        **answered(server).attributes,
        "gen_ai.output.type": "json",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("length",),
        "error.type": "LengthFinishReasonError",
        "http.response.status_code": 200,
        "llm_callback.outcome": "error",
    }
    events = [REQUEST_SENT, exception("openai.LengthFinishReasonError")]
    assert only_span(telemetry) == SpanFacts(attributes=attributes, events=events, status=FAILED)


def streamed_part(server, chunks, **more):
    """The attributes of a stream that ended before its time."""
    return {
        **request_attributes(server),
        "gen_ai.request.stream": True,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "gpt-4o-mini",
        "gen_ai.response.time_to_first_chunk": SECONDS,
        "llm_callback.time_to_first_output": SECONDS,
        "llm_callback.chunk.count": chunks,
        "llm_callback.chunk.longest_gap": SECONDS,
        **transport(),
        **more,
    }


def test_error_inside_a_stream_keeps_what_had_arrived(server, client, telemetry):
    """Usage that came before the error counts; the reason that never came reads `error`."""
    chunks = [chat_chunk({"content": "a"}), chat_chunk({"content": "b"}, usage=(5, 2))]
    server.reply = always(StreamReply([*chunks, error_body("overloaded: secret", "server_error")]))
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(**ASKED, stream=True))
    attributes = streamed_part(
        server,
        2,
        **usage(5, 2),
        **{
            "gen_ai.response.finish_reasons": ("error",),
            "error.type": "APIError",
            "http.response.status_code": 200,
            "llm_callback.outcome": "error",
        },
    )
    events = [REQUEST_SENT, FIRST_CHUNK, exception("openai.APIError")]
    assert only_span(telemetry) == SpanFacts(attributes=attributes, events=events, status=FAILED)


def test_connection_lost_inside_a_stream(server, client, telemetry):
    """A socket that breaks is the error the caller gets, with what had arrived."""
    server.reply = always(StreamReply(chat_chunks(["a", "b", "c"]), cut_after=3))
    with pytest.raises(Exception, match=r"Connection error|peer closed") as raised:  # the latter before openai 3
        list(client.chat.completions.create(**ASKED, stream=True))
    kind = type(raised.value)
    attributes = streamed_part(
        server,
        3,
        **{
            "gen_ai.response.finish_reasons": ("error",),
            "error.type": kind.__name__,
            "http.response.status_code": 200,
            "llm_callback.outcome": "error",
        },
    )
    events = [REQUEST_SENT, FIRST_CHUNK, exception(f"{kind.__module__}.{kind.__qualname__}")]
    assert only_span(telemetry) == SpanFacts(attributes=attributes, events=events, status=FAILED)


# --- Calls that the caller ends ---------------------------------------------------------------------------------------


async def test_cancelled_request(server, aclient, telemetry):
    """A cancelled task is no success; nothing but the cancellation is known."""
    arrived, loop = asyncio.Event(), asyncio.get_running_loop()

    def reply(_):
        loop.call_soon_threadsafe(arrived.set)
        return JsonReply({}, delay_s=5)

    server.reply = reply
    task = asyncio.create_task(aclient.chat.completions.create(**ASKED))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    events = [REQUEST_SENT, exception("asyncio.exceptions.CancelledError")]
    attributes = failed(server, "CancelledError", None, outcome="cancelled")
    assert only_span(telemetry) == SpanFacts(attributes=attributes, events=events, status=FAILED)


async def test_cancelled_stream(server, aclient, telemetry):
    """A stream that is cancelled while it waits tells what had arrived."""
    server.reply = always(StreamReply([*chat_chunks(["a"])[:2], *[b""] * 500], delay_s=0.01))
    stream = await aclient.chat.completions.create(**ASKED, stream=True)
    for _ in range(2):
        await anext(stream)
    task = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    attributes = streamed_part(
        server,
        2,
        **{
            "gen_ai.response.finish_reasons": ("error",),
            "error.type": "CancelledError",
            "http.response.status_code": 200,
            "llm_callback.outcome": "cancelled",
        },
    )
    events = [REQUEST_SENT, FIRST_CHUNK, exception("asyncio.exceptions.CancelledError")]
    assert only_span(telemetry) == SpanFacts(attributes=attributes, events=events, status=FAILED)


def test_stream_closed_early_is_no_error(server, client, telemetry):
    """A caller who has read enough gets no error and no invented finish reason."""
    server.reply = always(StreamReply(chat_chunks(["word "] * 500), delay_s=0.01))
    with client.chat.completions.create(**ASKED, stream=True) as stream:
        next(stream)
        next(stream)
    attributes = streamed_part(server, 2, **{"llm_callback.outcome": "closed_early"})
    assert only_span(telemetry) == SpanFacts(attributes=attributes, events=STREAMED)


def test_abandoned_stream_ends_with_its_last_chunk(server, client, telemetry):
    """A stream that was dropped is no error either, and the time nobody looked at it does not count."""
    server.reply = always(StreamReply(chat_chunks(["word "] * 500), delay_s=0.01))
    stream = client.chat.completions.create(**ASKED, stream=True)
    next(stream)
    next(stream)
    del stream
    gc.collect()
    otel_llm_callback.flush()
    attributes = streamed_part(server, 2, **{"llm_callback.outcome": "abandoned"})
    assert only_span(telemetry) == SpanFacts(attributes=attributes, events=STREAMED)


# --- Sessions ---------------------------------------------------------------------------------------------------------


def test_session_goes_on_spans_and_never_on_metrics(server, client, telemetry):
    """Ids of sessions and users, and further facts, are attributes of the span only."""
    with otel_llm_callback.session("s-1", user="u-1", tenant="acme", level=3, tags=("a", "b")):
        client.chat.completions.create(**ASKED)
    expected = answered(server).adding(
        session__id="s-1",
        user__id="u-1",
        llm_callback__session__tenant="acme",
        llm_callback__session__level=3,
        llm_callback__session__tags=("a", "b"),
    )
    assert only_span(telemetry) == expected
    values = {str(value) for point in telemetry.metrics() for value in point.attributes.values()}
    assert values & {"s-1", "u-1", "acme", "3", "('a', 'b')"} == set()


async def test_sessions_of_concurrent_tasks_do_not_mix(server, aclient, telemetry):
    """Each task's calls have that task's session."""

    async def ask(number):
        with otel_llm_callback.session(f"s-{number}"):
            await asyncio.sleep(0)
            await aclient.chat.completions.create(model=f"m-{number}", messages=MESSAGES)

    await asyncio.gather(*(ask(number) for number in range(10)))
    found = {(span.attributes["gen_ai.request.model"], span.attributes["session.id"]) for span in telemetry.spans()}
    assert found == {(f"m-{number}", f"s-{number}") for number in range(10)}


# --- The adapter by hand ----------------------------------------------------------------------------------------------


def adapter_of(telemetry, **options):
    return OpenTelemetryCallback(
        tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider, **options
    )


def test_adapter_takes_plain_json_text(telemetry):
    """Used alone it is a callback like any other: facts and JSON in, a span out."""
    adapter = adapter_of(telemetry, gate=Gate("span_only"))
    request = make_request(stream=True)
    retry = Retry(at_ns=request.started_ns + 1000, delay_s=0.001)
    usage = Usage(input_tokens=5, output_tokens=None)
    response = make_response(
        request=request, usage=usage, usage_source="estimated", retries=(retry,), time_to_first_chunk_s=0.05
    )
    adapter.on_request_sent(request, '{"messages": [{"role": "user", "content": "hi"}]}')
    adapter.on_response_received(response, '{"choices": []}')
    retried_once = ("llm_callback.retry", {"llm_callback.retry.delay": SECONDS})
    assert only_span(telemetry) == SpanFacts(
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.request.stream": True,
            "server.address": "api.openai.com",
            "server.port": 443,
            "openai.api.type": "chat_completions",
            "gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text","content":"hi"}]}]',
            "gen_ai.response.id": "chatcmpl-1",
            "gen_ai.response.model": "gpt-4o-mini",
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.response.time_to_first_chunk": SECONDS,
            "gen_ai.usage.input_tokens": 5,
            "llm_callback.usage.source": "estimated",
            "llm_callback.retry.count": 1,
            "llm_callback.retry.wait": SECONDS,
            "llm_callback.request_id": "req-1",
            "llm_callback.outcome": "completed",
        },
        events=[REQUEST_SENT, retried_once, FIRST_CHUNK, RESPONSE_RECEIVED],
    )


def test_adapter_ignores_the_end_of_a_call_it_never_saw_begin(telemetry):
    """A callback added while a call is under way hears only its end."""
    adapter = adapter_of(telemetry, chunk_events=1)
    adapter.on_stream_chunk(make_chunk(), 0)
    adapter.on_response_received(make_response(), "")
    adapter.on_error(ValueError(), make_error_context())
    metrics = [point for point in telemetry.metrics() if point.name.startswith("gen_ai.")]
    assert (telemetry.spans(), metrics) == ((), [])


def test_adapter_keeps_nothing_of_ended_calls(telemetry):
    """Whatever the outcome, no call leaves anything behind."""
    adapter = adapter_of(telemetry)
    for number in range(1500):  # more models than plans are kept
        request = make_request(model=f"m-{number}")
        adapter.on_request_sent(request, "")
        if number % 2:
            adapter.on_response_received(make_response(request=request), "")
        else:
            adapter.on_error(ValueError(), make_error_context(request=request))
    assert (adapter._open, len(adapter._plans) <= 1024, len(telemetry.spans())) == ({}, True, 1500)


# --- Names ------------------------------------------------------------------------------------------------------------

OF_THE_CONVENTIONS = """
    gen_ai.operation.name gen_ai.provider.name gen_ai.request.model gen_ai.request.stream gen_ai.output.type
    gen_ai.request.temperature gen_ai.request.max_tokens gen_ai.request.top_p gen_ai.request.top_k
    gen_ai.request.frequency_penalty gen_ai.request.presence_penalty gen_ai.request.seed gen_ai.request.choice.count
    gen_ai.request.reasoning.level gen_ai.request.stop_sequences gen_ai.request.previous_response.id
    gen_ai.request.stream_cursor gen_ai.request.encoding_formats gen_ai.embeddings.dimension.count
    gen_ai.conversation.id gen_ai.prompt.name gen_ai.prompt.version gen_ai.data_source.id gen_ai.response.status
    gen_ai.response.id gen_ai.response.model gen_ai.response.finish_reasons gen_ai.response.time_to_first_chunk
    gen_ai.usage.input_tokens gen_ai.usage.output_tokens gen_ai.usage.reasoning.output_tokens
    gen_ai.usage.cache_read.input_tokens gen_ai.usage.cache_creation.input_tokens
    gen_ai.usage.text.input_tokens gen_ai.usage.text.output_tokens gen_ai.usage.image.input_tokens
    gen_ai.usage.image.output_tokens gen_ai.usage.audio.input_tokens gen_ai.usage.audio.output_tokens
    gen_ai.input.messages gen_ai.output.messages gen_ai.system_instructions gen_ai.tool.definitions
    gen_ai.token.type gen_ai.token.modality
    gen_ai.client.operation.duration gen_ai.client.token.usage gen_ai.client.operation.time_to_first_chunk
    gen_ai.client.operation.time_per_output_chunk gen_ai.client.operation.exception
    gen_ai.client.inference.operation.details gen_ai.client.inference.duration
    gen_ai.client.inference.time_to_first_chunk gen_ai.client.inference.time_per_output_chunk
    gen_ai.client.inference.operation.input_tokens gen_ai.client.inference.operation.output_tokens
    gen_ai.client.inference.usage.
    openai.api.type openai.request.service_tier openai.response.service_tier openai.response.system_fingerprint
"""


OF_THE_FIELD = {"gen_ai.usage.cost"}  # of no convention, but what packaged dashboards read; opt-in


def test_nothing_of_ours_is_in_a_namespace_of_the_conventions():
    """A name that starts with `gen_ai.` or `openai.` is one of the conventions; ours start with `llm_callback.`."""
    from otel_llm_callback.telemetry import _names

    theirs = {name for name in _strings(vars(_names)) if re.match(r"(gen_ai|openai)\.", name)}
    assert theirs == set(OF_THE_CONVENTIONS.split()) | OF_THE_FIELD


def _strings(values):
    for name, value in values.items():
        if not name.startswith("__"):
            yield from (text for text in _flat(value) if isinstance(text, str))


def _flat(value):
    if isinstance(value, tuple | frozenset):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def test_scope_says_who_speaks_which_convention(client, telemetry):
    """Name, version and schema URL are on the scope."""
    client.chat.completions.create(**ASKED)
    (span,) = telemetry.spans()
    scope = span.instrumentation_scope
    assert (scope.name, scope.version, scope.schema_url) == (
        "otel_llm_callback",
        otel_llm_callback.__version__,
        "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev",
    )


def test_call_to_another_endpoint_makes_no_span(client, telemetry):
    """What is not observed leaves no trace."""
    list(client.models.list())
    assert telemetry.spans() == ()
