"""Spans to send, made by hand: no SDK, so that any shape can be had."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_numbers = itertools.count(1)
MS = 1_000_000

CALL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "llm_callback.outcome": "completed",
    "gen_ai.usage.input_tokens": 10,
    "gen_ai.usage.output_tokens": 5,
    "gen_ai.response.time_to_first_chunk": 0.2,
}


def trace_id() -> bytes:
    """One that no other span has."""
    return next(_numbers).to_bytes(16, "big")


_FIELDS = {bool: "bool_value", int: "int_value", float: "double_value", bytes: "bytes_value", str: "string_value"}


def any_value(value: Any) -> AnyValue:
    told = AnyValue()
    if isinstance(value, Mapping):
        told.kvlist_value.SetInParent()
        told.kvlist_value.values.extend(attributes(value))
    elif isinstance(value, (list, tuple)):
        told.array_value.SetInParent()
        told.array_value.values.extend(any_value(item) for item in value)
    else:
        setattr(told, _FIELDS[type(value)], value)
    return told


def attributes(told: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in told.items()]


def span(
    name: str = "chat gpt-4o-mini",
    *,
    trace: bytes | None = None,
    parent: bytes = b"",
    span_id: bytes | None = None,
    started_ns: int | None = None,
    took_ms: float = 100,
    failed: bool = False,
    events: Mapping[str, float] | None = None,
    **told: Any,
) -> Span:
    """A span; further arguments are attributes, `CALL` if there are none."""
    started_ns = time.time_ns() - 200 * MS if started_ns is None else started_ns
    made = Span(
        trace_id=trace or trace_id(),
        span_id=span_id or next(_numbers).to_bytes(8, "big"),
        parent_span_id=parent,
        name=name,
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=started_ns,
        end_time_unix_nano=started_ns + int(took_ms * MS),
        attributes=attributes(told.get("attributes", CALL)),
    )
    for event, at_ms in (events or {}).items():
        made.events.add(name=event, time_unix_nano=started_ns + int(at_ms * MS))
    if failed:
        made.status.code = 2
    return made


def request(*spans: Span, service: str = "test", more: Iterable[Span] = ()) -> ExportTraceServiceRequest:
    made = ExportTraceServiceRequest()
    group = made.resource_spans.add()
    group.resource.attributes.extend(attributes({"service.name": service}))
    scope = group.scope_spans.add()
    scope.scope.name = "hand-made"
    scope.spans.extend([*spans, *more])
    return made
