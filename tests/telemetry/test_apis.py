"""Spans and metrics of the other APIs: Responses, embeddings, completions, images, searches, jobs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from api_forms import exists, no_deprecation, takes

# recation
from opentelemetry.trace import StatusCode
from telemetry.facts import (
    ANSWERED,
    REQUEST_SENT,
    SECONDS,
    STREAMED,
    SpanFacts,
    exception,
    facts,
    only_span,
    request_attributes,
    transport,
)

from otel_llm_callback.testing import JsonReply, StreamReply, image_events, response_events, response_object

ASK = {"model": "gpt-4o-mini", "input": "Say hello."}

pytestmark = pytest.mark.usefixtures("instrumented")


def needs(path):
    return pytest.mark.skipif(not exists(path), reason=f"this release of openai has no {path}")


streamed_fetch = pytest.mark.skipif(not takes("responses.retrieve", "stream"), reason="not in this openai")
streamed_images = pytest.mark.skipif(not takes("images.generate", "stream"), reason="not in this openai")


def always(reply):
    return lambda _: reply


def sse(events):
    return StreamReply(events, done=False, named=True)


def asked(server, operation, *, model="gpt-4o-mini", api=None):
    """The attributes a call begins with."""
    common = request_attributes(server)
    made = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "openai",
        "server.address": common["server.address"],
        "server.port": common["server.port"],
    }
    if model is not None:
        made["gen_ai.request.model"] = model
    if api is not None:
        made["openai.api.type"] = api
    return made


RESPONSES_USAGE = {
    "gen_ai.usage.input_tokens": 5,
    "gen_ai.usage.output_tokens": 7,
    "gen_ai.usage.cache_read.input_tokens": 0,
    "gen_ai.usage.cache_creation.input_tokens": 0,
    "gen_ai.usage.reasoning.output_tokens": 0,
}
COMPLETED = {"llm_callback.outcome": "completed"}
ANSWER = {
    "gen_ai.response.id": "resp_1",
    "gen_ai.response.model": "gpt-4o-mini",
    "gen_ai.response.finish_reasons": ("stop",),
}


def responded(server, **more):
    return SpanFacts(
        attributes={
            **asked(server, "chat", api="responses"),
            **ANSWER,
            **RESPONSES_USAGE,
            **transport(),
            **COMPLETED,
        },
        events=ANSWERED,
    ).adding(**more)


def test_response(server, client, telemetry):
    """A response is a chat span, with the name of its API."""
    server.reply = always(JsonReply(response_object()))
    client.responses.create(**ASK)
    assert only_span(telemetry) == responded(server)


def test_parameters_of_a_response(server, client, telemetry):
    """Each parameter the conventions name is an attribute under their name."""
    body = {
        **response_object(
            usage={
                "input_tokens": 9,
                "output_tokens": 8,
                "total_tokens": 17,
                "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2},
                "output_tokens_details": {"reasoning_tokens": 4},
            }
        ),
        "service_tier": "flex",
    }
    server.reply = always(JsonReply(body))
    client.responses.create(
        **ASK,
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=64,
        reasoning={"effort": "low"},
        text={"format": {"type": "json_object"}},
        previous_response_id="resp_0",
        extra_body={
            "service_tier": "flex",
            "conversation": {"id": "conv_1"},
            "prompt": {"id": "pmpt_1", "version": "2"},
        },
    )
    expected = responded(
        server,
        gen_ai__request__temperature=0.5,
        gen_ai__request__top_p=0.9,
        gen_ai__request__max_tokens=64,
        gen_ai__request__reasoning__level="low",
        gen_ai__output__type="json",
        openai__request__service_tier="flex",
        openai__response__service_tier="flex",
        gen_ai__request__previous_response__id="resp_0",
        gen_ai__conversation__id="conv_1",
        gen_ai__prompt__name="pmpt_1",
        gen_ai__prompt__version="2",
        gen_ai__usage__input_tokens=9,
        gen_ai__usage__output_tokens=8,
        gen_ai__usage__cache_read__input_tokens=3,
        gen_ai__usage__cache_creation__input_tokens=2,
        gen_ai__usage__reasoning__output_tokens=4,
    )
    assert only_span(telemetry) == expected


def test_streamed_response(server, client, telemetry):
    """A stream adds when its first event and its first output came."""
    server.reply = always(sse(response_events(["a", "b"])))
    list(client.responses.create(**ASK, stream=True))
    expected = responded(
        server,
        gen_ai__request__stream=True,
        gen_ai__response__time_to_first_chunk=SECONDS,
        llm_callback__time_to_first_output=SECONDS,
        llm_callback__chunk__count=10,
        llm_callback__chunk__longest_gap=SECONDS,
    )
    assert only_span(telemetry) == replace(expected, events=STREAMED)


def failed_span(server):
    attributes = {
        **asked(server, "chat", api="responses"),
        **ANSWER,
        "gen_ai.response.finish_reasons": ("error",),
        **transport(),
        "llm_callback.outcome": "error",
        "error.type": "rate_limit_exceeded",
        "http.response.status_code": 200,
    }
    failure = exception("otel_llm_callback.types.FailedResponseError")
    return SpanFacts(attributes=attributes, events=[REQUEST_SENT, failure], status=(StatusCode.ERROR, None))


def test_failed_response_is_an_error_with_its_code(server, client, telemetry):
    """HTTP says 200, the result says failed: span and metrics have the code, the caller gets the object."""
    server.reply = always(JsonReply(response_object(status="failed", error_code="rate_limit_exceeded", usage=None)))
    assert client.responses.create(**ASK).error.code == "rate_limit_exceeded"
    assert only_span(telemetry) == failed_span(server)
    (duration,) = [point for point in telemetry.metrics() if point.name == "gen_ai.client.operation.duration"]
    assert duration.attributes["error.type"] == "rate_limit_exceeded"


def test_error_type_of_a_failed_response_without_a_code(server, client, telemetry):
    """Then the status is all there is."""
    server.reply = always(JsonReply({**response_object(status="failed"), "error": None}))
    client.responses.create(**ASK)
    assert only_span(telemetry).attributes["error.type"] == "failed"


def test_fetched_response(server, client, telemetry):
    """The id is the one asked for; the status is told, tokens are not: they were used by another call."""
    server.reply = always(JsonReply(response_object(response_id="resp_9")))
    client.responses.retrieve("resp_9")
    expected = SpanFacts(
        name="fetch_response",
        attributes={
            **asked(server, "fetch_response", model=None, api="responses"),
            **ANSWER,
            "gen_ai.response.id": "resp_9",
            "gen_ai.response.status": "completed",
            **transport(),
            **COMPLETED,
        },
        events=ANSWERED,
    )
    assert only_span(telemetry) == expected
    assert tokens(telemetry) == []


def test_fetched_response_that_is_not_there_keeps_its_id(server, client, telemetry):
    """The id comes from the request."""
    server.reply = always(JsonReply({"error": {"message": "no"}}, status=404))
    with pytest.raises(Exception, match="404"):
        client.responses.retrieve("resp_9")
    assert only_span(telemetry).attributes["gen_ai.response.id"] == "resp_9"


@streamed_fetch
def test_fetched_stream_has_its_cursor(server, client, telemetry):
    """Where the stream is taken up is text, as the conventions want it."""
    list(client.responses.retrieve("resp_9", stream=True, starting_after=3))
    attributes = only_span(telemetry).attributes
    names = ("gen_ai.request.stream_cursor", "gen_ai.response.id", "gen_ai.response.status", "gen_ai.request.stream")
    assert [attributes[name] for name in names] == ["3", "resp_9", "completed", True]
    assert tokens(telemetry) == []


def tokens(telemetry):
    """Each sum of tokens: operation, type, tokens, and how often it was recorded."""
    return sorted(
        (point.attributes["gen_ai.operation.name"], point.attributes["gen_ai.token.type"], point.sum, point.count)
        for point in telemetry.metrics()
        if point.name == "gen_ai.client.token.usage"
    )


@pytest.mark.parametrize("last", ["completed", "incomplete", "failed"])
@pytest.mark.parametrize("streamed", [False, pytest.param(True, marks=streamed_fetch)], ids=["polled", "streamed"])
def test_background_response_is_counted_once_and_linked(server, client, telemetry, last, streamed):
    """Asked for, polled twice, fetched twice: tokens count when the end is first seen; all spans lead to the first."""
    states = iter(["queued", "queued", "in_progress", last, last])

    def reply(request):
        status = next(states)
        if "stream=true" in request.query and status == last:
            return sse(response_events(["a"], status=status, response_id="resp_b"))
        usage = (5, 7) if status == last else None
        return JsonReply(response_object(status=status, usage=usage, response_id="resp_b"))

    server.reply = reply
    client.responses.create(**ASK, extra_body={"background": True})
    for _ in range(2):
        client.responses.retrieve("resp_b")
    for _ in range(2):
        answer = client.responses.retrieve("resp_b", stream=True) if streamed else client.responses.retrieve("resp_b")
        list(answer)
    first, *fetches = telemetry.spans()
    assert [[link.context.span_id for link in span.links] for span in fetches] == [[first.context.span_id]] * 4
    assert first.links == ()
    operation = "fetch_response"
    assert tokens(telemetry) == [(operation, "input", 5, 1), (operation, "output", 7, 1)]


@streamed_fetch
def test_streamed_background_response_that_is_left_is_counted_by_the_fetch(server, client, telemetry):
    """Whoever sees the end counts it."""
    server.reply = lambda request: sse(response_events(["a"], response_id="resp_c"))
    with client.responses.create(**ASK, extra_body={"background": True}, stream=True) as events:
        next(events)
    list(client.responses.retrieve("resp_c", stream=True, starting_after=0))
    list(client.responses.retrieve("resp_c", stream=True, starting_after=0))
    assert tokens(telemetry) == [("fetch_response", "input", 5, 1), ("fetch_response", "output", 7, 1)]


@needs("responses.cancel")
def test_cancelled_response(server, client, telemetry):
    """It is fetched in the state it was left in, by an operation of our own name."""
    server.reply = always(JsonReply(response_object(status="cancelled", usage=None)))
    client.responses.cancel("resp_1")
    span = only_span(telemetry)
    assert (span.name, span.status, span.attributes["gen_ai.response.finish_reasons"]) == (
        "cancel_response",
        (StatusCode.UNSET, None),
        ("error",),
    )


@pytest.mark.parametrize(
    ("given", "attributes"),
    [
        ({}, {}),
        ({"encoding_format": "float"}, {"gen_ai.request.encoding_formats": ("float",)}),
        ({"dimensions": 256}, {"gen_ai.embeddings.dimension.count": 256}),
    ],
    ids=["plain", "format", "dimensions"],
)
def test_embeddings(server, client, telemetry, given, attributes):
    """No output tokens, no finish reasons; base64 is the client's own wish and not told."""
    client.embeddings.create(model="text-embedding-3-small", input=["a", "b"], **given)
    expected = SpanFacts(
        name="embeddings text-embedding-3-small",
        attributes={
            **asked(server, "embeddings", model="text-embedding-3-small"),
            **attributes,
            "gen_ai.response.model": "text-embedding-3-small",
            "gen_ai.usage.input_tokens": 5,
            **transport(),
            **COMPLETED,
        },
        events=ANSWERED,
    )
    assert only_span(telemetry) == expected
    assert tokens(telemetry) == [("embeddings", "input", 5, 1)]


