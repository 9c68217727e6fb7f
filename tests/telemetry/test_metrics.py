"""The metrics of each family: names, units, buckets, attributes, and how many points there can be."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter

import openai
import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from telemetry.facts import request_attributes

import otel_llm_callback
from otel_llm_callback import RateLimit, Retry
from otel_llm_callback.telemetry import OpenTelemetryCallback
from otel_llm_callback.testing import (
    JsonReply,
    StreamReply,
    TelemetryCollector,
    chat_chunk,
    chat_chunks,
    chat_completion,
    error_body,
    make_chunk,
    make_error_context,
    make_request,
    make_response,
)

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, float("inf"))
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864, float("inf"))

CURRENT = "gen_ai.client.operation."
NEXT = "gen_ai.client.inference."
DURATION = CURRENT + "duration"
PER_CHUNK = CURRENT + "time_per_output_chunk"


def always(reply):
    return lambda _: reply


def instrument(telemetry, *callbacks, **settings):
    otel_llm_callback.instrument(
        *callbacks,
        delivery="inline",
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        **settings,
    )


def points(telemetry):
    """The metrics of the conventions, sorted: name, kind, unit, buckets, attributes and what was recorded."""
    found = [point for point in telemetry.metrics() if point.name.startswith("gen_ai.")]
    return sorted((_told(point) for point in found), key=repr)


def _told(point):
    buckets = tuple(point.buckets) if point.buckets is not None else None
    recorded = point.value
    if recorded is None:
        recorded = (point.count, point.sum) if point.unit == "{token}" else point.count
    return (point.name, point.kind, point.unit, buckets, dict(point.attributes), recorded)


def common(server):
    """The attributes that every metric of a call with the usual answer has."""
    attributes = {**request_attributes(server), "gen_ai.response.model": "gpt-4o-mini"}
    del attributes["openai.api.type"]
    return attributes


def duration(attributes, name=DURATION, count=1):
    return (name, "histogram", "s", SECONDS, attributes, count)


# --- The families -----------------------------------------------------------------------------------------------------

DETAILS = {
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 20, "text_tokens": 70, "audio_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 30, "audio_tokens": 3},
}


def in_current(server):
    base = common(server)
    tier = {**base, "openai.response.service_tier": "flex"}
    tokens = ("gen_ai.client.token.usage", "histogram", "{token}", TOKENS)
    return [
        duration(tier),
        (*tokens, {**tier, "gen_ai.token.type": "input"}, (1, 100)),
        (*tokens, {**tier, "gen_ai.token.type": "output"}, (1, 50)),
        duration(base, CURRENT + "time_to_first_chunk"),
        duration(base, PER_CHUNK, 5),
    ]


def in_next(server):
    base = common(server)
    tier = {**base, "openai.response.service_tier": "flex"}
    counters = {
        "input_tokens": {"text": 70, "audio": 5, "unknown": 25},
        "output_tokens": {"audio": 3, "unknown": 47},
        "cache_read.input_tokens": {"unknown": 40},
        "cache_write.input_tokens": {"unknown": 20},
        "reasoning.output_tokens": {"unknown": 30},
    }
    return [
        duration(tier, NEXT + "duration"),
        duration(base, NEXT + "time_to_first_chunk"),
        duration(base, NEXT + "time_per_output_chunk", 5),
        (NEXT + "operation.input_tokens", "histogram", "{token}", TOKENS, tier, (1, 100)),
        (NEXT + "operation.output_tokens", "histogram", "{token}", TOKENS, tier, (1, 50)),
        *(
            (f"{NEXT}usage.{name}", "counter", "{token}", None, {**tier, "gen_ai.token.modality": modality}, value)
            for name, values in counters.items()
            for modality, value in values.items()
        ),
    ]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("current", in_current),
        ("next", in_next),
        ("both", lambda server: in_current(server) + in_next(server)),
    ],
)
def test_metrics_of_a_family(server, client, telemetry, family, expected):
    """A stream with usage records every metric of its family once, and none of the other."""
    chunks = chat_chunks(["a", "b", "c"], usage=DETAILS)
    server.reply = always(StreamReply([{**chunk, "service_tier": "flex"} for chunk in chunks]))
    instrument(telemetry, metrics=family)
    assert len(list(client.chat.completions.create(**ASKED, stream=True))) == 6
    assert points(telemetry) == sorted(expected(server), key=repr)


@pytest.mark.parametrize("family", ["current", "next"])
@pytest.mark.parametrize("operation", ["chat", "text_completion", "embeddings", "fetch_response"])
def test_only_inference_has_the_next_names(family, operation):
    """Operations that run no model keep the older duration, whatever the family."""
    telemetry = TelemetryCollector()
    adapter = OpenTelemetryCallback(
        tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider, metrics=family
    )
    request = make_request(operation=operation)
    adapter.on_request_sent(request, "")
    adapter.on_response_received(make_response(request=request), "")
    inference = family == "next" and operation in ("chat", "text_completion")
    durations = [point.name for point in telemetry.metrics() if point.name.endswith(".duration")]
    assert durations == [NEXT + "duration" if inference else DURATION]


# --- What is recorded when --------------------------------------------------------------------------------------------


def test_usage_is_recorded_only_where_it_was_reported(server, client, telemetry):
    """A stream whose caller did not ask for usage has no token point, not a zero."""
    instrument(telemetry, metrics="both")
    list(client.chat.completions.create(**ASKED, stream=True))
    assert [point.name for point in telemetry.metrics() if "token" in point.name] == []


def test_answers_without_usage_are_counted(server, client, telemetry):
    """What is unknown is not zero tokens; how often it is unknown is a number of its own."""
    instrument(telemetry)
    ask = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    client.chat.completions.create(**ask)
    list(client.chat.completions.create(**ask, stream=True))
    list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    client.chat.completions.create(**ask, stream=True).close()
    assert [point.value for point in telemetry.metrics("llm_callback.usage.missing")] == [1]


@pytest.mark.parametrize("half", ["input", "output"])
def test_half_of_the_usage_is_recorded_as_half(server, client, telemetry, half):
    """A count that is missing stays out, the other is in."""
    usage = {"prompt_tokens": 5, "completion_tokens": None} if half == "input" else {"completion_tokens": 5}
    server.reply = always(JsonReply(chat_completion(usage=usage)))
    instrument(telemetry, metrics="both")
    client.chat.completions.create(**ASKED)
    found = {point.name: (point.sum, point.value) for point in telemetry.metrics() if point.unit == "{token}"}
    assert found == {
        "gen_ai.client.token.usage": (5, None),
        f"{NEXT}operation.{half}_tokens": (5, None),
        f"{NEXT}usage.{half}_tokens": (None, 5),
    }


@pytest.mark.parametrize(
    "error", [(400, openai.BadRequestError), (429, openai.RateLimitError), (500, openai.InternalServerError)]
)
@pytest.mark.parametrize("family", ["current", "next"])
def test_error_is_counted_by_its_type(server, client, telemetry, error, family):
    """A failed call has a duration with `error.type`, and nothing else: neither outcome nor tokens."""
    status, kind = error
    server.reply = always(JsonReply(error_body("no"), status))
    instrument(telemetry, metrics=family)
    with pytest.raises(kind):
        client.with_options(max_retries=0).chat.completions.create(**ASKED)
    attributes = {**common(server), "error.type": kind.__name__}
    del attributes["gen_ai.response.model"]
    assert points(telemetry) == [duration(attributes, DURATION if family == "current" else NEXT + "duration")]


def test_error_inside_a_stream_records_what_had_arrived(server, client, telemetry):
    """`error.type` is on the duration only; usage and chunks count as those of any other call."""
    chunks = [chat_chunk({"content": "a"}), chat_chunk({"content": "b"}, usage=(5, 2))]
    server.reply = always(StreamReply([*chunks, error_body("no")]))
    instrument(telemetry)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(**ASKED, stream=True))
    base = common(server)
    tokens = ("gen_ai.client.token.usage", "histogram", "{token}", TOKENS)
    assert points(telemetry) == sorted(
        [
            duration({**base, "error.type": "APIError"}),
            (*tokens, {**base, "gen_ai.token.type": "input"}, (1, 5)),
            (*tokens, {**base, "gen_ai.token.type": "output"}, (1, 2)),
            duration(base, CURRENT + "time_to_first_chunk"),
            duration(base, PER_CHUNK),
        ],
        key=repr,
    )


def test_completed_call_has_neither_outcome_nor_error(server, client, telemetry):
    """The usual case has the attributes of the conventions and no others."""
    instrument(telemetry)
    client.chat.completions.create(**ASKED)
    assert telemetry.metrics(DURATION)[0].attributes == common(server)


def test_early_end_is_an_outcome_and_no_error(server, client, telemetry):
    """Streams closed early or dropped can be told from completed ones, on the duration only."""
    server.reply = always(StreamReply(chat_chunks(["word "] * 500), delay_s=0.005))
    instrument(telemetry)
    with client.chat.completions.create(**ASKED, stream=True) as stream:
        next(stream)
    stream = client.chat.completions.create(**ASKED, stream=True)
    next(stream)
    del stream
    gc.collect()
    otel_llm_callback.flush()
    base = common(server)
    assert points(telemetry) == sorted(
        [
            duration({**base, "llm_callback.outcome": "closed_early"}),
            duration({**base, "llm_callback.outcome": "abandoned"}),
            duration(base, CURRENT + "time_to_first_chunk", 2),
        ],
        key=repr,
    )


async def test_cancelled_call_is_an_outcome_with_an_error_type(server, aclient, telemetry):
    """A cancelled call ends with an exception, so it has both; alert rules can leave it out by the outcome."""
    arrived, loop = asyncio.Event(), asyncio.get_running_loop()

    def reply(_):
        loop.call_soon_threadsafe(arrived.set)
        return JsonReply({}, delay_s=5)

    server.reply = reply
    instrument(telemetry)
    task = asyncio.create_task(aclient.chat.completions.create(**ASKED))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    attributes = {**common(server), "error.type": "CancelledError", "llm_callback.outcome": "cancelled"}
    del attributes["gen_ai.response.model"]
    assert points(telemetry) == [duration(attributes)]


def test_durations_include_retries(server, client, telemetry):
    """The duration is what the caller waited, marked as such; a retry that helped leaves no error behind."""
    refused = JsonReply({}, 429, {"retry-after-ms": "30"})
    server.reply = lambda request: refused if request.attempt < 2 else None
    instrument(telemetry)
    client.chat.completions.create(**ASKED)
    (point,) = telemetry.metrics(DURATION)
    assert (point.count, point.attributes) == (1, {**common(server), "llm_callback.retried": True})
    assert point.sum >= 0.06


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("family", ["current", "next"])
def test_a_repeated_call_has_its_duration_without_the_waits_too(family, failed):
    """Of 5 s with waits of 1 s and 0.5 s, 3.5 s were the server's; the attributes are those of the duration."""
    telemetry = TelemetryCollector()
    adapter = adapter_of(telemetry, metrics=family)
    request = make_request()
    retries = tuple(Retry(at_ns=request.started_ns, delay_s=delay_s) for delay_s in (1.0, 0.5))
    adapter.on_request_sent(request, "")
    if failed:
        adapter.on_error(TimeoutError(), make_error_context(request=request, retries=retries, response_time_ms=5000.0))
    else:
        adapter.on_response_received(make_response(request=request, retries=retries, response_time_ms=5000.0), "")
    name = DURATION if family == "current" else NEXT + "duration"
    gross, net = telemetry.metrics(name) + telemetry.metrics("llm_callback.duration.without_retry_wait")
    assert (gross.count, gross.sum, net.count, net.sum) == (1, 5.0, 1, 3.5)
    assert (net.unit, tuple(net.buckets)) == ("s", SECONDS)
    assert net.attributes == gross.attributes
    assert net.attributes["llm_callback.retried"] is True


