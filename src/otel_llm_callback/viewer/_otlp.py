"""OTLP over HTTP: from the bytes of a request to protobuf messages, and from those to rows.

What a sender says may be anything. A body that is not OTLP raises :class:`UnreadableError`; a span that cannot be kept
is left out and counted, so that one bad span costs none of its neighbours.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from ._facts import CALL_KEYS, CallFacts, read_facts

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

_TRACE_ID_BYTES: Final = 16
_SPAN_ID_BYTES: Final = 8
_LATEST_NS: Final = 2**63 - 1
_ERROR: Final = 2
_DEPTH: Final = 64
_ID_KEYS: Final = frozenset(("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"))
_NAME_LIMIT: Final = 300

_M = TypeVar("_M", bound=Message)


class UnreadableError(Exception):
    """The body is no OTLP; the text says what was wrong without quoting it."""


class TooLargeError(Exception):
    """The body, once decompressed, is larger than allowed."""


@dataclass(slots=True)
class SpanRow:
    """A span as it is kept: what lists and charts need, and the whole of it as it came.

    Attributes:
        body: The span as protobuf.
        origin: The resource and scope it came with, as protobuf of a ``ResourceSpans`` without spans.
        facts: What it tells of a call to a model; None if it is a span of another kind.
    """

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    name: str
    service: str
    started_ns: int
    ended_ns: int
    is_error: bool
    body: bytes
    origin: bytes
    facts: CallFacts | None


@dataclass(slots=True)
class Spans:
    """What a request to ``/v1/traces`` holds."""

    rows: list[SpanRow] = field(default_factory=list)
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Series:
    """The newest point of a metric with one set of attributes.

    Attributes:
        kind: ``sum``, ``gauge`` or ``histogram``.
        value: Of a sum or gauge.
        count: Of a histogram.
        total: The sum of a histogram's values.
    """

    name: str
    service: str
    attributes: str
    unit: str
    kind: str
    at_ns: int
    value: float | None = None
    count: int | None = None
    total: float | None = None


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Return *body* decompressed, never holding much more than *limit* bytes of it.

    Raises:
        TooLargeError: There is more than *limit*.
        UnreadableError: It is not what *encoding* says, or an encoding other than gzip, deflate and identity.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise UnreadableError("the content encoding must be gzip, deflate or identity")
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        inflated = decompressor.decompress(body, limit + 1)
    except zlib.error:
        raise UnreadableError(f"the body is not {encoding}") from None
    if len(inflated) > limit:
        raise TooLargeError
    if not decompressor.eof or decompressor.unused_data:
        raise UnreadableError(f"the body is not one whole {encoding} stream")
    return inflated


def parse(body: bytes, media_type: str, kind: type[_M]) -> _M:
    """Return *body* as a message.

    Raises:
        UnreadableError: It is not.
    """
    if media_type == PROTOBUF:
        try:
            return kind.FromString(body)
        except DecodeError:
            raise UnreadableError("the body is not protobuf of this kind") from None
    try:
        tree = json.loads(body)
        if not isinstance(tree, dict):
            raise UnreadableError("the body is not a JSON object")
        return json_format.ParseDict(
            _with_base64_ids(tree), kind(), ignore_unknown_fields=True, max_recursion_depth=_DEPTH
        )
    except (ValueError, RecursionError, TypeError, AttributeError, json_format.Error):
        raise UnreadableError("the body is not OTLP as JSON") from None


def _with_base64_ids(node: Any, depth: int = 0) -> Any:
    """OTLP spells ids in hex, where protobuf's own JSON has base64."""
    if depth > _DEPTH:
        raise UnreadableError("the JSON is nested too deeply")
    if isinstance(node, dict):
        return {
            key: _base64_of(value) if key in _ID_KEYS else _with_base64_ids(value, depth + 1)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_with_base64_ids(item, depth + 1) for item in node]
    return node


