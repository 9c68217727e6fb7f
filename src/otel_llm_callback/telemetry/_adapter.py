"""The adapter: one CLIENT span per call, current while the request is in flight, and what is recorded at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from dataclasses import replace
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics, trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, set_span_in_context

from .. import _faults, _messages
from .._jobs import PENDING
from .._operations import READERS
from .._version import __version__
from ..config import MAX_CHUNK_EVENTS, ChunkTiming, ExceptionSignal, MetricFamily, is_hard_off
from ..content import Gate, Message, Payload
from ..types import ErrorContext, RequestMetadata, ResponseMetadata, StreamChunk
from . import _names as n
from ._events import EventWriter
from ._metrics import MetricRecorder, should_say_usage

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider
    from typing_extensions import Self


_JOB_LIMIT: Final = 1024
_PLAN_LIMIT: Final = 1024


class OpenTelemetryCallback:
    """Turn calls into spans, span events and metrics; usable alone, as any callback.

    It never sets a provider, touches no span it did not start and adds no processor. Spans that are not sampled cost no
    attributes and no content; metrics are complete all the same.

    Args:
        tracer_provider: None for the global one, also if it is set later.
        meter_provider: None for the global one, also if it is set later.
        logger_provider: None for the global one. Used only for log events, which are off by default.
        gate: What may be shown of content; nothing by default, and nothing if the environment says ``no_content``.
        metrics: Which metric names: ``current``, ``next`` or ``both``.
        chunk_timing: Waits between chunks on the metric: a sample of 64 per stream (``bounded``), ``all``, or ``off``.
        chunk_events: How many chunks of a stream become span events, 0 to 64; they are the first ones.
        exceptions: Where exceptions are recorded: as span events, log events or both.
        emit_event: Write the log event with the span's attributes; None for: if the gate lets messages on events.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        gate: Gate | None = None,
        metrics: MetricFamily = "current",
        chunk_timing: ChunkTiming = "bounded",
        chunk_events: int = 0,
        exceptions: ExceptionSignal = "span",
        emit_event: bool | None = None,
    ) -> None:
        gate = gate or Gate()
        if is_hard_off():
            gate = replace(gate, mode="no_content", error_text=False)
        self.gate = gate
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._family: MetricFamily = metrics
        self._chunk_timing: ChunkTiming = chunk_timing
        self._chunk_events = min(chunk_events, MAX_CHUNK_EVENTS)
        self._exceptions: ExceptionSignal = exceptions
        emits = self.gate.on_events if emit_event is None else emit_event
        self._writes_details = emits
        self._events = EventWriter(logger_provider) if emits or exceptions != "span" else None
        self._open: dict[str, _OpenSpan] = {}
        self._jobs: dict[str, SpanContext] = {}
        self._plans: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
        self.on_new_provider: Callable[[], None] | None = None
        self._bound: tuple[object, object] = (None, None)
        self._idle = self._measures = False
        self._bind()
        if chunk_timing == "all" or self._chunk_events:
            self.on_stream_chunk = self._on_stream_chunk

    @property
    def content(self) -> str:
        """Messages are read only if the gate shows them somewhere."""
        return "lazy" if self.gate.on_spans or self.gate.on_events else "none"

    def is_idle(self) -> bool:
        """True while neither traces nor metrics go anywhere, because no SDK is configured."""
        if self._providers() != self._bound:
            self._bind()
            if self.on_new_provider is not None:
                self.on_new_provider()
        return self._idle

    def forget(self) -> None:
        """Forget the spans under way: after a fork they are the parent's."""
        self._open.clear()

    def on_request_sent(self, metadata: RequestMetadata, request_json: str) -> _OpenSpan:
        """Start the span; it is current until the response headers are back."""
        name, start = self._plan(metadata)
        attributes = _request_attributes(metadata, start)
        if metadata.stop_sequences:
            attributes[n.STOP_SEQUENCES] = self._stop_sequences(metadata)
        span = self._start(name, attributes, metadata)
        held = _OpenSpan(span, metadata)
        if held.recording:
            span.add_event(n.EVENT_REQUEST_SENT, timestamp=metadata.started_ns)
        elif not self._needs_end(metadata):
            held.awaits_end = False
            return held
        self._open[metadata.call_id] = held
        if request_json or isinstance(request_json, Payload):
            self._note_request_content(held, _payload(request_json, metadata.api))
        return held

    def _needs_end(self, metadata: RequestMetadata) -> bool:
        """True if something is kept of the end of a call whose span is not recorded."""
        is_job = metadata.background or metadata.response_id is not None  # later spans are linked to its span
        return self._measures or self._events is not None or is_job

    def _start(self, name: str, attributes: dict[str, Any], metadata: RequestMetadata) -> Span:
        try:
            return self._tracer.start_span(
                name,
                kind=SpanKind.CLIENT,
                attributes=attributes,
                links=None if metadata.response_id is None else self._links(metadata.response_id),
                start_time=metadata.started_ns,
            )
        except Exception as error:  # noqa: BLE001 - a sampler or span processor of the program's own
            _faults.report("span", error, "a span could not be started")
            return trace.INVALID_SPAN

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:
        """Finish the span and record the metrics."""
        held = self._open.pop(metadata.request.call_id, None)
        if held is None:
            return
        if held.recording or self._writes_details:
            self._write_response(held, metadata, response_json)
        if metadata.status in PENDING and metadata.id is not None:
            self._note_job(metadata.id, held.span.get_span_context())
        self._metrics.response(metadata, held.context, gaps=self._chunk_timing == "bounded")
        held.span.end(metadata.ended_ns)

    def keep_partial(self, call_id: str, content: Payload) -> None:
        """Keep what had arrived of a call that fails now, for its span: ``on_error`` is given no content."""
        if (held := self._open.get(call_id)) is not None:
            held.partial = content

    def on_error(self, error: BaseException, context: ErrorContext) -> None:
        """Finish the span as failed and record the metrics."""
        held = self._open.pop(context.request.call_id, None)
        if held is None:
            return
        if held.recording or self._events is not None:
            self._write_error(held, error, context)
        self._metrics.error(context, held.context, gaps=self._chunk_timing == "bounded")
        held.span.end(context.ended_ns)

    def _stop_sequences(self, metadata: RequestMetadata) -> tuple[str, ...]:
        # A parameter by the conventions, and yet text a person wrote.
        if self.gate.redactor is None:
            return metadata.stop_sequences
        return tuple(self.gate.text(text) for text in metadata.stop_sequences)

    def _on_stream_chunk(self, chunk: StreamChunk, index: int) -> None:
        held = self._open.get(chunk.request.call_id)
        if held is None:
            return
        if index and self._chunk_timing == "all":
            self._metrics.gap(chunk.request, (chunk.at_ns - held.last_chunk_ns) / 1e9, held.context)
        held.last_chunk_ns = chunk.at_ns
        if index < self._chunk_events and held.recording:
            held.span.add_event(n.EVENT_CHUNK, {n.CHUNK_INDEX: index, n.CHUNK_KIND: chunk.kind}, chunk.at_ns)

    def _note_job(self, response_id: str, context: SpanContext) -> None:
        """Remember the span that asked for an answer which is made later, for the calls that fetch it."""
        while len(self._jobs) >= _JOB_LIMIT:
            self._jobs.pop(next(iter(self._jobs)), None)
        self._jobs.setdefault(response_id, context)

    def _links(self, response_id: str) -> list[Link] | None:
        context = self._jobs.get(response_id)
        return None if context is None else [Link(context)]

    def _providers(self) -> tuple[object, object]:
        return (
            self._tracer_provider or trace.get_tracer_provider(),
            self._meter_provider or metrics.get_meter_provider(),
        )

    def _bind(self) -> None:
        self._bound = self._providers()
        tracer_provider, meter_provider = self._bound
        self._measures = _is_real(meter_provider)
        self._idle = not self._measures and not _is_real(tracer_provider)
        self._tracer = trace.get_tracer(n.SCOPE, __version__, self._tracer_provider, n.SCHEMA_URL)
        meter = metrics.get_meter(n.SCOPE, __version__, self._meter_provider, n.SCHEMA_URL)
        self._metrics = MetricRecorder(meter, self._family)

    def _plan(self, metadata: RequestMetadata) -> tuple[str, dict[str, Any]]:
        """Span name and the attributes samplers see, worked out once per operation, model and server."""
        key = (
            metadata.operation,
            metadata.provider,
            metadata.model,
            metadata.server_address,
            metadata.server_port,
            metadata.api,
        )
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _PLAN_LIMIT:
                self._plans.clear()
            plan = self._plans[key] = _build_plan(metadata)
        return plan

    def _note_request_content(self, held: _OpenSpan, payload: Payload) -> None:
        if not held.recording:  # content is not even read for a span nobody keeps
            return
        body, readers = payload.body, payload.readers
        found = {
            n.INPUT_MESSAGES: self._shown(readers.input_messages, body, self.gate.messages),
            n.SYSTEM_INSTRUCTIONS: self._shown(readers.system_instructions, body, self.gate.messages),
            n.TOOL_DEFINITIONS: self._shown(readers.tool_definitions, body, self.gate.tools),
        }
        texts = {name: text for name, text in found.items() if text is not None}
        if self.gate.on_spans:
            held.span.set_attributes(texts)
        if self.gate.on_events:
            held.content = texts

    def _write_response(self, held: _OpenSpan, metadata: ResponseMetadata, response_json: str) -> None:
        attributes = _response_attributes(metadata)
        text = self._output(response_json, metadata.request.api) if held.recording else None
        if held.recording:
            if text is not None and self.gate.on_spans:
                attributes[n.OUTPUT_MESSAGES] = text
            held.span.set_attributes(attributes)
            _add_events(held, metadata)
            held.span.add_event(n.EVENT_RESPONSE_RECEIVED, timestamp=metadata.ended_ns)
        if self._writes_details and self._events is not None:
            self._write_details(held, metadata.request, attributes, text, metadata.ended_ns)

    def _output(self, response_json: str, api: str) -> str | None:
        if not response_json and not isinstance(response_json, Payload):
            return None
        payload = _payload(response_json, api)
        return self._shown(payload.readers.output_messages, payload.body, self.gate.messages)

    def _shown(
        self, read: Callable[[Any], list[Message]], body: object, show: Callable[[list[Message]], str]
    ) -> str | None:
        """What may be shown of *body* as JSON text, None if it holds nothing of the kind."""
        try:
            messages = read(body)
            return show(messages) if messages else None
        except Exception as error:  # noqa: BLE001 - an odd body must not cost the span or the metrics
            _faults.report("content", error, "a body could not be made into messages")
            return None

    def _write_error(self, held: _OpenSpan, error: BaseException, context: ErrorContext) -> None:
        attributes = _error_attributes(context)
        partial = held.partial if held.recording else None
        text = None if partial is None else self._output(partial, context.request.api)
        message = self.gate.text(str(error)) if self.gate.error_text else None
        exception: dict[str, str] = {n.EXCEPTION_TYPE: _qualified_name(error)}
        if message:
            exception[n.EXCEPTION_MESSAGE] = message
        if held.recording:
            shown = {n.OUTPUT_MESSAGES: text} if text is not None and self.gate.on_spans else {}
            held.span.set_attributes({**attributes, **shown})
            _add_events(held, context.partial, context)
            if self._exceptions != "logs":
                held.span.add_event(n.EVENT_EXCEPTION, exception, context.ended_ns)
            held.span.set_status(Status(StatusCode.ERROR, message))
        if self._events is not None:
            if self._writes_details:
                self._write_details(held, context.request, attributes, text, context.ended_ns)
            if self._exceptions != "span":
                self._events.exception(exception, held.context, context.ended_ns)

    def _write_details(
        self, held: _OpenSpan, request: RequestMetadata, attributes: dict[str, Any], output: str | None, at_ns: int
    ) -> None:
        details = {**_request_attributes(request, self._plan(request)[1]), **attributes}
        if request.stop_sequences:
            details[n.STOP_SEQUENCES] = self._stop_sequences(request)
        details.pop(n.OUTPUT_MESSAGES, None)
        if self.gate.on_events:
            texts = {**(held.content or {}), **({n.OUTPUT_MESSAGES: output} if output is not None else {})}
            details.update({name: json.loads(text) for name, text in texts.items()})
        if self._events is not None:
            self._events.details(details, held.context, at_ns)


