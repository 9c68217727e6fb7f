"""What the telemetry tests compare: spans as plain values, with the times that differ from run to run taken out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from opentelemetry.trace import SpanKind, StatusCode

SECONDS = "<seconds>"
"""Stands where a time of this run was."""

TIMES = frozenset(
    (
        "gen_ai.response.time_to_first_chunk",
        "llm_callback.time_to_first_output",
        "llm_callback.chunk.longest_gap",
        "llm_callback.retry.wait",
        "llm_callback.retry.delay",
    )
)


@dataclass(frozen=True)
class SpanFacts:
    """A span without its ids and times.

    Attributes:
        events: Name and attributes of each, in the order in which they were added.
        status: Code and description.
    """

    name: str = "chat gpt-4o-mini"
    kind: SpanKind = SpanKind.CLIENT
    attributes: dict = field(default_factory=dict)
    events: list = field(default_factory=list)
    status: tuple = (StatusCode.UNSET, None)

    def adding(self, **attributes):
        """The same with further attributes, named by keyword with `__` for each dot."""
        return replace(self, attributes={**self.attributes, **dotted(attributes)})


def dotted(attributes):
    """Attributes written as keyword arguments: `server__port=1` is `server.port`."""
    return {name.replace("__", "."): value for name, value in attributes.items()}


def facts(span):
    """The facts of *span*; its events must lie within it, the first at its start and the last at its end."""
    times = [event.timestamp for event in span.events]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (span.start_time, span.end_time)
    duration_s = (span.end_time - span.start_time) / 1e9
    return SpanFacts(
        name=span.name,
        kind=span.kind,
        attributes=_timeless(span.attributes, duration_s),
        events=[(event.name, _timeless(event.attributes, duration_s)) for event in span.events],
        status=(span.status.status_code, span.status.description),
    )


def _timeless(attributes, duration_s):
    for name in TIMES & set(attributes):
        assert 0 <= attributes[name] <= duration_s
    return {name: SECONDS if name in TIMES else value for name, value in attributes.items()}


def only_span(telemetry):
    """The facts of the only span there is."""
    (span,) = telemetry.spans()
    return facts(span)


REQUEST_SENT = ("llm_callback.request_sent", {})
FIRST_CHUNK = ("llm_callback.first_chunk", {})
RESPONSE_RECEIVED = ("llm_callback.response_received", {})
ANSWERED = [REQUEST_SENT, RESPONSE_RECEIVED]
STREAMED = [REQUEST_SENT, FIRST_CHUNK, RESPONSE_RECEIVED]
FAILED = (StatusCode.ERROR, None)


def exception(kind, **attributes):
    """The event of an exception."""
    return ("exception", {"exception.type": kind, **dotted(attributes)})


def retried(status, error):
    """The event of a retry."""
    known = {} if status is None else {"llm_callback.retry.status_code": status}
    return ("llm_callback.retry", {"llm_callback.retry.delay": SECONDS, **known, "llm_callback.retry.error": error})


def request_attributes(server):
    """The attributes that every call to *server* has from its start."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "server.address": "127.0.0.1",
        "server.port": int(server.url.rpartition(":")[2].partition("/")[0]),
        "openai.api.type": "chat_completions",
    }


def answered(server):
    """The span of a call with the usual answer."""
    return SpanFacts(
        attributes={
            **request_attributes(server),
            "gen_ai.response.id": "chatcmpl-000001",
            "gen_ai.response.model": "gpt-4o-mini",
            "gen_ai.response.finish_reasons": ("stop",),
            **usage(5, 7),
            **transport(),
            "llm_callback.outcome": "completed",
        },
        events=ANSWERED,
    )


def usage(inputs, outputs):
    """The attributes of the usage the scripted server reports."""
    return {
        "gen_ai.usage.input_tokens": inputs,
        "gen_ai.usage.output_tokens": outputs,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "gen_ai.usage.audio.input_tokens": 0,
        "gen_ai.usage.audio.output_tokens": 0,
    }


def transport(number=1):
    """The attributes of the headers the scripted server sends with its *number*-th answer."""
    return {"llm_callback.request_id": f"req_{number:06}", "llm_callback.processing_time": 0.007}


def failed(server, kind, number=1, outcome="error"):
    """The attributes of a call that failed with nothing but an exception; *number* None if no answer came."""
    return {
        **request_attributes(server),
        "error.type": kind,
        "llm_callback.outcome": outcome,
        **(transport(number) if number else {}),
    }
