"""`prices`: each call is priced once, and span, metric, metadata and callbacks say the same."""

from __future__ import annotations

from decimal import Decimal

import pytest

import otel_llm_callback
from otel_llm_callback import PriceTable, Usage, observe
from otel_llm_callback.callbacks import CostTracker, SessionAnalytics
from otel_llm_callback.testing import (
    JsonReply,
    StreamReply,
    chat_chunk,
    chat_chunks,
    chat_completion,
    response_object,
)

ASKED = {"model": "m", "messages": [{"role": "user", "content": "one two"}]}
TABLE = PriceTable({"m": {"input": "2", "cached_input": "1", "output": "8"}, "free": {"input": 0, "output": 0}})
USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 100,
    "total_tokens": 1100,
    "prompt_tokens_details": {"cached_tokens": 400},
    "completion_tokens_details": {"reasoning_tokens": 60},
}
BEGUN = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
WITH_EARLY_USAGE = [
    chat_chunk({"role": "assistant", "content": "a"}, model="m"),
    chat_chunk({"content": "b"}, model="m", usage=BEGUN),
    chat_chunk({"content": "c"}, model="m"),
]
BEGUN_COST = Decimal("0.000028")  # (10 x 2 + 1 x 8) millionths
COST = Decimal("0.0024")  # (600 x 2 + 400 x 1 + 100 x 8) millionths


def instrument(telemetry, *callbacks, **settings):
    otel_llm_callback.instrument(
        *callbacks,
        delivery="inline",
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        **{"prices": TABLE, **settings},
    )


def costs_on_spans(telemetry):
    return [span.attributes.get("llm_callback.cost") for span in telemetry.spans()]


def recorded(telemetry):
    """The cost metric: name, unit, number of calls and dollars."""
    return [(point.name, point.unit, point.count, point.sum) for point in telemetry.metrics("gen_ai.usage.cost")]


@pytest.mark.parametrize("stream", [False, True])
def test_span_metric_and_metadata_agree(server, client, recorder, telemetry, stream):
    whole = JsonReply(chat_completion("Hi", model="m", usage=USAGE))
    streamed = StreamReply(chat_chunks(["Hi"], model="m", usage=USAGE))
    server.reply = lambda request: streamed if stream else whole
    analytics, tracker = SessionAnalytics(), CostTracker(prices=None)
    instrument(telemetry, recorder, analytics, tracker, include_usage=True)
    answer = client.chat.completions.create(**ASKED, stream=stream)
    if stream:
        list(answer)
    assert [response.cost for response in recorder.responses] == [COST]
    assert costs_on_spans(telemetry) == [0.0024]
    assert recorded(telemetry) == [("gen_ai.usage.cost", "USD", 1, 0.0024)]
    assert (analytics.summary().cost, tracker.summary().cost) == (COST, COST)


def test_unknown_model_has_no_cost_anywhere(server, client, recorder, telemetry):
    """Absent, not zero."""
    server.reply = lambda request: JsonReply(chat_completion("Hi", model="other", usage=USAGE))
    instrument(telemetry, recorder)
    client.chat.completions.create(**{**ASKED, "model": "other"})
    assert [response.cost for response in recorder.responses] == [None]
    assert (costs_on_spans(telemetry), recorded(telemetry)) == ([None], [])


def test_zero_priced_model_costs_zero(server, client, recorder, telemetry):
    """A price of zero is a price."""
    server.reply = lambda request: JsonReply(chat_completion("Hi", model="free", usage=USAGE))
    instrument(telemetry, recorder)
    client.chat.completions.create(**{**ASKED, "model": "free"})
    assert [response.cost for response in recorder.responses] == [Decimal(0)]
    assert (costs_on_spans(telemetry), recorded(telemetry)) == ([0.0], [("gen_ai.usage.cost", "USD", 1, 0.0)])


def test_missing_usage_has_no_cost(server, client, recorder, telemetry):
    server.reply = lambda request: JsonReply({**chat_completion("Hi", model="m"), "usage": None})
    instrument(telemetry, recorder)
    client.chat.completions.create(**ASKED)
    assert ([response.cost for response in recorder.responses], costs_on_spans(telemetry)) == ([None], [None])


def test_estimated_usage_gives_a_cost_that_is_marked(server, client, recorder, telemetry):
    server.reply = lambda request: JsonReply({**chat_completion("Hi", model="m"), "usage": None})
    tracker = CostTracker(prices=None)
    instrument(telemetry, recorder, tracker, usage_estimator=lambda *_: Usage(input_tokens=10, output_tokens=10))
    client.chat.completions.create(**ASKED)
    (span,) = telemetry.spans()
    names = ("llm_callback.cost", "llm_callback.usage.source")
    assert [span.attributes[name] for name in names] == [0.0001, "estimated"]
    assert (tracker.summary().cost, tracker.summary().estimated_calls) == (Decimal("0.0001"), 1)