class _OpenSpan:
    """A span that has not ended; as a context manager it makes the span current.

    Without *awaits_end* leaving it ends the span, of which nobody keeps anything.
    """

    __slots__ = ("_token", "awaits_end", "content", "context", "last_chunk_ns", "partial", "recording", "span")

    def __init__(self, span: Span, metadata: RequestMetadata) -> None:
        self.span = span
        self.recording = span.is_recording()
        self.awaits_end = True
        self.context: Context = set_span_in_context(span)
        self.last_chunk_ns = metadata.started_ns
        self.content: dict[str, str] | None = None
        self.partial: Payload | None = None
        self._token: Token[Context] | None = None

    @property
    def trace_id(self) -> str | None:
        """32 hex digits, None if the span has no valid context."""
        identity = self.span.get_span_context()
        return f"{identity.trace_id:032x}" if identity.is_valid else None

    @property
    def span_id(self) -> str | None:
        """16 hex digits."""
        identity = self.span.get_span_context()
        return f"{identity.span_id:016x}" if identity.is_valid else None

    def __enter__(self) -> Self:
        self._token = attach(self.context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        token, self._token = self._token, None
        # A coroutine that is thrown away may be closed in another context than it ran in; there is nothing to detach.
        if token is not None and (kind is not GeneratorExit or get_current() is self.context):
            detach(token)
        if not self.awaits_end:
            self.span.end()


def _is_real(provider: object) -> bool:
    return not type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))