def test_a_call_that_was_not_repeated_has_one_duration(client, telemetry):
    """What most calls would say twice is said once."""
    instrument(telemetry)
    client.chat.completions.create(**ASKED)
    assert telemetry.metrics("llm_callback.duration.without_retry_wait") == []


# --- Rate limits ------------------------------------------------------------------------------------------------------

LIMITS = {
    "x-ratelimit-limit-requests": "200",
    "x-ratelimit-remaining-requests": "150",
    "x-ratelimit-limit-tokens": "1000",
    "x-ratelimit-remaining-tokens": "100",
}


def headroom(telemetry):
    return {
        point.attributes["llm_callback.rate_limit.kind"]: point.value
        for point in telemetry.metrics("llm_callback.rate_limit.headroom")
    }


@pytest.mark.parametrize("status", [200, 429])
def test_what_is_left_of_rate_limits_is_a_share(server, client, telemetry, status):
    """Whether the call ends well or is refused."""
    server.reply = always(JsonReply(chat_completion() if status == 200 else error_body("slow"), status, LIMITS))
    instrument(telemetry)
    with contextlib.suppress(openai.RateLimitError):
        client.with_options(max_retries=0).chat.completions.create(**ASKED)
    assert headroom(telemetry) == {"requests": 0.75, "tokens": 0.1}
    base = {key: value for key, value in common(server).items() if key.startswith(("server.", "gen_ai.provider"))}
    (point, _) = telemetry.metrics("llm_callback.rate_limit.headroom")
    kind = point.attributes["llm_callback.rate_limit.kind"]
    model = {"gen_ai.request.model": "gpt-4o-mini"}
    assert (point.unit, point.attributes) == ("{share}", {**base, **model, "llm_callback.rate_limit.kind": kind})


