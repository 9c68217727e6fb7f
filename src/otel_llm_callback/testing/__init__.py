"""What it takes to test observed code: a recorder, made-up facts, collected telemetry, a server on this machine.

    from otel_llm_callback.testing import RecordingCallback, ScriptedServer, TelemetryCollector

Public API. :class:`TelemetryCollector` needs the SDK (extra ``otlp``); the rest needs nothing but this package.
"""

from ._recorder import (
    CallFailed,
    ChunkReceived,
    Event,
    RecordingCallback,
    RequestSent,
    ResponseReceived,
    check_grammar,
    make_chunk,
    make_error_context,
    make_request,
    make_response,
)
from ._server import (
    JsonReply,
    ReceivedRequest,
    Reply,
    ScriptedServer,
    StreamReply,
    chat_chunk,
    chat_chunks,
    chat_completion,
    error_body,
)
from ._telemetry import MetricKind, MetricPoint, TelemetryCollector

__all__ = [
    "CallFailed",
    "ChunkReceived",
    "Event",
    "JsonReply",
    "MetricKind",
    "MetricPoint",
    "ReceivedRequest",
    "RecordingCallback",
    "Reply",
    "RequestSent",
    "ResponseReceived",
    "ScriptedServer",
    "StreamReply",
    "TelemetryCollector",
    "chat_chunk",
    "chat_chunks",
    "chat_completion",
    "check_grammar",
    "error_body",
    "make_chunk",
    "make_error_context",
    "make_request",
    "make_response",
]