def _build_plan(metadata: RequestMetadata) -> tuple[str, dict[str, Any]]:
    name = f"{metadata.operation} {metadata.model}" if metadata.model else metadata.operation
    start = {
        n.OPERATION_NAME: metadata.operation,
        n.PROVIDER_NAME: metadata.provider,
        n.REQUEST_MODEL: metadata.model,
        n.SERVER_ADDRESS: metadata.server_address,
        n.SERVER_PORT: metadata.server_port,
        n.OPENAI_API_TYPE: metadata.api if metadata.api in ("chat_completions", "responses") else None,
    }
    return name, {key: value for key, value in start.items() if value is not None}


def _copier(table: Sequence[tuple[str, str]]) -> Callable[[object, dict[str, Any]], None]:
    """Return what copies the fields that are known to the attributes *table* names; read in one go, in C."""
    read = attrgetter(*[field for field, _ in table])
    names = tuple([name for _, name in table])

    def copy(facts: object, attributes: dict[str, Any]) -> None:
        known = {name: value for name, value in zip(names, read(facts), strict=True) if value is not None}
        attributes.update(known)

    return copy


_copy_request: Final = _copier(n.REQUEST_FIELDS)
_copy_response: Final = _copier(n.RESPONSE_FIELDS)
_copy_usage: Final = _copier(n.USAGE_DETAILS)
_copy_rate_limit: Final = _copier(n.RATE_LIMIT_FIELDS)


