"""TelemetryCollector: real SDK, in memory, nothing global."""

from __future__ import annotations

import builtins

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_llm_callback.testing import MetricPoint, TelemetryCollector


@pytest.fixture
def collector():
    with TelemetryCollector() as collector:
        yield collector


@pytest.fixture
def meter(collector):
    return collector.meter_provider.get_meter("test")


def test_spans_are_collected_as_they_end(collector):
    tracer = collector.tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner"):
        assert collector.spans() == ()
    assert [span.name for span in collector.spans()] == ["inner", "outer"]
    collector.clear()
    assert collector.spans() == ()


def test_the_global_providers_are_left_alone(collector):
    assert trace.get_tracer_provider() is not collector.tracer_provider
    assert metrics.get_meter_provider() is not collector.meter_provider


def test_metrics_are_flattened_to_points(collector, meter):
    histogram = meter.create_histogram("time", unit="s", explicit_bucket_boundaries_advisory=[1, 2])
    for value in (0.5, 1.5, 3.0):
        histogram.record(value, {"model": "m"})
    assert collector.metrics("time") == [
        MetricPoint(
            name="time",
            unit="s",
            kind="histogram",
            attributes={"model": "m"},
            count=3,
            sum=5.0,
            min=0.5,
            max=3.0,
            buckets={1: 1, 2: 1, float("inf"): 1},
        )
    ]


def test_points_add_up_between_looks(collector, meter):
    """Looking does not use up what was recorded."""
    counter, histogram = meter.create_counter("calls"), meter.create_histogram("time")
    for number in (1, 2):
        counter.add(number)
        histogram.record(number)
        assert len(collector.metrics()) == 2
    [calls], [time] = collector.metrics("calls"), collector.metrics("time")
    assert (calls.kind, calls.value) == ("counter", 3)
    assert (time.count, time.sum, time.min, time.max, sum(time.buckets.values())) == (2, 3, 1, 2, 2)


def test_flushing_loses_nothing(collector, meter):
    """The SDK's own in-memory reader forgets what a flush collected."""
    counter = meter.create_counter("calls")
    for _ in range(2):
        counter.add(1)
        assert collector.meter_provider.force_flush()
    assert [point.value for point in collector.metrics()] == [2]


def test_points_are_kept_apart_by_attributes(collector, meter):
    counter = meter.create_counter("calls")
    counter.add(1, {"kind": "a"})
    counter.add(2, {"kind": "b"})
    counter.add(3, {"kind": "a"})
    assert {point.attributes["kind"]: point.value for point in collector.metrics()} == {"a": 4, "b": 2}


def test_levels_and_gauges_hold_the_last_value(collector, meter):
    level, gauge = meter.create_up_down_counter("level"), meter.create_gauge("gauge")
    for value in (5, -2):
        level.add(value)
        gauge.set(value)
        collector.metrics()
    assert {point.kind: point.value for point in collector.metrics()} == {"up_down_counter": 3, "gauge": -2}


def test_clearing_forgets_what_was_recorded_before(collector, meter):
    histogram = meter.create_histogram("time")
    histogram.record(1)
    collector.clear()
    assert collector.metrics() == []
    histogram.record(2)
    assert [(point.count, point.sum, point.max) for point in collector.metrics()] == [(1, 2, 2)]


def test_what_was_collected_outlives_the_providers():
    with TelemetryCollector() as collector:
        collector.meter_provider.get_meter("test").create_counter("calls").add(1)
        collector.tracer_provider.get_tracer("test").start_span("work").end()
    assert [point.value for point in collector.metrics()] == [1]
    assert [span.name for span in collector.spans()] == ["work"]


def test_sampler_resource_and_readers_are_used():
    reader = InMemoryMetricReader()
    with TelemetryCollector(
        sampler=ALWAYS_OFF, resource_attributes={"service.name": "me"}, metric_readers=[reader]
    ) as collector:
        collector.tracer_provider.get_tracer("test").start_span("unsampled").end()
        collector.meter_provider.get_meter("test").create_counter("calls").add(1)
        assert reader.get_metrics_data().resource_metrics[0].resource.attributes == {"service.name": "me"}
    assert collector.spans() == ()


def test_the_sampler_of_the_environment_is_not_used(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with TelemetryCollector() as collector:
        collector.tracer_provider.get_tracer("test").start_span("work").end()
    assert len(collector.spans()) == 1


def test_without_the_sdk_the_extra_is_named(monkeypatch):
    find = builtins.__import__

    def no_sdk(name, *rest):
        if name.startswith("opentelemetry.sdk"):
            raise ImportError(name)
        return find(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_sdk)
    with pytest.raises(ImportError, match=r"pip install otel-llm-callback\[otlp\]"):
        TelemetryCollector()
