"""Record what a callback is told, check its order, and make facts to call callbacks with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar, Final, TypeAlias

from ..types import (
    ChunkKind,
    Content,
    ErrorContext,
    Outcome,
    RequestMetadata,
    ResponseMetadata,
    StreamChunk,
    Usage,
)

_STARTED_NS: Final = 1_700_000_000_000_000_000
_NS_PER_MS: Final = 1_000_000
_RESPONSE_OUTCOMES: Final[tuple[Outcome, ...]] = ("completed", "closed_early", "abandoned")
_ERROR_OUTCOMES: Final[tuple[Outcome, ...]] = ("error", "cancelled")


@dataclass(frozen=True, slots=True)
class RequestSent:
    """What ``on_request_sent`` was told."""

    name: ClassVar[str] = "request_sent"

    metadata: RequestMetadata
    request_json: str

    @property
    def request(self) -> RequestMetadata:
        """The request of the call."""
        return self.metadata


@dataclass(frozen=True, slots=True)
class ChunkReceived:
    """What ``on_stream_chunk`` was told."""

    name: ClassVar[str] = "stream_chunk"

    chunk: StreamChunk
    index: int

    @property
    def request(self) -> RequestMetadata:
        """The request of the call."""
        return self.chunk.request


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """What ``on_response_received`` was told."""

    name: ClassVar[str] = "response_received"

    metadata: ResponseMetadata
    response_json: str

    @property
    def request(self) -> RequestMetadata:
        """The request of the call."""
        return self.metadata.request


@dataclass(frozen=True, slots=True)
class CallFailed:
    """What ``on_error`` was told."""

    name: ClassVar[str] = "error"

    error: BaseException
    context: ErrorContext

    @property
    def request(self) -> RequestMetadata:
        """The request of the call."""
        return self.context.request


Event: TypeAlias = "RequestSent | ChunkReceived | ResponseReceived | CallFailed"
"""One recorded event. All have ``name`` (the hook's name without ``on_``) and ``request``."""


class RecordingCallback:
    """A callback that keeps every event it is told, in order. Safe to use from any thread.

    Args:
        content: How much content to be told.

    Example:
        >>> recorder = RecordingCallback()
        >>> recorder.on_request_sent(make_request(), "{}")
        >>> recorder.names()
        ['request_sent']
    """

    content: Content

    def __init__(self, content: Content = "full") -> None:
        self.content = content
        self._events: list[Event] = []
        self._news = threading.Condition()

    def on_request_sent(self, metadata: RequestMetadata, request_json: str) -> None:
        """Record a request."""
        self._record(RequestSent(metadata, request_json))

    def on_stream_chunk(self, chunk: StreamChunk, index: int) -> None:
        """Record a chunk."""
        self._record(ChunkReceived(chunk, index))

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:
        """Record a response."""
        self._record(ResponseReceived(metadata, response_json))

    def on_error(self, error: BaseException, context: ErrorContext) -> None:
        """Record an error."""
        self._record(CallFailed(error, context))

    @property
    def events(self) -> list[Event]:
        """All events so far, in the order in which they were told; a copy."""
        with self._news:
            return list(self._events)

    def events_of(self, call_id: str) -> list[Event]:
        """Return the events of one call, in order."""
        return [event for event in self.events if event.request.call_id == call_id]

    def calls(self) -> dict[str, list[Event]]:
        """Return the events of each call by its id, the call with the earliest event first."""
        return _by_call(self.events)

    def names(self, call_id: str | None = None) -> list[str]:
        """Return the names of the events, of one call or of all: ``request_sent``, ``stream_chunk`` and so on."""
        return [event.name for event in (self.events if call_id is None else self.events_of(call_id))]

    @property
    def requests(self) -> list[RequestMetadata]:
        """What the ``request_sent`` events told."""
        return [event.metadata for event in self.events if isinstance(event, RequestSent)]

    @property
    def chunks(self) -> list[StreamChunk]:
        """What the ``stream_chunk`` events told."""
        return [event.chunk for event in self.events if isinstance(event, ChunkReceived)]

    @property
    def responses(self) -> list[ResponseMetadata]:
        """What the ``response_received`` events told."""
        return [event.metadata for event in self.events if isinstance(event, ResponseReceived)]

    @property
    def errors(self) -> list[ErrorContext]:
        """What the ``error`` events told."""
        return [event.context for event in self.events if isinstance(event, CallFailed)]

    def wait_for(self, events: int, timeout: float = 5.0) -> list[Event]:
        """Wait until there are that many *events*, and return all there are.

        Args:
            events: How many, at least.
            timeout: How long to wait, in seconds.

        Raises:
            AssertionError: There were fewer by then; the message lists them.
        """
        return self._wait(lambda: len(self._events) >= events, f"{events} events", timeout)

    def wait_for_ends(self, calls: int, timeout: float = 5.0) -> list[Event]:
        """Wait until that many *calls* have ended, and return all events; else as :meth:`wait_for`."""
        return self._wait(lambda: sum(map(_is_end, self._events)) >= calls, f"the end of {calls} calls", timeout)

    def clear(self) -> None:
        """Forget all events."""
        with self._news:
            self._events.clear()

    def _record(self, event: Event) -> None:
        with self._news:
            self._events.append(event)
            self._news.notify_all()

    def _wait(self, come: Callable[[], bool], what: str, timeout: float) -> list[Event]:
        with self._news:
            if not self._news.wait_for(come, timeout):
                names = [event.name for event in self._events]
                raise AssertionError(f"{what} had not come after {timeout} s, only {names}")
            return list(self._events)


def check_grammar(events: Iterable[Event], *, all_ended: bool = True, all_chunks: bool = True) -> None:
    """Check that each call was told in the right order; calls may be interleaved.

    A call is one request, then chunks with rising index, then exactly one response or error with an outcome that fits.

    Args:
        events: From :class:`RecordingCallback`.
        all_ended: False if calls may still be open.
        all_chunks: False if chunks may be missing, as with the overflow policy ``drop_chunks``.

    Raises:
        AssertionError: It was not so; the message names the call, the rule and the events.
    """
    for call_id, told in _by_call(events).items():
        broken = _broken_rule(told, all_ended=all_ended, all_chunks=all_chunks)
        if broken is not None:
            raise AssertionError(f"call {call_id}: {broken}; events: {[event.name for event in told]}")


def _broken_rule(told: Sequence[Event], *, all_ended: bool, all_chunks: bool) -> str | None:
    requests = [event for event in told if isinstance(event, RequestSent)]
    ends = [event for event in told if _is_end(event)]
    if len(requests) != 1 or told[0] is not requests[0]:
        return "request_sent must come once, and first"
    if len(ends) > 1 or (ends and told[-1] is not ends[0]):
        return "only one of response_received and error may come, and nothing after it"
    if all_ended and not ends:
        return "neither response_received nor error has come"
    indexes = [event.index for event in told if isinstance(event, ChunkReceived)]
    if all_chunks and indexes != list(range(len(indexes))):
        return f"chunk indexes must count from 0, they are {indexes}"
    if any(later <= earlier for earlier, later in zip(indexes, indexes[1:])):  # noqa: B905, RUF007 - pairs
        return f"chunk indexes must rise, they are {indexes}"
    return _unfit_outcome(told[-1])


def _unfit_outcome(end: Event) -> str | None:
    if isinstance(end, ResponseReceived) and end.metadata.outcome not in _RESPONSE_OUTCOMES:
        return f"a response cannot have the outcome {end.metadata.outcome}"
    if isinstance(end, CallFailed) and end.context.outcome not in _ERROR_OUTCOMES:
        return f"an error cannot have the outcome {end.context.outcome}"
    return None


def _is_end(event: Event) -> bool:
    return isinstance(event, (ResponseReceived, CallFailed))


def _by_call(events: Iterable[Event]) -> dict[str, list[Event]]:
    calls: dict[str, list[Event]] = {}
    for event in events:
        calls.setdefault(event.request.call_id, []).append(event)
    return calls


_call_numbers: Final = count(1)


def make_request(**over: Any) -> RequestMetadata:
    """Return the facts of a chat request with a new ``call_id``; *over* sets fields.

    Raises:
        TypeError: There is no such field.
    """
    usual = RequestMetadata(
        call_id=f"call-{next(_call_numbers)}",
        api="chat_completions",
        operation="chat",
        provider="openai",
        started_ns=_STARTED_NS,
        model="gpt-4o-mini",
        server_address="api.openai.com",
        server_port=443,
        context_length=42,
    )
    return replace(usual, **over)


def make_response(**over: Any) -> ResponseMetadata:
    """Return the facts of a completed response, 100 ms after its request; *over* sets fields.

    ``usage_source`` and ``ended_ns`` follow from ``usage``, ``request`` and ``response_time_ms`` unless they are given.

    Raises:
        TypeError: There is no such field.
    """
    request = over.pop("request", None) or make_request()
    usage = over.pop("usage", Usage(input_tokens=10, output_tokens=5, total_tokens=15))
    response_time_ms = over.pop("response_time_ms", 100.0)
    usual = ResponseMetadata(
        request=request,
        outcome="completed",
        ended_ns=_after(request, response_time_ms),
        response_time_ms=response_time_ms,
        id="chatcmpl-1",
        model=request.model,
        finish_reasons=("stop",),
        usage=usage,
        usage_source="missing" if usage is None else "reported",
        status_code=200,
        request_id="req-1",
    )
    return replace(usual, **over)


def make_chunk(
    text: str = "Hello", *, request: RequestMetadata | None = None, kind: ChunkKind = "text", at_ns: int | None = None
) -> StreamChunk:
    """Return a chunk, 50 ms after its request unless *at_ns* is given."""
    request = request or make_request(stream=True)
    at_ns = request.started_ns + 50 * _NS_PER_MS if at_ns is None else at_ns
    return StreamChunk(text, request=request, kind=kind, at_ns=at_ns)


def make_error_context(where: str = "chat.completions", **over: Any) -> ErrorContext:
    """Return the context of a rate limit error, 100 ms after its request; *over* sets fields.

    Raises:
        TypeError: There is no such field.
    """
    request = over.pop("request", None) or make_request()
    response_time_ms = over.pop("response_time_ms", 100.0)
    usual: dict[str, Any] = {
        "error_type": "RateLimitError",
        "ended_ns": _after(request, response_time_ms),
        "status_code": 429,
        "request_id": "req-1",
    }
    return ErrorContext(where, request=request, response_time_ms=response_time_ms, **{**usual, **over})


def _after(request: RequestMetadata, response_time_ms: float) -> int:
    return request.started_ns + round(response_time_ms * _NS_PER_MS)
