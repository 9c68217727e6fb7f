"""Stands in for a Collector: takes OTLP on this machine, over HTTP or gRPC, and keeps what arrives.

The exporters bring all it takes (``opentelemetry-proto``, ``protobuf``, ``grpc``).
"""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc

_INFLATE: Final = {None: bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}


@dataclass(frozen=True)
class Arrived:
    """A span or a metric's data point.

    Attributes:
        name: Of the span or metric.
        service: The ``service.name`` it came with.
        instance: The ``service.instance.id`` it came with.
        attributes: Its own.
        events: Names of the span's events.
        count: Of the values in a histogram's data point.
    """

    name: str
    service: str | None
    instance: str | None
    attributes: Mapping[str, Any]
    events: tuple[str, ...] = ()
    count: int | None = None


class Receiver:
    """What both ways of arrival have in common. Listens from the moment it is made until the end of its ``with``.

    Attributes:
        url: For ``OTEL_EXPORTER_OTLP_ENDPOINT``.
        encodings: The content encodings that arrived; empty for gRPC, which does not tell.
    """

    url: str

    def __init__(self) -> None:
        self.encodings: set[str | None] = set()
        self._lock = threading.Lock()
        self._traces: list[Any] = []
        self._metrics: list[Any] = []

    def spans(self) -> list[Arrived]:
        """What spans arrived, in the order of their ends."""
        with self._lock:
            found = [
                (span.end_time_unix_nano, _arrived(span, resource, events=tuple(event.name for event in span.events)))
                for request in self._traces
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]
        return [arrived for _, arrived in sorted(found, key=lambda pair: pair[0])]

    def points(self) -> list[Arrived]:
        """What data points arrived, one by one."""
        with self._lock:
            return [
                _arrived(point, resource, name=metric.name, count=getattr(point, "count", None))
                for request in self._metrics
                for resource in request.resource_metrics
                for scope in resource.scope_metrics
                for metric in scope.metrics
                for point in getattr(metric, metric.WhichOneof("data")).data_points
            ]

    def take(self, path: str, body: bytes) -> Any | None:
        """Keep what was sent to *path* and return the answer, None if nothing is taken there."""
        known = {
            "/v1/traces": (trace.ExportTraceServiceRequest, trace.ExportTraceServiceResponse, self._traces),
            "/v1/metrics": (metrics.ExportMetricsServiceRequest, metrics.ExportMetricsServiceResponse, self._metrics),
        }
        if path not in known:
            return None
        request, answer, kept = known[path]
        self.keep(request.FromString(body), kept)
        return answer()

    def keep(self, request: Any, kept: list[Any]) -> None:
        with self._lock:
            kept.append(request)

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class HttpReceiver(Receiver):
    """Over ``http/protobuf``."""

    def __init__(self) -> None:
        super().__init__()
        self._listener = _Listener(self)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join(timeout=5)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.receiver = receiver

    def server_bind(self) -> None:
        """Bind without asking a name server for our own name, which HTTPServer would do."""
        TCPServer.server_bind(self)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: _Listener

    def do_POST(self) -> None:
        encoding = self.headers.get("content-encoding")
        self.server.receiver.encodings.add(encoding)
        body = _INFLATE[encoding](self.rfile.read(int(self.headers["content-length"])))
        answer = self.server.receiver.take(self.path, body)
        data = b"" if answer is None else answer.SerializeToString()
        self.send_response(404 if answer is None else 200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
        """Say nothing."""


class GrpcReceiver(Receiver):
    """Over ``grpc``."""

    def __init__(self) -> None:
        super().__init__()
        receiver = self

        class Traces(trace_grpc.TraceServiceServicer):
            def Export(self, request, context):  # noqa: N802 - its name in the protocol
                receiver.keep(request, receiver._traces)
                return trace.ExportTraceServiceResponse()

        class Metrics(metrics_grpc.MetricsServiceServicer):
            def Export(self, request, context):  # noqa: N802 - its name in the protocol
                receiver.keep(request, receiver._metrics)
                return metrics.ExportMetricsServiceResponse()

        self._server = grpc.server(ThreadPoolExecutor(max_workers=2))
        trace_grpc.add_TraceServiceServicer_to_server(Traces(), self._server)
        metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), self._server)
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(grace=None).wait(timeout=5)


def _arrived(found: Any, resource: Any, **over: Any) -> Arrived:
    source = dict(_attributes(resource.resource.attributes))
    facts = {"name": getattr(found, "name", None), "attributes": dict(_attributes(found.attributes)), **over}
    return Arrived(service=source.get("service.name"), instance=source.get("service.instance.id"), **facts)


def _attributes(pairs: Any) -> Iterator[tuple[str, Any]]:
    for pair in pairs:
        yield pair.key, _value(pair.value)


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)