@pytest.mark.parametrize(
    "limit",
    [
        None,
        RateLimit(),
        RateLimit(remaining_tokens=5),
        RateLimit(limit_tokens=5),
        RateLimit(limit_tokens=0, remaining_tokens=0),
    ],
    ids=str,
)
def test_a_server_that_does_not_say_both_has_no_headroom(limit):
    """Unknown is absent, neither full nor empty."""
    telemetry = TelemetryCollector()
    adapter = adapter_of(telemetry)
    request = make_request()
    adapter.on_request_sent(request, "")
    adapter.on_response_received(make_response(request=request, rate_limit=limit), "")
    assert headroom(telemetry) == {}


def test_headroom_is_told_once_a_second_for_each_model():
    """It is a level: of calls of one model within a second the first will do."""
    telemetry = TelemetryCollector()
    adapter = adapter_of(telemetry)
    told = []
    for ms, model, left in ((0, "a", 90), (900, "a", 80), (950, "b", 70), (1100, "a", 60)):
        request = make_request(model=model)
        limit = RateLimit(limit_requests=100, remaining_requests=left)
        adapter.on_request_sent(request, "")
        ended = request.started_ns + ms * 1_000_000
        adapter.on_response_received(make_response(request=request, rate_limit=limit, ended_ns=ended), "")
        points = telemetry.metrics("llm_callback.rate_limit.headroom")
        told.append({point.attributes["gen_ai.request.model"]: point.value for point in points})
    assert told == [{"a": 0.9}, {"a": 0.9}, {"a": 0.9, "b": 0.7}, {"a": 0.6, "b": 0.7}]


