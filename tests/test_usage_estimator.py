"""`usage_estimator`: a function of the program's own stands in for usage that was not reported, and is marked."""

from __future__ import annotations

import json

import pytest

import otel_llm_callback
from otel_llm_callback.testing import JsonReply, StreamReply, chat_chunks, chat_completion
from otel_llm_callback.types import Usage

ASKED = {"model": "m", "messages": [{"role": "user", "content": "one two"}]}


def count_words(model, request_json, response_json):
    """A rough estimator: words instead of tokens."""
    asked = json.loads(request_json)["messages"][0]["content"]
    said = json.loads(response_json)["choices"][0]["message"]["content"]
    return Usage(input_tokens=len(asked.split()), output_tokens=len(said.split())) if model == "m" else None


def instrument(telemetry, recorder, estimator):
    otel_llm_callback.instrument(
        recorder,
        delivery="inline",
        usage_estimator=estimator,
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
    )


def told(recorder):
    return [(r.prompt_tokens, r.completion_tokens, r.usage_source) for r in recorder.responses]


@pytest.mark.parametrize("stream", [False, True])
def test_missing_usage_is_estimated_and_marked(server, client, recorder, telemetry, stream):
    """Callbacks, span and metrics have the estimate; the span says that it is one."""
    plain = JsonReply({**chat_completion("three more words", model="m"), "usage": None})
    streamed = StreamReply(chat_chunks(["three ", "more words"], model="m"))
    server.reply = lambda request: streamed if stream else plain
    instrument(telemetry, recorder, count_words)
    answer = client.chat.completions.create(**ASKED, stream=stream)
    if stream:
        list(answer)
    assert told(recorder) == [(2, 3, "estimated")]
    (span,) = telemetry.spans()
    names = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "llm_callback.usage.source")
    assert [span.attributes[name] for name in names] == [2, 3, "estimated"]
    assert sum(point.sum for point in telemetry.metrics("gen_ai.client.token.usage")) == 5


def test_reported_usage_is_not_estimated(client, recorder, telemetry):
    """What the server says wins, and the function is not even called."""
    instrument(telemetry, recorder, lambda *_: pytest.fail("called"))
    answer = client.chat.completions.create(**ASKED)
    assert told(recorder) == [(answer.usage.prompt_tokens, answer.usage.completion_tokens, "reported")]


def test_stream_that_was_left_is_not_estimated(server, client, recorder, telemetry):
    """Nobody knows what the server went on to write."""
    server.reply = lambda request: StreamReply(chat_chunks(["a", "b", "c"], model="m"), delay_s=0.01)
    instrument(telemetry, recorder, count_words)
    with client.chat.completions.create(**ASKED, stream=True) as stream:
        next(stream)
    assert told(recorder) == [(None, None, "missing")]


@pytest.mark.parametrize("estimator", [lambda *_: None, lambda *_: 1 / 0], ids=["silent", "broken"])
def test_estimator_that_cannot_tell_leaves_usage_unknown(
    request, server, client, recorder, telemetry, expected_logs, estimator
):
    """No estimate is no number; a failure is reported, and the call is unaffected."""
    server.reply = lambda request: StreamReply(chat_chunks(["a"], model="m"))
    instrument(telemetry, recorder, estimator)
    list(client.chat.completions.create(**ASKED, stream=True))
    assert told(recorder) == [(None, None, "missing")]
    assert otel_llm_callback.status().errors == ({"estimate": 1} if "broken" in request.node.name else {})