def _request_attributes(metadata: RequestMetadata, start: Mapping[str, Any]) -> dict[str, Any]:
    attributes = dict(start)
    if metadata.stream:
        attributes[n.REQUEST_STREAM] = True
    _copy_request(metadata, attributes)
    if metadata.choice_count is not None and metadata.choice_count != 1:
        attributes[n.CHOICE_COUNT] = metadata.choice_count
    if metadata.encoding_formats:
        attributes[n.ENCODING_FORMATS] = metadata.encoding_formats
    if metadata.service_tier is not None and metadata.service_tier != "auto":
        attributes[n.OPENAI_REQUEST_TIER] = metadata.service_tier
    if metadata.attributes:
        attributes.update({n.SESSION_PREFIX + field: value for field, value in metadata.attributes.items()})
    return attributes


def _response_attributes(metadata: ResponseMetadata) -> dict[str, Any]:
    attributes: dict[str, Any] = {n.OUTCOME: metadata.outcome}
    _copy_response(metadata, attributes)
    if metadata.status is not None and metadata.request.operation == "fetch_response":
        attributes[n.RESPONSE_STATUS] = metadata.status
    if metadata.finish_reasons:
        attributes[n.FINISH_REASONS] = metadata.finish_reasons
    if metadata.truncated:
        attributes[n.TRUNCATED] = True
    if metadata.cost is not None:
        attributes[n.COST] = float(metadata.cost)
    if metadata.usage is not None:
        _add_usage(attributes, metadata)
    elif metadata.outcome == "completed" and should_say_usage(metadata):
        attributes[n.USAGE_SOURCE] = metadata.usage_source
    _add_transport(attributes, metadata)
    return attributes