def test_duration_is_that_of_the_span(client, telemetry):
    """Span and metric agree."""
    instrument(telemetry)
    client.chat.completions.create(**ASKED)
    (span,) = telemetry.spans()
    (point,) = telemetry.metrics(DURATION)
    assert point.sum == pytest.approx((span.end_time - span.start_time) / 1e9, abs=1e-6)


# --- Waits between chunks ---------------------------------------------------------------------------------------------


def gaps(telemetry):
    return sum(point.count for point in telemetry.metrics(PER_CHUNK))


@pytest.mark.parametrize(
    ("setting", "recorded"),
    [(("bounded", 42), 41), (("bounded", 300), 64), (("all", 300), 299), (("off", 300), 0)],
    ids=str,
)
def test_chunk_timing(server, client, telemetry, setting, recorded):
    """`bounded` records all waits of a short stream and 64 of a long one, `all` every one, `off` none."""
    timing, chunks = setting
    server.reply = always(StreamReply(chat_chunks(["a"] * (chunks - 2))))
    instrument(telemetry, chunk_timing=timing)
    assert len(list(client.chat.completions.create(**ASKED, stream=True))) == chunks
    assert gaps(telemetry) == recorded


@pytest.mark.parametrize(("timing", "recorded"), [("bounded", 9), ("all", 9), ("off", 0)])
def test_chunk_timing_of_a_stream_that_breaks(server, client, telemetry, timing, recorded):
    """The setting holds for streams that end in an error too."""
    server.reply = always(StreamReply([chat_chunk({"content": "a"})] * 10 + [error_body("no")]))
    instrument(telemetry, chunk_timing=timing)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(**ASKED, stream=True))
    assert gaps(telemetry) == recorded


@pytest.mark.parametrize("family", ["current", "next", "both"])
def test_all_waits_are_recorded_under_the_names_of_the_family(server, client, telemetry, family):
    """`all` records as it goes, in whichever family."""
    server.reply = always(StreamReply(chat_chunks(["a"] * 3)))
    instrument(telemetry, chunk_timing="all", metrics=family)
    list(client.chat.completions.create(**ASKED, stream=True))
    found = {point.name: point.count for point in telemetry.metrics() if "per_output_chunk" in point.name}
    names = {"current": [PER_CHUNK], "next": [NEXT + "time_per_output_chunk"]}
    names["both"] = names["current"] + names["next"]
    assert found == dict.fromkeys(names[family], 4)


