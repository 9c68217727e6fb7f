"""Ten thousand calls whose every name is made up: the number of series has a ceiling, and so has what we keep."""

from __future__ import annotations

import io
import logging
import random
import re
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry, generate_latest

from otel_llm_callback.callbacks import (
    ConsoleLogger,
    CostTracker,
    JsonLogger,
    SentryCallback,
    SessionAnalytics,
    SqliteSink,
)
from otel_llm_callback.telemetry import OpenTelemetryCallback
from otel_llm_callback.testing import TelemetryCollector, make_error_context, make_request, make_response
from otel_llm_callback.types import Retry, Usage

CALLS = 10_000

SERIES_CEILING = 2_000
"""Of one metric, whatever is made up. It is where the SDK would give up on all attributes."""


def made_up_calls(number=CALLS):
    """Yield calls that have no name in common: model asked and answered, host, port, tier, error, user, session."""
    draw = random.Random(4711)
    for index in range(number):
        word = f"{draw.getrandbits(64):x}"
        request = make_request(
            call_id=f"call-{index}",
            model=f"asked-{word}",
            server_address=f"{word}.example.com",
            server_port=draw.randrange(1, 65536),
            session_id=f"session-{word}",
            user_id=f"user-{word}",
            attributes={"tenant": f"tenant-{word}"},
            stream=True,
        )
        response = make_response(
            request=request,
            id=f"id-{word}",
            model=f"answered-{word}",
            service_tier=f"tier-{word}",
            system_fingerprint=f"print-{word}",
            usage=Usage(input_tokens=3, output_tokens=2, cached_tokens=1, reasoning_tokens=1, audio_input_tokens=1),
            usage_source="reported",
            time_to_first_chunk_s=0.1,
            chunk_gaps_s=(0.1,),
            cost=Decimal("0.01"),
        )
        error = None
        if index % 2:
            retry = Retry(at_ns=0, delay_s=0.1, error=f"Retried{word}")
            error = make_error_context(request=request, error_type=f"Error{word}", partial=response, retries=(retry,))
        yield request, response, error


def tell(callback, calls):
    for request, response, error in calls:
        if hasattr(callback, "on_request_sent"):
            callback.on_request_sent(request, "")
        if error is not None:
            callback.on_error(ValueError(), error)
        elif hasattr(callback, "on_response_received"):
            callback.on_response_received(response, "")


@pytest.fixture(scope="module")
def calls():
    return list(made_up_calls())


def test_series_have_a_ceiling(calls):
    """Of both families, cost included; what is beyond it is counted as `other`, and nothing is lost."""
    telemetry = TelemetryCollector(sampler=ALWAYS_OFF)  # spans are not what this is about
    adapter = OpenTelemetryCallback(
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        metrics="both",
        chunk_timing="all",
    )
    tell(adapter, calls)
    points = [point for point in telemetry.metrics() if point.name.startswith(("gen_ai.", "llm_callback.usage"))]
    series = Counter(point.name for point in points)
    assert {name: number for name, number in series.items() if number > SERIES_CEILING} == {}
    counts = Counter()
    for point in points:
        if point.name.endswith(".duration"):
            counts[point.name] += point.count
    assert set(counts.values()) == {CALLS}
    made_up = ("gen_ai.request.model", "gen_ai.response.model", "server.address", "openai.response.service_tier")
    for name in made_up:
        assert "other" in {point.attributes.get(name) for point in points}
    assert {key for point in points for key in point.attributes} <= {
        *made_up,
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.token.type",
        "gen_ai.token.modality",
        "server.port",
        "error.type",
        "llm_callback.outcome",
        "llm_callback.retried",
    }


def test_series_have_a_ceiling_where_names_are_combined():
    """Few names of each kind are many combinations; those have a ceiling of their own."""
    telemetry, draw = TelemetryCollector(sampler=ALWAYS_OFF), random.Random(4711)
    adapter = OpenTelemetryCallback(
        tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider, metrics="both"
    )
    for index in range(CALLS):
        request = make_request(model=f"asked-{draw.randrange(100)}", server_address=f"host-{draw.randrange(10)}")
        answered = make_response(
            request=request, model=f"answered-{draw.randrange(100)}", service_tier=f"tier-{draw.randrange(10)}"
        )
        failed = make_error_context(request=request, error_type=f"Error{draw.randrange(60)}")
        tell(adapter, [(request, answered, failed if index % 2 else None)])
    series = Counter(point.name for point in telemetry.metrics())
    assert {name: number for name, number in series.items() if number > SERIES_CEILING} == {}
    durations = telemetry.metrics("gen_ai.client.operation.duration")
    assert sum(point.count for point in durations) == CALLS
    assert {point.attributes["gen_ai.request.model"] for point in durations} > {"other", "asked-1"}