def test_legacy_completion(server, client, telemetry):
    """The parameters it shares with chat have the same names."""
    client.completions.create(
        model="gpt-3.5-turbo-instruct", prompt="Once", n=2, max_tokens=9, stop=["."], seed=7, temperature=0.5
    )
    expected = SpanFacts(
        name="text_completion gpt-3.5-turbo-instruct",
        attributes={
            **asked(server, "text_completion", model="gpt-3.5-turbo-instruct"),
            "gen_ai.request.choice.count": 2,
            "gen_ai.request.max_tokens": 9,
            "gen_ai.request.stop_sequences": (".",),
            "gen_ai.request.seed": 7,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.response.id": "cmpl-000001",
            "gen_ai.response.model": "gpt-3.5-turbo-instruct",
            "gen_ai.response.finish_reasons": ("stop", "stop"),
            "gen_ai.usage.input_tokens": 5,
            "gen_ai.usage.output_tokens": 7,
            "gen_ai.usage.cache_read.input_tokens": 0,
            "gen_ai.usage.reasoning.output_tokens": 0,
            "gen_ai.usage.audio.input_tokens": 0,
            "gen_ai.usage.audio.output_tokens": 0,
            **transport(),
            **COMPLETED,
        },
        events=ANSWERED,
    )
    assert only_span(telemetry) == expected


