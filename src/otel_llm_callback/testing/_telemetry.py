"""Collect spans and metrics in memory, with the real SDK and without touching the global providers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from ..types import AttributeValue

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import Metric, MetricReader, MetricsData
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.sampling import Sampler
    from typing_extensions import Self

MetricKind: TypeAlias = Literal["counter", "up_down_counter", "gauge", "histogram"]

_INFINITE: Final = float("inf")

_Key: TypeAlias = "tuple[str, frozenset[tuple[str, AttributeValue]]]"


@dataclass(frozen=True, kw_only=True)
class MetricPoint:
    """What one metric holds for one set of attributes.

    Attributes:
        name: Of the metric.
        unit: As in the metric, such as ``s`` or ``{token}``.
        kind: What it adds up to.
        attributes: That set this point apart.
        value: Of a counter or gauge; None of a histogram.
        count: How many values a histogram recorded, None of anything else; the following likewise.
        sum: The values added up.
        min: The smallest.
        max: The largest.
        buckets: How many values fell in each bucket: upper bound to count, the last bound is infinite.
    """

    name: str
    unit: str
    kind: MetricKind
    attributes: Mapping[str, AttributeValue]
    value: float | None = None
    count: int | None = None
    sum: float | None = None
    min: float | None = None
    max: float | None = None
    buckets: Mapping[float, int] | None = None


class TelemetryCollector:
    """Providers that keep spans and metrics in memory, to be handed to ``instrument()``.

    Usable as a context manager, which shuts the providers down at its end. What was collected stays readable.

    Args:
        sampler: Decides which spans are recorded; all, unless given. ``OTEL_TRACES_SAMPLER`` is not looked at.
        resource_attributes: Of both providers.
        metric_readers: Further readers that the metrics go to.

    Attributes:
        tracer_provider: For ``instrument(tracer_provider=…)``.
        meter_provider: For ``instrument(meter_provider=…)``.

    Raises:
        ImportError: ``opentelemetry-sdk`` is not installed.

    Example:
        >>> with TelemetryCollector() as collector:
        ...     with collector.tracer_provider.get_tracer("example").start_as_current_span("work"):
        ...         pass
        >>> [span.name for span in collector.spans()]
        ['work']
    """

    tracer_provider: TracerProvider
    meter_provider: MeterProvider

    def __init__(
        self,
        *,
        sampler: Sampler | None = None,
        resource_attributes: Mapping[str, AttributeValue] | None = None,
        metric_readers: Sequence[MetricReader] = (),
    ) -> None:
        try:
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import SimpleSpanProcessor
            from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        except ImportError as error:
            raise ImportError("TelemetryCollector needs the SDK: pip install otel-llm-callback[otlp]") from error

        resource = Resource(dict(resource_attributes or {}))
        self._spans = InMemorySpanExporter()
        self._reader = _make_reader(self._receive)
        self._points: dict[_Key, MetricPoint] = {}
        self._lock = threading.Lock()
        self.tracer_provider = TracerProvider(sampler or ALWAYS_ON, resource, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meter_provider = MeterProvider((self._reader, *metric_readers), resource, shutdown_on_exit=False)

    def spans(self) -> tuple[ReadableSpan, ...]:
        """Return the spans that have ended, in the order of their ends."""
        return self._spans.get_finished_spans()

    def metrics(self, name: str | None = None) -> list[MetricPoint]:
        """Return what the metrics hold since the start or the last ``clear()``, all of them or the one *named*."""
        self._reader.collect()
        with self._lock:
            return [point for point in self._points.values() if name in (None, point.name)]

    def clear(self) -> None:
        """Forget spans and metrics. A counter that goes up and down keeps its level, as its instrument does."""
        self._spans.clear()
        self._reader.collect()
        with self._lock:
            self._points.clear()

    def shutdown(self) -> None:
        """Shut the providers down; what they record from now on is lost."""
        self._reader.collect()
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shut the providers down."""
        self.shutdown()

    def _receive(self, told: MetricsData) -> None:
        with self._lock:
            for resource in told.resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        for point in _points(metric):
                            self._add(point)

    def _add(self, point: MetricPoint) -> None:
        key = (point.name, frozenset(point.attributes.items()))
        known = self._points.get(key)
        self._points[key] = point if known is None else _sum(known, point)


def _make_reader(receive: Callable[[MetricsData], None]) -> MetricReader:
    """Return a reader that hands on what is new, each time somebody collects or flushes.

    What is new only, so that clearing is possible, for which the SDK has no way. Its own in-memory reader would lose
    what a ``force_flush()`` collected.
    """
    from opentelemetry.sdk.metrics import Counter, Histogram, ObservableCounter
    from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricReader

    class Reader(MetricReader):
        def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 0, **kwargs: object) -> None:  # noqa: ARG002
            receive(metrics_data)

        def shutdown(self, timeout_millis: float = 0, **kwargs: object) -> None:
            """Keep nothing open."""

    deltas: dict[type, Any] = dict.fromkeys((Counter, Histogram, ObservableCounter), AggregationTemporality.DELTA)
    return Reader(preferred_temporality=deltas)


def _points(metric: Metric) -> Iterator[MetricPoint]:
    for point in metric.data.data_points:
        attributes: Any = dict(point.attributes or {})
        base = MetricPoint(name=metric.name, unit=metric.unit or "", kind=_kind(metric), attributes=attributes)
        facts: Any = point
        if base.kind != "histogram":
            yield replace(base, value=facts.value)
            continue
        yield replace(
            base,
            count=facts.count,
            sum=facts.sum,
            min=facts.min,
            max=facts.max,
            buckets=dict(zip((*facts.explicit_bounds, _INFINITE), facts.bucket_counts, strict=True)),
        )


def _kind(metric: Metric) -> MetricKind:
    from opentelemetry.sdk.metrics.export import Gauge, Sum

    if isinstance(metric.data, Sum):
        return "counter" if metric.data.is_monotonic else "up_down_counter"
    return "gauge" if isinstance(metric.data, Gauge) else "histogram"


def _sum(known: MetricPoint, new: MetricPoint) -> MetricPoint:
    if known.kind == "counter":
        return replace(new, value=(known.value or 0) + (new.value or 0))
    if known.kind != "histogram":
        return new
    before = known.buckets or {}
    return replace(
        new,
        count=(known.count or 0) + (new.count or 0),
        sum=(known.sum or 0) + (new.sum or 0),
        min=min(_present(known.min, new.min), default=None),
        max=max(_present(known.max, new.max), default=None),
        buckets={bound: before.get(bound, 0) + number for bound, number in (new.buckets or {}).items()},
    )


def _present(*values: float | None) -> list[float]:
    return [value for value in values if value is not None]