def test_a_scrape_has_a_ceiling(calls):
    """What Prometheus gets is bounded as the metrics are."""
    registry = CollectorRegistry()
    reader = PrometheusMetricReader()
    registry.register(reader._collector)
    telemetry = TelemetryCollector(sampler=ALWAYS_OFF, metric_readers=(reader,))
    adapter = OpenTelemetryCallback(
        tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider, metrics="both"
    )
    tell(adapter, calls)
    series = Counter(re.findall(r"^(\w+(?:_count|_total))\{", generate_latest(registry).decode(), re.MULTILINE))
    telemetry.shutdown()
    assert series["gen_ai_client_operation_duration_seconds_count"] > 100
    assert {name: number for name, number in series.items() if number > SERIES_CEILING} == {}


# --- What callbacks keep ----------------------------------------------------------------------------------------------

KEPT_CEILING = 10_000
"""Entries in any one mapping, list or set that a callback holds: as many calls as may be open at once."""


def largest(owner, seen=None):
    """The size of the largest collection that can be reached from *owner* through objects of ours."""
    seen = set() if seen is None else seen
    if id(owner) in seen:
        return 0
    seen.add(id(owner))
    if isinstance(owner, (str, bytes, int, float, Decimal, type(None))):
        return 0
    if isinstance(owner, Mapping):
        return max([len(owner), *(largest(value, seen) for value in list(owner.values()))])
    if isinstance(owner, (list, tuple, set, frozenset)) or type(owner).__name__ == "deque":
        return max([len(owner), *(largest(value, seen) for value in list(owner))])
    if not type(owner).__module__.startswith("otel_llm_callback"):
        return 0
    slots = [name for kind in type(owner).__mro__ for name in getattr(kind, "__slots__", ())]
    values = [*getattr(owner, "__dict__", {}).values(), *(getattr(owner, name, None) for name in slots)]
    return max([0, *(largest(value, seen) for value in values)])


CALLBACKS = {
    "SessionAnalytics": lambda _: SessionAnalytics(),
    "CostTracker": lambda _: CostTracker(prices=None, budget=1),
    "ConsoleLogger": lambda _: ConsoleLogger(io.StringIO()),
    "SqliteSink": lambda directory: SqliteSink(directory / "rows.db"),
    "JsonLogger": lambda _: JsonLogger(),
    "SentryCallback": lambda _: SentryCallback(breadcrumbs=True),
}


@pytest.mark.parametrize("ended", [True, False], ids=["", "no call ever ends"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_what_a_callback_keeps_has_a_ceiling(tmp_path, calls, name, ended, expected_logs, monkeypatch):
    """Neither made-up names nor ends that never come make a callback grow."""
    monkeypatch.setattr(logging.getLogger("llm_calls"), "propagate", False)
    callback = CALLBACKS[name](tmp_path)
    if ended:
        tell(callback, calls)
    elif hasattr(callback, "on_request_sent"):
        for request, _, _ in made_up_calls(CALLS + 2000):
            callback.on_request_sent(request, "")
    assert largest(callback) <= KEPT_CEILING


def test_names_beyond_the_ceiling_are_counted_together(calls):
    """Totals stay exact; the names are those that came first."""
    analytics, costs = SessionAnalytics(), CostTracker(prices=None)
    for callback in (analytics, costs):
        tell(callback, calls)
    summary, spent = analytics.summary(), costs.summary()
    assert (summary.requests, len(summary.models), len(summary.error_types)) == (CALLS, 101, 101)
    assert sum(each.requests for each in summary.models.values()) == CALLS
    assert sum(summary.error_types.values()) == CALLS // 2
    assert (summary.sessions, len(costs.session_ids()), len(costs.user_ids())) == (1000, 1000, 1000)
    assert (spent.priced_calls, spent.cost, len(spent.models)) == (CALLS, CALLS * Decimal("0.01"), 101)