def _add_usage(attributes: dict[str, Any], metadata: ResponseMetadata) -> None:
    usage = metadata.usage
    if usage is None:
        return
    if usage.input_tokens is not None:
        attributes[n.INPUT_TOKENS] = usage.input_tokens
    if usage.output_tokens is not None:
        attributes[n.OUTPUT_TOKENS] = usage.output_tokens
    _copy_usage(usage, attributes)
    if metadata.usage_source == "estimated":
        attributes[n.USAGE_SOURCE] = metadata.usage_source


def _add_transport(attributes: dict[str, Any], facts: ResponseMetadata | ErrorContext) -> None:
    if facts.processing_ms is not None:
        attributes[n.PROCESSING_TIME] = facts.processing_ms / 1000
    if facts.retries:
        attributes[n.RETRY_COUNT] = len(facts.retries)
        attributes[n.RETRY_WAIT] = sum(retry.delay_s for retry in facts.retries)
    if facts.rate_limit is not None:
        _copy_rate_limit(facts.rate_limit, attributes)


def _error_attributes(context: ErrorContext) -> dict[str, Any]:
    attributes = _response_attributes(context.partial) if context.partial is not None else {}
    attributes[n.OUTCOME] = context.outcome
    attributes[n.ERROR_TYPE] = context.error_type
    if context.status_code is not None:
        attributes[n.HTTP_STATUS] = context.status_code
    if context.request_id is not None:
        attributes[n.REQUEST_ID] = context.request_id
    _add_transport(attributes, context)
    return attributes


def _add_events(held: _OpenSpan, metadata: ResponseMetadata | None, context: ErrorContext | None = None) -> None:
    """The events of the middle, written at the end with their own times."""
    span = held.span
    facts = context or metadata
    for retry in facts.retries if facts is not None else ():
        attributes: dict[str, Any] = {n.RETRY_DELAY: retry.delay_s}
        if retry.status_code is not None:
            attributes[n.RETRY_STATUS] = retry.status_code
        if retry.error is not None:
            attributes[n.RETRY_ERROR] = retry.error
        span.add_event(n.EVENT_RETRY, attributes, retry.at_ns)
    if metadata is not None and metadata.time_to_first_chunk_s is not None:
        span.add_event(
            n.EVENT_FIRST_CHUNK, timestamp=metadata.request.started_ns + int(metadata.time_to_first_chunk_s * 1e9)
        )


def _payload(text: str, api: str) -> Payload:
    """The payload behind a content argument; plain JSON text is read back."""
    if isinstance(text, Payload):
        return text
    return Payload(json.loads(text), READERS.get(api, _messages.CHAT))


def _qualified_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