def test_each_wait_is_that_since_the_chunk_before():
    """With `all`, chunks after 50, 60 and 90 ms are waits of 10 and 30 ms."""
    telemetry = TelemetryCollector()
    adapter = adapter_of(telemetry, chunk_timing="all")
    request = make_request(stream=True)
    adapter.on_request_sent(request, "")
    for index, at_ms in enumerate((50, 60, 90)):
        adapter.on_stream_chunk(make_chunk(request=request, at_ns=request.started_ns + at_ms * 1_000_000), index)
    (point,) = telemetry.metrics(PER_CHUNK)
    assert (point.count, point.min, point.max) == (2, 0.01, 0.03)


def test_first_chunk_is_off_for_plain_calls(client, telemetry):
    """A call that is no stream has no time to the first chunk."""
    instrument(telemetry, metrics="both")
    client.chat.completions.create(**ASKED)
    assert [point.name for point in telemetry.metrics() if "chunk" in point.name] == []


# --- Exemplars --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["success", "error"])
def test_exemplars_lead_to_the_span(server, client, outcome):
    """Every point of either family carries trace and span id of the call, so that a dashboard leads to the trace."""
    reader = InMemoryMetricReader()
    telemetry = TelemetryCollector(metric_readers=[reader])
    chunks = chat_chunks(["a", "b"], usage=DETAILS)
    server.reply = always(StreamReply([*chunks, error_body("no")] if outcome == "error" else chunks))
    instrument(telemetry, metrics="both")
    with telemetry.tracer_provider.get_tracer("app").start_as_current_span("app"):
        try:
            list(client.chat.completions.create(**ASKED, stream=True))
        except openai.APIError:
            assert outcome == "error"
    call, _ = telemetry.spans()
    found = {
        metric.name: {
            (exemplar.trace_id, exemplar.span_id) for point in metric.data.data_points for exemplar in point.exemplars
        }
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name.startswith("gen_ai.")
    }
    assert len(found) == 4 + 10
    assert set(map(frozenset, found.values())) == {frozenset({(call.context.trace_id, call.context.span_id)})}


# --- How many series there can be -------------------------------------------------------------------------------------


def adapter_of(telemetry, **options):
    return OpenTelemetryCallback(
        tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider, **options
    )


def test_ten_thousand_model_names_are_bounded():
    """Names beyond the limit become `other`; users and sessions never make a series."""
    telemetry = TelemetryCollector(sampler=ALWAYS_OFF)  # spans are not what this is about
    adapter = adapter_of(telemetry)
    for number in range(10_000):
        request = make_request(
            model=f"model-{number}",
            session_id=f"session-{number}",
            user_id=f"user-{number}",
            attributes={"tenant": f"tenant-{number}"},
        )
        adapter.on_request_sent(request, "")
        adapter.on_response_received(make_response(request=request, id=f"id-{number}"), "")
    names = Counter()
    for point in telemetry.metrics():
        names[point.name] += 1
        assert set(point.attributes) <= {
            "gen_ai.operation.name",
            "gen_ai.provider.name",
            "gen_ai.request.model",
            "gen_ai.response.model",
            "gen_ai.token.type",
            "server.address",
            "server.port",
        }
    assert names == {DURATION: 201, "gen_ai.client.token.usage": 402}
    (other,) = (p for p in telemetry.metrics(DURATION) if p.attributes["gen_ai.request.model"] == "other")
    assert (other.attributes["gen_ai.response.model"], other.count) == ("other", 9800)


def test_model_names_made_up_by_a_server_are_bounded():
    """They have a limit of their own, so that a server cannot use up the names the program asks for."""
    telemetry = TelemetryCollector(sampler=ALWAYS_OFF)
    adapter = adapter_of(telemetry)
    for number in range(1000):
        request = make_request(model="asked")
        adapter.on_request_sent(request, "")
        adapter.on_response_received(make_response(request=request, model=f"answered-{number}"), "")
    request = make_request(model="asked later")
    adapter.on_request_sent(request, "")
    adapter.on_response_received(make_response(request=request, model="answered-0"), "")
    durations = telemetry.metrics(DURATION)
    assert len(durations) == 202
    assert {point.attributes["gen_ai.request.model"] for point in durations} == {"asked", "asked later"}


