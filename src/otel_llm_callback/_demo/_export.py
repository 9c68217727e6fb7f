"""Send what the demo collected to an OTLP receiver, if there is one. Bounded in time, whatever the receiver does."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExporter
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

_Protocol: TypeAlias = Literal["grpc", "http/protobuf"]

NO_TARGET: Final = "none; nothing listens on localhost:4318 or 4317"
_LOCAL: Final[tuple[tuple[int, _Protocol], ...]] = ((4318, "http/protobuf"), (4317, "grpc"))
_CONNECT_S: Final = 0.2
_EXPORT_S: Final = 2
_DEADLINE_S: Final = 3.5  # name look-ups and the like know no limit of their own
_JAEGER: Final = "http://localhost:16686"


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send.

    Attributes:
        protocol: How.
        endpoint: Base URL; None leaves it to the exporters to read the environment.
        description: For the user.
        metrics: False if the environment names an endpoint for traces alone.
        view_url: Where the live view is, if this is one.
    """

    protocol: _Protocol
    endpoint: str | None
    description: str
    metrics: bool = True
    view_url: str | None = None


def find_target() -> Target | None:
    """Return the receiver named in the environment, else one that listens on this machine, else None."""
    general = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
    traces = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip()
    if general or traces:
        name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" if traces else "OTEL_EXPORTER_OTLP_ENDPOINT"
        return Target(_protocol(traces or general), None, f"OTLP to {_host(traces or general)} ({name})", bool(general))
    for port, protocol in _LOCAL:
        if _listens(port):
            return Target(protocol, f"http://localhost:{port}", f"OTLP to localhost:{port}, which listens")
    return None


def deliver(target: Target | None, spans: Sequence[ReadableSpan], sums: InMemoryMetricReader) -> Iterator[str]:
    """Send spans and metrics; yield lines that say what became of them and where to look."""
    yield f"Trace id {_trace_id(spans)}"
    if target is None:
        yield "To see it in Jaeger, start an OTLP receiver on localhost:4318 and run this again."
        yield "To see it in the browser: otel-llm-callback demo --view"
        return
    results = _send_all(target, spans, sums)
    for signal, sent in results.items():
        yield f"{signal.capitalize()}: {'sent' if sent else 'NOT sent'}, {target.description}"
    if results["traces"] and results.get("metrics") is False:
        yield "That is what a receiver for traces alone does, such as Jaeger without a Collector."
    if results["traces"]:
        yield f"{'Jaeger' if target.view_url is None else 'Live view'}: {trace_address(target, spans)}"


def trace_address(target: Target, spans: Sequence[ReadableSpan]) -> str:
    """Return where the trace is to be seen: in the live view if that is the target, else in Jaeger."""
    jaeger = os.environ.get("OTEL_LLM_CALLBACK_JAEGER_URL", "").strip().rstrip("/") or _JAEGER
    return f"{target.view_url or jaeger}/trace/{_trace_id(spans)}"


def _trace_id(spans: Sequence[ReadableSpan]) -> str:
    return next((f"{span.context.trace_id:032x}" for span in spans if span.context), "none")


def _protocol(endpoint: str) -> _Protocol:
    """Return the protocol that is set, else the one whose usual port the endpoint has."""
    name = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if name:
        return "grpc" if name.strip() == "grpc" else "http/protobuf"
    return "grpc" if _host(endpoint).endswith(":4317") else "http/protobuf"


def _host(endpoint: str) -> str:
    return urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").netloc.rpartition("@")[2]


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("localhost", port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


def _send_all(target: Target, spans: Sequence[ReadableSpan], sums: InMemoryMetricReader) -> dict[str, bool]:
    """Send both at once, in threads that the program need not wait for; return what was sent in time."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # the demo says itself what failed
    work: dict[str, Callable[[], bool]] = {"traces": lambda: _send_spans(target, spans)}
    if target.metrics:
        work["metrics"] = lambda: _send_metrics(target, sums)
    results = dict.fromkeys(work, False)

    def run(signal: str) -> None:
        try:
            results[signal] = work[signal]()
        except Exception:  # noqa: BLE001 - an exporter that fails is an answer too
            results[signal] = False

    threads = [threading.Thread(target=run, args=(signal,), daemon=True) for signal in work]
    deadline = time.monotonic() + _DEADLINE_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return dict(results)


def _send_spans(target: Target, spans: Sequence[ReadableSpan]) -> bool:
    from opentelemetry.sdk.trace.export import SpanExportResult

    exporter = _span_exporter(target)
    try:
        return exporter.export(spans) is SpanExportResult.SUCCESS
    finally:
        exporter.shutdown()


def _send_metrics(target: Target, sums: InMemoryMetricReader) -> bool:
    from opentelemetry.sdk.metrics.export import MetricExportResult

    collected = sums.get_metrics_data()
    if collected is None:
        return False
    exporter = _metric_exporter(target)
    try:
        return exporter.export(collected, timeout_millis=_EXPORT_S * 1000) is MetricExportResult.SUCCESS
    finally:
        exporter.shutdown()


def _span_exporter(target: Target) -> SpanExporter:
    if target.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=target.endpoint, timeout=_EXPORT_S)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(target.endpoint and f"{target.endpoint}/v1/traces", timeout=_EXPORT_S)


def _metric_exporter(target: Target) -> MetricExporter:
    if target.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter

        return GrpcExporter(endpoint=target.endpoint, timeout=_EXPORT_S)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter(target.endpoint and f"{target.endpoint}/v1/metrics", timeout=_EXPORT_S)