def image_span(server):
    return SpanFacts(
        name="image_generation gpt-image-1",
        attributes={
            **asked(server, "image_generation", model="gpt-image-1"),
            "gen_ai.output.type": "image",
            "gen_ai.usage.input_tokens": 5,
            "gen_ai.usage.output_tokens": 7,
            "gen_ai.usage.text.input_tokens": 5,
            "gen_ai.usage.image.input_tokens": 0,
            **transport(),
            **COMPLETED,
        },
        events=ANSWERED,
    )


def test_image(server, client, telemetry):
    """An operation of our own name, in the conventions' words."""
    client.images.generate(model="gpt-image-1", prompt="a cat")
    assert only_span(telemetry) == image_span(server)


@streamed_images
def test_streamed_image(server, client, telemetry):
    """The usage is in the last event."""
    server.reply = always(sse(image_events(partial_images=1)))
    list(client.images.generate(model="gpt-image-1", prompt="a cat", stream=True))
    expected = image_span(server).adding(
        gen_ai__request__stream=True,
        gen_ai__response__time_to_first_chunk=SECONDS,
        llm_callback__time_to_first_output=SECONDS,
        llm_callback__chunk__count=2,
        llm_callback__chunk__longest_gap=SECONDS,
    )
    assert only_span(telemetry) == replace(expected, events=STREAMED)


@needs("vector_stores.search")
def test_search(server, client, telemetry):
    """A retrieval names the store it looked in, never what was looked for."""
    list(client.vector_stores.search("vs_1", query="cats"))
    expected = SpanFacts(
        name="retrieval",
        attributes={
            **asked(server, "retrieval", model=None),
            "gen_ai.data_source.id": "vs_1",
            **transport(),
            **COMPLETED,
        },
        events=ANSWERED,
    )
    assert only_span(telemetry) == expected


@needs("videos.create")
def test_video_polls_are_not_calls(server, client, telemetry):
    """A job is the call that starts it."""
    with no_deprecation():
        client.videos.create(model="sora-2", prompt="a cat")
    (span,) = map(facts, telemetry.spans())
    assert (span.name, span.attributes["gen_ai.response.id"]) == ("video_generation sora-2", "video_1")