def test_tiers_and_error_types_are_bounded():
    """So is everything else that a server or a program could make up."""
    telemetry = TelemetryCollector(sampler=ALWAYS_OFF)
    adapter = adapter_of(telemetry)
    for number in range(200):
        request = make_request()
        adapter.on_request_sent(request, "")
        adapter.on_response_received(make_response(request=request, service_tier=f"tier-{number}"), "")
        adapter.on_request_sent(request, "")
        adapter.on_error(ValueError(), make_error_context(request=request, error_type=f"Error{number}"))
    durations = telemetry.metrics(DURATION)
    tiers = {point.attributes.get("openai.response.service_tier") for point in durations} - {None}
    kinds = {point.attributes.get("error.type") for point in durations} - {None}
    assert (len(tiers), len(kinds), "other" in tiers & kinds) == (17, 65, True)


# --- Tokens by modality -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (None, {"unknown": 10}),
        ({}, {"unknown": 10}),
        ({"text_tokens": 10}, {"text": 10}),
        ({"text_tokens": 4, "image_tokens": 3, "audio_tokens": 2}, {"text": 4, "image": 3, "audio": 2, "unknown": 1}),
        ({"audio_tokens": 0}, {"unknown": 10}),
        ({"text_tokens": 8, "audio_tokens": 8}, {"text": 8, "audio": 2}),
    ],
    ids=str,
)
def test_modalities_add_up_to_the_total(server, client, telemetry, details, expected):
    """Every token is in exactly one modality; what was not broken down is `unknown`, and a total is never exceeded."""
    usage = {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}
    server.reply = always(JsonReply(chat_completion(usage={**usage, "prompt_tokens_details": details})))
    instrument(telemetry, metrics="next")
    client.chat.completions.create(**ASKED)
    found = {p.attributes["gen_ai.token.modality"]: p.value for p in telemetry.metrics(NEXT + "usage.input_tokens")}
    assert (found, sum(found.values())) == (expected, 10)


def test_a_count_no_export_could_carry_is_left_out(server, client, telemetry):
    """A number beyond 64 bits would make every later export fail, so it counts as not reported."""
    server.reply = always(JsonReply(chat_completion(usage=(2**70, 3))))
    instrument(telemetry, metrics="next")
    client.chat.completions.create(**ASKED)
    found = {point.name: point.value for point in telemetry.metrics() if point.kind == "counter"}
    assert {name: value for name, value in found.items() if name.startswith(NEXT)} == {NEXT + "usage.output_tokens": 3}


# --- Our own health ---------------------------------------------------------------------------------------------------


class _Working:
    def on_request_sent(self, metadata, request_json):
        pass

    def on_response_received(self, metadata, response_json):
        pass


class _Failing:
    def on_response_received(self, metadata, response_json):
        raise RuntimeError("no")


def test_deliveries_and_failures_are_metrics(client, telemetry, expected_logs):
    """Events are counted by callback and by what became of them."""
    instrument(telemetry, _Working(), _Failing())
    client.chat.completions.create(**ASKED)
    found = {
        (point.attributes["llm_callback.callback.name"], point.attributes["llm_callback.callback.result"]): point.value
        for point in telemetry.metrics("llm_callback.callback.events")
        if point.attributes["llm_callback.callback.name"] in ("_Working", "_Failing")  # others were there before
    }
    assert found == {
        ("_Working", "delivered"): 2,
        ("_Working", "failed"): 0,
        ("_Working", "dropped"): 0,
        ("_Failing", "delivered"): 0,
        ("_Failing", "failed"): 1,
        ("_Failing", "dropped"): 0,
    }
    kinds = {(point.kind, point.unit) for point in telemetry.metrics("llm_callback.callback.events")}
    assert kinds == {("counter", "{event}")}
    assert [record.getMessage().splitlines()[0] for record in expected_logs] == [
        "callback _Failing.on_response_received failed: RuntimeError; the call is unaffected"
    ]


def test_failures_of_our_own_are_a_metric(client, telemetry, expected_logs):
    """What goes wrong inside the instrumentation is counted by stage."""

    def redactor(text):
        raise RuntimeError("no")

    instrument(telemetry, capture_content="span_only", redactor=redactor)
    before = _errors(telemetry)
    client.chat.completions.create(**ASKED)
    after = _errors(telemetry)
    assert {stage: count - before.get(stage, 0) for stage, count in after.items()} == {"redact": 2}
    units = {(point.kind, point.unit) for point in telemetry.metrics("llm_callback.instrumentation.errors")}
    assert units == {("counter", "{error}")}


def _errors(telemetry):
    found = telemetry.metrics("llm_callback.instrumentation.errors")
    return {point.attributes["llm_callback.stage"]: point.value for point in found if point.value}