def _base64_of(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64encode(bytes.fromhex(value)).decode()
    except (ValueError, binascii.Error):
        raise UnreadableError("an id is not hexadecimal") from None


def read_spans(request: ExportTraceServiceRequest) -> Spans:
    """Return the rows of *request*; this runs once per span and is kept short."""
    found = Spans()
    rows = found.rows
    for group in request.resource_spans:
        service = _clipped(_service(group.resource.attributes))
        for scope in group.scope_spans:
            origin = _origin(group, scope)
            for span in scope.spans:
                trace_id, span_id = span.trace_id, span.span_id
                started_ns, ended_ns = span.start_time_unix_nano, span.end_time_unix_nano
                if (
                    len(trace_id) != _TRACE_ID_BYTES
                    or len(span_id) != _SPAN_ID_BYTES
                    or not any(trace_id)
                    or not any(span_id)
                    or started_ns > _LATEST_NS
                    or ended_ns > _LATEST_NS
                ):
                    found.refused += 1
                    continue
                told = {pair.key: scalar(pair.value) for pair in span.attributes if pair.key in CALL_KEYS}
                is_error = span.status.code == _ERROR
                rows.append(
                    SpanRow(
                        trace_id,
                        span_id,
                        span.parent_span_id,
                        _clipped(span.name),
                        service,
                        started_ns,
                        max(started_ns, ended_ns),
                        is_error,
                        span.SerializeToString(),
                        origin,
                        read_facts(told, is_error=is_error) if told else None,
                    )
                )
    return found


def _origin(group: Any, scope: Any) -> bytes:
    kept = type(group)()
    kept.resource.CopyFrom(group.resource)
    kept.schema_url = group.schema_url
    kept.scope_spans.add().scope.CopyFrom(scope.scope)
    kept.scope_spans[0].schema_url = scope.schema_url
    return bytes(kept.SerializeToString(deterministic=True))


def scalar(value: AnyValue) -> Any:
    """Return a value that is no list and no mapping, else None."""
    kind = value.WhichOneof("value")
    if kind in ("string_value", "int_value", "double_value", "bool_value"):
        return getattr(value, kind)
    return None


def plain(value: AnyValue, depth: int = 0) -> Any:
    """Return *value* as what JSON can hold; bytes become base64, what is nested too deeply becomes None."""
    kind = value.WhichOneof("value")
    if kind is None or depth > _DEPTH:
        return None
    if kind == "array_value":
        return [plain(item, depth + 1) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value, depth + 1) for pair in value.kvlist_value.values}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return getattr(value, kind)


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Return attributes as what JSON can hold."""
    return {pair.key: plain(pair.value) for pair in pairs}


def _service(pairs: Iterable[KeyValue]) -> str:
    return next((str(scalar(pair.value) or "") for pair in pairs if pair.key == "service.name"), "")


def _clipped(text: str) -> str:
    return text if len(text) <= _NAME_LIMIT else text[:_NAME_LIMIT] + "…"


def read_series(request: ExportMetricsServiceRequest) -> Iterator[Series]:
    """Yield the points of *request*; kinds other than sum, gauge and histograms are left out."""
    for group in request.resource_metrics:
        service = _clipped(_service(group.resource.attributes))
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                if kind not in ("sum", "gauge", "histogram", "exponential_histogram"):
                    continue
                for point in getattr(metric, kind).data_points:
                    yield _point(metric, kind, point, service)


def _point(metric: Any, kind: str, point: Any, service: str) -> Series:
    attributes = json.dumps(attributes_of(point.attributes), ensure_ascii=False, sort_keys=True)
    about = (_clipped(metric.name), service, attributes[:4096], _clipped(metric.unit))
    at_ns = min(point.time_unix_nano, _LATEST_NS)
    if "histogram" in kind:
        total = point.sum if point.HasField("sum") else None
        return Series(*about, "histogram", at_ns, count=min(point.count, _LATEST_NS), total=total)
    value = point.WhichOneof("value")
    return Series(*about, kind, at_ns, value=None if value is None else float(getattr(point, value)))


def count_logs(request: ExportLogsServiceRequest) -> int:
    """Return how many log records *request* holds."""
    return sum(len(scope.log_records) for group in request.resource_logs for scope in group.scope_logs)