def test_stream_that_breaks_costs_what_had_arrived(server, client, recorder, telemetry):
    """Some servers report usage with each chunk; what they had counted by then was paid for."""
    server.reply = lambda request: StreamReply(WITH_EARLY_USAGE, cut_after=2)
    tracker = CostTracker(prices=None)
    instrument(telemetry, recorder, tracker)
    with pytest.raises(Exception):  # noqa: B017, PT011 - the SDK's or the HTTP library's, as the version has it
        list(client.chat.completions.create(**ASKED, stream=True))
    assert [context.partial.cost for context in recorder.errors] == [BEGUN_COST]
    assert (costs_on_spans(telemetry), recorded(telemetry)) == (
        [0.000028],
        [("gen_ai.usage.cost", "USD", 1, 0.000028)],
    )
    assert tracker.summary().cost == BEGUN_COST


def test_stream_that_is_left_costs_what_was_reported(server, client, recorder, telemetry):
    server.reply = lambda request: StreamReply(WITH_EARLY_USAGE, delay_s=0.01)
    instrument(telemetry, recorder)
    with client.chat.completions.create(**ASKED, stream=True) as stream:
        next(stream)
        next(stream)
    assert [(r.outcome, r.cost) for r in recorder.responses] == [("closed_early", BEGUN_COST)]


def test_response_made_in_the_background_is_paid_for_once(server, client, recorder, telemetry):
    """The call that asked for it has no usage yet; of those that fetch it the first to see the end has."""
    usage = {"input_tokens": 10, "output_tokens": 1, "total_tokens": 11}
    queued = response_object(model="m", status="queued", usage=None)
    done = {**response_object(model="m", usage=usage), "id": queued["id"]}
    answers = iter([queued, {**queued, "status": "in_progress"}, done, done])
    server.reply = lambda request: JsonReply(next(answers))
    tracker = CostTracker(prices=None)
    instrument(telemetry, recorder, tracker)
    client.responses.create(model="m", input="Hi", background=True)
    for _ in range(3):
        client.responses.retrieve(queued["id"])
    assert [response.cost for response in recorder.responses] == [None, None, BEGUN_COST, None]
    total = tracker.summary()
    assert (total.cost, total.priced_calls, total.calls_without_usage) == (BEGUN_COST, 1, 0)


@pytest.mark.parametrize("answer", [1 / 3, Decimal(-1), ZeroDivisionError()], ids=["float", "negative", "raises"])
def test_a_failing_price_source_does_not_reach_the_caller(client, recorder, telemetry, expected_logs, answer):
    """It is counted under a stage of its own, and the call has no cost."""

    def source(metadata):
        if isinstance(answer, Exception):
            raise answer
        return answer

    instrument(telemetry, recorder, prices=source)
    assert client.chat.completions.create(**ASKED).choices
    assert [response.cost for response in recorder.responses] == [None]
    assert otel_llm_callback.status().errors == {"price": 1}


def test_a_call_is_priced_once_however_many_listen(client, telemetry):
    seen = []
    instrument(telemetry, SessionAnalytics(), CostTracker(prices=None), SessionAnalytics(), prices=seen.append)
    client.chat.completions.create(**ASKED)
    assert len(seen) == 1


def test_one_client_may_have_prices_of_its_own(server, client, recorder, telemetry):
    """Such as those of a contract; the spans of the process tell them too."""
    server.reply = lambda request: JsonReply(chat_completion("Hi", model="m", usage=USAGE))
    instrument(telemetry, recorder)
    dear = PriceTable({"m": {"input": "20", "cached_input": "10", "output": "80"}})
    handle = otel_llm_callback.instrument_client(client, prices=dear)
    client.chat.completions.create(**ASKED)
    handle.remove()
    client.chat.completions.create(**ASKED)
    assert [response.cost for response in recorder.responses] == [COST * 10, COST]
    assert costs_on_spans(telemetry) == [0.024, 0.0024]


def test_observed_calls_are_priced_too(recorder, telemetry):
    """The same prices for clients that are driven by hand."""
    instrument(telemetry, recorder)
    with observe(provider="mine", model="m") as call:
        call.response(usage=USAGE)
    assert [response.cost for response in recorder.responses] == [COST]


def test_prices_of_the_environment(server, client, recorder, tmp_path, monkeypatch):
    path = tmp_path / "prices.json"
    path.write_text('{"version": "1", "models": {"m": {"input": 2, "cached_input": 1, "output": 8}}}')
    monkeypatch.setenv("OTEL_LLM_CALLBACK_PRICES", f"{path},library")
    server.reply = lambda request: JsonReply(chat_completion("Hi", model=request.json["model"], usage=USAGE))
    otel_llm_callback.instrument(recorder, delivery="inline")
    for model in ("m", "gpt-4o", "other"):
        client.chat.completions.create(**{**ASKED, "model": model})
    assert [response.cost for response in recorder.responses] == [
        COST,
        Decimal("0.003"),  # the library of the day: 600 x 2.50 + 400 x 1.25 + 100 x 10
        None,
    ]


def test_without_prices_nothing_is_paid_for(client, recorder, telemetry):
    instrument(telemetry, recorder, prices=None)
    client.chat.completions.create(**ASKED)
    assert ([response.cost for response in recorder.responses], recorded(telemetry)) == ([None], [])
